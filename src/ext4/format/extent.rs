//! Extents, the nodes of their trees, and lists of pointers, as bytes.

use std::ops::Range;

use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::raw::{le32, put16, put32};
use crate::units::{BlockNr, InodeNr};

/// `eh_magic`.
pub const EXTENT_MAGIC: u16 = 0xF30A;

/// Bytes of an extent header, an extent and an index entry alike.
pub const EXTENT_ENTRY: usize = 12;

/// The longest extent that is written; longer lengths mean unwritten ones.
pub const MAX_WRITTEN: u32 = 32768;

/// The longest unwritten extent.
pub const MAX_UNWRITTEN: u32 = 32767;

/// Pointers in an inode that are not indirect.
pub const DIRECT: usize = 12;

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

pub const UNWRITTEN: u32 = 1 << 31;

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

pub fn encode_node(node: &mut [u8], entries: &[[u8; EXTENT_ENTRY]], max: usize, depth: u16) {
    put16(node, 0, EXTENT_MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, max as u16);
    put16(node, 6, depth);
    for (index, entry) in entries.iter().enumerate() {
        node[EXTENT_ENTRY * (index + 1)..][..EXTENT_ENTRY].copy_from_slice(entry);
    }
}

pub fn encode_extent(extent: &Extent) -> [u8; EXTENT_ENTRY] {
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

pub fn encode_index(logical: u32, block: BlockNr) -> [u8; EXTENT_ENTRY] {
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

pub fn covers(parent: &Node, child: &Node, per_node: u64) -> bool {
    let start = u64::from(parent.logical);
    let end = start + per_node.pow(u32::from(parent.level));
    (start..end).contains(&u64::from(child.logical))
}
