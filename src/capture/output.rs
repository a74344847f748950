//! The image's files: written under another name, synced, renamed, or gone.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bmap::Bmap;
use crate::capture::plan::CapturePlan;
use crate::capture::run::{Captured, RunOptions, Sink, run};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::io::ReadAt;
use crate::progress::{Phase, Progress};

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
        let map = self.partial_map();
        if !force && map.exists() {
            return Err(
                Error::refused(format!("{} is not finished", self.partial().display()))
                    .with_hint("--resume goes on with it, --force begins anew"),
            );
        }
        Ok(())
    }

    /// Checks that the image's files can be created, by creating one.
    ///
    /// # Errors
    /// `Usage` for the name of a folder, `Io` with what stands in the way.
    pub fn check_writable(&self) -> Result<()> {
        let place = self.image.display();
        if self
            .image
            .as_os_str()
            .to_string_lossy()
            .ends_with(std::path::is_separator)
        {
            return Err(Error::usage(format!("{place} is no name of a file")));
        }
        // The longest of the names, and never that of a file with anything in it.
        let path = with_suffix(&self.partial_map(), ".try");
        let created = OpenOptions::new().write(true).create_new(true).open(&path);
        match created {
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

    /// Returns the folder that the files go to.
    pub fn folder(&self) -> &Path {
        folder_of(&self.image)
    }
}

/// Writes the image and its block map beside it. A failure leaves nothing behind, and what was
/// there before untouched. `make_sparse` is called with the empty file of a raw image, which gets holes.
///
/// # Errors
/// `Refused` if a name is taken and not `force`; else as [`run`].
pub fn capture_to_file(
    plan: &CapturePlan,
    source: &dyn ReadAt,
    paths: &ImagePaths,
    options: &RunOptions,
    force: bool,
    make_sparse: &dyn Fn(&File),
    progress: &dyn Progress,
) -> Result<Captured> {
    paths.check(force)?;
    // Before its image: a map must never lie beside another one's.
    remove(&paths.partial_map())?;
    let (image, file) = Partial::create(&paths.image)?;
    if options.codec == Codec::Raw {
        make_sparse(&file);
    }
    let mut sink = Sink::File(file);
    let captured = run(plan, source, &mut sink, options, progress)?;
    let Sink::File(file) = sink else {
        return Err(Error::internal("a file turned into a stream"));
    };
    publish(paths, image, file, &captured, progress)?;
    Ok(captured)
}

/// Gives a finished image its name, and its maps theirs.
///
/// # Errors
/// What the file system fails with.
pub(super) fn publish(
    paths: &ImagePaths,
    image: Partial,
    file: File,
    captured: &Captured,
    progress: &dyn Progress,
) -> Result<()> {
    progress.started(Phase::Sync, None)?;
    image.sync(&file)?;
    drop(file);
    let bmap = captured.bmap.as_ref().map(Bmap::to_xml);
    let bmap = text_file(&paths.bmap, bmap)?;
    let mapfile = captured.rescued.as_ref();
    let mapfile = mapfile.map(|rescued| rescued.map_file.clone());
    let mapfile = text_file(&paths.mapfile, mapfile)?;
    progress.finished(Phase::Sync)?;
    // Old maps must never lie beside the new image.
    for path in [&paths.bmap, &paths.mapfile] {
        remove(path)?;
    }
    image.publish(&paths.image)?;
    remove(&paths.partial_map())?;
    for (map, path) in [(bmap, &paths.bmap), (mapfile, &paths.mapfile)] {
        if let Some(map) = map {
            map.publish(path)?;
        }
    }
    // Not every system opens folders; the files are complete in any case.
    if let Ok(folder) = File::open(paths.folder()) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Removes what an earlier run left, if it did.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let what = format!("removing the old {}", path.display());
            Err(Error::io(what, error))
        }
        _ => Ok(()),
    }
}

/// Writes what goes beside the image.
fn text_file(path: &Path, text: Option<String>) -> Result<Option<Partial>> {
    let Some(text) = text else { return Ok(None) };
    let (partial, mut file) = Partial::create(path)?;
    file.write_all(text.as_bytes())
        .map_err(|error| Error::io(format!("writing {}", partial.path.display()), error))?;
    partial.sync(&file)?;
    Ok(Some(partial))
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
    pub(super) fn create(path: &Path) -> Result<(Self, File)> {
        let path = with_suffix(path, PARTIAL);
        let failed = |error| Error::io(format!("creating {}", path.display()), error);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(failed)?;
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

    fn sync(&self, file: &File) -> Result<()> {
        file.sync_all()
            .map_err(|error| Error::io(format!("writing out {}", self.path.display()), error))
    }

    fn publish(mut self, to: &Path) -> Result<()> {
        fs::rename(&self.path, to)
            .map_err(|error| Error::io(format!("renaming {}", self.path.display()), error))?;
        self.published = true;
        self.forget();
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
