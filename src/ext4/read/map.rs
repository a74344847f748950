//! From logical to physical blocks: extent trees and indirect blocks.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/ifork.rst. Reading claims every
//! block it meets through a callback; a block that is claimed twice ends the walk, which also
//! bounds it: no tree, however it is knotted, is walked longer than the filesystem has blocks.

use std::fmt::Display;
use std::ops::Range;

use crate::error::Error;
use crate::ext4::format::checksum::crc32c;
use crate::ext4::format::inode::{EXTENTS_FL, Inode};
use crate::ext4::format::raw::{join, le16, le32, put16, put32};
use crate::ext4::format::superblock::Super;
use crate::ext4::read::claim::{ELSEWHERE, Piece, Taken};
use crate::io::{RangeSet, ReadAt};
use crate::units::{BlockNr, InodeNr};

/// `eh_magic`.
pub const EXTENT_MAGIC: u16 = 0xF30A;
/// Bytes of an extent header, an extent and an index entry alike.
pub const EXTENT_ENTRY: usize = 12;
/// The longest extent that is written; longer lengths mean unwritten ones.
pub const MAX_WRITTEN: u32 = 32768;
/// The longest unwritten extent.
pub const MAX_UNWRITTEN: u32 = 32767;
/// The kernel's limit on the depth of an extent tree.
const MAX_DEPTH: u16 = 5;
/// Pointers in an inode that are not indirect.
pub const DIRECT: usize = 12;
/// Extents, and nodes, of one file that is read alone: its map is a few MiB at the most, while a
/// hostile one could fill the memory.
const MAX_PIECES: usize = 4 << 20;

/// A run of blocks of one file. Written extents and unwritten ones are told apart by the top bit
/// of `len_and_state`, so that an entry takes 16 bytes: there are millions of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First block within the file.
    pub logical: u32,
    len_and_state: u32,
    /// First block within the filesystem.
    pub start: BlockNr,
}

const UNWRITTEN: u32 = 1 << 31;

impl Extent {
    pub fn new(logical: u32, start: BlockNr, len: u32, unwritten: bool) -> Self {
        debug_assert!(len < UNWRITTEN);
        Self {
            logical,
            len_and_state: if unwritten { len | UNWRITTEN } else { len },
            start,
        }
    }

    /// Returns the length in blocks.
    pub fn len(&self) -> u32 {
        self.len_and_state & !UNWRITTEN
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_unwritten(&self) -> bool {
        self.len_and_state & UNWRITTEN != 0
    }

    /// Returns the block after the last one within the file.
    pub fn logical_end(&self) -> u64 {
        u64::from(self.logical) + u64::from(self.len())
    }

    /// Returns the block after the last one within the filesystem.
    pub fn end(&self) -> BlockNr {
        self.start + u64::from(self.len())
    }

    /// Returns the part from `skip` blocks on, `len` blocks long, placed at `start`.
    #[must_use]
    pub fn part(&self, skip: u32, len: u32, start: BlockNr) -> Self {
        Self::new(self.logical + skip, start, len, self.is_unwritten())
    }
}

/// A block that holds extents, index entries or pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    pub block: BlockNr,
    /// First block of the file that the node's area covers.
    pub logical: u32,
    /// Levels between this node and the data: 1 for a leaf of extents or of pointers to data.
    pub level: u8,
}

/// How a file's blocks are described.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    /// `i_block` holds something else.
    None,
    Extents,
    Indirect,
}

/// All blocks of a file: data in ascending logical order, and the nodes in the order of a walk
/// (parents before children).
#[derive(Clone, Debug, Default)]
pub struct BlockMap {
    pub extents: Vec<Extent>,
    pub nodes: Vec<Node>,
}

impl BlockMap {
    /// Lists every block of it: data, then nodes.
    pub fn blocks(&self) -> impl Iterator<Item = Range<BlockNr>> + '_ {
        let data = self.extents.iter().map(|extent| extent.start..extent.end());
        data.chain(self.nodes.iter().map(|node| node.block..node.block + 1))
    }
}

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

