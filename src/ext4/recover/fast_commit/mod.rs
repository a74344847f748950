//! Replay of fast commits, in memory: what fsync stored behind the last full transaction.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/journal.rst. Comes after the log was
//! replayed and before orphans are finished, as at a mount. A tag tells an outcome ("this name stands
//! for that inode"), not blocks, so this edits directories, maps and inodes. Bitmaps and counts are
//! left alone: the caller rebuilds them from what the inodes own.
//!
//! Decisions
//! - Where the kernel skips a tag, so does this: a name for an inode that is gone by then, a range of
//!   it, a name that already stands for the same inode.
//! - Where its recovery leaves damage behind, this does not: link counts of directories, removed
//!   directories, targets of symlinks, device numbers, attributes left over in a slot, shares of
//!   xattr blocks in `i_blocks`, files whose name was never logged.
//! - Whatever contradicts the filesystem is refused; everything else is left to the check, which
//!   judges the result as a whole.
//! - A directory keeps its times: the log does not tell them, and the kernel would put the time of
//!   the recovery.
//! - The quota files' inodes and the orphan file's stay as the last transaction left them, because
//!   their contents do.

#[cfg(test)]
mod tests;

use crate::error::Result;
use crate::ext4::edit::editor::{Editor, refused};
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::fs::Super;
use crate::ext4::format::superblock::RO_COMPAT_SHARED_BLOCKS;
use crate::ext4::recover::orphan::orphan_links;
use crate::ext4::recover::tags::FastCommits;
use crate::io::{Overlay, ReadAt};

/// The outcome.
#[derive(Debug)]
pub struct Replayed {
    /// The filesystem after the last fast commit; lies on the device that was given.
    pub overlay: Overlay,
    /// What the quota files have to learn.
    pub quota_deltas: Vec<QuotaDelta>,
}

/// Replays `commits`. `device` is the filesystem after the log's replay, `fs` was read from it.
///
/// # Errors
/// `Unsound` for tags that contradict the filesystem, `Unsupported` for files or directories in a
/// form that is not handled, `NoSpace` if the filesystem is full; what the device fails with.
pub fn replay(fs: &Super, device: &dyn ReadAt, commits: &FastCommits) -> Result<Replayed> {
    let mut work = Editor::new(fs, device);
    if commits.count > 0 {
        if fs.geometry.cluster_ratio != 1 {
            return Err(refused("clusters (feature bigalloc)"));
        }
        if fs.superblock.has_ro_compat(RO_COMPAT_SHARED_BLOCKS) {
            return Err(refused("shared_blocks"));
        }
        work.orphans = orphan_links(fs, device)?;
        for tag in commits.tags() {
            work.apply(tag)?;
        }
        work.finish()?;
    }
    Ok(Replayed {
        overlay: work.overlay,
        quota_deltas: work.quota_deltas,
    })
}
