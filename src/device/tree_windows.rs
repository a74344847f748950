//! Folders of files that came off a medium, made on this system: Windows.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Makes a folder that was not there.
///
/// # Errors
/// What the system fails with.
pub fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)
}

/// Makes no symlink, since only administrators may; returns false.
///
/// # Errors
/// None.
pub fn create_link(_target: &[u8], _path: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Gives an open file the time of its last change.
pub fn set_attributes(file: &File, _mode: u16, modified: SystemTime) {
    let _ = file.set_times(FileTimes::new().set_modified(modified));
}

/// Folders have the time at which they were made.
pub fn set_folder_attributes(_path: &Path, _mode: u16, _modified: SystemTime) {}

/// Takes a name as text.
pub fn name(bytes: &[u8]) -> OsString {
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// Returns the bytes of a word of the command line.
pub fn bytes(word: &OsStr) -> Vec<u8> {
    word.to_string_lossy().into_owned().into_bytes()
}
