//! Every file's chain of clusters, as the directories name them.

use crate::error::Result;
use crate::fat::boot::{Geometry, Root};
use crate::fat::chain::{Entry, Table};
use crate::fat::dir::{self, MAX_DIRECTORY};
use crate::io::ReadAt;

/// With more clusters nothing is walked: the whole FAT is held in memory.
const MOST_CLUSTERS: u32 = 16 << 20;

/// Bytes of paths that wait to be looked at; what is behind them stays without a name.
const MOST_PATHS: usize = 64 << 20;

/// A file or directory.
pub(super) struct Chain {
    /// Untrusted text.
    pub(super) path: String,
    pub(super) first: u32,
    pub(super) is_dir: bool,
    /// The stated length of a file in bytes.
    pub(super) len: u64,
}

/// How a chain ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// As it should; also the empty chain of an empty file.
    Proper,
    /// At a cluster that is marked as free.
    Free(u32),
    /// At one that is marked as bad.
    Bad(u32),
    /// At a number that no cluster has.
    Outside(u32),
    /// At a cluster of a chain that was walked before, or of its own.
    Taken(u32),
}

/// What is done with what a walk meets.
pub(super) trait Visit {
    /// A cluster of a chain: the byte where it begins, and its place in the file.
    fn cluster(&mut self, chain: &Chain, start: u64, offset: u64);

    /// A chain is over, after so many clusters.
    fn end(&mut self, _chain: &Chain, _end: End, _clusters: u64) {}
}

/// Walks all chains; `false` if not all of them could be: there are too many clusters or paths.
pub(super) fn walk_files<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    visit: &mut dyn Visit,
) -> Result<bool> {
    if geometry.clusters > MOST_CLUSTERS {
        return Ok(false);
    }
    let table = Table::read(geometry, dev)?;
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
            len: 0,
        }),
    }
    while let Some(chain) = work.pop() {
        let mut contents = Vec::new();
        let mut clusters = 0;
        // An empty file has no cluster at all.
        let mut next = (chain.first != 0 || chain.is_dir).then_some(chain.first);
        let mut end = End::Proper;
        while let Some(cluster) = next {
            let Some(start) = geometry.cluster_start(cluster) else {
                end = End::Outside(cluster);
                break;
            };
            let entry = table.entry(cluster);
            match entry {
                Entry::Free => end = End::Free(cluster),
                Entry::Bad => end = End::Bad(cluster),
                _ if std::mem::replace(&mut seen[cluster as usize], true) => {
                    end = End::Taken(cluster);
                }
                _ => {}
            }
            if matches!(end, End::Bad(_) | End::Taken(_)) {
                break;
            }
            // What is marked as free, but belongs to a file, is still the file's.
            visit.cluster(&chain, start, clusters * geometry.cluster_size);
            if chain.is_dir && (contents.len() as u64) < MAX_DIRECTORY {
                contents.extend(dev.read_vec_at(start, geometry.cluster_size as usize)?);
            }
            clusters += 1;
            next = match entry {
                Entry::Next(next) => Some(next),
                _ => None,
            };
        }
        visit.end(&chain, end, clusters);
        if chain.is_dir {
            let path = chain.path.trim_end_matches('/');
            work.add_files(&contents, path, geometry);
        }
    }
    Ok(!work.overflowed)
}

/// What is yet to be looked at, the last first.
#[derive(Default)]
struct Work {
    chains: Vec<Chain>,
    /// Bytes of all their paths.
    held: usize,
    overflowed: bool,
}

impl Work {
    /// Takes a chain, unless too much waits already: folders in folders without end have paths that
    /// grow and grow.
    fn push(&mut self, chain: Chain) {
        let held = self.held + chain.path.len() + size_of::<Chain>();
        if held > MOST_PATHS {
            self.overflowed = true;
            return;
        }
        self.held = held;
        self.chains.push(chain);
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
                    len: file.len(),
                });
            }
        }
    }
}
