//! The superblock: 1024 bytes at byte 1024 of the filesystem, with copies in backup groups.
//!
//! Fields carry the kernel's names. Specification: the kernel's
//! Documentation/filesystems/ext4/super.rst. A [`Superblock`] is only bytes; [`Geometry`](crate::ext4::format::geometry::Geometry) holds
//! the numbers that were validated against each other and against the device's size.

use crate::error::Result;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::raw::{join, le_fields};
use crate::io::ReadAt;
use crate::units::{BlockNr, uuid_text};

/// Where the primary superblock lies, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Its size in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// `s_magic`.
pub const MAGIC: u16 = 0xEF53;

/// `s_creator_os` of the Hurd, which uses some of the inodes' fields for something else.
pub const OS_HURD: u32 = 1;

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
        uuid_text(self.s_uuid())
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
            crate::ext4::format::raw::le32(self.bytes(), 0x24C),
            crate::ext4::format::raw::le32(self.bytes(), 0x250),
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
