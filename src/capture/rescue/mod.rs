//! Sources that fail here and there: what can be read is read, the rest is zeros and is told.
//!
//! As ddrescue does it, large good areas come first. [`Filler`](crate::capture::batch::Filler) leaves out
//! what fails, and some behind it, until the whole image is written, and then
//! [`recover`](crate::capture::recover::recover) returns there. An image that is packed or goes into a pipe
//! cannot be changed later: of each batch the large requests come first, and then [`Rescue::read`]
//! tries pieces of 64 KiB of those that failed, then 4 KiB of the bad ones, then their single
//! sectors, and these once more. Only requests of the plan are made, so free space stays unread.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::capture::mapfile::SECTOR;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{RangeSet, ReadAt};
use crate::progress::{Event, Phase, Progress};

/// The sizes of the requests that a failed one is split into, before single sectors.
const STEPS: [u64; 2] = [64 << 10, 4 << 10];

/// How often a single sector is tried again.
const RETRIES: u32 = 2;

/// What a source could not give.
#[derive(Clone, Debug, Default)]
pub struct Unread {
    /// Requests that failed, also those that worked later.
    pub read_errors: u64,
    /// Bytes of the source that no attempt could read.
    pub ranges: RangeSet,
}

/// Reads around what cannot be read.
pub struct Rescue<'a> {
    source: &'a dyn ReadAt,
    progress: &'a dyn Progress,
    phase: Phase,
    unread: Unread,
    /// A sector that could be read, the last one known.
    answered: Option<u64>,
}

impl<'a> Rescue<'a> {
    pub fn new(source: &'a dyn ReadAt, phase: Phase, progress: &'a dyn Progress) -> Self {
        Self {
            source,
            progress,
            phase,
            unread: Unread::default(),
            answered: None,
        }
    }

    pub fn len(&self) -> u64 {
        self.source.len()
    }

    pub fn unread(&self) -> &Unread {
        &self.unread
    }

    /// Notes that nothing more is tried there.
    pub fn give_up(&mut self, range: Range<u64>) {
        self.unread.ranges.insert(range);
    }

    /// Tells the listener about bytes that are done, and asks whether to go on.
    pub fn advanced(&self, bytes: u64) -> Result<()> {
        self.progress.advanced(self.phase, bytes)
    }

    pub fn into_unread(self) -> Unread {
        self.unread
    }

    /// Makes one request; false if it failed, or is known to fail.
    ///
    /// # Errors
    /// Whatever is not a bad spot: the source is gone, or `Cancelled`.
    pub fn attempt(&mut self, from: u64, buf: &mut [u8]) -> Result<bool> {
        let range = from..from.saturating_add(buf.len() as u64);
        if self.unread.ranges.intersects(range) {
            return Ok(false);
        }
        match self.source.read_exact_at(from, buf) {
            Ok(()) => {
                self.answered = Some(from - from % SECTOR);
                Ok(true)
            }
            // What other places answer is not gone, whatever it says of this one.
            Err(error)
                if error.kind() == ErrorKind::Io && (!error.is_gone() || self.probe().is_ok()) =>
            {
                if self.unread.read_errors == 0 {
                    self.progress.event(Event::Note(format!(
                        "{}; trying smaller pieces",
                        error.one_line()
                    )))?;
                }
                self.unread.read_errors += 1;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Fills `buf` from byte `from` after [`Self::attempt`] failed there; zeros, and a note in
    /// [`Unread::ranges`], where nothing helps.
    ///
    /// # Errors
    /// As [`Self::attempt`].
    pub fn read(&mut self, from: u64, buf: &mut [u8]) -> Result<()> {
        let mut bad = vec![from..from + buf.len() as u64];
        for step in STEPS.into_iter().chain([SECTOR]) {
            let asked = bad.iter().map(|range| range.end - range.start).sum::<u64>();
            bad = self.pass(&bad, step, from, buf)?;
            let left = bad.iter().map(|range| range.end - range.start).sum::<u64>();
            if asked == left && asked >= STEPS[0] {
                self.probe()?;
            }
        }
        for _ in 0..RETRIES {
            bad = self.pass(&bad, SECTOR, from, buf)?;
        }
        for range in bad {
            buf[(range.start - from) as usize..(range.end - from) as usize].fill(0);
            self.unread.ranges.insert(range);
        }
        Ok(())
    }

    /// Reads `ranges` in requests that end at multiples of `step`; returns those that failed.
    fn pass(
        &mut self,
        ranges: &[Range<u64>],
        step: u64,
        base: u64,
        buf: &mut [u8],
    ) -> Result<Vec<Range<u64>>> {
        let mut failed = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min((at / step + 1) * step);
                self.progress.advanced(self.phase, 0)?;
                let part = &mut buf[(at - base) as usize..(end - base) as usize];
                if !self.attempt(at, part)? {
                    failed.push(at..end);
                }
                at = end;
            }
        }
        Ok(failed)
    }

    /// Tells a large bad area from a card that has stopped working. Other places than the one that
    /// worked last are asked only if that fails.
    ///
    /// # Errors
    /// What the source fails with that does not answer any more.
    pub fn probe(&self) -> Result<()> {
        let len = self.source.len();
        let middle = len / 2 - len / 2 % SECTOR;
        let places = [self.answered.unwrap_or(0), 0, middle];
        let mut sector = [0; SECTOR as usize];
        let part = &mut sector[..len.min(SECTOR) as usize];
        let mut failure = None;
        // What was read before would answer for a card that has gone.
        self.source.forget_cached();
        for place in places {
            match self.source.read_exact_at(place, part) {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
        }
        let failure = failure.unwrap_or_else(Error::cancelled);
        Err(failure.within("the source does not answer any more"))
    }
}

/// What is skipped after an error, at first and at most.
const LEAST_SKIP: u64 = 64 << 10;
const MOST_SKIP: u64 = 64 << 20;

/// Grows with each error, and is none after a success.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skip(u64);

impl Skip {
    /// Notes how a request ended. Returns how many bytes behind it to leave out for now.
    pub fn after(&mut self, success: bool) -> u64 {
        self.0 = match success {
            true => 0,
            false => (self.0 * 2).clamp(LEAST_SKIP, MOST_SKIP),
        };
        self.0
    }
}

/// A source that gives zeros for what cannot be read.
pub struct Forgiving<'a>(Mutex<Rescue<'a>>);

impl<'a> Forgiving<'a> {
    /// `known` is not asked for again.
    pub fn new(
        source: &'a dyn ReadAt,
        known: RangeSet,
        phase: Phase,
        progress: &'a dyn Progress,
    ) -> Self {
        let mut rescue = Rescue::new(source, phase, progress);
        rescue.unread.ranges = known;
        // The user knows by now.
        rescue.unread.read_errors = 1;
        Self(Mutex::new(rescue))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rescue<'a>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadAt for Forgiving<'_> {
    fn len(&self) -> u64 {
        self.lock().len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut rescue = self.lock();
        if !rescue.attempt(offset, buf)? {
            rescue.read(offset, buf)?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
