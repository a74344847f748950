//! Block maps (`.bmap`): which blocks of an image hold data, and their checksums.
//!
//! ```text
//! <bmap version="2.0">
//!   <ImageSize> bytes · <BlockSize> bytes · <BlocksCount> rounded up · <MappedBlocksCount>
//!   <ChecksumType> sha256 · <BmapFileChecksum> of this file with 64 zeros in its own place
//!   <BlockMap> <Range chksum="hex"> first-last </Range> …   block numbers, both inclusive
//! ```
//! The format is that of bmaptool (Yocto project); version 1.4 is the same thing, and 1.3 and
//! older differ in their checksums only.
//!
//! Decisions: an unmapped block means "anything will do", so a map made here leaves out only what
//! is free. The last range stops at `ImageSize`, also if that is within a block. Checksums of
//! versions up to 1.3 are SHA-1, or absent: such maps are taken without them, and what a flash
//! reads back is compared with what it wrote in any case. A newer map with another checksum type
//! than SHA-256 is refused, since its promise could not be kept.

use std::collections::VecDeque;
use std::fmt::Write as _;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{RangeSet, is_zero};
use crate::units::ByteRange;

/// The block size of maps made here, in bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// Longer files are refused: this is room for 500,000 ranges.
pub const MAX_XML: usize = 64 << 20;

/// A block map, sound: its ranges ascend, lie within the image, and add up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bmap {
    /// Length of the image in bytes.
    pub image_size: u64,
    /// Bytes in a block, not 0.
    pub block_size: u64,
    /// Number of blocks in all ranges together.
    pub mapped_blocks: u64,
    /// Ascending and disjoint.
    pub ranges: Vec<BmapRange>,
}

/// Blocks that hold data. Inclusive at both ends, as in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BmapRange {
    pub first: u64,
    pub last: u64,
    /// Of the range's bytes, which end at the image's end at the latest.
    pub sha256: Option<[u8; 32]>,
}

impl Bmap {
    /// Decodes a map and verifies its own checksum, its counts, and its ranges.
    ///
    /// # Errors
    /// `Unsound` if it is no map or contradicts itself, `Verify` if its checksum does not match,
    /// `Unsupported` for versions from 3 on and for checksums other than SHA-256.
    pub fn parse(xml: &[u8]) -> Result<Bmap> {
        if xml.len() > MAX_XML {
            return Err(unsound(format!("it is longer than {} MiB", MAX_XML >> 20)));
        }
        let text = std::str::from_utf8(xml).map_err(|_| unsound("it is not text"))?;
        let fields = Fields::read(text)?;
        let checked = fields.check_version()?;
        if checked {
            verify_own_checksum(xml, fields.get("BmapFileChecksum")?)?;
        }
        let bmap = Bmap {
            image_size: fields.number("ImageSize")?,
            block_size: fields.number("BlockSize")?,
            mapped_blocks: fields.number("MappedBlocksCount")?,
            ranges: fields.decode_ranges(checked)?,
        };
        bmap.check(fields.number("BlocksCount")?)?;
        Ok(bmap)
    }

    /// Encodes the map as version 2.0, the way bmaptool does, with its own checksum.
    pub fn to_xml(&self) -> String {
        let mut xml = String::with_capacity(1024 + self.ranges.len() * 120);
        let fields = [
            ("ImageSize", self.image_size.to_string()),
            ("BlockSize", self.block_size.to_string()),
            ("BlocksCount", self.blocks().to_string()),
            ("MappedBlocksCount", self.mapped_blocks.to_string()),
            ("ChecksumType", "sha256".to_owned()),
            ("BmapFileChecksum", "0".repeat(64)),
        ];
        xml.push_str("<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n");
        for (name, value) in fields {
            let _ = writeln!(xml, "    <{name}> {value} </{name}>");
        }
        xml.push_str("    <BlockMap>\n");
        for range in &self.ranges {
            xml.push_str("        <Range");
            if let Some(sha256) = &range.sha256 {
                let _ = write!(xml, " chksum=\"{}\"", hex(sha256));
            }
            let _ = match range.first == range.last {
                true => writeln!(xml, "> {} </Range>", range.first),
                false => writeln!(xml, "> {}-{} </Range>", range.first, range.last),
            };
        }
        xml.push_str("    </BlockMap>\n</bmap>\n");
        let own = hex(&Sha256::digest(&xml).into());
        // The first run of zeros that long is the checksum's place: nothing before it has one.
        xml.replacen(&"0".repeat(64), &own, 1)
    }

