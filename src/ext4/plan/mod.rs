//! What a filesystem of another size looks like: a pure function of its metadata.
//!
//! The order is fixed: geometry, the groups' own metadata, inodes of vanished groups, data in the
//! order in which it lies, and last the nodes of extent trees, whose number depends on how the data
//! was cut while placing them moves no data. So there is nothing to iterate to a fixpoint.

pub mod minimum;
pub mod relocate;

use std::ops::Range;

use super::bitmap::Bitmap;
use super::geometry::Geometry;
use super::group_desc::{BLOCK_UNINIT, GroupDesc, INODE_UNINIT, INODE_ZEROED};
use super::map::{Extent, MapKind, Node, join_extents, tree_shape};
use super::metadata::{InodeRecord, Metadata};
use super::superblock::{
    COMPAT_RESIZE_INODE, COMPAT_STABLE_INODES, INCOMPAT_64BIT, INCOMPAT_FLEX_BG, INCOMPAT_MMP,
};
use crate::units::{BlockNr, GroupNr, InodeNr};
use relocate::{FreeSpace, Relocation};

/// What the last group must have room for besides its own metadata, in blocks: the kernel's and
/// resize2fs's rule.
const LAST_GROUP_SPARE: u64 = 50;

/// Why a filesystem cannot have a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoFit {
    /// More blocks have to go somewhere than are free.
    Blocks { needed: u64, available: u64 },
    /// More inodes are in use than there would be.
    Inodes { needed: u64, available: u64 },
    /// A group's inode table finds no free run.
    Table { group: GroupNr },
    /// The last group would be too small for its own metadata.
    LastGroup,
    /// Inodes would have to move, and encrypted files depend on their numbers.
    StableInodes,
    /// Beyond what the format can number.
    Limit(&'static str),
}

impl std::fmt::Display for NoFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoFit::Blocks { needed, available } => {
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
            NoFit::Limit(what) => write!(f, "the format's limit on {what}"),
        }
    }
}

/// One file whose inode is written anew. There may be millions.
#[derive(Clone, Copy, Debug)]
pub struct FilePlan {
    /// Index into [`Metadata::inodes`].
    index: u32,
    /// Indexes into the plan's nodes.
    nodes: (u32, u32),
}

impl FilePlan {
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
    /// (old, new), ascending in old.
    pub inodes: Vec<(InodeNr, InodeNr)>,
    /// Descriptors of the new filesystem; only checksums and bitmap checksums are missing.
    pub groups: Vec<GroupDesc>,
    /// Inodes to write anew, ascending.
    pub files: Vec<FilePlan>,
    nodes: Vec<Node>,
    /// Free blocks of the new filesystem.
    pub free_blocks: u64,
    pub free_inodes: u64,
}

impl ResizePlan {
    /// Returns the new number of an inode.
    pub fn inode(&self, old: InodeNr) -> InodeNr {
        match self.inodes.binary_search_by_key(&old, |&(from, _)| from) {
            Ok(index) => self.inodes[index].1,
            Err(_) => old,
        }
    }

