//! Positional, exact I/O, and values that say where bytes come from.

pub mod aligned;
pub mod cursor;
pub mod edits;
pub mod files;
pub mod memory;
pub mod overlay;
pub(crate) mod prefix;
pub mod range_set;
pub mod steps;
pub mod window;

pub use aligned::{AlignedBuf, MEMORY_ALIGNMENT};
pub use edits::Edits;
pub use files::{Files, Synced};
pub use overlay::{Layered, Overlay, Segment, Source};
pub use range_set::RangeSet;
pub use steps::Steps;
pub use window::Window;

use crate::error::{Error, ErrorKind, Result};

/// Something with a length that can be read at any byte, from any thread.
pub trait ReadAt: Send + Sync {
    /// Returns the length in bytes.
    fn len(&self) -> u64;

    /// Fills `buf` from byte `offset`, all of it.
    ///
    /// # Errors
    /// `Io` if the medium fails, `Unsound` if the range goes past the end.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the system forget what it cached, as far as it can: the next reads ask the medium.
    fn forget_cached(&self) {}

    /// Reads `len` bytes at `offset` into a new buffer. `len` must have been bounded by the caller.
    fn read_vec_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        check_range(self.len(), offset, len as u64)?;
        let mut buf = vec![0; len];
        self.read_exact_at(offset, &mut buf)?;
        Ok(buf)
    }
}

/// Something that can also be written at any byte within its length.
pub trait WriteAt: ReadAt {
    /// Writes all of `buf` at byte `offset`; never past the end.
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Returns when everything written so far is on the medium.
    fn sync(&self) -> Result<()>;
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        (**self).read_exact_at(offset, buf)
    }
    fn forget_cached(&self) {
        (**self).forget_cached();
    }
}

impl<T: WriteAt + ?Sized> WriteAt for &T {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        (**self).write_all_at(offset, buf)
    }
    fn sync(&self) -> Result<()> {
        (**self).sync()
    }
}

/// Refuses a range that goes past `len`.
pub fn check_range(len: u64, offset: u64, count: u64) -> Result<()> {
    match offset.checked_add(count) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Unsound,
            format!("{count} bytes at byte {offset} are past the end at byte {len}"),
        )),
    }
}

/// Is every byte zero? Eight at a time, since this runs over whole cards.
pub fn is_zero(buf: &[u8]) -> bool {
    // SAFETY-free form of align_to: chunks of 64 bytes let the compiler use vectors.
    let mut chunks = buf.chunks_exact(64);
    chunks
        .by_ref()
        .all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
        && chunks.remainder().iter().all(|&byte| byte == 0)
}
