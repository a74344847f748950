//! Inodes: slots of `s_inode_size` bytes in the inode tables.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/inodes.rst.

use crate::ext4::format::checksum::Checksums;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::raw::{join, le_fields};
use crate::ext4::format::superblock::{INCOMPAT_64BIT, INCOMPAT_EA_INODE, RO_COMPAT_HUGE_FILE};
use crate::units::{BlockNr, InodeNr};

pub const BAD_INO: InodeNr = InodeNr(1);
pub const ROOT_INO: InodeNr = InodeNr(2);
pub const RESIZE_INO: InodeNr = InodeNr(7);
pub const JOURNAL_INO: InodeNr = InodeNr(8);

pub const S_IFMT: u16 = 0xF000;
pub const S_IFSOCK: u16 = 0xC000;
pub const S_IFLNK: u16 = 0xA000;
pub const S_IFREG: u16 = 0x8000;
pub const S_IFBLK: u16 = 0x6000;
pub const S_IFDIR: u16 = 0x4000;
pub const S_IFCHR: u16 = 0x2000;
pub const S_IFIFO: u16 = 0x1000;

pub const ENCRYPT_FL: u32 = 0x800;
pub const INDEX_FL: u32 = 0x1000;
pub const HUGE_FILE_FL: u32 = 0x40000;
pub const EXTENTS_FL: u32 = 0x80000;
pub const VERITY_FL: u32 = 0x100000;
pub const EA_INODE_FL: u32 = 0x200000;
pub const INLINE_DATA_FL: u32 = 0x10000000;
pub const PROJINHERIT_FL: u32 = 0x20000000;
pub const CASEFOLD_FL: u32 = 0x40000000;

/// Where `i_block` begins in the slot.
pub const I_BLOCK: usize = 0x28;
/// Bytes of `i_block`.
pub const I_BLOCK_SIZE: usize = 60;

/// Returns what a directory entry says of a file of this mode (`file_type`), 0 for an unknown kind.
pub fn file_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// The bytes of one inode slot, with its fields by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode<T = Vec<u8>>(pub T);

le_fields!(Inode {
    i_mode set_i_mode u16 0x00;
    i_uid_lo set_i_uid_lo u16 0x02;
    i_size_lo set_i_size_lo u32 0x04;
    i_atime set_i_atime u32 0x08;
    i_ctime set_i_ctime u32 0x0C;
    i_mtime set_i_mtime u32 0x10;
    i_dtime set_i_dtime u32 0x14;
    i_gid_lo set_i_gid_lo u16 0x18;
    i_links_count set_i_links_count u16 0x1A;
    i_blocks_lo set_i_blocks_lo u32 0x1C;
    i_flags set_i_flags u32 0x20;
    i_version set_i_version u32 0x24;
    i_generation set_i_generation u32 0x64;
    i_file_acl_lo set_i_file_acl_lo u32 0x68;
    i_size_high set_i_size_high u32 0x6C;
    i_blocks_high set_i_blocks_high u16 0x74;
    i_file_acl_high set_i_file_acl_high u16 0x76;
    i_uid_high set_i_uid_high u16 0x78;
    i_gid_high set_i_gid_high u16 0x7A;
    i_checksum_lo set_i_checksum_lo u16 0x7C;
});

impl<T: AsRef<[u8]>> Inode<T> {
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// Returns the kind of file, the `S_IFMT` part of the mode.
    pub fn format(&self) -> u16 {
        self.i_mode() & S_IFMT
    }

    pub fn is_dir(&self) -> bool {
        self.format() == S_IFDIR
    }

    pub fn has_flag(&self, flag: u32) -> bool {
        self.i_flags() & flag != 0
    }

    /// Returns the size in bytes (the high word counts for every kind of file).
    pub fn size(&self) -> u64 {
        join(self.i_size_high(), self.i_size_lo())
    }

    pub fn i_block(&self) -> &[u8] {
        &self.bytes()[I_BLOCK..I_BLOCK + I_BLOCK_SIZE]
    }

    /// Returns `i_extra_isize`: how many bytes past the first 128 hold fields; 0 in small slots.
    pub fn extra_isize(&self) -> u16 {
        if self.bytes().len() > 130 {
            crate::ext4::format::raw::le16(self.bytes(), 0x80)
        } else {
            0
        }
    }

    /// Returns `i_projid`, 0 where the slot has none.
    pub fn projid(&self) -> u32 {
        if self.extra_isize() >= 32 && self.bytes().len() >= 0xA0 {
            crate::ext4::format::raw::le32(self.bytes(), 0x9C)
        } else {
            0
        }
    }

    pub fn uid(&self) -> u32 {
        u32::from(self.i_uid_high()) << 16 | u32::from(self.i_uid_lo())
    }

    pub fn gid(&self) -> u32 {
        u32::from(self.i_gid_high()) << 16 | u32::from(self.i_gid_lo())
    }

    /// Returns the xattr block, 0 for none.
    pub fn file_acl(&self, fs: &Super) -> BlockNr {
        let high = if fs.superblock.has_incompat(INCOMPAT_64BIT) {
            u32::from(self.i_file_acl_high())
        } else {
            0
        };
        join(high, self.i_file_acl_lo())
    }

