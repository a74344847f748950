//! Requests as raw devices want them: an adaptor that lets any range be read and written through a
//! medium that takes whole blocks only.

use std::ops::Range;
use std::sync::Mutex;

use crate::error::Result;
use crate::io::{AlignedBuf, MEMORY_ALIGNMENT, ReadAt, WriteAt, check_range};

/// How much goes through a bounce buffer at a time.
const BOUNCE: u64 = 1 << 20;

/// A medium that takes whole, aligned blocks only, behind an adaptor that takes any range.
///
/// Aligned requests pass through untouched. Others are copied through an aligned buffer; a write that
/// covers a block in part reads the block first. `inner`'s length must be a multiple of `block`.
#[derive(Debug)]
pub struct Bounced<T> {
    inner: T,
    block: u64,
    /// Is `inner` indifferent to where in memory a buffer lies?
    any_memory: bool,
    /// Held from reading a block until it is written back changed: two writers may share a block.
    /// A writer of whole blocks needs no turn, since nobody else may write the same bytes.
    patching: Mutex<()>,
}

impl<T: ReadAt> Bounced<T> {
    /// Puts the adaptor over `inner`, whose requests must be multiples of `block` bytes.
    pub fn new(inner: T, block: u64, any_memory: bool) -> Self {
        debug_assert!(block > 0 && inner.len().is_multiple_of(block));
        Self {
            inner,
            block,
            any_memory,
            patching: Mutex::new(()),
        }
    }

    /// Returns what lies behind the adaptor.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    pub fn into_inner(self) -> T {
        self.inner
    }

    /// Returns the multiple of bytes that passes without a copy.
    pub fn block(&self) -> u64 {
        self.block
    }

    fn passes(&self, offset: u64, buf: &[u8]) -> bool {
        offset.is_multiple_of(self.block)
            && (buf.len() as u64).is_multiple_of(self.block)
            && (self.any_memory || buf.as_ptr().addr().is_multiple_of(MEMORY_ALIGNMENT))
    }

    /// Cuts the whole blocks around `len` bytes at `offset` into pieces, and makes a buffer for the
    /// longest. They lie within `inner`, as the bytes do.
    fn pieces(&self, offset: u64, len: usize) -> (AlignedBuf, impl Iterator<Item = Piece>) {
        let end = offset + len as u64;
        let (start, stop) = (
            offset - offset % self.block,
            end.next_multiple_of(self.block),
        );
        let step = BOUNCE.next_multiple_of(self.block).min(stop - start);
        let pieces = (start..stop).step_by(step as usize).map(move |at| {
            let take = (stop - at).min(step);
            let (from, to) = (at.max(offset), (at + take).min(end));
            Piece {
                at,
                take: take as usize,
                within: (from - at) as usize..(to - at) as usize,
                of_all: (from - offset) as usize..(to - offset) as usize,
            }
        });
        (AlignedBuf::zeroed(step as usize), pieces)
    }
}

/// Whole blocks, some of whose bytes are wanted.
struct Piece {
    /// Where they lie, in bytes.
    at: u64,
    /// How many bytes they are.
    take: usize,
    /// Which bytes of them are wanted.
    within: Range<usize>,
    /// Which bytes of all that is wanted those are.
    of_all: Range<usize>,
}

impl<T: ReadAt> ReadAt for Bounced<T> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        if buf.is_empty() || self.passes(offset, buf) {
            return self.inner.read_exact_at(offset, buf);
        }
        let (mut bounce, pieces) = self.pieces(offset, buf.len());
        for piece in pieces {
            let blocks = &mut bounce[..piece.take];
            self.inner.read_exact_at(piece.at, blocks)?;
            buf[piece.of_all].copy_from_slice(&blocks[piece.within]);
        }
        Ok(())
    }
}

