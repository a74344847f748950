//! What the image will be: which bytes, from where, and what changes on the way.
//!
//! Decisions: an image always holds everything before the first partition (boot loaders live
//! there) and the partition table; of each partition what its filesystem uses; nothing else.
//! The last partition by position that is neither swap nor FAT is the one that shrinks, if it is
//! ext; the swap and FAT partitions behind it move down.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::capture::rescue::{Forgiving, Rescue};
use crate::codec::foreign;
use crate::error::{Error, ErrorKind, Result};
use crate::ext4::Target;
use crate::io::{Overlay, RangeSet, ReadAt, Window, check_range};
use crate::partition::{DiskLen, Layout, PartitionTable, TableKind};
use crate::progress::{Event, Phase, Progress};
use crate::units::{ByteRange, human_bytes, round_up};
use crate::volume::{Content, Facts, Volume};

/// A moved partition starts at a multiple of what its old start was a multiple of, within these.
const LEAST_ALIGNMENT: u64 = 4096;
const MOST_ALIGNMENT: u64 = 1 << 20;

/// Of what could not be read, so much is named in a note.
const NAMED: usize = 3;

/// What is wanted of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlanOptions {
    /// Free bytes to leave in the shrunk filesystem, over its minimum.
    pub headroom: u64,
    /// Shrink the last partition; else every size stays, and so does the card's length.
    pub shrink: bool,
    /// Copy filesystems that are not sound whole, instead of refusing them.
    pub force_raw: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            headroom: 32 << 20,
            shrink: true,
            force_raw: false,
        }
    }
}

/// An image, planned down to the byte.
#[derive(Clone, Debug)]
pub struct CapturePlan {
    /// The image over the source. What is not in `mapped` is zeros.
    pub overlay: Overlay,
    /// Bytes of the image that a card must hold.
    pub mapped: RangeSet,
    pub summary: Summary,
}

/// What a user is told about the plan.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub source_bytes: u64,
    pub image_bytes: u64,
    /// Bytes of the image that are not known to be free.
    pub mapped_bytes: u64,
    /// Of these, how many belong to what is copied whole, and may be zeros.
    pub opaque_bytes: u64,
    /// `None`: a filesystem without a table.
    pub table: Option<TableKind>,
    pub sector_size: u64,
    pub disk_id: Option<String>,
    pub partitions: Vec<PartitionSummary>,
    pub notes: Vec<String>,
}

/// What a user is told about a partition. Labels and names are untrusted text.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionSummary {
    /// 0 for a filesystem without a table.
    pub number: u32,
    pub part_uuid: Option<String>,
    pub range: ByteRange,
    pub new_range: ByteRange,
    pub filesystem: String,
    pub label: Option<String>,
    pub uuid: Option<String>,
    #[serde(flatten)]
    pub facts: Facts,
    /// Its filesystem was made smaller.
    pub shrunk: bool,
}

/// A partition, or a disk without a table, and what it holds.
struct Part {
    number: u32,
    part_uuid: Option<String>,
    range: ByteRange,
    volume: Volume,
}

impl CapturePlan {
    /// Returns the image's length in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.overlay.len()
    }
}

/// Plans the image of `source`, which is only read.
///
/// # Errors
/// `Unsound` if the table or a filesystem is damaged, naming it; `Unsupported` for a disk without
/// partitions; `Cancelled` from `progress`; what the source fails with.
pub fn plan(
    source: &dyn ReadAt,
    options: &PlanOptions,
    progress: &dyn Progress,
) -> Result<CapturePlan> {
    let source = &Watched::new(source, progress);
    if source.is_empty() {
        return Err(Error::unsound("the source is empty"));
    }
    if !saves_all(options) {
        foreign::refuse_disk(source)?;
    }
    progress.started(Phase::Check, None)?;
    let planned = match PartitionTable::read(source) {
        Ok(Some(table)) => plan_disk(source, &table, options),
        Ok(None) => plan_bare(source, options),
        Err(error) if error.kind() != ErrorKind::Cancelled && saves_all(options) => {
            plan_unreadable(source, &error)
        }
        Err(error) => Err(hinted(error.within("the partition table"), options)),
    }?;
    progress.finished(Phase::Check)?;
    Ok(planned)
}

