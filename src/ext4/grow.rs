//! Growing a filesystem where it lies.

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::emit::{Form, emit};
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::GroupDesc;
use crate::ext4::plan::{self, ResizePlan, minimum};
use crate::ext4::read::metadata::Metadata;
use crate::ext4::recover::{Recovered, journal};
use crate::ext4::sound::Sound;
use crate::ext4::{Contents, Ext4, in_place, no_fit};
use crate::io::{Overlay, ReadAt, Steps};
use crate::units::InodeNr;

/// What makes a filesystem larger where it lies.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Only what changes, over the device. Whatever interrupts them, the old filesystem is there
    /// or the new one: see in_place.rs.
    pub steps: Steps,
    pub old_len: u64,
    pub new_len: u64,
}

impl Ext4<'_> {
    /// Plans the filesystem's growth into `new_len` bytes.
    ///
    /// # Errors
    /// `Unsupported` with features in the way, `NoSpace` if it does not fit, what the device fails
    /// with.
    pub fn grow(&self, new_len: u64) -> Result<Growth> {
        let Contents::Known(sound) = &self.contents else {
            return Err(self.refuse_features().err().unwrap_or_else(|| {
                Error::internal("a filesystem without metadata has no feature in the way")
            }));
        };
        self.refuse_features()?;
        sound.grow(new_len)
    }
}

impl Sound<'_> {
    fn grow(&self, new_len: u64) -> Result<Growth> {
        let metadata = self.metadata();
        if metadata.has_bad_blocks {
            return Err(Error::unsupported(
                "ext4 with a list of bad blocks cannot be resized in place",
            ));
        }
        if self.recovered().recovery.fast_commits > 0 {
            return self.grow_settled(new_len);
        }
        let geometry = &metadata.fs.geometry;
        let old_len = geometry.blocks_count * geometry.block_size;
        let blocks = new_len / geometry.block_size;
        if blocks < geometry.blocks_count {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!("the filesystem has {old_len} bytes and there would be {new_len}"),
            ));
        }
        let plan = minimum::plan_growth(self, blocks).map_err(no_fit)?;
        Ok(Growth {
            steps: self.steps(&plan)?,
            old_len,
            new_len: plan.len(),
        })
    }

    /// Plans the filesystem as it is.
    fn present(&self) -> Result<ResizePlan> {
        plan::plan(self, self.metadata().fs.geometry.blocks_count).map_err(no_fit)
    }

    /// Plans the growth of a filesystem whose fast commits first become part of its log.
    fn grow_settled(&self, new_len: u64) -> Result<Growth> {
        let recovered = self.recovered();
        let device = recovered.device;
        let mut overlay = recovered.overlay.clone();
        overlay.merge(&self.changes(&self.present()?)?);
        let Some(mut steps) = in_place::settle_fast_commits(&recovered.found, device, &overlay)?
        else {
            return Err(Error::unsupported(
                "ext4 with more fast commits to replay than its journal has room for cannot be \
                 resized in place",
            )
            .with_hint(journal::HINT));
        };
        let flat = steps.flat(device.len());
        let view = flat.over(device);
        let settled = Recovered::read(&view)?.check()?;
        if settled.recovered().recovery.fast_commits > 0 {
            return Err(Error::internal("fast commits outlive their transaction"));
        }
        let growth = settled.grow(new_len)?;
        steps.append(growth.steps);
        Ok(Growth { steps, ..growth })
    }

    /// Returns the steps of a plan in place: recovery, what it left to do, and then the plan.
    fn steps(&self, plan: &ResizePlan) -> Result<Steps> {
        let Recovered {
            device,
            found,
            replayed,
            finished,
            ..
        } = self.recovered();
        let metadata = self.metadata();
        let mut steps = in_place::recovery(found, *device, replayed)?;
        let recovered = replayed.over(*device);
        let overlay = self.changes(plan)?;
        if finished.is_empty() {
            steps.append(in_place_steps(&recovered, metadata, plan, &overlay)?);
            return Ok(steps);
        }
        // Orphans own blocks until they are finished, and those must not be written before.
        let present = self.present()?;
        let mut finished = finished.clone();
        finished.merge(&self.changes(&present)?);
        steps.append(in_place_steps(&recovered, metadata, &present, &finished)?);
        // The log has moved on meanwhile.
        let flat = steps.flat(device.len());
        let sound = flat.over(*device);
        steps.append(in_place_steps(&sound, metadata, plan, &overlay)?);
        Ok(steps)
    }

    /// Returns what a plan changes in place, over the recovered filesystem.
    fn changes(&self, plan: &ResizePlan) -> Result<Overlay> {
        let geometry = &self.metadata().fs.geometry;
        let emitted = emit(plan, self, Form::InPlace)?;
        let mut overlay = emitted.overlay;
        // An image leaves away every slot that is not in use; here they would stay.
        for &number in self.findings().slots_to_clear() {
            let (group, index) = geometry.inode_place(number);
            let table = geometry.offset(plan.groups[group as usize].inode_table());
            let slot = table + u64::from(index) * geometry.inode_size;
            overlay.set_zero(slot..slot + geometry.inode_size);
        }
        overlay.set_len(self.recovered().device.len());
        Ok(overlay)
    }
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
