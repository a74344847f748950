//! From an image to cards: every written byte read back, the first block last.
//!
//! ```text
//! image ── plan ── probe, blank, discard ── write ── sync, drop caches ── read back, repair ── publish
//!                  └────── each card ─────┘  (one  └──────────────── each card ──────────────────────┘
//!                                           decode)
//! ```
//! A card that fails is taken out and keeps its own error; the others go on. A card's first
//! mebibyte is zeros from before the first write until all else has been read back, so whatever
//! stops a flash, the card does not look bootable.

mod cell;
mod check;
mod classify;
mod commit;
mod contents;
mod cut_off;
mod digest;
#[cfg(test)]
mod faulty;
pub mod grow;
mod lane;
mod plan;
mod probe;
mod publish;
mod reading;
mod since;
mod source;
mod target;
#[cfg(test)]
mod tests;
mod verify;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

pub use check::{Checked, check};
pub use classify::{Class, Difference};
pub use grow::{ExpandPlan, ExpandTo, Expansion};
pub use plan::{BLOCK, CELL, FlashPlan, HEAD, PIECE};
pub use source::{FileSource, ImageReader, ImageSource, StreamSource};
pub use target::{Card, Slot};
pub use verify::Verification;

use crate::bmap::Bmap;
use crate::codec::foreign;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{AlignedBuf, ReadAt, check_range};
use crate::partition::PartitionTable;
use crate::pipeline::{Job, together};
use crate::progress::{Event, Phase};
use contents::Contents;
use lane::Lane;
use verify::Expected;
use write::Written;

/// How to flash.
#[derive(Clone, Debug)]
pub struct Options {
    /// Read back what was written.
    pub verify: bool,
    /// Look for counterfeit capacity before writing.
    pub probe: bool,
    /// Make zeros of what the image leaves out, instead of discarding it.
    pub wipe: bool,
    /// Discard (or wipe) also what lies behind the image.
    pub tail: bool,
    /// What the last partition grows to, if it does, once the card is complete.
    pub expand: Option<ExpandTo>,
    /// Write also an image in which nothing is known.
    pub any_image: bool,
    /// Write also a table that counts in other sectors than the card's.
    pub any_sector_size: bool,
    /// After so long without an answer, a card is named.
    pub stall: Duration,
    /// After so long without an answer, a card is given up, so that the others go on.
    pub give_up: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            verify: true,
            probe: true,
            wipe: false,
            tail: true,
            expand: None,
            any_image: false,
            any_sector_size: false,
            stall: Duration::from_secs(8),
            give_up: Duration::from_secs(180),
        }
    }
}

/// What became of one card.
#[derive(Debug, Default)]
pub struct CardReport {
    /// Length of the card in bytes.
    pub card_len: u64,
    /// Length of the image in bytes, once known.
    pub image_len: Option<u64>,
    /// Bytes of the image that were written.
    pub written: u64,
    /// Bytes that were discarded and wiped.
    pub discarded: u64,
    pub wiped: u64,
    /// What reading back found; `None` if it was not asked for or not reached.
    pub verification: Option<Verification>,
    /// Is the card complete: everything on it, the first block too?
    pub published: bool,
    /// Does the image hold a partition table, a filesystem, or a boot sector?
    pub contents_known: bool,
    /// What was expanded.
    pub expansion: Option<Expansion>,
    /// Why it is not complete; or, if it is, why it is not expanded.
    pub error: Option<Error>,
}

impl CardReport {
    /// Was every written byte read back and right?
    pub fn is_verified(&self) -> bool {
        self.published
            && self
                .verification
                .as_ref()
                .is_some_and(|found| found.remaining.is_empty())
    }
}

