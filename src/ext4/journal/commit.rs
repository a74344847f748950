//! Transactions of our own: what makes a change of many blocks happen at once.
//!
//! In an empty log, the blocks go there first, which changes nothing; when the log's superblock names
//! them, they count, whatever becomes of the blocks' own places: every mount replays them from then
//! on. Behind the last transaction of a log, they count from their commit block on; fast commits,
//! which continue the transaction before, count no more then.

use super::crc32_be::crc32_be;
use super::log::Log;
use super::scan::{
    COMMIT_BLOCK, DESCRIPTOR_BLOCK, FLAG_ESCAPE, FLAG_LAST_TAG, FLAG_SAME_UUID, H_CHKSUM, HEADER,
    TAIL, V1_KIND, scan, tag_size,
};
use super::superblock::{JournalSuperblock, LogChecksums, MAGIC};
use crate::error::Result;
use crate::ext4::checksum::crc32c;
use crate::ext4::raw::{be32, put_be32};
use crate::ext4::superblock::Super;
use crate::io::{RangeSet, ReadAt};
use crate::units::BlockNr;

/// The blocks of a transaction, in memory, and the log's superblock that makes it count.
#[derive(Debug)]
pub struct Transaction {
    /// Blocks of the log: bytes on the device, contents.
    pub log: Vec<(u64, Vec<u8>)>,
    /// Where the log's superblock lies, in bytes.
    pub superblock_at: u64,
    /// The log's superblock while the transaction has to be replayed.
    pub started: Vec<u8>,
    /// And when it need not be any more.
    pub emptied: Vec<u8>,
}

/// Where a filesystem's own journal lies.
#[derive(Debug)]
pub struct Place {
    /// Its superblock, in bytes.
    pub superblock_at: u64,
    /// All of it, in blocks.
    pub blocks: RangeSet,
}

/// Returns where the journal lies that `fs` has in an inode of its own.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn place(fs: &Super, device: &dyn ReadAt) -> Result<Place> {
    let log = Log::open(fs, device)?;
    Ok(Place {
        superblock_at: fs.geometry.offset(log.place(0)?),
        blocks: log.places().clone(),
    })
}

/// Writes a transaction with the new contents of `blocks` for the log of `fs`; `None` if the log
/// is not empty or too short for it.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn transaction(
    fs: &Super,
    device: &dyn ReadAt,
    blocks: &[(BlockNr, Vec<u8>)],
) -> Result<Option<Transaction>> {
    let log = Log::open(fs, device)?;
    let superblock = &log.superblock;
    let (first, tid) = (superblock.s_first(), superblock.s_sequence());
    let room = superblock.last() - first;
    if superblock.s_start() != 0 {
        return Ok(None);
    }
    let Some(placed) = place_transaction(fs, &log, blocks, (first, tid, room))? else {
        return Ok(None);
    };
    Ok(Some(Transaction {
        log: placed,
        superblock_at: fs.geometry.offset(log.place(0)?),
        started: superblock.started(first),
        emptied: superblock.emptied(tid.wrapping_add(1)),
    }))
}

/// Blocks of the log: bytes on the device, and contents.
pub type Placed = Vec<(u64, Vec<u8>)>;

/// Writes a transaction with the new contents of `blocks` that follows the last one in the log of
/// `fs`: blocks of the log, bytes on the device and contents, of which the last one commits it and
/// has to be written after the others. `None` if the log has no room for it.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn continuation(
    fs: &Super,
    device: &dyn ReadAt,
    blocks: &[(BlockNr, Vec<u8>)],
) -> Result<Option<Placed>> {
    let mut log = Log::open(fs, device)?;
    let found = scan(&mut log)?;
    let (start, ring) = (log.superblock.s_start(), {
        log.superblock.last() - log.superblock.s_first()
    });
    if start == 0 {
        return Ok(None);
    }
    // OK: both lie in the ring.
    let taken = (found.end_at + ring - start) % ring;
    if taken == 0 && found.transactions > 0 {
        return Ok(None);
    }
    place_transaction(fs, &log, blocks, (found.end_at, found.end, ring - taken))
}

