//! The superblock: 1024 bytes at byte 1024 of the filesystem, with copies in backup groups.
//!
//! Fields carry the kernel's names. Specification: the kernel's
//! Documentation/filesystems/ext4/super.rst. A [`Superblock`] is only bytes; [`Geometry`] holds
//! the numbers that were validated against each other and against the device's size.

use super::checksum::{Checksums, crc32c};
use super::raw::{join, le_fields};
use crate::error::{Error, Result};
use crate::io::ReadAt;
use crate::units::{BlockNr, GroupNr, InodeNr};

/// Where the primary superblock lies, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Its size in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xEF53;

pub const STATE_VALID: u16 = 1;
pub const STATE_ERRORS: u16 = 2;
pub const STATE_ORPHAN_RECOVERY: u16 = 4;

pub const COMPAT_DIR_PREALLOC: u32 = 0x1;
pub const COMPAT_IMAGIC_INODES: u32 = 0x2;
pub const COMPAT_HAS_JOURNAL: u32 = 0x4;
pub const COMPAT_EXT_ATTR: u32 = 0x8;
pub const COMPAT_RESIZE_INODE: u32 = 0x10;
pub const COMPAT_DIR_INDEX: u32 = 0x20;
pub const COMPAT_LAZY_BG: u32 = 0x40;
pub const COMPAT_EXCLUDE_BITMAP: u32 = 0x100;
pub const COMPAT_SPARSE_SUPER2: u32 = 0x200;
pub const COMPAT_FAST_COMMIT: u32 = 0x400;
pub const COMPAT_STABLE_INODES: u32 = 0x800;
pub const COMPAT_ORPHAN_FILE: u32 = 0x1000;

pub const INCOMPAT_COMPRESSION: u32 = 0x1;
pub const INCOMPAT_FILETYPE: u32 = 0x2;
pub const INCOMPAT_RECOVER: u32 = 0x4;
pub const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
pub const INCOMPAT_META_BG: u32 = 0x10;
pub const INCOMPAT_EXTENTS: u32 = 0x40;
pub const INCOMPAT_64BIT: u32 = 0x80;
pub const INCOMPAT_MMP: u32 = 0x100;
pub const INCOMPAT_FLEX_BG: u32 = 0x200;
pub const INCOMPAT_EA_INODE: u32 = 0x400;
pub const INCOMPAT_DIRDATA: u32 = 0x1000;
pub const INCOMPAT_CSUM_SEED: u32 = 0x2000;
pub const INCOMPAT_LARGEDIR: u32 = 0x4000;
pub const INCOMPAT_INLINE_DATA: u32 = 0x8000;
pub const INCOMPAT_ENCRYPT: u32 = 0x10000;
pub const INCOMPAT_CASEFOLD: u32 = 0x20000;

pub const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
pub const RO_COMPAT_LARGE_FILE: u32 = 0x2;
pub const RO_COMPAT_BTREE_DIR: u32 = 0x4;
pub const RO_COMPAT_HUGE_FILE: u32 = 0x8;
pub const RO_COMPAT_GDT_CSUM: u32 = 0x10;
pub const RO_COMPAT_DIR_NLINK: u32 = 0x20;
pub const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
pub const RO_COMPAT_HAS_SNAPSHOT: u32 = 0x80;
pub const RO_COMPAT_QUOTA: u32 = 0x100;
pub const RO_COMPAT_BIGALLOC: u32 = 0x200;
pub const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
pub const RO_COMPAT_REPLICA: u32 = 0x800;
pub const RO_COMPAT_READONLY: u32 = 0x1000;
pub const RO_COMPAT_PROJECT: u32 = 0x2000;
pub const RO_COMPAT_SHARED_BLOCKS: u32 = 0x4000;
pub const RO_COMPAT_VERITY: u32 = 0x8000;
pub const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x10000;