    /// Returns `i_blocks` in units of 512 bytes, with what `huge_file` makes of it.
    pub fn blocks_512(&self, fs: &Super) -> u64 {
        if !fs.superblock.has_ro_compat(RO_COMPAT_HUGE_FILE) {
            return u64::from(self.i_blocks_lo());
        }
        let blocks = join(u32::from(self.i_blocks_high()), self.i_blocks_lo());
        if self.has_flag(HUGE_FILE_FL) {
            blocks * (fs.geometry.block_size / 512)
        } else {
            blocks
        }
    }

    /// Is this the slot of a symlink whose target lies in `i_block`?
    pub fn is_fast_symlink(&self, fs: &Super) -> bool {
        if self.format() != S_IFLNK || self.has_flag(INLINE_DATA_FL | EXTENTS_FL) {
            return false;
        }
        // The blocks of its attributes' inodes count as its own there, so only the length tells.
        // e2fsck sees it so only where there is an attribute block, and finds damage elsewhere.
        if fs.superblock.has_incompat(INCOMPAT_EA_INODE) && self.file_acl(fs) != 0 {
            return (1..I_BLOCK_SIZE as u64).contains(&self.size());
        }
        let xattr = if self.file_acl(fs) != 0 {
            fs.geometry.block_size * fs.geometry.cluster_ratio / 512
        } else {
            0
        };
        self.blocks_512(fs) == xattr && self.size() < I_BLOCK_SIZE as u64
    }

    /// Does `i_block` hold pointers or extents (and not a target, a device number or data)?
    pub fn has_block_map(&self, fs: &Super) -> bool {
        match self.format() {
            S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => false,
            _ if self.has_flag(INLINE_DATA_FL) => false,
            _ => !self.is_fast_symlink(fs),
        }
    }

    /// Has the slot room for the checksum's high half?
    fn has_checksum_hi(&self) -> bool {
        self.extra_isize() >= 4
    }

    /// Computes what the 32-bit checksum should be.
    fn checksum(&self, checksums: &Checksums, number: InodeNr) -> u32 {
        const LO: usize = 0x7C;
        const HI: usize = 0x82;
        let bytes = self.bytes();
        let mut crc = checksums.inode_seed(number, self.i_generation());
        crc = crc32c(crc, &bytes[..LO]);
        crc = crc32c(crc, &[0; 2]);
        if !self.has_checksum_hi() {
            return crc32c(crc, &bytes[LO + 2..]);
        }
        crc = crc32c(crc, &bytes[LO + 2..HI]);
        crc = crc32c(crc, &[0; 2]);
        crc32c(crc, &bytes[HI + 2..])
    }

    /// Does the stored checksum match (always true without `metadata_csum`)?
    pub fn checksum_matches(&self, checksums: &Checksums, number: InodeNr) -> bool {
        if !checksums.enabled() || crate::io::is_zero(self.bytes()) {
            return true;
        }
        let expected = self.checksum(checksums, number);
        let high = self
            .has_checksum_hi()
            .then(|| crate::ext4::format::raw::le16(self.bytes(), 0x82));
        self.i_checksum_lo() == expected as u16
            && high.is_none_or(|high| high == (expected >> 16) as u16)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Inode<T> {
    pub fn i_block_mut(&mut self) -> &mut [u8] {
        &mut self.0.as_mut()[I_BLOCK..I_BLOCK + I_BLOCK_SIZE]
    }

    pub fn set_size(&mut self, size: u64) {
        self.set_i_size_lo(size as u32);
        self.set_i_size_high((size >> 32) as u32);
    }

    pub fn set_file_acl(&mut self, fs: &Super, block: BlockNr) {
        self.set_i_file_acl_lo(block as u32);
        if fs.superblock.has_incompat(INCOMPAT_64BIT) {
            self.set_i_file_acl_high((block >> 32) as u16);
        }
    }

    /// Stores `i_blocks`, given in units of 512 bytes, in the unit the inode uses.
    pub fn set_blocks_512(&mut self, fs: &Super, count: u64) {
        let huge = fs.superblock.has_ro_compat(RO_COMPAT_HUGE_FILE);
        let stored = if huge && self.has_flag(HUGE_FILE_FL) {
            count / (fs.geometry.block_size / 512)
        } else {
            count
        };
        self.set_i_blocks_lo(stored as u32);
        if huge {
            self.set_i_blocks_high((stored >> 32) as u16);
        }
    }

    /// Stores a new checksum if the filesystem has `metadata_csum`. An all-zero slot stays so.
    pub fn update_checksum(&mut self, checksums: &Checksums, number: InodeNr) {
        if !checksums.enabled() || crate::io::is_zero(self.bytes()) {
            return;
        }
        let checksum = self.checksum(checksums, number);
        self.set_i_checksum_lo(checksum as u16);
        if self.has_checksum_hi() {
            crate::ext4::format::raw::put16(self.0.as_mut(), 0x82, (checksum >> 16) as u16);
        }
    }
}
