//! zip (APPNOTE.TXT): an archive with one file in it, as images are often published.
//!
//! A file is found through the directory at its end; a stream is taken as it comes, by the local
//! headers. Directories, what macOS adds (`__MACOSX/`, `.DS_Store`), and what is about the image by
//! its name (a text, a checksum, a block map) do not count.

use std::io::{self, Read, Seek, SeekFrom};

use deflate64::InflaterManaged;
use flate2::{Decompress, FlushDecompress, Status};

use super::unpack::{Fault, Step, Stream, Unpack};
use super::{bzip2, lzma, xz, zstd};
use crate::error::{Error, Result};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;

/// Packing methods.
const STORED: u16 = 0;
const DEFLATE: u16 = 8;
const DEFLATE64: u16 = 9;
const BZIP2: u16 = 12;
const LZMA: u16 = 14;
const ZSTD: u16 = 93;
const XZ: u16 = 95;

const ENCRYPTED: u16 = 1;
/// Sizes and CRC follow the data.
const DEFERRED: u16 = 1 << 3;

/// Bytes that are read to find the one file: room for some 300,000.
const MAX_DIRECTORY: u64 = if cfg!(test) { 64 << 10 } else { 16 << 20 };

/// The packed bytes of a file, from its first one on.
type Packed = Box<dyn Read + Send>;

/// Finds the one file of an archive, and returns it with its packed bytes.
pub(super) fn find(file: impl Read + Seek + Send + 'static) -> Result<(Entry, Packed)> {
    let unsound = |error: zip::result::ZipError| {
        Error::unsound("the directory at the end of the zip archive is damaged or missing")
            .with_source(error)
            .with_hint("fetch or copy the image again: a part of it may be missing")
    };
    let metered = Metered {
        file,
        left: MAX_DIRECTORY,
    };
    let mut archive = zip::ZipArchive::new(metered).map_err(unsound)?;
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(unsound)?;
        let name = entry.name().map_err(unsound)?;
        if !is_noise(&name) {
            files.push((index, name.into_owned()));
        }
    }
    let index = match &files[..] {
        [(index, _)] => *index,
        [] => return Err(Error::unsound("the zip archive holds no image")),
        many => {
            let names: Vec<_> = many.iter().map(|(_, name)| name.as_str()).collect();
            return Err(several(&names));
        }
    };
    let entry = archive.by_index_raw(index).map_err(unsound)?;
    let method = match entry.compression() {
        zip::CompressionMethod::STORE => STORED,
        zip::CompressionMethod::DEFLATE => DEFLATE,
        zip::CompressionMethod::DEFLATE64 => DEFLATE64,
        zip::CompressionMethod::BZIP2 => BZIP2,
        zip::CompressionMethod::LZMA => LZMA,
        zip::CompressionMethod::ZSTD => ZSTD,
        zip::CompressionMethod::XZ => XZ,
        other => return Err(unknown_method(&other.to_string()).at(super::Codec::Zip, 0, 0)),
    };
    if entry.encrypted() {
        return Err(encrypted().at(super::Codec::Zip, 0, 0));
    }
    let known = Known {
        crc: entry.crc32(),
        packed: entry.compressed_size(),
        unpacked: entry.size(),
    };
    let start = entry.data_start();
    drop(entry);
    let mut file = archive.into_inner().file;
    let failed = |error| Error::io("reading the image", error);
    let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
    let start = start
        .filter(|&start| start <= len)
        .ok_or_else(|| Error::unsound("the zip archive's local header is damaged"))?;
    file.seek(SeekFrom::Start(start)).map_err(failed)?;
    let packed = file.take(known.packed);
    let mut found =
        Entry::new(method, Some(known)).map_err(|fault| fault.at(super::Codec::Zip, start, 0))?;
    found.start = start;
    Ok((found, Box::new(packed)))
}

/// A file of which only so many bytes are read: what an archive of millions of files, or a search
/// for its directory, would take.
struct Metered<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buf)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            let text = format!("not found within {} MiB", MAX_DIRECTORY >> 20);
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// How the names end of what makers put beside an image.
const COMPANIONS: [&str; 15] = [
    "txt", "md", "pdf", "htm", "html", "url", "nfo", "json", "md5", "sha1", "sha256", "sha512",
    "asc", "sig", "bmap",
];

