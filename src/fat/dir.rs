//! The root directory: entries of 32 bytes, long names in entries before the short one.
//!
//! ```text
//! short  0 name(8) ext(3)  11 attributes  20 cluster, high(2)  26 cluster, low(2)  28 length(4)
//! long   0 order (40 = last)  1 UTF-16 ×5  11 0f  13 checksum of the short name  14 ×6  28 ×2
//! ```

use crate::error::{Error, Result};
use crate::fat::boot::{Geometry, Root, text, u16_at, u32_at};
use crate::fat::chain::walk;
use crate::io::ReadAt;

pub(super) const ENTRY: usize = 32;
/// A directory may have 65,536 entries.
pub(super) const MAX_DIRECTORY: u64 = 65_536 * ENTRY as u64;

const VOLUME_ID: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
pub(super) const LONG_NAME: u8 = 0x0f;

/// Where a short entry has the day of the last access.
pub(super) const LAST_ACCESS: usize = 18;

/// A file, directory or label, as the short entry has it.
pub(super) struct Found<'a> {
    short: &'a [u8],
    long: Option<String>,
    /// Where the short entry lies in its list, in bytes.
    pub(super) at: usize,
}

impl<'a> Found<'a> {
    /// Takes a short entry alone.
    pub(super) fn of(short: &'a [u8]) -> Self {
        Self {
            short,
            long: None,
            at: 0,
        }
    }

    /// Returns the name; `None` for labels and for the directory itself and its parent.
    pub(super) fn name(&self) -> Option<String> {
        let is_label = self.short[11] & VOLUME_ID != 0;
        let is_self = self.short[0] == b'.';
        (!is_label && !is_self).then(|| self.long.clone().unwrap_or_else(|| shown_name(self.short)))
    }

    pub(super) fn is_dir(&self) -> bool {
        self.short[11] & DIRECTORY != 0
    }

    /// Returns the stated length in bytes; 0 of directories.
    pub(super) fn len(&self) -> u64 {
        u64::from(u32_at(self.short, 28))
    }

    /// Returns the first cluster's number, 0 for an empty file.
    pub(super) fn first_cluster(&self, geometry: &Geometry) -> u32 {
        let high = match geometry.root {
            Root::Chain { .. } => u32::from(u16_at(self.short, 20)) << 16,
            Root::Fixed { .. } => 0,
        };
        high | u32::from(u16_at(self.short, 26))
    }
}

/// Returns the label that the root directory has, if any.
pub(super) fn volume_label<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
) -> Result<Option<String>> {
    let directory = read_root(geometry, dev)?;
    let label = entries(&directory).find(|entry| {
        let kind = entry.short[11];
        kind & VOLUME_ID != 0 && kind & DIRECTORY == 0
    });
    Ok(label.and_then(|entry| text(&entry.short[..11])))
}

pub(super) fn read_file<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    name: &str,
    max_len: usize,
) -> Result<Option<Vec<u8>>> {
    let directory = read_root(geometry, dev)?;
    let found = entries(&directory).find(|entry| {
        entry.short[11] & (VOLUME_ID | DIRECTORY) == 0
            && (same(&short_name(entry.short), name)
                || entry.long.as_ref().is_some_and(|long| same(long, name)))
    });
    let Some(entry) = found else { return Ok(None) };
    let stated = u64::from(u32_at(entry.short, 28));
    // Bounded by the filesystem before anything is allocated for it.
    let len = stated.min(max_len as u64).min(geometry.len) as usize;
    let mut contents = Vec::with_capacity(len);
    if len > 0 {
        walk(
            geometry,
            dev,
            entry.first_cluster(geometry),
            u64::MAX,
            |start| {
                let count = (len - contents.len()).min(geometry.cluster_size as usize);
                contents.extend(dev.read_vec_at(start, count)?);
                Ok(contents.len() < len)
            },
        )?;
        if contents.len() < len {
            return Err(Error::unsound(format!(
                "the FAT filesystem is damaged: {name} ends after {} of {stated} bytes",
                contents.len()
            )));
        }
    }
    Ok(Some(contents))
}

