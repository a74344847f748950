//! One inode's slot, found without reading the whole descriptor table.
//!
//! Journal replay and orphans come before the rest of the filesystem can be trusted: they look at
//! a handful of inodes, one by one, through the descriptors as they are at that moment.

use super::group_desc::GroupDesc;
use super::inode::Inode;
use super::superblock::{
    COMPAT_SPARSE_SUPER2, INCOMPAT_META_BG, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Super,
};
use crate::error::{Error, Result};
use crate::io::ReadAt;
use crate::units::{BlockNr, GroupNr, InodeNr};

/// An inode and where its slot lies.
#[derive(Clone, Debug)]
pub struct Slot {
    pub number: InodeNr,
    /// Byte offset of the slot within the filesystem.
    pub offset: u64,
    pub inode: Inode,
}

/// Reads one inode.
///
/// # Errors
/// `Unsound` for a number or an inode table outside the filesystem, or a bad inode checksum.
pub fn read_inode(fs: &Super, device: &dyn ReadAt, number: InodeNr) -> Result<Slot> {
    let geometry = &fs.geometry;
    if number.0 == 0 || number.0 > geometry.inodes_count() {
        return Err(Error::unsound(format!(
            "ext4: there is no inode {number}, only {}",
            geometry.inodes_count()
        )));
    }
    let (group, index) = geometry.inode_place(number);
    let table = inode_table(fs, device, group)?;
    // OK: the table lies within the filesystem, so these stay below its size in bytes.
    let offset = geometry.offset(table) + u64::from(index) * geometry.inode_size;
    let inode = Inode(device.read_vec_at(offset, geometry.inode_size as usize)?);
    if !inode.checksum_matches(&fs.checksums, number) {
        return Err(Error::unsound(format!(
            "ext4: the checksum of inode {number} does not match"
        )));
    }
    Ok(Slot {
        number,
        offset,
        inode,
    })
}

/// Returns the first block of a group's inode table, all of which lies within the filesystem.
fn inode_table(fs: &Super, device: &dyn ReadAt, group: GroupNr) -> Result<BlockNr> {
    let geometry = &fs.geometry;
    let per_block = geometry.block_size / geometry.desc_size;
    let at =
        geometry.offset(desc_block(fs, group)?) + u64::from(group) % per_block * geometry.desc_size;
    let desc = GroupDesc::from_bytes(&device.read_vec_at(at, geometry.desc_size as usize)?);
    let table = desc.inode_table();
    let end = table.checked_add(geometry.itable_blocks);
    if table <= geometry.first_data_block || end.is_none_or(|end| end > geometry.blocks_count) {
        return Err(Error::unsound(format!(
            "ext4: the inode table of group {group} at block {table} is outside the filesystem"
        )));
    }
    Ok(table)
}

/// Returns the block that holds a group's descriptor, `meta_bg` or not.
fn desc_block(fs: &Super, group: GroupNr) -> Result<BlockNr> {
    let geometry = &fs.geometry;
    let superblock = &fs.superblock;
    // The block after the superblock's, also where 1 KiB blocks are numbered from 0 (bigalloc).
    let first = (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64).div_ceil(geometry.block_size);
    let per_block = geometry.block_size / geometry.desc_size;
    let meta_group = u64::from(group) / per_block;
    let is_meta = superblock.has_incompat(INCOMPAT_META_BG)
        && meta_group >= u64::from(superblock.s_first_meta_bg());
    if !is_meta || meta_group == 0 {
        return Ok(first + meta_group);
    }
    let home = (meta_group * per_block) as GroupNr;
    let has_super = if superblock.has_compat(COMPAT_SPARSE_SUPER2) {
        superblock.s_backup_bgs().contains(&home)
    } else {
        geometry.has_backup(home)
    };
    let block = geometry.group_start(home) + u64::from(has_super);
    if block >= geometry.blocks_count {
        return Err(Error::unsound(format!(
            "ext4: the descriptor of group {group} is outside the filesystem"
        )));
    }
    Ok(block)
}
