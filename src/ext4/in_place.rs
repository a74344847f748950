//! A filesystem changed where it lies, so that an interruption at any write leaves the old one or
//! the new one.
//!
//! ```text
//! settling   a transaction ─ the log's superblock, which replaces all other ones by it
//! recovery   replayed blocks ─ empty the log ─ superblock
//! change     unused blocks, the log's copies ─ superblock: needs_recovery ─ log counts
//!            ─ descriptors of the old groups ─ all blocks but the superblock
//!            ─ superblock: new size, clean ─ empty the log
//!            ─ copies of superblock and descriptors
//! ```
//! Each dash is a sync. What the old filesystem does not use is written first. Of all else the
//! filesystem's own journal first takes what is there, as one transaction: from when the log's
//! superblock names it, every mount, e2fsck and this program put the old filesystem back, whatever
//! of the change is on the medium. The one write of the superblock then brings the new size and
//! takes `needs_recovery` away, and a log that nobody asks for is thrown away.
//!
//! Decisions
//! - The log undoes, it does not redo: the kernel reads the superblock and the descriptors before
//!   it replays the journal, and goes by that number of groups until it is unmounted. A new size
//!   that comes out of the journal gives wrong counts of free blocks, so the size must be on the
//!   medium before a mount can meet it, and with it all that belongs to it.
//! - For two writes the log has data and the superblock does not ask for it. The kernel clears such
//!   a log: the new filesystem. `e2fsck -y` replays it: the old one, since its superblock is in
//!   the log, too. `e2fsck -p` leaves the question to the user.
//! - Before the log undoes anything the kernel looks at the descriptors, and goes by them to the
//!   journal's inode. Whether it meets an old or a new one, it finds a copy there: of an inode table
//!   that moves, the new place is written before the descriptor, and the old one after it.
//! - Copies of superblock and descriptors come last, since nobody reads them.
//! - A superblock is taken for a unit that is written whole or not at all, as the kernel takes it.
//! - A change that moves the journal itself does not go through it.
//! - Without a journal, or with one too short, no order keeps bitmaps and counts in step with the
//!   superblock. Then blocks are marked as used before anything uses them and as free after
//!   nothing does, and the superblock says meanwhile that the filesystem was not unmounted cleanly,
//!   so that e2fsck runs at the next boot. It has to: `e2fsck -fy` keeps every file. That does not
//!   hold where files make room for groups' metadata: what replaces their blocks may be written
//!   before what tells where they are now.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::format::fs::Super;
use crate::ext4::format::geometry::Geometry;
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER, STATE_VALID, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE,
    Superblock,
};
use crate::ext4::read::metadata::Metadata;
use crate::ext4::recover::journal::commit;
use crate::io::range_set::pieces;
use crate::io::{Overlay, RangeSet, ReadAt, Steps};
use crate::units::BlockNr;

const SUPERBLOCK: Range<u64> = SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64;

/// Puts what a journal's replay changes into steps. `replayed` lies on `device`, which `fs` was
/// read from.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn recovery(fs: &Super, device: &dyn ReadAt, replayed: &Overlay) -> Result<Steps> {
    let mut steps = Steps::new();
    if replayed.is_empty() {
        return Ok(steps);
    }
    let len = device.len();
    let view = replayed.over(device);
    let log = commit::place(fs, device)?.superblock_at;
    let log = log..log + SUPERBLOCK_SIZE as u64;
    let mut blocks = replayed.clone();
    blocks.forget(log.clone());
    let needed = fs.superblock.has_incompat(INCOMPAT_RECOVER);
    let clean = superblock(&view)?;
    if needed {
        // As the replay leaves it, but still to be replayed.
        blocks.set_bytes(SUPERBLOCK.start, recovering(&clean));
    }
    steps.push(blocks);
    steps.push_bytes(
        len,
        log.start,
        &view.read_vec_at(log.start, SUPERBLOCK_SIZE)?,
    );
    if needed {
        steps.push_bytes(len, SUPERBLOCK.start, clean.bytes());
    }
    Ok(steps)
}

