//! Group descriptors: 32 bytes, or `s_desc_size` with 64bit, in the blocks after the superblock.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::format::crc::{crc16, crc32c};
use crate::ext4::format::fs::Super;
use crate::ext4::format::geometry::Geometry;
use crate::ext4::format::raw::le_fields;
use crate::ext4::format::superblock::{
    INCOMPAT_64BIT, RO_COMPAT_GDT_CSUM, RO_COMPAT_METADATA_CSUM,
};
use crate::io::ReadAt;
use crate::units::{BlockNr, GroupNr};

/// `bg_flags`: the inode table was never used.
pub const INODE_UNINIT: u16 = 1;
/// `bg_flags`: the block bitmap on disk is not valid.
pub const BLOCK_UNINIT: u16 = 2;
/// `bg_flags`: the unused part of the inode table is zeros.
pub const INODE_ZEROED: u16 = 4;

/// The bytes of one descriptor: always 64, zero-filled when the format has 32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDesc<T = [u8; 64]>(T);

le_fields!(GroupDesc {
    bg_block_bitmap_lo set_bg_block_bitmap_lo u32 0x00;
    bg_inode_bitmap_lo set_bg_inode_bitmap_lo u32 0x04;
    bg_inode_table_lo set_bg_inode_table_lo u32 0x08;
    bg_free_blocks_count_lo set_bg_free_blocks_count_lo u16 0x0C;
    bg_free_inodes_count_lo set_bg_free_inodes_count_lo u16 0x0E;
    bg_used_dirs_count_lo set_bg_used_dirs_count_lo u16 0x10;
    bg_flags set_bg_flags u16 0x12;
    bg_block_bitmap_csum_lo set_bg_block_bitmap_csum_lo u16 0x18;
    bg_inode_bitmap_csum_lo set_bg_inode_bitmap_csum_lo u16 0x1A;
    bg_itable_unused_lo set_bg_itable_unused_lo u16 0x1C;
    bg_checksum set_bg_checksum u16 0x1E;
    bg_block_bitmap_hi set_bg_block_bitmap_hi u32 0x20;
    bg_inode_bitmap_hi set_bg_inode_bitmap_hi u32 0x24;
    bg_inode_table_hi set_bg_inode_table_hi u32 0x28;
    bg_free_blocks_count_hi set_bg_free_blocks_count_hi u16 0x2C;
    bg_free_inodes_count_hi set_bg_free_inodes_count_hi u16 0x2E;
    bg_used_dirs_count_hi set_bg_used_dirs_count_hi u16 0x30;
    bg_itable_unused_hi set_bg_itable_unused_hi u16 0x32;
    bg_block_bitmap_csum_hi set_bg_block_bitmap_csum_hi u16 0x38;
    bg_inode_bitmap_csum_hi set_bg_inode_bitmap_csum_hi u16 0x3A;
});

/// Makes a getter and a setter over a field that is split into a low and a high half. The high
/// half reads as zero without 64bit because the struct is zero-filled then, and is never encoded.
macro_rules! split {
    ($($get:ident $set:ident $lo:ident $set_lo:ident $hi:ident $set_hi:ident $half:ident $whole:ident;)*) => {$(
        pub fn $get(&self) -> $whole {
            $whole::from(self.$hi()) << $half::BITS | $whole::from(self.$lo())
        }
        pub fn $set(&mut self, value: $whole) {
            self.$set_lo(value as $half);
            self.$set_hi((value >> $half::BITS) as $half);
        }
    )*};
}