impl<T: WriteAt> WriteAt for Bounced<T> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        if self.passes(offset, buf) {
            return self.inner.write_all_at(offset, buf);
        }
        let (mut bounce, pieces) = self.pieces(offset, buf.len());
        for piece in pieces {
            let (at, within) = (piece.at, piece.within);
            let blocks = &mut bounce[..piece.take];
            let (cut_first, cut_last) = (within.start > 0, within.end < piece.take);
            // Poisoned means that another writer panicked; the medium is no worse for it.
            let partial = (cut_first || cut_last).then(|| {
                self.patching
                    .lock()
                    .unwrap_or_else(|poison| poison.into_inner())
            });
            if cut_first {
                self.inner
                    .read_exact_at(at, &mut blocks[..self.block as usize])?;
            }
            if cut_last {
                let last = piece.take - self.block as usize;
                self.inner
                    .read_exact_at(at + last as u64, &mut blocks[last..])?;
            }
            blocks[within].copy_from_slice(&buf[piece.of_all]);
            self.inner.write_all_at(at, blocks)?;
            drop(partial);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::io::memory::{MemoryDisk, StrictDisk};

    fn pattern(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn any_range_reads_and_writes_through_whole_blocks() {
        const LEN: usize = 3 << 20;
        for block in [1, 512, 4096] {
            let mut expected = pattern(LEN, 1);
            let disk = Bounced::new(
                StrictDisk::new(MemoryDisk::from(expected.clone()), block),
                block,
                false,
            );
            for (number, (offset, count)) in [
                (0, 0),
                (0, 1),
                (1, 1),
                (511, 2),
                (4095, 4098),
                (0, 4096),
                (4096, 1 << 20),
                (100, (1 << 20) + 5000),
                (LEN - 1, 1),
                (LEN - 600, 600),
                (LEN, 0),
                (7, LEN - 9),
                (0, LEN),
            ]
            .into_iter()
            .enumerate()
            {
                let new = pattern(count, 2 + number as u32);
                disk.write_all_at(offset as u64, &new).unwrap();
                expected[offset..offset + count].copy_from_slice(&new);
                let mut all = vec![0; LEN];
                disk.read_exact_at(0, &mut all).unwrap();
                assert!(
                    all == expected,
                    "write of {count} at {offset}, block {block}"
                );
                assert_eq!(disk.read_vec_at(offset as u64, count).unwrap(), new);
            }
        }
    }

    #[test]
    fn refuses_ranges_past_the_end() {
        let disk = Bounced::new(StrictDisk::new(MemoryDisk::new(8192), 512), 512, false);
        for (offset, count) in [(8192, 1), (8191, 2), (u64::MAX, 1)] {
            let error = disk.read_exact_at(offset, &mut vec![0; count]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound);
            let error = disk.write_all_at(offset, &vec![0; count]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound);
        }
    }

    /// A disk that lets others run between a read and what is done with it.
    struct SlowDisk(MemoryDisk);

    impl ReadAt for SlowDisk {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.0.read_exact_at(offset, buf)?;
            std::thread::sleep(std::time::Duration::from_micros(50));
            Ok(())
        }
    }

    impl WriteAt for SlowDisk {
        fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
            self.0.write_all_at(offset, buf)
        }

        fn sync(&self) -> Result<()> {
            self.0.sync()
        }
    }

    #[test]
    fn writers_of_one_block_do_not_undo_each_other() {
        const LEN: u64 = 512;
        let disk = Bounced::new(SlowDisk(MemoryDisk::new(LEN)), LEN, false);
        std::thread::scope(|scope| {
            for writer in 0..4_u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for at in (writer..LEN).step_by(4) {
                        disk.write_all_at(at, &[writer as u8 + 1]).unwrap();
                    }
                });
            }
        });
        let bytes = disk.read_vec_at(0, LEN as usize).unwrap();
        for (at, byte) in bytes.into_iter().enumerate() {
            assert_eq!(byte as usize, at % 4 + 1, "byte {at}");
        }
    }
}
