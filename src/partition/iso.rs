//! ISO images that are disks as well (isohybrid, grub-mkrescue): made to be written byte for byte.
//!
//! ```text
//! 0 MBR, maybe a GPT │ 32768 volume descriptor: 01 "CD001" 01 … 40 label(32) … 80 blocks(LE32) │ …
//! ```
//! The tables describe parts of the ISO's own filesystem, overlap it or each other, and boot loaders
//! point at places within it: nothing may move or grow.
//!
//! Decisions: the descriptor counts if a partition covers it, or if there is no table. What an older
//! stick left before the first partition of a later table is no ISO.

use crate::error::{ErrorKind, Result};
use crate::io::ReadAt;
use crate::partition::{PartitionTable, mbr};

/// Where the first volume descriptor is.
const DESCRIPTOR: u64 = 32768;
/// Bytes of a block.
const BLOCK: u64 = 2048;

/// An ISO image on a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Iso {
    /// Untrusted text.
    pub label: Option<String>,
    /// Where the filesystem and all that the tables name end; at most the disk's length.
    pub end: u64,
}

impl Iso {
    /// Finds an ISO that takes up `disk`; `None` if something else does.
    ///
    /// # Errors
    /// What the disk fails with, but for `Io`: what cannot be read is no ISO.
    pub fn find(disk: &dyn ReadAt) -> Result<Option<Self>> {
        match Self::read(disk) {
            Err(error) if error.kind() == ErrorKind::Io => Ok(None),
            other => other,
        }
    }

    fn read(disk: &dyn ReadAt) -> Result<Option<Self>> {
        if disk.len() < DESCRIPTOR + BLOCK {
            return Ok(None);
        }
        let descriptor = disk.read_vec_at(DESCRIPTOR, BLOCK as usize)?;
        if !descriptor.starts_with(b"\x01CD001\x01") {
            return Ok(None);
        }
        let mut sector = [0; mbr::SECTOR as usize];
        disk.read_exact_at(0, &mut sector)?;
        let entries = mbr::extents(&sector);
        let mut end = u64::from(super::u32_at(&descriptor, 80)) * BLOCK;
        let mut covered = entries.is_empty() && !mbr::has_protective_entry(&sector);
        for range in &entries {
            covered |= range.contains(&DESCRIPTOR);
            end = end.max(range.end);
        }
        if let Ok(Some(table)) = PartitionTable::read(disk) {
            for partition in table.partitions() {
                let range = partition.range;
                covered |= (range.start..range.end).contains(&DESCRIPTOR);
                end = end.max(range.end);
            }
            let tables = table.table_ranges();
            end = tables.iter().map(|range| range.end).fold(end, u64::max);
        }
        let label = String::from_utf8_lossy(&descriptor[40..72]);
        let label = label.trim_end_matches([' ', '\0']);
        Ok(covered.then(|| Self {
            label: (!label.is_empty()).then(|| label.to_owned()),
            end: end.min(disk.len()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::WriteAt;
    use crate::io::memory::MemoryDisk;

    fn iso(entries: &[(u8, u32, u32)]) -> MemoryDisk {
        let disk = MemoryDisk::new(4 << 20);
        disk.write_all_at(DESCRIPTOR, b"\x01CD001\x01").unwrap();
        disk.write_all_at(DESCRIPTOR + 40, b"DEBIAN 13     ")
            .unwrap();
        let blocks = 1000u32.to_le_bytes();
        disk.write_all_at(DESCRIPTOR + 80, &blocks).unwrap();
        for (slot, &(kind, start, sectors)) in entries.iter().enumerate() {
            let mut entry = [0; 16];
            entry[4] = kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
            disk.write_all_at(446 + 16 * slot as u64, &entry).unwrap();
        }
        disk.write_all_at(510, &[0x55, 0xaa]).unwrap();
        disk
    }

    #[test]
    fn an_iso_is_what_its_partitions_cover() {
        for (entries, end) in [
            (&[][..], Some(2_048_000)),
            (&[(0, 0, 4000), (0xef, 64, 100)], Some(2_048_000)),
            (&[(0x17, 64, 5000)], Some(5064 * 512)),
            (&[(0x83, 64, 4000), (0xef, 4100, 8000)], Some(4 << 20)),
            // Of a stick that was partitioned later.
            (&[(0x83, 2048, 6000)], None),
            // A GPT that is not there covers nothing.
            (&[(0xee, 1, 8000)], None),
        ] {
            let found = Iso::find(&iso(entries)).unwrap();
            assert_eq!(found.as_ref().map(|iso| iso.end), end, "{entries:?}");
            if let Some(found) = found {
                assert_eq!(found.label.as_deref(), Some("DEBIAN 13"));
            }
        }
        assert_eq!(Iso::find(&MemoryDisk::new(33_000)).unwrap(), None);
        assert_eq!(Iso::find(&MemoryDisk::new(4 << 20)).unwrap(), None);
    }
}
