//! Extended attributes: entries at the end of an inode's slot, and in one block that several
//! inodes may share.
//!
//! ```text
//! slot   128 + i_extra_isize: magic (4) | entries … 00000000 | … values, packed to the end
//! block  h_magic h_refcount h_blocks h_hash h_checksum, 12 spare | entries … 00000000 | … values
//! entry  e_name_len (1) e_name_index (1) e_value_offs (2) e_value_inum (4) e_value_size (4)
//!        e_hash (4) name, padded to 4
//! ```
//! `e_value_offs` counts from the first entry in a slot, from the block's start in a block.
//! Specification: the kernel's Documentation/filesystems/ext4/attributes.rst.

use std::ops::Range;

use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::Inode;
use crate::ext4::format::raw::{le16, le32, put32};
use crate::units::{BlockNr, InodeNr};

/// `h_magic`, of blocks and of the area in the slot.
pub const XATTR_MAGIC: u32 = 0xEA02_0000;
/// `e_name_index` of names that begin with "system.".
pub const INDEX_SYSTEM: u8 = 7;
/// Bytes of a block's header.
const HEADER: usize = 32;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Bytes of the fields that every inode slot has.
const GOOD_OLD_INODE_SIZE: usize = 128;

/// Where the attributes lie within a slot or a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// From the first entry to the end of the slot or block.
    pub entries: Range<usize>,
    /// What `e_value_offs` counts from.
    pub base: usize,
}

/// What is wrong with attributes, in the words of the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadXattr(pub &'static str);

/// Where a value lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Within the same slot or block, at these bytes of it.
    Here(Range<usize>),
    /// In an inode of its own (ea_inode).
    Inode { number: InodeNr, size: u32 },
}

/// One attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr<'a> {
    /// Offset of the entry within the slot or block.
    pub offset: usize,
    pub name_index: u8,
    /// The name without the prefix that `name_index` stands for.
    pub name: &'a [u8],
    pub value: Value,
    pub e_hash: u32,
}

impl Xattr<'_> {
    /// Returns the bytes that entry and name take.
    pub fn entry_range(&self) -> Range<usize> {
        self.offset..self.offset + padded(ENTRY + self.name.len())
    }
}

/// Returns where a slot's own attributes lie, if it has any.
pub fn in_slot<T: AsRef<[u8]>>(inode: &Inode<T>) -> Option<Area> {
    let slot = inode.bytes();
    let extra = usize::from(inode.extra_isize());
    let magic = GOOD_OLD_INODE_SIZE + extra;
    if magic + 4 >= slot.len() || !extra.is_multiple_of(4) {
        return None;
    }
    (le32(slot, magic) == XATTR_MAGIC).then_some(Area {
        entries: magic + 4..slot.len(),
        base: magic + 4,
    })
}

/// Returns where a block's attributes lie.
///
/// # Errors
/// If the block's header is not one.
pub fn in_block(block: &[u8]) -> Result<Area, BadXattr> {
    if block.len() < HEADER || h_magic(block) != XATTR_MAGIC {
        return Err(BadXattr("the block's magic is wrong"));
    }
    if le32(block, 8) != 1 {
        return Err(BadXattr("the block's h_blocks is not 1"));
    }
    Ok(Area {
        entries: HEADER..block.len(),
        base: 0,
    })
}

/// Returns `h_magic`.
pub fn h_magic(block: &[u8]) -> u32 {
    le32(block, 0)
}

/// Returns `h_refcount`: how many inodes share the block.
pub fn h_refcount(block: &[u8]) -> u32 {
    le32(block, 4)
}

/// Stores `h_refcount`.
pub fn set_h_refcount(block: &mut [u8], count: u32) {
    put32(block, 4, count);
}

/// Does the block's checksum match for its place (always true without `metadata_csum`)?
pub fn checksum_matches(fs: &Super, number: BlockNr, block: &[u8]) -> bool {
    !fs.checksums.enabled() || le32(block, 16) == fs.checksums.xattr_block(number, block)
}

/// Stores the checksum of a block that lies, or will lie, at `number`.
pub fn update_checksum(fs: &Super, number: BlockNr, block: &mut [u8]) {
    if fs.checksums.enabled() {
        let checksum = fs.checksums.xattr_block(number, block);
        put32(block, 16, checksum);
    }
}

