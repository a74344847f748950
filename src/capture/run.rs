//! The plan, carried out: source read, hashed, packed and written at the same time.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use crate::bmap::{Bmap, BmapBuilder, ContentHash};
use crate::capture::batch::{Batch, Bytes, Filler};
use crate::capture::keep::Keeper;
use crate::capture::loss::{Rescued, rescued};
use crate::capture::recover::{Places, recover};
use crate::capture::rescue::Rescue;
use crate::capture::sink::{RunOptions, Sink, Writer, writing};
use crate::capture::summary::CapturePlan;
use crate::capture::sums::summed;
use crate::error::{Error, Result};
use crate::io::{RangeSet, ReadAt, Source};
use crate::pipeline::{Stage, fan_out};
use crate::progress::{Phase, Progress};

/// Batches in flight: one being read, one in each stage, one to spare.
const BATCHES: usize = 5;

/// What was written.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Bytes of the file or stream.
    pub file_bytes: u64,
    /// Of the file or stream, in hexadecimal.
    pub file_sha256: String,
    /// Of the image's bytes, unpacked, in hexadecimal.
    pub content_sha256: String,
    pub bmap: Option<Bmap>,
    /// `None`: the source could be read without an error.
    pub rescued: Option<Rescued>,
    /// What kept a map from being written beside the image, which is whole.
    pub besides: Option<Arc<Error>>,
}

/// Writes the image that `plan` describes; `source` is what was planned from.
///
/// Places of the source that cannot be read do not end it: they are zeros in the image, and told.
///
/// # Errors
/// What the sink fails with, or a source that is gone; `Usage` for a level that the codec does not have; `Cancelled`
/// from `progress`. What was written until then is incomplete.
pub fn run(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    sink: &mut Sink,
    options: &RunOptions,
    progress: &dyn Progress,
) -> Result<Captured> {
    run_keeping(plan, source, sink, options, None, progress)
}

/// As [`run`]; what the image has is noted with `keeper`.
pub(super) fn run_keeping(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    sink: &mut Sink,
    options: &RunOptions,
    keeper: Option<&Keeper>,
    progress: &dyn Progress,
) -> Result<Captured> {
    let len = plan.image_bytes();
    let mapped = plan.summary.mapped_bytes;
    progress.started(Phase::Capture, Some(mapped))?;
    progress.started(Phase::Zeros, Some(len.saturating_sub(mapped)))?;
    let mut content = ContentHash::new();
    let mut bmap = options
        .with_bmap
        .then(|| BmapBuilder::new(len, &plan.mapped));
    let mut writer = Writer::new(sink, options, len, progress)?;
    let rescue = Rescue::new(source, Phase::Capture, progress);
    let mut filler = Filler::new(&plan.overlay, rescue, writer.can_return());
    let mut deferred = RangeSet::new();
    let mut stages: Vec<Stage<'_, Batch>> = vec![
        Box::new(|batch: &Batch| {
            let (mut data, mut free) = (0, 0);
            for (offset, bytes) in batch.pieces() {
                match bytes {
                    Bytes::Data(bytes) => {
                        data += bytes.len() as u64;
                        writer.data(offset, bytes)?;
                    }
                    Bytes::Zeros(len) => {
                        free += len;
                        writer.zeros(offset, len, progress)?;
                    }
                }
            }
            for range in batch.deferred() {
                deferred.insert(range.clone());
            }
            if let Some(keeper) = keeper {
                keeper.written(batch)?;
            }
            match data {
                0 => progress.advanced(Phase::Zeros, free),
                _ => {
                    progress.advanced(Phase::Capture, data)?;
                    progress.advanced(Phase::Zeros, free)
                }
            }
        }),
        Box::new(|batch: &Batch| {
            for (_, bytes) in batch.pieces() {
                match bytes {
                    Bytes::Data(bytes) => content.update(bytes),
                    Bytes::Zeros(len) => content.zeros(len),
                }
            }
            Ok(())
        }),
    ];
    if let Some(bmap) = &mut bmap {
        stages.push(Box::new(|batch: &Batch| {
            for (offset, bytes) in batch.pieces() {
                match bytes {
                    Bytes::Data(bytes) => bmap.update(offset, bytes)?,
                    Bytes::Zeros(len) => bmap.zeros(offset, len)?,
                }
            }
            Ok(())
        }));
    }
    let batches = (0..BATCHES).map(|_| Batch::new()).collect();
    fan_out(
        batches,
        |batch| {
            // A read can take long; ask before it, and not only when something was written.
            progress.advanced(Phase::Capture, 0)?;
            filler.fill(batch)
        },
        stages,
    )?;
    let packed = writer.finish()?;
    let mut rescue = filler.into_rescue();
    let (content_sha256, bmap) = match sink {
        Sink::File(file) if !deferred.is_empty() => {
            return_to(plan, &mut rescue, &deferred, file, keeper)?;
            summed(plan, file, options.with_bmap, progress)?
        }
        _ => {
            let bmap = bmap.map(BmapBuilder::finish).transpose()?;
            (content.finish_hex(), bmap)
        }
    };
    let (file_bytes, file_sha256) = packed.unwrap_or_else(|| (len, content_sha256.clone()));
    let rescued = rescued(plan, source, rescue.into_unread(), progress)?;
    progress.finished(Phase::Zeros)?;
    progress.finished(Phase::Capture)?;
    Ok(Captured {
        file_bytes,
        file_sha256,
        content_sha256,
        bmap,
        rescued,
        besides: None,
    })
}

/// Fills in what `file`, the image of an earlier run, has not: `missing` bytes of the source.
///
/// # Errors
/// As [`run`].
pub(super) fn run_again(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    file: &mut File,
    options: &RunOptions,
    (missing, keeper): (&RangeSet, &Keeper),
    progress: &dyn Progress,
) -> Result<Captured> {
    let len = plan.image_bytes();
    progress.started(Phase::Capture, Some(missing.total()))?;
    file.set_len(len).map_err(|error| writing(len, error))?;
    // The map tells of the source's bytes only.
    for segment in plan.overlay.all_segments() {
        if let Source::Bytes(bytes, index) = &segment.source {
            let part = &bytes[*index..*index + segment.len as usize];
            file.seek(SeekFrom::Start(segment.start))
                .and_then(|_| file.write_all(part))
                .map_err(|error| writing(segment.start, error))?;
        }
    }
    let mut rescue = Rescue::new(source, Phase::Capture, progress);
    return_to(plan, &mut rescue, missing, file, Some(keeper))?;
    progress.finished(Phase::Capture)?;
    let (content_sha256, bmap) = summed(plan, file, options.with_bmap, progress)?;
    Ok(Captured {
        file_bytes: len,
        file_sha256: content_sha256.clone(),
        content_sha256,
        bmap,
        rescued: rescued(plan, source, rescue.into_unread(), progress)?,
        besides: None,
    })
}

/// Reads what was left out and writes it where it belongs.
fn return_to(
    plan: &CapturePlan,
    rescue: &mut Rescue,
    missing: &RangeSet,
    file: &mut File,
    keeper: Option<&Keeper>,
) -> Result<()> {
    let places = Places::new(plan);
    recover(rescue, missing, &mut |from, bytes| {
        places.write(file, from, bytes)?;
        match keeper {
            Some(keeper) => keeper.recovered(from..from + bytes.len() as u64),
            None => Ok(()),
        }
    })
}
