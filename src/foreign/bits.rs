//! Runs of set bits in the maps of what is free.

use std::ops::Range;

use crate::error::Result;

/// Which bit of a byte comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    Low,
}

/// Gives `found` each run of set bits among the first `count` of `bytes`, counted from `base`.
pub(super) fn set_runs(
    bytes: &[u8],
    count: u64,
    first: First,
    base: u64,
    mut found: impl FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let mut start = None;
    for (index, &byte) in (0..).zip(bytes) {
        let byte = match first {
            First::Low => byte,
        };
        let at = index * 8;
        if at >= count {
            break;
        }
        // Most bytes are all of one kind.
        match (byte, start) {
            (0, None) | (0xff, Some(_)) if at + 8 <= count => continue,
            _ => {}
        }
        for bit in 0..8.min(count - at) {
            let set = byte >> bit & 1 != 0;
            match (set, start) {
                (true, None) => start = Some(at + bit),
                (false, Some(from)) => {
                    found(base + from..base + at + bit)?;
                    start = None;
                }
                _ => {}
            }
        }
    }
    if let Some(from) = start {
        found(base + from..base + count.min(bytes.len() as u64 * 8))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_a_loop_over_bits_finds() {
        let bytes = [0xff, 0xff, 0x0f, 0x00, 0x00, 0x80, 0xff, 0x55, 0xff];
        for count in 0..=72 {
            let mut model = [false; 72];
            for (bit, set) in (0..count).zip(&mut model) {
                *set = bytes[bit / 8] >> (bit % 8) & 1 != 0;
            }
            let mut seen = [false; 72];
            set_runs(&bytes, count as u64, First::Low, 100, |run| {
                assert!(run.start < run.end);
                seen[run.start as usize - 100..run.end as usize - 100].fill(true);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, model, "{count}");
        }
    }
}
