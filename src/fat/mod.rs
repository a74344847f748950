//! FAT12, FAT16 and FAT32, read only: what it is, what is in use, and files of the root directory.
//!
//! ```text
//! boot sector · (FSInfo, backup boot sector) │ FAT │ FAT copy │ root directory │ clusters 2 …
//! └────────── reserved sectors ─────────────┘                 └ FAT12/16 only ┘
//! ```
//! Spec: Microsoft, "FAT: General Overview of On-Disk Format" (1.03). Where writers differ from
//! it, this follows Linux: FAT32 is told by an empty `BPB_FATSz16`, not by the cluster count,
//! since small FAT32 boot partitions are common.
//!
//! Decisions: everything before the first cluster counts as in use. If the copies of the FAT
//! disagree, a cluster is in use if any of them says so. Bad clusters hold no data and are not
//! read; their marks stay in the FAT. Bytes after the last cluster are free.

mod boot;
mod chain;
mod check;
mod dir;
mod owner;
mod since;
#[cfg(test)]
mod tests;
mod tree;
mod usage;
mod walk;

use std::fmt;

use crate::error::Result;
use crate::io::{RangeSet, ReadAt};
use boot::Geometry;
pub use owner::Owned;
pub use tree::FatTree;

/// How many bits an entry of the FAT has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
pub enum FatKind {
    Fat12,
    Fat16,
    Fat32,
}

impl fmt::Display for FatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FatKind::Fat12 => "FAT12",
            FatKind::Fat16 => "FAT16",
            FatKind::Fat32 => "FAT32",
        })
    }
}

/// A FAT filesystem whose boot sector is sound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fat {
    geometry: Geometry,
    label: Option<String>,
}

/// What the FAT says about the clusters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Bytes in use, from the filesystem's first byte.
    pub allocated: RangeSet,
    /// Clusters by what their entries say; together [`Fat::cluster_count`].
    pub used_clusters: u32,
    pub free_clusters: u32,
    pub bad_clusters: u32,
    /// Was it unmounted properly, with no error noted?
    pub clean: bool,
    /// Of the entries and the root directory, but for the days of the last access: not the same
    /// after something else was written.
    pub digest: [u8; 32],
    /// What is wrong with the chains of files, a line each: then nothing that the FAT calls free is
    /// certain to be. Names in it are escaped.
    pub damage: Vec<String>,
    /// What a user should know, a line each.
    pub warnings: Vec<String>,
}

impl Fat {
    /// Recognises a FAT filesystem that begins at byte 0 of `dev`; `None` if it is something else.
    ///
    /// # Errors
    /// `Unsound` if it is FAT, but does not fit `dev` or itself; `Io` if reading fails.
    pub fn identify<D: ReadAt + ?Sized>(dev: &D) -> Result<Option<Fat>> {
        let Some(geometry) = Geometry::read(dev)? else {
            return Ok(None);
        };
        let mut fat = Fat {
            label: geometry.label(),
            geometry,
        };
        // The label in the root directory is the one that users see and change.
        if let Ok(Some(label)) = dir::volume_label(&fat.geometry, dev) {
            fat.label = Some(label);
        }
        Ok(Some(fat))
    }

    pub fn kind(&self) -> FatKind {
        self.geometry.kind
    }

    /// Returns the volume label, without padding.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// Returns the volume serial number as `blkid` shows it: `1A2B-3C4D`.
    pub fn uuid(&self) -> Option<String> {
        let serial = self.geometry.serial?;
        Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff))
    }

    /// Returns the length of the filesystem in bytes, not more than its device's.
    pub fn len(&self) -> u64 {
        self.geometry.len
    }

    /// A filesystem has at least its boot sector.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size
    }

    pub fn cluster_count(&self) -> u32 {
        self.geometry.clusters
    }

    /// Reads the FAT and its copies, and the directories.
    ///
    /// # Errors
    /// `Io` if reading the FAT fails; directories that cannot be read are not looked into.
    pub fn usage<D: ReadAt + ?Sized>(&self, dev: &D) -> Result<Usage> {
        usage::usage(&self.geometry, dev)
    }

    /// Returns the bytes in use, from the filesystem's first byte.
    ///
    /// # Errors
    /// As [`Fat::usage`].
    pub fn allocated<D: ReadAt + ?Sized>(&self, dev: &D) -> Result<RangeSet> {
        Ok(self.usage(dev)?.allocated)
    }

    /// Tells who owns each of `bytes`, ascending. `dev` should give zeros instead of failing.
    ///
    /// # Errors
    /// `Io` if reading fails.
    pub fn owners<D: ReadAt + ?Sized>(&self, dev: &D, bytes: &RangeSet) -> Result<Vec<Owned>> {
        owner::owners(&self.geometry, dev, bytes)
    }

    /// Reads the first `max_len` bytes of a file in the root directory, by its long or short name
    /// in any case; `None` if there is none.
    ///
    /// # Errors
    /// `Unsound` if the root directory's or the file's chain of clusters is broken or runs in a
    /// circle; `Io` if reading fails.
    pub fn read_root_file<D: ReadAt + ?Sized>(
        &self,
        dev: &D,
        name: &str,
        max_len: usize,
    ) -> Result<Option<Vec<u8>>> {
        dir::read_file(&self.geometry, dev, name, max_len)
    }
}
