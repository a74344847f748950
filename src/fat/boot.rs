//! The boot sector.
//!
//! ```text
//!  0 jump(3)  3 OEM(8)  11 BytsPerSec(2)  13 SecPerClus  14 RsvdSecCnt(2)  16 NumFATs
//! 17 RootEntCnt(2)  19 TotSec16(2)  21 Media  22 FATSz16(2)  32 TotSec32(4)
//! FAT12/16: 37 state  38 signature  39 VolID(4)  43 VolLab(11)
//! FAT32:    36 FATSz32(4)  40 ExtFlags(2)  42 FSVer(2)  44 RootClus(4)
//!           65 state  66 signature  67 VolID(4)  71 VolLab(11)       510 55 aa
//! ```

use crate::error::{Error, Result};
use crate::fat::FatKind;
use crate::io::ReadAt;

const SECTOR: usize = 512;
/// The most clusters that a FAT12 can have, as Linux counts.
const MAX_FAT12: u64 = 0xff4;
const MAX_FAT16: u64 = 0xfff4;
const MAX_FAT32: u64 = 0x0fff_fff5;

/// Where things are, in bytes from the boot sector; all of it within the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    pub(super) kind: FatKind,
    pub(super) len: u64,
    pub(super) fat_start: u64,
    /// Length of one copy.
    pub(super) fat_len: u64,
    pub(super) fats: u8,
    /// The copy that counts, and whether the others follow it.
    pub(super) active_fat: u8,
    pub(super) mirrored: bool,
    pub(super) root: Root,
    /// Where cluster 2 begins.
    pub(super) data_start: u64,
    pub(super) cluster_size: u64,
    pub(super) clusters: u32,
    pub(super) media: u8,
    pub(super) serial: Option<u32>,
    /// Linux marks a mounted filesystem here, others in the FAT.
    pub(super) state: u8,
    label: Option<[u8; 11]>,
}

/// The root directory: a place of its own, or a chain of clusters like any other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Root {
    Fixed { start: u64, len: u64 },
    Chain { first: u32 },
}

impl Geometry {
    /// Reads and checks the boot sector; `None` if it is not that of a FAT filesystem.
    pub(super) fn read<D: ReadAt + ?Sized>(dev: &D) -> Result<Option<Self>> {
        if dev.len() < 2 * SECTOR as u64 {
            return Ok(None);
        }
        let mut sector = [0; SECTOR];
        dev.read_exact_at(0, &mut sector)?;
        let Some(raw) = Raw::decode(&sector) else {
            return Ok(None);
        };
        // The last test against look-alikes: the first entry of the FAT repeats the media byte.
        let fat_start = raw.reserved * raw.sector;
        if fat_start.saturating_add(4) > dev.len() {
            return Ok(None);
        }
        let mut entry = [0; 4];
        dev.read_exact_at(fat_start, &mut entry)?;
        if entry[0] != raw.media || entry[1] & 0x0f != 0x0f {
            return Ok(None);
        }
        raw.geometry(&sector, dev.len()).map(Some)
    }

    /// Returns the boot sector's label.
    pub(super) fn label(&self) -> Option<String> {
        let label = self.label.as_ref()?;
        (label != b"NO NAME    ").then(|| text(label)).flatten()
    }

    /// Returns where a cluster begins; `None` for numbers that no cluster has.
    pub(super) fn cluster_start(&self, cluster: u32) -> Option<u64> {
        let index = cluster.checked_sub(2)?;
        (index < self.clusters).then(|| self.data_start + u64::from(index) * self.cluster_size)
    }

    /// Returns where a copy of the FAT begins.
    pub(super) fn fat_copy(&self, copy: u8) -> u64 {
        self.fat_start + u64::from(copy) * self.fat_len
    }
}

