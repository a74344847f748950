//! A bitmap over all blocks of a filesystem, and the on-disk bitmaps of one group.

use std::ops::Range;

/// Bits in one [`Chunk`]: a group's blocks, at 4 KiB.
const CHUNK: u64 = 32768;
const WORDS: usize = (CHUNK / 64) as usize;

/// One bit a block, in memory: 32 KiB for each GiB at 4 KiB blocks, and next to nothing where all
/// bits of a long stretch are the same.
#[derive(Clone, Debug)]
pub struct Bitmap {
    len: u64,
    chunks: Vec<Chunk>,
}

/// A stretch of [`CHUNK`] bits.
#[derive(Clone, Debug)]
enum Chunk {
    /// All bits have this value.
    Same(bool),
    Mixed(Box<[u64; WORDS]>),
}

impl Chunk {
    fn word(&self, word: usize) -> u64 {
        match self {
            Self::Same(value) => u64::from(*value).wrapping_neg(),
            Self::Mixed(words) => words[word],
        }
    }

    fn words(&mut self) -> &mut [u64; WORDS] {
        if let Self::Same(value) = self {
            let word = u64::from(*value).wrapping_neg();
            *self = Self::Mixed(Box::new([word; WORDS]));
        }
        match self {
            Self::Mixed(words) => words,
            // OK: changed above.
            Self::Same(_) => unreachable!("a chunk with words"),
        }
    }
}

impl Bitmap {
    /// Makes a bitmap of `len` clear bits. `len` must have been bounded by the device's size.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            chunks: vec![Chunk::Same(false); len.div_ceil(CHUNK) as usize],
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, bit: u64) -> bool {
        bit < self.len && self.word(bit) >> (bit % 64) & 1 == 1
    }

    /// Returns the word that holds a bit.
    fn word(&self, bit: u64) -> u64 {
        self.chunks[(bit / CHUNK) as usize].word((bit % CHUNK / 64) as usize)
    }

    /// Sets `range` (cut to the length) and returns how many of its bits were set before.
    pub fn set_range(&mut self, range: Range<u64>) -> u64 {
        let before = self.count(range.clone());
        self.put_range(range, true);
        before
    }

    /// Clears `range` (cut to the length).
    pub fn clear_range(&mut self, range: Range<u64>) {
        self.put_range(range, false);
    }

    fn put_range(&mut self, range: Range<u64>, value: bool) {
        for (chunk, part) in parts(range.start..range.end.min(self.len)) {
            let chunk = &mut self.chunks[chunk];
            match chunk {
                Chunk::Same(same) if *same == value => {}
                _ if part == (0..CHUNK) => *chunk = Chunk::Same(value),
                _ => {
                    let words = chunk.words();
                    for (word, mask) in masks(part) {
                        match value {
                            true => words[word] |= mask,
                            false => words[word] &= !mask,
                        }
                    }
                }
            }
        }
    }

    /// Returns how many bits of `range` are set.
    pub fn count(&self, range: Range<u64>) -> u64 {
        parts(range.start..range.end.min(self.len))
            .map(|(chunk, part)| match &self.chunks[chunk] {
                Chunk::Same(false) => 0,
                Chunk::Same(true) => part.end - part.start,
                Chunk::Mixed(words) => masks(part)
                    .map(|(word, mask)| u64::from((words[word] & mask).count_ones()))
                    .sum(),
            })
            .sum()
    }

    /// Returns the first bit at or after `from` that is `value`, or the length.
    pub fn next(&self, from: u64, value: bool) -> u64 {
        let mut at = from;
        while at < self.len {
            if let Chunk::Same(same) = self.chunks[(at / CHUNK) as usize] {
                if same == value {
                    return at;
                }
                at = (at / CHUNK + 1) * CHUNK;
                continue;
            }
            let word = self.word(at);
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

    /// Lists the runs of clusters of `ratio` bits in which any bit is set, counted from `range`'s
    /// start on, which is a cluster's.
    pub fn cluster_runs(
        &self,
        range: Range<u64>,
        ratio: u64,
    ) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut runs = self.runs(range.clone(), true).peekable();
        let clusters = move |run: Range<u64>| {
            (run.start - range.start) / ratio..(run.end - range.start).div_ceil(ratio)
        };
        std::iter::from_fn(move || {
            let mut found = clusters(runs.next()?);
            while let Some(next) = runs.next_if(|next| clusters((*next).clone()).start <= found.end)
            {
                found.end = clusters(next).end;
            }
            Some(found)
        })
    }

    /// Returns in how many clusters of `ratio` bits any bit is set; `range` begins with one.
    pub fn count_clusters(&self, range: Range<u64>, ratio: u64) -> u64 {
        if ratio == 1 {
            return self.count(range);
        }
        let runs = self.cluster_runs(range, ratio);
        runs.map(|run| run.end - run.start).sum()
    }

    /// Copies `range` into `bytes`, which is long enough, bit 0 of byte 0 first: a bit for each
    /// cluster of `ratio` bits, set where any of them is.
    pub fn export(&self, range: Range<u64>, ratio: u64, bytes: &mut [u8]) {
        for run in self.cluster_runs(range, ratio) {
            set_bits(bytes, run);
        }
    }
}

