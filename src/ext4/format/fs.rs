//! What every part needs to know of a filesystem.

use crate::error::{Error, Result};
use crate::ext4::format::checksum::Checksums;
use crate::ext4::format::geometry::Geometry;
use crate::ext4::format::superblock::{RO_COMPAT_METADATA_CSUM, Superblock};
use crate::io::ReadAt;

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
