//! exFAT.
//!
//! ```text
//! boot sector, 8 more, OEM, reserved, sums │ the same again │ FAT │ clusters 2 …
//! └──────────── 12 sectors ──────────────┘ └─ 12 sectors ─┘       └ bitmap, upcase table, root, files
//! boot sector: 3 "EXFAT   "  64 PartitionOffset(8)  72 VolumeLength(8)  80 FatOffset(4)  84 FatLength(4)
//!   88 ClusterHeapOffset(4)  92 ClusterCount(4)  96 FirstClusterOfRootDirectory(4)  100 serial(4)
//!   104 revision(2)  106 VolumeFlags(2)  108 BytesPerSectorShift  109 SectorsPerClusterShift
//!   110 NumberOfFats  112 PercentInUse  510 55 aa
//! ```
//! Spec: Microsoft, "exFAT file system specification" (1.00).
//!
//! Decisions: the boot region's sum must be right. A cluster is in use if the bitmap says so, or if
//! a file that the directories name has it: the bitmap has no sum, and after a card was pulled it
//! may be behind the directories. Where chains break, cross or run in circles nothing is left away.
//! Everything before the first cluster counts as in use.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::foreign::bits::{First, set_runs};
use crate::foreign::{Foreign, Kind, MAX_RUNS, Near, Patch, Usage, Used, le16, le32, le64, utf16};
use crate::io::{RangeSet, ReadAt};

/// Sectors in a boot region, and in which of them the sums are.
const REGION: u64 = 12;
const SUMS: u64 = 11;
/// Fields of the boot sector that its sum leaves out: VolumeFlags and PercentInUse.
const UNSUMMED: [usize; 3] = [106, 107, 112];
const VOLUME_DIRTY: u16 = 2;
const MEDIA_FAILURE: u16 = 4;
/// The most clusters that there can be.
const MAX_CLUSTERS: u32 = u32::MAX - 10;
const END: u32 = 0xffff_ffff;
/// No directory is longer, in bytes.
const MAX_DIRECTORY: u64 = 256 << 20;
/// Directories that wait to be read, at most.
const MAX_WAITING: usize = 4 << 20;
/// Bytes of the bitmap or a directory that are read at a time.
const CHUNK: u64 = 1 << 20;

/// Where things are, in bytes from the boot sector; all of it within the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    len: u64,
    sector: u64,
    fat_start: u64,
    heap_start: u64,
    cluster: u64,
    clusters: u32,
    root: u32,
    flags: u16,
}

pub(super) fn identify(dev: &dyn ReadAt) -> Result<Option<Foreign>> {
    if dev.len() < 512 {
        return Ok(None);
    }
    let boot: [u8; 512] = dev
        .read_vec_at(0, 512)?
        .try_into()
        .map_err(|_| Error::internal("a sector of another length"))?;
    if boot[3..11] != *b"EXFAT   " {
        return Ok(None);
    }
    let geometry = decode(&boot, dev.len())?;
    let region = dev.read_vec_at(0, (REGION * geometry.sector) as usize)?;
    let (summed, sums) = region.split_at((SUMS * geometry.sector) as usize);
    let sum = checksum(summed).to_le_bytes();
    if sums.chunks_exact(4).any(|there| there != sum) {
        return Err(unsound("the sum of its boot region is wrong"));
    }
    let serial = le32(&boot, 100);
    let label = label(&geometry, dev).unwrap_or_default();
    Ok(Some(Foreign {
        kind: Kind::ExFat(geometry),
        label,
        uuid: Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff)),
    }))
}

