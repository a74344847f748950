//! Is a filesystem sound? Whatever e2fsck's passes 1 to 4 would report and reading the
//! [`Metadata`] did not already find (that covers block maps, ownership, bitmaps and counts).
//!
//! Passes, each over the card in ascending order:
//! ```text
//! attributes   shared xattr blocks             their cost in blocks, references to ea_inodes
//! inodes       every slot in use               fields, attributes in slots, inline directories
//! special      resize, journal, orphan file, reserved inodes
//! directories  first blocks, then the others   entries, types, hashes, who refers to whom
//! tree         in memory                       one parent each, no loops, link counts
//! quotas       the quota files                 usage of each user, group and project
//! ```
//! Memory: 5 bytes for each inode in use, 16 for each directory block, 28 for each block of an
//! indexed directory.
//!
//! Decisions: encrypted and case-folded names are opaque, so their hashes and duplicates are not
//! judged. Duplicates of a name are looked for within each block, which is where e2fsck does.

mod attributes;
mod directories;
mod index;
mod inodes;
mod quota;
mod special;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt::Display;

use attributes::Policy;

use crate::error::Result;
use crate::ext4::findings::Findings;
use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, INODE_UNINIT};
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_ORPHAN_FILE, COMPAT_RESIZE_INODE, INCOMPAT_CASEFOLD,
    RO_COMPAT_BIGALLOC,
};
use crate::ext4::read::metadata::{InodeRecord, Metadata};
use crate::io::ReadAt;
use crate::units::{BlockNr, InodeNr};

/// Checks a filesystem whose journal was replayed and whose orphans were finished in `view`, and whose
/// metadata was read without damage: then its tables, maps and xattr blocks are where they can be.
///
/// # Errors
/// Only what the device fails with; damage is in the findings.
pub fn check(view: &dyn ReadAt, meta: &Metadata) -> Result<Findings> {
    let mut check = Check::new(view, meta);
    check.superblock();
    check.groups();
    check.xattr_blocks()?;
    check.inodes()?;
    check.special_inodes()?;
    check.directories()?;
    check.tree();
    check.link_counts()?;
    check.quotas()?;
    Ok(check.findings)
}

/// What the passes have in common and hand on to each other.
struct Check<'a> {
    view: &'a dyn ReadAt,
    meta: &'a Metadata,
    fs: &'a Super,
    findings: Findings,
    places: Places,
    /// For each inode in use, how many directory entries name it, dot entries included.
    links: Vec<u32>,
    dirs: Vec<Dir>,
    /// Which of `dirs` are indexed, ascending, and their indexes.
    indexes: Vec<(u32, index::Index)>,
    /// How many attributes refer to each ea_inode.
    ea_references: BTreeMap<InodeNr, u64>,
    /// Clusters and inodes that sharers of an xattr block are charged for its ea_inodes, if any.
    ea_charges: BTreeMap<BlockNr, (u64, u64)>,
    usages: quota::Usages,
    /// The encryption policies that were met, those in xattr blocks, and those of encrypted inodes by
    /// place, ascending.
    policies: BTreeMap<Vec<u8>, u32>,
    block_policies: BTreeMap<BlockNr, Policy>,
    encrypted: Vec<(u32, Policy)>,
    /// Deleted inodes whose slots are not as e2fsck wants them.
    leftovers: Vec<InodeNr>,
}

/// One directory.
#[derive(Clone, Copy, Debug)]
struct Dir {
    /// Its position among the inodes in use.
    place: u32,
    /// The directory that holds its entry; 0 if none was met yet.
    parent: u32,
    /// What its ".." names; 0 if there is none.
    dotdot: u32,
}

impl<'a> Check<'a> {
    fn new(view: &'a dyn ReadAt, meta: &'a Metadata) -> Self {
        let dirs = (0..meta.inodes.len())
            .filter(|&place| meta.inodes[place].is_dir())
            .map(|place| Dir {
                // OK: there are fewer inodes than 2^32.
                place: place as u32,
                parent: 0,
                dotdot: 0,
            })
            .collect();
        Self {
            view,
            meta,
            fs: &meta.fs,
            findings: Findings::default(),
            places: Places::of(meta),
            links: vec![0; meta.inodes.len()],
            dirs,
            indexes: Vec::new(),
            ea_references: BTreeMap::new(),
            ea_charges: BTreeMap::new(),
            usages: quota::Usages::default(),
            policies: BTreeMap::new(),
            block_policies: BTreeMap::new(),
            encrypted: Vec::new(),
            leftovers: Vec::new(),
        }
    }

    fn damaged(&mut self, text: impl Display) {
        self.findings.damaged(text);
    }

