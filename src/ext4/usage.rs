//! Used blocks by the bitmaps alone, for filesystems with features that the resizer does not know.
//!
//! Such a filesystem keeps its size and every block that its bitmaps mark; nothing is rewritten.

use super::bitmap::bit;
use super::findings::Findings;
use super::group_desc::{BLOCK_UNINIT, GroupTable};
use super::plan::parts;
use super::superblock::{INCOMPAT_META_BG, SUPERBLOCK_OFFSET, Super};
use crate::error::Result;
use crate::io::{RangeSet, ReadAt};

/// Returns the bytes in use.
///
/// # Errors
/// What the device fails with.
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
        // Descriptors and copies lie here or, with meta_bg, in the group's first two blocks.
        let supers = if fs.superblock.has_incompat(INCOMPAT_META_BG) {
            2
        } else {
            1 + geometry.desc_blocks + geometry.reserved_gdt_blocks
        };
        used.insert(geometry.bytes(start, supers.min(end - start)));
        let desc = &table.groups[group as usize];
        for (block, count) in parts(desc, geometry.itable_blocks) {
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
    }
    Ok(used)
}
