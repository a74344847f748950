//! What systems write to a FAT filesystem that they only mounted: marks that it is in use, counts of free
//! clusters, days of the last access, and folders of their own with what is in them.
//!
//! Everything else stays a difference: a file that is no system's own, a changed byte of a file that was
//! there, a changed entry of the FAT. So what this puts back is decided by names and by who owns a cluster,
//! never by how little it is.

use std::collections::HashSet;
use std::ops::Range;

use crate::error::Result;
use crate::fat::boot::{Geometry, Root, u16_at};
use crate::fat::chain::{Entry, Table, walk};
use crate::fat::dir::{self, Found, LAST_ACCESS, LONG_NAME, MAX_DIRECTORY};
use crate::fat::{Fat, FatKind};
use crate::io::{Overlay, ReadAt};

const ENTRY: usize = 32;
const SECTOR: u64 = 512;

/// Directories that are looked through, at the most.
const MOST_DIRECTORIES: usize = 100_000;

/// What systems make in the root directory. Windows, macOS, Linux desktops.
const OWN_FOLDERS: [&str; 9] = [
    "system volume information",
    "$recycle.bin",
    "recycler",
    ".fseventsd",
    ".spotlight-v100",
    ".trashes",
    ".temporaryitems",
    ".documentrevisions-v100",
    ".apdisk",
];

/// Is it what a system makes by itself where a file system is mounted or looked at?
fn is_systems_own(name: &str, in_root: bool) -> bool {
    let name = name.to_lowercase();
    let trash = name.strip_prefix(".trash-");
    let trash = trash.is_some_and(|user| user.bytes().all(|byte| byte.is_ascii_digit()));
    let anywhere = name == ".ds_store" || name.starts_with("._");
    anywhere || (in_root && (trash || OWN_FOLDERS.contains(&&*name)))
}

impl Fat {
    /// Returns, of this filesystem as `before` has it, the bytes that mounting may have changed in `after`,
    /// within `ranges`; laid over `after` they put that back.
    ///
    /// # Errors
    /// `Io`, or `Unsound` if one of them is damaged.
    pub fn unmounted(
        &self,
        before: &dyn ReadAt,
        after: &dyn ReadAt,
        ranges: &[Range<u64>],
    ) -> Result<Overlay> {
        let mut since = Since {
            geometry: &self.geometry,
            before,
            after,
            back: Overlay::new(after.len()),
            entries: Table::read(&self.geometry, before)?,
            now: Table::read(&self.geometry, after)?,
            own: HashSet::new(),
            directories: 0,
            mounted: false,
        };
        since.marks()?;
        let root = match self.geometry.root {
            Root::Fixed { start, len } => vec![(start, len as usize)],
            Root::Chain { first } => since.chain(before, first)?,
        };
        since.directory(root, true)?;
        if let Root::Chain { first } = self.geometry.root {
            since.longer(first);
        }
        since.clusters(ranges)?;
        Ok(since.back)
    }
}

struct Since<'a> {
    geometry: &'a Geometry,
    before: &'a dyn ReadAt,
    after: &'a dyn ReadAt,
    back: Overlay,
    /// Of the FAT, before and after.
    entries: Table,
    now: Table,
    /// Clusters that were free, and belong to what a system made.
    own: HashSet<u32>,
    directories: usize,
    /// Was anything found that only who mounts it changes?
    mounted: bool,
}

