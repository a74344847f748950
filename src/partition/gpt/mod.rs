//! GUID partition tables (UEFI specification, chapter 5), with 512- and 4096-byte sectors.
//!
//! ```text
//! sector 0       protective MBR: an entry of type EE; a hybrid MBR mirrors some partitions as well
//! sector 1       primary header     } one shape, each with a CRC over itself and over its array;
//! last sector    backup header      } MyLBA and AlternateLBA point to itself and to the other
//! header   0 "EFI PART"  8 revision  12 HeaderSize  16 HeaderCRC32  24 MyLBA  32 AlternateLBA
//!         40 FirstUsableLBA  48 LastUsableLBA  56 DiskGUID  72 PartitionEntryLBA
//!         80 NumberOfPartitionEntries  84 SizeOfPartitionEntry  88 PartitionEntryArrayCRC32
//! entry    0 type GUID  16 unique GUID  32 StartingLBA  40 EndingLBA  48 attributes  56 name
//! ```
//! `LastUsableLBA` and `EndingLBA` are inclusive. The primary array mostly lies in sector 2, but
//! may lie anywhere before `FirstUsableLBA`: some boards boot from the sectors behind the header.

mod layout;

use crate::error::{Error, Result};
use crate::io::{ReadAt, is_zero};
use crate::partition::mbr::Sector;
use crate::partition::{
    Decoded, Guid, Partition, PartitionKind, find_overlap, past_the_end, u32_at, u64_at,
};
use crate::units::ByteRange;

/// More entries, or larger ones, than any tool makes are not believed.
const MAX_ENTRIES: u32 = 1024;
const ENTRY_SIZES: std::ops::RangeInclusive<u32> = 128..=4096;

const NO_HEADER: &str = "there is no GPT header";

/// A header whose own fields are sound; a whole sector, so that reserved bytes stay.
#[derive(Clone, Debug)]
struct Header {
    raw: Vec<u8>,
}

impl Header {
    /// Decodes the sector at `lba` of a disk of `sectors` sectors, or says what is wrong with it.
    fn from_bytes(raw: Vec<u8>, lba: u64, sectors: u64) -> Result<Self, String> {
        if !raw.starts_with(b"EFI PART") {
            return Err(NO_HEADER.into());
        }
        let header = Self { raw };
        let size = u32_at(&header.raw, 12) as usize;
        if !(92..=header.raw.len()).contains(&size) {
            return Err(format!("the header's size is {size}"));
        }
        if header.crc() != u32_at(&header.raw, 16) {
            return Err("the header's checksum is wrong".into());
        }
        if u64_at(&header.raw, 24) != lba {
            return Err("the header belongs elsewhere".into());
        }
        let (count, entry_size) = (header.entry_count(), header.entry_size());
        if !(1..=MAX_ENTRIES).contains(&count)
            || !ENTRY_SIZES.contains(&entry_size)
            || !entry_size.is_power_of_two()
        {
            return Err(format!("it has {count} entries of {entry_size} bytes"));
        }
        let (first, last) = (header.first_usable(), header.last_usable());
        // OK: bounded by the number of sectors, or by the array's 4 MiB.
        let array_end = header
            .entries_lba()
            .checked_add(header.array_sectors())
            .filter(|&end| end <= sectors);
        let apart = array_end.is_some_and(|end| match lba {
            1 => header.entries_lba() >= 2 && end <= first,
            _ => header.entries_lba() > last && end <= lba,
        });
        if first > last || first < 2 || first >= sectors || last == u64::MAX || !apart {
            return Err("the header's sector numbers contradict each other".into());
        }
        Ok(header)
    }

