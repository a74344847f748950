//! The fast commits as they lie on disk: blocks of tags, little-endian unlike the rest of the log.
//!
//! ```text
//! tag        fc_tag (2) fc_len (2), then fc_len bytes; none goes past the end of its block
//! ADD_RANGE  fc_ino, an extent as in an extent tree (12)
//! DEL_RANGE  fc_ino, fc_lblk, fc_len
//! CREAT LINK UNLINK  fc_parent_ino, fc_ino, the name
//! INODE      fc_ino, the inode's first bytes, up to the end of its fields
//! PAD        what is left of a block
//! TAIL       fc_tid, fc_crc: ends one fast commit and its block
//! HEAD       fc_features, fc_tid: the very first tag
//! ```
//! The checksum is a crc32c from zero over all tags since the TAIL before, up to `fc_crc`.

use crate::error::{Error, Result};
use crate::ext4::edit::editor::Entry;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::extent::{EXTENT_ENTRY, Extent, MAX_WRITTEN};
use crate::ext4::format::raw::{join, le16, le32};
use crate::units::InodeNr;

pub(super) const ADD_RANGE: u16 = 1;
pub(super) const DEL_RANGE: u16 = 2;
pub(super) const CREAT: u16 = 3;
pub(super) const LINK: u16 = 4;
pub(super) const UNLINK: u16 = 5;
pub(super) const INODE: u16 = 6;
pub(super) const PAD: u16 = 7;
pub(super) const TAIL: u16 = 8;
pub(super) const HEAD: u16 = 9;

/// Bytes of a tag before its value.
const BASE: usize = 4;
/// Bytes of an entry's value before its name.
const ENTRY: usize = 8;
const NAME_MAX: usize = 255;
/// The part of an inode that every inode has.
const INODE_MIN: usize = 128;
/// Fast commits that are held in memory; the kernel reserves one mebibyte of a journal for them.
const MAX_BYTES: usize = 16 << 20;

/// The complete fast commits behind one transaction.
#[derive(Clone, Debug, Default)]
pub struct FastCommits {
    block_size: usize,
    bytes: Vec<u8>,
    /// How many there are.
    pub count: u32,
}

impl FastCommits {
    /// Lists what they say, in order.
    pub fn tags(&self) -> impl Iterator<Item = Tag<'_>> {
        self.bytes
            .chunks(self.block_size.max(1))
            .flat_map(raw_tags)
            .filter_map(|(tag, value)| Tag::decode(tag, value))
    }
}

/// One change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag<'a> {
    /// These blocks of the file lie there, whatever was there before.
    AddRange {
        inode: InodeNr,
        extent: Extent,
    },
    /// `len` blocks of the file from `logical` on are a hole.
    DelRange {
        inode: InodeNr,
        logical: u32,
        len: u32,
    },
    /// A new inode, told by the INODE before, gets its first name.
    Create(Entry<'a>),
    Link(Entry<'a>),
    Unlink(Entry<'a>),
    /// The fields of an inode; its map comes from ranges.
    Inode {
        inode: InodeNr,
        bytes: &'a [u8],
    },
}

impl<'a> Tag<'a> {
    /// Decodes a tag whose length was found valid; `None` for those that change nothing.
    fn decode(tag: u16, value: &'a [u8]) -> Option<Self> {
        if !(ADD_RANGE..=INODE).contains(&tag) {
            return None;
        }
        // OK: all of these hold more than their first field.
        let inode = InodeNr(le32(value, 0));
        let entry = || Entry {
            parent: inode,
            inode: InodeNr(le32(value, 4)),
            name: &value[ENTRY..],
        };
        Some(match tag {
            ADD_RANGE => {
                let raw_len = u32::from(le16(value, 8));
                let start = join(u32::from(le16(value, 10)), le32(value, 12));
                let (len, unwritten) = match raw_len {
                    0..=MAX_WRITTEN => (raw_len, false),
                    _ => (raw_len - MAX_WRITTEN, true),
                };
                Tag::AddRange {
                    inode,
                    extent: Extent::new(le32(value, 4), start, len, unwritten),
                }
            }
            DEL_RANGE => Tag::DelRange {
                inode,
                logical: le32(value, 4),
                len: le32(value, 8),
            },
            CREAT => Tag::Create(entry()),
            LINK => Tag::Link(entry()),
            UNLINK => Tag::Unlink(entry()),
            _ => Tag::Inode {
                inode,
                bytes: &value[4..],
            },
        })
    }
}

/// Walks the tags of a block as (`fc_tag`, value), up to one that goes past its end.
fn raw_tags(block: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.len() < BASE {
            return None;
        }
        let len = usize::from(le16(rest, 2));
        let tag = le16(rest, 0);
        let value = rest.get(BASE..BASE + len)?;
        rest = &rest[BASE + len..];
        Some((tag, value))
    })
}

