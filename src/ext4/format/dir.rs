//! Directories: blocks of entries, the index over them (htree), and directories inside inodes.
//!
//! ```text
//! entry    inode (4) rec_len (2) name_len (1) file_type (1) name, padded to 4
//! leaf     entries … and with metadata_csum a fake one of 12 bytes: inode 0, type 0xDE, checksum
//! dx root  "." (12 bytes) ".." (the rest) | at 24: zero (4) hash_version info_length = 8
//!          indirect_levels unused_flags | at 32: limit (2) count (2) block (4), then hash, block …
//! dx node  fake entry as long as the block | at 8: limit (2) count (2) block (4), hash, block …
//!          behind `limit` pairs: reserved (4) checksum (4)
//! ```
//! Specification: the kernel's Documentation/filesystems/ext4/directory.rst.

use std::ops::Range;

use crate::error::Result;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{I_BLOCK, I_BLOCK_SIZE, INLINE_DATA_FL, Inode};
use crate::ext4::format::raw::{le16, le32, put32};
use crate::ext4::format::superblock::INCOMPAT_LARGEDIR;
use crate::ext4::format::xattr;
use crate::ext4::format::xattr::INDEX_SYSTEM;
use crate::io::ReadAt;
use crate::units::{BlockNr, InodeNr};

/// The shortest entry that can hold a name.
pub const MIN_ENTRY: usize = 12;
/// Bytes of an entry before its name.
const ENTRY: usize = 8;
/// Bytes of the fake entry with a leaf's checksum.
pub const LEAF_TAIL: usize = 12;
/// `file_type` of that fake entry.
const TAIL_FILE_TYPE: u8 = 0xDE;
/// Where the pairs of a dx root begin.
const ROOT_COUNT: usize = 32;
/// Where the pairs of a dx node begin.
const NODE_COUNT: usize = 8;
/// Where an inline directory keeps its parent's number, within the slot.
const INLINE_PARENT: usize = I_BLOCK;

/// One entry; `inode` 0 means that it is not in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// Where it begins within the block.
    pub offset: usize,
    pub inode: InodeNr,
    /// Bytes to the next entry.
    pub rec_len: usize,
    /// `file_type`, or the high half of `name_len` on filesystems without that feature.
    pub file_type: u8,
    pub name: &'a [u8],
}

impl DirEntry<'_> {
    pub fn is_used(&self) -> bool {
        self.inode.0 != 0
    }

    /// Is it the first or the second entry of every directory by its name?
    pub fn is_dot_or_dotdot(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }
}

/// An entry that cannot be: everything behind it is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadEntry {
    pub offset: usize,
    pub reason: &'static str,
}

/// Lists the entries of a block (or of a part of an inline directory), the fake one with the
/// checksum among them; ends after the first that cannot be.
pub fn entries(block: &[u8]) -> impl Iterator<Item = Result<DirEntry<'_>, BadEntry>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let offset = at.take().filter(|&offset| offset < block.len())?;
        let found = decode(block, offset);
        if let Ok(entry) = &found {
            at = Some(offset + entry.rec_len);
        }
        Some(found)
    })
}

fn decode(block: &[u8], offset: usize) -> Result<DirEntry<'_>, BadEntry> {
    let bad = |reason| Err(BadEntry { offset, reason });
    if offset + MIN_ENTRY > block.len() {
        return bad("an entry begins too close to the end");
    }
    let rec_len = rec_len(block, offset);
    let name_len = usize::from(block[offset + 6]);
    if rec_len < MIN_ENTRY || !rec_len.is_multiple_of(4) {
        return bad("an entry has an impossible length");
    }
    if offset + rec_len > block.len() {
        return bad("an entry goes past the end");
    }
    if ENTRY + name_len > rec_len {
        return bad("an entry's name is longer than the entry");
    }
    Ok(DirEntry {
        offset,
        inode: InodeNr(le32(block, offset)),
        rec_len,
        file_type: block[offset + 7],
        name: &block[offset + ENTRY..offset + ENTRY + name_len],
    })
}