    /// Returns the number of blocks in the image, the last one perhaps in part.
    pub fn blocks(&self) -> u64 {
        self.image_size.div_ceil(self.block_size)
    }

    /// Returns the bytes of the image that `range` stands for, up to the image's end.
    pub fn bytes_of(&self, range: &BmapRange) -> ByteRange {
        let start = range.first.saturating_mul(self.block_size);
        let end = range.last.saturating_add(1).saturating_mul(self.block_size);
        let end = end.min(self.image_size);
        ByteRange::new(start.min(end), end)
    }

    /// Returns all bytes of the image that hold data.
    pub fn mapped_bytes(&self) -> RangeSet {
        let bytes = self.ranges.iter().map(|range| self.bytes_of(range));
        bytes.map(|bytes| bytes.start..bytes.end).collect()
    }

    fn check(&self, blocks: u64) -> Result<()> {
        if self.block_size == 0 || !self.block_size.is_multiple_of(512) {
            return Err(unsound(format!(
                "its block size is {} bytes",
                self.block_size
            )));
        }
        if blocks != self.blocks() {
            return Err(unsound(format!(
                "it says {blocks} blocks for an image of {} bytes",
                self.image_size
            )));
        }
        let mut next = 0;
        let mut mapped = 0u64;
        for range in &self.ranges {
            let (first, last) = (range.first, range.last);
            if first > last || last >= blocks {
                return Err(unsound(format!(
                    "blocks {first} to {last} are not a range within its {blocks} blocks"
                )));
            }
            if first < next {
                return Err(unsound(format!(
                    "blocks {first} to {last} overlap or precede the range before"
                )));
            }
            next = last + 1;
            // No overflow: disjoint ranges below `blocks`.
            mapped += last - first + 1;
        }
        if mapped != self.mapped_blocks {
            return Err(unsound(format!(
                "it says {} mapped blocks, its ranges have {mapped}",
                self.mapped_blocks
            )));
        }
        Ok(())
    }
}

fn unsound(what: impl std::fmt::Display) -> Error {
    Error::unsound(format!("the block map is damaged: {what}"))
}

fn verify_own_checksum(xml: &[u8], given: &str) -> Result<()> {
    if given.len() != 64 || !given.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unsound("its checksum is not 64 hexadecimal digits"));
    }
    // The text is part of the file, so it is found; at its first occurrence, as bmaptool does.
    let place = xml
        .windows(64)
        .position(|window| window == given.as_bytes());
    let place = place.ok_or_else(|| unsound("its checksum is not written plainly"))?;
    let mut hash = Sha256::new();
    hash.update(&xml[..place]);
    hash.update([b'0'; 64]);
    hash.update(&xml[place + 64..]);
    let found = hex(&hash.finalize().into());
    if !found.eq_ignore_ascii_case(given) {
        return Err(Error::new(
            ErrorKind::Verify,
            "the block map's own checksum does not match",
        )
        .with_hint("the .bmap file was changed or damaged: fetch it again"));
    }
    Ok(())
}

/// The map's texts, still undecoded.
#[derive(Default)]
struct Fields {
    version: String,
    fields: Vec<(String, String)>,
    /// Numbers and checksum of each range.
    ranges: Vec<(String, Option<String>)>,
}

