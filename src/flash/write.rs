//! The image's way onto the cards: unpacked once, checked against its block map, remembered by
//! digests, and written to every card by threads of its own.
//!
//! ```text
//! reader ── cells ──> digests (this thread) ──┬─ queue ─> card 1, several requests in flight
//!    ^                                        └─ queue ─> card 2, …
//!    └───────── buffers, when the last card is done with them ──┘
//! ```
//! Memory: [`CELL`] times the buffers (12, and 4 for each card), and the digests.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Options;
use super::cell::Cell;
use super::digest::Digests;
use super::lane::{IN_FLIGHT, Lane};
use super::plan::{CELL, FlashPlan, HEAD, too_small};
use super::reading::{RangeCheck, Unpacked, read_cells};
use super::source::ImageReader;
use crate::bmap::Bmap;
use crate::codec::foreign;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{AlignedBuf, is_zero};
use crate::pipeline::{Job, Queue, guarded, together};

/// Zeros that stand together for so long, on this grid, may be left to the card to make.
const ZERO_RUN: u64 = 64 << 10;

/// Unpacked cells that wait for their digests.
const UNPACKED: usize = 2;

/// What was written, to be held against what the cards have.
pub(super) struct Written {
    pub(super) digests: Digests,
    /// The withheld ranges with their bytes, the card's first block in front.
    pub(super) head: Vec<(u64, Vec<u8>)>,
    pub(super) image_len: u64,
    /// The image's last bytes, where they were read: some formats have their mark there.
    pub(super) last: Vec<u8>,
}

/// Writes the image to all lanes that live. `first` is what was read of it already, less than
/// [`CELL`] only if that is all.
///
/// # Errors
/// Only what is wrong with the image. What is wrong with a card is left in its lane.
pub(super) fn write_all(
    reader: &mut dyn ImageReader,
    first: (AlignedBuf, usize),
    plan: &FlashPlan,
    map: Option<&Bmap>,
    lanes: &[Lane],
    options: &Options,
) -> Result<Written> {
    let buffers = 12 + 4 * lanes.len();
    let pool = Arc::new(Queue::new(buffers));
    for _ in 1..buffers {
        pool.push(AlignedBuf::zeroed(CELL as usize));
    }
    let unpacked = Queue::new(UNPACKED);
    let mut feed = Feed {
        plan,
        map: map.map(RangeCheck::new),
        pool: pool.clone(),
        digests: Digests::default(),
        head: Vec::new(),
        last: (0, Vec::new()),
        lanes,
        stall_limit: options.give_up,
    };
    let mut read_outcome = Ok(0);
    let mut jobs: Vec<Job> = vec![Box::new(|| {
        read_outcome = guarded(|| read_cells(reader, first, plan, &pool, &unpacked));
        unpacked.close();
    })];
    for lane in lanes {
        for _ in 0..IN_FLIGHT {
            jobs.push(Box::new(move || {
                while let Some(cell) = lane.queue.pop() {
                    lane.attempt(|| lane.write_cell(&cell));
                }
            }));
        }
    }
    let feed_outcome = together(jobs, || {
        let outcome = guarded(|| feed.run(&unpacked));
        // The reader may wait for room, or for a buffer.
        unpacked.abandon();
        pool.close();
        for lane in lanes {
            lane.queue.close();
        }
        outcome
    });
    // What the reader met comes first: the feed then just saw an end.
    let image_len = read_outcome?;
    feed_outcome?;
    if let Some(note) = reader.note() {
        for lane in lanes.iter().filter(|lane| !lane.is_dead()) {
            lane.attempt(|| lane.note(note.clone()));
        }
    }
    if let Some(check) = &feed.map
        && lanes.iter().any(|lane| !lane.is_dead())
    {
        check.finish(image_len)?;
    }
    Ok(Written {
        digests: feed.digests,
        head: feed.head,
        image_len,
        last: match feed.last {
            (end, last) if end == image_len => last,
            _ => Vec::new(),
        },
    })
}

