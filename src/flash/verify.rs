//! Reading back: every written byte comes from the medium again and is held against its digest.
//! What differs is pinned to 4 KiB blocks, written again, and read again.
//!
//! Decisions: a card that has what belongs elsewhere is a counterfeit, which no rewriting helps.
//! Neither does it help when much of the card is wrong ([`MOST_REWRITTEN`]): then the list is the
//! result. An image that cannot be read again (standard input) is only read back again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::classify::{Class, Difference, against, at_first_sight, find_aliases, joined};
use super::digest::{Digests, Piece, blocks};
use super::lane::Lane;
use super::plan::{CELL, PIECE};
use super::source::ImageSource;
use super::target::is_final;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{AlignedBuf, RangeSet, is_zero};
use crate::pipeline::{Job, together};
use crate::progress::Phase;
use crate::units::{ByteRange, human_bytes};

/// How often wrong blocks are written and read again.
const ATTEMPTS: u32 = 3;

/// More than this is not written again, unless it is a small part of the whole.
const MOST_REWRITTEN: u64 = 64 << 20;

/// Reads of a card at a time.
const READERS: usize = 2;

/// Wrong blocks that are kept to be looked up elsewhere.
const MOST_LOOKED_UP: usize = 4096;

/// Blocks in a row that cannot be read, after which the card counts as broken.
const MOST_UNREADABLE: u32 = 256;

/// Wrong ranges that are listed; reading back ends there.
const MOST_LISTED: usize = 100_000;

/// What reading back found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Verification {
    /// Bytes that were read back and compared, without those read again.
    pub bytes: u64,
    /// Was so much wrong that not all was read?
    pub stopped_early: bool,
    /// What differed at first.
    pub found: Vec<Difference>,
    /// Bytes that were written again.
    pub rewritten: u64,
    /// What is still wrong.
    pub remaining: Vec<Difference>,
}

/// What a card must hold.
pub(super) struct Expected<'a> {
    pub(super) digests: &'a Digests,
    /// Ranges that were made zeros.
    pub(super) zeros: &'a [Range<u64>],
    /// Checksums of what was there before, at some places.
    pub(super) old: &'a HashMap<u64, u32>,
}

impl Expected<'_> {
    pub(super) fn bytes(&self) -> u64 {
        let zeros = self.zeros.iter().map(|range| range.end - range.start);
        self.digests.bytes() + zeros.sum::<u64>()
    }
}

/// Reads a lane's card back, repairs what can be repaired, and returns what was found.
///
/// # Errors
/// `Io` if the card stops working, `Verify` if differences remain (they are in the second value),
/// `Cancelled`, or what is wrong with the image when it is read again.
pub(super) fn verify(
    lane: &Lane,
    expected: &Expected,
    image: &dyn ImageSource,
    report: &mut Verification,
) -> Result<()> {
    lane.slot
        .progress
        .started(Phase::Verify, Some(expected.bytes()))?;
    let everything = Work::all(expected);
    let mut wrong = everything.run(lane, expected)?;
    report.bytes = expected.bytes();
    report.stopped_early = wrong.len() >= MOST_LISTED;
    for attempt in 0..ATTEMPTS {
        if wrong.is_empty() {
            break;
        }
        let ranges: RangeSet = wrong.iter().map(|d| d.range.start..d.range.end).collect();
        if !worth_rewriting(&wrong, ranges.total(), report.bytes) {
            break;
        }
        if image.can_reopen() {
            lane.note(format!(
                "{} in {} places read back wrong; writing them again",
                human_bytes(ranges.total()),
                ranges.run_count()
            ))?;
            let refined = rewrite(lane, expected, image, &ranges)?;
            report.rewritten += ranges.total();
            if attempt == 0 {
                refine(&mut wrong, &refined);
            }
        }
        if attempt == 0 {
            report.found = joined(wrong);
        }
        lane.settle()?;
        wrong = Work::of(expected, &ranges).run(lane, expected)?;
    }
    if report.found.is_empty() {
        report.found = joined(wrong.clone());
    }
    let known: HashMap<u64, Class> = report
        .found
        .iter()
        .flat_map(|d| blocks(d.range.start..d.range.end).map(|b| (b.start, d.class)))
        .collect();
    for difference in &mut wrong {
        if let (Class::Other, Some(class)) = (difference.class, known.get(&difference.range.start))
        {
            difference.class = *class;
        }
    }
    report.remaining = joined(wrong);
    if report.remaining.is_empty() {
        lane.slot.progress.finished(Phase::Verify)
    } else {
        Err(failure(&lane.slot.name, report))
    }
}

