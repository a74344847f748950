//! Capture: a card becomes a small image.
//!
//! ```text
//! source ─ table ─ volumes ─ plan ─ CapturePlan ─ run ─┬─ hashes
//!                                                      └─ image.partial ─ image, image.bmap
//! ```

mod batch;
mod keep;
mod layout;
mod left_out;
mod loss;
mod mapfile;
mod output;
mod part;
mod plan;
mod recover;
mod rescue;
mod resume;
mod run;
mod sink;
mod summary;
mod sums;
mod unpack;

pub use loss::{Loss, Rescued};
pub use output::{ImagePaths, capture_to_file, remove_unfinished};
pub use plan::plan;
pub use resume::capture_resuming;
pub use run::{Captured, run};
pub use sink::{RunOptions, Sink};
pub use summary::{CapturePlan, PartitionSummary, PlanOptions, Summary};
pub use unpack::{Unpacked, packed_as, unpack};