/// The three feature words and what each bit is called, as mke2fs and dumpe2fs print it.
const COMPAT_NAMES: &[(u32, &str)] = &[
    (COMPAT_DIR_PREALLOC, "dir_prealloc"),
    (COMPAT_IMAGIC_INODES, "imagic_inodes"),
    (COMPAT_HAS_JOURNAL, "has_journal"),
    (COMPAT_EXT_ATTR, "ext_attr"),
    (COMPAT_RESIZE_INODE, "resize_inode"),
    (COMPAT_DIR_INDEX, "dir_index"),
    (COMPAT_LAZY_BG, "lazy_bg"),
    (COMPAT_EXCLUDE_BITMAP, "snapshot_bitmap"),
    (COMPAT_SPARSE_SUPER2, "sparse_super2"),
    (COMPAT_FAST_COMMIT, "fast_commit"),
    (COMPAT_STABLE_INODES, "stable_inodes"),
    (COMPAT_ORPHAN_FILE, "orphan_file"),
];
const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (INCOMPAT_COMPRESSION, "compression"),
    (INCOMPAT_FILETYPE, "filetype"),
    (INCOMPAT_RECOVER, "needs_recovery"),
    (INCOMPAT_JOURNAL_DEV, "journal_dev"),
    (INCOMPAT_META_BG, "meta_bg"),
    (INCOMPAT_EXTENTS, "extent"),
    (INCOMPAT_64BIT, "64bit"),
    (INCOMPAT_MMP, "mmp"),
    (INCOMPAT_FLEX_BG, "flex_bg"),
    (INCOMPAT_EA_INODE, "ea_inode"),
    (INCOMPAT_DIRDATA, "dirdata"),
    (INCOMPAT_CSUM_SEED, "metadata_csum_seed"),
    (INCOMPAT_LARGEDIR, "large_dir"),
    (INCOMPAT_INLINE_DATA, "inline_data"),
    (INCOMPAT_ENCRYPT, "encrypt"),
    (INCOMPAT_CASEFOLD, "casefold"),
];
const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (RO_COMPAT_SPARSE_SUPER, "sparse_super"),
    (RO_COMPAT_LARGE_FILE, "large_file"),
    (RO_COMPAT_BTREE_DIR, "btree_dir"),
    (RO_COMPAT_HUGE_FILE, "huge_file"),
    (RO_COMPAT_GDT_CSUM, "uninit_bg"),
    (RO_COMPAT_DIR_NLINK, "dir_nlink"),
    (RO_COMPAT_EXTRA_ISIZE, "extra_isize"),
    (RO_COMPAT_HAS_SNAPSHOT, "snapshot"),
    (RO_COMPAT_QUOTA, "quota"),
    (RO_COMPAT_BIGALLOC, "bigalloc"),
    (RO_COMPAT_METADATA_CSUM, "metadata_csum"),
    (RO_COMPAT_REPLICA, "replica"),
    (RO_COMPAT_READONLY, "read-only"),
    (RO_COMPAT_PROJECT, "project"),
    (RO_COMPAT_SHARED_BLOCKS, "shared_blocks"),
    (RO_COMPAT_VERITY, "verity"),
    (RO_COMPAT_ORPHAN_PRESENT, "orphan_present"),
];

/// The feature bits with which the resizer knows what to do. Any other bit keeps a filesystem at
/// its size.
const RESIZABLE: [u32; 3] = [
    COMPAT_DIR_PREALLOC
        | COMPAT_HAS_JOURNAL
        | COMPAT_EXT_ATTR
        | COMPAT_RESIZE_INODE
        | COMPAT_DIR_INDEX
        | COMPAT_FAST_COMMIT
        | COMPAT_STABLE_INODES
        | COMPAT_ORPHAN_FILE,
    INCOMPAT_FILETYPE
        | INCOMPAT_RECOVER
        | INCOMPAT_EXTENTS
        | INCOMPAT_64BIT
        | INCOMPAT_MMP
        | INCOMPAT_FLEX_BG
        | INCOMPAT_EA_INODE
        | INCOMPAT_CSUM_SEED
        | INCOMPAT_LARGEDIR
        | INCOMPAT_INLINE_DATA
        | INCOMPAT_ENCRYPT
        | INCOMPAT_CASEFOLD,
    RO_COMPAT_SPARSE_SUPER
        | RO_COMPAT_LARGE_FILE
        | RO_COMPAT_HUGE_FILE
        | RO_COMPAT_GDT_CSUM
        | RO_COMPAT_DIR_NLINK
        | RO_COMPAT_EXTRA_ISIZE
        | RO_COMPAT_QUOTA
        | RO_COMPAT_METADATA_CSUM
        | RO_COMPAT_READONLY
        | RO_COMPAT_PROJECT
        | RO_COMPAT_VERITY
        | RO_COMPAT_ORPHAN_PRESENT,
];

