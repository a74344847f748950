//! What an image leaves out though nobody says that it is free: bytes behind a filesystem in its
//! partition, and between partitions. Some keep something there, so it is told.

use std::ops::Range;

use crate::capture::part::{Part, Watched};
use crate::io::{RangeSet, is_zero};
use crate::partition::PartitionTable;
use crate::volume::{Content, Volume};

/// Bytes that are looked at from the start of a gap; something appended begins there.
const LOOKED_AT: u64 = 1 << 20;

/// So many bytes are looked at in all.
const BUDGET: u64 = 16 << 20;

/// Says which of those gaps are not empty, a line each; what lies behind the last partition is not
/// among them, since most cards have old data there.
pub(super) fn notes(
    source: &Watched,
    table: &PartitionTable,
    parts: &[Part],
    contents: &[Content],
) -> Vec<String> {
    let tables: RangeSet = table
        .table_ranges()
        .iter()
        .map(|range| range.start..range.end)
        .collect();
    let mut notes = Vec::new();
    let mut left = BUDGET;
    let mut look = |gap: Range<u64>, what: String| {
        let end = gap.end.min(gap.start.saturating_add(LOOKED_AT.min(left)));
        for part in tables.gaps(gap.start..end.max(gap.start)) {
            let len = part.end - part.start;
            left -= len;
            if source.peek(part).is_some_and(|bytes| !is_zero(&bytes)) {
                notes.push(format!(
                    "{what}, from byte {}, is not empty, and is left out",
                    gap.start
                ));
                return;
            }
        }
    };
    let mut end: Option<(u64, u32)> = None;
    for (part, content) in parts.iter().zip(contents) {
        let range = part.range;
        if let Some((end, number)) = end.filter(|(end, _)| *end < range.start) {
            let what = format!("what lies between partitions {number} and {}", part.number);
            look(end..range.start, what);
        }
        if matches!(part.volume, Volume::Ext(_) | Volume::Fat(_)) && !content.facts.opaque {
            let filesystem = range.start.saturating_add(content.facts.total);
            if filesystem < range.end {
                let what = format!(
                    "what lies behind the filesystem in partition {}",
                    part.number
                );
                look(filesystem..range.end, what);
            }
        }
        end = Some((range.end, part.number));
    }
    notes
}
