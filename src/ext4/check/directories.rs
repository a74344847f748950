//! Directory blocks: what every entry names, and that names are found where the index says.

use std::ops::Range;

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::check::index::Index;
use crate::ext4::format::dir;
use crate::ext4::format::dir::{BlockKind, DirEntry, InlineDir, LEAF_TAIL};
use crate::ext4::format::dirhash::{HALF_MD4, Hasher, LEGACY, SIPHASH, TEA};
use crate::ext4::format::inode::{
    CASEFOLD_FL, ENCRYPT_FL, INDEX_FL, INLINE_DATA_FL, ROOT_INO, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
    file_type,
};
use crate::ext4::format::raw::le32;
use crate::ext4::format::superblock::INCOMPAT_FILETYPE;
use crate::ext4::read::blocks::for_each_block;
use crate::ext4::read::metadata::InodeRecord;
use crate::units::{BlockNr, InodeNr};

/// Blocks that are listed at a time, in 64 MiB; tests go through the seams.
const BATCH: u64 = if cfg!(test) { 2 } else { 4 << 20 };
/// Encrypted names are at least one cipher block long.
const ENCRYPTED_NAME_MIN: usize = 16;

/// One block of one directory.
#[derive(Clone, Copy)]
struct Item {
    block: BlockNr,
    /// Index of the directory.
    dir: u32,
    logical: u32,
}

/// Which entry of a directory is being looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Dot,
    DotDot,
    Later,
}

