//! Recovery, in memory, of a filesystem that was not unmounted cleanly: the journal's log, its fast
//! commits, orphans.

mod apply;
pub mod fast_commit;
pub mod files;
pub mod journal;
pub mod orphan;
mod orphan_list;
pub mod tags;

use crate::error::{Error, Result};
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::fs::Super;
use crate::ext4::format::superblock::Superblock;
use crate::io::{Overlay, ReadAt};

/// What was done, in memory, to a filesystem that was not unmounted cleanly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Did the superblock say that the journal needs recovery?
    pub journal_was_dirty: bool,
    /// Transactions replayed from the journal.
    pub transactions: u32,
    /// Blocks that the replay changed.
    pub blocks: u64,
    /// Fast commits replayed behind the transactions.
    pub fast_commits: u32,
    /// Deleted files whose blocks were still held.
    pub orphans_deleted: u32,
    /// Files that were being cut to a shorter length.
    pub orphans_truncated: u32,
}

/// A filesystem as a mount would leave it, in memory, and the device it lies on. Nobody has judged
/// it yet: [`check`](Self::check) does.
#[derive(Clone)]
pub struct Recovered<'a> {
    pub(in crate::ext4) device: &'a dyn ReadAt,
    /// The superblock as the device has it, before recovery.
    pub(in crate::ext4) found: Super,
    /// The superblock after it.
    pub(in crate::ext4) fs: Super,
    pub(in crate::ext4) recovery: Recovery,
    /// What the journal's replay changes, over the device.
    pub(in crate::ext4) replayed: Overlay,
    /// What else recovery changes, and edits, over that.
    pub(in crate::ext4) finished: Overlay,
    /// Both, over the device.
    pub(in crate::ext4) overlay: Overlay,
    /// What the quota files have to learn.
    pub(in crate::ext4) quota_deltas: Vec<QuotaDelta>,
}

impl<'a> Recovered<'a> {
    /// Replays the journal on `device`, and finishes deletions and truncations, in memory.
    ///
    /// # Errors
    /// `Unsound` for a damaged log or damaged orphans; `Unsupported` for an unknown INCOMPAT
    /// feature or a journal that cannot be replayed here; what the device fails with.
    pub fn read(device: &'a dyn ReadAt) -> Result<Self> {
        Self::replayed(device)?.without_orphans()
    }

    /// Finishes deletions and truncations, in memory.
    pub(in crate::ext4) fn without_orphans(mut self) -> Result<Self> {
        let orphans = orphan::finish_orphans(&self.fs, &self.view(), 0)?;
        self.recovery.orphans_deleted = orphans.deleted;
        self.recovery.orphans_truncated = orphans.truncated;
        self.quota_deltas.extend(orphans.quota_deltas);
        self.finish(&orphans.overlay)?;
        Ok(self)
    }

    /// Replays the journal on `device`, in memory, and leaves orphans as they are.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(in crate::ext4) fn replayed(device: &'a dyn ReadAt) -> Result<Self> {
        let found = known_super(device)?;
        let replay = journal::replay(&found, device)?;
        // The log may hold another superblock, with other features.
        let fs = known_super(&replay.overlay.over(device))?;
        Ok(Self {
            device,
            found,
            fs,
            recovery: Recovery {
                journal_was_dirty: replay.needed,
                transactions: replay.transactions,
                blocks: replay.blocks,
                fast_commits: replay.fast_commits,
                ..Recovery::default()
            },
            finished: Overlay::new(device.len()),
            overlay: replay.overlay.clone(),
            replayed: replay.overlay,
            quota_deltas: replay.quota_deltas,
        })
    }

    /// Adds what `overlay`, over the filesystem so far, changes.
    pub(in crate::ext4) fn finish(&mut self, overlay: &Overlay) -> Result<()> {
        self.finished = self.finished.then(overlay);
        self.overlay = self.replayed.then(&self.finished);
        self.fs = known_super(&self.overlay.over(self.device))?;
        Ok(())
    }

    /// Returns the superblock, recovered.
    pub fn superblock(&self) -> &Superblock {
        &self.fs.superblock
    }

    /// Returns what was done to get here.
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Returns the filesystem as it can be read now.
    pub fn view(&self) -> impl ReadAt + '_ {
        self.overlay.over(self.device)
    }
}

/// Reads the superblock of a filesystem whose INCOMPAT features are all known.
fn known_super(device: &dyn ReadAt) -> Result<Super> {
    let fs = Super::read(device)?.ok_or_else(|| Error::unsound("no ext filesystem here"))?;
    let unknown = fs.superblock.unknown_incompat();
    if unknown.is_empty() {
        return Ok(fs);
    }
    Err(Error::unsupported(format!(
        "ext4 with unknown features: {}",
        unknown.join(", ")
    )))
}
