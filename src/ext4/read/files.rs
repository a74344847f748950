//! The files of an ext2, ext3 or ext4 filesystem, by path. Nothing but what a path leads to is read,
//! and nothing of it was checked before.

use std::ops::{ControlFlow, Range};

use crate::error::{Error, Result};
use crate::ext4::format::dir::{InlineDir, entries, inline_data};
use crate::ext4::format::extent::{BlockMap, Extent};
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{
    ENCRYPT_FL, INLINE_DATA_FL, Inode, ROOT_INO, S_IFDIR, S_IFLNK, S_IFREG,
};
use crate::ext4::format::raw::le32;
use crate::ext4::read::claim::ELSEWHERE;
use crate::ext4::read::inode_table::{Slot, is_covered, read_inode};
use crate::ext4::read::map::add_map;
use crate::files::{Kind, Node, OnName, OnStretch, Stat, Stretch, Tree};
use crate::io::{RangeSet, ReadAt};
use crate::units::InodeNr;

/// Pieces of one file that are held in memory: some 30 MiB.
const MAX_PIECES: usize = 512 << 10;
/// How many bytes of a file are read at a time.
const CHUNK: u64 = 1 << 20;
/// The longest target of a symlink.
const MAX_TARGET: u64 = 4096;
/// Where a slot keeps the upper bits and nanoseconds of `i_mtime`.
const I_MTIME_EXTRA: usize = 0x88;

/// The files of a filesystem that can be read at `view`.
pub struct ExtTree<V> {
    fs: Super,
    view: V,
}

impl<V: ReadAt> ExtTree<V> {
    /// Takes a filesystem and what it can be read from.
    pub fn new(fs: Super, view: V) -> Self {
        Self { fs, view }
    }

    fn slot(&self, node: Node) -> Result<Slot> {
        let number = u32::try_from(node.0).unwrap_or(0);
        let slot = read_inode(&self.fs, &self.view, InodeNr(number))?;
        let in_use = slot.inode.i_links_count() > 0
            && slot.inode.i_mode() != 0
            && is_covered(&self.fs, &self.view, slot.number)?;
        if in_use {
            return Ok(slot);
        }
        Err(Error::unsound(format!(
            "ext4: a name stands for inode {number}, which is not in use"
        )))
    }

    fn map(&self, slot: &Slot) -> Result<BlockMap> {
        let mut taken = RangeSet::new();
        let mut claim = |blocks: Range<u64>, _| {
            if taken.intersects(blocks.clone()) {
                return Err(ELSEWHERE);
            }
            taken.insert(blocks);
            Ok(())
        };
        let (mut map, Slot { number, inode, .. }) = (BlockMap::default(), slot);
        let (fs, view) = (&self.fs, &self.view);
        add_map(fs, view, *number, inode, &mut claim, &mut map, MAX_PIECES)
            .map_err(|error| error.of(format_args!("inode {number}")))?;
        Ok(map)
    }

    /// Gives the file's bytes, `len` in all, in order.
    fn stretches(&self, slot: &Slot, len: u64, visit: OnStretch<'_>) -> Result<()> {
        let inode = &slot.inode;
        if inode.has_flag(ENCRYPT_FL) {
            return Err(Error::unsupported(format!(
                "ext4: inode {} is encrypted, and its key is not on the card",
                slot.number
            )));
        }
        if inode.has_flag(INLINE_DATA_FL) {
            return inline_stretches(slot, len, visit);
        }
        if inode.is_fast_symlink(&self.fs) {
            // OK: a fast symlink is shorter than i_block.
            return visit(Stretch::Data(&inode.i_block()[..len as usize])).map(drop);
        }
        if !inode.has_block_map(&self.fs) {
            return Ok(());
        }
        let size = self.fs.geometry.block_size;
        let mut at = 0;
        for extent in &self.map(slot)?.extents {
            // OK: logical numbers have 32 bits, blocks at most 64 KiB.
            let start = (u64::from(extent.logical) * size).min(len);
            let end = (extent.logical_end() * size).min(len);
            if extent.is_unwritten() {
                continue;
            }
            if start > at && visit(Stretch::Hole(start - at))?.is_break() {
                return Ok(());
            }
            if self.extent(extent, end - start, visit)?.is_break() {
                return Ok(());
            }
            at = at.max(end);
        }
        match len - at {
            0 => Ok(()),
            hole => visit(Stretch::Hole(hole)).map(drop),
        }
    }

