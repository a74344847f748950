//! The files on a disk: those of each partition, and those that its system sees.

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::recover::files;
use crate::fat::FatTree;
use crate::files::{Forest, Kind, Tree, read_small};
use crate::io::{ReadAt, Window};
use crate::partition::{PartitionKind, PartitionTable};
use crate::units::ByteRange;
use crate::volume::Volume;

/// A longer fstab is none.
const LONGEST_FSTAB: usize = 256 << 10;

/// The partitions of a disk.
pub struct Disk<'a> {
    parts: Vec<Part<'a>>,
}

/// A partition, or a disk without a table.
pub struct Part<'a> {
    /// `None` for a disk without a table.
    pub number: Option<u32>,
    pub range: ByteRange,
    /// What it holds; its label is untrusted text.
    pub volume: Volume,
    window: Window<&'a dyn ReadAt>,
    part_uuid: Option<String>,
    part_label: Option<String>,
}

/// The trees that a system sees, and what it does not.
pub struct System<'d> {
    pub forest: Forest<'d>,
    /// Where in [`Disk::parts`] the root is.
    pub root: usize,
    /// Which partitions are mounted where.
    pub mounts: Vec<(usize, String)>,
    /// A line each: what is not as its system would see it.
    pub doubts: Vec<String>,
}

impl<'a> Disk<'a> {
    /// Looks at the partitions of `disk`.
    ///
    /// # Errors
    /// As [`PartitionTable::read`]; a partition that cannot be read holds nothing.
    pub fn read(disk: &'a dyn ReadAt) -> Result<Self> {
        let Some(table) = PartitionTable::read(disk)? else {
            let range = ByteRange::new(0, disk.len());
            let window = Window::new(disk, range)?;
            let part = Part {
                number: None,
                range,
                volume: identify(&window)?,
                window,
                part_uuid: None,
                part_label: None,
            };
            return Ok(Self { parts: vec![part] });
        };
        let parts = table.partitions().iter().enumerate();
        let parts = parts.map(|(index, partition)| {
            let window = Window::new(disk, partition.range)?;
            Ok(Part {
                number: Some(partition.number),
                range: partition.range,
                volume: identify(&window)?,
                window,
                part_uuid: table.part_uuid(index),
                part_label: match &partition.kind {
                    PartitionKind::Gpt { name, .. } => Some(name.clone()),
                    PartitionKind::Mbr { .. } => None,
                },
            })
        });
        Ok(Self {
            parts: parts.collect::<Result<_>>()?,
        })
    }

    pub fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// Opens the files of one partition by its number.
    ///
    /// # Errors
    /// `Usage` if there is none, as [`Part::tree`].
    pub fn partition(&self, number: u32) -> Result<System<'_>> {
        let at = |part: &Part| part.number.unwrap_or(1) == number;
        let root = self.parts.iter().position(at).ok_or_else(|| {
            Error::usage(format!("there is no partition {number}"))
                .with_hint("pishrink inspect shows the partitions")
        })?;
        self.rooted(root)
    }

    /// Opens the files that the system on this disk sees: the root's, and what its fstab mounts.
    ///
    /// # Errors
    /// `Unsupported` if there is no partition with files that can be read; `Unsound` if those that
    /// there are cannot be.
    pub fn system(&self) -> Result<System<'_>> {
        let mut candidates = Vec::new();
        let mut failed = None;
        for (index, part) in self.parts.iter().enumerate() {
            match part.tree() {
                Ok(Some(_)) => match self.rooted(index) {
                    Ok(system) => candidates.push((system.rank(), system)),
                    Err(error) => failed = Some(error),
                },
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        // The first of the best.
        let best = candidates
            .into_iter()
            .rev()
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, system)| system);
        let Some(mut system) = best else {
            return Err(failed.unwrap_or_else(|| {
                Error::unsupported("there is no ext or FAT filesystem whose files can be read")
            }));
        };
        self.mount_all(&mut system);
        Ok(system)
    }

    fn rooted(&self, root: usize) -> Result<System<'_>> {
        let part = &self.parts[root];
        let Some((tree, doubt)) = part.tree()? else {
            return Err(Error::unsupported(format!(
                "{}: the files of {} cannot be read",
                part.name(),
                part.volume.name()
            )));
        };
        Ok(System {
            forest: Forest::new(tree),
            root,
            mounts: vec![(root, "/".to_owned())],
            doubts: doubt.into_iter().collect(),
        })
    }

    fn mount_all<'d>(&'d self, system: &mut System<'d>) {
        let Some(fstab) = system.small_file("/etc/fstab", LONGEST_FSTAB) else {
            return;
        };
        for (spec, path) in mounts(&fstab) {
            let is_meant = |part: &Part| part.is_meant_by(&spec);
            let Some(index) = self.parts.iter().position(is_meant) else {
                continue;
            };
            if index == system.root || system.mounts.iter().any(|(_, other)| *other == path) {
                continue;
            }
            match self.parts[index].tree() {
                Ok(Some((tree, doubt))) => {
                    system.forest.mount(path.as_bytes(), tree);
                    system.doubts.extend(doubt);
                    system.mounts.push((index, path));
                }
                Ok(None) => {}
                Err(error) => {
                    let text = format!("{path} is not shown: {}", error.one_line());
                    system.doubts.push(text);
                }
            }
        }
    }
}

