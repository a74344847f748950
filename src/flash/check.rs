//! An image held against its block map and checksum, and a card against an image.
//!
//! A card that was flashed and then expanded differs from its image in the partition table and in
//! the filesystem's metadata. So what differs is put back in memory, the expansion is planned for
//! that, and only what the plan does not explain is a difference.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::classify::{Class, Difference, against, joined};
use super::digest::blocks;
use super::grow::{ExpandPlan, ExpandTo};
use super::plan::{CELL, FlashPlan};
use super::reading::{RangeCheck, Unpacked, read_cells};
use super::since::not_by_mounting;
use super::source::ImageSource;
use crate::bmap::Bmap;
use crate::codec::foreign;
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, Overlay, ReadAt};
use crate::partition::PartitionTable;
use crate::pipeline::{Job, Queue, guarded, together};
use crate::progress::{Event, Phase, Progress};
use crate::units::ByteRange;

/// Buffers between reading the image and reading the card.
const BUFFERS: usize = 6;

/// The most differing bytes that are kept to tell whether an expansion explains them.
const MOST_KEPT: usize = 128 << 20;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Length of the image in bytes.
    pub image_len: u64,
    /// Bytes that were held against the card, or read of the image.
    pub bytes: u64,
    /// Where the card differs.
    pub differences: Vec<Difference>,
    /// Is the card the image after an expansion?
    pub expanded: bool,
    /// What differs because a system mounted the card since: no difference of what was written.
    pub mounted_since: Vec<ByteRange>,
}

/// Reads the image, checks it against its map and whatever else is known of it, and compares the
/// card if there is one.
///
/// # Errors
/// What is wrong with the image, `NoSpace` if the card is too small for it, `Io`. Differences are
/// no error here.
pub fn check(
    image: &dyn ImageSource,
    map: Option<&Bmap>,
    card: Option<&dyn ReadAt>,
    progress: &dyn Progress,
) -> Result<Checked> {
    let mut reader = image.open()?;
    let plan = FlashPlan::new(reader.len_hint(), map)?;
    if let Some(card) = card {
        plan.check_fits(card.len(), None)?;
    }
    progress.started(Phase::Verify, plan.bytes())?;
    let mut first = AlignedBuf::zeroed(CELL as usize);
    let count = reader.read_full(&mut first)?;
    if count == 0 {
        return Err(Error::unsound("the image is empty"));
    }
    foreign::refuse(&first[..count], &[])?;
    let pool = Arc::new(Queue::new(BUFFERS));
    for _ in 1..BUFFERS {
        pool.push(AlignedBuf::zeroed(CELL as usize));
    }
    let unpacked = Queue::new(BUFFERS);
    let mut work = Work {
        plan: &plan,
        map: map.map(RangeCheck::new),
        card,
        progress,
        seen: AlignedBuf::zeroed(CELL as usize),
        checked: Checked::default(),
        kept: Vec::new(),
        kept_bytes: 0,
    };
    let mut read = Ok(0);
    let reading: Job = Box::new(|| {
        read = guarded(|| read_cells(&mut *reader, (first, count), &plan, &pool, &unpacked));
        unpacked.close();
    });
    let outcome = together([reading], || {
        let outcome = guarded(|| {
            while let Some(cell) = unpacked.pop() {
                work.compare(&cell)?;
                pool.push(cell.buf);
            }
            Ok(())
        });
        unpacked.abandon();
        pool.close();
        outcome
    });
    outcome?;
    work.checked.image_len = read?;
    if let Some(note) = reader.note() {
        progress.event(Event::Note(note))?;
    }
    if let Some(check) = &work.map {
        check.finish(work.checked.image_len)?;
    }
    progress.finished(Phase::Verify)?;
    work.explain()
}

struct Work<'a> {
    plan: &'a FlashPlan,
    map: Option<RangeCheck<'a>>,
    card: Option<&'a dyn ReadAt>,
    progress: &'a dyn Progress,
    seen: AlignedBuf,
    checked: Checked,
    /// What the image has where the card differs.
    kept: Vec<(u64, Vec<u8>)>,
    kept_bytes: usize,
}

