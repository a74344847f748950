//! The value at the centre of the design: where each byte of a new disk comes from.
//!
//! A resize, a journal replay or an edit of a file never writes. It returns an [`Overlay`]: sorted,
//! disjoint runs that take their bytes from the base at another offset, from there with a few
//! changes, from memory, or are zeros.
//! Where there is no run, the byte comes from the base at the same offset. An overlay holds no
//! base; [`Overlay::over`] puts it on one, and what that gives can be read, so overlays stack.

mod commit;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::{Edits, ReadAt, check_range};

/// Is told of each write that a commit makes: the byte range and its new contents. An error of its
/// own ends the commit.
pub type OnWrite<'a> = &'a mut dyn FnMut(Range<u64>, &[u8]) -> Result<()>;

/// Where the bytes of a run come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The base, from this offset on.
    Base(u64),
    /// Memory, from this index of the buffer on.
    Bytes(Arc<[u8]>, usize),
    /// The base, from this offset on, with changes: of these, from this index of their run on.
    Patched(u64, Arc<Edits>, u32),
    /// Zeros.
    Zero,
}

impl Source {
    /// Returns where in the base the bytes begin, if they come from there.
    pub fn base(&self) -> Option<u64> {
        match self {
            Source::Base(offset) | Source::Patched(offset, ..) => Some(*offset),
            Source::Bytes(..) | Source::Zero => None,
        }
    }

    /// Changes bytes of the base to what they are on the new disk.
    pub fn apply(&self, bytes: &mut [u8]) {
        if let Source::Patched(_, edits, index) = self {
            edits.apply(*index as usize, bytes);
        }
    }

    /// The same source in a base that begins `by` bytes before this one.
    fn shifted(self, by: u64) -> Self {
        match self {
            Source::Base(offset) => Source::Base(offset + by),
            Source::Patched(offset, edits, index) => Source::Patched(offset + by, edits, index),
            other => other,
        }
    }

    /// What it is, `len` bytes long, with `edits` from `index` on.
    fn patched(&self, len: u64, edits: &Arc<Edits>, index: u32) -> Self {
        let changed = |mut bytes: Vec<u8>| {
            edits.apply(index as usize, &mut bytes);
            Source::Bytes(bytes.into(), 0)
        };
        // OK: as long as a part of the changes' run at the most.
        let len = len as usize;
        match self {
            Source::Base(from) => Source::Patched(*from, edits.clone(), index),
            Source::Patched(from, below, at) => {
                let both = below.then(*at as usize, edits, index as usize, len);
                Source::Patched(*from, Arc::new(both), 0)
            }
            Source::Bytes(bytes, at) => changed(bytes[*at..*at + len].to_vec()),
            Source::Zero => changed(vec![0; len]),
        }
    }

    /// The same source, `by` bytes further on.
    #[must_use]
    pub fn advanced(&self, by: u64) -> Self {
        match self {
            // OK: an overlay's runs lie within 2^64 bytes; insertion checked the end.
            Source::Base(offset) => Source::Base(offset + by),
            Source::Bytes(bytes, index) => Source::Bytes(bytes.clone(), index + by as usize),
            // OK: within the changes' run.
            Source::Patched(offset, edits, index) => {
                Source::Patched(offset + by, edits.clone(), index + by as u32)
            }
            Source::Zero => Source::Zero,
        }
    }
}

#[derive(Clone, Debug)]
struct Run {
    len: u64,
    source: Source,
}

/// A stretch of the new disk with one source, as [`Overlay::segments`] lists it.
#[derive(Clone, Debug)]
pub struct Segment {
    /// First byte in the new disk.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    pub source: Source,
}

