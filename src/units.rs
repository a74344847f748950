//! Numbers that must not be mixed up: inode numbers, group numbers, byte ranges, sector sizes.
//!
//! Ranges are half-open everywhere (`start..end`); a format whose ranges are inclusive (GPT's
//! `EndingLBA`, bmap's `Range`) says so where it is decoded.

use std::fmt;

use serde::Serialize;

/// A block number of an ext2/3/4 filesystem, in units of its block size, from 0.
pub type BlockNr = u64;

/// A block group number of an ext2/3/4 filesystem, from 0.
pub type GroupNr = u32;

/// An inode number of an ext2/3/4 filesystem, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct InodeNr(pub u32);

impl fmt::Display for InodeNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open range of bytes, `start <= end`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct ByteRange {
    pub start: u64,
    pub end: u64,
}

impl ByteRange {
    /// Makes the range `start..end`.
    ///
    /// # Panics
    /// If `start > end`: callers have compared them.
    pub fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "a byte range ends before it starts");
        Self { start, end }
    }

    /// Makes the range of `len` bytes at `start`, or `None` if its end is beyond 2^64.
    pub fn at(start: u64, len: u64) -> Option<Self> {
        Some(Self {
            start,
            end: start.checked_add(len)?,
        })
    }

    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns what both ranges cover, if anything.
    pub fn intersect(&self, other: &ByteRange) -> Option<ByteRange> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(ByteRange { start, end })
    }
}

/// Rounds `value` up to a multiple of `step` (not 0); `None` beyond 2^64.
pub fn round_up(value: u64, step: u64) -> Option<u64> {
    value.checked_next_multiple_of(step)
}

/// Rounds `value` down to a multiple of `step` (not 0).
pub fn round_down(value: u64, step: u64) -> u64 {
    value - value % step
}

/// Shows the 16 bytes of a UUID, most significant first, as blkid does.
pub fn uuid_text(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

/// Shows bytes the way card makers count them (1 MB = 1,000,000 bytes), to three digits.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Returns the days from the first of January 1970 to a date of the Gregorian calendar; `month` is 1
/// to 12.
pub fn days_since_1970(year: i64, month: u32, day: u32) -> i64 {
    // Years that begin in March have the leap day at their end.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((i64::from(month) + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Shows seconds since 1970 as date and time of UTC: `2025-01-31 09:05`.
pub fn date_text(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_bytes_to_three_digits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.00 kB"),
            (31_914_983_424, "31.9 GB"),
            (999_999, "1.00 MB"),
            (123_456_789, "123 MB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn ranges_intersect() {
        let a = ByteRange::new(10, 20);
        assert_eq!(
            a.intersect(&ByteRange::new(15, 30)),
            Some(ByteRange::new(15, 20))
        );
        assert_eq!(a.intersect(&ByteRange::new(20, 30)), None);
        assert_eq!(ByteRange::at(u64::MAX, 2), None);
    }

    #[test]
    fn dates_go_there_and_back() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_827_696, "2000-02-29 12:34"),
            (4_102_444_800, "2100-01-01 00:00"),
            (-1, "1969-12-31 23:59"),
        ] {
            assert_eq!(date_text(seconds), text);
        }
        for days in (-800_000..800_000).step_by(97) {
            let text = date_text(days * 86_400);
            let mut parts = text.trim_start_matches('-').split(['-', ' ']);
            let mut next = || parts.next().unwrap().parse().unwrap();
            if !text.starts_with('-') {
                assert_eq!(days_since_1970(next(), next() as u32, next() as u32), days);
            }
        }
    }
}
