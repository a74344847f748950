//! The journal's own superblock: the first 1024 bytes of the log's block 0, big-endian.
//!
//! ```text
//! 0x00 h_magic  0x04 h_blocktype (3: v1, 4: v2)  0x0C s_blocksize  0x10 s_maxlen  0x14 s_first
//! 0x18 s_sequence  0x1C s_start (0: nothing to replay)  0x20 s_errno
//! 0x24 s_feature_compat  0x28 _incompat  0x2C _ro_compat  0x30 s_uuid  0x40 s_nr_users
//! 0x50 s_checksum_type  0x54 s_num_fc_blks  0xFC s_checksum
//! ```

use crate::error::{Error, Result};
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::raw::{be32, put_be32};

/// `h_magic` of every block of the log that is not data.
pub const MAGIC: u32 = 0xC03B_3998;
/// Bytes of the superblock.
pub const SIZE: usize = 1024;

const BLOCKTYPE_SUPER_V1: u32 = 3;
const BLOCKTYPE_SUPER_V2: u32 = 4;

const COMPAT_CHECKSUM: u32 = 0x1;
const INCOMPAT_REVOKE: u32 = 0x1;
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const KNOWN_INCOMPAT: u32 = INCOMPAT_REVOKE
    | INCOMPAT_64BIT
    | INCOMPAT_ASYNC_COMMIT
    | INCOMPAT_CSUM_V2
    | INCOMPAT_CSUM_V3
    | INCOMPAT_FAST_COMMIT;

const CHECKSUM_CRC32C: u8 = 4;
const S_CHECKSUM: usize = 0xFC;
/// What `s_num_fc_blks` 0 stands for.
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// How many blocks a journal has to have beside those for fast commits.
const MIN_BESIDE_FAST_COMMITS: u32 = 1024;

/// Which checksums the log carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogChecksums {
    None,
    /// One crc32 of a transaction's descriptors and data in its commit block.
    V1,
    /// crc32c of every block, 16 bits of it in the tags of data blocks.
    V2,
    /// The same with 32 bits.
    V3,
}

/// A journal superblock whose numbers agree with each other and with the journal's inode.
#[derive(Clone, Debug)]
pub struct JournalSuperblock {
    bytes: Vec<u8>,
    version: u32,
}

impl JournalSuperblock {
    /// Checks the first 1024 bytes of a journal of `blocks` blocks of `block_size` bytes.
    ///
    /// # Errors
    /// `Unsound` for a damaged superblock, `Unsupported` for features that are not known.
    pub fn decode(bytes: Vec<u8>, block_size: u64, blocks: u64) -> Result<Self> {
        let bad = |what: String| Err(Error::unsound(format!("journal superblock: {what}")));
        if be32(&bytes, 0) != MAGIC {
            return bad(format!("its magic number is {:#010x}", be32(&bytes, 0)));
        }
        let version = match be32(&bytes, 4) {
            BLOCKTYPE_SUPER_V1 => 1,
            BLOCKTYPE_SUPER_V2 => 2,
            other => return bad(format!("h_blocktype is {other}")),
        };
        let journal = Self { bytes, version };
        let unknown = [
            ("incompat", journal.incompat(!KNOWN_INCOMPAT)),
            ("ro_compat", journal.feature(0x2C, !0)),
        ];
        for (set, bits) in unknown {
            if bits != 0 {
                return Err(Error::unsupported(format!(
                    "journal: {set} features {bits:#x} are not known"
                )));
            }
        }
        let (v2, v3) = (
            journal.incompat(INCOMPAT_CSUM_V2) != 0,
            journal.incompat(INCOMPAT_CSUM_V3) != 0,
        );
        let v1 = journal.feature(0x24, COMPAT_CHECKSUM) != 0;
        if (v1 && (v2 || v3)) || (v2 && v3) {
            return bad("more than one version of checksums".into());
        }
        if journal.checksums_every_block() {
            if journal.bytes[0x50] != CHECKSUM_CRC32C {
                return bad(format!("s_checksum_type is {}", journal.bytes[0x50]));
            }
            if be32(&journal.bytes, S_CHECKSUM) != journal.checksum() {
                return bad("its checksum does not match".into());
            }
        }
        if version == 2 && be32(&journal.bytes, 0x40) > 1 {
            // Only a journal on a device of its own can be shared.
            return bad(format!("s_nr_users is {}", be32(&journal.bytes, 0x40)));
        }
        if u64::from(be32(&journal.bytes, 0x0C)) != block_size {
            return bad(format!("s_blocksize is {}", be32(&journal.bytes, 0x0C)));
        }
        if u64::from(journal.s_maxlen()) > blocks {
            return bad(format!(
                "s_maxlen is {}, but the journal has {blocks} blocks",
                journal.s_maxlen()
            ));
        }
        let fast_commit = journal.fast_commit_blocks();
        let last = journal.s_maxlen().checked_sub(fast_commit);
        // A log that is emptied loses its fast commits, and so becomes long enough.
        let short = fast_commit > 0
            && journal.s_start() == 0
            && last.is_none_or(|last| last < MIN_BESIDE_FAST_COMMITS);
        if journal.s_first() == 0 || short || last.is_none_or(|last| last <= journal.s_first()) {
            return bad(format!(
                "s_first is {} of {} blocks ({fast_commit} of them for fast commits)",
                journal.s_first(),
                journal.s_maxlen()
            ));
        }
        let log = journal.s_first()..journal.last();
        if journal.s_start() != 0 && !log.contains(&journal.s_start()) {
            return bad(format!("s_start is {}", journal.s_start()));
        }
        Ok(journal)
    }

