//! The file allocation table: an entry per cluster, which names the next one of its chain.

use crate::error::{Error, Result};
use crate::fat::boot::{Geometry, u16_at, u32_at};
use crate::fat::{FatKind, Usage, check, dir};
use crate::io::{RangeSet, ReadAt};

/// Entries read at a time (1 MiB of FAT32).
const CHUNK: u32 = 256 << 10;
/// With more runs than this the picture is not kept: everything counts as in use.
const MAX_RUNS: usize = 4 << 20;

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Free,
    Bad,
    Next(u32),
    End,
}

impl Entry {
    fn decode(kind: FatKind, value: u32) -> Self {
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
fn values<D: ReadAt + ?Sized>(
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

pub(super) fn usage<D: ReadAt + ?Sized>(geometry: &Geometry, dev: &D) -> Result<Usage> {
    let mut usage = Usage {
        allocated: RangeSet::new(),
        used_clusters: 0,
        free_clusters: 0,
        bad_clusters: 0,
        clean: true,
        digest: [0; 32],
        damage: Vec::new(),
        warnings: Vec::new(),
    };
    let mut digest = blake3::Hasher::new();
    let mut runs = Runs::new(geometry);
    let copies: Vec<u8> = match geometry.mirrored {
        true => (1..geometry.fats).collect(),
        false => Vec::new(),
    };
    let mut disagreeing = 0u32;
    // No overflow: a FAT has at most 2^28 entries.
    let entries = geometry.clusters + 2;
    let mut first = 0;
    while first < entries {
        let count = CHUNK.min(entries - first);
        let active = values(geometry, dev, geometry.active_fat, first, count)?;
        let mirrors = copies
            .iter()
            .map(|&copy| values(geometry, dev, copy, first, count))
            .collect::<Result<Vec<_>>>()?;
        for (index, &value) in active.iter().enumerate() {
            let cluster = first + index as u32;
            digest.update(&value.to_le_bytes());
            let differs = mirrors.iter().any(|mirror| mirror[index] != value);
            disagreeing += u32::from(differs);
            if cluster < 2 {
                if cluster == 1 {
                    usage.clean = is_clean(geometry, value);
                }
                continue;
            }
            let entry = Entry::decode(geometry.kind, value);
            match entry {
                Entry::Free => usage.free_clusters += 1,
                Entry::Bad => usage.bad_clusters += 1,
                Entry::Next(_) | Entry::End => usage.used_clusters += 1,
            }
            let in_use = |value| {
                !matches!(
                    Entry::decode(geometry.kind, value),
                    Entry::Free | Entry::Bad
                )
            };
            if in_use(value) || differs && mirrors.iter().any(|mirror| in_use(mirror[index])) {
                runs.add(cluster);
            }
        }
        first += count;
    }
    if disagreeing > 0 {
        usage.warnings.push(format!(
            "the copies of the FAT disagree in {disagreeing} entries: fsck.fat can repair that"
        ));
    }
    if !usage.clean {
        usage.warnings.push("it was not unmounted properly".into());
    }
    usage.allocated = runs.finish();
    let found = check::check(geometry, dev)?;
    let lost = found.named_clusters.map(|named| {
        // Of a sound filesystem; with damage a file may have clusters that are not in use.
        u64::from(usage.used_clusters).saturating_sub(named)
    });
    if let Some(lost @ 1..) = lost.filter(|_| found.damage.is_empty()) {
        usage.warnings.push(format!(
            "{lost} clusters in use belong to no file: fsck.fat can free them"
        ));
    }
    usage.damage = found.damage;
    if let Ok(root) = dir::read_unaccessed_root(geometry, dev) {
        digest.update(&root);
    }
    usage.digest = digest.finalize().into();
    Ok(usage)
}

/// Entry 1 has a bit for a clean unmount and one for no I/O errors; Linux has its own marks.
fn is_clean(geometry: &Geometry, entry: u32) -> bool {
    let bits = match geometry.kind {
        FatKind::Fat12 => 0,
        FatKind::Fat16 => 0xc000,
        FatKind::Fat32 => 0x0c00_0000,
    };
    entry & bits == bits && geometry.state & 3 == 0
}

/// Collects ascending clusters as runs of bytes.
struct Runs<'a> {
    geometry: &'a Geometry,
    set: RangeSet,
    /// Clusters not yet in the set, half-open.
    current: std::ops::Range<u32>,
}

impl<'a> Runs<'a> {
    fn new(geometry: &'a Geometry) -> Self {
        Self {
            geometry,
            set: std::iter::once(0..geometry.data_start).collect(),
            current: 2..2,
        }
    }

    fn add(&mut self, cluster: u32) {
        if cluster != self.current.end {
            self.store();
            self.current.start = cluster;
        }
        self.current.end = cluster + 1;
    }

    fn store(&mut self) {
        let start = |cluster: u32| {
            self.geometry.data_start + u64::from(cluster - 2) * self.geometry.cluster_size
        };
        self.set
            .insert(start(self.current.start)..start(self.current.end));
        if self.set.run_count() > MAX_RUNS {
            self.set.insert(0..start(self.geometry.clusters + 2));
        }
    }

    fn finish(mut self) -> RangeSet {
        self.store();
        self.set
    }
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
