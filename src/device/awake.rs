//! The machine does not fall asleep while a card is worked on. Where the system has no means for it, nothing
//! is said: the work is the same.

use std::fmt;

use super::os;

/// As long as this is there, the machine does not fall asleep by itself.
pub struct Awake(#[expect(dead_code, reason = "what is dropped with it counts")] Option<os::Awake>);

/// Keeps the machine awake, as far as that can be had.
pub fn stay_awake() -> Awake {
    Awake(os::stay_awake())
}

impl fmt::Debug for Awake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Awake")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this machine can or not.
    #[test]
    fn staying_awake_costs_nothing_and_ends() {
        let begun = std::time::Instant::now();
        drop(stay_awake());
        assert!(begun.elapsed().as_secs() < 10);
    }
}
