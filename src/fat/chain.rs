//! The entries of a file allocation table, and the chains that they are.

use crate::error::{Error, Result};
use crate::fat::FatKind;
use crate::fat::boot::{Geometry, u16_at, u32_at};
use crate::io::ReadAt;

/// Entries read at a time (1 MiB of FAT32).
pub(super) const CHUNK: u32 = 256 << 10;

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Free,
    Bad,
    Next(u32),
    End,
}

impl Entry {
    pub(super) fn decode(kind: FatKind, value: u32) -> Self {
        let (bad, end) = match kind {
            FatKind::Fat12 => (0xff7, 0xff8),
            FatKind::Fat16 => (0xfff7, 0xfff8),
            FatKind::Fat32 => (0x0fff_fff7, 0x0fff_fff8),
        };
        match value {
            0 => Entry::Free,
            _ if value == bad => Entry::Bad,
            _ if value >= end => Entry::End,
            next => Entry::Next(next),
        }
    }
}

/// Follows a chain one step, in the FAT that counts.
pub(super) fn next<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    cluster: u32,
) -> Result<Entry> {
    let values = values(geometry, dev, geometry.active_fat, cluster, 1)?;
    Ok(Entry::decode(geometry.kind, values[0]))
}

/// The FAT that counts, in memory.
pub(super) struct Table {
    kind: FatKind,
    values: Vec<u32>,
}

impl Table {
    /// Reads all entries, from number 0 on.
    pub(super) fn read<D: ReadAt + ?Sized>(geometry: &Geometry, dev: &D) -> Result<Self> {
        // No overflow: a FAT has at most 2^28 entries.
        let total = geometry.clusters + 2;
        let mut table = Vec::new();
        while (table.len() as u32) < total {
            let first = table.len() as u32;
            let count = CHUNK.min(total - first);
            table.extend(values(geometry, dev, geometry.active_fat, first, count)?);
        }
        Ok(Self {
            kind: geometry.kind,
            values: table,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns what is said of a cluster that there is.
    pub(super) fn entry(&self, cluster: u32) -> Entry {
        Entry::decode(self.kind, self.values[cluster as usize])
    }
}

/// Reads `count` entries from number `first` on; both within the table.
pub(super) fn values<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    copy: u8,
    first: u32,
    count: u32,
) -> Result<Vec<u32>> {
    let start = geometry.fat_copy(copy);
    let (from, to) = (u64::from(first), u64::from(first) + u64::from(count));
    let bytes = |from: u64, to: u64| dev.read_vec_at(start + from, (to - from) as usize);
    Ok(match geometry.kind {
        FatKind::Fat12 => {
            // Two entries share three bytes.
            let base = from * 3 / 2;
            let raw = bytes(base, (to * 3).div_ceil(2))?;
            let value = |entry: u64| {
                let pair = u32::from(u16_at(&raw, (entry * 3 / 2 - base) as usize));
                if entry.is_multiple_of(2) {
                    pair & 0xfff
                } else {
                    pair >> 4
                }
            };
            (from..to).map(value).collect()
        }
        FatKind::Fat16 => {
            let raw = bytes(from * 2, to * 2)?;
            raw.chunks_exact(2)
                .map(|entry| u32::from(u16_at(entry, 0)))
                .collect()
        }
        // The four high bits belong to nobody.
        FatKind::Fat32 => {
            let raw = bytes(from * 4, to * 4)?;
            raw.chunks_exact(4)
                .map(|entry| u32_at(entry, 0) & 0x0fff_ffff)
                .collect()
        }
    })
}

/// Walks the chain from cluster `first`, not more than `most` clusters of it, and gives `visit`
/// the byte at which each begins, until that says `false`.
///
/// # Errors
/// `Unsound` if the chain leaves the filesystem or is longer than it (so it runs in a circle).
pub(super) fn walk<D: ReadAt + ?Sized>(
    geometry: &Geometry,
    dev: &D,
    first: u32,
    most: u64,
    mut visit: impl FnMut(u64) -> Result<bool>,
) -> Result<()> {
    let mut cluster = first;
    let mut seen = 0u64;
    while seen < most {
        let start = geometry.cluster_start(cluster).ok_or_else(|| {
            Error::unsound(format!(
                "the FAT filesystem is damaged: a chain goes to cluster {cluster}"
            ))
        })?;
        if seen >= u64::from(geometry.clusters) {
            return Err(Error::unsound(format!(
                "the FAT filesystem is damaged: the chain from cluster {first} runs in a circle"
            )));
        }
        seen += 1;
        if !visit(start)? {
            return Ok(());
        }
        match next(geometry, dev, cluster)? {
            Entry::Next(next) => cluster = next,
            Entry::End => return Ok(()),
            Entry::Free | Entry::Bad => {
                return Err(Error::unsound(format!(
                    "the FAT filesystem is damaged: the chain from cluster {first} breaks off"
                )));
            }
        }
    }
    Ok(())
}
