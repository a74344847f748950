//! Writing an overlay to the disk that it lies on, in place.

use std::collections::BTreeMap;

use super::{OnWrite, Overlay, Source, read_padded};
use crate::error::{Error, Result};
use crate::io::range_set::pieces;
use crate::io::{RangeSet, WriteAt, check_range};

impl Overlay {
    /// Makes `target` what the overlay over it describes: moves, then everything else, each with a
    /// sync behind it. Calls `written` with the byte range of each write as it is made. What has to
    /// be written before something else is a step of its own, see [`Steps`](crate::io::Steps).
    ///
    /// # Errors
    /// Whatever the target fails with, or the caller's own error from `written`.
    pub fn commit(&self, target: &dyn WriteAt, written: OnWrite<'_>) -> Result<()> {
        check_range(target.len(), 0, self.len)?;
        let moves: Vec<_> = self
            .runs
            .iter()
            .filter_map(|(&start, run)| match run.source {
                Source::Base(from) if from != start => Some((start, run.len, from)),
                _ => None,
            })
            .collect();
        // Like memmove: what goes up is copied from its end, what goes down from its start.
        let up = moves.iter().rev().filter(|(to, _, from)| to > from);
        let down = moves.iter().filter(|(to, _, from)| to < from);
        let moves: Vec<_> = up.chain(down).copied().collect();
        refuse_overwritten_sources(&moves)?;
        let patched = self.patched(target)?;
        for &(to, len, from) in &moves {
            copy_within(target, from, to, len, written)?;
        }
        if !moves.is_empty() {
            target.sync()?;
        }
        if moves.len() == self.runs.len() {
            return Ok(());
        }
        let mut pending = Pending::default();
        for (&start, run) in &self.runs {
            let end = start + run.len;
            match &run.source {
                Source::Base(_) => {}
                Source::Patched(..) => pending.add(start, &patched[&start], target, written)?,
                Source::Bytes(bytes, index) => {
                    let part = &bytes[*index..*index + run.len as usize];
                    pending.add(start, part, target, written)?;
                }
                Source::Zero => {
                    for piece in pieces(start..end, COPY_CHUNK) {
                        let zeros = vec![0; (piece.end - piece.start) as usize];
                        pending.add(piece.start, &zeros, target, written)?;
                    }
                }
            }
        }
        pending.write(target, written)?;
        target.sync()
    }

    /// Returns the bytes of all patched runs: what lies below them may be about to change.
    fn patched(&self, target: &dyn WriteAt) -> Result<BTreeMap<u64, Vec<u8>>> {
        let mut patched = BTreeMap::new();
        for (&start, run) in &self.runs {
            if let Source::Patched(from, ..) = run.source {
                let mut bytes = vec![0; run.len as usize];
                read_padded(target, from, &mut bytes)?;
                run.source.apply(&mut bytes);
                patched.insert(start, bytes);
            }
        }
        Ok(patched)
    }
}

/// Refuses moves of which an earlier one would overwrite what a later one has to read.
fn refuse_overwritten_sources(moves: &[(u64, u64, u64)]) -> Result<()> {
    let mut sources = RangeSet::new();
    for &(to, len, from) in moves.iter().rev() {
        if sources.intersects(to..to + len) {
            return Err(Error::internal(format!(
                "the move of {len} bytes to byte {to} would overwrite what moves later"
            )));
        }
        sources.insert(from..from + len);
    }
    Ok(())
}

const COPY_CHUNK: u64 = 1 << 20;

fn copy_within(
    target: &dyn WriteAt,
    from: u64,
    to: u64,
    len: u64,
    written: OnWrite<'_>,
) -> Result<()> {
    let mut done = 0;
    while done < len {
        let step = COPY_CHUNK.min(len - done);
        let at = if to > from { len - done - step } else { done };
        let bytes = target.read_vec_at(from + at, step as usize)?;
        target.write_all_at(to + at, &bytes)?;
        written(to + at..to + at + step, &bytes)?;
        done += step;
    }
    Ok(())
}

/// Neighbouring bytes that are written together.
#[derive(Default)]
struct Pending {
    start: u64,
    bytes: Vec<u8>,
}

impl Pending {
    fn add(
        &mut self,
        start: u64,
        bytes: &[u8],
        target: &dyn WriteAt,
        written: OnWrite<'_>,
    ) -> Result<()> {
        let follows = self.start + self.bytes.len() as u64 == start;
        if !follows || self.bytes.len() + bytes.len() > COPY_CHUNK as usize {
            self.write(target, written)?;
            self.start = start;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, target: &dyn WriteAt, written: OnWrite<'_>) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        target.write_all_at(self.start, &self.bytes)?;
        let range = self.start..self.start + self.bytes.len() as u64;
        written(range, &self.bytes)?;
        self.bytes.clear();
        Ok(())
    }
}
