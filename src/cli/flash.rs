//! `pishrink flash`: an image to one or several cards.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{self, Flash};
use super::capture::about;
use super::card::{self, OpenCard, Permissions};
use super::exit::Exit;
use super::image::{Image, Wishes};
use super::mistaken;
use super::render::{Screen, clean, error_object, human_seconds};
use crate::device::{self, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::flash::{self, CardReport, ExpandTo, Expansion, FlashPlan, Options, Slot};
use crate::units::human_bytes;

pub fn run(args: &Flash, screen: &Screen) -> Result<Exit> {
    let begun = Instant::now();
    mistaken::flash(&args.image, &args.targets, args.card_size.is_some())?;
    let wishes = Wishes {
        bmap: args.bmap.as_deref(),
        no_bmap: args.no_bmap,
        sha256: args.sha256,
    };
    let image = Image::find(&args.image, &wishes, screen)?;
    let permissions = Permissions {
        yes: args.yes,
        allow_any_device: args.allow_any_device,
        // Those that --card-size makes do not exist yet.
        files: args.overwrite || args.card_size.is_some(),
        needed: &image.files,
    };
    if let Some(path) = &image.path {
        // Before anything is asked, created or unmounted.
        std::fs::File::open(path)
            .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?;
    }
    let mut created = Created(Vec::new());
    if let Some(size) = args.card_size {
        for target in &args.targets {
            device::create_card_file(target, size / 512 * 512)?;
            created.0.push(target);
        }
    }
    let targets = card::judge(&args.targets, &permissions).map_err(not_there)?;
    if args.card_size.is_none() {
        let targets: Vec<_> = targets.iter().collect();
        if !args.yes {
            refuse_too_small(&image, &targets)?;
        }
        let lost = match targets.len() {
            1 => "it",
            _ => "them",
        };
        let what = format!(
            "You write: {}. Everything on {lost} will be lost.",
            image.name
        );
        card::confirm(&targets, &what, &permissions, screen)?;
    }
    let device = |target: &Target| matches!(target, Target::Device(_));
    let _awake = targets.iter().any(device).then(device::stay_awake);
    let cards: Vec<OpenCard> = targets
        .iter()
        .map(|target| card::open(target, screen))
        .collect::<Result<_>>()?;
    let reports = write(args, &image, &targets, &cards, screen);
    let done = |index: usize| {
        let reports = reports.as_ref();
        reports.is_ok_and(|reports| reports[index].published && reports[index].error.is_none())
    };
    let mut ejected = Vec::new();
    for (index, card) in cards.into_iter().enumerate() {
        ejected.push(match done(index) && !args.no_eject {
            true => card::eject(card, screen),
            false => {
                card::release(card, screen);
                false
            }
        });
    }
    let reports = reports.map_err(|error| about(Path::new(&image.name), error))?;
    let complete = |path: &Path| {
        let found = args.targets.iter().position(|target| target == path);
        found.is_some_and(|index| reports[index].published)
    };
    created.0.retain(|path| !complete(path));
    drop(created);
    let seconds = begun.elapsed().as_secs_f64();
    let text = table(&targets, &reports, seconds);
    screen.result(
        &text,
        &object(&image, &targets, &reports, &ejected, seconds),
    );
    let mut exit = Exit::Done;
    for (target, report) in targets.iter().zip(&reports) {
        let Some(error) = &report.error else { continue };
        screen.complain_of(&name(target), error);
        if exit == Exit::Done {
            exit = Exit::of(error);
        }
    }
    Ok(exit)
}

/// Files that stand for cards, and were created here; when dropped, they go again: half a card is
/// of no use to anybody.
struct Created<'a>(Vec<&'a Path>);

