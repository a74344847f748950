//! Growing what is on a card into the card: the partition, and an ext filesystem in it.
//!
//! ```text
//! table, volumes ── which grows, which move ── new table ── filesystem's growth ── run
//! run: moved partitions, tables at new places ─ the table's first sectors ─ old places
//!      ─ the filesystem's steps
//! ```
//! Each step is synced, read back and, where it is wrong, written again, before the next begins.
//!
//! Decisions: the table comes before the filesystem, since a partition larger than its filesystem
//! mounts and the other way round does not. A partition that moves must not cover its own old
//! place nor another's, so that whatever interrupts it, either the old or the new table finds it
//! whole; of swap areas only the header counts. An MBR's first sector comes before the sectors of
//! the extended partition that it leads to, since only what lies in its range is looked at; a GPT's
//! new backup comes before the primary, and the old backup goes last. Only ext grows; for anything
//! else the partition alone does.

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::{Ext4, Target};
use crate::flash::commit;
use crate::flash::target::Card;
use crate::io::{Overlay, RangeSet, ReadAt, Source, Steps, Window};
use crate::partition::{DiskLen, Iso, PartitionTable, TableKind};
use crate::progress::{Phase, Progress};
use crate::units::{ByteRange, human_bytes, round_down};
use crate::volume::Volume;

/// What the last partition grows to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExpandTo {
    /// All there is.
    Max,
    /// So many bytes.
    Size(u64),
}

/// Where partitions start that are moved to the end, in bytes.
const ALIGNMENT: u64 = 1 << 20;

/// The end of a partition that grows is a multiple of this.
const END_ALIGNMENT: u64 = 4096;

/// What growing changes, for the user.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Expansion {
    /// The partition's number; `None` without a table.
    pub partition: Option<u32>,
    pub filesystem: String,
    /// The partition (or the disk) before and after, in bytes.
    pub old_partition: u64,
    pub new_partition: u64,
    /// The filesystem before and after, in bytes, if it is one that grows here.
    pub old_filesystem: Option<u64>,
    pub new_filesystem: Option<u64>,
    /// Numbers of the partitions that move to the end.
    pub moved: Vec<u32>,
    /// Bytes that were written; 0 as long as it is a plan.
    pub written: u64,
    /// A line each: why something does not grow.
    pub notes: Vec<String>,
}

impl Expansion {
    /// Of a disk on which nothing can grow, as `error` says.
    pub(super) fn unable(error: &Error) -> Self {
        Self {
            notes: vec![format!("nothing is expanded: {}", error.one_line())],
            ..Self::default()
        }
    }
}

/// How to grow what is on a disk.
#[derive(Debug)]
pub struct ExpandPlan {
    /// Moved partitions and the table, then the filesystem, over the disk.
    steps: Steps,
    summary: Expansion,
}

impl ExpandPlan {
    /// Plans for the disk as it is.
    ///
    /// # Errors
    /// `Unsound` if the table or the filesystem is damaged, `Unsupported` if there is nothing
    /// that can be understood, `NoSpace` if the wished size does not fit, `Io` if the disk fails.
    pub fn new(disk: &dyn ReadAt, to: ExpandTo) -> Result<Self> {
        if Iso::find(disk)?.is_some() {
            return Err(Error::unsupported(
                "an ISO image that is a disk as well lies there, of which nothing may move or grow",
            ));
        }
        match PartitionTable::read(disk)? {
            Some(table) => Self::with_table(disk, &table, to),
            None => Self::bare(disk, to),
        }
    }

    fn bare(disk: &dyn ReadAt, to: ExpandTo) -> Result<Self> {
        let volume = Volume::identify(disk)?;
        if !matches!(volume, Volume::Ext(_)) {
            return Err(Error::unsupported(format!(
                "there is neither a partition table nor an ext filesystem that could grow: what lies \
                 there is {}",
                volume.name()
            )));
        }
        let len = match to {
            ExpandTo::Max => disk.len(),
            ExpandTo::Size(size) if size <= disk.len() => size,
            ExpandTo::Size(size) => return Err(no_room(size, disk.len())),
        };
        let mut plan = Self {
            steps: Steps::new(),
            summary: Expansion {
                filesystem: volume.name(),
                old_partition: disk.len(),
                new_partition: disk.len(),
                ..Expansion::default()
            },
        };
        plan.grow_filesystem(disk, &volume, ByteRange::new(0, len))?;
        Ok(plan)
    }

