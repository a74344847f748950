//! Capture: a card becomes a small image.
//!
//! ```text
//! source ─ table ─ volumes ─ plan ─ CapturePlan ─ run ─┬─ hashes
//!                                                      └─ image.partial ─ image, image.bmap
//! ```

mod batch;
mod output;
mod plan;
mod run;
mod unpack;

pub use output::{ImagePaths, capture_to_file};
pub use plan::{CapturePlan, PartitionSummary, PlanOptions, Summary, plan};
pub use run::{Captured, RunOptions, Sink, run};
pub use unpack::{Unpacked, packed_as, unpack};
