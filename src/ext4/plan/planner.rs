//! The plan in the making: the groups' own metadata first, counts and flags last.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ext4::format::bitmap::Bitmap;
use crate::ext4::format::geometry::Geometry;
use crate::ext4::format::group_desc::{BLOCK_UNINIT, GroupDesc, INODE_UNINIT, INODE_ZEROED};
use crate::ext4::format::superblock::INCOMPAT_FLEX_BG;
use crate::ext4::plan::relocate::Relocation;
use crate::ext4::plan::{Effort, Files, NoFit, ResizePlan};
use crate::ext4::read::metadata::Metadata;
use crate::io::RangeSet;
use crate::units::{BlockNr, GroupNr, InodeNr};

pub(super) struct Planner<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) old: &'a Geometry,
    pub(super) new: Geometry,
    pub(super) effort: Effort,
    pub(super) used: Bitmap,
    pub(super) live: Bitmap,
    pub(super) groups: Vec<GroupDesc>,
    pub(super) inodes: Relocation,
    pub(super) blocks: Relocation,
    /// Old blocks below the new end that must make room for descriptors or groups' metadata.
    pub(super) evicted: RangeSet,
    /// What cannot make room, a bit a block, once that was asked.
    fixed: Option<Bitmap>,
    /// Is the journal among it? When growing it is while that goes, since it undoes a growth that
    /// was cut short.
    keeps_journal: bool,
    /// Where room for groups' metadata was looked for.
    searched: Searched,
}

impl<'a> Planner<'a> {
    pub(super) fn new(metadata: &'a Metadata, new: Geometry, effort: Effort) -> Self {
        let old = &metadata.fs.geometry;
        let keeps_journal = new.blocks_count > old.blocks_count;
        let mut used = Bitmap::new(new.blocks_count);
        for run in metadata
            .used
            .runs(0..new.blocks_count.min(old.blocks_count), true)
        {
            used.set_range(run);
        }
        Self {
            metadata,
            old,
            new,
            effort,
            used,
            live: Bitmap::new(0),
            groups: Vec::new(),
            inodes: Relocation::default(),
            blocks: Relocation::default(),
            evicted: RangeSet::new(),
            fixed: None,
            keeps_journal,
            searched: Searched::default(),
        }
    }

    /// Drops the metadata of vanished groups and shrinks, keeps or widens the descriptors' areas.
    pub(super) fn release_and_claim_groups(&mut self) -> Result<(), NoFit> {
        let kept = self.new.groups.min(self.old.groups);
        self.groups = self.metadata.table.groups[..kept as usize].to_vec();
        for desc in &self.metadata.table.groups[kept as usize..] {
            for (block, count) in desc.parts(self.old.itable_blocks) {
                self.used.clear_range(block..block + count);
            }
        }
        for group in 0..self.new.groups {
            let start = self.new.super_start(group);
            let new_len = self.new.super_blocks(group);
            let old_len = if group < kept {
                self.old.super_blocks(group)
            } else {
                0
            };
            let end = start + new_len;
            if end > self.new.group_end(group) {
                return Err(NoFit::LastGroup);
            }
            let wider = start + old_len..end;
            if group < kept && !wider.is_empty() {
                // Only when growing past the reserved descriptor blocks.
                for run in self.used.runs(wider, true) {
                    self.evicted.insert(run);
                }
            }
            self.used.clear_range(end..(start + old_len).max(end));
            self.used.set_range(start..end);
        }
        Ok(())
    }

    /// Finds places for bitmaps and inode tables that are in the way, cut off or new.
    pub(super) fn place_new_groups(&mut self) -> Result<(), NoFit> {
        let kept = self.groups.len() as GroupNr;
        let itable = self.new.itable_blocks;
        // First give up every place that is lost, then look for others.
        let mut lost = Vec::new();
        for group in 0..kept {
            for (which, (block, count)) in self.groups[group as usize]
                .parts(itable)
                .into_iter()
                .enumerate()
            {
                let evicted = self.evicted.intersects(block..block + count);
                if block + count > self.new.blocks_count || evicted {
                    self.release_part(block, count);
                    set_part(&mut self.groups[group as usize], which, 0);
                    lost.push((group, which, count));
                }
            }
        }
        self.groups
            .resize(self.new.groups as usize, GroupDesc::zeroed());
        let new = (kept..self.new.groups)
            .flat_map(|group| [(group, 0, 1), (group, 1, 1), (group, 2, itable)]);
        for (group, which, count) in lost.into_iter().chain(new) {
            let block = self
                .place_part(group, which, count)
                .or_else(|| self.make_room(group, count))
                .ok_or(NoFit::Table { group })?;
            self.used.set_range(block..block + count);
            if let Some(fixed) = &mut self.fixed {
                fixed.set_range(block..block + count);
            }
            set_part(&mut self.groups[group as usize], which, block);
        }
        Ok(())
    }