    /// Returns the number of blocks, this one's included.
    pub fn s_maxlen(&self) -> u32 {
        be32(&self.bytes, 0x10)
    }

    /// Returns the first block of the log proper.
    pub fn s_first(&self) -> u32 {
        be32(&self.bytes, 0x14)
    }

    /// Returns the block after the log proper; fast commits lie behind it.
    pub fn last(&self) -> u32 {
        // OK: decode made sure that it is beyond s_first.
        self.s_maxlen() - self.fast_commit_blocks()
    }

    /// Returns the id of the first transaction in the log.
    pub fn s_sequence(&self) -> u32 {
        be32(&self.bytes, 0x18)
    }

    /// Returns the block of the log where that transaction starts; 0 when there is none.
    pub fn s_start(&self) -> u32 {
        be32(&self.bytes, 0x1C)
    }

    pub fn s_errno(&self) -> i32 {
        be32(&self.bytes, 0x20) as i32
    }

    pub fn is_64bit(&self) -> bool {
        self.incompat(INCOMPAT_64BIT) != 0
    }

    /// May a commit block have been written before the blocks it commits?
    pub fn is_async_commit(&self) -> bool {
        self.incompat(INCOMPAT_ASYNC_COMMIT) != 0
    }

    pub fn has_fast_commit(&self) -> bool {
        self.incompat(INCOMPAT_FAST_COMMIT) != 0
    }

    /// Returns how many blocks at the journal's end belong to fast commits.
    pub fn fast_commit_blocks(&self) -> u32 {
        match be32(&self.bytes, 0x54) {
            _ if !self.has_fast_commit() => 0,
            0 => DEFAULT_FAST_COMMIT_BLOCKS,
            blocks => blocks,
        }
    }

    pub fn checksums(&self) -> LogChecksums {
        if self.incompat(INCOMPAT_CSUM_V3) != 0 {
            LogChecksums::V3
        } else if self.incompat(INCOMPAT_CSUM_V2) != 0 {
            LogChecksums::V2
        } else if self.feature(0x24, COMPAT_CHECKSUM) != 0 {
            LogChecksums::V1
        } else {
            LogChecksums::None
        }
    }

    /// Do descriptor, revoke and commit blocks and tags carry a crc32c?
    pub fn checksums_every_block(&self) -> bool {
        matches!(self.checksums(), LogChecksums::V2 | LogChecksums::V3)
    }

    pub fn s_uuid(&self) -> &[u8] {
        &self.bytes[0x30..0x40]
    }

    /// Returns what all checksums but this superblock's start from.
    pub fn seed(&self) -> u32 {
        crc32c(!0, self.s_uuid())
    }

    /// Returns the bytes of this superblock for an empty log, whose next transaction is
    /// `s_sequence`. The fast-commit bit goes, as on a clean unmount: older kernels that do not
    /// know it can then use the journal.
    pub fn emptied(&self, s_sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        put_be32(&mut bytes, 0x18, s_sequence);
        put_be32(&mut bytes, 0x1C, 0);
        if self.has_fast_commit() {
            let incompat = be32(&bytes, 0x28) & !INCOMPAT_FAST_COMMIT;
            put_be32(&mut bytes, 0x28, incompat);
        }
        self.with_checksum(bytes)
    }

    /// Returns the bytes of this superblock for a log that has to be replayed from block `s_start`
    /// on, where transaction `s_sequence` begins; without fast commits.
    pub fn started(&self, s_start: u32, s_sequence: u32) -> Vec<u8> {
        let mut started = self.clone();
        started.bytes = self.emptied(s_sequence);
        put_be32(&mut started.bytes, 0x1C, s_start);
        self.with_checksum(started.bytes)
    }

    fn with_checksum(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.checksums_every_block() {
            let changed = Self {
                bytes,
                version: self.version,
            };
            let checksum = changed.checksum();
            bytes = changed.bytes;
            put_be32(&mut bytes, S_CHECKSUM, checksum);
        }
        bytes
    }

    fn checksum(&self) -> u32 {
        let crc = crc32c(!0, &self.bytes[..S_CHECKSUM]);
        let crc = crc32c(crc, &[0; 4]);
        crc32c(crc, &self.bytes[S_CHECKSUM + 4..])
    }

    fn incompat(&self, bits: u32) -> u32 {
        self.feature(0x28, bits)
    }

    /// Version 1 has no features, whatever lies in the fields.
    fn feature(&self, at: usize, bits: u32) -> u32 {
        if self.version == 1 {
            0
        } else {
            be32(&self.bytes, at) & bits
        }
    }
}
