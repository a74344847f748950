//! ext2, ext3 and ext4: reading, checking and resizing, without ever writing.

pub mod check;
pub mod edit;
pub mod emit;
pub mod findings;
pub mod format;
mod in_place;
pub mod owner;
pub mod plan;
pub mod read;
pub mod recover;
#[cfg(test)]
pub(crate) mod test_image;

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Overlay, RangeSet, ReadAt, Steps};
use crate::units::InodeNr;
use edit::quota;
use emit::{Form, emit};
use findings::Findings;
use format::group_desc::{GroupDesc, GroupTable};
use format::superblock::{Super, Superblock};
use plan::{NoFit, ResizePlan, minimum};
use read::metadata::Metadata;
use read::usage;
use recover::{journal, orphan};

/// What was done, in memory, to a filesystem that was not unmounted cleanly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Did the superblock say that the journal needs recovery?
    pub journal_was_dirty: bool,
    /// Transactions replayed from the journal.
    pub transactions: u32,
    /// Blocks that the replay changed.
    pub blocks: u64,
    /// Fast commits replayed behind the transactions.
    pub fast_commits: u32,
    /// Deleted files whose blocks were still held.
    pub orphans_deleted: u32,
    /// Files that were being cut to a shorter length.
    pub orphans_truncated: u32,
}

/// An ext2, ext3 or ext4 filesystem: recovered in memory, read and checked.
#[derive(Debug)]
pub struct Ext4 {
    pub findings: Findings,
    pub recovery: Recovery,
    fs: Super,
    /// The superblock as the device has it, before recovery.
    found: Super,
    /// What the journal's replay changes, over the device.
    replayed: Overlay,
    /// What else recovery changes, over that.
    finished: Overlay,
    /// Both, over the device.
    overlay: Overlay,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    /// Everything is known.
    Known(Box<Metadata>),
    /// Only which bytes the bitmaps mark as used.
    Bitmaps {
        used: RangeSet,
        /// In use, but without meaning: the journal's old contents, slots that no inode uses.
        blank: Vec<Range<u64>>,
    },
}

/// The size that an image's filesystem should have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The present size.
    Keep,
    /// The minimum and so many bytes more, at most the present size.
    Headroom(u64),
    /// At most so many blocks.
    Blocks(u64),
}

/// A filesystem as it goes into an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Over the device; its length is the new filesystem's in bytes.
    pub overlay: Overlay,
    /// Bytes that a card must hold; all others are free or unused, and zeros in the image.
    pub stored: RangeSet,
    pub block_size: u64,
    pub blocks: u64,
    pub free_bytes: u64,
    pub moved_blocks: u64,
    pub moved_inodes: u64,
    /// Byte ranges of the source that go elsewhere.
    pub moved: Vec<Range<u64>>,
}

/// What makes a filesystem larger where it lies.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Only what changes, over the device. Whatever interrupts them, the old filesystem is there
    /// or the new one: see in_place.rs.
    pub steps: Steps,
    pub old_len: u64,
    pub new_len: u64,
}

impl Ext4 {
    /// Recovers (in memory), reads and checks the filesystem on `device`.
    ///
    /// # Errors
    /// `Unsound` with the first findings in its text; `Unsupported` for an unknown INCOMPAT
    /// feature or a journal that cannot be replayed here; what the device fails with.
    pub fn open(device: &dyn ReadAt) -> Result<Self> {
        Self::open_trusting(device, true)
    }

