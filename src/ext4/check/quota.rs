//! Quota files (version 2 format, revision 1): the usage they record against what inodes use.
//!
//! ```text
//! blocks of 1 KiB; block 0: magic (4) version (4) | grace times, flags, counts
//! block 1          root of a tree of four levels, 256 block numbers each, one byte of the id a level
//! leaf             next, previous (4 each) entries (2), 6 spare | 14 entries of 72 bytes
//! entry            id (4) spare (4) then 8 bytes each: inode limits (2), inodes, block limits (2),
//!                  bytes, grace times (2); a free one is zeros
//! ```
//! Specification: the quota tree format of the kernel's fs/quota and of quota-tools.

use std::collections::{BTreeMap, HashSet};

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::inode::{EA_INODE_FL, INLINE_DATA_FL, Inode, ROOT_INO, S_IFLNK};
use crate::ext4::format::raw::{le16, le32};
use crate::ext4::format::superblock::{COMPAT_ORPHAN_FILE, RO_COMPAT_QUOTA};
use crate::ext4::read::metadata::InodeRecord;
use crate::units::InodeNr;

const BLOCK: u64 = 1024;
const LEVELS: u32 = 4;
const LEAF_HEADER: usize = 16;
const ENTRY: usize = 72;
/// Entries in a leaf.
const ENTRIES: usize = (BLOCK as usize - LEAF_HEADER) / ENTRY;
/// Blocks of a tree that hold pointers; more would stand for millions of ids far apart.
const MAX_NODES: usize = 1 << 18;

/// What one user, group or project uses.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Usage {
    inodes: u64,
    bytes: u64,
}

/// What one id uses, and how much of it symlinks with inline targets do: the kernel counts those,
/// e2fsck (1.47) writes files without them, and either is right.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Share {
    all: Usage,
    inline_links: Usage,
}

impl Share {
    fn allows(self, found: Usage) -> bool {
        found == self.all || found == self.without_links()
    }

    fn without_links(self) -> Usage {
        // OK: a part of the whole, and sums stop at the same bound.
        Usage {
            inodes: self.all.inodes - self.inline_links.inodes,
            bytes: self.all.bytes - self.inline_links.bytes,
        }
    }
}

/// What everybody uses, by kind of id.
#[derive(Clone, Default, Debug)]
pub struct Usages {
    users: BTreeMap<u32, Share>,
    groups: BTreeMap<u32, Share>,
    projects: BTreeMap<u32, Share>,
}

