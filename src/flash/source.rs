//! Images as flash reads them: from start to end, once or several times.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::codec::{Codec, Decoder};
use crate::error::{Error, ErrorKind, Result};

/// An image that can be read from its first byte on.
pub trait ImageSource: Sync {
    /// Starts to read the image.
    fn open(&self) -> Result<Box<dyn ImageReader>>;

    /// Can [`open`](Self::open) be called more than once? Standard input cannot.
    fn can_reopen(&self) -> bool;
}

/// An image on its way.
pub trait ImageReader: Send {
    /// Returns the image's length as it states it: a claim, and at least so much.
    fn len_hint(&self) -> Option<u64>;

    /// Returns the image's length if it is known for sure, and any place of it is quickly read.
    fn exact_len(&self) -> Option<u64> {
        None
    }

    /// Returns what is to be told of the file, once it is read to its end.
    fn note(&self) -> Option<String> {
        None
    }

    /// Fills `buf` as far as the image goes; returns fewer bytes only at its end.
    fn read_full(&mut self, buf: &mut [u8]) -> Result<usize>;

    /// Passes over `count` bytes, or to the end.
    fn skip(&mut self, count: u64) -> Result<()> {
        let mut left = count;
        let mut buf = vec![0; (256 << 10).min(count) as usize];
        while left > 0 {
            let want = left.min(buf.len() as u64) as usize;
            let got = self.read_full(&mut buf[..want])?;
            left -= got as u64;
            if got < want {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is left, checks everything that can be checked of the whole image, and returns
    /// its length in bytes.
    fn finish(&mut self) -> Result<u64>;
}

/// An image in a file, packed or not.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    sha256: Option<[u8; 32]>,
}

impl FileSource {
    /// Names the file. `sha256` is that of the file, or of the image unpacked: either will do.
    pub fn new(path: impl Into<PathBuf>, sha256: Option<[u8; 32]>) -> Self {
        Self {
            path: path.into(),
            sha256,
        }
    }
}

impl ImageSource for FileSource {
    fn open(&self) -> Result<Box<dyn ImageReader>> {
        let context = |path: &Path| format!("cannot open {}", path.display());
        let mut file = File::open(&self.path).map_err(|e| Error::io(context(&self.path), e))?;
        if self.sha256.is_some() {
            let mut hashed = Hashed::new(file, self.sha256, Decoder::seekable)?;
            hashed.path = Some(self.path.clone());
            return Ok(Box::new(hashed));
        }
        let mut first = Vec::new();
        (&mut file)
            .take(Codec::DETECT_LEN as u64)
            .read_to_end(&mut first)
            .and_then(|_| file.rewind())
            .map_err(|e| Error::io(context(&self.path), e))?;
        if Codec::detect(&first) == Codec::Raw {
            let len = file.seek(SeekFrom::End(0)).and_then(|len| {
                file.rewind()?;
                Ok(len)
            });
            return Ok(Box::new(RawFile {
                len: len.map_err(|e| Error::io(context(&self.path), e))?,
                path: self.path.clone(),
                file,
            }));
        }
        Ok(Box::new(Decoded(Decoder::seekable(file)?)))
    }

    fn can_reopen(&self) -> bool {
        true
    }
}

/// An image that arrives as a stream: standard input, a download.
pub struct StreamSource<F> {
    open: F,
    can_reopen: bool,
    sha256: Option<[u8; 32]>,
}

impl<R, F> StreamSource<F>
where
    R: Read + Send + 'static,
    F: Fn() -> Result<R> + Sync,
{
    /// Takes what starts the stream, and whether it can be started again.
    pub fn new(open: F, can_reopen: bool, sha256: Option<[u8; 32]>) -> Self {
        Self {
            open,
            can_reopen,
            sha256,
        }
    }
}

impl<R, F> ImageSource for StreamSource<F>
where
    R: Read + Send + 'static,
    F: Fn() -> Result<R> + Sync,
{
    fn open(&self) -> Result<Box<dyn ImageReader>> {
        let stream = (self.open)()?;
        Ok(match self.sha256 {
            Some(_) => Box::new(Hashed::new(stream, self.sha256, Decoder::new)?),
            None => Box::new(Decoded(Decoder::new(stream)?)),
        })
    }

    fn can_reopen(&self) -> bool {
        self.can_reopen
    }
}

/// An unpacked file: what a block map leaves out is never read.
struct RawFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl RawFile {
    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(format!("cannot read {}", self.path.display()), error)
    }
}

impl ImageReader for RawFile {
    fn len_hint(&self) -> Option<u64> {
        Some(self.len)
    }