fn is_noise(name: &str) -> bool {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
    let companion = base.rsplit_once('.').is_some_and(|(_, end)| {
        COMPANIONS
            .iter()
            .any(|companion| end.eq_ignore_ascii_case(companion))
    });
    // Etcher's own archives have a folder with a map, a logo and texts.
    let etchers = name.split(['/', '\\']).any(|part| part == ".meta");
    base.is_empty() || etchers || name.starts_with("__MACOSX/") || base == ".DS_Store" || companion
}

fn several(names: &[&str]) -> Error {
    let mut list: Vec<String> = names
        .iter()
        .take(5)
        .map(|name| format!("{name:?}"))
        .collect();
    if names.len() > list.len() {
        list.push(format!("and {} more", names.len() - list.len()));
    }
    Error::unsupported(format!(
        "the zip archive holds more than one file: {}",
        list.join(", ")
    ))
    .with_hint("unpack it and give the image itself")
}

fn unknown_method(name: &str) -> Fault {
    Fault::Unsupported(format!(
        "its packing method {name} is not known here; unpack it and give the image"
    ))
}

fn encrypted() -> Fault {
    Fault::Unsupported("it is encrypted; unpack it with its password and give the image".into())
}

/// What the headers say about a file.
#[derive(Clone, Copy, Debug)]
struct Known {
    crc: u32,
    packed: u64,
    unpacked: u64,
}

/// Unpacks one file's data.
pub(super) struct Entry {
    method: Method,
    known: Option<Known>,
    start: u64,
    crc: crc32fast::Hasher,
    packed: u64,
    unpacked: u64,
    complete: bool,
}

/// How a file is packed, with what unpacks it.
enum Method {
    Stored,
    Deflate(Decompress),
    Deflate64(Box<InflaterManaged>),
    /// A format that is also one of its own.
    Stream(Box<dyn Stream>),
}

impl Method {
    fn new(method: u16, known: Option<Known>) -> Result<Self, Fault> {
        Ok(match method {
            // Neither tells its own end to the byte.
            STORED | DEFLATE64 if known.is_none() => {
                return Err(Fault::Unsupported(
                    "it is packed without its length; give it as a file, not as a stream".into(),
                ));
            }
            STORED => Self::Stored,
            DEFLATE => Self::Deflate(Decompress::new(false)),
            DEFLATE64 => Self::Deflate64(Box::new(InflaterManaged::new())),
            BZIP2 => Self::Stream(bzip2::BzStream::open()?),
            LZMA => Self::Stream(Box::new(lzma::Lzma::new(known.map(|known| known.unpacked)))),
            ZSTD => Self::Stream(Box::new(zstd::Frames::open()?)),
            XZ => Self::Stream(xz::XzStream::open()?),
            other => return Err(unknown_method(&other.to_string())),
        })
    }

    /// As [`Stream::step`]. `left` is what is left of the packed bytes, where that is known.
    fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        left: u64,
        last: bool,
    ) -> Result<(Step, bool), Fault> {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let input = &input[..input.len().min(most)];
        match self {
            Self::Stored => {
                let count = input.len().min(output.len());
                output[..count].copy_from_slice(&input[..count]);
                let step = Step {
                    read: count,
                    written: count,
                };
                Ok((step, count as u64 == left))
            }
            Self::Deflate(inflate) => {
                let (read, written) = (inflate.total_in(), inflate.total_out());
                let status = inflate
                    .decompress(input, output, FlushDecompress::None)
                    .map_err(|error| Fault::Damaged(error.to_string()))?;
                let step = Step {
                    read: (inflate.total_in() - read) as usize,
                    written: (inflate.total_out() - written) as usize,
                };
                Ok((step, status == Status::StreamEnd))
            }
            Self::Deflate64(inflate) => {
                let done = inflate.inflate(input, output);
                if done.data_error || inflate.errored() {
                    return Err(Fault::Damaged("the data makes no sense".into()));
                }
                let step = Step {
                    read: done.bytes_consumed,
                    written: done.bytes_written,
                };
                Ok((step, inflate.finished() && inflate.available_output() == 0))
            }
            Self::Stream(stream) => stream.step(input, output, last || input.len() as u64 == left),
        }
    }
}

