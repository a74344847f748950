//! Unpacking: one reader over all formats, which knows where it is.

use std::io::{self, Read, Seek, SeekFrom};

use super::unpack::{Fault, Streams, Unpack};
use super::{Codec, bzip2, foreign, gzip, xz, zip, zstd};
use crate::error::{Error, ErrorKind, Result};

/// How much packed input is held at a time.
const INPUT: usize = 256 << 10;

/// Unpacks an image of any known format.
///
/// The format is told by the content. An image that is truncated, damaged, or followed by
/// something else gives an error which names the format and both offsets; it never just ends.
pub struct Decoder {
    codec: Codec,
    size_hint: Option<u64>,
    input: Input,
    /// `None`: the image is not packed.
    unpack: Option<Box<dyn Unpack>>,
    /// Bytes of the packed input used up, and of the image given out.
    taken: u64,
    given: u64,
    failed: Option<(ErrorKind, String)>,
}

impl Decoder {
    /// Starts to unpack a stream that can be read once.
    ///
    /// # Errors
    /// `Io` if reading fails, `Unsupported` for a kind of archive that is known but not handled.
    pub fn new(input: impl Read + Send + 'static) -> Result<Self> {
        let input = Input::new(Box::new(input))?;
        let codec = input.codec()?;
        let size_hint = match codec {
            Codec::Zstd => zstd::unpacked_len(input.unread()),
            _ => None,
        };
        let unpack: Option<Box<dyn Unpack>> = match codec {
            Codec::Raw => None,
            Codec::Gzip => Some(Box::new(Streams::new(gzip::Member::open, gzip::FORMAT))),
            Codec::Xz => Some(Box::new(Streams::new(xz::XzStream::open, xz::FORMAT))),
            Codec::Bzip2 => Some(Box::new(Streams::new(bzip2::BzStream::open, bzip2::FORMAT))),
            Codec::Zstd => {
                let frames = zstd::Frames::open().map_err(|fault| fault.at(codec, 0, 0))?;
                Some(Box::new(frames))
            }
            Codec::Zip => Some(Box::new(zip::Archive::new())),
        };
        Ok(Self {
            codec,
            size_hint,
            input,
            unpack,
            taken: 0,
            given: 0,
            failed: None,
        })
    }

    /// Starts to unpack a file from its first byte. Unlike [`Decoder::new`] this looks at its end
    /// too: for the unpacked size, and for what else is in a zip archive before any of it is
    /// unpacked.
    ///
    /// # Errors
    /// As [`Decoder::new`]; also `Unsound` or `Unsupported` if a zip archive's directory is
    /// damaged or does not hold exactly one file.
    pub fn seekable(mut file: impl Read + Seek + Send + 'static) -> Result<Self> {
        let failed = |error| Error::io("reading the image", error);
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut first = Vec::new();
        (&mut file)
            .take(Codec::DETECT_LEN as u64)
            .read_to_end(&mut first)
            .map_err(failed)?;
        match Codec::detect(&first) {
            Codec::Zip => {
                let (entry, packed) = zip::find(file)?;
                let size_hint = Some(entry.len());
                let taken = entry.start();
                Ok(Self {
                    codec: Codec::Zip,
                    size_hint,
                    input: Input::new(packed)?,
                    unpack: Some(Box::new(entry)),
                    taken,
                    given: 0,
                    failed: None,
                })
            }
            codec => {
                let size_hint = match codec {
                    Codec::Raw => Some(len),
                    Codec::Xz => xz::unpacked_len(&mut file).map_err(failed)?,
                    _ => None,
                };
                file.rewind().map_err(failed)?;
                let decoder = Self::new(file)?;
                Ok(Self {
                    size_hint: size_hint.or(decoder.size_hint),
                    ..decoder
                })
            }
        }
    }

    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Returns the unpacked size that the image states, where it does: a raw, xz or zip file
    /// (through [`Decoder::seekable`]), the first frame of zstd. It is a claim: only unpacking proves it, and
    /// further zstd frames add to it. gzip and bzip2 have no usable one.
    pub fn size_hint(&self) -> Option<u64> {
        self.size_hint
    }

    /// Returns what is to be told of the packed file, once it is read to its end.
    pub fn note(&self) -> Option<String> {
        let ignored = self.unpack.as_ref().map_or(0, |unpack| unpack.ignored());
        (ignored > 0).then(|| {
            format!(
                "{ignored} bytes behind the {} data are ignored; what is before them is whole",
                self.codec
            )
        })
    }

    /// Returns how many bytes of the packed input are used up.
    pub fn bytes_in(&self) -> u64 {
        self.taken
    }

    /// Returns how many bytes of the image were given out.
    pub fn bytes_out(&self) -> u64 {
        self.given
    }

