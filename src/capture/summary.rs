//! What is wanted of an image, and what a user is told about its plan.

use serde::Serialize;

use crate::io::{Overlay, RangeSet};
use crate::partition::TableKind;
use crate::units::{ByteRange, human_bytes};
use crate::volume::Facts;

/// What is wanted of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanOptions {
    /// Free bytes to leave in the shrunk filesystem, over its minimum.
    pub headroom: u64,
    /// Shrink the last partition; else every size stays, and so does the card's length.
    pub shrink: bool,
    /// Copy filesystems that are not sound whole, instead of refusing them.
    pub force_raw: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            headroom: 32 << 20,
            shrink: true,
            force_raw: false,
        }
    }
}

/// An image, planned down to the byte.
#[derive(Clone, Debug)]
pub struct CapturePlan {
    /// The image over the source. What is not in `mapped` is zeros.
    pub overlay: Overlay,
    /// Bytes of the image that a card must hold.
    pub mapped: RangeSet,
    pub summary: Summary,
}

impl CapturePlan {
    /// Returns the image's length in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.overlay.len()
    }
}

/// What a user is told about the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub source_bytes: u64,
    pub image_bytes: u64,
    /// Bytes of the image that are not known to be free.
    pub mapped_bytes: u64,
    /// Of these, how many belong to what is copied whole, and may be zeros.
    pub opaque_bytes: u64,
    /// `None`: a filesystem without a table.
    pub table: Option<TableKind>,
    pub sector_size: u64,
    pub disk_id: Option<String>,
    pub partitions: Vec<PartitionSummary>,
    pub notes: Vec<String>,
}

impl Summary {
    /// Returns the most that a sparse image takes up on its disk, as far as that is known.
    pub fn room_needed(&self) -> u64 {
        self.mapped_bytes.saturating_sub(self.opaque_bytes)
    }

    /// Returns card and image size in a few words.
    pub fn sizes(&self) -> String {
        format!(
            "{} -> {}",
            human_bytes(self.source_bytes),
            human_bytes(self.image_bytes)
        )
    }
}

/// What a user is told about a partition. Labels and names are untrusted text.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionSummary {
    /// 0 for a filesystem without a table.
    pub number: u32,
    pub part_uuid: Option<String>,
    pub range: ByteRange,
    pub new_range: ByteRange,
    pub filesystem: String,
    pub label: Option<String>,
    pub uuid: Option<String>,
    #[serde(flatten)]
    pub facts: Facts,
    /// Its filesystem was made smaller.
    pub shrunk: bool,
}
