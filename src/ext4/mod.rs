//! ext2, ext3 and ext4: reading, checking and resizing, without ever writing.

pub mod bitmap;
pub mod checksum;
pub mod group_desc;
pub mod inode;
pub mod inode_table;
pub mod journal;
pub mod map;
pub mod orphan;
pub mod raw;
pub mod superblock;
#[cfg(test)]
mod test_image;