fn decode(boot: &[u8; 512], dev_len: u64) -> Result<Geometry> {
    let (sector_shift, cluster_shift) = (boot[108], boot[109]);
    if boot[510..] != [0x55, 0xaa]
        || !(9..=12).contains(&sector_shift)
        || cluster_shift > 25 - sector_shift
        || boot[11..64].iter().any(|&byte| byte != 0)
    {
        return Err(unsound("its boot sector makes no sense"));
    }
    let revision = le16(boot, 104);
    if revision >> 8 != 1 || boot[110] != 1 || le16(boot, 106) & 1 != 0 {
        return Err(Error::unsupported(format!(
            "an exFAT of revision {}.{} with {} allocation tables is not known",
            revision >> 8,
            revision & 0xff,
            boot[110]
        )));
    }
    let sectors = |at: usize| u64::from(le32(boot, at)) << sector_shift;
    let sector = 1u64 << sector_shift;
    let cluster = sector << cluster_shift;
    let volume = le64(boot, 72);
    let (fat_start, fat_len, heap_start) = (sectors(80), sectors(84), sectors(88));
    let clusters = le32(boot, 92);
    if volume > dev_len >> sector_shift {
        return Err(unsound(format!(
            "it is {volume} sectors of {sector} bytes long, its partition {dev_len} bytes"
        )));
    }
    let len = volume << sector_shift;
    // No overflow: sums of shifted 32-bit numbers, and 2^32 clusters of 2^25 bytes.
    let fits = fat_start >= 2 * REGION * sector
        && (u64::from(clusters) + 2) * 4 <= fat_len
        && fat_start + fat_len <= heap_start
        && (1..=MAX_CLUSTERS).contains(&clusters)
        && heap_start + u64::from(clusters) * cluster <= len;
    if !fits {
        return Err(unsound("its parts overlap or lie past its end"));
    }
    Ok(Geometry {
        len,
        sector,
        fat_start,
        heap_start,
        cluster,
        clusters,
        root: le32(boot, 96),
        flags: le16(boot, 106),
    })
}

/// Sums up a boot region without its last sector.
pub(super) fn checksum(region: &[u8]) -> u32 {
    let mut sum = 0u32;
    for (index, &byte) in region.iter().enumerate() {
        if !UNSUMMED.contains(&index) {
            sum = sum.rotate_right(1).wrapping_add(u32::from(byte));
        }
    }
    sum
}

fn unsound(what: impl std::fmt::Display) -> Error {
    Error::unsound(format!("the exFAT filesystem is damaged: {what}"))
}

impl Geometry {
    /// Returns the bytes of `count` clusters from number `first` on.
    fn bytes(&self, first: u32, count: u64) -> Result<Range<u64>> {
        let index = u64::from(first).checked_sub(2);
        let index = index.filter(|&index| {
            index < u64::from(self.clusters) && count <= u64::from(self.clusters) - index
        });
        let Some(index) = index else {
            return Err(unsound(format!("{count} clusters from number {first} on")));
        };
        let start = self.heap_start + index * self.cluster;
        Ok(start..start + count * self.cluster)
    }
}

pub(super) fn usage(geometry: &Geometry, dev: &dyn ReadAt) -> Result<Usage> {
    let mut walk = Walk::new(geometry, dev);
    let bitmap = walk.root()?;
    let mut digest = blake3::Hasher::new();
    let mut used = Used::default();
    used.add(0..geometry.heap_start)?;
    let mut base = 0;
    for piece in &bitmap {
        let mut at = piece.start;
        while at < piece.end {
            let len = CHUNK.min(piece.end - at);
            let bytes = dev.read_vec_at(at, len as usize)?;
            digest.update(&bytes);
            let left = u64::from(geometry.clusters) - base;
            set_runs(&bytes, left.min(len * 8), First::Low, base, |run| {
                let start = |index: u64| geometry.heap_start + index * geometry.cluster;
                used.add(start(run.start)..start(run.end))
            })?;
            base += left.min(len * 8);
            at += len;
        }
    }
    let by_bitmap = used.0.total();
    walk.files()?;
    for range in walk.owned.iter() {
        used.add(range)?;
    }
    let missed = used.0.total() - by_bitmap;
    let mut notes = Vec::new();
    if missed > 0 {
        notes.push(format!(
            "{missed} bytes of its files are marked as free: they are kept, and fsck.exfat can repair that"
        ));
    }
    let clean = geometry.flags & (VOLUME_DIRTY | MEDIA_FAILURE) == 0;
    if !clean {
        notes.push("it was not unmounted properly".into());
    }
    digest.update(&walk.digest.finalize().as_bytes()[..]);
    Ok(Usage {
        allocated: used.0,
        total: geometry.len,
        clean,
        digest: digest.finalize().into(),
        notes,
    })
}

/// A stretch of clusters that belong together.
struct Stream {
    first: u32,
    /// In bytes; `None`: to the end of its chain.
    len: Option<u64>,
    /// Its clusters lie side by side, and the FAT says nothing of them.
    contiguous: bool,
}