impl Area {
    /// Lists the attributes; ends after the first that cannot be.
    pub fn iter<'a>(
        &self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = Result<Xattr<'a>, BadXattr>> + use<'a> {
        let Area { entries, base } = self.clone();
        let mut at = Some(entries.start);
        std::iter::from_fn(move || {
            let offset = at.take()?;
            let found = decode(bytes, offset, entries.end, base)?;
            if let Ok(xattr) = &found {
                at = Some(xattr.entry_range().end);
            }
            Some(found)
        })
    }

    /// Returns the offset behind the last entry: where the four zero bytes are.
    pub fn entries_end(&self, bytes: &[u8]) -> Result<usize, BadXattr> {
        let mut end = self.entries.start;
        for xattr in self.iter(bytes) {
            end = xattr?.entry_range().end;
        }
        Ok(end)
    }

    /// Returns the value of an attribute if it lies here.
    pub fn find(&self, bytes: &[u8], name_index: u8, name: &[u8]) -> Option<Range<usize>> {
        self.iter(bytes)
            .map_while(Result::ok)
            .find(|xattr| xattr.name_index == name_index && xattr.name == name)
            .and_then(|xattr| match xattr.value {
                Value::Here(range) => Some(range),
                Value::Inode { .. } => None,
            })
    }

    /// Gives the inodes that hold values their new numbers; returns whether any changed. A block's
    /// checksum is not updated.
    pub fn relocate_value_inodes(
        &self,
        bytes: &mut [u8],
        new_number: &dyn Fn(InodeNr) -> InodeNr,
    ) -> bool {
        let references: Vec<(usize, InodeNr)> = self
            .iter(bytes)
            .map_while(Result::ok)
            .filter_map(|xattr| match xattr.value {
                Value::Inode { number, .. } => Some((xattr.offset + 4, number)),
                Value::Here(_) => None,
            })
            .collect();
        let mut changed = false;
        for (at, old) in references {
            let new = new_number(old);
            if new != old {
                put32(bytes, at, new.0);
                changed = true;
            }
        }
        changed
    }
}

/// Decodes the entry at `offset`; `None` at the end of the list.
fn decode(
    bytes: &[u8],
    offset: usize,
    end: usize,
    base: usize,
) -> Option<Result<Xattr<'_>, BadXattr>> {
    if offset + 4 > end {
        return Some(Err(BadXattr("the list of attributes has no end")));
    }
    if le32(bytes, offset) == 0 {
        return None;
    }
    if offset + ENTRY > end {
        return Some(Err(BadXattr("an attribute's entry goes past the end")));
    }
    let name_len = usize::from(bytes[offset]);
    if offset + padded(ENTRY + name_len) > end {
        return Some(Err(BadXattr("an attribute's name goes past the end")));
    }
    let size = le32(bytes, offset + 8);
    let number = le32(bytes, offset + 4);
    let value = if number != 0 {
        Value::Inode {
            number: InodeNr(number),
            size,
        }
    } else if size == 0 {
        Value::Here(offset..offset)
    } else {
        let start = base + usize::from(le16(bytes, offset + 2));
        match start.checked_add(size as usize) {
            Some(stop) if stop <= end => Value::Here(start..stop),
            _ => return Some(Err(BadXattr("an attribute's value goes past the end"))),
        }
    };
    Some(Ok(Xattr {
        offset,
        name_index: bytes[offset + 1],
        name: &bytes[offset + ENTRY..offset + ENTRY + name_len],
        value,
        e_hash: le32(bytes, offset + 12),
    }))
}

/// Rounds up to a multiple of 4: entries and values are padded.
pub fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Computes what `e_hash` should be: over the name, then the value's words (a value in an inode of
/// its own counts as one word, the hash that inode stores). Old kernels took the name's bytes as
/// signed numbers on some machines, hence the two answers.
pub fn entry_hashes(name: &[u8], value_words: impl Iterator<Item = u32> + Clone) -> [u32; 2] {
    [false, true].map(|signed| {
        let hash = name.iter().fold(0u32, |hash, &byte| {
            let byte = if signed {
                i32::from(byte as i8) as u32
            } else {
                u32::from(byte)
            };
            hash.rotate_left(5) ^ byte
        });
        value_words
            .clone()
            .fold(hash, |hash, word| hash.rotate_left(16) ^ word)
    })
}