/// The bytes of a superblock, with its fields by name.
#[derive(Clone, Debug)]
pub struct Superblock<T = Vec<u8>>(T);

le_fields!(Superblock {
    s_inodes_count set_s_inodes_count u32 0x00;
    s_blocks_count_lo set_s_blocks_count_lo u32 0x04;
    s_r_blocks_count_lo set_s_r_blocks_count_lo u32 0x08;
    s_free_blocks_count_lo set_s_free_blocks_count_lo u32 0x0C;
    s_free_inodes_count set_s_free_inodes_count u32 0x10;
    s_first_data_block set_s_first_data_block u32 0x14;
    s_log_block_size set_s_log_block_size u32 0x18;
    s_log_cluster_size set_s_log_cluster_size u32 0x1C;
    s_blocks_per_group set_s_blocks_per_group u32 0x20;
    s_clusters_per_group set_s_clusters_per_group u32 0x24;
    s_inodes_per_group set_s_inodes_per_group u32 0x28;
    s_magic set_s_magic u16 0x38;
    s_state set_s_state u16 0x3A;
    s_lastcheck set_s_lastcheck u32 0x40;
    s_creator_os set_s_creator_os u32 0x48;
    s_rev_level set_s_rev_level u32 0x4C;
    s_first_ino_raw set_s_first_ino_raw u32 0x54;
    s_inode_size_raw set_s_inode_size_raw u16 0x58;
    s_block_group_nr set_s_block_group_nr u16 0x5A;
    s_feature_compat set_s_feature_compat u32 0x5C;
    s_feature_incompat set_s_feature_incompat u32 0x60;
    s_feature_ro_compat set_s_feature_ro_compat u32 0x64;
    s_reserved_gdt_blocks set_s_reserved_gdt_blocks u16 0xCE;
    s_journal_inum set_s_journal_inum u32 0xE0;
    s_journal_dev set_s_journal_dev u32 0xE4;
    s_last_orphan set_s_last_orphan u32 0xE8;
    s_jnl_backup_type set_s_jnl_backup_type u8 0xFD;
    s_desc_size_raw set_s_desc_size_raw u16 0xFE;
    s_first_meta_bg set_s_first_meta_bg u32 0x104;
    s_blocks_count_hi set_s_blocks_count_hi u32 0x150;
    s_r_blocks_count_hi set_s_r_blocks_count_hi u32 0x154;
    s_free_blocks_count_hi set_s_free_blocks_count_hi u32 0x158;
    s_min_extra_isize set_s_min_extra_isize u16 0x15C;
    s_want_extra_isize set_s_want_extra_isize u16 0x15E;
    s_flags set_s_flags u32 0x160;
    s_mmp_block_lo set_s_mmp_block_lo u32 0x168;
    s_mmp_block_hi set_s_mmp_block_hi u32 0x16C;
    s_log_groups_per_flex set_s_log_groups_per_flex u8 0x174;
    s_checksum_type set_s_checksum_type u8 0x175;
    s_snapshot_inum set_s_snapshot_inum u32 0x180;
    s_usr_quota_inum set_s_usr_quota_inum u32 0x240;
    s_grp_quota_inum set_s_grp_quota_inum u32 0x244;
    s_overhead_clusters set_s_overhead_clusters u32 0x248;
    s_lpf_ino set_s_lpf_ino u32 0x268;
    s_prj_quota_inum set_s_prj_quota_inum u32 0x26C;
    s_checksum_seed set_s_checksum_seed u32 0x270;
    s_encoding set_s_encoding u16 0x27C;
    s_orphan_file_inum set_s_orphan_file_inum u32 0x280;
    s_checksum set_s_checksum u32 0x3FC;
});

