//! Inode slots, and the trees of their files: read from the old tables, written to the new ones.

use crate::error::Result;
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::emit::{Emitter, Form};
use crate::ext4::format::extent::{MapKind, build_pointers, build_tree};
use crate::ext4::format::group_desc::INODE_ZEROED;
use crate::ext4::format::inode::{BAD_INO, Inode};
use crate::ext4::read::metadata::{InodeRecord, Metadata};
use crate::io::{Edits, Overlay, ReadAt};
use crate::units::{BlockNr, InodeNr};

impl Emitter<'_> {
    /// Returns the slot that will be written for an inode, reading it at first.
    pub(super) fn slot(&mut self, old: InodeNr) -> Result<&mut Inode> {
        let new = self.plan.inode(old);
        if !self.slots.contains_key(&new) {
            let slot = self.reader.slot(self.view, self.metadata, old)?;
            self.slots.insert(new, slot);
        }
        // OK to unwrap: inserted above.
        Ok(self.slots.get_mut(&new).unwrap())
    }

    /// Empties the bad-blocks inode: its list is about the old card.
    pub(super) fn forget_bad_blocks(&mut self) -> Result<()> {
        if self.metadata.has_bad_blocks {
            let slot = self.slot(BAD_INO)?;
            slot.i_block_mut().fill(0);
            slot.set_size(0);
            slot.set_i_blocks_lo(0);
            slot.set_i_blocks_high(0);
        }
        Ok(())
    }

    /// Keeps the slots in use where a table stays, brings them along where it moves, and makes
    /// everything else in the tables zeros.
    pub(super) fn inode_tables(&mut self) {
        let geometry = &self.plan.geometry;
        let old_groups = self.metadata.fs.geometry.groups;
        let checksums = self.metadata.fs.superblock.has_group_checksums();
        let (slot_size, per_group) = (geometry.inode_size, geometry.inodes_per_group);
        for group in 0..geometry.groups {
            let table = self.groups[group as usize].inode_table();
            let start = geometry.offset(table);
            let is_new = group >= old_groups;
            let old_table =
                (!is_new).then(|| self.metadata.table.groups[group as usize].inode_table());
            if let Some(old_table) = old_table.filter(|&old| old != table) {
                self.overlay.set_base(
                    start,
                    geometry.offset(geometry.itable_blocks),
                    geometry.offset(old_table),
                );
            }
            if self.form == Form::InPlace {
                if is_new && !checksums {
                    self.overlay
                        .set_zero(geometry.bytes(table, geometry.itable_blocks));
                }
                continue;
            }
            let in_use = u64::from(per_group - self.groups[group as usize].itable_unused());
            let first = u64::from(group) * u64::from(per_group);
            for run in self.plan.live.runs(first..first + in_use, false) {
                let (from, to) = (run.start - first, run.end - first);
                self.overlay
                    .set_zero(start + from * slot_size..start + to * slot_size);
            }
            let blocks_in_use = (in_use * slot_size).div_ceil(geometry.block_size);
            self.overlay.set_zero(
                start + in_use * slot_size..geometry.offset(table + geometry.itable_blocks),
            );
            if blocks_in_use < geometry.itable_blocks {
                self.unstored
                    .insert(table + blocks_in_use..table + geometry.itable_blocks);
                // The kernel zeroes later what a card may hold in place of these zeros.
                self.groups[group as usize].set_flag(INODE_ZEROED, false);
            }
        }
    }

    /// Writes the inodes, trees and pointers of files with nodes whose blocks or numbers change. Those
    /// without, which may be millions, are left to [`slots`](Self::slots).
    pub(super) fn files(&mut self) -> Result<()> {
        let plan = self.plan;
        let new_fs = self.new_fs.clone();
        for file in plan.trees() {
            let record = file.record(self.metadata);
            let number = plan.inode(record.number);
            let nodes = plan.nodes(file);
            let extents = plan.extents(self.metadata, record);
            let places: Vec<BlockNr> = nodes.iter().map(|node| node.block).collect();
            let slot = self.slot(record.number)?;
            let blocks = match record.kind {
                MapKind::Extents => build_tree(
                    &new_fs,
                    number,
                    record.generation,
                    &extents,
                    &places,
                    slot.i_block_mut(),
                ),
                MapKind::Indirect => build_pointers(
                    plan.geometry.block_size,
                    &extents,
                    nodes,
                    slot.i_block_mut(),
                ),
                MapKind::None => Vec::new(),
            };
            for (block, bytes) in blocks {
                self.put_block(block, bytes);
            }
            let blocks = self.new_blocks_512(record, nodes.len());
            let slot = self.slot(record.number)?;
            if record.file_acl != 0 {
                slot.set_file_acl(&new_fs, plan.blocks.of(record.file_acl));
            }
            if blocks != record.blocks_512 {
                slot.set_blocks_512(&new_fs, blocks);
                let delta = QuotaDelta {
                    uid: slot.uid(),
                    gid: slot.gid(),
                    projid: slot.projid(),
                    inodes: 0,
                    bytes: (blocks as i64 - record.blocks_512 as i64).saturating_mul(512),
                };
                if self.metadata.counts_for_quota(record.number) {
                    self.quota_deltas.push(delta);
                }
            }
        }
        // The superblock gets a copy of the journal's inode.
        let journal = InodeNr(self.metadata.fs.superblock.s_journal_inum());
        if let Some(place) = self
            .metadata
            .place_of(journal)
            .filter(|&at| self.is_simple(at))
        {
            let mut slot = self.slot(journal)?.clone();
            self.patch_simple(&self.metadata.inodes[place], &mut slot);
            self.slots.insert(plan.inode(journal), slot);
        }
        Ok(())
    }

    /// Does the slot need no more than new places?
    fn is_simple(&self, place: usize) -> bool {
        self.plan.changes(place) && !self.plan.is_tree(place)
    }

    /// `i_blocks` changes only by the number of tree nodes.
    fn new_blocks_512(&self, record: &InodeRecord, nodes: usize) -> u64 {
        let geometry = &self.plan.geometry;
        let per_block = geometry.cluster_ratio * (geometry.block_size / 512);
        let old = self.metadata.nodes(record).len() as u64;
        (record.blocks_512 + nodes as u64 * per_block).saturating_sub(old * per_block)
    }

    /// Puts a simple file's new places into its slot.
    fn patch_simple(&self, record: &InodeRecord, slot: &mut Inode) {
        let extents = self.plan.extents(self.metadata, record);
        match record.kind {
            // Without nodes there is but the root.
            MapKind::Extents => {
                build_tree(
                    &self.new_fs,
                    record.number,
                    record.generation,
                    &extents,
                    &[],
                    slot.i_block_mut(),
                );
            }
            MapKind::Indirect => {
                let block_size = self.plan.geometry.block_size;
                build_pointers(block_size, &extents, &[], slot.i_block_mut());
            }
            MapKind::None => {}
        }
        if record.file_acl != 0 {
            slot.set_file_acl(&self.new_fs, self.plan.blocks.of(record.file_acl));
        }
    }

    /// Writes the slots, neighbours as one run.
    pub(super) fn slots(&mut self) -> Result<()> {
        let (plan, metadata) = (self.plan, self.metadata);
        let geometry = &plan.geometry;
        let mut others = std::mem::take(&mut self.slots).into_iter().peekable();
        // What keeps its number and what does not are two ascending streams.
        let simple = |places| {
            let places = plan.changed(places).filter(|&place| !plan.is_tree(place));
            places.map(|place| (plan.inode(metadata.inodes[place].number), place))
        };
        let kept = metadata
            .inodes
            .partition_point(|inode| inode.number.0 <= geometry.inodes_count());
        let mut stay = simple(0..kept).peekable();
        let mut moved = simple(kept..metadata.inodes.len()).peekable();
        let mut readers = [SlotReader::default(), SlotReader::default()];
        let mut run = SlotRun::default();
        loop {
            let next = [stay.peek(), moved.peek()].map(|next| next.map(|next| next.0));
            let next = next.into_iter().chain([others.peek().map(|next| next.0)]);
            let Some(number) = next.flatten().min() else {
                break;
            };
            let known = others.next_if(|&(other, _)| other == number);
            let simple = stay
                .next_if(|&(stay, _)| stay == number)
                .or_else(|| moved.next_if(|&(moved, _)| moved == number));
            let record = simple.map(|(_, place)| &metadata.inodes[place]);
            let (mut slot, before) = match (known, record) {
                (Some((_, slot)), _) => (slot, None),
                (None, Some(record)) => {
                    let reader = &mut readers[usize::from(record.number != number)];
                    let slot = reader.slot(self.view, metadata, record.number)?;
                    let from = metadata.inode_offset(record.number);
                    let before = (self.form == Form::Image).then(|| (from, slot.clone()));
                    (slot, before)
                }
                (None, None) => break,
            };
            if let Some(record) = record {
                self.patch_simple(record, &mut slot);
            }
            slot.update_checksum(&self.new_fs.checksums, number);
            let (group, index) = geometry.inode_place(number);
            let table = geometry.offset(self.groups[group as usize].inode_table());
            let offset = table + u64::from(index) * geometry.inode_size;
            if !run.takes(offset, before.as_ref().map(|(from, _)| *from)) {
                std::mem::take(&mut run).emit(&mut self.overlay);
                run.start = offset;
                run.from = before.as_ref().map(|(from, _)| *from);
            }
            if let Some((_, before)) = before {
                run.before.extend_from_slice(before.bytes());
            }
            run.after.extend_from_slice(slot.bytes());
        }
        run.emit(&mut self.overlay);
        Ok(())
    }
}

