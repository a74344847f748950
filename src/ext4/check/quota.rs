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

use std::collections::{BTreeMap, BTreeSet};

use super::super::inode::{EA_INODE_FL, Inode, ROOT_INO};
use super::super::map::Extent;
use super::super::metadata::InodeRecord;
use super::super::raw::{le16, le32};
use super::super::superblock::{COMPAT_ORPHAN_FILE, RO_COMPAT_QUOTA};
use super::Check;
use crate::error::Result;
use crate::units::InodeNr;

const BLOCK: u64 = 1024;
const LEVELS: u32 = 4;
const LEAF_HEADER: usize = 16;
const ENTRY: usize = 72;

/// What one user, group or project uses.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Usage {
    inodes: u64,
    bytes: u64,
}

/// What everybody uses, by kind of id.
#[derive(Clone, Default, Debug)]
pub struct Usages {
    users: BTreeMap<u32, Usage>,
    groups: BTreeMap<u32, Usage>,
    projects: BTreeMap<u32, Usage>,
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
        for (usages, id) in [
            (&mut self.usages.users, inode.uid()),
            (&mut self.usages.groups, inode.gid()),
            (&mut self.usages.projects, inode.projid()),
        ] {
            let usage = usages.entry(id).or_default();
            usage.inodes += 1 + ea_inodes;
            usage.bytes = usage
                .bytes
                .saturating_add(record.blocks_512.saturating_mul(512));
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
            match self.quota_entries(record, magic)? {
                None => self.inode_damaged(number, "is a quota file of a wrong structure"),
                Some(mut found) => {
                    found.retain(|_, usage| *usage != Usage::default());
                    let mut expected = usages;
                    expected.retain(|_, usage| *usage != Usage::default());
                    if found != expected {
                        self.inode_damaged(number, "is a quota file with wrong usage");
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a quota file's entries; `None` if it is damaged.
    fn quota_entries(
        &self,
        record: &InodeRecord,
        magic: u32,
    ) -> Result<Option<BTreeMap<u32, Usage>>> {
        let extents = self.meta.extents(record);
        let blocks = record.size / BLOCK;
        let mut entries = BTreeMap::new();
        let Some(header) = self.quota_block(extents, blocks, 0)? else {
            return Ok(None);
        };
        if le32(&header, 0) != magic || le32(&header, 4) > 1 {
            return Ok(None);
        }
        let mut seen = BTreeSet::new();
        let mut level = vec![1];
        for depth in 0..=LEVELS {
            let mut below = Vec::new();
            for number in level {
                // A leaf holds several ids, so it is met once for each.
                if !seen.insert(number) {
                    if depth == LEVELS {
                        continue;
                    }
                    return Ok(None);
                }
                let Some(block) = self.quota_block(extents, blocks, number)? else {
                    return Ok(None);
                };
                if depth == LEVELS {
                    take_leaf(&block, &mut entries);
                } else {
                    let pointers = block.chunks_exact(4).map(|bytes| le32(bytes, 0));
                    below.extend(pointers.filter(|&pointer| pointer != 0).map(u64::from));
                }
            }
            level = below;
        }
        Ok(Some(entries))
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

fn take_leaf(block: &[u8], entries: &mut BTreeMap<u32, Usage>) {
    let le64 =
        |bytes: &[u8], at: usize| u64::from(le32(bytes, at + 4)) << 32 | u64::from(le32(bytes, at));
    if le16(block, 8) == 0 {
        return;
    }
    for entry in block[LEAF_HEADER..].chunks_exact(ENTRY) {
        if !crate::io::is_zero(entry) {
            let usage = Usage {
                inodes: le64(entry, 24),
                bytes: le64(entry, 48),
            };
            entries.insert(le32(entry, 0), usage);
        }
    }
}
