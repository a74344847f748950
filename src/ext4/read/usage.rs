//! Used blocks by the bitmaps alone, for filesystems whose other metadata cannot be read, or that
//! have features that nobody knows, e2fsck neither (those have to be sound in all that is known).
//!
//! Such a filesystem keeps its size and every block that its bitmaps mark; nothing is rewritten.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::findings::Findings;
use crate::ext4::format::bitmap::bit;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, GroupDesc, GroupTable, INODE_UNINIT};
use crate::ext4::format::inode::Inode;
use crate::ext4::format::superblock::SUPERBLOCK_OFFSET;
use crate::ext4::read::map::{MapError, read_map_alone};
use crate::io::{RangeSet, ReadAt};
use crate::units::{GroupNr, InodeNr};

/// Pieces that are held in memory; each takes some hundred bytes.
const MAX_RUNS: usize = if cfg!(test) { 500 } else { 4 << 20 };

/// Returns the bytes in use.
///
/// # Errors
/// What the device fails with; `Unsupported` if they lie in too many pieces.
pub fn used_bytes(
    fs: &Super,
    table: &GroupTable,
    device: &dyn ReadAt,
    findings: &mut Findings,
) -> Result<RangeSet> {
    let geometry = &fs.geometry;
    let mut used = RangeSet::new();
    used.insert(0..SUPERBLOCK_OFFSET + 1024);
    for group in &table.bad_checksums {
        findings.damaged(format!(
            "group {group}: the descriptor's checksum does not match"
        ));
    }
    for group in 0..geometry.groups {
        let start = geometry.group_start(group);
        let end = geometry.group_end(group);
        let first = geometry.super_start(group);
        let supers = geometry.super_blocks(group).min(end.saturating_sub(first));
        used.insert(geometry.bytes(first, supers));
        let desc = &table.groups[group as usize];
        for (block, count) in desc.parts(geometry.itable_blocks) {
            let fits = block > geometry.first_data_block
                && block
                    .checked_add(count)
                    .is_some_and(|end| end <= geometry.blocks_count);
            if !fits {
                findings.damaged(format!(
                    "group {group}: metadata at block {block} is out of place"
                ));
                return Ok(used);
            }
            used.insert(geometry.bytes(block, count));
        }
        check_inode_bitmap(fs, desc, group, device, findings);
        if fs.superblock.has_group_checksums() && desc.has_flag(BLOCK_UNINIT) {
            continue;
        }
        let size = geometry.block_size as usize;
        let bitmap = device.read_vec_at(geometry.offset(desc.block_bitmap()), size)?;
        let clusters = geometry.blocks_per_group / geometry.cluster_ratio;
        if fs.checksums.enabled() {
            let mut expected = fs.checksums.bitmap(&bitmap[..(clusters / 8) as usize]);
            if geometry.desc_size < 64 {
                expected &= 0xFFFF;
            }
            if expected != desc.block_bitmap_csum() {
                findings.damaged(format!(
                    "group {group}: the block bitmap's checksum does not match"
                ));
            }
        }
        for cluster in (0..clusters).filter(|&cluster| bit(&bitmap, cluster)) {
            let first = start + cluster * geometry.cluster_ratio;
            let last = (first + geometry.cluster_ratio).min(end);
            if first < last {
                used.insert(geometry.bytes(first, last - first));
            }
        }
        if used.run_count() > MAX_RUNS {
            return Err(Error::unsupported(format!(
                "ext4: what is in use lies in more than {MAX_RUNS} pieces"
            )));
        }
    }
    Ok(used)
}

