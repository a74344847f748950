//! MBR partition tables with logical partitions.
//!
//! ```text
//! sector 0   0 boot code ... 440 disk signature ... 446 four entries of 16 bytes ... 510 55 AA
//! entry      0 boot flag  1 CHS start  4 type  5 CHS end  8 start (LE32)  12 sectors (LE32)
//! ```
//! An extended partition (type 05, 0F, 85) starts with an EBR, a sector of the same shape. The
//! start of a data entry counts from its EBR; the start of the link to the next EBR counts from
//! the extended partition; the link's length spans the next EBR and its data. Numbers follow the
//! chain from 5 on, as in Linux (block/partitions/msdos.c), which also says that an entry is used
//! if it has a length, and that unfitting entries in an EBR's slots 3 and 4 are garbage.

mod layout;

use std::collections::HashSet;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, Window, is_zero};
use crate::partition::{
    Decoded, Partition, PartitionKind, find_overlap, past_the_end, put, u32_at,
};
use crate::units::ByteRange;

/// Bytes per sector.
pub(super) const SECTOR: u64 = 512;
/// Bytes per sector of devices on which only a GPT is supported.
const LARGE_SECTOR: u64 = 4096;
/// Linux numbers partitions up to 255.
const MAX_EBRS: usize = 256;
const PROTECTIVE: u8 = 0xEE;
/// What to do about a chain of EBRs that hides partitions.
const MEND: &str = "`sfdisk -d CARD >table` and `sfdisk CARD <table` write the chain anew";

pub(super) type Sector = [u8; SECTOR as usize];

/// One of a sector's four entries, decoded.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub flag: u8,
    pub type_byte: u8,
    pub start: u32,
    pub sectors: u32,
}

impl Entry {
    pub fn of(sector: &Sector, slot: usize) -> Self {
        let at = 446 + 16 * slot;
        Self {
            flag: sector[at],
            type_byte: sector[at + 4],
            start: u32_at(sector, at + 8),
            sectors: u32_at(sector, at + 12),
        }
    }

    pub fn is_used(&self) -> bool {
        self.sectors != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.type_byte, 0x05 | 0x0F | 0x85)
    }

    fn has_proper_flag(&self) -> bool {
        matches!(self.flag, 0 | 0x80)
    }

    /// First sector and the one behind the last, counted from `base`.
    fn extent(&self, base: u64) -> (u64, u64) {
        // OK: `base` is a sector number of the disk, below 2^55.
        let start = base + u64::from(self.start);
        (start, start + u64::from(self.sectors))
    }
}

/// Sets where an entry starts and how long it is; all else stays.
pub(super) fn set_extent(sector: &mut Sector, slot: usize, start: u32, sectors: u32) {
    let at = 446 + 16 * slot;
    put(sector, at + 8, &start.to_le_bytes());
    put(sector, at + 12, &sectors.to_le_bytes());
}

fn is_signed(sector: &Sector) -> bool {
    sector[510..] == [0x55, 0xAA]
}

/// Refuses a link without a length that leads to an EBR with partitions: Linux does not follow it,
/// so an image would lack them in silence.
fn refuse_hidden(
    name: &str,
    lba: u64,
    target: u64,
    container: Range<u64>,
    disk: &dyn ReadAt,
) -> Result<()> {
    if !container.contains(&target) {
        return Ok(());
    }
    let mut sector = [0; SECTOR as usize];
    disk.read_exact_at(target * SECTOR, &mut sector)?;
    if !is_signed(&sector) || !names_partitions(&sector, target, container) {
        return Ok(());
    }
    Err(Error::unsound(format!(
        "the EBR of {name} at sector {lba} leads to partitions behind sector {target}, but with a length of 0"
    ))
    .with_hint(MEND))
}

