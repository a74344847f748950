//! pishrink: a small, sound image from an SD card, and a full card from an image.

pub mod device;
pub mod error;
pub mod ext4;
pub mod io;
pub mod progress;
pub mod units;
