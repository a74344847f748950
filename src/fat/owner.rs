//! Who owns given bytes: files by path. Only asked when some cannot be read.

use std::ops::Range;

use crate::error::Result;
use crate::fat::boot::{Geometry, Root};
use crate::fat::dir::{self, MAX_DIRECTORY};
use crate::fat::usage::{Entry, entries};
use crate::io::{RangeSet, ReadAt};

/// With more clusters only areas are told apart: the whole FAT is held in memory.
const MOST_CLUSTERS: u32 = 4 << 20;

/// Bytes of paths that wait to be looked at; what is behind them stays without a name.
const MOST_PATHS: usize = 64 << 20;

/// A stretch, what it belongs to, and its place in the file if it is a file's.
pub type Owned = (Range<u64>, String, Option<u64>);

/// A file or directory yet to be looked at.
struct Chain {
    path: String,
    first: u32,
    is_dir: bool,
}

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
    if geometry.clusters <= MOST_CLUSTERS {
        files(geometry, dev, bytes, &mut found)?;
    }
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

fn files<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    bytes: &RangeSet,
    found: &mut Vec<Owned>,
) -> Result<()> {
    let table = entries(geometry, dev)?;
    // A cluster belongs to the first chain that has it, so no walk goes in circles.
    let mut seen = vec![false; table.len()];
    let mut work = Work::default();
    match geometry.root {
        Root::Fixed { start, len } => {
            work.add_files(&dev.read_vec_at(start, len as usize)?, "", geometry);
        }
        Root::Chain { first } => work.push(Chain {
            path: "/".into(),
            first,
            is_dir: true,
        }),
    }
    while let Some(chain) = work.pop() {
        let mut contents = Vec::new();
        let mut cluster = chain.first;
        let mut offset = 0;
        while let Some(start) = geometry.cluster_start(cluster)
            && !std::mem::replace(&mut seen[cluster as usize], true)
        {
            let all = start..start + geometry.cluster_size;
            for range in bytes.iter_within(all) {
                let at = offset + (range.start - start);
                found.push((range, chain.path.clone(), Some(at)));
            }
            if chain.is_dir && (contents.len() as u64) < MAX_DIRECTORY {
                contents.extend(dev.read_vec_at(start, geometry.cluster_size as usize)?);
            }
            offset += geometry.cluster_size;
            match table[cluster as usize] {
                Entry::Next(next) => cluster = next,
                _ => break,
            }
        }
        if chain.is_dir {
            let path = chain.path.trim_end_matches('/');
            work.add_files(&contents, path, geometry);
        }
    }
    Ok(())
}

/// What is yet to be looked at, the last first.
#[derive(Default)]
struct Work {
    chains: Vec<Chain>,
    /// Bytes of all their paths.
    held: usize,
}

impl Work {
    /// Takes a chain, unless too much waits already: folders in folders without end have paths that
    /// grow and grow.
    fn push(&mut self, chain: Chain) {
        let held = self.held + chain.path.len() + size_of::<Chain>();
        if held <= MOST_PATHS {
            self.held = held;
            self.chains.push(chain);
        }
    }

    fn pop(&mut self) -> Option<Chain> {
        let chain = self.chains.pop()?;
        self.held -= chain.path.len() + size_of::<Chain>();
        Some(chain)
    }

    fn add_files(&mut self, directory: &[u8], path: &str, geometry: &Geometry) {
        for file in dir::entries(directory) {
            if let Some(name) = file.name() {
                self.push(Chain {
                    path: format!("{path}/{name}"),
                    first: file.first_cluster(geometry),
                    is_dir: file.is_dir(),
                });
            }
        }
    }
}
