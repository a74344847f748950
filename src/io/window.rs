//! A part of a larger thing, with its own byte 0: a partition of a disk.

use super::{ReadAt, WriteAt, check_range};
use crate::error::Result;
use crate::units::ByteRange;

/// The bytes `range` of `inner`, numbered from 0.
#[derive(Clone, Copy, Debug)]
pub struct Window<T> {
    inner: T,
    range: ByteRange,
}

impl<T: ReadAt> Window<T> {
    /// Opens the window `range` of `inner`.
    ///
    /// # Errors
    /// `Unsound` if `range` goes past the end of `inner`.
    pub fn new(inner: T, range: ByteRange) -> Result<Self> {
        check_range(inner.len(), range.start, range.len())?;
        Ok(Self { inner, range })
    }
}

impl<T: ReadAt> ReadAt for Window<T> {
    fn len(&self) -> u64 {
        self.range.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        self.inner.read_exact_at(self.range.start + offset, buf)
    }
}

impl<T: WriteAt> WriteAt for Window<T> {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        self.inner.write_all_at(self.range.start + offset, buf)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }
}
