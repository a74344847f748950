//! A compressed source, unpacked into a sparse temporary file first: capture needs random access.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::capture::output::Partial;
use crate::codec::{Codec, Decoder};
use crate::error::{Error, Result};
use crate::io::{Files, is_zero};
use crate::progress::{Event, Phase, Progress};

const CHUNK: usize = 1 << 20;
const BLOCK: usize = 4096;

/// A temporary file; removed when dropped.
#[derive(Debug)]
pub struct Unpacked(Partial);

impl Unpacked {
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Tells by its content whether the file `path` is packed.
///
/// # Errors
/// `Io` if it cannot be read.
pub fn packed_as(path: &Path) -> Result<Codec> {
    let failed = |error| Error::io(format!("reading {}", path.display()), error);
    let mut first = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(Codec::DETECT_LEN as u64)
        .read_to_end(&mut first)
        .map_err(failed)?;
    Ok(Codec::detect(&first))
}

/// Unpacks the file `path` into a temporary file whose name begins with `beside`.
///
/// # Errors
/// `Unsound` or `Verify` if it is truncated or damaged, `NoSpace` or `Io` from writing,
/// `Cancelled` from `progress`.
pub fn unpack(
    path: &Path,
    beside: &Path,
    files: &dyn Files,
    progress: &dyn Progress,
) -> Result<Unpacked> {
    let file = File::open(path)
        .map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
    let packed_len = file.metadata().map_or(0, |metadata| metadata.len());
    let mut decoder = Decoder::seekable(file)?;
    let mut name = beside.as_os_str().to_owned();
    name.push(".source");
    let (partial, mut out) = Partial::create(files, Path::new(&name))?;
    files.make_sparse(&out);
    let failed = |error| Error::io(format!("writing {}", partial.path().display()), error);
    progress.started(Phase::Unpack, Some(packed_len))?;
    let mut chunk = vec![0; CHUNK];
    let mut len = 0;
    let mut told = 0;
    loop {
        let count = decoder.read_full(&mut chunk)?;
        if count == 0 {
            break;
        }
        let mut at = 0;
        while at < count {
            let zero = is_zero(block(&chunk[..count], at));
            let mut end = at;
            while end < count && is_zero(block(&chunk[..count], end)) == zero {
                end += block(&chunk[..count], end).len();
            }
            if !zero {
                out.seek(SeekFrom::Start(len + at as u64))
                    .and_then(|_| out.write_all(&chunk[at..end]))
                    .map_err(failed)?;
            }
            at = end;
        }
        len += count as u64;
        progress.advanced(Phase::Unpack, decoder.bytes_in().saturating_sub(told))?;
        told = decoder.bytes_in();
    }
    out.set_len(len).map_err(failed)?;
    if let Some(note) = decoder.note() {
        progress.event(Event::Note(note))?;
    }
    progress.finished(Phase::Unpack)?;
    Ok(Unpacked(partial))
}

/// The block of `bytes` at `at`, shorter at the end.
fn block(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at..bytes.len().min(at + BLOCK)]
}