    /// Recovers the filesystem (in memory) but for its orphans, and takes from it only what the
    /// bitmaps mark as used: for filesystems whose other metadata cannot be read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by_bitmaps(device: &dyn ReadAt) -> Result<Self> {
        Self::open_trusting(device, false)
    }

    fn open_trusting(device: &dyn ReadAt, is_readable: bool) -> Result<Self> {
        let found = known_super(device)?;
        let replay = journal::replay(&found, device)?;
        let replayed = replay.overlay;
        // The log may hold another superblock, with other features.
        let features = known_super(&replayed.over(device))?.superblock;
        let by_bitmaps = !is_readable || has_foreign_features(&features);
        let mut finished = Overlay::new(device.len());
        let mut recovery = Recovery {
            journal_was_dirty: replay.needed,
            transactions: replay.transactions,
            blocks: replay.blocks,
            fast_commits: replay.fast_commits,
            ..Recovery::default()
        };
        let mut findings = Findings::default();
        let mut quota_deltas = replay.quota_deltas;
        if recovery.fast_commits > 0 && by_bitmaps {
            return Err(Error::unsupported(
                "ext4: fast commits are not in the bitmaps, which are all that can be read",
            )
            .with_hint(journal::HINT));
        }
        if !by_bitmaps {
            let view = replayed.over(device);
            let fs = known_super(&view)?;
            let orphans = orphan::finish_orphans(&fs, &view, 0)?;
            recovery.orphans_deleted = orphans.deleted;
            recovery.orphans_truncated = orphans.truncated;
            quota_deltas.extend(orphans.quota_deltas);
            finished = orphans.overlay;
        }
        let mut overlay = replayed.then(&finished);
        let view = overlay.over(device);
        let fs = known_super(&view)?;
        let contents = if by_bitmaps {
            if is_readable {
                let judged = judge(&view)?;
                if !judged.is_sound() {
                    return Err(unsound(&judged));
                }
            }
            let table = GroupTable::read(&fs, &view)?;
            let used = usage::used_bytes(&fs, &table, &view, &mut findings)?;
            let blank = if findings.is_sound() {
                blank_bytes(&fs, &table, &view)?
            } else {
                Vec::new()
            };
            Contents::Bitmaps { used, blank }
        } else {
            let metadata = Metadata::read(&view, &mut findings)?;
            let edits = quota::apply(&metadata, &view, &quota_deltas)?;
            for (block, bytes) in edits {
                overlay.set_bytes(fs.geometry.offset(block), bytes.clone());
                finished.set_bytes(fs.geometry.offset(block), bytes);
            }
            if findings.is_sound() {
                findings.merge(check::check(&overlay.over(device), &metadata)?);
            }
            Contents::Known(Box::new(metadata))
        };
        if !findings.is_sound() {
            return Err(unsound(&findings));
        }
        Ok(Self {
            findings,
            recovery,
            fs,
            found,
            replayed,
            finished,
            overlay,
            contents,
        })
    }

    pub fn superblock(&self) -> &Superblock {
        &self.fs.superblock
    }

    /// Lists the features with which the filesystem has to keep its size, by name.
    pub fn features_in_the_way(&self) -> Vec<String> {
        self.fs.superblock.features_in_the_way()
    }

    /// Returns the filesystem's size in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.fs.geometry.blocks_count * self.fs.geometry.block_size
    }

    /// Returns the length of a whole block group in bytes.
    pub fn group_bytes(&self) -> u64 {
        self.fs.geometry.blocks_per_group * self.fs.geometry.block_size
    }

    /// Returns the bytes in use, whole clusters with bigalloc.
    pub fn used_bytes(&self) -> u64 {
        match &self.contents {
            Contents::Known(metadata) => {
                let free = metadata.free_blocks() * self.fs.geometry.block_size;
                self.total_bytes().saturating_sub(free)
            }
            Contents::Bitmaps { used, .. } => used.total(),
        }
    }

    /// Returns the smallest size in bytes; the present one if a feature is in the way.
    ///
    /// # Errors
    /// `Internal` if not even the present size can be planned.
    pub fn minimum_bytes(&self) -> Result<u64> {
        match &self.contents {
            Contents::Known(metadata) if self.features_in_the_way().is_empty() => {
                Ok(minimum::plan_minimum(metadata).map_err(no_fit)?.len())
            }
            _ => Ok(self.total_bytes()),
        }
    }

    /// Plans the filesystem as it goes into an image.
    ///
    /// # Errors
    /// `Unsupported` for another size with features in the way, `NoSpace` below the minimum, what
    /// the device fails with.
    pub fn image(&self, device: &dyn ReadAt, target: Target) -> Result<Image> {
        let metadata = match &self.contents {
            Contents::Known(metadata) => metadata,
            Contents::Bitmaps { used, blank } => {
                return self.image_of_bitmaps(used, blank, target);
            }
        };
        let plan = match target {
            Target::Keep => plan::plan(metadata, self.fs.geometry.blocks_count),
            _ => {
                self.refuse_features()?;
                self.plan_smaller(metadata, target)
            }
        }
        .map_err(no_fit)?;
        let emitted = emit(&plan, metadata, &self.overlay.over(device), Form::Image)?;
        let size = plan.geometry.block_size;
        Ok(Image {
            overlay: emitted.overlay.onto(&self.overlay),
            stored: emitted.stored,
            block_size: size,
            blocks: plan.geometry.blocks_count,
            free_bytes: plan.free_blocks * size,
            moved_blocks: plan.blocks.total(),
            moved_inodes: plan.inodes.total(),
            moved: plan
                .blocks
                .runs()
                .iter()
                .map(|&(old, len, _)| old * size..(old + len) * size)
                .collect(),
        })
    }

    fn plan_smaller(&self, metadata: &Metadata, target: Target) -> Result<ResizePlan, NoFit> {
        let present = self.fs.geometry.blocks_count;
        match target {
            Target::Keep => plan::plan(metadata, present),
            Target::Blocks(blocks) => minimum::plan_at_most(metadata, blocks.min(present)),
            Target::Headroom(bytes) => {
                let least = minimum::plan_minimum(metadata)?;
                let more = bytes.div_ceil(self.fs.geometry.block_size);
                let blocks = least.geometry.blocks_count.saturating_add(more);
                if blocks >= present {
                    return plan::plan(metadata, present);
                }
                // A last group too small for itself is left away, or filled up to what it needs.
                match minimum::plan_at_least(metadata, blocks) {
                    Ok(plan) if plan.geometry.blocks_count < present => Ok(plan),
                    _ => plan::plan(metadata, present),
                }
            }
        }
    }

    fn image_of_bitmaps(
        &self,
        used: &RangeSet,
        blank: &[Range<u64>],
        target: Target,
    ) -> Result<Image> {
        if target != Target::Keep {
            self.refuse_features()?;
        }
        let len = self.total_bytes();
        let mut overlay = self.overlay.clone();
        overlay.set_len(len);
        for gap in used.gaps(0..len).into_iter().chain(blank.iter().cloned()) {
            overlay.set_zero(gap);
        }
        Ok(Image {
            overlay,
            stored: used.clone(),
            block_size: self.fs.geometry.block_size,
            blocks: self.fs.geometry.blocks_count,
            free_bytes: len - used.total(),
            moved_blocks: 0,
            moved_inodes: 0,
            moved: Vec::new(),
        })
    }

    /// Plans the filesystem's growth into `new_len` bytes.
    ///
    /// # Errors
    /// `Unsupported` with features in the way, `NoSpace` if it does not fit, what the device fails
    /// with.
    pub fn grow(&self, device: &dyn ReadAt, new_len: u64) -> Result<Growth> {
        let Contents::Known(metadata) = &self.contents else {
            return Err(self.refuse_features().err().unwrap_or_else(|| {
                Error::internal("a filesystem without metadata has no feature in the way")
            }));
        };
        self.refuse_features()?;
        if metadata.has_bad_blocks {
            return Err(Error::unsupported(
                "ext4 with a list of bad blocks cannot be resized in place",
            ));
        }
        if self.recovery.fast_commits > 0 {
            return self.grow_settled(device, metadata, new_len);
        }
        let geometry = &self.fs.geometry;
        let blocks = new_len / geometry.block_size;
        if blocks < geometry.blocks_count {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the filesystem has {} bytes and there would be {new_len}",
                    self.total_bytes()
                ),
            ));
        }
        let plan = minimum::plan_growth(metadata, blocks).map_err(no_fit)?;
        Ok(Growth {
            steps: self.steps(device, metadata, &plan)?,
            old_len: self.total_bytes(),
            new_len: plan.len(),
        })
    }

    /// Plans the growth of a filesystem whose fast commits first become part of its log.
    fn grow_settled(
        &self,
        device: &dyn ReadAt,
        metadata: &Metadata,
        new_len: u64,
    ) -> Result<Growth> {
        let present = plan::plan(metadata, self.fs.geometry.blocks_count).map_err(no_fit)?;
        let mut recovered = self.overlay.clone();
        recovered.merge(&self.changes(device, metadata, &present)?);
        let Some(mut steps) = in_place::settle_fast_commits(&self.found, device, &recovered)?
        else {
            return Err(Error::unsupported(
                "ext4 with more fast commits to replay than its journal has room for cannot be \
                 resized in place",
            )
            .with_hint(journal::HINT));
        };
        let flat = steps.flat(device.len());
        let view = flat.over(device);
        let settled = Self::open(&view)?;
        if settled.recovery.fast_commits > 0 {
            return Err(Error::internal("fast commits outlive their transaction"));
        }
        let growth = settled.grow(&view, new_len)?;
        steps.append(growth.steps);
        Ok(Growth { steps, ..growth })
    }

    /// Returns the steps of a plan in place: recovery, what it left to do, and then the plan.
    fn steps(&self, device: &dyn ReadAt, metadata: &Metadata, plan: &ResizePlan) -> Result<Steps> {
        let mut steps = in_place::recovery(&self.found, device, &self.replayed)?;
        let recovered = self.replayed.over(device);
        let overlay = self.changes(device, metadata, plan)?;
        if self.finished.is_empty() {
            steps.append(in_place_steps(&recovered, metadata, plan, &overlay)?);
            return Ok(steps);
        }
        // Orphans own blocks until they are finished, and those must not be written before.
        let present = plan::plan(metadata, self.fs.geometry.blocks_count).map_err(no_fit)?;
        let mut finished = self.finished.clone();
        finished.merge(&self.changes(device, metadata, &present)?);
        steps.append(in_place_steps(&recovered, metadata, &present, &finished)?);
        // The log has moved on meanwhile.
        let flat = steps.flat(device.len());
        let sound = flat.over(device);
        steps.append(in_place_steps(&sound, metadata, plan, &overlay)?);
        Ok(steps)
    }

    /// Returns what a plan changes in place, over the recovered filesystem.
    fn changes(
        &self,
        device: &dyn ReadAt,
        metadata: &Metadata,
        plan: &ResizePlan,
    ) -> Result<Overlay> {
        let geometry = &self.fs.geometry;
        let emitted = emit(plan, metadata, &self.overlay.over(device), Form::InPlace)?;
        let mut overlay = emitted.overlay;
        // An image leaves away every slot that is not in use; here they would stay.
        for &number in self.findings.slots_to_clear() {
            let (group, index) = geometry.inode_place(number);
            let table = geometry.offset(plan.groups[group as usize].inode_table());
            let slot = table + u64::from(index) * geometry.inode_size;
            overlay.set_zero(slot..slot + geometry.inode_size);
        }
        overlay.set_len(device.len());
        Ok(overlay)
    }

    fn refuse_features(&self) -> Result<()> {
        let names = self.features_in_the_way();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "ext4 with {} cannot be resized here",
            names.join(", ")
        )))
    }
}

