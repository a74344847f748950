//! What a system changed on a card by mounting it, told from what differs for another reason.

use std::ops::Range;

use crate::ext4;
use crate::io::{Overlay, ReadAt, Window};
use crate::partition::PartitionTable;
use crate::units::ByteRange;
use crate::volume::Volume;

/// Returns what is left of `ranges`, which differ between `expected` and `card`, when what mounting changes is
/// put back.
pub(super) fn not_by_mounting(
    expected: &dyn ReadAt,
    card: &dyn ReadAt,
    ranges: &[ByteRange],
) -> Vec<ByteRange> {
    let mut left = ranges.to_vec();
    let whole = [0..expected.len()];
    let table = PartitionTable::read(expected).ok().flatten();
    let volumes: Vec<Range<u64>> = match &table {
        Some(table) => table
            .partitions()
            .iter()
            .map(|part| part.range.start..part.range.end)
            .collect(),
        None => whole.to_vec(),
    };
    for volume in volumes {
        let inside = |range: &ByteRange| range.start >= volume.start && range.end <= volume.end;
        let here: Vec<_> = left.iter().filter(|range| inside(range)).copied().collect();
        if here.is_empty() {
            continue;
        }
        let place = ByteRange::new(volume.start, volume.end);
        let (Ok(before), Ok(after)) = (Window::new(expected, place), Window::new(card, place))
        else {
            continue;
        };
        let within: Vec<_> = here
            .iter()
            .map(|range| range.start - volume.start..range.end - volume.start)
            .collect();
        let Some(back) = put_back(&before, &after, &within) else {
            continue;
        };
        let restored = back.over(&after);
        let same = |range: &ByteRange| {
            let (at, len) = (range.start - volume.start, range.len() as usize);
            match (restored.read_vec_at(at, len), before.read_vec_at(at, len)) {
                (Ok(restored), Ok(before)) => restored == before,
                _ => false,
            }
        };
        left.retain(|range| !inside(range) || !same(range));
    }
    left
}

/// Puts back what mounting changed, where the filesystem is one of which that is known.
fn put_back(before: &dyn ReadAt, after: &dyn ReadAt, ranges: &[Range<u64>]) -> Option<Overlay> {
    match Volume::identify(before).ok()? {
        Volume::Fat(fat) => fat.unmounted(before, after, ranges).ok(),
        Volume::Ext(_) => ext4::since::unmounted(before, after, ranges).ok()?,
        _ => None,
    }
}
