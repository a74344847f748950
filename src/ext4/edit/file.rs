//! One inode while fast commits are replayed: its slot, and its map once a range changes it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ext4::edit::directory::Directory;
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::extent::{
    BlockMap, EXTENT_MAGIC, Extent, build_tree, join_extents, tree_shape,
};
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{EXTENTS_FL, I_BLOCK, I_BLOCK_SIZE, INLINE_DATA_FL, Inode};
use crate::ext4::format::raw::le16;
use crate::ext4::read::inode_table::Slot;
use crate::ext4::read::map::read_map_alone;
use crate::io::{Overlay, ReadAt};
use crate::units::BlockNr;

/// Where the fields behind `i_block` begin.
const AFTER_MAP: usize = I_BLOCK + I_BLOCK_SIZE;

/// An inode, as the tags so far leave it.
#[derive(Debug)]
pub struct File {
    pub slot: Slot,
    /// Has to be written.
    pub is_changed: bool,
    /// The slot belonged to another file, or none, before this log.
    pub is_fresh: bool,
    /// Names that the log gave to it, less those that it took.
    pub names: i64,
    pub map: Option<FileMap>,
    pub directory: Option<Directory>,
    /// What the quota files count for it.
    pub charged: Option<QuotaDelta>,
}

/// Where a file's blocks lie.
#[derive(Debug, Default)]
pub struct FileMap {
    /// By their first block within the file.
    extents: BTreeMap<u32, Extent>,
    /// Blocks of the tree on disk.
    nodes: Vec<BlockNr>,
    is_changed: bool,
    /// What `i_blocks` counts beside the map, in units of 512 bytes.
    others: u64,
}

impl File {
    /// Takes an inode from its slot on disk.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            is_changed: false,
            is_fresh: false,
            names: 0,
            map: None,
            directory: None,
            charged: None,
        }
    }

    /// Forgets all that the slot held.
    pub fn renew(&mut self) {
        let charged = self.charged.take();
        let mut slot = self.slot.clone();
        slot.inode.0.fill(0);
        *self = Self {
            is_fresh: true,
            charged,
            ..Self::new(slot)
        };
    }

    /// Takes the fields of an INODE tag. What `i_block` says of blocks stays: ranges tell the map.
    pub fn take_fields(&mut self, fs: &Super, bytes: &[u8]) {
        let blocks_512 = self.slot.inode.blocks_512(fs);
        let slot = &mut self.slot.inode;
        // OK: a tag has 128 bytes at least, and no more than a slot.
        slot.0[..I_BLOCK].copy_from_slice(&bytes[..I_BLOCK]);
        slot.0[AFTER_MAP..bytes.len()].copy_from_slice(&bytes[AFTER_MAP..]);
        self.is_changed = true;
        if self.is_fresh && self.map.is_none() {
            let attributes = match slot.file_acl(fs) {
                0 => 0,
                _ => fs.geometry.block_size / 512,
            };
            slot.set_blocks_512(fs, attributes);
        } else {
            slot.set_blocks_512(fs, blocks_512);
        }
        if slot.has_flag(EXTENTS_FL) {
            if le16(slot.i_block(), 0) != EXTENT_MAGIC {
                let mut i_block = [0; I_BLOCK_SIZE];
                build_tree(fs, self.slot.number, 0, &[], &[], &mut i_block);
                slot.i_block_mut().copy_from_slice(&i_block);
                let others = slot.blocks_512(fs);
                self.map.get_or_insert_with(|| FileMap::empty(others));
            }
        } else if slot.has_flag(INLINE_DATA_FL) || !slot.has_block_map(fs) {
            // Data, a symlink's target, or a device's number. The kernel restores the first only.
            slot.i_block_mut()
                .copy_from_slice(&bytes[I_BLOCK..AFTER_MAP]);
        }
    }

    /// Returns the map, read from disk if no tag asked for it before.
    ///
    /// # Errors
    /// `Unsound` for a damaged map, `Unsupported` for one without extents.
    pub fn map(&mut self, fs: &Super, view: &dyn ReadAt) -> Result<&mut FileMap> {
        if self.map.is_none() {
            self.map = Some(self.read_map(fs, view)?);
        }
        // OK to unwrap: it is there by now.
        Ok(self.map.as_mut().unwrap())
    }

    fn read_map(&self, fs: &Super, view: &dyn ReadAt) -> Result<FileMap> {
        let Slot { number, inode, .. } = &self.slot;
        if inode.has_flag(INLINE_DATA_FL) {
            // Its data is about to leave the inode.
            return Ok(FileMap::empty(inode.blocks_512(fs)));
        }
        if !inode.has_block_map(fs) || !inode.has_flag(EXTENTS_FL) {
            return Err(Error::unsupported(format!(
                "ext4: a fast commit changes the blocks of inode {number}, which has no extents"
            )));
        }
        let map = read_map_alone(fs, view, *number, inode)
            .map_err(|error| error.of(format_args!("inode {number}")))?;
        Ok(FileMap::of(fs, map, inode))
    }

    /// Returns what the quota files should count for it.
    pub fn charge(&self, fs: &Super) -> Option<QuotaDelta> {
        let inode = &self.slot.inode;
        (inode.i_links_count() > 0).then(|| QuotaDelta {
            uid: inode.uid(),
            gid: inode.gid(),
            projid: inode.projid(),
            inodes: 1,
            bytes: i64::try_from(inode.blocks_512(fs).saturating_mul(512)).unwrap_or(i64::MAX),
        })
    }

    /// Returns how many blocks its tree needs beside those that it has.
    pub fn missing_nodes(&self, fs: &Super) -> u64 {
        let Some(map) = self.map.as_ref().filter(|map| map.is_changed) else {
            return 0;
        };
        let count: usize = tree_shape(map.joined().len(), fs.geometry.block_size)
            .iter()
            .sum();
        count.saturating_sub(map.nodes.len()) as u64
    }

    /// Puts the tree over the changed map into `overlay` and the slot. `room` gives new blocks.
    ///
    /// # Errors
    /// What `room` fails with; `Unsound` if the inode does not take extents after all.
    pub fn write_map(
        &mut self,
        fs: &Super,
        overlay: &mut Overlay,
        room: &mut dyn FnMut() -> Result<BlockNr>,
    ) -> Result<()> {
        let Some(map) = self.map.as_mut().filter(|map| map.is_changed) else {
            return Ok(());
        };
        let Slot { number, inode, .. } = &mut self.slot;
        if !inode.has_flag(EXTENTS_FL) || inode.has_flag(INLINE_DATA_FL) {
            return Err(Error::unsound(format!(
                "ext4: a fast commit gives blocks to inode {number}, which takes none"
            )));
        }
        let block_size = fs.geometry.block_size;
        let extents = map.joined();
        let count: usize = tree_shape(extents.len(), block_size).iter().sum();
        map.nodes.truncate(count);
        while map.nodes.len() < count {
            map.nodes.push(room()?);
        }
        let generation = inode.i_generation();
        let mut i_block = [0; I_BLOCK_SIZE];
        let nodes = build_tree(fs, *number, generation, &extents, &map.nodes, &mut i_block);
        inode.i_block_mut().copy_from_slice(&i_block);
        for (block, bytes) in nodes {
            overlay.set_bytes(fs.geometry.offset(block), bytes);
        }
        let sectors = map.sectors(block_size) + map.others;
        inode.set_blocks_512(fs, sectors);
        map.is_changed = false;
        self.is_changed = true;
        Ok(())
    }
}

