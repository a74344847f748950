//! A bitmap over all blocks of a filesystem, and the on-disk bitmaps of one group.

use std::ops::Range;

/// One bit a block, in memory: 32 KiB for each GiB at 4 KiB blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    len: u64,
    words: Vec<u64>,
}

impl Bitmap {
    /// Makes a bitmap of `len` clear bits. `len` must have been bounded by the device's size.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            words: vec![0; len.div_ceil(64) as usize],
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, bit: u64) -> bool {
        bit < self.len && self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Sets `range` (cut to the length) and returns how many of its bits were set before.
    pub fn set_range(&mut self, range: Range<u64>) -> u64 {
        let mut before = 0;
        for (word, mask) in masks(range.start..range.end.min(self.len)) {
            let word = &mut self.words[word];
            before += u64::from((*word & mask).count_ones());
            *word |= mask;
        }
        before
    }

    /// Clears `range` (cut to the length).
    pub fn clear_range(&mut self, range: Range<u64>) {
        for (word, mask) in masks(range.start..range.end.min(self.len)) {
            self.words[word] &= !mask;
        }
    }

    /// Returns how many bits of `range` are set.
    pub fn count(&self, range: Range<u64>) -> u64 {
        masks(range.start..range.end.min(self.len))
            .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
            .sum()
    }

    /// Returns the first bit at or after `from` that is `value`, or the length.
    pub fn next(&self, from: u64, value: bool) -> u64 {
        let mut at = from;
        while at < self.len {
            let word = self.words[(at / 64) as usize];
            let word = if value { word } else { !word } >> (at % 64);
            if word != 0 {
                return (at + u64::from(word.trailing_zeros())).min(self.len);
            }
            at = (at / 64 + 1) * 64;
        }
        self.len
    }

    /// Lists the runs of bits that are `value` within `range`, in ascending order.
    pub fn runs(&self, range: Range<u64>, value: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = range.end.min(self.len);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let start = self.next(at, value);
            if start >= end {
                return None;
            }
            let stop = self.next(start, !value).min(end);
            at = stop;
            Some(start..stop)
        })
    }

    /// Copies the bits of `range` into `bytes` (bit 0 of byte 0 first), which is long enough.
    pub fn export(&self, range: Range<u64>, bytes: &mut [u8]) {
        for run in self.runs(range.clone(), true) {
            set_bits(bytes, run.start - range.start..run.end - range.start);
        }
    }
}

fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let bit = at % 64;
        let count = (64 - bit).min(range.end - at);
        let mask = (!0 >> (64 - count)) << bit;
        let word = (at / 64) as usize;
        at += count;
        Some((word, mask))
    })
}

/// Sets a range of bits of an on-disk bitmap, which holds them all.
pub fn set_bits(bytes: &mut [u8], range: Range<u64>) {
    for bit in range {
        if bit.is_multiple_of(8) && bytes[(bit / 8) as usize] == 0xFF {
            continue;
        }
        bytes[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

/// Is a bit of an on-disk bitmap set? Bits past the end are not.
pub fn bit(bytes: &[u8], index: u64) -> bool {
    bytes
        .get((index / 8) as usize)
        .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_runs_agree_with_single_bits() {
        let mut bitmap = Bitmap::new(200);
        assert_eq!(bitmap.set_range(3..70), 0);
        assert_eq!(bitmap.set_range(60..130), 10);
        bitmap.clear_range(64..65);
        assert_eq!(bitmap.count(0..200), 126);
        let runs: Vec<_> = bitmap.runs(0..200, true).collect();
        assert_eq!(runs, [3..64, 65..130]);
        let free: Vec<_> = bitmap.runs(1..140, false).collect();
        assert_eq!(free, [1..3, 64..65, 130..140]);
        let mut bytes = [0; 8];
        bitmap.export(62..126, &mut bytes);
        assert_eq!(bytes, [0xFB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(bit(&bytes, 0) && !bit(&bytes, 2) && !bit(&bytes, 64));
    }
}
