//! What a check found: damage that forbids a resize, and differences that the image puts right.

use std::fmt::Display;

/// Findings kept by text; beyond that only their number.
const KEPT: usize = 100;

/// What reading and checking found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    damage: Vec<String>,
    damage_total: u64,
    repairs: Vec<String>,
}

impl Findings {
    /// Adds a piece of damage: the filesystem is not sound.
    pub fn damaged(&mut self, text: impl Display) {
        self.damage_total += 1;
        if self.damage.len() < KEPT {
            self.damage.push(text.to_string());
        }
    }

    /// Adds something that is put right in the image.
    pub fn repaired(&mut self, text: impl Display) {
        if self.repairs.len() < KEPT {
            self.repairs.push(text.to_string());
        }
    }

    /// Returns the first pieces of damage.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Returns how many pieces of damage there are in all.
    pub fn damage_total(&self) -> u64 {
        self.damage_total
    }

    /// Returns what is put right in the image.
    pub fn repairs(&self) -> &[String] {
        &self.repairs
    }

    pub fn is_sound(&self) -> bool {
        self.damage_total == 0
    }

    pub fn merge(&mut self, other: Findings) {
        self.damage_total += other.damage_total;
        let room = KEPT.saturating_sub(self.damage.len());
        self.damage.extend(other.damage.into_iter().take(room));
        let room = KEPT.saturating_sub(self.repairs.len());
        self.repairs.extend(other.repairs.into_iter().take(room));
    }
}
