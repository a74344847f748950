//! The command line: arguments in, one command run, an exit code out.

pub mod args;
mod capture;
mod card;
mod devices;
mod download;
mod exit;
mod expand;
mod flash;
mod image;
mod inspect;
mod interrupt;
mod render;
mod size;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use exit::Exit;
use render::Screen;

/// Runs the program with the process's arguments.
pub fn run() -> ExitCode {
    // For --help clap leaves with code 0, for wrong usage with 2, as documented in `exit`.
    let args = Args::parse();
    let screen = Screen::new(&args.global, interrupt::install());
    // Signals come to the main thread first, and one that waits for a failing card takes none.
    let exit = std::thread::scope(|scope| {
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

fn command(command: &Command, screen: &Screen) -> Exit {
    let outcome = match command {
        Command::Capture(args) => capture::run(args, screen),
        Command::Inspect(args) => inspect::run(args, screen),
        Command::Flash(args) => flash::run(args, screen),
        Command::Expand(args) => expand::run(args, screen),
        Command::Verify(args) => verify::run(args, screen),
        Command::Devices(args) => devices::run(args, screen),
    };
    outcome.unwrap_or_else(|error| {
        screen.error(&error);
        Exit::of(&error)
    })
}
