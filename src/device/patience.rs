//! Programs of the system that may never answer: failing media can keep them for ever.

use std::io::{self, Read};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a program may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Then the user is told what is waited for.
    pub tell: Duration,
    /// Then it is given up.
    pub give_up: Duration,
}

static TELL: OnceLock<fn(&str)> = OnceLock::new();

/// Has `tell` called with what the program waits for, when that takes long. Only the first call counts.
pub fn tell_waits(tell: fn(&str)) {
    let _ = TELL.set(tell);
}

/// Runs `command` to its end; `what` is how it is called when it takes long.
///
/// # Errors
/// What the system fails with; `TimedOut` if it does not end.
pub(super) fn run(command: &mut Command, what: &str, patience: Patience) -> io::Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let begun = Instant::now();
    let mut pause = Duration::from_millis(2);
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let waited = begun.elapsed();
        if waited >= patience.give_up {
            // One that hangs in the kernel does not even end then: it is not waited for.
            let _ = child.kill();
            let seconds = patience.give_up.as_secs();
            let text =
                format!("no answer within {seconds} s: the card or its reader may be broken");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if waited >= patience.tell && !told {
            told = true;
            if let Some(tell) = TELL.get() {
                tell(&format!("waiting for {what}"));
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    };
    let text = |thread: JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output {
        status,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Reads a pipe to its end, so that nobody waits for it to be emptied.
fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came until then is what there is.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> io::Result<Output> {
        let patience = Patience {
            tell: Duration::from_millis(50),
            give_up: Duration::from_millis(1500),
        };
        run(Command::new("sh").args(["-c", script]), "it", patience)
    }

    #[test]
    fn answers_are_whole_and_silence_ends() {
        let output = shell("seq 100000; echo no >&2; exit 3").unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout.len(), 588_895);
        assert_eq!(output.stderr, b"no\n");
        let begun = Instant::now();
        let error = shell("exec sleep 60").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
