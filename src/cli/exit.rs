//! The documented exit codes.

use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Done = 0,
    /// A device or the system failed.
    Failed = 1,
    Usage = 2,
    /// The input is not sound, or not supported.
    Unsound = 3,
    /// What was read back is not what was written.
    VerifyFailed = 4,
    /// Refused for safety.
    Refused = 5,
    /// Done, but not all of the input could be saved.
    Losses = 6,
    /// The card is as written, but a system mounted it since, and changed what it changes then.
    MountedSince = 7,
    Interrupted = 130,
}

impl Exit {
    /// Returns the code that an error ends the program with.
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Internal => Self::Failed,
            ErrorKind::Usage => Self::Usage,
            ErrorKind::Unsound | ErrorKind::Unsupported => Self::Unsound,
            ErrorKind::Verify => Self::VerifyFailed,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Cancelled => Self::Interrupted,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_documented_code() {
        for (kind, code) in [
            (ErrorKind::Io, 1),
            (ErrorKind::NoSpace, 1),
            (ErrorKind::Internal, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::Unsound, 3),
            (ErrorKind::Unsupported, 3),
            (ErrorKind::Verify, 4),
            (ErrorKind::Refused, 5),
            (ErrorKind::Cancelled, 130),
        ] {
            assert_eq!(Exit::of(&Error::new(kind, "")) as u8, code, "{kind:?}");
        }
    }
}
