//! ext2, ext3 and ext4: reading, checking and resizing, without ever writing.

pub mod bitmap;
pub mod check;
pub mod checksum;
pub mod dir;
pub mod findings;
pub mod group_desc;
pub mod inode;
pub mod map;
pub mod metadata;
pub mod raw;
pub mod superblock;
pub mod xattr;
