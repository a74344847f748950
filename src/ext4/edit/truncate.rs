//! Cutting a file to its size: the blocks behind it, the rest of its last block, its map.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::edit::delete::{MAX_BYTES, Remover, too_many};
use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::extent::{
    BlockMap, Extent, Node, build_pointers, build_tree, count_clusters, join_extents, tree_shape,
};
use crate::ext4::format::inode::{ENCRYPT_FL, EXTENTS_FL, I_BLOCK_SIZE, INLINE_DATA_FL, S_IFREG};
use crate::ext4::format::raw::{le16, le32, put32};
use crate::ext4::read::claim::ELSEWHERE;
use crate::ext4::read::inode_table::Slot;
use crate::ext4::read::map::read_map;
use crate::units::BlockNr;

impl Remover<'_> {
    /// Frees what lies behind the end of the file in `slot`, which the caller stores.
    pub(in crate::ext4) fn truncate(&mut self, slot: &mut Slot) -> Result<()> {
        if slot.inode.has_flag(INLINE_DATA_FL) {
            return truncate_inline(slot);
        }
        let map = self.block_map(slot)?;
        let block_size = self.fs.geometry.block_size;
        let size = slot.inode.size();
        self.zero_rest(slot, &map, size);
        let end = size.div_ceil(block_size);
        let kept = cut_extents(&map.extents, end);
        if kept.len() == map.extents.len() && map.extents.last() == kept.last() {
            return Ok(());
        }
        let mapped = self.sectors(&map.extents, &map.nodes);
        let (extents, nodes, built);
        let mut i_block = [0; I_BLOCK_SIZE];
        if slot.inode.has_flag(EXTENTS_FL) {
            extents = join_extents(&kept);
            let count = tree_shape(extents.len(), block_size).iter().sum();
            nodes = match map.nodes.get(..count) {
                Some(nodes) => nodes.to_vec(),
                None => {
                    return Err(Error::internal(format!(
                        "inode {}: a shorter file needs more extent nodes",
                        slot.number
                    )));
                }
            };
            self.hold(nodes.len())?;
            let places: Vec<BlockNr> = nodes.iter().map(|node| node.block).collect();
            let generation = slot.inode.i_generation();
            built = build_tree(
                self.fs,
                slot.number,
                generation,
                &extents,
                &places,
                &mut i_block,
            );
        } else {
            extents = kept;
            nodes = cut_nodes(&map.nodes, &extents, end, block_size / 4);
            self.hold(nodes.len())?;
            built = build_pointers(block_size, &extents, &nodes, &mut i_block);
        }
        slot.inode.i_block_mut().copy_from_slice(&i_block);
        for (block, bytes) in built {
            let offset = self.fs.geometry.offset(block);
            self.orphans.overlay.set_bytes(offset, bytes);
        }
        // Attributes count as well, and stay: only the difference is known here.
        let freed = mapped.saturating_sub(self.sectors(&extents, &nodes));
        let before = slot.inode.blocks_512(self.fs);
        let after = before.saturating_sub(freed);
        slot.inode.set_blocks_512(self.fs, after);
        self.charge(&slot.inode, 0, (before - after).saturating_mul(512));
        Ok(())
    }

    /// Counts the nodes that are about to be held in memory.
    fn hold(&mut self, nodes: usize) -> Result<()> {
        let bytes = (nodes as u64).saturating_mul(self.fs.geometry.block_size);
        self.rebuilt = self.rebuilt.saturating_add(bytes);
        match self.rebuilt > MAX_BYTES {
            true => Err(too_many()),
            false => Ok(()),
        }
    }

    fn block_map(&mut self, slot: &Slot) -> Result<BlockMap> {
        if self.walked.is_empty() {
            self.walked = Bitmap::new(self.fs.geometry.blocks_count);
        }
        let view = self.orphans.overlay.over(self.device);
        let walked = &mut self.walked;
        let mut claim = |blocks: Range<BlockNr>, _| match walked.set_range(blocks) {
            0 => Ok(()),
            _ => Err(ELSEWHERE),
        };
        read_map(self.fs, &view, slot.number, &slot.inode, &mut claim)
            .map_err(|error| error.of(format_args!("inode {}", slot.number)))
    }

    /// Clears the last block from the end of the file on, so that nothing shows when it grows.
    fn zero_rest(&mut self, slot: &Slot, map: &BlockMap, size: u64) {
        let block_size = self.fs.geometry.block_size;
        let (last, within) = (size / block_size, size % block_size);
        // Without its key nobody, the kernel neither, can write to an encrypted block.
        let is_encrypted = slot.inode.has_flag(ENCRYPT_FL) && slot.inode.format() == S_IFREG;
        if within == 0 || is_encrypted {
            return;
        }
        let after = map.extents.partition_point(|e| e.logical_end() <= last);
        if let Some(extent) = map.extents.get(after)
            && u64::from(extent.logical) <= last
            && !extent.is_unwritten()
        {
            let block = extent.start + (last - u64::from(extent.logical));
            let offset = self.fs.geometry.offset(block);
            let range = offset + within..offset + block_size;
            self.orphans.overlay.set_zero(range);
        }
    }

    /// Counts what a map takes, in units of 512 bytes: whole clusters, also for parts of them.
    fn sectors(&self, extents: &[Extent], nodes: &[Node]) -> u64 {
        let geometry = &self.fs.geometry;
        let ratio = geometry.cluster_ratio;
        let clusters = count_clusters(extents, ratio) + nodes.len() as u64;
        // OK: at most the number of blocks on the device, in sectors.
        clusters * ratio * (geometry.block_size / 512)
    }
}

