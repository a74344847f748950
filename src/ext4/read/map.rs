//! From logical to physical blocks: extent trees and indirect blocks.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/ifork.rst. Reading claims every
//! block it meets through a callback; a block that is claimed twice ends the walk, which also
//! bounds it: no tree, however it is knotted, is walked longer than the filesystem has blocks.

use std::fmt::Display;
use std::ops::Range;

use crate::error::Error;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::extent::{
    BlockMap, DIRECT, EXTENT_ENTRY, EXTENT_MAGIC, Extent, MAX_WRITTEN, Node, UNWRITTEN,
};
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{EXTENTS_FL, Inode};
use crate::ext4::format::raw::{join, le16, le32};
use crate::ext4::read::claim::{ELSEWHERE, Piece, Taken};
use crate::io::{RangeSet, ReadAt};
use crate::units::{BlockNr, InodeNr};

/// The kernel's limit on the depth of an extent tree.
const MAX_DEPTH: u16 = 5;

/// Extents, and nodes, of one file that is read alone: its map is a few MiB at the most, while a
/// hostile one could fill the memory.
const MAX_PIECES: usize = 4 << 20;

/// Why a map cannot be read.
#[derive(Debug)]
pub enum MapError {
    /// The device failed.
    Device(Error),
    /// The structure is damaged; the text says how.
    Broken(String),
}

impl MapError {
    /// Says whose map it is: "ext4: `whose`: what is broken".
    pub fn of(self, whose: impl Display) -> Error {
        match self {
            MapError::Device(error) => error,
            MapError::Broken(text) => Error::unsound(format!("ext4: {whose}: {text}")),
        }
    }
}

impl From<Error> for MapError {
    fn from(error: Error) -> Self {
        MapError::Device(error)
    }
}

/// Claims a run of blocks for the inode being read, unless any of them is taken.
pub type Claim<'a> = &'a mut dyn FnMut(Range<BlockNr>, Piece) -> Result<(), Taken>;

/// Reads the block map of an inode whose `i_block` holds one.
///
/// # Errors
/// `Broken` for a bad magic, count, depth, order, range, checksum or a block claimed twice;
/// `Device` also for a file in more pieces than are held in memory.
pub fn read_map<T: AsRef<[u8]>>(
    fs: &Super,
    device: &dyn ReadAt,
    number: InodeNr,
    inode: &Inode<T>,
    claim: Claim<'_>,
) -> Result<BlockMap, MapError> {
    let mut map = BlockMap::default();
    add_map(fs, device, number, inode, claim, &mut map, MAX_PIECES)?;
    Ok(map)
}

/// Reads the block map of an inode as [`read_map`] does, and adds it to `map`, which may grow to
/// `most` extents and as many nodes. What an error leaves behind there means nothing.
///
/// # Errors
/// As [`read_map`].
pub fn add_map<T: AsRef<[u8]>>(
    fs: &Super,
    device: &dyn ReadAt,
    number: InodeNr,
    inode: &Inode<T>,
    claim: Claim<'_>,
    map: &mut BlockMap,
    most: usize,
) -> Result<(), MapError> {
    let mut reader = Reader {
        fs,
        device,
        seed: fs.checksums.inode_seed(number, inode.i_generation()),
        claim,
        first: map.extents.len(),
        map,
        most,
    };
    if inode.has_flag(EXTENTS_FL) {
        let root = inode.i_block();
        let depth = le16(root, 6);
        if depth > MAX_DEPTH {
            return Err(MapError::Broken(format!("extent tree of depth {depth}")));
        }
        reader.extent_node(root, depth, 0..1 << 32, true)?;
    } else {
        reader.pointers(inode.i_block())?;
    }
    Ok(())
}

/// Reads the block map of one inode alone, whatever the others own.
///
/// # Errors
/// As [`read_map`].
pub fn read_map_alone<T: AsRef<[u8]>>(
    fs: &Super,
    device: &dyn ReadAt,
    number: InodeNr,
    inode: &Inode<T>,
) -> Result<BlockMap, MapError> {
    let mut taken = RangeSet::new();
    let mut claim = |blocks: Range<BlockNr>, _| {
        if taken.intersects(blocks.clone()) {
            return Err(ELSEWHERE);
        }
        taken.insert(blocks);
        Ok(())
    };
    read_map(fs, device, number, inode, &mut claim)
}

