//! The sectors of a GPT whose partitions lie elsewhere, or whose disk has another length.

use super::super::mbr::{Entry, SECTOR, Sector, set_extent};
use super::super::{DiskLen, Partition, Patches, no_room, put};
use super::{Gpt, Header, find_overlap};
use crate::error::{Error, Result};
use crate::io::RangeSet;
use crate::units::ByteRange;

/// The sector numbers of the new table.
struct Places {
    /// How many sectors the disk has.
    sectors: u64,
    last_usable: u64,
    primary_array: u64,
    backup_array: u64,
}

impl Gpt {
    /// See [`PartitionTable::relayout`](super::super::PartitionTable::relayout).
    pub fn relayout(&self, old: &[Partition], new: &[ByteRange], len: DiskLen) -> Result<Patches> {
        let places = self.places(old, new, len)?;
        let array = self.new_array(old, new);
        let base = self.header();
        let backup_base = match &self.backup {
            Some(backup) if backup.agrees(base) => backup,
            _ => base,
        };
        let last = places.sectors - 1;
        let primary = new_header(base, &array, &places, 1, last, places.primary_array);
        let backup = new_header(backup_base, &array, &places, last, 1, places.backup_array);
        let size = self.sector_size();
        let patches = vec![
            (0, self.new_mbr(old, new, &places)?.to_vec()),
            (size, primary),
            (places.primary_array * size, array.clone()),
            (places.backup_array * size, array),
            (last * size, backup),
        ];
        Ok(Patches {
            disk_len: match len {
                DiskLen::Exact(len) => len,
                DiskLen::Minimal => places.sectors * size,
            },
            stale: self.stale(old, &patches, places.sectors * size),
            sectors: patches,
        })
    }

    fn places(&self, old: &[Partition], new: &[ByteRange], len: DiskLen) -> Result<Places> {
        let header = self.header();
        let size = self.sector_size();
        let mut taken = vec![(0, header.first_usable(), "the GPT".to_string())];
        // Behind the last partition, or at least one usable sector.
        let mut end = header.first_usable().saturating_add(1);
        for (partition, range) in old.iter().zip(new) {
            let name = format!("partition {}", partition.number);
            taken.push((range.start / size, range.end / size, name));
            end = end.max(range.end / size);
        }
        if let Some(overlap) = find_overlap(taken) {
            return Err(Error::usage(format!("in the new layout, {overlap}")));
        }
        let table = header.array_sectors() + 1;
        let needed = end.saturating_add(table);
        let needed_len = needed.saturating_mul(size);
        let sectors = match len {
            DiskLen::Exact(len) => len / size,
            DiskLen::Minimal => needed,
        };
        if sectors < needed || needed_len == u64::MAX {
            return Err(no_room("the GPT", needed_len, sectors.saturating_mul(size)));
        }
        let primary_array = self.primary_array_lba.ok_or_else(|| {
            Error::unsupported("the primary GPT is damaged, and where its array was is not known")
                .with_hint("repair the table with gdisk first")
        })?;
        // A backup that is where it belongs stays as it is.
        let kept = self.backup.as_ref().filter(|backup| {
            backup.my_lba() == sectors - 1
                && backup.agrees(header)
                && end - 1 <= backup.last_usable()
        });
        Ok(Places {
            sectors,
            last_usable: kept.map_or(sectors - 1 - table, Header::last_usable),
            primary_array,
            backup_array: kept.map_or(sectors - table, Header::entries_lba),
        })
    }

    fn new_array(&self, old: &[Partition], new: &[ByteRange]) -> Vec<u8> {
        let size = self.sector_size();
        let mut array = self.array.clone();
        for (partition, range) in old.iter().zip(new) {
            let at = (partition.number as usize - 1) * self.header().entry_size() as usize;
            put(&mut array, at + 32, &(range.start / size).to_le_bytes());
            put(&mut array, at + 40, &(range.end / size - 1).to_le_bytes());
        }
        array
    }

    /// The protective entry spans the disk; in a hybrid MBR it may span less, and other entries
    /// may mirror partitions.
    fn new_mbr(&self, old: &[Partition], new: &[ByteRange], places: &Places) -> Result<Sector> {
        let size = self.sector_size();
        let mut mbr = self.mbr;
        let entries = [0, 1, 2, 3].map(|slot| Entry::of(&self.mbr, slot));
        let protective = |entry: &Entry| entry.type_byte == 0xEE;
        let hybrid = entries.iter().any(|e| e.is_used() && !protective(e));
        for (slot, entry) in entries.iter().enumerate() {
            let (start, sectors) = (u64::from(entry.start), u64::from(entry.sectors));
            if protective(entry) {
                let spans_disk = !hybrid || start + sectors > self.header().last_usable();
                let whole = (places.sectors - 1).min(u64::from(u32::MAX)) as u32;
                // All ones means "to the end" whatever the length: some tools write nothing else.
                if entry.start == 1 && spans_disk && entry.sectors != u32::MAX {
                    set_extent(&mut mbr, slot, 1, whole);
                }
                continue;
            }
            let mirrored = old.iter().zip(new).find(|(partition, _)| {
                entry.is_used()
                    && partition.range.start == start * size
                    && partition.range.len() == sectors * size
            });
            if let Some((partition, range)) = mirrored {
                let start = u32::try_from(range.start / size);
                let sectors = u32::try_from(range.len() / size);
                let (Ok(start), Ok(sectors)) = (start, sectors) else {
                    return Err(Error::unsupported(format!(
                        "the hybrid MBR cannot express the new place of partition {}",
                        partition.number
                    )));
                };
                set_extent(&mut mbr, slot, start, sectors);
            }
        }
        Ok(mbr)
    }

    /// Returns where a backup was that no longer is one: what the new table and the old
    /// partitions leave of it.
    fn stale(
        &self,
        old: &[Partition],
        patches: &[(u64, Vec<u8>)],
        disk_len: u64,
    ) -> Vec<ByteRange> {
        let mut stale = RangeSet::new();
        for range in self.backup.iter().flat_map(Header::ranges) {
            stale.insert(range.start..range.end.min(disk_len));
        }
        for partition in old {
            stale.remove(partition.range.start..partition.range.end);
        }
        for (offset, bytes) in patches {
            stale.remove(*offset..offset + bytes.len() as u64);
        }
        stale.remove(0..SECTOR);
        stale
            .iter()
            .map(|range| ByteRange::new(range.start, range.end))
            .collect()
    }
}

/// Patches the fields that say where things are, and both checksums.
fn new_header(
    base: &Header,
    array: &[u8],
    places: &Places,
    my_lba: u64,
    alternate_lba: u64,
    entries_lba: u64,
) -> Vec<u8> {
    let mut header = base.clone();
    put(&mut header.raw, 24, &my_lba.to_le_bytes());
    put(&mut header.raw, 32, &alternate_lba.to_le_bytes());
    put(&mut header.raw, 48, &places.last_usable.to_le_bytes());
    put(&mut header.raw, 72, &entries_lba.to_le_bytes());
    let array_crc = crc32fast::hash(&array[..header.array_bytes()]);
    put(&mut header.raw, 88, &array_crc.to_le_bytes());
    let crc = header.crc();
    put(&mut header.raw, 16, &crc.to_le_bytes());
    header.raw
}
