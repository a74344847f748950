//! The checksums of ext4's metadata: crc32c (and crc16 for descriptors with `uninit_bg` alone).
//!
//! The format starts a crc32c with all ones and stores it without the usual final inversion; the
//! crc32c crate does both inversions, so they are undone here.

use crate::ext4::format::crc::crc32c;
use crate::ext4::format::superblock::Superblock;
use crate::ext4::format::superblock::{INCOMPAT_CSUM_SEED, RO_COMPAT_METADATA_CSUM};
use crate::units::InodeNr;

/// What the metadata checksums of one filesystem start from.
#[derive(Clone, Copy, Debug)]
pub struct Checksums {
    /// The filesystem's seed if it has `metadata_csum`.
    seed: Option<u32>,
}

impl Checksums {
    pub fn of<T: AsRef<[u8]>>(superblock: &Superblock<T>) -> Self {
        let seed = superblock.has_ro_compat(RO_COMPAT_METADATA_CSUM).then(|| {
            if superblock.has_incompat(INCOMPAT_CSUM_SEED) {
                superblock.s_checksum_seed()
            } else {
                crc32c(!0, superblock.s_uuid())
            }
        });
        Self { seed }
    }

    /// Does the filesystem have `metadata_csum`?
    pub fn enabled(&self) -> bool {
        self.seed.is_some()
    }

    /// Returns the filesystem's seed; without `metadata_csum` it is never compared.
    pub fn seed(&self) -> u32 {
        self.seed.unwrap_or(!0)
    }

    /// Returns the seed of everything that belongs to one inode.
    pub fn inode_seed(&self, number: InodeNr, generation: u32) -> u32 {
        let seed = crc32c(self.seed(), &number.0.to_le_bytes());
        crc32c(seed, &generation.to_le_bytes())
    }

    /// Returns the checksum of an inode or block bitmap; `bytes` is the part that counts
    /// (`inodes_per_group / 8` or `clusters_per_group / 8` bytes).
    pub fn bitmap(&self, bytes: &[u8]) -> u32 {
        crc32c(self.seed(), bytes)
    }

    /// Returns the checksum of an xattr block at `block`, with its checksum field read as zero.
    pub fn xattr_block(&self, block: u64, bytes: &[u8]) -> u32 {
        const H_CHECKSUM: usize = 16;
        let mut crc = crc32c(self.seed(), &block.to_le_bytes());
        crc = crc32c(crc, &bytes[..H_CHECKSUM]);
        crc = crc32c(crc, &[0; 4]);
        crc32c(crc, &bytes[H_CHECKSUM + 4..])
    }
}
