//! The beginning of a disk that is all there is.

use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, check_range};

/// The first bytes of something long whose other bytes are not known yet.
pub(crate) struct Prefix<'a>(pub(crate) &'a [u8]);

impl ReadAt for Prefix<'_> {
    fn len(&self) -> u64 {
        1 << 60
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.0.len() as u64, offset, buf.len() as u64)
            .map_err(|_| Error::new(ErrorKind::Io, "these bytes are not there yet"))?;
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

/// The first bytes of something whose length is known.
pub(crate) struct Beginning<'a> {
    pub(crate) first: &'a [u8],
    pub(crate) len: u64,
}

impl ReadAt for Beginning<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        Prefix(self.first).read_exact_at(offset, buf)
    }
}
