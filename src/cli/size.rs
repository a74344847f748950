//! Sizes as people write them.

/// Decodes a size: a number, perhaps with a fraction, and a unit. `KiB MiB GiB TiB` and the bare
/// letters `K M G T` count by 1024, `kB MB GB TB` by 1000; a number alone is bytes.
///
/// # Errors
/// A sentence about what is wrong with `text`.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit_bytes(unit.trim())
        .ok_or_else(|| format!("{unit:?} is no unit; write MiB, GiB, MB, GB"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let wrong = || format!("{text:?} is no size; write 32MiB, 1.5GB or a number of bytes");
    if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return Err(wrong());
    }
    let mut bytes = u128::from(whole.parse::<u64>().map_err(|_| wrong())?) * u128::from(unit);
    if !fraction.is_empty() {
        let scale = 10u128.pow(fraction.len() as u32);
        let part = u128::from(fraction.parse::<u64>().map_err(|_| wrong())?);
        bytes += part * u128::from(unit) / scale;
    }
    u64::try_from(bytes)
        .ok()
        // Room for sums with other sizes.
        .filter(|&bytes| bytes <= i64::MAX as u64)
        .ok_or_else(|| format!("{text} is too large"))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let lower = unit.to_ascii_lowercase();
    let (letter, base) = match lower.as_str() {
        "" | "b" | "byte" | "bytes" => return Some(1),
        "k" | "m" | "g" | "t" => (lower.as_str(), 1024u64),
        "kib" | "mib" | "gib" | "tib" => (&lower[..1], 1024),
        "kb" | "mb" | "gb" | "tb" => (&lower[..1], 1000),
        _ => return None,
    };
    let power = "kmgt".find(letter)? as u32 + 1;
    Some(base.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("32MiB", Some(32 << 20)),
            ("32 MiB", Some(32 << 20)),
            ("32m", Some(32 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("2GB", Some(2_000_000_000)),
            ("1.5kB", Some(1500)),
            ("4K", Some(4096)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1..5G", None),
            ("1.5.5G", None),
            ("5 parsecs", None),
            ("99999999999T", None),
            ("18446744073709551615", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse(text).ok(), bytes, "{text:?}");
        }
    }
}
