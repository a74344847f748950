//! The sectors of an MBR table whose partitions lie elsewhere.

use super::super::{DiskLen, Partition, Patches, no_room};
use super::{Container, Mbr, SECTOR, Sector, set_extent};
use crate::error::{Error, Result};
use crate::units::ByteRange;

/// A logical partition before and after, in sectors.
struct Member {
    ebr: usize,
    slot: usize,
    number: u32,
    old: (u64, u64),
    new: (u64, u64),
}

impl Mbr {
    /// See [`PartitionTable::relayout`](super::super::PartitionTable::relayout).
    pub fn relayout(&self, old: &[Partition], new: &[ByteRange], len: DiskLen) -> Result<Patches> {
        let partitions_end = new.iter().map(|range| range.end).max().unwrap_or(0) / SECTOR;
        let limit = match len {
            DiskLen::Exact(len) => len / SECTOR,
            DiskLen::Minimal => partitions_end,
        };
        let primaries: Vec<u64> = old
            .iter()
            .zip(new)
            .filter(|(partition, _)| !partition.logical)
            .map(|(_, range)| range.start / SECTOR)
            .collect();
        let mut plan = self.clone();
        for (index, container) in plan.containers.iter_mut().enumerate() {
            let members = self.members(index, old, new);
            container.place(&members, &primaries, limit)?;
            container.describe(&self.containers[index], &members)?;
            let (slot, start, end) = (container.slot, container.start, container.end);
            set_primary(&mut plan.sector, slot, start, end)?;
        }
        for (partition, range) in old.iter().zip(new) {
            if !partition.logical {
                let slot = partition.number as usize - 1;
                let (start, end) = (range.start / SECTOR, range.end / SECTOR);
                set_primary(&mut plan.sector, slot, start, end)?;
            }
        }
        plan.check(old, new, len)?;
        Ok(plan.patches(partitions_end, len))
    }

    fn members(&self, container: usize, old: &[Partition], new: &[ByteRange]) -> Vec<Member> {
        let sectors = |range: &ByteRange| (range.start / SECTOR, range.end / SECTOR);
        old.iter()
            .zip(new)
            .filter_map(|(partition, range)| {
                let place = self.place(partition)?;
                (place.container == container).then(|| Member {
                    ebr: place.ebr,
                    slot: place.slot,
                    number: partition.number,
                    old: sectors(&partition.range),
                    new: sectors(range),
                })
            })
            .collect()
    }

    fn check(&self, old: &[Partition], new: &[ByteRange], len: DiskLen) -> Result<()> {
        if let DiskLen::Exact(len) = len {
            for (partition, range) in old.iter().zip(new) {
                if range.end > len {
                    let name = format!("partition {}", partition.number);
                    return Err(no_room(&name, range.end, len));
                }
            }
            for container in &self.containers {
                if container.end > len / SECTOR {
                    let name = format!("extended partition {}", container.slot + 1);
                    return Err(no_room(&name, container.end * SECTOR, len));
                }
            }
        }
        match self.problem(old, new) {
            Some(problem) => Err(Error::usage(format!("in the new layout, {problem}"))),
            None => Ok(()),
        }
    }

    fn patches(&self, partitions_end: u64, len: DiskLen) -> Patches {
        let containers_end = self.containers.iter().map(|container| container.end).max();
        let needed = partitions_end.max(containers_end.unwrap_or(0)).max(1) * SECTOR;
        let ebrs = self.containers.iter().flat_map(|c| &c.ebrs);
        Patches {
            disk_len: match len {
                DiskLen::Exact(len) => len,
                DiskLen::Minimal => needed,
            },
            sectors: std::iter::once((0, self.sector.to_vec()))
                .chain(ebrs.map(|ebr| (ebr.lba * SECTOR, ebr.sector.to_vec())))
                .collect(),
            stale: Vec::new(),
        }
    }
}