impl System<'_> {
    /// Reads a small file; `None` if there is none, or it cannot be read.
    pub fn small_file(&self, path: &str, most: usize) -> Option<String> {
        let found = self.forest.find(path.as_bytes(), true).ok()??;
        let tree = self.forest.tree(found.place);
        let bytes = read_small(tree, found.place.node, most).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// How much the root looks like that of a system.
    fn rank(&self) -> u32 {
        let is = |path: &str, kind| {
            let found = self.forest.find(path.as_bytes(), true).ok().flatten();
            found.is_some_and(|found| {
                let stat = self.forest.stat(found.place);
                stat.is_ok_and(|stat| stat.kind == kind)
            })
        };
        4 * u32::from(is("/etc/fstab", Kind::File))
            + 2 * u32::from(is("/etc", Kind::Folder))
            + u32::from(is("/home", Kind::Folder))
    }
}

/// A tree, and what makes it differ from what its system would see.
type Doubtful<'d> = (Box<dyn Tree + 'd>, Option<String>);

impl Part<'_> {
    /// Opens the files; `None` for what has none that can be read.
    ///
    /// # Errors
    /// As [`files::files`].
    pub fn tree(&self) -> Result<Option<Doubtful<'_>>> {
        let device: &dyn ReadAt = &self.window;
        Ok(match &self.volume {
            Volume::Ext(_) => {
                let (tree, doubt) =
                    files::files(device).map_err(|error| error.within(self.name()))?;
                let doubt = doubt.map(|error| {
                    format!(
                        "{}: files are shown as they lie there, without the last changes: {}",
                        self.name(),
                        error.one_line()
                    )
                });
                Some((Box::new(tree), doubt))
            }
            Volume::Fat(fat) => Some((Box::new(FatTree::new(fat.clone(), device)), None)),
            Volume::Foreign(_) | Volume::Swap(_) | Volume::Opaque(_) => None,
        })
    }

    /// Returns how messages call it.
    pub fn name(&self) -> String {
        match self.number {
            Some(number) => format!("partition {number}"),
            None => "the disk".to_owned(),
        }
    }

    /// Does the first word of a line in fstab mean this partition?
    fn is_meant_by(&self, spec: &str) -> bool {
        let same = |one: Option<&str>, other: &str| {
            one.is_some_and(|one| one.eq_ignore_ascii_case(other.trim_matches('"')))
        };
        match spec.split_once('=') {
            Some(("PARTUUID", id)) => same(self.part_uuid.as_deref(), id),
            Some(("UUID", id)) => same(self.volume.uuid().as_deref(), id),
            Some(("LABEL", label)) => same(self.volume.label().as_deref(), label),
            Some(("PARTLABEL", label)) => same(self.part_label.as_deref(), label),
            _ => self.is_device(spec),
        }
    }

    fn is_device(&self, path: &str) -> bool {
        for (folder, id) in [
            ("/dev/disk/by-uuid/", self.volume.uuid()),
            ("/dev/disk/by-partuuid/", self.part_uuid.clone()),
            ("/dev/disk/by-label/", self.volume.label()),
        ] {
            if let Some(name) = path.strip_prefix(folder) {
                return id.is_some_and(|id| id.eq_ignore_ascii_case(name));
            }
        }
        let name = path.strip_prefix("/dev/").unwrap_or_default();
        let disk = name.trim_end_matches(|c: char| c.is_ascii_digit());
        // mmcblk0p2, nvme0n1p2, sda2, vda2
        let is_disk = disk.ends_with('p') && disk.contains(|c: char| c.is_ascii_digit())
            || ["sd", "vd", "hd"].iter().any(|kind| disk.starts_with(kind));
        let number = name[disk.len()..].parse().ok();
        is_disk && number.is_some() && number == self.number
    }
}

/// Reads an fstab: what is mounted, and where.
fn mounts(fstab: &str) -> Vec<(String, String)> {
    let lines = fstab.lines().filter(|line| !line.trim().starts_with('#'));
    let words = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((unescaped(words.next()?), unescaped(words.next()?)))
    });
    let mut mounts: Vec<_> = words
        .filter(|(_, path)| path.starts_with('/') && path.len() > 1)
        .map(|(spec, path)| (spec, path.trim_end_matches('/').to_owned()))
        .collect();
    // What holds another mount's folder comes first.
    mounts.sort_by_key(|(_, path)| path.matches('/').count());
    mounts
}

/// Puts back spaces and the like, which an fstab writes as octal numbers.
fn unescaped(word: &str) -> String {
    ["\\040", "\\011", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\\"])
        .fold(word.to_owned(), |word, (from, to)| word.replace(from, to))
}

/// Tells what a partition holds; what cannot be read holds nothing that is known.
fn identify(window: &dyn ReadAt) -> Result<Volume> {
    match Volume::identify(window) {
        Err(error) if error.kind() == ErrorKind::Io => Ok(Volume::unreadable()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fstab_says_what_is_mounted_where() {
        let fstab = "proc /proc proc defaults 0 0\n\
            # PARTUUID=x /nothing ext4\n\
            PARTUUID=1-01  /boot/firmware/  vfat defaults 0 2\n\
            LABEL=my\\040data /boot auto\n\
            /dev/mmcblk0p3 none swap\n\
            broken\n";
        let expected = [
            ("proc", "/proc"),
            ("LABEL=my data", "/boot"),
            ("PARTUUID=1-01", "/boot/firmware"),
        ];
        let expected = expected.map(|(spec, path)| (spec.to_owned(), path.to_owned()));
        assert_eq!(mounts(fstab), expected);
    }
}
