//! The filesystem's own files: resize inode, journal, orphan file.

use super::super::checksum::crc32c;
use super::super::inode::{Inode, RESIZE_INO, S_IFMT, S_IFREG};
use super::super::map::Extent;
use super::super::metadata::InodeRecord;
use super::super::raw::le32;
use super::super::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_ORPHAN_FILE, COMPAT_RESIZE_INODE, RO_COMPAT_LARGE_FILE,
};
use super::Check;
use super::batch::for_each_block;
use crate::error::Result;
use crate::units::{BlockNr, InodeNr};

/// The shortest journal in blocks.
const MIN_JOURNAL_BLOCKS: u64 = 1024;
/// The magic number at the end of each block of the orphan file.
const ORPHAN_MAGIC: u32 = 0x0B10_CA04;

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
        let mut blocks: Vec<BlockNr> = self
            .meta
            .extents(record)
            .iter()
            .flat_map(|extent: &Extent| extent.start..extent.end())
            .collect();
        blocks.sort_unstable();
        let (view, fs) = (self.view, self.fs);
        for_each_block(
            view,
            fs,
            &blocks,
            |block| *block,
            |block, bytes| {
                let tail = bytes.len() - 8;
                let crc = crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..tail]);
                let text = if le32(bytes, tail) != ORPHAN_MAGIC {
                    Some("is the orphan file, but a block has a wrong magic")
                } else if fs.checksums.enabled() && le32(bytes, tail + 4) != crc {
                    Some("is the orphan file, but a block's checksum does not match")
                } else if !crate::io::is_zero(&bytes[..tail]) {
                    Some("is the orphan file, and still holds orphans")
                } else {
                    None
                };
                if let Some(text) = text {
                    self.inode_damaged(number, text);
                }
                Ok(())
            },
        )
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
        let block = self.meta.resize_inode.map(|resize| resize.double_indirect);
        let (Some(block), true, true, false) = (
            block,
            inode.i_mode() & S_IFMT == S_IFREG,
            inode.i_links_count() != 0,
            needs_feature,
        ) else {
            self.inode_damaged(RESIZE_INO, "is no valid resize inode");
            return Ok(());
        };
        self.resize_lists(&inode, block)
    }

    /// The lists of reserved descriptor blocks and their backups.
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
            .collect();
        let lists = read(double_indirect)?;
        let first = geometry.first_data_block + 1 + geometry.desc_blocks;
        let reserved = geometry.reserved_gdt_blocks;
        // What e2fsck looks at: the first quarter of the lists.
        let checked = reserved / 4;
        let (mut damaged, mut stale) = (false, false);
        let mut pointers = 1u64;
        let mut last = 0;
        for slot in 0..per_block {
            let entry = u64::from(le32(&lists, 4 * slot as usize));
            // OK: `slot` stands for the reserved block whose number is this far behind the first.
            let k = (slot + per_block - geometry.desc_blocks % per_block) % per_block;
            let expected = if k < reserved { first + k } else { 0 };
            if entry != expected {
                damaged |= k < checked;
                stale = true;
            }
            if entry == 0 {
                continue;
            }
            if entry >= geometry.blocks_count {
                self.inode_damaged(RESIZE_INO, "is the resize inode, but points outside");
                return Ok(());
            }
            pointers += 1;
            let list = read(entry)?;
            for (index, bytes) in list.chunks_exact(4).enumerate() {
                let pointer = u64::from(le32(bytes, 0));
                let expected = backups.get(index).map_or(0, |offset| entry + offset);
                damaged |= pointer >= geometry.blocks_count;
                if pointer != 0 {
                    pointers += 1;
                    last = 12 + per_block + slot * per_block + index as u64;
                }
                if pointer != expected {
                    damaged |= k < checked && pointer != expected && index < backups.len();
                    stale = true;
                }
            }
        }
        let counted = inode.blocks_512(self.fs);
        let expected = pointers * (block_size / 512);
        if damaged {
            self.inode_damaged(RESIZE_INO, "is the resize inode, but its lists are wrong");
        } else if counted != expected {
            self.inode_damaged(
                RESIZE_INO,
                format_args!("counts {counted} sectors but has {expected}"),
            );
        } else if inode.size() < last * block_size {
            self.inode_damaged(RESIZE_INO, "is the resize inode, but has a wrong size");
        } else if stale {
            self.findings
                .repaired("the resize inode's lists were out of date");
        }
        Ok(())
    }
}
