//! The smallest size: a search over the planner itself, so that there is no second estimate.

use crate::ext4::plan::{
    Effort, NoFit, ResizePlan, larger_size, plan_metadata as plan, plan_with, valid_size,
};
use crate::ext4::read::metadata::Metadata;
use crate::ext4::sound::Sound;
use crate::units::BlockNr;

/// Plans the filesystem at its minimum: first the number of groups, then the blocks of the last,
/// and then what can be gained with more effort.
///
/// # Errors
/// [`NoFit`] when not even the present size can be planned.
pub fn plan_minimum(sound: &Sound) -> Result<ResizePlan, NoFit> {
    let metadata = sound.metadata();
    let geometry = &metadata.fs.geometry;
    let mut least = Least {
        metadata,
        effort: Effort::Usual,
        blocks: geometry.blocks_count,
        plan: None,
    };
    // Smallest number of whole groups that fits; the present last group may be partial.
    let (mut low, mut high) = (1, geometry.groups);
    while low < high {
        let middle = low + (high - low) / 2;
        match least.fits(geometry.group_end(middle - 1)) {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    least.search(geometry.group_start(high - 1) + 1);
    // That gains a few blocks at the most, if any: so the steps are small at first.
    least.effort = Effort::Tight;
    let (mut low, mut step) = (1, 1);
    while step < least.blocks {
        let smaller = least.blocks - step;
        if !least.fits(valid_size(metadata, smaller)) {
            low = smaller + 1;
            break;
        }
        step *= 2;
    }
    least.search(low);
    least.into_plan()
}

/// The smallest size so far. With millions of files a plan is large, so there is never a second one.
struct Least<'a> {
    metadata: &'a Metadata,
    effort: Effort,
    blocks: BlockNr,
    /// The plan for that size, unless another was tried since.
    plan: Option<ResizePlan>,
}

impl Least<'_> {
    /// Looks for smaller sizes from `low` blocks on.
    fn search(&mut self, mut low: BlockNr) {
        while low < self.blocks {
            let middle = low + (self.blocks - low) / 2;
            if !self.fits(valid_size(self.metadata, middle)) {
                low = middle + 1;
            }
        }
    }

    /// Tries a smaller size.
    fn fits(&mut self, blocks: BlockNr) -> bool {
        self.plan = None;
        self.plan = plan_with(self.effort, self.metadata, blocks).ok();
        if self.plan.is_some() {
            self.blocks = blocks;
        }
        self.plan.is_some()
    }

    fn into_plan(self) -> Result<ResizePlan, NoFit> {
        match self.plan {
            Some(plan) => Ok(plan),
            None => plan(self.metadata, self.blocks),
        }
    }
}

/// Plans the filesystem at the largest valid size up to `blocks`.
///
/// # Errors
/// [`NoFit`] when that is below the minimum.
pub fn plan_at_most(sound: &Sound, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    let metadata = sound.metadata();
    plan(metadata, valid_size(metadata, blocks))
}

/// Plans the filesystem at the smallest valid size from `blocks` on.
///
/// # Errors
/// [`NoFit`] as [`plan`](crate::ext4::plan::plan()) gives it.
pub fn plan_at_least(sound: &Sound, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    let metadata = sound.metadata();
    plan(metadata, larger_size(metadata, blocks))
}

/// Plans the largest growth up to `blocks`: a rest too small for a group stays outside, and so
/// does what the descriptors' limits do not reach.
///
/// # Errors
/// [`NoFit`] when not even the present size can be planned.
pub fn plan_growth(sound: &Sound, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    let metadata = sound.metadata();
    let geometry = &metadata.fs.geometry;
    let target = valid_size(metadata, blocks).max(geometry.blocks_count);
    if let Ok(plan) = plan(metadata, target) {
        return Ok(plan);
    }
    let mut best = plan(metadata, geometry.blocks_count)?;
    let last = geometry.group_of(target - 1);
    let (mut low, mut high) = (geometry.groups - 1, last);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let end = geometry.group_start(middle);
        match plan(
            metadata,
            valid_size(metadata, end).max(geometry.blocks_count),
        ) {
            Ok(fits) => {
                best = fits;
                low = middle;
            }
            Err(_) => high = middle - 1,
        }
    }
    Ok(best)
}
