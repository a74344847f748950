//! The editor: changes of files and directories, in memory, over a filesystem.
//!
//! Bitmaps and counts are left alone: whoever reads the result rebuilds them from what the inodes own.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};
use crate::ext4::edit::delete::delete_inode;
use crate::ext4::edit::directory::Directory;
use crate::ext4::edit::file::File;
use crate::ext4::edit::quota::QuotaDelta;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{S_IFMT, file_type};
use crate::ext4::format::superblock::INCOMPAT_FILETYPE;
use crate::ext4::read::inode_table::{is_covered, read_inode, read_slot};
use crate::io::{Overlay, RangeSet, ReadAt};
use crate::units::InodeNr;

/// What to do about fast commits that this program cannot replay.
pub(in crate::ext4) const HINT: &str = "mount the card once under Linux, or run e2fsck";
/// Bytes of directories that are held in memory.
pub(in crate::ext4) const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Extents of changed files that are held in memory.
pub(in crate::ext4) const MAX_EXTENTS: usize = 4 << 20;

pub(in crate::ext4) fn refused(what: &str) -> Error {
    Error::unsupported(format!("ext4: fast commits together with {what}")).with_hint(HINT)
}

pub(in crate::ext4) fn contradiction(what: impl std::fmt::Display) -> Error {
    Error::unsound(format!(
        "ext4: a fast commit contradicts the filesystem: {what}"
    ))
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    pub parent: InodeNr,
    pub inode: InodeNr,
    pub name: &'a [u8],
}

pub(in crate::ext4) struct Editor<'a> {
    pub(in crate::ext4) fs: &'a Super,
    pub(in crate::ext4) device: &'a dyn ReadAt,
    pub(in crate::ext4) overlay: Overlay,
    pub(in crate::ext4) quota_deltas: Vec<QuotaDelta>,
    /// The inodes that tags were about, by number.
    pub(in crate::ext4) files: BTreeMap<u32, File>,
    /// Inodes that wait to be deleted or cut, with `i_dtime`, by which they may be linked.
    pub(in crate::ext4) orphans: HashMap<u32, u32>,
    /// Blocks that any tag gives to a file: new nodes go elsewhere.
    pub(in crate::ext4) logged: RangeSet,
    pub(in crate::ext4) directory_bytes: u64,
    pub(in crate::ext4) extents: usize,
}

impl<'a> Editor<'a> {
    /// An editor of `device`, from which `fs` was read, that has changed nothing yet.
    pub(in crate::ext4) fn new(fs: &'a Super, device: &'a dyn ReadAt) -> Self {
        Self {
            fs,
            device,
            overlay: Overlay::new(device.len()),
            quota_deltas: Vec::new(),
            files: BTreeMap::new(),
            orphans: HashMap::new(),
            logged: RangeSet::new(),
            directory_bytes: 0,
            extents: 0,
        }
    }
}

impl Editor<'_> {
    /// Does the inode belong to the filesystem itself?
    pub(in crate::ext4) fn is_own(&self, number: InodeNr) -> bool {
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
    pub(in crate::ext4) fn load(&mut self, number: InodeNr) -> Result<bool> {
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
    pub(in crate::ext4) fn file(&mut self, number: InodeNr) -> &mut File {
        self.files
            .get_mut(&number.0)
            .expect("load() has put it there")
    }

    /// Makes a name stand for an inode; returns false if it does already.
    pub(in crate::ext4) fn add_name(&mut self, entry: Entry<'_>) -> Result<bool> {
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

    /// Returns a directory's names.
    pub(in crate::ext4) fn directory(&mut self, number: InodeNr) -> Result<&mut Directory> {
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
    pub(in crate::ext4) fn delete(&mut self, number: InodeNr) -> Result<()> {
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
    pub(in crate::ext4) fn finish(&mut self) -> Result<()> {
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
