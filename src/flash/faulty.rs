//! A card in memory that misbehaves in every way the tests ask for, and remembers its writes.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::target::Card;
use crate::error::{Error, Result};
use crate::io::memory::MemoryDisk;
use crate::io::{RangeSet, ReadAt, WriteAt, check_range, is_zero};

/// What is wrong with a card.
#[derive(Default)]
pub(super) struct Faults {
    /// Writes that touch these fail, always or so often.
    pub(super) bad_writes: RangeSet,
    pub(super) failing_writes: AtomicU64,
    /// Reads that touch these fail, always or so often.
    pub(super) bad_reads: RangeSet,
    pub(super) failing_reads: AtomicU64,
    /// A bit at these places flips when they are written, always or the first time.
    pub(super) flips: Vec<u64>,
    pub(super) flips_once: Mutex<Vec<u64>>,
    /// Addresses wrap here: a card that claims more than it has.
    pub(super) wraps_at: Option<u64>,
    /// What is written from here on is dropped.
    pub(super) drops_from: Option<u64>,
    /// These keep what they have.
    pub(super) stuck: RangeSet,
    /// What is written to the first of these lands so many bytes further on.
    pub(super) shifts: Vec<(Range<u64>, u64)>,
    /// After so many written bytes it is gone.
    pub(super) gone_after: Option<u64>,
    /// The write that reaches this place takes so long, once.
    pub(super) stall: Mutex<Option<(u64, Duration)>>,
    pub(super) cannot_discard: bool,
    pub(super) cannot_zero: bool,
    /// Claims to have zeroed, and does nothing.
    pub(super) lies_about_zeros: bool,
}

pub(super) struct FaultyCard {
    disk: MemoryDisk,
    pub(super) faults: Faults,
    written: AtomicU64,
    /// All that was written, in order: start, length, was it all zeros?
    pub(super) log: Mutex<Vec<(u64, u64, bool)>>,
    pub(super) discarded: Mutex<RangeSet>,
    pub(super) zeroed: Mutex<RangeSet>,
}

pub(super) const ALIGNMENT: u64 = 512;

impl FaultyCard {
    /// A card full of old data.
    pub(super) fn new(len: u64, faults: Faults) -> Self {
        let old: Vec<u8> = (0..len).map(|at| (at / 511) as u8 | 0x80).collect();
        Self::holding(&old, faults)
    }

    /// A card with contents.
    pub(super) fn holding(contents: &[u8], faults: Faults) -> Self {
        Self {
            disk: MemoryDisk::from(contents.to_vec()),
            faults,
            written: AtomicU64::new(0),
            log: Mutex::new(Vec::new()),
            discarded: Mutex::new(RangeSet::new()),
            zeroed: Mutex::new(RangeSet::new()),
        }
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        self.disk.to_vec()
    }

    fn place(&self, offset: u64) -> u64 {
        self.faults.wraps_at.map_or(offset, |at| offset % at)
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        check_range(self.len(), offset, len as u64)?;
        if self.is_gone() {
            let cause = io::Error::from_raw_os_error(5);
            return Err(Error::io("asking the card", cause).gone());
        }
        Ok(())
    }

    fn is_gone(&self) -> bool {
        let limit = self.faults.gone_after.unwrap_or(u64::MAX);
        self.written.load(Ordering::SeqCst) > limit
    }

    fn fails(&self, ranges: &RangeSet, left: &AtomicU64, range: Range<u64>) -> bool {
        let some_left = |left: u64| left.checked_sub(1);
        ranges.intersects(range)
            && (left.load(Ordering::SeqCst) == u64::MAX
                || left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, some_left)
                    .is_ok())
    }

    /// Stores bytes that lie in one block.
    fn store(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let faults = &self.faults;
        if faults.drops_from.is_some_and(|from| offset >= from) || faults.stuck.contains(offset) {
            return Ok(());
        }
        let mut flips_once = faults.flips_once.lock().unwrap();
        flips_once.retain(|&at| {
            let hit = at >= offset && at < offset + bytes.len() as u64;
            if hit {
                bytes[(at - offset) as usize] ^= 4;
            }
            !hit
        });
        for &at in &faults.flips {
            if at >= offset && at < offset + bytes.len() as u64 {
                bytes[(at - offset) as usize] ^= 1;
            }
        }
        let shift = faults
            .shifts
            .iter()
            .find(|(range, _)| range.contains(&offset));
        let by = shift.map_or(0, |(_, by)| *by);
        self.disk.write_all_at(self.place(offset) + by, bytes)
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl ReadAt for FaultyCard {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        let range = offset..offset + buf.len() as u64;
        if self.fails(&self.faults.bad_reads, &self.faults.failing_reads, range) {
            // A short read: the device layer turns it into an error.
            return Err(Error::io("reading the card", eio()));
        }
        for (index, part) in buf.chunks_mut(ALIGNMENT as usize).enumerate() {
            let at = self.place(offset + index as u64 * ALIGNMENT);
            self.disk.read_exact_at(at, part)?;
        }
        Ok(())
    }
}

impl WriteAt for FaultyCard {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        // Held while it stalls: then nothing else gets through either.
        let mut log = self.log.lock().unwrap();
        let stall = {
            let mut stall = self.faults.stall.lock().unwrap();
            let range = offset..offset + buf.len() as u64;
            match *stall {
                Some((at, _)) if range.contains(&at) => stall.take(),
                _ => None,
            }
        };
        if let Some((_, pause)) = stall {
            std::thread::sleep(pause);
        }
        let range = offset..offset + buf.len() as u64;
        if self.fails(&self.faults.bad_writes, &self.faults.failing_writes, range) {
            return Err(Error::io("writing the card", eio()));
        }
        log.push((offset, buf.len() as u64, is_zero(buf)));
        for (index, part) in buf.chunks(ALIGNMENT as usize).enumerate() {
            let mut part = part.to_vec();
            self.store(offset + index as u64 * ALIGNMENT, &mut part)?;
        }
        self.written.fetch_add(buf.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.check(0, 0)
    }
}

impl Card for FaultyCard {
    fn discard(&self, range: Range<u64>) -> Result<bool> {
        self.check(range.start, 0)?;
        if self.faults.cannot_discard {
            return Ok(false);
        }
        self.discarded.lock().unwrap().insert(range);
        Ok(true)
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<bool> {
        self.check(range.start, 0)?;
        if self.faults.cannot_zero {
            return Ok(false);
        }
        self.zeroed.lock().unwrap().insert(range.clone());
        if !self.faults.lies_about_zeros {
            let zeros = vec![0; (range.end - range.start) as usize];
            self.disk.write_all_at(range.start, &zeros)?;
        }
        Ok(true)
    }

    fn drop_cache(&self) -> Result<()> {
        self.check(0, 0)
    }

    fn alignment(&self) -> u64 {
        ALIGNMENT
    }
}