impl Entry {
    fn new(method: u16, known: Option<Known>) -> Result<Self, Fault> {
        Ok(Self {
            // A stored file of no bytes is complete before its first step.
            complete: method == STORED && known.is_some_and(|known| known.packed == 0),
            method: Method::new(method, known)?,
            known,
            start: 0,
            crc: crc32fast::Hasher::new(),
            packed: 0,
            unpacked: 0,
        })
    }

    /// Returns the stated unpacked length.
    pub(super) fn len(&self) -> u64 {
        self.known.map_or(0, |known| known.unpacked)
    }

    /// Returns where in the archive its data begins.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    fn check(&self, known: Known) -> Result<(), Fault> {
        if (self.packed, self.unpacked) != (known.packed, known.unpacked) {
            return Err(Fault::Damaged(format!(
                "it has {} bytes, its header says {}",
                self.unpacked, known.unpacked
            )));
        }
        if self.crc.clone().finalize() != known.crc {
            return Err(Fault::Damaged("the data does not match its CRC".into()));
        }
        Ok(())
    }
}

impl Unpack for Entry {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Fault> {
        if self.complete {
            return match input.is_empty() {
                true => Ok(Step::NOTHING),
                false => Err(Fault::Damaged("data follows the end of the file".into())),
            };
        }
        let left = self.known.map_or(u64::MAX, |known| known.packed) - self.packed;
        let (step, complete) = self.method.step(input, output, left, last)?;
        self.complete = complete;
        self.packed += step.read as u64;
        self.unpacked += step.written as u64;
        self.crc.update(&output[..step.written]);
        if self.complete
            && let Some(known) = self.known
        {
            self.check(known)?;
        }
        Ok(step)
    }

    fn may_end(&self) -> bool {
        self.complete
    }
}

/// Unpacks a whole archive that comes as a stream.
pub(super) struct Archive {
    place: Place,
    /// Bytes of the record that is being put together.
    record: Vec<u8>,
    wanted: usize,
    /// The name of the one file, once it was met.
    found: Option<String>,
}

enum Place {
    /// Before a signature, or within a record of this signature.
    Record(Option<u32>),
    Data {
        entry: Box<Entry>,
        noise: bool,
        wide: bool,
    },
    /// Collecting CRC and sizes.
    Descriptor {
        entry: Box<Entry>,
        wide: bool,
    },
    Done,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Record(None),
            record: Vec::new(),
            wanted: 4,
            found: None,
        }
    }

    fn next_record(&mut self) {
        self.place = Place::Record(None);
        self.record.clear();
        self.wanted = 4;
    }

    /// Acts on a record of which `wanted` bytes are there: asks for more, or moves on.
    fn record_step(&mut self, signature: Option<u32>) -> Result<(), Fault> {
        let record = &self.record[..];
        let Some(signature) = signature else {
            let signature = u32_at(record, 0);
            self.wanted = match signature {
                LOCAL => 30,
                CENTRAL => 46,
                END => 22,
                END64 => 12,
                LOCATOR64 => 20,
                // An archive that was meant to be split, and was not.
                DESCRIPTOR if self.found.is_none() => {
                    self.next_record();
                    return Ok(());
                }
                _ => return Err(Fault::Damaged("a record has an unknown signature".into())),
            };
            self.place = Place::Record(Some(signature));
            return Ok(());
        };
        let total = match signature {
            LOCAL => 30 + u16_at(record, 26) + u16_at(record, 28),
            CENTRAL => 46 + u16_at(record, 28) + u16_at(record, 30) + u16_at(record, 32),
            END => 22 + u16_at(record, 20),
            END64 => match u64_at(record, 4) {
                more @ 44..=0xffff => 12 + more as usize,
                _ => return Err(Fault::Damaged("a record has an impossible length".into())),
            },
            _ => 20,
        };
        if record.len() < total {
            self.wanted = total;
            return Ok(());
        }
        match signature {
            LOCAL => self.local_header(),
            END => {
                if self.found.is_none() {
                    return Err(Fault::Damaged("it holds no image".into()));
                }
                self.place = Place::Done;
                Ok(())
            }
            _ => {
                self.next_record();
                Ok(())
            }
        }
    }

    fn local_header(&mut self) -> Result<(), Fault> {
        let record = &self.record[..];
        let (flags, method) = (u16_at(record, 6) as u16, u16_at(record, 8) as u16);
        let name_end = 30 + u16_at(record, 26);
        let name = String::from_utf8_lossy(&record[30..name_end]).into_owned();
        let zip64 = zip64_sizes(&record[name_end..]);
        let (packed, unpacked) = (u32_at(record, 18), u32_at(record, 22));
        let known = (flags & DEFERRED == 0).then(|| Known {
            crc: u32_at(record, 14),
            packed: match (packed, zip64) {
                (u32::MAX, Some((_, packed))) => packed,
                _ => u64::from(packed),
            },
            unpacked: match (unpacked, zip64) {
                (u32::MAX, Some((unpacked, _))) => unpacked,
                _ => u64::from(unpacked),
            },
        });
        let noise = is_noise(&name);
        if !noise {
            if let Some(first) = &self.found {
                let error = several(&[first, &name]);
                return Err(Fault::Unsupported(error.to_string()));
            }
            self.found = Some(name);
        }
        if flags & ENCRYPTED != 0 {
            return Err(encrypted());
        }
        self.place = Place::Data {
            entry: Box::new(Entry::new(method, known)?),
            noise,
            wide: zip64.is_some(),
        };
        Ok(())
    }

    /// Goes on behind a file's data: to its descriptor, if it has one.
    fn leave_data(&mut self) {
        match std::mem::replace(&mut self.place, Place::Done) {
            Place::Data { entry, wide, .. } if entry.known.is_none() => {
                self.place = Place::Descriptor { entry, wide };
                self.record.clear();
                self.wanted = 12;
            }
            _ => self.next_record(),
        }
    }

    /// Takes what follows a file whose lengths were not known before. Neither the signature nor
    /// the width of the lengths is certain, but what was unpacked tells.
    fn descriptor_step(&mut self) -> Result<(), Fault> {
        let Place::Descriptor { entry, wide } = &self.place else {
            return Ok(());
        };
        let skip = if u32_at(&self.record, 0) == DESCRIPTOR {
            4
        } else {
            0
        };
        let wide = *wide || entry.packed.max(entry.unpacked) > u64::from(u32::MAX);
        let total = skip + if wide { 20 } else { 12 };
        if self.record.len() < total {
            self.wanted = total;
            return Ok(());
        }
        let fields = &self.record[skip..];
        let (packed, unpacked) = match wide {
            true => (u64_at(fields, 4), u64_at(fields, 12)),
            false => (u64::from(u32_at(fields, 4)), u64::from(u32_at(fields, 8))),
        };
        entry.check(Known {
            crc: u32_at(fields, 0),
            packed,
            unpacked,
        })?;
        self.next_record();
        Ok(())
    }
}

