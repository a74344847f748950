//! Partition tables: what lies where on a disk, and which bytes a changed layout changes.
//!
//! Both formats are read and patched byte by byte. Nothing is ever re-encoded: a new layout
//! changes the fields that describe it, and every other byte (boot code, disk signature, GUIDs,
//! names, attributes, entry order, unused slots) stays.
//!
//! # Decisions
//! - **MBR or not.** A sector with `55 AA` is a partition table if its used entries (those with a
//!   length, as in Linux) lie on the disk, behind sector 0, and apart from each other, and every
//!   boot flag is 00 or 80. Otherwise, if the disk carries a filesystem without a table (a FAT,
//!   exFAT or NTFS boot sector, an ext superblock), it has no table. Otherwise entries that fit
//!   are believed in spite of odd boot flags (with a warning), entries that do not fit but have
//!   proper flags are a damaged table (`Unsound`), and odd flags on entries that do not fit are
//!   not a table. A table without any used entry counts as no table.
//! - **GPT or MBR.** As in Linux, a GPT counts if the MBR has an entry of type EE. Without such an
//!   entry a used MBR wins over a leftover GPT (with a warning), and a sound primary GPT with
//!   no entries in sector 0 is read as a GPT (with a warning).
//! - **MBR sectors are 512 bytes.** A table that counts in sectors of 4096 bytes, as filesystems
//!   at its partitions' starts tell, is refused (`Unsupported`).
//! - **CHS addresses stay.** Nothing that boots from a card reads them.

mod gpt;
mod iso;
mod mbr;
#[cfg(test)]
mod tests;

use std::fmt;

pub use iso::Iso;
use serde::{Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Overlay, ReadAt};
use crate::units::{ByteRange, round_down};

/// The end of a partition that grows is a multiple of this, so that no filesystem block is cut.
const END_ALIGNMENT: u64 = 4096;

/// The format of a partition table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    Mbr,
    Gpt,
}

/// A GUID as GPT stores it: the first three groups are little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, index) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
            .into_iter()
            .enumerate()
        {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[index])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a table says about a partition besides its place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionKind {
    Mbr {
        type_byte: u8,
        /// The boot flag is 80.
        active: bool,
    },
    Gpt {
        type_guid: Guid,
        unique_guid: Guid,
        attributes: u64,
        /// Untrusted text, decoded from UTF-16 with replacement characters.
        name: String,
    },
}

/// One partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Partition {
    /// As Linux numbers it: MBR slots 1 to 4, logical partitions from 5 in the order of their
    /// chain, GPT slots from 1.
    pub number: u32,
    /// Its bytes on the disk; never empty.
    pub range: ByteRange,
    pub kind: PartitionKind,
    /// Does it lie in an extended partition?
    pub logical: bool,
}

/// How long the disk of a new layout is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskLen {
    /// So many bytes: a card.
    Exact(u64),
    /// As short as the partitions and the table allow: an image.
    Minimal,
}

/// A changed layout.
#[derive(Debug)]
pub struct Layout {
    /// The table bytes that change, and zeros where a GPT backup table no longer is. Its base is
    /// the old disk, its length the new disk's. Those zeros may lie in space that a partition
    /// grew into, so merge the contents of partitions onto this overlay, never it onto them; new
    /// table bytes lie outside all partitions.
    pub overlay: Overlay,
    pub disk_len: u64,
    /// The new table, read back through the overlay.
    pub table: PartitionTable,
}

/// A sound partition table: its partitions lie on the disk, behind the table, and apart.
#[derive(Clone, Debug)]
pub struct PartitionTable {
    scheme: Scheme,
    partitions: Vec<Partition>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug)]
enum Scheme {
    Mbr(mbr::Mbr),
    Gpt(gpt::Gpt),
}

/// What one of the formats reads.
struct Decoded<T> {
    scheme: T,
    partitions: Vec<Partition>,
    warnings: Vec<String>,
}

/// What one of the formats writes.
#[derive(Debug, Default)]
struct Patches {
    disk_len: u64,
    /// Whole sectors.
    sectors: Vec<(u64, Vec<u8>)>,
    stale: Vec<ByteRange>,
}

