//! What a check found: damage that forbids a resize, and differences that the image puts right.

use std::fmt::Display;

use crate::units::InodeNr;

/// Findings kept by text; beyond that only their number.
const KEPT: usize = 100;

/// What reading and checking found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    damage: Vec<String>,
    damage_total: u64,
    repairs: Vec<String>,
    leftovers: Vec<InodeNr>,
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

    /// Adds deleted inodes whose slots are not clean. What is made anew has zeros there.
    pub fn leftovers(&mut self, slots: Vec<InodeNr>) {
        if !slots.is_empty() {
            let count = slots.len();
            self.repaired(format_args!(
                "{count} deleted inodes had leftovers in their slots"
            ));
            self.leftovers.extend(slots);
        }
    }

    /// Returns the deleted inodes whose slots have to be cleared.
    pub fn slots_to_clear(&self) -> &[InodeNr] {
        &self.leftovers
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
        self.leftovers.extend(other.leftovers);
    }
}