    /// The checksum the header should carry. Its size must have been checked.
    fn crc(&self) -> u32 {
        let size = u32_at(&self.raw, 12) as usize;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.raw[..16]);
        crc.update(&[0; 4]);
        crc.update(&self.raw[20..size]);
        crc.finalize()
    }

    fn sector_size(&self) -> u64 {
        self.raw.len() as u64
    }
    fn my_lba(&self) -> u64 {
        u64_at(&self.raw, 24)
    }
    fn alternate_lba(&self) -> u64 {
        u64_at(&self.raw, 32)
    }
    fn first_usable(&self) -> u64 {
        u64_at(&self.raw, 40)
    }
    fn last_usable(&self) -> u64 {
        u64_at(&self.raw, 48)
    }
    /// # Panics
    /// Never: a header has at least 92 bytes.
    fn disk_guid(&self) -> Guid {
        Guid(self.raw[56..72].try_into().unwrap())
    }
    fn entries_lba(&self) -> u64 {
        u64_at(&self.raw, 72)
    }
    fn entry_count(&self) -> u32 {
        u32_at(&self.raw, 80)
    }
    fn entry_size(&self) -> u32 {
        u32_at(&self.raw, 84)
    }

    fn array_bytes(&self) -> usize {
        self.entry_count() as usize * self.entry_size() as usize
    }

    fn array_sectors(&self) -> u64 {
        (self.array_bytes() as u64).div_ceil(self.sector_size())
    }

    fn array_crc_is(&self, array: &[u8]) -> bool {
        crc32fast::hash(&array[..self.array_bytes()]) == u32_at(&self.raw, 88)
    }

    fn bytes(&self, lba: u64, count: u64) -> ByteRange {
        let size = self.sector_size();
        ByteRange::new(lba * size, (lba + count) * size)
    }

    /// Where header and array lie.
    fn ranges(&self) -> [ByteRange; 2] {
        [
            self.bytes(self.my_lba(), 1),
            self.bytes(self.entries_lba(), self.array_sectors()),
        ]
    }

    /// Do two headers describe the same table?
    fn agrees(&self, other: &Header) -> bool {
        // FirstUsableLBA, LastUsableLBA, DiskGUID; entry count, entry size, array CRC.
        [40..72, 80..92]
            .into_iter()
            .all(|fields| self.raw[fields.clone()] == other.raw[fields])
    }
}

/// One of the two copies: its header, if sound, and its array (whole sectors), if sound.
struct Copy {
    header: Header,
    array: Result<Vec<u8>, String>,
}

/// What was found where GPT headers belong. Media errors count as damage: there are two copies.
pub(super) struct Found {
    sector_size: u64,
    primary: Result<Copy, String>,
    backup: Result<Copy, String>,
}

impl Copy {
    fn read(disk: &dyn ReadAt, sector_size: u64, lba: u64) -> Result<Self, String> {
        let read = |offset, len| disk.read_vec_at(offset, len).map_err(|e| e.one_line());
        let offset = lba
            .checked_mul(sector_size)
            .ok_or_else(|| "its place is past the end".to_string())?;
        let raw = read(offset, sector_size as usize)?;
        let header = Header::from_bytes(raw, lba, disk.len() / sector_size)?;
        let place = header.bytes(header.entries_lba(), header.array_sectors());
        let array = read(place.start, place.len() as usize).and_then(|array| {
            if header.array_crc_is(&array) {
                Ok(array)
            } else {
                Err("the checksum of its partition array is wrong".into())
            }
        });
        Ok(Self { header, array })
    }

    fn is_sound(copy: &Result<Self, String>) -> bool {
        copy.as_ref().is_ok_and(|copy| copy.array.is_ok())
    }

    fn problem(copy: &Result<Self, String>) -> Option<&str> {
        match copy {
            Ok(copy) => copy.array.as_ref().err().map(String::as_str),
            Err(problem) => Some(problem),
        }
    }
}

impl Found {
    pub fn has_primary(&self) -> bool {
        Copy::is_sound(&self.primary)
    }

    pub fn is_usable(&self) -> bool {
        self.has_primary() || Copy::is_sound(&self.backup)
    }
}

/// Looks for headers with both sector sizes; a sound primary decides, then a sound backup.
pub(super) fn find(disk: &dyn ReadAt) -> Found {
    let [small, large] = [512, 4096].map(|sector_size| find_with(disk, sector_size));
    // Of two damaged ones, the one with a trace of a header names the damage.
    let rank = |found: &Found| {
        let traces = [&found.primary, &found.backup]
            .into_iter()
            .any(|copy| Copy::problem(copy) != Some(NO_HEADER));
        (found.has_primary(), found.is_usable(), traces)
    };
    if rank(&large) > rank(&small) {
        large
    } else {
        small
    }
}

