//! The walk over the log, from `s_start` to the last committed transaction.
//!
//! ```text
//! transaction = (descriptor data* | revoke)* commit, all with the transaction's id
//! header       h_magic, h_blocktype (1 descriptor, 2 commit, 5 revoke), h_sequence
//! descriptor   header, tags, 4 bytes checksum at the end of the block (v2, v3)
//! tag          t_blocknr, t_checksum (16 bit), t_flags (16 bit) [, t_blocknr_high] [, 2 bytes (v2)]
//! tag, v3      t_blocknr, t_flags, t_blocknr_high, t_checksum; each tag [, 16 bytes of UUID]
//! commit       header, h_chksum_type, h_chksum_size, 2 bytes, h_chksum[8], h_commit_sec, _nsec
//! ```

use crate::error::{Error, Result};
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::raw::{be16, be32, join};
use crate::ext4::recover::journal::HINT;
use crate::ext4::recover::journal::crc32_be::crc32_be;
use crate::ext4::recover::journal::log::Log;
use crate::ext4::recover::journal::superblock::{JournalSuperblock, LogChecksums, MAGIC};
use crate::units::BlockNr;

pub(super) const DESCRIPTOR_BLOCK: u32 = 1;
pub(super) const COMMIT_BLOCK: u32 = 2;
const REVOKE_BLOCK: u32 = 5;
pub(super) const HEADER: usize = 12;
/// Bytes of the checksum at the end of descriptor and revoke blocks.
pub(super) const TAIL: usize = 4;

pub(super) const FLAG_ESCAPE: u16 = 1;
pub(super) const FLAG_SAME_UUID: u16 = 2;
pub(super) const FLAG_LAST_TAG: u16 = 8;

pub(super) const H_CHKSUM: usize = 16;
const H_COMMIT_SEC: usize = 48;
/// `h_chksum_type` and `h_chksum_size` of v1.
pub(super) const V1_KIND: [u8; 2] = [1, 4];

/// Blocks that a log may hold, and revoke blocks: the largest that mke2fs makes by itself has a
/// quarter of them, and more could fill the memory.
const MAX_TAGS: usize = if cfg!(test) { 1200 } else { 1 << 20 };

/// One block that a committed transaction wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Where the block belongs.
    pub target: BlockNr,
    /// Where its content lies in the log.
    pub at: u32,
    /// The transaction's id.
    pub tid: u32,
    /// As stored, 16 (v2) or 32 bits (v3).
    pub checksum: u32,
    /// The block began with the log's magic number, and the copy in the log does not.
    pub escaped: bool,
}

/// What the committed transactions say, oldest first.
#[derive(Debug, Default)]
pub struct Scan {
    pub tags: Vec<Tag>,
    /// The revoke blocks: place in the log and transaction.
    pub revokes: Vec<(u32, u32)>,
    pub transactions: u32,
    /// The first id that is not a committed transaction's.
    pub end: u32,
    /// The block of the log where that one would begin.
    pub end_at: u32,
}

/// Walks the log.
///
/// # Errors
/// `Unsound` where the log is damaged before its last commit, rather than cut off.
pub fn scan(log: &mut Log<'_>) -> Result<Scan> {
    let mut walk = Walk {
        at: log.superblock.s_start(),
        tid: log.superblock.s_sequence(),
        left: log.superblock.last() - log.superblock.s_first(),
        scan: Scan::default(),
        committed: (0, 0),
        committed_at: log.superblock.s_start(),
        v1_sum: !0,
        bad_checksum: false,
        interrupted: None,
        last_commit: 0,
    };
    while walk.step(log)? {}
    let mut scan = walk.scan;
    scan.tags.truncate(walk.committed.0);
    scan.revokes.truncate(walk.committed.1);
    scan.end = walk.interrupted.unwrap_or(walk.tid);
    scan.end_at = walk.committed_at;
    Ok(scan)
}

struct Walk {
    at: u32,
    /// The transaction being read.
    tid: u32,
    /// Blocks of the ring not yet walked over: what bounds the walk.
    left: u32,
    scan: Scan,
    /// How many of `scan.tags` and `scan.revokes` belong to committed transactions.
    committed: (usize, usize),
    /// The block of the log behind the last of them.
    committed_at: u32,
    v1_sum: u32,
    /// A descriptor or revoke block of this transaction has a bad checksum: it is damaged, or
    /// left over from an earlier filesystem. The commit block tells which.
    bad_checksum: bool,
    /// The transaction whose commit block came without all it commits (`async_commit` only).
    interrupted: Option<u32>,
    /// When the transaction before was committed, in seconds.
    last_commit: u64,
}

impl Walk {
    /// Takes the next block and what belongs to it; returns false at the end of the log.
    fn step(&mut self, log: &mut Log<'_>) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let superblock = log.superblock.clone();
        let at = self.at;
        let block = log.read(at)?;
        if be32(block, 0) != MAGIC || be32(block, 8) != self.tid {
            return Ok(false);
        }
        if self.scan.tags.len().max(self.scan.revokes.len()) > MAX_TAGS {
            let text = format!("journal: more than {MAX_TAGS} blocks to replay");
            return Err(Error::unsupported(text).with_hint(HINT));
        }
        match be32(block, 4) {
            DESCRIPTOR_BLOCK => {
                self.bad_checksum |= !block_checksum_matches(&superblock, block);
                let is_v1 = superblock.checksums() == LogChecksums::V1;
                if is_v1 {
                    self.v1_sum = crc32_be(self.v1_sum, block);
                }
                let first = self.scan.tags.len();
                decode_tags(&superblock, block, self.tid, &mut self.scan.tags);
                self.advance(log);
                for index in first..self.scan.tags.len() {
                    if self.left == 0 {
                        return Ok(false);
                    }
                    self.scan.tags[index].at = self.at;
                    if is_v1 {
                        self.v1_sum = crc32_be(self.v1_sum, log.read(self.at)?);
                    }
                    self.advance(log);
                }
                Ok(true)
            }
            REVOKE_BLOCK => {
                self.bad_checksum |= !block_checksum_matches(&superblock, block);
                self.scan.revokes.push((at, self.tid));
                self.advance(log);
                Ok(true)
            }
            COMMIT_BLOCK => {
                let goes_on = self.commit(&superblock, block)?;
                self.advance(log);
                if goes_on && self.interrupted.is_none() {
                    self.committed_at = self.at;
                }
                Ok(goes_on)
            }
            _ => Ok(false),
        }
    }