/// Is every block wanted, whatever it means?
fn saves_all(options: &PlanOptions) -> bool {
    options.force_raw && !options.shrink
}

/// Says how to get past a read error, or past what has no better advice.
fn hinted(error: Error, options: &PlanOptions) -> Error {
    let hint = match error.kind() {
        _ if saves_all(options) => return error,
        ErrorKind::Io => "--no-shrink --force-raw saves every block that can be read",
        ErrorKind::Unsound | ErrorKind::Unsupported if error.hint().is_none() => {
            "--no-shrink --force-raw saves every block"
        }
        _ => return error,
    };
    error.with_hint(hint)
}

fn plan_disk(
    source: &Watched,
    table: &PartitionTable,
    options: &PlanOptions,
) -> Result<CapturePlan> {
    let mut parts = Vec::new();
    for (index, partition) in table.partitions().iter().enumerate() {
        parts.push(Part {
            number: partition.number,
            part_uuid: table.part_uuid(index),
            range: partition.range,
            volume: identify(&Window::new(source, partition.range)?, options)
                .map_err(|error| error.within(format!("partition {}", partition.number)))?,
        });
    }
    let Some(first) = parts.first() else {
        let error = Error::unsupported(
            "the partition table has no partitions: there is nothing to capture",
        );
        return match saves_all(options) {
            true => plan_unreadable(source, &error),
            false => Err(hinted(error, options)),
        };
    };
    let before_first = first.range.start;
    let shrinks = if options.shrink {
        shrinking(&parts)
    } else {
        None
    };
    let mut contents = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let target = match shrinks == Some(index) {
            true => Target::Headroom(options.headroom),
            false => Target::Keep,
        };
        contents.push(content(part, source, target, options)?);
    }
    let mut ranges: Vec<_> = parts.iter().map(|part| part.range).collect();
    let mut stay = None;
    let (mut overlay, tables) = if options.shrink {
        let wanted = match shrinks {
            Some(index) => closed_up(table, &parts, index, &contents[index])?,
            None => ranges.clone(),
        };
        let outside = Outside {
            source,
            parts: parts
                .iter()
                .map(|part| part.range.start..part.range.end)
                .collect(),
        };
        let layout;
        (ranges, layout, stay) = lay_out(table, &outside, &ranges, wanted, shrinks)?;
        (layout.overlay, layout.table.table_ranges())
    } else {
        (Overlay::new(source.len()), table.table_ranges())
    };
    let mut mapped = RangeSet::new();
    mapped.insert(0..before_first);
    for range in tables {
        mapped.insert(range.start..range.end);
    }
    for ((part, content), range) in parts.iter().zip(&mut contents).zip(&ranges) {
        place(&mut overlay, &mut mapped, content, part.range, *range);
    }
    let mut summary = Summary {
        source_bytes: source.len(),
        image_bytes: 0,
        mapped_bytes: 0,
        opaque_bytes: 0,
        table: Some(table.kind()),
        sector_size: table.sector_size(),
        disk_id: Some(table.disk_id()),
        partitions: Vec::new(),
        notes: table.warnings().to_vec(),
    };
    summary.notes.extend(stay);
    match shrinks {
        Some(index) => {
            let note = why_kept(&parts[index], &contents[index], options);
            summary.notes.extend(note);
        }
        None if options.shrink => summary.notes.push(why_not(&parts)),
        None => {}
    }
    for ((part, content), range) in parts.into_iter().zip(contents).zip(ranges) {
        summary.partitions.push(summarise(part, content, range));
    }
    Ok(finish(overlay, mapped, summary))
}