    fn inode_damaged(&mut self, number: InodeNr, text: impl Display) {
        self.findings
            .damaged(format_args!("inode {number}: {text}"));
    }

    /// Returns the inode in use with this number.
    fn inode(&self, number: InodeNr) -> Option<&'a InodeRecord> {
        let place = self.places.of_number(number)?;
        Some(&self.meta.inodes[place])
    }

    /// Returns the index in `dirs` of a directory by its inode's place.
    fn dir_at(&self, place: usize) -> Option<usize> {
        let place = u32::try_from(place).ok()?;
        self.dirs.binary_search_by_key(&place, |dir| dir.place).ok()
    }

    fn dir_record(&self, dir: usize) -> &'a InodeRecord {
        &self.meta.inodes[self.dirs[dir].place as usize]
    }

    /// Flags that count only with checksums over the descriptors.
    fn groups(&mut self) {
        if self.fs.superblock.has_group_checksums() {
            return;
        }
        for (group, desc) in self.meta.table.groups.iter().enumerate() {
            if desc.has_flag(INODE_UNINIT | BLOCK_UNINIT) {
                self.findings.damaged(format_args!(
                    "group {group}: is marked as not initialised without the feature for it"
                ));
            } else if desc.itable_unused() != 0 {
                // Nobody believes the number without the feature, and descriptors are made anew.
                self.findings.repaired(format_args!(
                    "group {group}: counted unused inodes without the feature for it"
                ));
            }
        }
    }

    /// Features and numbers of the superblock that contradict each other.
    fn superblock(&mut self) {
        const S_JOURNAL_UUID: std::ops::Range<usize> = 0xD0..0xE0;
        /// The only `s_encoding` there is: Unicode 12.1.
        const UTF8_12_1: u16 = 1;
        let superblock = &self.fs.superblock;
        let journal = superblock.has_compat(COMPAT_HAS_JOURNAL);
        let resize = superblock.has_compat(COMPAT_RESIZE_INODE);
        let orphan_file = superblock.has_compat(COMPAT_ORPHAN_FILE);
        let external = !crate::io::is_zero(&superblock.bytes()[S_JOURNAL_UUID]);
        let internal = superblock.s_journal_inum() != 0;
        let bigalloc = superblock.has_ro_compat(RO_COMPAT_BIGALLOC);
        let contradictions = [
            (
                !journal && (internal || external),
                "names a journal, but lacks has_journal",
            ),
            (journal && internal && external, "names two journals"),
            (
                journal && !internal && !external && superblock.s_journal_dev() == 0,
                "sets has_journal, but names no journal",
            ),
            (
                !bigalloc && superblock.s_log_cluster_size() != superblock.s_log_block_size(),
                "has clusters without bigalloc",
            ),
            (
                !resize && superblock.s_reserved_gdt_blocks() != 0,
                "reserves descriptor blocks, but lacks resize_inode",
            ),
            (
                orphan_file
                    && self
                        .inode(InodeNr(superblock.s_orphan_file_inum()))
                        .is_none(),
                "names an orphan file that is not in use",
            ),
            (
                superblock.has_incompat(INCOMPAT_CASEFOLD) && superblock.s_encoding() != UTF8_12_1,
                "names an encoding of names that is unknown",
            ),
            (
                superblock.r_blocks_count() > superblock.blocks_count() / 2,
                "reserves more than half of all blocks",
            ),
        ];
        for (wrong, text) in contradictions {
            if wrong {
                self.damaged(format_args!("the superblock {text}"));
            }
        }
    }
}

/// From an inode's number to its place among those in use: a bitmap, and a count for each word.
struct Places {
    bits: Bitmap,
    before: Vec<u32>,
}

impl Places {
    const STEP: u64 = 512;

    fn of(meta: &Metadata) -> Self {
        let mut bits = Bitmap::new(u64::from(meta.fs.geometry.inodes_count()) + 1);
        for inode in &meta.inodes {
            let number = u64::from(inode.number.0);
            bits.set_range(number..number + 1);
        }
        let mut sum = 0;
        let before = (0..bits.len().div_ceil(Self::STEP))
            .map(|step| {
                let start = sum;
                sum += bits.count(step * Self::STEP..(step + 1) * Self::STEP) as u32;
                start
            })
            .collect();
        Self { bits, before }
    }

    fn of_number(&self, number: InodeNr) -> Option<usize> {
        let number = u64::from(number.0);
        if !self.bits.get(number) {
            return None;
        }
        let step = number / Self::STEP;
        let within = self.bits.count(step * Self::STEP..number);
        Some(self.before[step as usize] as usize + within as usize)
    }
}
