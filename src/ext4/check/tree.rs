//! The tree of directories: one parent for each, no loops, and as many links as counted.

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::format::inode::{EA_INODE_FL, INDEX_FL, ROOT_INO};
use crate::ext4::format::superblock::{COMPAT_ORPHAN_FILE, RO_COMPAT_DIR_NLINK};
use crate::ext4::format::xattr;
use crate::units::InodeNr;

/// The most links an inode can count; a directory with more counts 1.
const LINK_MAX: u32 = 65000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    OnPath,
    Connected,
    Lost,
}

impl Check<'_> {
    /// Is every directory reached from the root, and does its ".." name its parent?
    pub(super) fn tree(&mut self) {
        let mut states = vec![State::Unknown; self.dirs.len()];
        let root = self
            .places
            .of_number(ROOT_INO)
            .and_then(|place| self.dir_at(place));
        let Some(root) = root else {
            self.damaged("there is no root directory");
            return;
        };
        states[root] = State::Connected;
        if self.dirs[root].dotdot != ROOT_INO.0 {
            self.inode_damaged(ROOT_INO, "is the root directory, but its '..' is another");
        }
        for dir in 0..self.dirs.len() {
            self.connect(dir, &mut states);
        }
        for (dir, state) in states.into_iter().enumerate() {
            let number = self.dir_record(dir).number;
            let Dir { parent, dotdot } = Dir::of(self, dir);
            if state == State::Lost {
                self.inode_damaged(number, "is a directory that the root does not lead to");
            } else if dir != root && parent != dotdot {
                self.inode_damaged(
                    number,
                    format_args!("is a directory in {parent}, but its '..' is {dotdot}"),
                );
            }
        }
    }

    /// Climbs from a directory until something is known, and notes that for the whole path.
    fn connect(&self, dir: usize, states: &mut [State]) {
        let mut path = Vec::new();
        let mut at = dir;
        let end = loop {
            match states[at] {
                State::Unknown => {
                    states[at] = State::OnPath;
                    path.push(at);
                }
                // Back on the same path: a loop.
                State::OnPath => break State::Lost,
                known => break known,
            }
            let parent = InodeNr(self.dirs[at].parent);
            let above = self
                .places
                .of_number(parent)
                .and_then(|place| self.dir_at(place));
            match above {
                Some(above) => at = above,
                None => break State::Lost,
            }
        };
        for dir in path {
            states[dir] = end;
        }
    }

    /// Compares `i_links_count` with the entries that were met.
    pub(super) fn link_counts(&mut self) -> Result<()> {
        let superblock = &self.fs.superblock;
        let dir_nlink = superblock.has_ro_compat(RO_COMPAT_DIR_NLINK);
        let orphan_file = superblock
            .has_compat(COMPAT_ORPHAN_FILE)
            .then(|| superblock.s_orphan_file_inum());
        let internal = |number: u32| {
            number != ROOT_INO.0
                && (number < superblock.first_ino()
                    || Some(number) == orphan_file
                    || number == superblock.s_prj_quota_inum())
        };
        for place in 0..self.meta.inodes.len() {
            let record = &self.meta.inodes[place];
            if internal(record.number.0) {
                continue;
            }
            let mut links = self.links[place];
            if links == 0 && record.flags & EA_INODE_FL != 0 {
                links = self.ea_inode(record.number)?;
            }
            let counted = u32::from(record.links);
            if links == 0 {
                self.inode_damaged(record.number, "is in use, but no directory names it");
                continue;
            }
            let dir = record.is_dir();
            if dir && links > LINK_MAX {
                if !dir_nlink {
                    self.inode_damaged(record.number, "has more links than it can count");
                }
                links = 1;
            }
            // A directory whose subdirectories became fewer again keeps its count of 1.
            let was_many = dir && counted == 1 && links > 1 && record.flags & INDEX_FL != 0;
            if links != counted && !was_many {
                self.inode_damaged(
                    record.number,
                    format_args!("counts {counted} links but has {links}"),
                );
            }
        }
        Ok(())
    }

    /// Returns the links that references from attributes stand for.
    fn ea_inode(&mut self, number: InodeNr) -> Result<u32> {
        let Some(&references) = self.ea_references.get(&number) else {
            return Ok(0);
        };
        let inode = self.meta.read_inode(self.view, number)?;
        let counted = xattr::ea_inode_refcount(&inode);
        // Lustre's have no count, but the same time twice.
        if counted != references && inode.i_ctime() != inode.i_atime() {
            self.inode_damaged(
                number,
                format_args!("holds a value for {references} attributes, but counts {counted}"),
            );
        }
        Ok(1)
    }
}

/// The two numbers that have to be the same.
struct Dir {
    parent: u32,
    dotdot: u32,
}

impl Dir {
    fn of(check: &Check<'_>, dir: usize) -> Self {
        let crate::ext4::check::Dir { parent, dotdot, .. } = check.dirs[dir];
        Self { parent, dotdot }
    }
}
