//! One directory while fast commits are replayed: its blocks and names in memory.
//!
//! A name goes into the block where it is looked for, if that has room. If not, the whole directory
//! is laid out anew, in the order of the hashes, as `e2fsck -D` does: that takes a fraction of the
//! code of splitting leaves and nodes, and leaves an index without gaps.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::ext4::format::dir;
use crate::ext4::format::dir::{
    BlockKind, DirEntry, LEAF_TAIL, MIN_ENTRY, dx_info, dx_limit, dx_max_levels, dx_pairs, entries,
};
use crate::ext4::format::dirhash::Hasher;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{CASEFOLD_FL, ENCRYPT_FL, INDEX_FL, INLINE_DATA_FL};
use crate::ext4::format::raw::{put16, put32};
use crate::ext4::format::superblock::{COMPAT_DIR_INDEX, INCOMPAT_FILETYPE};
use crate::ext4::read::inode_table::Slot;
use crate::io::ReadAt;
use crate::units::{BlockNr, InodeNr};

/// Bytes of an entry before its name.
const ENTRY: usize = 8;
/// `file_type` of a directory.
const TYPE_DIR: u8 = 2;
/// `file_type` of the fake entry with a leaf's checksum.
const TYPE_TAIL: u8 = 0xDE;
/// Where the pairs of a dx root and of a dx node begin.
const ROOT_COUNT: usize = 32;
const NODE_COUNT: usize = 8;
const S_DEF_HASH_VERSION: usize = 0xFC;
/// Blocks of a directory without index, all of which every new name goes through.
const MAX_UNINDEXED: usize = 4096;
/// The last hash version that is a function of the name alone.
const LAST_HASH: u8 = 2;

/// What a name stands for, and the logical block it is in.
#[derive(Clone, Copy, Debug)]
struct Name {
    inode: InodeNr,
    file_type: u8,
    block: u32,
}

#[derive(Debug)]
struct Block {
    kind: BlockKind,
    bytes: Vec<u8>,
    is_changed: bool,
    /// The largest entry for which it has room.
    room: usize,
}

/// A directory's blocks in logical order.
#[derive(Debug)]
pub struct Directory {
    number: InodeNr,
    parent: InodeNr,
    hash_version: Option<u8>,
    places: Vec<BlockNr>,
    blocks: Vec<Block>,
    names: HashMap<Vec<u8>, Name>,
    /// There was no room where a name belongs, so all blocks are made anew.
    is_laid_out: bool,
}

/// What has to be written of a directory.
pub struct Layout {
    /// Logical block, kind and content.
    pub blocks: Vec<(u32, BlockKind, Vec<u8>)>,
    /// How many blocks it has.
    pub count: usize,
    pub is_indexed: bool,
}

impl Directory {
    /// Makes an empty directory in `parent`.
    pub fn empty(number: InodeNr, parent: InodeNr) -> Self {
        Self {
            number,
            parent,
            hash_version: None,
            places: Vec::new(),
            blocks: Vec::new(),
            names: HashMap::new(),
            is_laid_out: true,
        }
    }

