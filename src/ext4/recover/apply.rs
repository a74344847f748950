//! The tags of fast commits, one by one, as changes of files and directories.

use crate::error::Result;
use crate::ext4::edit::directory::Directory;
use crate::ext4::edit::editor::Entry;
use crate::ext4::edit::editor::{Editor, MAX_EXTENTS, contradiction, refused};
use crate::ext4::edit::file::{File, FileMap};
use crate::ext4::edit::room::count_subdirectory;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::raw::le32;
use crate::ext4::read::inode_table::{cover_inode, read_slot};
use crate::ext4::recover::tags::Tag;
use crate::units::InodeNr;

/// Where an inode keeps its generation.
const I_GENERATION: usize = 0x64;

impl Editor<'_> {
    pub(in crate::ext4) fn apply(&mut self, tag: Tag<'_>) -> Result<()> {
        match tag {
            Tag::Inode { inode, bytes } => self.put_inode(inode, bytes),
            Tag::AddRange { inode, extent } => self.add_range(inode, extent),
            Tag::DelRange {
                inode,
                logical,
                len,
            } => {
                let end = u64::from(logical) + u64::from(len);
                self.change_map(inode, |map| map.clear(logical, end))
            }
            Tag::Create(entry) => self.create(entry),
            Tag::Link(entry) => self.link(entry),
            Tag::Unlink(entry) => self.unlink(entry),
        }
    }

    fn put_inode(&mut self, number: InodeNr, bytes: &[u8]) -> Result<()> {
        if self.is_own(number) {
            return Ok(());
        }
        if number.0 > self.fs.geometry.inodes_count() {
            return Err(contradiction(format_args!("there is no inode {number}")));
        }
        let is_known = self.load(number)?;
        if !is_known {
            cover_inode(self.fs, self.device, &mut self.overlay, number)?;
            let view = self.overlay.over(self.device);
            let slot = read_slot(self.fs, &view, number)?;
            self.files.insert(number.0, File::new(slot));
        }
        let (fs, orphan_link) = (self.fs, self.orphans.get(&number.0).copied());
        let file = self.file(number);
        // A number that was given to another file comes with another generation.
        let generation = le32(bytes, I_GENERATION);
        if !is_known || file.slot.inode.i_generation() != generation {
            file.renew();
        }
        file.take_fields(fs, bytes);
        let inode = &mut file.slot.inode;
        match orphan_link {
            Some(next) => inode.set_i_dtime(next),
            None if inode.i_links_count() > 0 => inode.set_i_dtime(0),
            None => {}
        }
        Ok(())
    }

    fn add_range(&mut self, number: InodeNr, extent: Extent) -> Result<()> {
        let geometry = &self.fs.geometry;
        let end = extent.start.checked_add(u64::from(extent.len()));
        let is_inside = extent.start > geometry.first_data_block
            && end.is_some_and(|end| end <= geometry.blocks_count);
        if !is_inside || extent.logical_end() > u64::from(u32::MAX) {
            return Err(contradiction(format_args!(
                "inode {number} gets {} blocks from {} on",
                extent.len(),
                extent.start
            )));
        }
        self.logged.insert(extent.start..extent.end());
        self.change_map(number, |map| map.set(extent))
    }

    fn change_map(&mut self, number: InodeNr, change: impl FnOnce(&mut FileMap)) -> Result<()> {
        if self.is_own(number) || !self.load(number)? {
            return Ok(());
        }
        let view = self.overlay.over(self.device);
        let file = self
            .files
            .get_mut(&number.0)
            .expect("load() has put it there");
        if file.slot.inode.is_dir() {
            return Err(contradiction(format_args!(
                "directory {number} gets blocks like a file"
            )));
        }
        let before = file.map.as_ref().map_or(0, FileMap::extent_count);
        let map = file.map(self.fs, &view)?;
        change(map);
        self.extents = (self.extents + map.extent_count()).saturating_sub(before);
        if self.extents > MAX_EXTENTS {
            return Err(refused("so many pieces of files"));
        }
        Ok(())
    }

    fn create(&mut self, entry: Entry<'_>) -> Result<()> {
        let number = entry.inode;
        if self.is_own(number) || !self.load(number)? {
            return Err(contradiction(format_args!(
                "inode {number} gets its first name, but is not in use"
            )));
        }
        if !self.load(entry.parent)? {
            return Ok(());
        }
        let file = self.file(number);
        if file.slot.inode.is_dir() {
            if !file.is_fresh {
                return Err(contradiction(format_args!(
                    "directory {number} is made a second time"
                )));
            }
            file.directory = Some(Directory::empty(number, entry.parent));
            file.slot.inode.set_i_links_count(2);
        } else {
            file.slot.inode.set_i_links_count(1);
        }
        file.is_changed = true;
        if self.add_name(entry)? && self.file(number).slot.inode.is_dir() {
            count_subdirectory(self.fs, self.file(entry.parent), true);
        }
        Ok(())
    }

    fn link(&mut self, entry: Entry<'_>) -> Result<()> {
        if self.is_own(entry.inode) || !self.load(entry.inode)? || !self.load(entry.parent)? {
            return Ok(());
        }
        if self.file(entry.inode).slot.inode.is_dir() {
            return Err(contradiction(format_args!(
                "directory {} gets a second name",
                entry.inode
            )));
        }
        if self.add_name(entry)? {
            let file = self.file(entry.inode);
            let links = file.slot.inode.i_links_count().saturating_add(1);
            file.slot.inode.set_i_links_count(links);
            file.is_changed = true;
        }
        Ok(())
    }

    fn unlink(&mut self, entry: Entry<'_>) -> Result<()> {
        let number = entry.inode;
        if self.is_own(number) || !self.load(number)? || !self.load(entry.parent)? {
            return Ok(());
        }
        let fs = self.fs;
        let directory = self.directory(entry.parent)?;
        let Some(found) = directory.lookup(entry.name) else {
            return Ok(());
        };
        if found == number {
            directory.remove(fs, entry.name);
            self.file(entry.parent).is_changed = true;
            self.file(number).names -= 1;
        }
        if self.file(number).slot.inode.is_dir() {
            if found != number || !self.directory(number)?.is_empty() {
                return Err(contradiction(format_args!(
                    "directory {number} is removed, but still in use"
                )));
            }
            count_subdirectory(fs, self.file(entry.parent), false);
            self.file(number).slot.inode.set_i_links_count(0);
        } else {
            let inode = &mut self.file(number).slot.inode;
            inode.set_i_links_count(inode.i_links_count().saturating_sub(1));
        }
        let file = self.file(number);
        file.is_changed = true;
        if file.slot.inode.i_links_count() == 0 {
            self.delete(number)?;
        }
        Ok(())
    }
}
