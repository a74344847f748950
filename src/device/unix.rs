//! What Linux and macOS share.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::os::explain;
use super::{Access, PathKind};
use crate::error::{Error, Result};

/// For files: never wait for a pipe that took the file's place. (Drives would open without a medium.)
pub(super) const NO_WAIT: OFlags = OFlags::NONBLOCK;

/// Locks a file against everybody else who asks, or notes that its file system cannot.
pub(super) fn lock_alone(file: &File, path: &Path, notes: &mut Vec<String>) -> Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(locked(path)),
        Err(_) => notes.push("this file system cannot lock the file".to_owned()),
        Ok(()) => {}
    }
    Ok(())
}

/// Returns the length in bytes of what was opened as a file, if it is one.
pub(super) fn file_len(file: &File, path: &Path) -> Result<u64> {
    let meta = file
        .metadata()
        .map_err(|error| explain(error, "open", path))?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    Err(Error::refused(format!(
        "{} is no file any more",
        path.display()
    )))
}

/// Does the error say that a file system knows no such request as sync? Shares, FUSE and exFAT do.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    [
        Errno::NOTTY,
        Errno::NOTSUP,
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::NOSYS,
    ]
    .iter()
    .any(|&errno| is_errno(error, errno))
}

/// Creates a file that was not there, and that nobody but its owner can read. Under sudo that is the user
/// who called it.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    if let Some((user, group)) = caller() {
        // Shares and FAT have no owners, or do not let even root choose them.
        let _ = std::os::unix::fs::fchown(&file, Some(user), Some(group));
    }
    Ok(file)
}

/// Returns user and group of who called sudo; `None` without it.
pub(super) fn caller() -> Option<(u32, u32)> {
    let root = rustix::process::geteuid().is_root();
    sudo_user(root, |name| std::env::var(name).ok())
}

fn sudo_user(root: bool, variable: impl Fn(&str) -> Option<String>) -> Option<(u32, u32)> {
    let number = |name| variable(name)?.parse().ok();
    match root {
        true => Some((number("SUDO_UID")?, number("SUDO_GID")?)),
        false => None,
    }
}

pub(super) fn is_same_file(a: &Path, b: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(Some((0, meta.rdev(), true))),
        Ok(meta) => Ok(Some((meta.dev(), meta.ino(), false))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (a, b) = (identity(a)?, identity(b)?);
    Ok(a.is_some() && a == b)
}

pub(super) fn path_kind(path: &Path) -> io::Result<PathKind> {
    let kind = fs::metadata(path)?.file_type();
    Ok(if kind.is_block_device() {
        PathKind::Device
    } else if kind.is_file() {
        PathKind::File
    } else if kind.is_dir() {
        PathKind::Unfit("a folder")
    } else if kind.is_fifo() {
        PathKind::Unfit("a pipe, which cannot be read at any place")
    } else if kind.is_char_device() {
        PathKind::Unfit("a character device")
    } else {
        PathKind::Unfit("a socket")
    })
}

pub(super) fn open_with(path: &Path, access: Access, flags: OFlags) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(access != Access::Read)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

pub(super) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buf, offset)
}

pub(super) fn write_at(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    file.write_at(buf, offset)
}

/// Files are sparse here unless they are filled.
pub(super) fn make_sparse(_file: &File) {}

#[cfg(feature = "cli")]
pub(super) fn on_interrupt(handler: fn()) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) {
        std::thread::spawn(move || {
            for _ in signals.forever() {
                handler();
            }
        });
    }
}

pub(super) fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Takes the lock on a device that all runs of this program ask for: alone to write, together to read.
pub(super) fn lock(file: &File, alone: bool) -> io::Result<()> {
    let operation = match alone {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    Ok(rustix::fs::flock(file, operation)?)
}

/// Says that another run of this program, or one like it, has the file or device.
pub(super) fn locked(path: &Path) -> Error {
    Error::refused(format!("{} is in use by another program", path.display()))
        .with_hint("wait until it has finished, or stop it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_who_called_sudo() {
        let sudo = |name: &str| match name {
            "SUDO_UID" => Some("1001".to_owned()),
            "SUDO_GID" => Some("100".to_owned()),
            _ => None,
        };
        assert_eq!(sudo_user(true, sudo), Some((1001, 100)));
        // The variables alone say nothing.
        assert_eq!(sudo_user(false, sudo), None);
        assert_eq!(sudo_user(true, |_| None), None);
        assert_eq!(sudo_user(true, |_| Some("-1".to_owned())), None);
    }

    #[test]
    fn only_what_is_not_known_is_unknown() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::NOTTY, Errno::OPNOTSUPP, Errno::INVAL, Errno::NOSYS] {
            assert!(is_unknown(&error(errno)));
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::ACCESS] {
            assert!(!is_unknown(&error(errno)));
        }
    }
}