    /// Reads a directory whose blocks are `extents`.
    ///
    /// # Errors
    /// `Unsupported` for names whose order or place follows other rules, `Unsound` for damage.
    pub fn read(fs: &Super, view: &dyn ReadAt, slot: &Slot, extents: &[Extent]) -> Result<Self> {
        let Slot { number, inode, .. } = slot;
        let bad = |text: &str| Error::unsound(format!("ext4: directory {number}: {text}"));
        for (flag, what) in [
            (ENCRYPT_FL, "encrypted"),
            (CASEFOLD_FL, "case-insensitive"),
            (INLINE_DATA_FL, "inline"),
        ] {
            if inode.has_flag(flag) {
                return Err(Error::unsupported(format!(
                    "ext4: a fast commit changes directory {number}, which is {what}"
                )));
            }
        }
        let count: u64 = extents.iter().map(|extent| u64::from(extent.len())).sum();
        let size = fs.geometry.block_size;
        let has_hole = extents.last().map(Extent::logical_end) != Some(count);
        if has_hole || inode.size() != count * size {
            return Err(bad("its size and its blocks do not agree"));
        }
        let mut this = Self::empty(*number, *number);
        this.is_laid_out = false;
        let is_indexed = inode.has_flag(INDEX_FL);
        let blocks = extents.iter().flat_map(|extent| {
            // OK: a map's logical numbers and its blocks were checked to be in range.
            (0..extent.len()).map(|skip| (extent.logical + skip, extent.start + u64::from(skip)))
        });
        for (logical, block) in blocks {
            let bytes = view.read_vec_at(fs.geometry.offset(block), size as usize)?;
            let kind = dir::kind_of(fs, is_indexed, logical, &bytes);
            let generation = inode.i_generation();
            if !dir::checksum_matches(fs, *number, generation, kind, &bytes) {
                return Err(bad("the checksum of a block does not match"));
            }
            if kind == BlockKind::DxRoot {
                let info = dx_info(&bytes).map_err(bad)?;
                if info.hash_version > LAST_HASH || info.indirect_levels > dx_max_levels(fs) {
                    return Err(bad("its index is of an unknown kind"));
                }
                this.hash_version = Some(info.hash_version);
            }
            this.places.push(block);
            this.take_block(fs, kind, bytes).map_err(bad)?;
        }
        if is_indexed && this.hash_version.is_none() {
            return Err(bad("its index has no root"));
        }
        Ok(this)
    }

