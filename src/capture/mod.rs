//! Capture: a card becomes a small image.
//!
//! ```text
//! source ─ table ─ volumes ─ plan ─ CapturePlan ─ run ─┬─ hashes
//!                                                      └─ image.partial ─ image, image.bmap
//! ```

mod batch;
mod loss;
mod output;
mod plan;
mod rescue;
mod run;
mod unpack;

pub use loss::{Loss, Rescued};
pub use output::{ImagePaths, capture_to_file};
pub use plan::{CapturePlan, PartitionSummary, PlanOptions, Summary, plan};
pub use run::{Captured, RunOptions, Sink, run};
pub use unpack::{Unpacked, packed_as, unpack};