/// Returns the length of the entry at `offset`: blocks of 64 KiB put its top bits into the two low
/// ones, which are zero otherwise, and write 0 or 65535 for a whole block.
fn rec_len(block: &[u8], offset: usize) -> usize {
    let raw = usize::from(le16(block, offset + 4));
    match (block.len() >= 0x1_0000, raw) {
        (false, _) => raw,
        (true, 0 | 0xFFFF) => block.len(),
        (true, _) => raw & 0xFFFC | (raw & 3) << 16,
    }
}

/// What a block of a directory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Entries.
    Leaf,
    /// The dot entries, and the top of the index.
    DxRoot,
    /// A part of the index.
    DxNode,
}

impl BlockKind {
    /// Returns where limit, count and the first pair are.
    fn count_offset(self) -> usize {
        match self {
            BlockKind::DxRoot => ROOT_COUNT,
            _ => NODE_COUNT,
        }
    }
}

/// The top of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DxInfo {
    pub hash_version: u8,
    pub indirect_levels: u8,
    pub unused_flags: u8,
}

/// Decodes block 0 of an indexed directory as the index's root.
///
/// # Errors
/// What makes it none.
pub fn dx_info(block: &[u8]) -> Result<DxInfo, &'static str> {
    // A dot entry of 12 bytes, then one that fills the block: otherwise the index would be names.
    if rec_len(block, 0) != 12 || rec_len(block, 12) != block.len() - 12 {
        return Err("the index's root does not begin with the dot entries");
    }
    if le32(block, 24) != 0 {
        return Err("the index's root has a reserved field that is not zero");
    }
    if block[29] != 8 {
        return Err("the index's root has an unknown length");
    }
    Ok(DxInfo {
        hash_version: block[28],
        indirect_levels: block[30],
        unused_flags: block[31],
    })
}

/// Does a block look like a dx node: one unused, untyped entry as long as the block?
pub fn looks_like_node(block: &[u8]) -> bool {
    le32(block, 0) == 0 && rec_len(block, 0) == block.len() && le16(block, 6) == 0
}

/// Returns how many pairs a root or node of this filesystem has room for.
pub fn dx_limit(fs: &Super, kind: BlockKind) -> usize {
    let tail = if fs.checksums.enabled() { 8 } else { 0 };
    (fs.geometry.block_size as usize - kind.count_offset() - tail) / 8
}

/// Returns the deepest index the filesystem may have (0: the root points to leaves).
pub fn dx_max_levels(fs: &Super) -> u8 {
    if fs.superblock.has_incompat(INCOMPAT_LARGEDIR) {
        2
    } else {
        1
    }
}

/// One pair of the index: blocks from `block` on hold the names whose hash is at least `hash`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DxPair {
    pub hash: u32,
    /// Logical block of the directory.
    pub block: u32,
}

/// Lists the pairs of a root or node; the first one's hash is 0 by definition.
///
/// # Errors
/// If limit or count cannot be.
pub fn dx_pairs(
    fs: &Super,
    kind: BlockKind,
    block: &[u8],
) -> Result<impl Iterator<Item = DxPair>, &'static str> {
    let at = kind.count_offset();
    let (limit, count) = (
        usize::from(le16(block, at)),
        usize::from(le16(block, at + 2)),
    );
    if limit != dx_limit(fs, kind) {
        return Err("the index has a wrong limit");
    }
    if count == 0 || count > limit {
        return Err("the index has a wrong count");
    }
    Ok((0..count).map(move |index| {
        let pair = at + 8 * index;
        DxPair {
            hash: if index == 0 { 0 } else { le32(block, pair) },
            block: le32(block, pair + 4) & 0x0FFF_FFFF,
        }
    }))
}

/// A block of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirBlock {
    pub logical: u32,
    pub block: BlockNr,
    pub kind: BlockKind,
}

