//! Where things go: the translation table for moved blocks, and the free space they go to.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::units::BlockNr;

/// An injective run-length map from old to new block numbers; what it does not name stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relocation {
    /// (old, length, new), ascending and disjoint in old.
    runs: Vec<(BlockNr, u64, BlockNr)>,
}

impl Relocation {
    /// Makes a map of runs of (old, length, new) in any order, disjoint in old.
    pub fn from_unsorted(mut runs: Vec<(BlockNr, u64, BlockNr)>) -> Self {
        runs.sort_unstable();
        runs.dedup_by(|next, last| {
            let joined = last.0 + last.1 == next.0 && last.2 + last.1 == next.2;
            if joined {
                last.1 += next.1;
            }
            joined
        });
        Self { runs }
    }

    /// Adds a run; runs are added in ascending order of `old`.
    pub fn push(&mut self, old: BlockNr, len: u64, new: BlockNr) {
        debug_assert!(
            self.runs
                .last()
                .is_none_or(|&(start, count, _)| start + count <= old)
        );
        if let Some(last) = self.runs.last_mut()
            && last.0 + last.1 == old
            && last.2 + last.1 == new
        {
            last.1 += len;
            return;
        }
        self.runs.push((old, len, new));
    }

    /// Returns the new number of a block.
    pub fn of(&self, block: BlockNr) -> BlockNr {
        let index = self
            .runs
            .partition_point(|&(old, len, _)| old + len <= block);
        match self.runs.get(index) {
            Some(&(old, _, new)) if old <= block => new + (block - old),
            _ => block,
        }
    }

    /// Cuts `len` blocks from `block` on into runs of (new start, length).
    pub fn pieces(&self, block: BlockNr, len: u64) -> Vec<(BlockNr, u64)> {
        let end = block + len;
        let mut at = block;
        let mut index = self
            .runs
            .partition_point(|&(old, len, _)| old + len <= block);
        let mut pieces: Vec<(BlockNr, u64)> = Vec::new();
        while at < end {
            let (new, stop) = match self.runs.get(index) {
                Some(&(old, count, new)) if old <= at => {
                    index += 1;
                    (new + (at - old), (old + count).min(end))
                }
                Some(&(old, ..)) => (at, old.min(end)),
                None => (at, end),
            };
            match pieces.last_mut() {
                Some(last) if last.0 + last.1 == new => last.1 += stop - at,
                _ => pieces.push((new, stop - at)),
            }
            at = stop;
        }
        pieces
    }

    /// Returns into how many pieces `len` blocks from `block` on are cut at the most: two that
    /// happen to follow each other count as two.
    pub fn piece_count(&self, block: BlockNr, len: u64) -> usize {
        let end = block + len;
        let first = self
            .runs
            .partition_point(|&(old, len, _)| old + len <= block);
        let (mut pieces, mut at) = (0, block);
        for &(old, len, _) in self.runs[first..].iter().take_while(|run| run.0 < end) {
            // What stays before it, and the run itself.
            pieces += 1 + usize::from(old > at);
            at = old + len;
        }
        pieces + usize::from(at < end)
    }

    /// Returns the runs as (old, length, new), ascending in old.
    pub fn runs(&self) -> &[(BlockNr, u64, BlockNr)] {
        &self.runs
    }

    /// Returns how many blocks move.
    pub fn total(&self) -> u64 {
        self.runs.iter().map(|&(_, len, _)| len).sum()
    }
}

/// Hands out free blocks in ascending order, the larger free runs first where they are enough.
#[derive(Debug)]
pub struct FreeSpace {
    runs: std::vec::IntoIter<Range<BlockNr>>,
    current: Range<BlockNr>,
    left: u64,
}

/// Shortest free runs worth filling, in blocks, tried in this order: files stay in few pieces
/// where there is room for that.
const WORTHWHILE: [u64; 5] = [512, 128, 32, 8, 1];

impl FreeSpace {
    /// Takes the free runs of `used`; `needed` blocks will be asked for.
    pub fn new(used: &Bitmap, needed: u64) -> Self {
        let all: Vec<_> = used.runs(0..used.len(), false).collect();
        let size = |run: &Range<u64>| run.end - run.start;
        let runs: Vec<_> = WORTHWHILE
            .iter()
            .map(|&least| {
                all.iter()
                    .filter(|run| size(run) >= least)
                    .cloned()
                    .collect()
            })
            .find(|runs: &Vec<_>| runs.iter().map(size).sum::<u64>() >= needed)
            .unwrap_or(all);
        Self {
            left: runs.iter().map(size).sum(),
            runs: runs.into_iter(),
            current: 0..0,
        }
    }

