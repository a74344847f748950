//! What belongs to the groups: bitmaps, descriptors, superblocks and all copies of them.

use std::sync::Arc;

use crate::ext4::emit::{Emitter, Form};
use crate::ext4::format::bitmap::set_bits;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, INODE_UNINIT};
use crate::ext4::format::superblock::{
    INCOMPAT_RECOVER, STATE_VALID, SUPERBLOCK_OFFSET, Superblock,
};
use crate::units::{BlockNr, GroupNr};

impl Emitter<'_> {
    /// Writes the bitmaps and sets their checksums in the descriptors.
    pub(super) fn bitmaps(&mut self) {
        let geometry = self.plan.geometry.clone();
        let size = geometry.block_size as usize;
        let checksums = self.new_fs.checksums;
        for group in 0..geometry.groups {
            let blocks = geometry.group_start(group)..geometry.group_end(group);
            let desc = self.groups[group as usize].clone();
            let [(block_place, _), (inode_place, _), _] = desc.parts(geometry.itable_blocks);
            if desc.has_flag(BLOCK_UNINIT) {
                self.unstored.insert(block_place..block_place + 1);
                self.zero_unless_in_place(block_place);
            } else {
                let mut bitmap = vec![0; size];
                let ratio = geometry.cluster_ratio;
                self.plan.used.export(blocks, ratio, &mut bitmap);
                let clusters = geometry.group_clusters(group);
                set_bits(&mut bitmap, clusters..8 * size as u64);
                if checksums.enabled() {
                    let counted = (geometry.blocks_per_group / geometry.cluster_ratio / 8) as usize;
                    self.groups[group as usize]
                        .set_block_bitmap_csum(checksums.bitmap(&bitmap[..counted]));
                }
                self.put_block(block_place, bitmap);
            }
            if desc.has_flag(INODE_UNINIT) {
                self.unstored.insert(inode_place..inode_place + 1);
                self.zero_unless_in_place(inode_place);
            } else {
                let per_group = u64::from(geometry.inodes_per_group);
                let first = u64::from(group) * per_group;
                let mut bitmap = vec![0; size];
                self.plan
                    .live
                    .export(first..first + per_group, 1, &mut bitmap);
                set_bits(&mut bitmap, per_group..8 * size as u64);
                if checksums.enabled() {
                    let counted = (per_group / 8) as usize;
                    self.groups[group as usize]
                        .set_inode_bitmap_csum(checksums.bitmap(&bitmap[..counted]));
                }
                self.put_block(inode_place, bitmap);
            }
        }
    }

    fn zero_unless_in_place(&mut self, block: BlockNr) {
        if self.form == Form::Image {
            self.overlay.set_zero(self.plan.geometry.bytes(block, 1));
        }
    }

    /// Writes superblock and descriptors, and every copy of them.
    pub(super) fn superblocks(&mut self) {
        let geometry = self.plan.geometry.clone();
        // All copies are one in memory: there are dozens of megabytes each, without sparse_super one in
        // each group.
        let table: Arc<[u8]> = self
            .metadata
            .table
            .with_groups(std::mem::take(&mut self.groups))
            .encode(&self.new_fs)
            .into();
        self.new_fs.superblock.update_checksum();
        let primary = self.new_fs.superblock.clone();
        self.overlay
            .set_bytes(SUPERBLOCK_OFFSET, primary.bytes().to_vec());
        for group in 0..geometry.groups {
            let start = geometry.super_start(group);
            let has_backup = geometry.has_backup(group);
            if has_backup && group > 0 {
                let mut block = backup_of(&primary, group).bytes().to_vec();
                block.resize(geometry.block_size as usize, 0);
                self.put_block(start, block);
            }
            let (first, count) = geometry.descriptors_in(group);
            let descriptors = start + u64::from(has_backup);
            if count > 0 {
                let part = geometry.bytes(first, count);
                // OK: the table is in memory.
                let part = part.start as usize..part.end as usize;
                self.overlay
                    .set_shared(geometry.offset(descriptors), &table, part);
            }
            let reserved = (descriptors + count, geometry.reserved_in(group));
            if reserved.1 > 0 && (group > 0 || self.metadata.resize_inode.is_none()) {
                self.unstored.insert(reserved.0..reserved.0 + reserved.1);
                if self.form == Form::Image {
                    self.overlay
                        .set_zero(geometry.bytes(reserved.0, reserved.1));
                }
            }
        }
    }
}

/// The copy of a superblock in a backup group.
fn backup_of(primary: &Superblock, group: GroupNr) -> Superblock {
    let mut copy = primary.clone();
    copy.set_s_block_group_nr(group.min(0xFFFF) as u16);
    copy.set_s_state(copy.s_state() & !STATE_VALID);
    copy.clear_incompat(INCOMPAT_RECOVER);
    copy.update_checksum();
    copy
}
