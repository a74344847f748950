//! Orphans: inodes whose deletion or truncation the power cut interrupted.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/orphan.rst. Comes after the journal
//! has been replayed, as at a mount. Bitmaps and counts are left alone: the caller rebuilds them
//! from what the inodes own, and an inode with no links owns nothing.

mod list;
mod release;
#[cfg(test)]
mod tests;
mod truncate;

use std::collections::{HashMap, HashSet};

use super::bitmap::Bitmap;
use super::inode::{EA_INODE_FL, EXTENTS_FL, I_BLOCK_SIZE, Inode, S_IFDIR, S_IFLNK, S_IFREG};
use super::inode_table::{Slot, read_inode};
use super::map::{EXTENT_MAGIC, build_tree};
use super::superblock::{
    RO_COMPAT_ORPHAN_PRESENT, RO_COMPAT_SHARED_BLOCKS, STATE_ERRORS, SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE, Super,
};
use crate::error::{Error, Result};
use crate::io::{Overlay, ReadAt};
use crate::units::InodeNr;

/// No system has more files open or more deletions under way.
const MAX_ORPHANS: usize = if cfg!(test) { 40 } else { 1 << 18 };
/// Bytes that are held in memory of the orphan file, and of the maps of files that were being cut.
const MAX_BYTES: u64 = 256 << 20;

/// The outcome.
#[derive(Debug)]
pub struct Orphans {
    /// The filesystem without orphans; lies on the device that was given.
    pub overlay: Overlay,
    /// Inodes that were deleted, their attribute inodes included.
    pub deleted: u32,
    /// Files that were cut to their size.
    pub truncated: u32,
    /// What the quota files have to forget.
    pub quota_deltas: Vec<QuotaDelta>,
}

/// A change of what one owner uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaDelta {
    pub uid: u32,
    pub gid: u32,
    pub projid: u32,
    pub inodes: i64,
    pub bytes: i64,
}

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
    let mut work = Work::new(fs, device, now);
    let mut file = list::orphan_file(fs, device)?;
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

/// Deletes an inode without links that is in no list of orphans.
///
/// # Errors
/// As [`finish_orphans`].
pub fn delete_inode(fs: &Super, device: &dyn ReadAt, number: InodeNr) -> Result<Orphans> {
    let mut work = Work::new(fs, device, 0);
    let slot = work.read_inode(number)?;
    work.finish(slot)?;
    Ok(work.orphans)
}

/// Lists the orphans with their `i_dtime`, which links those that are not in the orphan file. A
/// list that leads astray ends there: [`finish_orphans`] tells what is wrong.
///
/// # Errors
/// `Unsound` for a damaged orphan file; what the device fails with.
pub fn orphan_links(fs: &Super, device: &dyn ReadAt) -> Result<HashMap<u32, u32>> {
    let work = Work::new(fs, device, 0);
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
        for entry in list::orphan_file(fs, device)?.entries {
            links.entry(entry).or_insert(0);
        }
    }
    Ok(links)
}

fn too_many() -> Error {
    Error::unsupported("ext4: too much was being deleted or cut when the power went")
        .with_hint("mount the card once under Linux, or run e2fsck")
}

/// A time that e2fsck takes for one: it takes small numbers for a link of the orphan list.
fn time_of_deletion(fs: &Super, now: u32) -> u32 {
    const S_MTIME: usize = 0x2C;
    const S_WTIME: usize = 0x30;
    let bytes = fs.superblock.bytes();
    [
        now,
        super::raw::le32(bytes, S_WTIME),
        super::raw::le32(bytes, S_MTIME),
    ]
    .into_iter()
    .find(|&time| time >= fs.geometry.inodes_count())
    .unwrap_or(u32::MAX)
}

struct Work<'a> {
    fs: &'a Super,
    device: &'a dyn ReadAt,
    orphans: Orphans,
    now: u32,
    /// Blocks of the files that were cut, whose maps are walked: each block is met once, whoever
    /// claims it.
    walked: Bitmap,
    /// Bytes of the map nodes that were written.
    rebuilt: u64,
}

impl<'a> Work<'a> {
    fn new(fs: &'a Super, device: &'a dyn ReadAt, now: u32) -> Self {
        Self {
            fs,
            device,
            orphans: Orphans {
                overlay: Overlay::new(device.len()),
                deleted: 0,
                truncated: 0,
                quota_deltas: Vec::new(),
            },
            now: time_of_deletion(fs, now),
            walked: Bitmap::new(0),
            rebuilt: 0,
        }
    }
}

impl Work<'_> {
    /// Reads an inode as it is by now.
    fn read_inode(&self, number: InodeNr) -> Result<Slot> {
        read_inode(self.fs, &self.orphans.overlay.over(self.device), number)
    }

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

    fn finish(&mut self, mut slot: Slot) -> Result<()> {
        if slot.inode.i_links_count() == 0 {
            self.release_attributes(&slot)?;
            let used = slot.inode.blocks_512(self.fs).saturating_mul(512);
            if !slot.inode.has_flag(EA_INODE_FL) {
                self.charge(&slot.inode, 1, used);
            }
            return self.delete(slot);
        }
        let is_cuttable = match slot.inode.format() {
            S_IFREG | S_IFDIR => true,
            S_IFLNK => !slot.inode.is_fast_symlink(self.fs),
            _ => false,
        };
        if !is_cuttable {
            return Err(Error::unsound(format!(
                "ext4: inode {} has links and nothing to cut, so it cannot be an orphan",
                slot.number
            )));
        }
        self.truncate(&mut slot)?;
        slot.inode.set_i_dtime(0);
        self.put(slot);
        self.orphans.truncated += 1;
        Ok(())
    }

    /// Empties an inode the way the kernel leaves a deleted one.
    fn delete(&mut self, mut slot: Slot) -> Result<()> {
        let inode = &mut slot.inode;
        inode.set_i_links_count(0);
        inode.set_i_dtime(self.now);
        inode.set_size(0);
        inode.set_blocks_512(self.fs, 0);
        inode.set_file_acl(self.fs, 0);
        let mut i_block = [0; I_BLOCK_SIZE];
        if inode.has_flag(EXTENTS_FL) {
            build_tree(self.fs, slot.number, 0, &[], &[], &mut i_block);
            debug_assert_eq!(super::raw::le16(&i_block, 0), EXTENT_MAGIC);
        }
        inode.i_block_mut().copy_from_slice(&i_block);
        self.put(slot);
        self.orphans.deleted += 1;
        Ok(())
    }

    /// Stores an edited inode.
    fn put(&mut self, mut slot: Slot) {
        slot.inode.update_checksum(&self.fs.checksums, slot.number);
        self.orphans.overlay.set_bytes(slot.offset, slot.inode.0);
    }

    /// Notes that an owner uses less.
    fn charge(&mut self, owner: &Inode, inodes: i64, bytes: u64) {
        if inodes == 0 && bytes == 0 {
            return;
        }
        self.orphans.quota_deltas.push(QuotaDelta {
            uid: owner.uid(),
            gid: owner.gid(),
            projid: owner.projid(),
            inodes: -inodes,
            bytes: -i64::try_from(bytes).unwrap_or(i64::MAX),
        });
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
