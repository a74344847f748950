//! Few changes in a long run of bytes, kept as no more than these.

use std::ops::Range;

/// What makes new bytes of old ones, as many: a few bytes of memory for each change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edits {
    /// One after the other: offset (3 bytes, little-endian), length (1), the new bytes. Where two
    /// are about the same byte, the later one counts.
    changes: Vec<u8>,
}

const HEADER: usize = 4;

impl Edits {
    /// The longest run that offsets of three bytes can tell of.
    pub const LONGEST: usize = 1 << 24;

    /// Returns what makes `new` of `old`.
    ///
    /// # Panics
    /// If their lengths differ or are above [`LONGEST`](Self::LONGEST): plans place what they emit.
    pub fn between(old: &[u8], new: &[u8]) -> Self {
        assert!(old.len() == new.len() && new.len() <= Self::LONGEST);
        let differs = |from: usize| (from..new.len()).find(|&at| old[at] != new[at]);
        let mut edits = Self::default();
        let mut next = differs(0);
        while let Some(start) = next {
            let mut end = start + 1;
            next = differs(end);
            // What lies between costs less than another header.
            while let Some(at) = next
                && at - end <= HEADER
                && at + 1 - start <= usize::from(u8::MAX)
            {
                end = at + 1;
                next = differs(end);
            }
            edits.push(start, &new[start..end]);
        }
        edits.changes.shrink_to_fit();
        edits
    }

    /// Changes `bytes`, which begin at byte `index` of the run.
    pub fn apply(&self, index: usize, bytes: &mut [u8]) {
        for (at, values) in self.within(index..index + bytes.len()) {
            bytes[at..at + values.len()].copy_from_slice(values);
        }
    }

    /// Returns what changes `len` bytes from `index` on, and after that those of `later` from
    /// `later_index` on.
    #[must_use]
    pub fn then(&self, index: usize, later: &Edits, later_index: usize, len: usize) -> Self {
        let mut edits = Self::default();
        let first = self.within(index..index + len);
        for (at, values) in first.chain(later.within(later_index..later_index + len)) {
            edits.push(at, values);
        }
        edits
    }

    /// Lists the changes within a part of the run: place in the part, and bytes.
    pub fn within(&self, part: Range<usize>) -> impl Iterator<Item = (usize, &[u8])> {
        let mut rest = &self.changes[..];
        let all = std::iter::from_fn(move || {
            let [a, b, c, len, values @ ..] = rest else {
                return None;
            };
            let (values, more) = values.split_at(usize::from(*len));
            rest = more;
            Some((u32::from_le_bytes([*a, *b, *c, 0]) as usize, values))
        });
        all.filter_map(move |(start, values)| {
            let from = start.max(part.start);
            let to = (start + values.len()).min(part.end);
            (from < to).then(|| (from - part.start, &values[from - start..to - start]))
        })
    }

    fn push(&mut self, at: usize, values: &[u8]) {
        // OK: within LONGEST, and a change is not longer than a byte can say.
        self.changes
            .extend_from_slice(&(at as u32).to_le_bytes()[..3]);
        self.changes.push(values.len() as u8);
        self.changes.extend_from_slice(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_what_differs() {
        let old = vec![7; 1000];
        let mut new = old.clone();
        new[3] = 1;
        new[6] = 1;
        new[20] = 1;
        let edits = Edits::between(&old, &new);
        assert_eq!(edits.changes, [3, 0, 0, 4, 1, 7, 7, 1, 20, 0, 0, 1, 1]);
        let mut part = old[5..21].to_vec();
        edits.apply(5, &mut part);
        assert_eq!(part, new[5..21]);
        let other = vec![9; 1000];
        let all = Edits::between(&old, &other);
        assert_eq!(all.changes.len(), 1000 + 4 * HEADER);
        let mut part = old[100..300].to_vec();
        all.then(50, &edits, 0, 200).apply(0, &mut part);
        let mut expected = vec![9; 200];
        edits.apply(0, &mut expected);
        assert_eq!(part, expected);
        assert_eq!(Edits::between(&old, &old), Edits::default());
    }
}
