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
}

/// One card among those that are flashed together.
pub struct Slot<'a> {
    /// What messages call it.
    pub name: String,
    pub card: &'a dyn Card,
    pub progress: &'a dyn Progress,
}

/// The system's numbers for a card that is not there any more. Linux and macOS: ENXIO, ENODEV, and
/// ENOMEDIUM (Linux's). Windows: NOT_READY, DEV_NOT_EXIST, NO_SUCH_DEVICE, FILE_INVALID, MEDIA_CHANGED,
/// NO_MEDIA_IN_DRIVE, DEVICE_NOT_CONNECTED, DEVICE_REMOVED.
const GONE: &[i32] = if cfg!(windows) {
    &[21, 55, 433, 1006, 1110, 1112, 1167, 1617]
} else {
    &[6, 19, 123]
};

/// Is it a sign that the card was pulled out, rather than that a place on it is bad?
pub(super) fn is_gone(error: &Error) -> bool {
    let code = error.io_error().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| GONE.contains(&code))
}

/// Can nothing but giving up follow?
pub(super) fn is_final(error: &Error) -> bool {
    is_gone(error) || error.kind() != ErrorKind::Io
}