impl<T: AsRef<[u8]>> Superblock<T> {
    /// Wraps the 1024 bytes of a superblock.
    pub fn new(bytes: T) -> Self {
        debug_assert_eq!(bytes.as_ref().len(), SUPERBLOCK_SIZE);
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    pub fn has_compat(&self, bit: u32) -> bool {
        self.s_feature_compat() & bit != 0
    }

    pub fn has_incompat(&self, bit: u32) -> bool {
        self.s_feature_incompat() & bit != 0
    }

    pub fn has_ro_compat(&self, bit: u32) -> bool {
        self.s_feature_ro_compat() & bit != 0
    }

    /// Do the descriptors' flags and `bg_itable_unused` count?
    pub fn has_group_checksums(&self) -> bool {
        self.has_ro_compat(RO_COMPAT_METADATA_CSUM | RO_COMPAT_GDT_CSUM)
    }

    pub fn s_uuid(&self) -> &[u8] {
        &self.bytes()[0x68..0x78]
    }

    /// Returns the UUID as blkid prints it.
    pub fn uuid_text(&self) -> String {
        let hex: String = self.s_uuid().iter().map(|b| format!("{b:02x}")).collect();
        [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..],
        ]
        .join("-")
    }

    /// Returns the label, up to its first NUL, with whatever is not UTF-8 replaced.
    pub fn volume_name(&self) -> String {
        let name = &self.bytes()[0x78..0x88];
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    }

    /// Returns `s_jnl_blocks`: the copy of the journal inode's `i_block`, `i_size_high`, `i_size`.
    pub fn s_jnl_blocks(&self) -> &[u8] {
        &self.bytes()[0x10C..0x150]
    }

    pub fn s_backup_bgs(&self) -> [u32; 2] {
        [
            super::raw::le32(self.bytes(), 0x24C),
            super::raw::le32(self.bytes(), 0x250),
        ]
    }

    pub fn blocks_count(&self) -> BlockNr {
        join(
            self.high(self.s_blocks_count_hi()),
            self.s_blocks_count_lo(),
        )
    }

    pub fn r_blocks_count(&self) -> BlockNr {
        join(
            self.high(self.s_r_blocks_count_hi()),
            self.s_r_blocks_count_lo(),
        )
    }

    pub fn free_blocks_count(&self) -> BlockNr {
        join(
            self.high(self.s_free_blocks_count_hi()),
            self.s_free_blocks_count_lo(),
        )
    }

    pub fn mmp_block(&self) -> BlockNr {
        join(self.high(self.s_mmp_block_hi()), self.s_mmp_block_lo())
    }

    fn high(&self, word: u32) -> u32 {
        if self.has_incompat(INCOMPAT_64BIT) {
            word
        } else {
            0
        }
    }

    /// Returns the first inode number that is not reserved.
    pub fn first_ino(&self) -> u32 {
        if self.s_rev_level() == 0 {
            11
        } else {
            self.s_first_ino_raw()
        }
    }

    /// Returns the size of an inode's slot in bytes.
    pub fn inode_size(&self) -> u16 {
        if self.s_rev_level() == 0 {
            128
        } else {
            self.s_inode_size_raw()
        }
    }

    /// Returns the size of a group descriptor in bytes: 32 without 64bit, whatever the field says.
    pub fn desc_size(&self) -> u16 {
        if self.has_incompat(INCOMPAT_64BIT) {
            self.s_desc_size_raw()
        } else {
            32
        }
    }

    /// Computes what `s_checksum` should be.
    pub fn checksum(&self) -> u32 {
        crc32c(!0, &self.bytes()[..0x3FC])
    }

    /// Lists the features by their mke2fs names; bits without one as FEATURE_C12 and the like.
    pub fn feature_names(&self) -> Vec<String> {
        self.name_bits([!0; 3])
    }

    /// Lists the features with which the filesystem has to keep its size, by name.
    pub fn features_in_the_way(&self) -> Vec<String> {
        let mut names = self.name_bits(RESIZABLE.map(|known| !known));
        if self.has_compat(COMPAT_HAS_JOURNAL) && self.s_journal_inum() == 0 {
            names.push("external journal".into());
        }
        names
    }

