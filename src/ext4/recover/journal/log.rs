//! The blocks of the journal by their number in the log, wherever they lie on disk.

use crate::error::{Error, Result};
use crate::ext4::format::extent::Extent;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::{ENCRYPT_FL, S_IFREG};
use crate::ext4::read::inode_table::read_inode;
use crate::ext4::read::map::read_map_alone;
use crate::ext4::recover::journal::superblock::{JournalSuperblock, SIZE};
use crate::io::{RangeSet, ReadAt};
use crate::units::{BlockNr, InodeNr};

/// How much is read at once: logs are read in order.
const READ_AHEAD: u64 = 1 << 20;

/// An open journal.
pub struct Log<'a> {
    pub superblock: JournalSuperblock,
    device: &'a dyn ReadAt,
    block_size: u64,
    extents: Vec<Extent>,
    /// Where the journal lies on disk.
    places: RangeSet,
    /// Blocks of the log from this one on, read ahead.
    ahead: (u32, Vec<u8>),
}

impl<'a> Log<'a> {
    /// Opens the journal in inode `s_journal_inum`.
    ///
    /// # Errors
    /// `Unsound` for a damaged journal inode or superblock, `Unsupported` for unknown features.
    pub fn open(fs: &Super, device: &'a dyn ReadAt) -> Result<Self> {
        let number = InodeNr(fs.superblock.s_journal_inum());
        let slot = read_inode(fs, device, number)?;
        let inode = &slot.inode;
        if inode.i_links_count() == 0
            || inode.format() != S_IFREG
            || inode.has_flag(ENCRYPT_FL)
            || !inode.has_block_map(fs)
        {
            return Err(Error::unsound(format!(
                "ext4: inode {number} is not a journal"
            )));
        }
        let map =
            read_map_alone(fs, device, number, inode).map_err(|error| error.of("journal inode"))?;
        let block_size = fs.geometry.block_size;
        let blocks = inode.size() / block_size;
        let first = map.extents.first().filter(|extent| extent.logical == 0);
        let Some(first) = first.filter(|_| blocks > 0) else {
            return Err(Error::unsound("ext4: the journal has no first block"));
        };
        let bytes = device.read_vec_at(fs.geometry.offset(first.start), SIZE)?;
        Ok(Self {
            superblock: JournalSuperblock::decode(bytes, block_size, blocks)?,
            device,
            block_size,
            places: map.blocks().collect(),
            extents: map.extents,
            ahead: (0, Vec::new()),
        })
    }

    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Returns the number of the block that follows `at` in the log, which is a ring.
    pub fn next(&self, at: u32) -> u32 {
        if at + 1 >= self.superblock.last() {
            self.superblock.s_first()
        } else {
            at + 1
        }
    }

    /// Returns the blocks of the filesystem that belong to the journal.
    pub fn places(&self) -> &RangeSet {
        &self.places
    }

    /// Does a block of the filesystem belong to the journal?
    pub fn contains(&self, block: BlockNr) -> bool {
        self.places.contains(block)
    }

    /// Returns where a block of the log lies on disk.
    ///
    /// # Errors
    /// `Unsound` if it is a hole.
    pub fn place(&self, at: u32) -> Result<BlockNr> {
        self.run(at).map(|(block, _)| block)
    }

    /// Returns where a block of the log lies, and how many of its successors follow it there.
    fn run(&self, at: u32) -> Result<(BlockNr, u64)> {
        let after = self
            .extents
            .partition_point(|extent| extent.logical_end() <= u64::from(at));
        match self.extents.get(after) {
            Some(extent) if extent.logical <= at => {
                let skip = u64::from(at - extent.logical);
                Ok((extent.start + skip, extent.logical_end() - u64::from(at)))
            }
            _ => Err(Error::unsound(format!(
                "journal: block {at} of the log is a hole"
            ))),
        }
    }

    /// Reads a block of the log.
    ///
    /// # Errors
    /// What the device fails with; `Unsound` for a hole.
    pub fn read(&mut self, at: u32) -> Result<&[u8]> {
        let size = self.block_size as usize;
        let held = self.ahead.1.len() / size;
        let index = at.wrapping_sub(self.ahead.0) as usize;
        if index >= held {
            let (block, follow) = self.run(at)?;
            let count = follow.min((READ_AHEAD / self.block_size).max(1));
            let offset = block * self.block_size;
            let bytes = match self.device.read_vec_at(offset, size * count as usize) {
                // A bad sector further on is no concern of this block.
                Err(_) if count > 1 => self.device.read_vec_at(offset, size)?,
                bytes => bytes?,
            };
            self.ahead = (at, bytes);
            return Ok(&self.ahead.1[..size]);
        }
        Ok(&self.ahead.1[index * size..][..size])
    }
}