impl Work<'_> {
    fn compare(&mut self, cell: &Unpacked) -> Result<()> {
        let end = cell.start + cell.len as u64;
        if let Some(check) = &mut self.map {
            check.update(cell.start, &cell.buf[..cell.len])?;
        }
        for range in self.plan.written_within(cell.start..end) {
            let bytes =
                &cell.buf[(range.start - cell.start) as usize..(range.end - cell.start) as usize];
            if let Some(card) = self.card {
                self.compare_range(card, &range, bytes)?;
            }
            let len = range.end - range.start;
            self.checked.bytes += len;
            self.progress.advanced(Phase::Verify, len)?;
        }
        Ok(())
    }

    fn compare_range(&mut self, card: &dyn ReadAt, range: &Range<u64>, bytes: &[u8]) -> Result<()> {
        self.plan.check_fits(card.len(), Some(range.end))?;
        let readable = card
            .read_exact_at(range.start, &mut self.seen[..bytes.len()])
            .is_ok();
        if readable && self.seen[..bytes.len()] == *bytes {
            return Ok(());
        }
        for block in blocks(range.clone()) {
            let at = (block.start - range.start) as usize..(block.end - range.start) as usize;
            let expected = &bytes[at.clone()];
            let seen = &mut self.seen[at];
            let class = if !readable && card.read_exact_at(block.start, seen).is_err() {
                Class::Unreadable
            } else if seen == expected {
                continue;
            } else {
                against(seen, expected)
            };
            self.checked.differences.push(Difference {
                range: ByteRange::new(block.start, block.end),
                class,
            });
            self.kept_bytes += expected.len();
            if self.kept_bytes <= MOST_KEPT {
                self.kept.push((block.start, expected.to_vec()));
            }
        }
        Ok(())
    }

    /// Takes out of the differences what an expansion made, and what a system did that mounted the card.
    fn explain(mut self) -> Result<Checked> {
        if let Some(card) = self.card
            && !self.checked.differences.is_empty()
            && self.kept_bytes <= MOST_KEPT
        {
            let mut before = Overlay::new(card.len());
            for (start, bytes) in std::mem::take(&mut self.kept) {
                before.set_bytes(start, bytes);
            }
            let mut views = expansions(card, &before);
            let count = self.checked.differences.len();
            let as_expanded = |range| views.iter().any(|view| is_as(view, card, range));
            self.checked.differences.retain(|d| !as_expanded(d.range));
            self.checked.expanded = self.checked.differences.len() < count;
            views.push(before);
            self.take_mounted(card, &views);
        }
        self.checked.differences = joined(self.checked.differences);
        Ok(self.checked)
    }

    /// Moves what mounting explains, of a card that was as one of `views`.
    fn take_mounted(&mut self, card: &dyn ReadAt, views: &[Overlay]) {
        let ranges: Vec<_> = self.checked.differences.iter().map(|d| d.range).collect();
        let left = views
            .iter()
            .map(|view| not_by_mounting(&view.over(card), card, &ranges))
            .min_by_key(Vec::len);
        let left: HashSet<_> = left
            .into_iter()
            .flatten()
            .map(|range| range.start)
            .collect();
        self.checked.differences.retain(|difference| {
            let stays = left.contains(&difference.range.start);
            if !stays {
                self.checked.mounted_since.push(difference.range);
            }
            stays
        });
    }
}

/// Plans the expansions that may have made the card out of `before`, what the image has where they differ.
fn expansions(card: &dyn ReadAt, before: &Overlay) -> Vec<Overlay> {
    // Grown to the end, or to the size that it has now.
    let table = PartitionTable::read(card).ok().flatten();
    let last = table.and_then(|table| table.partitions().last().map(|p| p.range.len()));
    let sizes = std::iter::once(ExpandTo::Max).chain(last.map(ExpandTo::Size));
    sizes
        .filter_map(|size| ExpandPlan::new(&before.over(card), size).ok())
        .filter(|plan| !plan.is_nothing())
        .map(|plan| before.then(&plan.flat(card.len())))
        .collect()
}

/// Has the card in `range` what `view` has there?
fn is_as(view: &Overlay, card: &dyn ReadAt, range: ByteRange) -> bool {
    let len = range.len() as usize;
    let seen = card.read_vec_at(range.start, len);
    let expected = view.over(card).read_vec_at(range.start, len);
    matches!((seen, expected), (Ok(seen), Ok(expected)) if seen == expected)
}