/// Cuts a range at the chunks' ends: which chunk, and which of its bits.
fn parts(range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let chunk = at / CHUNK;
        let start = chunk * CHUNK;
        let stop = range.end.min(start + CHUNK);
        let part = at - start..stop - start;
        at = stop;
        Some((chunk as usize, part))
    })
}

/// Cuts a range of a chunk's bits at the words' ends: which word, and which of its bits.
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
        bitmap.export(62..126, 1, &mut bytes);
        assert_eq!(bytes, [0xFB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(bit(&bytes, 0) && !bit(&bytes, 2) && !bit(&bytes, 64));
    }

    #[test]
    fn a_cluster_is_set_where_any_bit_is() {
        let mut bitmap = Bitmap::new(100);
        for run in [3..5, 7..8, 16..17, 31..32, 40..64, 99..100] {
            bitmap.set_range(run);
        }
        let runs: Vec<_> = bitmap.cluster_runs(0..100, 8).collect();
        assert_eq!(runs, [0..1, 2..4, 5..8, 12..13]);
        assert_eq!(bitmap.count_clusters(0..100, 8), 7);
        assert_eq!(bitmap.count_clusters(16..48, 16), 2);
        let mut bytes = [0; 3];
        bitmap.export(16..100, 4, &mut bytes);
        assert_eq!(bytes, [0b1100_1001, 0b1111, 0b1_0000]);
        assert_eq!(bitmap.count_clusters(0..100, 1), bitmap.count(0..100));
    }

    #[test]
    fn chunks_are_only_a_way_to_keep_bits() {
        const LEN: u64 = 5 * CHUNK + 100;
        let mut bitmap = Bitmap::new(LEN);
        let mut model = vec![false; LEN as usize];
        let mut state = 7u64;
        for round in 0..3000 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let mut start = (state >> 33) % LEN;
            let mut len = 1 << ((state >> 20) % 18);
            if round % 7 == 0 {
                // Whole chunks.
                start = start / CHUNK * CHUNK;
                len = CHUNK * (1 + state % 3);
            }
            let range = start..start + len;
            let value = state >> 63 == 0;
            let bits = &mut model[start as usize..range.end.min(LEN) as usize];
            let before = bits.iter().filter(|&&bit| bit).count() as u64;
            assert_eq!(bitmap.count(range.clone()), before);
            bits.fill(value);
            match value {
                true => assert_eq!(bitmap.set_range(range.clone()), before),
                false => bitmap.clear_range(range.clone()),
            }
            let next = |from: u64, value| {
                let found = model[from as usize..].iter().position(|&bit| bit == value);
                found.map_or(LEN, |at| from + at as u64)
            };
            for from in [start, 0, range.end.min(LEN - 1), LEN - 1] {
                assert_eq!(bitmap.get(from), model[from as usize]);
                for value in [false, true] {
                    assert_eq!(bitmap.next(from, value), next(from, value));
                }
            }
        }
    }

    /// 64 TiB: 2^34 blocks of 4 KiB, whose bits alone would take 2 GiB.
    #[test]
    fn long_stretches_take_no_room() {
        let mut bitmap = Bitmap::new(1 << 34);
        let middle = (1 << 32) - 5..(1 << 32) + 5;
        assert_eq!(bitmap.set_range(middle.clone()), 0);
        assert_eq!(bitmap.set_range(1 << 33..1 << 34), 0);
        assert_eq!(bitmap.count(0..1 << 34), 10 + (1 << 33));
        let runs: Vec<_> = bitmap.runs(0..u64::MAX, true).collect();
        assert_eq!(runs, [middle, 1 << 33..1 << 34]);
        let mixed = bitmap.chunks.iter();
        let mixed = mixed.filter(|chunk| matches!(chunk, Chunk::Mixed(_)));
        assert_eq!(mixed.count(), 2);
    }
}
