//! From a plan to the bytes of the new filesystem, as an overlay on the old one.
//!
//! Two forms: a whole image, in which everything free or unused is zeros and need not be stored;
//! and a change in place, which holds only the bytes that differ.

use std::collections::BTreeMap;

use super::bitmap::set_bits;
use super::check::batch::for_each_block;
use super::checksum::{Checksums, crc32c};
use super::dir;
use super::group_desc::{BLOCK_UNINIT, GroupDesc, INODE_UNINIT, INODE_ZEROED};
use super::inode::{BAD_INO, EA_INODE_FL, INDEX_FL, INLINE_DATA_FL, Inode, RESIZE_INO};
use super::map::{MapKind, build_pointers, build_tree};
use super::metadata::{InodeRecord, Metadata};
use super::orphan::QuotaDelta;
use super::plan::{ResizePlan, parts};
use super::quota;
use super::raw::put32;
use super::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_ORPHAN_FILE, INCOMPAT_EA_INODE, INCOMPAT_MMP, INCOMPAT_RECOVER,
    STATE_VALID, SUPERBLOCK_OFFSET, Super, Superblock,
};
use super::xattr;
use crate::error::{Error, Result};
use crate::io::{Overlay, RangeSet, ReadAt};
use crate::units::{BlockNr, GroupNr, InodeNr};

/// What to emit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The whole new filesystem: what is free or unused is zeros.
    Image,
    /// Only what differs, for a commit onto the old filesystem.
    InPlace,
}

/// The bytes of a new filesystem.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// Over the filesystem that was planned from.
    pub overlay: Overlay,
    /// Bytes of the image that must be written to a card even where they are zeros; all others are
    /// free or unused.
    pub stored: RangeSet,
}

/// Emits the plan. `view` is the filesystem that `metadata` was read from.
///
/// # Errors
/// What the device fails with; `Unsound` where something to rewrite is damaged.
pub fn emit(
    plan: &ResizePlan,
    metadata: &Metadata,
    view: &dyn ReadAt,
    form: Form,
) -> Result<Emitted> {
    let mut emitter = Emitter {
        plan,
        metadata,
        view,
        form,
        new_fs: new_super(plan, metadata),
        overlay: Overlay::new(plan.len()),
        groups: plan.groups.clone(),
        slots: BTreeMap::new(),
        simple: Vec::new(),
        reader: SlotReader::default(),
        unstored: Vec::new(),
        quota_deltas: Vec::new(),
    };
    if form == Form::Image {
        emitter.zero_free_blocks();
    }
    emitter.move_blocks();
    if form == Form::Image {
        emitter.zero_unwritten();
        emitter.forget_bad_blocks()?;
    }
    emitter.inode_tables();
    emitter.files()?;
    emitter.references()?;
    emitter.xattr_blocks()?;
    emitter.quota()?;
    emitter.orphan_file()?;
    emitter.journal()?;
    emitter.mmp()?;
    emitter.resize_inode()?;
    emitter.slots()?;
    emitter.bitmaps();
    emitter.superblocks();
    Ok(emitter.finish())
}

/// The new superblock, with all that the plan decides; shared by the primary and all copies.
fn new_super(plan: &ResizePlan, metadata: &Metadata) -> Super {
    let old = &metadata.fs;
    let mut superblock = old.superblock.clone();
    let geometry = &plan.geometry;
    if geometry.blocks_count != old.geometry.blocks_count {
        let reserved = superblock.r_blocks_count().min(old.geometry.blocks_count);
        let share = u128::from(reserved) * u128::from(geometry.blocks_count)
            / u128::from(old.geometry.blocks_count);
        superblock.set_r_blocks_count((share as u64).min(geometry.blocks_count / 2));
        superblock.set_blocks_count(geometry.blocks_count);
        superblock.set_s_inodes_count(geometry.inodes_count());
        superblock.set_s_reserved_gdt_blocks(geometry.reserved_gdt_blocks as u16);
    }
    superblock.set_free_blocks_count(plan.free_blocks);
    superblock.set_s_free_inodes_count(plan.free_inodes as u32);
    superblock.set_s_overhead_clusters(0);
    let renumber = |number: u32| plan.inode(InodeNr(number)).0;
    superblock.set_s_journal_inum(renumber(superblock.s_journal_inum()));
    superblock.set_s_usr_quota_inum(renumber(superblock.s_usr_quota_inum()));
    superblock.set_s_grp_quota_inum(renumber(superblock.s_grp_quota_inum()));
    superblock.set_s_prj_quota_inum(renumber(superblock.s_prj_quota_inum()));
    superblock.set_s_lpf_ino(renumber(superblock.s_lpf_ino()));
    superblock.set_s_orphan_file_inum(renumber(superblock.s_orphan_file_inum()));
    if superblock.has_incompat(INCOMPAT_MMP) {
        superblock.set_mmp_block(plan.blocks.of(superblock.mmp_block()));
    }
    Super {
        checksums: Checksums::of(&superblock),
        superblock,
        geometry: geometry.clone(),
    }
}