    fn with_table(disk: &dyn ReadAt, table: &PartitionTable, to: ExpandTo) -> Result<Self> {
        let partitions = table.partitions();
        let volumes: Vec<Volume> = partitions
            .iter()
            .map(|partition| Volume::identify(&Window::new(disk, partition.range)?))
            .collect::<Result<_>>()?;
        let last = partitions
            .len()
            .checked_sub(1)
            .ok_or_else(|| Error::unsupported("the partition table is empty"))?;
        let stays =
            |&index: &usize| !volumes[index].moves_for_others(partitions[index].range.len());
        let grows = (0..=last).rev().find(stays).unwrap_or(last);
        let old = partitions[grows].range;
        let mut summary = Expansion {
            partition: Some(partitions[grows].number),
            filesystem: volumes[grows].name(),
            old_partition: old.len(),
            ..Expansion::default()
        };
        let places = match places(disk, table, &volumes, grows, to)? {
            Ok(places) => places,
            Err(reason) => {
                summary.notes.push(reason);
                vec![(grows, old)]
            }
        };
        let reach = table.max_end(disk.len());
        if table.kind() == TableKind::Mbr && disk.len().saturating_sub(reach) >= ALIGNMENT {
            let note = "an MBR reaches only the first 2 TiB of the card: the rest stays unused";
            summary.notes.push(note.into());
        }
        let mut new = places[0].1;
        if let Some(at) = table.obstacle(old.end)
            && at - new.end.min(at) < END_ALIGNMENT
        {
            let note = "an empty part of an extended partition lies behind it: it grows no further";
            summary.notes.push(note.into());
        }
        let mut plan = Self {
            steps: Steps::new(),
            summary,
        };
        if new != old || table.kind() == TableKind::Gpt {
            // A GPT's backup belongs at the true end in any case.
            match plan.lay_out(disk, table, &volumes, &places) {
                Ok(()) => {
                    let moved = places[1..].iter();
                    let moved = moved.map(|(index, _)| partitions[*index].number);
                    plan.summary.moved = moved.collect();
                }
                // EBRs can lie so that there is no way around them.
                Err(error) if table.kind() == TableKind::Mbr && is_inexpressible(&error) => {
                    // The filesystem may still grow within its partition.
                    let note = format!("partitions keep their places: {}", error.one_line());
                    plan.summary.notes.push(note);
                    new = old;
                }
                Err(error) => return Err(error),
            }
        }
        plan.summary.new_partition = new.len();
        plan.grow_filesystem(disk, &volumes[grows], new)?;
        Ok(plan)
    }

    fn lay_out(
        &mut self,
        disk: &dyn ReadAt,
        table: &PartitionTable,
        volumes: &[Volume],
        places: &[(usize, ByteRange)],
    ) -> Result<()> {
        let layout = table.relayout(disk, places, DiskLen::Exact(disk.len()))?;
        let mut overlay = layout.overlay;
        for (index, new) in &places[1..] {
            let old = table.partitions()[*index].range;
            let window = Window::new(disk, old)?;
            // Onto the table's changes, which may zero where a backup was.
            for range in volumes[*index]
                .content(&window, Target::Keep)?
                .stored
                .iter()
            {
                let len = range.end - range.start;
                overlay.set_base(new.start + range.start, len, old.start + range.start);
            }
            for (offset, bytes) in volumes[*index].moved(&window, old.start, new.start)? {
                overlay.set_bytes(new.start + offset, bytes);
            }
        }
        self.steps.append(table_steps(table, &overlay));
        Ok(())
    }

