//! Where an image goes: a file with holes, or something packed or piped.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

use crate::codec::{Codec, Encoder};
use crate::error::{Error, Result};
use crate::io::is_zero;
use crate::progress::{Phase, Progress};

/// What to do where files cannot be as large as the image.
pub(super) const TOO_LARGE: &str =
    "write it compressed (.img.xz, .img.zst), or to a disk with exFAT, NTFS or ext4";

/// Blocks of zeros so long become holes in a raw image, in bytes.
const HOLE: usize = 4096;

/// How the image is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunOptions {
    pub codec: Codec,
    /// `None`: the codec's default.
    pub level: Option<u32>,
    /// For packing; 0 means one per core.
    pub threads: usize,
    pub with_bmap: bool,
}

/// Where the image goes.
pub enum Sink {
    /// An empty file. A raw image's zeros become holes.
    File(File),
    /// Something that cannot seek.
    Stream(Box<dyn Write + Send>),
}

pub(super) enum Writer<'a> {
    Sparse(&'a mut File, u64),
    Packed(Box<Encoder<Counting<'a, BufWriter<&'a mut (dyn Write + Send)>>>>),
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        sink: &'a mut Sink,
        options: &RunOptions,
        len: u64,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let out: &mut (dyn Write + Send) = match (sink, options.codec) {
            (Sink::File(file), Codec::Raw) => return Ok(Self::Sparse(file, len)),
            (Sink::File(file), _) => file,
            (Sink::Stream(stream), _) => &mut **stream,
        };
        let out = Counting {
            inner: BufWriter::with_capacity(1 << 20, out),
            hash: Sha256::new(),
            count: 0,
            progress,
        };
        let (codec, level) = (options.codec, options.level);
        Encoder::with_len(codec, level, options.threads, Some(len), out)
            .map(|encoder| Self::Packed(Box::new(encoder)))
    }

    /// Can what is written be changed later?
    pub(super) fn can_return(&self) -> bool {
        matches!(self, Self::Sparse(..))
    }

    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Sparse(file, _) => {
                for part in without_holes(offset, bytes) {
                    let start = offset + part.start as u64;
                    file.seek(SeekFrom::Start(start))
                        .and_then(|_| file.write_all(&bytes[part]))
                        .map_err(|error| writing(start, error))?;
                }
                Ok(())
            }
            Self::Packed(encoder) => encoder
                .write_all(bytes)
                .map_err(|error| writing(offset, error)),
        }
    }

    pub(super) fn zeros(&mut self, offset: u64, len: u64, progress: &dyn Progress) -> Result<()> {
        static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
        let Self::Packed(encoder) = self else {
            return Ok(());
        };
        let mut left = len;
        while left > 0 {
            let part = left.min(ZEROS.len() as u64);
            encoder
                .write_all(&ZEROS[..part as usize])
                .map_err(|error| writing(offset + (len - left), error))?;
            left -= part;
            progress.advanced(Phase::Capture, 0)?;
        }
        Ok(())
    }

    /// Returns length and sha256 of what was written, unless that is the image as it is.
    pub(super) fn finish(self) -> Result<Option<(u64, String)>> {
        match self {
            Self::Sparse(file, len) => {
                file.set_len(len).map_err(|error| writing(len, error))?;
                Ok(None)
            }
            Self::Packed(encoder) => {
                let out = encoder.finish()?;
                let digest: [u8; 32] = out.hash.finalize().into();
                let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                Ok(Some((out.count, hex)))
            }
        }
    }
}

pub(super) fn writing(offset: u64, error: std::io::Error) -> Error {
    let too_large = error.kind() == std::io::ErrorKind::FileTooLarge;
    let what = format!("writing the image at byte {offset} of its contents");
    let error = Error::io(what, error);
    match too_large {
        true => error.with_hint(TOO_LARGE),
        false => error,
    }
}

/// Lists the parts of `bytes`, which begin at `offset` of the image, that are not whole blocks of
/// zeros.
fn without_holes(offset: u64, bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        let next = at + HOLE - (offset as usize + at) % HOLE;
        let next = next.min(bytes.len());
        if next - at == HOLE && is_zero(&bytes[at..next]) {
            if start < at {
                parts.push(start..at);
            }
            start = next;
        }
        at = next;
    }
    if start < bytes.len() {
        parts.push(start..bytes.len());
    }
    parts
}

/// Hashes and counts what passes; stops it when the user does not want it any more.
pub(super) struct Counting<'a, W> {
    inner: W,
    hash: Sha256,
    count: u64,
    progress: &'a dyn Progress,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hash.update(&buf[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.progress.advanced(Phase::Capture, 0)?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_whole_aligned_blocks_of_zeros() {
        let mut bytes = vec![0; 4 * HOLE];
        bytes[0] = 1;
        bytes[2 * HOLE + 5] = 1;
        assert_eq!(without_holes(0, &bytes), [0..HOLE, 2 * HOLE..3 * HOLE]);
        // 100 bytes into a block: the ends are no whole blocks.
        assert_eq!(
            without_holes(100, &vec![0; 2 * HOLE]),
            [0..HOLE - 100, 2 * HOLE - 100..2 * HOLE]
        );
        assert_eq!(without_holes(0, &[0; 10]), [0..10]);
        assert!(without_holes(0, &[]).is_empty());
    }
}
