//! What a filesystem of another size looks like: a pure function of its metadata.
//!
//! The order is fixed: geometry, the groups' own metadata, inodes of vanished groups, data in the
//! order in which it lies, and last the nodes of extent trees, whose number depends on how the data
//! was cut while placing them moves no data. So there is nothing to iterate to a fixpoint.

pub mod minimum;
mod moves;
mod planner;
pub mod relocate;

use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::extent::{Extent, Node};
use crate::ext4::format::geometry::Geometry;
use crate::ext4::format::group_desc::GroupDesc;
use crate::ext4::format::superblock::{COMPAT_RESIZE_INODE, INCOMPAT_64BIT};
use crate::ext4::read::metadata::{InodeRecord, Metadata};
use crate::ext4::sound::Sound;
use crate::units::{BlockNr, GroupNr, InodeNr};
use moves::relocated;
use planner::Planner;
use relocate::Relocation;

/// What the last group must have room for besides its own metadata, in blocks: the kernel's and
/// resize2fs's rule.
const LAST_GROUP_SPARE: u64 = 50;

/// Why a filesystem cannot have a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoFit {
    /// More blocks have to go somewhere than are free.
    Blocks { needed: u64, available: u64 },
    /// The nodes of extent trees need more blocks than are free once the data is placed.
    Nodes { needed: u64, available: u64 },
    /// More inodes are in use than there would be.
    Inodes { needed: u64, available: u64 },
    /// A group's inode table finds no free run.
    Table { group: GroupNr },
    /// The last group would be too small for its own metadata.
    LastGroup,
    /// Inodes would have to move, and encrypted files depend on their numbers.
    StableInodes,
    /// More pieces would have to move than are held in memory.
    Pieces,
    /// Beyond what the format can number.
    Limit(&'static str),
}

impl std::fmt::Display for NoFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoFit::Blocks { needed, available } | NoFit::Nodes { needed, available } => {
                write!(f, "{needed} blocks need a place and {available} are free")
            }
            NoFit::Inodes { needed, available } => {
                write!(
                    f,
                    "{needed} inodes are in use and there would be {available}"
                )
            }
            NoFit::Table { group } => write!(f, "no room for the inode table of group {group}"),
            NoFit::LastGroup => write!(f, "the last group would be too small"),
            NoFit::StableInodes => write!(f, "inodes must not move (stable_inodes)"),
            NoFit::Pieces => write!(f, "it would have to move in millions of pieces"),
            NoFit::Limit(what) => write!(f, "the format's limit on {what}"),
        }
    }
}

/// The files whose inodes are written anew. There may be millions.
#[derive(Clone, Debug)]
pub struct Files {
    /// Which of [`Metadata::inodes`].
    changed: Bitmap,
    /// Those of them that have nodes, or had some, ascending.
    trees: Vec<TreePlan>,
    nodes: Vec<Node>,
}

/// A file that changes and has nodes, or had some.
#[derive(Clone, Copy, Debug)]
pub struct TreePlan {
    /// Index into [`Metadata::inodes`].
    index: u32,
    /// Indexes into the plan's nodes.
    nodes: (u32, u32),
}

impl TreePlan {
    /// Returns the inode that it is about.
    pub fn record<'a>(&self, metadata: &'a Metadata) -> &'a InodeRecord {
        &metadata.inodes[self.index as usize]
    }
}

/// A filesystem's new size and where everything goes.
#[derive(Clone, Debug)]
pub struct ResizePlan {
    pub geometry: Geometry,
    /// Who is where in the new filesystem, a bit a block.
    pub used: Bitmap,
    /// Inodes in use or reserved in the new filesystem, a bit each from number 1.
    pub live: Bitmap,
    /// Data, xattr blocks, indirect nodes and single blocks that move (not extent tree nodes).
    pub blocks: Relocation,
    /// Inode numbers that change.
    pub inodes: Relocation,
    /// Descriptors of the new filesystem; only checksums and bitmap checksums are missing.
    pub groups: Vec<GroupDesc>,
    /// Inodes to write anew.
    files: Files,
    /// Free blocks of the new filesystem.
    pub free_blocks: u64,
    pub free_inodes: u64,
}

impl ResizePlan {
    /// Returns the new number of an inode.
    pub fn inode(&self, old: InodeNr) -> InodeNr {
        // OK: an inode's number, which has 32 bits.
        InodeNr(self.inodes.of(u64::from(old.0)) as u32)
    }

    /// Is an inode written anew? `place` is its index in [`Metadata::inodes`].
    pub fn changes(&self, place: usize) -> bool {
        self.files.changed.get(place as u64)
    }

    /// Lists the inodes to write anew from one place on up to another.
    pub fn changed(&self, places: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        let runs = self
            .files
            .changed
            .runs(places.start as u64..places.end as u64, true);
        runs.flatten().map(|place| place as usize)
    }

    /// Lists the files that change and have nodes, or had some, ascending.
    pub fn trees(&self) -> &[TreePlan] {
        &self.files.trees
    }

    /// Is it one of the files in [`trees`](Self::trees)?
    pub fn is_tree(&self, place: usize) -> bool {
        let trees = &self.files.trees;
        trees
            .binary_search_by_key(&place, |tree| tree.index as usize)
            .is_ok()
    }

