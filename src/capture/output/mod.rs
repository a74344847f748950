//! The image's files: written under another name, synced, renamed, or gone.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bmap::Bmap;
use crate::capture::run::{Captured, run};
use crate::capture::sink::{RunOptions, Sink, TOO_LARGE};
use crate::capture::summary::CapturePlan;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Files, ReadAt, Synced};
use crate::progress::{Event, Phase, Progress};
use crate::units::human_bytes;

/// Every file system takes files of so many bytes: the most that FAT32 does.
const LARGEST_EVERYWHERE: u64 = u32::MAX as u64;

/// Behind the name of what is not finished.
const PARTIAL: &str = ".partial";

/// The names that an image takes up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImagePaths {
    pub image: PathBuf,
    /// The image's whole name and `.bmap`: where bmaptool looks first.
    pub bmap: PathBuf,
    /// The image's whole name and `.mapfile`: written if the source could not be read smoothly.
    pub mapfile: PathBuf,
}

impl ImagePaths {
    pub fn new(image: impl Into<PathBuf>) -> Self {
        let image = image.into();
        let bmap = with_suffix(&image, ".bmap");
        let mapfile = with_suffix(&image, ".mapfile");
        Self {
            image,
            bmap,
            mapfile,
        }
    }

    /// Refuses names that are taken, unless `force`, and what is no file in any case.
    ///
    /// # Errors
    /// `Refused`, or `Io` if a name cannot be looked at.
    pub fn check(&self, force: bool) -> Result<()> {
        for path in [&self.image, &self.bmap, &self.mapfile] {
            let place = path.display();
            match fs::metadata(path) {
                Ok(found) if !found.is_file() => {
                    return Err(Error::refused(format!("{place} is not a file"))
                        .with_hint("capture writes image files; flash writes cards"));
                }
                Ok(_) if !force => {
                    return Err(Error::refused(format!("{place} exists already"))
                        .with_hint("--force replaces it"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(format!("looking at {place}"), error)),
            }
        }
        let partial = self.partial();
        let place = partial.display();
        if !force && self.partial_map().exists() {
            return Err(Error::refused(format!("{place} is not finished"))
                .with_hint("--resume goes on with it, --force begins anew"));
        }
        if !force && partial.exists() && self.partial_sum().exists() {
            return Err(Error::refused(format!(
                "{place} is a whole image that could not get its name"
            ))
            .with_hint(self.how_to_keep() + "; --force makes it anew"));
        }
        Ok(())
    }

    /// Refuses an image of `len` bytes if its file system takes no such files.
    ///
    /// # Errors
    /// `NoSpace`, or `Io` if no file can be created.
    pub fn check_length(&self, files: &dyn Files, len: u64) -> Result<()> {
        if len <= LARGEST_EVERYWHERE {
            return Ok(());
        }
        let path = self.attempt();
        let file = remove_file(&path)
            .and_then(|()| files.create_new(&path))
            .map_err(|error| Error::io(format!("creating {}", path.display()), error))?;
        let fits = files.can_hold(&file, len);
        drop(file);
        remove(&path)?;
        if fits {
            return Ok(());
        }
        let (len, folder) = (human_bytes(len), self.folder().display());
        Err(Error::new(
            ErrorKind::NoSpace,
            format!("the image has {len}, and {folder} takes no files of 4 GiB and more (FAT32)"),
        )
        .with_hint(TOO_LARGE))
    }

    /// Checks that the image's files can be created, by creating one.
    ///
    /// # Errors
    /// `Usage` for the name of a folder, `Io` with what stands in the way.
    pub fn check_writable(&self, files: &dyn Files) -> Result<()> {
        let place = self.image.display();
        if self
            .image
            .as_os_str()
            .to_string_lossy()
            .ends_with(std::path::is_separator)
        {
            return Err(Error::usage(format!("{place} is no name of a file")));
        }
        let path = self.attempt();
        match files.create_new(&path) {
            Ok(_) => remove(&path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => {
                let missing = error.kind() == io::ErrorKind::NotFound;
                let error = Error::io(format!("cannot write {place}"), error);
                Err(match missing {
                    true => error.with_hint("create its folder first"),
                    false => error,
                })
            }
        }
    }

    /// Returns the name of the image while it is written.
    pub fn partial(&self) -> PathBuf {
        with_suffix(&self.image, PARTIAL)
    }

    /// Returns the name of the map file of an image that is not finished, and can be gone on with.
    pub fn partial_map(&self) -> PathBuf {
        with_suffix(&self.partial(), ".mapfile")
    }

    /// Returns a name to try things with: the longest one, and never that of a file with anything in it.
    fn attempt(&self) -> PathBuf {
        with_suffix(&self.partial_map(), ".try")
    }

    /// Returns the name of the checksum of an image that is whole, but could not get its name.
    fn partial_sum(&self) -> PathBuf {
        with_suffix(&self.partial(), ".sha256")
    }

    /// Says how a whole image that has no name yet is saved.
    fn how_to_keep(&self) -> String {
        let (partial, image) = (self.partial(), &self.image);
        format!(
            "check it: pishrink verify {}; then rename it to {}",
            partial.display(),
            image.display()
        )
    }

    /// Returns the folder that the files go to.
    pub fn folder(&self) -> &Path {
        folder_of(&self.image)
    }
}

/// Writes the image and its block map beside it. A failure leaves nothing behind, and what was
/// there before untouched; but an image that is whole stays, whatever fails then.
///
/// # Errors
/// `Refused` if a name is taken and not `force`; else as [`run`].
pub fn capture_to_file(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    paths: &ImagePaths,
    options: &RunOptions,
    force: bool,
    files: &dyn Files,
    progress: &dyn Progress,
) -> Result<Captured> {
    paths.check(force)?;
    // Before its image: a map or a sum must never lie beside another one's.
    remove(&paths.partial_map())?;
    remove(&paths.partial_sum())?;
    let (image, file) = Partial::create(files, &paths.image)?;
    if options.codec == Codec::Raw {
        files.make_sparse(&file);
    }
    let mut sink = Sink::File(file);
    let captured = run(plan, source, &mut sink, options, progress)?;
    let Sink::File(file) = sink else {
        return Err(Error::internal("a file turned into a stream"));
    };
    publish(paths, image, file, captured, files, progress)
}

/// Gives a finished image its name, and its maps theirs.
///
/// # Errors
/// What the file system fails with; the image stays, and the error names it and says what to do.
pub(super) fn publish(
    paths: &ImagePaths,
    mut image: Partial,
    file: File,
    mut captured: Captured,
    files: &dyn Files,
    progress: &dyn Progress,
) -> Result<Captured> {
    progress.started(Phase::Sync, None)?;
    // From here on the image is whole, and is not removed.
    image.keep();
    let synced = files
        .sync(&file)
        .map_err(|error| left_unnamed(paths, &captured, files, "may not be on the disk", error))?;
    drop(file);
    // Who stops it now has the whole image all the same.
    let _ = progress.finished(Phase::Sync);
    let mut besides = Ok(());
    let mut written = Vec::new();
    for (path, text) in maps(paths, &captured) {
        match text_file(files, path, &text) {
            Ok(partial) => written.push((partial, path)),
            // The same command goes on from the map that is there, and writes both anew.
            Err(error) if paths.partial_map().exists() => return Err(error),
            Err(error) => besides = Err(error),
        }
    }
    let named = (|| {
        // Old maps must never lie beside the new image.
        for path in [&paths.bmap, &paths.mapfile] {
            remove_file(path)?;
        }
        files.rename(image.path(), &paths.image)
    })();
    named.map_err(|error| left_unnamed(paths, &captured, files, "has no name yet", error))?;
    for outdated in [paths.partial_map(), paths.partial_sum()] {
        besides = besides.and(remove(&outdated));
    }
    for (partial, path) in written {
        besides = besides.and(partial.publish(files, path));
    }
    files.sync_folder(paths.folder());
    captured.besides = besides.err().map(|error| {
        let what = format!(
            "{} is whole, but not what lies beside it",
            paths.image.display()
        );
        Arc::new(error.within(what))
    });
    tell_doubt(synced, &paths.image, progress);
    Ok(captured)
}

/// Says what is not certain of a file; nobody can stop anything by that any more.
fn tell_doubt(synced: Synced, path: &Path, progress: &dyn Progress) {
    if let Some(doubt) = synced.doubt() {
        let _ = progress.event(Event::Note(format!("{}: {doubt}", path.display())));
    }
}

/// Names the whole image that stays without its name, and what to do with it. Its checksum is laid beside
/// it: by that it can be checked, and the next run knows that it is whole.
fn left_unnamed(
    paths: &ImagePaths,
    captured: &Captured,
    files: &dyn Files,
    doubt: &str,
    error: io::Error,
) -> Error {
    let partial = paths.partial();
    let name = partial.file_name().unwrap_or_default().to_string_lossy();
    let sum = format!("{}  {name}\n", captured.file_sha256);
    // The first error is the one to tell.
    let _ = remove(&paths.partial_sum());
    let _ = files
        .create_new(&paths.partial_sum())
        .and_then(|mut file| file.write_all(sum.as_bytes()));
    let what = format!("{} is whole, but {doubt}", partial.display());
    Error::io(what, error).with_hint(paths.how_to_keep())
}

/// Lists what goes beside the image, with its text.
fn maps<'a>(paths: &'a ImagePaths, captured: &Captured) -> Vec<(&'a Path, String)> {
    let bmap = captured.bmap.as_ref().map(Bmap::to_xml);
    let mapfile = captured.rescued.as_ref();
    let mapfile = mapfile.map(|rescued| rescued.map_file.clone());
    [(&paths.bmap, bmap), (&paths.mapfile, mapfile)]
        .into_iter()
        .filter_map(|(path, text)| Some((&**path, text?)))
        .collect()
}

/// Removes what an earlier run left, if it did.
pub(super) fn remove(path: &Path) -> Result<()> {
    remove_file(path)
        .map_err(|error| Error::io(format!("removing the old {}", path.display()), error))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes what goes beside the image, under its unfinished name.
fn text_file(files: &dyn Files, path: &Path, text: &str) -> Result<Partial> {
    let (partial, mut file) = Partial::create(files, path)?;
    file.write_all(text.as_bytes())
        .and_then(|()| files.sync(&file))
        .map_err(|error| Error::io(format!("writing {}", partial.path.display()), error))?;
    Ok(partial)
}

/// The files that would be left behind if the program ended now.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every unfinished file, for a program that is about to end without going on.
pub fn remove_unfinished() {
    for path in unfinished().drain(..) {
        // There is nobody to tell.
        let _ = fs::remove_file(path);
    }
}

/// A file that is removed unless it is published.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    published: bool,
}

impl Partial {
    /// Creates `path` with `.partial` behind its name, in place of what an earlier run left there.
    pub(super) fn create(files: &dyn Files, path: &Path) -> Result<(Self, File)> {
        let path = with_suffix(path, PARTIAL);
        let file = remove_file(&path)
            .and_then(|()| files.create_new(&path))
            .map_err(|error| Error::io(format!("creating {}", path.display()), error))?;
        Ok((Self::new(path), file))
    }

    fn new(path: PathBuf) -> Self {
        unfinished().push(path.clone());
        Self {
            path,
            published: false,
        }
    }

    /// Takes over the unfinished file that an earlier run left for `path`.
    pub(super) fn adopt(path: &Path) -> Result<(Self, File)> {
        let path = with_suffix(path, PARTIAL);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| Error::io(format!("opening {}", path.display()), error))?;
        Ok((Self::new(path), file))
    }

    /// From now on the file stays even if it is not finished.
    pub(super) fn keep(&mut self) {
        self.published = true;
        self.forget();
    }

    fn forget(&self) {
        unfinished().retain(|path| *path != self.path);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn publish(mut self, files: &dyn Files, to: &Path) -> Result<()> {
        files
            .rename(&self.path, to)
            .map_err(|error| Error::io(format!("renaming {}", self.path.display()), error))?;
        self.keep();
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // There is nobody to tell; the error that led here is told.
            let _ = fs::remove_file(&self.path);
            self.forget();
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(all(test, unix))]
pub(super) mod tests;