/// The way through the directories.
struct Walk<'a> {
    geometry: &'a Geometry,
    dev: &'a dyn ReadAt,
    fat: Near<'a>,
    /// What files and directories have.
    owned: RangeSet,
    /// Clusters that may still be met before there are more than the heap has.
    left: u64,
    directories: Vec<Stream>,
    digest: blake3::Hasher,
}

impl<'a> Walk<'a> {
    fn new(geometry: &'a Geometry, dev: &'a dyn ReadAt) -> Self {
        Self {
            geometry,
            dev,
            fat: Near::new(dev),
            owned: RangeSet::new(),
            left: u64::from(geometry.clusters),
            directories: Vec::new(),
            digest: blake3::Hasher::new(),
        }
    }

    /// Reads the root directory. Returns where the bitmap lies, in order.
    fn root(&mut self) -> Result<Vec<Range<u64>>> {
        let pieces = self.pieces(&Stream {
            first: self.geometry.root,
            len: None,
            contiguous: false,
        })?;
        let mut bitmap = None;
        self.directory(&pieces, &mut |entry| {
            if entry[0] == 0x81 && bitmap.replace(entry).is_some() {
                return Err(unsound("it has two bitmaps"));
            }
            Ok(())
        })?;
        let Some(entry) = bitmap else {
            return Err(unsound("it has no bitmap"));
        };
        let len = le64(&entry, 24);
        if entry[1] & 1 != 0 || len < u64::from(self.geometry.clusters).div_ceil(8) {
            return Err(unsound("its bitmap is too short"));
        }
        let pieces = self.pieces(&Stream {
            first: le32(&entry, 20),
            len: Some(len),
            contiguous: false,
        })?;
        // Linux reads it that way, whatever the FAT says.
        if pieces.len() != 1 {
            return Err(unsound("its bitmap lies in pieces"));
        }
        let exact = u64::from(self.geometry.clusters).div_ceil(8);
        Ok(vec![pieces[0].start..pieces[0].start + exact])
    }

    /// Reads all other directories.
    fn files(&mut self) -> Result<()> {
        while let Some(stream) = self.directories.pop() {
            let pieces = self.pieces(&stream)?;
            self.directory(&pieces, &mut |_| Ok(()))?;
        }
        Ok(())
    }