impl Segment {
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Where each byte of a new disk of [`Overlay::len`] bytes comes from.
#[derive(Clone, Debug)]
pub struct Overlay {
    len: u64,
    runs: BTreeMap<u64, Run>,
}

impl Overlay {
    /// The new disk has `len` bytes, all from the base at the same offset.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            runs: BTreeMap::new(),
        }
    }

    /// Returns the length of the new disk in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Does every byte come from the base at its own offset?
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Changes the length; runs past a shorter end are cut off.
    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.clear(len..self.len);
        }
        self.len = len;
    }

    /// Takes the bytes at `offset` from memory.
    ///
    /// # Panics
    /// If they go past the end: plans place what they emit.
    pub fn set_bytes(&mut self, offset: u64, bytes: impl Into<Arc<[u8]>>) {
        let bytes = bytes.into();
        let len = bytes.len() as u64;
        self.set(offset, len, Source::Bytes(bytes, 0));
    }

    /// Takes the bytes at `offset` from the part `part` of a buffer that others may share.
    ///
    /// # Panics
    /// As [`set_bytes`](Self::set_bytes), and if the buffer has no such part.
    pub fn set_shared(&mut self, offset: u64, bytes: &Arc<[u8]>, part: Range<usize>) {
        let len = bytes[part.clone()].len() as u64;
        self.set(offset, len, Source::Bytes(bytes.clone(), part.start));
    }

    /// Makes `range` zeros.
    pub fn set_zero(&mut self, range: Range<u64>) {
        self.set(
            range.start,
            range.end.saturating_sub(range.start),
            Source::Zero,
        );
    }

    /// Takes `len` bytes at `offset` from byte `from` of the base.
    pub fn set_base(&mut self, offset: u64, len: u64, from: u64) {
        self.set(offset, len, Source::Base(from));
    }

    /// Takes `len` bytes at `offset` from byte `from` of the base, with changes.
    pub fn set_patched(&mut self, offset: u64, len: u64, from: u64, edits: Edits) {
        self.set(offset, len, Source::Patched(from, Arc::new(edits), 0));
    }

    fn set(&mut self, start: u64, len: u64, source: Source) {
        if len == 0 {
            return;
        }
        let end = start.checked_add(len).filter(|&end| end <= self.len);
        let end = end.expect("an overlay's run lies within its length");
        self.clear(start..end);
        self.runs.insert(start, Run { len, source });
    }

    /// Drops what runs say about `range`, splitting those that straddle its ends.
    fn clear(&mut self, range: Range<u64>) {
        if let Some((&before, run)) = self.runs.range(..range.start).next_back() {
            let before_end = before + run.len;
            if before_end > range.start {
                let tail = (before_end > range.end).then(|| Run {
                    len: before_end - range.end,
                    source: run.source.advanced(range.end - before),
                });
                // OK to unwrap: the key was just found.
                self.runs.get_mut(&before).unwrap().len = range.start - before;
                if let Some(tail) = tail {
                    self.runs.insert(range.end, tail);
                    return;
                }
            }
        }
        while let Some((&start, run)) = self.runs.range(range.start..range.end).next() {
            let run_end = start + run.len;
            let tail = (run_end > range.end).then(|| Run {
                len: run_end - range.end,
                source: run.source.advanced(range.end - start),
            });
            self.runs.remove(&start);
            if let Some(tail) = tail {
                self.runs.insert(range.end, tail);
            }
        }
    }

    /// Takes `range` from the base at the same offset again.
    pub fn forget(&mut self, range: Range<u64>) {
        self.clear(range);
    }

    /// Copies what `other` says about `range` over this one's (both describe the same disk and
    /// base); what it leaves to the base stays as it is here.
    pub fn take(&mut self, other: &Overlay, range: Range<u64>) {
        for segment in other.segments(range) {
            if !matches!(segment.source, Source::Base(from) if from == segment.start) {
                self.set(segment.start, segment.len, segment.source);
            }
        }
    }

    /// Lists what does not come from the base at its own offset, in order.
    pub fn changed(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, run)| start..start + run.len)
    }

    /// Lists all sources of `range` in order, without gaps; neighbours may share a source.
    pub fn segments(&self, range: Range<u64>) -> Segments<'_> {
        Segments {
            overlay: self,
            at: range.start,
            end: range.end.min(self.len),
        }
    }

    /// Lists all of the new disk.
    pub fn all_segments(&self) -> Segments<'_> {
        self.segments(0..self.len)
    }

    /// Puts the overlay on `base`. Bytes past the end of `base` read as zeros.
    pub fn over<T: ReadAt>(&self, base: T) -> Layered<'_, T> {
        Layered {
            overlay: self,
            base,
        }
    }

    /// Lifts a partition's overlay to the disk: `self` describes the bytes from `offset` on of a
    /// disk of `disk_len` bytes, and took its base bytes from byte `base_offset` of the disk on.
    pub fn rebase(&self, offset: u64, base_offset: u64, disk_len: u64) -> Overlay {
        let mut disk = Overlay::new(disk_len);
        for segment in self.all_segments() {
            let start = segment.start + offset;
            match segment.source.shifted(base_offset) {
                Source::Base(from) if from == start => {}
                source => disk.set(start, segment.len, source),
            }
        }
        disk
    }

    /// Puts a partition's overlay in its place, as [`rebase`](Self::rebase) and
    /// [`merge`](Self::merge) would; of many runs there is never a second copy.
    pub fn place(&mut self, part: Overlay, offset: u64, base_offset: u64) {
        let same = offset == base_offset;
        let mut at = 0;
        let gap = |disk: &mut Self, from: u64, to: u64| {
            if !same {
                disk.set_base(from + offset, to - from, from + base_offset);
            }
        };
        for (start, run) in part.runs {
            gap(self, at, start);
            at = start + run.len;
            match run.source.shifted(base_offset) {
                Source::Base(from) if from == start + offset => {}
                source => self.set(start + offset, run.len, source),
            }
        }
        gap(self, at, part.len);
    }

    /// Copies every run of `other` over this one's (both describe the same disk and base).
    pub fn merge(&mut self, other: &Overlay) {
        for (&start, run) in &other.runs {
            self.set(start, run.len, run.source.clone());
        }
    }

    /// Flattens two: `upper` lies on this one. The result lies on this one's base.
    pub fn then(&self, upper: &Overlay) -> Overlay {
        let mut flat = Overlay::new(upper.len);
        for segment in upper.all_segments() {
            let Some(from) = segment.source.base() else {
                flat.set(segment.start, segment.len, segment.source);
                continue;
            };
            let mut over = |at: u64, len: u64, below: Source| {
                let start = segment.start + (at - from);
                let source = match &segment.source {
                    Source::Patched(_, edits, index) => {
                        // OK: within the changes' run.
                        below.patched(len, edits, index + (at - from) as u32)
                    }
                    _ => below,
                };
                match source {
                    Source::Base(offset) if offset == start => {}
                    source => flat.set(start, len, source),
                }
            };
            let end = from.saturating_add(segment.len).min(self.len);
            for below in self.segments(from.min(end)..end) {
                over(below.start, below.len, below.source);
            }
            let covered = end.saturating_sub(from);
            if covered < segment.len {
                over(from + covered, segment.len - covered, Source::Zero);
            }
        }
        flat
    }

    /// Flattens two, this one above: like [`then`](Self::then), but without a copy where there is
    /// nothing below.
    pub fn onto(self, lower: &Overlay) -> Overlay {
        let within =
            |(start, run): (&u64, &Run)| run.source.base().unwrap_or(*start) + run.len <= lower.len;
        if lower.is_empty() && self.len <= lower.len && self.runs.iter().all(within) {
            return self;
        }
        lower.then(&self)
    }
}

