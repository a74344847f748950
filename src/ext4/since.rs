//! What systems write to a filesystem that they only mounted: times and counts in the superblock, the
//! journal, the times of the last access, the mark of a zeroed inode table.

use std::ops::Range;

use crate::error::Result;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{GroupDesc, GroupTable, INODE_ZEROED};
use crate::ext4::format::superblock::{COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER};
use crate::ext4::recover::journal;
use crate::io::{Overlay, ReadAt};

const SUPERBLOCK: u64 = 1024;

/// In the superblock: free counts (which follow the groups'), s_mtime to s_mnt_count, s_last_mounted, the
/// upper half of free blocks, s_kbytes_written, s_overhead_clusters, the upper bytes of s_wtime and s_mtime,
/// s_checksum.
const SUPERBLOCK_FIELDS: [Range<u64>; 8] = [
    0x0c..0x14,
    0x2c..0x36,
    0x88..0xc8,
    0x158..0x15c,
    0x178..0x180,
    0x248..0x24c,
    0x274..0x276,
    0x3fc..0x400,
];

/// s_mtime, s_wtime, s_mnt_count.
const MOUNTED: Range<usize> = 0x2c..0x36;

/// In the superblock's copies: s_overhead_clusters, s_checksum.
const BACKUP_FIELDS: [Range<u64>; 2] = [0x248..0x24c, 0x3fc..0x400];

/// In an inode: i_atime, i_checksum_lo; and, where it is larger, i_checksum_hi, i_atime_extra.
const INODE_FIELDS: [Range<u64>; 4] = [0x08..0x0c, 0x7c..0x7e, 0x82..0x84, 0x8c..0x90];

/// The fields of small inodes.
const SMALL_INODE: u64 = 128;

/// Returns, of the filesystem that `before` has, the bytes that mounting may have changed in `after`, within
/// `ranges`; laid over `after` they put that back. `None` if it was not mounted since, or not unmounted.
///
/// # Errors
/// `Io`, or `Unsound` if one of them is damaged.
pub fn unmounted(
    before: &dyn ReadAt,
    after: &dyn ReadAt,
    ranges: &[Range<u64>],
) -> Result<Option<Overlay>> {
    let (Some(fs), Some(now)) = (Super::read(before)?, Super::read(after)?) else {
        return Ok(None);
    };
    let (was, is) = (&fs.superblock, &now.superblock);
    let mounted = was.bytes()[MOUNTED] != is.bytes()[MOUNTED];
    // What is in a journal that was not replayed is not known here.
    if !mounted || is.has_incompat(INCOMPAT_RECOVER) || fs.geometry != now.geometry {
        return Ok(None);
    }
    let mut back = Overlay::new(after.len());
    let mut put_back = |range: Range<u64>| {
        let bytes = before.read_vec_at(range.start, (range.end - range.start) as usize)?;
        back.set_bytes(range.start, bytes);
        Ok(())
    };
    for field in SUPERBLOCK_FIELDS {
        put_back(SUPERBLOCK + field.start..SUPERBLOCK + field.end)?;
    }
    for group in (1..fs.geometry.groups).filter(|&group| fs.geometry.has_backup(group)) {
        let copy = fs.geometry.offset(fs.geometry.super_start(group));
        for field in BACKUP_FIELDS {
            put_back(copy + field.start..copy + field.end)?;
        }
    }
    if was.has_compat(COMPAT_HAS_JOURNAL) {
        for blocks in journal::places(&fs, before)?.iter() {
            let place = fs.geometry.offset(blocks.start)..fs.geometry.offset(blocks.end);
            for range in ranges {
                let part = range.start.max(place.start)..range.end.min(place.end);
                if part.start < part.end {
                    put_back(part)?;
                }
            }
        }
    }
    let (groups, groups_now) = (
        GroupTable::read(&fs, before)?,
        GroupTable::read(&now, after)?,
    );
    let table = fs.geometry.offset(fs.geometry.first_data_block + 1);
    for (group, (old, new)) in groups.groups.iter().zip(&groups_now.groups).enumerate() {
        if fs.geometry.first_meta_bg.is_none() && is_only_zeroed(old, new) {
            let at = table + group as u64 * fs.geometry.desc_size;
            put_back(at + 0x12..at + 0x14)?;
            put_back(at + 0x1e..at + 0x20)?;
        }
        let (first, count) = old.parts(fs.geometry.itable_blocks)[2];
        if first.saturating_add(count) > fs.geometry.blocks_count {
            continue;
        }
        let inodes = fs.geometry.bytes(first, count);
        let size = fs.geometry.inode_size;
        for range in ranges {
            let part = range.start.max(inodes.start)..range.end.min(inodes.end);
            let mut slot = part.start - part.start.saturating_sub(inodes.start) % size;
            while slot < part.end {
                for field in INODE_FIELDS
                    .iter()
                    .filter(|f| f.end <= SMALL_INODE || size > SMALL_INODE)
                {
                    put_back(slot + field.start..slot + field.end)?;
                }
                slot += size;
            }
        }
    }
    Ok(Some(back))
}

/// Differ two descriptors in nothing but the mark that the inode table's unused part is zeros?
fn is_only_zeroed(old: &GroupDesc, new: &GroupDesc) -> bool {
    let mut old = old.clone();
    old.set_bg_flags(old.bg_flags() | INODE_ZEROED);
    old.set_bg_checksum(new.bg_checksum());
    old == *new
}