    /// Fills `buf` as far as the image goes and returns the number of bytes: fewer than
    /// `buf.len()` only at its end, which is then known to be sound.
    ///
    /// # Errors
    /// `Unsound` if the image is truncated or damaged, `Unsupported` if it needs what this
    /// program does not have, `Io` if reading fails; again on every later call.
    pub fn read_full(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_some(&mut buf[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        if let Some((kind, text)) = &self.failed {
            return Err(Error::new(*kind, text.clone()));
        }
        let outcome = match self.unpack {
            Some(_) => self.unpack_some(buf),
            None => self.copy_some(buf),
        };
        match &outcome {
            Ok(count) => self.given += *count as u64,
            Err(error) => self.failed = Some((error.kind(), error.one_line())),
        }
        outcome
    }

    fn copy_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        let count = self.input.read(buf, self.taken)?;
        self.taken += count as u64;
        Ok(count)
    }

    fn unpack_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        let unpack = self.unpack.as_mut().expect("the caller has looked");
        // An unpacker that does nothing wants more input; one that still does nothing with all of
        // it, or with a full buffer, never will.
        let mut idle = 0;
        while !buf.is_empty() {
            if self.input.unread().is_empty() || idle > 0 {
                self.input.fill(self.taken)?;
            }
            let (input, last) = (self.input.unread(), self.input.ended);
            let step = unpack
                .step(input, buf, last)
                .map_err(|fault| fault.at(self.codec, self.taken, self.given))?;
            self.input.consume(step.read);
            self.taken += step.read as u64;
            if step.written > 0 {
                return Ok(step.written);
            }
            if step.read > 0 {
                idle = 0;
                continue;
            }
            if last && self.input.unread().is_empty() && unpack.may_end() {
                return Ok(0);
            }
            idle += 1;
            if idle > 2 && (last || self.input.is_full()) {
                let fault = match last {
                    true => return Err(truncated(self.codec, self.taken, self.given)),
                    false => Fault::Damaged("the data makes no sense".into()),
                };
                return Err(fault.at(self.codec, self.taken, self.given));
            }
        }
        Ok(0)
    }
}

impl Read for Decoder {
    /// The error inside an [`io::Error`] is this crate's [`Error`].
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_some(buf)?)
    }
}

impl Fault {
    pub(super) fn at(self, codec: Codec, taken: u64, given: u64) -> Error {
        match self {
            Fault::Damaged(what) => Error::unsound(format!(
                "the {codec} image is damaged near byte {taken} of it (byte {given} unpacked): \
                 {what}"
            ))
            .with_hint("fetch or copy the image again, and compare its checksum"),
            Fault::Unsupported(what) => Error::unsupported(format!(
                "the {codec} image cannot be unpacked at byte {taken} of it (byte {given} \
                 unpacked): {what}"
            )),
        }
    }
}

fn truncated(codec: Codec, taken: u64, given: u64) -> Error {
    Error::unsound(format!(
        "the {codec} image ends early, after byte {taken} of it (byte {given} unpacked)"
    ))
    .with_hint("fetch or copy the image again: a part of it is missing")
}

/// Packed input, a buffer at a time.
struct Input {
    inner: Box<dyn Read + Send>,
    buf: Box<[u8]>,
    /// The unread part of `buf`.
    start: usize,
    end: usize,
    /// The input has no more than what is in `buf`.
    ended: bool,
}

impl Input {
    /// Reads the first bytes, enough to tell the format.
    fn new(inner: Box<dyn Read + Send>) -> Result<Self> {
        let mut input = Self {
            inner,
            buf: vec![0; INPUT].into(),
            start: 0,
            end: 0,
            ended: false,
        };
        while input.end < Codec::DETECT_LEN && !input.ended {
            input.fill(0)?;
        }
        Ok(input)
    }

    fn codec(&self) -> Result<Codec> {
        let first = self.unread();
        let codec = Codec::detect(first);
        if codec == Codec::Raw {
            foreign::refuse_head(first)?;
        }
        Ok(codec)
    }

    fn unread(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    fn is_full(&self) -> bool {
        self.end - self.start == self.buf.len()
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Adds what one read gives. `taken` is for the message.
    fn fill(&mut self, taken: u64) -> Result<()> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.ended || self.end == self.buf.len() {
            return Ok(());
        }
        let count = read_retrying(&mut self.inner, &mut self.buf[self.end..])
            .map_err(|error| read_failed(taken + self.end as u64, error))?;
        self.end += count;
        self.ended = count == 0;
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8], taken: u64) -> Result<usize> {
        if self.start == self.end {
            if self.ended {
                return Ok(0);
            }
            return read_retrying(&mut self.inner, buf).map_err(|error| read_failed(taken, error));
        }
        let count = buf.len().min(self.end - self.start);
        buf[..count].copy_from_slice(&self.unread()[..count]);
        self.consume(count);
        Ok(count)
    }
}

fn read_retrying(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn read_failed(at: u64, error: io::Error) -> Error {
    Error::io(format!("reading the image file at byte {at}"), error)
}
