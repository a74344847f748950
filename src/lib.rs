//! pishrink: a small, sound image from an SD card, and a full card from an image.
//!
//! One idea carries the design: a resize never writes. It returns an [`io::Overlay`], a value that
//! says where each byte of the new disk comes from: the old disk at some offset, memory, or zeros.
//! Capture reads *through* the overlay into an encoder, growing commits one to a card, a dry run
//! prints the plan behind it. A source is never opened for writing.
//!
//! # The layers, each naming only those above it
//! 1. [`units`], [`error`], [`progress`]
//! 2. [`io`]: positional reads and writes, overlays, sets of ranges; [`files`]: trees read by path
//! 3. [`partition`], [`ext4`], [`fat`], [`foreign`], [`codec`], [`bmap`]: one format each; [`device`]: the system's
//! 4. [`volume`]: the one list of filesystems; [`pipeline`]: the threads
//! 5. [`capture`], [`flash`]
//! 6. [`inspect`], and the command line (feature `cli`)
//!
//! # The way through
//! ```text
//! capture  source - table - volumes - plan - overlay.over(source) - hash - encoder - file
//! flash    file - decoder - ranges - card - sync - read back - first block - expand
//! ```
//!
//! # Words
//! *Stored* or *mapped* bytes are those that a card must hold; all others are free and read as
//! zeros. A *finding* is damage that forbids a resize; a *repair* is a difference that the image
//! puts right. *Headroom* is the free space that stays in a shrunk filesystem.
//!
//! # Example
//! ```
//! use pishrink::capture::{PlanOptions, plan};
//! use pishrink::io::memory::MemoryDisk;
//! use pishrink::progress::Silent;
//!
//! // A card with nothing on it that is known is kept whole, if that is wanted.
//! let card = MemoryDisk::new(8 << 20);
//! let options = PlanOptions { shrink: false, force_raw: true, ..PlanOptions::default() };
//! let plan = plan(&card, &options, &Silent)?;
//! assert_eq!(plan.summary.image_bytes, 8 << 20);
//! # Ok::<(), pishrink::error::Error>(())
//! ```

pub mod bmap;
pub mod capture;
#[cfg(feature = "cli")]
pub mod cli;
pub mod codec;
pub mod device;
pub mod error;
pub mod ext4;
pub mod fat;
pub mod files;
pub mod flash;
pub mod foreign;
pub mod inspect;
pub mod io;
pub mod partition;
pub mod pipeline;
pub mod progress;
#[cfg(test)]
mod random;
#[cfg(test)]
mod scratch;
pub mod units;
pub mod volume;