impl PartitionTable {
    /// Reads the table of `disk`; `None` if it has none (see the module's decisions).
    ///
    /// # Errors
    /// `Unsound` if there is a table but it is damaged beyond its backup, or its partitions
    /// overlap or go past the end of the disk; `Unsupported` for an MBR of large sectors; `Io` if
    /// the disk fails.
    pub fn read(disk: &dyn ReadAt) -> Result<Option<Self>> {
        if disk.len() < mbr::SECTOR {
            return Ok(None);
        }
        let mut sector = [0; mbr::SECTOR as usize];
        disk.read_exact_at(0, &mut sector)?;
        let found = gpt::find(disk);
        let leftover = found.has_primary();
        let protective = mbr::has_protective_entry(&sector);
        let is_gpt = if protective {
            found.is_usable() || mbr::is_protective(&sector)
        } else {
            leftover && !mbr::has_used_entry(&sector) && !mbr::is_bare_filesystem(&sector, disk)?
        };
        if is_gpt {
            let mut decoded = gpt::decode(found, &sector, disk)?;
            if !protective {
                decoded.warnings.push(
                    "the protective MBR is missing: Linux does not see these partitions".into(),
                );
            }
            return Ok(Some(Self::build(decoded.map(Scheme::Gpt))));
        }
        if !mbr::is_table(&sector, disk)? {
            return Ok(None);
        }
        mbr::refuse_large_sectors(&sector, disk)?;
        let mut decoded = mbr::decode(&sector, disk)?;
        if leftover {
            decoded
                .warnings
                .push("an unused GPT lies behind the MBR; the MBR counts".into());
        }
        Ok(Some(Self::build(decoded.map(Scheme::Mbr))))
    }

    fn build(mut decoded: Decoded<Scheme>) -> Self {
        decoded
            .partitions
            .sort_by_key(|partition| partition.range.start);
        Self {
            scheme: decoded.scheme,
            partitions: decoded.partitions,
            warnings: decoded.warnings,
        }
    }

    pub fn kind(&self) -> TableKind {
        match self.scheme {
            Scheme::Mbr(_) => TableKind::Mbr,
            Scheme::Gpt(_) => TableKind::Gpt,
        }
    }

    /// Returns the unit of the table's addresses in bytes: 512 or 4096.
    pub fn sector_size(&self) -> u64 {
        match &self.scheme {
            Scheme::Mbr(_) => mbr::SECTOR,
            Scheme::Gpt(gpt) => gpt.sector_size(),
        }
    }

    /// Returns the partitions in the order of their place on the disk. Extended partitions are
    /// not among them; see [`extended`](Self::extended).
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// Returns the extended partitions that contain the logical ones: number and bytes.
    pub fn extended(&self) -> Vec<(u32, ByteRange)> {
        match &self.scheme {
            Scheme::Mbr(mbr) => mbr.extended(),
            Scheme::Gpt(_) => Vec::new(),
        }
    }

    /// Returns the disk's identity: the MBR signature as `0x%08x`, or the GPT disk GUID.
    pub fn disk_id(&self) -> String {
        match &self.scheme {
            Scheme::Mbr(mbr) => format!("{:#010x}", mbr.signature()),
            Scheme::Gpt(gpt) => gpt.disk_guid().to_string(),
        }
    }

    /// Returns what Linux calls the PARTUUID of the partition at `index` of
    /// [`partitions`](Self::partitions).
    pub fn part_uuid(&self, index: usize) -> Option<String> {
        let partition = self.partitions.get(index)?;
        Some(match (&self.scheme, &partition.kind) {
            (_, PartitionKind::Gpt { unique_guid, .. }) => unique_guid.to_string(),
            (Scheme::Mbr(mbr), _) => format!("{:08x}-{:02x}", mbr.signature(), partition.number),
            (Scheme::Gpt(gpt), _) => gpt.disk_guid().to_string(),
        })
    }

