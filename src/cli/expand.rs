//! `pishrink expand`: the last partition of a card or an image, and its filesystem, grow in place.

use std::fmt::Write;

use serde_json::json;

use super::args::{self, Expand};
use super::capture::about;
use super::card::{self, OpenCard, Permissions};
use super::exit::Exit;
use super::flash::grown;
use super::render::Screen;
use crate::codec::foreign;
use crate::device::{self, SourceOptions};
use crate::error::{Error, Result};
use crate::flash::{Card, ExpandPlan, ExpandTo, Expansion};
use crate::partition::PartitionTable;
use crate::units::human_bytes;

pub fn run(args: &Expand, screen: &Screen) -> Result<Exit> {
    let to = match args.size {
        args::Expansion::Size(size) => ExpandTo::Size(size),
        args::Expansion::Max => ExpandTo::Max,
        args::Expansion::None => {
            return Err(Error::usage("to expand to none makes no sense"));
        }
    };
    if args.dry_run {
        let source = device::open_source(&args.target, &SourceOptions::default())?;
        foreign::refuse_disk(&source).map_err(|error| about(&args.target, error))?;
        let plan = ExpandPlan::new(&source, to)?;
        screen.result(
            &describe(plan.summary()),
            &json!({ "plan": plan.summary() }),
        );
        return Ok(Exit::Done);
    }
    let permissions = Permissions {
        yes: args.yes,
        allow_any_device: args.allow_any_device,
        // What it does is done in place, and loses nothing.
        files: true,
        needed: &[],
    };
    let targets = card::judge(std::slice::from_ref(&args.target), &permissions)?;
    let devices: Vec<_> = targets
        .iter()
        .filter(|target| matches!(target, device::Target::Device(_)))
        .collect();
    let what = "Its last partition will grow in place.";
    card::confirm(&devices, what, &permissions, screen)?;
    let _awake = (!devices.is_empty()).then(device::stay_awake);
    let mut card = card::open(&targets[0], screen)?;
    card.watch = Some(screen.watch(&args.target.display().to_string()));
    let expanded = foreign::refuse_disk(&card)
        .and_then(|()| check_sectors(&card, args))
        .map_err(|error| about(&args.target, error))
        .and_then(|()| ExpandPlan::new(&card, to));
    let expanded = expanded.and_then(|plan| match plan.is_nothing() {
        true => Ok(plan.summary().clone()),
        false => plan.run(&card, screen),
    });
    let ejected = match expanded.is_ok() && !args.no_eject {
        true => card::eject(card, screen),
        false => {
            card::release(card, screen);
            false
        }
    };
    let expanded = expanded?;
    screen.result(
        &describe(&expanded),
        &json!({ "expansion": expanded, "ejected": ejected }),
    );
    Ok(Exit::Done)
}

/// Refuses a table that the system does not see as it was meant.
fn check_sectors(card: &OpenCard, args: &Expand) -> Result<()> {
    let (Some(sector), false) = (card.sector_size(), args.allow_sector_size) else {
        return Ok(());
    };
    match PartitionTable::read(card) {
        Ok(Some(table)) => table.check_device(sector),
        // What is no table, or a damaged one, is judged by the plan.
        _ => Ok(()),
    }
}

fn describe(expansion: &Expansion) -> String {
    let mut text = String::new();
    if let Some(number) = expansion.partition {
        // Writing to a String cannot fail.
        let _ = write!(text, "partition {number}: ");
    }
    let _ = writeln!(text, "{}", grown(expansion));
    if !expansion.moved.is_empty() {
        let moved: Vec<_> = expansion.moved.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "moved to the end: partition {}", moved.join(", "));
    }
    if expansion.written > 0 {
        let _ = writeln!(
            text,
            "{} written and read back",
            human_bytes(expansion.written)
        );
    }
    for note in &expansion.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}