    /// Returns how many blocks are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes up to `len` blocks in one run, or `None` when nothing is left.
    pub fn take(&mut self, len: u64) -> Option<Range<BlockNr>> {
        if self.current.is_empty() {
            self.current = self.runs.next()?;
        }
        let end = self.current.end.min(self.current.start + len);
        let taken = self.current.start..end;
        self.current.start = end;
        self.left -= taken.end - taken.start;
        Some(taken)
    }
}

/// Hands out free blocks so that few runs are cut when the longest are placed first: each comes
/// where the least room is left over.
#[derive(Debug)]
pub struct BestFit {
    /// Free runs as (length, start).
    runs: BTreeSet<(u64, BlockNr)>,
}

impl BestFit {
    /// Takes the free runs of `used`.
    pub fn new(used: &Bitmap) -> Self {
        let free = used.runs(0..used.len(), false);
        Self {
            runs: free.map(|run| (run.end - run.start, run.start)).collect(),
        }
    }

    /// Takes `len` blocks of the shortest run that holds them, else all of the longest.
    pub fn take(&mut self, len: u64) -> Option<Range<BlockNr>> {
        let fits = self.runs.range((len, 0)..).next();
        let run = fits.or_else(|| self.runs.last()).copied()?;
        Some(self.take_from(run, len))
    }

    /// Takes up to `len` blocks of the shortest run.
    pub fn take_of_shortest(&mut self, len: u64) -> Option<Range<BlockNr>> {
        let run = self.runs.first().copied()?;
        Some(self.take_from(run, len))
    }

    fn take_from(&mut self, run: (u64, BlockNr), len: u64) -> Range<BlockNr> {
        let (there, start) = run;
        let taken = there.min(len);
        self.runs.remove(&run);
        if taken < there {
            self.runs.insert((there - taken, start + taken));
        }
        start..start + taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translates_single_blocks_and_runs() {
        let mut map = Relocation::default();
        map.push(100, 10, 5);
        map.push(110, 2, 15);
        map.push(120, 1, 3);
        assert_eq!(map.runs().len(), 2);
        assert_eq!(
            (
                map.of(99),
                map.of(100),
                map.of(111),
                map.of(112),
                map.of(120)
            ),
            (99, 5, 16, 112, 3)
        );
        assert_eq!(
            map.pieces(98, 24),
            [(98, 2), (5, 12), (112, 8), (3, 1), (121, 1)]
        );
        assert_eq!(map.piece_count(98, 24), 5);
        assert_eq!(map.piece_count(100, 12), 1);
        assert_eq!(map.piece_count(0, 99), 1);
        assert_eq!(map.piece_count(119, 2), 2);
        assert_eq!(map.total(), 13);
        let unsorted = vec![(120, 1, 3), (110, 2, 15), (105, 5, 10), (100, 5, 5)];
        assert_eq!(Relocation::from_unsorted(unsorted), map);
    }

    #[test]
    fn larger_runs_first_where_they_are_enough() {
        let mut used = Bitmap::new(200);
        used.set_range(0..200);
        used.clear_range(3..5);
        used.clear_range(50..90);
        let mut room = FreeSpace::new(&used, 30);
        assert_eq!(room.take(25), Some(50..75));
        assert_eq!(room.take(25), Some(75..90));
        assert_eq!(room.take(1), None);
        let mut room = FreeSpace::new(&used, 41);
        assert_eq!(room.left(), 42);
        assert_eq!(room.take(25), Some(3..5));
    }

    #[test]
    fn the_shortest_run_that_holds_it_is_taken() {
        let mut used = Bitmap::new(200);
        used.set_range(0..200);
        used.clear_range(3..5);
        used.clear_range(20..27);
        used.clear_range(50..90);
        let mut room = BestFit::new(&used);
        assert_eq!(room.take(6), Some(20..26));
        assert_eq!(room.take(41), Some(50..90));
        assert_eq!(room.take_of_shortest(9), Some(26..27));
        assert_eq!(room.take(1), Some(3..4));
        assert_eq!(room.take(2), Some(4..5));
        assert_eq!(room.take(1), None);
        assert_eq!(room.take_of_shortest(1), None);
    }
}