    /// Returns every range of bytes that holds table data, in ascending order: MBR and EBR
    /// sectors, GPT headers and arrays.
    pub fn table_ranges(&self) -> Vec<ByteRange> {
        let mut ranges = match &self.scheme {
            Scheme::Mbr(mbr) => mbr.table_ranges(),
            Scheme::Gpt(gpt) => gpt.table_ranges(),
        };
        ranges.sort();
        ranges
    }

    /// Returns the first byte a partition may start at.
    pub fn first_usable(&self) -> u64 {
        match &self.scheme {
            Scheme::Mbr(_) => mbr::SECTOR,
            Scheme::Gpt(gpt) => gpt.first_usable(),
        }
    }

    /// Refuses a table that a device with sectors of `sector` bytes would read wrongly: what counts in
    /// sectors counts in the device's own.
    ///
    /// # Errors
    /// `Refused` with both sizes.
    pub fn check_device(&self, sector: u64) -> Result<()> {
        let own = self.sector_size();
        if own == sector {
            return Ok(());
        }
        Err(Error::refused(format!(
            "the partition table counts in sectors of {own} bytes, and the device has sectors of {sector}: \
             no system would find the partitions there"
        ))
        .with_hint(format!(
            "use a reader or an enclosure that shows sectors of {own} bytes; --allow-sector-size for \
             one that will"
        )))
    }

    /// Returns what is wrong with the table without making it useless, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns how many bytes before the partition at `index` belong to it and move with it: for
    /// a logical partition the way back to its EBR, else 0. A partition that is moved behind
    /// another needs so much room between them.
    pub fn lead_in(&self, index: usize) -> u64 {
        match (&self.scheme, self.partitions.get(index)) {
            (Scheme::Mbr(mbr), Some(partition)) => mbr.lead_in(partition),
            _ => 0,
        }
    }

    /// Returns the first byte at or behind `offset` of a part of the table that does not move with
    /// a partition behind it: an extended partition that is empty, or an EBR without data whose
    /// chain ends there or goes back to an earlier place.
    pub fn obstacle(&self, offset: u64) -> Option<u64> {
        match &self.scheme {
            Scheme::Mbr(mbr) => mbr.obstacles().into_iter().filter(|&at| at >= offset).min(),
            Scheme::Gpt(_) => None,
        }
    }

    /// Returns where the last partition may end at most on a disk of `disk_len` bytes: before the
    /// GPT backup table, within what 32-bit sector numbers reach in an MBR; a multiple of 4096.
    /// Never less than where it ends now, if that fits.
    pub fn max_end(&self, disk_len: u64) -> u64 {
        let (limit, reach) = match &self.scheme {
            // A partition that starts below sector 2^32 may already end above.
            Scheme::Mbr(_) => (mbr::usable_end(disk_len), disk_len),
            Scheme::Gpt(gpt) => (gpt.usable_end(disk_len), gpt.usable_end(disk_len)),
        };
        let now = self.partitions.last().map_or(0, |last| last.range.end);
        let aligned = round_down(limit, END_ALIGNMENT);
        if now > aligned && now <= reach {
            now
        } else {
            aligned
        }
    }

    /// Computes the table in which each partition of `changes` (index in
    /// [`partitions`](Self::partitions), new range) lies at its new place, on a disk of
    /// `new_disk_len`. `disk` is the disk this table was read from. The contents of partitions
    /// are the caller's to move.
    ///
    /// An extended partition follows its logical ones: it starts with its first EBR, shrinks to
    /// the end of its last partition and grows with it. A damaged or missing copy of a GPT is
    /// written anew.
    ///
    /// # Errors
    /// `Usage` if the ranges are not whole sectors or overlap, `NoSpace` if they do not fit on
    /// the disk, `Unsupported` if the format cannot express them.
    pub fn relayout(
        &self,
        disk: &dyn ReadAt,
        changes: &[(usize, ByteRange)],
        new_disk_len: DiskLen,
    ) -> Result<Layout> {
        let ranges = self.new_ranges(changes)?;
        let patches = match &self.scheme {
            Scheme::Mbr(mbr) => mbr.relayout(&self.partitions, &ranges, new_disk_len)?,
            Scheme::Gpt(gpt) => gpt.relayout(&self.partitions, &ranges, new_disk_len)?,
        };
        let mut overlay = Overlay::new(patches.disk_len);
        for stale in &patches.stale {
            overlay.set_zero(stale.start..stale.end);
        }
        for (offset, bytes) in patches.sectors {
            if !holds(disk, offset, &bytes) {
                overlay.set_bytes(offset, bytes);
            }
        }
        let table = Self::read(&overlay.over(disk))
            .map_err(|error| {
                if error.kind() == ErrorKind::Io {
                    return error;
                }
                // Garbage in an EBR that nobody sees while the extended partition is small.
                Error::unsupported("leftover entries in this table would become partitions")
                    .with_source(error)
            })?
            .filter(|table| table.describes(&self.partitions, &ranges))
            .ok_or_else(|| Error::internal("the new partition table reads differently"))?;
        Ok(Layout {
            overlay,
            disk_len: patches.disk_len,
            table,
        })
    }

