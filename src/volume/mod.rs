//! The filesystems that a partition can hold: the one list of them.
//!
//! What a partition holds is told by its content, never by its type in the table. Whatever is not
//! known, or could be two things, is opaque: copied whole, never interpreted.

mod content;
pub mod disk;
mod ext;
mod signatures;
mod swap;

pub use crate::foreign::Patch;
pub use content::{Content, ExtFacts, Facts, Owned};
pub use signatures::Opaque;
pub use swap::Swap;

use crate::error::{ErrorKind, Result};
use crate::ext4;
use crate::ext4::format::superblock::{INCOMPAT_JOURNAL_DEV, Superblock};
use crate::fat::{self, Fat};
use crate::foreign::Foreign;
use crate::io::{RangeSet, ReadAt};
use ext::{bitmap_content, ext_content, ext_name, ext_owned, is_plausible};
use signatures::{UNKNOWN, has_luks_backup, opaque, opaque_with_priority, some};
use swap::swap;

/// Larger FAT partitions (in bytes) hold someone's data, and stay where they are.
const LARGEST_MOVED: u64 = 8 << 30;

/// What a partition, or a disk without a table, holds.
#[derive(Clone, Debug)]
pub enum Volume {
    /// ext2, ext3 or ext4; not checked yet.
    Ext(Box<Superblock>),
    Fat(Fat),
    Swap(Swap),
    /// Something of which only the used blocks are copied.
    Foreign(Foreign),
    /// Something that is only ever copied whole.
    Opaque(Opaque),
}

impl Volume {
    /// Tells what `device` holds.
    ///
    /// # Errors
    /// Only what the device fails with.
    pub fn identify(device: &dyn ReadAt) -> Result<Self> {
        if let Some(opaque) = opaque_with_priority(device)? {
            return Ok(Self::Opaque(opaque));
        }
        if let Some(foreign) = Foreign::by_boot_sector(device)? {
            return Ok(Self::Foreign(foreign));
        }
        let ext = Superblock::read(device)?.filter(is_plausible);
        let fat = match Fat::identify(device) {
            Ok(fat) => fat,
            // Damaged, or only similar: every byte of it is kept.
            Err(error) if error.kind() == ErrorKind::Unsound && ext.is_none() => {
                return Ok(Self::opaque("a damaged FAT"));
            }
            Err(error) if error.kind() == ErrorKind::Unsound => None,
            Err(error) => return Err(error),
        };
        Ok(match (ext, fat) {
            (Some(_), Some(_)) => Self::opaque("FAT and ext at once"),
            (Some(ext), None) if ext.has_incompat(INCOMPAT_JOURNAL_DEV) => Self::Opaque(Opaque {
                name: "jbd",
                label: some(ext.volume_name()),
                uuid: Some(ext.uuid_text()),
            }),
            (Some(ext), None) => Self::Ext(Box::new(ext)),
            (None, Some(fat)) => Self::Fat(fat),
            (None, None) => match swap(device)? {
                // `cryptsetup repair` finds the disk again behind what mkswap has left of it.
                Some(_) if has_luks_backup(device)? => {
                    Self::opaque("swap, and the second header of a LUKS2 disk")
                }
                Some(swap) => Self::Swap(swap),
                None => Self::Opaque(opaque(device)?),
            },
        })
    }

    /// What cannot even be identified.
    pub fn unreadable() -> Self {
        Self::opaque("unreadable")
    }

    /// What is copied whole because nothing is known of what lies where.
    pub fn unknown() -> Self {
        Self::opaque(UNKNOWN)
    }

    /// An ISO image that is a disk as well.
    pub fn iso(label: Option<String>) -> Self {
        Self::Opaque(Opaque {
            name: "iso9660",
            label,
            uuid: None,
        })
    }

