//! Transactions of our own: what makes a change of many blocks happen at once.
//!
//! The blocks go first where the log has nothing, which changes nothing; when the log's superblock names
//! them, they count, whatever becomes of the blocks' own places: every mount replays them from then
//! on, and nothing that was in the log before.

use crate::error::Result;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::raw::{be32, put_be32};
use crate::ext4::recover::journal::crc32_be::crc32_be;
use crate::ext4::recover::journal::log::Log;
use crate::ext4::recover::journal::scan::{
    COMMIT_BLOCK, DESCRIPTOR_BLOCK, FLAG_ESCAPE, FLAG_LAST_TAG, FLAG_SAME_UUID, H_CHKSUM, HEADER,
    TAIL, V1_KIND, scan, tag_size,
};
use crate::ext4::recover::journal::superblock::{JournalSuperblock, LogChecksums, MAGIC};
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
    build(fs, &log, blocks, (first, tid, room))
}

/// Writes a transaction with the new contents of `blocks` that takes the place of all that is in
/// the log of `fs`, fast commits included; `None` if the log has no room for it beside that.
///
/// # Errors
/// `Unsound` for a damaged journal, what the device fails with.
pub fn replacement(
    fs: &Super,
    device: &dyn ReadAt,
    blocks: &[(BlockNr, Vec<u8>)],
) -> Result<Option<Transaction>> {
    let mut log = Log::open(fs, device)?;
    let found = scan(&mut log)?;
    let superblock = &log.superblock;
    let (first, start, last) = (
        superblock.s_first(),
        superblock.s_start(),
        superblock.last(),
    );
    if start == 0 || (found.end_at == start && found.transactions > 0) {
        return Ok(None);
    }
    // Not where the next transaction would be looked for, and not over the end of the ring, which
    // lies elsewhere in a log without fast commits.
    let at = found.end_at + 1;
    let tid = found.end.wrapping_add(1);
    let wraps = found.end_at < start;
    let behind = (at, tid, if wraps { start } else { last }.saturating_sub(at));
    let before = (first, tid, if wraps { 0 } else { start - first });
    match build(fs, &log, blocks, behind)? {
        None => build(fs, &log, blocks, before),
        built => Ok(built),
    }
}

/// Builds a transaction that begins at block `at` of the log, where `room` blocks are free; `None`
/// if they are too few.
fn build(
    fs: &Super,
    log: &Log<'_>,
    blocks: &[(BlockNr, Vec<u8>)],
    (at, tid, room): (u32, u32, u32),
) -> Result<Option<Transaction>> {
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
    for (place, block) in (at..).zip(bytes) {
        placed.push((fs.geometry.offset(log.place(place)?), block));
    }
    Ok(Some(Transaction {
        log: placed,
        superblock_at: fs.geometry.offset(log.place(0)?),
        started: superblock.started(at, tid),
        emptied: superblock.emptied(tid.wrapping_add(1)),
    }))
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
