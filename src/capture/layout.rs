//! The places of an image's partitions.

use crate::capture::part::{Part, is_kept};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{RangeSet, ReadAt, check_range};
use crate::partition::{DiskLen, Layout, PartitionTable};
use crate::units::{ByteRange, round_up};
use crate::volume::{Content, Volume};

/// A moved partition starts at a multiple of what its old start was a multiple of, within these.
const LEAST_ALIGNMENT: u64 = 4096;
const MOST_ALIGNMENT: u64 = 1 << 20;

/// Returns which partition shrinks: the last one that does not move for another, if it is ext.
pub(super) fn shrinking(parts: &[Part]) -> Option<usize> {
    let index = parts.iter().rposition(|part| !can_move(part))?;
    matches!(parts[index].volume, Volume::Ext(_)).then_some(index)
}

pub(super) fn can_move(part: &Part) -> bool {
    part.volume.moves_for_others(part.range.len())
}

/// Returns the places of all partitions when the one at `index` ends with `shrunk`, and those
/// behind it follow.
pub(super) fn closed_up(
    table: &PartitionTable,
    parts: &[Part],
    index: usize,
    shrunk: &Content,
) -> Result<Vec<ByteRange>> {
    let unit = table.sector_size();
    let too_far = || Error::internal("a partition would end beyond 2^64");
    let mut end = 0;
    let mut ranges = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let range = if at < index || (at == index && is_kept(shrunk)) {
            part.range
        } else if at == index {
            let len = round_up(shrunk.overlay.len(), unit).ok_or_else(too_far)?;
            ByteRange::at(part.range.start, len.min(part.range.len())).ok_or_else(too_far)?
        } else {
            let alignment = 1 << part.range.start.trailing_zeros().min(63);
            let alignment = unit.max(u64::clamp(alignment, LEAST_ALIGNMENT, MOST_ALIGNMENT));
            let start = round_up(end + table.lead_in(at), alignment).ok_or_else(too_far)?;
            let start = start.min(part.range.start);
            ByteRange::at(start, part.range.len()).ok_or_else(too_far)?
        };
        end = range.end;
        ranges.push(range);
    }
    Ok(ranges)
}

/// Computes the table of partitions at `wanted` places. Where the table cannot have that, the
/// partitions behind the one that shrinks stay, or all do, and a note says so.
pub(super) fn lay_out(
    table: &PartitionTable,
    source: &dyn ReadAt,
    old: &[ByteRange],
    wanted: Vec<ByteRange>,
    shrinks: Option<usize>,
) -> Result<(Vec<ByteRange>, Layout, Option<String>)> {
    let try_at = |ranges: &[ByteRange]| {
        let changes: Vec<_> = ranges.iter().copied().enumerate().collect();
        table.relayout(source, &changes, DiskLen::Minimal)
    };
    let error = match try_at(&wanted) {
        Ok(layout) => return Ok((wanted, layout, None)),
        Err(error) => error,
    };
    if let (Some(index), ErrorKind::Usage | ErrorKind::Unsupported) = (shrinks, error.kind()) {
        let mut staying = old.to_vec();
        staying[index] = wanted[index];
        for ranges in [staying, old.to_vec()] {
            if let Ok(layout) = try_at(&ranges) {
                let note = format!("partitions keep their places: {}", error.one_line());
                return Ok((ranges, layout, Some(note)));
            }
        }
    }
    Err(error)
}

/// A source whose partitions seem empty: what lies in them is no part of a table, wherever the
/// image ends, and is not read for it.
pub(super) struct Outside<'a> {
    pub(super) source: &'a dyn ReadAt,
    pub(super) parts: RangeSet,
}

impl ReadAt for Outside<'_> {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        buf.fill(0);
        for gap in self.parts.gaps(offset..offset + buf.len() as u64) {
            let part = (gap.start - offset) as usize..(gap.end - offset) as usize;
            self.source.read_exact_at(gap.start, &mut buf[part])?;
        }
        Ok(())
    }
}