impl GroupDesc {
    split! {
        block_bitmap set_block_bitmap bg_block_bitmap_lo set_bg_block_bitmap_lo bg_block_bitmap_hi set_bg_block_bitmap_hi u32 BlockNr;
        inode_bitmap set_inode_bitmap bg_inode_bitmap_lo set_bg_inode_bitmap_lo bg_inode_bitmap_hi set_bg_inode_bitmap_hi u32 BlockNr;
        inode_table set_inode_table bg_inode_table_lo set_bg_inode_table_lo bg_inode_table_hi set_bg_inode_table_hi u32 BlockNr;
        free_blocks set_free_blocks bg_free_blocks_count_lo set_bg_free_blocks_count_lo bg_free_blocks_count_hi set_bg_free_blocks_count_hi u16 u32;
        free_inodes set_free_inodes bg_free_inodes_count_lo set_bg_free_inodes_count_lo bg_free_inodes_count_hi set_bg_free_inodes_count_hi u16 u32;
        used_dirs set_used_dirs bg_used_dirs_count_lo set_bg_used_dirs_count_lo bg_used_dirs_count_hi set_bg_used_dirs_count_hi u16 u32;
        itable_unused set_itable_unused bg_itable_unused_lo set_bg_itable_unused_lo bg_itable_unused_hi set_bg_itable_unused_hi u16 u32;
        block_bitmap_csum set_block_bitmap_csum bg_block_bitmap_csum_lo set_bg_block_bitmap_csum_lo bg_block_bitmap_csum_hi set_bg_block_bitmap_csum_hi u16 u32;
        inode_bitmap_csum set_inode_bitmap_csum bg_inode_bitmap_csum_lo set_bg_inode_bitmap_csum_lo bg_inode_bitmap_csum_hi set_bg_inode_bitmap_csum_hi u16 u32;
    }

    /// Makes a descriptor of zeros.
    pub fn zeroed() -> Self {
        Self([0; 64])
    }

    /// Decodes `bytes`, of which up to 64 count.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut raw = [0; 64];
        let len = bytes.len().min(64);
        raw[..len].copy_from_slice(&bytes[..len]);
        Self(raw)
    }

    /// Returns the group's block bitmap, inode bitmap and inode table, as (first block, length).
    pub fn parts(&self, itable_blocks: u64) -> [(BlockNr, u64); 3] {
        [
            (self.block_bitmap(), 1),
            (self.inode_bitmap(), 1),
            (self.inode_table(), itable_blocks),
        ]
    }

    pub fn has_flag(&self, flag: u16) -> bool {
        self.bg_flags() & flag != 0
    }

    pub fn set_flag(&mut self, flag: u16, on: bool) {
        let flags = self.bg_flags();
        self.set_bg_flags(if on { flags | flag } else { flags & !flag });
    }

    /// Puts the descriptor with a new checksum into `raw`, which has `s_desc_size` bytes; what is
    /// behind the first 64 stays.
    pub fn encode(&self, fs: &Super, group: GroupNr, raw: &mut [u8]) {
        let len = raw.len().min(64);
        raw[..len].copy_from_slice(&self.0[..len]);
        // Without the features nobody reads it; a stale one would only mislead.
        let checksum = GroupDesc::checksum(fs, group, raw).unwrap_or(0);
        raw[0x1E..0x20].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Computes what `bg_checksum` should be for this descriptor in `group`; `raw` is the whole
    /// descriptor as it lies on disk (`s_desc_size` bytes).
    fn checksum(fs: &Super, group: GroupNr, raw: &[u8]) -> Option<u16> {
        const CSUM: usize = 0x1E;
        let superblock = &fs.superblock;
        if superblock.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            let mut crc = crc32c(fs.checksums.seed(), &group.to_le_bytes());
            crc = crc32c(crc, &raw[..CSUM]);
            crc = crc32c(crc, &[0; 2]);
            crc = crc32c(crc, &raw[CSUM + 2..]);
            Some(crc as u16)
        } else if superblock.has_ro_compat(RO_COMPAT_GDT_CSUM) {
            let mut crc = crc16(!0, superblock.s_uuid());
            crc = crc16(crc, &group.to_le_bytes());
            crc = crc16(crc, &raw[..CSUM]);
            if superblock.has_incompat(INCOMPAT_64BIT) {
                crc = crc16(crc, &raw[CSUM + 2..]);
            }
            Some(crc)
        } else {
            None
        }
    }
}

/// The descriptors of all groups, and whether each one's checksum matched.
#[derive(Clone, Debug)]
pub struct GroupTable {
    pub groups: Vec<GroupDesc>,
    /// Groups whose `bg_checksum` is wrong.
    pub bad_checksums: Vec<GroupNr>,
    /// What follows the first 64 bytes of each larger descriptor; empty otherwise.
    tails: Vec<u8>,
}

