//! What is remembered of the bytes that were written, to hold against what is read back.
//!
//! Per piece (at most 1 MiB) a BLAKE3 digest, which decides; per 4 KiB block a CRC-32C, which
//! pins a difference to its blocks and finds where misplaced blocks come from. That is 4 bytes
//! for 4 KiB: 8 MiB for 8 GB, 64 MiB for 64 GB.

use std::collections::HashMap;
use std::ops::Range;

use super::plan::{BLOCK, PIECE};

/// The digests of all written bytes, in ascending order.
#[derive(Debug, Default)]
pub struct Digests {
    pieces: Vec<Piece>,
    blocks: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len: u32,
    first_block: u32,
    digest: [u8; 32],
}

impl Piece {
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + u64::from(self.len)
    }

    pub(super) fn matches(&self, bytes: &[u8]) -> bool {
        *blake3::hash(bytes).as_bytes() == self.digest
    }
}

impl Digests {
    /// Adds `bytes`, which lie at `offset`, behind all bytes added so far.
    pub(super) fn add(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut start = offset;
        while !bytes.is_empty() {
            // Pieces keep to the grid, so that what is read again for one is whole requests.
            let room = PIECE - start % PIECE;
            let (piece, rest) = bytes.split_at(bytes.len().min(room as usize));
            self.pieces.push(Piece {
                start,
                len: piece.len() as u32,
                first_block: self.blocks.len() as u32,
                digest: *blake3::hash(piece).as_bytes(),
            });
            self.blocks
                .extend(blocks(start..start + piece.len() as u64).map(|block| {
                    crc32c::crc32c(
                        &piece[(block.start - start) as usize..(block.end - start) as usize],
                    )
                }));
            start += piece.len() as u64;
            bytes = rest;
        }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns the number of bytes the digests are of.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }

    /// Returns the pieces that hold any byte of `range`.
    pub(super) fn pieces_of(&self, range: &Range<u64>) -> Range<usize> {
        let first = self
            .pieces
            .partition_point(|piece| piece.range().end <= range.start);
        let end = self.pieces.partition_point(|piece| piece.start < range.end);
        first..end.max(first)
    }

    /// Returns the blocks of a piece with their checksums.
    pub(super) fn blocks_of(&self, piece: &Piece) -> impl Iterator<Item = (Range<u64>, u32)> + '_ {
        let crcs = &self.blocks[piece.first_block as usize..];
        blocks(piece.range()).zip(crcs.iter().copied())
    }

    /// Finds the places of blocks with the checksums `wanted`; at most `most` for each.
    pub(super) fn find(&self, wanted: &mut HashMap<u32, Vec<u64>>, most: usize) {
        for piece in &self.pieces {
            for (block, crc) in self.blocks_of(piece) {
                if let Some(places) = wanted.get_mut(&crc)
                    && places.len() < most
                {
                    places.push(block.start);
                }
            }
        }
    }
}

/// Cuts `range` at multiples of [`BLOCK`].
pub(super) fn blocks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        (start < range.end).then(|| {
            let end = (start - start % BLOCK + BLOCK).min(range.end);
            let block = start..end;
            start = end;
            block
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_blocks_keep_to_their_grids() {
        let bytes: Vec<u8> = (0..3 * PIECE as usize).map(|at| (at / 97) as u8).collect();
        let mut digests = Digests::default();
        digests.add(100, &bytes[..5000]);
        digests.add(PIECE - 50, &bytes[..PIECE as usize + 100]);
        let ranges: Vec<_> = digests.pieces().iter().map(Piece::range).collect();
        let expected = [
            100..5100,
            PIECE - 50..PIECE,
            PIECE..2 * PIECE,
            2 * PIECE..2 * PIECE + 50,
        ];
        assert_eq!(ranges, expected);
        assert_eq!(digests.bytes(), 5000 + PIECE + 100);
        let first: Vec<_> = digests.blocks_of(&digests.pieces()[0]).collect();
        assert_eq!(first[0], (100..4096, crc32c::crc32c(&bytes[..3996])));
        assert_eq!(first[1], (4096..5100, crc32c::crc32c(&bytes[3996..5000])));
        assert_eq!(digests.pieces_of(&(5099..PIECE - 50)), 0..1);
        assert_eq!(digests.pieces_of(&(5100..PIECE - 50)), 1..1);
        assert_eq!(digests.pieces_of(&(0..u64::MAX)), 0..4);
    }
}
