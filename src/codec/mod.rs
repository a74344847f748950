//! Compression formats: which one a stream is, unpacking it, and packing into one.
//!
//! ```text
//! first bytes  format  written  unpacked  parallel            checked by
//! 1f 8b 08     gzip    yes      yes       packing             CRC-32 and length per member
//! fd 37 7a 58  xz      yes      yes       both (by block)     CRC-64 per block (as written here)
//! 28 b5 2f fd  zstd    yes      yes       packing             XXH64 per frame (as written here)
//! 42 5a 68     bzip2   no       yes       no                  CRC-32 per block and per stream
//! 50 4b        zip     no       yes       no                  CRC-32 and length per file
//! ```
//!
//! Decisions: a format is told by content, never by name; a stream that ends early, or goes on
//! after its end, is an error; an encoder that is dropped unfinished leaves an output that its
//! format calls truncated.

mod bzip2;
mod decode;
mod encode;
pub mod foreign;
mod gzip;
mod lzma;
#[cfg(test)]
mod tests;
mod unpack;
mod xz;
mod zip;
mod zstd;

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

pub use decode::Decoder;
pub use encode::Encoder;

/// A way in which an image's bytes are packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Not packed.
    Raw,
    Gzip,
    Xz,
    Zstd,
    /// Read only.
    Bzip2,
    /// Read only: an archive with one file in it.
    Zip,
}

impl Codec {
    /// Every codec, in the order of the table above.
    pub const ALL: [Codec; 6] = [
        Codec::Raw,
        Codec::Gzip,
        Codec::Xz,
        Codec::Zstd,
        Codec::Bzip2,
        Codec::Zip,
    ];

    /// How many first bytes [`Codec::detect`] can use.
    pub const DETECT_LEN: usize = 10;

    /// Tells the format from the first bytes of a stream (up to [`Codec::DETECT_LEN`] of them are
    /// looked at); what is no known format is [`Codec::Raw`].
    pub fn detect(first: &[u8]) -> Codec {
        match first {
            // Method 8 is deflate; the three high flag bits are reserved and zero (RFC 1952).
            [0x1f, 0x8b, 8, flags, ..] if flags & 0xe0 == 0 => Codec::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Codec::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
            // A skippable frame (RFC 8878, 3.1.2) comes first in some tools' output.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
            // The block magic is BCD pi, that of the end of an empty stream BCD sqrt(pi).
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Codec::Bzip2,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] | [b'P', b'K', 7, 8, ..] => Codec::Zip,
            _ => Codec::Raw,
        }
    }

    /// Returns the codec that a file's name asks for, if its extension is known; for output.
    pub fn from_extension(path: impl AsRef<Path>) -> Option<Codec> {
        let extension = path.as_ref().extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "img" | "raw" | "bin" | "dd" | "iso" | "wic" | "dmg" => Codec::Raw,
            "gz" => Codec::Gzip,
            "xz" => Codec::Xz,
            "zst" | "zstd" => Codec::Zstd,
            "bz2" => Codec::Bzip2,
            "zip" => Codec::Zip,
            _ => return None,
        })
    }

    /// Returns the codec with this [`name`](Codec::name) or usual extension.
    pub fn from_name(name: &str) -> Option<Codec> {
        Some(match name.to_ascii_lowercase().as_str() {
            "raw" | "img" | "none" => Codec::Raw,
            "gzip" | "gz" => Codec::Gzip,
            "xz" => Codec::Xz,
            "zstd" | "zst" => Codec::Zstd,
            "bzip2" | "bz2" => Codec::Bzip2,
            "zip" => Codec::Zip,
            _ => return None,
        })
    }

    /// Returns the name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Gzip => "gzip",
            Codec::Xz => "xz",
            Codec::Zstd => "zstd",
            Codec::Bzip2 => "bzip2",
            Codec::Zip => "zip",
        }
    }

    /// Returns the usual extension without its dot; `img` for raw images.
    pub fn extension(self) -> &'static str {
        match self {
            Codec::Raw => "img",
            Codec::Gzip => "gz",
            Codec::Xz => "xz",
            Codec::Zstd => "zst",
            Codec::Bzip2 => "bz2",
            Codec::Zip => "zip",
        }
    }

    /// Can [`Encoder`] write this format?
    pub fn can_write(self) -> bool {
        !matches!(self, Codec::Bzip2 | Codec::Zip)
    }

    /// Returns the levels that [`Encoder::new`] takes; only 0 where there is nothing to choose.
    pub fn levels(self) -> RangeInclusive<u32> {
        match self {
            Codec::Gzip => 1..=9,
            Codec::Xz => 0..=9,
            Codec::Zstd => 1..=19,
            Codec::Raw | Codec::Bzip2 | Codec::Zip => 0..=0,
        }
    }

    /// Returns the level that is used when none is asked for.
    pub fn default_level(self) -> u32 {
        match self {
            Codec::Gzip | Codec::Xz => 6,
            Codec::Zstd => 3,
            Codec::Raw | Codec::Bzip2 | Codec::Zip => 0,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
