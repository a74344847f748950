//! What the user sees: bars on a terminal, a line every few seconds elsewhere, results, errors.
//!
//! Results go to standard output, everything else to standard error. All text that may come from
//! a medium passes [`clean`] first.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::Global;
use super::exit::Exit;
use super::interrupt::Interrupt;
use crate::error::{Error, Result};
use crate::progress::{Event, Phase, Progress};
use crate::units::human_bytes;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// The way to the user. As a [`Progress`] it shows one stretch of work at a time; [`Screen::lane`]
/// makes more of them, for several cards at once.
pub struct Screen {
    global: Global,
    terminal: bool,
    /// The terminal can have lines drawn over.
    draws: bool,
    bars: MultiProgress,
    interrupt: Interrupt,
    /// Standard output carries the image, so results go to standard error.
    stdout_taken: AtomicBool,
    main: Mutex<Option<Stretch>>,
}

impl Screen {
    pub fn new(global: &Global, interrupt: Interrupt) -> Self {
        let terminal = std::io::stderr().is_terminal();
        // Emacs's shell and some build servers' consoles.
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            global: *global,
            terminal,
            draws: terminal && !dumb,
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)),
            interrupt,
            stdout_taken: AtomicBool::new(false),
            main: Mutex::new(None),
        }
    }

    /// Says that standard output carries the image.
    pub fn take_stdout(&self) {
        self.stdout_taken.store(true, Ordering::Relaxed);
    }

    pub fn interrupt(&self) -> Interrupt {
        self.interrupt
    }

    /// Is there a person to ask?
    pub fn can_ask(&self) -> bool {
        !self.global.json && self.terminal && std::io::stdin().is_terminal()
    }

    /// A listener for one of several cards.
    pub fn lane(&self, name: impl Into<String>) -> Lane<'_> {
        Lane {
            screen: self,
            name: clean(&name.into()),
            stretch: Mutex::new(None),
        }
    }

    /// Prints a command's result: `object` with --json, else `text` (lines), unless --quiet.
    pub fn result(&self, text: &str, object: &Value) {
        self.clear();
        if self.global.json {
            self.print(&format!("{object:#}"));
        } else if !self.global.quiet {
            let lines: Vec<_> = text.trim_end().lines().map(clean).collect();
            self.print(&lines.join("\n"));
        }
    }

    /// Prints what went wrong in one line, with what to do about it.
    pub fn error(&self, error: &Error) {
        self.clear();
        if self.global.json {
            self.print(&error_text(error));
        }
        self.complain(error);
    }

    /// Prints an error for a person only.
    pub fn complain(&self, error: &Error) {
        self.complain_of("", error);
    }

    /// The same of one of several things, by name.
    pub fn complain_of(&self, name: &str, error: &Error) {
        let name = match name.is_empty() || error.one_line().contains(name) {
            true => String::new(),
            false => format!("{name}: "),
        };
        complain_with(&name, error);
    }

    /// Prints a line about the running work.
    pub fn say(&self, line: &str) {
        if self.silent() {
            return;
        }
        let line = clean(line);
        if self.draws {
            self.bars.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{line}");
            });
        } else {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn silent(&self) -> bool {
        self.global.quiet || self.global.json
    }

    fn print(&self, text: &str) {
        let _ = if self.stdout_taken.load(Ordering::Relaxed) {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    fn clear(&self) {
        *lock(&self.main) = None;
        let _ = self.bars.clear();
    }

    fn show(&self, slot: &Mutex<Option<Stretch>>, name: &str, event: Event) -> Result<()> {
        if self.interrupt.requested() {
            return Err(Error::cancelled());
        }
        if self.silent() {
            return Ok(());
        }
        let mut slot = lock(slot);
        match event {
            Event::Started { phase, total } => *slot = Some(self.start(name, phase, total)),
            Event::Advanced { phase, bytes } => {
                if let Some(stretch) = slot.as_mut().filter(|stretch| stretch.phase == phase) {
                    stretch.done += bytes;
                    match &stretch.bar {
                        Some(bar) => bar.set_position(stretch.done),
                        None if stretch.last_line.elapsed() >= LINE_EVERY => {
                            stretch.last_line = Instant::now();
                            self.say(&stretch.line(name));
                        }
                        None => {}
                    }
                }
            }
            Event::Finished { phase } => {
                if let Some(stretch) = slot.take_if(|stretch| stretch.phase == phase)
                    && stretch.bar.is_none()
                    && stretch.begun.elapsed() >= LINE_EVERY
                {
                    self.say(&stretch.line(name));
                }
            }
            Event::Note(text) => {
                drop(slot);
                self.say(&format!("{name}{text}"));
            }
        }
        Ok(())
    }

    fn start(&self, name: &str, phase: Phase, total: Option<u64>) -> Stretch {
        let now = Instant::now();
        let bar = self.draws.then(|| {
            let bar = self.bars.add(match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::new_spinner(),
            });
            let known = "{prefix} {wide_bar} {percent:>3}%  {decimal_bytes} of {decimal_total_bytes}  \
                         {decimal_bytes_per_sec}  {eta} left";
            let unknown = "{prefix} {spinner} {decimal_bytes}  {decimal_bytes_per_sec}";
            let template = if total.is_some() { known } else { unknown };
            // OK to unwrap: the templates are the two above.
            bar.set_style(ProgressStyle::with_template(template).unwrap());
            bar.set_prefix(format!("{name}{}", title(phase)));
            bar
        });
        let stretch = Stretch {
            phase,
            total,
            done: 0,
            begun: now,
            last_line: now,
            bar,
        };
        if !self.draws {
            let size = total.map(|total| format!(" {}", human_bytes(total)));
            self.say(&format!(
                "{name}{}{}",
                title(phase),
                size.unwrap_or_default()
            ));
        }
        stretch
    }
}

/// Prints an error for a person, where there is no screen yet.
pub fn complain(error: &Error) {
    complain_with("", error);
}

fn complain_with(begin: &str, error: &Error) {
    let hint = error.hint().map(|hint| format!("; {hint}"));
    let text = error.one_line();
    let line = format!("pishrink: {begin}{text}{}", hint.unwrap_or_default());
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{}", clean(&line));
}

/// Prints what is wrong with the arguments as --json wants it.
pub fn print_error(error: &Error) {
    // A closed standard output is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{}", error_text(error));
}

fn error_text(error: &Error) -> String {
    format!("{:#}", json!({ "error": error_object(error) }))
}

/// An error as results tell it.
pub fn error_object(error: &Error) -> Value {
    json!({
        "code": Exit::of(error) as u8,
        "kind": format!("{:?}", error.kind()).to_lowercase(),
        "message": clean(&error.one_line()),
        "hint": error.hint().map(clean),
    })
}

impl Progress for Screen {
    fn event(&self, event: Event) -> Result<()> {
        self.show(&self.main, "", event)
    }
}

/// One of several stretches of work that run at the same time.
pub struct Lane<'a> {
    screen: &'a Screen,
    name: String,
    stretch: Mutex<Option<Stretch>>,
}