    /// Frees a lost part, but for what the wider descriptors have taken of it.
    fn release_part(&mut self, block: BlockNr, count: u64) {
        let within = block..(block + count).min(self.new.blocks_count);
        for free in self.evicted.gaps(within) {
            self.used.clear_range(free);
        }
        // What was a part of the lost place has no contents to move.
        self.evicted.remove(block..block + count);
    }

    /// Finds `count` free blocks in a row for a group: where mke2fs would put them, else anywhere
    /// that the features allow.
    fn place_part(&mut self, group: GroupNr, which: usize, count: u64) -> Option<BlockNr> {
        let end = self.new.blocks_count;
        if !self.metadata.fs.superblock.has_incompat(INCOMPAT_FLEX_BG) {
            let own = self.new.group_start(group)..self.new.group_end(group);
            return find_free(&self.used, own, count);
        }
        let flex = 1u64 << self.metadata.fs.superblock.s_log_groups_per_flex().min(20);
        let within = u64::from(group) % flex;
        // OK: not above `group`.
        let leader = (u64::from(group) - within) as GroupNr;
        let start = self.new.group_start(leader) + self.new.super_blocks(leader);
        let ideal = start
            + match which {
                0 => within,
                1 => flex + within,
                _ => 2 * flex + within * self.new.itable_blocks,
            };
        if ideal + count <= end && self.used.count(ideal..ideal + count) == 0 {
            return Some(ideal);
        }
        let [behind, anywhere] = &mut self.searched.0;
        behind.find(&self.used, start, count).or_else(|| {
            let first = self.new.first_data_block;
            anywhere.find(&self.used, first, count)
        })
    }

    /// Takes blocks from files, which move elsewhere, for a group's metadata.
    fn make_room(&mut self, group: GroupNr, count: u64) -> Option<BlockNr> {
        let flex = self.metadata.fs.superblock.has_incompat(INCOMPAT_FLEX_BG);
        let within = match flex {
            true => self.new.first_data_block..self.new.blocks_count,
            false => self.new.group_start(group)..self.new.group_end(group),
        };
        loop {
            let fixed = self.fixed.take().unwrap_or_else(|| self.fixed_blocks());
            let place = find_free(&fixed, within.clone(), count);
            self.fixed = Some(fixed);
            if let Some(start) = place {
                for run in self.used.runs(start..start + count, true) {
                    self.evicted.insert(run);
                }
                return place;
            }
            if !self.keeps_journal {
                return None;
            }
            self.keeps_journal = false;
            self.fixed = None;
        }
    }

    /// Returns the blocks of superblocks, descriptors and groups' metadata, and perhaps the
    /// journal's.
    fn fixed_blocks(&self) -> Bitmap {
        let mut fixed = Bitmap::new(self.new.blocks_count);
        for (group, desc) in (0..).zip(&self.groups) {
            let start = self.new.super_start(group);
            fixed.set_range(start..start + self.new.super_blocks(group));
            for (block, count) in desc.parts(self.new.itable_blocks) {
                // What has no place yet has number 0.
                if block > 0 {
                    fixed.set_range(block..block + count);
                }
            }
        }
        if self.keeps_journal {
            for run in self.journal_blocks() {
                fixed.set_range(run);
            }
        }
        fixed
    }

    fn journal_blocks(&self) -> Vec<Range<BlockNr>> {
        let journal = InodeNr(self.metadata.fs.superblock.s_journal_inum());
        let Some(record) = self.metadata.inode(journal) else {
            return Vec::new();
        };
        let extents = self.metadata.extents(record).iter();
        let nodes = self.metadata.nodes(record).iter();
        extents
            .map(|extent| extent.start..extent.end())
            .chain(nodes.map(|node| node.block..node.block + 1))
            .collect()
    }

