//! A set of numbers kept as sorted, disjoint, non-adjacent half-open ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64`, stored as runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeSet {
    /// start → end
    runs: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `range`; joins what touches.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &before_end)) = self.runs.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            start = before;
        }
        while let Some((&next, &next_end)) = self.runs.range(start..=end).next() {
            end = end.max(next_end);
            self.runs.remove(&next);
        }
        self.runs.insert(start, end);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        if let Some((&before, &before_end)) = self.runs.range(..range.start).next_back()
            && before_end > range.start
        {
            self.runs.insert(before, range.start);
            if before_end > range.end {
                self.runs.insert(range.end, before_end);
                return;
            }
        }
        while let Some((&next, &next_end)) = self.runs.range(range.start..range.end).next() {
            self.runs.remove(&next);
            if next_end > range.end {
                self.runs.insert(range.end, next_end);
            }
        }
    }

    pub fn contains(&self, value: u64) -> bool {
        self.runs
            .range(..=value)
            .next_back()
            .is_some_and(|(_, &end)| end > value)
    }

    /// Does any number of `range` belong to the set?
    pub fn intersects(&self, range: Range<u64>) -> bool {
        range.start < range.end
            && self
                .runs
                .range(..range.end)
                .next_back()
                .is_some_and(|(_, &end)| end > range.start)
    }

    /// Returns the runs in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }

    /// Returns the runs that overlap `within`, cut to it, in ascending order.
    pub fn iter_within(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self
            .runs
            .range(..=within.start)
            .next_back()
            .map_or(within.start, |(&start, _)| start);
        self.runs
            .range(first..within.end.max(first))
            .map(move |(&start, &end)| start.max(within.start)..end.min(within.end))
            .filter(|run| run.start < run.end)
    }

    /// Returns what is missing from `within`, in ascending order.
    pub fn gaps(&self, within: Range<u64>) -> Vec<Range<u64>> {
        let mut at = within.start;
        let mut gaps = Vec::new();
        for run in self.iter_within(within.clone()) {
            if run.start > at {
                gaps.push(at..run.start);
            }
            at = run.end;
        }
        if at < within.end {
            gaps.push(at..within.end);
        }
        gaps
    }

    /// Returns how many numbers are in the set.
    pub fn total(&self) -> u64 {
        self.iter().map(|run| run.end - run.start).sum()
    }

    /// Returns the number of runs.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

impl From<Range<u64>> for RangeSet {
    fn from(range: Range<u64>) -> Self {
        std::iter::once(range).collect()
    }
}

impl FromIterator<Range<u64>> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

/// Cuts `range` into pieces that end at multiples of `unit`.
pub fn pieces(range: Range<u64>, unit: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / unit + 1) * unit);
        (start < range.end).then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_a_set_of_numbers() {
        let mut set = RangeSet::new();
        let mut model = [false; 64];
        let mut state = 7u64;
        for _ in 0..4000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let a = (state >> 33) % 64;
            let b = a + (state >> 50) % (64 - a);
            let add = state >> 63 == 0;
            if add {
                set.insert(a..b);
            } else {
                set.remove(a..b);
            }
            model[a as usize..b as usize].fill(add);
            for value in 0..64 {
                assert_eq!(set.contains(value), model[value as usize]);
            }
            let runs: Vec<_> = set.iter().collect();
            assert!(runs.windows(2).all(|w| w[0].end < w[1].start));
            let covered: u64 = set.iter_within(a..b).map(|r| r.end - r.start).sum();
            let missing: u64 = set.gaps(a..b).iter().map(|r| r.end - r.start).sum();
            assert_eq!(covered + missing, b - a);
            assert_eq!(
                set.intersects(a..b),
                model[a as usize..b as usize].iter().any(|&used| used)
            );
        }
    }
}
