//! The journal as a place to damage: where its blocks lie, and their checksums.

use std::ops::Range;

use pishrink::ext4::format::crc::crc32c;
use pishrink::ext4::format::raw::{be16, be32, put_be32};
use pishrink::ext4::read::metadata::Metadata;
use pishrink::io::ReadAt;
use pishrink::units::InodeNr;

use super::disk::Disk;

const MAGIC: u32 = 0xC03B_3998;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Blocks of the log that are damaged, from where it starts.
const USED: usize = 120;

/// Where the blocks of a journal lie, in the log's order.
pub struct LogMap {
    block_size: u64,
    offsets: Vec<u64>,
}

impl LogMap {
    /// `None` without a journal, or if it is empty on `disk`.
    pub fn read(metadata: &Metadata, disk: &dyn ReadAt) -> Option<Self> {
        let inode = metadata.inode(InodeNr(metadata.fs.superblock.s_journal_inum()))?;
        let extents = metadata.extents(inode).iter();
        let log = Self {
            block_size: metadata.fs.geometry.block_size,
            offsets: extents
                .flat_map(|extent| extent.start..extent.end())
                .map(|block| metadata.fs.geometry.offset(block))
                .collect(),
        };
        let header = disk.read_vec_at(log.offset(0), 1024).ok()?;
        (be32(&header, 0x1C) != 0).then_some(log)
    }

    pub fn offset(&self, at: usize) -> u64 {
        self.offsets[at]
    }

    /// Lists the blocks from where the log starts on.
    pub fn used(&self, disk: &dyn ReadAt) -> impl Iterator<Item = Range<u64>> {
        let header = disk.read_vec_at(self.offset(0), 1024);
        let start = header.map_or(1, |header| be32(&header, 0x1C));
        let from = self.offsets.iter().skip(start as usize).take(USED);
        from.map(|&offset| offset..offset + self.block_size)
    }

    fn block(&self, disk: &Disk, at: u32) -> Option<(u64, Vec<u8>)> {
        let offset = *self.offsets.get(at as usize)?;
        Some((offset, disk.get(&(offset..offset + self.block_size))))
    }

    /// Stores the checksums of the log's header and of all transactions, as far as the log goes.
    pub fn mend(&self, disk: &mut Disk) {
        let at = self.offset(0);
        let mut header = disk.get(&(at..at + 1024));
        let incompat = be32(&header, 0x28);
        if incompat & (CSUM_V2 | CSUM_V3) == 0 {
            return;
        }
        put_be32(&mut header, 0xFC, 0);
        let crc = crc32c(!0, &header);
        put_be32(&mut header, 0xFC, crc);
        disk.put(at, &header);

        let seed = crc32c(!0, &header[0x30..0x40]);
        let [maxlen, first, mut tid, mut at] = [0x10, 0x14, 0x18, 0x1C].map(|o| be32(&header, o));
        let fast = match be32(&header, 0x54) {
            _ if incompat & FAST_COMMIT == 0 => 0,
            0 => 256,
            blocks => blocks,
        };
        let last = maxlen.saturating_sub(fast);
        let next = |at: u32| {
            if at.saturating_add(1) >= last {
                first
            } else {
                at + 1
            }
        };
        for _ in 0..self.offsets.len() {
            let Some((offset, mut block)) = self.block(disk, at) else {
                return;
            };
            if at == 0 || be32(&block, 0) != MAGIC || be32(&block, 8) != tid {
                return;
            }
            match be32(&block, 4) {
                1 => at = self.mend_tags(disk, &mut block, incompat, seed, tid, at, &next),
                2 => {
                    put_be32(&mut block, 16, 0);
                    let crc = crc32c(seed, &block);
                    put_be32(&mut block, 16, crc);
                    tid = tid.wrapping_add(1);
                }
                5 => mend_tail(&mut block, seed),
                _ => return,
            }
            disk.put(offset, &block);
            at = next(at);
        }
    }

    /// Stores the checksums that a descriptor block holds; returns the last block it describes.
    #[expect(clippy::too_many_arguments)]
    fn mend_tags(
        &self,
        disk: &Disk,
        block: &mut [u8],
        incompat: u32,
        seed: u32,
        tid: u32,
        mut at: u32,
        next: &dyn Fn(u32) -> u32,
    ) -> u32 {
        let is_v3 = incompat & CSUM_V3 != 0;
        // Without 64bit, v2's tags are shorter.
        let size = match (is_v3, incompat & 2 != 0) {
            (true, _) => 16,
            (false, true) => 14,
            (false, false) => 10,
        };
        let seed_of_data = crc32c(seed, &tid.to_be_bytes());
        let mut tag = 12;
        while tag + size + 4 <= block.len() {
            let flags = be16(block, tag + 6);
            at = next(at);
            if let Some((_, data)) = self.block(disk, at) {
                let crc = crc32c(seed_of_data, &data);
                if is_v3 {
                    put_be32(block, tag + 12, crc);
                } else {
                    block[tag + 4..tag + 6].copy_from_slice(&(crc as u16).to_be_bytes());
                }
            }
            tag += size + if flags & 2 == 0 { 16 } else { 0 };
            if flags & 8 != 0 {
                break;
            }
        }
        mend_tail(block, seed);
        at
    }
}

fn mend_tail(block: &mut [u8], seed: u32) {
    let tail = block.len() - 4;
    put_be32(block, tail, 0);
    let crc = crc32c(seed, block);
    put_be32(block, tail, crc);
}
