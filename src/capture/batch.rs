//! Stretches of the image in memory, filled from the source in ascending order.

use std::ops::Range;

use crate::capture::rescue::Rescue;
use crate::capture::rescue::Skip;
use crate::error::Result;
use crate::io::{Overlay, Source};

/// Bytes of data that one batch holds at the most.
pub const BATCH: usize = 8 << 20;

/// Zeros cost no memory; this bounds how long one batch keeps a stage busy.
const MOST_ZEROS: u64 = 1 << 30;

/// Neighbouring pieces of the source that go to different places are read together up to this.
const TOGETHER: usize = 4 << 20;

/// A stretch of the image: consecutive pieces.
pub struct Batch {
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes of the source that failed and were left for later: zeros in the buffer.
    deferred: Vec<Range<u64>>,
}

/// Consecutive bytes of the image, either in memory or zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    start: u64,
    len: u64,
    /// Where in the buffer; `None` for zeros.
    at: Option<usize>,
}

/// What a stage sees of a piece.
pub enum Bytes<'a> {
    Data(&'a [u8]),
    Zeros(u64),
}

impl Batch {
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BATCH],
            pieces: Vec::new(),
            deferred: Vec::new(),
        }
    }

    /// Lists the bytes of the source that were left for later.
    pub fn deferred(&self) -> &[Range<u64>] {
        &self.deferred
    }

    /// Lists what is in it: offset in the image, and bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, Bytes<'_>)> {
        self.pieces.iter().map(|piece| {
            let bytes = match piece.at {
                // OK: pieces in memory lie in the buffer.
                Some(at) => Bytes::Data(&self.buffer[at..at + piece.len as usize]),
                None => Bytes::Zeros(piece.len),
            };
            (piece.start, bytes)
        })
    }

    fn push(&mut self, piece: Piece) {
        if let Some(last) = self.pieces.last_mut()
            && last.at.map(|at| at + last.len as usize) == piece.at
        {
            last.len += piece.len;
            return;
        }
        self.pieces.push(piece);
    }
}

/// A part of the source that goes into the buffer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Wanted {
    from: u64,
    at: usize,
    len: usize,
}

/// Fills one batch after the other.
pub struct Filler<'a> {
    overlay: &'a Overlay,
    source: Rescue<'a>,
    position: u64,
    scratch: Vec<u8>,
    /// Is what fails left for later?
    defers: bool,
    skip: Skip,
    /// Nothing between these is tried before.
    left_out: Range<u64>,
}

/// A request: neighbouring parts of the source.
struct Request<'a> {
    parts: &'a [Wanted],
    len: usize,
    /// Do the parts follow each other in the buffer, too?
    straight: bool,
}

impl<'a> Filler<'a> {
    /// With `defers` what fails is left for later, and listed in [`Batch::deferred`]; else it is
    /// tried in small pieces before the next batch.
    pub fn new(overlay: &'a Overlay, source: Rescue<'a>, defers: bool) -> Self {
        Self {
            overlay,
            source,
            position: 0,
            scratch: Vec::new(),
            defers,
            skip: Skip::default(),
            left_out: 0..0,
        }
    }

    pub fn into_rescue(self) -> Rescue<'a> {
        self.source
    }

    /// Fills `batch` with the image's next bytes; false at its end.
    ///
    /// # Errors
    /// What the source fails with.
    pub fn fill(&mut self, batch: &mut Batch) -> Result<bool> {
        batch.pieces.clear();
        batch.deferred.clear();
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut patched = Vec::new();
        let mut filled = 0;
        let mut zeros = 0;
        let overlay = self.overlay;
        for segment in overlay.segments(self.position..overlay.len()) {
            let room = match segment.source {
                Source::Zero => MOST_ZEROS - zeros,
                _ => (batch.buffer.len() - filled) as u64,
            };
            let len = segment.len.min(room);
            if len == 0 {
                break;
            }
            let at = match &segment.source {
                Source::Zero => {
                    zeros += len;
                    None
                }
                Source::Bytes(bytes, index) => {
                    // OK: no longer than the buffer's rest.
                    let part = &mut batch.buffer[filled..filled + len as usize];
                    part.copy_from_slice(&bytes[*index..*index + len as usize]);
                    Some(filled)
                }
                Source::Base(from) | Source::Patched(from, ..) => {
                    let part = Wanted {
                        from: *from,
                        at: filled,
                        len: len as usize,
                    };
                    if matches!(segment.source, Source::Patched(..)) {
                        patched.push((part, segment.source));
                    }
                    wanted.push(part);
                    Some(filled)
                }
            };
            if at.is_some() {
                filled += len as usize;
            }
            batch.push(Piece {
                start: segment.start,
                len,
                at,
            });
            self.position += len;
            if len < segment.len {
                break;
            }
        }
        self.read(batch, wanted)?;
        for (part, source) in patched {
            // What is left for later is changed then.
            let is_here = batch.deferred.iter().all(|late| late.start != part.from);
            if is_here {
                source.apply(&mut batch.buffer[part.at..part.at + part.len]);
            }
        }
        Ok(!batch.pieces.is_empty())
    }

    /// Reads all parts in the order of the source, neighbours in one request; what fails is split
    /// up when all else of the batch is there, or later than that.
    fn read(&mut self, batch: &mut Batch, mut wanted: Vec<Wanted>) -> Result<()> {
        wanted.sort_unstable();
        let mut failed = Vec::new();
        for request in requests(&wanted) {
            if self.left_out.contains(&request.from()) {
                failed.push(request);
                continue;
            }
            let success = self.serve(&mut batch.buffer, &request, false)?;
            if self.defers {
                let end = request.from() + request.len as u64;
                self.left_out = end..end + self.skip.after(success);
            }
            if !success {
                failed.push(request);
            }
        }
        for request in failed {
            if !self.defers {
                self.serve(&mut batch.buffer, &request, true)?;
                continue;
            }
            for part in request.parts {
                batch.buffer[part.at..part.at + part.len].fill(0);
                batch.deferred.push(part.from..part.from + part.len as u64);
            }
        }
        Ok(())
    }

    /// Reads what is asked for; false if that failed. A `stubborn` one does not fail, but leaves
    /// zeros where there is nothing to be had.
    fn serve(&mut self, buffer: &mut [u8], request: &Request, stubborn: bool) -> Result<bool> {
        // OK: there is no request without a part.
        let first = request.parts[0];
        if request.straight {
            let buf = &mut buffer[first.at..first.at + request.len];
            return read_padded(&mut self.source, first.from, buf, stubborn);
        }
        self.scratch.resize(request.len, 0);
        if !read_padded(&mut self.source, first.from, &mut self.scratch, stubborn)? {
            return Ok(false);
        }
        let mut done = 0;
        for part in request.parts {
            buffer[part.at..part.at + part.len]
                .copy_from_slice(&self.scratch[done..done + part.len]);
            done += part.len;
        }
        Ok(true)
    }
}