fn plan_bare(source: &Watched, options: &PlanOptions) -> Result<CapturePlan> {
    let range = ByteRange::new(0, source.len());
    let part = Part {
        number: 0,
        part_uuid: None,
        range,
        volume: identify(source, options)?,
    };
    let shrinks = options.shrink && matches!(part.volume, Volume::Ext(_));
    let target = match shrinks {
        true => Target::Headroom(options.headroom),
        false => Target::Keep,
    };
    let mut content = content(&part, source, target, options)?;
    let kept = match shrinks {
        true => why_kept(&part, &content, options),
        false => None,
    };
    let len = match shrinks {
        true => content.overlay.len(),
        false => source.len(),
    };
    let new_range = ByteRange::new(0, len);
    let mut overlay = Overlay::new(len);
    let mut mapped = RangeSet::new();
    place(&mut overlay, &mut mapped, &mut content, range, new_range);
    let note = match &part.volume {
        Volume::Opaque(_) if part.volume.name() == "unknown" => {
            "there is no partition table, and no filesystem that is known: all of it is copied"
        }
        _ => "there is no partition table: one filesystem takes up all of it",
    };
    let mut summary = without_table(source, summarise(part, content, new_range), note.into());
    summary.notes.extend(kept);
    Ok(finish(overlay, mapped, summary))
}

/// Plans to save what can be read, without knowing where what lies, as `error` says.
fn plan_unreadable(source: &Watched, error: &Error) -> Result<CapturePlan> {
    let range = ByteRange::new(0, source.len());
    let part = Part {
        number: 0,
        part_uuid: None,
        range,
        volume: match error.kind() {
            ErrorKind::Io => Volume::unreadable(),
            _ => Volume::unknown(),
        },
    };
    let mut content = part.volume.content(source, Target::Keep)?;
    let mut overlay = Overlay::new(source.len());
    let mut mapped = RangeSet::new();
    place(&mut overlay, &mut mapped, &mut content, range, range);
    let note = format!("saved block by block: {}", error.one_line());
    let summary = without_table(source, summarise(part, content, range), note);
    Ok(finish(overlay, mapped, summary))
}

/// Sums up a disk that one volume takes up whole.
fn without_table(source: &Watched, volume: PartitionSummary, note: String) -> Summary {
    Summary {
        source_bytes: source.len(),
        image_bytes: 0,
        mapped_bytes: 0,
        opaque_bytes: 0,
        table: None,
        sector_size: 512,
        disk_id: None,
        partitions: vec![volume],
        notes: vec![note],
    }
}

fn identify(device: &dyn ReadAt, options: &PlanOptions) -> Result<Volume> {
    match Volume::identify(device) {
        Err(error) if error.kind() == ErrorKind::Io && options.force_raw => {
            Ok(Volume::unreadable())
        }
        other => other.map_err(|error| hinted(error, options)),
    }
}

/// Returns which partition shrinks: the last one that does not move for another, if it is ext.
fn shrinking(parts: &[Part]) -> Option<usize> {
    let index = parts.iter().rposition(|part| !can_move(part))?;
    matches!(parts[index].volume, Volume::Ext(_)).then_some(index)
}

fn can_move(part: &Part) -> bool {
    part.volume.moves_for_others(part.range.len())
}

fn why_not(parts: &[Part]) -> String {
    match parts.iter().rfind(|part| !can_move(part)) {
        Some(part) => format!(
            "nothing is shrunk: the last partition that could be, number {}, holds {}, not ext",
            part.number,
            part.volume.name()
        ),
        None => "nothing is shrunk: there is no ext2, ext3 or ext4 partition".into(),
    }
}

/// Says why a filesystem that could be made smaller was not, if nothing else says so.
fn why_kept(part: &Part, content: &Content, options: &PlanOptions) -> Option<String> {
    let ext = content.facts.ext.as_ref()?;
    if is_kept(content) || ext.new_total < content.facts.total {
        return None;
    }
    let what = match part.number {
        0 => "the filesystem".to_owned(),
        number => format!("partition {number}"),
    };
    Some(match options.headroom {
        0 => format!("{what} is as small as it can be"),
        headroom => format!(
            "{what} keeps its size: over its minimum it has less than the {} of --headroom",
            human_bytes(headroom)
        ),
    })
}

