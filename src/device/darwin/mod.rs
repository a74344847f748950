//! The steps on macOS: in which order and how often the system is asked, and what its errors mean.
//!
//! ```text
//! unmount ── open, exclusively ── lock ── … work … ── eject while it is open ── close ── diskutil eject
//!    └──── again, while it is busy ────┘
//! ```
//! All questions go through [`System`], which `macos.rs` answers with the real one and the tests with a
//! play: so the steps are tested on every host. Numbers of errors are macOS's.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::device::Access;
use crate::error::{Error, Result};

/// Numbers of sys/errno.h.
pub(super) mod errno {
    pub const EPERM: i32 = 1;
    pub const EIO: i32 = 5;
    pub const ENXIO: i32 = 6;
    pub const EACCES: i32 = 13;
    pub const EBUSY: i32 = 16;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const EROFS: i32 = 30;
    pub const EAGAIN: i32 = 35;
    pub const ENOTSUP: i32 = 45;
    pub const ETIMEDOUT: i32 = 60;
    pub const EPWROFF: i32 = 82;
    pub const EDEVERR: i32 = 83;
    pub const EOPNOTSUPP: i32 = 102;
}
use errno::*;

/// The kernel says so when a device does not answer any more.
const GONE: [i32; 3] = [ENXIO, ENODEV, EPWROFF];

const IN_THE_WAY: &str = "close the programs that use it, Disk Utility too, or eject it in the Finder and put it in again";

const PRIVACY: &str = "allow your terminal, in System Settings > Privacy & Security, both Removable Volumes \
     (Files and Folders) and Full Disk Access, and open a new one; over ssh: Sharing > Remote Login > \
     Allow full disk access for remote users";

/// Between unmounting twice.
const UNMOUNT_PAUSE: Duration = Duration::from_secs(1);

/// What was just unmounted is sometimes held a moment longer.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
const OPEN_TRIES: u32 = 10;

const EJECT_TRIES: u32 = 3;
const EJECT_PAUSE: Duration = Duration::from_secs(1);

/// How a device is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpenAs {
    pub write: bool,
    /// Nobody else, file systems too, can open it meanwhile (`O_EXLOCK`).
    pub exclusive: bool,
}

impl OpenAs {
    /// Returns the flags of fcntl.h.
    pub(super) fn flags(self) -> i32 {
        const O_RDWR: i32 = 2;
        const O_NONBLOCK: i32 = 4;
        const O_EXLOCK: i32 = 0x20;
        let access = if self.write { O_RDWR } else { 0 };
        let alone = if self.exclusive {
            O_EXLOCK | O_NONBLOCK
        } else {
            0
        };
        access | alone
    }
}

/// What authopen gave.
pub(super) struct Asked<F> {
    pub file: Option<F>,
    /// What it wrote to its standard error.
    pub said: String,
}

/// What the steps ask of the system.
pub(super) trait System {
    type File;

    /// Runs diskutil; returns what it printed.
    ///
    /// # Errors
    /// `Io` with what it said; if it does not answer in time as well.
    fn diskutil(&self, arguments: &[&str]) -> Result<Vec<u8>>;

    fn open(&self, path: &Path, how: OpenAs) -> io::Result<Self::File>;

    /// Has the system ask the user for permission to open it.
    fn authopen(&self, path: &Path, how: OpenAs) -> io::Result<Asked<Self::File>>;

    /// Takes the lock that all runs of this program ask for: alone to write, together to read.
    fn lock(&self, file: &Self::File, alone: bool) -> io::Result<()>;

    /// Ejects the medium of an open disk (`DKIOCEJECT`).
    fn eject(&self, file: &Self::File) -> io::Result<()>;

    fn is_root(&self) -> bool;

    fn sleep(&self, time: Duration);
}

/// Unmounts what diskutil's `commands`, verb and name each, unmount. `force`: the user has agreed to lose
/// all that is on it.
///
/// # Errors
/// `Refused` with who is in the way, as far as diskutil knows.
pub(super) fn unmount<S: System>(
    system: &S,
    device: &Path,
    commands: &[(&str, String)],
    force: bool,
) -> Result<()> {
    for (verb, name) in commands {
        let mut unmounted = system.diskutil(&[verb, name]);
        if unmounted.is_err() {
            system.sleep(UNMOUNT_PAUSE);
            unmounted = system.diskutil(&[verb, name]);
        }
        if force && unmounted.is_err() {
            unmounted = system.diskutil(&[verb, "force", name]);
        }
        unmounted.map_err(|error| {
            Error::refused(format!("cannot unmount {}", device.display()))
                .with_source(error)
                .with_hint(IN_THE_WAY)
        })?;
    }
    Ok(())
}

/// Opens the disk `path` and locks it. `unmount` is called before each further try while it is busy.
/// Returns what could not be had as well.
///
/// # Errors
/// `Refused` if it is in use, or permission was not given; `Io` else.
pub(super) fn open<S: System>(
    system: &S,
    path: &Path,
    access: Access,
    exclusive: bool,
    unmount: &dyn Fn() -> Result<()>,
) -> Result<(S::File, Vec<String>)> {
    let write = access != Access::Read;
    let mut how = OpenAs { write, exclusive };
    let mut notes = Vec::new();
    let mut tries = 0;
    let file = loop {
        let error = match ask(system, path, how) {
            Ok(file) => break file,
            Err(Refusal::Told(error)) => return Err(error),
            Err(Refusal::System(error)) => error,
        };
        match error.raw_os_error() {
            Some(EBUSY | EAGAIN) if tries < OPEN_TRIES => {
                tries += 1;
                system.sleep(OPEN_PAUSE);
                unmount()?;
            }
            Some(EBUSY | EAGAIN) if how.exclusive && !write => {
                how.exclusive = false;
                notes.push("another program has it open, and may change it meanwhile".to_owned());
            }
            Some(EINVAL | ENOTSUP | EOPNOTSUPP) if how.exclusive => {
                how.exclusive = false;
                notes.push("the device could not be had alone".to_owned());
            }
            _ => {
                return Err(explain(
                    error,
                    "open",
                    path,
                    When::Opening,
                    system.is_root(),
                ));
            }
        }
    };
    match system.lock(&file, write) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EAGAIN) => {
            let what = format!("{} is in use by another pishrink", path.display());
            return Err(Error::refused(what).with_hint("wait until it has finished, or stop it"));
        }
        Err(_) => notes.push("the device could not be locked".to_owned()),
    }
    Ok((file, notes))
}

