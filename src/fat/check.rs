//! Whether the chains that directories name are whole: what fsck.fat would find fault with.
//!
//! Decisions: clusters in use that no file names are told and kept, and so is a chain that is longer
//! than its file: nothing is lost by either. A chain that breaks off, leaves the filesystem, or has
//! another's cluster is damage: what the FAT calls free may be a file's then.

use crate::error::{ErrorKind, Result};
use crate::fat::boot::Geometry;
use crate::fat::walk::{Chain, End, Visit, walk_files};
use crate::io::ReadAt;

/// So many findings are named.
const NAMED: usize = 3;

/// What a look at the chains found.
#[derive(Default)]
pub(super) struct Findings {
    /// What is wrong with the chains, a line each; the last one may sum up the others.
    pub(super) damage: Vec<String>,
    /// Clusters that files name; `None` if not all files could be looked at.
    pub(super) named_clusters: Option<u64>,
}

/// Walks the chains of all files. Reading errors just end the look: who reads the clusters meets
/// them again.
///
/// # Errors
/// What the device fails with, but for `Io`.
pub(super) fn check<D: ReadAt + ?Sized>(geometry: &Geometry, dev: &D) -> Result<Findings> {
    let mut look = Look {
        cluster_size: geometry.cluster_size,
        clusters: 0,
        damage: Vec::new(),
        more: 0,
    };
    let whole = match walk_files(geometry, dev, &mut look) {
        Err(error) if error.kind() == ErrorKind::Io => false,
        other => other?,
    };
    if look.more > 0 {
        look.damage
            .push(format!("and {} more such files", look.more));
    }
    Ok(Findings {
        damage: look.damage,
        named_clusters: whole.then_some(look.clusters),
    })
}

struct Look {
    cluster_size: u64,
    clusters: u64,
    damage: Vec<String>,
    more: u64,
}

impl Visit for Look {
    fn cluster(&mut self, _: &Chain, _: u64, _: u64) {
        self.clusters += 1;
    }

    fn end(&mut self, chain: &Chain, end: End, clusters: u64) {
        let there = clusters * self.cluster_size;
        let what = match end {
            End::Free(cluster) => format!("goes on in cluster {cluster}, which is marked as free"),
            End::Bad(cluster) => format!("goes on in cluster {cluster}, which is marked as bad"),
            End::Outside(cluster) => format!("goes to cluster {cluster}, which is not there"),
            End::Taken(cluster) => format!("shares cluster {cluster} with another chain or itself"),
            End::Proper if !chain.is_dir && chain.len > there => format!(
                "has {there} bytes of clusters, but the file {} bytes",
                chain.len
            ),
            End::Proper => return,
        };
        if self.damage.len() == NAMED {
            self.more += 1;
            return;
        }
        self.damage
            .push(format!("the chain of {:?} {what}", chain.path));
    }
}
