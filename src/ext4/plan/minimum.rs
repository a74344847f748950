//! The smallest size: a search over the planner itself, so that there is no second estimate.

use super::{NoFit, ResizePlan, larger_size, plan, valid_size};
use crate::ext4::metadata::Metadata;
use crate::units::BlockNr;

/// Plans the filesystem at its minimum: first the number of groups, then the blocks of the last.
///
/// # Errors
/// [`NoFit`] when not even the present size can be planned.
pub fn plan_minimum(metadata: &Metadata) -> Result<ResizePlan, NoFit> {
    let geometry = &metadata.fs.geometry;
    let mut best = plan(metadata, geometry.blocks_count)?;
    // Smallest number of whole groups that fits; the present last group may be partial.
    let (mut low, mut high) = (1, geometry.groups);
    while low < high {
        let middle = low + (high - low) / 2;
        match plan(metadata, geometry.group_end(middle - 1)) {
            Ok(fits) => {
                best = fits;
                high = middle;
            }
            Err(_) => low = middle + 1,
        }
    }
    let (mut low, mut high) = (
        geometry.group_start(high - 1) + 1,
        best.geometry.blocks_count,
    );
    while low < high {
        let middle = low + (high - low) / 2;
        match plan(metadata, middle) {
            Ok(fits) => {
                best = fits;
                high = middle;
            }
            Err(_) => low = middle + 1,
        }
    }
    Ok(best)
}

/// Plans the filesystem at the largest valid size up to `blocks`.
///
/// # Errors
/// [`NoFit`] when that is below the minimum.
pub fn plan_at_most(metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    plan(metadata, valid_size(metadata, blocks))
}

/// Plans the filesystem at the smallest valid size from `blocks` on.
///
/// # Errors
/// [`NoFit`] as [`plan`] gives it.
pub fn plan_at_least(metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
    plan(metadata, larger_size(metadata, blocks))
}

/// Plans the largest growth up to `blocks`: a rest too small for a group stays outside, and so
/// does what the descriptors' limits do not reach.
///
/// # Errors
/// [`NoFit`] when not even the present size can be planned.
pub fn plan_growth(metadata: &Metadata, blocks: BlockNr) -> Result<ResizePlan, NoFit> {
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