/// The reserved inodes are in use on every filesystem. An inode bitmap that cannot be read is
/// taken along like everything else.
fn check_inode_bitmap(
    fs: &Super,
    desc: &GroupDesc,
    group: GroupNr,
    device: &dyn ReadAt,
    findings: &mut Findings,
) {
    let geometry = &fs.geometry;
    let size = geometry.block_size as usize;
    let Ok(bitmap) = device.read_vec_at(geometry.offset(desc.inode_bitmap()), size) else {
        return;
    };
    if fs.superblock.has_group_checksums() && desc.has_flag(INODE_UNINIT) {
        return;
    }
    if fs.checksums.enabled() {
        let counted = geometry.inodes_per_group as usize / 8;
        let mut expected = fs.checksums.bitmap(&bitmap[..counted]);
        if geometry.desc_size < 64 {
            expected &= 0xFFFF;
        }
        if expected != desc.inode_bitmap_csum() {
            findings.damaged(format!(
                "group {group}: the inode bitmap's checksum does not match"
            ));
        }
    }
    let first = u64::from(group) * u64::from(geometry.inodes_per_group);
    let reserved = u64::from(fs.superblock.first_ino() - 1).saturating_sub(first);
    let reserved = reserved.min(u64::from(geometry.inodes_per_group));
    if let Some(free) = (0..reserved).find(|&index| !bit(&bitmap, index)) {
        findings.damaged(format!(
            "group {group}: the reserved inode {} is marked as free",
            first + free + 1
        ));
    }
}

/// Returns the slots behind the last inode in use of each group: they have to be in the image, as
/// zeros.
///
/// # Errors
/// What the device fails with.
pub fn unused_slots(
    fs: &Super,
    table: &GroupTable,
    device: &dyn ReadAt,
) -> Result<Vec<Range<u64>>> {
    let geometry = &fs.geometry;
    let per_group = u64::from(geometry.inodes_per_group);
    let mut unused = Vec::new();
    if !fs.superblock.has_group_checksums() {
        return Ok(unused);
    }
    for desc in &table.groups {
        // Two witnesses: what the descriptor calls unused must be free in the bitmap as well.
        let mut in_use = per_group.saturating_sub(u64::from(desc.itable_unused()));
        if !desc.has_flag(INODE_UNINIT) {
            let size = geometry.block_size as usize;
            let bitmap = device.read_vec_at(geometry.offset(desc.inode_bitmap()), size)?;
            let last = (0..per_group).rev().find(|&index| bit(&bitmap, index));
            in_use = in_use.max(last.map_or(0, |last| last + 1));
        } else if u64::from(desc.free_inodes()) != per_group {
            continue;
        }
        let start = geometry.offset(desc.inode_table());
        let end = start + geometry.offset(geometry.itable_blocks);
        unused.push(start + in_use * geometry.inode_size..end);
    }
    Ok(unused)
}

/// Returns where the journal's old contents lie: all of the journal but its superblock. Empty if
/// there is no journal inside, or it cannot be read.
///
/// # Errors
/// What the device fails with.
pub fn journal_contents(
    fs: &Super,
    table: &GroupTable,
    device: &dyn ReadAt,
) -> Result<Vec<Range<u64>>> {
    let geometry = &fs.geometry;
    let number = InodeNr(fs.superblock.s_journal_inum());
    if number.0 == 0 || number.0 > geometry.inodes_count() {
        return Ok(Vec::new());
    }
    let (group, index) = geometry.inode_place(number);
    let slot = geometry.offset(table.groups[group as usize].inode_table())
        + u64::from(index) * geometry.inode_size;
    let inode = Inode(device.read_vec_at(slot, geometry.inode_size as usize)?);
    if !inode.has_block_map(fs) {
        return Ok(Vec::new());
    }
    let map = match read_map_alone(fs, device, number, &inode) {
        Ok(map) => map,
        Err(MapError::Device(error)) => return Err(error),
        Err(MapError::Broken(_)) => return Ok(Vec::new()),
    };
    let without_superblock = map.extents.iter().map(|extent| {
        let skip = u64::from(extent.logical == 0);
        geometry.bytes(extent.start + skip, u64::from(extent.len()) - skip)
    });
    Ok(without_superblock.collect())
}