struct Reader<'a> {
    fs: &'a Super,
    device: &'a dyn ReadAt,
    seed: u32,
    claim: Claim<'a>,
    map: &'a mut BlockMap,
    /// Where the file's own extents begin in `map`.
    first: usize,
    most: usize,
}

fn broken<T>(text: String) -> Result<T, MapError> {
    Err(MapError::Broken(text))
}

impl Reader<'_> {
    fn claim(&mut self, block: BlockNr, count: u64, piece: Piece) -> Result<(), MapError> {
        let geometry = &self.fs.geometry;
        let end = block.checked_add(count);
        if block <= geometry.first_data_block || end.is_none_or(|end| end > geometry.blocks_count) {
            return broken(format!(
                "block {block} (and {count} in all) outside the filesystem"
            ));
        }
        (self.claim)(block..block + count, piece).or_else(|Taken(text)| {
            broken(format!("block {block} (or one of {count} from it) {text}"))
        })
    }

    fn read_node(&mut self, block: BlockNr) -> Result<Vec<u8>, MapError> {
        self.claim(block, 1, Piece::Node)?;
        let geometry = &self.fs.geometry;
        let len = geometry.block_size as usize;
        Ok(self.device.read_vec_at(geometry.offset(block), len)?)
    }

    fn push_extent(&mut self, extent: Extent) -> Result<(), MapError> {
        self.check_room(self.map.extents.len())?;
        self.map.extents.push(extent);
        Ok(())
    }

    fn push_node(&mut self, node: Node) -> Result<(), MapError> {
        self.check_room(self.map.nodes.len())?;
        self.map.nodes.push(node);
        Ok(())
    }

    fn check_room(&self, count: usize) -> Result<(), MapError> {
        if count < self.most {
            return Ok(());
        }
        let text = format!("ext4: the files are in more than {} pieces", self.most);
        Err(MapError::Device(Error::unsupported(text)))
    }

    /// Walks a node that may cover the logical blocks `within`.
    fn extent_node(
        &mut self,
        node: &[u8],
        depth: u16,
        within: Range<u64>,
        is_root: bool,
    ) -> Result<(), MapError> {
        if le16(node, 0) != EXTENT_MAGIC {
            return broken(format!("extent header magic {:#06x}", le16(node, 0)));
        }
        let (entries, max) = (usize::from(le16(node, 2)), usize::from(le16(node, 4)));
        let fits = node.len() / EXTENT_ENTRY - 1;
        if entries > max || max > fits || max + 2 < fits || le16(node, 6) != depth {
            return broken(format!(
                "extent header with {entries} of {max} entries at depth {}",
                le16(node, 6)
            ));
        }
        if entries == 0 && !(is_root && depth == 0) {
            return broken("extent node without entries".into());
        }
        if !is_root && self.fs.checksums.enabled() {
            let tail = EXTENT_ENTRY * (max + 1);
            let matches =
                node.len() >= tail + 4 && le32(node, tail) == crc32c(self.seed, &node[..tail]);
            if !matches {
                return broken("extent node with a bad checksum".into());
            }
        }
        let mut at = within.start;
        for index in 0..entries {
            let entry = &node[EXTENT_ENTRY * (index + 1)..][..EXTENT_ENTRY];
            let logical = u64::from(le32(entry, 0));
            if logical < at || logical >= within.end {
                return broken(format!("extent at logical block {logical} out of order"));
            }
            if index == 0 && !is_root && logical != within.start {
                return broken(format!(
                    "extent node starts at logical block {logical}, its parent says {}",
                    within.start
                ));
            }
            at = if depth == 0 {
                self.extent(entry, logical, within.end)?
            } else {
                let next = (index + 1 < entries)
                    .then(|| u64::from(le32(node, EXTENT_ENTRY * (index + 2))));
                let end = next.unwrap_or(within.end);
                if end <= logical || end > within.end {
                    return broken(format!("extent index after {logical} out of order"));
                }
                self.extent_index(entry, logical..end, depth)?;
                logical + 1
            };
        }
        Ok(())
    }

    /// Takes a leaf's entry; returns the first logical block after it.
    fn extent(&mut self, entry: &[u8], logical: u64, limit: u64) -> Result<u64, MapError> {
        let raw_len = u32::from(le16(entry, 4));
        let start = join(u32::from(le16(entry, 6)), le32(entry, 8));
        let (len, unwritten) = match raw_len {
            0..=MAX_WRITTEN => (raw_len, false),
            _ => (raw_len - MAX_WRITTEN, true),
        };
        let end = logical + u64::from(len);
        if len == 0 || end > limit || end > u64::from(u32::MAX) {
            return broken(format!("extent of {len} blocks at logical block {logical}"));
        }
        let logical = logical as u32;
        self.claim(start, u64::from(len), Piece::Data { logical, unwritten })?;
        self.push_extent(Extent::new(logical, start, len, unwritten))?;
        Ok(end)
    }

    fn extent_index(
        &mut self,
        entry: &[u8],
        within: Range<u64>,
        depth: u16,
    ) -> Result<(), MapError> {
        let block = join(u32::from(le16(entry, 8)), le32(entry, 4));
        let node = self.read_node(block)?;
        self.push_node(Node {
            block,
            logical: within.start as u32,
            level: depth as u8,
        })?;
        self.extent_node(&node, depth - 1, within, false)
    }

    fn pointers(&mut self, i_block: &[u8]) -> Result<(), MapError> {
        for slot in 0..DIRECT {
            self.pointer(le32(i_block, 4 * slot), slot as u64, 0)?;
        }
        let per_node = self.fs.geometry.block_size / 4;
        let mut logical = DIRECT as u64;
        for level in 1..=3u8 {
            let slot = DIRECT + usize::from(level) - 1;
            self.pointer(le32(i_block, 4 * slot), logical, level)?;
            logical += per_node.pow(u32::from(level));
        }
        Ok(())
    }

    /// Follows a pointer to data (`level` 0) or to a node.
    fn pointer(&mut self, block: u32, logical: u64, level: u8) -> Result<(), MapError> {
        if block == 0 {
            return Ok(());
        }
        let Ok(logical_32) = u32::try_from(logical) else {
            return broken(format!("a block at logical block {logical}"));
        };
        let block = u64::from(block);
        if level == 0 {
            let piece = Piece::Data {
                logical: logical_32,
                unwritten: false,
            };
            self.claim(block, 1, piece)?;
            return self.push_block(logical_32, block);
        }
        let node = self.read_node(block)?;
        self.push_node(Node {
            block,
            logical: logical_32,
            level,
        })?;
        let step = (self.fs.geometry.block_size / 4).pow(u32::from(level) - 1);
        for slot in 0..node.len() / 4 {
            let pointer = le32(&node, 4 * slot);
            self.pointer(pointer, logical + slot as u64 * step, level - 1)?;
        }
        Ok(())
    }

    /// Adds one block of data, joined to the run before it where both numbers go on.
    fn push_block(&mut self, logical: u32, block: BlockNr) -> Result<(), MapError> {
        if let Some(last) = self.map.extents[self.first..].last_mut()
            && last.logical_end() == u64::from(logical)
            && last.end() == block
            && last.len() + 1 < UNWRITTEN
        {
            *last = Extent::new(last.logical, last.start, last.len() + 1, false);
            return Ok(());
        }
        self.push_extent(Extent::new(logical, block, 1, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ext4::format::inode::I_BLOCK;
    use crate::ext4::format::raw::put32;
    use crate::ext4::test_image::mke2fs;
    use crate::io::memory::MemoryDisk;

    /// Ten pieces behind one that another file left there.
    #[test]
    fn maps_are_added_up_to_a_limit() {
        let disk = MemoryDisk::from(mke2fs(8 << 20, &["-O", "^extent,^64bit"]));
        let fs = Super::read(&disk).unwrap().unwrap();
        let mut inode = Inode(vec![0; 256]);
        for slot in 1..11 {
            put32(&mut inode.0, I_BLOCK + 4 * slot, 1998 + 2 * slot as u32);
        }
        // It ends where the file begins, in both ways.
        let before = Extent::new(0, 1999, 1, false);
        for (most, fits) in [(11, true), (10, false)] {
            let mut map = BlockMap {
                extents: vec![before],
                nodes: Vec::new(),
            };
            let mut claim = |_, _| Ok(());
            let number = InodeNr(12);
            let read = add_map(&fs, &disk, number, &inode, &mut claim, &mut map, most);
            match read {
                Ok(()) => assert!(fits && map.extents.len() == 11 && map.extents[0] == before),
                Err(MapError::Device(error)) => {
                    assert!(!fits && error.kind() == ErrorKind::Unsupported);
                }
                Err(MapError::Broken(text)) => panic!("{text}"),
            }
        }
    }
}