struct Emitter<'a> {
    plan: &'a ResizePlan,
    metadata: &'a Metadata,
    view: &'a dyn ReadAt,
    form: Form,
    new_fs: Super,
    overlay: Overlay,
    groups: Vec<GroupDesc>,
    /// Slots to write, by new number.
    slots: BTreeMap<InodeNr, Inode>,
    /// Files whose slot needs no more than new places: new number, and index in the plan.
    simple: Vec<(InodeNr, u32)>,
    reader: SlotReader,
    /// Blocks in use that need not be stored: (first, length).
    unstored: Vec<(BlockNr, u64)>,
    /// What files use more or less, by their tree nodes.
    quota_deltas: Vec<QuotaDelta>,
}

/// Reads inode slots, mostly in the order in which they lie: many at a time.
#[derive(Default)]
struct SlotReader {
    /// Where the bytes lie.
    start: u64,
    bytes: Vec<u8>,
}

impl SlotReader {
    /// Bytes read at a time; tables and slots are aligned to less.
    const CHUNK: u64 = 64 << 10;

    fn slot(&mut self, view: &dyn ReadAt, metadata: &Metadata, number: InodeNr) -> Result<Inode> {
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

impl Emitter<'_> {
    fn read_block(&self, block: BlockNr) -> Result<Vec<u8>> {
        let geometry = &self.metadata.fs.geometry;
        self.view
            .read_vec_at(geometry.offset(block), geometry.block_size as usize)
    }

    fn put_block(&mut self, block: BlockNr, bytes: Vec<u8>) {
        self.overlay
            .set_bytes(self.plan.geometry.offset(block), bytes);
    }

    /// Returns the slot that will be written for an inode, reading it at first.
    fn slot(&mut self, old: InodeNr) -> Result<&mut Inode> {
        let new = self.plan.inode(old);
        if !self.slots.contains_key(&new) {
            let slot = self.reader.slot(self.view, self.metadata, old)?;
            self.slots.insert(new, slot);
        }
        // OK to unwrap: inserted above.
        Ok(self.slots.get_mut(&new).unwrap())
    }

    fn zero_free_blocks(&mut self) {
        let geometry = &self.plan.geometry;
        for run in self.plan.used.runs(0..geometry.blocks_count, false) {
            self.overlay
                .set_zero(geometry.bytes(run.start, run.end - run.start));
        }
    }

    fn move_blocks(&mut self) {
        let size = self.plan.geometry.block_size;
        for &(old, len, new) in self.plan.blocks.runs() {
            self.overlay.set_base(new * size, len * size, old * size);
        }
    }

    /// Leaves out what was preallocated and never written: it reads as zeros whatever it holds.
    fn zero_unwritten(&mut self) {
        let geometry = &self.plan.geometry;
        for record in &self.metadata.inodes {
            for extent in self.metadata.extents(record) {
                if !extent.is_unwritten() {
                    continue;
                }
                for (start, len) in self
                    .plan
                    .blocks
                    .pieces(extent.start, u64::from(extent.len()))
                {
                    self.overlay.set_zero(geometry.bytes(start, len));
                    self.unstored.push((start, len));
                }
            }
        }
    }

    /// Empties the bad-blocks inode: its list is about the old card.
    fn forget_bad_blocks(&mut self) -> Result<()> {
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
    fn inode_tables(&mut self) {
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
                self.unstored.push((
                    table + blocks_in_use,
                    geometry.itable_blocks - blocks_in_use,
                ));
                // The kernel zeroes later what a card may hold in place of these zeros.
                self.groups[group as usize].set_flag(INODE_ZEROED, false);
            }
        }
    }

