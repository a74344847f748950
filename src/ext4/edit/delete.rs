//! Deletion of an inode, and what deleting and cutting have in common.

use crate::error::{Error, Result};
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::extent::{EXTENT_MAGIC, build_tree};
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{
    EA_INODE_FL, EXTENTS_FL, I_BLOCK_SIZE, Inode, S_IFDIR, S_IFLNK, S_IFREG,
};
use crate::ext4::read::inode_table::{Slot, read_inode};
use crate::io::{Overlay, ReadAt};
use crate::units::InodeNr;

/// No system has more files open or more deletions under way.
pub(in crate::ext4) const MAX_ORPHANS: usize = if cfg!(test) { 40 } else { 1 << 18 };
/// Bytes that are held in memory of the orphan file, and of the maps of files that were being cut.
pub(in crate::ext4) const MAX_BYTES: u64 = 256 << 20;

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

/// Deletes an inode without links that is in no list of orphans.
///
/// # Errors
/// `Unsound` for damage in what has to be edited; what the device fails with.
pub fn delete_inode(fs: &Super, device: &dyn ReadAt, number: InodeNr) -> Result<Orphans> {
    let mut work = Remover::new(fs, device, 0);
    let slot = work.read_inode(number)?;
    work.finish(slot)?;
    Ok(work.orphans)
}

pub(in crate::ext4) fn too_many() -> Error {
    Error::unsupported("ext4: too much was being deleted or cut when the power went")
        .with_hint("mount the card once under Linux, or run e2fsck")
}

/// A time that e2fsck takes for one: it takes small numbers for a link of the orphan list.
pub(in crate::ext4) fn time_of_deletion(fs: &Super, now: u32) -> u32 {
    pub(in crate::ext4) const S_MTIME: usize = 0x2C;
    pub(in crate::ext4) const S_WTIME: usize = 0x30;
    let bytes = fs.superblock.bytes();
    [
        now,
        crate::ext4::format::raw::le32(bytes, S_WTIME),
        crate::ext4::format::raw::le32(bytes, S_MTIME),
    ]
    .into_iter()
    .find(|&time| time >= fs.geometry.inodes_count())
    .unwrap_or(u32::MAX)
}

pub(in crate::ext4) struct Remover<'a> {
    pub(in crate::ext4) fs: &'a Super,
    pub(in crate::ext4) device: &'a dyn ReadAt,
    pub(in crate::ext4) orphans: Orphans,
    pub(in crate::ext4) now: u32,
    /// Blocks of the files that were cut, whose maps are walked: each block is met once, whoever
    /// claims it.
    pub(in crate::ext4) walked: Bitmap,
    /// Bytes of the map nodes that were written.
    pub(in crate::ext4) rebuilt: u64,
}

impl<'a> Remover<'a> {
    pub(in crate::ext4) fn new(fs: &'a Super, device: &'a dyn ReadAt, now: u32) -> Self {
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

impl Remover<'_> {
    /// Reads an inode as it is by now.
    pub(in crate::ext4) fn read_inode(&self, number: InodeNr) -> Result<Slot> {
        read_inode(self.fs, &self.orphans.overlay.over(self.device), number)
    }

    pub(in crate::ext4) fn finish(&mut self, mut slot: Slot) -> Result<()> {
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
    pub(in crate::ext4) fn delete(&mut self, mut slot: Slot) -> Result<()> {
        let inode = &mut slot.inode;
        inode.set_i_links_count(0);
        inode.set_i_dtime(self.now);
        inode.set_size(0);
        inode.set_blocks_512(self.fs, 0);
        inode.set_file_acl(self.fs, 0);
        let mut i_block = [0; I_BLOCK_SIZE];
        if inode.has_flag(EXTENTS_FL) {
            build_tree(self.fs, slot.number, 0, &[], &[], &mut i_block);
            debug_assert_eq!(crate::ext4::format::raw::le16(&i_block, 0), EXTENT_MAGIC);
        }
        inode.i_block_mut().copy_from_slice(&i_block);
        self.put(slot);
        self.orphans.deleted += 1;
        Ok(())
    }

    /// Stores an edited inode.
    pub(in crate::ext4) fn put(&mut self, mut slot: Slot) {
        slot.inode.update_checksum(&self.fs.checksums, slot.number);
        self.orphans.overlay.set_bytes(slot.offset, slot.inode.0);
    }

    /// Notes that an owner uses less.
    pub(in crate::ext4) fn charge(&mut self, owner: &Inode, inodes: i64, bytes: u64) {
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
}
