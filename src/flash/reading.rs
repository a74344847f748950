//! The image, unpacked cell by cell and held against its block map.

use sha2::{Digest, Sha256};

use super::plan::{BLOCK, CELL, FlashPlan};
use super::source::ImageReader;
use crate::bmap::Bmap;
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuf;
use crate::pipeline::Queue;

/// A stretch of the image, just unpacked.
pub(super) struct Unpacked {
    pub(super) start: u64,
    pub(super) len: usize,
    pub(super) buf: AlignedBuf,
}

/// Reads what the plan wants, cell by cell. Returns the image's length.
pub(super) fn read_cells(
    reader: &mut dyn ImageReader,
    first: (AlignedBuf, usize),
    plan: &FlashPlan,
    pool: &Queue<AlignedBuf>,
    unpacked: &Queue<Unpacked>,
) -> Result<u64> {
    let (buf, len) = first;
    let mut position = len as u64;
    let mut ended = len < CELL as usize;
    let cell = Unpacked { start: 0, len, buf };
    if !unpacked.push(cell) {
        return Ok(position);
    }
    while !ended {
        let Some(next) = plan.next_written(position) else {
            break;
        };
        let start = (next - next % BLOCK).max(position);
        reader.skip(start - position)?;
        let end = start - start % CELL + CELL;
        let wanted = match plan.written_within(start..end).last() {
            Some(last) => (last.end - start) as usize,
            None => break,
        };
        let Some(mut buf) = pool.pop() else {
            return Ok(position);
        };
        let len = reader.read_full(&mut buf[..wanted])?;
        position = start + len as u64;
        ended = len < wanted;
        if len > 0 && !unpacked.push(Unpacked { start, len, buf }) {
            return Ok(position);
        }
    }
    let whole = reader.finish()?;
    if plan.image_len().is_some_and(|len| len > whole) {
        return Err(Error::unsound(format!(
            "the image ends at byte {whole}, but should have {} bytes",
            plan.image_len().unwrap_or_default()
        ))
        .with_hint("fetch or capture the image again"));
    }
    Ok(whole)
}

/// The checksums of a block map, fed with the image from its start on.
pub(super) struct RangeCheck<'a> {
    map: &'a Bmap,
    next: usize,
    hash: Sha256,
}

impl<'a> RangeCheck<'a> {
    pub(super) fn new(map: &'a Bmap) -> Self {
        Self {
            map,
            next: 0,
            hash: Sha256::new(),
        }
    }

    pub(super) fn update(&mut self, start: u64, bytes: &[u8]) -> Result<()> {
        let end = start + bytes.len() as u64;
        while let Some(range) = self.map.ranges.get(self.next) {
            let whole = self.map.bytes_of(range);
            let (from, to) = (whole.start.max(start), whole.end.min(end));
            if from < to && range.sha256.is_some() {
                self.hash
                    .update(&bytes[(from - start) as usize..(to - start) as usize]);
            }
            if whole.end > end {
                break;
            }
            let got: [u8; 32] = self.hash.finalize_reset().into();
            if range.sha256.is_some_and(|expected| expected != got) {
                return Err(Error::new(
                    ErrorKind::Verify,
                    format!(
                        "the image is damaged: bytes {} to {} (blocks {}-{}) do not have the \
                         checksum in the block map",
                        whole.start, whole.end, range.first, range.last
                    ),
                )
                .with_hint("fetch or capture the image again"));
            }
            self.next += 1;
        }
        Ok(())
    }

    pub(super) fn finish(&self, image_len: u64) -> Result<()> {
        if self.next < self.map.ranges.len() || image_len != self.map.image_size {
            return Err(Error::unsound(format!(
                "the block map is of an image of {} bytes, this one has {image_len}",
                self.map.image_size
            )));
        }
        Ok(())
    }
}
