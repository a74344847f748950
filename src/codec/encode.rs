//! Packing: one writer over the four formats that are written.

use std::io::{self, Write};
use std::thread::available_parallelism;

use super::{Codec, gzip, xz};
use crate::error::{Error, Result};

/// Packs what is written to it into `sink`.
///
/// Nothing is complete before [`Encoder::finish`]: dropping an encoder writes nothing more, so
/// that a reader finds the output truncated.
///
/// Peak memory at default level with `n` threads: gzip 2 MiB + 3 MiB · n, zstd 36 MiB + 13 MiB · n
/// (at most 150 MiB), xz 380 MiB · n (fewer threads where that
/// would be more than 4 GiB).
pub struct Encoder<W: Write> {
    codec: Codec,
    packer: Packer<W>,
}

enum Packer<W: Write> {
    Raw(W),
    Gzip(gzip::Writer<W>),
    Xz(xz::Writer<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Starts a stream of `codec` into `sink`. `level` is one of [`Codec::levels`], by default
    /// [`Codec::default_level`]; `threads` of 0 means one per core.
    ///
    /// # Errors
    /// `Usage` if the codec is read only or has no such level; `Io` if the sink fails or threads
    /// cannot be started.
    pub fn new(codec: Codec, level: Option<u32>, threads: usize, sink: W) -> Result<Self> {
        Self::with_len(codec, level, threads, None, sink)
    }

    /// As [`Encoder::new`], for exactly `len` bytes if that is known: zstd then notes it in the
    /// header, which gives readers a [`size_hint`](super::Decoder::size_hint), and
    /// [`Encoder::finish`] fails if another number of bytes was written.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn with_len(
        codec: Codec,
        level: Option<u32>,
        threads: usize,
        len: Option<u64>,
        sink: W,
    ) -> Result<Self> {
        let level = level.unwrap_or(codec.default_level());
        let levels = codec.levels();
        if !codec.can_write() {
            return Err(Error::usage(format!("{codec} images are only read")));
        }
        if !levels.contains(&level) {
            return Err(Error::usage(format!(
                "{codec} has no level {level}, only {} to {}",
                levels.start(),
                levels.end()
            )));
        }
        let threads = match threads {
            0 => available_parallelism().map_or(1, usize::from),
            given => given.min(256),
        };
        let failed = |error| Error::io(format!("starting a {codec} encoder"), error);
        let packer = match codec {
            Codec::Raw => Packer::Raw(sink),
            Codec::Gzip => Packer::Gzip(gzip::Writer::new(level, threads, sink).map_err(failed)?),
            Codec::Xz => Packer::Xz(xz::Writer::new(level, threads, sink).map_err(failed)?),
            Codec::Zstd => {
                Packer::Zstd(super::zstd::encoder(level, threads, len, sink).map_err(failed)?)
            }
            Codec::Bzip2 | Codec::Zip => unreachable!("refused above"),
        };
        Ok(Self { codec, packer })
    }

    /// Ends the stream and returns the sink, flushed.
    ///
    /// # Errors
    /// `Io` or `NoSpace` if the sink fails.
    pub fn finish(self) -> Result<W> {
        let finished = match self.packer {
            Packer::Raw(sink) => Ok(sink),
            Packer::Gzip(writer) => writer.finish(),
            Packer::Xz(writer) => writer.finish(),
            Packer::Zstd(writer) => writer.finish(),
        };
        finished
            .and_then(|mut sink| sink.flush().map(|()| sink))
            .map_err(|error| Error::io(format!("ending the {} stream", self.codec), error))
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.packer {
            Packer::Raw(sink) => sink.write(buf),
            Packer::Gzip(writer) => writer.write(buf),
            Packer::Xz(writer) => writer.write(buf),
            Packer::Zstd(writer) => writer.write(buf),
        }
    }

    /// Does nothing but for raw images: flushing in mid-stream would cost size, and
    /// [`Encoder::finish`] flushes everything.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.packer {
            Packer::Raw(sink) => sink.flush(),
            _ => Ok(()),
        }
    }
}