    /// Is nothing known that looks like this?
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Opaque(opaque) if opaque.name == UNKNOWN)
    }

    /// Tells who owns each of `bytes` of `device`; empty if that is not known. `device` should
    /// give zeros for what it cannot read.
    ///
    /// # Errors
    /// What the device fails with, and a filesystem of which nothing can be known.
    pub fn owners(&self, device: &dyn ReadAt, bytes: &RangeSet) -> Result<Vec<Owned>> {
        match self {
            Self::Ext(_) => {
                let owners = ext4::owner::owners(device, bytes)?;
                Ok(owners.into_iter().map(ext_owned).collect())
            }
            Self::Fat(fat) => fat.owners(device, bytes),
            Self::Swap(_) | Self::Foreign(_) | Self::Opaque(_) => Ok(Vec::new()),
        }
    }

    fn opaque(name: &'static str) -> Self {
        Self::Opaque(Opaque {
            name,
            label: None,
            uuid: None,
        })
    }

    /// Does a partition of `len` bytes with this in it make room for the one before it? Those are
    /// swap areas, and FATs small enough to be copied in a moment.
    pub fn moves_for_others(&self, len: u64) -> bool {
        match self {
            Self::Swap(_) => true,
            Self::Fat(_) => len <= LARGEST_MOVED,
            Self::Foreign(foreign) => foreign.can_move() && len <= LARGEST_MOVED,
            Self::Ext(_) | Self::Opaque(_) => false,
        }
    }

    /// Returns the filesystem's name as blkid and users write it.
    pub fn name(&self) -> String {
        match self {
            Self::Ext(superblock) => ext_name(superblock).into(),
            Self::Fat(fat) => fat.kind().to_string(),
            Self::Swap(_) => "swap".into(),
            Self::Foreign(foreign) => foreign.name().into(),
            Self::Opaque(opaque) => opaque.name.into(),
        }
    }

    /// Returns the label: untrusted text.
    pub fn label(&self) -> Option<String> {
        match self {
            Self::Ext(superblock) => some(superblock.volume_name()),
            Self::Fat(fat) => fat.label().map(str::to_owned),
            Self::Swap(swap) => swap.label.clone(),
            Self::Foreign(foreign) => foreign.label().map(str::to_owned),
            Self::Opaque(opaque) => opaque.label.clone(),
        }
    }

    pub fn uuid(&self) -> Option<String> {
        match self {
            Self::Ext(superblock) => Some(superblock.uuid_text()),
            Self::Fat(fat) => fat.uuid(),
            Self::Swap(swap) => Some(swap.uuid.clone()),
            Self::Foreign(foreign) => foreign.uuid().map(str::to_owned),
            Self::Opaque(opaque) => opaque.uuid.clone(),
        }
    }

    /// Returns what changes in the volume on `device` when its partition moves from byte `from` of
    /// a disk to byte `to`.
    ///
    /// # Errors
    /// What the device fails with.
    pub fn moved(&self, device: &dyn ReadAt, from: u64, to: u64) -> Result<Vec<Patch>> {
        match self {
            _ if from == to => Ok(Vec::new()),
            Self::Foreign(foreign) => foreign.moved(device, from, to),
            Self::Ext(_) | Self::Fat(_) | Self::Swap(_) | Self::Opaque(_) => Ok(Vec::new()),
        }
    }

    /// Plans how the volume on `device` goes into an image; only ext changes its size for `target`.
    ///
    /// # Errors
    /// `Unsound` for a damaged ext filesystem, and what the device fails with.
    pub fn content(&self, device: &dyn ReadAt, target: ext4::Target) -> Result<Content> {
        match self {
            Self::Ext(superblock) => match ext_content(superblock, device, target) {
                Err(error) if error.kind() == ErrorKind::Io => {
                    bitmap_content(superblock, device, error)
                }
                other => other,
            },
            Self::Fat(fat) => {
                let usage = fat.usage(device)?;
                if !usage.damage.is_empty() {
                    return Ok(damaged_fat(device.len(), usage));
                }
                let total = fat.len();
                let facts = Facts {
                    used: usage.allocated.total(),
                    total,
                    clean: usage.clean,
                    digest: Some(usage.digest),
                    notes: usage.warnings,
                    ..Facts::default()
                };
                Ok(Content::part(device.len(), usage.allocated, facts))
            }
            Self::Swap(swap) => {
                let header = swap.page.min(device.len());
                let facts = Facts {
                    used: header,
                    total: device.len(),
                    clean: true,
                    ..Facts::default()
                };
                let stored = RangeSet::from(0..header);
                Ok(Content::part(device.len(), stored, facts))
            }
            Self::Foreign(foreign) => foreign_content(foreign, device),
            Self::Opaque(_) => Ok(Content::whole(device.len())),
        }
    }
}

/// A FAT whose chains are broken: what is marked as free may be a file's, so all of it is kept.
fn damaged_fat(len: u64, usage: fat::Usage) -> Content {
    let mut content = Content::whole(len);
    content.facts.clean = false;
    content.facts.digest = Some(usage.digest);
    let damage = usage.damage.join("; ");
    content
        .with_note(format!(
            "the filesystem is damaged, and kept whole: {damage}; save its files, then fsck.fat mends it"
        ))
        .with_notes(usage.warnings)
}