    fn advance(&mut self, log: &Log<'_>) {
        self.at = log.next(self.at);
        self.left -= 1;
    }

    /// Judges a commit block as the kernel does; returns false if the log ends before it.
    fn commit(&mut self, superblock: &JournalSuperblock, block: &[u8]) -> Result<bool> {
        let time = join(be32(block, H_COMMIT_SEC), be32(block, H_COMMIT_SEC + 4));
        if let Some(interrupted) = self.interrupted {
            return Err(damaged(interrupted));
        }
        let found = be32(block, H_CHKSUM);
        let matches = !self.bad_checksum
            && match superblock.checksums() {
                LogChecksums::None => true,
                LogChecksums::V1 => {
                    let kind = [block[12], block[13]];
                    (kind == V1_KIND && found == self.v1_sum) || (kind == [0; 2] && found == 0)
                }
                LogChecksums::V2 | LogChecksums::V3 => {
                    let crc = crc32c(superblock.seed(), &block[..H_CHKSUM]);
                    let crc = crc32c(crc, &[0; 4]);
                    found == crc32c(crc, &block[H_CHKSUM + 4..])
                }
            };
        if !matches {
            if time < self.last_commit {
                // Older than its predecessor: left over from an earlier filesystem.
                return Ok(false);
            }
            if self.bad_checksum || !superblock.is_async_commit() {
                return Err(damaged(self.tid));
            }
            // The power went before its blocks arrived, unless another commit follows.
            self.interrupted = Some(self.tid);
        } else {
            self.committed = (self.scan.tags.len(), self.scan.revokes.len());
            self.scan.transactions += 1;
            self.last_commit = time;
        }
        self.v1_sum = !0;
        self.tid = self.tid.wrapping_add(1);
        Ok(true)
    }
}

fn damaged(tid: u32) -> Error {
    Error::unsound(format!(
        "journal: a checksum of transaction {tid} does not match"
    ))
}

/// Does the checksum at the end of a descriptor or revoke block match (or is there none)?
fn block_checksum_matches(superblock: &JournalSuperblock, block: &[u8]) -> bool {
    if !superblock.checksums_every_block() {
        return true;
    }
    let tail = block.len() - TAIL;
    let crc = crc32c(superblock.seed(), &block[..tail]);
    be32(block, tail) == crc32c(crc, &[0; TAIL])
}

/// Returns the bytes of a tag, without the UUID that may follow it.
pub(super) fn tag_size(superblock: &JournalSuperblock) -> usize {
    let high = if superblock.is_64bit() { 4 } else { 0 };
    match superblock.checksums() {
        LogChecksums::V3 => 16,
        LogChecksums::V2 => 10 + high,
        LogChecksums::V1 | LogChecksums::None => 8 + high,
    }
}

/// Adds the tags of a descriptor block; where their contents lie is filled in later.
fn decode_tags(superblock: &JournalSuperblock, block: &[u8], tid: u32, tags: &mut Vec<Tag>) {
    let version = superblock.checksums();
    let is_64bit = superblock.is_64bit();
    let size = tag_size(superblock);
    let end = if superblock.checksums_every_block() {
        block.len() - TAIL
    } else {
        block.len()
    };
    let mut at = HEADER;
    while at + size <= end {
        let flags = be16(block, at + 6);
        let high = if is_64bit { be32(block, at + 8) } else { 0 };
        tags.push(Tag {
            target: join(high, be32(block, at)),
            at: 0,
            tid,
            checksum: match version {
                LogChecksums::V3 => be32(block, at + 12),
                _ => u32::from(be16(block, at + 4)),
            },
            escaped: flags & FLAG_ESCAPE != 0,
        });
        at += size;
        if flags & FLAG_SAME_UUID == 0 {
            at += 16;
        }
        if flags & FLAG_LAST_TAG != 0 {
            break;
        }
    }
}

/// Lists the block numbers in a revoke block.
///
/// # Errors
/// `Unsound` if it claims more bytes than it has.
pub fn revoked_blocks(superblock: &JournalSuperblock, block: &[u8]) -> Result<Vec<BlockNr>> {
    const REVOKE_HEADER: usize = HEADER + 4;
    let room = if superblock.checksums_every_block() {
        block.len() - TAIL
    } else {
        block.len()
    };
    let r_count = be32(block, HEADER) as usize;
    if r_count > room {
        return Err(Error::unsound(format!(
            "journal: a revoke block with r_count {r_count}"
        )));
    }
    let records = block.get(REVOKE_HEADER..r_count).unwrap_or(&[]);
    Ok(if superblock.is_64bit() {
        let records = records.chunks_exact(8);
        records.map(|r| join(be32(r, 0), be32(r, 4))).collect()
    } else {
        let records = records.chunks_exact(4);
        records.map(|r| u64::from(be32(r, 0))).collect()
    })
}
