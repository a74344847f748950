//! What can be written on the command line. Parsing looks at nothing but the words.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::size;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 input not sound or not supported, \
4 verification failed, 5 refused for safety, 6 done with losses, 7 as written but mounted since, 130 interrupted.";

const NOTHING_TAKEN_OUT: &str = "The image holds everything that is on the card, host name, \
passwords and keys too: think before you share it.";

/// Captures SD cards into small sound images, and flashes them back with every block verified.
#[derive(Parser, Clone, Debug)]
#[command(name = "pishrink", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Global {
    /// Print nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Also say how it is done
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Print one JSON object at the end, errors included
    #[arg(long, global = true)]
    pub json: bool,
    /// Print the progress as JSON, an object a line, to standard error
    #[arg(long, global = true)]
    pub json_progress: bool,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    #[command(visible_alias = "backup")]
    Capture(Capture),
    Inspect(Inspect),
    #[command(visible_aliases = ["write", "restore"])]
    Flash(Flash),
    Expand(Expand),
    Verify(Verify),
    #[command(visible_alias = "list")]
    Devices(Devices),
    /// Print the version
    Version,
    Ls(Ls),
    Get(Get),
}

/// Read a card or a raw image, write a small image that boots and expands
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = format!("{NOTHING_TAKEN_OUT}\n\n{EXIT_CODES}"))]
pub struct Capture {
    /// A block device or an image of a card (.xz, .gz and .zst are unpacked first); only read
    pub source: PathBuf,
    /// The image to write: .img, .img.xz, .img.gz or .img.zst; - for standard output
    pub image: PathBuf,
    /// Free space to leave in the shrunk filesystem; 0 for the smallest image
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size::parse)]
    pub headroom: u64,
    /// Keep the filesystem's size, drop its unused blocks only: also the form for restic, borg and the like
    /// (docs/backups.md), whose weeks then cost what changed
    #[arg(long)]
    pub no_shrink: bool,
    /// Save every block of filesystems that are not sound
    #[arg(long, requires = "no_shrink")]
    pub force_raw: bool,
    /// raw, xz, gz or zst; by default what the name says
    #[arg(long, value_parser = parse_format)]
    pub format: Option<crate::codec::Codec>,
    /// Compression level: xz 0-9, gz 1-9, zst 1-19
    #[arg(long)]
    pub level: Option<u32>,
    /// Threads for compression; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Write no block map beside the image
    #[arg(long)]
    pub no_bmap: bool,
    /// Replace an image that exists
    #[arg(long)]
    pub force: bool,
    /// Keep a raw image that is interrupted, and go on with one that was, or that lost something
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Print what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Read a device although it is mounted and can change meanwhile
    #[arg(long)]
    pub allow_mounted: bool,
    /// Make an image of a single partition, which boots nothing
    #[arg(long)]
    pub partition: bool,
}

/// Show what is on a card or in an image, and what capture would make of it
#[derive(clap::Args, Clone, Debug)]
pub struct Inspect {
    /// A block device or an image
    pub source: PathBuf,
    /// Free space that capture would leave in the shrunk filesystem
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = size::parse)]
    pub headroom: u64,
    /// Read a device although it is mounted and can change meanwhile
    #[arg(long)]
    pub allow_mounted: bool,
}

/// Write an image to one or several cards, read every block back, expand the last partition
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Flash {
    /// The image: raw, .xz, .gz, .zst, .bz2 or .zip; a URL; - for standard input
    pub image: OsString,
    /// The cards: block devices, or files that stand for cards
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<PathBuf>,
    /// The block map, if it is not beside the image
    #[arg(long, value_name = "FILE", conflicts_with = "no_bmap")]
    pub bmap: Option<PathBuf>,
    /// Use no block map
    #[arg(long)]
    pub no_bmap: bool,
    /// The sha256 that the image file must have
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    pub sha256: Option<[u8; 32]>,
    /// Zero what the image leaves free
    #[arg(long)]
    pub wipe: bool,
    /// Do not read the card back
    #[arg(long)]
    pub no_verify: bool,
    /// What the last partition grows to: max, none, or a size
    #[arg(long, value_name = "max|none|SIZE", default_value = "max", value_parser = parse_expansion)]
    pub expand: Expansion,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also write to devices that do not look like a card
    #[arg(long)]
    pub allow_any_device: bool,
    /// Write over a target that is a file and exists: all that is in it is lost
    #[arg(long)]
    pub overwrite: bool,
    /// Leave the card in, for the system to show what is on it
    #[arg(long)]
    pub no_eject: bool,
    /// Also write an image in which no partition table and no filesystem is known
    #[arg(long)]
    pub allow_any_image: bool,
    /// Also write a partition table that counts in other sectors than the card has
    #[arg(long)]
    pub allow_sector_size: bool,
    /// Create the target as a file that stands for a card of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_card_size)]
    pub card_size: Option<u64>,
}

