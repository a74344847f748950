//! Zstandard (RFC 8878), by the reference library.

use std::io::{self, Write};

use zstd::stream::raw::{CParameter, DParameter, Decoder as Raw, Encoder as RawEncoder, Operation};
use zstd::stream::write::Encoder as Writer;
use zstd::stream::zio;

use super::unpack::{Fault, Step, Stream, Unpack};

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

/// The largest window that a frame may ask for (2 GiB, or what addresses of 32 bits leave room for), if
/// the memory is there.
const MOST_WINDOW_LOG: u32 = if cfg!(target_pointer_width = "64") {
    31
} else {
    29
};

/// What every reader allows, 128 MiB: asked for even where less memory seems to be there.
const LEAST_WINDOW_LOG: u32 = 27;

/// Returns the largest window that fits in half of the memory that is available. Where nothing tells
/// how much that is, the allocator will.
fn window_log() -> u32 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available(&info)
        .map_or(MOST_WINDOW_LOG, |bytes| (bytes / 2).max(1).ilog2())
        .clamp(LEAST_WINDOW_LOG, MOST_WINDOW_LOG)
}

/// Reads the bytes of `MemAvailable` from what Linux says of its memory.
fn available(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Unpacks frame after frame.
pub(super) struct Frames {
    raw: Raw<'static>,
    inside: bool,
    seen: bool,
}

impl Frames {
    pub(super) fn open() -> Result<Self, Fault> {
        let mut raw = Raw::new().map_err(|error| Fault::Unsupported(error.to_string()))?;
        raw.set_parameter(DParameter::WindowLogMax(window_log()))
            .map_err(|error| Fault::Unsupported(error.to_string()))?;
        Ok(Self {
            raw,
            inside: false,
            seen: false,
        })
    }
}

/// One frame, within something that knows its length.
impl Stream for Frames {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<(Step, bool), Fault> {
        let step = Unpack::step(self, input, output, last)?;
        Ok((step, self.may_end()))
    }
}

impl Unpack for Frames {
    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<Step, Fault> {
        if input.is_empty() && !self.inside {
            return Ok(Step::NOTHING);
        }
        let status = self.raw.run_on_buffers(input, output).map_err(|error| {
            let text = error.to_string();
            match text.contains("memory") || text.contains("Allocation") {
                true => Fault::Unsupported(
                    "its window needs more memory than there is; `zstd -d --long=31` unpacks it on a \
                     larger machine"
                        .into(),
                ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_how_much_memory_is_there() {
        let info = "MemTotal:  4000 kB\nMemAvailable:    1500 kB\nBuffers: 1 kB\n";
        assert_eq!(available(info), Some(1_536_000));
        for info in ["", "MemAvailable: x kB", "MemAvailable:"] {
            assert_eq!(available(info), None);
        }
        assert!((LEAST_WINDOW_LOG..=MOST_WINDOW_LOG).contains(&window_log()));
    }
}
