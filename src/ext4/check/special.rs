//! The filesystem's own files: resize inode, journal, orphan file.

use std::ops::Range;

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::check::inodes::{IMAGIC_FL, largest_with_pointers};
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{
    BAD_INO, CASEFOLD_FL, EA_INODE_FL, ENCRYPT_FL, EXTENTS_FL, INDEX_FL, INLINE_DATA_FL, Inode,
    RESIZE_INO, S_IFMT, S_IFREG,
};
use crate::ext4::format::raw::le32;
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_ORPHAN_FILE, COMPAT_RESIZE_INODE, RO_COMPAT_LARGE_FILE,
};
use crate::ext4::read::blocks::for_each_block;
use crate::ext4::read::claim::ELSEWHERE;
use crate::ext4::read::map::{MapError, read_map};
use crate::ext4::read::metadata::InodeRecord;
use crate::io::RangeSet;
use crate::units::{BlockNr, InodeNr};

/// The shortest journal in blocks.
const MIN_JOURNAL_BLOCKS: u64 = 1024;
/// What the resize inode, a list of pointers, cannot be.
const FLAGS_OF_OTHERS: u32 =
    EXTENTS_FL | INLINE_DATA_FL | INDEX_FL | CASEFOLD_FL | ENCRYPT_FL | EA_INODE_FL | IMAGIC_FL;
/// Where an inode had the address of a fragment, in bytes.
const I_FADDR: usize = 0x70;
/// The magic number at the end of each block of the orphan file.
const ORPHAN_MAGIC: u32 = 0x0B10_CA04;
/// Blocks of the orphan file that are listed at a time.
const AT_ONCE: usize = 1 << 16;

