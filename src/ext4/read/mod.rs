//! Reading: from a device to metadata that nobody has judged yet.

pub mod blocks;
pub mod claim;
pub mod files;
pub mod inode_table;
pub mod map;
pub mod metadata;
pub mod usage;