/// Reads the superblock of a filesystem whose INCOMPAT features are all known.
fn known_super(device: &dyn ReadAt) -> Result<Super> {
    let fs = Super::read(device)?.ok_or_else(|| Error::unsound("no ext filesystem here"))?;
    let unknown = fs.superblock.unknown_incompat();
    if unknown.is_empty() {
        return Ok(fs);
    }
    Err(Error::unsupported(format!(
        "ext4 with unknown features: {}",
        unknown.join(", ")
    )))
}

/// Puts `overlay`, which makes of the filesystem on `device` what `plan` says, into steps.
fn in_place_steps(
    device: &dyn ReadAt,
    metadata: &Metadata,
    plan: &ResizePlan,
    overlay: &Overlay,
) -> Result<Steps> {
    let fs = Super::read(device)?.ok_or_else(|| Error::unsound("no ext filesystem here"))?;
    let journal = InodeNr(fs.superblock.s_journal_inum());
    in_place::Change {
        fs: &fs,
        device,
        metadata,
        geometry: &plan.geometry,
        overlay,
        journal_stays: journal_stays(metadata, plan, journal),
    }
    .steps()
}

/// Is inode `journal` not written, and its table where it was, or where nothing was?
fn journal_stays(metadata: &Metadata, plan: &ResizePlan, journal: InodeNr) -> bool {
    if journal.0 == 0 {
        return false;
    }
    let (group, _) = plan.geometry.inode_place(journal);
    let [old, new] = [&metadata.table.groups, &plan.groups]
        .map(|groups| groups.get(group as usize).map(GroupDesc::inode_table));
    let (Some(old), Some(new)) = (old, new) else {
        return false;
    };
    let mut table = new..new + plan.geometry.itable_blocks;
    let is_there = old == new || table.all(|block| !metadata.used.get(block));
    let is_written = metadata
        .place_of(journal)
        .is_some_and(|at| plan.changes(at));
    is_there && !is_written
}

