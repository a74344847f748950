//! The shape of a filesystem: the superblock's numbers, validated, and what follows from them.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/blockgroup.rst.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::format::superblock::{
    COMPAT_RESIZE_INODE, COMPAT_SPARSE_SUPER2, INCOMPAT_64BIT, INCOMPAT_META_BG,
    RO_COMPAT_BIGALLOC, RO_COMPAT_SPARSE_SUPER, Superblock,
};
use crate::units::{BlockNr, GroupNr, InodeNr};

/// The largest descriptor that the kernel takes, in bytes.
const MAX_DESC_SIZE: u64 = 1024;

/// The largest `s_log_cluster_size`: clusters of 512 MiB.
const MAX_LOG_CLUSTER_SIZE: u32 = 19;
/// The most clusters in a group, which are counted with 16 bits.
const MAX_CLUSTERS_PER_GROUP: u64 = (1 << 16) - 8;

/// The numbers of a filesystem's shape, checked against each other and the device's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per block: a power of two from 1024 to 65536.
    pub block_size: u64,
    /// Blocks in the filesystem; the device holds them all.
    pub blocks_count: BlockNr,
    /// Number of the block that group 0 starts with: 1 with 1 KiB blocks (without bigalloc), else 0.
    pub first_data_block: BlockNr,
    /// Blocks per group, at most 8 x block_size (clusters with bigalloc).
    pub blocks_per_group: u64,
    /// Blocks per cluster: 1 without bigalloc.
    pub cluster_ratio: u64,
    pub inodes_per_group: u32,
    /// Bytes per inode slot: a power of two from 128 to block_size.
    pub inode_size: u64,
    /// Bytes per group descriptor.
    pub desc_size: u64,
    pub groups: GroupNr,
    /// Blocks of an inode table.
    pub itable_blocks: u64,
    /// Blocks of the descriptor table.
    pub desc_blocks: u64,
    /// `s_reserved_gdt_blocks`.
    pub reserved_gdt_blocks: u64,
    pub sparse_super: bool,
    /// The only groups with copies, with `sparse_super2`; 0 for none.
    pub backup_groups: Option<[GroupNr; 2]>,
    /// With `meta_bg`: the first block of descriptors that lies in its meta group.
    pub first_meta_bg: Option<u64>,
}

