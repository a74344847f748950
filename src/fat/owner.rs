//! Who owns given bytes: files by path. Only asked when some cannot be read.

use std::ops::Range;

use crate::error::Result;
use crate::fat::boot::Geometry;
use crate::fat::walk::{Chain, Visit, walk_files};
use crate::io::{RangeSet, ReadAt};

/// A stretch, what it belongs to, and its place in the file if it is a file's.
pub type Owned = (Range<u64>, String, Option<u64>);

pub(super) fn owners<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    bytes: &RangeSet,
) -> Result<Vec<Owned>> {
    let mut found: Vec<Owned> = Vec::new();
    let mut area = |within: Range<u64>, name: &str| {
        let there = bytes.iter_within(within);
        found.extend(there.map(|range| (range, name.to_owned(), None)));
    };
    // OK: the boot sector was checked, all of these lie within the device.
    let fats_end = geometry.fat_copy(geometry.fats);
    area(
        0..geometry.fat_start,
        "the boot sectors of the FAT filesystem",
    );
    area(geometry.fat_start..fats_end, "the file allocation table");
    area(fats_end..geometry.data_start, "the root directory");
    let mut names = Names {
        cluster_size: geometry.cluster_size,
        bytes,
        found: &mut found,
    };
    walk_files(geometry, dev, &mut names)?;
    let claimed: RangeSet = found.iter().map(|(range, ..)| range.clone()).collect();
    for range in bytes.iter() {
        for gap in claimed.gaps(range) {
            found.push((
                gap,
                "clusters that no readable directory names".into(),
                None,
            ));
        }
    }
    found.sort_by_key(|(range, ..)| range.start);
    Ok(found)
}

/// The stretches of files among the bytes that are asked for.
struct Names<'a> {
    cluster_size: u64,
    bytes: &'a RangeSet,
    found: &'a mut Vec<Owned>,
}

impl Visit for Names<'_> {
    fn cluster(&mut self, chain: &Chain, start: u64, offset: u64) {
        for range in self.bytes.iter_within(start..start + self.cluster_size) {
            let at = offset + (range.start - start);
            self.found.push((range, chain.path.clone(), Some(at)));
        }
    }
}
