//! The command line: arguments in, one command run, an exit code out.

pub mod args;
mod capture;
mod card;
mod devices;
mod download;
mod eta;
mod exit;
mod expand;
mod flash;
mod get;
mod image;
mod inspect;
mod interrupt;
mod ls;
mod mistaken;
mod render;
mod size;
mod verify;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use exit::Exit;
use render::Screen;

use crate::device;
use crate::error::Error;

/// Runs the program with the process's arguments.
pub fn run() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(error) = mistaken::in_words_of_dd(&words) {
        return misused(&error);
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return not_understood(&error),
    };
    if !args.global.quiet {
        // What is waited for, while nothing else can be told.
        device::tell_waits(|what| {
            let _ = writeln!(std::io::stderr(), "{what}");
        });
    }
    let screen = Screen::new(&args.global, interrupt::install());
    // Signals come to the main thread first, and one that waits for a failing card takes none.
    let exit = std::thread::scope(|scope| {
        let (_working, ended) = std::sync::mpsc::channel();
        // Without it there is less to see.
        let _ = std::thread::Builder::new().spawn_scoped(scope, || screen.attend(ended));
        let work = || command(&args.command, &screen);
        match std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)
        {
            // OK to unwrap: a panic in a command is a bug, and goes on as one.
            Ok(thread) => thread.join().expect("commands do not panic"),
            Err(_) => command(&args.command, &screen),
        }
    });
    exit.into()
}

/// What main threads have.
const STACK: usize = 8 << 20;

/// Was JSON asked for? Also of arguments that are not understood.
fn json_is_wanted() -> bool {
    std::env::args_os()
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

/// Says what is wrong with the arguments, found before they were parsed.
fn misused(error: &Error) -> ExitCode {
    if json_is_wanted() {
        render::print_error(error);
    }
    render::complain(error);
    Exit::of(error).into()
}

/// Says what is wrong with the arguments. For --help clap's code is 0, for wrong usage 2, as
/// documented in `exit`.
fn not_understood(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && json_is_wanted() {
        // The first line says it; the others are about usage.
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        let what = line.strip_prefix("error: ").unwrap_or(line);
        render::print_error(&Error::usage(what));
    }
    // A closed standard error is no reason to fail.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
}

fn version(screen: &Screen) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    screen.result(
        &format!("pishrink {version}"),
        &serde_json::json!({ "version": version }),
    );
    Exit::Done
}

fn command(command: &Command, screen: &Screen) -> Exit {
    let outcome = match command {
        Command::Capture(args) => capture::run(args, screen),
        Command::Inspect(args) => inspect::run(args, screen),
        Command::Flash(args) => flash::run(args, screen),
        Command::Expand(args) => expand::run(args, screen),
        Command::Verify(args) => verify::run(args, screen),
        Command::Devices(args) => devices::run(args, screen),
        Command::Version => Ok(version(screen)),
        Command::Ls(args) => ls::run(args, screen),
        Command::Get(args) => get::run(args, screen),
    };
    outcome.unwrap_or_else(|error| {
        let error = device::advise(error);
        screen.error(&error);
        Exit::of(&error)
    })
}
