//! What flash asks of a card beyond reading and writing, and what else it is told about one.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::io::WriteAt;
use crate::progress::Progress;

/// A card, or what stands for one.
pub trait Card: WriteAt {
    /// Tells the medium that `range` is not needed any more. Returns false if it cannot.
    fn discard(&self, range: Range<u64>) -> Result<bool>;

    /// Makes `range` zeros without sending them. Returns false if the medium cannot; then some of
    /// them may be zeros already.
    fn write_zeroes(&self, range: Range<u64>) -> Result<bool>;

    /// Sees to it that the next reads come from the medium itself.
    fn drop_cache(&self) -> Result<()>;

    /// Returns the multiple of bytes that requests should keep to.
    fn alignment(&self) -> u64;

    /// Returns the bytes of the sectors in which a system counts on it; `None` of a file, which is
    /// anybody's.
    fn sector_size(&self) -> Option<u64> {
        None
    }
}

/// One card among those that are flashed together.
pub struct Slot<'a> {
    /// What messages call it.
    pub name: String,
    pub card: &'a dyn Card,
    pub progress: &'a dyn Progress,
}

/// Can nothing but giving up follow?
pub(super) fn is_final(error: &Error) -> bool {
    error.is_gone() || error.kind() != ErrorKind::Io
}