    /// Lists the INCOMPAT features that are unknown: then not even the bitmaps can be trusted.
    pub fn unknown_incompat(&self) -> Vec<String> {
        let known = RESIZABLE[1] | INCOMPAT_META_BG;
        self.name_bits([0, !known, 0])
    }

    fn name_bits(&self, masks: [u32; 3]) -> Vec<String> {
        let words = [
            (self.s_feature_compat(), COMPAT_NAMES, 'C'),
            (self.s_feature_incompat(), INCOMPAT_NAMES, 'I'),
            (self.s_feature_ro_compat(), RO_COMPAT_NAMES, 'R'),
        ];
        let mut names = Vec::new();
        for ((word, table, letter), mask) in words.into_iter().zip(masks) {
            for bit in (0..32).filter(|bit| word & mask & 1 << bit != 0) {
                let name = table.iter().find(|(value, _)| *value == 1 << bit);
                names.push(name.map_or_else(
                    || format!("FEATURE_{letter}{bit}"),
                    |(_, name)| (*name).to_string(),
                ));
            }
        }
        names
    }
}

impl Superblock<Vec<u8>> {
    /// Reads the primary superblock, or `None` if there is none.
    ///
    /// # Errors
    /// Only what the device fails with.
    pub fn read(device: &dyn ReadAt) -> Result<Option<Self>> {
        if device.len() < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64 {
            return Ok(None);
        }
        let superblock = Self(device.read_vec_at(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)?);
        Ok((superblock.s_magic() == MAGIC).then_some(superblock))
    }

    pub fn set_blocks_count(&mut self, blocks: BlockNr) {
        self.set_s_blocks_count_lo(blocks as u32);
        if self.has_incompat(INCOMPAT_64BIT) {
            self.set_s_blocks_count_hi((blocks >> 32) as u32);
        }
    }

    pub fn set_r_blocks_count(&mut self, blocks: BlockNr) {
        self.set_s_r_blocks_count_lo(blocks as u32);
        if self.has_incompat(INCOMPAT_64BIT) {
            self.set_s_r_blocks_count_hi((blocks >> 32) as u32);
        }
    }

    pub fn set_free_blocks_count(&mut self, blocks: BlockNr) {
        self.set_s_free_blocks_count_lo(blocks as u32);
        if self.has_incompat(INCOMPAT_64BIT) {
            self.set_s_free_blocks_count_hi((blocks >> 32) as u32);
        }
    }

    pub fn set_mmp_block(&mut self, block: BlockNr) {
        self.set_s_mmp_block_lo(block as u32);
        self.set_s_mmp_block_hi((block >> 32) as u32);
    }

    pub fn set_s_jnl_blocks(&mut self, bytes: &[u8; 68]) {
        self.0[0x10C..0x150].copy_from_slice(bytes);
    }

    pub fn set_incompat(&mut self, bit: u32) {
        self.set_s_feature_incompat(self.s_feature_incompat() | bit);
    }

    pub fn clear_incompat(&mut self, bit: u32) {
        self.set_s_feature_incompat(self.s_feature_incompat() & !bit);
    }

    pub fn clear_ro_compat(&mut self, bit: u32) {
        self.set_s_feature_ro_compat(self.s_feature_ro_compat() & !bit);
    }

    /// Sets `s_checksum` if the filesystem has `metadata_csum`.
    pub fn update_checksum(&mut self) {
        if self.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            let checksum = self.checksum();
            self.set_s_checksum(checksum);
        }
    }
}