/// Returns the parts of `extents` before logical block `end`.
fn cut_extents(extents: &[Extent], end: u64) -> Vec<Extent> {
    let before = extents
        .iter()
        .take_while(|extent| u64::from(extent.logical) < end);
    before
        .map(|extent| {
            let len = (end - u64::from(extent.logical)).min(u64::from(extent.len()));
            extent.part(0, len as u32, extent.start)
        })
        .collect()
}

/// Returns the pointer nodes that a file cut at logical block `end` still needs: those that lie
/// before, and those on the way to a block.
fn cut_nodes(nodes: &[Node], kept: &[Extent], end: u64, per_node: u64) -> Vec<Node> {
    let mut needed: Vec<Node> = Vec::new();
    // Children come behind their parents, so from the back each is decided before its parent.
    for node in nodes.iter().rev() {
        let start = u64::from(node.logical);
        let stop = start + per_node.pow(u32::from(node.level));
        let after = kept.partition_point(|extent| extent.logical_end() <= start);
        let holds_data = kept
            .get(after)
            .is_some_and(|extent| u64::from(extent.logical) < stop);
        let holds_node = needed.last().is_some_and(|child| {
            child.level < node.level && (start..stop).contains(&u64::from(child.logical))
        });
        if stop <= end || holds_data || holds_node {
            needed.push(*node);
        }
    }
    needed.reverse();
    needed
}

/// Cuts a file that lies in its inode: 60 bytes in `i_block`, the rest in the value of the
/// attribute "data" (name index 7).
fn truncate_inline(slot: &mut Slot) -> Result<()> {
    const ENTRY: usize = 16;
    const NAME_INDEX_SYSTEM: u8 = 7;
    let size = usize::try_from(slot.inode.size()).unwrap_or(usize::MAX);
    if size < I_BLOCK_SIZE {
        slot.inode.i_block_mut()[size..].fill(0);
    }
    let first = 128 + usize::from(slot.inode.extra_isize()) + 4;
    let bytes = &mut slot.inode.0;
    let mut at = first;
    while at + ENTRY <= bytes.len() && le32(bytes, at) != 0 {
        let name_len = usize::from(bytes[at]);
        let name = bytes.get(at + ENTRY..at + ENTRY + name_len);
        if bytes[at + 1] != NAME_INDEX_SYSTEM || name != Some(b"data".as_slice()) {
            at += ENTRY + name_len.next_multiple_of(4);
            continue;
        }
        let start = first + usize::from(le16(bytes, at + 2));
        let len = le32(bytes, at + 8) as usize;
        let keep = size.saturating_sub(I_BLOCK_SIZE);
        if keep < len {
            let rest = start
                .checked_add(len)
                .and_then(|end| bytes.get_mut(start + keep..end));
            let Some(rest) = rest else { break };
            rest.fill(0);
            put32(bytes, at + 8, keep as u32);
        }
        return Ok(());
    }
    Err(Error::unsound(format!(
        "ext4: inode {}: its inline data has no end",
        slot.number
    )))
}