fn content(
    part: &Part,
    source: &Watched,
    target: Target,
    options: &PlanOptions,
) -> Result<Content> {
    let window = Window::new(source, part.range)?;
    let failed = match part.volume.content(&window, target) {
        Ok(mut content) => {
            if let Some(lost) = &mut content.facts.unreadable {
                *lost = source.names_in(part);
            }
            return Ok(content);
        }
        Err(error) => error,
    };
    match failed.kind() {
        ErrorKind::Unsound | ErrorKind::Io if options.force_raw => {
            let mut content = Content::whole(window.len());
            content.facts.clean = false;
            let note = format!("saved block by block: {}", failed.one_line());
            content.facts.notes.push(note);
            return Ok(content);
        }
        _ => {}
    }
    let failed = match failed.kind() {
        ErrorKind::Io => hinted(failed.within(source.names_in(part)), options),
        _ => failed,
    };
    if part.number == 0 {
        return Err(failed);
    }
    let label = part.volume.label().map(|label| format!(" {label:?}"));
    let label = label.unwrap_or_default();
    let name = part.volume.name();
    Err(failed.within(format!("partition {} ({name}{label})", part.number)))
}

/// Returns the places of all partitions when the one at `index` ends with `shrunk`, and those
/// behind it follow.
fn closed_up(
    table: &PartitionTable,
    parts: &[Part],
    index: usize,
    shrunk: &Content,
) -> Result<Vec<ByteRange>> {
    let unit = table.sector_size();
    let too_far = || Error::internal("a partition would end beyond 2^64");
    let mut end = 0;
    let mut ranges = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let range = if at < index || (at == index && is_kept(shrunk)) {
            part.range
        } else if at == index {
            let len = round_up(shrunk.overlay.len(), unit).ok_or_else(too_far)?;
            ByteRange::at(part.range.start, len.min(part.range.len())).ok_or_else(too_far)?
        } else {
            let alignment = 1 << part.range.start.trailing_zeros().min(63);
            let alignment = unit.max(u64::clamp(alignment, LEAST_ALIGNMENT, MOST_ALIGNMENT));
            let start = round_up(end + table.lead_in(at), alignment).ok_or_else(too_far)?;
            let start = start.min(part.range.start);
            ByteRange::at(start, part.range.len()).ok_or_else(too_far)?
        };
        end = range.end;
        ranges.push(range);
    }
    Ok(ranges)
}

/// Computes the table of partitions at `wanted` places. Where the table cannot have that, the
/// partitions behind the one that shrinks stay, or all do, and a note says so.
fn lay_out(
    table: &PartitionTable,
    source: &dyn ReadAt,
    old: &[ByteRange],
    wanted: Vec<ByteRange>,
    shrinks: Option<usize>,
) -> Result<(Vec<ByteRange>, Layout, Option<String>)> {
    let try_at = |ranges: &[ByteRange]| {
        let changes: Vec<_> = ranges.iter().copied().enumerate().collect();
        table.relayout(source, &changes, DiskLen::Minimal)
    };
    let error = match try_at(&wanted) {
        Ok(layout) => return Ok((wanted, layout, None)),
        Err(error) => error,
    };
    if let (Some(index), ErrorKind::Usage | ErrorKind::Unsupported) = (shrinks, error.kind()) {
        let mut staying = old.to_vec();
        staying[index] = wanted[index];
        for ranges in [staying, old.to_vec()] {
            if let Ok(layout) = try_at(&ranges) {
                let note = format!("partitions keep their places: {}", error.one_line());
                return Ok((ranges, layout, Some(note)));
            }
        }
    }
    Err(error)
}

/// Does the filesystem keep its size because of its features or of lost metadata?
fn is_kept(content: &Content) -> bool {
    content.facts.unreadable.is_some()
        || content
            .facts
            .ext
            .as_ref()
            .is_none_or(|ext| !ext.features_in_the_way.is_empty())
}

/// Puts what came from `old` at `new`; of the content, only the facts are left.
fn place(
    overlay: &mut Overlay,
    mapped: &mut RangeSet,
    content: &mut Content,
    old: ByteRange,
    new: ByteRange,
) {
    let part = std::mem::replace(&mut content.overlay, Overlay::new(0));
    overlay.place(part, new.start, old.start);
    for range in std::mem::take(&mut content.stored).iter() {
        mapped.insert(new.start + range.start..new.start + range.end);
    }
}

