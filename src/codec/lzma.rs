//! LZMA as zip archives have it (APPNOTE.TXT, 5.8): read only.
//!
//! ```text
//! version(2)  length of the properties(2) = 5  properties(5) | data, maybe with a mark at its end
//! ```

use xz2::stream::{Action, Status, Stream as Raw};

use super::unpack::{Fault, Step, Stream};
use super::xz;

const HEADER: usize = 9;

/// Unpacks one file's data.
pub(super) struct Lzma {
    header: Vec<u8>,
    unpacked: Option<u64>,
    raw: Option<Raw>,
}

impl Lzma {
    /// Takes the unpacked length, if it is known: then no mark is needed at the end.
    pub(super) fn new(unpacked: Option<u64>) -> Self {
        Self {
            header: Vec::new(),
            unpacked,
            raw: None,
        }
    }

    /// Starts with the header that files of the lzma format have: properties and length.
    fn start(&self) -> Result<Raw, Fault> {
        if self.header[2..4] != [5, 0] {
            return Err(Fault::Damaged("its LZMA header makes no sense".into()));
        }
        // Without room for a byte it reads nothing; of a header alone it gives none.
        let mut raw = Raw::new_lzma_decoder(xz::MEMORY_STOP).map_err(xz::fault)?;
        let len = self.unpacked.unwrap_or(u64::MAX);
        let begin = [&self.header[4..], &len.to_le_bytes()].concat();
        raw.process(&begin, &mut [0], Action::Run)
            .map_err(xz::fault)?;
        match raw.total_in() == begin.len() as u64 {
            true => Ok(raw),
            false => Err(Fault::Damaged("its LZMA header makes no sense".into())),
        }
    }
}

impl Stream for Lzma {
    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<(Step, bool), Fault> {
        let Some(raw) = &mut self.raw else {
            let count = input.len().min(HEADER - self.header.len());
            self.header.extend_from_slice(&input[..count]);
            if self.header.len() == HEADER {
                self.raw = Some(self.start()?);
            }
            let step = Step {
                read: count,
                written: 0,
            };
            return Ok((step, false));
        };
        let (read, written) = (raw.total_in(), raw.total_out());
        let status = raw.process(input, output, Action::Run).map_err(xz::fault)?;
        let step = Step {
            read: (raw.total_in() - read) as usize,
            written: (raw.total_out() - written) as usize,
        };
        Ok((step, status == Status::StreamEnd))
    }
}
