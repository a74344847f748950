//! Files that results go to, as this system makes them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::os;
use crate::io::{Files, Synced};

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemFiles;

impl Files for SystemFiles {
    fn create_new(&self, path: &Path) -> io::Result<File> {
        os::create_private(path)
    }

    fn make_sparse(&self, file: &File) {
        os::make_sparse(file);
    }

    fn sync(&self, file: &File) -> io::Result<Synced> {
        os::sync(file, false)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) {
        if let Ok(folder) = File::open(folder) {
            let _ = os::sync(&folder, false);
        }
    }

    fn can_hold(&self, file: &File, len: u64) -> bool {
        os::can_hold(file, len)
    }
}

/// Asks for the strongest sync that the file system knows: `full`, else `plain` if there is one.
///
/// # Errors
/// What the system fails with, unless `is_unknown` says that it only knows no such request.
pub(super) fn strongest(
    full: impl FnOnce() -> io::Result<()>,
    plain: Option<&dyn Fn() -> io::Result<()>>,
    is_unknown: impl Fn(&io::Error) -> bool,
) -> io::Result<Synced> {
    match full() {
        Ok(()) => return Ok(Synced::Full),
        Err(error) if is_unknown(&error) => {}
        Err(error) => return Err(error),
    }
    let Some(plain) = plain else {
        return Ok(Synced::Unknown);
    };
    match plain() {
        Ok(()) => Ok(Synced::HandedOn),
        Err(error) if is_unknown(&error) => Ok(Synced::Unknown),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32) -> io::Result<()> {
        match code {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    #[test]
    fn what_knows_no_sync_is_no_failure_and_what_fails_is() {
        const EIO: i32 = 5;
        const ENOTTY: i32 = 25;
        let unknown = |error: &io::Error| error.raw_os_error() == Some(ENOTTY);
        for (full, plain, outcome) in [
            (0, None, Some(Synced::Full)),
            (0, Some(EIO), Some(Synced::Full)),
            (ENOTTY, None, Some(Synced::Unknown)),
            (ENOTTY, Some(0), Some(Synced::HandedOn)),
            (ENOTTY, Some(ENOTTY), Some(Synced::Unknown)),
            (ENOTTY, Some(EIO), None),
            (EIO, Some(0), None),
        ] {
            let second = plain.map(|code| move || answer(code));
            let second = second
                .as_ref()
                .map(|ask| ask as &dyn Fn() -> io::Result<()>);
            let synced = strongest(|| answer(full), second, unknown);
            assert_eq!(synced.ok(), outcome, "{full} {plain:?}");
        }
    }
}
