//! xz (xz-file-format 1.2): written in many blocks by all cores, so that it can be read by all
//! cores as well.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::RangeInclusive;

use xz2::stream::{
    Action, Check, Error as XzError, Filters, LzmaOptions, MatchFinder, MtStreamBuilder, Status,
    Stream as Lzma,
};

use super::unpack::{Fault, Format, Step, Stream};

/// Above this the decoder uses fewer threads; for `xz -6` a thread takes about 33 MiB, more than
pub(super) const FORMAT: Format = Format {
    magic: b"\xfd",
    padding: 4,
    appended: false,
};

/// that in flight.
const MEMORY_THREADING: u64 = 512 << 20;
/// Above this it gives up. `xz -9` needs 65 MiB in one thread.
pub(super) const MEMORY_STOP: u64 = 1 << 30;

/// Fewer threads pack where all of them would need more than this.
const MEMORY_PACKING: u64 = 4 << 30;

/// The levels in the middle are tuned for what cards hold: many files are there twice or more
/// (packages and what was unpacked from them, two Python environments), often within some
/// megabytes of each other, so that a longer dictionary gains more than a short search loses.
/// On 192 MiB of the testbed's card level 6 takes 0.55 of the time of xz's own, at the same size.
/// The level is the number of candidates looked at.
const CARD_LEVELS: RangeInclusive<u32> = 4..=6;
/// Bytes. With hash chains a thread takes 7.5 times as much, and its block twice.
const CARD_DICTIONARY: u32 = 32 << 20;
const CARD_BLOCK: u64 = 64 << 20;
/// A match of so many bytes is good enough to stop the search.
const CARD_NICE: u32 = 24;

/// Milliseconds after which the sink is asked whether to go on: a block takes a minute on a slow
/// machine, and longer.
const ASK_EVERY: u32 = 200;

const HEADER: u64 = 12;
const FOOTER_MAGIC: &[u8] = b"YZ";
/// No image needs an index as long as this (a record of 8 bytes stands for 24 MiB or so).
const MAX_INDEX: u64 = 64 << 20;

/// Packs into one xz stream of many blocks.
pub(super) struct Writer<W> {
    sink: W,
    lzma: Lzma,
    out: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(level: u32, threads: usize, sink: W) -> io::Result<Self> {
        let mut builder = MtStreamBuilder::new();
        builder
            .check(Check::Crc64)
            .threads(threads as u32)
            .timeout_ms(ASK_EVERY);
        if CARD_LEVELS.contains(&level) {
            let mut options = LzmaOptions::new_preset(level)?;
            options
                .match_finder(MatchFinder::HashChain4)
                .dict_size(CARD_DICTIONARY)
                .nice_len(CARD_NICE)
                .depth(level);
            let mut filters = Filters::new();
            filters.lzma2(&options);
            builder.filters(filters).block_size(CARD_BLOCK);
        } else {
            builder.preset(level);
        }
        let mut threads = threads as u32;
        while threads > 1 && builder.memusage() > MEMORY_PACKING {
            threads -= 1;
            builder.threads(threads);
        }
        let lzma = builder.encoder()?;
        Ok(Self {
            sink,
            lzma,
            out: Vec::with_capacity(256 << 10),
        })
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        while self.step(&[], Action::Finish)?.1 != Status::StreamEnd {}
        Ok(self.sink)
    }

    /// Returns the number of bytes taken, and how it went. The sink gets what there is, and is
    /// flushed if that is nothing: it may have a reason to stop.
    fn step(&mut self, input: &[u8], action: Action) -> io::Result<(usize, Status)> {
        let before = self.lzma.total_in();
        self.out.clear();
        let status = self.lzma.process_vec(input, &mut self.out, action)?;
        match self.out.is_empty() {
            true => self.sink.flush()?,
            false => self.sink.write_all(&self.out)?,
        }
        Ok(((self.lzma.total_in() - before) as usize, status))
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let (taken, _) = self.step(buf, Action::Run)?;
            if taken > 0 {
                return Ok(taken);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks one stream by all cores.
pub(super) struct XzStream(Lzma);

impl XzStream {
    pub(super) fn open() -> Result<Box<dyn Stream>, Fault> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let lzma = MtStreamBuilder::new()
            .threads(threads.min(64) as u32)
            .memlimit_threading(MEMORY_THREADING)
            .memlimit_stop(MEMORY_STOP)
            .decoder()
            .map_err(fault)?;
        Ok(Box::new(Self(lzma)))
    }
}

impl Stream for XzStream {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<(Step, bool), Fault> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let action = if last { Action::Finish } else { Action::Run };
        let status = self.0.process(input, output, action).map_err(fault)?;
        let step = Step {
            read: (self.0.total_in() - read) as usize,
            written: (self.0.total_out() - written) as usize,
        };
        Ok((step, status == Status::StreamEnd))
    }
}

pub(super) fn fault(error: XzError) -> Fault {
    match error {
        XzError::MemLimit => Fault::Unsupported(format!(
            "its dictionary needs more than {} MiB of memory",
            MEMORY_STOP >> 20
        )),
        XzError::Options | XzError::UnsupportedCheck => {
            Fault::Unsupported("it uses an option this xz library does not know".into())
        }
        XzError::Data => Fault::Damaged("the data does not match its checks".into()),
        XzError::Format => Fault::Damaged("not a stream header".into()),
        error => Fault::Unsupported(error.to_string()),
    }
}

/// Returns the unpacked size of all streams in a file, from their indexes; `None` if they cannot
/// be made sense of. The file's position is undefined afterwards.
pub(super) fn unpacked_len(file: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut total = 0u64;
    while end > 0 {
        let mut footer = [0; HEADER as usize];
        if !end.is_multiple_of(4) || end < 2 * HEADER {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(end - HEADER))?;
        file.read_exact(&mut footer)?;
        if footer[8..] == [0; 4] {
            end -= 4;
            continue;
        }
        let backward = u64::from(u32::from_le_bytes(
            footer[4..8].try_into().expect("four bytes"),
        ));
        let index_len = (backward + 1) * 4;
        if footer[10..] != *FOOTER_MAGIC || index_len > MAX_INDEX || index_len + 2 * HEADER > end {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(end - HEADER - index_len))?;
        let mut index = vec![0; index_len as usize];
        file.read_exact(&mut index)?;
        let Some((unpacked, blocks)) = index_sums(&index) else {
            return Ok(None);
        };
        let stream = blocks.checked_add(index_len + 2 * HEADER);
        let (Some(stream), Some(sum)) = (stream, total.checked_add(unpacked)) else {
            return Ok(None);
        };
        if stream > end {
            return Ok(None);
        }
        total = sum;
        end -= stream;
    }
    Ok(Some(total))
}

/// Adds up an index: unpacked bytes, and packed bytes with their padding.
fn index_sums(index: &[u8]) -> Option<(u64, u64)> {
    let (crc_given, body) = (index.last_chunk::<4>()?, &index[..index.len() - 4]);
    if crc32fast::hash(body) != u32::from_le_bytes(*crc_given) {
        return None;
    }
    let mut rest = body.strip_prefix(&[0])?;
    let records = variable_int(&mut rest)?;
    let (mut unpacked, mut blocks) = (0u64, 0u64);
    for _ in 0..records {
        let packed = variable_int(&mut rest)?;
        blocks = blocks.checked_add(packed.checked_next_multiple_of(4)?)?;
        unpacked = unpacked.checked_add(variable_int(&mut rest)?)?;
    }
    Some((unpacked, blocks))
}

/// Takes an integer of seven bits a byte, the lowest first.
fn variable_int(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