    fn exact_len(&self) -> Option<u64> {
        Some(self.len)
    }

    fn read_full(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.file
            .seek(SeekFrom::Current(count))
            .map_err(|error| self.failed(error))?;
        Ok(())
    }

    fn finish(&mut self) -> Result<u64> {
        let now = self.file.metadata().map_err(|error| self.failed(error))?;
        if now.is_file() && now.len() != self.len {
            return Err(Error::unsound(format!(
                "{} changed while it was read: it had {} bytes, now {}",
                self.path.display(),
                self.len,
                now.len()
            )));
        }
        Ok(self.len)
    }
}

struct Decoded(Decoder);

impl ImageReader for Decoded {
    fn note(&self) -> Option<String> {
        self.0.note()
    }

    fn len_hint(&self) -> Option<u64> {
        self.0.size_hint()
    }

    fn read_full(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.0.read_full(buf)
    }

    fn finish(&mut self) -> Result<u64> {
        // Only the end shows that a packed image is whole.
        self.skip(u64::MAX)?;
        Ok(self.0.bytes_out())
    }
}

/// An image whose SHA-256 is known: of the file as it is, or unpacked.
struct Hashed {
    decoder: Decoder,
    unpacked: Sha256,
    packed: Arc<Mutex<Packed>>,
    expected: Option<[u8; 32]>,
    /// Of a file, which can be read again.
    path: Option<PathBuf>,
}

/// The hash of a file's bytes as they pass by. A reader that seeks gives only what it read from
/// the start on, in order.
#[derive(Default)]
struct Packed {
    hash: Sha256,
    hashed: u64,
}

struct Tee<R> {
    inner: R,
    position: u64,
    packed: Arc<Mutex<Packed>>,
}

impl Hashed {
    fn new<R: Read>(
        inner: R,
        expected: Option<[u8; 32]>,
        decode: impl FnOnce(Tee<R>) -> Result<Decoder>,
    ) -> Result<Self> {
        let packed = Arc::new(Mutex::new(Packed::default()));
        let decoder = decode(Tee {
            inner,
            position: 0,
            packed: packed.clone(),
        })?;
        Ok(Self {
            decoder,
            unpacked: Sha256::new(),
            packed,
            expected,
            path: None,
        })
    }
}

impl ImageReader for Hashed {
    fn note(&self) -> Option<String> {
        self.decoder.note()
    }

    fn len_hint(&self) -> Option<u64> {
        self.decoder.size_hint()
    }

    fn read_full(&mut self, buf: &mut [u8]) -> Result<usize> {
        let count = self.decoder.read_full(buf)?;
        self.unpacked.update(&buf[..count]);
        Ok(count)
    }

    fn finish(&mut self) -> Result<u64> {
        self.skip(u64::MAX)?;
        let unpacked: [u8; 32] = self.unpacked.finalize_reset().into();
        let passed = std::mem::take(&mut *lock(&self.packed));
        let packed: [u8; 32] = match &self.path {
            // A zip archive is not read from start to end.
            Some(path) if self.decoder.codec() == Codec::Zip => hash_file(path)?,
            _ => passed.hash.finalize().into(),
        };
        match self.expected {
            Some(expected) if expected != unpacked && expected != packed => Err(Error::new(
                ErrorKind::Verify,
                format!(
                    "the image's SHA-256 is {}, not {}",
                    hex(&packed),
                    hex(&expected)
                ),
            )
            .with_hint("fetch the image again, unless it is the checksum that is another image's")),
            _ => Ok(self.decoder.bytes_out()),
        }
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buf)?;
        let end = self.position + count as u64;
        let mut packed = lock(&self.packed);
        if self.position <= packed.hashed && end > packed.hashed {
            let seen = (packed.hashed - self.position) as usize;
            packed.hash.update(&buf[seen..count]);
            packed.hashed = end;
        }
        self.position = end;
        Ok(count)
    }
}

impl<R: Seek> Seek for Tee<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.position = self.inner.seek(to)?;
        Ok(self.position)
    }
}

// A panic elsewhere does not make the hash wrong.
fn lock(packed: &Mutex<Packed>) -> std::sync::MutexGuard<'_, Packed> {
    packed.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hash_file(path: &Path) -> Result<[u8; 32]> {
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(failed)?;
    Ok(hash.finalize().into())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
