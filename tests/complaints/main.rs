//! What users of other tools complain about, loudest first, made to happen here: each test is one
//! complaint, with its number in the design's list (field-notes.md, part 2) and where it was read,
//! and shows what pishrink does and says instead. `repository#number` is an issue on GitHub; PS is
//! Drewsif/PiShrink.
//!
//! What has its proof elsewhere, because there is nothing to be said to a user:
//! 4 (no macOS): scripts/check-targets, scripts/run-foreign. 14 (slow writes): scripts/bench.
//! 22 (NVMe and USB roots do not expand): no device name is ever written to a card; expansion is
//! complaint 1. 15, 16, 18 (identity, Wi-Fi, clones): nothing of it is changed, by design; that an
//! image is its card to the byte is what every comparison in these tests holds.

mod capture;
mod flash;
mod tools;
