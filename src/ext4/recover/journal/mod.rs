//! Replay of the jbd2 journal, in memory: what the kernel would write at the next mount, as an
//! [`Overlay`].
//!
//! Specification: the kernel's Documentation/filesystems/ext4/journal.rst.
//!
//! Decisions
//! - A replayed block refers to its copy in the log, it is not held in memory: a journal of 1 GiB
//!   costs a few megabytes.
//! - Block numbers are held against the device, not against the superblock on disk: that one is
//!   older than the journal, and a card pulled during its first boot may have grown in between.
//! - Fast commits are replayed here as well, as the kernel does: whoever reads the filesystem after
//!   its journal has all of it.
//! - Damage is refused where the kernel refuses to mount. A log that just ends is not damage.

pub mod commit;
mod crc32_be;
mod log;
mod scan;
mod superblock;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use self::log::Log;
use self::scan::{Scan, Tag, revoked_blocks, scan};
use self::superblock::{LogChecksums, MAGIC};
use crate::error::{Error, Result};
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER, MAGIC as EXT_MAGIC, RO_COMPAT_METADATA_CSUM,
    STATE_ERRORS, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock,
};
use crate::ext4::recover::fast_commit;
use crate::ext4::recover::tags::{FastCommits, Scanner};
use crate::io::{Overlay, RangeSet, ReadAt};
use crate::units::BlockNr;

/// Returns the blocks of the filesystem that belong to its journal.
///
/// # Errors
/// As for a replay.
pub fn places(fs: &Super, device: &dyn ReadAt) -> Result<RangeSet> {
    Ok(Log::open(fs, device)?.places().clone())
}

/// What to do about a journal that this program cannot replay.
pub const HINT: &str = "mount the card once under Linux, or run e2fsck";

/// The superblock's record of errors, from `s_error_count` up to `s_mount_opts`: it is written
/// past the journal, so the copy on disk is the newer one.
const ERROR_RECORD: std::ops::Range<usize> = 0x194..0x200;

/// The outcome of a replay.
#[derive(Debug)]
pub struct Replay {
    /// The filesystem after recovery: replayed blocks, an empty journal, and a superblock without
    /// `needs_recovery`. It lies on the device; its length is the device's.
    pub overlay: Overlay,
    /// Was `needs_recovery` set?
    pub needed: bool,
    /// Committed transactions in the log.
    pub transactions: u32,
    /// Blocks that got another content.
    pub blocks: u64,
    /// Fast commits behind the last transaction.
    pub fast_commits: u32,
    /// What the quota files have to learn from those.
    pub quota_deltas: Vec<QuotaDelta>,
}

/// Replays the journal of the filesystem on `device`. Afterwards everything, the superblock first,
/// has to be read again through the overlay.
///
/// # Errors
/// `Unsound` for a damaged journal or one that records an error of the filesystem; `Unsupported`
/// for a journal that is elsewhere or has unknown features; what the device fails with.
pub fn replay(fs: &Super, device: &dyn ReadAt) -> Result<Replay> {
    let (mut replay, commits) = replay_log(fs, device)?;
    if commits.count > 0 {
        let view = replay.overlay.over(device);
        // What the log just wrote may be another superblock.
        let fs = Super::read(&view)?.ok_or_else(|| Error::unsound("ext4: no superblock"))?;
        let replayed = fast_commit::replay(&fs, &view, &commits)?;
        replay.fast_commits = commits.count;
        replay.quota_deltas = replayed.quota_deltas;
        replay.overlay = replay.overlay.then(&replayed.overlay);
    }
    Ok(replay)
}

/// Replays the transactions in the log, but not the fast commits behind them.
fn replay_log(fs: &Super, device: &dyn ReadAt) -> Result<(Replay, FastCommits)> {
    let mut replay = Replay {
        overlay: Overlay::new(device.len()),
        needed: fs.superblock.has_incompat(INCOMPAT_RECOVER),
        transactions: 0,
        blocks: 0,
        fast_commits: 0,
        quota_deltas: Vec::new(),
    };
    let mut commits = FastCommits::default();
    let has_inode = fs.superblock.s_journal_inum() != 0;
    match (fs.superblock.has_compat(COMPAT_HAS_JOURNAL), has_inode) {
        (true, true) => commits = empty_journal(fs, device, &mut replay)?,
        (true, false) if replay.needed => {
            return Err(Error::unsupported(
                "ext4: the journal that has to be replayed is on another device",
            )
            .with_hint(HINT));
        }
        (false, true) if replay.needed => {
            return Err(Error::unsound(
                "ext4 superblock: needs_recovery and a journal inode, but not has_journal",
            ));
        }
        _ => {}
    }
    if replay.needed {
        let superblock = recovered_superblock(fs, &replay.overlay, device)?;
        replay.overlay.set_bytes(SUPERBLOCK_OFFSET, superblock);
    }
    Ok((replay, commits))
}