/// Splits a value into the words that [`entry_hashes`] takes; the padding within `bytes` counts,
/// what lies past their end counts as zeros.
pub fn value_words(bytes: &[u8], value: Range<usize>) -> impl Iterator<Item = u32> + Clone + '_ {
    (value.start..value.end).step_by(4).map(move |at| {
        let mut word = [0; 4];
        let stop = (at + 4).min(bytes.len());
        word[..stop - at].copy_from_slice(&bytes[at..stop]);
        u32::from_le_bytes(word)
    })
}

/// Returns how many attributes refer to an inode that holds a value: kept in `i_ctime` and
/// `i_version`.
pub fn ea_inode_refcount<T: AsRef<[u8]>>(inode: &Inode<T>) -> u64 {
    crate::ext4::format::raw::join(inode.i_ctime(), inode.i_version())
}

/// Returns the hash of the value that an ea_inode holds: kept in `i_atime`.
pub fn ea_inode_hash<T: AsRef<[u8]>>(inode: &Inode<T>) -> u32 {
    inode.i_atime()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name_index: u8, name: &[u8], offs: u16, inum: u32, size: u32) -> Vec<u8> {
        let mut bytes = vec![name.len() as u8, name_index];
        bytes.extend(offs.to_le_bytes());
        bytes.extend(inum.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name);
        bytes.resize(padded(bytes.len()), 0);
        bytes
    }

    fn block(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut block = Vec::from(XATTR_MAGIC.to_le_bytes());
        block.extend([1, 0, 0, 0, 1, 0, 0, 0]);
        block.resize(HEADER, 0);
        for entry in entries {
            block.extend(entry);
        }
        block.resize(1024, 0);
        block
    }

    #[test]
    fn lists_and_relocates() {
        let mut bytes = block(&[
            entry(1, b"mime", 1000, 0, 5),
            entry(7, b"data", 1008, 77, 9000),
        ]);
        let area = in_block(&bytes).unwrap();
        let values: Vec<_> = area.iter(&bytes).map(|x| x.unwrap().value).collect();
        let large = Value::Inode {
            number: InodeNr(77),
            size: 9000,
        };
        assert_eq!(values, [Value::Here(1000..1005), large]);
        assert_eq!(area.entries_end(&bytes), Ok(HEADER + 40));
        assert_eq!(area.find(&bytes, 1, b"mime"), Some(1000..1005));
        assert_eq!(area.find(&bytes, 7, b"data"), None);
        assert!(!area.relocate_value_inodes(&mut bytes, &|old| old));
        assert!(area.relocate_value_inodes(&mut bytes, &|old| InodeNr(old.0 - 60)));
        assert_eq!(le32(&bytes, HEADER + 20 + 4), 17);
    }

    #[test]
    fn refuses_what_goes_past_the_end() {
        for (bad, text) in [
            (entry(1, b"a", 1020, 0, 5), "value"),
            (entry(1, b"a", 0, 0, u32::MAX), "value"),
        ] {
            let bytes = block(&[bad]);
            let found: Vec<_> = in_block(&bytes).unwrap().iter(&bytes).collect();
            assert_eq!(found.len(), 1);
            assert!(found[0].as_ref().unwrap_err().0.contains(text));
        }
        // 1024 bytes of entries without an end, and one whose name does not fit any more.
        let full = block(&vec![entry(1, b"abcd", 0, 0, 0); 49]);
        let mut full: Vec<u8> = full[..1024].to_vec();
        full[1012] = 1;
        let found: Vec<_> = in_block(&full).unwrap().iter(&full).collect();
        assert!(found.last().unwrap().is_err());
    }

    #[test]
    fn hashes_name_then_value() {
        assert_eq!(
            entry_hashes(b"k", value_words(b"v\0\0\0", 0..1)),
            [0x6B_0076, 0x6B_0076]
        );
        let [unsigned, signed] = entry_hashes(&[0xC3], std::iter::empty());
        assert_eq!((unsigned, signed), (0xC3, 0xFFFF_FFC3));
    }
}
