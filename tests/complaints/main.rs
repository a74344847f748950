//! What users of other tools complain about, loudest first, made to happen here: each test is one
//! complaint, with its number in the design's list (field-notes.md, part 2) and where it was read,
//! and shows what pishrink does and says instead. `repository#number` is an issue on GitHub; PS is
//! Drewsif/PiShrink.
//!
//! 4 (no macOS) cannot happen here: src/cli/devices.rs has what is said on a Mac, from what its
//! diskutil told, and scripts/check-targets holds the rest to its types.

#[path = "../common/badcard.rs"]
mod badcard;
mod capture;
mod flash;
mod identity;
#[path = "../common/scratch.rs"]
mod scratch;
mod tools;