impl Fields {
    fn read(text: &str) -> Result<Self> {
        let mut reader = Reader::from_str(text);
        let mut all = Self::default();
        let mut path: Vec<String> = Vec::new();
        let mut value = String::new();
        let mut chksum = None;
        let mut closed = false;
        loop {
            let event = reader.read_event().map_err(|error| {
                unsound(format!("not XML at byte {}", reader.error_position())).with_source(error)
            })?;
            match event {
                Event::Start(tag) => {
                    if path.is_empty() {
                        all.version = root_version(&tag, closed)?;
                    }
                    if path.len() == 2 {
                        chksum = attribute(&tag, "chksum")?;
                    }
                    if path.len() == 8 {
                        return Err(unsound("its elements are nested too deep"));
                    }
                    value.clear();
                    path.push(tag_name(&tag));
                }
                Event::Text(piece) => {
                    let piece: &str = &piece.into_inner();
                    if path.is_empty() && !piece.trim().is_empty() {
                        return Err(unsound("there is text outside of it"));
                    }
                    value.push_str(piece);
                }
                Event::End(_) => {
                    let value = std::mem::take(&mut value).trim().to_owned();
                    let name = path.pop().unwrap_or_default();
                    match path.len() {
                        0 => closed = true,
                        1 if name != "BlockMap" => all.add_field(name, value)?,
                        2 if path[1] == "BlockMap" && name == "Range" => {
                            all.ranges.push((value, chksum.take()));
                        }
                        _ => {}
                    }
                }
                Event::Eof if closed && path.is_empty() => return Ok(all),
                Event::Eof => return Err(unsound("it ends early")),
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) | Event::Empty(_) => {}
                // Entities can be made to expand without end; no map needs any of these.
                Event::DocType(_) | Event::GeneralRef(_) | Event::CData(_) => {
                    return Err(unsound("it uses XML features that no block map needs"));
                }
            }
        }
    }

    fn add_field(&mut self, name: String, value: String) -> Result<()> {
        if self.fields.iter().any(|(known, _)| *known == name) {
            return Err(unsound(format!("{name:?} is there twice")));
        }
        if self.fields.len() == 64 {
            return Err(unsound("it has too many fields"));
        }
        self.fields.push((name, value));
        Ok(())
    }

    /// Returns whether the map's checksums are of a kind that is verified.
    fn check_version(&self) -> Result<bool> {
        let version = self.version.as_str();
        let numbers = version.split_once('.').and_then(|(major, minor)| {
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        match numbers {
            // Only the version field separates the two kinds: a flipped bit must not switch
            // verification off.
            Some((1, 0..=3)) if self.get("BmapFileChecksum").is_ok() => Err(unsound(format!(
                "it has version {version}, and a checksum as of version 2"
            ))),
            Some((1, 0..=3)) => Ok(false),
            Some((1 | 2, _)) => match self.get("ChecksumType")? {
                "sha256" => Ok(true),
                other => Err(Error::unsupported(format!(
                    "the block map uses the checksum type {other:?}, not sha256"
                ))
                .with_hint("go without the map, or make it again with bmaptool")),
            },
            Some((3.., _)) => Err(Error::unsupported(format!(
                "the block map has version {version}, newer than 2"
            ))),
            _ => Err(unsound(format!("its version is {version:?}"))),
        }
    }

    fn get(&self, name: &str) -> Result<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        let (_, value) = found.ok_or_else(|| unsound(format!("it has no {name}")))?;
        Ok(value)
    }

    fn number(&self, name: &str) -> Result<u64> {
        let value = self.get(name)?;
        decimal(value).ok_or_else(|| unsound(format!("{name} is {value:?}")))
    }

    fn decode_ranges(&self, checked: bool) -> Result<Vec<BmapRange>> {
        let decode = |(numbers, chksum): &(String, Option<String>)| {
            let wrong = || unsound(format!("{numbers:?} is no range of blocks"));
            let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
            let sha256 = match chksum {
                Some(text) if checked => Some(unhex(text).ok_or_else(|| {
                    unsound(format!("the checksum of range {numbers:?} is {text:?}"))
                })?),
                _ => None,
            };
            Ok(BmapRange {
                first: decimal(first.trim()).ok_or_else(wrong)?,
                last: decimal(last.trim()).ok_or_else(wrong)?,
                sha256,
            })
        };
        self.ranges.iter().map(decode).collect()
    }
}

fn root_version(tag: &BytesStart<'_>, closed: bool) -> Result<String> {
    if closed || tag_name(tag) != "bmap" {
        return Err(unsound("it is another kind of XML file"));
    }
    Ok(attribute(tag, "version")?.unwrap_or_default())
}

fn tag_name(tag: &BytesStart<'_>) -> String {
    let name: &str = tag.name().into_inner();
    name.to_owned()
}

fn attribute(tag: &BytesStart<'_>, name: &str) -> Result<Option<String>> {
    let found = tag
        .try_get_attribute(name)
        .map_err(|error| unsound("an attribute is not XML").with_source(error))?;
    Ok(found.map(|attribute| attribute.value.trim().to_owned()))
}