/// Lists the blocks of one directory of a sound filesystem in logical order. For many directories,
/// it is faster to read all their blocks in ascending order, and ask [`kind_of`].
///
/// # Errors
/// What the device fails with.
pub fn blocks(
    fs: &Super,
    device: &dyn ReadAt,
    extents: &[Extent],
    indexed: bool,
) -> Result<Vec<DirBlock>> {
    let size = fs.geometry.block_size as usize;
    let mut blocks = Vec::new();
    for extent in extents {
        for skip in 0..extent.len() {
            // OK: a map's logical numbers and its blocks were checked to be in range.
            let (logical, block) = (extent.logical + skip, extent.start + u64::from(skip));
            let kind = match indexed {
                true => {
                    let bytes = device.read_vec_at(fs.geometry.offset(block), size)?;
                    kind_of(fs, indexed, logical, &bytes)
                }
                false => BlockKind::Leaf,
            };
            blocks.push(DirBlock {
                logical,
                block,
                kind,
            });
        }
    }
    Ok(blocks)
}

/// Tells what block `logical` of a directory of a sound filesystem is; `indexed` says whether the
/// directory has the flag `INDEX_FL`.
pub fn kind_of(fs: &Super, indexed: bool, logical: u32, block: &[u8]) -> BlockKind {
    match (indexed, logical) {
        (false, _) => BlockKind::Leaf,
        (true, 0) => BlockKind::DxRoot,
        (true, _) => node_or_leaf(fs, block),
    }
}

/// Tells a node of an index from a leaf, which only the shape of the block does.
pub fn node_or_leaf(fs: &Super, block: &[u8]) -> BlockKind {
    if looks_like_node(block) && dx_pairs(fs, BlockKind::DxNode, block).is_ok() {
        BlockKind::DxNode
    } else {
        BlockKind::Leaf
    }
}

/// Does a leaf end with the fake entry that carries its checksum?
pub fn has_leaf_tail(block: &[u8]) -> bool {
    let tail = block.len() - LEAF_TAIL;
    le32(block, tail) == 0
        && le16(block, tail + 4) == LEAF_TAIL as u16
        && block[tail + 6] == 0
        && block[tail + 7] == TAIL_FILE_TYPE
}

/// Where a block keeps its checksum, and what that should be; `None` if it has no room for one.
fn checksum(seed: u32, kind: BlockKind, block: &[u8]) -> Option<(usize, u32)> {
    if kind == BlockKind::Leaf {
        let tail = block.len() - LEAF_TAIL;
        return has_leaf_tail(block).then(|| (tail + 8, crc32c(seed, &block[..tail])));
    }
    let at = kind.count_offset();
    let (limit, count) = (
        usize::from(le16(block, at)),
        usize::from(le16(block, at + 2)),
    );
    let tail = at + 8 * limit;
    if count > limit || tail + 8 > block.len() {
        return None;
    }
    let mut crc = crc32c(seed, &block[..at + 8 * count]);
    crc = crc32c(crc, &block[tail..tail + 4]);
    Some((tail + 4, crc32c(crc, &[0; 4])))
}

/// Does a block's checksum match (always true without `metadata_csum`)?
pub fn checksum_matches(
    fs: &Super,
    dir: InodeNr,
    generation: u32,
    kind: BlockKind,
    block: &[u8],
) -> bool {
    let seed = fs.checksums.inode_seed(dir, generation);
    !fs.checksums.enabled()
        || checksum(seed, kind, block).is_some_and(|(at, crc)| le32(block, at) == crc)
}

/// Stores the checksum of a block of directory `dir`; returns false if it has no room for one.
pub fn update_checksum(
    fs: &Super,
    dir: InodeNr,
    generation: u32,
    kind: BlockKind,
    block: &mut [u8],
) -> bool {
    if !fs.checksums.enabled() {
        return true;
    }
    let seed = fs.checksums.inode_seed(dir, generation);
    let Some((at, crc)) = checksum(seed, kind, block) else {
        return false;
    };
    put32(block, at, crc);
    true
}

/// Gives the inodes that a block names their new numbers; returns whether any changed. The
/// checksum is not updated.
pub fn relocate_entries(
    block: &mut [u8],
    kind: BlockKind,
    new_number: &dyn Fn(InodeNr) -> InodeNr,
) -> bool {
    match kind {
        // The two dot entries' lengths cover the whole root, so they are a list like any other.
        BlockKind::Leaf | BlockKind::DxRoot => relocate_list(block, new_number),
        BlockKind::DxNode => false,
    }
}

