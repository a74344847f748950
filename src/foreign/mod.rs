//! Filesystems that are never changed here: what they are, and which of their bytes are in use.
//!
//! ```text
//! identify: the first structure, checked ── Foreign ── usage: the maps of what is free ── RangeSet
//! ```
//! Decisions: a byte is free only if the filesystem says so in words that are understood and
//! checked, as far as it has sums for them. What was not unmounted cleanly, has features that are
//! not known, or contradicts itself gives an error, and who asked keeps every byte. Only reads;
//! memory follows the metadata.

mod bits;
mod exfat;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{RangeSet, ReadAt};

/// More runs than this are not kept: everything counts as in use then.
const MAX_RUNS: usize = 4 << 20;

/// A filesystem that is known by its signature.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Foreign {
    kind: Kind,
    label: Option<String>,
    uuid: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Kind {
    ExFat(exfat::Geometry),
    /// Its name is known, but not what is in use; and why.
    Opaque(&'static str, String),
}

/// What a filesystem says about its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes in use, from the filesystem's first byte.
    pub allocated: RangeSet,
    /// Length of the filesystem in bytes, at most its device's.
    pub total: u64,
    /// Was it unmounted properly, with no error noted?
    pub clean: bool,
    /// Of the maps of what is free: not the same after something was written.
    pub digest: [u8; 32],
    /// What a user should know, a line each.
    pub notes: Vec<String>,
}

/// Bytes to write at an offset of the filesystem.
pub type Patch = (u64, Vec<u8>);

impl Foreign {
    /// Recognises what has its signature in the boot sector, where no leftovers of others can be.
    ///
    /// # Errors
    /// `Io` if reading fails.
    pub fn by_boot_sector(dev: &dyn ReadAt) -> Result<Option<Self>> {
        first_of(dev, &[("exFAT", exfat::identify)])
    }

    /// Returns the filesystem's name as users write it.
    pub fn name(&self) -> &'static str {
        match &self.kind {
            Kind::ExFat(_) => "exFAT",
            Kind::Opaque(name, _) => name,
        }
    }

    /// Returns the label: untrusted text.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    pub fn uuid(&self) -> Option<&str> {
        self.uuid.as_deref()
    }

    /// Reads what is in use.
    ///
    /// # Errors
    /// `Unsound` or `Unsupported` if that cannot be told for sure: keep every byte then. `Io` if
    /// reading fails.
    pub fn usage(&self, dev: &dyn ReadAt) -> Result<Usage> {
        match &self.kind {
            Kind::ExFat(geometry) => exfat::usage(geometry, dev),
            Kind::Opaque(_, why) => Err(Error::unsound(why.clone())),
        }
    }

    /// Does nothing in it depend on where on a disk it lies, but for what [`Self::moved`] tells?
    pub fn can_move(&self) -> bool {
        match &self.kind {
            Kind::ExFat(_) => true,
            Kind::Opaque(..) => false,
        }
    }

    /// Returns what changes in it when it moves from byte `from` of a disk to byte `to`.
    ///
    /// # Errors
    /// `Io` if reading fails.
    pub fn moved(&self, dev: &dyn ReadAt, from: u64, to: u64) -> Result<Vec<Patch>> {
        match &self.kind {
            Kind::ExFat(geometry) => exfat::moved(geometry, dev, from, to),
            Kind::Opaque(..) => Ok(Vec::new()),
        }
    }
}

/// Recognises a filesystem; what is damaged or not understood is an error.
type Identify = fn(&dyn ReadAt) -> Result<Option<Foreign>>;

/// Returns the first that is recognised, damaged or not.
fn first_of(dev: &dyn ReadAt, known: &[(&'static str, Identify)]) -> Result<Option<Foreign>> {
    for &(name, identify) in known {
        match identify(dev) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if matches!(error.kind(), ErrorKind::Unsound | ErrorKind::Unsupported) => {
                return Ok(Some(Foreign {
                    kind: Kind::Opaque(name, error.one_line()),
                    label: None,
                    uuid: None,
                }));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Bytes in use, gathered in a bounded number of runs.
#[derive(Default)]
struct Used(RangeSet);

impl Used {
    fn add(&mut self, range: Range<u64>) -> Result<()> {
        self.0.insert(range);
        match self.0.run_count() > MAX_RUNS {
            true => Err(Error::unsupported("what is in use lies in too many pieces")),
            false => Ok(()),
        }
    }
}

/// Reads small pieces, a window of the device at a time.
struct Near<'a> {
    dev: &'a dyn ReadAt,
    start: u64,
    window: Vec<u8>,
}

impl<'a> Near<'a> {
    /// Bytes in a window; a divisor of it is the alignment of every piece that is asked for.
    const WINDOW: u64 = 64 << 10;

    fn new(dev: &'a dyn ReadAt) -> Self {
        Self {
            dev,
            start: 0,
            window: Vec::new(),
        }
    }

    /// Returns the bytes of `N` at `offset`, which is a multiple of `N`.
    fn get<const N: usize>(&mut self, offset: u64) -> Result<[u8; N]> {
        let start = offset - offset % Self::WINDOW;
        if start != self.start || self.window.is_empty() {
            let len = Self::WINDOW.min(self.dev.len().saturating_sub(start));
            self.window = self.dev.read_vec_at(start, len as usize)?;
            self.start = start;
        }
        let at = (offset - start) as usize;
        let bytes = self.window.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes
            .copied()
            .ok_or_else(|| Error::unsound(format!("byte {offset} lies past the end")))
    }
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// Shows UTF-16, little-endian, up to its first NUL; `None` if nothing is left of it.
fn utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| le16(pair, 0))
        .take_while(|&unit| unit != 0);
    let text: String = char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    (!text.is_empty()).then_some(text)
}
