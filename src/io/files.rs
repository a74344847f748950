//! What a program asks of the file system that its results go to, beyond reading and writing.

use std::fs::File;
use std::io;
use std::path::Path;

/// How far a file is known to have been written out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Synced {
    /// It is on the medium.
    Full,
    /// The system has handed it on; whether the disk or server has emptied its cache, it cannot tell.
    HandedOn,
    /// The file system knows no way to ask.
    Unknown,
}

impl Synced {
    /// Returns what is not certain, a clause for the user.
    pub fn doubt(self) -> Option<&'static str> {
        match self {
            Self::Full => None,
            Self::HandedOn => Some(
                "all is written out, but this file system cannot make its disk empty its cache: \
                 eject it before it is unplugged or switched off",
            ),
            Self::Unknown => Some(
                "all is written, but this file system cannot tell when it is on the disk: eject it \
                 before it is unplugged or switched off",
            ),
        }
    }
}

/// Files as the operating system makes them.
pub trait Files: Send + Sync {
    /// Creates a file that was not there, open for reading and writing. Nobody but the user who started
    /// the program can read it: images hold passwords and keys.
    ///
    /// # Errors
    /// What the system fails with; `AlreadyExists` if there is such a name.
    fn create_new(&self, path: &Path) -> io::Result<File>;

    /// Has long runs of zeros in `file`, which is empty yet, kept as holes. Best effort: most systems do
    /// so by themselves.
    fn make_sparse(&self, file: &File);

    /// Returns when everything written to `file` is as safe as its file system can make it.
    ///
    /// # Errors
    /// What the system fails with. That a file system knows no such request is no failure.
    fn sync(&self, file: &File) -> io::Result<Synced>;

    /// Gives the file `from` the name `to`, in place of what has it.
    ///
    /// # Errors
    /// What the system fails with; then `from` is as it was.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Has the names in `folder` written out, best effort: not every system opens folders.
    fn sync_folder(&self, folder: &Path);

    /// Could `file`, which is empty yet, grow to `len` bytes? True where that cannot be told without
    /// writing them. What is in it afterwards is undefined.
    fn can_hold(&self, file: &File, len: u64) -> bool;
}
