//! The crc32 of version 1 checksums: polynomial 0x04C11DB7, most significant bit first, without
//! inversions. (The crc32fast crate computes the reflected one.)

const POLYNOMIAL: u32 = 0x04C1_1DB7;

static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = crc << 1 ^ if crc >> 31 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

/// Continues a crc32 from `seed` over `bytes`.
pub fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |crc, &byte| {
        crc << 8 ^ TABLE[(crc >> 24) as usize ^ usize::from(byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_value() {
        // CRC-32/MPEG-2 of the catalogue.
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_E6E7);
    }
}