fn relocate_list(block: &mut [u8], new_number: &dyn Fn(InodeNr) -> InodeNr) -> bool {
    let mut changed = false;
    let mut offset = 0;
    while offset < block.len() {
        let Ok(entry) = decode(block, offset) else {
            break;
        };
        let (old, rec_len) = (entry.inode, entry.rec_len);
        if old.0 != 0 {
            let new = new_number(old);
            if new != old {
                put32(block, offset, new.0);
                changed = true;
            }
        }
        offset += rec_len;
    }
    changed
}

/// Where a directory inside an inode keeps its entries, as byte ranges of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineDir {
    /// The number of the parent directory; there are no dot entries.
    pub parent: InodeNr,
    /// The list in `i_block`.
    pub first: Range<usize>,
    /// The list in the value of the attribute system.data; may be empty.
    pub more: Range<usize>,
}

impl InlineDir {
    /// Returns the parts of an inode whose flags say that it holds its data; `None` if it does not
    /// or lacks the attribute.
    pub fn of<T: AsRef<[u8]>>(inode: &Inode<T>) -> Option<Self> {
        Some(Self {
            parent: InodeNr(le32(inode.bytes(), INLINE_PARENT)),
            first: INLINE_PARENT + 4..I_BLOCK + I_BLOCK_SIZE,
            more: inline_data(inode)?,
        })
    }

    /// Returns both lists.
    pub fn lists<'a>(&self, slot: &'a [u8]) -> [&'a [u8]; 2] {
        [&slot[self.first.clone()], &slot[self.more.clone()]]
    }
}

/// Returns where an inode with inline data keeps what does not fit into `i_block`; `None` if it
/// has no inline data or lacks the attribute for it.
pub fn inline_data<T: AsRef<[u8]>>(inode: &Inode<T>) -> Option<Range<usize>> {
    if !inode.has_flag(INLINE_DATA_FL) {
        return None;
    }
    xattr::in_slot(inode)?.find(inode.bytes(), INDEX_SYSTEM, b"data")
}