impl Geometry {
    /// Checks the superblock's numbers.
    ///
    /// # Errors
    /// `Unsound` naming the field that cannot be.
    pub fn of<T: AsRef<[u8]>>(superblock: &Superblock<T>, device_len: u64) -> Result<Self> {
        let bad = |what: String| Err(Error::unsound(format!("ext4 superblock: {what}")));
        if superblock.s_log_block_size() > 6 {
            return bad(format!(
                "s_log_block_size is {}",
                superblock.s_log_block_size()
            ));
        }
        if superblock.s_rev_level() > 1 {
            return bad(format!("s_rev_level is {}", superblock.s_rev_level()));
        }
        let block_size = 1024u64 << superblock.s_log_block_size();
        let bigalloc = superblock.has_ro_compat(RO_COMPAT_BIGALLOC);
        let cluster_log = superblock.s_log_cluster_size();
        let cluster_ratio = if bigalloc {
            match cluster_log.checked_sub(superblock.s_log_block_size()) {
                Some(shift) if cluster_log <= MAX_LOG_CLUSTER_SIZE => 1u64 << shift,
                _ => return bad(format!("s_log_cluster_size is {cluster_log}")),
            }
        } else {
            1
        };
        let first_data_block = u64::from(superblock.s_first_data_block());
        if first_data_block != u64::from(block_size == 1024 && cluster_ratio == 1) {
            return bad(format!("s_first_data_block is {first_data_block}"));
        }
        let blocks_per_group = u64::from(superblock.s_blocks_per_group());
        let per_group_max = (8 * block_size).min(MAX_CLUSTERS_PER_GROUP) * cluster_ratio;
        if blocks_per_group < 256.min(per_group_max)
            || blocks_per_group > per_group_max
            || !blocks_per_group.is_multiple_of(8 * cluster_ratio)
            || u64::from(superblock.s_clusters_per_group()) * cluster_ratio != blocks_per_group
        {
            return bad(format!("s_blocks_per_group is {blocks_per_group}"));
        }
        let blocks_count = superblock.blocks_count();
        if blocks_count > device_len / block_size {
            return Err(Error::unsound(format!(
                "ext4: the filesystem has {blocks_count} blocks of {block_size} bytes, but only {} bytes are there",
                device_len
            ))
            .with_hint("the image is cut off or the partition is too small: copy the card again, whole"));
        }
        if blocks_count <= first_data_block + 8 {
            return bad(format!("s_blocks_count is {blocks_count}"));
        }
        let inode_size = u64::from(superblock.inode_size());
        if !inode_size.is_power_of_two() || inode_size < 128 || inode_size > block_size {
            return bad(format!("s_inode_size is {inode_size}"));
        }
        let inodes_per_group = superblock.s_inodes_per_group();
        let inodes_per_block = block_size / inode_size;
        if inodes_per_group == 0
            || u64::from(inodes_per_group) > 8 * block_size
            || !inodes_per_group.is_multiple_of(8)
            || u64::from(inodes_per_group) < inodes_per_block
        {
            return bad(format!("s_inodes_per_group is {inodes_per_group}"));
        }
        let desc_size = u64::from(superblock.desc_size());
        let is_64bit = superblock.has_incompat(INCOMPAT_64BIT);
        let possible = (64..=MAX_DESC_SIZE).contains(&desc_size) && desc_size.is_power_of_two();
        if is_64bit && !possible {
            return bad(format!("s_desc_size is {desc_size}"));
        }
        // Without 64bit the kernel ignores the field, but e2fsck does not.
        let unused = u64::from(superblock.s_desc_size_raw());
        if !is_64bit && unused != 0 && !(unused.is_power_of_two() && unused <= MAX_DESC_SIZE) {
            return bad(format!("s_desc_size is {unused}"));
        }
        let groups = (blocks_count - first_data_block).div_ceil(blocks_per_group);
        let Ok(groups) = GroupNr::try_from(groups) else {
            return bad(format!("{groups} block groups"));
        };
        if u64::from(groups) * u64::from(inodes_per_group) != u64::from(superblock.s_inodes_count())
        {
            return bad(format!(
                "s_inodes_count is {}, but {groups} groups of {inodes_per_group} were expected",
                superblock.s_inodes_count()
            ));
        }
        let first_ino = superblock.first_ino();
        if first_ino < 11 || first_ino > superblock.s_inodes_count() {
            return bad(format!("s_first_ino is {first_ino}"));
        }
        let desc_blocks = u64::from(groups).div_ceil(block_size / desc_size);
        let reserved_gdt_blocks = u64::from(superblock.s_reserved_gdt_blocks());
        if reserved_gdt_blocks > block_size / 4 {
            return bad(format!("s_reserved_gdt_blocks is {reserved_gdt_blocks}"));
        }
        if superblock.has_compat(COMPAT_RESIZE_INODE) && superblock.has_incompat(INCOMPAT_META_BG) {
            return bad("both resize_inode and meta_bg".into());
        }
        if !superblock.has_incompat(INCOMPAT_META_BG)
            && 1 + desc_blocks + reserved_gdt_blocks
                >= blocks_per_group.min(blocks_count - first_data_block)
        {
            return bad("the descriptors do not fit into group 0".into());
        }
        if superblock.s_log_groups_per_flex() > 31 {
            return bad(format!(
                "s_log_groups_per_flex is {}",
                superblock.s_log_groups_per_flex()
            ));
        }
        Ok(Self {
            block_size,
            blocks_count,
            first_data_block,
            blocks_per_group,
            cluster_ratio,
            inodes_per_group,
            inode_size,
            desc_size,
            groups,
            itable_blocks: u64::from(inodes_per_group).div_ceil(inodes_per_block),
            desc_blocks,
            reserved_gdt_blocks,
            sparse_super: superblock.has_ro_compat(RO_COMPAT_SPARSE_SUPER),
            backup_groups: superblock
                .has_compat(COMPAT_SPARSE_SUPER2)
                .then(|| superblock.s_backup_bgs()),
            first_meta_bg: superblock
                .has_incompat(INCOMPAT_META_BG)
                .then(|| u64::from(superblock.s_first_meta_bg())),
        })
    }

    /// Returns the numbers of the clusters that a range of blocks touches: without bigalloc the blocks
    /// themselves.
    pub fn clusters(&self, blocks: &Range<BlockNr>) -> Range<u64> {
        blocks.start / self.cluster_ratio..blocks.end.div_ceil(self.cluster_ratio)
    }

    /// Returns the blocks of a range of clusters, cut at the filesystem's end.
    pub fn blocks_of(&self, clusters: &Range<u64>) -> Range<BlockNr> {
        let end = (clusters.end * self.cluster_ratio).min(self.blocks_count);
        clusters.start * self.cluster_ratio..end
    }

    /// Returns how many clusters a group has; the last one of a filesystem may be cut off.
    pub fn group_clusters(&self, group: GroupNr) -> u64 {
        let blocks = self.group_end(group) - self.group_start(group);
        blocks.div_ceil(self.cluster_ratio)
    }

    /// Returns the first block of a group.
    pub fn group_start(&self, group: GroupNr) -> BlockNr {
        self.first_data_block + u64::from(group) * self.blocks_per_group
    }

    /// Returns the block after the last one of a group.
    pub fn group_end(&self, group: GroupNr) -> BlockNr {
        (self.group_start(group) + self.blocks_per_group).min(self.blocks_count)
    }

