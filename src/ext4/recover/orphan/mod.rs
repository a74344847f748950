//! Orphans: inodes whose deletion or truncation the power cut interrupted.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/orphan.rst. Comes after the journal
//! has been replayed, as at a mount. Bitmaps and counts are left alone: the caller rebuilds them
//! from what the inodes own, and an inode with no links owns nothing.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::ext4::edit::delete::{MAX_ORPHANS, Orphans, Remover, too_many};
use crate::ext4::format::fs::Super;
use crate::ext4::format::superblock::{
    RO_COMPAT_ORPHAN_PRESENT, RO_COMPAT_SHARED_BLOCKS, STATE_ERRORS, SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
};
use crate::ext4::read::inode_table::Slot;
use crate::ext4::recover::orphan_list::orphan_file;
use crate::io::ReadAt;
use crate::units::InodeNr;

/// Finishes what was interrupted: deletes inodes without links, truncates the others to their
/// size. `device` is the filesystem after journal replay, `fs` was read from it. `now` is the time
/// of deletion to record, in seconds of the epoch; 0 stands for the superblock's last write, so
/// that the same input gives the same output.
///
/// # Errors
/// `Unsound` for a list that loops or leads astray, for damage in what has to be edited, and for
/// any orphans on a filesystem that is marked as having errors; `Unsupported` for orphans together
/// with shared_blocks; what the device fails with.
pub fn finish_orphans(fs: &Super, device: &dyn ReadAt, now: u32) -> Result<Orphans> {
    let mut work = Remover::new(fs, device, now);
    let mut file = orphan_file(fs, device)?;
    let is_present = fs.superblock.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT);
    if !is_present {
        // Without the flag the kernel does not look at the file.
        file.entries.clear();
    }
    let any = fs.superblock.s_last_orphan() != 0 || !file.entries.is_empty();
    if any && fs.superblock.s_state() & STATE_ERRORS != 0 {
        return Err(Error::unsound(
            "ext4: the filesystem is marked as having errors, so its orphans cannot be trusted",
        ));
    }
    if any && fs.superblock.has_ro_compat(RO_COMPAT_SHARED_BLOCKS) {
        // The rest of a last block may be another file's.
        return Err(Error::unsupported(
            "ext4: orphans together with shared_blocks",
        ));
    }
    let mut seen = HashSet::new();
    let mut next = fs.superblock.s_last_orphan();
    while next != 0 {
        let slot = work.orphan(next, &mut seen)?;
        next = slot.inode.i_dtime();
        work.finish(slot)?;
    }
    for &entry in &file.entries {
        let slot = work.orphan(entry, &mut seen)?;
        work.finish(slot)?;
    }
    for (offset, block) in file.cleared {
        work.orphans.overlay.set_bytes(offset, block);
    }
    if is_present || fs.superblock.s_last_orphan() != 0 {
        work.clear_superblock();
    }
    Ok(work.orphans)
}

/// Lists the orphans with their `i_dtime`, which links those that are not in the orphan file. A
/// list that leads astray ends there: [`finish_orphans`] tells what is wrong.
///
/// # Errors
/// `Unsound` for a damaged orphan file; what the device fails with.
pub fn orphan_links(fs: &Super, device: &dyn ReadAt) -> Result<HashMap<u32, u32>> {
    let work = Remover::new(fs, device, 0);
    let mut links = HashMap::new();
    let mut seen = HashSet::new();
    let mut next = fs.superblock.s_last_orphan();
    while next != 0 {
        let Ok(slot) = work.orphan(next, &mut seen) else {
            break;
        };
        links.insert(next, slot.inode.i_dtime());
        next = slot.inode.i_dtime();
    }
    if fs.superblock.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT) {
        for entry in orphan_file(fs, device)?.entries {
            links.entry(entry).or_insert(0);
        }
    }
    Ok(links)
}

impl Remover<'_> {
    /// Reads an inode that is said to be an orphan.
    fn orphan(&self, number: u32, seen: &mut HashSet<u32>) -> Result<Slot> {
        if number < self.fs.superblock.first_ino() || number > self.fs.geometry.inodes_count() {
            return Err(Error::unsound(format!(
                "ext4: inode {number} cannot be an orphan"
            )));
        }
        if !seen.insert(number) {
            return Err(Error::unsound(format!(
                "ext4: inode {number} is an orphan twice"
            )));
        }
        if seen.len() > MAX_ORPHANS {
            return Err(too_many());
        }
        let slot = self.read_inode(InodeNr(number))?;
        if slot.inode.i_mode() == 0 {
            return Err(Error::unsound(format!(
                "ext4: inode {number} is an orphan, but not in use"
            )));
        }
        Ok(slot)
    }

    fn clear_superblock(&mut self) {
        let mut superblock = self.fs.superblock.clone();
        superblock.set_s_last_orphan(0);
        superblock.clear_ro_compat(RO_COMPAT_ORPHAN_PRESENT);
        superblock.update_checksum();
        debug_assert_eq!(superblock.bytes().len(), SUPERBLOCK_SIZE);
        self.orphans
            .overlay
            .set_bytes(SUPERBLOCK_OFFSET, superblock.bytes().to_vec());
    }
}
