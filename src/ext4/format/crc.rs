//! The two sums of ext4.

/// Continues an ext4 crc32c from `seed` over `bytes`.
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !::crc32c::crc32c_append(!seed, bytes)
}

/// Continues a crc16 (reflected polynomial 0x8005) from `seed` over `bytes`.
pub fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |mut crc, &byte| {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xA001
            } else {
                crc >> 1
            };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The check values of both catalogues, the crc32c one without its final inversion.
        assert_eq!(crc32c(!0, b"123456789"), !0xE306_9283);
        assert_eq!(crc16(0, b"123456789"), 0xBB3D);
        // In two steps it is the same.
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), !0xE306_9283);
    }
}
