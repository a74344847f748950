//! What is written at the end: free blocks for what grew, directories, slots.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::edit::directory::Layout;
use crate::ext4::edit::editor::Editor;
use crate::ext4::edit::file::File;
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::bitmap::{Bitmap, bit};
use crate::ext4::format::dir;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, GroupTable};
use crate::ext4::format::inode::{EXTENTS_FL, INDEX_FL, ROOT_INO};
use crate::ext4::format::superblock::RO_COMPAT_DIR_NLINK;
use crate::ext4::free_space::FreeSpace;
use crate::io::ReadAt;
use crate::units::BlockNr;

/// Subdirectories from which on a directory's link count says 1.
const LINK_MAX: u16 = 65000;

/// Free blocks, or none where none are needed.
pub struct Room(Option<FreeSpace>);

impl Room {
    pub fn take(&mut self) -> Result<BlockNr> {
        let block = self.0.as_mut().and_then(|free| free.take(1));
        block.map(|range| range.start).ok_or_else(|| {
            Error::new(
                ErrorKind::NoSpace,
                "ext4: the filesystem is too full to replay its fast commits",
            )
        })
    }
}

impl Editor<'_> {
    /// Finds `needed` blocks that neither the bitmaps nor the changed files nor any tag claim.
    pub(in crate::ext4) fn room(&self, files: &BTreeMap<u32, File>, needed: u64) -> Result<Room> {
        if needed == 0 {
            return Ok(Room(None));
        }
        let geometry = &self.fs.geometry;
        let view = self.overlay.over(self.device);
        let mut used = self.blocks_in_use(&view)?;
        let maps = files.values().filter_map(|file| file.map.as_ref());
        for range in maps.flat_map(|map| map.blocks()).chain(self.logged.iter()) {
            used.set_range(range);
        }
        used.set_range(0..geometry.first_data_block + 1);
        Ok(Room(Some(FreeSpace::new(&used, needed))))
    }

    /// Returns what the bitmaps mark, and the groups' own metadata.
    fn blocks_in_use(&self, view: &dyn ReadAt) -> Result<Bitmap> {
        let geometry = &self.fs.geometry;
        let table = GroupTable::read(self.fs, view)?;
        let mut used = Bitmap::new(geometry.blocks_count);
        for group in 0..geometry.groups {
            let start = geometry.group_start(group);
            let end = geometry.group_end(group);
            let first = geometry.super_start(group);
            used.set_range(first..first.saturating_add(geometry.super_blocks(group)));
            let desc = &table.groups[group as usize];
            for (block, count) in desc.parts(geometry.itable_blocks) {
                used.set_range(block..block.saturating_add(count));
            }
            if self.fs.superblock.has_group_checksums() && desc.has_flag(BLOCK_UNINIT) {
                continue;
            }
            if desc.block_bitmap() >= geometry.blocks_count {
                return Err(Error::unsound(format!(
                    "ext4: the block bitmap of group {group} is outside the filesystem"
                )));
            }
            let offset = geometry.offset(desc.block_bitmap());
            let bitmap = view.read_vec_at(offset, geometry.block_size as usize)?;
            for block in (start..end).filter(|block| bit(&bitmap, block - start)) {
                used.set_range(block..block + 1);
            }
        }
        Ok(used)
    }

    /// Writes the changed blocks of a directory and gives its inode their map.
    pub(in crate::ext4) fn store_directory(
        &mut self,
        file: &mut File,
        layout: Layout,
        room: &mut Room,
    ) -> Result<()> {
        let Some(directory) = &file.directory else {
            return Ok(());
        };
        let number = file.slot.number;
        let generation = file.slot.inode.i_generation();
        let mut places = directory.places().to_vec();
        let is_moved = places.len() != layout.count;
        places.truncate(layout.count);
        while places.len() < layout.count {
            places.push(room.take()?);
        }
        for (logical, kind, mut bytes) in layout.blocks {
            if !dir::update_checksum(self.fs, number, generation, kind, &mut bytes) {
                return Err(Error::unsound(format!(
                    "ext4: directory {number}: a block has no room for its checksum"
                )));
            }
            let offset = self.fs.geometry.offset(places[logical as usize]);
            self.overlay.set_bytes(offset, bytes);
        }
        let inode = &mut file.slot.inode;
        let flags = inode.i_flags() & !INDEX_FL;
        inode.set_i_flags(flags | if layout.is_indexed { INDEX_FL } else { 0 });
        if !is_moved {
            return Ok(());
        }
        if !inode.has_flag(EXTENTS_FL) {
            return Err(Error::unsupported(format!(
                "ext4: a fast commit makes directory {number} grow, which has no extents"
            )));
        }
        inode.set_size(layout.count as u64 * self.fs.geometry.block_size);
        let view = self.overlay.over(self.device);
        let map = file.map(self.fs, &view)?;
        map.clear(0, u64::from(u32::MAX));
        for (&place, logical) in places.iter().zip(0..) {
            map.set(Extent::new(logical, place, 1, false));
        }
        Ok(())
    }

    /// Notes what the quota files have to learn about a file.
    pub(in crate::ext4) fn settle(&mut self, file: &mut File) {
        let now = file.charge(self.fs);
        if now == file.charged || self.is_own(file.slot.number) && file.slot.number != ROOT_INO {
            return;
        }
        if let Some(before) = file.charged {
            self.quota_deltas.push(QuotaDelta {
                inodes: -before.inodes,
                bytes: -before.bytes,
                ..before
            });
        }
        self.quota_deltas.extend(now);
        file.charged = now;
    }

    /// Stores an inode's slot.
    pub(in crate::ext4) fn store(&mut self, file: &mut File) {
        let slot = &mut file.slot;
        slot.inode.update_checksum(&self.fs.checksums, slot.number);
        self.overlay.set_bytes(slot.offset, slot.inode.0.clone());
    }
}

/// Counts a subdirectory in its parent's links, which say 1 when there are too many.
pub fn count_subdirectory(fs: &Super, parent: &mut File, is_new: bool) {
    let inode = &mut parent.slot.inode;
    let links = inode.i_links_count();
    let counted = match (links, is_new) {
        (0 | 1, _) => links,
        (LINK_MAX.., true) if fs.superblock.has_ro_compat(RO_COMPAT_DIR_NLINK) => 1,
        (_, true) => links.saturating_add(1),
        (2, false) => 2,
        (_, false) => links - 1,
    };
    inode.set_i_links_count(counted);
    parent.is_changed = true;
}
