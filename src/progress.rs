//! What the core tells about its work. It knows no bar, no rate and no clock: it states facts,
//! and the listener's answer can stop it.

use crate::error::{Error, Result};

/// What a stretch of work is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// Unpacking a compressed source into a temporary file.
    Unpack,
    /// Reading and checking metadata.
    Check,
    /// Reading the source and writing the image.
    Capture,
    /// Hashing the zeros that the image has where nothing is stored; goes on beside [`Phase::Capture`].
    Zeros,
    /// Looking for counterfeit capacity.
    Probe,
    /// Writing the card.
    Write,
    /// Waiting for the device to finish its writes.
    Sync,
    /// Reading the card back.
    Verify,
    /// Growing partition and filesystem.
    Expand,
    /// Fetching from the network.
    Download,
}

/// A fact about running work.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A phase begins; `total` is its size in bytes where that is known.
    Started { phase: Phase, total: Option<u64> },
    /// So many bytes more of the phase are done.
    Advanced { phase: Phase, bytes: u64 },
    /// The phase is over.
    Finished { phase: Phase },
    /// Something the user should be told, in one line.
    Note(String),
}

/// A listener. `Err(Cancelled)` from [`Progress::event`] ends the work.
pub trait Progress: Send + Sync {
    /// Takes one fact.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`](crate::error::ErrorKind::Cancelled) when the work should stop.
    fn event(&self, event: Event) -> Result<()>;

    fn started(&self, phase: Phase, total: Option<u64>) -> Result<()> {
        self.event(Event::Started { phase, total })
    }
    fn advanced(&self, phase: Phase, bytes: u64) -> Result<()> {
        self.event(Event::Advanced { phase, bytes })
    }
    fn finished(&self, phase: Phase) -> Result<()> {
        self.event(Event::Finished { phase })
    }
    fn note(&self, text: impl Into<String>) -> Result<()>
    where
        Self: Sized,
    {
        self.event(Event::Note(text.into()))
    }
}

/// Listens to nothing and never stops anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) -> Result<()> {
        Ok(())
    }
}

/// Stops at the first event when told so: for tests and for signal handlers.
#[derive(Debug, Default)]
pub struct StopFlag(std::sync::atomic::AtomicBool);

impl StopFlag {
    pub fn stop(&self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Progress for StopFlag {
    fn event(&self, _: Event) -> Result<()> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(Error::cancelled());
        }
        Ok(())
    }
}