    fn take_block(
        &mut self,
        fs: &Super,
        kind: BlockKind,
        bytes: Vec<u8>,
    ) -> Result<(), &'static str> {
        // OK: the map's logical numbers have 32 bits.
        let block = self.blocks.len() as u32;
        let end = match kind {
            BlockKind::DxNode => 0,
            BlockKind::DxRoot => bytes.len(),
            BlockKind::Leaf => usable(fs, bytes.len()),
        };
        for entry in entries(&bytes[..end]) {
            let entry = entry.map_err(|bad| bad.reason)?;
            match entry.name {
                _ if !entry.is_used() => {}
                b"." => {}
                b".." => self.parent = entry.inode,
                name => {
                    let known = Name {
                        inode: entry.inode,
                        file_type: entry.file_type,
                        block,
                    };
                    self.names.insert(name.to_vec(), known);
                }
            }
        }
        self.blocks.push(Block {
            kind,
            room: if kind == BlockKind::Leaf {
                largest_room(&bytes[..end])
            } else {
                0
            },
            bytes,
            is_changed: false,
        });
        Ok(())
    }

    pub fn places(&self) -> &[BlockNr] {
        &self.places
    }

    /// Does it hold no names but those of the dot entries?
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn lookup(&self, name: &[u8]) -> Option<InodeNr> {
        self.names.get(name).map(|known| known.inode)
    }

    /// Adds a name that is not there yet.
    ///
    /// # Errors
    /// `Unsound` for an index that leads nowhere.
    pub fn insert(&mut self, fs: &Super, name: &[u8], inode: InodeNr, file_type: u8) -> Result<()> {
        let mut known = Name {
            inode,
            file_type,
            block: 0,
        };
        if !self.is_laid_out {
            let needed = entry_len(name.len());
            let block = match self.hash_version {
                Some(version) => Some(self.leaf_of(fs, version, name)?),
                None if self.blocks.len() > MAX_UNINDEXED => {
                    return Err(Error::unsupported(format!(
                        "ext4: a fast commit changes directory {}, which is large and not indexed",
                        self.number
                    )));
                }
                None => self.blocks.iter().position(|block| block.room >= needed),
            };
            match block {
                Some(block) if self.blocks[block].room >= needed => {
                    let Block {
                        bytes,
                        is_changed,
                        room,
                        ..
                    } = &mut self.blocks[block];
                    let end = usable(fs, bytes.len());
                    put_entry(&mut bytes[..end], name, inode, file_type);
                    *room = largest_room(&bytes[..end]);
                    *is_changed = true;
                    known.block = block as u32;
                }
                _ => self.is_laid_out = true,
            }
        }
        self.names.insert(name.to_vec(), known);
        Ok(())
    }

    /// Takes a name out.
    pub fn remove(&mut self, fs: &Super, name: &[u8]) {
        let Some(known) = self.names.remove(name) else {
            return;
        };
        if self.is_laid_out {
            return;
        }
        let block = &mut self.blocks[known.block as usize];
        let end = usable(fs, block.bytes.len());
        drop_entry(&mut block.bytes[..end], name);
        block.room = largest_room(&block.bytes[..end]);
        block.is_changed = true;
    }

    /// Finds the leaf for a name: at each level the last pair whose hash is not larger.
    fn leaf_of(&self, fs: &Super, version: u8, name: &[u8]) -> Result<usize> {
        let bad = |text: &str| Error::unsound(format!("ext4: directory {}: {text}", self.number));
        let hash = Hasher::of(&fs.superblock).hash(version, name);
        let hash = hash.ok_or_else(|| bad("its index is of an unknown kind"))?;
        let mut at = 0;
        // The root, and one level more than there can be.
        for _ in 0..=dx_max_levels(fs) {
            let Block { kind, bytes, .. } = &self.blocks[at];
            let pairs = dx_pairs(fs, *kind, bytes).map_err(bad)?;
            let pair = pairs.take_while(|pair| pair.hash <= hash).last();
            at = pair.map_or(0, |pair| pair.block as usize);
            match self.blocks.get(at).map(|block| block.kind) {
                Some(BlockKind::Leaf) => return Ok(at),
                Some(BlockKind::DxNode) => {}
                _ => break,
            }
        }
        Err(bad("its index leads nowhere"))
    }

    /// Returns the blocks that changed, without their checksums.
    ///
    /// # Errors
    /// `Unsupported` for more names than an index holds.
    pub fn layout(&self, fs: &Super) -> Result<Layout> {
        if self.is_laid_out {
            return self.lay_out(fs);
        }
        let blocks: Vec<_> = self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, block)| block.is_changed)
            .map(|(logical, block)| (logical as u32, block.kind, block.bytes.clone()))
            .collect();
        Ok(Layout {
            blocks,
            count: self.blocks.len(),
            is_indexed: self.hash_version.is_some(),
        })
    }

    fn lay_out(&self, fs: &Super) -> Result<Layout> {
        let size = fs.geometry.block_size as usize;
        let superblock = &fs.superblock;
        let dots = 2 * MIN_ENTRY;
        let total: usize = self.names.keys().map(|name| entry_len(name.len())).sum();
        let fits = dots + total <= usable(fs, size);
        let version = self
            .hash_version
            .unwrap_or(superblock.bytes()[S_DEF_HASH_VERSION]);
        let hasher = Hasher::of(superblock);
        let is_indexed = !fits && superblock.has_compat(COMPAT_DIR_INDEX) && version <= LAST_HASH;
        let mut sorted: Vec<(u32, &[u8], Name)> = self
            .names
            .iter()
            .map(|(name, known)| {
                let hash = hasher.hash(version, name).filter(|_| is_indexed);
                (hash.unwrap_or(0), name.as_slice(), *known)
            })
            .collect();
        sorted.sort_unstable_by_key(|&(hash, name, _)| (hash, name));
        let first = self.dot_entries(fs, is_indexed);
        // Some room stays, so that the next name does not split the block at once.
        let limit = if is_indexed { size - size / 4 } else { size };
        let leaves = fill_leaves(
            fs,
            &sorted,
            (!is_indexed).then_some(first.as_slice()),
            limit,
        );
        let mut blocks: Vec<(BlockKind, Vec<u8>)> = Vec::new();
        if is_indexed {
            let pairs: Vec<(u32, u32)> = leaves
                .iter()
                .zip(1..)
                .map(|((hash, _), block)| (*hash, block))
                .collect();
            blocks.extend(index(fs, first, version, &pairs).ok_or_else(|| {
                Error::unsupported(format!(
                    "ext4: directory {} is too large for its index",
                    self.number
                ))
            })?);
            let nodes = blocks.split_off(1);
            blocks.extend(leaves.into_iter().map(|(_, leaf)| (BlockKind::Leaf, leaf)));
            blocks.extend(nodes);
        } else {
            blocks.extend(leaves.into_iter().map(|(_, leaf)| (BlockKind::Leaf, leaf)));
        }
        Ok(Layout {
            count: blocks.len(),
            is_indexed,
            blocks: blocks
                .into_iter()
                .zip(0..)
                .map(|((kind, bytes), logical)| (logical, kind, bytes))
                .collect(),
        })
    }

    /// Makes a block with the dot entries, the second one as long as there is room.
    fn dot_entries(&self, fs: &Super, is_root: bool) -> Vec<u8> {
        let size = fs.geometry.block_size as usize;
        let file_type = if fs.superblock.has_incompat(INCOMPAT_FILETYPE) {
            TYPE_DIR
        } else {
            0
        };
        let mut block = vec![0; size];
        let end = if is_root { size } else { usable(fs, size) };
        write_entry(&mut block, 0, MIN_ENTRY, self.number, file_type, b".");
        let rest = end - MIN_ENTRY;
        write_entry(&mut block, MIN_ENTRY, rest, self.parent, file_type, b"..");
        if !is_root {
            put_tail(fs, &mut block);
        }
        block
    }
}

