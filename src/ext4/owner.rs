//! Who owns given bytes: files by path, or which metadata. Only asked when some cannot be read, so
//! it costs nothing else; it reads all metadata, and all directories if a file is concerned.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::findings::Findings;
use crate::ext4::format::dir::{InlineDir, entries};
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{INLINE_DATA_FL, ROOT_INO};
use crate::ext4::format::superblock::SUPERBLOCK_OFFSET;
use crate::ext4::read::metadata::{InodeRecord, Metadata};
use crate::ext4::recover::journal;
use crate::io::{RangeSet, ReadAt};
use crate::units::InodeNr;

/// Directories that lie in one another deeper than this are taken for a loop.
const DEEPEST: usize = 4096;

/// Whose some bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Contents of a file or directory.
    File {
        inode: InodeNr,
        /// From the filesystem's root; `None` if no directory names it.
        path: Option<Vec<u8>>,
        /// The first byte's place in the file.
        offset: u64,
    },
    /// Belongs to the filesystem itself; what, in a few words.
    Metadata(String),
    /// Marked as used, but nobody's.
    Nobody,
}

/// Tells who owns each of `bytes` of the filesystem on `device`, ascending.
///
/// `device` should give zeros instead of failing for what it cannot read: then all that can still
/// be known is told.
///
/// # Errors
/// What the device fails with, and a superblock or descriptors that cannot be.
pub fn owners(device: &dyn ReadAt, bytes: &RangeSet) -> Result<Vec<(Range<u64>, Owner)>> {
    let fs = Super::read(device)?.ok_or_else(|| Error::unsound("no ext filesystem here"))?;
    // A journal that cannot be replayed leaves what is on the disk.
    let replayed = journal::replay(&fs, device)
        .map(|replay| replay.overlay)
        .unwrap_or_else(|_| crate::io::Overlay::new(device.len()));
    let view = replayed.over(device);
    let mut findings = Findings::default();
    let metadata = Metadata::read(&view, &mut findings)?;
    let mut search = Search {
        bytes,
        found: Vec::new(),
    };
    search.groups(&metadata);
    for inode in &metadata.inodes {
        search.inode(&metadata, inode);
    }
    let mut found = search.found;
    let claimed: RangeSet = found.iter().map(|(range, _)| range.clone()).collect();
    for range in bytes.iter() {
        let nobody = claimed.gaps(range).into_iter();
        found.extend(nobody.map(|range| (range, Owner::Nobody)));
    }
    found.sort_by_key(|(range, _)| range.start);
    let wanted: HashSet<InodeNr> = found
        .iter()
        .filter_map(|(_, owner)| match owner {
            Owner::File { inode, .. } => Some(*inode),
            _ => None,
        })
        .collect();
    if !wanted.is_empty() {
        let names = Names::read(&metadata, &view, &wanted)?;
        for (_, owner) in &mut found {
            if let Owner::File { inode, path, .. } = owner {
                *path = names.path(*inode);
            }
        }
    }
    Ok(found)
}

struct Search<'a> {
    bytes: &'a RangeSet,
    found: Vec<(Range<u64>, Owner)>,
}

