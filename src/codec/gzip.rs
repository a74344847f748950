//! gzip (RFC 1952). Written as one member by all cores.
//!
//! ```text
//! 1f 8b 08 flags  mtime(4)  xfl os | deflate blocks … | 03 00 | crc32(4) length mod 2^32 (4)
//!                                  └ chunk, sync flush ┘ × n
//! ```
//! Each chunk is deflated on its own with the 32 KiB before it as dictionary, and ended by a sync
//! flush on a byte boundary: the pieces joined are one deflate stream, and cost almost nothing in
//! size. (Members one after the other would be simpler, but some readers stop after the first.)

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::unpack::{Fault, Format, Step, Stream};

/// As gzip does: what some makers append (OpenWrt its metadata) is passed over, since the CRC and the
/// length of what is before it tell that this is whole.
pub(super) const FORMAT: Format = Format {
    magic: b"\x1f\x8b\x08",
    padding: 1,
    appended: true,
};

const WINDOW: usize = 32 << 10;
const CHUNK: usize = 512 << 10;

/// Bytes to deflate, and where the result goes.
struct Job {
    /// The dictionary, then the chunk itself.
    bytes: Vec<u8>,
    dictionary: usize,
    result: SyncSender<Packed>,
}

struct Packed {
    deflated: io::Result<Vec<u8>>,
    crc: crc32fast::Hasher,
    /// The job's buffer, to be used again.
    bytes: Vec<u8>,
}

/// Writes one gzip member. The sink is written by the caller's thread only.
pub(super) struct Writer<W> {
    sink: W,
    /// What comes next: dictionary, then up to [`CHUNK`] bytes.
    bytes: Vec<u8>,
    dictionary: usize,
    spare: Vec<Vec<u8>>,
    jobs: Option<SyncSender<Job>>,
    pending: VecDeque<Receiver<Packed>>,
    most_pending: usize,
    workers: Vec<JoinHandle<()>>,
    crc: crc32fast::Hasher,
    len: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(level: u32, threads: usize, mut sink: W) -> io::Result<Self> {
        let most_pending = threads * 2;
        let (jobs, queue) = sync_channel::<Job>(most_pending);
        let queue = Arc::new(Mutex::new(queue));
        let workers = (0..threads)
            .map(|_| {
                let queue = Arc::clone(&queue);
                Builder::new()
                    .name("gzip".into())
                    .spawn(move || work(&queue, level))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let xfl = match level {
            9 => 2,
            1 => 4,
            _ => 0,
        };
        // No time and no name: the output depends on the input alone.
        sink.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, xfl, 255])?;
        Ok(Self {
            sink,
            bytes: Vec::with_capacity(WINDOW + CHUNK),
            dictionary: 0,
            spare: Vec::new(),
            jobs: Some(jobs),
            pending: VecDeque::new(),
            most_pending,
            workers,
            crc: crc32fast::Hasher::new(),
            len: 0,
        })
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.submit()?;
        while !self.pending.is_empty() {
            self.collect()?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| worker_lost())?;
        }
        // An empty last block with fixed codes, then the trailer.
        self.sink.write_all(&[3, 0])?;
        self.sink.write_all(&self.crc.finalize().to_le_bytes())?;
        self.sink.write_all(&(self.len as u32).to_le_bytes())?;
        Ok(self.sink)
    }

    /// Hands the current chunk to the workers; waits for the oldest one if many are under way.
    fn submit(&mut self) -> io::Result<()> {
        if self.bytes.len() == self.dictionary {
            return Ok(());
        }
        while self.pending.len() >= self.most_pending {
            self.collect()?;
        }
        let mut next = self.spare.pop().unwrap_or_default();
        next.clear();
        next.reserve(WINDOW + CHUNK);
        next.extend_from_slice(&self.bytes[self.bytes.len().saturating_sub(WINDOW)..]);
        let dictionary = std::mem::replace(&mut self.dictionary, next.len());
        let bytes = std::mem::replace(&mut self.bytes, next);
        self.len += (bytes.len() - dictionary) as u64;
        let (result, receiver) = sync_channel(1);
        let job = Job {
            bytes,
            dictionary,
            result,
        };
        let jobs = self.jobs.as_ref().ok_or_else(worker_lost)?;
        jobs.send(job).map_err(|_| worker_lost())?;
        self.pending.push_back(receiver);
        Ok(())
    }

    /// Writes the oldest chunk under way to the sink.
    fn collect(&mut self) -> io::Result<()> {
        let Some(receiver) = self.pending.pop_front() else {
            return Ok(());
        };
        let packed = receiver.recv().map_err(|_| worker_lost())?;
        self.crc.combine(&packed.crc);
        self.spare.push(packed.bytes);
        self.sink.write_all(&packed.deflated?)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = self.dictionary + CHUNK - self.bytes.len();
        let count = room.min(buf.len());
        self.bytes.extend_from_slice(&buf[..count]);
        if count == room {
            self.submit()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn worker_lost() -> io::Error {
    io::Error::other("a compression thread has stopped")
}

/// A worker's life: ends when the writer drops its end of the queue.
fn work(queue: &Mutex<Receiver<Job>>, level: u32) {
    let mut deflate = Compress::new(Compression::new(level), false);
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        let (dictionary, chunk) = job.bytes.split_at(job.dictionary);
        let deflated = deflate_chunk(&mut deflate, dictionary, chunk);
        let mut crc = crc32fast::Hasher::new();
        crc.update(chunk);
        // A writer that was dropped no longer listens.
        let _ = job.result.send(Packed {
            deflated,
            crc,
            bytes: job.bytes,
        });
    }
}

fn deflate_chunk(deflate: &mut Compress, dictionary: &[u8], chunk: &[u8]) -> io::Result<Vec<u8>> {
    deflate.reset();
    if !dictionary.is_empty() {
        deflate.set_dictionary(dictionary)?;
    }
    let mut out = Vec::with_capacity(chunk.len() / 2 + 1024);
    let mut done = 0;
    loop {
        let before = deflate.total_in();
        deflate.compress_vec(&chunk[done..], &mut out, FlushCompress::Sync)?;
        done += (deflate.total_in() - before) as usize;
        // Room left in the output means that the flush is complete.
        if done == chunk.len() && out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(chunk.len() / 4 + 1024);
    }
}

/// Unpacks one member; CRC and length are checked by zlib.
pub(super) struct Member(Decompress);

impl Member {
    pub(super) fn open() -> Result<Box<dyn Stream>, Fault> {
        Ok(Box::new(Self(Decompress::new_gzip(15))))
    }
}

impl Stream for Member {
    fn step(&mut self, input: &[u8], output: &mut [u8], _: bool) -> Result<(Step, bool), Fault> {
        let (read, written) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(input, output, FlushDecompress::None)
            .map_err(|error| Fault::Damaged(error.to_string()))?;
        let step = Step {
            read: (self.0.total_in() - read) as usize,
            written: (self.0.total_out() - written) as usize,
        };
        Ok((step, status == Status::StreamEnd))
    }
}