/// The middle of the pipeline.
struct Feed<'a> {
    plan: &'a FlashPlan,
    map: Option<RangeCheck<'a>>,
    pool: Arc<Queue<AlignedBuf>>,
    digests: Digests,
    head: Vec<(u64, Vec<u8>)>,
    /// The last bytes so far, and where they end.
    last: (u64, Vec<u8>),
    lanes: &'a [Lane<'a>],
    stall_limit: Duration,
}

impl Feed<'_> {
    fn run(&mut self, unpacked: &Queue<Unpacked>) -> Result<()> {
        while let Some(cell) = unpacked.pop() {
            self.hand_on(cell)?;
            if self.lanes.iter().all(Lane::is_dead) {
                break;
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, unpacked: Unpacked) -> Result<()> {
        let Unpacked { start, len, buf } = unpacked;
        let end = start + len as u64;
        let ranges = self.plan.written_within(start..end);
        if let Some(check) = &mut self.map {
            check.update(start, &buf[..len])?;
        }
        self.remember_last(start, &buf[..len]);
        for lane in self.lanes {
            if !lane.is_dead() && end > lane.len() {
                let whole = self.plan.image_len().unwrap_or(end);
                lane.fail(too_small("the image has at least", whole, lane.len()));
            }
        }
        let mut cell = Cell {
            start,
            buf: Some(buf),
            pool: self.pool.clone(),
            ranges: Vec::new(),
            runs: Vec::new(),
        };
        for range in ranges {
            let head = range.start..range.end.min(HEAD);
            if head.start < head.end {
                self.withhold(head.start, cell.bytes(&head));
            }
            let rest = range.start.max(HEAD)..range.end;
            if rest.start < rest.end {
                self.digests.add(rest.start, cell.bytes(&rest));
                let mut runs = std::mem::take(&mut cell.runs);
                zero_runs(&rest, cell.bytes(&rest), &mut runs);
                cell.runs = runs;
                cell.ranges.push(rest);
            }
        }
        if !cell.ranges.is_empty() {
            let cell = Arc::new(cell);
            for lane in self.lanes {
                self.offer(lane, cell.clone());
            }
        }
        Ok(())
    }

    fn remember_last(&mut self, start: u64, bytes: &[u8]) {
        let (end, last) = &mut self.last;
        if *end != start {
            last.clear();
        }
        last.extend_from_slice(&bytes[bytes.len().saturating_sub(foreign::LAST)..]);
        let surplus = last.len().saturating_sub(foreign::LAST);
        last.drain(..surplus);
        *end = start + bytes.len() as u64;
    }

    fn withhold(&mut self, start: u64, bytes: &[u8]) {
        self.head.push((start, bytes.to_vec()));
    }

    /// Gives a lane its cell. One that is stuck for good must not hold up the others.
    fn offer(&self, lane: &Lane, cell: Arc<Cell>) {
        let mut cell = cell;
        while let Err(back) = lane.queue.push_within(cell, Duration::from_millis(500)) {
            if lane.watch.waiting() > self.stall_limit.as_millis() as u64 {
                lane.fail(Error::new(
                    ErrorKind::Io,
                    format!("{} does not answer any more", lane.slot.name),
                ));
                return;
            }
            cell = back;
        }
    }
}

/// Cuts `range` of the card, whose bytes are `bytes`, where long runs of zeros begin and end.
fn zero_runs(range: &Range<u64>, bytes: &[u8], runs: &mut Vec<(Range<u64>, bool)>) {
    let mut at = range.start;
    while at < range.end {
        let end = (at - at % ZERO_RUN + ZERO_RUN).min(range.end);
        let step = &bytes[(at - range.start) as usize..(end - range.start) as usize];
        let zero = end - at == ZERO_RUN && is_zero(step);
        match runs.last_mut() {
            Some((last, was_zero)) if *was_zero == zero && last.end == at => last.end = end,
            _ => runs.push((at..end, zero)),
        }
        at = end;
    }
}