/// Puts sorted names into leaves, each filled up to `limit`; returns the hash from which each is
/// looked into. `first` begins the first leaf.
fn fill_leaves(
    fs: &Super,
    sorted: &[(u32, &[u8], Name)],
    first: Option<&[u8]>,
    limit: usize,
) -> Vec<(u32, Vec<u8>)> {
    let size = fs.geometry.block_size as usize;
    let end = usable(fs, size);
    let empty = || {
        let mut leaf = vec![0; size];
        write_rec_len(&mut leaf, 0, end);
        put_tail(fs, &mut leaf);
        leaf
    };
    let mut used = if first.is_some() { 2 * MIN_ENTRY } else { 0 };
    let mut leaves = vec![(0, first.map_or_else(empty, <[u8]>::to_vec))];
    let mut before = None;
    for &(hash, name, known) in sorted {
        let needed = entry_len(name.len());
        if used > 0 && used + needed > limit.min(end) {
            // An odd hash says that names with the same one begin in the leaf before.
            leaves.push((hash | u32::from(before == Some(hash)), empty()));
            used = 0;
        }
        if let Some((_, leaf)) = leaves.last_mut() {
            put_entry(&mut leaf[..end], name, known.inode, known.file_type);
        }
        used += needed;
        before = Some(hash);
    }
    leaves
}

/// Makes root and nodes over `pairs` of hash and leaf, which have the numbers from 1 on; the nodes
/// come behind the leaves. `root` holds the dot entries. `None` if there are too many.
fn index(
    fs: &Super,
    mut root: Vec<u8>,
    version: u8,
    pairs: &[(u32, u32)],
) -> Option<Vec<(BlockKind, Vec<u8>)>> {
    const INFO: usize = 24;
    let size = fs.geometry.block_size as usize;
    let root_limit = dx_limit(fs, BlockKind::DxRoot);
    let mut nodes = Vec::new();
    let mut top = pairs.to_vec();
    if top.len() > root_limit {
        let node_limit = dx_limit(fs, BlockKind::DxNode);
        let first = pairs.len() as u32 + 1;
        top.clear();
        for (chunk, block) in pairs.chunks(node_limit - node_limit / 4).zip(first..) {
            let mut node = vec![0; size];
            write_rec_len(&mut node, 0, size);
            write_pairs(&mut node, NODE_COUNT, node_limit, chunk);
            top.push((chunk[0].0, block));
            nodes.push((BlockKind::DxNode, node));
        }
    }
    if top.len() > root_limit {
        return None;
    }
    // The dot entries' block is zero behind them.
    root[INFO + 4] = version;
    root[INFO + 5] = 8;
    root[INFO + 6] = u8::from(!nodes.is_empty());
    write_pairs(&mut root, ROOT_COUNT, root_limit, &top);
    nodes.insert(0, (BlockKind::DxRoot, root));
    Some(nodes)
}