/// Flashes the image to all cards at the same time; one report for each, in order.
///
/// # Errors
/// What is wrong with the image: it cannot be opened or read, is damaged, or does not match its
/// map. No card is published then. What is wrong with a card is in its report.
pub fn flash(
    image: &dyn ImageSource,
    map: Option<&Bmap>,
    slots: &[Slot],
    options: &Options,
) -> Result<Vec<CardReport>> {
    let mut reader = image.open()?;
    let plan = FlashPlan::new(reader.len_hint(), map)?;
    let mut first = AlignedBuf::zeroed(CELL as usize);
    let count = reader.read_full(&mut first)?;
    if count == 0 {
        return Err(Error::unsound("the image is empty"));
    }
    let begin = first[..count].to_vec();
    let mut last = Vec::new();
    if let Some(start) = reader
        .exact_len()
        .and_then(|len| len.checked_sub(foreign::LAST as u64))
    {
        let mut again = image.open()?;
        again.skip(start)?;
        last.resize(foreign::LAST, 0);
        again.read_full(&mut last)?;
    }
    foreign::refuse(&begin, &last)?;
    let contents = Contents::of(&begin, reader.len_hint());
    if !options.any_image {
        contents.refuse_unknown()?;
    }
    if contents.is_iso() && matches!(options.expand, Some(ExpandTo::Size(_))) {
        return Err(
            Error::usage("an ISO image is written as it is: nothing in it can grow")
                .with_hint("leave --expand away"),
        );
    }
    if let Some(len) = reader.exact_len() {
        cut_off::refuse(&begin, len, |start, buf| {
            let mut again = image.open()?;
            again.skip(start)?;
            again.read_full(buf).map(|_| ())
        })?;
    }
    let lanes: Vec<Lane> = slots
        .iter()
        .map(|slot| Lane::new(slot, !options.verify))
        .collect();
    for lane in &lanes {
        lane.attempt(|| {
            plan.check_fits(lane.len(), contents.needed())?;
            if let (Some(table), Some(sector)) = (contents.table(), lane.slot.card.sector_size())
                && !options.any_sector_size
            {
                table.check_device(sector)?;
            }
            match options.expand {
                Some(ExpandTo::Size(size)) => plan::check_wish(size, lane.len()),
                _ => Ok(()),
            }
        });
    }
    let mut reports: Vec<CardReport> = lanes
        .iter()
        .map(|lane| CardReport {
            card_len: lane.len(),
            image_len: plan.image_len(),
            contents_known: !contents.is_unknown(),
            ..CardReport::default()
        })
        .collect();
    let run = Run {
        image,
        plan: &plan,
        options,
        first: &begin,
    };
    let outcome = watched(&lanes, options, || {
        let prepared = for_each(&lanes, &mut reports, |lane, report| {
            lane.attempt(|| run.prepare(lane, report))
        });
        if lanes.iter().all(Lane::is_dead) {
            return Ok(());
        }
        for lane in lanes.iter().filter(|lane| !lane.is_dead()) {
            lane.attempt(|| lane.slot.progress.started(Phase::Write, plan.bytes()));
        }
        let written = write::write_all(&mut *reader, (first, count), &plan, map, &lanes, options)?;
        let prepared: Vec<Prepared> = prepared
            .into_iter()
            .map(Option::unwrap_or_default)
            .collect();
        for_each(&lanes, &mut reports, |lane, report| {
            let index = lanes.iter().position(|other| std::ptr::eq(other, lane));
            let before = index.and_then(|index| prepared.get(index));
            lane.attempt(|| run.complete(lane, &written, before, report))
        });
        Ok(())
    });
    outcome?;
    for (lane, report) in lanes.iter().zip(&mut reports) {
        report.error = lane.take_error();
    }
    Ok(reports)
}

/// What is the same for all cards.
struct Run<'a> {
    image: &'a dyn ImageSource,
    plan: &'a FlashPlan,
    options: &'a Options,
    /// The image's first bytes.
    first: &'a [u8],
}

/// What was done to a card before writing.
#[derive(Default)]
struct Prepared {
    zeros: Vec<Range<u64>>,
    old: HashMap<u64, u32>,
}