/// Could a sector without a signature be an EBR all the same? One of the two entries that count
/// then is in order and in the extended partition.
fn names_partitions(sector: &Sector, lba: u64, container: Range<u64>) -> bool {
    (0..2).map(|slot| Entry::of(sector, slot)).any(|entry| {
        let base = if entry.is_extended() {
            container.start
        } else {
            lba
        };
        let (start, end) = entry.extent(base);
        entry.is_used()
            && entry.has_proper_flag()
            && entry.type_byte != 0
            && start > lba
            && end <= container.end
    })
}

/// Is there nothing but zeros in these sectors, as far as is looked? Filesystems begin soon.
fn is_blank(disk: &dyn ReadAt, sectors: Range<u64>) -> Result<bool> {
    const LOOKED_AT: u64 = 64 << 20;
    const STEP: u64 = 1 << 20;
    let end = (sectors.end * SECTOR).min(sectors.start * SECTOR + LOOKED_AT);
    let mut at = sectors.start * SECTOR;
    while at < end {
        let len = STEP.min(end - at);
        if !is_zero(&disk.read_vec_at(at, len as usize)?) {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

pub(super) fn has_used_entry(sector: &Sector) -> bool {
    is_signed(sector) && (0..4).any(|slot| Entry::of(sector, slot).is_used())
}

/// Returns the bytes that the used entries name, sound or not, but for what guards a GPT.
pub(super) fn extents(sector: &Sector) -> Vec<Range<u64>> {
    if !is_signed(sector) {
        return Vec::new();
    }
    let entries = (0..4).map(|slot| Entry::of(sector, slot));
    entries
        .filter(|entry| entry.is_used() && entry.type_byte != PROTECTIVE)
        .map(|entry| entry.extent(0))
        // OK: 33 bits of sectors.
        .map(|(start, end)| start * SECTOR..end * SECTOR)
        .collect()
}

/// Is there an entry that guards a GPT, of any form?
pub(super) fn has_protective_entry(sector: &Sector) -> bool {
    is_signed(sector) && (0..4).any(|slot| Entry::of(sector, slot).type_byte == PROTECTIVE)
}

/// Is there an entry that guards a GPT in the form that Linux asks for?
pub(super) fn is_protective(sector: &Sector) -> bool {
    is_signed(sector)
        && (0..4)
            .map(|slot| Entry::of(sector, slot))
            .any(|entry| entry.type_byte == PROTECTIVE && entry.start == 1)
}

/// Is sector 0 a partition table, as the module's decisions say? It may still be damaged.
pub(super) fn is_table(sector: &Sector, disk: &dyn ReadAt) -> Result<bool> {
    if !has_used_entry(sector) {
        return Ok(false);
    }
    let proper = (0..4).all(|slot| Entry::of(sector, slot).has_proper_flag());
    let fits = check_primaries(sector, disk.len()).is_ok();
    match (proper, fits) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        _ => Ok(!is_bare_filesystem(sector, disk)?),
    }
}

/// Is the whole disk one filesystem, as its first sectors tell?
pub(super) fn is_bare_filesystem(sector: &Sector, disk: &dyn ReadAt) -> Result<bool> {
    let power_of_two =
        |value: u64, from: u64, to: u64| value.is_power_of_two() && (from..=to).contains(&value);
    let u16_at = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
    let fat = power_of_two(u16_at(11), 512, 4096)
        && power_of_two(u64::from(sector[13]), 1, 128)
        && u16_at(14) != 0
        && (1..=4).contains(&sector[16])
        && (sector[21] == 0xF0 || sector[21] >= 0xF8)
        && (u16_at(19) != 0 || u32_at(sector, 32) != 0);
    if fat || sector[3..].starts_with(b"EXFAT   ") || sector[3..].starts_with(b"NTFS    ") {
        return Ok(true);
    }
    if disk.len() < 2048 {
        return Ok(false);
    }
    let superblock = disk.read_vec_at(1024, 1024)?;
    let log_block_size = u32_at(&superblock, 24);
    Ok(superblock[56..58] == [0x53, 0xEF] && log_block_size <= 6 && u32_at(&superblock, 4) != 0)
}

/// Refuses a table whose numbers count in sectors of 4096 bytes, as Linux reads it on a device that
/// has such: read with 512, it would name the wrong bytes, and an image would lack the right ones.
/// It does if no partition starts with a filesystem in one unit, and one does in the other.
pub(super) fn refuse_large_sectors(sector: &Sector, disk: &dyn ReadAt) -> Result<()> {
    const FACTOR: u64 = LARGE_SECTOR / SECTOR;
    let entries: Vec<_> = (0..4)
        .map(|slot| Entry::of(sector, slot))
        .filter(|entry| entry.is_used() && !entry.is_extended())
        .map(|entry| entry.extent(0))
        .collect();
    let any = |factor: u64| -> Result<bool> {
        for &(start, end) in &entries {
            // OK: 33 bits of sectors of at most 4096 bytes.
            let range = ByteRange::new(start * SECTOR * factor, end * SECTOR * factor);
            if range.end > disk.len() {
                return Ok(false);
            }
            match starts_filesystem(&Window::new(disk, range)?) {
                Ok(true) => return Ok(true),
                // What cannot be read proves nothing.
                Err(error) if error.kind() != ErrorKind::Io => return Err(error),
                _ => {}
            }
        }
        Ok(false)
    };
    if any(1)? || !any(FACTOR)? {
        return Ok(());
    }
    Err(Error::unsupported(
        "this MBR counts in sectors of 4096 bytes; with those only a GPT is supported",
    ))
}

fn starts_filesystem(partition: &dyn ReadAt) -> Result<bool> {
    let mut sector = [0; SECTOR as usize];
    partition.read_exact_at(0, &mut sector)?;
    is_bare_filesystem(&sector, partition)
}

/// Do the used primary entries lie on the disk, behind sector 0, and apart?
fn check_primaries(sector: &Sector, disk_len: u64) -> Result<()> {
    let mut taken = vec![(0, 1, "the MBR".to_string())];
    for slot in 0..4 {
        let entry = Entry::of(sector, slot);
        if entry.is_used() {
            let name = format!("partition {}", slot + 1);
            let (start, end) = entry.extent(0);
            if end > disk_len / SECTOR {
                return Err(past_the_end(&name, u128::from(end * SECTOR), disk_len));
            }
            taken.push((start, end, name));
        }
    }
    match find_overlap(taken) {
        Some(overlap) => Err(Error::unsound(overlap)),
        None => Ok(()),
    }
}

/// Returns the end of what 32-bit sector numbers reach on a disk of `disk_len` bytes.
pub(super) fn usable_end(disk_len: u64) -> u64 {
    disk_len.min(u64::from(u32::MAX) * SECTOR)
}

/// An MBR and its EBRs, as they are on the disk.
#[derive(Clone, Debug)]
pub(super) struct Mbr {
    sector: Sector,
    containers: Vec<Container>,
    /// Where the logical partition of number 5 + index is described.
    logicals: Vec<Place>,
}

/// An extended partition, in sectors.
#[derive(Clone, Debug)]
struct Container {
    slot: usize,
    start: u64,
    end: u64,
    /// In chain order; the first is at `start`.
    ebrs: Vec<Ebr>,
}

#[derive(Clone, Debug)]
struct Ebr {
    lba: u64,
    sector: Sector,
    /// The slot that names the next EBR; in the last one it may name a sector that is none.
    link: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    container: usize,
    ebr: usize,
    slot: usize,
}

/// Decodes sector 0 and the chains behind it.
pub(super) fn decode(sector: &Sector, disk: &dyn ReadAt) -> Result<Decoded<Mbr>> {
    check_primaries(sector, disk.len())?;
    let mut mbr = Mbr {
        sector: *sector,
        containers: Vec::new(),
        logicals: Vec::new(),
    };
    let mut partitions = Vec::new();
    let mut warnings = Vec::new();
    for slot in 0..4 {
        let entry = Entry::of(sector, slot);
        if !entry.is_used() {
            continue;
        }
        if !entry.has_proper_flag() {
            warnings.push(format!(
                "partition {} has the unknown boot flag {:02x}",
                slot + 1,
                entry.flag
            ));
        }
        if entry.is_extended() {
            mbr.read_chain(disk, slot, &mut partitions, &mut warnings)?;
        } else {
            partitions.push(partition(slot as u32 + 1, entry, entry.extent(0), false));
        }
    }
    let ranges: Vec<_> = partitions.iter().map(|p| p.range).collect();
    if let Some(problem) = mbr.problem(&partitions, &ranges) {
        return Err(Error::unsound(problem));
    }
    Ok(Decoded {
        scheme: mbr,
        partitions,
        warnings,
    })
}

fn partition(number: u32, entry: Entry, (start, end): (u64, u64), logical: bool) -> Partition {
    Partition {
        number,
        range: ByteRange::new(start * SECTOR, end * SECTOR),
        kind: PartitionKind::Mbr {
            type_byte: entry.type_byte,
            active: entry.flag == 0x80,
        },
        logical,
    }
}

impl Mbr {
    /// Follows the EBRs of the extended partition in `slot`.
    fn read_chain(
        &mut self,
        disk: &dyn ReadAt,
        slot: usize,
        partitions: &mut Vec<Partition>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let (start, end) = Entry::of(&self.sector, slot).extent(0);
        let name = format!("extended partition {}", slot + 1);
        let mut container = Container {
            slot,
            start,
            end,
            ebrs: Vec::new(),
        };
        let mut seen = HashSet::new();
        let mut next = Some((start, end));
        while let Some((lba, area_end)) = next {
            if !seen.insert(lba) {
                return Err(Error::unsound(format!(
                    "the chain of {name} comes back to sector {lba}"
                )));
            }
            if seen.len() > MAX_EBRS {
                return Err(Error::unsound(format!(
                    "the chain of {name} has more than {MAX_EBRS} EBRs"
                )));
            }
            if lba < start || lba >= end {
                return Err(Error::unsound(format!(
                    "the chain of {name} leaves it, to sector {lba}"
                )));
            }
            let mut sector = [0; SECTOR as usize];
            disk.read_exact_at(lba * SECTOR, &mut sector)?;
            if !is_signed(&sector) {
                if names_partitions(&sector, lba, start..end) {
                    // Nobody sees those partitions, so an image would lack them in silence.
                    return Err(Error::unsound(format!(
                        "the EBR of {name} at sector {lba} names partitions, but lacks its signature 55 AA"
                    ))
                    .with_hint(MEND));
                }
                if container.ebrs.is_empty() && !is_blank(disk, start..end)? {
                    return Err(Error::unsound(format!(
                        "{name} has no EBR at its start, sector {lba}, but is not empty: what its partitions were is lost"
                    )));
                }
                warnings.push(format!(
                    "the chain of {name} ends at sector {lba}, which is not an EBR"
                ));
                break;
            }
            let ebr = container.ebrs.len();
            let mut link = None;
            for slot in 0..4 {
                let entry = Entry::of(&sector, slot);
                if !entry.is_used() {
                    if slot < 2 && entry.is_extended() && entry.start != 0 {
                        refuse_hidden(&name, lba, entry.extent(start).0, start..end, disk)?;
                    }
                    continue;
                }
                if entry.is_extended() {
                    link = link.or(Some(slot));
                    continue;
                }
                let extent = entry.extent(lba);
                let number = 5 + self.logicals.len() as u32;
                if extent.0 < start || extent.1 > end {
                    if slot >= 2 {
                        continue;
                    }
                    return Err(Error::unsound(format!(
                        "logical partition {number} (sectors {} to {}) is not inside {name} (sectors {start} to {})",
                        extent.0,
                        extent.1 - 1,
                        end - 1
                    )));
                }
                if slot >= 2 && extent.1 > area_end {
                    continue;
                }
                self.logicals.push(Place {
                    container: self.containers.len(),
                    ebr,
                    slot,
                });
                partitions.push(partition(number, entry, extent, true));
            }
            next = link.map(|slot| Entry::of(&sector, slot).extent(start));
            container.ebrs.push(Ebr { lba, sector, link });
        }
        self.containers.push(container);
        Ok(())
    }

    /// Returns why this table with its partitions at `ranges` is not sound, if so.
    fn problem(&self, partitions: &[Partition], ranges: &[ByteRange]) -> Option<String> {
        let mut outer = vec![(0, 1, "the MBR".to_string())];
        let mut inner = Vec::new();
        for (partition, range) in partitions.iter().zip(ranges) {
            let item = (
                range.start / SECTOR,
                range.end / SECTOR,
                format!("partition {}", partition.number),
            );
            if partition.logical {
                inner.push(item);
            } else {
                outer.push(item);
            }
        }
        for container in &self.containers {
            let name = format!("extended partition {}", container.slot + 1);
            outer.push((container.start, container.end, name.clone()));
            for ebr in &container.ebrs {
                inner.push((ebr.lba, ebr.lba + 1, format!("an EBR of {name}")));
            }
        }
        find_overlap(outer).or_else(|| find_overlap(inner))
    }

    pub fn signature(&self) -> u32 {
        u32_at(&self.sector, 440)
    }

    pub fn extended(&self) -> Vec<(u32, ByteRange)> {
        self.containers
            .iter()
            .map(|container| {
                let range = ByteRange::new(container.start * SECTOR, container.end * SECTOR);
                (container.slot as u32 + 1, range)
            })
            .collect()
    }

    pub fn table_ranges(&self) -> Vec<ByteRange> {
        let ebrs = self.containers.iter().flat_map(|c| &c.ebrs);
        std::iter::once(0)
            .chain(ebrs.map(|ebr| ebr.lba))
            .map(|lba| ByteRange::new(lba * SECTOR, (lba + 1) * SECTOR))
            .collect()
    }

    /// See [`PartitionTable::obstacle`](crate::partition::PartitionTable::obstacle).
    pub fn obstacles(&self) -> Vec<u64> {
        let mut sectors = Vec::new();
        for (index, container) in self.containers.iter().enumerate() {
            let members: Vec<_> = self
                .logicals
                .iter()
                .filter(|place| place.container == index)
                .collect();
            if members.is_empty() {
                sectors.push(container.start);
            }
            for (at, ebr) in container.ebrs.iter().enumerate() {
                let data = members.iter().find(|place| place.ebr >= at).map(|place| {
                    let owner = &container.ebrs[place.ebr];
                    Entry::of(&owner.sector, place.slot).extent(owner.lba).0
                });
                if data.is_none_or(|start| start < ebr.lba) {
                    sectors.push(ebr.lba);
                }
            }
        }
        sectors.into_iter().map(|lba| lba * SECTOR).collect()
    }

    fn place(&self, partition: &Partition) -> Option<Place> {
        let index = (partition.number as usize).checked_sub(5)?;
        self.logicals.get(index).copied()
    }

    /// See [`PartitionTable::lead_in`](crate::partition::PartitionTable::lead_in). EBRs without data move
    /// with the next one that has some.
    pub fn lead_in(&self, partition: &Partition) -> u64 {
        let Some(place) = self.place(partition) else {
            return 0;
        };
        let has_data = |ebr: usize| {
            self.logicals
                .iter()
                .any(|other| other.container == place.container && other.ebr == ebr)
        };
        let ebrs = &self.containers[place.container].ebrs;
        let mut first = place.ebr;
        while first > 0 && !has_data(first - 1) {
            first -= 1;
        }
        let start = partition.range.start / SECTOR;
        let before = ebrs[first..=place.ebr].iter().map(|ebr| ebr.lba);
        let lowest = before.filter(|&lba| lba < start).min().unwrap_or(start);
        (start - lowest) * SECTOR
    }
}