impl Unpack for Archive {
    fn step(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Step, Fault> {
        match &mut self.place {
            Place::Data { entry, .. } if entry.complete => {
                self.leave_data();
                self.step(input, output, last)
            }
            Place::Data {
                entry,
                noise: false,
                ..
            } => entry.step(input, output, last),
            Place::Data { entry, .. } => {
                let mut scratch = [0; 16 << 10];
                loop {
                    let step = entry.step(input, &mut scratch, last)?;
                    if step.read > 0 || step.written == 0 || entry.complete {
                        return Ok(Step { written: 0, ..step });
                    }
                }
            }
            Place::Done => match input.is_empty() {
                true => Ok(Step::NOTHING),
                false => Err(Fault::Damaged("something else follows its end".into())),
            },
            Place::Record(_) | Place::Descriptor { .. } => {
                let count = (self.wanted - self.record.len()).min(input.len());
                self.record.extend_from_slice(&input[..count]);
                if self.record.len() == self.wanted {
                    match self.place {
                        Place::Record(signature) => self.record_step(signature)?,
                        _ => self.descriptor_step()?,
                    }
                }
                Ok(Step {
                    read: count,
                    written: 0,
                })
            }
        }
    }

    fn may_end(&self) -> bool {
        matches!(self.place, Place::Done)
    }
}

/// Returns (unpacked, packed) of the zip64 extra field, if there is one.
fn zip64_sizes(mut extra: &[u8]) -> Option<(u64, u64)> {
    while extra.len() >= 4 {
        let (tag, len) = (u16_at(extra, 0), u16_at(extra, 2));
        let body = extra.get(4..4 + len)?;
        if tag == 1 && len >= 16 {
            return Some((u64_at(body, 0), u64_at(body, 8)));
        }
        extra = &extra[4 + len..];
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u16_at(bytes, at) as u32 | (u16_at(bytes, at + 2) as u32) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