/// Digits only: `parse` alone would also take a sign.
fn decimal(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

/// Makes a map while the image passes by, without keeping or copying any of it.
pub struct BmapBuilder {
    image_size: u64,
    /// Ranges still to be reached or under way, in blocks (half-open).
    todo: VecDeque<std::ops::Range<u64>>,
    done: Vec<BmapRange>,
    hash: Sha256,
    position: u64,
}

impl BmapBuilder {
    /// Starts a map of an image of `image_size` bytes whose data lies in `mapped` (bytes; rounded
    /// out to blocks, and cut at the image's end).
    pub fn new(image_size: u64, mapped: &RangeSet) -> Self {
        let blocks: RangeSet = mapped
            .iter_within(0..image_size)
            .map(|bytes| bytes.start / BLOCK_SIZE..bytes.end.div_ceil(BLOCK_SIZE))
            .collect();
        Self {
            image_size,
            todo: blocks.iter().collect(),
            done: Vec::with_capacity(blocks.run_count()),
            hash: Sha256::new(),
            position: 0,
        }
    }

    /// Takes the image's next bytes, which begin at byte `offset`.
    ///
    /// # Errors
    /// `Internal` if they do not follow on, go past the end, or hold data where none is mapped.
    pub fn update(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.follow(offset, bytes.len() as u64, &mut |hash, range| match hash {
            Some(hash) => {
                hash.update(&bytes[range]);
                true
            }
            None => is_zero(&bytes[range]),
        })
    }

    /// Takes `len` zero bytes as the image's next ones.
    ///
    /// # Errors
    /// As [`BmapBuilder::update`].
    pub fn zeros(&mut self, offset: u64, len: u64) -> Result<()> {
        // In parts, since positions within one are memory sizes.
        let mut offset = offset;
        let mut left = len;
        while left > 0 {
            let part = left.min(1 << 30);
            self.follow(offset, part, &mut |hash, range| {
                if let Some(hash) = hash {
                    hash_zeros(hash, range.len() as u64);
                }
                true
            })?;
            offset += part;
            left -= part;
        }
        Ok(())
    }

    /// Cuts `len` bytes at the borders of ranges, and gives each piece to `take` with the hash it
    /// belongs to; `take` says whether a piece without one may be left out.
    fn follow(
        &mut self,
        offset: u64,
        len: u64,
        take: &mut dyn FnMut(Option<&mut Sha256>, std::ops::Range<usize>) -> bool,
    ) -> Result<()> {
        if offset != self.position || len > self.image_size - self.position {
            return Err(Error::internal(format!(
                "the block map was given {len} bytes at byte {offset}, at byte {} of {}",
                self.position, self.image_size
            )));
        }
        let end = offset + len;
        while self.position < end {
            let at = (self.position - offset) as usize;
            // No overflow: blocks of an image whose length is a u64, and cut at its end.
            let (start, stop) = match self.todo.front() {
                Some(range) => (
                    range.start * BLOCK_SIZE,
                    range.end.saturating_mul(BLOCK_SIZE).min(self.image_size),
                ),
                None => (self.image_size, self.image_size),
            };
            let inside = self.position >= start;
            let next = if inside { stop } else { start }.min(end);
            let hash = inside.then_some(&mut self.hash);
            if !take(hash, at..(next - offset) as usize) {
                return Err(Error::internal(format!(
                    "data at byte {} of the image is not in its block map",
                    self.position
                )));
            }
            self.position = next;
            if inside && next == stop {
                self.close_range();
            }
        }
        Ok(())
    }

    fn close_range(&mut self) {
        if let Some(range) = self.todo.pop_front() {
            self.done.push(BmapRange {
                first: range.start,
                last: range.end - 1,
                sha256: Some(self.hash.finalize_reset().into()),
            });
        }
    }

    /// Returns the map of the whole image.
    ///
    /// # Errors
    /// `Internal` if bytes are missing at the end.
    pub fn finish(self) -> Result<Bmap> {
        if self.position != self.image_size {
            return Err(Error::internal(format!(
                "the block map saw {} of {} bytes",
                self.position, self.image_size
            )));
        }
        let blocks = |range: &BmapRange| range.last - range.first + 1;
        Ok(Bmap {
            image_size: self.image_size,
            block_size: BLOCK_SIZE,
            mapped_blocks: self.done.iter().map(blocks).sum(),
            ranges: self.done,
        })
    }
}

/// The SHA-256 of an image's whole contents, holes included.
#[derive(Clone, Default)]
pub struct ContentHash(Sha256);

impl ContentHash {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn zeros(&mut self, len: u64) {
        hash_zeros(&mut self.0, len);
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    /// Returns the digest as people compare it: 64 hexadecimal digits.
    pub fn finish_hex(self) -> String {
        hex(&self.finish())
    }
}

fn hash_zeros(hash: &mut Sha256, mut len: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        hash.update(&ZEROS[..part as usize]);
        len -= part;
    }
}

#[cfg(test)]
mod tests;
