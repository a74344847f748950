//! The hashes by which an index finds names.
//!
//! Specification: the kernel's Documentation/filesystems/ext4/directory.rst; half-MD4 and TEA are
//! those of the published algorithms, on words filled with the name's length.

use crate::ext4::format::raw::le32;
use crate::ext4::format::superblock::Superblock;

/// `hash_version` of an index.
pub const LEGACY: u8 = 0;
pub const HALF_MD4: u8 = 1;
pub const TEA: u8 = 2;
pub const SIPHASH: u8 = 6;

/// What the hashes of one filesystem depend on.
#[derive(Clone, Copy, Debug)]
pub struct Hasher {
    seed: [u32; 4],
    /// Are the names' bytes taken as unsigned numbers?
    unsigned: bool,
}

impl Hasher {
    /// Takes what the superblock says of hashes.
    pub fn of(superblock: &Superblock) -> Self {
        const S_HASH_SEED: usize = 0xEC;
        const FLAGS_UNSIGNED_HASH: u32 = 2;
        let seed = std::array::from_fn(|word| le32(superblock.bytes(), S_HASH_SEED + 4 * word));
        Self::new(seed, superblock.s_flags() & FLAGS_UNSIGNED_HASH != 0)
    }

    /// Takes `s_hash_seed`, and whether `s_flags` says that bytes are unsigned.
    pub fn new(s_hash_seed: [u32; 4], unsigned: bool) -> Self {
        const DEFAULT: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];
        let seed = if s_hash_seed == [0; 4] {
            DEFAULT
        } else {
            s_hash_seed
        };
        Self { seed, unsigned }
    }

    /// Returns the hash of a name, with its lowest bit clear; `None` for a version whose hash is not
    /// a function of the name alone.
    pub fn hash(&self, version: u8, name: &[u8]) -> Option<u32> {
        let hash = match version {
            LEGACY => self.legacy(name),
            HALF_MD4 => {
                let mut state = self.seed;
                let mut rest = name;
                while !rest.is_empty() {
                    half_md4(&mut state, &self.words::<8>(rest));
                    rest = &rest[rest.len().min(32)..];
                }
                state[1]
            }
            TEA => {
                let mut state = self.seed;
                let mut rest = name;
                while !rest.is_empty() {
                    tea(&mut state, &self.words::<4>(rest));
                    rest = &rest[rest.len().min(16)..];
                }
                state[0]
            }
            _ => return None,
        };
        Some(hash & !1)
    }

    fn byte(&self, byte: u8) -> u32 {
        if self.unsigned {
            u32::from(byte)
        } else {
            i32::from(byte as i8) as u32
        }
    }

    /// Packs the first bytes of a name into N words, each begun with the name's length.
    fn words<const N: usize>(&self, name: &[u8]) -> [u32; N] {
        let len = name.len() as u32;
        let pad = (len | len << 8) & 0xFFFF;
        let pad = pad | pad << 16;
        let mut words = [pad; N];
        for (index, bytes) in name.chunks(4).take(N).enumerate() {
            words[index] = bytes
                .iter()
                .fold(pad, |word, &byte| (word << 8).wrapping_add(self.byte(byte)));
        }
        words
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12A3_FE2D_u32, 0x37AB_E8F9_u32);
        for &byte in name {
            let scaled = self.byte(byte).wrapping_mul(7_152_373);
            let mut hash = before.wrapping_add(last ^ scaled);
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7FFF_FFFF);
            }
            before = last;
            last = hash;
        }
        last << 1
    }
}

/// The first three of MD4's rounds' functions, over eight words instead of sixteen.
fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (
            |x, y, z| z ^ (x & (y ^ z)),
            0,
            [0, 1, 2, 3, 4, 5, 6, 7],
            [3, 7, 11, 19],
        ),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5A82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (
            |x, y, z| x ^ y ^ z,
            0x6ED9_EBA1,
            [3, 7, 2, 6, 1, 5, 0, 4],
            [3, 9, 11, 15],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, &word) in order.iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(words[word])
                .wrapping_add(constant);
            // The four registers change places at each step.
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d]) {
        *old = old.wrapping_add(new);
    }
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    const DELTA: u32 = 0x9E37_79B9;
    let mix = |value: u32, sum: u32, first: u32, second: u32| {
        (value << 4).wrapping_add(first)
            ^ value.wrapping_add(sum)
            ^ (value >> 5).wrapping_add(second)
    };
    let (mut left, mut right) = (state[0], state[1]);
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(DELTA);
        left = left.wrapping_add(mix(right, sum, key[0], key[1]));
        right = right.wrapping_add(mix(left, sum, key[2], key[3]));
    }
    state[0] = state[0].wrapping_add(left);
    state[1] = state[1].wrapping_add(right);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What debugfs says; it knows the signed versions only.
    fn oracle(version: &str, name: &str) -> u32 {
        let output = Command::new("debugfs")
            .args(["-R", &format!("dx_hash -h {version} \"{name}\"")])
            .output()
            .expect("debugfs");
        let text = String::from_utf8_lossy(&output.stdout);
        let rest = text.split("is 0x").nth(1).expect("a hash");
        let digits = rest.split(' ').next().expect("its digits");
        u32::from_str_radix(digits, 16).expect("hexadecimal")
    }

    #[test]
    fn agrees_with_debugfs() {
        let long = "a-name-that-takes-more-than-one-turn-of-each-of-the-hashes-".repeat(3);
        for name in ["a", "abc", "abcd", "lost+found", "Grüße", &long] {
            for (version, text) in [(LEGACY, "legacy"), (HALF_MD4, "half_md4"), (TEA, "tea")] {
                let expected = oracle(text, name);
                let signed = Hasher::new([0; 4], false).hash(version, name.as_bytes());
                assert_eq!(signed, Some(expected), "{text} {name}");
                let unsigned = Hasher::new([0; 4], true).hash(version, name.as_bytes());
                assert_eq!(unsigned == signed, name.is_ascii(), "{text} {name}");
            }
        }
    }
}
