//! A filesystem's image in a file, for the examples.

use std::fs::File;
use std::os::unix::fs::FileExt;

use pishrink::error::{Error, Result};
use pishrink::io::{ReadAt, WriteAt};

pub struct Image {
    file: File,
    len: u64,
}

impl Image {
    /// Wraps an open file; only a file that was opened for writing can be written.
    pub fn new(file: File) -> Result<Self> {
        let metadata = file.metadata();
        let metadata = metadata.map_err(|error| Error::io("the image's length", error))?;
        Ok(Self {
            len: metadata.len(),
            file,
        })
    }
}

impl ReadAt for Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(buf, offset);
        read.map_err(|error| Error::io("reading the image", error))
    }
}

impl WriteAt for Image {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(buf, offset);
        written.map_err(|error| Error::io("writing the image", error))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}
