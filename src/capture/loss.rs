//! What a capture could not read, by the names that its owner knows: files, or which metadata.

use serde::Serialize;

use crate::capture::mapfile;
use crate::capture::rescue::{Forgiving, Unread};
use crate::capture::summary::{CapturePlan, PartitionSummary};
use crate::error::{ErrorKind, Result};
use crate::io::{RangeSet, ReadAt, Window};
use crate::progress::{Phase, Progress};
use crate::units::ByteRange;
use crate::volume::{Owned, Volume};

/// How reading went, of a source that did not read smoothly.
#[derive(Clone, Debug, Serialize)]
pub struct Rescued {
    /// Requests that failed, also those that worked later.
    pub read_errors: u64,
    /// Bytes that no attempt could read: zeros in the image.
    pub unreadable_bytes: u64,
    pub losses: Vec<Loss>,
    /// In the format of GNU ddrescue.
    #[serde(skip)]
    pub map_file: String,
}

/// A stretch of the source that could not be read. Paths are untrusted text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Loss {
    /// Bytes of the source.
    pub source: ByteRange,
    /// 0 for what lies in no partition.
    pub partition: u32,
    /// The file's path in its filesystem, or what else is lost there, in a few words.
    pub owner: String,
    /// `None`: it is no file's contents.
    pub file_offset: Option<u64>,
}

impl Loss {
    /// Tells it in a line.
    pub fn line(&self) -> String {
        let place = match self.partition {
            0 => format!("byte {} of the source", self.source.start),
            number => format!(
                "partition {number}, byte {} of the source",
                self.source.start
            ),
        };
        let (len, owner) = (self.source.len(), &self.owner);
        match self.file_offset {
            Some(offset) => format!("{len} bytes of {owner} from its byte {offset} on ({place})"),
            None => format!("{len} bytes of {owner} ({place})"),
        }
    }
}

/// Names what is lost; `None` if there was no error at all.
pub fn rescued(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    unread: Unread,
    progress: &dyn Progress,
) -> Result<Option<Rescued>> {
    if unread.read_errors == 0 {
        return Ok(None);
    }
    let forgiving = Forgiving::new(source, unread.ranges.clone(), Phase::Capture, progress);
    Ok(Some(Rescued {
        read_errors: unread.read_errors,
        unreadable_bytes: unread.ranges.total(),
        losses: losses(plan, &forgiving, &unread.ranges)?,
        map_file: mapfile::text(plan, &unread.ranges, &RangeSet::new()),
    }))
}

fn losses(plan: &CapturePlan, source: &dyn ReadAt, unread: &RangeSet) -> Result<Vec<Loss>> {
    let mut losses = Vec::new();
    let mut rest = unread.clone();
    for part in &plan.summary.partitions {
        let range = part.range.start..part.range.end;
        let lost: RangeSet = unread
            .iter_within(range.clone())
            .map(|lost| lost.start - range.start..lost.end - range.start)
            .collect();
        if lost.is_empty() {
            continue;
        }
        rest.remove(range.clone());
        let window = Window::new(source, part.range)?;
        for (lost, owner, file_offset) in owners(part, &window, &lost)? {
            losses.push(Loss {
                source: ByteRange::new(range.start + lost.start, range.start + lost.end),
                partition: part.number,
                owner,
                file_offset,
            });
        }
    }
    losses.extend(rest.iter().map(|range| Loss {
        source: ByteRange::new(range.start, range.end),
        partition: 0,
        owner: "the partition table or a boot loader".into(),
        file_offset: None,
    }));
    losses.sort_by_key(|loss| loss.source.start);
    Ok(losses)
}

fn owners(
    part: &PartitionSummary,
    window: &Window<&dyn ReadAt>,
    lost: &RangeSet,
) -> Result<Vec<Owned>> {
    let by_name = || match part.label.as_deref() {
        Some(label) => format!("{} {label:?}", part.filesystem),
        None => part.filesystem.clone(),
    };
    let found = Volume::identify(window).and_then(|volume| volume.owners(window, lost));
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
        // Nothing more is known than where it is.
        _ => Ok(lost.iter().map(|range| (range, by_name(), None)).collect()),
    }
}
