//! Replay of fast commits, in memory: what fsync stored behind the last full transaction.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/journal.rst. Comes after the log was
//! replayed and before orphans are finished, as at a mount. A tag tells an outcome ("this name stands
//! for that inode"), not blocks, so this edits directories, maps and inodes. Bitmaps and counts are
//! left alone: the caller rebuilds them from what the inodes own.
//!
//! Decisions
//! - Where the kernel skips a tag, so does this: a name for an inode that is gone by then, a range of
//!   it, a name that already stands for the same inode.
//! - Where its recovery leaves damage behind, this does not: link counts of directories, removed
//!   directories, targets of symlinks, device numbers, attributes left over in a slot, shares of
//!   xattr blocks in `i_blocks`, files whose name was never logged.
//! - Whatever contradicts the filesystem is refused; everything else is left to the check, which
//!   judges the result as a whole.
//! - A directory keeps its times: the log does not tell them, and the kernel would put the time of
//!   the recovery.
//! - The quota files' inodes and the orphan file's stay as the last transaction left them, because
//!   their contents do.

mod directory;
mod file;
mod room;
mod tags;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use self::directory::Directory;
use self::file::{File, FileMap};
use self::room::count_subdirectory;
use self::tags::{Entry, Tag};
pub use self::tags::{FastCommits, Scanner};
use super::inode::{S_IFMT, file_type};
use super::inode_table::{cover_inode, is_covered, read_inode, read_slot};
use super::map::Extent;
use super::orphan::{QuotaDelta, delete_inode, orphan_links};
use super::raw::le32;
use super::superblock::{INCOMPAT_FILETYPE, RO_COMPAT_SHARED_BLOCKS, Super};
use crate::error::{Error, Result};
use crate::io::{Overlay, RangeSet, ReadAt};
use crate::units::InodeNr;

/// What to do about fast commits that this program cannot replay.
const HINT: &str = "mount the card once under Linux, or run e2fsck";
/// Bytes of directories that are held in memory.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Where an inode keeps its generation.
const I_GENERATION: usize = 0x64;
/// Extents of changed files that are held in memory.
const MAX_EXTENTS: usize = 4 << 20;

/// The outcome.
#[derive(Debug)]
pub struct Replayed {
    /// The filesystem after the last fast commit; lies on the device that was given.
    pub overlay: Overlay,
    /// What the quota files have to learn.
    pub quota_deltas: Vec<QuotaDelta>,
}

/// Replays `commits`. `device` is the filesystem after the log's replay, `fs` was read from it.
///
/// # Errors
/// `Unsound` for tags that contradict the filesystem, `Unsupported` for files or directories in a
/// form that is not handled, `NoSpace` if the filesystem is full; what the device fails with.
pub fn replay(fs: &Super, device: &dyn ReadAt, commits: &FastCommits) -> Result<Replayed> {
    let mut work = Work {
        fs,
        device,
        overlay: Overlay::new(device.len()),
        quota_deltas: Vec::new(),
        files: BTreeMap::new(),
        orphans: HashMap::new(),
        logged: RangeSet::new(),
        directory_bytes: 0,
        extents: 0,
    };
    if commits.count > 0 {
        if fs.geometry.cluster_ratio != 1 {
            return Err(refused("clusters (feature bigalloc)"));
        }
        if fs.superblock.has_ro_compat(RO_COMPAT_SHARED_BLOCKS) {
            return Err(refused("shared_blocks"));
        }
        work.orphans = orphan_links(fs, device)?;
        for tag in commits.tags() {
            work.apply(tag)?;
        }
        work.finish()?;
    }
    Ok(Replayed {
        overlay: work.overlay,
        quota_deltas: work.quota_deltas,
    })
}

fn refused(what: &str) -> Error {
    Error::unsupported(format!("ext4: fast commits together with {what}")).with_hint(HINT)
}

fn contradiction(what: impl std::fmt::Display) -> Error {
    Error::unsound(format!(
        "ext4: a fast commit contradicts the filesystem: {what}"
    ))
}

struct Work<'a> {
    fs: &'a Super,
    device: &'a dyn ReadAt,
    overlay: Overlay,
    quota_deltas: Vec<QuotaDelta>,
    /// The inodes that tags were about, by number.
    files: BTreeMap<u32, File>,
    /// Inodes that wait to be deleted or cut, with `i_dtime`, by which they may be linked.
    orphans: HashMap<u32, u32>,
    /// Blocks that any tag gives to a file: new nodes go elsewhere.
    logged: RangeSet,
    directory_bytes: u64,
    extents: usize,
}

