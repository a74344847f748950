//! A capture that can be continued: every few seconds its map file says what the image has.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::capture::batch::{Batch, Bytes};
use crate::capture::mapfile as map;
use crate::capture::mapfile::read_ranges;
use crate::capture::summary::CapturePlan;
use crate::error::{Error, Result};
use crate::io::{Files, RangeSet};

/// How often the map is written.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps account of what an image has.
pub struct Keeper<'a> {
    plan: &'a CapturePlan,
    files: &'a dyn Files,
    path: PathBuf,
    /// The image, to be synced before the map says that something is there.
    file: File,
    state: Mutex<State>,
}

struct State {
    /// Bytes of the source that the image still lacks.
    missing: RangeSet,
    saved: Instant,
}

impl<'a> Keeper<'a> {
    /// `there` is what the image has of the source already.
    ///
    /// # Errors
    /// What the system fails with.
    pub fn new(
        plan: &'a CapturePlan,
        files: &'a dyn Files,
        path: &Path,
        image: &File,
        there: &RangeSet,
    ) -> Result<Self> {
        let file = image
            .try_clone()
            .map_err(|error| Error::io("opening the image once more", error))?;
        let mut missing = read_ranges(&plan.overlay, plan.summary.source_bytes);
        for range in there.iter() {
            missing.remove(range);
        }
        Ok(Self {
            plan,
            files,
            path: path.to_owned(),
            file,
            state: Mutex::new(State {
                missing,
                saved: Instant::now(),
            }),
        })
    }

    /// Returns the bytes of the source that the image lacks.
    pub fn missing(&self) -> RangeSet {
        self.state().missing.clone()
    }

    /// Notes that the image has what is in `batch`.
    ///
    /// # Errors
    /// What the file system fails with.
    pub fn written(&self, batch: &Batch) -> Result<()> {
        let mut state = self.state();
        for (start, bytes) in batch.pieces() {
            let Bytes::Data(bytes) = bytes else { continue };
            let end = start + bytes.len() as u64;
            for segment in self.plan.overlay.segments(start..end) {
                if let Some(from) = segment.source.base() {
                    state.missing.remove(from..from + segment.len);
                }
            }
        }
        for range in batch.deferred() {
            state.missing.insert(range.clone());
        }
        self.save_if_due(state)
    }

    /// Notes that the image has `range` of the source.
    ///
    /// # Errors
    /// As [`Self::written`].
    pub fn recovered(&self, range: Range<u64>) -> Result<()> {
        let mut state = self.state();
        state.missing.remove(range);
        self.save_if_due(state)
    }

    fn save_if_due(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        if state.saved.elapsed() < EVERY {
            return Ok(());
        }
        state.saved = Instant::now();
        let missing = state.missing.clone();
        drop(state);
        self.write(&missing)
    }

    /// Writes the map as it is now.
    ///
    /// # Errors
    /// What the file system fails with.
    pub fn save(&self) -> Result<()> {
        self.write(&self.missing())
    }

    fn write(&self, missing: &RangeSet) -> Result<()> {
        let place = self.path.display();
        self.files
            .sync(&self.file)
            .map_err(|error| Error::io("writing out the image", error))?;
        let mut name = self.path.clone().into_os_string();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let text = map::text(self.plan, &RangeSet::new(), missing);
        // Of a run that was killed.
        let _ = fs::remove_file(&partial);
        self.files
            .create_new(&partial)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                self.files.sync(&file)
            })
            .and_then(|_| self.files.rename(&partial, &self.path))
            .map_err(|error| {
                // The map before it is still there.
                let _ = fs::remove_file(&partial);
                Error::io(format!("writing {place}"), error)
            })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Range sets are changed as a whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
