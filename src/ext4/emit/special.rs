//! What has a use of its own: quotas, the orphan file, the journal, MMP, the resize inode.

use crate::error::Result;
use crate::ext4::edit::quota;
use crate::ext4::emit::{Emitter, Form};
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::inode::RESIZE_INO;
use crate::ext4::format::raw::put32;
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_ORPHAN_FILE, INCOMPAT_MMP, RO_COMPAT_LARGE_FILE,
};
use crate::units::{GroupNr, InodeNr};

impl Emitter<'_> {
    pub(super) fn quota(&mut self) -> Result<()> {
        let edits = quota::apply(self.metadata, self.view, &self.quota_deltas)?;
        for (block, bytes) in edits {
            self.put_block(self.plan.blocks.of(block), bytes);
        }
        Ok(())
    }

    /// Writes the orphan file's blocks anew where they or their inode moved, or what would be their
    /// checksums may be stale: all slots are empty.
    pub(super) fn orphan_file(&mut self) -> Result<()> {
        const MAGIC: u32 = 0x0B10_CA04;
        let superblock = &self.metadata.fs.superblock;
        if !superblock.has_compat(COMPAT_ORPHAN_FILE) {
            return Ok(());
        }
        let Some(record) = self
            .metadata
            .inode(InodeNr(superblock.s_orphan_file_inum()))
        else {
            return Ok(());
        };
        let number = self.plan.inode(record.number);
        let seed = self.new_fs.checksums.inode_seed(number, record.generation);
        let size = self.plan.geometry.block_size as usize;
        for extent in self.metadata.extents(record).to_vec() {
            for old in extent.start..extent.end() {
                let place = self.plan.blocks.of(old);
                let stays = place == old && number == record.number;
                if stays && self.new_fs.checksums.enabled() {
                    continue;
                }
                let mut block = vec![0; size];
                put32(&mut block, size - 8, MAGIC);
                if self.new_fs.checksums.enabled() {
                    let crc = crc32c(seed, &place.to_le_bytes());
                    let crc = crc32c(crc, &block[..size - 8]);
                    put32(&mut block, size - 4, crc);
                }
                self.put_block(place, block);
            }
        }
        Ok(())
    }

    /// Keeps only the journal's superblock, and refreshes the copy of its inode.
    pub(super) fn journal(&mut self) -> Result<()> {
        let superblock = &self.metadata.fs.superblock;
        let number = InodeNr(superblock.s_journal_inum());
        if !superblock.has_compat(COMPAT_HAS_JOURNAL) || number.0 == 0 {
            return Ok(());
        }
        let Some(record) = self.metadata.inode(number) else {
            return Ok(());
        };
        if self.form == Form::Image {
            let geometry = &self.plan.geometry;
            for extent in self.metadata.extents(record) {
                let skip = u64::from(extent.logical == 0);
                let len = u64::from(extent.len()) - skip;
                for (start, len) in self.plan.blocks.pieces(extent.start + skip, len) {
                    self.overlay.set_zero(geometry.bytes(start, len));
                }
            }
        }
        if superblock.s_jnl_backup_type() == 1 {
            let slot = match self.slots.get(&self.plan.inode(number)) {
                Some(slot) => slot.clone(),
                None => self.metadata.read_inode(self.view, number)?,
            };
            let mut copy = [0; 68];
            copy[..60].copy_from_slice(slot.i_block());
            copy[60..64].copy_from_slice(&slot.i_size_high().to_le_bytes());
            copy[64..].copy_from_slice(&slot.i_size_lo().to_le_bytes());
            self.new_fs.superblock.set_s_jnl_blocks(&copy);
        }
        Ok(())
    }

    /// Says in an image that nobody has the filesystem mounted.
    pub(super) fn mmp(&mut self) -> Result<()> {
        const SEQ_CLEAN: u32 = 0xFF4D_4D50;
        let superblock = &self.metadata.fs.superblock;
        if self.form == Form::InPlace || !superblock.has_incompat(INCOMPAT_MMP) {
            return Ok(());
        }
        let old = superblock.mmp_block();
        let mut block = self.read_block(old)?;
        put32(&mut block, 4, SEQ_CLEAN);
        if self.new_fs.checksums.enabled() {
            let crc = crc32c(self.new_fs.checksums.seed(), &block[..1020]);
            put32(&mut block, 1020, crc);
        }
        self.put_block(self.plan.blocks.of(old), block);
        Ok(())
    }

    /// Writes the resize inode's tree for the new descriptor area.
    pub(super) fn resize_inode(&mut self) -> Result<()> {
        let Some(inode) = self.metadata.resize_inode else {
            return Ok(());
        };
        let geometry = &self.plan.geometry;
        let slots = geometry.block_size / 4;
        let first = geometry.super_start(0) + 1 + geometry.desc_blocks;
        let backups: Vec<GroupNr> = (1..geometry.groups)
            .filter(|&group| geometry.has_backup(group))
            .take(slots as usize)
            .collect();
        let mut double = vec![0; geometry.block_size as usize];
        let mut nodes = Vec::new();
        for reserved in 0..geometry.reserved_gdt_blocks {
            let block = first + reserved;
            let slot = (geometry.desc_blocks + reserved) % slots;
            put32(&mut double, 4 * slot as usize, block as u32);
            let mut node = vec![0; geometry.block_size as usize];
            for (index, &group) in backups.iter().enumerate() {
                let copy = block + u64::from(group) * geometry.blocks_per_group;
                put32(&mut node, 4 * index, copy as u32);
            }
            nodes.push((block, node));
        }
        let place = self.plan.blocks.of(inode.double_indirect);
        let blocks = 1 + geometry.reserved_gdt_blocks * (1 + backups.len() as u64);
        let blocks_512 = blocks * geometry.cluster_ratio * (geometry.block_size / 512);
        let new_fs = self.new_fs.clone();
        let large_files = new_fs.superblock.has_ro_compat(RO_COMPAT_LARGE_FILE);
        let size = geometry.resize_inode_size(large_files);
        let slot = self.slot(RESIZE_INO)?;
        slot.set_size(size);
        put32(slot.i_block_mut(), 4 * 13, place as u32);
        slot.set_blocks_512(&new_fs, blocks_512);
        self.put_block(place, double);
        for (block, node) in nodes {
            self.put_block(block, node);
        }
        Ok(())
    }
}
