//! All metadata of a filesystem in one compact value: who owns which block.
//!
//! Inodes in use are the truth; bitmaps and counts are only compared with them. Memory: 64 bytes
//! for each inode in use, 16 for each extent, a bit for each block and each inode slot.
//!
//! Decisions: the slots themselves are not kept, as they would take 256 bytes each. The check reads
//! them again: it judges an inode by what others say (sharers of attributes, parents of inline
//! directories), so not before all are known.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::ext4::findings::Findings;
use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::extent::{BlockMap, Extent, MapKind, Node};
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, GroupTable, INODE_UNINIT};
use crate::ext4::format::inode::{
    BAD_INO, EXTENTS_FL, Inode, RESIZE_INO, ROOT_INO, S_IFDIR, S_IFMT, S_IFREG,
};
use crate::ext4::format::raw::le32;
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, COMPAT_RESIZE_INODE, INCOMPAT_EXTENTS, INCOMPAT_FLEX_BG, INCOMPAT_MMP,
    OS_HURD, RO_COMPAT_SHARED_BLOCKS,
};
use crate::ext4::read::claim::{Claims, Owned};
use crate::ext4::read::map::{MapError, add_map};
use crate::io::ReadAt;
use crate::units::{BlockNr, GroupNr, InodeNr};

/// Extents of all files together, and nodes; more is taken for an attack on memory.
const MAX_EXTENTS: usize = 16 << 20;
/// Free stretches; each takes up to 180 bytes later on, with the piece of a file before it.
const MAX_FREE_RUNS: usize = 4 << 20;
/// Bytes of inode table read at a time.
const TABLE_CHUNK: u64 = 1 << 20;

/// One inode in use.
#[derive(Clone, Debug)]
pub struct InodeRecord {
    pub number: InodeNr,
    pub mode: u16,
    pub links: u16,
    pub flags: u32,
    pub generation: u32,
    /// Size in bytes.
    pub size: u64,
    /// `i_blocks` in units of 512 bytes.
    pub blocks_512: u64,
    /// xattr block, 0 for none.
    pub file_acl: BlockNr,
    pub kind: MapKind,
    extents: (u32, u32),
    nodes: (u32, u32),
}

impl InodeRecord {
    pub fn is_dir(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
}

/// The resize inode's own tree, as far as it has to be known to rebuild it.
#[derive(Clone, Copy, Debug)]
pub struct ResizeInode {
    /// The double-indirect block.
    pub double_indirect: BlockNr,
}

/// Everything about a filesystem but its data.
#[derive(Clone, Debug)]
pub struct Metadata {
    pub fs: Super,
    pub table: GroupTable,
    /// Inodes in use but the resize inode, ascending.
    pub inodes: Vec<InodeRecord>,
    /// The maps of all files, one after the other.
    maps: BlockMap,
    /// Every block that somebody owns.
    pub used: Bitmap,
    /// Those of them that may have several owners; `None` without shared_blocks.
    shareable: Option<Bitmap>,
    live: Bitmap,
    /// xattr blocks and how many inodes share each.
    pub xattr_blocks: BTreeMap<BlockNr, u32>,
    pub resize_inode: Option<ResizeInode>,
    /// Does the bad-blocks inode list blocks?
    pub has_bad_blocks: bool,
}

impl Metadata {
    /// Reads all metadata through `device`, a filesystem whose journal has been replayed and whose
    /// orphans are finished, and notes in `findings` what does not fit together.
    ///
    /// # Errors
    /// What the device fails with, and a superblock that cannot be.
    pub fn read(device: &dyn ReadAt, findings: &mut Findings) -> Result<Self> {
        let fs =
            Super::read(device)?.ok_or_else(|| Error::unsound("ext4: the superblock has gone"))?;
        let table = GroupTable::read(&fs, device)?;
        for group in &table.bad_checksums {
            findings.damaged(format!(
                "group {group}: the descriptor's checksum does not match"
            ));
        }
        let shares = fs.superblock.has_ro_compat(RO_COMPAT_SHARED_BLOCKS);
        let mut metadata = Self {
            used: Bitmap::new(fs.geometry.blocks_count),
            shareable: shares.then(|| Bitmap::new(fs.geometry.blocks_count)),
            live: Bitmap::new(u64::from(fs.geometry.inodes_count())),
            fs,
            table,
            inodes: Vec::new(),
            maps: BlockMap::default(),
            xattr_blocks: BTreeMap::new(),
            resize_inode: None,
            has_bad_blocks: false,
        };
        metadata.claim_group_metadata(findings);
        if findings.is_sound() {
            metadata.read_inodes(device, findings)?;
            metadata.check_free_runs(MAX_FREE_RUNS)?;
        }
        if findings.is_sound() {
            metadata.compare_bitmaps(device, findings)?;
        }
        metadata.shareable = None;
        Ok(metadata)
    }