/// Puts into steps what makes fast commits an ordinary transaction: `recovered`, all that the
/// recovery changes on `device`, replaces what is in the log. Fast commits alone change no bitmap,
/// and they are gone when the log is emptied. `None` if the log has no room.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn settle_fast_commits(
    fs: &Super,
    device: &dyn ReadAt,
    recovered: &Overlay,
) -> Result<Option<Steps>> {
    let (len, size) = (device.len(), fs.geometry.block_size);
    let log = commit::place(fs, device)?.blocks;
    let after = recovered.over(device);
    let changed = recovered.changed().flat_map(|range| pieces(range, size));
    let changed: BTreeSet<BlockNr> = changed.map(|piece| piece.start / size).collect();
    let mut blocks = Vec::new();
    for block in changed.into_iter().filter(|&block| !log.contains(block)) {
        let mut bytes = after.read_vec_at(block * size, size as usize)?;
        if block == SUPERBLOCK.start / size {
            let at = (SUPERBLOCK.start % size) as usize;
            let superblock = recovering(&superblock(&after)?);
            bytes[at..at + SUPERBLOCK_SIZE].copy_from_slice(&superblock);
        }
        blocks.push((block, bytes));
    }
    let Some(transaction) = commit::replacement(fs, device, &blocks)? else {
        return Ok(None);
    };
    let mut prepared = Overlay::new(len);
    for (offset, bytes) in transaction.log {
        prepared.set_bytes(offset, bytes);
    }
    let mut steps = Steps::new();
    steps.push(prepared);
    steps.push_bytes(len, transaction.superblock_at, &transaction.started);
    Ok(Some(steps))
}

/// A change of a filesystem that is clean on its medium.
pub struct Change<'a> {
    /// As it is on the medium.
    pub fs: &'a Super,
    pub device: &'a dyn ReadAt,
    pub metadata: &'a Metadata,
    /// The geometry after the change.
    pub geometry: &'a Geometry,
    /// The change, over `device`.
    pub overlay: &'a Overlay,
    /// Can the journal be found by the old descriptors and by the new ones, whatever of the rest
    /// of the change is on the medium?
    pub journal_stays: bool,
}

/// A change, sorted by when it may be written.
struct Sorted {
    /// Blocks that the old filesystem does not use.
    unused: Overlay,
    /// Blocks that count, whole.
    counting: Vec<(BlockNr, Vec<u8>)>,
    /// Copies of superblock and descriptors.
    copies: Overlay,
    old: Superblock,
    new: Superblock,
}

