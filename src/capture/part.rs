//! One partition on its way into an image.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::capture::rescue::{Forgiving, Rescue};
use crate::capture::summary::{PartitionSummary, PlanOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::ext4::Target;
use crate::io::{Overlay, RangeSet, ReadAt, Window};
use crate::progress::{Event, Phase, Progress};
use crate::units::ByteRange;
use crate::volume::{Content, Patch, Volume};

/// Of what could not be read, so much is named in a note.
const NAMED: usize = 3;

/// A partition, or a disk without a table, and what it holds.
pub(super) struct Part {
    pub(super) number: u32,
    pub(super) part_uuid: Option<String>,
    pub(super) range: ByteRange,
    pub(super) volume: Volume,
}

/// Is every block wanted, whatever it means?
pub(super) fn saves_all(options: &PlanOptions) -> bool {
    options.force_raw && !options.shrink
}

/// Says how to get past a read error, or past what has no better advice.
pub(super) fn hinted(error: Error, options: &PlanOptions) -> Error {
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

pub(super) fn identify(device: &dyn ReadAt, options: &PlanOptions) -> Result<Volume> {
    match Volume::identify(device) {
        Err(error) if error.kind() == ErrorKind::Io && options.force_raw => {
            Ok(Volume::unreadable())
        }
        other => other.map_err(|error| hinted(error, options)),
    }
}

pub(super) fn content(
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

/// Does the filesystem keep its size because of its features or of lost metadata?
pub(super) fn is_kept(content: &Content) -> bool {
    content.facts.unreadable.is_some()
        || content
            .facts
            .ext
            .as_ref()
            .is_none_or(|ext| !ext.features_in_the_way.is_empty())
}

/// Puts what came from `old` at `new`, with `patches` of what tells the place; of the content, only
/// the facts are left.
pub(super) fn place(
    overlay: &mut Overlay,
    mapped: &mut RangeSet,
    content: &mut Content,
    patches: Vec<Patch>,
    old: ByteRange,
    new: ByteRange,
) {
    let part = std::mem::replace(&mut content.overlay, Overlay::new(0));
    overlay.place(part, new.start, old.start);
    for (offset, bytes) in patches {
        overlay.set_bytes(new.start + offset, bytes);
    }
    for range in std::mem::take(&mut content.stored).iter() {
        mapped.insert(new.start + range.start..new.start + range.end);
    }
}

pub(super) fn summarise(part: Part, content: Content, new_range: ByteRange) -> PartitionSummary {
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

/// A source whose every read asks whether to go on, since checking a filesystem takes seconds,
/// and is not given up at the first error.
pub(super) struct Watched<'a> {
    source: &'a dyn ReadAt,
    progress: &'a dyn Progress,
    rescue: Mutex<Rescue<'a>>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(source: &'a dyn ReadAt, progress: &'a dyn Progress) -> Self {
        Self {
            source,
            progress,
            rescue: Mutex::new(Rescue::new(source, Phase::Check, progress)),
        }
    }

    fn rescue(&self) -> MutexGuard<'_, Rescue<'a>> {
        self.rescue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads bytes that are only looked at: what fails is not tried again, and is no loss.
    pub(super) fn peek(&self, range: Range<u64>) -> Option<Vec<u8>> {
        let len = usize::try_from(range.end - range.start).ok()?;
        self.source.read_vec_at(range.start, len).ok()
    }

    /// Names what could not be read of a partition, in a few words.
    pub(super) fn names_in(&self, part: &Part) -> String {
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