    fn extent(&self, extent: &Extent, len: u64, visit: OnStretch<'_>) -> Result<ControlFlow<()>> {
        let start = self.fs.geometry.offset(extent.start);
        let mut done = 0;
        while done < len {
            let count = CHUNK.min(len - done);
            let bytes = self.view.read_vec_at(start + done, count as usize)?;
            if visit(Stretch::Data(&bytes))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            done += count;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Gives the data that an inode holds itself.
fn inline_stretches(slot: &Slot, len: u64, visit: OnStretch<'_>) -> Result<()> {
    let Slot { number, inode, .. } = slot;
    let more = inline_data(inode)
        .ok_or_else(|| Error::unsound(format!("ext4: inode {number} has lost its inline data")))?;
    let first = inode.i_block();
    let bytes = [first, &inode.bytes()[more]].concat();
    if len > bytes.len() as u64 {
        return Err(Error::unsound(format!(
            "ext4: inode {number} says {len} bytes, and holds {}",
            bytes.len()
        )));
    }
    visit(Stretch::Data(&bytes[..len as usize])).map(drop)
}

impl<V: ReadAt> Tree for ExtTree<V> {
    fn root(&self) -> Node {
        Node(u64::from(ROOT_INO.0))
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let Slot { inode, .. } = self.slot(node)?;
        Ok(Stat {
            kind: match inode.format() {
                S_IFREG => Kind::File,
                S_IFDIR => Kind::Folder,
                S_IFLNK => Kind::Symlink,
                _ => Kind::Special,
            },
            len: inode.size(),
            mode: Some(inode.i_mode() & 0o7777),
            uid: inode.uid(),
            gid: inode.gid(),
            modified: modified(&inode),
        })
    }

    fn list(&self, folder: Node, visit: OnName<'_>) -> Result<()> {
        let slot = self.slot(folder)?;
        let inode = &slot.inode;
        if !inode.is_dir() {
            return Err(Error::unsound(format!(
                "ext4: inode {} is no folder",
                slot.number
            )));
        }
        if inode.has_flag(ENCRYPT_FL) {
            return Err(Error::unsupported(format!(
                "ext4: folder {} is encrypted, and its key is not on the card",
                slot.number
            )));
        }
        let mut listing = Listing {
            folder: slot.number,
            visit,
            damage: None,
        };
        if inode.has_flag(INLINE_DATA_FL) {
            let lists = InlineDir::of(inode).ok_or_else(|| {
                Error::unsound(format!("ext4: folder {} has lost its names", slot.number))
            })?;
            for list in lists.lists(inode.bytes()) {
                if listing.names(list)?.is_break() {
                    return Ok(());
                }
            }
            return listing.end();
        }
        let size = self.fs.geometry.block_size;
        // Nodes of an index look like a block without names.
        for extent in &self.map(&slot)?.extents {
            for block in extent.start..extent.end() {
                let offset = self.fs.geometry.offset(block);
                let bytes = self.view.read_vec_at(offset, size as usize)?;
                if listing.names(&bytes)?.is_break() {
                    return Ok(());
                }
            }
        }
        listing.end()
    }

    fn read(&self, file: Node, visit: OnStretch<'_>) -> Result<()> {
        let slot = self.slot(file)?;
        if slot.inode.format() != S_IFREG {
            return Err(Error::unsupported(format!(
                "ext4: inode {} is no file",
                slot.number
            )));
        }
        self.stretches(&slot, slot.inode.size(), visit)
    }

    fn target(&self, link: Node) -> Result<Vec<u8>> {
        let slot = self.slot(link)?;
        let len = slot.inode.size();
        if slot.inode.format() != S_IFLNK || len > MAX_TARGET {
            return Err(Error::unsound(format!(
                "ext4: inode {} is no symlink that can be",
                slot.number
            )));
        }
        let mut target = Vec::new();
        self.stretches(&slot, len, &mut |stretch| {
            match stretch {
                Stretch::Data(data) => target.extend_from_slice(data),
                Stretch::Hole(_) => return Ok(ControlFlow::Break(())),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        // A name has no zero byte; some slow targets end with one.
        target.truncate(
            target
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(target.len()),
        );
        Ok(target)
    }
}

/// The names of one folder on their way.
struct Listing<'a> {
    folder: InodeNr,
    visit: OnName<'a>,
    damage: Option<Error>,
}

impl Listing<'_> {
    fn names(&mut self, list: &[u8]) -> Result<ControlFlow<()>> {
        for entry in entries(list) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(bad) => {
                    // An empty list in an inode has no room for an entry.
                    if !list.is_empty() {
                        let text = format!("ext4: folder {}: {}", self.folder, bad.reason);
                        self.damage.get_or_insert_with(|| Error::unsound(text));
                    }
                    break;
                }
            };
            let is_name = entry.is_used() && !entry.is_dot_or_dotdot() && !entry.name.is_empty();
            if is_name && (self.visit)(entry.name, Node(u64::from(entry.inode.0)))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn end(self) -> Result<()> {
        self.damage.map_or(Ok(()), Err)
    }
}

fn modified(inode: &Inode) -> (i64, u32) {
    // The fields that a slot has begin behind the first 128 bytes.
    let has_extra = usize::from(inode.extra_isize()) >= I_MTIME_EXTRA + 4 - 128;
    let extra = match inode.bytes().len() >= I_MTIME_EXTRA + 4 && has_extra {
        true => le32(inode.bytes(), I_MTIME_EXTRA),
        false => 0,
    };
    let seconds = i64::from(inode.i_mtime() as i32) + (i64::from(extra & 3) << 32);
    (seconds, (extra >> 2).min(999_999_999))
}
