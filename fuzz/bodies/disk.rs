//! Small disks that are damaged in a few places, and the form in which an input says where.
//!
//! ```text
//! input  base (1) flags (1) amount (2) | patch (16) …
//! patch  place (2) offset (2) operation (1) width (1) other (2) value (8)      little-endian
//! ```
//! Every number is taken modulo what there is to choose from, so that no input is wrong, and a
//! mutated byte is another damage, not garbage.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use pishrink::codec::Decoder;
use pishrink::error::Result;
use pishrink::io::{ReadAt, check_range};

const PAGE: u64 = 1024;
const HEADER: usize = 4;
const PATCH: usize = 16;
/// Patches after these are left out: one disk with much damage teaches less than many with some.
const MOST_PATCHES: usize = 24;

/// Bytes that belong together, and what they are.
pub struct Place<W> {
    pub range: Range<u64>,
    pub what: W,
}

/// Unpacks one of testdata/fuzz/bases.
pub fn unpack(packed: &'static [u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Decoder::new(Cursor::new(packed))
        .expect("a base is a zstd file")
        .read_to_end(&mut bytes)
        .expect("a base is sound");
    bytes
}

/// A disk over the bytes of a base: changed pages are copies, and past the base's end lies what
/// was on the card before.
pub struct Disk {
    base: &'static [u8],
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    pub fn new(base: &'static [u8]) -> Self {
        Self {
            base,
            len: base.len() as u64,
            pages: BTreeMap::new(),
        }
    }

    pub fn set_len(&mut self, len: u64) {
        self.len = len;
    }

    /// Reads what must be inside: `range` is a place's.
    pub fn get(&self, range: &Range<u64>) -> Vec<u8> {
        self.read_vec_at(range.start, (range.end - range.start) as usize)
            .expect("places lie on the disk")
    }

    /// Writes `bytes`, as far as they are inside.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (at, &byte) in (offset..self.len).zip(bytes) {
            let base = self.base;
            let page = self.pages.entry(at / PAGE).or_insert_with(|| {
                (at / PAGE * PAGE..(at / PAGE + 1) * PAGE)
                    .map(|at| byte_of(base, at))
                    .collect()
            });
            page[(at % PAGE) as usize] = byte;
        }
    }
}

impl ReadAt for Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let inside = (self.base.len() as u64).saturating_sub(offset);
        let (old, past) = buf.split_at_mut(inside.min(buf.len() as u64) as usize);
        if !old.is_empty() {
            old.copy_from_slice(&self.base[offset as usize..][..old.len()]);
        }
        past.fill(byte_of(self.base, u64::MAX));
        let end = offset + buf.len() as u64;
        for (&number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = (number * PAGE).max(offset);
            let stop = ((number + 1) * PAGE).min(end);
            buf[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(
                &page[(start - number * PAGE) as usize..(stop - number * PAGE) as usize],
            );
        }
        Ok(())
    }
}

fn byte_of(base: &[u8], at: u64) -> u8 {
    base.get(at as usize).copied().unwrap_or(0xA5)
}

/// An input, decoded.
pub struct Input<'a> {
    pub base: usize,
    pub flags: u8,
    pub amount: u16,
    patches: &'a [u8],
}

impl<'a> Input<'a> {
    /// `None` if it is too short to say anything.
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let (header, patches) = data.split_at_checked(HEADER)?;
        Some(Self {
            base: usize::from(header[0]),
            flags: header[1],
            amount: u16::from_le_bytes([header[2], header[3]]),
            patches: &patches[..patches.len().min(MOST_PATCHES * PATCH)],
        })
    }

    /// Damages `disk` at some of `places`, with numbers out of `telling` among others, which mean
    /// something on this disk; returns what was hit.
    pub fn damage<W: Copy>(&self, disk: &mut Disk, places: &[Place<W>], telling: &[u64]) -> Vec<W> {
        let mut hit = Vec::new();
        for patch in self.patches.chunks_exact(PATCH) {
            let small = |at: usize| usize::from(u16::from_le_bytes([patch[at], patch[at + 1]]));
            let Place { range, what } = &places[small(0) % places.len()];
            let len = range.end - range.start;
            let offset = small(2) as u64 % len;
            let width = (1u64 << (patch[5] % 4)).min(len - offset) as usize;
            let value = u64::from_le_bytes(std::array::from_fn(|i| patch[8 + i]));
            let at = range.start + offset;
            let old = disk.get(&(at..at + width as u64));
            let other = &places[small(6) % places.len()].range;
            let telling = telling[value as usize % telling.len()];
            let new = match patch[4] % 12 {
                0 => value.to_le_bytes()[..width].to_vec(),
                1 => (value % 64).to_le_bytes()[..width].to_vec(),
                2 => value.to_be_bytes()[8 - width..].to_vec(),
                3 => telling.to_le_bytes()[..width].to_vec(),
                4 => telling.to_be_bytes()[8 - width..].to_vec(),
                5 => added(&old, i64::from(value as i8), false),
                6 => added(&old, i64::from(value as i8), true),
                7 => added(&old, 1 << (value % 63), false),
                8 => flipped(old, value),
                9 => vec![value as u8; (value >> 8) as usize % 256],
                // Something sound of the same kind, at the wrong place.
                10 => disk.get(&(other.start..other.start + (other.end - other.start).min(len))),
                _ => {
                    let start = other.start + (value >> 32) % (other.end - other.start);
                    disk.get(&(start..(start + value % 64).min(other.end)))
                }
            };
            let at = if patch[4] % 12 == 10 { range.start } else { at };
            let room = (range.end - at) as usize;
            disk.put(at, &new[..new.len().min(room)]);
            hit.push(*what);
        }
        hit
    }
}

/// The number in `old`, which has up to eight bytes, plus `more`.
fn added(old: &[u8], more: i64, big_endian: bool) -> Vec<u8> {
    let mut wide = [0; 8];
    for (i, &byte) in old.iter().enumerate() {
        wide[if big_endian { old.len() - 1 - i } else { i }] = byte;
    }
    let sum = u64::from_le_bytes(wide).wrapping_add_signed(more);
    let mut new = sum.to_le_bytes()[..old.len()].to_vec();
    if big_endian {
        new.reverse();
    }
    new
}

fn flipped(mut bytes: Vec<u8>, value: u64) -> Vec<u8> {
    let bit = value as usize % (8 * bytes.len());
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}