impl Check<'_> {
    /// Reads every block of every directory, some directories at a time: first the first ones, which
    /// say how to hash names.
    pub(super) fn directories(&mut self) -> Result<()> {
        let hasher = Hasher::of(&self.fs.superblock);
        let mut from = 0;
        while from < self.dirs.len() {
            let mut to = from;
            let mut blocks = 0;
            while to < self.dirs.len() && (to == from || blocks + self.blocks_of(to) <= BATCH) {
                blocks += self.blocks_of(to);
                to += 1;
            }
            self.some_directories(from..to, &hasher)?;
            from = to;
        }
        Ok(())
    }

    /// Returns how many blocks a directory has.
    fn blocks_of(&self, dir: usize) -> u64 {
        let record = self.dir_record(dir);
        if record.flags & INLINE_DATA_FL != 0 {
            return 0;
        }
        let extents = self.meta.extents(record).iter();
        extents.map(|extent| u64::from(extent.len())).sum()
    }

    fn some_directories(&mut self, dirs: Range<usize>, hasher: &Hasher) -> Result<()> {
        let meta = self.meta;
        let places: Vec<u32> = self.dirs[dirs.clone()]
            .iter()
            .map(|dir| dir.place)
            .collect();
        let records = places.iter().map(|&place| &meta.inodes[place as usize]);
        let mut items = dirs.zip(records).flat_map(|(dir, record)| {
            let extents = match record.flags & INLINE_DATA_FL {
                0 => meta.extents(record),
                _ => &[],
            };
            extents.iter().flat_map(move |extent| {
                (0..extent.len()).map(move |skip| Item {
                    block: extent.start + u64::from(skip),
                    // OK: there are fewer directories than inodes.
                    dir: dir as u32,
                    logical: extent.logical + skip,
                })
            })
        });
        let firsts = items.clone().filter(|item| item.logical == 0).collect();
        self.read_directories(firsts, hasher)?;
        loop {
            let others = items.by_ref().filter(|item| item.logical != 0);
            let others: Vec<Item> = others.take(BATCH as usize).collect();
            if others.is_empty() {
                break;
            }
            self.read_directories(others, hasher)?;
        }
        for (dir, index) in std::mem::take(&mut self.indexes) {
            if let Err(text) = index.verify() {
                let number = self.dir_record(dir as usize).number;
                self.inode_damaged(number, text);
            }
        }
        Ok(())
    }

    fn read_directories(&mut self, mut items: Vec<Item>, hasher: &Hasher) -> Result<()> {
        items.sort_unstable_by_key(|item| item.block);
        let (view, fs) = (self.view, self.fs);
        for_each_block(
            view,
            fs,
            &items,
            |item| item.block,
            |&item, bytes| {
                self.directory_block(item, bytes, hasher);
                Ok(())
            },
        )?;
        self.indexes.sort_unstable_by_key(|index| index.0);
        Ok(())
    }

    fn directory_block(&mut self, item: Item, bytes: &[u8], hasher: &Hasher) {
        let record = self.dir_record(item.dir as usize);
        let number = record.number;
        let mut index = None;
        let kind = if record.flags & INDEX_FL == 0 {
            BlockKind::Leaf
        } else if item.logical == 0 {
            self.index_root(item.dir, bytes);
            BlockKind::DxRoot
        } else {
            index = self
                .indexes
                .binary_search_by_key(&item.dir, |index| index.0)
                .ok();
            match index {
                Some(_) => dir::node_or_leaf(self.fs, bytes),
                None => BlockKind::Leaf,
            }
        };
        if !dir::checksum_matches(self.fs, number, record.generation, kind, bytes) {
            self.inode_damaged(
                number,
                format_args!(
                    "the checksum of its directory block {} does not match",
                    item.logical
                ),
            );
        }
        if let Some(index) = index {
            let index = &mut self.indexes[index].1;
            index.set_kind(item.logical, kind);
            if kind == BlockKind::DxNode {
                if let Err(text) = index.take_pairs(self.fs, kind, item.logical, bytes) {
                    self.inode_damaged(number, text);
                }
                return;
            }
        }
        let end = if kind == BlockKind::Leaf && self.fs.checksums.enabled() {
            bytes.len() - LEAF_TAIL
        } else {
            bytes.len()
        };
        let mut hashes = index.map(|index| NameHashes::new(self, index, record, hasher));
        self.entries(item, bytes, end, &mut hashes);
        if let (Some(index), Some(hashes)) = (index, hashes)
            && let Some((min, max)) = hashes.met
        {
            let index = &mut self.indexes[index].1;
            index.take_hash(item.logical, min);
            index.take_hash(item.logical, max);
        }
    }

    fn index_root(&mut self, dir: u32, bytes: &[u8]) {
        let record = self.dir_record(dir as usize);
        let extents = self.meta.extents(record);
        let count: u64 = extents.iter().map(|extent| u64::from(extent.len())).sum();
        if extents.last().map(|last| last.logical_end()) != Some(count) {
            // A hole, which was found before, and might be huge.
            return;
        }
        let index = match Index::of_root(self.fs, bytes, count as usize) {
            Ok(index) => index,
            Err(text) => {
                self.inode_damaged(record.number, text);
                return;
            }
        };
        let hash_in_entry = hash_in_entry(record);
        let version_fits = match index.hash_version() {
            LEGACY | HALF_MD4 | TEA => !hash_in_entry,
            SIPHASH => hash_in_entry,
            _ => false,
        };
        if !version_fits {
            self.inode_damaged(
                record.number,
                format_args!("its index has hashes of version {}", index.hash_version()),
            );
        }
        self.indexes.push((dir, index));
    }

    /// The entries of one block up to `end`.
    fn entries(
        &mut self,
        item: Item,
        bytes: &[u8],
        end: usize,
        hashes: &mut Option<NameHashes<'_>>,
    ) {
        let dir = item.dir as usize;
        let record = self.dir_record(dir);
        let extended = hash_in_entry(record);
        let mut names: Vec<&[u8]> = Vec::new();
        let mut positions = [Position::Dot, Position::DotDot]
            .into_iter()
            .filter(|_| item.logical == 0);
        let mut at = 0;
        for entry in dir::entries(bytes).take_while(|entry| match entry {
            Ok(entry) => entry.offset < end,
            Err(bad) => bad.offset < end,
        }) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(bad) => {
                    self.inode_damaged(
                        record.number,
                        format_args!(
                            "{} at byte {} of its directory block {}",
                            bad.reason, bad.offset, item.logical
                        ),
                    );
                    return;
                }
            };
            at = entry.offset + entry.rec_len;
            let position = positions.next().unwrap_or(Position::Later);
            let with_hash = extended && position == Position::Later;
            let needed = 8 + entry.name.len().max(1).next_multiple_of(4) + 8;
            if at > end || with_hash && entry.rec_len < needed {
                self.inode_damaged(
                    record.number,
                    format_args!(
                        "an entry is too long or too short at byte {} of its directory block {}",
                        entry.offset, item.logical
                    ),
                );
                return;
            }
            if position != Position::Later {
                self.dot_entry(dir, position, &entry, bytes);
            }
            if !entry.is_used() {
                continue;
            }
            self.entry(dir, position, &entry);
            names.push(entry.name);
            if let Some(hashes) = hashes {
                hashes.take(&entry, bytes);
            }
        }
        if positions.next().is_some() {
            self.inode_damaged(record.number, "is a directory without '.' or '..'");
        }
        if at != end {
            self.inode_damaged(
                record.number,
                format_args!("its directory block {} ends too early", item.logical),
            );
        }
        names.sort_unstable();
        if let Some(two) = names.windows(2).find(|two| two[0] == two[1]) {
            self.inode_damaged(
                record.number,
                format_args!("has two entries '{}'", two[0].escape_ascii()),
            );
        }
    }

    /// The first two entries have fixed names and lengths.
    fn dot_entry(&mut self, dir: usize, position: Position, entry: &DirEntry<'_>, bytes: &[u8]) {
        let number = self.dir_record(dir).number;
        let name: &[u8] = if position == Position::Dot {
            b"."
        } else {
            b".."
        };
        // The byte behind the name has to be zero, for the kernel's sake.
        let terminated = bytes.get(entry.offset + 8 + name.len()) == Some(&0);
        if !entry.is_used() || entry.name != name || !terminated {
            self.inode_damaged(number, "is a directory without '.' or '..'");
            return;
        }
        if position == Position::DotDot {
            self.dirs[dir].dotdot = entry.inode.0;
        } else if entry.inode != number {
            self.inode_damaged(number, "is a directory with a wrong '.'");
        }
    }

    /// One entry in use: is what it names there, and of the type it says?
    fn entry(&mut self, dir: usize, position: Position, entry: &DirEntry<'_>) {
        let record = self.dir_record(dir);
        if let Some(problem) = self.name_problem(record, position, entry) {
            self.inode_damaged(
                record.number,
                format_args!("entry '{}' {problem}", entry.name.escape_ascii()),
            );
        }
        let Some(place) = self.places.of_number(entry.inode) else {
            self.inode_damaged(
                record.number,
                format_args!(
                    "entry '{}' names inode {}, which is not in use",
                    entry.name.escape_ascii(),
                    entry.inode
                ),
            );
            return;
        };
        self.links[place] = self.links[place].saturating_add(1);
        let target = &self.meta.inodes[place];
        let expected = if self.fs.superblock.has_incompat(INCOMPAT_FILETYPE) {
            file_type(target.mode)
        } else {
            0
        };
        // Entries from before the filesystem had types have none.
        if entry.file_type != expected && entry.file_type != 0 {
            self.inode_damaged(
                record.number,
                format_args!(
                    "entry '{}' has type {}, but inode {} is of type {expected}",
                    entry.name.escape_ascii(),
                    entry.file_type,
                    entry.inode
                ),
            );
        }
        if position == Position::Later {
            self.child(record.number, place, entry.name);
            self.child_policy(dir, place, entry.name);
        }
    }

    /// What is in an encrypted directory is encrypted in the same way, devices and the like aside.
    fn child_policy(&mut self, dir: usize, place: usize, name: &[u8]) {
        let record = self.dir_record(dir);
        if record.flags & ENCRYPT_FL == 0 {
            return;
        }
        let policy_of = |place: u32| {
            let index = self.encrypted.binary_search_by_key(&place, |known| known.0);
            index.ok().map(|index| self.encrypted[index].1)
        };
        let child = &self.meta.inodes[place];
        let plain_is_fine = !matches!(child.mode & S_IFMT, S_IFREG | S_IFDIR | S_IFLNK);
        // OK: there are fewer inodes than 2^32.
        let fits = match policy_of(place as u32) {
            None => plain_is_fine,
            policy => policy == policy_of(self.dirs[dir].place),
        };
        if !fits {
            self.inode_damaged(
                record.number,
                format_args!(
                    "entry '{}' is not encrypted as its directory is",
                    name.escape_ascii()
                ),
            );
        }
    }

    fn child(&mut self, parent: InodeNr, place: usize, name: &[u8]) {
        let Some(child) = self.dir_at(place) else {
            return;
        };
        if self.dirs[child].parent != 0 {
            self.inode_damaged(
                parent,
                format_args!(
                    "entry '{}' is a second one for directory {}",
                    name.escape_ascii(),
                    self.dir_record(child).number
                ),
            );
            return;
        }
        self.dirs[child].parent = parent.0;
    }

    fn name_problem(
        &self,
        dir: &InodeRecord,
        position: Position,
        entry: &DirEntry<'_>,
    ) -> Option<&'static str> {
        let superblock = &self.fs.superblock;
        let target = entry.inode;
        let is = |field: u32| field != 0 && field == target.0;
        if target != ROOT_INO && target.0 < superblock.first_ino()
            || is(superblock.s_usr_quota_inum())
            || is(superblock.s_grp_quota_inum())
            || is(superblock.s_prj_quota_inum())
            || is(superblock.s_orphan_file_inum())
        {
            return Some("names one of the filesystem's own inodes");
        }
        if position != Position::Later {
            return None;
        }
        let encrypted = dir.flags & ENCRYPT_FL != 0;
        match entry.name {
            b"" => Some("has no name"),
            b"." | b".." => Some("is not at the directory's beginning"),
            _ if target == ROOT_INO => Some("names the root directory"),
            _ if target == dir.number => Some("names its own directory"),
            name if encrypted && name.len() < ENCRYPTED_NAME_MIN => {
                Some("is too short for an encrypted name")
            }
            name if !encrypted && name.iter().any(|&byte| matches!(byte, b'/' | 0)) => {
                Some("has a slash or a zero in its name")
            }
            _ => None,
        }
    }

    /// A directory within its inode; its dot entries are not written down.
    pub(super) fn inline_directory(&mut self, dir: usize, parts: &InlineDir, slot: &[u8]) {
        let place = self.dirs[dir].place as usize;
        self.links[place] = self.links[place].saturating_add(1);
        self.dirs[dir].dotdot = parts.parent.0;
        if let Some(place) = self.places.of_number(parts.parent) {
            self.links[place] = self.links[place].saturating_add(1);
        }
        for (logical, list) in parts.lists(slot).into_iter().enumerate() {
            if list.is_empty() {
                continue;
            }
            let item = Item {
                block: 0,
                dir: dir as u32,
                // No list has dot entries, so none is the first block.
                logical: 1 + logical as u32,
            };
            self.entries(item, list, list.len(), &mut None);
        }
    }
}