impl Check<'_> {
    pub(super) fn special_inodes(&mut self) -> Result<()> {
        self.journal();
        self.orphan_file()?;
        self.resize_inode()
    }

    fn journal(&mut self) {
        let superblock = &self.fs.superblock;
        let number = InodeNr(superblock.s_journal_inum());
        if !superblock.has_compat(COMPAT_HAS_JOURNAL) || number.0 == 0 {
            return;
        }
        let Some(record) = self.inode(number) else {
            self.inode_damaged(number, "is the journal, but not in use");
            return;
        };
        let block_size = self.fs.geometry.block_size;
        if record.size / block_size < MIN_JOURNAL_BLOCKS || !self.is_whole(record) {
            self.inode_damaged(number, "is the journal, but too short or with a hole");
        }
    }

    /// Has the file written blocks from the first to the one its size ends in?
    fn is_whole(&self, record: &InodeRecord) -> bool {
        let written = self.meta.extents(record).iter().try_fold(0, |at, extent| {
            (u64::from(extent.logical) == at).then(|| extent.logical_end())
        });
        written.is_some_and(|blocks| blocks * self.fs.geometry.block_size >= record.size)
    }

    fn orphan_file(&mut self) -> Result<()> {
        let superblock = &self.fs.superblock;
        if !superblock.has_compat(COMPAT_ORPHAN_FILE) {
            return Ok(());
        }
        let number = InodeNr(superblock.s_orphan_file_inum());
        let Some(record) = self.inode(number) else {
            return Ok(());
        };
        let block_size = self.fs.geometry.block_size;
        if !record.size.is_multiple_of(block_size) || !self.is_whole(record) {
            self.inode_damaged(number, "is the orphan file, but has a hole or half a block");
        }
        let seed = self.fs.checksums.inode_seed(number, record.generation);
        let (view, fs) = (self.view, self.fs);
        let mut stale = false;
        for extent in self.meta.extents(record) {
            for start in (extent.start..extent.end()).step_by(AT_ONCE) {
                let end = extent.end().min(start + AT_ONCE as u64);
                let blocks: Vec<BlockNr> = (start..end).collect();
                for_each_block(
                    view,
                    fs,
                    &blocks,
                    |block| *block,
                    |&block, bytes| {
                        if let Some(text) = orphan_block_problem(fs, seed, block, bytes) {
                            self.inode_damaged(number, text);
                        }
                        let checksum = le32(bytes, bytes.len() - 4);
                        stale |= checksum != 0 && !fs.checksums.enabled();
                        Ok(())
                    },
                )?;
            }
        }
        if stale {
            // tune2fs leaves them there, the kernel does not mind, and e2fsck does.
            self.findings
                .repaired("the orphan file had checksums without the feature");
        }
        Ok(())
    }

    fn resize_inode(&mut self) -> Result<()> {
        let inode = self.meta.read_inode(self.view, RESIZE_INO)?;
        if !self.fs.superblock.has_compat(COMPAT_RESIZE_INODE) {
            if inode.i_block().iter().any(|&byte| byte != 0) {
                self.inode_damaged(
                    RESIZE_INO,
                    "is the resize inode of a filesystem without one",
                );
            }
            return Ok(());
        }
        let superblock = &self.fs.superblock;
        let size = inode.size();
        let needs_feature = size >= 1 << 31 && !superblock.has_ro_compat(RO_COMPAT_LARGE_FILE);
        let odd = inode.has_flag(FLAGS_OF_OTHERS)
            || inode.file_acl(self.fs) != 0
            || le32(inode.bytes(), I_FADDR) != 0;
        let block = self.meta.resize_inode.map(|resize| resize.double_indirect);
        let (Some(block), true, true, false) = (
            block,
            inode.i_mode() & S_IFMT == S_IFREG,
            inode.i_links_count() != 0,
            needs_feature || self.is_low_dtime(inode.i_dtime()) || odd,
        ) else {
            self.inode_damaged(RESIZE_INO, "is no valid resize inode");
            return Ok(());
        };
        self.resize_lists(&inode, block)
    }

    /// The lists of reserved descriptor blocks and their backups, which an image gets anew.
    fn resize_lists(&mut self, inode: &Inode, double_indirect: BlockNr) -> Result<()> {
        let geometry = &self.fs.geometry;
        let block_size = geometry.block_size;
        let per_block = block_size / 4;
        let read = |block: BlockNr| {
            let at = geometry.offset(block);
            self.view.read_vec_at(at, block_size as usize)
        };
        let backups: Vec<u64> = (1..geometry.groups)
            .filter(|&group| geometry.has_backup(group))
            .map(|group| u64::from(group) * geometry.blocks_per_group)
            .take(per_block as usize)
            .collect();
        let lists = read(double_indirect)?;
        let first = geometry.super_start(0) + 1 + geometry.desc_blocks;
        let reserved = geometry.reserved_gdt_blocks;
        let pointers = 1 + reserved * (1 + backups.len() as u64);
        let counted = pointers * geometry.cluster_ratio * (block_size / 512);
        let mut stale = inode.blocks_512(self.fs) != counted;
        for slot in 0..per_block {
            // How far behind the first one the reserved block lies that belongs into this slot.
            let k = (slot + per_block - geometry.desc_blocks % per_block) % per_block;
            let entry = u64::from(le32(&lists, 4 * slot as usize));
            let expected = if k < reserved { first + k } else { 0 };
            stale |= entry != expected;
            if expected == 0 {
                continue;
            }
            for (index, bytes) in read(expected)?.chunks_exact(4).enumerate() {
                let expected = backups.get(index).map_or(0, |offset| expected + offset);
                stale |= u64::from(le32(bytes, 0)) != expected;
            }
        }
        if stale {
            self.findings
                .repaired("the resize inode's lists were out of date");
        }
        // Other writers give it the size of what they list, which need not be what others expect.
        let too_small = inode.size() < geometry.resize_inode_listed();
        if too_small || inode.size() > largest_with_pointers(block_size) {
            self.findings.repaired("the resize inode had a wrong size");
        }
        Ok(())
    }

    /// The list of bad blocks: no file of its own, and it may not claim what others use.
    pub(super) fn bad_blocks_inode(&mut self, inode: &Inode<&[u8]>) -> Result<()> {
        let owner = inode.i_mode() != 0
            || inode.i_uid_lo() != 0
            || inode.i_gid_lo() != 0
            || inode.i_links_count() != 0
            || inode.has_flag(INLINE_DATA_FL)
            || inode.file_acl(self.fs) != 0
            || self.is_low_dtime(inode.i_dtime());
        if owner || !inode.checksum_matches(&self.fs.checksums, BAD_INO) {
            self.inode_damaged(BAD_INO, "is no valid list of bad blocks");
            return Ok(());
        }
        if inode.i_block().iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let geometry = &self.fs.geometry;
        let mut claimed = RangeSet::new();
        let mut claim = |blocks: Range<BlockNr>, _| {
            let clusters = geometry.clusters(&blocks);
            if self.meta.used.count(geometry.blocks_of(&clusters)) != 0
                || claimed.intersects(clusters.clone())
            {
                return Err(ELSEWHERE);
            }
            claimed.insert(clusters);
            Ok(())
        };
        match read_map(self.fs, self.view, BAD_INO, inode, &mut claim) {
            Ok(_) => {}
            Err(MapError::Device(error)) => return Err(error),
            Err(MapError::Broken(text)) => self.inode_damaged(BAD_INO, text),
        }
        Ok(())
    }
}

/// What is wrong with a block of the orphan file, whose inode gives the checksums' `seed`?
fn orphan_block_problem(
    fs: &Super,
    seed: u32,
    block: BlockNr,
    bytes: &[u8],
) -> Option<&'static str> {
    let tail = bytes.len() - 8;
    let crc = crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..tail]);
    if le32(bytes, tail) != ORPHAN_MAGIC {
        Some("is the orphan file, but a block has a wrong magic")
    } else if fs.checksums.enabled() && le32(bytes, tail + 4) != crc {
        Some("is the orphan file, but a block's checksum does not match")
    } else if !crate::io::is_zero(&bytes[..tail]) {
        Some("is the orphan file, and still holds orphans")
    } else {
        None
    }
}
