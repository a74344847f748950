//! The index over a directory: every block referred to once, at the right depth, and every name's
//! hash within what the pairs above it promise.

use crate::ext4::format::dir;
use crate::ext4::format::dir::BlockKind;
use crate::ext4::format::fs::Super;

/// What is known of one block of an indexed directory.
#[derive(Clone, Copy, Debug)]
struct IndexBlock {
    kind: Option<BlockKind>,
    referenced: bool,
    /// Is it the first (the last) of its parent's pairs, whose bound comes from further up?
    first: bool,
    last: bool,
    parent: u32,
    /// The hashes that its pair and the next one allow, both inclusive: equal hashes may go on in
    /// the next leaf.
    low: u32,
    high: u32,
    /// The hashes that were met.
    min: u32,
    max: u32,
}

/// An index that is being checked, block by block in any order after the root.
#[derive(Clone, Debug)]
pub struct Index {
    hash_version: u8,
    levels: u8,
    blocks: Vec<IndexBlock>,
}

impl Index {
    /// Begins with block 0 of a directory of `count` blocks.
    ///
    /// # Errors
    /// What makes it no root.
    pub fn of_root(fs: &Super, root: &[u8], count: usize) -> Result<Self, &'static str> {
        const FLAG_INCOMPAT: u8 = 1;
        let info = dir::dx_info(root)?;
        if info.indirect_levels > dir::dx_max_levels(fs) {
            return Err("its index is too deep");
        }
        if info.unused_flags & FLAG_INCOMPAT != 0 {
            return Err("its index has unknown flags");
        }
        // What the index cannot lead to is not worth the memory.
        if count > most_blocks(fs, info.indirect_levels) {
            return Err("its index misses a block");
        }
        let unknown = IndexBlock {
            kind: None,
            referenced: false,
            first: false,
            last: false,
            parent: 0,
            low: 0,
            high: u32::MAX,
            min: u32::MAX,
            max: 0,
        };
        let mut index = Self {
            hash_version: info.hash_version,
            levels: info.indirect_levels,
            blocks: vec![unknown; count],
        };
        if let Some(first) = index.blocks.first_mut() {
            first.referenced = true;
        }
        index.take_pairs(fs, BlockKind::DxRoot, 0, root)?;
        Ok(index)
    }

    pub fn hash_version(&self) -> u8 {
        self.hash_version
    }

    /// Takes the pairs of the root or a node.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn take_pairs(
        &mut self,
        fs: &Super,
        kind: BlockKind,
        logical: u32,
        block: &[u8],
    ) -> Result<(), &'static str> {
        self.set_kind(logical, kind);
        let mut pairs = dir::dx_pairs(fs, kind, block)?.peekable();
        let mut first = true;
        while let Some(pair) = pairs.next() {
            let next = pairs.peek().map(|next| next.hash);
            let low = pair.hash & !1;
            let high = next.map_or(u32::MAX, |hash| hash & !1);
            if high < low {
                return Err("its index is out of order");
            }
            let Some(child) = self.blocks.get_mut(pair.block as usize) else {
                return Err("its index refers to a block that it does not have");
            };
            if child.referenced {
                return Err("its index refers to a block twice");
            }
            *child = IndexBlock {
                referenced: true,
                first,
                last: next.is_none(),
                parent: logical,
                low,
                high,
                ..*child
            };
            first = false;
        }
        Ok(())
    }

    pub fn set_kind(&mut self, logical: u32, kind: BlockKind) {
        if let Some(block) = self.blocks.get_mut(logical as usize) {
            block.kind = Some(kind);
        }
    }

    /// Notes the hash of a name in a leaf.
    pub fn take_hash(&mut self, logical: u32, hash: u32) {
        if let Some(block) = self.blocks.get_mut(logical as usize) {
            block.min = block.min.min(hash);
            block.max = block.max.max(hash);
        }
    }

    /// Judges the whole after all its blocks were taken.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), &'static str> {
        for block in self.blocks.iter().skip(1) {
            if !block.referenced {
                return Err("its index misses a block");
            }
            let (depth, low, high) = self.bounds(block)?;
            match block.kind {
                Some(BlockKind::Leaf) if depth == u32::from(self.levels) + 1 => {
                    if block.min <= block.max && (block.min < low || block.max > high) {
                        return Err("its index puts a name into the wrong block");
                    }
                }
                Some(BlockKind::DxNode) if depth <= u32::from(self.levels) => {}
                _ => return Err("its index has a block at the wrong depth"),
            }
        }
        Ok(())
    }

    /// Climbs to the root; returns how many steps that took, and the hashes allowed.
    fn bounds(&self, block: &IndexBlock) -> Result<(u32, u32, u32), &'static str> {
        let (mut low, mut high) = (block.low, block.high);
        let (mut first, mut last) = (block.first, block.last);
        let mut at = block;
        for depth in 1..=u32::from(self.levels) + 1 {
            if at.parent == 0 {
                return Ok((depth, low, high));
            }
            at = &self.blocks[at.parent as usize];
            if first {
                (low, first) = (at.low, at.first);
            }
            if last {
                (high, last) = (at.high, at.last);
            }
        }
        Err("its index is too deep")
    }
}

/// Returns how many blocks a directory can have that an index of so many levels leads to.
fn most_blocks(fs: &Super, levels: u8) -> usize {
    let (root, node) = (
        dir::dx_limit(fs, BlockKind::DxRoot),
        dir::dx_limit(fs, BlockKind::DxNode),
    );
    let widths =
        (0..=u32::from(levels)).map(|level| root.saturating_mul(node.saturating_pow(level)));
    widths.fold(1, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::format::raw::{put16, put32};
    use crate::ext4::test_image::mke2fs;
    use crate::io::memory::MemoryDisk;

    /// The index takes memory for each block, so it has to be able to lead to all of them.
    #[test]
    fn blocks_that_no_index_leads_to_take_no_memory() {
        let disk = MemoryDisk::from(mke2fs(8 << 20, &[]));
        let fs = Super::read(&disk).unwrap().unwrap();
        let mut root = vec![0; 1024];
        put16(&mut root, 4, 12);
        put16(&mut root, 16, 1012);
        root[29] = 8;
        put16(&mut root, 32, dir::dx_limit(&fs, BlockKind::DxRoot) as u16);
        put16(&mut root, 34, 1);
        put32(&mut root, 36, 1);
        for (levels, most) in [(0, 1 + 123), (1, 1 + 123 + 123 * 126)] {
            root[30] = levels;
            assert!(Index::of_root(&fs, &root, most).is_ok());
            for count in [most + 1, usize::MAX / 2] {
                let refused = Index::of_root(&fs, &root, count);
                assert_eq!(refused.unwrap_err(), "its index misses a block");
            }
        }
    }
}