/// The numbers of a filesystem's shape, checked against each other and the device's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per block: a power of two from 1024 to 65536.
    pub block_size: u64,
    /// Blocks in the filesystem; the device holds them all.
    pub blocks_count: BlockNr,
    /// Number of the block that group 0 starts with: 1 with 1 KiB blocks (without bigalloc), else 0.
    pub first_data_block: BlockNr,
    /// Blocks per group, at most 8 x block_size (clusters with bigalloc).
    pub blocks_per_group: u64,
    /// Blocks per cluster: 1 without bigalloc.
    pub cluster_ratio: u64,
    pub inodes_per_group: u32,
    /// Bytes per inode slot: a power of two from 128 to block_size.
    pub inode_size: u64,
    /// Bytes per group descriptor.
    pub desc_size: u64,
    pub groups: GroupNr,
    /// Blocks of an inode table.
    pub itable_blocks: u64,
    /// Blocks of the descriptor table.
    pub desc_blocks: u64,
    /// `s_reserved_gdt_blocks`.
    pub reserved_gdt_blocks: u64,
    pub sparse_super: bool,
    /// The only groups with copies, with `sparse_super2`; 0 for none.
    pub backup_groups: Option<[GroupNr; 2]>,
    /// With `meta_bg`: the first block of descriptors that lies in its meta group.
    pub first_meta_bg: Option<u64>,
}

impl Geometry {
    /// Checks the superblock's numbers.
    ///
    /// # Errors
    /// `Unsound` naming the field that cannot be.
    pub fn of<T: AsRef<[u8]>>(superblock: &Superblock<T>, device_len: u64) -> Result<Self> {
        let bad = |what: String| Err(Error::unsound(format!("ext4 superblock: {what}")));
        if superblock.s_log_block_size() > 6 {
            return bad(format!(
                "s_log_block_size is {}",
                superblock.s_log_block_size()
            ));
        }
        if superblock.s_rev_level() > 1 {
            return bad(format!("s_rev_level is {}", superblock.s_rev_level()));
        }
        let block_size = 1024u64 << superblock.s_log_block_size();
        let bigalloc = superblock.has_ro_compat(RO_COMPAT_BIGALLOC);
        let cluster_log = superblock.s_log_cluster_size();
        let cluster_ratio = if bigalloc {
            match cluster_log.checked_sub(superblock.s_log_block_size()) {
                Some(shift @ 0..=20) => 1u64 << shift,
                _ => return bad(format!("s_log_cluster_size is {cluster_log}")),
            }
        } else {
            1
        };
        let first_data_block = u64::from(superblock.s_first_data_block());
        if first_data_block != u64::from(block_size == 1024 && cluster_ratio == 1) {
            return bad(format!("s_first_data_block is {first_data_block}"));
        }
        let blocks_per_group = u64::from(superblock.s_blocks_per_group());
        let per_group_max = 8 * block_size * cluster_ratio;
        if blocks_per_group < 256.min(per_group_max)
            || blocks_per_group > per_group_max
            || !blocks_per_group.is_multiple_of(8 * cluster_ratio)
            || u64::from(superblock.s_clusters_per_group()) * cluster_ratio != blocks_per_group
        {
            return bad(format!("s_blocks_per_group is {blocks_per_group}"));
        }
        let blocks_count = superblock.blocks_count();
        if blocks_count > device_len / block_size {
            return Err(Error::unsound(format!(
                "ext4: the filesystem has {blocks_count} blocks of {block_size} bytes, but only {} bytes are there",
                device_len
            ))
            .with_hint("the image is cut off or the partition is too small: copy the card again, whole"));
        }
        if blocks_count <= first_data_block + 8 {
            return bad(format!("s_blocks_count is {blocks_count}"));
        }
        let inode_size = u64::from(superblock.inode_size());
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > block_size {
            return bad(format!("s_inode_size is {inode_size}"));
        }
        let inodes_per_group = superblock.s_inodes_per_group();
        let inodes_per_block = block_size / inode_size;
        if inodes_per_group == 0
            || u64::from(inodes_per_group) > 8 * block_size
            || !inodes_per_group.is_multiple_of(8)
            || u64::from(inodes_per_group) < inodes_per_block
        {
            return bad(format!("s_inodes_per_group is {inodes_per_group}"));
        }
        let desc_size = u64::from(superblock.desc_size());
        let is_64bit = superblock.has_incompat(INCOMPAT_64BIT);
        if is_64bit && (desc_size < 64 || desc_size > block_size || !desc_size.is_power_of_two()) {
            return bad(format!("s_desc_size is {desc_size}"));
        }
        // Without 64bit the kernel ignores the field, but e2fsck does not.
        let unused = u64::from(superblock.s_desc_size_raw());
        if !is_64bit && unused != 0 && !(unused.is_power_of_two() && unused <= 1024) {
            return bad(format!("s_desc_size is {unused}"));
        }
        let groups = (blocks_count - first_data_block).div_ceil(blocks_per_group);
        let Ok(groups) = GroupNr::try_from(groups) else {
            return bad(format!("{groups} block groups"));
        };
        if u64::from(groups) * u64::from(inodes_per_group) != u64::from(superblock.s_inodes_count())
        {
            return bad(format!(
                "s_inodes_count is {}, but {groups} groups of {inodes_per_group} were expected",
                superblock.s_inodes_count()
            ));
        }
        let first_ino = superblock.first_ino();
        if first_ino < 11 || first_ino > superblock.s_inodes_count() {
            return bad(format!("s_first_ino is {first_ino}"));
        }
        let desc_blocks = u64::from(groups).div_ceil(block_size / desc_size);
        let reserved_gdt_blocks = u64::from(superblock.s_reserved_gdt_blocks());
        if reserved_gdt_blocks > block_size / 4 {
            return bad(format!("s_reserved_gdt_blocks is {reserved_gdt_blocks}"));
        }
        if superblock.has_compat(COMPAT_RESIZE_INODE) && superblock.has_incompat(INCOMPAT_META_BG) {
            return bad("both resize_inode and meta_bg".into());
        }
        if !superblock.has_incompat(INCOMPAT_META_BG)
            && 1 + desc_blocks + reserved_gdt_blocks
                >= blocks_per_group.min(blocks_count - first_data_block)
        {
            return bad("the descriptors do not fit into group 0".into());
        }
        if superblock.s_log_groups_per_flex() > 31 {
            return bad(format!(
                "s_log_groups_per_flex is {}",
                superblock.s_log_groups_per_flex()
            ));
        }
        Ok(Self {
            block_size,
            blocks_count,
            first_data_block,
            blocks_per_group,
            cluster_ratio,
            inodes_per_group,
            inode_size,
            desc_size,
            groups,
            itable_blocks: u64::from(inodes_per_group).div_ceil(inodes_per_block),
            desc_blocks,
            reserved_gdt_blocks,
            sparse_super: superblock.has_ro_compat(RO_COMPAT_SPARSE_SUPER),
            backup_groups: superblock
                .has_compat(COMPAT_SPARSE_SUPER2)
                .then(|| superblock.s_backup_bgs()),
            first_meta_bg: superblock
                .has_incompat(INCOMPAT_META_BG)
                .then(|| u64::from(superblock.s_first_meta_bg())),
        })
    }