impl Since<'_> {
    fn put_back(&mut self, at: u64, len: usize) -> Result<()> {
        let bytes = self.before.read_vec_at(at, len)?;
        self.mounted |= self.after.read_vec_at(at, len)? != bytes;
        self.back.set_bytes(at, bytes);
        Ok(())
    }

    /// The boot sector's mark that it is mounted, and FSInfo's counts, and their backups.
    fn marks(&mut self) -> Result<()> {
        if self.geometry.kind != FatKind::Fat32 {
            return self.put_back(37, 1);
        }
        let boot = self.before.read_vec_at(0, SECTOR as usize)?;
        let (info, backup) = (u16_at(&boot, 48), u16_at(&boot, 50));
        let first = self.geometry.fat_start / SECTOR;
        for sector in [0, u64::from(backup)] {
            if sector < first && (sector > 0 || backup != 0) {
                self.put_back(sector * SECTOR + 65, 1)?;
            }
            let info = sector + u64::from(info);
            if info > sector && info < first {
                self.put_back(info * SECTOR + 488, 8)?;
            }
        }
        Ok(())
    }

    /// Lists where the clusters of a chain are.
    fn chain(&self, device: &dyn ReadAt, first: u32) -> Result<Vec<(u64, usize)>> {
        let size = self.geometry.cluster_size;
        let mut places = Vec::new();
        let most = MAX_DIRECTORY.div_ceil(size);
        walk(self.geometry, device, first, most, |start| {
            places.push((start, size as usize));
            Ok(true)
        })?;
        Ok(places)
    }

    /// Holds a directory's places against each other, and goes on with the directories in it.
    fn directory(&mut self, places: Vec<(u64, usize)>, in_root: bool) -> Result<()> {
        self.directories += 1;
        if self.directories > MOST_DIRECTORIES {
            return Ok(());
        }
        let (mut old, mut new, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for &(start, len) in &places {
            old.extend(self.before.read_vec_at(start, len)?);
            new.extend(self.after.read_vec_at(start, len)?);
            slots.extend((0..len / ENTRY).map(|slot| start + (slot * ENTRY) as u64));
        }
        let live = old
            .chunks_exact(ENTRY)
            .take_while(|slot| slot[0] != 0)
            .map(|slot| slot[0] != 0xe5)
            .chain(std::iter::repeat(false));
        let live: Vec<bool> = live.take(slots.len()).collect();
        let mut run = 0;
        let mut ended = false;
        for (index, slot) in new.chunks_exact(ENTRY).enumerate() {
            ended |= slot[0] == 0;
            let is_free = ended || slot[0] == 0xe5;
            if is_free {
                if !live[index] {
                    self.put_back(slots[index], ENTRY)?;
                }
                run = index + 1;
            } else if slot[11] & 0x3f != LONG_NAME {
                let of_it = run..index + 1;
                run = index + 1;
                if live[index] {
                    self.put_back(slots[index] + LAST_ACCESS as u64, 2)?;
                } else if !live[of_it.clone()].contains(&true) {
                    let found = dir::entries(&new[of_it.start * ENTRY..of_it.end * ENTRY]).last();
                    if let Some(found) = found {
                        self.made(&found, in_root, &slots[of_it])?;
                    }
                }
            }
        }
        let below: Vec<u32> = dir::entries(&old)
            .filter(|found| found.is_dir() && found.name().is_some())
            .map(|found| found.first_cluster(self.geometry))
            .collect();
        for first in below {
            let places = self.chain(self.before, first)?;
            self.directory(places, false)?;
            self.longer(first);
        }
        Ok(())
    }

    /// Takes back the entries of what a system made, and notes what belongs to it.
    fn made(&mut self, found: &Found, in_root: bool, slots: &[u64]) -> Result<()> {
        let Some(name) = found.name() else {
            return Ok(());
        };
        if !is_systems_own(&name, in_root) {
            return Ok(());
        }
        for &slot in slots {
            self.put_back(slot, ENTRY)?;
        }
        self.take(found);
        Ok(())
    }

    /// Notes the clusters of what a system made, and of all below it.
    fn take(&mut self, found: &Found) {
        let mut waiting = vec![(found.first_cluster(self.geometry), found.is_dir())];
        while let Some((first, is_dir)) = waiting.pop() {
            let mut cluster = first;
            while self.is_new(cluster) && self.own.insert(cluster) {
                if is_dir && let Some(start) = self.geometry.cluster_start(cluster) {
                    let len = self.geometry.cluster_size as usize;
                    // What cannot be read has no clusters that are known.
                    let bytes = self.after.read_vec_at(start, len).unwrap_or_default();
                    let below = dir::entries(&bytes).filter(|found| found.name().is_some());
                    waiting.extend(
                        below.map(|found| (found.first_cluster(self.geometry), found.is_dir())),
                    );
                }
                match entry_of(&self.now, cluster) {
                    Some(Entry::Next(next)) => cluster = next,
                    _ => break,
                }
            }
        }
    }

    /// Was it free, and is it none any more?
    fn is_new(&self, cluster: u32) -> bool {
        cluster >= 2
            && entry_of(&self.entries, cluster) == Some(Entry::Free)
            && !matches!(entry_of(&self.now, cluster), Some(Entry::Free) | None)
    }

    /// A directory that became longer goes on with clusters that were free.
    fn longer(&mut self, first: u32) {
        let mut cluster = first;
        let mut left = self.geometry.clusters;
        while let Some(Entry::Next(next)) = entry_of(&self.entries, cluster) {
            cluster = next;
            left = left.saturating_sub(1);
            if left == 0 {
                return;
            }
        }
        let Some(Entry::Next(mut next)) = entry_of(&self.now, cluster) else {
            return;
        };
        let begun = next;
        while self.is_new(next) && self.own.insert(next) {
            match entry_of(&self.now, next) {
                Some(Entry::Next(more)) => next = more,
                _ => break,
            }
        }
        if self.own.contains(&begun) {
            // The end of the chain is where it was; the number is the FAT's own.
            self.own.insert(cluster);
        }
    }

    /// Puts back what lies in `ranges` of the FATs and of clusters that were free.
    fn clusters(&mut self, ranges: &[Range<u64>]) -> Result<()> {
        let width = match self.geometry.kind {
            FatKind::Fat12 => 0,
            FatKind::Fat16 => 2,
            FatKind::Fat32 => 4,
        };
        for copy in (0..self.geometry.fats).filter(|_| width > 0) {
            let start = self.geometry.fat_copy(copy);
            // Entry 1 has the marks of macOS and Windows.
            let mut changed: Vec<u64> = self.own.iter().map(|&own| u64::from(own)).collect();
            changed.push(1);
            for entry in changed {
                self.put_back(start + entry * width, width as usize)?;
            }
        }
        if !self.mounted {
            return Ok(());
        }
        let size = self.geometry.cluster_size;
        for range in ranges {
            let mut at = range.start.max(self.geometry.data_start);
            while at < range.end {
                let index = (at - self.geometry.data_start) / size;
                let end = range.end.min(self.geometry.data_start + (index + 1) * size);
                let cluster = u32::try_from(index + 2).unwrap_or(u32::MAX);
                let free = entry_of(&self.entries, cluster) == Some(Entry::Free);
                let used = entry_of(&self.now, cluster) != Some(Entry::Free);
                // What a system made and removed again leaves its bytes behind.
                if free && (self.own.contains(&cluster) || !used) {
                    self.put_back(at, (end - at) as usize)?;
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// What a FAT says of a cluster; `None` for numbers that no cluster has.
fn entry_of(table: &Table, cluster: u32) -> Option<Entry> {
    ((cluster as usize) < table.len()).then(|| table.entry(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_systems_make() {
        for (name, root, folder) in [
            (".fseventsd", true, false),
            ("System Volume Information", true, false),
            (".Trash-1000", true, false),
            (".Spotlight-V100", true, false),
            ("._cmdline.txt", true, true),
            (".DS_Store", true, true),
            ("cmdline.txt", false, false),
            ("ssh", false, false),
            (".Trash-x", false, false),
        ] {
            assert_eq!(is_systems_own(name, true), root, "{name}");
            assert_eq!(is_systems_own(name, false), folder, "{name}");
        }
    }
}
