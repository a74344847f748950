//! Ctrl-C, SIGTERM and SIGHUP set a flag; the work sees it at its next step and cleans up.

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// Has the user asked to stop?
#[derive(Clone, Copy, Debug)]
pub struct Interrupt(());

impl Interrupt {
    /// For tests: nobody asks.
    #[cfg(test)]
    pub fn none() -> Self {
        Self(())
    }

    pub fn requested(self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// Takes over the signals. Where that fails, they end the program as they always did.
pub fn install() -> Interrupt {
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));
    Interrupt(())
}