fn find_with(disk: &dyn ReadAt, sector_size: u64) -> Found {
    let primary = Copy::read(disk, sector_size, 1);
    let last = (disk.len() / sector_size).saturating_sub(1);
    let named = primary
        .as_ref()
        .ok()
        .map(|copy| copy.header.alternate_lba());
    let at = |lba: u64| match lba {
        0 | 1 => Err("there is no room for it".to_string()),
        _ => Copy::read(disk, sector_size, lba),
    };
    let mut backup = at(named.unwrap_or(last));
    if !Copy::is_sound(&backup) && named.is_some_and(|named| named != last) {
        let at_end = at(last);
        if Copy::is_sound(&at_end) {
            backup = at_end;
        }
    }
    Found {
        sector_size,
        primary,
        backup,
    }
}

/// A GPT as it is on the disk.
#[derive(Clone, Debug)]
pub(super) struct Gpt {
    mbr: Sector,
    /// The sound copies; the table is the primary, or else the backup.
    primary: Option<Header>,
    backup: Option<Header>,
    /// Whole sectors.
    array: Vec<u8>,
    /// Where the primary array lies or belongs, if known.
    primary_array_lba: Option<u64>,
    /// How many the disk has.
    sectors: u64,
}

/// Decodes what [`find`] found.
pub(super) fn decode(found: Found, mbr: &Sector, disk: &dyn ReadAt) -> Result<Decoded<Gpt>> {
    let disk_len = disk.len();
    let sectors = disk_len / found.sector_size;
    let warnings = warnings(&found, disk_len);
    let primary_problem = Copy::problem(&found.primary).map(str::to_owned);
    let backup_problem = Copy::problem(&found.backup).map(str::to_owned);
    let located = found.primary.as_ref().ok().map(|c| c.header.entries_lba());
    let sound = |copy: Result<Copy, String>| {
        let copy = copy.ok()?;
        Some((copy.header, copy.array.ok()?))
    };
    let (primary, backup) = (sound(found.primary), sound(found.backup));
    let backup_header = backup.as_ref().map(|(header, _)| header.clone());
    let Some((header, array)) = primary.clone().or(backup) else {
        return Err(Error::unsound(format!(
            "both copies of the GPT are damaged: primary: {}; backup: {}",
            primary_problem.unwrap_or_default(),
            backup_problem.unwrap_or_default()
        ))
        .with_hint("the protective MBR says that there is a GPT; gdisk may recover it"));
    };
    let partitions = partitions(&header, &array, disk_len)?;
    let primary_array_lba = located
        .filter(|&lba| lba + header.array_sectors() <= header.first_usable())
        .or_else(|| locate_array(disk, &header, &array));
    Ok(Decoded {
        scheme: Gpt {
            mbr: *mbr,
            primary: primary.map(|(header, _)| header),
            backup: backup_header,
            array,
            primary_array_lba,
            sectors,
        },
        partitions,
        warnings,
    })
}

fn warnings(found: &Found, disk_len: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(problem) = Copy::problem(&found.primary) {
        warnings.push(format!("the primary GPT is damaged: {problem}"));
    }
    if let Some(problem) = Copy::problem(&found.backup) {
        warnings.push(format!("the backup GPT is missing or damaged: {problem}"));
    }
    let last = (disk_len / found.sector_size).saturating_sub(1);
    if let Ok(primary) = &found.primary {
        let named = primary.header.alternate_lba();
        let size = found.sector_size;
        if named > last {
            warnings.push(format!(
                "the GPT was made for a larger disk: its last sector is {named}, the disk's {last} (of {size} bytes)"
            ));
        } else if named < last {
            warnings.push(format!(
                "the GPT was made for a smaller disk: its last sector is {named}, the disk's {last} (of {size} bytes)"
            ));
        }
        if let Ok(backup) = &found.backup
            && !primary.header.agrees(&backup.header)
        {
            warnings.push("the backup GPT differs from the primary one; the primary counts".into());
        }
    }
    warnings
}

