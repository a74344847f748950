//! ext2, ext3 and ext4: reading, checking and resizing, without ever writing.

pub mod check;
pub mod edit;
pub mod emit;
pub mod findings;
pub mod format;
mod free_space;
mod grow;
mod in_place;
pub mod owner;
pub mod plan;
pub mod read;
pub mod recover;
pub mod since;
mod sound;
#[cfg(test)]
pub(crate) mod test_image;

pub use grow::Growth;
pub use recover::{Recovered, Recovery};
pub use sound::Sound;

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Overlay, RangeSet, ReadAt};
use emit::{Form, emit};
use findings::Findings;
use format::fs::Super;
use format::group_desc::GroupTable;
use format::superblock::Superblock;
use plan::{NoFit, ResizePlan, minimum};
use read::usage;
use sound::{has_foreign_features, judge, unsound, with_repair_hint};

/// An ext2, ext3 or ext4 filesystem, and what is known of it.
pub struct Ext4<'a> {
    contents: Contents<'a>,
}

impl std::fmt::Debug for Ext4<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ext4")
            .field("recovery", &self.recovery())
            .field("findings", self.findings())
            .finish_non_exhaustive()
    }
}

enum Contents<'a> {
    /// Everything is known, and checked.
    Known(Box<Sound<'a>>),
    /// Only which bytes the bitmaps mark as used.
    Bitmaps {
        recovered: Box<Recovered<'a>>,
        used: RangeSet,
        /// In use, but without meaning: the journal's old contents, slots that no inode uses.
        blank: Vec<Range<u64>>,
        findings: Findings,
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

impl<'a> Ext4<'a> {
    /// Recovers (in memory), reads and checks the filesystem on `device`.
    ///
    /// # Errors
    /// `Unsound` with the first findings in its text; `Unsupported` for an unknown INCOMPAT
    /// feature or a journal that cannot be replayed here; what the device fails with.
    pub fn open(device: &'a dyn ReadAt) -> Result<Self> {
        Self::checked(device).map_err(with_repair_hint)
    }

    fn checked(device: &'a dyn ReadAt) -> Result<Self> {
        let replayed = Recovered::replayed(device)?;
        if !has_foreign_features(replayed.superblock()) {
            return Self::of(replayed.without_orphans()?);
        }
        let judged = judge(&replayed.view())?;
        match judged.is_sound() {
            true => Self::of_bitmaps(replayed),
            false => Err(unsound(&judged)),
        }
    }

    /// Checks a filesystem that was recovered, and perhaps edited.
    ///
    /// # Errors
    /// As [`Recovered::check`].
    pub fn of(recovered: Recovered<'a>) -> Result<Self> {
        let contents = Contents::Known(Box::new(recovered.check()?));
        Ok(Self { contents })
    }

    /// Recovers the filesystem (in memory) but for its orphans, and takes from it only what the
    /// bitmaps mark as used: for filesystems whose other metadata cannot be read.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_by_bitmaps(device: &'a dyn ReadAt) -> Result<Self> {
        Recovered::replayed(device)
            .and_then(Self::of_bitmaps)
            .map_err(with_repair_hint)
    }

    fn of_bitmaps(recovered: Recovered<'a>) -> Result<Self> {
        if recovered.recovery.fast_commits > 0 {
            return Err(Error::unsupported(
                "ext4: fast commits are not in the bitmaps, which are all that can be read",
            )
            .with_hint(recover::journal::HINT));
        }
        let mut findings = Findings::default();
        let view = recovered.view();
        let table = GroupTable::read(&recovered.fs, &view)?;
        let used = usage::used_bytes(&recovered.fs, &table, &view, &mut findings)?;
        if !findings.is_sound() {
            return Err(unsound(&findings));
        }
        let blank = usage::blank_bytes(&recovered.fs, &table, &view)?;
        drop(view);
        let contents = Contents::Bitmaps {
            recovered: Box::new(recovered),
            used,
            blank,
            findings,
        };
        Ok(Self { contents })
    }

    fn recovered(&self) -> &Recovered<'a> {
        match &self.contents {
            Contents::Known(sound) => sound.recovered(),
            Contents::Bitmaps { recovered, .. } => recovered,
        }
    }

    fn fs(&self) -> &Super {
        &self.recovered().fs
    }

    pub fn superblock(&self) -> &Superblock {
        &self.fs().superblock
    }

    /// Returns what was done, in memory, before anything was read.
    pub fn recovery(&self) -> Recovery {
        self.recovered().recovery
    }

    /// Returns what the image puts right.
    pub fn findings(&self) -> &Findings {
        match &self.contents {
            Contents::Known(sound) => sound.findings(),
            Contents::Bitmaps { findings, .. } => findings,
        }
    }

    /// Lists the features with which the filesystem has to keep its size, by name.
    pub fn features_in_the_way(&self) -> Vec<String> {
        self.fs().superblock.features_in_the_way()
    }

    /// Returns the filesystem's size in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.fs().geometry.blocks_count * self.fs().geometry.block_size
    }

    /// Returns the length of a whole block group in bytes.
    pub fn group_bytes(&self) -> u64 {
        self.fs().geometry.blocks_per_group * self.fs().geometry.block_size
    }

    /// Returns the bytes in use, whole clusters with bigalloc.
    pub fn used_bytes(&self) -> u64 {
        match &self.contents {
            Contents::Known(sound) => {
                let free = sound.metadata().free_blocks() * self.fs().geometry.block_size;
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
            Contents::Known(sound) if self.features_in_the_way().is_empty() => {
                Ok(minimum::plan_minimum(sound).map_err(no_fit)?.len())
            }
            _ => Ok(self.total_bytes()),
        }
    }

    /// Plans the filesystem as it goes into an image.
    ///
    /// # Errors
    /// `Unsupported` for another size with features in the way, `NoSpace` below the minimum, what
    /// the device fails with.
    pub fn image(&self, target: Target) -> Result<Image> {
        let sound = match &self.contents {
            Contents::Known(sound) => sound,
            Contents::Bitmaps { used, blank, .. } => {
                return self.image_of_bitmaps(used, blank, target);
            }
        };
        let plan = match target {
            Target::Keep => plan::plan(sound, self.fs().geometry.blocks_count),
            _ => {
                self.refuse_features()?;
                self.plan_smaller(sound, target)
            }
        }
        .map_err(no_fit)?;
        let emitted = emit(&plan, sound, Form::Image)?;
        let size = plan.geometry.block_size;
        Ok(Image {
            overlay: emitted.overlay.onto(&self.recovered().overlay),
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

    fn plan_smaller(&self, sound: &Sound, target: Target) -> Result<ResizePlan, NoFit> {
        let present = self.fs().geometry.blocks_count;
        match target {
            Target::Keep => plan::plan(sound, present),
            Target::Blocks(blocks) => minimum::plan_at_most(sound, blocks.min(present)),
            Target::Headroom(bytes) => {
                let least = minimum::plan_minimum(sound)?;
                let more = bytes.div_ceil(self.fs().geometry.block_size);
                let blocks = least.geometry.blocks_count.saturating_add(more);
                if blocks >= present {
                    return plan::plan(sound, present);
                }
                // A last group too small for itself is left away, or filled up to what it needs.
                match minimum::plan_at_least(sound, blocks) {
                    Ok(plan) if plan.geometry.blocks_count < present => Ok(plan),
                    _ => plan::plan(sound, present),
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
        let mut overlay = self.recovered().overlay.clone();
        overlay.set_len(len);
        for gap in used.gaps(0..len).into_iter().chain(blank.iter().cloned()) {
            overlay.set_zero(gap);
        }
        Ok(Image {
            overlay,
            stored: used.clone(),
            block_size: self.fs().geometry.block_size,
            blocks: self.fs().geometry.blocks_count,
            free_bytes: len - used.total(),
            moved_blocks: 0,
            moved_inodes: 0,
            moved: Vec::new(),
        })
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

fn no_fit(reason: NoFit) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!("the ext4 filesystem does not fit: {reason}"),
    )
}
