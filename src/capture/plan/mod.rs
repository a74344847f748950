//! What the image will be: which bytes, from where, and what changes on the way.
//!
//! Decisions: an image always holds everything before the first partition (boot loaders live
//! there) and the partition table; of each partition what its filesystem uses; nothing else.
//! The last partition by position that is neither swap nor FAT is the one that shrinks, if it is
//! ext; the swap and FAT partitions behind it move down.

use crate::capture::layout::{Outside, can_move, closed_up, lay_out, shrinking};
use crate::capture::left_out;
use crate::capture::part::{
    Part, Watched, content, hinted, identify, is_kept, place, saves_all, summarise,
};
use crate::capture::summary::{CapturePlan, PartitionSummary, PlanOptions, Summary};
use crate::codec::foreign;
use crate::error::{Error, ErrorKind, Result};
use crate::ext4::Target;
use crate::io::{Overlay, RangeSet, ReadAt, Window};
use crate::partition::{Iso, PartitionTable};
use crate::progress::{Phase, Progress};
use crate::units::{ByteRange, human_bytes};
use crate::volume::{Content, Volume};

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
    let planned = match (Iso::find(source)?, PartitionTable::read(source)) {
        (Some(iso), table) if !saves_all(options) => plan_iso(source, iso, table.ok().flatten()),
        (_, Ok(Some(table))) => plan_disk(source, &table, options),
        (_, Ok(None)) => plan_bare(source, options),
        (_, Err(error)) if error.kind() != ErrorKind::Cancelled && saves_all(options) => {
            plan_unreadable(source, &error)
        }
        (_, Err(error)) => Err(hinted(error.within("the partition table"), options)),
    }?;
    progress.finished(Phase::Check)?;
    Ok(planned)
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
    let left_out = left_out::notes(source, table, &parts, &contents);
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
        let window = Window::new(source, part.range)?;
        let patches = part
            .volume
            .moved(&window, part.range.start, range.start)
            .map_err(|error| hinted(error, options))?;
        place(
            &mut overlay,
            &mut mapped,
            content,
            patches,
            part.range,
            *range,
        );
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
    summary.notes.extend(left_out);
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

/// Plans for an ISO image on a stick: up to its end as it is, since places within it are named by
/// number, and what the tables say of it overlaps.
fn plan_iso(source: &Watched, iso: Iso, table: Option<PartitionTable>) -> Result<CapturePlan> {
    let part = Part {
        number: 0,
        part_uuid: None,
        range: ByteRange::new(0, source.len()),
        volume: Volume::iso(iso.label),
    };
    let range = ByteRange::new(0, iso.end);
    let mut overlay = Overlay::new(iso.end);
    let mut mapped = RangeSet::new();
    let mut content = Content::whole(iso.end);
    place(
        &mut overlay,
        &mut mapped,
        &mut content,
        Vec::new(),
        range,
        range,
    );
    let note = "an ISO image that is a disk as well: it is copied as it is, nothing is shrunk";
    let mut summary = without_table(source, summarise(part, content, range), note.into());
    if let Some(table) = table {
        summary.table = Some(table.kind());
        summary.sector_size = table.sector_size();
        summary.disk_id = Some(table.disk_id());
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
    if part.volume.is_unknown() && !saves_all(options) && !has_boot_sector(source)? {
        let error = Error::unsupported(
            "there is neither a partition table nor a filesystem that is known: it may be no image of a disk",
        );
        return Err(hinted(error, options));
    }
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
    place(
        &mut overlay,
        &mut mapped,
        &mut content,
        Vec::new(),
        range,
        new_range,
    );
    let note = match &part.volume {
        _ if part.volume.is_unknown() => {
            "there is no partition table, and no filesystem that is known: all of it is copied"
        }
        _ => "there is no partition table: one filesystem takes up all of it",
    };
    let mut summary = without_table(source, summarise(part, content, new_range), note.into());
    summary.notes.extend(kept);
    Ok(finish(overlay, mapped, summary))
}

/// Does the disk begin with what a PC starts?
fn has_boot_sector(source: &Watched) -> Result<bool> {
    let mut mark = [0; 2];
    if source.len() < 512 {
        return Ok(false);
    }
    source.read_exact_at(510, &mut mark)?;
    Ok(mark == [0x55, 0xaa])
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
    place(
        &mut overlay,
        &mut mapped,
        &mut content,
        Vec::new(),
        range,
        range,
    );
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

#[cfg(test)]
mod tests;
