//! What the user sees: bars on a terminal, a line every few seconds elsewhere, results, errors.
//!
//! Results go to standard output, everything else to standard error. All text that may come from
//! a medium passes [`clean`] first.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::args::Global;
use super::eta::Job;
use super::exit::Exit;
use super::interrupt::Interrupt;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::progress::{Event, Phase, Progress};
use crate::units::human_bytes;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// How often the screen is brought up to date, also while nothing happens.
const TICK: Duration = Duration::from_millis(200);

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
    main: Arc<Mutex<Slot>>,
    /// All that is shown, in the order in which it was begun.
    slots: Mutex<Vec<Arc<Mutex<Slot>>>>,
    watched: Mutex<Vec<(String, Arc<Watch>)>>,
}

impl Screen {
    pub fn new(global: &Global, interrupt: Interrupt) -> Self {
        let terminal = std::io::stderr().is_terminal();
        // Emacs's shell and some build servers' consoles.
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let main = Arc::new(Mutex::new(Slot::new(String::new(), Job::default())));
        Self {
            global: *global,
            terminal,
            draws: terminal && !dumb && !global.json_progress,
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)),
            interrupt,
            stdout_taken: AtomicBool::new(false),
            slots: Mutex::new(vec![main.clone()]),
            main,
            watched: Mutex::default(),
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

    /// A listener for one of several cards, which is read back, or not.
    pub fn lane(&self, name: impl Into<String>, reads_back: bool) -> Lane<'_> {
        let job = match reads_back {
            true => Job::read_back(),
            false => Job::default(),
        };
        Lane {
            screen: self,
            slot: self.slot(clean(&name.into()), job),
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

    /// Prints how something is done, for who wants to know.
    pub fn detail(&self, line: &str) {
        if self.global.verbose {
            self.say(line);
        }
    }

    fn silent(&self) -> bool {
        self.global.quiet || self.global.json || self.global.json_progress
    }

    fn print(&self, text: &str) {
        let _ = if self.stdout_taken.load(Ordering::Relaxed) {
            writeln!(std::io::stderr(), "{text}")
        } else {
            writeln!(std::io::stdout(), "{text}")
        };
    }

    fn clear(&self) {
        for slot in lock(&self.slots).iter() {
            if let Some(bar) = lock(slot).bar.take() {
                bar.finish_and_clear();
            }
        }
        let _ = self.bars.clear();
    }

    /// Keeps what is shown moving, names what does not answer, and says that a wish to stop was heard,
    /// until the other end of `ended` is gone.
    pub fn attend(&self, ended: Receiver<()>) {
        let mut heard = false;
        let mut ticks = 0_u32;
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            if self.interrupt.requested() && !heard {
                heard = true;
                let line = "stopping\u{2026} Ctrl-C again leaves at once";
                match self.silent() {
                    true => drop(writeln!(std::io::stderr(), "pishrink: {line}")),
                    false => self.say(line),
                }
            }
            let watched: Vec<_> = lock(&self.watched).clone();
            for (name, watch) in watched {
                if let Some(news) = watch.news(Instant::now()) {
                    self.say(&format!("{name}: {news}"));
                }
            }
            ticks = ticks.wrapping_add(1);
            for slot in lock(&self.slots).iter() {
                let mut slot = lock(slot);
                slot.draw();
                // Every second.
                if ticks.is_multiple_of(5) && slot.phase.is_some() {
                    self.tell(&slot.object());
                }
            }
        }
    }

    /// Has a device's requests watched from now on.
    pub fn watch(&self, name: &str) -> Arc<Watch> {
        let watch = Arc::new(Watch::default());
        lock(&self.watched).push((clean(name), watch.clone()));
        watch
    }

    fn slot(&self, name: String, job: Job) -> Arc<Mutex<Slot>> {
        let slot = Arc::new(Mutex::new(Slot::new(name, job)));
        lock(&self.slots).push(slot.clone());
        slot
    }

    /// Prints a line for other programs, if one listens.
    fn tell(&self, object: &Value) {
        if self.global.json_progress {
            // A closed standard error is no reason to fail.
            let _ = writeln!(std::io::stderr(), "{object}");
        }
    }

    fn show(&self, slot: &Mutex<Slot>, event: Event) -> Result<()> {
        if self.interrupt.requested() {
            return Err(Error::cancelled());
        }
        let mut slot = lock(slot);
        let at = slot.begun.elapsed();
        let mut lines = Vec::new();
        match event {
            Event::Started { phase, total } => {
                slot.job.started(phase, total, at);
                if phase != Phase::Zeros {
                    slot.phase = Some((phase, at));
                    slot.last_line = at;
                    lines.extend((!self.draws).then(|| slot.heading(phase, total)));
                }
                self.tell(&slot.object());
                if self.draws && !self.silent() {
                    slot.bar
                        .get_or_insert_with(|| self.bars.add(ProgressBar::new(1000)));
                    slot.draw();
                }
            }
            Event::Advanced { phase, bytes } => {
                slot.job.advanced(phase, bytes, at);
                if !self.draws && at.saturating_sub(slot.last_line) >= LINE_EVERY {
                    slot.last_line = at;
                    lines.extend(slot.line(at));
                }
            }
            Event::Finished { phase } => {
                slot.job.finished(phase, at);
                if let Some((_, begun)) = slot.phase.take_if(|(now, _)| *now == phase)
                    && !self.draws
                    && at.saturating_sub(begun) >= LINE_EVERY
                {
                    lines.push(slot.state(phase, at));
                }
            }
            Event::Note(text) => {
                self.tell(&json!({ "event": "note", "target": slot.name, "text": clean(&text) }));
                lines.push(format!("{}{text}", slot.begin()));
            }
        }
        drop(slot);
        for line in lines {
            self.say(&line);
        }
        Ok(())
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
        self.show(&self.main, event)
    }
}

