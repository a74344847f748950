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

use sha2::{Digest, Sha256};

use super::Options;
use super::digest::Digests;
use super::lane::{IN_FLIGHT, Lane};
use super::plan::{BLOCK, CELL, FlashPlan, HEAD, too_small};
use super::source::ImageReader;
use crate::bmap::Bmap;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{AlignedBuf, is_zero};
use crate::pipeline::{Job, Queue, guarded, together};

/// Zeros that stand together for so long, on this grid, may be left to the card to make.
const ZERO_RUN: u64 = 64 << 10;

/// Unpacked cells that wait for their digests.
const UNPACKED: usize = 2;

/// Bytes of the image on their way to the cards. The buffer goes back when all are done with it.
pub(super) struct Cell {
    /// Where the buffer's first byte belongs.
    start: u64,
    buf: Option<AlignedBuf>,
    pool: Arc<Queue<AlignedBuf>>,
    ranges: Vec<Range<u64>>,
    runs: Vec<(Range<u64>, bool)>,
}

impl Cell {
    /// What to write.
    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The same, cut where long runs of zeros (`true`) begin and end.
    pub(super) fn runs(&self) -> &[(Range<u64>, bool)] {
        &self.runs
    }

    pub(super) fn bytes(&self, range: &Range<u64>) -> &[u8] {
        let buf = self.buf.as_deref().unwrap_or_default();
        &buf[(range.start - self.start) as usize..(range.end - self.start) as usize]
    }

    pub(super) fn len(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            self.pool.push(buf);
        }
    }
}

/// What was written, to be held against what the cards have.
pub(super) struct Written {
    pub(super) digests: Digests,
    /// The withheld ranges with their bytes, the card's first block in front.
    pub(super) head: Vec<(u64, Vec<u8>)>,
    pub(super) image_len: u64,
}

/// A stretch of the image, just unpacked.
pub(super) struct Unpacked {
    pub(super) start: u64,
    pub(super) len: usize,
    pub(super) buf: AlignedBuf,
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
    if let Some(check) = &feed.map
        && lanes.iter().any(|lane| !lane.is_dead())
    {
        check.finish(image_len)?;
    }
    Ok(Written {
        digests: feed.digests,
        head: feed.head,
        image_len,
    })
}

/// Reads what the plan wants, cell by cell. Returns the image's length.
pub(super) fn read_cells(
    reader: &mut dyn ImageReader,
    first: (AlignedBuf, usize),
    plan: &FlashPlan,
    pool: &Queue<AlignedBuf>,
    unpacked: &Queue<Unpacked>,
) -> Result<u64> {
    let (buf, len) = first;
    let mut position = len as u64;
    let mut ended = len < CELL as usize;
    let cell = Unpacked { start: 0, len, buf };
    if !unpacked.push(cell) {
        return Ok(position);
    }
    while !ended {
        let Some(next) = plan.next_written(position) else {
            break;
        };
        let start = (next - next % BLOCK).max(position);
        reader.skip(start - position)?;
        let end = start - start % CELL + CELL;
        let wanted = match plan.written_within(start..end).last() {
            Some(last) => (last.end - start) as usize,
            None => break,
        };
        let Some(mut buf) = pool.pop() else {
            return Ok(position);
        };
        let len = reader.read_full(&mut buf[..wanted])?;
        position = start + len as u64;
        ended = len < wanted;
        if len > 0 && !unpacked.push(Unpacked { start, len, buf }) {
            return Ok(position);
        }
    }
    let whole = reader.finish()?;
    if plan.image_len().is_some_and(|len| len > whole) {
        return Err(Error::unsound(format!(
            "the image ends at byte {whole}, but should have {} bytes",
            plan.image_len().unwrap_or_default()
        ))
        .with_hint("fetch or capture the image again"));
    }
    Ok(whole)
}

/// The middle of the pipeline.
struct Feed<'a> {
    plan: &'a FlashPlan,
    map: Option<RangeCheck<'a>>,
    pool: Arc<Queue<AlignedBuf>>,
    digests: Digests,
    head: Vec<(u64, Vec<u8>)>,
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

/// The checksums of a block map, fed with the image from its start on.
pub(super) struct RangeCheck<'a> {
    map: &'a Bmap,
    next: usize,
    hash: Sha256,
}

impl<'a> RangeCheck<'a> {
    pub(super) fn new(map: &'a Bmap) -> Self {
        Self {
            map,
            next: 0,
            hash: Sha256::new(),
        }
    }

    pub(super) fn update(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        while let Some(range) = self.map.ranges.get(self.next) {
            let whole = self.map.bytes_of(range);
            let (from, to) = (whole.start.max(start), whole.end.min(end));
            if from < to && range.sha256.is_some() {
                self.hash
                    .update(&bytes[(from - start) as usize..(to - start) as usize]);
            }
            if whole.end > end {
                break;
            }
            let got: [u8; 32] = self.hash.finalize_reset().into();
            if range.sha256.is_some_and(|expected| expected != got) {
                return Err(Error::new(
                    ErrorKind::Verify,
                    format!(
                        "the image is damaged: bytes {} to {} (blocks {}-{}) do not have the \
                         checksum in the block map",
                        whole.start, whole.end, range.first, range.last
                    ),
                )
                .with_hint("fetch or capture the image again"));
            }
            self.next += 1;
        }
        Ok(())
    }

    pub(super) fn finish(&self, image_len: u64) -> Result<()> {
        if self.next < self.map.ranges.len() || image_len != self.map.image_size {
            return Err(Error::unsound(format!(
                "the block map is of an image of {} bytes, this one has {image_len}",
                self.map.image_size
            )));
        }
        Ok(())
    }
}