    /// Returns the range of every partition after `changes`, checked for form and overlaps.
    fn new_ranges(&self, changes: &[(usize, ByteRange)]) -> Result<Vec<ByteRange>> {
        let mut ranges: Vec<_> = self.partitions.iter().map(|p| p.range).collect();
        let unit = self.sector_size();
        for &(index, range) in changes {
            let slot = ranges.get_mut(index).ok_or_else(|| {
                Error::usage(format!("there is no partition at position {index}"))
            })?;
            if range.is_empty() || range.start % unit != 0 || range.end % unit != 0 {
                return Err(Error::usage(format!(
                    "partition {} cannot be at bytes {} to {}: not whole sectors of {unit} bytes",
                    self.partitions[index].number, range.start, range.end
                )));
            }
            *slot = range;
        }
        Ok(ranges)
    }

    /// Is this the table of `old` partitions at their new `ranges`?
    fn describes(&self, old: &[Partition], ranges: &[ByteRange]) -> bool {
        let mut wanted: Vec<_> = old.to_vec();
        for (partition, range) in wanted.iter_mut().zip(ranges) {
            partition.range = *range;
        }
        wanted.sort_by_key(|partition| partition.range.start);
        wanted == self.partitions
    }
}

impl<T> Decoded<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Decoded<U> {
        Decoded {
            scheme: f(self.scheme),
            partitions: self.partitions,
            warnings: self.warnings,
        }
    }
}

/// Does `disk` already have these bytes there? What cannot be read is written.
fn holds(disk: &dyn ReadAt, offset: u64, bytes: &[u8]) -> bool {
    disk.read_vec_at(offset, bytes.len())
        .is_ok_and(|there| there == bytes)
}

/// Finds two overlapping ranges of sectors and says which; empty ranges overlap nothing.
fn find_overlap(mut taken: Vec<(u64, u64, String)>) -> Option<String> {
    taken.retain(|(start, end, _)| start < end);
    taken.sort();
    let mut reach: Option<&(u64, u64, String)> = None;
    for this in &taken {
        if let Some(before) = reach
            && before.1 > this.0
        {
            return Some(format!(
                "{} (sectors {} to {}) and {} (sectors {} to {}) overlap",
                before.2,
                before.0,
                before.1 - 1,
                this.2,
                this.0,
                this.1 - 1
            ));
        }
        if reach.is_none_or(|before| before.1 < this.1) {
            reach = Some(this);
        }
    }
    None
}

fn past_the_end(what: &str, end: u128, disk_len: u64) -> Error {
    Error::unsound(format!(
        "{what} ends at byte {end}, but the disk has only {disk_len} bytes"
    ))
    .with_hint(
        "the image may be cut off; copy it again. A card may be smaller than what was written to it: then \
         --no-shrink --force-raw saves what is there",
    )
}

fn no_room(what: &str, end: u64, disk_len: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("{what} would end at byte {end}, but the disk has only {disk_len} bytes"),
    )
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    // OK to unwrap: the slice has four bytes.
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    // OK to unwrap: the slice has eight bytes.
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