    /// Returns the first block of a group.
    pub fn group_start(&self, group: GroupNr) -> BlockNr {
        self.first_data_block + u64::from(group) * self.blocks_per_group
    }

    /// Returns the block after the last one of a group.
    pub fn group_end(&self, group: GroupNr) -> BlockNr {
        (self.group_start(group) + self.blocks_per_group).min(self.blocks_count)
    }

    /// Returns the group of a block, which must not be below the first data block.
    pub fn group_of(&self, block: BlockNr) -> GroupNr {
        // OK: blocks_count was checked to give a 32-bit number of groups.
        ((block - self.first_data_block) / self.blocks_per_group) as GroupNr
    }

    /// Returns the number of inodes.
    pub fn inodes_count(&self) -> u32 {
        // OK: checked against s_inodes_count, which has 32 bits.
        self.groups * self.inodes_per_group
    }

    /// Returns the group of an inode and its index there.
    pub fn inode_place(&self, inode: InodeNr) -> (GroupNr, u32) {
        let index = inode.0 - 1;
        (index / self.inodes_per_group, index % self.inodes_per_group)
    }

    /// Returns the inode at `index` of a group.
    pub fn inode_at(&self, group: GroupNr, index: u32) -> InodeNr {
        InodeNr(group * self.inodes_per_group + index + 1)
    }