    /// Returns the places of a file's nodes: of the packed tree, leaves first, for extents; of the
    /// old nodes in their old order for indirect blocks.
    pub fn nodes(&self, file: &TreePlan) -> &[Node] {
        &self.files.nodes[file.nodes.0 as usize..file.nodes.1 as usize]
    }

    /// Returns all of a file's data, with new places.
    pub fn extents(&self, metadata: &Metadata, inode: &InodeRecord) -> Vec<Extent> {
        relocated(metadata, &self.blocks, inode)
    }

    /// Returns the size of the new filesystem in bytes.
    pub fn len(&self) -> u64 {
        self.geometry.blocks_count * self.geometry.block_size
    }

    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Returns the largest valid size that is not above `blocks`: a last group too small for its own
/// metadata is left away.
pub fn valid_size(metadata: &Metadata, blocks: BlockNr) -> BlockNr {
    if blocks <= metadata.fs.geometry.first_data_block {
        // Not even a group: the plan says so.
        return blocks;
    }
    let mut blocks = blocks;
    loop {
        let geometry = new_geometry(metadata, blocks);
        if geometry.groups <= 1 || last_group_fits(&geometry) {
            return blocks;
        }
        blocks = geometry.group_start(geometry.groups - 1);
    }
}

/// Returns the smallest valid size from `blocks` on: a last group too small for its own metadata is
/// filled up to what it needs.
pub fn larger_size(metadata: &Metadata, blocks: BlockNr) -> BlockNr {
    let geometry = new_geometry(metadata, blocks);
    if geometry.groups <= 1 || last_group_fits(&geometry) {
        return blocks;
    }
    let last = geometry.groups - 1;
    let needs = 2 + geometry.itable_blocks + geometry.super_blocks(last) + LAST_GROUP_SPARE;
    geometry.group_start(last) + needs.min(geometry.blocks_per_group)
}

/// Plans the filesystem at `blocks` blocks, smaller, larger or the same.
///
/// # Errors
/// [`NoFit`] when it cannot have that size.
pub fn plan(sound: &Sound, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    plan_metadata(sound.metadata(), blocks)
}

/// As [`plan`], within this room.
fn plan_metadata(metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    match plan_with(Effort::Usual, metadata, blocks) {
        Err(NoFit::Blocks { .. } | NoFit::Nodes { .. }) => {
            plan_with(Effort::Tight, metadata, blocks)
        }
        planned => planned,
    }
}

/// What is done to make a size possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effort {
    /// Data goes as it lies: what was near each other stays near, and reading goes on in one
    /// direction. Trees without lost blocks stay as they are.
    Usual,
    /// For the last few blocks: all trees are packed, and data is cut into few pieces, so that
    /// they need fewer nodes.
    Tight,
}

fn plan_with(effort: Effort, metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    let geometry = check_size(metadata, blocks)?;
    let mut planner = Planner::new(metadata, geometry, effort);
    planner.release_and_claim_groups()?;
    planner.place_new_groups()?;
    planner.move_inodes()?;
    if effort == Effort::Tight {
        planner.release_nodes();
    }
    planner.move_blocks()?;
    let files = planner.place_files()?;
    Ok(planner.finish(files))
}

fn new_geometry(metadata: &Metadata, blocks: BlockNr) -> Geometry {
    let old = &metadata.fs.geometry;
    let mut new = old.resized(blocks);
    if metadata.fs.superblock.has_compat(COMPAT_RESIZE_INODE) {
        // The region keeps its length while it can, so nothing behind it moves.
        let region = old.desc_blocks + old.reserved_gdt_blocks;
        new.reserved_gdt_blocks = region
            .saturating_sub(new.desc_blocks)
            .min(new.block_size / 4);
    }
    new
}

fn last_group_fits(geometry: &Geometry) -> bool {
    let last = geometry.groups - 1;
    let size = geometry.group_end(last) - geometry.group_start(last);
    let overhead = 2 + geometry.itable_blocks + geometry.super_blocks(last);
    size == geometry.blocks_per_group || size >= overhead + LAST_GROUP_SPARE
}

fn check_size(metadata: &Metadata, blocks: BlockNr) -> Result<Geometry, NoFit> {
    let old = &metadata.fs.geometry;
    if blocks == old.blocks_count {
        return Ok(old.clone());
    }
    if blocks <= old.first_data_block + 8 {
        return Err(NoFit::LastGroup);
    }
    let groups = (blocks - old.first_data_block).div_ceil(old.blocks_per_group);
    if !metadata.fs.superblock.has_incompat(INCOMPAT_64BIT) && blocks > u64::from(u32::MAX) {
        return Err(NoFit::Limit("blocks without 64bit"));
    }
    if groups.saturating_mul(u64::from(old.inodes_per_group)) > u64::from(u32::MAX) {
        return Err(NoFit::Limit("inodes"));
    }
    let geometry = new_geometry(metadata, blocks);
    let first = geometry.group_end(0) - geometry.group_start(0);
    if geometry.super_blocks(0) + 2 + geometry.itable_blocks >= first && blocks > old.blocks_count {
        return Err(NoFit::Limit("group descriptors in one group"));
    }
    if geometry.super_blocks(0) >= first || (geometry.groups > 1 && !last_group_fits(&geometry)) {
        return Err(NoFit::LastGroup);
    }
    Ok(geometry)
}