    /// Fills in counts and flags.
    pub(super) fn finish(mut self, files: Files) -> ResizePlan {
        let checksums = self.metadata.fs.superblock.has_group_checksums();
        let dirs = self.count_dirs();
        let per_group = u64::from(self.new.inodes_per_group);
        let (mut free_blocks, mut free_inodes) = (0, 0);
        for group in 0..self.new.groups {
            let blocks = self.new.group_start(group)..self.new.group_end(group);
            let used = self.used.count_clusters(blocks, self.new.cluster_ratio);
            let free = self.new.group_clusters(group) - used;
            let inodes = u64::from(group) * per_group..u64::from(group + 1) * per_group;
            let live = self.live.count(inodes.clone());
            let unused = self.unused_slots(inodes);
            let own = self.new.own_clusters(group, &self.groups[group as usize]);
            let is_new = group >= self.old.groups;
            let is_last = group + 1 == self.new.groups;
            let desc = &mut self.groups[group as usize];
            desc.set_free_blocks(free as u32);
            desc.set_free_inodes((per_group - live) as u32);
            desc.set_used_dirs(dirs[group as usize]);
            if checksums {
                let untouched = used == own && group != 0 && !is_last;
                desc.set_flag(
                    BLOCK_UNINIT,
                    untouched && (is_new || desc.has_flag(BLOCK_UNINIT)),
                );
                desc.set_flag(
                    INODE_UNINIT,
                    live == 0 && (is_new || desc.has_flag(INODE_UNINIT)),
                );
                desc.set_itable_unused(unused);
                desc.set_flag(INODE_ZEROED, desc.has_flag(INODE_ZEROED) && !is_new);
            } else {
                desc.set_bg_flags(0);
                desc.set_itable_unused(0);
            }
            free_blocks += free * self.new.cluster_ratio;
            free_inodes += per_group - live;
        }
        ResizePlan {
            geometry: self.new,
            used: self.used,
            live: self.live,
            blocks: self.blocks,
            inodes: self.inodes,
            groups: self.groups,
            files,
            free_blocks,
            free_inodes,
        }
    }

    fn count_dirs(&self) -> Vec<u32> {
        let mut dirs = vec![0; self.new.groups as usize];
        for inode in self.metadata.inodes.iter().filter(|inode| inode.is_dir()) {
            let number = self.inodes.of(u64::from(inode.number.0));
            // OK: an inode's number, which has 32 bits.
            let number = InodeNr(number as u32);
            dirs[self.new.inode_place(number).0 as usize] += 1;
        }
        dirs
    }

    /// Slots at the end of a group's table that hold nothing.
    fn unused_slots(&self, inodes: Range<u64>) -> u32 {
        let last = self.live.runs(inodes.clone(), true).last();
        // OK: not more than the inodes of a group.
        last.map_or(inodes.end - inodes.start, |run| inodes.end - run.end) as u32
    }
}

/// Notes where one of a group's parts lies.
fn set_part(desc: &mut GroupDesc, which: usize, block: BlockNr) {
    match which {
        0 => desc.set_block_bitmap(block),
        1 => desc.set_inode_bitmap(block),
        _ => desc.set_inode_table(block),
    }
}

fn find_free(used: &Bitmap, within: Range<BlockNr>, count: u64) -> Option<BlockNr> {
    used.runs(within, false)
        .find(|run| run.end - run.start >= count)
        .map(|run| run.start)
}

/// What was searched from the groups' own places on, and from the filesystem's start on.
#[derive(Default)]
struct Searched([Search; 2]);

/// Remembers where there is no room, so that thousands of groups do not each look through the same
/// blocks. What is found is taken at once, and nothing is given back meanwhile.
#[derive(Default)]
struct Search {
    /// By length: from the first block to the second no more run of it begins.
    without: BTreeMap<u64, Range<BlockNr>>,
}

impl Search {
    /// Finds the first `count` free blocks in a row from `start` on.
    fn find(&mut self, used: &Bitmap, start: BlockNr, count: u64) -> Option<BlockNr> {
        let without = self.without.entry(count).or_insert(start..start);
        if !(without.start..=without.end).contains(&start) {
            *without = start..start;
        }
        let found = find_free(used, without.end..used.len(), count);
        without.end = found.map_or(used.len(), |found| found + count);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::random;

    #[test]
    fn a_search_that_remembers_finds_the_same() {
        let mut state = 9u64;
        let mut random = |below: u64| random(&mut state, below);
        for _ in 0..200 {
            let mut used = Bitmap::new(2000);
            for _ in 0..random(300) {
                let start = random(2000);
                used.set_range(start..start + 1 + random(4));
            }
            let mut search = Search::default();
            let mut start = 0;
            for _ in 0..200 {
                let count = [1, 1, 7, 20][random(4) as usize];
                // Mostly the next group, now and then one before.
                start = if random(8) == 0 {
                    random(2000)
                } else {
                    (start + random(30)).min(1999)
                };
                let found = search.find(&used, start, count);
                assert_eq!(found, find_free(&used, start..2000, count));
                if let Some(found) = found {
                    used.set_range(found..found + count);
                }
                if random(5) == 0 {
                    // The place where it would be best.
                    let ideal = random(2000);
                    used.set_range(ideal..ideal + 5);
                }
            }
        }
    }
}