/// Returns the root directory without the days of the last access, which reading changes.
pub(super) fn read_unaccessed_root<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
) -> Result<Vec<u8>> {
    let mut directory = read_root(geometry, dev)?;
    for entry in directory.chunks_exact_mut(ENTRY) {
        if entry[11] != LONG_NAME {
            entry[LAST_ACCESS..LAST_ACCESS + 2].fill(0);
        }
    }
    Ok(directory)
}

fn read_root<D: ReadAt + ?Sized>(geometry: &Geometry, dev: &D) -> Result<Vec<u8>> {
    match geometry.root {
        Root::Fixed { start, len } => dev.read_vec_at(start, len as usize),
        Root::Chain { first } => {
            let most = MAX_DIRECTORY.div_ceil(geometry.cluster_size);
            let mut directory = Vec::new();
            walk(geometry, dev, first, most, |start| {
                let cluster = dev.read_vec_at(start, geometry.cluster_size as usize)?;
                // A free entry with a zero name is the last one.
                let more = cluster.chunks_exact(ENTRY).all(|entry| entry[0] != 0);
                directory.extend(cluster);
                Ok(more)
            })?;
            Ok(directory)
        }
    }
}

/// Goes through a directory's live entries, each with the place of its short entry, and its long
/// name if that belongs to it.
pub(super) fn entries(directory: &[u8]) -> impl Iterator<Item = Found<'_>> {
    let mut long = LongName::default();
    directory
        .chunks_exact(ENTRY)
        .zip((0..).step_by(ENTRY))
        .take_while(|(entry, _)| entry[0] != 0)
        .filter_map(move |(entry, at)| {
            if entry[0] == 0xe5 {
                long = LongName::default();
                return None;
            }
            if entry[11] & 0x3f == LONG_NAME {
                long.add(entry);
                return None;
            }
            let long = std::mem::take(&mut long).finish(entry);
            Some(Found {
                short: entry,
                long,
                at,
            })
        })
}

/// A long name under way: its pieces come last to first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
    /// Pieces still to come.
    left: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let order = entry[0] & 0x3f;
        let starts = entry[0] & 0x40 != 0;
        if starts {
            // A name has 255 characters at the most, so 20 pieces.
            self.units.clear();
            self.checksum = entry[13];
            self.left = if order <= 20 { order } else { 0 };
        }
        if order == 0 || order != self.left || entry[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.left -= 1;
        let places = (1..11)
            .step_by(2)
            .chain((14..26).step_by(2))
            .chain([28, 30]);
        let piece: Vec<u16> = places.map(|at| u16_at(entry, at)).collect();
        self.units.splice(..0, piece);
    }

    fn finish(self, short: &[u8]) -> Option<String> {
        let checksum = short[..11]
            .iter()
            .fold(0u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte));
        if self.units.is_empty() || self.left != 0 || checksum != self.checksum {
            return None;
        }
        let end = self.units.iter().position(|&unit| unit == 0);
        Some(String::from_utf16_lossy(
            &self.units[..end.unwrap_or(self.units.len())],
        ))
    }
}

/// Puts the dot back into a short name.
fn short_name(entry: &[u8]) -> String {
    let base = text(&entry[..8]).unwrap_or_default();
    match text(&entry[8..11]) {
        Some(extension) => format!("{base}.{extension}"),
        None => base,
    }
}

/// The short name as Windows and Linux show it: two bits say which parts are in lower case.
fn shown_name(entry: &[u8]) -> String {
    let name = short_name(entry);
    let (base, extension) = name.split_once('.').unwrap_or((&name, ""));
    let cased = |text: &str, bit: u8| match entry[12] & bit {
        0 => text.to_owned(),
        _ => text.to_ascii_lowercase(),
    };
    match extension {
        "" => cased(base, 0x08),
        _ => format!("{}.{}", cased(base, 0x08), cased(extension, 0x10)),
    }
}

pub(super) fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}