/// Why it could not be opened.
enum Refusal {
    System(io::Error),
    /// Nothing else helps.
    Told(Error),
}

/// Opens it, if need be with the user's permission.
fn ask<S: System>(system: &S, path: &Path, how: OpenAs) -> Result<S::File, Refusal> {
    let error = match system.open(path, how) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let denied = matches!(error.raw_os_error(), Some(EACCES | EPERM));
    if !denied || system.is_root() {
        return Err(Refusal::System(error));
    }
    let place = path.display();
    let asked = system.authopen(path, how).map_err(|cause| {
        let what = format!("cannot open {place}, nor ask for permission (authopen)");
        Refusal::Told(Error::io(what, cause).with_hint("run it with sudo"))
    })?;
    let said = asked
        .said
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty());
    let said = said.unwrap_or_default();
    match asked.file {
        Some(file) => Ok(file),
        None if said.contains("Resource busy") => {
            Err(Refusal::System(io::Error::from_raw_os_error(EBUSY)))
        }
        None if said.contains("Operation not permitted") => {
            Err(Refusal::System(io::Error::from_raw_os_error(EPERM)))
        }
        None if said.is_empty() => Err(Refusal::Told(
            Error::refused(format!("cannot open {place}: permission was not given")).with_hint(
                "answer the system's question, or run it with sudo (over ssh there is no question)",
            ),
        )),
        // It may be the flags that it does not take.
        None if how.exclusive => Err(Refusal::System(io::Error::from_raw_os_error(EINVAL))),
        None => Err(Refusal::Told(
            Error::refused(format!("cannot open {place}: {said}")).with_hint("run it with sudo"),
        )),
    }
}

/// Ejects the medium of the disk `name`, which `file` has open, and closes it.
///
/// # Errors
/// What diskutil said.
pub(super) fn eject<S: System>(system: &S, file: S::File, name: &str) -> Result<()> {
    // While it is open nothing is mounted on it: what the system would write then never happens.
    let ejected = system.eject(&file).is_ok();
    drop(file);
    if ejected {
        return Ok(());
    }
    let mut tries = 0;
    loop {
        tries += 1;
        match system.diskutil(&["eject", name]) {
            Err(_) if tries < EJECT_TRIES => system.sleep(EJECT_PAUSE),
            ended => return ended.map(drop),
        }
    }
}

/// What was being done when an error came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    Opening,
    /// A request to an open device.
    Request,
}

/// May the same request work in a moment? The kernel says "busy" of a device that is offline.
pub(super) fn is_unready(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EBUSY)
}

/// Turns a system's error into one that says what can be done.
pub(super) fn explain(
    error: io::Error,
    doing: &str,
    path: &Path,
    when: When,
    is_root: bool,
) -> Error {
    let context = format!("cannot {doing} {}", path.display());
    let on_device = path.starts_with("/dev");
    let code = error.raw_os_error();
    let hint = match code {
        Some(EBUSY | EAGAIN) if when == When::Opening => {
            return Error::refused(format!("{context}: it is in use"))
                .with_source(error)
                .with_hint(IN_THE_WAY);
        }
        Some(code) if GONE.contains(&code) || (code == EBUSY && on_device) => {
            return Error::io(context, error)
                .gone()
                .with_hint("the device is gone: was the card pulled out?");
        }
        Some(EACCES) if on_device && is_root => {
            "the card is write-protected: move the switch on its or the adapter's side"
        }
        Some(EACCES) if on_device => "run it with sudo",
        Some(EPERM) => PRIVACY,
        Some(EROFS) => "the card is write-protected: move the switch on its or the adapter's side",
        Some(EIO | EDEVERR | ETIMEDOUT) if on_device => {
            "the device fails: try another reader or card"
        }
        _ => return Error::io(context, error),
    };
    Error::io(context, error).with_hint(hint)
}

/// Adds what helps against the system's privacy rules, where nothing else is known to help.
pub(super) fn advise(error: Error) -> Error {
    let code = error.io_error().and_then(io::Error::raw_os_error);
    match (code, error.hint()) {
        (Some(EPERM), None) => error.with_hint(PRIVACY),
        _ => error,
    }
}

/// Returns the disk or partition that a file system was mounted from: `disk4s1` for `/dev/disk4s1` and, as
/// some versions have it for FAT, exFAT and NTFS, `msdos://disk4s1/NAME`.
pub(super) fn mounted_from(source: &str) -> Option<&str> {
    let name = match (source.strip_prefix("/dev/"), source.split_once("://")) {
        (Some(name), _) => name,
        (None, Some((_, rest))) => rest.split('/').next().unwrap_or(rest),
        (None, None) => return None,
    };
    let number = name.strip_prefix("disk")?;
    number
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(name)
}

#[cfg(test)]
mod tests;
