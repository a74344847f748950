//! What each fuzz target does with its input: one body, called by libFuzzer (`fuzz_targets/`) and,
//! with the kept inputs of testdata/fuzz, by `cargo test` (tests/fuzz.rs).
//!
//! A body panics where the program would be wrong: on a broken promise of the library, not only on
//! a crash of it. Damaged input may be refused, with an error that says whose fault it is; what is
//! accepted has to give something that is sound and means the same.

mod base;
mod codecs;
mod disk;
mod ext4;
mod fat;
mod log;
mod mend;
mod names;
mod tables;
mod tree;
mod volume;

use pishrink::error::{Error, ErrorKind};

/// One body.
pub type Body = fn(&[u8]);

/// All targets by name: that of the file in fuzz_targets and of the folder in testdata/fuzz.
pub const TARGETS: &[(&str, Body)] = &[
    ("bmap", codecs::bmap),
    ("bzip2", codecs::bzip2),
    ("directory", names::directory),
    ("ext4", ext4::ext4),
    ("fat", fat::fat),
    ("gpt", tables::gpt),
    ("gzip", codecs::gzip),
    ("journal", ext4::journal),
    ("mbr", tables::mbr),
    ("volume", volume::volume),
    ("xattr", names::xattr),
    ("xz", codecs::xz),
    ("zip", codecs::zip),
    ("zstd", codecs::zstd),
];

/// Runs the body of a target.
///
/// # Panics
/// If there is none of that name, and where the body does.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, body) = found.expect("the target is in the list");
    body(data);
}

/// Disks in memory never fail, and sound calls are no abuse: a refusal blames the input, in one
/// line.
fn is_refusal(error: &Error) {
    let line = error.one_line();
    assert!(
        matches!(error.kind(), ErrorKind::Unsound | ErrorKind::Unsupported),
        "{:?}: {line}",
        error.kind()
    );
    assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
}