    /// Does the group carry superblock and descriptors or a copy of them?
    pub fn has_backup(&self, group: GroupNr) -> bool {
        if let Some(backups) = self.backup_groups {
            return group == 0 || backups.contains(&group);
        }
        if !self.sparse_super || group <= 1 {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| {
            let mut power: u64 = base;
            while power < u64::from(group) {
                power *= base;
            }
            power == u64::from(group)
        })
    }

    /// Returns how many blocks superblock, descriptors and reserved descriptors take in a group.
    pub fn super_blocks(&self, group: GroupNr) -> u64 {
        u64::from(self.has_backup(group)) + self.descriptors_in(group).1 + self.reserved_in(group)
    }

    /// Returns which blocks of the descriptor table a group carries: the first one's index in the
    /// table and how many.
    pub fn descriptors_in(&self, group: GroupNr) -> (u64, u64) {
        let per_block = self.block_size / self.desc_size;
        let meta_group = u64::from(group) / per_block;
        match self.first_meta_bg {
            Some(first) if meta_group >= first => {
                // The first, second and last group of each meta group have its one block.
                let within = u64::from(group) % per_block;
                let carries = within <= 1 || within == per_block - 1;
                (meta_group, u64::from(carries))
            }
            Some(first) if self.has_backup(group) => (0, first.min(self.desc_blocks)),
            None if self.has_backup(group) => (0, self.desc_blocks),
            _ => (0, 0),
        }
    }

    /// Returns how many reserved descriptor blocks a group carries.
    pub fn reserved_in(&self, group: GroupNr) -> u64 {
        if self.has_backup(group) {
            self.reserved_gdt_blocks
        } else {
            0
        }
    }

    /// Returns where a group's superblock or copy would be; with bigalloc and blocks of 1 KiB,
    /// group 0 begins with the boot block.
    pub fn super_start(&self, group: GroupNr) -> BlockNr {
        let boot = group == 0 && self.block_size == 1024 && self.first_data_block == 0;
        self.group_start(group) + u64::from(boot)
    }

    /// Returns the shape after a change to `blocks_count` blocks with `reserved` reserved GDT blocks.
    #[must_use]
    pub fn resized(&self, blocks_count: BlockNr) -> Self {
        let mut new = self.clone();
        new.blocks_count = blocks_count;
        // OK: the callers' sizes are bounded; see Geometry::of for the same division.
        new.groups =
            (blocks_count - self.first_data_block).div_ceil(self.blocks_per_group) as GroupNr;
        new.desc_blocks = u64::from(new.groups).div_ceil(self.block_size / self.desc_size);
        new
    }

    /// Returns the byte offset of a block.
    pub fn offset(&self, block: BlockNr) -> u64 {
        block * self.block_size
    }

    /// Returns the byte range of `count` blocks.
    pub fn bytes(&self, block: BlockNr, count: u64) -> std::ops::Range<u64> {
        self.offset(block)..self.offset(block + count)
    }
}

/// A superblock, its validated numbers and its checksum seeds: what every part needs.
#[derive(Clone, Debug)]
pub struct Super {
    pub superblock: Superblock,
    pub geometry: Geometry,
    pub checksums: Checksums,
}

impl Super {
    /// Reads and validates; `None` if there is no ext superblock.
    ///
    /// # Errors
    /// `Unsound` for a bad checksum or impossible numbers; what the device fails with.
    pub fn read(device: &dyn ReadAt) -> Result<Option<Self>> {
        let Some(superblock) = Superblock::read(device)? else {
            return Ok(None);
        };
        if superblock.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            if superblock.s_checksum_type() != 1 {
                return Err(Error::unsound(format!(
                    "ext4 superblock: s_checksum_type is {}",
                    superblock.s_checksum_type()
                )));
            }
            if superblock.s_checksum() != superblock.checksum() {
                return Err(Error::unsound(
                    "ext4 superblock: its checksum does not match",
                ));
            }
        }
        let geometry = Geometry::of(&superblock, device.len())?;
        let checksums = Checksums::of(&superblock);
        Ok(Some(Self {
            superblock,
            geometry,
            checksums,
        }))
    }
}
