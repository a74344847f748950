//! The format: what lies in which bytes, without a device.

pub mod bitmap;
pub mod checksum;
pub mod crc;
pub mod dir;
pub mod dirhash;
pub mod extent;
pub mod fs;
pub mod geometry;
pub mod group_desc;
pub mod inode;
pub mod raw;
pub mod superblock;
pub mod xattr;
