//! One step of a change in place: written, synced, read back, and written again where it is wrong.

use std::ops::Range;

use super::target::{Card, is_final};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{AlignedBuf, Overlay, ReadAt, WriteAt};
use crate::progress::{Event, Phase, Progress};

/// How often what reads back wrong is written again.
const REPAIRS: u32 = 3;

/// How often a failing request is made.
const TRIES: u32 = 3;

/// What was written: where, and what.
type Written = (Range<u64>, blake3::Hash);

/// Commits `overlay` to the card. Returns the number of bytes.
///
/// # Errors
/// `Verify` if it cannot be read back, however often it is written; `Io` if the card fails;
/// `Cancelled`.
pub(super) fn commit(card: &dyn Card, overlay: &Overlay, progress: &dyn Progress) -> Result<u64> {
    let mut written: Vec<Written> = Vec::new();
    let mut bytes = 0;
    overlay.commit(&Stubborn(card), &mut |range, contents| {
        let len = range.end - range.start;
        bytes += len;
        written.push((range, blake3::hash(contents)));
        progress.event(Event::Advanced {
            phase: Phase::Expand,
            bytes: len,
        })
    })?;
    let mut wrong = differing(card, written)?;
    for _ in 0..REPAIRS {
        if wrong.is_empty() {
            break;
        }
        let count: u64 = wrong.iter().map(|(range, _)| range.end - range.start).sum();
        progress.event(Event::Note(format!(
            "{count} bytes of the expansion read back wrong; writing them again"
        )))?;
        for (range, hash) in &wrong {
            rewrite(card, overlay, range, hash)?;
        }
        card.sync()?;
        bytes += count;
        wrong = differing(card, wrong)?;
    }
    match wrong.first() {
        None => Ok(bytes),
        Some((range, _)) => Err(unreadable(range)),
    }
}

/// Reads back from the medium; returns what is not as it was written.
fn differing(card: &dyn Card, written: Vec<Written>) -> Result<Vec<Written>> {
    card.drop_cache()?;
    let mut wrong = Vec::new();
    for (range, hash) in written {
        let mut buf = AlignedBuf::zeroed((range.end - range.start) as usize);
        match card.read_exact_at(range.start, &mut buf) {
            Ok(()) if blake3::hash(&buf) == hash => {}
            Err(error) if is_final(&error) => return Err(error),
            _ => wrong.push((range, hash)),
        }
    }
    Ok(wrong)
}

/// Writes again what `overlay` has for `range`. What a partition's move overwrote on its way cannot
/// be had again.
fn rewrite(
    card: &dyn Card,
    overlay: &Overlay,
    range: &Range<u64>,
    hash: &blake3::Hash,
) -> Result<()> {
    let mut buf = AlignedBuf::zeroed((range.end - range.start) as usize);
    overlay.over(card).read_exact_at(range.start, &mut buf)?;
    if blake3::hash(&buf) != *hash {
        return Err(unreadable(range));
    }
    match card.write_all_at(range.start, &buf) {
        Err(error) if is_final(&error) => Err(error),
        // It reads back wrong, then.
        _ => Ok(()),
    }
}

fn unreadable(range: &Range<u64>) -> Error {
    Error::new(
        ErrorKind::Verify,
        format!(
            "{} bytes at byte {} were written while expanding and cannot be read back",
            range.end - range.start,
            range.start
        ),
    )
    .with_hint("the card is worn out, or its reader fails: flash again with another one")
}

/// A card whose failing requests are made again.
struct Stubborn<'a>(&'a dyn Card);

impl Stubborn<'_> {
    fn insist(&self, mut request: impl FnMut(&dyn Card) -> Result<()>) -> Result<()> {
        for _ in 1..TRIES {
            match request(self.0) {
                Err(error) if !is_final(&error) => {}
                done => return done,
            }
        }
        request(self.0)
    }
}

impl ReadAt for Stubborn<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.insist(|card| card.read_exact_at(offset, buf))
    }
}

impl WriteAt for Stubborn<'_> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.insist(|card| card.write_all_at(offset, buf))
    }

    fn sync(&self) -> Result<()> {
        // Not made again: what a failed sync leaves unwritten is not told the second time.
        self.0.sync()
    }
}