impl GroupTable {
    /// Reads the descriptors from the primary table, or from each meta group's first group.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn read(fs: &Super, device: &dyn ReadAt) -> Result<Self> {
        let geometry = &fs.geometry;
        let size = geometry.desc_size as usize;
        let size_in_blocks = |blocks: u64| (blocks * geometry.block_size) as usize;
        let mut bytes = Vec::new();
        let mut group = 0;
        while bytes.len() < size_in_blocks(geometry.desc_blocks) && group < geometry.groups {
            let (first, count) = geometry.descriptors_in(group);
            // OK: Geometry::of made sure that the primary table fits into group 0.
            if count > 0 && size_in_blocks(first) == bytes.len() {
                let start = geometry.super_start(group) + u64::from(geometry.has_backup(group));
                bytes.extend(device.read_vec_at(geometry.offset(start), size_in_blocks(count))?);
            }
            group += 1;
        }
        bytes.truncate(geometry.groups as usize * size);
        if bytes.len() < geometry.groups as usize * size {
            return Err(Error::unsound("ext4 superblock: s_first_meta_bg cannot be"));
        }
        let mut table = Self {
            groups: Vec::with_capacity(geometry.groups as usize),
            bad_checksums: Vec::new(),
            tails: Vec::new(),
        };
        for (group, raw) in bytes.chunks_exact(size).enumerate() {
            let desc = GroupDesc::from_bytes(raw);
            let expected = GroupDesc::checksum(fs, group as GroupNr, raw);
            if expected.is_some_and(|expected| expected != desc.bg_checksum()) {
                table.bad_checksums.push(group as GroupNr);
            }
            table.groups.push(desc);
            table.tails.extend_from_slice(&raw[size.min(64)..]);
        }
        Ok(table)
    }

    /// Makes a table of given descriptors for `fs`, in place of one that was read.
    #[must_use]
    pub fn with_groups(&self, groups: Vec<GroupDesc>) -> Self {
        Self {
            groups,
            bad_checksums: Vec::new(),
            tails: self.tails.clone(),
        }
    }

    /// Encodes all descriptors with new checksums, padded with zeros to whole blocks.
    pub fn encode(&self, fs: &Super) -> Vec<u8> {
        let size = fs.geometry.desc_size as usize;
        let tail_size = size.saturating_sub(64);
        let mut bytes = Vec::with_capacity(self.groups.len() * size);
        for (group, desc) in self.groups.iter().enumerate() {
            let start = bytes.len();
            bytes.resize(start + size, 0);
            let tail = group * tail_size;
            if let Some(old) = self.tails.get(tail..tail + tail_size) {
                bytes[start + size - tail_size..].copy_from_slice(old);
            }
            desc.encode(fs, group as GroupNr, &mut bytes[start..]);
        }
        bytes.resize(
            (fs.geometry.desc_blocks * fs.geometry.block_size) as usize,
            0,
        );
        bytes
    }
}

impl Geometry {
    /// Returns how many clusters of the group's own area hold its own metadata, whose descriptor is
    /// `desc`.
    pub fn own_clusters(&self, group: GroupNr, desc: &GroupDesc) -> u64 {
        let start = self.group_start(group);
        let own = start..self.group_end(group);
        let first = self.super_start(group);
        let supers = match first + self.super_blocks(group) {
            end if end > first => start..end,
            _ => start..start,
        };
        let parts = desc.parts(self.itable_blocks);
        let parts = parts.map(|(block, count)| block..block.saturating_add(count));
        let mut clusters: Vec<Range<u64>> = std::iter::once(supers)
            .chain(parts)
            .map(|part| part.start.max(own.start)..part.end.min(own.end))
            .filter(|part| part.start < part.end)
            .map(|part| self.clusters(&part))
            .collect();
        clusters.sort_unstable_by_key(|part| part.start);
        let (mut count, mut end) = (0, 0);
        for part in clusters {
            count += part.end.saturating_sub(part.start.max(end));
            end = end.max(part.end);
        }
        count
    }
}