impl Change<'_> {
    /// Puts the change into steps.
    ///
    /// # Errors
    /// `Unsound` for a damaged journal, what the device fails with.
    pub fn steps(&self) -> Result<Steps> {
        let sorted = self.sort()?;
        if sorted.counting.is_empty() {
            // Not even the superblock: there is nothing to do.
            return Ok(Steps::new());
        }
        match self.with_undo(&sorted)? {
            Some(steps) => Ok(steps),
            None => self.without_journal(sorted),
        }
    }

    fn sort(&self) -> Result<Sorted> {
        let len = self.device.len();
        let size = self.fs.geometry.block_size;
        let view = self.overlay.over(self.device);
        let mut sorted = Sorted {
            unused: Overlay::new(len),
            counting: Vec::new(),
            copies: Overlay::new(len),
            old: superblock(&self.device)?,
            new: superblock(&view)?,
        };
        let copies = self.copies();
        let mut counting = BTreeSet::new();
        for range in self.overlay.changed() {
            for piece in pieces(range, size) {
                let block = piece.start / size;
                if !self.metadata.used.get(block) {
                    sorted.unused.take(self.overlay, piece);
                } else if copies.contains(block) {
                    sorted.copies.take(self.overlay, piece);
                } else {
                    counting.insert(block);
                }
            }
        }
        for block in counting {
            let old = self.device.read_vec_at(block * size, size as usize)?;
            let new = view.read_vec_at(block * size, size as usize)?;
            if old != new {
                sorted.counting.push((block, new));
            }
        }
        Ok(sorted)
    }

    /// Returns the blocks that hold copies of superblock and descriptors, before or after.
    fn copies(&self) -> RangeSet {
        let shapes = [&self.fs.geometry, self.geometry];
        let ranges = shapes.into_iter().flat_map(|geometry| {
            (1..geometry.groups).map(|group| {
                let start = geometry.super_start(group);
                start..start + geometry.super_blocks(group)
            })
        });
        ranges.collect()
    }

    /// Changes under a log that puts everything back; `None` if that is not possible.
    fn with_undo(&self, sorted: &Sorted) -> Result<Option<Steps>> {
        let (fs, device, len) = (self.fs, self.device, self.device.len());
        let superblock = &fs.superblock;
        let has_journal =
            superblock.has_compat(COMPAT_HAS_JOURNAL) && superblock.s_journal_inum() != 0;
        if !has_journal || !self.journal_stays {
            return Ok(None);
        }
        let size = fs.geometry.block_size;
        let log = commit::place(fs, device)?.blocks;
        if sorted
            .counting
            .iter()
            .any(|&(block, _)| log.contains(block))
        {
            return Ok(None);
        }
        let first = SUPERBLOCK.start / size;
        let old = recovering(&sorted.old);
        let table = fs.geometry.super_start(0) + 1;
        let table = table..table + fs.geometry.desc_blocks;
        let mut undo = Vec::new();
        let [mut descriptors, mut places] = [(); 2].map(|()| Overlay::new(len));
        for (block, bytes) in &sorted.counting {
            let mut before = device.read_vec_at(block * size, size as usize)?;
            if *block == first {
                // Nothing else in the superblock's block changes.
                let at = (SUPERBLOCK.start % size) as usize;
                before[at..at + SUPERBLOCK_SIZE].copy_from_slice(&old);
            } else if table.contains(block) {
                descriptors.set_bytes(block * size, bytes.as_slice());
            } else {
                places.set_bytes(block * size, bytes.as_slice());
            }
            undo.push((*block, before));
        }
        let Some(transaction) = commit::transaction(fs, device, &undo)? else {
            return Ok(None);
        };
        let mut prepared = sorted.unused.clone();
        for (offset, bytes) in transaction.log {
            prepared.set_bytes(offset, bytes);
        }
        let mut steps = Steps::new();
        steps.push(prepared);
        steps.push_bytes(len, SUPERBLOCK.start, &old);
        steps.push_bytes(len, transaction.superblock_at, &transaction.started);
        steps.push(descriptors);
        steps.push(places);
        steps.push_bytes(len, SUPERBLOCK.start, sorted.new.bytes());
        steps.push_bytes(len, transaction.superblock_at, &transaction.emptied);
        steps.push(sorted.copies.clone());
        Ok(Some(steps))
    }

    /// Returns the blocks of the new descriptor table.
    fn descriptors(&self) -> Range<BlockNr> {
        let first = self.geometry.super_start(0) + 1;
        first..first + self.geometry.desc_blocks
    }

    /// # Errors
    /// What the device fails with.
    fn without_journal(&self, sorted: Sorted) -> Result<Steps> {
        let geometry = &self.fs.geometry;
        let len = self.device.len();
        let size = geometry.block_size;
        let unclean = |superblock: &Superblock| {
            let mut superblock = superblock.clone();
            superblock.set_s_state(superblock.s_state() & !STATE_VALID);
            superblock.update_checksum();
            superblock
        };
        let bitmaps: BTreeSet<BlockNr> = self
            .metadata
            .table
            .groups
            .iter()
            .map(|group| group.block_bitmap())
            .collect();
        let descriptors = self.descriptors();
        let [mut used, mut table, mut freed] = [(); 3].map(|()| Overlay::new(len));
        for (block, bytes) in sorted.counting {
            if block == SUPERBLOCK.start / size {
                continue;
            } else if descriptors.contains(&block) {
                table.set_bytes(block * size, bytes);
            } else if bitmaps.contains(&block) {
                let mut both = bytes.clone();
                let old = self.device.read_vec_at(block * size, size as usize)?;
                both.iter_mut().zip(old).for_each(|(new, old)| *new |= old);
                used.set_bytes(block * size, both);
                freed.set_bytes(block * size, bytes);
            } else {
                used.set_bytes(block * size, bytes);
            }
        }
        freed.merge(&sorted.copies);
        let mut prepared = sorted.unused;
        prepared.set_bytes(SUPERBLOCK.start, unclean(&sorted.old).bytes());
        let mut steps = Steps::new();
        steps.push(prepared);
        steps.push(used);
        steps.push(table);
        steps.push_bytes(len, SUPERBLOCK.start, unclean(&sorted.new).bytes());
        steps.push(freed);
        steps.push_bytes(len, SUPERBLOCK.start, sorted.new.bytes());
        Ok(steps)
    }
}

fn superblock(view: &dyn ReadAt) -> Result<Superblock> {
    Superblock::read(view)?.ok_or_else(|| Error::internal("the superblock has gone"))
}

/// Returns the bytes of a superblock whose journal has to be replayed.
fn recovering(superblock: &Superblock) -> Vec<u8> {
    let mut superblock = superblock.clone();
    superblock.set_incompat(INCOMPAT_RECOVER);
    superblock.update_checksum();
    superblock.bytes().to_vec()
}