    /// Reads a directory; what its entries have is owned. `special` sees what only a root has.
    fn directory(
        &mut self,
        pieces: &[Range<u64>],
        special: &mut dyn FnMut([u8; 32]) -> Result<()>,
    ) -> Result<()> {
        let total: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        // A cluster more than its length rounded up.
        if total > MAX_DIRECTORY + self.geometry.cluster {
            return Err(unsound("a directory is longer than 256 MiB"));
        }
        let mut is_directory = false;
        for piece in pieces {
            let mut at = piece.start;
            while at < piece.end {
                let len = CHUNK.min(piece.end - at);
                let bytes = self.dev.read_vec_at(at, len as usize)?;
                for entry in bytes.chunks_exact(32) {
                    let entry: [u8; 32] = entry
                        .try_into()
                        .map_err(|_| Error::internal("an entry of another length"))?;
                    if entry[0] == 0 {
                        return Ok(());
                    }
                    self.digest.update(&entry[..]);
                    self.entry(entry, &mut is_directory, special)?;
                }
                at += len;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: [u8; 32],
        is_directory: &mut bool,
        special: &mut dyn FnMut([u8; 32]) -> Result<()>,
    ) -> Result<()> {
        let (first, len) = (le32(&entry, 20), le64(&entry, 24));
        match entry[0] {
            // Deleted; or no clusters: a label, a GUID, a name, a vendor's own words.
            0x01..=0x7f | 0x83 | 0xa0 | 0xc1 | 0xe0 => {}
            0x81 => special(entry)?,
            0x82 => {
                self.pieces(&Stream {
                    first,
                    len: Some(len),
                    contiguous: false,
                })?;
            }
            0x85 => *is_directory = le16(&entry, 4) & 0x10 != 0,
            // A stream, or a vendor's.
            0xc0 | 0xe1 => {
                let stream = Stream {
                    first,
                    len: Some(len),
                    contiguous: entry[1] & 2 != 0,
                };
                if entry[1] & 1 == 0 || len == 0 {
                    return Ok(());
                }
                match entry[0] == 0xc0 && *is_directory {
                    true if self.directories.len() >= MAX_WAITING => {
                        return Err(unsound("it has too many directories"));
                    }
                    true => self.directories.push(stream),
                    false => {
                        self.pieces(&stream)?;
                    }
                }
            }
            // Benign ones may be passed over, but not what they own.
            kind => {
                return Err(Error::unsupported(format!(
                    "an exFAT with directory entries of type {kind:#x} is not known"
                )));
            }
        }
        Ok(())
    }

    /// Returns the places of a stream in order, as few as there can be; they are owned.
    fn pieces(&mut self, stream: &Stream) -> Result<Vec<Range<u64>>> {
        let count = stream.len.map(|len| len.div_ceil(self.geometry.cluster));
        let mut pieces: Vec<Range<u64>> = Vec::new();
        if stream.contiguous {
            let count = count.unwrap_or(0);
            let range = self.geometry.bytes(stream.first, count)?;
            self.own(range.clone(), count)?;
            pieces.push(range);
            return Ok(pieces);
        }
        let mut cluster = stream.first;
        let mut met = 0;
        while count.is_none_or(|count| met < count) {
            let range = self.geometry.bytes(cluster, 1)?;
            match pieces.last_mut().filter(|last| last.end == range.start) {
                Some(last) => last.end = range.end,
                None => pieces.push(range.clone()),
            }
            met += 1;
            self.own(range, 1)?;
            cluster = self.next(cluster)?;
            if cluster == END {
                break;
            }
        }
        if count.is_some_and(|count| met < count) {
            return Err(unsound(format!(
                "the chain from cluster {} is too short",
                stream.first
            )));
        }
        Ok(pieces)
    }

    fn next(&mut self, cluster: u32) -> Result<u32> {
        let at = self.geometry.fat_start + u64::from(cluster) * 4;
        Ok(u32::from_le_bytes(self.fat.get(at)?))
    }

    /// Notes clusters of a file; each can have only one.
    fn own(&mut self, range: Range<u64>, count: u64) -> Result<()> {
        let left = self.left.checked_sub(count);
        self.left = left.ok_or_else(|| unsound("its files have more clusters than there are"))?;
        if self.owned.intersects(range.clone()) {
            return Err(unsound(format!(
                "two files have the cluster at byte {}",
                range.start
            )));
        }
        self.owned.insert(range);
        if self.owned.run_count() > MAX_RUNS {
            return Err(Error::unsupported("its files lie in too many pieces"));
        }
        Ok(())
    }
}

/// Reads the label from the root directory's first cluster.
fn label(geometry: &Geometry, dev: &dyn ReadAt) -> Result<Option<String>> {
    let range = geometry.bytes(geometry.root, 1)?;
    let len = (range.end - range.start).min(CHUNK) as usize;
    let bytes = dev.read_vec_at(range.start, len)?;
    let mut entries = bytes.chunks_exact(32).take_while(|entry| entry[0] != 0);
    let label = entries.find(|entry| entry[0] == 0x83);
    Ok(label.and_then(|entry| utf16(&entry[2..2 + 2 * usize::from(entry[1]).min(11)])))
}

/// The partition's place stands in both boot sectors, under their sum. Where it is not told, or is
/// another than the true one, it stays as it is: nobody went by it.
pub(super) fn moved(
    geometry: &Geometry,
    dev: &dyn ReadAt,
    from: u64,
    to: u64,
) -> Result<Vec<Patch>> {
    let mut patches = Vec::new();
    let len = (REGION * geometry.sector) as usize;
    let sums = (SUMS * geometry.sector) as usize;
    for region in [0, REGION * geometry.sector] {
        let mut bytes = dev.read_vec_at(region, len)?;
        let right = checksum(&bytes[..sums]) == le32(&bytes, sums);
        if !right || Some(le64(&bytes, 64)) != from.checked_div(geometry.sector) {
            continue;
        }
        let new = (to / geometry.sector).to_le_bytes();
        bytes[64..72].copy_from_slice(&new);
        let sum = checksum(&bytes[..sums]).to_le_bytes();
        patches.push((region + 64, new.to_vec()));
        patches.push((
            region + sums as u64,
            sum.repeat(geometry.sector as usize / 4),
        ));
    }
    Ok(patches)
}