impl Progress for Lane<'_> {
    fn event(&self, event: Event) -> Result<()> {
        self.screen
            .show(&self.stretch, &format!("{}: ", self.name), event)
    }
}

/// A phase under way.
struct Stretch {
    phase: Phase,
    total: Option<u64>,
    done: u64,
    begun: Instant,
    last_line: Instant,
    /// On a terminal only.
    bar: Option<ProgressBar>,
}

impl Stretch {
    fn line(&self, name: &str) -> String {
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = self.done as f64 / seconds;
        let what = title(self.phase);
        let done = human_bytes(self.done);
        let speed = human_bytes(rate as u64);
        match self.total.filter(|&total| total > 0) {
            Some(total) => {
                let percent = self.done.min(total) as f64 * 100.0 / total as f64;
                let of = human_bytes(total);
                let start = format!("{name}{what} {percent:.0}% ({done} of {of})");
                if self.done == 0 {
                    // No rate yet, so nothing can be said of the time.
                    return start;
                }
                let left = human_seconds(total.saturating_sub(self.done) as f64 / rate.max(1.0));
                format!("{start}, {speed}/s, {left} left")
            }
            None => format!("{name}{what} {done}, {speed}/s"),
        }
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Shows a time the way people say it.
pub fn human_seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Makes text from a medium harmless to a terminal: no control characters, no change of direction.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'))
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn title(phase: Phase) -> &'static str {
    match phase {
        Phase::Unpack => "unpacking",
        Phase::Check => "checking",
        Phase::Capture => "capturing",
        Phase::Probe => "probing",
        Phase::Write => "writing",
        Phase::Sync => "syncing",
        Phase::Verify => "verifying",
        Phase::Expand => "expanding",
        Phase::Download => "fetching",
    }
}

/// A thread that panicked while it printed has left nothing half-done that matters.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_media_cannot_steer_the_terminal() {
        assert_eq!(
            clean("a\u{1b}[2Jb\r\n\u{202e}c"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}c"
        );
    }

    #[test]
    fn shows_times() {
        for (seconds, text) in [
            (0.04, "0.0 s"),
            (9.9, "9.9 s"),
            (9.96, "10 s"),
            (59.6, "1 min 0 s"),
            (3725.0, "1 h 2 min"),
        ] {
            assert_eq!(human_seconds(seconds), text);
        }
    }
}