/// Writes a transaction from block `at` of the log on, where `room` blocks are free; `None` if they
/// are too few.
fn place_transaction(
    fs: &Super,
    log: &Log<'_>,
    blocks: &[(BlockNr, Vec<u8>)],
    (mut at, tid, room): (u32, u32, u32),
) -> Result<Option<Placed>> {
    let superblock = &log.superblock;
    let size = log.block_size() as usize;
    // One UUID in each descriptor, and one block to spare.
    let per_descriptor = (tag_room(superblock, size) - 16) / tag_size(superblock);
    let needed = blocks.len() + blocks.len().div_ceil(per_descriptor) + 2;
    if needed as u64 > u64::from(room) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let mut v1_sum = !0;
    for group in blocks.chunks(per_descriptor) {
        let copies: Vec<(BlockNr, bool, Vec<u8>)> = group
            .iter()
            .map(|(number, contents)| {
                let mut copy = contents.clone();
                let escaped = be32(&copy, 0) == MAGIC;
                if escaped {
                    copy[..4].fill(0);
                }
                (*number, escaped, copy)
            })
            .collect();
        bytes.push(descriptor(superblock, tid, size, &copies));
        bytes.extend(copies.into_iter().map(|(_, _, copy)| copy));
    }
    for block in &bytes {
        v1_sum = crc32_be(v1_sum, block);
    }
    bytes.push(commit_block(superblock, tid, size, v1_sum));
    let mut placed = Vec::new();
    for block in bytes {
        placed.push((fs.geometry.offset(log.place(at)?), block));
        at = log.next(at);
    }
    Ok(Some(placed))
}

/// Returns the bytes of a descriptor block for tags.
fn tag_room(superblock: &JournalSuperblock, size: usize) -> usize {
    let tail = match superblock.checksums_every_block() {
        true => TAIL,
        false => 0,
    };
    size - HEADER - tail
}

fn header(kind: u32, tid: u32, size: usize) -> Vec<u8> {
    let mut block = vec![0; size];
    put_be32(&mut block, 0, MAGIC);
    put_be32(&mut block, 4, kind);
    put_be32(&mut block, 8, tid);
    block
}

fn descriptor(
    superblock: &JournalSuperblock,
    tid: u32,
    size: usize,
    copies: &[(BlockNr, bool, Vec<u8>)],
) -> Vec<u8> {
    let mut block = header(DESCRIPTOR_BLOCK, tid, size);
    let version = superblock.checksums();
    let seed = crc32c(superblock.seed(), &tid.to_be_bytes());
    let mut at = HEADER;
    for (index, (number, escaped, copy)) in copies.iter().enumerate() {
        let mut flags = 0;
        if *escaped {
            flags |= FLAG_ESCAPE;
        }
        if index > 0 {
            flags |= FLAG_SAME_UUID;
        }
        if index + 1 == copies.len() {
            flags |= FLAG_LAST_TAG;
        }
        // The low 16 bits of a v3 tag's flags lie where the others have theirs.
        put_be32(&mut block, at, *number as u32);
        put_be32(&mut block, at + 4, u32::from(flags));
        if superblock.is_64bit() {
            put_be32(&mut block, at + 8, (number >> 32) as u32);
        }
        let crc = crc32c(seed, copy);
        match version {
            LogChecksums::V3 => put_be32(&mut block, at + 12, crc),
            LogChecksums::V2 => {
                block[at + 4..at + 6].copy_from_slice(&(crc as u16).to_be_bytes());
            }
            LogChecksums::V1 | LogChecksums::None => {}
        }
        at += tag_size(superblock);
        if index == 0 {
            block[at..at + 16].copy_from_slice(superblock.s_uuid());
            at += 16;
        }
    }
    if superblock.checksums_every_block() {
        let crc = crc32c(superblock.seed(), &block);
        put_be32(&mut block, size - TAIL, crc);
    }
    block
}

fn commit_block(superblock: &JournalSuperblock, tid: u32, size: usize, v1_sum: u32) -> Vec<u8> {
    let mut block = header(COMMIT_BLOCK, tid, size);
    match superblock.checksums() {
        LogChecksums::None => {}
        LogChecksums::V1 => {
            block[HEADER..HEADER + 2].copy_from_slice(&V1_KIND);
            put_be32(&mut block, H_CHKSUM, v1_sum);
        }
        LogChecksums::V2 | LogChecksums::V3 => {
            let crc = crc32c(superblock.seed(), &block);
            put_be32(&mut block, H_CHKSUM, crc);
        }
    }
    block
}