fn worth_rewriting(wrong: &[Difference], bytes: u64, whole: u64) -> bool {
    let aliased = wrong
        .iter()
        .any(|d| matches!(d.class, Class::OtherBlock { .. }));
    !aliased && wrong.len() < MOST_LISTED && bytes <= MOST_REWRITTEN.max(whole / 20)
}

/// Says what is wrong, shortly; the report has it all.
fn failure(name: &str, report: &Verification) -> Error {
    let remaining = &report.remaining;
    let total: u64 = remaining.iter().map(|d| d.range.len()).sum();
    let first: Vec<_> = remaining
        .iter()
        .take(3)
        .map(|d| {
            format!(
                "{} bytes at byte {} {}",
                d.range.len(),
                d.range.start,
                d.class
            )
        })
        .collect();
    let more = match remaining.len().saturating_sub(first.len()) {
        0 => String::new(),
        count => format!("; and {count} more places"),
    };
    let counts = |wanted: fn(&Class) -> bool| remaining.iter().any(|d| wanted(&d.class));
    let hint = if counts(|class| matches!(class, Class::OtherBlock { .. })) {
        "the card has less room than it claims: a counterfeit; give it back"
    } else if remaining.iter().all(|d| d.class == Class::OldContents) {
        "the card takes no more writes: it is worn out, replace it"
    } else {
        "try another reader; if it happens again, the card is worn out"
    };
    Error::new(
        ErrorKind::Verify,
        format!(
            "{name}: {} of what was written cannot be read back: {}{more}",
            human_bytes(total),
            first.join("; ")
        ),
    )
    .with_hint(hint)
}

/// What to read back.
struct Work {
    /// Pieces, as runs that one request can read.
    requests: Vec<Range<usize>>,
    zeros: Vec<Range<u64>>,
}

impl Work {
    fn all(expected: &Expected) -> Self {
        Self {
            requests: requests(
                expected.digests.pieces(),
                0..expected.digests.pieces().len(),
            ),
            zeros: expected
                .zeros
                .iter()
                .flat_map(|range| steps(range.clone()))
                .collect(),
        }
    }

    /// The pieces that `ranges` lie in.
    fn of(expected: &Expected, ranges: &RangeSet) -> Self {
        let mut pieces: Vec<usize> = ranges
            .iter()
            .flat_map(|range| expected.digests.pieces_of(&range))
            .collect();
        pieces.dedup();
        let mut work = Self {
            requests: Vec::new(),
            zeros: Vec::new(),
        };
        for run in pieces.chunk_by(|a, b| a + 1 == *b) {
            let run = run[0]..run[0] + run.len();
            work.requests
                .extend(requests(expected.digests.pieces(), run));
        }
        for zeros in expected.zeros {
            for range in ranges.iter_within(zeros.clone()) {
                work.zeros.extend(steps(range));
            }
        }
        work
    }

