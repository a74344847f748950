//! bzip2: read only, since distributions still publish it.

use bzip2::{Decompress, Status};

use super::unpack::{Fault, Format, Step, Stream};

pub(super) const FORMAT: Format = Format {
    magic: b"B",
    padding: 0,
    appended: false,
};

/// Unpacks one stream; its CRCs are checked by the library.
pub(super) struct BzStream(Decompress);

impl BzStream {
    pub(super) fn open() -> Result<Box<dyn Stream>, Fault> {
        Ok(Box::new(Self(Decompress::new(false))))
    }
}

impl Stream for BzStream {
    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<(Step, bool), Fault> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(input, output)
            .map_err(|error| Fault::Damaged(error.to_string()))?;
        if status == Status::MemNeeded {
            return Err(Fault::Unsupported("there is not enough memory".into()));
        }
        let step = Step {
            read: (self.0.total_in() - read) as usize,
            written: (self.0.total_out() - written) as usize,
        };
        Ok((step, status == Status::StreamEnd))
    }
}