impl Request<'_> {
    /// The first byte of the source.
    fn from(&self) -> u64 {
        // OK: there is no request without a part.
        self.parts[0].from
    }
}

/// Joins sorted parts to requests.
fn requests(wanted: &[Wanted]) -> Vec<Request<'_>> {
    let mut requests = Vec::new();
    let mut rest = wanted;
    while let Some(&first) = rest.first() {
        let mut count = 1;
        let mut len = first.len;
        let mut straight = true;
        while let Some(next) = rest.get(count)
            && next.from == first.from + len as u64
        {
            let follows = next.at == first.at + len;
            if !(straight && follows) && len + next.len > TOGETHER {
                break;
            }
            straight &= follows;
            len += next.len;
            count += 1;
        }
        let (parts, others) = rest.split_at(count);
        requests.push(Request {
            parts,
            len,
            straight,
        });
        rest = others;
    }
    requests
}

/// Reads; past the end of the source there are zeros.
fn read_padded(source: &mut Rescue, from: u64, buf: &mut [u8], stubborn: bool) -> Result<bool> {
    let there = source.len().saturating_sub(from).min(buf.len() as u64) as usize;
    buf[there..].fill(0);
    let buf = &mut buf[..there];
    if stubborn {
        source.read(from, buf)?;
        return Ok(true);
    }
    Ok(there == 0 || source.attempt(from, buf)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::io::memory::MemoryDisk;
    use crate::io::{Edits, ReadAt};
    use crate::progress::{Phase, Silent};
    use std::sync::Mutex;

    struct Recording {
        disk: MemoryDisk,
        reads: Mutex<Vec<(u64, usize)>>,
    }

    impl ReadAt for Recording {
        fn len(&self) -> u64 {
            self.disk.len()
        }
        fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            self.reads.lock().unwrap().push((offset, buf.len()));
            self.disk.read_exact_at(offset, buf)
        }
    }

    #[test]
    fn a_batch_reads_ascending_and_joins_neighbours() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        let disk = Recording {
            disk: MemoryDisk::from(bytes),
            reads: Mutex::new(Vec::new()),
        };
        let mut overlay = Overlay::new(90_000);
        overlay.set_base(0, 1000, 50_000);
        overlay.set_base(1000, 1000, 20_000);
        overlay.set_base(2000, 1000, 51_000);
        overlay.set_zero(3000..5000);
        overlay.set_bytes(5000, vec![9; 10]);
        overlay.set_base(5010, 84_990, 5010);
        overlay.set_patched(
            3000,
            4,
            51_996,
            Edits::between(&[1, 1, 1, 1], &[1, 2, 1, 3]),
        );
        let mut filler = Filler::new(&overlay, Rescue::new(&disk, Phase::Capture, &Silent), false);
        let mut batch = Batch::new();
        let mut image = Vec::new();
        while filler.fill(&mut batch).unwrap() {
            for (start, bytes) in batch.pieces() {
                assert_eq!(start, image.len() as u64);
                match bytes {
                    Bytes::Data(data) => image.extend_from_slice(data),
                    Bytes::Zeros(len) => image.resize(image.len() + len as usize, 0),
                }
            }
        }
        let expected = overlay.over(&disk.disk).read_vec_at(0, 90_000).unwrap();
        assert_eq!(image, expected);
        let reads = disk.reads.into_inner().unwrap();
        let places = [(5010, 84_990), (20_000, 1000), (50_000, 2000), (51_996, 4)];
        assert_eq!(reads, places);
    }

    #[test]
    fn long_zeros_and_data_are_cut_at_their_bounds() {
        let disk = MemoryDisk::new(40 << 20);
        let mut overlay = Overlay::new(5 << 30);
        overlay.set_zero(40 << 20..5 << 30);
        let mut filler = Filler::new(&overlay, Rescue::new(&disk, Phase::Capture, &Silent), false);
        let mut batch = Batch::new();
        let mut lens = Vec::new();
        while filler.fill(&mut batch).unwrap() {
            lens.push(batch.pieces.iter().map(|piece| piece.len).sum::<u64>());
        }
        assert_eq!(lens.iter().sum::<u64>(), 5 << 30);
        assert_eq!(lens[0], BATCH as u64);
        assert!(lens.iter().all(|&len| len <= MOST_ZEROS + BATCH as u64));
    }
}