    /// Returns the group of a block, which must not be below the first data block.
    pub fn group_of(&self, block: BlockNr) -> GroupNr {
        // OK: blocks_count was checked to give a 32-bit number of groups.
        ((block - self.first_data_block) / self.blocks_per_group) as GroupNr
    }

    /// Returns the number of inodes.
    pub fn inodes_count(&self) -> u32 {
        // OK: checked against s_inodes_count, which has 32 bits.
        self.groups * self.inodes_per_group
    }

    /// Returns the group of an inode and its index there.
    pub fn inode_place(&self, inode: InodeNr) -> (GroupNr, u32) {
        let index = inode.0 - 1;
        (index / self.inodes_per_group, index % self.inodes_per_group)
    }

    /// Returns the inode at `index` of a group.
    pub fn inode_at(&self, group: GroupNr, index: u32) -> InodeNr {
        InodeNr(group * self.inodes_per_group + index + 1)
    }

    /// Returns where the last block ends that the resize inode lists, in bytes of its file; 0 if it
    /// lists none.
    pub fn resize_inode_listed(&self) -> u64 {
        let per_node = self.block_size / 4;
        let slots = (0..self.reserved_gdt_blocks).map(|k| (self.desc_blocks + k) % per_node);
        let backups = (1..self.groups)
            .filter(|&group| self.has_backup(group))
            .take(per_node as usize)
            .count() as u64;
        match slots.max() {
            Some(slot) if backups > 0 => {
                (12 + per_node + slot * per_node + backups) * self.block_size
            }
            _ => 0,
        }
    }

    /// Returns the resize inode's `i_size` as mke2fs sets it: all that its tree could list. Without
    /// the feature for files that large it is what the tree lists.
    pub fn resize_inode_size(&self, large_files: bool) -> u64 {
        let per_node = self.block_size / 4;
        let whole = (12 + per_node + per_node.pow(2)) * self.block_size;
        if large_files || whole < 1 << 31 {
            whole
        } else {
            self.resize_inode_listed()
        }
    }

    /// Does the group carry superblock and descriptors or a copy of them?
    pub fn has_backup(&self, group: GroupNr) -> bool {
        if let Some(backups) = self.backup_groups {
            return group == 0 || backups.contains(&group);
        }
        if !self.sparse_super || group <= 1 {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| {
            let mut power: u64 = base;
            while power < u64::from(group) {
                power *= base;
            }
            power == u64::from(group)
        })
    }

    /// Returns how many blocks superblock, descriptors and reserved descriptors take in a group.
    pub fn super_blocks(&self, group: GroupNr) -> u64 {
        u64::from(self.has_backup(group)) + self.descriptors_in(group).1 + self.reserved_in(group)
    }

    /// Returns which blocks of the descriptor table a group carries: the first one's index in the
    /// table and how many.
    pub fn descriptors_in(&self, group: GroupNr) -> (u64, u64) {
        let per_block = self.block_size / self.desc_size;
        let meta_group = u64::from(group) / per_block;
        match self.first_meta_bg {
            Some(first) if meta_group >= first => {
                // The first, second and last group of each meta group have its one block.
                let within = u64::from(group) % per_block;
                let carries = within <= 1 || within == per_block - 1;
                (meta_group, u64::from(carries))
            }
            Some(first) if self.has_backup(group) => (0, first.min(self.desc_blocks)),
            None if self.has_backup(group) => (0, self.desc_blocks),
            _ => (0, 0),
        }
    }

    /// Returns how many reserved descriptor blocks a group carries.
    pub fn reserved_in(&self, group: GroupNr) -> u64 {
        if self.has_backup(group) {
            self.reserved_gdt_blocks
        } else {
            0
        }
    }

    /// Returns where a group's superblock or copy would be; with bigalloc and blocks of 1 KiB,
    /// group 0 begins with the boot block.
    pub fn super_start(&self, group: GroupNr) -> BlockNr {
        let boot = group == 0 && self.block_size == 1024 && self.first_data_block == 0;
        self.group_start(group) + u64::from(boot)
    }

    /// Returns the shape after a change to `blocks_count` blocks, the reserved descriptors left as they are.
    #[must_use]
    pub fn resized(&self, blocks_count: BlockNr) -> Self {
        let mut new = self.clone();
        new.blocks_count = blocks_count;
        // OK: the callers' sizes are bounded; see Geometry::of for the same division.
        new.groups =
            (blocks_count - self.first_data_block).div_ceil(self.blocks_per_group) as GroupNr;
        new.desc_blocks = u64::from(new.groups).div_ceil(self.block_size / self.desc_size);
        new
    }

    /// Returns the byte offset of a block.
    pub fn offset(&self, block: BlockNr) -> u64 {
        block * self.block_size
    }

    /// Returns the byte range of `count` blocks.
    pub fn bytes(&self, block: BlockNr, count: u64) -> Range<u64> {
        self.offset(block)..self.offset(block + count)
    }
}
