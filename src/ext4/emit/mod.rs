//! From a plan to the bytes of the new filesystem, as an overlay on the old one.
//!
//! Two forms: a whole image, in which everything free or unused is zeros and need not be stored;
//! and a change in place, which holds only the bytes that differ.

mod groups;
mod references;
mod slots;
mod special;

use std::collections::BTreeMap;

use crate::error::Result;
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::checksum::Checksums;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::GroupDesc;
use crate::ext4::format::inode::Inode;
use crate::ext4::format::superblock::{INCOMPAT_MMP, SUPERBLOCK_OFFSET};
use crate::ext4::plan::ResizePlan;
use crate::ext4::read::metadata::Metadata;
use crate::ext4::sound::Sound;
use crate::io::{Edits, Overlay, RangeSet, ReadAt};
use crate::units::{BlockNr, InodeNr};
use slots::SlotReader;

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

/// Emits the plan of `sound`.
///
/// # Errors
/// What the device fails with; `Unsound` where something to rewrite is damaged.
pub fn emit(plan: &ResizePlan, sound: &Sound, form: Form) -> Result<Emitted> {
    let metadata = sound.metadata();
    let view = &sound.recovered().view();
    let mut emitter = Emitter {
        plan,
        metadata,
        view,
        form,
        new_fs: new_super(plan, metadata),
        overlay: Overlay::new(plan.len()),
        groups: plan.groups.clone(),
        slots: BTreeMap::new(),
        reader: SlotReader::default(),
        unstored: RangeSet::new(),
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
    reader: SlotReader,
    /// Blocks in use that need not be stored.
    unstored: RangeSet,
    /// What files use more or less, by their tree nodes.
    quota_deltas: Vec<QuotaDelta>,
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

    /// Puts what becomes of the block at `old` where the plan has it: of an image, no more of it is
    /// kept than what changes.
    fn change_block(&mut self, old: BlockNr, before: &[u8], after: Vec<u8>) {
        let place = self.plan.blocks.of(old);
        if self.form == Form::InPlace {
            self.put_block(place, after);
            return;
        }
        let geometry = &self.plan.geometry;
        let edits = Edits::between(before, &after);
        self.overlay.set_patched(
            geometry.offset(place),
            geometry.block_size,
            geometry.offset(old),
            edits,
        );
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
        let mut unwritten = RangeSet::new();
        for record in &self.metadata.inodes {
            for extent in self.metadata.extents(record) {
                if extent.is_unwritten() {
                    let pieces = self
                        .plan
                        .blocks
                        .pieces(extent.start, u64::from(extent.len()));
                    for (start, len) in pieces {
                        unwritten.insert(start..start + len);
                    }
                }
            }
        }
        for run in unwritten.iter() {
            self.overlay
                .set_zero(geometry.bytes(run.start, run.end - run.start));
            self.unstored.insert(run);
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
        for run in self.unstored.iter() {
            stored.remove(geometry.bytes(run.start, run.end - run.start));
        }
        Emitted {
            overlay: self.overlay,
            stored,
        }
    }
}