/// Shows padded bytes of an unknown code page; `None` if nothing is left of them.
pub(super) fn text(padded: &[u8]) -> Option<String> {
    let shown = |&byte: &u8| match byte {
        0x20..=0x7e => char::from(byte),
        _ => char::REPLACEMENT_CHARACTER,
    };
    let end = padded.iter().position(|&byte| byte == 0);
    let text: String = padded[..end.unwrap_or(padded.len())]
        .iter()
        .map(shown)
        .collect();
    let text = text.trim_end_matches(' ');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The parameter block, each field possible by itself.
struct Raw {
    sector: u64,
    sectors_per_cluster: u64,
    reserved: u64,
    fats: u8,
    root_entries: u64,
    sectors: u64,
    media: u8,
    fat_sectors: u64,
    fat32: bool,
}

impl Raw {
    fn decode(boot: &[u8; SECTOR]) -> Option<Self> {
        let jump = matches!(boot[..3], [0xeb, _, 0x90] | [0xe9, _, _]);
        if !jump || boot[510..] != [0x55, 0xaa] {
            return None;
        }
        if matches!(&boot[3..11], b"NTFS    " | b"EXFAT   ") {
            return None;
        }
        let (sectors16, sectors32) = (u16_at(boot, 19), u32_at(boot, 32));
        let (fat16, fat32) = (u16_at(boot, 22), u32_at(boot, 36));
        let raw = Self {
            sector: u64::from(u16_at(boot, 11)),
            sectors_per_cluster: u64::from(boot[13]),
            reserved: u64::from(u16_at(boot, 14)),
            fats: boot[16],
            root_entries: u64::from(u16_at(boot, 17)),
            sectors: match sectors16 {
                0 => u64::from(sectors32),
                _ => u64::from(sectors16),
            },
            media: boot[21],
            fat_sectors: match fat16 {
                0 => u64::from(fat32),
                _ => u64::from(fat16),
            },
            fat32: fat16 == 0,
        };
        let possible = matches!(raw.sector, 512 | 1024 | 2048 | 4096)
            && raw.sectors_per_cluster.is_power_of_two()
            && raw.reserved > 0
            && (1..=4).contains(&raw.fats)
            && (raw.root_entries == 0) == raw.fat32
            && raw.sectors > 0
            && raw.fat_sectors > 0
            && (raw.media == 0xf0 || raw.media >= 0xf8)
            && (!raw.fat32 || u16_at(boot, 42) == 0);
        possible.then_some(raw)
    }

    /// Puts the fields together, and holds them against the device. No sum here overflows: the
    /// largest is (2^16 + 4 · 2^32 + 2^16) sectors of 2^12 bytes.
    fn geometry(&self, boot: &[u8; SECTOR], dev_len: u64) -> Result<Geometry> {
        let len = self.sectors * self.sector;
        if len > dev_len {
            return Err(unsound(format!(
                "it is {len} bytes long, its partition {dev_len}"
            )));
        }
        let fat_start = self.reserved * self.sector;
        let fat_len = self.fat_sectors * self.sector;
        let root_start = fat_start + u64::from(self.fats) * fat_len;
        let root_len = (self.root_entries * 32).next_multiple_of(self.sector);
        let data_start = root_start + root_len;
        if data_start > len {
            return Err(unsound(format!(
                "its data begins at byte {data_start} of {len}"
            )));
        }
        let cluster_size = self.sectors_per_cluster * self.sector;
        let fitting = (len - data_start) / cluster_size;
        let (kind, most) = match (self.fat32, fitting <= MAX_FAT12) {
            (true, _) => (FatKind::Fat32, MAX_FAT32),
            (false, true) => (FatKind::Fat12, MAX_FAT12),
            (false, false) => (FatKind::Fat16, MAX_FAT16),
        };
        let entries = match kind {
            FatKind::Fat12 => fat_len * 2 / 3,
            FatKind::Fat16 => fat_len / 2,
            FatKind::Fat32 => fat_len / 4,
        };
        // A cluster without an entry cannot hold anything.
        let clusters = fitting.min(most).min(entries.saturating_sub(2)) as u32;
        let flags = u16_at(boot, 40);
        let mirrored = !self.fat32 || flags & 0x80 == 0;
        let active_fat = if mirrored { 0 } else { (flags & 0xf) as u8 };
        if active_fat >= self.fats {
            return Err(unsound(format!(
                "its active FAT is number {active_fat} of {}",
                self.fats
            )));
        }
        let root = match self.fat32 {
            true => Root::Chain {
                first: u32_at(boot, 44),
            },
            false => Root::Fixed {
                start: root_start,
                len: self.root_entries * 32,
            },
        };
        let extended = if self.fat32 { 66 } else { 38 };
        Ok(Geometry {
            kind,
            len,
            fat_start,
            fat_len,
            fats: self.fats,
            active_fat,
            mirrored,
            root,
            data_start,
            cluster_size,
            clusters,
            media: self.media,
            serial: matches!(boot[extended], 0x28 | 0x29).then(|| u32_at(boot, extended + 1)),
            state: boot[extended - 1],
            label: (boot[extended] == 0x29)
                .then(|| boot[extended + 5..].first_chunk().copied())
                .flatten(),
        })
    }
}

fn unsound(what: String) -> Error {
    Error::unsound(format!("the FAT filesystem is damaged: {what}"))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}