/// Counts the clusters of `ratio` blocks that the extents of one file take; neighbours may meet in one.
pub fn count_clusters(extents: &[Extent], ratio: u64) -> u64 {
    if ratio == 1 {
        return extents.iter().map(|extent| u64::from(extent.len())).sum();
    }
    let mut count = 0;
    let mut last = None;
    for extent in extents {
        let (first, end) = (extent.start / ratio, extent.end().div_ceil(ratio));
        count += end - first - u64::from(last == Some(first));
        last = Some(end - 1);
    }
    count
}

/// Joins neighbours that go on both within the file and on disk, as far as the format's lengths allow.
pub fn join_extents(extents: &[Extent]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        let max = if extent.is_unwritten() {
            MAX_UNWRITTEN
        } else {
            MAX_WRITTEN
        };
        if let Some(last) = joined.last_mut()
            && last.logical_end() == u64::from(extent.logical)
            && last.end() == extent.start
            && last.is_unwritten() == extent.is_unwritten()
            && last.len() + extent.len() <= max
        {
            *last = Extent::new(
                last.logical,
                last.start,
                last.len() + extent.len(),
                extent.is_unwritten(),
            );
            continue;
        }
        joined.push(*extent);
    }
    joined
}

/// Entries that fit into a tree node of `block_size` bytes.
pub fn entries_per_node(block_size: u64) -> usize {
    block_size as usize / EXTENT_ENTRY - 1
}

/// How many nodes a packed tree over `count` extents needs at each level, leaves first; none when
/// the inode itself holds them all.
pub fn tree_shape(count: usize, block_size: u64) -> Vec<usize> {
    const IN_INODE: usize = 4;
    let mut levels = Vec::new();
    let mut count = count;
    while count > IN_INODE {
        count = count.div_ceil(entries_per_node(block_size));
        levels.push(count);
    }
    levels
}

/// Builds the packed tree over `extents`: fills `i_block`, and returns each node's block with its
/// bytes (with checksums where the filesystem has them). `blocks` are the nodes' places, as many as
/// [`tree_shape`] says.
pub fn build_tree(
    fs: &Super,
    number: InodeNr,
    generation: u32,
    extents: &[Extent],
    blocks: &[BlockNr],
    i_block: &mut [u8],
) -> Vec<(BlockNr, Vec<u8>)> {
    let block_size = fs.geometry.block_size;
    let shape = tree_shape(extents.len(), block_size);
    let per_node = entries_per_node(block_size);
    let seed = fs.checksums.inode_seed(number, generation);
    let mut nodes = Vec::with_capacity(blocks.len());
    let mut places = blocks.iter().copied();
    // (first logical block, entry bytes) of the level below the one being built.
    let mut entries: Vec<[u8; EXTENT_ENTRY]> = extents.iter().map(encode_extent).collect();
    for (depth, &count) in shape.iter().enumerate() {
        let mut parents = Vec::with_capacity(count);
        for chunk in entries.chunks(per_node) {
            let Some(block) = places.next() else { break };
            let mut node = vec![0; block_size as usize];
            encode_node(&mut node, chunk, per_node, depth as u16);
            if fs.checksums.enabled() {
                let tail = EXTENT_ENTRY * (per_node + 1);
                let checksum = crc32c(seed, &node[..tail]);
                put32(&mut node, tail, checksum);
            }
            parents.push(encode_index(le32(&chunk[0], 0), block));
            nodes.push((block, node));
        }
        entries = parents;
    }
    i_block.fill(0);
    encode_node(i_block, &entries, 4, shape.len() as u16);
    nodes
}