impl Search<'_> {
    fn metadata(&mut self, within: Range<u64>, name: impl Fn(&Range<u64>) -> String) {
        for range in self.bytes.iter_within(within) {
            let name = name(&range);
            self.found.push((range, Owner::Metadata(name)));
        }
    }

    /// What belongs to the groups.
    fn groups(&mut self, metadata: &Metadata) {
        let geometry = &metadata.fs.geometry;
        let first = geometry.super_start(0);
        let start = geometry.offset(first);
        self.metadata(0..start, |_| "the boot block".into());
        for group in 0..geometry.groups {
            let first = geometry.super_start(group);
            let all = geometry.bytes(first, geometry.super_blocks(group));
            let end = match (group, all.is_empty()) {
                (_, true) => all.start,
                (0, false) => all.start.max(SUPERBLOCK_OFFSET + 1024),
                (_, false) => all.start + geometry.block_size,
            };
            let copy = match group {
                0 => "the",
                _ => "a copy of the",
            };
            self.metadata(all.start..end, |_| {
                format!("{copy} superblock in group {group}")
            });
            self.metadata(end..all.end, |_| {
                format!("{copy} group descriptors in group {group}")
            });
            let Some(desc) = metadata.table.groups.get(group as usize) else {
                continue;
            };
            for (what, block) in [
                ("block bitmap", desc.block_bitmap()),
                ("inode bitmap", desc.inode_bitmap()),
            ] {
                if block < geometry.blocks_count {
                    let name = format!("the {what} of group {group}");
                    self.metadata(geometry.bytes(block, 1), |_| name.clone());
                }
            }
            let table = desc.inode_table();
            if table >= geometry.blocks_count {
                continue;
            }
            let blocks = geometry.itable_blocks.min(geometry.blocks_count - table);
            let table = geometry.bytes(table, blocks);
            let number = |index: u64| {
                let index = index.min(u64::from(geometry.inodes_per_group) - 1);
                geometry.inode_at(group, index as u32)
            };
            self.metadata(table.clone(), |range| {
                let first = number((range.start - table.start) / geometry.inode_size);
                let last = number((range.end - 1 - table.start) / geometry.inode_size);
                format!("the inode table of group {group} (inodes {first} to {last})")
            });
        }
    }

    /// What belongs to an inode.
    fn inode(&mut self, metadata: &Metadata, inode: &InodeRecord) {
        let geometry = &metadata.fs.geometry;
        let number = inode.number;
        let special = special_name(metadata, number);
        for extent in metadata.extents(inode) {
            let all = geometry.bytes(extent.start, u64::from(extent.len()));
            let base = u64::from(extent.logical) * geometry.block_size;
            for range in self.bytes.iter_within(all.clone()) {
                let owner = match special {
                    Some(name) => Owner::Metadata(name.into()),
                    None => Owner::File {
                        inode: number,
                        path: None,
                        offset: base + (range.start - all.start),
                    },
                };
                self.found.push((range, owner));
            }
        }
        for node in metadata.nodes(inode) {
            self.metadata(geometry.bytes(node.block, 1), |_| {
                format!("the block list of inode {number}")
            });
        }
        if inode.file_acl != 0 && inode.file_acl < geometry.blocks_count {
            self.metadata(geometry.bytes(inode.file_acl, 1), |_| {
                format!("the extended attributes of inode {number}")
            });
        }
    }
}

/// Files that no directory names.
fn special_name(metadata: &Metadata, number: InodeNr) -> Option<&'static str> {
    let superblock = &metadata.fs.superblock;
    match number {
        InodeNr(number) if number == superblock.s_journal_inum() => Some("the journal"),
        ROOT_INO => None,
        InodeNr(number) if number == superblock.s_orphan_file_inum() && number != 0 => {
            Some("the list of orphans")
        }
        InodeNr(number) if number < superblock.first_ino() => Some("a reserved inode's blocks"),
        _ => None,
    }
}

/// What the directories call the wanted inodes and each other: the directory and the name in it.
/// Of several names of a file one is kept.
struct Names<'a> {
    metadata: &'a Metadata,
    wanted: &'a HashSet<InodeNr>,
    entries: HashMap<InodeNr, (InodeNr, Vec<u8>)>,
}

impl<'a> Names<'a> {
    fn read(
        metadata: &'a Metadata,
        device: &dyn ReadAt,
        wanted: &'a HashSet<InodeNr>,
    ) -> Result<Self> {
        let geometry = &metadata.fs.geometry;
        let mut names = Self {
            metadata,
            wanted,
            entries: HashMap::new(),
        };
        for dir in metadata.inodes.iter().filter(|inode| inode.is_dir()) {
            if dir.flags & INLINE_DATA_FL != 0 {
                let inode = metadata.read_inode(device, dir.number)?;
                if let Some(inline) = InlineDir::of(&inode) {
                    for list in inline.lists(inode.bytes()) {
                        names.add(dir.number, list);
                    }
                }
                continue;
            }
            for extent in metadata.extents(dir) {
                for skip in 0..u64::from(extent.len()) {
                    let at = geometry.offset(extent.start + skip);
                    let block = device.read_vec_at(at, geometry.block_size as usize)?;
                    names.add(dir.number, &block);
                }
            }
        }
        Ok(names)
    }

    /// A broken entry hides those behind it: they have no name then.
    fn add(&mut self, dir: InodeNr, list: &[u8]) {
        for entry in entries(list).map_while(Result::ok) {
            let number = entry.inode;
            let is_dir = || {
                self.metadata
                    .inode(number)
                    .is_some_and(|inode| inode.is_dir())
            };
            if entry.is_used()
                && !entry.is_dot_or_dotdot()
                && (self.wanted.contains(&number) || is_dir())
            {
                let name = || (dir, entry.name.to_vec());
                self.entries.entry(number).or_insert_with(name);
            }
        }
    }

    fn path(&self, inode: InodeNr) -> Option<Vec<u8>> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = inode;
        while at != ROOT_INO {
            let (dir, name) = self.entries.get(&at)?;
            parts.push(name);
            if parts.len() > DEEPEST {
                return None;
            }
            at = *dir;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        Some(path)
    }
}