/// One of several jobs that run at the same time.
pub struct Lane<'a> {
    screen: &'a Screen,
    slot: Arc<Mutex<Slot>>,
}

impl Lane<'_> {
    /// Returns how many bytes were written so far.
    pub fn written(&self) -> u64 {
        lock(&self.slot).job.done(Phase::Write).0
    }
}

impl Progress for Lane<'_> {
    fn event(&self, event: Event) -> Result<()> {
        self.screen.show(&self.slot, event)
    }
}

/// A job under way, and its line on the screen.
struct Slot {
    name: String,
    job: Job,
    begun: Instant,
    /// What is being done, and since when.
    phase: Option<(Phase, Duration)>,
    last_line: Duration,
    /// On a terminal only.
    bar: Option<ProgressBar>,
}

impl Slot {
    fn new(name: String, job: Job) -> Self {
        Self {
            name,
            job,
            begun: Instant::now(),
            phase: None,
            last_line: Duration::ZERO,
            bar: None,
        }
    }

    /// What a line begins with.
    fn begin(&self) -> String {
        match self.name.is_empty() {
            true => String::new(),
            false => format!("{}: ", self.name),
        }
    }

    /// The state, for a program.
    fn object(&self) -> Value {
        let at = self.begun.elapsed();
        let (done, total) = self
            .phase
            .map_or((0, None), |(phase, _)| self.job.done(phase));
        json!({
            "event": "progress",
            "target": (!self.name.is_empty()).then_some(&self.name),
            "phase": self.phase.map(|(phase, _)| title(phase)),
            "bytes": done,
            "total_bytes": total,
            "share": self.job.share().map(|share| share as f64 / 1000.0),
            "seconds_left": self.job.left(at).map(|left| left.as_secs()),
        })
    }

    fn heading(&self, phase: Phase, total: Option<u64>) -> String {
        let size = total.map(|total| format!(" {}", human_bytes(total)));
        let size = size.unwrap_or_default();
        format!("{}{}{size}", self.begin(), title(phase))
    }

    /// Puts the state into the bar, if there is one.
    fn draw(&mut self) {
        let Some(bar) = &self.bar else { return };
        let at = self.begun.elapsed();
        let share = self.job.share();
        // The message comes last, and is cut where the terminal ends.
        let template = match share {
            Some(_) => "{prefix} {percent:>3}% {bar:12} {wide_msg}",
            None => "{prefix} {spinner} {wide_msg}",
        };
        // OK to unwrap: the templates are the two above.
        bar.set_style(ProgressStyle::with_template(template).unwrap());
        let doing = self.phase.map_or("", |(phase, _)| title(phase));
        bar.set_prefix(format!("{}{doing}", self.begin()));
        bar.set_message(self.facts(at));
        bar.set_position(share.unwrap_or(0));
        bar.tick();
    }

    /// What stands behind the bar, the most important first.
    fn facts(&self, at: Duration) -> String {
        let mut facts = Vec::new();
        if let Some(left) = self.job.left(at) {
            facts.push(format!("{} left", human_seconds(left.as_secs_f64())));
        }
        if let Some((phase, since)) = self.phase {
            match self.job.done(phase) {
                (done, Some(total)) => {
                    facts.push(format!("{} of {}", human_bytes(done), human_bytes(total)));
                }
                (0, None) => {
                    let seconds = at.saturating_sub(since).as_secs_f64();
                    facts.push(format!("for {}", human_seconds(seconds.floor())));
                }
                (done, None) => facts.push(human_bytes(done)),
            }
            if let Some(rate) = self.job.rate(phase) {
                facts.push(format!("{}/s", human_bytes(rate as u64)));
            }
        }
        facts.join("  ")
    }

    /// The line of where there is no terminal.
    fn line(&self, at: Duration) -> Option<String> {
        let (phase, _) = self.phase?;
        let state = self.state(phase, at);
        Some(match self.job.left(at) {
            Some(left) => format!("{state}, {} left", human_seconds(left.as_secs_f64())),
            None => state,
        })
    }

    fn state(&self, phase: Phase, at: Duration) -> String {
        let begin = format!("{}{}", self.begin(), title(phase));
        let rate = self.job.rate(phase).map_or(0, |rate| rate as u64);
        match self.job.done(phase) {
            (done, Some(total)) if total > 0 => {
                let percent = done.min(total) as f64 * 100.0 / total as f64;
                let (done, total) = (human_bytes(done), human_bytes(total));
                match rate {
                    0 => format!("{begin} {percent:.0}% ({done} of {total})"),
                    _ => {
                        let rate = human_bytes(rate);
                        format!("{begin} {percent:.0}% ({done} of {total}), {rate}/s")
                    }
                }
            }
            (0, _) => {
                let since = self.phase.map_or(at, |(_, since)| since);
                let seconds = at.saturating_sub(since).as_secs_f64();
                format!("{begin} for {}", human_seconds(seconds.floor()))
            }
            (done, _) => format!("{begin} {}, {}/s", human_bytes(done), human_bytes(rate)),
        }
    }
}

impl Drop for Slot {
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
        Phase::Zeros => "hashing zeros",
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
