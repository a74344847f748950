//! What is written to a card, decided before anything is.
//!
//! Decisions: gaps in a block map that are shorter than [`SHORT_GAP`] are written like their
//! surroundings, since one large request is faster than two small ones. An image whose length is
//! not known beforehand (a stream, gzip) is held against the card by what its partition table
//! says, and again as it is unpacked; the card's first bytes are withheld anyway.

use std::ops::Range;

use crate::bmap::Bmap;
use crate::error::{Error, ErrorKind, Result};
use crate::io::RangeSet;
use crate::units::human_bytes;

/// Bytes of a request to a card, and of the grid that requests keep to.
pub const CELL: u64 = 2 << 20;

/// Bytes that share one strong digest.
pub const PIECE: u64 = 1 << 20;

/// Bytes that a difference is pinned to.
pub const BLOCK: u64 = 4096;

/// The card's first bytes, which are written when all others have been read back. The boot ROMs'
/// own loaders at 8 KiB and 64 KiB lie in it as well as all of a partition table's start.
pub const HEAD: u64 = 1 << 20;

/// Gaps shorter than this are written too.
const SHORT_GAP: u64 = 32 << 10;

/// Which bytes of an image go to a card, and which bytes of the card the image leaves alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlashPlan {
    image_len: Option<u64>,
    /// `None`: all bytes.
    written: Option<RangeSet>,
}

impl FlashPlan {
    /// Plans for an image of `image_len` bytes, where that is known, and its block map.
    ///
    /// # Errors
    /// `Unsound` if the map is one of an image of another size.
    pub fn new(image_len: Option<u64>, map: Option<&Bmap>) -> Result<Self> {
        let Some(map) = map else {
            return Ok(Self {
                image_len,
                written: None,
            });
        };
        if let Some(len) = image_len
            && len != map.image_size
        {
            return Err(Error::unsound(format!(
                "the block map is of an image of {} bytes, this one has {len}",
                map.image_size
            ))
            .with_hint("use the map that was made with this image, or --no-bmap"));
        }
        let mut written = map.mapped_bytes();
        for gap in written.gaps(0..map.image_size) {
            let between = gap.start > 0 && gap.end < map.image_size;
            if between && gap.end - gap.start < SHORT_GAP {
                written.insert(gap);
            }
        }
        Ok(Self {
            image_len: Some(map.image_size),
            written: Some(written),
        })
    }

    /// Returns the image's length in bytes, where it is known.
    pub fn image_len(&self) -> Option<u64> {
        self.image_len
    }

    /// Returns the number of bytes that are written, where it is known.
    pub fn bytes(&self) -> Option<u64> {
        match &self.written {
            Some(written) => Some(written.total()),
            None => self.image_len,
        }
    }

    /// Checks that the image fits on a card of `card_len` bytes. `needed` is what its partition
    /// table asks for.
    ///
    /// # Errors
    /// `NoSpace` with both sizes.
    pub fn check_fits(&self, card_len: u64, needed: Option<u64>) -> Result<()> {
        let image_len = self.image_len.unwrap_or(0);
        if image_len > card_len {
            return Err(too_small("the image has", image_len, card_len));
        }
        let needed = needed.unwrap_or(0);
        if needed > card_len {
            return Err(too_small("the image's partitions need", needed, card_len));
        }
        Ok(())
    }

    /// Returns what to write of the bytes `range` of the image.
    pub(super) fn written_within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        match &self.written {
            Some(written) => written.iter_within(range).collect(),
            None => vec![range],
        }
    }

    /// Returns the first byte from `offset` on that is to be written, if the plan knows of one.
    pub(super) fn next_written(&self, offset: u64) -> Option<u64> {
        match &self.written {
            Some(written) => written
                .iter_within(offset..u64::MAX)
                .next()
                .map(|range| range.start.max(offset)),
            None => Some(offset),
        }
    }

    /// Returns the ranges of a card of `card_len` bytes that the image has nothing for: those
    /// that the map leaves out and, with `tail`, those behind the image. The withheld first bytes
    /// are not among them.
    pub fn unused(&self, card_len: u64, tail: bool) -> Vec<Range<u64>> {
        let Some(image_len) = self.image_len.map(|len| len.min(card_len)) else {
            return Vec::new();
        };
        let mut unused = RangeSet::new();
        if let Some(written) = &self.written {
            for gap in written.gaps(0..image_len) {
                unused.insert(gap);
            }
        }
        if tail && image_len < card_len {
            unused.insert(image_len..card_len);
        }
        unused.remove(0..HEAD.min(card_len));
        unused.iter().collect()
    }
}

/// Refuses a partition of `size` bytes on a card of `card_len`, before anything is written.
///
/// # Errors
/// `NoSpace` with both sizes.
pub(super) fn check_wish(size: u64, card_len: u64) -> Result<()> {
    if size <= card_len {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!(
            "the last partition cannot have {size} bytes ({}): the card has {card_len} ({})",
            human_bytes(size),
            human_bytes(card_len)
        ),
    )
    .with_hint("--expand max takes what there is"))
}

pub(super) fn too_small(what: &str, image: u64, card: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!(
            "the card is too small: {what} {image} bytes ({}), the card {card} ({})",
            human_bytes(image),
            human_bytes(card)
        ),
    )
    .with_hint("use a larger card, or capture the image again: capture shrinks it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmap::BmapRange;

    fn map(image_size: u64, ranges: &[(u64, u64)]) -> Bmap {
        Bmap {
            image_size,
            block_size: BLOCK,
            mapped_blocks: ranges.iter().map(|(first, last)| last - first + 1).sum(),
            ranges: ranges
                .iter()
                .map(|&(first, last)| BmapRange {
                    first,
                    last,
                    sha256: None,
                })
                .collect(),
        }
    }

    #[test]
    fn short_gaps_are_written_and_long_ones_are_unused() {
        let len = 1000 * BLOCK + 100;
        let map = map(len, &[(0, 300), (303, 310), (500, 1000)]);
        let plan = FlashPlan::new(Some(len), Some(&map)).unwrap();
        assert_eq!(
            plan.written_within(0..len),
            [0..311 * BLOCK, 500 * BLOCK..len]
        );
        assert_eq!(plan.bytes(), Some(811 * BLOCK + 100));
        let gap = 311 * BLOCK..500 * BLOCK;
        assert_eq!(plan.unused(len + BLOCK, false), std::slice::from_ref(&gap));
        assert_eq!(plan.unused(len + BLOCK, true), [gap, len..len + BLOCK]);
        assert_eq!(plan.next_written(320 * BLOCK), Some(500 * BLOCK));
        assert_eq!(plan.next_written(len), None);
    }

    #[test]
    fn refuses_a_small_card_with_both_sizes_and_a_map_of_another_image() {
        let plan = FlashPlan::new(Some(4000), None).unwrap();
        plan.check_fits(4000, Some(4000)).unwrap();
        let error = plan.check_fits(3999, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("4000 bytes"), "{error}");
        assert!(error.to_string().contains("the card 3999"), "{error}");
        let error = plan.check_fits(4000, Some(8192)).unwrap_err();
        assert!(error.to_string().contains("partitions need 8192"));
        check_wish(4000, 4000).unwrap();
        let error = check_wish(4001, 4000).unwrap_err();
        assert!(error.to_string().contains("4001 bytes"), "{error}");
        let error = FlashPlan::new(Some(5), Some(&map(BLOCK, &[(0, 0)]))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound);
    }
}