    /// Returns the blocks of a file, ascending within the file.
    pub fn extents(&self, inode: &InodeRecord) -> &[Extent] {
        &self.maps.extents[inode.extents.0 as usize..inode.extents.1 as usize]
    }

    /// Returns the nodes of a file's map, parents before children.
    pub fn nodes(&self, inode: &InodeRecord) -> &[Node] {
        &self.maps.nodes[inode.nodes.0 as usize..inode.nodes.1 as usize]
    }

    /// Returns the inode in use with this number.
    pub fn inode(&self, number: InodeNr) -> Option<&InodeRecord> {
        self.place_of(number).map(|place| &self.inodes[place])
    }

    /// Returns the index among the inodes in use of the one with this number.
    pub fn place_of(&self, number: InodeNr) -> Option<usize> {
        self.inodes
            .binary_search_by_key(&number, |inode| inode.number)
            .ok()
    }

    /// Returns the byte offset of an inode's slot.
    pub fn inode_offset(&self, number: InodeNr) -> u64 {
        let geometry = &self.fs.geometry;
        let (group, index) = geometry.inode_place(number);
        geometry.offset(self.table.groups[group as usize].inode_table())
            + u64::from(index) * geometry.inode_size
    }

    /// Reads an inode's slot.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn read_inode(&self, device: &dyn ReadAt, number: InodeNr) -> Result<Inode> {
        let size = self.fs.geometry.inode_size as usize;
        device
            .read_vec_at(self.inode_offset(number), size)
            .map(Inode)
    }

    /// Returns how many slots of a group's inode table may hold something.
    pub fn slots_in_use(&self, group: GroupNr) -> u32 {
        let per_group = self.fs.geometry.inodes_per_group;
        if !self.fs.superblock.has_group_checksums() {
            return per_group;
        }
        let desc = &self.table.groups[group as usize];
        if desc.has_flag(INODE_UNINIT) {
            0
        } else {
            per_group.saturating_sub(desc.itable_unused())
        }
    }

    /// Is the group's block bitmap on disk to be ignored?
    pub fn block_uninit(&self, group: GroupNr) -> bool {
        self.fs.superblock.has_group_checksums()
            && self.table.groups[group as usize].has_flag(BLOCK_UNINIT)
    }

    /// Marks what belongs to the groups themselves.
    fn claim_group_metadata(&mut self, findings: &mut Findings) {
        let geometry = &self.fs.geometry;
        let flex = self.fs.superblock.has_incompat(INCOMPAT_FLEX_BG);
        let used = &mut self.used;
        used.set_range(0..geometry.super_start(0));
        for group in 0..geometry.groups {
            let start = geometry.super_start(group);
            let supers = geometry.super_blocks(group);
            if start + supers > geometry.group_end(group) {
                findings.damaged(format!("group {group}: no room for its own descriptors"));
                continue;
            }
            used.set_range(start..start + supers);
        }
        for group in 0..geometry.groups {
            let desc = &self.table.groups[group as usize];
            let own = geometry.group_start(group)..geometry.group_end(group);
            let parts = [
                ("block bitmap", desc.block_bitmap(), 1),
                ("inode bitmap", desc.inode_bitmap(), 1),
                ("inode table", desc.inode_table(), geometry.itable_blocks),
            ];
            for (what, block, count) in parts {
                let within = if flex {
                    geometry.first_data_block..geometry.blocks_count
                } else {
                    own.clone()
                };
                let fits = block >= within.start
                    && block
                        .checked_add(count)
                        .is_some_and(|end| end <= within.end);
                if !fits {
                    findings.damaged(format!(
                        "group {group}: its {what} at block {block} is out of place"
                    ));
                } else if used.set_range(block..block + count) != 0 {
                    findings.damaged(format!(
                        "group {group}: its {what} at block {block} overlaps other metadata"
                    ));
                }
            }
            if self.fs.superblock.has_group_checksums()
                && desc.itable_unused() > geometry.inodes_per_group
            {
                findings.damaged(format!(
                    "group {group}: bg_itable_unused is {}",
                    desc.itable_unused()
                ));
            }
        }
        if self.fs.superblock.has_incompat(INCOMPAT_MMP) {
            let block = self.fs.superblock.mmp_block();
            let inside = block > geometry.first_data_block && block < geometry.blocks_count;
            if !inside || used.set_range(block..block + 1) != 0 {
                findings.damaged(format!("the MMP block {block} is out of place"));
            }
        }
    }

