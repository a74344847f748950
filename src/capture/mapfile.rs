//! GNU ddrescue's map file: which bytes of the source the image has.
//!
//! Specification: ddrescue's manual, chapter "Mapfile structure". Positions are the source's; what
//! the image does not take over from it was not tried. A comment names the plan, so that a later
//! run can tell that it would make the same image.

use std::fmt::Write;
use std::ops::Range;

use crate::capture::summary::CapturePlan;
use crate::error::{Error, Result};
use crate::io::{Overlay, RangeSet, Source};

/// The least that a device reads.
pub const SECTOR: u64 = 512;

/// Begins the comment with the plan's digest.
const PLAN: &str = "# Plan: ";

/// The longest map file that is read, in bytes.
pub const LONGEST: u64 = 64 << 20;

/// What a map file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFile {
    /// The plan's digest, if it is a map of ours.
    pub plan: Option<String>,
    /// Bytes of the source that the image has.
    pub there: RangeSet,
}

impl MapFile {
    /// Parses a map file.
    ///
    /// # Errors
    /// `Unsound` naming the line that cannot be.
    pub fn parse(text: &str) -> Result<Self> {
        let mut map = Self {
            plan: None,
            there: RangeSet::new(),
        };
        let mut status_line = true;
        for (index, line) in text.lines().enumerate() {
            if let Some(digest) = line.strip_prefix(PLAN) {
                map.plan = Some(digest.trim().to_owned());
            }
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<_> = line.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            if std::mem::take(&mut status_line) {
                continue;
            }
            let range = match words[..] {
                [start, len, status] if status.len() == 1 => number(start)
                    .zip(number(len))
                    .and_then(|(start, len)| Some((start..start.checked_add(len)?, status))),
                _ => None,
            };
            let Some((range, status)) = range else {
                return Err(Error::unsound(format!(
                    "line {} of the map file says nothing that is known",
                    index + 1
                )));
            };
            if status == "+" {
                map.there.insert(range);
            }
        }
        Ok(map)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Describes a capture: `unread` could not be read, `missing` was not tried yet.
pub fn text(plan: &CapturePlan, unread: &RangeSet, missing: &RangeSet) -> String {
    let len = plan.summary.source_bytes;
    let mut read = read_ranges(&plan.overlay, len);
    let mut unread = unread.clone();
    for range in missing.iter() {
        unread.remove(range);
    }
    for range in unread.iter().chain(missing.iter()) {
        // Reads end at any byte, a map's lines at sectors.
        read.remove(range.start - range.start % SECTOR..range.end.next_multiple_of(SECTOR));
    }
    let mut text = format!(
        "# Mapfile. Created by pishrink {}\n{PLAN}{}\n\
         # current_pos  current_status  current_pass\n0x00000000     {}               1\n\
         #      pos        size  status\n",
        env!("CARGO_PKG_VERSION"),
        digest(plan),
        if missing.is_empty() { '+' } else { '?' },
    );
    let mut lines: Vec<(Range<u64>, char)> = read.iter().map(|range| (range, '+')).collect();
    lines.extend(unread.iter().map(|range| (range, '-')));
    let known: RangeSet = lines.iter().map(|(range, _)| range.clone()).collect();
    lines.extend(known.gaps(0..len).into_iter().map(|range| (range, '?')));
    lines.sort_unstable_by_key(|(range, _)| range.start);
    for (range, status) in lines {
        let (start, len) = (range.start, range.end - range.start);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "0x{start:08X}  0x{len:08X}  {status}");
    }
    text
}

/// Lists the sectors of the source, which has `len` bytes, that an image takes something over from.
pub fn read_ranges(overlay: &Overlay, len: u64) -> RangeSet {
    overlay
        .all_segments()
        .filter_map(|segment| {
            let from = segment.source.base()?;
            let end = (from + segment.len).next_multiple_of(SECTOR);
            Some((from - from % SECTOR).min(len)..end.min(len))
        })
        .collect()
}

/// Returns what tells a plan from every other one: where each byte of the image comes from, those
/// that the plan itself holds, rewritten from the source's metadata, and digests of metadata that
/// stays as it is. In hexadecimal.
pub fn digest(plan: &CapturePlan) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&plan.summary.source_bytes.to_le_bytes());
    hash.update(&plan.image_bytes().to_le_bytes());
    for segment in plan.overlay.all_segments() {
        hash.update(&segment.start.to_le_bytes());
        hash.update(&segment.len.to_le_bytes());
        match &segment.source {
            Source::Base(from) => hash.update(&[0]).update(&from.to_le_bytes()),
            Source::Zero => hash.update(&[1]),
            Source::Bytes(bytes, index) => {
                let part = &bytes[*index..*index + segment.len as usize];
                hash.update(&[2]).update(blake3::hash(part).as_bytes())
            }
            Source::Patched(from, edits, index) => {
                let part = *index as usize..*index as usize + segment.len as usize;
                hash.update(&[3]).update(&from.to_le_bytes());
                for (at, bytes) in edits.within(part) {
                    hash.update(&(at as u64).to_le_bytes());
                    hash.update(&(bytes.len() as u64).to_le_bytes())
                        .update(bytes);
                }
                &mut hash
            }
        };
    }
    for part in &plan.summary.partitions {
        if let Some(digest) = &part.facts.digest {
            hash.update(digest);
        }
    }
    hash.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn reads_what_ddrescue_writes() {
        let text = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                    # Command line: ddrescue a b c\n# Plan: abc\n\
                    0x00300000     +               1\n\
                    #      pos        size  status\n\
                    0x00000000  0x00200000  +\n0x00200000  4096  - # bad\n\n0x00201000  0x1000  +\n";
        let map = MapFile::parse(text).unwrap();
        assert_eq!(map.plan.as_deref(), Some("abc"));
        let there: Vec<_> = map.there.iter().collect();
        assert_eq!(there, [0..0x20_0000, 0x20_1000..0x20_2000]);
        for line in [
            "0x0",
            "0x0 0x1 ++",
            "z 0x1 +",
            "0xFFFFFFFFFFFFFFFF 0x2 +",
            "-1 2 +",
        ] {
            let error = MapFile::parse(&format!("0x0 + 1\n{line}\n")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound, "{line}");
        }
    }
}