fn encode_node(node: &mut [u8], entries: &[[u8; EXTENT_ENTRY]], max: usize, depth: u16) {
    put16(node, 0, EXTENT_MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, max as u16);
    put16(node, 6, depth);
    for (index, entry) in entries.iter().enumerate() {
        node[EXTENT_ENTRY * (index + 1)..][..EXTENT_ENTRY].copy_from_slice(entry);
    }
}

fn encode_extent(extent: &Extent) -> [u8; EXTENT_ENTRY] {
    let mut entry = [0; EXTENT_ENTRY];
    let len = extent.len()
        + if extent.is_unwritten() {
            MAX_WRITTEN
        } else {
            0
        };
    put32(&mut entry, 0, extent.logical);
    put16(&mut entry, 4, len as u16);
    put16(&mut entry, 6, (extent.start >> 32) as u16);
    put32(&mut entry, 8, extent.start as u32);
    entry
}

fn encode_index(logical: u32, block: BlockNr) -> [u8; EXTENT_ENTRY] {
    let mut entry = [0; EXTENT_ENTRY];
    put32(&mut entry, 0, logical);
    put32(&mut entry, 4, block as u32);
    put16(&mut entry, 8, (block >> 32) as u16);
    entry
}

/// Builds the pointer nodes of an indirect map: fills `i_block` and returns each node's block with
/// its bytes. `extents` and `nodes` are the file's, with their places on the new disk; nodes keep
/// the order of the walk that read them.
pub fn build_pointers(
    block_size: u64,
    extents: &[Extent],
    nodes: &[Node],
    i_block: &mut [u8],
) -> Vec<(BlockNr, Vec<u8>)> {
    let per_node = block_size / 4;
    let mut built: Vec<(BlockNr, Vec<u8>)> = Vec::with_capacity(nodes.len());
    // Direct and top-level pointers first; everything else was zero and stays so.
    i_block.fill(0);
    for extent in extents {
        for step in 0..extent.len() {
            let logical = extent.logical + step;
            if (logical as usize) < DIRECT {
                put32(
                    i_block,
                    4 * logical as usize,
                    (extent.start + u64::from(step)) as u32,
                );
            }
        }
        if extent.logical as usize >= DIRECT {
            break;
        }
    }
    // The parents of the current position in the walk, by level.
    let mut above: [Option<usize>; 4] = [None; 4];
    for (index, node) in nodes.iter().enumerate() {
        let mut bytes = vec![0; block_size as usize];
        if node.level == 1 {
            let range = u64::from(node.logical)..u64::from(node.logical) + per_node;
            let first = extents.partition_point(|e| e.logical_end() <= range.start);
            for extent in extents[first..]
                .iter()
                .take_while(|e| u64::from(e.logical) < range.end)
            {
                let from = range.start.max(u64::from(extent.logical));
                let to = range.end.min(extent.logical_end());
                for logical in from..to {
                    let block = extent.start + (logical - u64::from(extent.logical));
                    put32(
                        &mut bytes,
                        4 * (logical - range.start) as usize,
                        block as u32,
                    );
                }
            }
        }
        let parent = above.get(usize::from(node.level) + 1).copied().flatten();
        match parent.filter(|&parent| covers(&nodes[parent], node, per_node)) {
            Some(parent) => {
                let step = per_node.pow(u32::from(node.level));
                let slot = u64::from(node.logical - nodes[parent].logical) / step;
                put32(&mut built[parent].1, 4 * slot as usize, node.block as u32);
            }
            None => {
                let slot = DIRECT + usize::from(node.level) - 1;
                put32(i_block, 4 * slot, node.block as u32);
            }
        }
        above[usize::from(node.level)] = Some(index);
        built.push((node.block, bytes));
    }
    built
}

fn covers(parent: &Node, child: &Node, per_node: u64) -> bool {
    let start = u64::from(parent.logical);
    let end = start + per_node.pow(u32::from(parent.level));
    (start..end).contains(&u64::from(child.logical))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ext4::format::inode::I_BLOCK;
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