    /// Everything that is planned knows the free stretches one by one.
    fn check_free_runs(&self, most: usize) -> Result<()> {
        let runs = self.used.runs(0..self.used.len(), false);
        match runs.take(most + 1).count() > most {
            true => Err(Error::unsupported(format!(
                "ext4: what is free lies in more than {most} pieces"
            ))),
            false => Ok(()),
        }
    }

    fn read_inodes(&mut self, device: &dyn ReadAt, findings: &mut Findings) -> Result<()> {
        let geometry = self.fs.geometry.clone();
        self.live
            .set_range(0..u64::from(self.fs.superblock.first_ino()) - 1);
        for group in 0..geometry.groups {
            let slots = u64::from(self.slots_in_use(group));
            let table = geometry.offset(self.table.groups[group as usize].inode_table());
            let per_chunk = TABLE_CHUNK.max(geometry.inode_size) / geometry.inode_size;
            let mut index = 0;
            while index < slots {
                let count = per_chunk.min(slots - index);
                let chunk = device.read_vec_at(
                    table + index * geometry.inode_size,
                    (count * geometry.inode_size) as usize,
                )?;
                for (within, slot) in chunk.chunks_exact(geometry.inode_size as usize).enumerate() {
                    let number = geometry.inode_at(group, (index + within as u64) as u32);
                    self.take_inode(device, number, &Inode(slot), findings)?;
                }
                index += count;
            }
        }
        if self.fs.superblock.has_compat(COMPAT_HAS_JOURNAL) {
            let journal = InodeNr(self.fs.superblock.s_journal_inum());
            if journal.0 != 0 && self.inode(journal).is_none() {
                findings.damaged(format!("the journal's inode {journal} is not in use"));
            }
        }
        if self.fs.superblock.has_compat(COMPAT_RESIZE_INODE) && self.resize_inode.is_none() {
            findings.damaged("the resize inode (7) is missing");
        }
        Ok(())
    }

    fn take_inode(
        &mut self,
        device: &dyn ReadAt,
        number: InodeNr,
        inode: &Inode<&[u8]>,
        findings: &mut Findings,
    ) -> Result<()> {
        if number == RESIZE_INO && self.fs.superblock.has_compat(COMPAT_RESIZE_INODE) {
            self.take_resize_inode(inode, findings);
            return Ok(());
        }
        if number == BAD_INO {
            self.has_bad_blocks = inode.i_block().iter().any(|&byte| byte != 0);
            if self.has_bad_blocks {
                findings.repaired("the list of bad blocks is about this card and is left out");
            }
            return Ok(());
        }
        if inode.i_links_count() == 0 {
            return Ok(());
        }
        if !inode.checksum_matches(&self.fs.checksums, number) {
            findings.damaged(format!("inode {number}: its checksum does not match"));
            return Ok(());
        }
        // There, this field names a block of its own.
        if self.fs.superblock.s_creator_os() == OS_HURD && inode.i_version() != 0 {
            return Err(Error::unsupported("ext2 of the Hurd with translators"));
        }
        let mut record = InodeRecord {
            number,
            mode: inode.i_mode(),
            links: inode.i_links_count(),
            flags: inode.i_flags(),
            generation: inode.i_generation(),
            size: inode.size(),
            blocks_512: inode.blocks_512(&self.fs),
            file_acl: inode.file_acl(&self.fs),
            kind: MapKind::None,
            extents: (0, 0),
            nodes: (0, 0),
        };
        self.take_xattr_block(&record, findings);
        if inode.has_block_map(&self.fs) {
            record.kind = if inode.has_flag(EXTENTS_FL) {
                if !self.fs.superblock.has_incompat(INCOMPAT_EXTENTS) {
                    findings.damaged(format!("inode {number}: extents without the feature"));
                }
                MapKind::Extents
            } else {
                MapKind::Indirect
            };
            let may_share = record.mode & S_IFMT == S_IFREG && !self.is_internal(number);
            let (fs, maps) = (&self.fs, &mut self.maps);
            let mut claims = Claims {
                owned: Owned {
                    geometry: &fs.geometry,
                    used: &mut self.used,
                    shareable: self.shareable.as_mut(),
                },
                may_share,
                last: None,
            };
            let mut claim = |blocks: Range<BlockNr>, piece| claims.take(blocks, piece);
            // OK: MAX_EXTENTS bounds both.
            let (extents, nodes) = (maps.extents.len() as u32, maps.nodes.len() as u32);
            match add_map(fs, device, number, inode, &mut claim, maps, MAX_EXTENTS) {
                Ok(()) => {
                    record.extents = (extents, maps.extents.len() as u32);
                    record.nodes = (nodes, maps.nodes.len() as u32);
                }
                Err(MapError::Device(error)) => return Err(error),
                Err(MapError::Broken(text)) => {
                    maps.extents.truncate(extents as usize);
                    maps.nodes.truncate(nodes as usize);
                    findings.damaged(format!("inode {number}: {text}"));
                }
            }
        }
        let index = u64::from(number.0) - 1;
        self.live.set_range(index..index + 1);
        self.inodes.push(record);
        Ok(())
    }

