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

/// Returns how many bytes this user can still write to the file system of `dir`.
pub(super) fn free_space(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
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

pub(super) fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn locked(path: &Path) -> Error {
    Error::refused(format!(
        "{} is being written by another program",
        path.display()
    ))
    .with_hint("wait until it has finished, or stop it")
}
