//! pishrink: a small, sound image from an SD card, and a full card from an image.

pub mod bmap;
pub mod capture;
#[cfg(feature = "cli")]
pub mod cli;
pub mod codec;
pub mod device;
pub mod error;
pub mod ext4;
pub mod fat;
pub mod flash;
pub mod inspect;
pub mod io;
pub mod partition;
pub mod pipeline;
pub mod progress;
pub mod units;
pub mod volume;