impl Drop for Created<'_> {
    fn drop(&mut self) {
        for path in &self.0 {
            // There is nobody to tell.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write(
    args: &Flash,
    image: &Image,
    targets: &[Target],
    cards: &[OpenCard],
    screen: &Screen,
) -> Result<Vec<CardReport>> {
    let names: Vec<_> = targets.iter().map(name).collect();
    let lanes: Vec<_> = names
        .iter()
        .map(|name| screen.lane(name, !args.no_verify))
        .collect();
    let slots: Vec<_> = cards
        .iter()
        .zip(&names)
        .zip(&lanes)
        .map(|((card, name), lane)| Slot {
            name: name.clone(),
            card,
            progress: lane,
        })
        .collect();
    let expand = match args.expand {
        args::Expansion::None => None,
        args::Expansion::Max => Some(ExpandTo::Max),
        args::Expansion::Size(size) => Some(ExpandTo::Size(size)),
    };
    let options = Options {
        verify: !args.no_verify,
        // A file has the room that it says.
        probe: targets
            .iter()
            .any(|target| matches!(target, Target::Device(_))),
        wipe: args.wipe,
        // Who does not expand may keep something behind the image.
        tail: expand.is_some() || args.wipe,
        expand,
        any_image: args.allow_any_image,
        any_sector_size: args.allow_sector_size,
        ..Options::default()
    };
    let mut reports = flash::flash(&*image.source, image.map.as_ref(), &slots, &options)?;
    for (report, lane) in reports.iter_mut().zip(&lanes) {
        report.written = report.written.max(lane.written());
        report.error = report.error.take().map(|error| left_as(report, error));
    }
    Ok(reports)
}

/// Says of a card whose flash was stopped what it is like.
fn left_as(report: &CardReport, error: Error) -> Error {
    if error.kind() != ErrorKind::Cancelled {
        return error;
    }
    match (report.published, report.written) {
        (true, _) => Error::new(
            ErrorKind::Cancelled,
            "stopped when it had the whole image, but was not expanded",
        )
        .with_hint("`pishrink expand` does the rest"),
        (false, written) => Error::new(
            ErrorKind::Cancelled,
            format!(
                "stopped after {}: this card does not boot",
                human_bytes(written)
            ),
        )
        .with_hint("flash it again"),
    }
}

/// Asks nobody about cards none of which the image fits on, as far as its size is known by now.
fn refuse_too_small(image: &Image, targets: &[&Target]) -> Result<()> {
    let Some(path) = &image.path else {
        return Ok(());
    };
    let len = image.source.open()?.len_hint();
    let about_image = |error| about(path, error);
    let plan = FlashPlan::new(len, image.map.as_ref()).map_err(about_image)?;
    let mut first = None;
    for target in targets {
        let size = match target {
            Target::Device(info) => info.size,
            Target::File(path) => std::fs::metadata(path).map_or(0, |meta| meta.len()),
        };
        match plan.check_fits(size, None) {
            Ok(()) => return Ok(()),
            Err(error) => first.get_or_insert(error.within(name(target))),
        };
    }
    first.map_or(Ok(()), Err)
}

/// Says what to name instead of a target that is not there.
fn not_there(error: Error) -> Error {
    match error.io_error() {
        Some(cause) if cause.kind() == std::io::ErrorKind::NotFound => error.with_hint(
            "`pishrink devices` lists the cards; --card-size creates a file that stands for one",
        ),
        _ => error,
    }
}

/// A target by the path that the user gave.
fn name(target: &Target) -> String {
    clean(&target.path().to_string_lossy())
}

/// One line for each card.
fn table(targets: &[Target], reports: &[CardReport], seconds: f64) -> String {
    let mut rows = vec![["card", "written", "read back", "expanded", "result"].map(String::from)];
    for (target, report) in targets.iter().zip(reports) {
        let read_back = match &report.verification {
            Some(found) if report.is_verified() => human_bytes(found.bytes),
            Some(found) => format!("{} places wrong", found.remaining.len()),
            None => "-".into(),
        };
        let expanded = report.expansion.as_ref().map(grown);
        rows.push([
            name(target),
            human_bytes(report.written),
            read_back,
            expanded.unwrap_or_else(|| "-".into()),
            outcome(report),
        ]);
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    for report in reports {
        for note in report.expansion.iter().flat_map(|grown| &grown.notes) {
            let _ = writeln!(text, "{note}");
        }
    }
    if reports.iter().filter(|report| report.published).count() > 1 {
        let _ = writeln!(
            text,
            "these cards are the same system: change host name, ssh host keys and \
             /etc/machine-id before they meet in one network"
        );
    }
    let _ = writeln!(text, "in {}", human_seconds(seconds));
    text
}

fn outcome(report: &CardReport) -> String {
    match (&report.error, report.published) {
        (None, _) if !report.contents_known => "written as it is: nothing known in it".into(),
        (None, _) if report.is_verified() => "good".into(),
        (None, _) => "written, not verified".into(),
        (Some(_), true) => "written, not expanded".into(),
        (Some(_), false) => "failed".into(),
    }
}

/// Says in a few words what grew.
pub(super) fn grown(expansion: &Expansion) -> String {
    match (expansion.new_filesystem, expansion.old_filesystem) {
        (Some(new), Some(old)) if new > old => {
            format!("{} to {}", expansion.filesystem, human_bytes(new))
        }
        _ if expansion.new_partition > expansion.old_partition => {
            format!("partition to {}", human_bytes(expansion.new_partition))
        }
        _ => "nothing to expand".into(),
    }
}

fn object(
    image: &Image,
    targets: &[Target],
    reports: &[CardReport],
    ejected: &[bool],
    seconds: f64,
) -> Value {
    let cards: Vec<_> = targets
        .iter()
        .zip(reports)
        .zip(ejected)
        .map(|((target, report), ejected)| {
            json!({
                "target": target.path().display().to_string(),
                "card_bytes": report.card_len,
                "image_bytes": report.image_len,
                "written_bytes": report.written,
                "discarded_bytes": report.discarded,
                "wiped_bytes": report.wiped,
                "verified": report.is_verified(),
                "complete": report.published,
                "ejected": ejected,
                "contents_known": report.contents_known,
                "verification": report.verification,
                "expansion": report.expansion,
                "error": report.error.as_ref().map(error_object),
            })
        })
        .collect();
    json!({ "image": image.name, "cards": cards, "seconds": seconds })
}
