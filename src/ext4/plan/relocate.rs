//! The translation table for moved blocks.

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
}
