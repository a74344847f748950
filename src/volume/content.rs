//! How a volume goes into an image, and what a user is told about it.

use std::ops::Range;

use serde::Serialize;

use crate::io::{Overlay, RangeSet};

/// How a volume goes into an image.
#[derive(Clone, Debug)]
pub struct Content {
    /// Over the partition; its length is the volume's new length, at most the partition's.
    pub overlay: Overlay,
    /// Bytes that a card must hold. All others are free, and zeros in the image.
    pub stored: RangeSet,
    pub facts: Facts,
}

/// What a user is told about a volume.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Bytes in use, of the volume's own length.
    pub used: u64,
    pub total: u64,
    /// Was it unmounted cleanly?
    pub clean: bool,
    /// Nothing is known of what is free: every byte is kept.
    pub opaque: bool,
    /// Metadata that cannot be read, because of which the size is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
    /// Of metadata that the image has as it is, and that changes whenever something is written.
    #[serde(skip)]
    pub digest: Option<[u8; 32]>,
    #[serde(flatten)]
    pub ext: Option<ExtFacts>,
    /// A line each: what was put right, what could not be done and why.
    pub notes: Vec<String>,
}

/// What a user is told about an ext filesystem.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExtFacts {
    pub features: Vec<String>,
    pub block_size: u64,
    /// The length in the image.
    pub new_total: u64,
    pub new_free: u64,
    pub transactions_replayed: u32,
    pub fast_commits_replayed: u32,
    pub orphans_deleted: u32,
    pub orphans_truncated: u32,
    pub repairs: Vec<String>,
    /// The features because of which the size is kept.
    pub features_in_the_way: Vec<String>,
    pub moved_blocks: u64,
    pub moved_inodes: u64,
    /// Byte ranges of the volume that go elsewhere.
    #[serde(skip)]
    pub moved: Vec<Range<u64>>,
}

/// A stretch of a volume, what it belongs to (a file's path, untrusted, or a few words), and the
/// place in the file if it is a file's.
pub type Owned = (Range<u64>, String, Option<u64>);

impl Content {
    /// Every byte as it is, whatever it means.
    pub fn whole(len: u64) -> Self {
        let facts = Facts {
            used: len,
            total: len,
            clean: true,
            opaque: true,
            ..Facts::default()
        };
        Self::part(len, RangeSet::from(0..len), facts)
    }

    /// The bytes of `stored` as they are, zeros else.
    pub(super) fn part(len: u64, stored: RangeSet, facts: Facts) -> Self {
        Self {
            overlay: Overlay::new(len),
            stored,
            facts,
        }
    }

    pub(super) fn with_note(mut self, note: impl Into<String>) -> Self {
        self.facts.notes.push(note.into());
        self
    }

    pub(super) fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.facts.notes.extend(notes);
        self
    }
}
