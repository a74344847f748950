//! `pishrink inspect`: what is on a card.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use super::args::Inspect;
use super::capture::{Opened, about, note_sectors, plan_text};
use super::exit::Exit;
use super::render::{Screen, clean};
use crate::capture::{PartitionSummary, PlanOptions, Summary};
use crate::device::{SourceOptions, safety::sanitize};
use crate::error::Result;
use crate::inspect::{Cell, Inspection, inspect};
use crate::io::ReadAt;
use crate::partition::TableKind;
use crate::units::human_bytes;
use crate::volume::Facts;

/// Characters of the picture.
const WIDTH: usize = 72;

pub fn run(args: &Inspect, screen: &Screen) -> Result<Exit> {
    let source_options = SourceOptions {
        allow_mounted: args.allow_mounted,
    };
    let opened = Opened::open(&args.source, &source_options, None, screen)?;
    let options = PlanOptions {
        headroom: args.headroom,
        ..PlanOptions::default()
    };
    let source: Arc<dyn ReadAt> = opened.file.clone();
    let mut inspection =
        inspect(&source, &options, WIDTH, screen).map_err(|error| about(&args.source, error))?;
    note_sectors(&mut inspection.plan, &opened.file);
    // What is drawn is drawn here; numbers say more to a program.
    let object = serde_json::to_value(&inspection)
        .map_err(|error| crate::error::Error::internal("writing JSON").with_source(error))?;
    screen.result(&text(&args.source, &inspection), &object);
    Ok(match inspection.problem {
        Some(_) => Exit::Unsound,
        None => Exit::Done,
    })
}

fn text(path: &Path, inspection: &Inspection) -> String {
    let plan = &inspection.plan;
    let mut text = format!(
        "{}: {}, {}\n",
        clean(&path.display().to_string()),
        human_bytes(plan.source_bytes),
        table(plan)
    );
    for part in &plan.partitions {
        partition(&mut text, part);
    }
    let bar: String = inspection.picture.iter().map(draw).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "[{bar}]");
    let _ = writeln!(
        text,
        " \u{2588}\u{2593}\u{2592}\u{2591} used   \u{bb}\u{203a} used, moves   \u{2261} metadata   \u{b7} free"
    );
    if let Some(system) = &inspection.system {
        let unknown = || "unknown".to_owned();
        let name = system.name.as_deref().map_or_else(unknown, sanitize);
        let host = system.hostname.as_deref().map_or_else(unknown, sanitize);
        let _ = writeln!(text, "system: {name}, hostname {host}");
    } else {
        let _ = writeln!(text, "system: unknown");
    }
    if let Some(cmdline) = &inspection.cmdline {
        let _ = writeln!(text, "cmdline.txt: {cmdline}");
    }
    match &inspection.problem {
        None => {
            let _ = write!(text, "capture would make: {}", plan_text(plan));
        }
        Some(problem) => {
            let _ = writeln!(text, "capture would refuse: {problem}");
        }
    }
    text
}

fn table(plan: &Summary) -> String {
    match (plan.table, &plan.disk_id) {
        (Some(kind), Some(id)) => {
            let kind = match kind {
                TableKind::Mbr => "MBR",
                TableKind::Gpt => "GPT",
            };
            format!("{kind}, id {id}, sectors of {} bytes", plan.sector_size)
        }
        _ => "no partition table".into(),
    }
}

fn partition(text: &mut String, part: &PartitionSummary) {
    let facts = &part.facts;
    let label = match &part.label {
        Some(label) => format!(" {:?}", sanitize(label)),
        None => String::new(),
    };
    let usage = match facts.opaque {
        true => String::new(),
        false => format!(
            ", {} of {} used",
            human_bytes(facts.used),
            human_bytes(facts.total)
        ),
    };
    let state = match (facts.clean, facts.opaque) {
        (true, true) => String::new(),
        (true, false) => ", clean".into(),
        (false, true) => ", NOT SOUND".into(),
        (false, false) if recovers(facts) => format!(", needs recovery{}", pending(facts)),
        (false, false) => ", not cleanly unmounted".into(),
    };
    let _ = writeln!(
        text,
        "{:>3}  {}{label}, {} at byte {}{usage}{state}",
        part.number,
        part.filesystem,
        human_bytes(part.range.len()),
        part.range.start
    );
    let ids: Vec<_> = [("UUID", &part.uuid), ("PARTUUID", &part.part_uuid)]
        .into_iter()
        .filter_map(|(name, id)| Some(format!("{name}={}", sanitize(id.as_deref()?))))
        .collect();
    if !ids.is_empty() {
        let _ = writeln!(text, "     {}", ids.join("  "));
    }
    if let Some(ext) = &facts.ext {
        let _ = writeln!(text, "     {}", ext.features.join(" "));
    }
}

/// Is there something to replay or to finish, and not only a mark?
fn recovers(facts: &Facts) -> bool {
    facts.ext.as_ref().is_some_and(|ext| {
        ext.orphans_deleted + ext.orphans_truncated > 0
            || ext.features.iter().any(|name| name == "needs_recovery")
    })
}

/// What waits in the journal.
fn pending(facts: &Facts) -> String {
    let Some(ext) = &facts.ext else {
        return String::new();
    };
    let kinds = [
        (ext.transactions_replayed, "transactions"),
        (ext.fast_commits_replayed, "fast commits"),
    ];
    let waiting: Vec<_> = kinds
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect();
    match waiting.is_empty() {
        true => String::new(),
        false => format!(" ({} in the journal)", waiting.join(", ")),
    }
}

fn draw(cell: &Cell) -> char {
    let busy = cell.used + cell.moved + cell.metadata;
    // A trace of something is not nothing.
    if busy == 0 {
        return '\u{b7}';
    }
    let share = busy * 4 / cell.total.max(1);
    if cell.moved >= cell.used.max(cell.metadata) {
        return if share == 0 { '\u{203a}' } else { '\u{bb}' };
    }
    if cell.metadata > cell.used {
        return '\u{2261}';
    }
    match share {
        0 => '\u{2591}',
        1 => '\u{2592}',
        2 => '\u{2593}',
        _ => '\u{2588}',
    }
}