    fn take_xattr_block(&mut self, inode: &InodeRecord, findings: &mut Findings) {
        let block = inode.file_acl;
        if block == 0 {
            return;
        }
        if let Some(sharers) = self.xattr_blocks.get_mut(&block) {
            *sharers += 1;
            return;
        }
        let geometry = &self.fs.geometry;
        if block <= geometry.first_data_block || block >= geometry.blocks_count {
            findings.damaged(format!(
                "inode {}: its xattr block {block} is outside the filesystem",
                inode.number
            ));
        } else if !self.take_alone(block) {
            findings.damaged(format!(
                "inode {}: its xattr block {block} is in use elsewhere",
                inode.number
            ));
        } else {
            self.xattr_blocks.insert(block, 1);
        }
    }

    /// Marks a block that has its cluster for itself; false if somebody has it.
    fn take_alone(&mut self, block: BlockNr) -> bool {
        let mut owned = Owned {
            geometry: &self.fs.geometry,
            used: &mut self.used,
            shareable: None,
        };
        owned.take_alone(block..block + 1)
    }

    /// The reserved descriptor blocks themselves belong to the groups; only the double-indirect
    /// block is the inode's own.
    fn take_resize_inode(&mut self, inode: &Inode<&[u8]>, findings: &mut Findings) {
        const DOUBLE: usize = 13;
        if !inode.checksum_matches(&self.fs.checksums, RESIZE_INO) {
            findings.damaged("the resize inode (7): its checksum does not match");
            return;
        }
        let i_block = inode.i_block();
        let block = u64::from(le32(i_block, 4 * DOUBLE));
        let others = (0..15).any(|slot| slot != DOUBLE && le32(i_block, 4 * slot) != 0);
        let geometry = &self.fs.geometry;
        let inside = block > geometry.first_data_block && block < geometry.blocks_count;
        if others || !inside || !self.take_alone(block) {
            findings.damaged(format!(
                "the resize inode (7): its block {block} is out of place"
            ));
            return;
        }
        self.resize_inode = Some(ResizeInode {
            double_indirect: block,
        });
    }

