//! The file allocation table: an entry per cluster, which names the next one of its chain.

use crate::error::Result;
use crate::fat::boot::Geometry;
use crate::fat::chain::{Entry, values};
use crate::fat::{FatKind, Usage, check, dir};
use crate::io::{RangeSet, ReadAt};

/// Entries read at a time (1 MiB of FAT32).
const CHUNK: u32 = 256 << 10;
/// With more runs than this the picture is not kept: everything counts as in use.
const MAX_RUNS: usize = 4 << 20;

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