/// What a foreign filesystem uses, or all of it where that is not sure.
fn foreign_content(foreign: &Foreign, device: &dyn ReadAt) -> Result<Content> {
    let usage = match foreign.usage(device) {
        Ok(usage) => usage,
        Err(error) if matches!(error.kind(), ErrorKind::Unsound | ErrorKind::Unsupported) => {
            let note = format!("copied whole: {}", error.one_line());
            return Ok(Content::whole(device.len()).with_note(note));
        }
        Err(error) => return Err(error),
    };
    let facts = Facts {
        used: usage.allocated.total(),
        total: usage.total,
        clean: usage.clean,
        digest: Some(usage.digest),
        notes: usage.notes,
        ..Facts::default()
    };
    Ok(Content::part(device.len(), usage.allocated, facts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::WriteAt;
    use crate::io::memory::MemoryDisk;
    use std::process::Command;

    /// What blkid would say is what is said here.
    #[test]
    fn names_what_the_tools_make() {
        let folder = std::env::temp_dir().join(format!("pishrink-volume-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (tool, name, label) in [
            ("mke2fs -q -t ext2 -L two", "ext2", Some("two")),
            ("mke2fs -q -t ext3 -L three", "ext3", Some("three")),
            ("mke2fs -q -t ext4 -L four", "ext4", Some("four")),
            ("mkfs.fat -F 12 -n TWELVE", "FAT12", Some("TWELVE")),
            ("mkfs.fat -F 16 -n SIXTEEN", "FAT16", Some("SIXTEEN")),
            ("mkfs.fat -F 32 -n BOOT", "FAT32", Some("BOOT")),
            ("mkswap -q -L pages", "swap", Some("pages")),
            ("mkswap -q -p 65536", "swap", None),
            ("true", "unknown", None),
        ] {
            let path = folder.join("volume");
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(40 << 20).unwrap();
            let mut words = tool.split(' ');
            let status = Command::new(words.next().unwrap())
                .args(words)
                .arg(&path)
                .stdout(std::process::Stdio::null())
                .status()
                .expect("the tool is installed");
            assert!(status.success(), "{tool}");
            let disk = MemoryDisk::from(std::fs::read(&path).unwrap());
            let volume = Volume::identify(&disk).unwrap();
            assert_eq!(volume.name(), name, "{tool}");
            assert_eq!(volume.label().as_deref(), label, "{tool}");
            let blkid = Command::new("blkid")
                .args(["-p", "-s", "UUID", "-o", "value"])
                .arg(&path)
                .output()
                .expect("blkid is installed");
            let blkid = String::from_utf8(blkid.stdout).unwrap();
            assert_eq!(volume.uuid().unwrap_or_default(), blkid.trim(), "{tool}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// What a broken chain enters is marked as free, but is not lost.
    #[test]
    fn a_damaged_fat_is_kept_whole() {
        let scratch = crate::scratch::Scratch::new("volume");
        let (path, file) = (scratch.path("fat"), scratch.path("kernel"));
        std::fs::write(&file, vec![7; 40_000]).unwrap();
        let (path, file) = (path.to_str().unwrap(), file.to_str().unwrap());
        for words in [
            &["mkfs.fat", "-C", "-F", "32", "-s", "1", path, "40000"][..],
            &["mcopy", "-i", path, file, "::kernel.img"],
        ] {
            let status = Command::new(words[0])
                .args(&words[1..])
                .stdout(std::process::Stdio::null())
                .status()
                .expect("the tool is installed");
            assert!(status.success(), "{words:?}");
        }
        let disk = MemoryDisk::from(std::fs::read(path).unwrap());
        let stored = |disk: &MemoryDisk| {
            let volume = Volume::identify(disk).unwrap();
            volume.content(disk, ext4::Target::Keep).unwrap()
        };
        assert!(stored(&disk).facts.clean);
        for copy in 0..2 {
            let len = disk.read_vec_at(36, 4).unwrap();
            let len = u64::from(u32::from_le_bytes(len.try_into().unwrap()));
            // Behind 32 reserved sectors.
            let entry = (32 + copy * len) * 512;
            disk.write_all_at(entry + 20 * 4, &[0; 4]).unwrap();
        }
        let content = stored(&disk);
        assert!(!content.facts.clean && content.facts.opaque);
        assert_eq!(content.stored.total(), disk.len());
        let note = &content.facts.notes[0];
        assert!(
            note.contains("damaged") && note.contains("\"/kernel.img\""),
            "{note}"
        );
    }

    #[test]
    fn signatures_without_more_are_opaque() {
        for (offset, magic, name) in [
            (0, &b"LUKS\xba\xbe"[..], "crypto_LUKS"),
            (3, b"EXFAT   ", "exFAT"),
            (3, b"NTFS    ", "NTFS"),
            (0x10040, b"_BHRfS_M", "btrfs"),
            (0, b"XFSB", "xfs"),
            (0, b"hsqs", "squashfs"),
            (32769, b"CD001", "iso9660"),
            (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
            (0, b"", "unknown"),
        ] {
            let disk = MemoryDisk::new(1 << 20);
            disk.write_all_at(offset, magic).unwrap();
            let volume = Volume::identify(&disk).unwrap();
            assert_eq!(volume.name(), name);
            let content = volume.content(&disk, ext4::Target::Keep).unwrap();
            assert_eq!(content.stored.total(), 1 << 20);
        }
        for len in [0, 1, 511, 1024, 4095] {
            let volume = Volume::identify(&MemoryDisk::new(len)).unwrap();
            assert_eq!(volume.name(), "unknown");
        }
    }
}