fn is_len_valid(tag: u16, len: usize, inode_size: usize) -> bool {
    match tag {
        ADD_RANGE => len == 4 + EXTENT_ENTRY,
        DEL_RANGE => len == 12,
        CREAT | LINK | UNLINK => (ENTRY + 1..=ENTRY + NAME_MAX).contains(&len),
        INODE => (4 + INODE_MIN..=4 + inode_size).contains(&len),
        PAD => true,
        TAIL => len >= 8,
        HEAD => len == 8,
        _ => false,
    }
}

/// Takes the blocks of the area one by one and keeps what is committed.
#[derive(Debug)]
pub struct Scanner {
    commits: FastCommits,
    /// The transaction that they continue.
    tid: u32,
    inode_size: usize,
    crc: u32,
    /// Bytes up to the end of the last TAIL.
    committed: usize,
}

impl Scanner {
    /// Looks for fast commits of transaction `tid`.
    pub fn new(tid: u32, block_size: usize, inode_size: usize) -> Self {
        Self {
            commits: FastCommits {
                block_size,
                ..FastCommits::default()
            },
            tid,
            inode_size,
            crc: 0,
            committed: 0,
        }
    }

    /// Takes the next block; returns false where the fast commits end.
    ///
    /// # Errors
    /// `Unsound` where the kernel would refuse to mount: the first fast commit has no valid end.
    /// `Unsupported` for unknown features, and for more than is held in memory.
    pub fn take(&mut self, block: &[u8]) -> Result<bool> {
        let start = self.commits.bytes.len();
        if start == 0 && le16(block, 0) != HEAD {
            return Ok(false);
        }
        if start + block.len() > MAX_BYTES {
            return Err(Error::unsupported(format!(
                "journal: more than {MAX_BYTES} bytes of fast commits"
            )));
        }
        self.commits.bytes.extend_from_slice(block);
        let mut at = 0;
        while at + BASE <= block.len() {
            let (tag, len) = (le16(block, at), usize::from(le16(block, at + 2)));
            let value = at + BASE;
            let end = value + len;
            if end > block.len() || !is_len_valid(tag, len, self.inode_size) {
                return self.end("a tag of it cannot be");
            }
            match tag {
                HEAD if le32(block, value) != 0 => {
                    return Err(Error::unsupported(format!(
                        "journal: features {:#x} of fast commits are not known",
                        le32(block, value)
                    )));
                }
                HEAD if le32(block, value + 4) != self.tid => return Ok(false),
                TAIL => {
                    let crc = crc32c(self.crc, &block[at..value + 4]);
                    if le32(block, value) != self.tid || le32(block, value + 4) != crc {
                        return self.end("its checksum does not match");
                    }
                    self.crc = 0;
                    self.commits.count += 1;
                    self.committed = start + end;
                }
                _ => self.crc = crc32c(self.crc, &block[at..end]),
            }
            at = end;
        }
        Ok(true)
    }

    /// Returns what is committed.
    pub fn finish(mut self) -> FastCommits {
        self.commits.bytes.truncate(self.committed);
        self.commits
    }

    /// The last fast commit may be cut off; if it is the first as well, the kernel calls it damage.
    fn end(&self, what: &str) -> Result<bool> {
        if self.commits.count > 0 {
            return Ok(false);
        }
        Err(Error::unsound(format!(
            "journal: the first fast commit is damaged: {what}"
        )))
    }
}