    /// Counts where the bitmaps and counts on disk differ from what the inodes say.
    fn compare_bitmaps(&self, device: &dyn ReadAt, findings: &mut Findings) -> Result<()> {
        let geometry = &self.fs.geometry;
        let ratio = geometry.cluster_ratio;
        let live = self.live_inodes();
        let (mut leaked, mut missing, mut inode_bits, mut counts) = (0u64, 0u64, 0u64, 0u64);
        let (mut free_blocks, mut free_inodes) = (0u64, 0u64);
        for group in 0..geometry.groups {
            let desc = &self.table.groups[group as usize];
            let blocks = geometry.group_start(group)..geometry.group_end(group);
            let clusters = geometry.group_clusters(group);
            let used = self.used.count_clusters(blocks.clone(), ratio);
            let size = geometry.block_size as usize;
            let mut expected = vec![0; size];
            if !self.block_uninit(group) {
                let actual = device.read_vec_at(geometry.offset(desc.block_bitmap()), size)?;
                self.used.export(blocks, ratio, &mut expected);
                let (more, less) = differences(&actual, &expected, clusters);
                leaked += more;
                missing += less;
            } else {
                missing += used.saturating_sub(geometry.own_clusters(group, desc));
            }
            let free = clusters - used;
            free_blocks += free * ratio;
            let (first, per_group) = (group * geometry.inodes_per_group, geometry.inodes_per_group);
            let range = u64::from(first)..u64::from(first) + u64::from(per_group);
            let used_inodes = live.count(range.clone());
            free_inodes += u64::from(per_group) - used_inodes;
            let uninit = self.fs.superblock.has_group_checksums() && desc.has_flag(INODE_UNINIT);
            if !uninit {
                let actual = device.read_vec_at(geometry.offset(desc.inode_bitmap()), size)?;
                expected.fill(0);
                live.export(range, 1, &mut expected);
                let (more, less) = differences(&actual, &expected, u64::from(per_group));
                inode_bits += more + less;
            }
            if u64::from(desc.free_blocks()) != free
                || u64::from(desc.free_inodes()) != u64::from(per_group) - used_inodes
            {
                counts += 1;
            }
        }
        let what = if ratio == 1 { "blocks" } else { "clusters" };
        if leaked > 0 {
            findings.repaired(format!(
                "{leaked} {what} were marked as used but belong to nothing"
            ));
        }
        if missing > 0 {
            findings.repaired(format!("{missing} {what} of files were marked as free"));
        }
        if inode_bits > 0 {
            findings.repaired(format!("{inode_bits} inodes were marked wrongly"));
        }
        let superblock = &self.fs.superblock;
        if counts > 0
            || superblock.free_blocks_count() != free_blocks
            || u64::from(superblock.s_free_inodes_count()) != free_inodes
        {
            findings.repaired("counts of free blocks or inodes were out of date");
        }
        Ok(())
    }

    /// Returns how many blocks are in free clusters, the last of which may be cut off.
    pub fn free_blocks(&self) -> u64 {
        let geometry = &self.fs.geometry;
        let blocks = geometry.first_data_block..geometry.blocks_count;
        let clusters = geometry.clusters(&blocks);
        let ratio = geometry.cluster_ratio;
        let used = self.used.count_clusters(blocks, ratio);
        (clusters.end - clusters.start - used) * ratio
    }

    /// Is it one of the filesystem's own files?
    fn is_internal(&self, number: InodeNr) -> bool {
        !self.counts_for_quota(number) || number.0 == self.fs.superblock.s_journal_inum()
    }

    /// Does the inode count for the usage in the quota files? The filesystem's own do not.
    pub fn counts_for_quota(&self, number: InodeNr) -> bool {
        let superblock = &self.fs.superblock;
        let own = [
            superblock.s_usr_quota_inum(),
            superblock.s_grp_quota_inum(),
            superblock.s_prj_quota_inum(),
            superblock.s_orphan_file_inum(),
        ];
        number == ROOT_INO || (number.0 >= superblock.first_ino() && !own.contains(&number.0))
    }

    /// Returns a bitmap with the bit `number - 1` for each inode that is in use or reserved.
    pub fn live_inodes(&self) -> &Bitmap {
        &self.live
    }
}

/// Counts the bits among the first `bits` that only the one bitmap has, and those only the other has.
fn differences(one: &[u8], other: &[u8], bits: u64) -> (u64, u64) {
    let (mut only_one, mut only_other) = (0, 0);
    for (index, (one, other)) in one.iter().zip(other).enumerate() {
        if one == other {
            continue;
        }
        let mask = match bits.saturating_sub(8 * index as u64) {
            left @ 0..8 => (1 << left) - 1,
            _ => 0xFF,
        };
        only_one += u64::from((one & !other & mask).count_ones());
        only_other += u64::from((other & !one & mask).count_ones());
    }
    (only_one, only_other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::ext4::test_image::mke2fs;
    use crate::io::memory::MemoryDisk;

    #[test]
    fn free_stretches_are_counted() {
        let disk = MemoryDisk::from(mke2fs(24 << 20, &["-g", "1024"]));
        let metadata = Metadata::read(&disk, &mut Findings::default()).unwrap();
        let runs = metadata.used.runs(0..metadata.used.len(), false).count();
        assert!(runs > 1);
        assert!(metadata.check_free_runs(runs).is_ok());
        let refused = metadata.check_free_runs(runs - 1).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
}