    /// Returns the places of a file's nodes: of the packed tree, leaves first, for extents; of the
    /// old nodes in their old order for indirect blocks.
    pub fn nodes(&self, file: &FilePlan) -> &[Node] {
        &self.nodes[file.nodes.0 as usize..file.nodes.1 as usize]
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
pub fn plan(metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    let geometry = check_size(metadata, blocks)?;
    let mut planner = Planner::new(metadata, geometry);
    planner.release_and_claim_groups()?;
    planner.place_new_groups()?;
    planner.move_inodes()?;
    planner.move_blocks()?;
    let (files, nodes) = planner.place_files()?;
    Ok(planner.finish(files, nodes))
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

struct Planner<'a> {
    metadata: &'a Metadata,
    old: &'a Geometry,
    new: Geometry,
    used: Bitmap,
    live: Bitmap,
    groups: Vec<GroupDesc>,
    inodes: Vec<(InodeNr, InodeNr)>,
    blocks: Relocation,
    /// Old blocks below the new end that must make room for descriptors.
    evicted: Vec<Range<BlockNr>>,
}

impl<'a> Planner<'a> {
    fn new(metadata: &'a Metadata, new: Geometry) -> Self {
        let old = &metadata.fs.geometry;
        let mut used = Bitmap::new(new.blocks_count);
        for run in metadata
            .used
            .runs(0..new.blocks_count.min(old.blocks_count), true)
        {
            used.set_range(run);
        }
        Self {
            metadata,
            old,
            new,
            used,
            live: Bitmap::new(0),
            groups: Vec::new(),
            inodes: Vec::new(),
            blocks: Relocation::default(),
            evicted: Vec::new(),
        }
    }

    /// Drops the metadata of vanished groups and shrinks, keeps or widens the descriptors' areas.
    fn release_and_claim_groups(&mut self) -> Result<(), NoFit> {
        let kept = self.new.groups.min(self.old.groups);
        self.groups = self.metadata.table.groups[..kept as usize].to_vec();
        for desc in &self.metadata.table.groups[kept as usize..] {
            for (block, count) in parts(desc, self.old.itable_blocks) {
                self.used.clear_range(block..block + count);
            }
        }
        for group in 0..self.new.groups {
            let start = self.new.group_start(group);
            let new_len = self.new.super_blocks(group);
            let old_len = if group < kept {
                self.old.super_blocks(group)
            } else {
                0
            };
            let end = start + new_len;
            if end > self.new.group_end(group) {
                return Err(NoFit::LastGroup);
            }
            let wider = start + old_len..end;
            if group < kept && !wider.is_empty() {
                // Only when growing past the reserved descriptor blocks.
                self.evicted.extend(self.used.runs(wider, true));
            }
            self.used.clear_range(end..(start + old_len).max(end));
            self.used.set_range(start..end);
        }
        Ok(())
    }

    /// Finds places for bitmaps and inode tables that are in the way, cut off or new.
    fn place_new_groups(&mut self) -> Result<(), NoFit> {
        let kept = self.groups.len() as GroupNr;
        let itable = self.new.itable_blocks;
        // First give up every place that is lost, then look for others.
        let mut lost = Vec::new();
        for group in 0..kept {
            for (which, (block, count)) in parts(&self.groups[group as usize], itable)
                .into_iter()
                .enumerate()
            {
                let evicted = self
                    .evicted
                    .iter()
                    .any(|run| block < run.end && run.start < block + count);
                if block + count > self.new.blocks_count || evicted {
                    self.release_part(block, count);
                    lost.push((group, which, count));
                }
            }
        }
        self.groups
            .resize(self.new.groups as usize, GroupDesc::zeroed());
        let new = (kept..self.new.groups)
            .flat_map(|group| [(group, 0, 1), (group, 1, 1), (group, 2, itable)]);
        for (group, which, count) in lost.into_iter().chain(new) {
            let block = self
                .place_part(group, which, count)
                .ok_or(NoFit::Table { group })?;
            self.used.set_range(block..block + count);
            let desc = &mut self.groups[group as usize];
            match which {
                0 => desc.set_block_bitmap(block),
                1 => desc.set_inode_bitmap(block),
                _ => desc.set_inode_table(block),
            }
        }
        Ok(())
    }

    /// Frees a lost part, but for what the wider descriptors have taken of it.
    fn release_part(&mut self, block: BlockNr, count: u64) {
        for at in block..(block + count).min(self.new.blocks_count) {
            if !self.evicted.iter().any(|run| run.contains(&at)) {
                self.used.clear_range(at..at + 1);
            }
        }
        for run in std::mem::take(&mut self.evicted) {
            // What was a part of the lost place has no contents to move.
            let before = run.start..run.end.min(block).max(run.start);
            let after = run.start.max(block + count).min(run.end)..run.end;
            self.evicted
                .extend([before, after].into_iter().filter(|run| !run.is_empty()));
        }
    }

    /// Finds `count` free blocks in a row for a group: where mke2fs would put them, else anywhere
    /// that the features allow.
    fn place_part(&self, group: GroupNr, which: usize, count: u64) -> Option<BlockNr> {
        let end = self.new.blocks_count;
        if !self.metadata.fs.superblock.has_incompat(INCOMPAT_FLEX_BG) {
            return self.find_free(
                self.new.group_start(group)..self.new.group_end(group),
                count,
            );
        }
        let flex = 1u64 << self.metadata.fs.superblock.s_log_groups_per_flex().min(20);
        let within = u64::from(group) % flex;
        // OK: not above `group`.
        let leader = (u64::from(group) - within) as GroupNr;
        let start = self.new.group_start(leader) + self.new.super_blocks(leader);
        let ideal = start
            + match which {
                0 => within,
                1 => flex + within,
                _ => 2 * flex + within * self.new.itable_blocks,
            };
        if ideal + count <= end && self.used.count(ideal..ideal + count) == 0 {
            return Some(ideal);
        }
        self.find_free(start..end, count)
            .or_else(|| self.find_free(self.new.first_data_block..end, count))
    }

    fn find_free(&self, within: Range<BlockNr>, count: u64) -> Option<BlockNr> {
        self.used
            .runs(within, false)
            .find(|run| run.end - run.start >= count)
            .map(|run| run.start)
    }

    /// Gives the inodes of vanished groups the lowest free numbers.
    fn move_inodes(&mut self) -> Result<(), NoFit> {
        let count = self.new.inodes_count();
        let first = u64::from(self.metadata.fs.superblock.first_ino()) - 1;
        let old_live = self.metadata.live_inodes();
        let mut live = Bitmap::new(u64::from(count));
        for run in old_live.runs(0..u64::from(count), true) {
            live.set_range(run);
        }
        let first_moved = self
            .metadata
            .inodes
            .partition_point(|inode| inode.number.0 <= count);
        let moved = &self.metadata.inodes[first_moved..];
        let needed = moved.len() as u64 + live.count(0..u64::from(count));
        if needed > u64::from(count) {
            return Err(NoFit::Inodes {
                needed,
                available: u64::from(count),
            });
        }
        let stable = self.metadata.fs.superblock.has_compat(COMPAT_STABLE_INODES);
        if stable && !moved.is_empty() {
            return Err(NoFit::StableInodes);
        }
        let mut at = first;
        for inode in moved {
            at = live.next(at, false);
            live.set_range(at..at + 1);
            // OK: `needed` was compared, so a free number is left, and it is below `count`.
            self.inodes.push((inode.number, InodeNr(at as u32 + 1)));
        }
        self.live = live;
        Ok(())
    }

    fn must_move(&self, run: Range<BlockNr>) -> bool {
        run.end > self.new.blocks_count
            || self
                .evicted
                .iter()
                .any(|lost| run.start < lost.end && lost.start < run.end)
    }

    /// Lists the parts of a run that must move.
    fn lost_parts(&self, run: Range<BlockNr>, lost: &mut Vec<Range<BlockNr>>) {
        if run.end > self.new.blocks_count {
            lost.push(run.start.max(self.new.blocks_count)..run.end);
        }
        for evicted in &self.evicted {
            let part = run.start.max(evicted.start)..run.end.min(evicted.end);
            if !part.is_empty() {
                lost.push(part);
            }
        }
    }

    /// Moves data, xattr blocks, indirect nodes and single blocks, in the order in which they lie.
    fn move_blocks(&mut self) -> Result<(), NoFit> {
        let mut lost = Vec::new();
        for inode in &self.metadata.inodes {
            for extent in self.metadata.extents(inode) {
                self.lost_parts(extent.start..extent.end(), &mut lost);
            }
            if inode.kind == MapKind::Indirect {
                for node in self.metadata.nodes(inode) {
                    self.lost_parts(node.block..node.block + 1, &mut lost);
                }
            }
        }
        let single = self
            .metadata
            .resize_inode
            .map(|inode| inode.double_indirect);
        let mmp = self
            .metadata
            .fs
            .superblock
            .has_incompat(INCOMPAT_MMP)
            .then(|| self.metadata.fs.superblock.mmp_block());
        for block in self
            .metadata
            .xattr_blocks
            .keys()
            .copied()
            .chain(single)
            .chain(mmp)
        {
            self.lost_parts(block..block + 1, &mut lost);
        }
        lost.sort_unstable_by_key(|run| run.start);
        let needed: u64 = lost.iter().map(|run| run.end - run.start).sum();
        let mut room = FreeSpace::new(&self.used, needed);
        if room.left() < needed {
            return Err(NoFit::Blocks {
                needed,
                available: room.left(),
            });
        }
        for run in lost {
            let mut at = run.start;
            while at < run.end {
                // OK: `needed` blocks were there.
                let Some(place) = room.take(run.end - at) else {
                    return Err(NoFit::Blocks {
                        needed,
                        available: 0,
                    });
                };
                let len = place.end - place.start;
                self.blocks.push(at, len, place.start);
                self.used.set_range(place);
                at += len;
            }
        }
        Ok(())
    }

    /// Lists the files that change, and places the nodes of their trees.
    fn place_files(&mut self) -> Result<(Vec<FilePlan>, Vec<Node>), NoFit> {
        let mut files = Vec::new();
        // Nodes that stay, and how many each file needs besides.
        let mut kept: Vec<Node> = Vec::new();
        let mut missing: Vec<u32> = Vec::new();
        // Old nodes that a file gives up serve the next ones that need more.
        for (index, inode) in self.metadata.inodes.iter().enumerate() {
            if !self.changes(inode) {
                continue;
            }
            let old_nodes = self.metadata.nodes(inode);
            let start = kept.len();
            let mut needed = 0;
            match inode.kind {
                MapKind::Indirect => kept.extend(old_nodes.iter().map(|node| Node {
                    block: self.blocks.of(node.block),
                    ..*node
                })),
                MapKind::Extents => {
                    let pieces = relocated(self.metadata, &self.blocks, inode).len();
                    let count: usize = tree_shape(pieces, self.new.block_size).iter().sum();
                    let stay = old_nodes
                        .iter()
                        .filter(|node| !self.must_move(node.block..node.block + 1));
                    kept.extend(stay);
                    let staying = kept.len() - start;
                    for extra in kept.split_off(start + count.min(staying)) {
                        self.used.clear_range(extra.block..extra.block + 1);
                    }
                    needed = count - count.min(staying);
                }
                MapKind::None => {}
            }
            // OK: there are fewer inodes and nodes than 2^32.
            missing.push(needed as u32);
            files.push(FilePlan {
                index: index as u32,
                nodes: (start as u32, kept.len() as u32),
            });
        }
        let needed = missing.iter().map(|&count| u64::from(count)).sum();
        let mut room = FreeSpace::new(&self.used, needed);
        if room.left() < needed {
            return Err(NoFit::Blocks {
                needed,
                available: room.left(),
            });
        }
        if needed == 0 {
            return Ok((files, kept));
        }
        let mut nodes = Vec::with_capacity(kept.len() + needed as usize);
        for (file, count) in files.iter_mut().zip(missing) {
            let start = nodes.len() as u32;
            nodes.extend_from_slice(&kept[file.nodes.0 as usize..file.nodes.1 as usize]);
            for _ in 0..count {
                let Some(place) = room.take(1) else {
                    return Err(NoFit::Blocks {
                        needed,
                        available: 0,
                    });
                };
                self.used.set_range(place.clone());
                nodes.push(Node {
                    block: place.start,
                    logical: 0,
                    level: 0,
                });
            }
            file.nodes = (start, nodes.len() as u32);
        }
        Ok((files, nodes))
    }

    /// Must the inode be written anew?
    fn changes(&self, inode: &InodeRecord) -> bool {
        inode.number.0 > self.new.inodes_count()
            || (inode.file_acl != 0 && self.must_move(inode.file_acl..inode.file_acl + 1))
            || self
                .metadata
                .extents(inode)
                .iter()
                .any(|e| self.must_move(e.start..e.end()))
            || self
                .metadata
                .nodes(inode)
                .iter()
                .any(|n| self.must_move(n.block..n.block + 1))
    }

    /// Fills in counts and flags.
    fn finish(mut self, files: Vec<FilePlan>, nodes: Vec<Node>) -> ResizePlan {
        let checksums = self.metadata.fs.superblock.has_group_checksums();
        let dirs = self.count_dirs();
        let per_group = u64::from(self.new.inodes_per_group);
        let (mut free_blocks, mut free_inodes) = (0, 0);
        for group in 0..self.new.groups {
            let blocks = self.new.group_start(group)..self.new.group_end(group);
            let used = self.used.count(blocks.clone());
            let inodes = u64::from(group) * per_group..u64::from(group + 1) * per_group;
            let live = self.live.count(inodes.clone());
            let unused = self.unused_slots(inodes);
            let own = self.own_metadata(group);
            let is_new = group >= self.old.groups;
            let is_last = group + 1 == self.new.groups;
            let desc = &mut self.groups[group as usize];
            desc.set_free_blocks((blocks.end - blocks.start - used) as u32);
            desc.set_free_inodes((per_group - live) as u32);
            desc.set_used_dirs(dirs[group as usize]);
            if checksums {
                let untouched = used == own && group != 0 && !is_last;
                desc.set_flag(
                    BLOCK_UNINIT,
                    untouched && (is_new || desc.has_flag(BLOCK_UNINIT)),
                );
                desc.set_flag(
                    INODE_UNINIT,
                    live == 0 && (is_new || desc.has_flag(INODE_UNINIT)),
                );
                desc.set_itable_unused(unused);
                desc.set_flag(INODE_ZEROED, desc.has_flag(INODE_ZEROED) && !is_new);
            } else {
                desc.set_bg_flags(0);
                desc.set_itable_unused(0);
            }
            free_blocks += blocks.end - blocks.start - used;
            free_inodes += per_group - live;
        }
        ResizePlan {
            geometry: self.new,
            used: self.used,
            live: self.live,
            blocks: self.blocks,
            inodes: self.inodes,
            groups: self.groups,
            files,
            nodes,
            free_blocks,
            free_inodes,
        }
    }

    fn count_dirs(&self) -> Vec<u32> {
        let mut dirs = vec![0; self.new.groups as usize];
        for inode in self.metadata.inodes.iter().filter(|inode| inode.is_dir()) {
            let number = match self
                .inodes
                .binary_search_by_key(&inode.number, |&(old, _)| old)
            {
                Ok(index) => self.inodes[index].1,
                Err(_) => inode.number,
            };
            dirs[self.new.inode_place(number).0 as usize] += 1;
        }
        dirs
    }

    /// Slots at the end of a group's table that hold nothing.
    fn unused_slots(&self, inodes: Range<u64>) -> u32 {
        let last = self.live.runs(inodes.clone(), true).last();
        // OK: not more than the inodes of a group.
        last.map_or(inodes.end - inodes.start, |run| inodes.end - run.end) as u32
    }

    /// Blocks of the group's own area that hold its own metadata.
    fn own_metadata(&self, group: GroupNr) -> u64 {
        let own = self.new.group_start(group)..self.new.group_end(group);
        let inside: u64 = parts(&self.groups[group as usize], self.new.itable_blocks)
            .into_iter()
            .map(|(block, count)| {
                (block + count)
                    .min(own.end)
                    .saturating_sub(block.max(own.start))
            })
            .sum();
        inside + self.new.super_blocks(group)
    }
}

/// Returns all of a file's data, where the moves put it.
fn relocated(metadata: &Metadata, blocks: &Relocation, inode: &InodeRecord) -> Vec<Extent> {
    let old = metadata.extents(inode);
    let mut extents = Vec::with_capacity(old.len());
    for extent in old {
        let mut done = 0;
        for (start, len) in blocks.pieces(extent.start, u64::from(extent.len())) {
            // OK: a piece is no longer than its extent, whose length has 32 bits.
            extents.push(extent.part(done, len as u32, start));
            done += len as u32;
        }
    }
    match inode.kind {
        MapKind::Extents => join_extents(&extents),
        _ => extents,
    }
}

/// A group's block bitmap, inode bitmap and inode table, as (first block, length).
pub fn parts(desc: &GroupDesc, itable_blocks: u64) -> [(BlockNr, u64); 3] {
    [
        (desc.block_bitmap(), 1),
        (desc.inode_bitmap(), 1),
        (desc.inode_table(), itable_blocks),
    ]
}