/// Decodes the used entries of a sound array.
fn partitions(header: &Header, array: &[u8], disk_len: u64) -> Result<Vec<Partition>> {
    let size = header.sector_size();
    let mut partitions = Vec::new();
    let mut taken = Vec::new();
    let entries = array[..header.array_bytes()].chunks_exact(header.entry_size() as usize);
    for (slot, entry) in entries.enumerate() {
        if entry[..16] == [0; 16] {
            continue;
        }
        let number = slot as u32 + 1;
        let name = format!("partition {number}");
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        if first > last {
            return Err(Error::unsound(format!(
                "{name} ends (sector {last}) before it starts (sector {first})"
            )));
        }
        if last >= disk_len / size {
            let end = (u128::from(last) + 1) * u128::from(size);
            return Err(past_the_end(&name, end, disk_len));
        }
        if first < header.first_usable() || last > header.last_usable() {
            return Err(Error::unsound(format!(
                "{name} (sectors {first} to {last}) is not inside the usable sectors {} to {}",
                header.first_usable(),
                header.last_usable()
            )));
        }
        taken.push((first, last + 1, name));
        partitions.push(Partition {
            number,
            range: header.bytes(first, last + 1 - first),
            kind: PartitionKind::Gpt {
                // OK to unwrap: sixteen bytes each.
                type_guid: Guid(entry[..16].try_into().unwrap()),
                unique_guid: Guid(entry[16..32].try_into().unwrap()),
                attributes: u64_at(entry, 48),
                name: name_of(&entry[56..128]),
            },
            logical: false,
        });
    }
    match find_overlap(taken) {
        Some(overlap) => Err(Error::unsound(overlap)),
        None => Ok(partitions),
    }
}

fn name_of(utf16: &[u8]) -> String {
    let units = utf16
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Finds where the primary array belongs when the primary header does not tell: where a copy of
/// the backup's is, or sector 2 if nothing else can be there.
fn locate_array(disk: &dyn ReadAt, backup: &Header, array: &[u8]) -> Option<u64> {
    const SEARCHED: u64 = 4 << 20;
    let size = backup.sector_size();
    let sectors = backup.array_sectors();
    let room = backup.first_usable().checked_sub(2)?;
    if room < sectors {
        return None;
    }
    let len = room.min(SEARCHED / size).max(sectors) * size;
    let len = len.min(disk.len().saturating_sub(2 * size));
    let area = disk.read_vec_at(2 * size, len as usize).ok()?;
    let wanted = &array[..backup.array_bytes()];
    let copy = (0..area.len() as u64 / size)
        .find(|sector| area[(sector * size) as usize..].starts_with(wanted))
        .map(|sector| 2 + sector);
    let free = area.get(..array.len()).is_some_and(is_zero);
    copy.or((room == sectors || free).then_some(2))
}

impl Gpt {
    /// The copy in use.
    fn header(&self) -> &Header {
        let header = self.primary.as_ref().or(self.backup.as_ref());
        header.expect("a table is decoded from one of its copies")
    }

    pub fn sector_size(&self) -> u64 {
        self.header().sector_size()
    }

    pub fn disk_guid(&self) -> Guid {
        self.header().disk_guid()
    }

    pub fn first_usable(&self) -> u64 {
        // OK: checked to lie on the disk.
        self.header().first_usable() * self.sector_size()
    }

    /// Returns the end of what partitions can use on a disk of `disk_len` bytes: the backup array
    /// and header come behind.
    pub fn usable_end(&self, disk_len: u64) -> u64 {
        let sectors = disk_len / self.sector_size();
        let table = self.header().array_sectors() + 1;
        sectors.saturating_sub(table) * self.sector_size()
    }

    pub fn table_ranges(&self) -> Vec<ByteRange> {
        let header = self.header();
        let mut ranges = vec![
            ByteRange::new(0, crate::partition::mbr::SECTOR),
            header.bytes(1, 1),
        ];
        if let Some(lba) = self.primary_array_lba {
            ranges.push(header.bytes(lba, header.array_sectors()));
        }
        match &self.backup {
            Some(backup) => ranges.extend(backup.ranges()),
            None => ranges.extend(self.damaged_backup()),
        }
        ranges
    }

    /// Returns where the primary header says that the backup is, if partitions leave room for it
    /// there: what is left of it may be of use to a recovery.
    fn damaged_backup(&self) -> Option<ByteRange> {
        let header = self.primary.as_ref()?;
        let (lba, sectors) = (header.alternate_lba(), header.array_sectors());
        let start = lba.checked_sub(sectors)?;
        (start > header.last_usable() && lba < self.sectors)
            .then(|| header.bytes(start, sectors + 1))
    }
}
