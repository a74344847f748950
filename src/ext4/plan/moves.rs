//! What moves: inodes of vanished groups, then data, then the nodes of extent trees.

use std::cmp::Reverse;
use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::extent::{Extent, MapKind, Node, join_extents, tree_shape};
use crate::ext4::format::superblock::{COMPAT_STABLE_INODES, INCOMPAT_MMP};
use crate::ext4::free_space::{BestFit, FreeSpace};
use crate::ext4::plan::planner::Planner;
use crate::ext4::plan::relocate::Relocation;
use crate::ext4::plan::{Effort, Files, NoFit, TreePlan};
use crate::ext4::read::metadata::{InodeRecord, Metadata};
use crate::units::BlockNr;

/// Pieces that move, each of which takes some hundred bytes: with more, a larger size is looked for.
const MAX_MOVES: usize = 4 << 20;

/// Blocks that move by length and not as they lie: the source is then read back and forth.
const MAX_SORTED: u64 = 16384;

impl Planner<'_> {
    /// Gives the inodes of vanished groups the lowest free numbers.
    pub(super) fn move_inodes(&mut self) -> Result<(), NoFit> {
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
            // `needed` was compared, so a free number is left, and it is below `count`.
            at = live.next(at, false);
            live.set_range(at..at + 1);
            self.inodes.push(u64::from(inode.number.0), 1, at + 1);
        }
        self.live = live;
        Ok(())
    }

    fn must_move(&self, run: Range<BlockNr>) -> bool {
        run.end > self.new.blocks_count || self.evicted.intersects(run)
    }

    /// Notes the parts of a run that must move.
    fn note_lost(&self, run: Range<BlockNr>, lost: &mut Bitmap) {
        lost.set_range(run.start.max(self.new.blocks_count)..run.end);
        for evicted in self.evicted.iter_within(run) {
            lost.set_range(evicted);
        }
    }

    /// Gives up the nodes of all trees that change, so that data may take their places.
    pub(super) fn release_nodes(&mut self) {
        for inode in &self.metadata.inodes {
            if inode.kind != MapKind::Extents || !self.changes(inode) {
                continue;
            }
            for node in self.metadata.nodes(inode) {
                if !self.must_move(node.block..node.block + 1) {
                    self.used.clear_range(node.block..node.block + 1);
                }
            }
        }
    }

    /// Moves data, xattr blocks, indirect nodes and single blocks.
    pub(super) fn move_blocks(&mut self) -> Result<(), NoFit> {
        let lost = self.lost_blocks();
        let needed = lost.count(0..lost.len());
        let available = self.used.len() - self.used.count(0..self.used.len());
        if available < needed {
            return Err(NoFit::Blocks { needed, available });
        }
        self.blocks = match self.effort {
            Effort::Tight if needed <= MAX_SORTED => self.place_longest_first(lost),
            _ => self.place_as_it_lies(&lost, needed),
        }?;
        for &(_, len, place) in self.blocks.runs() {
            self.used.set_range(place..place + len);
        }
        Ok(())
    }

    fn lost_blocks(&self) -> Bitmap {
        let mut lost = Bitmap::new(self.old.blocks_count);
        for inode in &self.metadata.inodes {
            for extent in self.metadata.extents(inode) {
                self.note_lost(extent.start..extent.end(), &mut lost);
            }
            if inode.kind == MapKind::Indirect {
                for node in self.metadata.nodes(inode) {
                    self.note_lost(node.block..node.block + 1, &mut lost);
                }
            }
        }
        let single = self
            .metadata
            .resize_inode
            .map(|inode| inode.double_indirect);
        let superblock = &self.metadata.fs.superblock;
        let mmp = superblock
            .has_incompat(INCOMPAT_MMP)
            .then(|| superblock.mmp_block());
        let xattrs = self.metadata.xattr_blocks.keys().copied();
        for block in xattrs.chain(single).chain(mmp) {
            self.note_lost(block..block + 1, &mut lost);
        }
        lost
    }

    fn place_as_it_lies(&self, lost: &Bitmap, needed: u64) -> Result<Relocation, NoFit> {
        let mut room = FreeSpace::new(&self.used, needed);
        let mut moves = Moves::default();
        for run in lost.runs(0..lost.len(), true) {
            moves.place(run, |len| room.take(len))?;
        }
        Ok(Relocation::from_unsorted(moves.0))
    }

    /// The longest extents first, each where the least room is left over; then what may be cut
    /// without a cost.
    fn place_longest_first(&self, mut lost: Bitmap) -> Result<Relocation, NoFit> {
        let mut extents = Vec::new();
        for inode in &self.metadata.inodes {
            if inode.kind != MapKind::Extents {
                continue;
            }
            for extent in self.metadata.extents(inode) {
                extents.extend(lost.runs(extent.start..extent.end(), true));
                if extents.len() > MAX_MOVES {
                    return Err(NoFit::Pieces);
                }
            }
        }
        extents.sort_unstable_by_key(|run| (Reverse(run.end - run.start), run.start));
        let mut room = BestFit::new(&self.used);
        let mut moves = Moves::default();
        for run in extents {
            lost.clear_range(run.clone());
            moves.place(run, |len| room.take(len))?;
        }
        for run in lost.runs(0..lost.len(), true) {
            moves.place(run, |len| room.take_of_shortest(len))?;
        }
        Ok(Relocation::from_unsorted(moves.0))
    }

    /// Finds the files that change, and places the nodes of their trees.
    pub(super) fn place_files(&mut self) -> Result<Files, NoFit> {
        let mut changed = Bitmap::new(self.metadata.inodes.len() as u64);
        let mut trees = Vec::new();
        // Nodes that stay, and how many each file needs besides.
        let mut kept: Vec<Node> = Vec::new();
        let mut missing: Vec<u32> = Vec::new();
        // Old nodes that a file gives up serve the next ones that need more.
        for (index, inode) in self.metadata.inodes.iter().enumerate() {
            if !self.changes(inode) {
                continue;
            }
            changed.set_range(index as u64..index as u64 + 1);
            let old_nodes = self.metadata.nodes(inode);
            let start = kept.len();
            let mut needed = 0;
            match inode.kind {
                MapKind::Indirect => kept.extend(old_nodes.iter().map(|node| Node {
                    block: self.blocks.of(node.block),
                    ..*node
                })),
                MapKind::Extents => {
                    let count = self.nodes_needed(inode);
                    if self.effort == Effort::Usual {
                        let stay = old_nodes
                            .iter()
                            .filter(|node| !self.must_move(node.block..node.block + 1));
                        kept.extend(stay);
                    }
                    let staying = kept.len() - start;
                    for extra in kept.split_off(start + count.min(staying)) {
                        self.used.clear_range(extra.block..extra.block + 1);
                    }
                    needed = count - count.min(staying);
                }
                MapKind::None => {}
            }
            if old_nodes.is_empty() && needed == 0 {
                continue;
            }
            // OK: there are fewer inodes and nodes than 2^32.
            missing.push(needed as u32);
            trees.push(TreePlan {
                index: index as u32,
                nodes: (start as u32, kept.len() as u32),
            });
        }
        let needed = missing.iter().map(|&count| u64::from(count)).sum();
        let mut room = FreeSpace::new(&self.used, needed);
        if room.left() < needed {
            return Err(NoFit::Nodes {
                needed,
                available: room.left(),
            });
        }
        if needed == 0 {
            let nodes = kept;
            return Ok(Files {
                changed,
                trees,
                nodes,
            });
        }
        let mut nodes = Vec::with_capacity(kept.len() + needed as usize);
        for (file, count) in trees.iter_mut().zip(missing) {
            let start = nodes.len() as u32;
            nodes.extend_from_slice(&kept[file.nodes.0 as usize..file.nodes.1 as usize]);
            for _ in 0..count {
                let Some(place) = room.take(1) else {
                    return Err(NoFit::Nodes {
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
        Ok(Files {
            changed,
            trees,
            nodes,
        })
    }

    /// Returns how many nodes the packed tree over a file's extents has.
    fn nodes_needed(&self, inode: &InodeRecord) -> usize {
        let nodes = |pieces| tree_shape(pieces, self.new.block_size).iter().sum();
        let extents = self.metadata.extents(inode).iter();
        let pieces = extents.map(|e| self.blocks.piece_count(e.start, u64::from(e.len())));
        match nodes(pieces.sum()) {
            // Of nearly all files, of which there are millions: no need to know how pieces join.
            0 => 0,
            _ => nodes(relocated(self.metadata, &self.blocks, inode).len()),
        }
    }

    /// Has a file's tree more nodes than a packed one? (The kernel leaves nodes half full.)
    fn has_loose_tree(&self, inode: &InodeRecord) -> bool {
        let nodes = self.metadata.nodes(inode).len();
        if nodes == 0 || inode.kind != MapKind::Extents {
            return false;
        }
        let extents = join_extents(self.metadata.extents(inode));
        tree_shape(extents.len(), self.new.block_size)
            .iter()
            .sum::<usize>()
            < nodes
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
            || (self.effort == Effort::Tight && self.has_loose_tree(inode))
    }
}

/// What moves where, in the order in which places are found.
#[derive(Default)]
struct Moves(Vec<(BlockNr, u64, BlockNr)>);

impl Moves {
    /// Moves a run to what `take` gives, which is asked until all of it has a place.
    fn place(
        &mut self,
        run: Range<BlockNr>,
        mut take: impl FnMut(u64) -> Option<Range<BlockNr>>,
    ) -> Result<(), NoFit> {
        let mut at = run.start;
        while at < run.end {
            let needed = run.end - at;
            // OK: there is room for all that moves, which was counted.
            let place = take(needed).ok_or(NoFit::Blocks {
                needed,
                available: 0,
            })?;
            let len = place.end - place.start;
            match self.0.last_mut() {
                Some(last) if last.0 + last.1 == at && last.2 + last.1 == place.start => {
                    last.1 += len
                }
                _ => self.0.push((at, len, place.start)),
            }
            if self.0.len() > MAX_MOVES {
                return Err(NoFit::Pieces);
            }
            at += len;
        }
        Ok(())
    }
}

/// Returns all of a file's data, where the moves put it.
pub(super) fn relocated(
    metadata: &Metadata,
    blocks: &Relocation,
    inode: &InodeRecord,
) -> Vec<Extent> {
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