fn write_pairs(block: &mut [u8], at: usize, limit: usize, pairs: &[(u32, u32)]) {
    for (index, &(hash, leaf)) in pairs.iter().enumerate() {
        put32(block, at + 8 * index, hash);
        put32(block, at + 8 * index + 4, leaf);
    }
    // They take the place of the first pair's hash, which is 0 by definition.
    put16(block, at, limit as u16);
    put16(block, at + 2, pairs.len() as u16);
}

/// Returns how much of a leaf entries may take.
fn usable(fs: &Super, len: usize) -> usize {
    if fs.checksums.enabled() {
        len - LEAF_TAIL
    } else {
        len
    }
}

fn entry_len(name_len: usize) -> usize {
    (ENTRY + name_len).next_multiple_of(4)
}

/// Returns how much of an entry's space its own name takes.
fn taken(entry: &DirEntry<'_>) -> usize {
    if entry.is_used() {
        entry_len(entry.name.len())
    } else {
        0
    }
}

fn largest_room(list: &[u8]) -> usize {
    entries(list)
        .filter_map(Result::ok)
        .map(|entry| entry.rec_len.saturating_sub(taken(&entry)))
        .max()
        .unwrap_or(0)
}

/// Puts an entry into a list that has room for it.
fn put_entry(list: &mut [u8], name: &[u8], inode: InodeNr, file_type: u8) {
    let needed = entry_len(name.len());
    let place = entries(list)
        .filter_map(Result::ok)
        .find(|entry| entry.rec_len.saturating_sub(taken(entry)) >= needed)
        .map(|entry| (entry.offset, entry.rec_len, taken(&entry)));
    let Some((offset, rec_len, taken)) = place else {
        debug_assert!(false, "no room for an entry");
        return;
    };
    if taken > 0 {
        write_rec_len(list, offset, taken);
    }
    write_entry(
        list,
        offset + taken,
        rec_len - taken,
        inode,
        file_type,
        name,
    );
}

/// Takes the entry with this name out of a list: its space goes to the one before.
fn drop_entry(list: &mut [u8], name: &[u8]) {
    let mut before: Option<(usize, usize)> = None;
    let mut found = None;
    for entry in entries(list).filter_map(Result::ok) {
        if entry.is_used() && entry.name == name {
            found = Some((entry.offset, entry.rec_len));
            break;
        }
        before = Some((entry.offset, entry.rec_len));
    }
    match (before, found) {
        (Some((offset, len)), Some((_, rec_len))) => write_rec_len(list, offset, len + rec_len),
        (None, Some((offset, _))) => put32(list, offset, 0),
        (_, None) => {}
    }
}

fn write_entry(
    list: &mut [u8],
    offset: usize,
    rec_len: usize,
    inode: InodeNr,
    file_type: u8,
    name: &[u8],
) {
    put32(list, offset, inode.0);
    write_rec_len(list, offset, rec_len);
    // OK: names have at most 255 bytes.
    list[offset + 6] = name.len() as u8;
    list[offset + 7] = file_type;
    list[offset + ENTRY..offset + ENTRY + name.len()].copy_from_slice(name);
}

/// Blocks of 64 KiB put the length's top bits into the two low ones, which are zero otherwise.
fn write_rec_len(list: &mut [u8], offset: usize, rec_len: usize) {
    let raw = match rec_len {
        0x1_0000 => 0xFFFF,
        _ => rec_len & 0xFFFC | rec_len >> 16,
    };
    put16(list, offset + 4, raw as u16);
}

/// Puts the fake entry at the end of a leaf that will hold its checksum.
fn put_tail(fs: &Super, leaf: &mut [u8]) {
    let end = usable(fs, leaf.len());
    if end < leaf.len() {
        write_rec_len(leaf, end, LEAF_TAIL);
        leaf[end + 7] = TYPE_TAIL;
    }
}
