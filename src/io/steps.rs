//! A change in steps: each is on the medium before the next one begins.

use super::overlay::OnWrite;
use super::{Overlay, WriteAt};
use crate::error::Result;

/// Overlays to commit one after the other. Each lies on what the one before leaves; within one
/// the order of the writes does not matter, so that a medium may reorder them.
#[derive(Clone, Debug, Default)]
pub struct Steps(Vec<Overlay>);

impl Steps {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a step, unless it changes nothing.
    pub fn push(&mut self, step: Overlay) {
        if !step.is_empty() {
            self.0.push(step);
        }
    }

    /// Appends a step that writes `bytes` at `offset` of a disk of `len` bytes.
    pub fn push_bytes(&mut self, len: u64, offset: u64, bytes: &[u8]) {
        let mut step = Overlay::new(len);
        step.set_bytes(offset, bytes);
        self.push(step);
    }

    pub fn append(&mut self, other: Steps) {
        self.0.extend(other.0);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Overlay> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what all steps together make of a disk of `len` bytes.
    pub fn flat(&self, len: u64) -> Overlay {
        let steps = self.0.iter();
        steps.fold(Overlay::new(len), |flat, step| flat.then(step))
    }

    /// Commits all steps, with a sync behind each.
    ///
    /// # Errors
    /// As [`Overlay::commit`].
    pub fn commit(&self, target: &dyn WriteAt, written: OnWrite<'_>) -> Result<()> {
        for step in &self.0 {
            step.commit(target, written)?;
        }
        Ok(())
    }

    /// The same steps for a disk of `disk_len` bytes on which this one begins at `offset`.
    #[must_use]
    pub fn rebase(&self, offset: u64, disk_len: u64) -> Self {
        let steps = self.0.iter();
        Self(
            steps
                .map(|step| step.rebase(offset, offset, disk_len))
                .collect(),
        )
    }
}
