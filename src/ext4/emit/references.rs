//! What names inodes that move, or carries a checksum over its own place: directories, attributes.

use crate::error::{Error, Result};
use crate::ext4::emit::Emitter;
use crate::ext4::format::dir;
use crate::ext4::format::inode::{EA_INODE_FL, INDEX_FL, INLINE_DATA_FL};
use crate::ext4::format::superblock::INCOMPAT_EA_INODE;
use crate::ext4::format::xattr;
use crate::ext4::read::blocks::for_each_block;
use crate::ext4::read::metadata::InodeRecord;
use crate::units::{BlockNr, InodeNr};

/// Blocks of directories that are listed at a time: 64 MiB of them; tests go through the seams.
const BATCH: usize = if cfg!(test) { 3 } else { 4 << 20 };

impl Emitter<'_> {
    /// Rewrites what names moved inodes: directories, and xattrs whose values lie in them.
    pub(super) fn references(&mut self) -> Result<()> {
        if self.plan.inodes.runs().is_empty() {
            return Ok(());
        }
        let metadata = self.metadata;
        let plan = self.plan;
        let new_number = |old: InodeNr| plan.inode(old);
        let ea_moved = metadata.fs.superblock.has_incompat(INCOMPAT_EA_INODE)
            && metadata.inodes.iter().rev().any(|inode| {
                inode.flags & EA_INODE_FL != 0 && plan.inode(inode.number) != inode.number
            });
        self.directories(&new_number)?;
        for record in &metadata.inodes {
            let inline_dir = record.is_dir() && record.flags & INLINE_DATA_FL != 0;
            if !inline_dir && !ea_moved {
                continue;
            }
            let mut slot = match self.slots.get(&plan.inode(record.number)) {
                Some(pending) => pending.clone(),
                None => self.reader.slot(self.view, metadata, record.number)?,
            };
            let mut changed = false;
            if inline_dir {
                changed |= dir::relocate_inline(&mut slot.0, &new_number);
            }
            if ea_moved && let Some(area) = xattr::in_slot(&slot) {
                changed |= area.relocate_value_inodes(&mut slot.0, &new_number);
            }
            if changed {
                self.slots.insert(plan.inode(record.number), slot);
            }
        }
        Ok(())
    }

    /// Rewrites the blocks of directories that name a moved inode or have moved themselves.
    fn directories(&mut self, new_number: &dyn Fn(InodeNr) -> InodeNr) -> Result<()> {
        let metadata = self.metadata;
        let places = metadata.inodes.iter().enumerate();
        let outside = |record: &InodeRecord| record.is_dir() && record.flags & INLINE_DATA_FL == 0;
        let mut blocks =
            places
                .filter(|(_, record)| outside(record))
                .flat_map(|(place, record)| {
                    metadata.extents(record).iter().flat_map(move |extent| {
                        (0..extent.len()).map(move |skip| {
                            let block = extent.start + u64::from(skip);
                            (block, place as u32, extent.logical + skip)
                        })
                    })
                });
        loop {
            let some: Vec<_> = blocks.by_ref().take(BATCH).collect();
            if some.is_empty() {
                return Ok(());
            }
            self.some_directories(some, new_number)?;
        }
    }

    fn some_directories(
        &mut self,
        mut blocks: Vec<(BlockNr, u32, u32)>,
        new_number: &dyn Fn(InodeNr) -> InodeNr,
    ) -> Result<()> {
        blocks.sort_unstable();
        let metadata = self.metadata;
        let (view, fs) = (self.view, &metadata.fs);
        for_each_block(
            view,
            fs,
            &blocks,
            |&(block, ..)| block,
            |&(block, place, logical), bytes| {
                let record = &metadata.inodes[place as usize];
                self.directory_block(record, logical, block, bytes, new_number)
            },
        )
    }

    fn directory_block(
        &mut self,
        record: &InodeRecord,
        logical: u32,
        place: BlockNr,
        bytes: &[u8],
        new_number: &dyn Fn(InodeNr) -> InodeNr,
    ) -> Result<()> {
        let number = self.plan.inode(record.number);
        let has_moved = number != record.number && self.metadata.fs.checksums.enabled();
        let indexed = record.flags & INDEX_FL != 0;
        let kind = dir::kind_of(&self.metadata.fs, indexed, logical, bytes);
        let mut block = bytes.to_vec();
        if !dir::relocate_entries(&mut block, kind, new_number) && !has_moved {
            return Ok(());
        }
        if !dir::update_checksum(&self.new_fs, number, record.generation, kind, &mut block) {
            return Err(Error::unsound(format!(
                "inode {}: a block of this folder has no room for its checksum",
                record.number
            )));
        }
        self.change_block(place, bytes, block);
        Ok(())
    }

    /// Writes xattr blocks that moved (their checksum holds their place) or whose values did.
    pub(super) fn xattr_blocks(&mut self) -> Result<()> {
        let plan = self.plan;
        let with_values = self.metadata.fs.superblock.has_incompat(INCOMPAT_EA_INODE)
            && !plan.inodes.runs().is_empty();
        for &block in self.metadata.xattr_blocks.keys() {
            let place = plan.blocks.of(block);
            if place == block && !with_values {
                continue;
            }
            let before = self.read_block(block)?;
            let mut bytes = before.clone();
            let mut changed = place != block;
            if with_values && let Ok(area) = xattr::in_block(&before) {
                changed |= area.relocate_value_inodes(&mut bytes, &|old| plan.inode(old));
            }
            if changed {
                xattr::update_checksum(&self.new_fs, place, &mut bytes);
                self.change_block(block, &before, bytes);
            }
        }
        Ok(())
    }
}
