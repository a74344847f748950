//! The extended attributes of a deleted inode: its share of a block, and of attribute inodes.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/attributes.rst.

use crate::error::{Error, Result};
use crate::ext4::edit::delete::Remover;
use crate::ext4::format::inode::{EA_INODE_FL, Inode};
use crate::ext4::format::raw::{join, le32, put32};
use crate::ext4::format::superblock::INCOMPAT_EA_INODE;
use crate::ext4::read::inode_table::Slot;
use crate::units::{BlockNr, InodeNr};

const XATTR_MAGIC: u32 = 0xEA02_0000;
const H_REFCOUNT: usize = 4;
const H_CHECKSUM: usize = 16;
/// Bytes of the header of an xattr block; that of attributes inside an inode is the magic alone.
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 16;

impl Remover<'_> {
    /// Lets go of the attributes of an inode that is being deleted.
    pub(in crate::ext4) fn release_attributes(&mut self, slot: &Slot) -> Result<()> {
        let has_value_inodes = self.fs.superblock.has_incompat(INCOMPAT_EA_INODE);
        if has_value_inodes {
            let values = value_inodes(in_inode(&slot.inode), slot.number)?;
            self.charge_values(&slot.inode, &values);
            for number in values {
                self.release_value(number)?;
            }
        }
        let block = slot.inode.file_acl(self.fs);
        if block == 0 {
            return Ok(());
        }
        let mut bytes = self.read_xattr_block(block, slot.number)?;
        let values = if has_value_inodes {
            value_inodes(&bytes[BLOCK_HEADER..], slot.number)?
        } else {
            Vec::new()
        };
        // Each sharer pays for the values, the block holds the references.
        self.charge_values(&slot.inode, &values);
        let left = le32(&bytes, H_REFCOUNT) - 1;
        if left == 0 {
            for number in values {
                self.release_value(number)?;
            }
        }
        // Also when nobody is left, so that another orphan that claims a share is found out.
        put32(&mut bytes, H_REFCOUNT, left);
        if self.fs.checksums.enabled() {
            let checksum = self.fs.checksums.xattr_block(block, &bytes);
            put32(&mut bytes, H_CHECKSUM, checksum);
        }
        let offset = self.fs.geometry.offset(block);
        self.orphans.overlay.set_bytes(offset, bytes);
        Ok(())
    }

    /// Reads an xattr block that has at least one sharer.
    fn read_xattr_block(&self, block: BlockNr, owner: InodeNr) -> Result<Vec<u8>> {
        let geometry = &self.fs.geometry;
        let bad = |what: &str| {
            Err(Error::unsound(format!(
                "ext4: xattr block {block} of inode {owner}: {what}"
            )))
        };
        if block <= geometry.first_data_block || block >= geometry.blocks_count {
            return bad("outside the filesystem");
        }
        let view = self.orphans.overlay.over(self.device);
        let bytes = crate::io::ReadAt::read_vec_at(
            &view,
            geometry.offset(block),
            geometry.block_size as usize,
        )?;
        if le32(&bytes, 0) != XATTR_MAGIC || le32(&bytes, 8) != 1 {
            return bad("no xattr block");
        }
        let checksums = &self.fs.checksums;
        if checksums.enabled() && le32(&bytes, H_CHECKSUM) != checksums.xattr_block(block, &bytes) {
            return bad("its checksum does not match");
        }
        if le32(&bytes, H_REFCOUNT) == 0 {
            return bad("nobody has a share in it");
        }
        Ok(bytes)
    }

    /// An owner pays for each value as for an inode; its bytes are part of the owner's `i_blocks`.
    fn charge_values(&mut self, owner: &Inode, values: &[InodeNr]) {
        if !owner.has_flag(EA_INODE_FL) {
            self.charge(owner, values.len() as i64, 0);
        }
    }

    /// Drops a reference to an attribute inode, and the inode with the last one.
    fn release_value(&mut self, number: InodeNr) -> Result<()> {
        let mut slot = self.read_inode(number)?;
        let inode = &mut slot.inode;
        if !inode.has_flag(EA_INODE_FL) || inode.i_links_count() == 0 {
            return Err(Error::unsound(format!(
                "ext4: inode {number} is no extended attribute's value"
            )));
        }
        // The reference count lies where other inodes keep ctime and version.
        let count = join(inode.i_ctime(), inode.i_version()).saturating_sub(1);
        inode.set_i_ctime((count >> 32) as u32);
        inode.set_i_version(count as u32);
        if count == 0 {
            return self.delete(slot);
        }
        self.put(slot);
        Ok(())
    }
}

/// Returns the entries inside an inode's slot; empty if there are none.
fn in_inode(inode: &Inode) -> &[u8] {
    let start = 128 + usize::from(inode.extra_isize());
    match inode.bytes().get(start..) {
        Some(area)
            if inode.extra_isize() > 0 && area.len() >= 8 && le32(area, 0) == XATTR_MAGIC =>
        {
            &area[4..]
        }
        _ => &[],
    }
}

/// Lists the attribute inodes that `entries` refer to.
fn value_inodes(entries: &[u8], owner: InodeNr) -> Result<Vec<InodeNr>> {
    let mut values = Vec::new();
    let mut at = 0;
    // Four zero bytes end the list; it may also end with its area.
    while at + 4 <= entries.len() && le32(entries, at) != 0 {
        if at + ENTRY > entries.len() {
            return Err(Error::unsound(format!(
                "ext4: the extended attributes of inode {owner} have no end"
            )));
        }
        let number = le32(entries, at + 4);
        if number != 0 {
            values.push(InodeNr(number));
        }
        at += ENTRY + usize::from(entries[at]).next_multiple_of(4);
    }
    Ok(values)
}
