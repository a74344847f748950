//! A quick look for counterfeit capacity: patterns, different for each place, are written at
//! spread places and at the very end, and read back; then the old contents are put back.
//!
//! Decisions: counterfeits wrap at a power of two or drop what is past their real end, so the
//! places are powers of two, their triples, and the end. Which pattern shows up tells which.

use std::ops::Range;

use super::lane::Lane;
use super::plan::BLOCK;
use super::target::is_final;
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuf;
use crate::units::human_bytes;

/// Probes the card. Returns old contents' checksums by place.
///
/// # Errors
/// `Verify` if the card does not have the room it claims, `Io` if it fails.
pub(super) fn probe(lane: &Lane) -> Result<Vec<(u64, u32)>> {
    let mut places = places(lane.len());
    let mut old = Vec::with_capacity(places.len());
    let mut broken = None;
    places.retain(|&place| {
        let mut buf = AlignedBuf::zeroed(BLOCK as usize);
        // What cannot be read cannot be put back either: not a place to try.
        let outcome = lane.read(place, &mut buf);
        let readable = outcome.is_ok();
        match outcome {
            Ok(()) => old.push(buf),
            Err(error) => broken = Some(error),
        }
        readable
    });
    if let Some(error) = broken
        && (places.is_empty() || is_final(&error))
    {
        return Err(error);
    }
    let outcome = write_patterns(lane, &places).and_then(|()| read_patterns(lane, &places));
    // In reverse: where two places are one, both had the same old contents anyway.
    let mut restored = Ok(());
    for (place, bytes) in places.iter().zip(&old).rev() {
        let result = lane.slot.card.write_all_at(*place, bytes);
        restored = restored.and(result);
    }
    restored = restored.and(lane.settle());
    let fault = outcome?;
    restored?;
    match fault {
        Some(fault) => Err(fault),
        None => Ok(places
            .iter()
            .zip(&old)
            .map(|(place, bytes)| (*place, crc32c::crc32c(bytes)))
            .collect()),
    }
}

fn places(len: u64) -> Vec<u64> {
    let mut places = vec![];
    let mut power = 1 << 20;
    while power < len {
        places.extend([power, power / 2 * 3]);
        power = match power.checked_mul(2) {
            Some(next) => next,
            None => break,
        };
    }
    let end = len.saturating_sub(BLOCK) / BLOCK * BLOCK;
    places.push(end);
    places.retain(|&place| place > 0 && place <= end);
    places.sort_unstable();
    places.dedup();
    places
}

/// A block that says where it belongs, all over.
fn pattern(place: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(BLOCK as usize);
    let mut state = place ^ 0x9e37_79b9_7f4a_7c15;
    for word in buf.chunks_exact_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    buf
}

fn write_patterns(lane: &Lane, places: &[u64]) -> Result<()> {
    for &place in places {
        let _watched = lane.watch.begin();
        lane.slot.card.write_all_at(place, &pattern(place))?;
    }
    lane.settle()
}

fn read_patterns(lane: &Lane, places: &[u64]) -> Result<Option<Error>> {
    let mut buf = AlignedBuf::zeroed(BLOCK as usize);
    let mut lost: Option<Range<u64>> = None;
    for &place in places {
        lane.read(place, &mut buf)?;
        if buf[..] == pattern(place)[..] {
            continue;
        }
        if let Some(&other) = places.iter().find(|&&other| buf[..] == pattern(other)[..]) {
            let (low, high) = (place.min(other), place.max(other));
            return Ok(Some(counterfeit(
                lane,
                format!("what is written at byte {high} ends up at byte {low}"),
                high - low,
            )));
        }
        lost = Some(lost.map_or(place..place, |range| range.start..place));
    }
    Ok(lost.map(|range| {
        let what = format!(
            "it does not keep what is written between bytes {} and {}",
            range.start,
            range.end + BLOCK
        );
        counterfeit(lane, what, range.start)
    }))
}

fn counterfeit(lane: &Lane, what: String, real: u64) -> Error {
    Error::new(
        ErrorKind::Verify,
        format!(
            "{} claims {} but has at most {}: {what}",
            lane.slot.name,
            human_bytes(lane.len()),
            human_bytes(real)
        ),
    )
    .with_hint("the card is counterfeit or broken: give it back")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_reach_from_the_first_megabyte_to_the_last_block() {
        for len in [4096, 1 << 20, (1 << 20) + 512, 31_914_983_424, u64::MAX] {
            let places = places(len);
            assert!(places.is_sorted());
            assert!(places.iter().all(|place| place + BLOCK <= len));
            assert!(places.iter().all(|place| place % BLOCK == 0));
            let end = (len - BLOCK) / BLOCK * BLOCK;
            assert_eq!(places.last().copied(), (end > 0).then_some(end));
        }
        assert_eq!(places(4 << 20).len(), 5);
    }

    #[test]
    fn patterns_differ_everywhere() {
        let (a, b) = (pattern(0), pattern(1 << 20));
        let same = a.chunks(8).zip(b.chunks(8)).filter(|(a, b)| a == b).count();
        assert_eq!(same, 0);
    }
}
