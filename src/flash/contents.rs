//! What an image begins with: a disk that a card could start from, or nothing that is known.

use crate::error::{Error, Result};
use crate::io::ReadAt;
use crate::io::prefix::{Beginning, Prefix};
use crate::partition::{Iso, PartitionTable};
use crate::volume::Volume;

/// What was found in an image's first bytes.
#[derive(Debug)]
pub(super) enum Contents {
    /// A table with partitions; `None` if it is damaged, or lies elsewhere in part.
    Table(Option<Box<PartitionTable>>),
    /// An ISO that is a disk as well.
    Iso,
    /// No table, but a filesystem, a volume, or a boot sector.
    Bare,
    Unknown,
}

impl Contents {
    /// Looks at the `first` bytes of an image, of `len` bytes if that is known.
    pub(super) fn of(first: &[u8], len: Option<u64>) -> Self {
        let disk = Beginning {
            first,
            len: len.unwrap_or(Prefix(first).len()).max(first.len() as u64),
        };
        if matches!(Iso::find(&disk), Ok(Some(_))) {
            return Self::Iso;
        }
        match PartitionTable::read(&disk) {
            // An image may be shorter than its partitions.
            Ok(Some(_)) | Err(_) => {
                let table = PartitionTable::read(&Prefix(first));
                return Self::Table(table.ok().flatten().map(Box::new));
            }
            Ok(None) => {}
        }
        match Volume::identify(&disk) {
            Ok(volume) if volume.is_unknown() => {}
            // What cannot be looked at yet begins like something.
            _ => return Self::Bare,
        }
        match first.get(510..512) {
            Some([0x55, 0xaa]) => Self::Bare,
            _ => Self::Unknown,
        }
    }

    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    pub(super) fn is_iso(&self) -> bool {
        matches!(self, Self::Iso)
    }

    pub(super) fn table(&self) -> Option<&PartitionTable> {
        match self {
            Self::Table(table) => table.as_deref(),
            _ => None,
        }
    }

    /// Returns how long a card must be for the partitions in the table.
    pub(super) fn needed(&self) -> Option<u64> {
        let partitions = self.table()?.partitions();
        partitions.iter().map(|part| part.range.end).max()
    }

    /// Refuses what nothing is known of.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(super) fn refuse_unknown(&self) -> Result<()> {
        if !self.is_unknown() {
            return Ok(());
        }
        Err(Error::unsupported(
            "it has neither a partition table nor a filesystem that is known: nothing starts from a \
             card with it",
        )
        .with_hint(
            "look whether it must be unpacked or converted first; --allow-any-image writes it as it is",
        ))
    }
}