/// Returns what a filesystem that is known by its bitmaps alone holds without meaning.
pub fn blank_bytes(fs: &Super, table: &GroupTable, view: &dyn ReadAt) -> Result<Vec<Range<u64>>> {
    let mut blank = Vec::new();
    for found in [
        journal_contents(fs, table, view),
        unused_slots(fs, table, view),
    ] {
        match found {
            Ok(ranges) => blank.extend(ranges),
            // Unreadable, they are taken along like everything else.
            Err(error) if error.kind() == ErrorKind::Io => {}
            Err(error) => return Err(error),
        }
    }
    Ok(blank)
}

#[cfg(test)]
mod tests {
    use crate::ext4::format::fs::Super;
    use crate::ext4::format::group_desc::GroupTable;
    use crate::ext4::format::superblock::SUPERBLOCK_OFFSET;
    use crate::ext4::test_image::mke2fs;
    use crate::ext4::{Ext4, Target};
    use crate::io::memory::MemoryDisk;
    use crate::io::{ReadAt, WriteAt};

    #[test]
    fn reserved_inodes_are_in_use() {
        for (features, text) in [
            ("^metadata_csum,bigalloc", "the reserved inode 4 is marked"),
            ("metadata_csum,bigalloc", "bitmap's checksum does not match"),
        ] {
            let disk = MemoryDisk::from(mke2fs(8 << 20, &["-O", features]));
            assert!(Ext4::open_by_bitmaps(&disk).is_ok());
            let fs = Super::read(&disk).unwrap().unwrap();
            let table = GroupTable::read(&fs, &disk).unwrap();
            let bitmap = fs.geometry.offset(table.groups[0].inode_bitmap());
            disk.write_all_at(bitmap, &[!(1 << 3)]).unwrap();
            let error = Ext4::open_by_bitmaps(&disk).unwrap_err().one_line();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn with_a_feature_that_nobody_knows_the_rest_is_checked() {
        const S_FEATURE_RO_COMPAT: u64 = 0x64;
        const I_BLOCKS_LO: u64 = 0x1C;
        let features = "^metadata_csum,^has_journal";
        let image = mke2fs(8 << 20, &["-O", features]);
        let disk = MemoryDisk::from(image);
        let at = SUPERBLOCK_OFFSET + S_FEATURE_RO_COMPAT;
        let mut word = disk.read_vec_at(at, 4).unwrap();
        word[3] |= 0x40;
        disk.write_all_at(at, &word).unwrap();
        let fs = Super::read(&disk).unwrap().unwrap();
        let table = GroupTable::read(&fs, &disk).unwrap();
        // A block that only the unknown feature could own.
        let bitmap = fs.geometry.offset(table.groups[0].block_bitmap());
        disk.write_all_at(bitmap + 1000, &[1]).unwrap();
        let ext = Ext4::open(&disk).unwrap();
        assert_eq!(ext.features_in_the_way(), ["FEATURE_R30"]);
        let image = ext.image(Target::Keep).unwrap();
        assert!(image.stored.intersects(8001 << 10..8002 << 10));
        let root = fs.geometry.offset(table.groups[0].inode_table()) + fs.geometry.inode_size;
        disk.write_all_at(root + I_BLOCKS_LO, &[99]).unwrap();
        let error = Ext4::open(&disk).unwrap_err();
        assert!(error.one_line().contains("counts 99 sectors"), "{error}");
    }

    #[test]
    fn what_is_used_may_not_lie_in_endless_pieces() {
        let features = "^metadata_csum,^uninit_bg,bigalloc";
        let disk = MemoryDisk::from(mke2fs(32 << 20, &["-O", features, "-C", "2048"]));
        let fs = Super::read(&disk).unwrap().unwrap();
        let table = GroupTable::read(&fs, &disk).unwrap();
        let last = table.groups.last().unwrap();
        let bitmap = fs.geometry.offset(last.block_bitmap());
        disk.write_all_at(bitmap + 16, &[0x55; 512]).unwrap();
        let error = Ext4::open_by_bitmaps(&disk).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Unsupported);
        assert!(error.one_line().contains("more than 500 pieces"), "{error}");
    }
}