/// Grow the last partition of a card or an image, and its ext2/3/4 filesystem, in place
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Expand {
    /// A block device or an image
    pub target: PathBuf,
    /// What the last partition grows to: max or a size
    #[arg(long, value_name = "max|SIZE", default_value = "max", value_parser = parse_expansion)]
    pub size: Expansion,
    /// Print what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Also write to devices that do not look like a card
    #[arg(long)]
    pub allow_any_device: bool,
    /// Leave the card in, for the system to show what is on it
    #[arg(long)]
    pub no_eject: bool,
    /// Also grow what counts in other sectors than the device has
    #[arg(long)]
    pub allow_sector_size: bool,
}

/// Check an image against its block map and sha256, or a card against an image
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct Verify {
    /// The image
    pub image: PathBuf,
    /// The card
    pub device: Option<PathBuf>,
    /// The block map, if it is not beside the image
    #[arg(long, value_name = "FILE")]
    pub bmap: Option<PathBuf>,
    /// The sha256 that the image file must have
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    pub sha256: Option<[u8; 32]>,
    /// Read a device although it is mounted and can change meanwhile
    #[arg(long)]
    pub allow_mounted: bool,
}

/// List the cards that can be written
#[derive(clap::Args, Clone, Debug)]
pub struct Devices {
    /// Also the disks that are not shown otherwise, with the reason
    #[arg(long)]
    pub all: bool,
}

const PATHS: &str = "Paths are those of the system on the card: what its fstab mounts is found where it is \
mounted. 2:/etc is a path on partition 2 alone. * ? [a-z] stand for parts of a name, ** for any folders.";

/// List files on a card or in an image, without mounting it
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = format!("{PATHS}\n\n{EXIT_CODES}"))]
pub struct Ls {
    /// A block device or an image, packed or not; only read
    pub source: PathBuf,
    /// A folder, a file, or a pattern
    #[arg(default_value = "/")]
    pub path: OsString,
    /// Read a device although it is mounted and can change meanwhile
    #[arg(long)]
    pub allow_mounted: bool,
}

/// Copy a file or a folder off a card or out of an image, without mounting it
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = format!("{PATHS}\n\n{EXIT_CODES}"))]
pub struct Get {
    /// A block device or an image, packed or not; only read
    pub source: PathBuf,
    /// A file, a folder with all in it, or a pattern
    pub path: OsString,
    /// Where to: a folder that is there, a new name, or - for standard output
    #[arg(default_value = ".")]
    pub to: PathBuf,
    /// Replace a file that exists
    #[arg(long)]
    pub force: bool,
    /// Read a device although it is mounted and can change meanwhile
    #[arg(long)]
    pub allow_mounted: bool,
}

/// What the last partition grows to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expansion {
    None,
    Max,
    /// So many bytes.
    Size(u64),
}

fn parse_expansion(text: &str) -> Result<Expansion, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "none" => Ok(Expansion::None),
        "max" => Ok(Expansion::Max),
        word if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Err("write max, none, or a size as 8GB".into())
        }
        size => size::parse(size).map(Expansion::Size),
    }
}

/// No card is that small: the unit was forgotten.
fn parse_card_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < 1 << 20 => Err(format!("no card has {bytes} bytes; write 16GB or 16GiB")),
        bytes => Ok(bytes),
    }
}

fn parse_format(text: &str) -> Result<crate::codec::Codec, String> {
    crate::codec::Codec::from_name(text)
        .filter(|codec| codec.can_write())
        .ok_or_else(|| format!("{text:?} is not written; take raw, xz, gz or zst"))
}

pub(super) fn parse_sha256(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "a sha256 has 64 hexadecimal digits".to_owned();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn says_no_to_what_makes_no_sense() {
        for words in [
            "capture a",
            "capture a b --force-raw",
            "capture a b --format bz2",
            "capture a b --force --resume",
            "capture a b --headroom x",
            "flash a",
            "flash a b --sha256 12",
            "flash a b --expand some",
            "flash a b --bmap c --no-bmap",
            "",
        ] {
            let words = std::iter::once("pishrink").chain(words.split_whitespace());
            assert!(Args::try_parse_from(words).is_err());
        }
        let words = "pishrink capture a b --no-shrink --force-raw --format xz --json";
        let args = Args::try_parse_from(words.split_whitespace()).unwrap();
        assert!(args.global.json);
    }
}
