//! One inode's slot, found without reading the whole descriptor table.
//!
//! Journal replay and orphans come before the rest of the filesystem can be trusted: they look at
//! a handful of inodes, one by one, through the descriptors as they are at that moment.

use crate::error::{Error, Result};
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{GroupDesc, INODE_UNINIT};
use crate::ext4::format::inode::Inode;
use crate::ext4::format::superblock::{
    COMPAT_SPARSE_SUPER2, INCOMPAT_META_BG, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE,
};
use crate::io::{Overlay, ReadAt};
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
    let slot = read_slot(fs, device, number)?;
    if !slot.inode.checksum_matches(&fs.checksums, number) {
        return Err(Error::unsound(format!(
            "ext4: the checksum of inode {number} does not match"
        )));
    }
    Ok(slot)
}

/// Reads the slot of an inode, in use or not.
///
/// # Errors
/// `Unsound` for a number or an inode table outside the filesystem.
pub fn read_slot(fs: &Super, device: &dyn ReadAt, number: InodeNr) -> Result<Slot> {
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
    Ok(Slot {
        number,
        offset,
        inode,
    })
}

/// Does the part of the inode table that was ever used reach up to this inode?
///
/// # Errors
/// What the device fails with.
pub fn is_covered(fs: &Super, device: &dyn ReadAt, number: InodeNr) -> Result<bool> {
    let (group, index) = fs.geometry.inode_place(number);
    Ok(index < slots_in_use(fs, &read_desc(fs, device, group)?))
}

/// Makes the used part of the inode table reach up to this inode, whose slot and those before become
/// zeros if they never were used.
///
/// # Errors
/// What the device fails with; `Unsound` for an inode table outside the filesystem.
pub fn cover_inode(
    fs: &Super,
    device: &dyn ReadAt,
    overlay: &mut Overlay,
    number: InodeNr,
) -> Result<()> {
    let geometry = &fs.geometry;
    let (group, index) = geometry.inode_place(number);
    let view = overlay.over(device);
    let mut desc = read_desc(fs, &view, group)?;
    let covered = slots_in_use(fs, &desc);
    if index < covered {
        return Ok(());
    }
    let table = geometry.offset(inode_table(fs, &view, group)?);
    let slot = |index: u32| table + u64::from(index) * geometry.inode_size;
    let at = desc_offset(fs, group)?;
    let mut raw = view.read_vec_at(at, geometry.desc_size as usize)?;
    desc.set_flag(INODE_UNINIT, false);
    desc.set_itable_unused(geometry.inodes_per_group - index - 1);
    desc.encode(fs, group, &mut raw);
    overlay.set_zero(slot(covered)..slot(index + 1));
    overlay.set_bytes(at, raw);
    Ok(())
}

fn slots_in_use(fs: &Super, desc: &GroupDesc) -> u32 {
    let per_group = fs.geometry.inodes_per_group;
    match desc.has_flag(INODE_UNINIT) {
        _ if !fs.superblock.has_group_checksums() => per_group,
        true => 0,
        false => per_group.saturating_sub(desc.itable_unused()),
    }
}

fn read_desc(fs: &Super, device: &dyn ReadAt, group: GroupNr) -> Result<GroupDesc> {
    let bytes = device.read_vec_at(desc_offset(fs, group)?, fs.geometry.desc_size as usize)?;
    Ok(GroupDesc::from_bytes(&bytes))
}

/// Returns where a group's descriptor lies, in bytes.
fn desc_offset(fs: &Super, group: GroupNr) -> Result<u64> {
    let geometry = &fs.geometry;
    let per_block = geometry.block_size / geometry.desc_size;
    let within = u64::from(group) % per_block * geometry.desc_size;
    Ok(geometry.offset(desc_block(fs, group)?) + within)
}

/// Returns the first block of a group's inode table, all of which lies within the filesystem.
fn inode_table(fs: &Super, device: &dyn ReadAt, group: GroupNr) -> Result<BlockNr> {
    let geometry = &fs.geometry;
    let table = read_desc(fs, device, group)?.inode_table();
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
