//! Files as they are after recovery.

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::read::files::ExtTree;
use crate::ext4::recover::{Recovered, known_super};
use crate::io::{Overlay, ReadAt};

/// A filesystem as it can be read after its journal's replay.
pub struct View<'a> {
    device: &'a dyn ReadAt,
    overlay: Overlay,
}

impl ReadAt for View<'_> {
    fn len(&self) -> u64 {
        self.overlay.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.overlay.over(self.device).read_exact_at(offset, buf)
    }
}

/// Opens the files of the filesystem on `device`, its journal replayed in memory. Of one whose
/// journal cannot be, the files are those that lie there, and the error that says why comes along.
///
/// # Errors
/// `Unsound` for no filesystem, `Unsupported` for an unknown INCOMPAT feature, what the device
/// fails with.
pub fn files(device: &dyn ReadAt) -> Result<(ExtTree<View<'_>>, Option<Error>)> {
    let (fs, overlay, doubt) = match Recovered::replayed(device) {
        Ok(recovered) => (recovered.fs, recovered.overlay, None),
        Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
        Err(error) => (
            known_super(device)?,
            Overlay::new(device.len()),
            Some(error),
        ),
    };
    Ok((ExtTree::new(fs, View { device, overlay }), doubt))
}