impl Run<'_> {
    /// Makes a card ready: looked at, blanked, cleared of what the image does not cover.
    fn prepare(&self, lane: &Lane, report: &mut CardReport) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        let progress = lane.slot.progress;
        if self.options.probe {
            progress.started(Phase::Probe, None)?;
            prepared.old.extend(probe::probe(lane)?);
            progress.finished(Phase::Probe)?;
        }
        if self.options.verify {
            prepared.old.extend(self.sample_old(lane));
        }
        publish::blank(lane)?;
        let unused = self.plan.unused(lane.len(), self.options.tail);
        prepared.zeros = self.clear(lane, unused, report)?;
        Ok(prepared)
    }

    /// Discards or wipes ranges of the card. Returns what was wiped.
    fn clear(
        &self,
        lane: &Lane,
        ranges: Vec<Range<u64>>,
        report: &mut CardReport,
    ) -> Result<Vec<Range<u64>>> {
        if self.options.wipe {
            for range in &ranges {
                lane.write_zeros(range.clone())?;
                report.wiped += range.end - range.start;
            }
            return Ok(ranges);
        }
        for range in ranges {
            let len = range.end - range.start;
            if !lane.slot.card.discard(range).unwrap_or(false) {
                // What a card cannot do for one range it cannot do for the next.
                break;
            }
            report.discarded += len;
        }
        Ok(Vec::new())
    }

    /// Remembers what some of the blocks hold that are about to be written: a card that takes no
    /// writes still has it afterwards. What cannot be read is no reason to stop here.
    fn sample_old(&self, lane: &Lane) -> HashMap<u64, u32> {
        const SAMPLES: u64 = 64;
        let len = self.plan.image_len().unwrap_or(lane.len()).min(lane.len());
        let mut old = HashMap::new();
        for sample in 0..SAMPLES {
            let place = (len / SAMPLES * sample).next_multiple_of(BLOCK);
            let mut buf = AlignedBuf::zeroed(BLOCK as usize);
            if place >= HEAD
                && check_range(lane.len(), place, BLOCK).is_ok()
                && lane.read(place, &mut buf).is_ok()
            {
                old.insert(place, crc32c::crc32c(&buf));
            }
        }
        old
    }

    /// Is an error of an expansion one of what is as it is in the image, rather than of the card?
    fn keeps(lane: &Lane, error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Unsupported => true,
            // A table that nobody can change; a filesystem that is damaged must be told.
            ErrorKind::Unsound => PartitionTable::read(lane).is_err(),
            _ => false,
        }
    }

    /// Ends a card's flash: everything out, read back, repaired, published.
    fn complete(
        &self,
        lane: &Lane,
        written: &Written,
        before: Option<&Prepared>,
        report: &mut CardReport,
    ) -> Result<()> {
        let progress = lane.slot.progress;
        progress.finished(Phase::Write)?;
        report.image_len = Some(written.image_len);
        report.written = written.digests.bytes();
        let none = Prepared::default();
        let before = before.unwrap_or(&none);
        let mut zeros = before.zeros.clone();
        let behind = written.image_len.max(HEAD)..lane.len();
        if self.plan.image_len().is_none() && self.options.tail && behind.start < behind.end {
            zeros.extend(self.clear(lane, vec![behind], report)?);
        }
        progress.started(Phase::Sync, None)?;
        lane.settle()?;
        progress.finished(Phase::Sync)?;
        let mut verification = Verification::default();
        if self.options.verify {
            let expected = Expected {
                digests: &written.digests,
                zeros: &zeros,
                old: &before.old,
            };
            let outcome = verify::verify(lane, &expected, self.image, &mut verification);
            if let Err(error) = outcome {
                report.verification = Some(verification);
                if error.kind() == ErrorKind::Verify {
                    // Writes may have ended up here that belong elsewhere.
                    let _ = publish::blank(lane);
                }
                return Err(error);
            }
        }
        cut_off::refuse(self.first, written.image_len, |start, buf| {
            lane.read_exact_at(start, buf)
        })?;
        foreign::refuse(self.first, &written.last)?;
        let head = publish::publish(lane, written, self.options.verify)?;
        report.written += head;
        if self.options.verify {
            verification.bytes += head;
            report.verification = Some(verification);
        }
        report.published = true;
        if let Some(to) = self.options.expand {
            let expanded = match ExpandPlan::new(lane, to) {
                // As in the image, and nobody asked for more.
                Err(error) if to == ExpandTo::Max && Self::keeps(lane, &error) => {
                    Ok(Expansion::unable(&error))
                }
                planned => planned.and_then(|plan| plan.run(lane.slot.card, progress)),
            };
            report.expansion = Some(expanded.map_err(|error| {
                error.within(format!(
                    "{} has the whole image, but is not expanded",
                    lane.slot.name
                ))
            })?);
        }
        Ok(())
    }
}

/// Runs a step for every card that is still in, all at once.
fn for_each<'l, T: Send>(
    lanes: &'l [Lane<'l>],
    reports: &mut [CardReport],
    step: impl Fn(&'l Lane<'l>, &mut CardReport) -> Option<T> + Sync,
) -> Vec<Option<T>> {
    let step = &step;
    let mut outcomes: Vec<Option<T>> = lanes.iter().map(|_| None).collect();
    let jobs = lanes.iter().zip(reports).zip(&mut outcomes);
    let jobs = jobs.map(|((lane, report), outcome)| -> Job {
        Box::new(move || *outcome = step(lane, report))
    });
    together(jobs, || ());
    outcomes
}

/// Runs `work` while a thread looks for cards that do not answer, and names them.
fn watched<T>(lanes: &[Lane], options: &Options, work: impl FnOnce() -> T) -> T {
    let done = (Mutex::new(false), Condvar::new());
    let watch: Job = Box::new(|| {
        let mut named = vec![false; lanes.len()];
        let mut ended = done.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            for (lane, named) in lanes.iter().zip(&mut named) {
                name_if_stalled(lane, named, options.stall);
            }
            ended = done
                .1
                .wait_timeout(ended, (options.stall / 8).max(Duration::from_millis(10)))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    });
    together([watch], || {
        let _ender = Ender(&done);
        work()
    })
}

/// Ends the watching thread, also when the work panics.
struct Ender<'a>(&'a (Mutex<bool>, Condvar));

impl Drop for Ender<'_> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

fn name_if_stalled(lane: &Lane, named: &mut bool, limit: Duration) {
    let waiting = Duration::from_millis(lane.watch.waiting());
    let text = if waiting >= limit && !*named {
        *named = true;
        format!(
            "has not answered for {} seconds",
            waiting.as_secs_f32().ceil()
        )
    } else if waiting < limit && *named {
        *named = false;
        "answers again".into()
    } else {
        return;
    };
    // A listener that wants to stop says so at the next step as well.
    let _ = lane.slot.progress.event(Event::Note(text));
}
