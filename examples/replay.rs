//! Recovers an ext4 image in place: `replay [--journal-only] IMAGE`. A tool for
//! `proofs/crash_matrix.py`.

mod image;

use std::fs::OpenOptions;
use std::process::ExitCode;

use image::Image;
use pishrink::error::{Error, Result};
use pishrink::ext4::format::fs::Super;
use pishrink::ext4::recover::journal::replay;
use pishrink::ext4::recover::orphan::finish_orphans;

fn run(path: &str, journal_only: bool) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|error| Error::io("opening", error))?;
    let image = Image::new(file)?;
    let fs = Super::read(&image)?.ok_or_else(|| Error::usage("no ext4 filesystem"))?;
    let replayed = replay(&fs, &image)?;
    print!(
        "needed={} transactions={} blocks={} fast_commits={}",
        replayed.needed, replayed.transactions, replayed.blocks, replayed.fast_commits
    );
    if journal_only {
        println!();
        return replayed.overlay.commit(&image, &mut |_, _| Ok(()));
    }
    let view = replayed.overlay.over(&image);
    let fs = Super::read(&view)?.ok_or_else(|| Error::unsound("no ext4 after replay"))?;
    let orphans = finish_orphans(&fs, &view, 0)?;
    println!(
        " deleted={} truncated={}",
        orphans.deleted, orphans.truncated
    );
    let flat = replayed.overlay.then(&orphans.overlay);
    flat.commit(&image, &mut |_, _| Ok(()))
}

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let path = words.pop();
    let journal_only = words == ["--journal-only"];
    let Some(path) = path.filter(|_| words.is_empty() || journal_only) else {
        eprintln!("usage: replay [--journal-only] IMAGE");
        return ExitCode::from(2);
    };
    match run(&path, journal_only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{:?}: {}", error.kind(), error.one_line());
            ExitCode::FAILURE
        }
    }
}