    /// Reads and compares; returns the wrong blocks in no particular order.
    fn run(&self, lane: &Lane, expected: &Expected) -> Result<Vec<Difference>> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let found = Mutex::new(Found::default());
        let compare = || {
            let mut buf = AlignedBuf::zeroed(CELL as usize);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) || index >= self.requests.len() + self.zeros.len() {
                    return Ok(());
                }
                let mut reader = Reader {
                    lane,
                    expected,
                    found: &found,
                    buf: &mut buf,
                };
                let outcome = match self.requests.get(index) {
                    Some(pieces) => reader.compare(&expected.digests.pieces()[pieces.clone()]),
                    None => reader.compare_zeros(&self.zeros[index - self.requests.len()]),
                };
                let full = lock(&found).wrong.len() >= MOST_LISTED;
                if outcome.is_err() || full {
                    stop.store(true, Ordering::Relaxed);
                    return outcome;
                }
            }
        };
        let mut outcomes: Vec<Result<()>> = (0..READERS).map(|_| Ok(())).collect();
        let readers = outcomes
            .iter_mut()
            .map(|outcome| -> Job { Box::new(|| *outcome = compare()) });
        together(readers, || ());
        outcomes.into_iter().collect::<Result<()>>()?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = found.wrong;
        let aliases = find_aliases(expected.digests, &found.crcs);
        for difference in &mut wrong {
            if let Some(&place) = aliases.get(&difference.range.start) {
                difference.class = Class::OtherBlock { place };
            }
        }
        Ok(wrong)
    }
}

/// Puts neighbouring pieces of one cell together.
fn requests(pieces: &[Piece], which: Range<usize>) -> Vec<Range<usize>> {
    let mut requests: Vec<Range<usize>> = Vec::new();
    for index in which {
        let start = pieces[index].start;
        match requests.last_mut() {
            Some(last)
                if pieces[last.end - 1].range().end == start
                    && pieces[last.start].start / CELL == start / CELL =>
            {
                last.end = index + 1;
            }
            _ => requests.push(index..index + 1),
        }
    }
    requests
}

fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    (range.start..range.end)
        .step_by(CELL as usize)
        .map(move |start| start..(start + CELL).min(range.end))
}

#[derive(Default)]
struct Found {
    wrong: Vec<Difference>,
    /// Checksums of wrong blocks' contents.
    crcs: Vec<(u64, u32)>,
    unreadable: u32,
}

struct Reader<'a> {
    lane: &'a Lane<'a>,
    expected: &'a Expected<'a>,
    found: &'a Mutex<Found>,
    buf: &'a mut AlignedBuf,
}

