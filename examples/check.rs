//! Checks a bare ext2/3/4 filesystem in a file: prints what is wrong; exit code 3 if it is damaged.
//!
//! `cargo run --example check IMAGE [BYTE-OFFSET]`

mod image;

use std::fs::File;
use std::process::ExitCode;

use image::Image;
use pishrink::error::{Error, ErrorKind, Result};
use pishrink::ext4::check::check;
use pishrink::ext4::findings::Findings;
use pishrink::ext4::read::metadata::Metadata;
use pishrink::io::{ReadAt, Window};
use pishrink::units::ByteRange;

fn open() -> Result<Window<Image>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or_else(|| Error::usage("no image given"))?;
    let offset = args.next().map_or(Ok(0), |text| {
        text.parse().map_err(|_| Error::usage("no byte offset"))
    })?;
    let file = File::open(&path).map_err(|error| Error::io(path, error))?;
    let image = Image::new(file)?;
    let len = image.len();
    Window::new(image, ByteRange::new(offset.min(len), len))
}

fn findings() -> Result<Findings> {
    let image = open()?;
    let mut findings = Findings::default();
    let metadata = Metadata::read(&image, &mut findings)?;
    if findings.is_sound() {
        findings.merge(check(&image, &metadata)?);
    }
    Ok(findings)
}

fn main() -> ExitCode {
    match findings() {
        Ok(findings) => {
            for text in findings.damage() {
                println!("{text}");
            }
            for text in findings.repairs() {
                println!("(put right: {text})");
            }
            if findings.is_sound() {
                ExitCode::SUCCESS
            } else {
                println!("{} pieces of damage", findings.damage_total());
                ExitCode::from(3)
            }
        }
        Err(error) => {
            println!("{}", error.one_line());
            ExitCode::from(if error.kind() == ErrorKind::Unsound {
                3
            } else {
                1
            })
        }
    }
}