/// How to hash the names of one leaf, and the range that was met.
struct NameHashes<'a> {
    hasher: &'a Hasher,
    version: Option<u8>,
    met: Option<(u32, u32)>,
}

impl<'a> NameHashes<'a> {
    fn new(check: &Check<'_>, index: usize, record: &InodeRecord, hasher: &'a Hasher) -> Self {
        let version = check.indexes[index].1.hash_version();
        // Case-folded names are hashed in a form that only the kernel's tables give.
        let opaque = record.flags & CASEFOLD_FL != 0 && version != SIPHASH;
        Self {
            hasher,
            version: (!opaque).then_some(version),
            met: None,
        }
    }

    fn take(&mut self, entry: &DirEntry<'_>, bytes: &[u8]) {
        let hash = match self.version {
            // Behind the name, padded.
            Some(SIPHASH) => {
                let at = entry.offset + 8 + entry.name.len().next_multiple_of(4);
                (at + 4 <= bytes.len()).then(|| le32(bytes, at) & !1)
            }
            Some(version) => self.hasher.hash(version, entry.name),
            None => None,
        };
        if let Some(hash) = hash {
            let (min, max) = self.met.unwrap_or((hash, hash));
            self.met = Some((min.min(hash), max.max(hash)));
        }
    }
}

/// Do the directory's entries carry their hashes (encrypted and case-folded)?
fn hash_in_entry(record: &InodeRecord) -> bool {
    record.flags & ENCRYPT_FL != 0 && record.flags & CASEFOLD_FL != 0
}
