//! Memory as raw devices want it: page-aligned buffers.

use std::ops::{Deref, DerefMut};

/// What memory handed to direct I/O is aligned to: the page size is enough for every system here.
pub const MEMORY_ALIGNMENT: usize = 4096;

/// A byte buffer of a fixed length that starts at a multiple of [`MEMORY_ALIGNMENT`].
///
/// The pipeline's buffers should be of this type: what lies in another one is copied before direct I/O.
pub struct AlignedBuf {
    // Longer than asked for by one alignment, and never resized: `start` stays right.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// Makes a buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + MEMORY_ALIGNMENT];
        let misaligned = bytes.as_ptr().addr() % MEMORY_ALIGNMENT;
        Self {
            start: (MEMORY_ALIGNMENT - misaligned) % MEMORY_ALIGNMENT,
            bytes,
            len,
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_page() {
        for len in [0, 1, 4096, 5000, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr().addr() % MEMORY_ALIGNMENT, 0);
            assert_eq!(buf.len(), len);
            buf.fill(7);
            assert!(buf.iter().all(|&byte| byte == 7));
        }
    }
}
