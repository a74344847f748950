//! Which block may belong to which file.
//!
//! Without bigalloc a block has one owner. With it a cluster has: the groups' own metadata may share
//! one among themselves, everything else has its clusters for itself, each node and each xattr block
//! as well. In the clusters of a file the blocks lie as they do within the file, and a cluster of the
//! file is one of the disk; so extents that follow each other may meet within one.
//!
//! With shared_blocks the written blocks of regular files may belong to several of them, but not
//! those of the journal and the like.
//!
//! Decisions: blocks are marked one by one, whatever the clusters, since what nobody owns of a
//! cluster need not be in an image. Of a filesystem with both features nothing is shared.

use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::geometry::Geometry;
use crate::units::BlockNr;

/// What a file wants a run of blocks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// A node of its map.
    Node,
    /// Data from this block of the file on.
    Data { logical: u32, unwritten: bool },
}

/// Why a file cannot have a run of blocks, in words that follow its numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken(pub &'static str);

/// What a run is that someone else has.
pub const ELSEWHERE: Taken = Taken("is in use elsewhere");
const ASKEW: Taken = Taken("lies in its cluster in another place than in the file");

/// The owned blocks of a filesystem, a bit each.
#[derive(Debug)]
pub struct Owned<'a> {
    pub geometry: &'a Geometry,
    pub used: &'a mut Bitmap,
    /// Those of the used blocks that may have more owners; `None` without shared_blocks.
    pub shareable: Option<&'a mut Bitmap>,
}

impl Owned<'_> {
    /// Marks blocks that no other may share a cluster with; false if one does.
    pub fn take_alone(&mut self, blocks: Range<BlockNr>) -> bool {
        let clusters = self.geometry.clusters(&blocks);
        let is_free = self.used.count(self.geometry.blocks_of(&clusters)) == 0;
        self.used.set_range(blocks);
        is_free
    }

    /// Marks written blocks of a regular file, where several files may share them.
    fn share(&mut self, blocks: Range<BlockNr>) -> bool {
        let Some(shareable) = &mut self.shareable else {
            return self.take_alone(blocks);
        };
        let used = self.used.set_range(blocks.clone());
        shareable.set_range(blocks) == used
    }
}

/// The claims of one file, in the order of its blocks.
#[derive(Debug)]
pub struct Claims<'a> {
    pub owned: Owned<'a>,
    /// May the file share its blocks, where that is possible at all?
    pub may_share: bool,
    /// The cluster that the file's last block is in: within the file, and on disk.
    pub last: Option<(u64, u64)>,
}

impl Claims<'_> {
    /// Takes a run of blocks within the filesystem for the file.
    ///
    /// # Errors
    /// [`Taken`] if it cannot have them.
    pub fn take(&mut self, blocks: Range<BlockNr>, piece: Piece) -> Result<(), Taken> {
        let is_free = match piece {
            Piece::Node => self.owned.take_alone(blocks),
            Piece::Data { logical, .. } if self.owned.geometry.cluster_ratio > 1 => {
                return self.take_clusters(blocks, u64::from(logical));
            }
            Piece::Data { unwritten, .. } if self.may_share && !unwritten => {
                self.owned.share(blocks)
            }
            Piece::Data { .. } => self.owned.take_alone(blocks),
        };
        if is_free { Ok(()) } else { Err(ELSEWHERE) }
    }

    fn take_clusters(&mut self, blocks: Range<BlockNr>, logical: u64) -> Result<(), Taken> {
        let geometry = self.owned.geometry;
        let ratio = geometry.cluster_ratio;
        if logical % ratio != blocks.start % ratio {
            return Err(ASKEW);
        }
        let mut clusters = geometry.clusters(&blocks);
        let first = (logical / ratio, clusters.start);
        let logical_end = logical + (blocks.end - blocks.start);
        let last = (logical_end.div_ceil(ratio) - 1, clusters.end - 1);
        match self.last {
            // The run before begins the cluster that this one goes on with.
            Some(before) if before == first => clusters.start += 1,
            Some((within_file, _)) if within_file == first.0 => return Err(ASKEW),
            _ => {}
        }
        let is_free =
            clusters.is_empty() || self.owned.used.count(geometry.blocks_of(&clusters)) == 0;
        self.owned.used.set_range(blocks);
        self.last = Some(last);
        if is_free { Ok(()) } else { Err(ELSEWHERE) }
    }
}

#[cfg(test)]
mod tests;