/// Gives the inodes that a directory inside its inode names, its parent among them, their new
/// numbers; returns whether any changed. The inode's checksum is not updated.
pub fn relocate_inline(slot: &mut [u8], new_number: &dyn Fn(InodeNr) -> InodeNr) -> bool {
    let Some(dir) = InlineDir::of(&Inode(&*slot)) else {
        return false;
    };
    let parent = new_number(dir.parent);
    put32(slot, INLINE_PARENT, parent.0);
    let mut changed = parent != dir.parent;
    for list in [dir.first, dir.more] {
        changed |= relocate_list(&mut slot[list], new_number);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::format::group_desc::GroupTable;
    use crate::ext4::format::raw::put16;
    use crate::ext4::format::superblock::RO_COMPAT_METADATA_CSUM;
    use crate::ext4::read::map::read_map;
    use crate::io::memory::MemoryDisk;
    use std::path::Path;
    use std::process::Command;

    fn entry(inode: u32, rec_len: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from(inode.to_le_bytes());
        bytes.extend(rec_len.to_le_bytes());
        bytes.extend([name.len() as u8, 1]);
        bytes.extend(name);
        bytes.resize(usize::from(rec_len), 0);
        bytes
    }

    #[test]
    fn lists_until_the_first_bad_entry() {
        let good = [entry(5, 12, b"a"), entry(0, 16, b""), entry(6, 12, b"bcd")].concat();
        let names: Vec<_> = entries(&good).map(|e| e.unwrap().inode.0).collect();
        assert_eq!(names, [5, 0, 6]);
        for (at, value, reason) in [
            (12 + 4, 8u16, "impossible length"),
            (12 + 4, 0, "impossible length"),
            (12 + 4, 18, "impossible length"),
            (12 + 4, 32, "past the end"),
            (12 + 4, 20, "too close to the end"),
            (12 + 6, 9, "longer than the entry"),
        ] {
            let mut bad = good.clone();
            put16(&mut bad, at, value);
            let found: Vec<_> = entries(&bad).collect();
            assert_eq!(found[0].unwrap().name, b"a");
            let error = found.last().unwrap().unwrap_err();
            assert!(error.reason.contains(reason), "{value}: {}", error.reason);
        }
    }

    #[test]
    fn lengths_in_blocks_of_64_kib() {
        let mut block = vec![0; 0x1_0000];
        put16(&mut block, 4, 0xFFFF);
        assert_eq!(entries(&block).next().unwrap().unwrap().rec_len, 0x1_0000);
        put16(&mut block, 4, 12);
        put16(&mut block, 12 + 4, 0xFFF4);
        let lens: Vec<_> = entries(&block).map(|e| e.unwrap().rec_len).collect();
        assert_eq!(lens, [12, 0xFFF4]);
    }

    fn run(program: &str, args: &[&str]) {
        let output = Command::new(program).args(args).output().expect(program);
        assert!(output.status.code() < Some(4), "{program}: {output:?}");
    }

    /// Makes a filesystem with 2200 long names in its root, indexed by e2fsck -D.
    fn indexed_root(dir: &Path, options: &[&str]) -> MemoryDisk {
        let image = dir.join("image");
        let files = dir.join("files");
        std::fs::create_dir_all(&files).unwrap();
        for number in 0..2200 {
            std::fs::write(files.join(format!("{number:0>60}")), "").unwrap();
        }
        let (image, files) = (image.to_str().unwrap(), files.to_str().unwrap());
        let mut args = vec!["-qF", "-t", "ext4", "-N", "5000", "-d", files];
        args.extend(options);
        args.extend([image, "24M"]);
        run("mke2fs", &args);
        run("e2fsck", &["-fyD", image]);
        let bytes = std::fs::read(image).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        MemoryDisk::from(bytes)
    }

    #[test]
    fn reads_indexes_that_e2fsck_made() {
        let options: [&[&str]; 3] = [
            &["-b", "1024", "-O", "metadata_csum"],
            &["-b", "4096", "-O", "^metadata_csum"],
            &["-b", "4096", "-O", "metadata_csum"],
        ];
        for (case, options) in options.into_iter().enumerate() {
            let tmp = std::env::temp_dir().join(format!("dir-{}-{case}", std::process::id()));
            let disk = indexed_root(&tmp, options);
            let fs = Super::read(&disk).unwrap().unwrap();
            let table = GroupTable::read(&fs, &disk).unwrap();
            let geometry = &fs.geometry;
            let slot = geometry.offset(table.groups[0].inode_table()) + geometry.inode_size;
            let slot = disk.read_vec_at(slot, geometry.inode_size as usize);
            let root = Inode(slot.unwrap());
            let map = read_map(&fs, &disk, InodeNr(2), &root, &mut |_, _| Ok(())).unwrap();
            let blocks = blocks(&fs, &disk, &map.extents, true).unwrap();
            let mut counts = [0; 3];
            let mut names = 0;
            for dir_block in blocks {
                let at = geometry.offset(dir_block.block);
                let mut block = disk.read_vec_at(at, geometry.block_size as usize).unwrap();
                let kind = dir_block.kind;
                counts[kind as usize] += 1;
                let matches = |block: &[u8]| {
                    checksum_matches(&fs, InodeNr(2), root.i_generation(), kind, block)
                };
                assert!(matches(&block), "{dir_block:?} of {options:?}");
                if kind == BlockKind::Leaf {
                    names += entries(&block).filter(|e| e.unwrap().is_used()).count();
                }
                let plus_one = |old: InodeNr| InodeNr(old.0 + 1);
                let changed = relocate_entries(&mut block, kind, &plus_one);
                assert_eq!(changed, kind != BlockKind::DxNode);
                let csum = fs.superblock.has_ro_compat(RO_COMPAT_METADATA_CSUM);
                // The root's checksum begins with the dot entries.
                assert_eq!(matches(&block), !csum || !changed);
                let generation = root.i_generation();
                assert!(update_checksum(
                    &fs,
                    InodeNr(2),
                    generation,
                    kind,
                    &mut block
                ));
                assert!(matches(&block));
            }
            assert_eq!(names, 2200 + 1, "the files and lost+found");
            assert_eq!(counts[BlockKind::DxRoot as usize], 1);
            assert_eq!(
                counts[BlockKind::DxNode as usize] > 0,
                geometry.block_size == 1024
            );
        }
    }
}