    /// Writes the inodes, trees and pointers of files whose blocks or numbers change. Those without
    /// nodes, which may be millions, are left to [`slots`](Self::slots).
    fn files(&mut self) -> Result<()> {
        let plan = self.plan;
        let journal = InodeNr(self.metadata.fs.superblock.s_journal_inum());
        let new_fs = self.new_fs.clone();
        for (index, file) in plan.files.iter().enumerate() {
            let record = file.record(self.metadata);
            let number = plan.inode(record.number);
            let nodes = plan.nodes(file);
            let simple = nodes.is_empty() && self.metadata.nodes(record).is_empty();
            if simple && record.number != journal {
                // OK: there are fewer files than 2^32.
                self.simple.push((number, index as u32));
                continue;
            }
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
        Ok(())
    }

    /// `i_blocks` changes only by the number of tree nodes.
    fn new_blocks_512(&self, record: &InodeRecord, nodes: usize) -> u64 {
        let per_block = self.plan.geometry.block_size / 512;
        let old = self.metadata.nodes(record).len() as u64;
        (record.blocks_512 + nodes as u64 * per_block).saturating_sub(old * per_block)
    }

    /// Puts a simple file's new places into its slot.
    fn patch_simple(&self, index: u32, slot: &mut Inode) {
        let record = self.plan.files[index as usize].record(self.metadata);
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

    /// Rewrites what names moved inodes: directories, and xattrs whose values lie in them.
    fn references(&mut self) -> Result<()> {
        if self.plan.inodes.is_empty() {
            return Ok(());
        }
        let metadata = self.metadata;
        let plan = self.plan;
        let new_number = |old: InodeNr| plan.inode(old);
        let ea_moved = metadata.fs.superblock.has_incompat(INCOMPAT_EA_INODE)
            && plan.inodes.iter().any(|&(old, _)| {
                metadata
                    .inode(old)
                    .is_some_and(|inode| inode.flags & EA_INODE_FL != 0)
            });
        self.directories(&new_number)?;
        for record in &metadata.inodes {
            let inline_dir = record.is_dir() && record.flags & INLINE_DATA_FL != 0;
            if !inline_dir && !ea_moved {
                continue;
            }
            let mut slot = match self.slots.get(&plan.inode(record.number)) {
                Some(pending) => pending.clone(),
                None => self.reader.slot(self.view, metadata, record.number)?,
            };
            let mut changed = false;
            if inline_dir {
                changed |= dir::relocate_inline(&mut slot.0, &new_number);
            }
            if ea_moved && let Some(area) = xattr::in_slot(&slot) {
                changed |= area.relocate_value_inodes(&mut slot.0, &new_number);
            }
            if changed {
                self.slots.insert(plan.inode(record.number), slot);
            }
        }
        Ok(())
    }

    /// Rewrites the blocks of directories that name a moved inode or have moved themselves.
    fn directories(&mut self, new_number: &dyn Fn(InodeNr) -> InodeNr) -> Result<()> {
        let metadata = self.metadata;
        let mut blocks = Vec::new();
        for (place, record) in metadata.inodes.iter().enumerate() {
            if !record.is_dir() || record.flags & INLINE_DATA_FL != 0 {
                continue;
            }
            for extent in metadata.extents(record) {
                blocks.extend((0..extent.len()).map(|skip| {
                    let block = extent.start + u64::from(skip);
                    (block, place as u32, extent.logical + skip)
                }));
            }
        }
        blocks.sort_unstable();
        let (view, fs) = (self.view, &metadata.fs);
        for_each_block(
            view,
            fs,
            &blocks,
            |&(block, ..)| block,
            |&(block, place, logical), bytes| {
                let record = &metadata.inodes[place as usize];
                self.directory_block(record, logical, block, bytes, new_number)
            },
        )
    }

    fn directory_block(
        &mut self,
        record: &InodeRecord,
        logical: u32,
        place: BlockNr,
        bytes: &[u8],
        new_number: &dyn Fn(InodeNr) -> InodeNr,
    ) -> Result<()> {
        let number = self.plan.inode(record.number);
        let has_moved = number != record.number && self.metadata.fs.checksums.enabled();
        let indexed = record.flags & INDEX_FL != 0;
        let kind = dir::kind_of(&self.metadata.fs, indexed, logical, bytes);
        let mut block = bytes.to_vec();
        if !dir::relocate_entries(&mut block, kind, new_number) && !has_moved {
            return Ok(());
        }
        if !dir::update_checksum(&self.new_fs, number, record.generation, kind, &mut block) {
            return Err(Error::unsound(format!(
                "inode {}: a block of this folder has no room for its checksum",
                record.number
            )));
        }
        self.put_block(self.plan.blocks.of(place), block);
        Ok(())
    }

    /// Writes xattr blocks that moved (their checksum holds their place) or whose values did.
    fn xattr_blocks(&mut self) -> Result<()> {
        let plan = self.plan;
        let with_values =
            self.metadata.fs.superblock.has_incompat(INCOMPAT_EA_INODE) && !plan.inodes.is_empty();
        for &block in self.metadata.xattr_blocks.keys() {
            let place = plan.blocks.of(block);
            if place == block && !with_values {
                continue;
            }
            let mut bytes = self.read_block(block)?;
            let mut changed = place != block;
            if with_values && let Ok(area) = xattr::in_block(&bytes) {
                changed |= area.relocate_value_inodes(&mut bytes, &|old| plan.inode(old));
            }
            if changed {
                xattr::update_checksum(&self.new_fs, place, &mut bytes);
                self.put_block(place, bytes);
            }
        }
        Ok(())
    }

    fn quota(&mut self) -> Result<()> {
        let edits = quota::apply(self.metadata, self.view, &self.quota_deltas)?;
        for (block, bytes) in edits {
            self.put_block(self.plan.blocks.of(block), bytes);
        }
        Ok(())
    }

    /// Writes the orphan file's blocks anew where they or their inode moved: all slots are empty.
    fn orphan_file(&mut self) -> Result<()> {
        const MAGIC: u32 = 0x0B10_CA04;
        let superblock = &self.metadata.fs.superblock;
        if !superblock.has_compat(COMPAT_ORPHAN_FILE) {
            return Ok(());
        }
        let Some(record) = self
            .metadata
            .inode(InodeNr(superblock.s_orphan_file_inum()))
        else {
            return Ok(());
        };
        let number = self.plan.inode(record.number);
        let seed = self.new_fs.checksums.inode_seed(number, record.generation);
        let size = self.plan.geometry.block_size as usize;
        for extent in self.metadata.extents(record).to_vec() {
            for old in extent.start..extent.end() {
                let place = self.plan.blocks.of(old);
                if place == old && number == record.number {
                    continue;
                }
                let mut block = vec![0; size];
                put32(&mut block, size - 8, MAGIC);
                if self.new_fs.checksums.enabled() {
                    let crc = crc32c(seed, &place.to_le_bytes());
                    let crc = crc32c(crc, &block[..size - 8]);
                    put32(&mut block, size - 4, crc);
                }
                self.put_block(place, block);
            }
        }
        Ok(())
    }

    /// Keeps only the journal's superblock, and refreshes the copy of its inode.
    fn journal(&mut self) -> Result<()> {
        let superblock = &self.metadata.fs.superblock;
        let number = InodeNr(superblock.s_journal_inum());
        if !superblock.has_compat(COMPAT_HAS_JOURNAL) || number.0 == 0 {
            return Ok(());
        }
        let Some(record) = self.metadata.inode(number) else {
            return Ok(());
        };
        if self.form == Form::Image {
            let geometry = &self.plan.geometry;
            for extent in self.metadata.extents(record) {
                let skip = u64::from(extent.logical == 0);
                let len = u64::from(extent.len()) - skip;
                for (start, len) in self.plan.blocks.pieces(extent.start + skip, len) {
                    self.overlay.set_zero(geometry.bytes(start, len));
                }
            }
        }
        if superblock.s_jnl_backup_type() == 1 {
            let slot = match self.slots.get(&self.plan.inode(number)) {
                Some(slot) => slot.clone(),
                None => self.metadata.read_inode(self.view, number)?,
            };
            let mut copy = [0; 68];
            copy[..60].copy_from_slice(slot.i_block());
            copy[60..64].copy_from_slice(&slot.i_size_high().to_le_bytes());
            copy[64..].copy_from_slice(&slot.i_size_lo().to_le_bytes());
            self.new_fs.superblock.set_s_jnl_blocks(&copy);
        }
        Ok(())
    }

    /// Says in an image that nobody has the filesystem mounted.
    fn mmp(&mut self) -> Result<()> {
        const SEQ_CLEAN: u32 = 0xFF4D_4D50;
        let superblock = &self.metadata.fs.superblock;
        if self.form == Form::InPlace || !superblock.has_incompat(INCOMPAT_MMP) {
            return Ok(());
        }
        let old = superblock.mmp_block();
        let mut block = self.read_block(old)?;
        put32(&mut block, 4, SEQ_CLEAN);
        if self.new_fs.checksums.enabled() {
            let crc = crc32c(self.new_fs.checksums.seed(), &block[..1020]);
            put32(&mut block, 1020, crc);
        }
        self.put_block(self.plan.blocks.of(old), block);
        Ok(())
    }

    /// Writes the resize inode's tree for the new descriptor area.
    fn resize_inode(&mut self) -> Result<()> {
        let Some(inode) = self.metadata.resize_inode else {
            return Ok(());
        };
        let geometry = &self.plan.geometry;
        let slots = geometry.block_size / 4;
        let first = geometry.first_data_block + 1 + geometry.desc_blocks;
        let backups: Vec<GroupNr> = (1..geometry.groups)
            .filter(|&group| geometry.has_backup(group))
            .take(slots as usize)
            .collect();
        let mut double = vec![0; geometry.block_size as usize];
        let mut nodes = Vec::new();
        for reserved in 0..geometry.reserved_gdt_blocks {
            let block = first + reserved;
            let slot = (geometry.desc_blocks + reserved) % slots;
            put32(&mut double, 4 * slot as usize, block as u32);
            let mut node = vec![0; geometry.block_size as usize];
            for (index, &group) in backups.iter().enumerate() {
                let copy = block + u64::from(group) * geometry.blocks_per_group;
                put32(&mut node, 4 * index, copy as u32);
            }
            nodes.push((block, node));
        }
        let place = self.plan.blocks.of(inode.double_indirect);
        let blocks = 1 + geometry.reserved_gdt_blocks * (1 + backups.len() as u64);
        let blocks_512 = blocks * (geometry.block_size / 512);
        let new_fs = self.new_fs.clone();
        let slot = self.slot(RESIZE_INO)?;
        put32(slot.i_block_mut(), 4 * 13, place as u32);
        slot.set_blocks_512(&new_fs, blocks_512);
        self.put_block(place, double);
        for (block, node) in nodes {
            self.put_block(block, node);
        }
        Ok(())
    }

    /// Writes the slots, neighbours as one run.
    fn slots(&mut self) -> Result<()> {
        const LONGEST: usize = 256 << 10;
        let geometry = &self.plan.geometry;
        let mut simple = std::mem::take(&mut self.simple);
        simple.sort_unstable();
        let mut simple = simple.into_iter().peekable();
        let mut others = std::mem::take(&mut self.slots).into_iter().peekable();
        // What keeps its number and what does not are two ascending streams.
        let mut readers = [SlotReader::default(), SlotReader::default()];
        let mut start = 0;
        let mut run: Vec<u8> = Vec::new();
        loop {
            let next = simple.peek().map(|&(number, _)| number);
            let other = others.peek().map(|&(number, _)| number);
            let Some(number) = next.into_iter().chain(other).min() else {
                break;
            };
            let known = others.next_if(|&(other, _)| other == number);
            let simple = simple.next_if(|&(simple, _)| simple == number);
            let mut slot = match (known, simple) {
                (Some((_, slot)), _) => slot,
                (None, Some((_, index))) => {
                    let old = self.plan.files[index as usize].record(self.metadata).number;
                    let reader = &mut readers[usize::from(old != number)];
                    reader.slot(self.view, self.metadata, old)?
                }
                (None, None) => break,
            };
            if let Some((_, index)) = simple {
                self.patch_simple(index, &mut slot);
            }
            slot.update_checksum(&self.new_fs.checksums, number);
            let (group, index) = geometry.inode_place(number);
            let table = geometry.offset(self.groups[group as usize].inode_table());
            let offset = table + u64::from(index) * geometry.inode_size;
            if offset != start + run.len() as u64 || run.len() >= LONGEST {
                self.overlay.set_bytes(start, std::mem::take(&mut run));
                start = offset;
            }
            run.extend_from_slice(slot.bytes());
        }
        self.overlay.set_bytes(start, run);
        Ok(())
    }

    /// Writes the bitmaps and sets their checksums in the descriptors.
    fn bitmaps(&mut self) {
        let geometry = self.plan.geometry.clone();
        let size = geometry.block_size as usize;
        let checksums = self.new_fs.checksums;
        for group in 0..geometry.groups {
            let blocks = geometry.group_start(group)..geometry.group_end(group);
            let desc = self.groups[group as usize].clone();
            let [(block_place, _), (inode_place, _), _] = parts(&desc, geometry.itable_blocks);
            if desc.has_flag(BLOCK_UNINIT) {
                self.unstored.push((block_place, 1));
                self.zero_unless_in_place(block_place);
            } else {
                let mut bitmap = vec![0; size];
                self.plan.used.export(blocks.clone(), &mut bitmap);
                set_bits(&mut bitmap, blocks.end - blocks.start..8 * size as u64);
                if checksums.enabled() {
                    let counted = (geometry.blocks_per_group / geometry.cluster_ratio / 8) as usize;
                    self.groups[group as usize]
                        .set_block_bitmap_csum(checksums.bitmap(&bitmap[..counted]));
                }
                self.put_block(block_place, bitmap);
            }
            if desc.has_flag(INODE_UNINIT) {
                self.unstored.push((inode_place, 1));
                self.zero_unless_in_place(inode_place);
            } else {
                let per_group = u64::from(geometry.inodes_per_group);
                let first = u64::from(group) * per_group;
                let mut bitmap = vec![0; size];
                self.plan.live.export(first..first + per_group, &mut bitmap);
                set_bits(&mut bitmap, per_group..8 * size as u64);
                if checksums.enabled() {
                    let counted = (per_group / 8) as usize;
                    self.groups[group as usize]
                        .set_inode_bitmap_csum(checksums.bitmap(&bitmap[..counted]));
                }
                self.put_block(inode_place, bitmap);
            }
        }
    }

    fn zero_unless_in_place(&mut self, block: BlockNr) {
        if self.form == Form::Image {
            self.overlay.set_zero(self.plan.geometry.bytes(block, 1));
        }
    }

    /// Writes superblock and descriptors, and every copy of them.
    fn superblocks(&mut self) {
        let geometry = self.plan.geometry.clone();
        let table = self
            .metadata
            .table
            .with_groups(std::mem::take(&mut self.groups))
            .encode(&self.new_fs);
        self.new_fs.superblock.update_checksum();
        let primary = self.new_fs.superblock.clone();
        self.overlay
            .set_bytes(SUPERBLOCK_OFFSET, primary.bytes().to_vec());
        for group in 0..geometry.groups {
            let start = geometry.super_start(group);
            let has_backup = geometry.has_backup(group);
            if has_backup && group > 0 {
                let mut block = backup_of(&primary, group).bytes().to_vec();
                block.resize(geometry.block_size as usize, 0);
                self.put_block(start, block);
            }
            let (first, count) = geometry.descriptors_in(group);
            let descriptors = start + u64::from(has_backup);
            if count > 0 {
                let part = geometry.bytes(first, count);
                let part = table[part.start as usize..part.end as usize].to_vec();
                self.overlay.set_bytes(geometry.offset(descriptors), part);
            }
            let reserved = (descriptors + count, geometry.reserved_in(group));
            if reserved.1 > 0 && (group > 0 || self.metadata.resize_inode.is_none()) {
                self.unstored.push(reserved);
                if self.form == Form::Image {
                    self.overlay
                        .set_zero(geometry.bytes(reserved.0, reserved.1));
                }
            }
        }
    }

    fn finish(self) -> Emitted {
        let geometry = &self.plan.geometry;
        let mut stored: RangeSet = self
            .plan
            .used
            .runs(0..geometry.blocks_count, true)
            .map(|run| geometry.bytes(run.start, run.end - run.start))
            .collect();
        // The boot sector and the superblock of a filesystem with larger blocks are in block 0.
        stored.insert(0..SUPERBLOCK_OFFSET + 1024);
        for (block, count) in self.unstored {
            stored.remove(geometry.bytes(block, count));
        }
        Emitted {
            overlay: self.overlay,
            stored,
        }
    }
}

/// The copy of a superblock in a backup group.
fn backup_of(primary: &Superblock, group: GroupNr) -> Superblock {
    let mut copy = primary.clone();
    copy.set_s_block_group_nr(group.min(0xFFFF) as u16);
    copy.set_s_state(copy.s_state() & !STATE_VALID);
    copy.clear_incompat(INCOMPAT_RECOVER);
    copy.update_checksum();
    copy
}