impl Reader<'_> {
    /// Holds pieces that lie side by side against what the card has.
    fn compare(&mut self, pieces: &[Piece]) -> Result<()> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(());
        };
        let range = first.range().start..last.range().end;
        let len = (range.end - range.start) as usize;
        let readable = self.read(&range)?;
        for piece in pieces {
            let at = (piece.start - range.start) as usize;
            let bytes = &self.buf[at..at + piece.len as usize];
            if readable && piece.matches(bytes) {
                continue;
            }
            let mut pinned = false;
            for (block, crc) in self.expected.digests.blocks_of(piece) {
                let at = (block.start - range.start) as usize;
                let count = (block.end - block.start) as usize;
                if readable || self.read_block(&block, at)? {
                    let bytes = &self.buf[at..at + count];
                    if crc32c::crc32c(bytes) != crc {
                        pinned = true;
                        self.note(block, bytes, false);
                    }
                } else {
                    pinned = true;
                }
            }
            let bytes = &self.buf[at..at + piece.len as usize];
            if !pinned && !piece.matches(bytes) {
                // No block's checksum shows it: then all of the piece is suspect.
                for block in blocks(piece.range()) {
                    self.note(block, &[1], false);
                }
            }
        }
        self.lane.slot.progress.advanced(Phase::Verify, len as u64)
    }

    fn compare_zeros(&mut self, range: &Range<u64>) -> Result<()> {
        let readable = self.read(range)?;
        for block in blocks(range.clone()) {
            let at = (block.start - range.start) as usize;
            let count = (block.end - block.start) as usize;
            if readable || self.read_block(&block, at)? {
                let bytes = &self.buf[at..at + count];
                if !is_zero(bytes) {
                    self.note(block, bytes, true);
                }
            }
        }
        self.lane
            .slot
            .progress
            .advanced(Phase::Verify, range.end - range.start)
    }

    /// Reads a whole request; false if some of it cannot be read.
    fn read(&mut self, range: &Range<u64>) -> Result<bool> {
        let len = (range.end - range.start) as usize;
        match self.lane.read(range.start, &mut self.buf[..len]) {
            Ok(()) => Ok(true),
            Err(error) if is_final(&error) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Reads a block to index `at` of the buffer; false, and noted, if it cannot be read.
    fn read_block(&mut self, block: &Range<u64>, at: usize) -> Result<bool> {
        let count = (block.end - block.start) as usize;
        let outcome = self.lane.read(block.start, &mut self.buf[at..at + count]);
        let mut found = lock(self.found);
        match outcome {
            Ok(()) => {
                found.unreadable = 0;
                Ok(true)
            }
            Err(error) => {
                found.unreadable += 1;
                if is_final(&error) || found.unreadable >= MOST_UNREADABLE {
                    return Err(error);
                }
                found.wrong.push(Difference {
                    range: ByteRange::new(block.start, block.end),
                    class: Class::Unreadable,
                });
                Ok(false)
            }
        }
    }

    fn note(&self, block: Range<u64>, bytes: &[u8], zeros: bool) {
        let crc = crc32c::crc32c(bytes);
        let class = match at_first_sight(bytes) {
            Class::Other if self.expected.old.get(&block.start) == Some(&crc) => Class::OldContents,
            class => class,
        };
        let mut found = lock(self.found);
        if class == Class::Other && !zeros && found.crcs.len() < MOST_LOOKED_UP {
            found.crcs.push((block.start, crc));
        }
        found.wrong.push(Difference {
            range: ByteRange::new(block.start, block.end),
            class,
        });
    }
}

// A reader that panicked takes the whole run with it anyway.
fn lock(found: &Mutex<Found>) -> std::sync::MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the blocks of `ranges` again. Returns what each looked like right before.
fn rewrite(
    lane: &Lane,
    expected: &Expected,
    image: &dyn ImageSource,
    ranges: &RangeSet,
) -> Result<HashMap<u64, Class>> {
    let mut seen = HashMap::new();
    for zeros in expected.zeros {
        for range in ranges.iter_within(zeros.clone()) {
            for part in steps(range) {
                let bytes = AlignedBuf::zeroed((part.end - part.start) as usize);
                lane.write(part.start, &bytes)?;
            }
        }
    }
    let mut reader = image.open()?;
    let mut position = 0;
    let mut buf = AlignedBuf::zeroed(PIECE as usize);
    for range in ranges.iter() {
        for index in expected.digests.pieces_of(&range) {
            let piece = &expected.digests.pieces()[index];
            let part = range.start.max(piece.start)..range.end.min(piece.range().end);
            let len = (part.end - part.start) as usize;
            reader.skip(part.start - position)?;
            let got = reader.read_full(&mut buf[..len])?;
            position = part.end;
            let mut unchanged = got == len;
            for (block, crc) in expected.digests.blocks_of(piece) {
                if block.start < part.start || block.end > part.end {
                    continue;
                }
                let at = (block.start - part.start) as usize;
                let bytes = &buf[at..at + (block.end - block.start) as usize];
                unchanged &= crc32c::crc32c(bytes) == crc;
                if seen.len() < MOST_LOOKED_UP {
                    let mut now = AlignedBuf::zeroed(bytes.len());
                    if lane.read(block.start, &mut now).is_ok() {
                        seen.insert(block.start, against(&now, bytes));
                    }
                }
            }
            if !unchanged {
                return Err(Error::unsound("the image changed while it was flashed")
                    .with_hint("leave the image alone, and flash again"));
            }
            lane.write(part.start, &buf[..len])?;
        }
    }
    Ok(seen)
}

fn refine(wrong: &mut [Difference], seen: &HashMap<u64, Class>) {
    for difference in wrong {
        if let (Class::Other, Some(class)) = (difference.class, seen.get(&difference.range.start)) {
            difference.class = *class;
        }
    }
}