/// Replays the log if the filesystem asks for it, and leaves it empty; returns the fast commits
/// that continue it.
fn empty_journal(fs: &Super, device: &dyn ReadAt, replay: &mut Replay) -> Result<FastCommits> {
    let mut commits = FastCommits::default();
    let mut log = Log::open(fs, device)?;
    if log.superblock.s_errno() != 0 {
        return Err(Error::unsound(format!(
            "journal: the kernel recorded error {} of the filesystem in it",
            log.superblock.s_errno()
        )));
    }
    if log.superblock.s_start() == 0 {
        return Ok(commits);
    }
    let end = match scan(&mut log) {
        Ok(scan) => {
            if replay.needed {
                replay.transactions = scan.transactions;
                replay.blocks = replay_blocks(&mut log, &scan, &mut replay.overlay)?;
                if log.superblock.has_fast_commit() {
                    commits = fast_commits(fs, &mut log, scan.end)?;
                }
            }
            scan.end
        }
        // Without needs_recovery the kernel throws the log away, whatever it holds.
        Err(_) if !replay.needed => log.superblock.s_sequence(),
        Err(error) => return Err(error),
    };
    let emptied = log.superblock.emptied(end.wrapping_add(1));
    let offset = fs.geometry.offset(log.place(0)?);
    replay.overlay.set_bytes(offset, emptied);
    Ok(commits)
}

/// Puts the newest copy of each block that was not revoked into `overlay`; returns their number.
fn replay_blocks(log: &mut Log<'_>, scan: &Scan, overlay: &mut Overlay) -> Result<u64> {
    let revoked = revocations(log, scan)?;
    let block_size = log.block_size();
    let device_blocks = overlay.len() / block_size;
    let mut newest: BTreeMap<BlockNr, Tag> = BTreeMap::new();
    for tag in &scan.tags {
        let by = revoked.get(&tag.target).copied().flatten();
        if by.is_some_and(|by| !is_after(tag.tid, by)) {
            continue;
        }
        if tag.target >= device_blocks || log.contains(tag.target) {
            return Err(Error::unsound(format!(
                "journal: transaction {} writes to block {}, which cannot be",
                tag.tid, tag.target
            )));
        }
        if !tag_checksum_matches(log, tag)? {
            return Err(Error::unsound(format!(
                "journal: block {} in transaction {} has a bad checksum",
                tag.target, tag.tid
            )));
        }
        newest.insert(tag.target, *tag);
    }
    for tag in newest.values() {
        let from = log.place(tag.at)? * block_size;
        let to = tag.target * block_size;
        overlay.set_base(to, block_size, from);
        if tag.escaped {
            overlay.set_bytes(to, MAGIC.to_be_bytes());
        }
    }
    Ok(newest.len() as u64)
}

/// Returns the last transaction that revoked each block, for the blocks that have a tag at all:
/// so the revoke blocks of a hostile log, however many, take no memory.
fn revocations(log: &mut Log<'_>, scan: &Scan) -> Result<HashMap<BlockNr, Option<u32>>> {
    let mut revoked: HashMap<BlockNr, Option<u32>> =
        scan.tags.iter().map(|tag| (tag.target, None)).collect();
    let superblock = log.superblock.clone();
    for &(at, tid) in &scan.revokes {
        for block in revoked_blocks(&superblock, log.read(at)?)? {
            if let Some(by) = revoked.get_mut(&block) {
                // Revoke blocks come in the order of their transactions.
                *by = Some(tid);
            }
        }
    }
    Ok(revoked)
}

/// Reads the fast commits of the transaction that would come next.
fn fast_commits(fs: &Super, log: &mut Log<'_>, tid: u32) -> Result<FastCommits> {
    let (block_size, inode_size) = (fs.geometry.block_size, fs.geometry.inode_size);
    let mut scanner = Scanner::new(tid, block_size as usize, inode_size as usize);
    // The kernel leaves one block between the log and them.
    for at in log.superblock.last() + 1..log.superblock.s_maxlen() {
        if !scanner.take(log.read(at)?)? {
            break;
        }
    }
    Ok(scanner.finish())
}

/// Is transaction `a` later than `b`? Ids wrap around.
fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

fn tag_checksum_matches(log: &mut Log<'_>, tag: &Tag) -> Result<bool> {
    let version = log.superblock.checksums();
    if !log.superblock.checksums_every_block() {
        return Ok(true);
    }
    let seed = crc32c(log.superblock.seed(), &tag.tid.to_be_bytes());
    let crc = crc32c(seed, log.read(tag.at)?);
    Ok(match version {
        LogChecksums::V2 => tag.checksum == crc & 0xFFFF,
        _ => tag.checksum == crc,
    })
}

/// Returns the superblock after the replay, without `needs_recovery`.
fn recovered_superblock(fs: &Super, overlay: &Overlay, device: &dyn ReadAt) -> Result<Vec<u8>> {
    let mut bytes = overlay
        .over(device)
        .read_vec_at(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE)?;
    let replayed = Superblock::new(bytes.as_slice());
    let has_checksum = replayed.has_ro_compat(RO_COMPAT_METADATA_CSUM);
    if replayed.s_magic() != EXT_MAGIC
        || (has_checksum && replayed.s_checksum() != replayed.checksum())
    {
        return Err(Error::unsound(
            "journal: the superblock in it is damaged or none at all",
        ));
    }
    bytes[ERROR_RECORD].copy_from_slice(&fs.superblock.bytes()[ERROR_RECORD]);
    let mut superblock = Superblock::new(bytes);
    let errors = fs.superblock.s_state() & STATE_ERRORS;
    superblock.set_s_state(superblock.s_state() | errors);
    superblock.clear_incompat(INCOMPAT_RECOVER);
    superblock.update_checksum();
    Ok(superblock.bytes().to_vec())
}