fn summarise(part: Part, content: Content, new_range: ByteRange) -> PartitionSummary {
    PartitionSummary {
        number: part.number,
        part_uuid: part.part_uuid,
        range: part.range,
        new_range,
        filesystem: part.volume.name(),
        label: part.volume.label(),
        uuid: part.volume.uuid(),
        shrunk: new_range.len() < part.range.len(),
        facts: content.facts,
    }
}

fn finish(mut overlay: Overlay, mapped: RangeSet, mut summary: Summary) -> CapturePlan {
    let len = overlay.len();
    for gap in mapped.gaps(0..len) {
        overlay.set_zero(gap);
    }
    let opaque = summary.partitions.iter().filter(|part| part.facts.opaque);
    summary.opaque_bytes = opaque.map(|part| part.range.len()).sum();
    summary.image_bytes = len;
    summary.mapped_bytes = mapped.total();
    CapturePlan {
        overlay,
        mapped,
        summary,
    }
}

impl Summary {
    /// Returns the most that a sparse image takes up on its disk, as far as that is known.
    pub fn room_needed(&self) -> u64 {
        self.mapped_bytes.saturating_sub(self.opaque_bytes)
    }

    /// Returns card and image size in a few words.
    pub fn sizes(&self) -> String {
        format!(
            "{} -> {}",
            human_bytes(self.source_bytes),
            human_bytes(self.image_bytes)
        )
    }
}

/// A source whose partitions seem empty: what lies in them is no part of a table, wherever the
/// image ends, and is not read for it.
struct Outside<'a> {
    source: &'a dyn ReadAt,
    parts: RangeSet,
}

impl ReadAt for Outside<'_> {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len(), offset, buf.len() as u64)?;
        buf.fill(0);
        for gap in self.parts.gaps(offset..offset + buf.len() as u64) {
            let part = (gap.start - offset) as usize..(gap.end - offset) as usize;
            self.source.read_exact_at(gap.start, &mut buf[part])?;
        }
        Ok(())
    }
}

/// A source whose every read asks whether to go on, since checking a filesystem takes seconds,
/// and is not given up at the first error.
struct Watched<'a> {
    source: &'a dyn ReadAt,
    progress: &'a dyn Progress,
    rescue: Mutex<Rescue<'a>>,
}

impl<'a> Watched<'a> {
    fn new(source: &'a dyn ReadAt, progress: &'a dyn Progress) -> Self {
        Self {
            source,
            progress,
            rescue: Mutex::new(Rescue::new(source, Phase::Check, progress)),
        }
    }

    fn rescue(&self) -> MutexGuard<'_, Rescue<'a>> {
        self.rescue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names what could not be read of a partition, in a few words.
    fn names_in(&self, part: &Part) -> String {
        let range = part.range.start..part.range.end;
        let unread = self.rescue().unread().ranges.clone();
        let within: RangeSet = unread
            .iter_within(range.clone())
            .map(|lost| lost.start - range.start..lost.end - range.start)
            .collect();
        let forgiving = Forgiving::new(self.source, unread, Phase::Check, self.progress);
        let names = Window::new(&forgiving as &dyn ReadAt, part.range)
            .and_then(|window| part.volume.owners(&window, &within));
        let mut names: Vec<String> = match names {
            Ok(names) => names.into_iter().map(|(_, name, _)| name).collect(),
            Err(_) => Vec::new(),
        };
        names.dedup();
        if names.len() > NAMED {
            let more = names.len() - NAMED;
            names.truncate(NAMED);
            names.push(format!("{more} more"));
        }
        match names.is_empty() {
            true => "metadata".into(),
            false => names.join(", "),
        }
    }
}

impl ReadAt for Watched<'_> {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.progress.event(Event::Advanced {
            phase: Phase::Check,
            bytes: buf.len() as u64,
        })?;
        let error = match self.source.read_exact_at(offset, buf) {
            Err(error) if error.kind() == ErrorKind::Io => error,
            done => return done,
        };
        let mut rescue = self.rescue();
        // Once more, so that the error is judged and counted.
        if rescue.attempt(offset, buf)? {
            return Ok(());
        }
        rescue.read(offset, buf)?;
        match rescue
            .unread()
            .ranges
            .intersects(offset..offset + buf.len() as u64)
        {
            true => Err(error),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
