//! One card's way through a flash: what is known of it, and its guarded requests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::cell::Cell;
use super::plan::BLOCK;
use super::target::{Slot, is_final};
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, ReadAt};
use crate::pipeline::Queue;
use crate::progress::{Event, Phase};

/// Cells that wait for a card.
const QUEUED: usize = 6;

/// How often a request is made before it is cut.
const TRIES: u32 = 2;

/// Bytes of the steps that a failed request is cut into.
const STEPS: &[usize] = &[64 << 10, BLOCK as usize];

/// Failed blocks in a row after which a card is given up.
const FAILURES: u32 = 64;

/// Requests to one card at a time; the watch has a place for each.
pub(super) const IN_FLIGHT: usize = 4;

/// A card with all that a flash remembers of it.
pub(super) struct Lane<'a> {
    pub(super) slot: &'a Slot<'a>,
    pub(super) queue: Queue<Arc<Cell>>,
    pub(super) watch: Watch,
    error: Mutex<Option<Error>>,
    dead: AtomicBool,
    cannot_zero: AtomicBool,
    failures: AtomicU32,
    /// Must every write succeed, since nobody will read back?
    strict: bool,
}

impl<'a> Lane<'a> {
    pub(super) fn new(slot: &'a Slot<'a>, strict: bool) -> Self {
        Self {
            slot,
            queue: Queue::new(QUEUED),
            watch: Watch::default(),
            error: Mutex::new(None),
            dead: AtomicBool::new(false),
            cannot_zero: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            strict,
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Takes the card out of the run. The first reason stays.
    pub(super) fn fail(&self, error: Error) {
        self.lock().get_or_insert(error);
        self.dead.store(true, Ordering::SeqCst);
        self.queue.abandon();
    }

    /// Runs a step of the card's own; its failure takes the card out.
    pub(super) fn attempt<T>(&self, step: impl FnOnce() -> Result<T>) -> Option<T> {
        if self.is_dead() {
            return None;
        }
        step().map_err(|error| self.fail(error)).ok()
    }

    pub(super) fn take_error(&self) -> Option<Error> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Error>> {
        // Set as a whole or not at all.
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, text: impl Into<String>) -> Result<()> {
        self.slot.progress.event(Event::Note(text.into()))
    }

    /// Writes what a cell has for the card.
    pub(super) fn write_cell(&self, cell: &Cell) -> Result<()> {
        if self.cannot_zero.load(Ordering::Relaxed) {
            for range in cell.ranges() {
                self.write(range.start, cell.bytes(range))?;
            }
        } else {
            for (range, zero) in cell.runs() {
                if *zero && self.zero(range.clone()) {
                    continue;
                }
                self.write(range.start, cell.bytes(range))?;
            }
        }
        self.slot.progress.advanced(Phase::Write, cell.len())
    }

    /// Has the card make `range` zeros; false if it cannot, now or ever.
    fn zero(&self, range: Range<u64>) -> bool {
        if self.cannot_zero.load(Ordering::Relaxed) {
            return false;
        }
        let _watched = self.watch.begin();
        let done = matches!(self.slot.card.write_zeroes(range), Ok(true));
        if !done {
            self.cannot_zero.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Makes `range` zeros in whatever way.
    pub(super) fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        const STEP: u64 = 64 << 20;
        let mut zeros = None;
        let mut at = range.start;
        while at < range.end {
            let end = (at + STEP).min(range.end);
            if !self.zero(at..end) {
                let zeros = zeros.get_or_insert_with(|| AlignedBuf::zeroed(1 << 20));
                let mut done = at;
                while done < end {
                    let count = (end - done).min(zeros.len() as u64);
                    self.write(done, &zeros[..count as usize])?;
                    done += count;
                }
            }
            // Nothing is added to what is done, but a listener can stop it here.
            self.slot.progress.advanced(Phase::Write, 0)?;
            at = end;
        }
        Ok(())
    }

    /// Writes; again if that fails, and then in smaller steps. Blocks that stay bad are left to
    /// verification, unless there is none; a card with many in a row is given up.
    ///
    /// # Errors
    /// What gives the card up.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        for _ in 0..TRIES {
            match self.write_once(offset, bytes) {
                Ok(()) => {
                    self.failures.store(0, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if is_final(&error) => return Err(error),
                Err(_) => {}
            }
        }
        self.write_in_steps(offset, bytes, STEPS)
    }

    fn write_in_steps(&self, offset: u64, bytes: &[u8], steps: &[usize]) -> Result<()> {
        let (&step, smaller) = steps.split_first().unwrap_or((&bytes.len(), &[]));
        for (index, part) in bytes.chunks(step.max(1)).enumerate() {
            let at = offset + (index * step) as u64;
            match self.write_once(at, part) {
                Ok(()) => self.failures.store(0, Ordering::Relaxed),
                Err(error) if is_final(&error) => return Err(error),
                Err(_) if !smaller.is_empty() => self.write_in_steps(at, part, smaller)?,
                Err(error) => {
                    let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
                    if self.strict || failures >= FAILURES {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn write_once(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let _watched = self.watch.begin();
        self.slot.card.write_all_at(offset, bytes)
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _watched = self.watch.begin();
        self.slot.card.read_exact_at(offset, buf)
    }

    /// Waits until the card has everything, and forgets what is cached of it.
    pub(super) fn settle(&self) -> Result<()> {
        let _watched = self.watch.begin();
        self.slot.card.sync()?;
        self.slot.card.drop_cache()
    }

    pub(super) fn len(&self) -> u64 {
        self.slot.card.len()
    }
}

impl ReadAt for Lane<'_> {
    fn len(&self) -> u64 {
        self.slot.card.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
}

/// Since when requests to a card are under way.
pub(super) struct Watch {
    epoch: Instant,
    /// Milliseconds after the epoch, plus 1; 0: none.
    since: [AtomicU64; IN_FLIGHT],
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            since: Default::default(),
        }
    }
}

impl Watch {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// Notes that a request begins; it ends when the answer is dropped.
    pub(super) fn begin(&self) -> Watched<'_> {
        let now = self.now();
        let free = self.since.iter().find(|since| {
            since
                .compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        });
        Watched(free)
    }

    /// Returns for how many milliseconds the oldest request has gone without an answer.
    pub(super) fn waiting(&self) -> u64 {
        let since = self.since.iter().map(|since| since.load(Ordering::SeqCst));
        let oldest = since.filter(|&since| since > 0).min();
        oldest.map_or(0, |since| self.now().saturating_sub(since))
    }
}

pub(super) struct Watched<'a>(Option<&'a AtomicU64>);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.0 {
            since.store(0, Ordering::SeqCst);
        }
    }
}
