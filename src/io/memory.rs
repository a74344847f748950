//! Disks in memory for tests: one that works, one that fails on demand, one that insists on
//! alignment.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{RangeSet, ReadAt, WriteAt, check_range};
use crate::error::{Error, Result};

/// A sparse disk in memory, in pages; what was never written is zeros.
#[derive(Debug)]
pub struct MemoryDisk {
    len: u64,
    pages: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

const PAGE: u64 = 4096;

impl MemoryDisk {
    pub fn new(len: u64) -> Self {
        Self {
            len,
            pages: Mutex::new(BTreeMap::new()),
        }
    }

    /// Returns a copy of all its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.read_vec_at(0, self.len as usize)
            .expect("the range is the disk's own")
    }
}

impl From<Vec<u8>> for MemoryDisk {
    fn from(bytes: Vec<u8>) -> Self {
        let disk = Self::new(bytes.len() as u64);
        disk.write_all_at(0, &bytes)
            .expect("the range is the disk's own");
        disk
    }
}

impl ReadAt for MemoryDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let pages = self.pages.lock().expect("no test panics while holding it");
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE as usize - within).min(buf.len() - done);
            match pages.get(&(at / PAGE)) {
                Some(page) => buf[done..done + step].copy_from_slice(&page[within..within + step]),
                None => buf[done..done + step].fill(0),
            }
            done += step;
        }
        Ok(())
    }
}

impl WriteAt for MemoryDisk {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let mut pages = self.pages.lock().expect("no test panics while holding it");
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let step = (PAGE as usize - within).min(buf.len() - done);
            let page = pages
                .entry(at / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize].into());
            page[within..within + step].copy_from_slice(&buf[done..done + step]);
            done += step;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// A disk whose reads fail in given ranges and whose writes fail after a given number.
#[derive(Debug)]
pub struct FaultyDisk<T> {
    inner: T,
    bad_reads: RangeSet,
    writes_left: AtomicU64,
    reads: Mutex<RangeSet>,
}

impl<T> FaultyDisk<T> {
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            bad_reads: RangeSet::new(),
            writes_left: AtomicU64::new(u64::MAX),
            reads: Mutex::new(RangeSet::new()),
        }
    }

    /// Reads that touch any byte of `ranges` fail.
    #[must_use]
    pub fn with_bad_reads(mut self, ranges: RangeSet) -> Self {
        self.bad_reads = ranges;
        self
    }

    /// The first `count` writes work, all later ones fail.
    #[must_use]
    pub fn failing_after_writes(self, count: u64) -> Self {
        self.writes_left.store(count, Ordering::SeqCst);
        self
    }

    /// Returns every byte that was asked for so far.
    pub fn read_so_far(&self) -> RangeSet {
        self.reads
            .lock()
            .expect("no test panics while holding it")
            .clone()
    }

    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T: ReadAt> ReadAt for FaultyDisk<T> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let range = offset..offset.saturating_add(buf.len() as u64);
        self.reads
            .lock()
            .expect("no test panics while holding it")
            .insert(range.clone());
        if self.bad_reads.intersects(range) {
            let cause = io::Error::other("injected read error");
            return Err(Error::io(
                format!("reading {} bytes at byte {offset}", buf.len()),
                cause,
            ));
        }
        self.inner.read_exact_at(offset, buf)
    }
}

impl<T: WriteAt> WriteAt for FaultyDisk<T> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let left = self
            .writes_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if left.is_err() {
            let cause = io::Error::other("injected write error");
            return Err(Error::io(
                format!("writing {} bytes at byte {offset}", buf.len()),
                cause,
            ));
        }
        self.inner.write_all_at(offset, buf)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}

/// A disk that fails requests whose offset or length is not a multiple of its block size, as raw
/// devices with direct I/O do.
#[derive(Debug)]
pub struct StrictDisk<T> {
    inner: T,
    block: u64,
}

impl<T> StrictDisk<T> {
    pub fn new(inner: T, block: u64) -> Self {
        Self { inner, block }
    }

    fn check(&self, offset: u64, count: usize) -> Result<()> {
        if !offset.is_multiple_of(self.block) || !(count as u64).is_multiple_of(self.block) {
            return Err(Error::internal(format!(
                "unaligned request: {count} bytes at byte {offset}"
            )));
        }
        Ok(())
    }
}

impl<T: ReadAt> ReadAt for StrictDisk<T> {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        self.inner.read_exact_at(offset, buf)
    }
}

impl<T: WriteAt> WriteAt for StrictDisk<T> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        self.inner.write_all_at(offset, buf)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}
