//! `pishrink capture`: a card or raw image in, a small image out.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::Capture;
use super::download::is_url;
use super::exit::Exit;
use super::mistaken;
use super::render::{Screen, clean, human_seconds};
use super::watch::Watched;
use crate::capture::{
    self, CapturePlan, Captured, ImagePaths, PartitionSummary, PlanOptions, Rescued, RunOptions,
    Sink, Summary, Unpacked,
};
use crate::codec::{Codec, foreign};
use crate::device::{self, SourceFile, SourceOptions, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::units::human_bytes;

/// Of the places that could not be read, so many are named on a terminal.
const LOSSES_SHOWN: usize = 30;

pub fn run(args: &Capture, screen: &Screen) -> Result<Exit> {
    let begun = Instant::now();
    if args.image != Path::new("-") {
        mistaken::capture(&args.source, &args.image)?;
    }
    let codec = codec(args)?;
    let paths = (args.image != Path::new("-")).then(|| ImagePaths::new(&args.image));
    if args.resume {
        refuse_resume(paths.as_ref(), codec)?;
    }
    match &paths {
        Some(paths) if !args.dry_run => paths.check(args.force || args.resume)?,
        Some(_) => {}
        None if !args.dry_run && std::io::stdout().is_terminal() => {
            return Err(Error::usage("an image is nothing for a terminal")
                .with_hint("send it on with > or |, or name a file"));
        }
        None => screen.take_stdout(),
    }
    let source_options = SourceOptions {
        allow_mounted: args.allow_mounted,
    };
    let source = Opened::open(&args.source, &source_options, paths.as_ref(), screen)?;
    if !args.partition {
        refuse_partition(&source.file)?;
    }
    if let Some(paths) = &paths {
        refuse_own_output(&source.file, &args.source, paths)?;
        // A card is not read for minutes to learn that the image cannot be kept.
        if !args.dry_run {
            paths.check_writable(&device::SystemFiles)?;
        }
    }
    let watch = screen.watch(&text_of(&args.source));
    let watched = Watched {
        inner: &*source.file,
        watch: &watch,
    };
    let _awake = source.file.info().map(|_| device::stay_awake());
    let options = PlanOptions {
        headroom: args.headroom,
        shrink: !args.no_shrink,
        force_raw: args.force_raw,
    };
    let mut plan =
        capture::plan(&watched, &options, screen).map_err(|error| about(&args.source, error))?;
    note_sectors(&mut plan.summary, &source.file);
    if args.dry_run {
        let text = plan_text(&plan.summary);
        screen.result(&text, &json!({ "plan": plan.summary }));
        return Ok(Exit::Done);
    }
    let options = RunOptions {
        codec,
        level: args.level,
        threads: args.threads,
        with_bmap: paths.is_some() && !args.no_bmap,
    };
    if let Some(paths) = paths.as_ref().filter(|_| codec == Codec::Raw) {
        paths.check_length(&device::SystemFiles, plan.image_bytes())?;
    }
    let captured = || match &paths {
        Some(paths) if args.resume => {
            let (source, files) = (&watched, &device::SystemFiles);
            capture::capture_resuming(&plan, source, paths, &options, files, screen)
        }
        Some(paths) => {
            if paths.partial().exists() {
                let place = paths.partial();
                screen.say(&format!(
                    "{} of a run that did not finish is replaced",
                    place.display()
                ));
            }
            if codec == Codec::Raw {
                check_room(paths, plan.summary.room_needed())?;
            }
            let (source, files) = (&watched, &device::SystemFiles);
            capture::capture_to_file(&plan, source, paths, &options, args.force, files, screen)
        }
        None => {
            let mut sink = Sink::Stream(Box::new(std::io::stdout()));
            capture::run(&plan, &watched, &mut sink, &options, screen)
        }
    };
    let captured = captured().map_err(no_room)?;
    let seconds = begun.elapsed().as_secs_f64();
    let text = done_text(&plan, &captured, paths.as_ref(), codec, seconds);
    let object = done_object(&plan, &captured, paths.as_ref(), codec, seconds);
    screen.result(&text, &object);
    if let Some(info) = source.file.info().filter(|info| info.removable) {
        let place = info.path.display();
        screen.say(&format!(
            "{place}: nothing was written to it: take the card out"
        ));
    }
    if let Some(error) = &captured.besides {
        screen.complain(error);
        return Ok(Exit::of(error));
    }
    Ok(match &captured.rescued {
        Some(rescued) if rescued.unreadable_bytes > 0 => Exit::Losses,
        _ => Exit::Done,
    })
}

/// A source that can be read at any place; a packed one lies unpacked in a temporary file.
pub(super) struct Opened {
    pub(super) file: Arc<SourceFile>,
    /// Dropped, and with it the file removed, after `file` is closed.
    _unpacked: Option<Unpacked>,
}

impl Opened {
    pub(super) fn open(
        path: &Path,
        options: &SourceOptions,
        output: Option<&ImagePaths>,
        screen: &Screen,
    ) -> Result<Self> {
        if path.to_str().is_some_and(is_url) {
            return Err(Error::usage(format!("{} is on the web", text_of(path)))
                .with_hint("fetch it first; flash and verify do that themselves"));
        }
        let file = Arc::new(device::open_source(path, options)?);
        if file.info().is_some() || capture::packed_as(path)? == Codec::Raw {
            return Ok(Self {
                file,
                _unpacked: None,
            });
        }
        let beside = match output {
            Some(paths) => paths.image.clone(),
            None => std::env::temp_dir().join(format!("pishrink-{}", std::process::id())),
        };
        let unpacked = capture::unpack(path, &beside, &device::SystemFiles, screen)
            .map_err(|error| about(path, error))?;
        Ok(Self {
            file: Arc::new(device::open_source(unpacked.path(), options)?),
            _unpacked: Some(unpacked),
        })
    }
}

/// Notes that a device's own sectors are not those in which its table counts.
pub(super) fn note_sectors(summary: &mut Summary, source: &SourceFile) {
    let Some(device) = source.info().map(|info| u64::from(info.logical_block)) else {
        return;
    };
    let table = summary.sector_size;
    if summary.table.is_some() && table != device {
        summary.notes.push(format!(
            "the partition table counts in sectors of {table} bytes, and the device has sectors of \
             {device}: no system finds the partitions on it"
        ));
    }
}

/// Names the file that an error is about, if the error does not yet.
pub(super) fn about(file: &Path, error: Error) -> Error {
    let name = text_of(file);
    match error.kind() {
        ErrorKind::Cancelled => error,
        _ if error.one_line().contains(&name) => error,
        _ => error.within(name),
    }
}

fn codec(args: &Capture) -> Result<Codec> {
    if args.format.is_none() && foreign::is_promised(&args.image) {
        let name = text_of(&args.image);
        return Err(
            Error::usage(format!("{name} is named like a format that is not written"))
                .with_hint("name the image .img, .img.xz, .img.gz or .img.zst, or give --format"),
        );
    }
    let by_name = || Codec::from_extension(&args.image).unwrap_or(Codec::Raw);
    let codec = args.format.unwrap_or_else(by_name);
    if !codec.can_write() {
        return Err(Error::usage(format!("{codec} images are only read"))
            .with_hint("name the image .img, .img.xz, .img.gz or .img.zst"));
    }
    if let Some(level) = args.level
        && !codec.levels().contains(&level)
    {
        let levels = codec.levels();
        let (least, most) = (levels.start(), levels.end());
        return Err(Error::usage(match codec {
            Codec::Raw => "raw images have no level".to_owned(),
            _ => format!("{codec} has levels {least} to {most}, not {level}"),
        }));
    }
    Ok(codec)
}

/// Refuses to go on with what cannot be changed once it is written.
fn refuse_resume(paths: Option<&ImagePaths>, codec: Codec) -> Result<()> {
    if paths.is_none() {
        return Err(Error::usage(
            "--resume needs an image file: what went to standard output is gone",
        )
        .with_hint("name an .img file"));
    }
    if codec != Codec::Raw {
        return Err(Error::usage(format!(
            "--resume needs a raw image: what is packed as {codec} cannot be changed any more"
        ))
        .with_hint("capture to .img, and pack the finished image"));
    }
    Ok(())
}

/// Refuses a part of a card: an image of it boots nothing.
fn refuse_partition(source: &SourceFile) -> Result<()> {
    let Some(info) = source.info().filter(|info| info.is_partition) else {
        return Ok(());
    };
    let place = source.path().display();
    let whole = match &info.parent {
        Some(disk) => format!("the whole card is {}", disk.display()),
        None => "name the whole card".into(),
    };
    Err(Error::refused(format!(
        "{place} is a partition, and an image of it alone does not boot"
    ))
    .with_hint(format!("{whole}; --partition, if that is what you want")))
}

/// Says what to do where the disk turned out to be full.
fn no_room(error: Error) -> Error {
    match (error.kind(), error.hint()) {
        (ErrorKind::NoSpace, None) => error.with_hint(
            "make room there, or write the image to another disk, or packed (.img.zst, .img.xz)",
        ),
        _ => error,
    }
}

/// Refuses to write into what is being read.
fn refuse_own_output(source: &SourceFile, path: &Path, paths: &ImagePaths) -> Result<()> {
    for output in [&paths.image, &paths.bmap, &paths.mapfile] {
        if device::is_same_file(path, output)? {
            return Err(
                Error::refused(format!("{} is the source itself", output.display()))
                    .with_hint("name another file for the image"),
            );
        }
    }
    if let Some(info) = source.info() {
        let folder = paths.folder().canonicalize().map_err(|error| {
            Error::io(format!("looking for {}", paths.folder().display()), error)
        })?;
        if device::target_holds(&Target::Device(Box::new(info.clone())), &folder)? {
            return Err(Error::refused(format!(
                "{} lies on the card that is being read",
                paths.image.display()
            ))
            .with_hint("write the image to another disk"));
        }
    }
    Ok(())
}

fn check_room(paths: &ImagePaths, needed: u64) -> Result<()> {
    let free = device::free_space(paths.folder())?;
    if needed <= free {
        return Ok(());
    }
    let folder = paths.folder().display();
    let (needed, free) = (human_bytes(needed), human_bytes(free));
    Err(Error::new(
        ErrorKind::NoSpace,
        format!("the image needs {needed}, and {folder} has only {free} free"),
    )
    .with_hint("write to another disk, or compressed (.img.zst, .img.xz)"))
}

/// Describes what capture would make, for people.
pub(super) fn plan_text(summary: &Summary) -> String {
    let mut text = format!(
        "{}, {} of it in use\n",
        summary.sizes(),
        human_bytes(summary.mapped_bytes)
    );
    add_partitions(&mut text, summary);
    text
}

fn add_partitions(text: &mut String, summary: &Summary) {
    for part in &summary.partitions {
        for line in partition_lines(part) {
            let _ = writeln!(text, "{line}");
        }
    }
    for note in &summary.notes {
        let _ = writeln!(text, "note: {note}");
    }
}

/// The lines about one partition.
fn partition_lines(part: &PartitionSummary) -> Vec<String> {
    let label = match &part.label {
        Some(label) => format!(" {:?}", device::safety::sanitize(label)),
        None => String::new(),
    };
    let name = match part.number {
        0 => format!("{}{label}", part.filesystem),
        number => format!("partition {number}: {}{label}", part.filesystem),
    };
    let size = human_bytes(part.range.len());
    let mut lines = vec![match (part.shrunk, part.new_range == part.range) {
        (true, _) => format!("{name}, {size} -> {}", human_bytes(part.new_range.len())),
        (_, true) => format!("{name}, {size}, stays"),
        (_, false) => format!(
            "{name}, {size}, moves from byte {} to byte {}",
            part.range.start, part.new_range.start
        ),
    }];
    let facts = &part.facts;
    if facts.opaque {
        lines.push("copied whole".into());
    }
    if let Some(ext) = &facts.ext {
        if ext.moved_blocks > 0 || ext.moved_inodes > 0 {
            lines.push(format!(
                "{} blocks and {} inodes move",
                ext.moved_blocks, ext.moved_inodes
            ));
        }
        if ext.transactions_replayed > 0 {
            lines.push(format!(
                "journal replayed: {} transactions",
                ext.transactions_replayed
            ));
        }
        if ext.fast_commits_replayed > 0 {
            lines.push(format!(
                "{} fast commits replayed",
                ext.fast_commits_replayed
            ));
        }
        if ext.orphans_deleted > 0 || ext.orphans_truncated > 0 {
            lines.push(format!(
                "orphans finished: {} deleted, {} cut",
                ext.orphans_deleted, ext.orphans_truncated
            ));
        }
        lines.extend(
            ext.repairs
                .iter()
                .map(|repair| format!("put right: {repair}")),
        );
        if let Some(lost) = &facts.unreadable {
            lines.push(format!(
                "keeps its size, and could not be checked, because this cannot be read: {}",
                clean(lost)
            ));
        }
        if !ext.features_in_the_way.is_empty() {
            lines.push(format!(
                "keeps its size because of {}",
                ext.features_in_the_way.join(", ")
            ));
        }
    }
    lines.extend(facts.notes.iter().cloned());
    for line in &mut lines[1..] {
        line.insert_str(0, "    ");
    }
    lines
}

fn done_text(
    plan: &CapturePlan,
    captured: &Captured,
    paths: Option<&ImagePaths>,
    codec: Codec,
    seconds: f64,
) -> String {
    let mut text = String::new();
    let rate = plan.summary.mapped_bytes as f64 / seconds.max(0.001);
    let name = match paths {
        Some(paths) => clean(&text_of(&paths.image)),
        None => "standard output".into(),
    };
    let packed = match codec {
        Codec::Raw => String::new(),
        _ => format!(" ({codec}: {})", human_bytes(captured.file_bytes)),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{name}: {}{packed} in {}, {}/s",
        plan.summary.sizes(),
        human_seconds(seconds),
        human_bytes(rate as u64)
    );
    add_partitions(&mut text, &plan.summary);
    if let Some(rescued) = &captured.rescued {
        add_losses(&mut text, rescued, paths);
    }
    if codec != Codec::Raw {
        let _ = writeln!(text, "sha256 of the file:     {}", captured.file_sha256);
    }
    let _ = writeln!(text, "sha256 of the contents: {}", captured.content_sha256);
    if let Some(paths) = paths {
        let image = mistaken::quoted(&text_of(&paths.image));
        let _ = writeln!(
            text,
            "it holds the card's passwords and keys too\nnext: pishrink flash {image} CARD"
        );
    }
    text
}

fn add_losses(text: &mut String, rescued: &Rescued, paths: Option<&ImagePaths>) {
    let errors = rescued.read_errors;
    let _ = match rescued.unreadable_bytes {
        0 => writeln!(
            text,
            "{errors} read errors, but everything could be read in the end"
        ),
        bytes => writeln!(
            text,
            "LOST: {bytes} bytes cannot be read ({errors} read errors), and are zeros in the image:"
        ),
    };
    for loss in rescued.losses.iter().take(LOSSES_SHOWN) {
        let _ = writeln!(text, "    {}", clean(&loss.line()));
    }
    let more = rescued.losses.len().saturating_sub(LOSSES_SHOWN);
    if more > 0 {
        let _ = writeln!(text, "    and {more} more places: --json names all");
    }
    if let Some(paths) = paths {
        let _ = writeln!(
            text,
            "map of the source: {}",
            clean(&text_of(&paths.mapfile))
        );
    }
}

fn done_object(
    plan: &CapturePlan,
    captured: &Captured,
    paths: Option<&ImagePaths>,
    codec: Codec,
    seconds: f64,
) -> Value {
    let paths_beside = paths.filter(|_| captured.besides.is_none());
    let with_bmap = paths_beside.filter(|_| captured.bmap.is_some());
    let with_map = paths_beside.filter(|_| captured.rescued.is_some());
    json!({
        "image": paths.map(|paths| text_of(&paths.image)),
        "bmap": with_bmap.map(|paths| text_of(&paths.bmap)),
        "format": codec,
        "file_bytes": captured.file_bytes,
        "file_sha256": captured.file_sha256,
        "content_sha256": captured.content_sha256,
        "seconds": seconds,
        "mapfile": with_map.map(|paths| text_of(&paths.mapfile)),
        "rescued": captured.rescued,
        "plan": plan.summary,
    })
}

fn text_of(path: &Path) -> String {
    path.display().to_string()
}
