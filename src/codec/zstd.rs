//! Zstandard (RFC 8878), by the reference library.

use std::io::{self, Write};

use zstd::stream::raw::{CParameter, Decoder as Raw, Encoder as RawEncoder, Operation};
use zstd::stream::write::Encoder as Writer;
use zstd::stream::zio;

use super::unpack::{Fault, Step, Unpack};

/// Packed bytes given to the sink at once.
const OUTPUT: usize = 256 << 10;

/// At fast levels these outrun every card and most disks; more would only cost memory, 13 MiB each.
const FAST_WORKERS: usize = 8;

/// Matches reach back 64 MiB: a card holds its kernel and modules two or three times, and that is
/// a tenth of its size, at no cost in time. Every reader allows 128 MiB.
const WINDOW_LOG: u32 = 26;

/// Starts one frame with a checksum, packed by `threads` workers.
pub(super) fn encoder<W: Write>(
    level: u32,
    threads: usize,
    len: Option<u64>,
    sink: W,
) -> io::Result<Writer<'static, W>> {
    let workers = if level <= 5 {
        threads.min(FAST_WORKERS)
    } else {
        threads
    };
    let mut raw = RawEncoder::new(level as i32)?;
    raw.set_parameter(CParameter::ChecksumFlag(true))?;
    raw.set_parameter(CParameter::NbWorkers(workers as u32))?;
    raw.set_parameter(CParameter::EnableLongDistanceMatching(true))?;
    raw.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
    raw.set_pledged_src_size(len)?;
    let buffer = Vec::with_capacity(OUTPUT);
    let writer = zio::Writer::with_output_buffer(buffer, sink, raw);
    Ok(Writer::with_writer(writer))
}

/// Returns the size noted in the header of the first frame.
pub(super) fn unpacked_len(first: &[u8]) -> Option<u64> {
    zstd::zstd_safe::get_frame_content_size(first)
        .ok()
        .flatten()
}

/// Unpacks frame after frame; windows up to 128 MiB, as the zstd program does by default.
pub(super) struct Frames {
    raw: Raw<'static>,
    inside: bool,
    seen: bool,
}

impl Frames {
    pub(super) fn open() -> Result<Self, Fault> {
        let raw = Raw::new().map_err(|error| Fault::Unsupported(error.to_string()))?;
        Ok(Self {
            raw,
            inside: false,
            seen: false,
        })
    }
}

impl Unpack for Frames {
    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<Step, Fault> {
        if input.is_empty() && !self.inside {
            return Ok(Step::NOTHING);
        }
        let status = self.raw.run_on_buffers(input, output).map_err(|error| {
            let text = error.to_string();
            match text.contains("too much memory") {
                true => Fault::Unsupported("its window needs more than 128 MiB of memory".into()),
                false => Fault::Damaged(text.to_lowercase()),
            }
        })?;
        self.inside = status.remaining != 0;
        self.seen = true;
        Ok(Step {
            read: status.bytes_read,
            written: status.bytes_written,
        })
    }

    fn may_end(&self) -> bool {
        self.seen && !self.inside
    }
}