impl FileMap {
    fn empty(others: u64) -> Self {
        Self {
            others,
            ..Self::default()
        }
    }

    fn of(fs: &Super, map: BlockMap, inode: &Inode) -> Self {
        let mut this = Self {
            extents: map.extents.iter().map(|e| (e.logical, *e)).collect(),
            nodes: map.nodes.iter().map(|node| node.block).collect(),
            is_changed: false,
            others: 0,
        };
        let mapped = this.sectors(fs.geometry.block_size);
        this.others = inode.blocks_512(fs).saturating_sub(mapped);
        this
    }

    /// Returns what `i_blocks` counts for the map. There are no clusters here.
    fn sectors(&self, block_size: u64) -> u64 {
        let data: u64 = self.extents.values().map(|e| u64::from(e.len())).sum();
        (data + self.nodes.len() as u64) * (block_size / 512)
    }

    fn joined(&self) -> Vec<Extent> {
        let extents: Vec<Extent> = self.extents.values().copied().collect();
        join_extents(&extents)
    }

    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.values().copied()
    }

    /// Lists every block that the map takes.
    pub fn blocks(&self) -> impl Iterator<Item = std::ops::Range<BlockNr>> + '_ {
        let data = self
            .extents
            .values()
            .map(|extent| extent.start..extent.end());
        data.chain(self.nodes.iter().map(|&node| node..node + 1))
    }

    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// Maps `extent`, whatever was there before.
    pub fn set(&mut self, extent: Extent) {
        if !extent.is_empty() {
            self.clear(extent.logical, extent.logical_end());
            self.extents.insert(extent.logical, extent);
            self.is_changed = true;
        }
    }

    /// Makes a hole from block `from` up to block `end`.
    pub fn clear(&mut self, from: u32, end: u64) {
        let before = self.extents.range(..from).next_back();
        if let Some(extent) = before.map(|(_, extent)| *extent)
            && extent.logical_end() > u64::from(from)
        {
            self.is_changed = true;
            let kept = from - extent.logical;
            self.extents
                .insert(extent.logical, extent.part(0, kept, extent.start));
            self.keep_end(extent, end);
        }
        while let Some((&at, &extent)) = self
            .extents
            .range(from..)
            .next()
            .filter(|(at, _)| u64::from(**at) < end)
        {
            self.is_changed = true;
            self.extents.remove(&at);
            self.keep_end(extent, end);
        }
    }

    /// Puts back what of `extent` lies behind `end`.
    fn keep_end(&mut self, extent: Extent, end: u64) {
        if extent.logical_end() > end {
            // OK: the end lies within the extent.
            let skip = (end - u64::from(extent.logical)) as u32;
            let part = extent.part(skip, extent.len() - skip, extent.start + u64::from(skip));
            self.extents.insert(part.logical, part);
        }
    }
}
