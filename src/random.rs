//! For tests: numbers that look random and are the same in every run.

/// Returns a number below `below`, and changes `state` (Knuth's linear congruential generator; the
/// upper bits, since the lower ones repeat soon).
pub fn random(state: &mut u64, below: u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) % below
}
