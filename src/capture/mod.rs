//! Capture: a card becomes a small image.
//!
//! ```text
//! source ─ table ─ volumes ─ plan ─ CapturePlan ─ run ─┬─ hashes
//!                                                      └─ image.partial ─ image, image.bmap
//! ```

mod batch;
mod keep;
mod loss;
mod mapfile;
mod output;
mod plan;
mod recover;
mod rescue;
mod resume;
mod run;
mod unpack;

pub use loss::{Loss, Rescued};
pub use output::{ImagePaths, capture_to_file, remove_unfinished};
pub use plan::{CapturePlan, PartitionSummary, PlanOptions, Summary, plan};
pub use resume::capture_resuming;
pub use run::{Captured, RunOptions, Sink, run};
pub use unpack::{Unpacked, packed_as, unpack};
