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
    let outcome = match &args.command {
        Command::Capture(args) => capture::run(args, &screen),
        Command::Inspect(args) => inspect::run(args, &screen),
        Command::Flash(args) => flash::run(args, &screen),
        Command::Expand(args) => expand::run(args, &screen),
        Command::Verify(args) => verify::run(args, &screen),
        Command::Devices(args) => devices::run(args, &screen),
    };
    let exit = outcome.unwrap_or_else(|error| {
        screen.error(&error);
        Exit::of(&error)
    });
    exit.into()
}
