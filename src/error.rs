//! The one error type: whose fault it is (`kind`), what happened where (`context`), the cause
//! (`source`) and what to do next (`hint`).

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is. The command line maps each kind to one exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system or a device failed a request.
    Io,
    /// There is no room for the output, or the target is too small.
    NoSpace,
    /// The call makes no sense.
    Usage,
    /// The input is damaged or inconsistent.
    Unsound,
    /// The input is sound, but in a way this program does not handle.
    Unsupported,
    /// What was read back is not what was written, or a checksum does not match.
    Verify,
    /// Refused because it could destroy something.
    Refused,
    /// The user (or a caller's [`Progress`](crate::progress::Progress)) stopped it.
    Cancelled,
    /// A rule of this program itself is broken.
    Internal,
}

/// What went wrong. `Display` gives the context alone; the cause comes through `source()`.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    hint: Option<String>,
    gone: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            hint: None,
            gone: false,
            source: None,
        }
    }

    /// An operating-system error, with what was being done and where. `Cancelled` that came through
    /// `std::io` traits stays so.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        let ours = source.get_ref().and_then(|error| error.downcast_ref());
        if ours.is_some_and(|error: &Self| error.kind == ErrorKind::Cancelled) {
            return Self::cancelled();
        }
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            context: context.into(),
            hint: None,
            gone: ours.is_some_and(|error: &Self| error.gone),
            source: Some(Box::new(source)),
        }
    }

    pub fn unsound(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsound, context)
    }

    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, context)
    }

    pub fn usage(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, context)
    }

    pub fn refused(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, context)
    }

    pub fn internal(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, context)
    }

    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "stopped")
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says that the device does not answer any more: a sign that it was pulled out, rather than that a
    /// place on it is bad.
    #[must_use]
    pub fn gone(mut self) -> Self {
        self.gone = true;
        self
    }

    /// Puts `context` in front: the larger thing that was being done. Where it was stopped is of no
    /// interest to who stopped it.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        if self.kind != ErrorKind::Cancelled {
            self.context = format!("{context}: {}", self.context);
        }
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Does the device not answer any more? What says so is known in `device`, for each system.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the operating system's error, if that is the cause.
    pub fn io_error(&self) -> Option<&io::Error> {
        self.source.as_ref()?.downcast_ref()
    }

    /// Returns context and all causes in one line, without the hint; control characters, which
    /// may come from a medium, are replaced.
    pub fn one_line(&self) -> String {
        let mut line = self.context.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors of others repeat their cause.
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line.replace(char::is_control, "\u{fffd}")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// So that a [`ReadAt`](crate::io::ReadAt) can stand behind `std::io` traits.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = error.io_error().map_or(
            match error.kind {
                ErrorKind::Unsound | ErrorKind::Unsupported => io::ErrorKind::InvalidData,
                _ => io::ErrorKind::Other,
            },
            io::Error::kind,
        );
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one_line() {
        let cause = Error::unsound("not \"a\nb\u{1b}[2J\"");
        let error = Error::unsound("the map").with_source(cause);
        assert_eq!(error.one_line(), "the map: not \"a\u{fffd}b\u{fffd}[2J\"");
        let twice = Error::unsound("no map: too long").with_source(Error::unsound("too long"));
        assert_eq!(twice.one_line(), "no map: too long");
    }

    #[test]
    fn cancelled_is_no_failure_of_the_system() {
        let through = io::Error::from(Error::cancelled());
        let error = Error::io("writing", through);
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.within("partition 2").one_line(), "stopped");
        let other = io::Error::from(Error::unsound("no map"));
        assert_eq!(Error::io("writing", other).kind(), ErrorKind::Io);
    }
}