/// New slots that follow each other. Where the old ones did as well, no more of them is kept than
/// what changes: there may be millions.
#[derive(Default)]
struct SlotRun {
    start: u64,
    after: Vec<u8>,
    /// Where the old ones lie, and their bytes.
    from: Option<u64>,
    before: Vec<u8>,
}

impl SlotRun {
    const LONGEST: usize = 256 << 10;

    /// Does the slot at `offset`, from a place in the old filesystem or from memory, go on with it?
    fn takes(&self, offset: u64, from: Option<u64>) -> bool {
        let len = self.after.len() as u64;
        offset == self.start + len
            && from == self.from.map(|start| start + len)
            && self.after.len() < Self::LONGEST
    }

    fn emit(self, overlay: &mut Overlay) {
        match self.from {
            Some(from) => {
                let edits = Edits::between(&self.before, &self.after);
                overlay.set_patched(self.start, self.after.len() as u64, from, edits);
            }
            None => overlay.set_bytes(self.start, self.after),
        }
    }
}

/// Reads inode slots, mostly in the order in which they lie: many at a time.
#[derive(Default)]
pub(super) struct SlotReader {
    /// Where the bytes lie.
    start: u64,
    bytes: Vec<u8>,
}

impl SlotReader {
    /// Bytes read at a time; tables and slots are aligned to less.
    const CHUNK: u64 = 64 << 10;

    pub(super) fn slot(
        &mut self,
        view: &dyn ReadAt,
        metadata: &Metadata,
        number: InodeNr,
    ) -> Result<Inode> {
        let offset = metadata.inode_offset(number);
        let size = metadata.fs.geometry.inode_size as usize;
        let within = |start: u64| offset.checked_sub(start).map(|at| at as usize);
        let cached = within(self.start).filter(|at| at + size <= self.bytes.len());
        let at = match cached {
            Some(at) => at,
            None => {
                // Of this table only: what lies behind it may not be readable.
                let (group, _) = metadata.fs.geometry.inode_place(number);
                let slots = u64::from(metadata.slots_in_use(group)) * size as u64;
                let table = metadata
                    .fs
                    .geometry
                    .offset(metadata.table.groups[group as usize].inode_table());
                let end = (table + slots).max(offset + size as u64);
                let len = Self::CHUNK.min(end - offset);
                self.bytes.resize(len as usize, 0);
                self.start = u64::MAX;
                view.read_exact_at(offset, &mut self.bytes)?;
                self.start = offset;
                0
            }
        };
        Ok(Inode(self.bytes[at..at + size].to_vec()))
    }
}
