//! Free blocks, handed out.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::units::BlockNr;

/// Shortest free runs worth filling, in blocks, tried in this order: files stay in few pieces
/// where there is room for that.
const WORTHWHILE: [u64; 5] = [512, 128, 32, 8, 1];

/// Hands out free blocks in ascending order, the larger free runs first where they are enough.
#[derive(Debug)]
pub struct FreeSpace {
    runs: std::vec::IntoIter<Range<BlockNr>>,
    current: Range<BlockNr>,
    left: u64,
}

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
