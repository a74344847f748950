//! Folders of files that came off a medium, made on this system: Linux and macOS.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::time::SystemTime;

use super::unix::caller;

/// Makes a folder that was not there, and that nobody but its owner can enter.
///
/// # Errors
/// What the system fails with; `AlreadyExists` also for a link to nothing.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    give(path);
    Ok(())
}

/// Makes a symlink; returns false where the system has none.
///
/// # Errors
/// What the system fails with.
pub fn create_link(target: &[u8], path: &Path) -> io::Result<bool> {
    symlink(OsStr::from_bytes(target), path)?;
    give(path);
    Ok(true)
}

/// Under sudo a file is its caller's; shares and FAT have no owners.
fn give(path: &Path) {
    if let Some((user, group)) = caller() {
        let _ = lchown(path, Some(user), Some(group));
    }
}

/// Gives an open file or folder its permission bits, as far as they are about reading, writing and
/// running, and the time of its last change. File systems that know less keep less.
pub fn set_attributes(file: &File, mode: u16, modified: SystemTime) {
    let _ = file.set_permissions(Permissions::from_mode(u32::from(mode & 0o777)));
    let _ = file.set_times(FileTimes::new().set_modified(modified));
}

/// The same of a folder that this program made.
pub fn set_folder_attributes(path: &Path, mode: u16, modified: SystemTime) {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
        && let Ok(folder) = File::open(path)
    {
        set_attributes(&folder, mode, modified);
    }
}

/// Takes a name as it is.
pub fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

/// Returns the bytes of a word of the command line.
pub fn bytes(word: &OsStr) -> Vec<u8> {
    word.as_bytes().to_vec()
}
