//! Ctrl-C, SIGTERM and SIGHUP set a flag; the work sees it at its next step and cleans up. A second
//! one does not wait for that: a failing card can take a minute for one step.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit::Exit;
use crate::{capture, device};

static STOP: AtomicBool = AtomicBool::new(false);

/// Is the user being asked something? Then nothing has been written, and there is nothing to clean up.
static ASKING: AtomicBool = AtomicBool::new(false);

/// Lets the first signal end the program while `question` is asked.
pub fn while_asking<T>(question: impl FnOnce() -> T) -> T {
    ASKING.store(true, Ordering::SeqCst);
    let answer = question();
    ASKING.store(false, Ordering::SeqCst);
    answer
}

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
    device::on_interrupt(|| {
        if ASKING.load(Ordering::SeqCst) {
            let _ = writeln!(
                std::io::stderr(),
                "\npishrink: stopped, nothing was written"
            );
            std::process::exit(Exit::Interrupted as i32);
        }
        if STOP.swap(true, Ordering::Relaxed) {
            capture::remove_unfinished();
            // Not through the screen, which may be held by a thread that waits.
            let _ = writeln!(std::io::stderr(), "pishrink: stopped at once");
            std::process::exit(Exit::Interrupted as i32);
        }
    });
    Interrupt(())
}
