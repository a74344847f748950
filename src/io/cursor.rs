//! `std::io::Read` and `Seek` over a [`ReadAt`], for crates that want those.

use std::io::{self, Read, Seek, SeekFrom};

use super::ReadAt;

/// A position in a [`ReadAt`].
#[derive(Debug)]
pub struct Cursor<T> {
    inner: T,
    position: u64,
}

impl<T: ReadAt> Cursor<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, position: 0 }
    }
}

impl<T: ReadAt> Read for Cursor<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.inner.len().saturating_sub(self.position);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.inner.read_exact_at(self.position, &mut buf[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<T: ReadAt> Seek for Cursor<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.inner.len().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