/// See [`Overlay::segments`].
pub struct Segments<'a> {
    overlay: &'a Overlay,
    at: u64,
    end: u64,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.at >= self.end {
            return None;
        }
        let runs = &self.overlay.runs;
        let start = self.at;
        let holding = runs
            .range(..=start)
            .next_back()
            .filter(|(run_start, run)| **run_start + run.len > start);
        let (end, source) = match holding {
            Some((&run_start, run)) => {
                (run_start + run.len, run.source.advanced(start - run_start))
            }
            None => {
                let next = runs
                    .range(start..)
                    .next()
                    .map_or(self.end, |(&next, _)| next);
                (next, Source::Base(start))
            }
        };
        self.at = end.min(self.end);
        Some(Segment {
            start,
            len: self.at - start,
            source,
        })
    }
}

/// An overlay on a base: reads as the new disk.
#[derive(Clone, Copy, Debug)]
pub struct Layered<'a, T> {
    overlay: &'a Overlay,
    base: T,
}

impl<T: ReadAt> ReadAt for Layered<'_, T> {
    fn len(&self) -> u64 {
        self.overlay.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        let mut done = 0;
        for segment in self.overlay.segments(offset..offset + buf.len() as u64) {
            // OK: a segment is no longer than buf.
            let part = &mut buf[done..done + segment.len as usize];
            match &segment.source {
                Source::Base(from) => read_padded(&self.base, *from, part)?,
                Source::Patched(from, ..) => {
                    read_padded(&self.base, *from, part)?;
                    segment.source.apply(part);
                }
                Source::Bytes(bytes, index) => {
                    part.copy_from_slice(&bytes[*index..*index + part.len()]);
                }
                Source::Zero => part.fill(0),
            }
            done += part.len();
        }
        if done < buf.len() {
            return Err(Error::internal("an overlay has a gap"));
        }
        Ok(())
    }
}

/// Reads from a base that may be shorter than the new disk.
fn read_padded<T: ReadAt + ?Sized>(base: &T, from: u64, buf: &mut [u8]) -> Result<()> {
    let there = base.len().saturating_sub(from).min(buf.len() as u64) as usize;
    if there > 0 {
        base.read_exact_at(from, &mut buf[..there])?;
    }
    buf[there..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests;
