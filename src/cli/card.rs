//! Cards that a command writes: judged, confirmed by the user, opened.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::describe;
use super::interrupt;
use super::render::{Screen, clean};
use super::watch::Watch;
use crate::device::{self, OpenTarget, Target, TargetOptions, safety};
use crate::error::{Error, Result};
use crate::flash::Card;
use crate::io::{ReadAt, WriteAt};

/// An open target as flash wants it.
pub struct OpenCard {
    pub target: OpenTarget,
    /// For a card that nothing else watches.
    pub watch: Option<Arc<Watch>>,
}

impl OpenCard {
    fn watched<T>(&self, request: impl FnOnce(&OpenTarget) -> T) -> T {
        match &self.watch {
            Some(watch) => watch.over(|| request(&self.target)),
            None => request(&self.target),
        }
    }
}

impl ReadAt for OpenCard {
    fn len(&self) -> u64 {
        self.target.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.watched(|target| target.read_exact_at(offset, buf))
    }
}

impl WriteAt for OpenCard {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.watched(|target| target.write_all_at(offset, buf))
    }

    fn sync(&self) -> Result<()> {
        self.watched(WriteAt::sync)
    }
}

impl Card for OpenCard {
    fn discard(&self, range: Range<u64>) -> Result<bool> {
        self.target.discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<bool> {
        self.target.write_zeroes(range)
    }

    fn drop_cache(&self) -> Result<()> {
        self.target.drop_cache()
    }

    fn alignment(&self) -> u64 {
        self.target.alignment()
    }

    fn sector_size(&self) -> Option<u64> {
        self.target.info().map(|info| u64::from(info.logical_block))
    }
}

/// What the user says about the targets.
pub struct Permissions<'a> {
    /// Do not ask.
    pub yes: bool,
    pub allow_any_device: bool,
    /// May a file that exists be written?
    pub files: bool,
    /// Files that must not be destroyed: the image, and what lies beside it.
    pub needed: &'a [PathBuf],
}

/// Looks at the targets without changing anything, and refuses what must not be written.
///
/// # Errors
/// `Refused` with the reason, `Usage` for what can be no target.
pub fn judge(paths: &[PathBuf], permissions: &Permissions) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = Vec::new();
    for path in paths {
        let target = device::resolve_target(path)?;
        let mut held = None;
        for needed in permissions.needed {
            if device::target_holds(&target, needed)? {
                held = Some(needed.as_path());
                break;
            }
        }
        match &target {
            Target::Device(info) => {
                let rules = safety::TargetRules {
                    allow_any_device: permissions.allow_any_device,
                    holds_image: held,
                };
                safety::assess_target(info, &rules)?;
            }
            Target::File(path) => {
                let place = path.display();
                if held.is_some() {
                    let what = format!("{place} is the image itself, or belongs to it");
                    return Err(Error::refused(what));
                }
                if !permissions.files {
                    return Err(exists(path));
                }
            }
        }
        for other in &targets {
            if device::targets_overlap(other, &target)? {
                return Err(Error::usage(format!(
                    "{} and {} are the same target, or one lies on the other",
                    other.path().display(),
                    path.display()
                )));
            }
        }
        targets.push(target);
    }
    Ok(targets)
}

/// Somebody's backup, perhaps: only who says so writes over a file.
fn exists(path: &Path) -> Error {
    let place = path.display();
    Error::refused(format!("{place} is a file that exists, and would be lost"))
        .with_hint("--overwrite, if it stands for a card; `pishrink devices` lists the cards")
}

/// Shows what would be lost and asks for a yes. `what` is what happens to it.
///
/// # Errors
/// `Refused` if the answer is no, or there is nobody to ask.
pub fn confirm(
    targets: &[&Target],
    what: &str,
    permissions: &Permissions,
    screen: &Screen,
) -> Result<()> {
    if permissions.yes || targets.is_empty() {
        return Ok(());
    }
    if !screen.can_ask() {
        return Err(
            Error::refused("there is no terminal to ask whether this may be written")
                .with_hint("--yes, if you are sure about the target"),
        );
    }
    let mut text = String::new();
    for target in targets {
        match target {
            Target::Device(info) => describe(&mut text, info, None),
            // Writing to a String cannot fail.
            Target::File(path) => {
                let _ = writeln!(
                    text,
                    "{}  a file",
                    safety::sanitize(&path.to_string_lossy())
                );
            }
        }
    }
    // Also with --quiet: nobody should agree to what he does not see.
    let mut answer = String::new();
    let mut stderr = std::io::stderr();
    let lines: Vec<_> = text.lines().map(clean).collect();
    let question = format!("{}\n{} Type yes to go on: ", lines.join("\n"), clean(what));
    let asked = interrupt::while_asking(|| {
        stderr.write_all(question.as_bytes())?;
        stderr.flush()?;
        std::io::stdin().read_line(&mut answer)
    });
    asked.map_err(|error| Error::io("cannot ask", error))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "yes" | "y" => Ok(()),
        _ => Err(Error::refused("not confirmed, nothing was written")),
    }
}

/// Opens a target for writing, and says what could not be had.
///
/// # Errors
/// As [`device::open_target`].
pub fn open(target: &Target, screen: &Screen) -> Result<OpenCard> {
    let opened = device::open_target(target, &TargetOptions::default())?;
    for note in opened.notes() {
        screen.detail(&format!("{}: {note}", target.path().display()));
    }
    Ok(OpenCard {
        target: opened,
        watch: None,
    })
}

/// Ejects a card that is done, if it is one to be taken out. Returns whether it was; what to do is said.
pub fn eject(card: OpenCard, screen: &Screen) -> bool {
    let place = card.target.path().display().to_string();
    if !card.target.info().is_some_and(safety::can_be_ejected) {
        release(card, screen);
        return false;
    }
    match card.target.eject() {
        Ok(true) => {
            screen.say(&format!("{place}: ejected: take it out"));
            true
        }
        Ok(false) => {
            screen.say(&format!("{place}: all is written: take it out"));
            false
        }
        Err(error) => {
            screen.say(&format!(
                "{place}: all is written, but it could not be ejected: eject it before it is taken out ({})",
                error.one_line()
            ));
            false
        }
    }
}

/// Has the system look at the card again.
pub fn release(card: OpenCard, screen: &Screen) {
    if let Some(doubt) = card.target.doubt() {
        screen.say(&format!("{}: {doubt}", card.target.path().display()));
    }
    if card.target.info().is_some()
        && let Err(error) = card.target.reread_table()
    {
        screen.say(&format!(
            "{}; take the card out and put it in again",
            error.one_line()
        ));
    }
}
