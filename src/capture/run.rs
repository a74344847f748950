//! The plan, carried out: source read, hashed, packed and written at the same time.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::bmap::{Bmap, BmapBuilder, ContentHash};
use crate::capture::batch::{Batch, Bytes, Filler};
use crate::capture::keep::Keeper;
use crate::capture::loss::{Rescued, rescued};
use crate::capture::output::TOO_LARGE;
use crate::capture::plan::CapturePlan;
use crate::capture::recover::{Places, recover, summed};
use crate::capture::rescue::Rescue;
use crate::codec::{Codec, Encoder};
use crate::error::{Error, Result};
use crate::io::{RangeSet, ReadAt, Source, is_zero};
use crate::pipeline::{Stage, fan_out};
use crate::progress::{Phase, Progress};

/// Batches in flight: one being read, one in each stage, one to spare.
const BATCHES: usize = 5;

/// Blocks of zeros so long become holes in a raw image, in bytes.
const HOLE: usize = 4096;

/// How the image is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunOptions {
    pub codec: Codec,
    /// `None`: the codec's default.
    pub level: Option<u32>,
    /// For packing; 0 means one per core.
    pub threads: usize,
    pub with_bmap: bool,
}

/// Where the image goes.
pub enum Sink {
    /// An empty file. A raw image's zeros become holes.
    File(File),
    /// Something that cannot seek.
    Stream(Box<dyn Write + Send>),
}

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
    progress.started(Phase::Capture, Some(plan.summary.mapped_bytes))?;
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
            let mut data = 0;
            for (offset, bytes) in batch.pieces() {
                match bytes {
                    Bytes::Data(bytes) => {
                        data += bytes.len() as u64;
                        writer.data(offset, bytes)?;
                    }
                    Bytes::Zeros(len) => writer.zeros(offset, len, progress)?,
                }
            }
            for range in batch.deferred() {
                deferred.insert(range.clone());
            }
            if let Some(keeper) = keeper {
                keeper.written(batch)?;
            }
            progress.advanced(Phase::Capture, data)
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

enum Writer<'a> {
    Sparse(&'a mut File, u64),
    Packed(Box<Encoder<Counting<'a, BufWriter<&'a mut (dyn Write + Send)>>>>),
}

impl<'a> Writer<'a> {
    fn new(
        sink: &'a mut Sink,
        options: &RunOptions,
        len: u64,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let out: &mut (dyn Write + Send) = match (sink, options.codec) {
            (Sink::File(file), Codec::Raw) => return Ok(Self::Sparse(file, len)),
            (Sink::File(file), _) => file,
            (Sink::Stream(stream), _) => &mut **stream,
        };
        let out = Counting {
            inner: BufWriter::with_capacity(1 << 20, out),
            hash: Sha256::new(),
            count: 0,
            progress,
        };
        let (codec, level) = (options.codec, options.level);
        Encoder::with_len(codec, level, options.threads, Some(len), out)
            .map(|encoder| Self::Packed(Box::new(encoder)))
    }

    /// Can what is written be changed later?
    fn can_return(&self) -> bool {
        matches!(self, Self::Sparse(..))
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Sparse(file, _) => {
                for part in without_holes(offset, bytes) {
                    let start = offset + part.start as u64;
                    file.seek(SeekFrom::Start(start))
                        .and_then(|_| file.write_all(&bytes[part]))
                        .map_err(|error| writing(start, error))?;
                }
                Ok(())
            }
            Self::Packed(encoder) => encoder
                .write_all(bytes)
                .map_err(|error| writing(offset, error)),
        }
    }

    fn zeros(&mut self, offset: u64, len: u64, progress: &dyn Progress) -> Result<()> {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let Self::Packed(encoder) = self else {
            return Ok(());
        };
        let mut left = len;
        while left > 0 {
            let part = left.min(ZEROS.len() as u64);
            encoder
                .write_all(&ZEROS[..part as usize])
                .map_err(|error| writing(offset + (len - left), error))?;
            left -= part;
            progress.advanced(Phase::Capture, 0)?;
        }
        Ok(())
    }

    /// Returns length and sha256 of what was written, unless that is the image as it is.
    fn finish(self) -> Result<Option<(u64, String)>> {
        match self {
            Self::Sparse(file, len) => {
                file.set_len(len).map_err(|error| writing(len, error))?;
                Ok(None)
            }
            Self::Packed(encoder) => {
                let out = encoder.finish()?;
                let digest: [u8; 32] = out.hash.finalize().into();
                let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                Ok(Some((out.count, hex)))
            }
        }
    }
}

pub(super) fn writing(offset: u64, error: std::io::Error) -> Error {
    let too_large = error.kind() == std::io::ErrorKind::FileTooLarge;
    let what = format!("writing the image at byte {offset} of its contents");
    let error = Error::io(what, error);
    match too_large {
        true => error.with_hint(TOO_LARGE),
        false => error,
    }
}

/// Lists the parts of `bytes`, which begin at `offset` of the image, that are not whole blocks of
/// zeros.
fn without_holes(offset: u64, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let next = at + HOLE - (offset as usize + at) % HOLE;
        let next = next.min(bytes.len());
        if next - at == HOLE && is_zero(&bytes[at..next]) {
            if start < at {
                parts.push(start..at);
            }
            start = next;
        }
        at = next;
    }
    if start < bytes.len() {
        parts.push(start..bytes.len());
    }
    parts
}

/// Hashes and counts what passes; stops it when the user does not want it any more.
struct Counting<'a, W> {
    inner: W,
    hash: Sha256,
    count: u64,
    progress: &'a dyn Progress,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.progress.advanced(Phase::Capture, 0)?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_whole_aligned_blocks_of_zeros() {
        let mut bytes = vec![0; 4 * HOLE];
        bytes[0] = 1;
        bytes[2 * HOLE + 5] = 1;
        assert_eq!(without_holes(0, &bytes), [0..HOLE, 2 * HOLE..3 * HOLE]);
        // 100 bytes into a block: the ends are no whole blocks.
        assert_eq!(
            without_holes(100, &vec![0; 2 * HOLE]),
            [0..HOLE - 100, 2 * HOLE - 100..2 * HOLE]
        );
        assert_eq!(without_holes(0, &[0; 10]), [0..10]);
        assert!(without_holes(0, &[]).is_empty());
    }
}
