//! What a wrong block looks like, which tells what is wrong with the card.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::digest::Digests;
use crate::io::is_zero;
use crate::units::ByteRange;

/// What was read where something else had been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum Class {
    /// The card fails to read it.
    Unreadable,
    /// Zeros.
    Zeros,
    /// All ones: erased flash.
    Erased,
    /// What was there before.
    OldContents,
    /// What belongs to another place: a card that has less room than it claims.
    OtherBlock { place: u64 },
    /// The right bytes, so many bytes too late (or, negative, too early).
    Shifted { by: i32 },
    /// Nearly the right bytes: so many bits differ.
    FlippedBits { count: u32 },
    /// The right bytes when it was read again: the reader or its cable.
    Passing,
    /// Something else.
    Other,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("cannot be read"),
            Self::Zeros => f.write_str("reads as zeros"),
            Self::Erased => f.write_str("reads as erased"),
            Self::OldContents => f.write_str("still has its old contents"),
            Self::OtherBlock { place } => write!(f, "has what belongs at byte {place}"),
            Self::Shifted { by } => write!(f, "is shifted by {by} bytes"),
            Self::FlippedBits { count: 1 } => f.write_str("has a flipped bit"),
            Self::FlippedBits { count } => write!(f, "has {count} flipped bits"),
            Self::Passing => f.write_str("was right when read again"),
            Self::Other => f.write_str("differs"),
        }
    }
}

/// A stretch of the card that is not as written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Difference {
    pub range: ByteRange,
    pub class: Class,
}

/// Tells what can be told without knowing what belongs there.
pub(super) fn at_first_sight(seen: &[u8]) -> Class {
    if is_zero(seen) {
        Class::Zeros
    } else if seen.iter().all(|&byte| byte == 0xff) {
        Class::Erased
    } else {
        Class::Other
    }
}

/// Tells more, knowing what belongs there.
pub(super) fn against(seen: &[u8], expected: &[u8]) -> Class {
    if seen == expected {
        return Class::Passing;
    }
    let first = at_first_sight(seen);
    if first != Class::Other || seen.len() != expected.len() {
        return first;
    }
    let flipped: u32 = seen
        .iter()
        .zip(expected)
        .map(|(a, b)| (a ^ b).count_ones())
        .sum();
    if flipped <= FEW_BITS {
        return Class::FlippedBits { count: flipped };
    }
    let sectors = (1..8).map(|sector| sector * 512);
    for by in (1..=64).chain(sectors) {
        if by * 2 >= seen.len() {
            break;
        }
        // What remains must not be uniform, or any shift fits.
        let (late, early) = (&seen[by..], &seen[..seen.len() - by]);
        if late == &expected[..expected.len() - by] && !is_uniform(late) {
            return Class::Shifted { by: by as i32 };
        }
        if early == &expected[by..] && !is_uniform(early) {
            return Class::Shifted { by: -(by as i32) };
        }
    }
    Class::Other
}

/// More than this is not a few flipped bits.
const FEW_BITS: u32 = 64;

fn is_uniform(bytes: &[u8]) -> bool {
    bytes.windows(2).all(|pair| pair[0] == pair[1])
}

/// Looks for wrong blocks that have what belongs elsewhere; `crcs` are the checksums of what was
/// read, by place. Chance finds such a block now and then, so there must be a common distance.
pub(super) fn find_aliases(digests: &Digests, crcs: &[(u64, u32)]) -> HashMap<u64, u64> {
    let mut places: HashMap<u32, Vec<u64>> =
        crcs.iter().map(|&(_, crc)| (crc, Vec::new())).collect();
    digests.find(&mut places, 16);
    let mut distances: HashMap<i128, u32> = HashMap::new();
    let candidates = |at: u64, crc: u32| {
        let sources = places.get(&crc).into_iter().flatten().copied();
        sources
            .filter(move |&source| source != at)
            .map(move |source| (source, i128::from(source) - i128::from(at)))
    };
    for &(at, crc) in crcs {
        for (_, distance) in candidates(at, crc) {
            *distances.entry(distance).or_default() += 1;
        }
    }
    let enough = if crcs.len() <= 4 { 1 } else { 2 };
    let mut aliases = HashMap::new();
    for &(at, crc) in crcs {
        let best = candidates(at, crc).max_by_key(|(_, distance)| {
            (
                distances[distance],
                std::cmp::Reverse(distance.unsigned_abs()),
            )
        });
        if let Some((source, distance)) = best
            && distances[&distance] >= enough
        {
            aliases.insert(at, source);
        }
    }
    aliases
}

/// Joins neighbours of one class.
pub(super) fn joined(mut found: Vec<Difference>) -> Vec<Difference> {
    found.sort_by_key(|difference| difference.range);
    let mut joined: Vec<Difference> = Vec::new();
    for next in found {
        match joined.last_mut() {
            Some(last) if last.range.end == next.range.start && continues(last, &next) => {
                last.range.end = next.range.end;
            }
            _ => joined.push(next),
        }
    }
    joined
}

fn continues(last: &Difference, next: &Difference) -> bool {
    match (last.class, next.class) {
        (Class::OtherBlock { place: a }, Class::OtherBlock { place: b }) => {
            i128::from(a) - i128::from(last.range.start)
                == i128::from(b) - i128::from(next.range.start)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|at| ((at * at) >> 3) as u8).collect()
    }

    #[test]
    fn tells_what_a_wrong_block_looks_like() {
        let expected = text(4096);
        let mut flipped = expected.clone();
        flipped[77] ^= 0x11;
        let shifted = |by: usize| [vec![9; by], expected[..4096 - by].to_vec()].concat();
        let early = [expected[3..].to_vec(), vec![1, 2, 3]].concat();
        let other: Vec<u8> = expected.iter().map(|byte| byte ^ 0x5a).collect();
        for (seen, class) in [
            (vec![0; 4096], Class::Zeros),
            (vec![0xff; 4096], Class::Erased),
            (flipped, Class::FlippedBits { count: 2 }),
            (shifted(512), Class::Shifted { by: 512 }),
            (shifted(1), Class::Shifted { by: 1 }),
            (early, Class::Shifted { by: -3 }),
            (other, Class::Other),
        ] {
            assert_eq!(against(&seen, &expected), class);
        }
    }

    #[test]
    fn neighbours_of_one_class_are_joined() {
        let at = |start: u64, class| Difference {
            range: ByteRange::new(start, start + 4096),
            class,
        };
        let other = |place| Class::OtherBlock { place };
        let found = joined(vec![
            at(8192, other(100_000)),
            at(0, Class::Zeros),
            at(4096, Class::Zeros),
            at(12288, other(104_096)),
            at(16384, other(0)),
        ]);
        let ranges: Vec<_> = found.iter().map(|d| (d.range.start, d.range.end)).collect();
        assert_eq!(ranges, [(0, 8192), (8192, 16384), (16384, 20480)]);
    }
}
