//! A raw capture that goes on where an earlier run stopped, by its map file.
//!
//! ```text
//! nothing there                           a new capture
//! image.partial, image.partial.mapfile    of a run that was stopped or killed: goes on
//! image, image.mapfile                    of a run that lost something: becomes .partial, goes on
//! ```
//! What may go on is decided by the plan, which is made anew from the source: the map file names
//! the plan that its image was made by, and a plan holds the metadata that it rewrites. So another
//! card, another option, or a card that changed meanwhile is refused.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::capture::keep::Keeper;
use crate::capture::mapfile as map;
use crate::capture::mapfile::MapFile;
use crate::capture::output::{ImagePaths, Partial, publish, remove};
use crate::capture::run::{Captured, run_again, run_keeping};
use crate::capture::sink::{RunOptions, Sink};
use crate::capture::summary::CapturePlan;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Files, RangeSet, ReadAt};
use crate::progress::Progress;

/// Writes the raw image, going on from what an earlier run left. When it is stopped or fails, the
/// unfinished image (`.partial`) and its map file are kept for the next run.
///
/// # Errors
/// `Refused` if what is there is complete or belongs to another plan, `Usage` unless the image is
/// raw; else as `run`.
pub fn capture_resuming(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    paths: &ImagePaths,
    options: &RunOptions,
    files: &dyn Files,
    progress: &dyn Progress,
) -> Result<Captured> {
    if options.codec != Codec::Raw {
        return Err(Error::usage(format!(
            "--resume needs a raw image: {} cannot be changed once it is written",
            options.codec
        ))
        .with_hint("capture to .img, and pack the finished image"));
    }
    let there = find(plan, paths)?;
    let (mut image, file) = match there {
        None => Partial::create(files, &paths.image)?,
        Some(_) => Partial::adopt(&paths.image)?,
    };
    let goes_on = there.is_some();
    if goes_on {
        image.keep();
    }
    let keeper = Keeper::new(
        plan,
        files,
        &paths.partial_map(),
        &file,
        &there.unwrap_or_default(),
    )?;
    let (outcome, file) = if goes_on {
        let mut file = file;
        let missing = keeper.missing();
        let work = (&missing, &keeper);
        let outcome = run_again(plan, source, &mut file, options, work, progress);
        (outcome, file)
    } else {
        // Without its map nobody can go on with it.
        keeper.save()?;
        image.keep();
        let mut sink = Sink::File(file);
        let outcome = run_keeping(plan, source, &mut sink, options, Some(&keeper), progress);
        let Sink::File(file) = sink else {
            return Err(Error::internal("a file turned into a stream"));
        };
        (outcome, file)
    };
    let outcome =
        outcome.and_then(|captured| publish(paths, image, file, captured, files, progress));
    outcome.map_err(|error| {
        if !paths.partial().exists() {
            // It has its name already, and lacks only what lies beside it.
            return error;
        }
        // The first error is the one to tell; the map of some seconds ago is there as well.
        let _ = keeper.save();
        error.with_hint("what was read is kept: the same command goes on from there")
    })
}

/// Looks for what an earlier run left, and makes a finished image the unfinished one again.
/// Returns the bytes of the source that it has.
fn find(plan: &CapturePlan, paths: &ImagePaths) -> Result<Option<RangeSet>> {
    let partial_map = paths.partial_map();
    if let Some(text) = read(&partial_map)? {
        let there = agreed(plan, &partial_map, &text)?;
        if !exists(&paths.partial())? {
            take_back(plan, paths)?;
        }
        return Ok(Some(there));
    }
    if let Some(text) = read(&paths.mapfile)? {
        let there = agreed(plan, &paths.mapfile, &text)?;
        take_back(plan, paths)?;
        return Ok(Some(there));
    }
    if exists(&paths.image)? {
        let image = paths.image.display();
        return Err(Error::refused(format!(
            "{image} is complete: there is no map file that says what it lacks"
        ))
        .with_hint("--force makes it anew"));
    }
    Ok(None)
}

/// Returns what a map file says to be there, if it is about `plan`.
fn agreed(plan: &CapturePlan, path: &Path, text: &str) -> Result<RangeSet> {
    let place = path.display();
    let found = MapFile::parse(text).map_err(|error| error.within(place.to_string()))?;
    let anew = "take the same card and options; --force makes the image anew";
    match found.plan {
        Some(digest) if digest == map::digest(plan) => Ok(found.there),
        Some(_) => Err(Error::refused(format!(
            "{place} is about another capture: the card, its metadata or the options are not the same"
        ))
        .with_hint(anew)),
        None => Err(Error::refused(format!(
            "{place} does not tell what the image was made of, so nothing can go on from it"
        ))
        .with_hint(anew)),
    }
}

/// Makes the finished image an unfinished one: under its name nothing is ever half-done.
fn take_back(plan: &CapturePlan, paths: &ImagePaths) -> Result<()> {
    let image = paths.image.display();
    let len = match fs::metadata(&paths.image) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::refused(format!(
                "there is a map file of {image}, but not the image"
            ))
            .with_hint("--force makes it anew"));
        }
        Err(error) => return Err(Error::io(format!("looking at {image}"), error)),
    };
    if len != plan.image_bytes() {
        return Err(Error::refused(format!(
            "{image} has {len} bytes, and not the {} of which there is a map file",
            plan.image_bytes()
        ))
        .with_hint("--force makes it anew"));
    }
    remove(&paths.bmap)?;
    // The map first: it leads to the image wherever that is.
    for (from, to) in [
        (&paths.mapfile, paths.partial_map()),
        (&paths.image, paths.partial()),
    ] {
        match fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("renaming {}", from.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists()
        .map_err(|error| Error::io(format!("looking at {}", path.display()), error))
}

/// Reads a map file; `None` if there is none.
fn read(path: &PathBuf) -> Result<Option<String>> {
    let failed = |error| Error::io(format!("reading {}", path.display()), error);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    let count = file.take(map::LONGEST).read_to_string(&mut text);
    match count {
        Ok(count) if (count as u64) < map::LONGEST => Ok(Some(text)),
        Ok(_) => Err(Error::unsound(format!(
            "{} is too long for a map file",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Error::new(
            ErrorKind::Unsound,
            format!("{} is not a map file", path.display()),
        )),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests;