    fn grow_filesystem(
        &mut self,
        disk: &dyn ReadAt,
        volume: &Volume,
        range: ByteRange,
    ) -> Result<()> {
        if !matches!(volume, Volume::Ext(_)) {
            self.summary.notes.push(format!(
                "{} is not a filesystem that grows here: only its partition does",
                volume.name()
            ));
            return Ok(());
        }
        let window = Window::new(disk, range)?;
        let ext = match Ext4::open(&window) {
            Ok(ext) => ext,
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                self.note_unknown(&error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let old = ext.total_bytes();
        self.summary.old_filesystem = Some(old);
        self.summary.new_filesystem = Some(old);
        if old >= range.len() {
            return Ok(());
        }
        match ext.grow(range.len()) {
            Ok(growth) if growth.new_len > old => {
                self.summary.new_filesystem = Some(growth.new_len);
                let steps = growth.steps.rebase(range.start, disk.len());
                self.steps.append(steps);
                self.note_rest(range.len() - growth.new_len, &ext);
            }
            Ok(_) => self.note_rest(range.len() - old, &ext),
            Err(error) if error.kind() == ErrorKind::Unsupported => self.note_unknown(&error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A filesystem that is not understood here may be sound all the same.
    fn note_unknown(&mut self, error: &Error) {
        let note = match self.summary.partition {
            Some(_) => format!("only the partition grows: {}", error.one_line()),
            None => format!("the filesystem does not grow: {}", error.one_line()),
        };
        self.summary.notes.push(note);
    }

    /// Says so if a whole group and more stays outside of the filesystem.
    fn note_rest(&mut self, rest: u64, ext: &Ext4) {
        if rest > ext.group_bytes() {
            self.summary.notes.push(format!(
                "{} stays unused: the filesystem's descriptors or numbers reach no further",
                human_bytes(rest)
            ));
        }
    }

    /// Returns what would change.
    pub fn summary(&self) -> &Expansion {
        &self.summary
    }

    /// Is everything as large as it can be?
    pub fn is_nothing(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns all changes over the disk, which has `disk_len` bytes, as one overlay.
    pub(super) fn flat(&self, disk_len: u64) -> Overlay {
        self.steps.flat(disk_len)
    }

    /// Makes the changes and reads them back.
    ///
    /// # Errors
    /// `Verify` if something cannot be read back, `Io` if the card fails, `Cancelled`.
    pub fn run(&self, card: &dyn Card, progress: &dyn Progress) -> Result<Expansion> {
        let mut summary = self.summary.clone();
        progress.started(Phase::Expand, None)?;
        for step in self.steps.iter() {
            summary.written += commit::commit(card, step, progress)?;
        }
        progress.finished(Phase::Expand)?;
        Ok(summary)
    }
}

/// Puts a table's changes into steps.
fn table_steps(table: &PartitionTable, overlay: &Overlay) -> Steps {
    let first = match table.kind() {
        TableKind::Mbr => 0..table.sector_size(),
        TableKind::Gpt => 0..table.first_usable(),
    };
    let mut steps = [(); 3].map(|()| Overlay::new(overlay.len()));
    let is_old: RangeSet = table
        .table_ranges()
        .iter()
        .map(|range| range.start..range.end)
        .collect();
    for segment in overlay.changed().flat_map(|range| overlay.segments(range)) {
        let range = segment.start..segment.end();
        let step = match (segment.source, table.kind()) {
            _ if range.start < first.end => 1,
            (Source::Zero, TableKind::Gpt) => 2,
            (_, TableKind::Mbr) if is_old.contains(range.start) => 2,
            _ => 0,
        };
        steps[step].take(overlay, range);
    }
    let mut ordered = Steps::new();
    for step in steps {
        ordered.push(step);
    }
    ordered
}

/// Partitions, by index, and where they go.
type Places = Vec<(usize, ByteRange)>;

/// Returns the new place of the partition that grows, followed by those of the ones behind it; or
/// why nothing grows.
fn places(
    disk: &dyn ReadAt,
    table: &PartitionTable,
    volumes: &[Volume],
    grows: usize,
    to: ExpandTo,
) -> Result<Result<Places, String>> {
    let partitions = table.partitions();
    let old = partitions[grows].range;
    let mut end = table.max_end(disk.len());
    let mut moved = Vec::new();
    for index in (grows + 1..partitions.len()).rev() {
        let from = partitions[index].range;
        end = end.min(table.obstacle(from.end).unwrap_or(end));
        let start = end
            .checked_sub(from.len())
            .map(|start| round_down(start, ALIGNMENT).max(from.start));
        let Some(to) = start.and_then(|start| ByteRange::at(start, from.len())) else {
            return Ok(Err("the card has no room for it to grow".into()));
        };
        let keeps_content = (grows + 1..partitions.len()).all(|other| {
            matches!(volumes[other], Volume::Swap(_)) || {
                let theirs = partitions[other].range;
                to.end <= theirs.start || theirs.end <= to.start
            }
        });
        if to != from && !keeps_content {
            return Ok(Err(format!(
                "partition {} is in the way and cannot move so little",
                partitions[index].number
            )));
        }
        moved.push((index, to));
        end = to.start.saturating_sub(table.lead_in(index));
    }
    end = end.min(table.obstacle(old.end).unwrap_or(end));
    let most = round_down(end, END_ALIGNMENT);
    let most = ByteRange::new(old.start, most.max(old.end));
    let new = match to {
        ExpandTo::Max => most,
        ExpandTo::Size(size) => {
            let unit = table.sector_size().max(END_ALIGNMENT);
            let size = size.checked_next_multiple_of(unit).unwrap_or(u64::MAX);
            if size < old.len() {
                return Err(Error::usage(format!(
                    "partition {} has {} already, more than {}",
                    partitions[grows].number,
                    human_bytes(old.len()),
                    human_bytes(size)
                ))
                .with_hint("capture shrinks filesystems"));
            }
            if size > most.len() {
                return Err(no_room(size, most.len()));
            }
            ByteRange::new(old.start, old.start + size)
        }
    };
    if new == old {
        // Then nothing needs to move either.
        return Ok(Ok(vec![(grows, old)]));
    }
    let moved = moved.into_iter().rev();
    let moved = moved.filter(|(index, to)| *to != partitions[*index].range);
    Ok(Ok(std::iter::once((grows, new)).chain(moved).collect()))
}

/// Is it the table that cannot have such a layout?
fn is_inexpressible(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Usage | ErrorKind::Unsupported | ErrorKind::NoSpace
    )
}

fn no_room(wanted: u64, there: u64) -> Error {
    Error::new(
        ErrorKind::NoSpace,
        format!(
            "it cannot grow to {wanted} bytes ({}): there is room for {there} ({})",
            human_bytes(wanted),
            human_bytes(there)
        ),
    )
}

#[cfg(test)]
mod tests;