impl Usage {
    fn add(&mut self, inodes: u64, bytes: u64) {
        self.inodes += inodes;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Check<'_> {
    /// Counts an inode, and `ea_inodes` more that hold its large attributes.
    pub(super) fn charge_quota(
        &mut self,
        record: &InodeRecord,
        inode: &Inode<&[u8]>,
        ea_inodes: u64,
    ) {
        let superblock = &self.fs.superblock;
        let number = record.number;
        let is_orphan_file = superblock.has_compat(COMPAT_ORPHAN_FILE)
            && number.0 == superblock.s_orphan_file_inum();
        if !superblock.has_ro_compat(RO_COMPAT_QUOTA)
            || record.flags & EA_INODE_FL != 0
            || number != ROOT_INO && number.0 < superblock.first_ino()
            || number.0 == superblock.s_prj_quota_inum()
            || is_orphan_file
        {
            return;
        }
        let inodes = 1 + ea_inodes;
        let bytes = record.blocks_512.saturating_mul(512);
        let inline_link = inode.format() == S_IFLNK && record.flags & INLINE_DATA_FL != 0;
        for (usages, id) in [
            (&mut self.usages.users, inode.uid()),
            (&mut self.usages.groups, inode.gid()),
            (&mut self.usages.projects, inode.projid()),
        ] {
            let share = usages.entry(id).or_default();
            share.all.add(inodes, bytes);
            if inline_link {
                share.inline_links.add(inodes, bytes);
            }
        }
    }

    /// Compares all quota files.
    pub(super) fn quotas(&mut self) -> Result<()> {
        let superblock = &self.fs.superblock;
        if !superblock.has_ro_compat(RO_COMPAT_QUOTA) {
            return Ok(());
        }
        let usages = std::mem::take(&mut self.usages);
        for (number, magic, usages) in [
            (superblock.s_usr_quota_inum(), 0xD9C0_1F11, usages.users),
            (superblock.s_grp_quota_inum(), 0xD9C0_1927, usages.groups),
            (superblock.s_prj_quota_inum(), 0xD9C0_3F14, usages.projects),
        ] {
            let number = InodeNr(number);
            if number.0 == 0 {
                continue;
            }
            let Some(record) = self.inode(number) else {
                self.inode_damaged(number, "is a quota file, but not in use");
                continue;
            };
            if let Err(text) = self.quota_file(record, magic, &usages)? {
                self.inode_damaged(number, text);
            }
        }
        Ok(())
    }

    /// Compares the entries of one quota file with what is used.
    fn quota_file(
        &self,
        record: &InodeRecord,
        magic: u32,
        usages: &BTreeMap<u32, Share>,
    ) -> Result<Result<(), &'static str>> {
        const BROKEN: &str = "is a quota file of a wrong structure";
        const WRONG: &str = "is a quota file with wrong usage";
        let extents = self.meta.extents(record);
        let blocks = record.size / BLOCK;
        let Some(header) = self.quota_block(extents, blocks, 0)? else {
            return Ok(Err(BROKEN));
        };
        if le32(&header, 0) != magic || le32(&header, 4) > 1 {
            return Ok(Err(BROKEN));
        }
        // Nothing grows with the file but the set of nodes, and that has an end.
        let mut nodes = HashSet::new();
        let mut found = HashSet::new();
        let mut leaves = 0;
        let mut todo = vec![(1, 0)];
        while let Some((number, depth)) = todo.pop() {
            let Some(block) = self.quota_block(extents, blocks, u64::from(number))? else {
                return Ok(Err(BROKEN));
            };
            if depth < LEVELS {
                if !nodes.insert(number) || nodes.len() > MAX_NODES {
                    return Ok(Err(BROKEN));
                }
                let pointers = block.chunks_exact(4).map(|bytes| le32(bytes, 0));
                todo.extend(pointers.filter(|&to| to != 0).map(|to| (to, depth + 1)));
                continue;
            }
            // A leaf holds several ids, so it is met once for each.
            leaves += 1;
            if leaves > MAX_NODES * ENTRIES {
                return Ok(Err(BROKEN));
            }
            for (id, usage) in leaf_entries(&block) {
                if !usages.get(&id).copied().unwrap_or_default().allows(usage) {
                    return Ok(Err(WRONG));
                }
                found.insert(id);
            }
        }
        let missing =
            |(id, share): (&u32, &Share)| !found.contains(id) && !share.allows(Usage::default());
        Ok(match usages.iter().any(missing) {
            true => Err(WRONG),
            false => Ok(()),
        })
    }

    /// Reads one of the file's blocks of 1 KiB.
    fn quota_block(&self, extents: &[Extent], blocks: u64, number: u64) -> Result<Option<Vec<u8>>> {
        if number >= blocks {
            return Ok(None);
        }
        let geometry = &self.fs.geometry;
        let at = number * BLOCK;
        let logical = at / geometry.block_size;
        let index = extents.partition_point(|extent| extent.logical_end() <= logical);
        let Some(extent) = extents
            .get(index)
            .filter(|extent| u64::from(extent.logical) <= logical && !extent.is_unwritten())
        else {
            return Ok(Some(vec![0; BLOCK as usize]));
        };
        let block = extent.start + (logical - u64::from(extent.logical));
        let offset = geometry.offset(block) + at % geometry.block_size;
        self.view.read_vec_at(offset, BLOCK as usize).map(Some)
    }
}

/// Lists the entries of a leaf: id and usage.
fn leaf_entries(block: &[u8]) -> impl Iterator<Item = (u32, Usage)> {
    let le64 =
        |bytes: &[u8], at: usize| u64::from(le32(bytes, at + 4)) << 32 | u64::from(le32(bytes, at));
    let entries = match le16(block, 8) {
        0 => &[],
        _ => &block[LEAF_HEADER..],
    };
    let used = |entry: &&[u8]| !crate::io::is_zero(entry);
    entries.chunks_exact(ENTRY).filter(used).map(move |entry| {
        let usage = Usage {
            inodes: le64(entry, 24),
            bytes: le64(entry, 48),
        };
        (le32(entry, 0), usage)
    })
}