impl Container {
    /// Moves the EBRs with their data and sets where the container starts and ends.
    /// It gives up what it has left for a primary partition that moves there.
    fn place(&mut self, members: &[Member], primaries: &[u64], limit: u64) -> Result<()> {
        let old_needed = self.needed_end(members.iter().map(|member| member.old.1));
        let mut delta = 0;
        for (index, ebr) in self.ebrs.iter_mut().enumerate().rev() {
            let data = members.iter().filter(|member| member.ebr == index);
            if let Some(first) = data.min_by_key(|member| member.slot) {
                // OK: sectors of a disk are below 2^55.
                delta = first.new.0 as i64 - first.old.0 as i64;
            }
            ebr.lba = ebr
                .lba
                .checked_add_signed(delta)
                .filter(|&lba| lba > 0)
                .ok_or_else(|| Error::unsupported("there is no room for an EBR at the start"))?;
        }
        if let Some(first) = self.ebrs.first() {
            self.start = first.lba;
        }
        let needed = self.needed_end(members.iter().map(|member| member.new.1));
        let behind = primaries.iter().filter(|&&start| start >= needed).min();
        let limit = behind.map_or(limit, |&start| start.min(limit));
        if needed < old_needed || self.end.max(needed) > limit {
            self.end = needed;
        } else {
            self.end = self.end.max(needed);
        }
        Ok(())
    }

    /// Returns the end of what the container must hold.
    fn needed_end(&self, data_ends: impl Iterator<Item = u64>) -> u64 {
        self.ebrs
            .iter()
            .map(|ebr| ebr.lba + 1)
            .chain(data_ends)
            .max()
            .unwrap_or(self.start + 1)
    }

    /// Rewrites the extents in the EBRs; `was` is the container before.
    fn describe(&mut self, was: &Container, members: &[Member]) -> Result<()> {
        for member in members {
            if member.new.0 < self.start {
                return Err(Error::unsupported(format!(
                    "partition {} cannot move in front of the first logical partition",
                    member.number
                )));
            }
            let ebr = &mut self.ebrs[member.ebr];
            let start = member.new.0.checked_sub(ebr.lba).filter(|&start| start > 0);
            let start = start.and_then(|start| u32::try_from(start).ok());
            let sectors = u32::try_from(member.new.1 - member.new.0).ok();
            let (Some(start), Some(sectors)) = (start, sectors) else {
                return Err(out_of_reach(member.number));
            };
            set_extent(&mut ebr.sector, member.slot, start, sectors);
        }
        for index in 0..self.ebrs.len() {
            let Some(slot) = self.ebrs[index].link else {
                continue;
            };
            let Some(next) = self.ebrs.get(index + 1).map(|next| next.lba) else {
                if (self.start, self.end) != (was.start, was.end) {
                    // It led to no EBR, and would now lead elsewhere.
                    self.ebrs[index].sector[446 + 16 * slot..][..16].fill(0);
                }
                continue;
            };
            let data = members.iter().filter(|member| member.ebr == index + 1);
            let changed = next != was.ebrs[index + 1].lba
                || data.clone().any(|member| member.old != member.new);
            let area = if changed {
                let data_end = data.map(|member| member.new.1).max();
                data_end.unwrap_or(0).max(next + 1) - next
            } else {
                let area = super::Entry::of(&self.ebrs[index].sector, slot).sectors;
                u64::from(area).min(self.end - next)
            };
            let start = next.checked_sub(self.start).filter(|&start| start > 0);
            let start = start.and_then(|start| u32::try_from(start).ok());
            let (Some(start), Ok(area)) = (start, u32::try_from(area)) else {
                return Err(Error::unsupported(
                    "an MBR cannot express where an EBR would have to be",
                ));
            };
            set_extent(&mut self.ebrs[index].sector, slot, start, area);
        }
        Ok(())
    }
}

fn set_primary(sector: &mut Sector, slot: usize, start: u64, end: u64) -> Result<()> {
    let (Ok(start), Ok(sectors)) = (u32::try_from(start), u32::try_from(end - start)) else {
        return Err(out_of_reach(slot as u32 + 1));
    };
    set_extent(sector, slot, start, sectors);
    Ok(())
}

fn out_of_reach(number: u32) -> Error {
    Error::unsupported(format!(
        "an MBR cannot express the new place of partition {number}"
    ))
}