/// Returns what a filesystem that is known by its bitmaps alone holds without meaning.
fn blank_bytes(fs: &Super, table: &GroupTable, view: &dyn ReadAt) -> Result<Vec<Range<u64>>> {
    let mut blank = Vec::new();
    for found in [
        usage::journal_contents(fs, table, view),
        usage::unused_slots(fs, table, view),
    ] {
        match found {
            Ok(ranges) => blank.extend(ranges),
            // Unreadable, they are taken along like everything else.
            Err(error) if error.kind() == ErrorKind::Io => {}
            Err(error) => return Err(error),
        }
    }
    Ok(blank)
}

/// Reads and checks a filesystem of which the bitmaps alone will be trusted.
fn judge(view: &dyn ReadAt) -> Result<Findings> {
    let mut findings = Findings::default();
    let metadata = Metadata::read(view, &mut findings)?;
    if findings.is_sound() {
        findings.merge(check::check(view, &metadata)?);
    }
    Ok(findings)
}

/// Does nobody know, e2fsck neither, what a feature does to the ownership of blocks? Then what the
/// bitmaps mark is kept, whoever owns it.
fn has_foreign_features(superblock: &Superblock) -> bool {
    let understood = [
        "external journal",
        "sparse_super2",
        "meta_bg",
        "bigalloc",
        "shared_blocks",
    ];
    superblock
        .features_in_the_way()
        .iter()
        .any(|name| !understood.contains(&name.as_str()))
}

fn unsound(findings: &Findings) -> Error {
    const SHOWN: usize = 3;
    let mut text = findings.damage()[..findings.damage().len().min(SHOWN)].join("; ");
    let more = findings.damage_total() - (findings.damage().len().min(SHOWN)) as u64;
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Error::unsound(format!("the ext4 filesystem is damaged: {text}")).with_hint(
        "repair it with `e2fsck -f` on a copy or on the card, or save every block with --no-shrink --force-raw",
    )
}

fn no_fit(reason: NoFit) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("the ext4 filesystem does not fit: {reason}"),
    )
}
