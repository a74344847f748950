//! The way back to what could not be read at first, as ddrescue goes it: large pieces first, with
//! a growing skip after each that fails; then what was skipped, from the end; then smaller pieces,
//! at last single sectors, and these once more.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;

use crate::capture::mapfile::SECTOR;
use crate::capture::rescue::{Rescue, Skip};
use crate::capture::summary::CapturePlan;
use crate::error::Result;
use crate::io::range_set::pieces;
use crate::io::{RangeSet, Segment};

/// The sizes of requests, one after the other.
const STEPS: [u64; 4] = [1 << 20, 64 << 10, 4 << 10, SECTOR];

/// How often a single sector is tried again.
const RETRIES: u32 = 2;

/// After so many errors in a row the source is asked whether it is there at all.
const PROBE_AFTER: u32 = 8;

/// Reads `pending` bytes of the source as far as possible and hands them to `take`. What cannot
/// be read is in the rescue's [`Unread`](crate::capture::rescue::Unread) at the end.
///
/// # Errors
/// A source that is gone, `Cancelled`, what `take` fails with.
pub fn recover(
    rescue: &mut Rescue,
    pending: &RangeSet,
    take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut work = Recover {
        rescue,
        take,
        buf: vec![0; STEPS[0] as usize],
        errors: 0,
    };
    let mut bad: Vec<_> = pending.iter().collect();
    for step in STEPS {
        bad = work.sweep(bad, step)?;
    }
    for _ in 0..RETRIES {
        bad = work.pass(bad, SECTOR)?;
    }
    for range in bad {
        work.rescue.give_up(range);
    }
    Ok(())
}

struct Recover<'a, 'r> {
    rescue: &'a mut Rescue<'r>,
    take: &'a mut dyn FnMut(u64, &[u8]) -> Result<()>,
    buf: Vec<u8>,
    /// In a row.
    errors: u32,
}

impl Recover<'_, '_> {
    /// Goes over `ranges` in pieces of `step` bytes, leaving out some behind each error, and then
    /// over those from the end. Returns what failed.
    fn sweep(&mut self, ranges: Vec<Range<u64>>, step: u64) -> Result<Vec<Range<u64>>> {
        if step == SECTOR {
            return self.pass(ranges, step);
        }
        let mut failed = RangeSet::new();
        let mut left_out = Vec::new();
        let mut skip = Skip::default();
        let mut resume_at = 0;
        for piece in ranges.into_iter().flat_map(|range| pieces(range, step)) {
            if piece.start < resume_at {
                left_out.push(piece);
                continue;
            }
            let success = self.attempt(&piece)?;
            resume_at = piece.end + skip.after(success);
            if !success {
                failed.insert(piece);
            }
        }
        left_out.reverse();
        for piece in left_out {
            if !self.attempt(&piece)? {
                failed.insert(piece);
            }
        }
        Ok(failed.iter().collect())
    }

    /// Tries every piece once.
    fn pass(&mut self, ranges: Vec<Range<u64>>, step: u64) -> Result<Vec<Range<u64>>> {
        let mut failed = RangeSet::new();
        for piece in ranges.into_iter().flat_map(|range| pieces(range, step)) {
            if !self.attempt(&piece)? {
                failed.insert(piece);
            }
        }
        Ok(failed.iter().collect())
    }

    fn attempt(&mut self, piece: &Range<u64>) -> Result<bool> {
        let buf = &mut self.buf[..(piece.end - piece.start) as usize];
        self.rescue.advanced(0)?;
        if self.rescue.attempt(piece.start, buf)? {
            self.errors = 0;
            (self.take)(piece.start, buf)?;
            self.rescue.advanced(buf.len() as u64)?;
            return Ok(true);
        }
        self.errors += 1;
        if self.errors.is_multiple_of(PROBE_AFTER) {
            self.rescue.probe()?;
        }
        Ok(false)
    }
}

/// Where the source's bytes go in an image: stretches that come from there, by their first byte there.
pub struct Places(Vec<(u64, Segment)>);

impl Places {
    pub fn new(plan: &CapturePlan) -> Self {
        let segments = plan.overlay.all_segments();
        let mut places: Vec<_> = segments
            .filter_map(|segment| Some((segment.source.base()?, segment)))
            .collect();
        places.sort_unstable_by_key(|(from, segment)| (*from, segment.len, segment.start));
        Self(places)
    }

    /// Writes what was read at `from` to every place that it has in the image.
    ///
    /// # Errors
    /// What the file fails with.
    pub fn write(&self, file: &mut File, from: u64, bytes: &[u8]) -> Result<()> {
        let end = from + bytes.len() as u64;
        // No byte of the source goes to two places but from runs that begin at the same byte.
        let first = self
            .0
            .partition_point(|(start, segment)| start + segment.len <= from);
        for (start, segment) in self.0[first..].iter().take_while(|run| run.0 < end) {
            let part = (*start).max(from)..(start + segment.len).min(end);
            if part.is_empty() {
                continue;
            }
            let skip = part.start - start;
            let at = segment.start + skip;
            let mut part = bytes[(part.start - from) as usize..(part.end - from) as usize].to_vec();
            segment.source.advanced(skip).apply(&mut part);
            file.seek(SeekFrom::Start(at))
                .and_then(|_| file.write_all(&part))
                .map_err(|error| crate::capture::sink::writing(at, error))?;
        }
        Ok(())
    }
}