impl Work<'_> {
    fn apply(&mut self, tag: Tag<'_>) -> Result<()> {
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

    /// Does the inode belong to the filesystem itself?
    fn is_own(&self, number: InodeNr) -> bool {
        let superblock = &self.fs.superblock;
        let own = [
            superblock.s_journal_inum(),
            superblock.s_usr_quota_inum(),
            superblock.s_grp_quota_inum(),
            superblock.s_prj_quota_inum(),
            superblock.s_orphan_file_inum(),
        ];
        number.0 < superblock.first_ino() || own.contains(&number.0)
    }

    /// Makes sure that `files` holds an inode; returns false if it is not in use.
    fn load(&mut self, number: InodeNr) -> Result<bool> {
        if self.files.contains_key(&number.0) {
            return Ok(true);
        }
        if number.0 == 0 || number.0 > self.fs.geometry.inodes_count() {
            return Ok(false);
        }
        let view = self.overlay.over(self.device);
        let slot = read_slot(self.fs, &view, number)?;
        let is_linked = slot.inode.i_links_count() > 0 || self.orphans.contains_key(&number.0);
        if !is_linked || !is_covered(self.fs, &view, number)? {
            return Ok(false);
        }
        let mut file = File::new(read_inode(self.fs, &view, number)?);
        file.charged = file.charge(self.fs);
        self.files.insert(number.0, file);
        Ok(true)
    }

    /// Returns an inode that `load` found.
    fn file(&mut self, number: InodeNr) -> &mut File {
        self.files
            .get_mut(&number.0)
            .expect("load() has put it there")
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

    /// Makes a name stand for an inode; returns false if it does already.
    fn add_name(&mut self, entry: Entry<'_>) -> Result<bool> {
        if entry.name.contains(&0)
            || entry.name.contains(&b'/')
            || matches!(entry.name, b"." | b"..")
        {
            return Err(contradiction("a name that cannot be"));
        }
        let mode = self.file(entry.inode).slot.inode.i_mode();
        let has_types = self.fs.superblock.has_incompat(INCOMPAT_FILETYPE);
        let file_type = if has_types { file_type(mode) } else { 0 };
        if has_types && file_type == 0 {
            return Err(contradiction(format_args!(
                "inode {} is of the unknown kind {:#x}",
                entry.inode,
                mode & S_IFMT
            )));
        }
        let fs = self.fs;
        let directory = self.directory(entry.parent)?;
        match directory.lookup(entry.name) {
            Some(inode) if inode == entry.inode => return Ok(false),
            Some(inode) => {
                return Err(contradiction(format_args!(
                    "a name for inode {} already stands for {inode}",
                    entry.inode
                )));
            }
            None => directory.insert(fs, entry.name, entry.inode, file_type)?,
        }
        self.file(entry.parent).is_changed = true;
        self.file(entry.inode).names += 1;
        Ok(true)
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

    /// Returns a directory's names.
    fn directory(&mut self, number: InodeNr) -> Result<&mut Directory> {
        let fs = self.fs;
        let view = self.overlay.over(self.device);
        let file = self
            .files
            .get_mut(&number.0)
            .expect("load() has put it there");
        if !file.slot.inode.is_dir() {
            return Err(contradiction(format_args!(
                "inode {number} is no directory"
            )));
        }
        if file.directory.is_none() {
            self.directory_bytes = self.directory_bytes.saturating_add(file.slot.inode.size());
            if self.directory_bytes > MAX_DIRECTORY_BYTES {
                return Err(refused("directories of that size"));
            }
            let inode = &file.slot.inode;
            let extents: Vec<Extent> = if inode.has_block_map(fs) {
                let map = file.map(fs, &view)?;
                self.extents += map.extent_count();
                if self.extents > MAX_EXTENTS {
                    return Err(refused("so many pieces of files"));
                }
                map.extents().collect()
            } else {
                Vec::new()
            };
            file.directory = Some(Directory::read(fs, &view, &file.slot, &extents)?);
        }
        Ok(file.directory.as_mut().expect("it was just put there"))
    }

    /// Deletes an inode without names; one that waits for it already is left to those who come
    /// after.
    fn delete(&mut self, number: InodeNr) -> Result<()> {
        if self.orphans.contains_key(&number.0) {
            return Ok(());
        }
        let Some(mut file) = self.files.remove(&number.0) else {
            return Ok(());
        };
        // The deletion is charged with what the slot says.
        file.slot.inode.set_i_links_count(1);
        self.settle(&mut file);
        file.slot.inode.set_i_links_count(0);
        self.store(&mut file);
        let deleted = delete_inode(self.fs, &self.overlay.over(self.device), number)?;
        self.overlay.merge(&deleted.overlay);
        self.quota_deltas.extend(deleted.quota_deltas);
        Ok(())
    }

    /// Writes what is changed.
    fn finish(&mut self) -> Result<()> {
        let numbers: Vec<InodeNr> = self.files.keys().map(|&number| InodeNr(number)).collect();
        for &number in &numbers {
            let file = self.file(number);
            let is_dir = file.slot.inode.is_dir();
            if file.is_fresh && !is_dir && file.names >= 0 {
                // All its names are known. Without one nobody could have found it.
                let links = u16::try_from(file.names).unwrap_or(u16::MAX);
                file.slot.inode.set_i_links_count(links);
            } else if file.is_fresh && file.names <= 0 {
                file.slot.inode.set_i_links_count(0);
            }
            if file.slot.inode.i_links_count() == 0 {
                self.delete(number)?;
            }
        }
        let mut files = std::mem::take(&mut self.files);
        let mut layouts = Vec::new();
        let mut needed = 0;
        for (&number, file) in &files {
            if let Some(directory) = file.directory.as_ref().filter(|_| file.is_changed) {
                let layout = directory.layout(self.fs)?;
                needed += layout.count.saturating_sub(directory.places().len()) as u64;
                // OK: a few nodes more than there can be over the blocks of a directory.
                needed += 4 + layout.count as u64 / 64;
                layouts.push((number, layout));
            }
            needed += file.missing_nodes(self.fs);
        }
        let mut room = self.room(&files, needed)?;
        for (number, layout) in layouts {
            if let Some(file) = files.get_mut(&number) {
                self.store_directory(file, layout, &mut room)?;
            }
        }
        for file in files.values_mut() {
            file.write_map(self.fs, &mut self.overlay, &mut || room.take())?;
            if file.is_changed {
                self.settle(file);
                self.store(file);
            }
        }
        Ok(())
    }
}
