//! The filesystems that a partition can hold: the one list of them.
//!
//! What a partition holds is told by its content, never by its type in the table. Whatever is not
//! known, or could be two things, is opaque: copied whole, never interpreted.

use std::ops::Range;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, INCOMPAT_64BIT, INCOMPAT_EXTENTS, INCOMPAT_FLEX_BG, INCOMPAT_JOURNAL_DEV,
    RO_COMPAT_HUGE_FILE, RO_COMPAT_METADATA_CSUM, STATE_ERRORS, STATE_VALID, Superblock,
};
use crate::ext4::owner::Owner;
use crate::ext4::{self, Ext4, Recovery};
use crate::fat::Fat;
use crate::io::{Overlay, RangeSet, ReadAt};
use crate::units::uuid_text;

/// Larger FAT partitions (in bytes) hold someone's data, and stay where they are.
const LARGEST_MOVED: u64 = 8 << 30;

/// What a partition, or a disk without a table, holds.
#[derive(Clone, Debug)]
pub enum Volume {
    /// ext2, ext3 or ext4; not checked yet.
    Ext(Box<Superblock>),
    Fat(Fat),
    Swap(Swap),
    /// Something that is only ever copied whole.
    Opaque(Opaque),
}

/// A swap area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swap {
    /// Bytes in a page of the machine that made it: the length of the header.
    pub page: u64,
    pub label: Option<String>,
    pub uuid: String,
}

/// What is known of something that is copied whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opaque {
    /// As blkid calls it, or a few words.
    pub name: &'static str,
    pub label: Option<String>,
    pub uuid: Option<String>,
}

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

impl Volume {
    /// Tells what `device` holds.
    ///
    /// # Errors
    /// Only what the device fails with.
    pub fn identify(device: &dyn ReadAt) -> Result<Self> {
        if let Some(opaque) = opaque_with_priority(device)? {
            return Ok(Self::Opaque(opaque));
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
        Self::opaque("unknown")
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
            Self::Swap(_) | Self::Opaque(_) => Ok(Vec::new()),
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
            Self::Ext(_) | Self::Opaque(_) => false,
        }
    }

    /// Returns the filesystem's name as blkid and users write it.
    pub fn name(&self) -> String {
        match self {
            Self::Ext(superblock) => ext_name(superblock).into(),
            Self::Fat(fat) => fat.kind().to_string(),
            Self::Swap(_) => "swap".into(),
            Self::Opaque(opaque) => opaque.name.into(),
        }
    }

    /// Returns the label: untrusted text.
    pub fn label(&self) -> Option<String> {
        match self {
            Self::Ext(superblock) => some(superblock.volume_name()),
            Self::Fat(fat) => fat.label().map(str::to_owned),
            Self::Swap(swap) => swap.label.clone(),
            Self::Opaque(opaque) => opaque.label.clone(),
        }
    }

    pub fn uuid(&self) -> Option<String> {
        match self {
            Self::Ext(superblock) => Some(superblock.uuid_text()),
            Self::Fat(fat) => fat.uuid(),
            Self::Swap(swap) => Some(swap.uuid.clone()),
            Self::Opaque(opaque) => opaque.uuid.clone(),
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
            Self::Opaque(_) => Ok(Content::whole(device.len())),
        }
    }
}

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
    fn part(len: u64, stored: RangeSet, facts: Facts) -> Self {
        Self {
            overlay: Overlay::new(len),
            stored,
            facts,
        }
    }

    fn with_note(mut self, note: impl Into<String>) -> Self {
        self.facts.notes.push(note.into());
        self
    }
}

fn ext_content(
    superblock: &Superblock,
    device: &dyn ReadAt,
    target: ext4::Target,
) -> Result<Content> {
    let ext = match Ext4::open(device) {
        Ok(ext) => ext,
        // Not even the bitmaps mean what we know, so nothing of it is left away.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let mut content = Content::whole(device.len())
                .with_note(format!("copied whole: {}", error.one_line()));
            content.facts.ext = Some(ExtFacts {
                features: superblock.feature_names(),
                features_in_the_way: superblock.features_in_the_way(),
                new_total: device.len(),
                ..ExtFacts::default()
            });
            return Ok(content);
        }
        Err(error) => return Err(error),
    };
    sized_content(&ext, superblock, device, target)
}

/// The filesystem as its bitmaps have it, after `error` kept the rest from being read.
fn bitmap_content(superblock: &Superblock, device: &dyn ReadAt, error: Error) -> Result<Content> {
    let kept = Ext4::open_by_bitmaps(device)
        .and_then(|ext| sized_content(&ext, superblock, device, ext4::Target::Keep));
    match kept {
        Ok(mut content) => {
            content.facts.clean = false;
            content.facts.unreadable = Some(error.one_line());
            Ok(content)
        }
        Err(other) if other.kind() == ErrorKind::Cancelled => Err(other),
        Err(_) => Err(error),
    }
}

fn sized_content(
    ext: &Ext4,
    superblock: &Superblock,
    device: &dyn ReadAt,
    target: ext4::Target,
) -> Result<Content> {
    let in_the_way = ext.features_in_the_way();
    let kept = !in_the_way.is_empty() && target != ext4::Target::Keep;
    let target = if kept { ext4::Target::Keep } else { target };
    let image = ext.image(device, target)?;
    let Recovery {
        journal_was_dirty,
        transactions,
        fast_commits,
        orphans_deleted,
        orphans_truncated,
        ..
    } = ext.recovery;
    let new_total = image.overlay.len();
    let state = ext.superblock().s_state();
    let mut notes = Vec::new();
    if state & STATE_ERRORS != 0 {
        let note = "the kernel has marked it as having errors; none is there now";
        notes.push(note.into());
    }
    let facts = Facts {
        used: ext.used_bytes(),
        total: ext.total_bytes(),
        clean: state & STATE_VALID != 0
            && !journal_was_dirty
            && orphans_deleted == 0
            && orphans_truncated == 0,
        notes,
        ext: Some(ExtFacts {
            features: superblock.feature_names(),
            block_size: image.block_size,
            new_total,
            new_free: image.free_bytes,
            transactions_replayed: transactions,
            fast_commits_replayed: fast_commits,
            orphans_deleted,
            orphans_truncated,
            repairs: ext.findings.repairs().to_vec(),
            features_in_the_way: if kept { in_the_way } else { Vec::new() },
            moved_blocks: image.moved_blocks,
            moved_inodes: image.moved_inodes,
            moved: image.moved,
        }),
        ..Facts::default()
    };
    Ok(Content {
        overlay: image.overlay,
        stored: image.stored,
        facts,
    })
}

fn ext_owned((range, owner): (Range<u64>, Owner)) -> Owned {
    match owner {
        Owner::File {
            inode,
            path,
            offset,
        } => {
            let path = path.map_or_else(
                || format!("inode {inode}, which no readable directory names"),
                |path| String::from_utf8_lossy(&path).into_owned(),
            );
            (range, path, Some(offset))
        }
        Owner::Metadata(name) => (range, name, None),
        Owner::Nobody => (range, "blocks that no readable file owns".into(), None),
    }
}

/// ext2, ext3 or ext4, the way blkid tells them apart.
fn ext_name(superblock: &Superblock) -> &'static str {
    if superblock.has_incompat(INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG)
        || superblock.has_ro_compat(RO_COMPAT_HUGE_FILE | RO_COMPAT_METADATA_CSUM)
    {
        "ext4"
    } else if superblock.has_compat(COMPAT_HAS_JOURNAL) {
        "ext3"
    } else {
        "ext2"
    }
}

/// Two bytes of magic alone occur by chance.
fn is_plausible(superblock: &Superblock) -> bool {
    superblock.s_log_block_size() <= 6
        && superblock.s_rev_level() <= 1
        && superblock.s_blocks_per_group() > 0
        && superblock.s_inodes_per_group() > 0
}

/// `SWAPSPACE2` ends the first page; version, last page, bad pages, UUID and label stand from 1024.
fn swap(device: &dyn ReadAt) -> Result<Option<Swap>> {
    for page in [4096, 8192, 16384, 32768, 65536] {
        if !has(device, page - 10, b"SWAPSPACE2")? {
            continue;
        }
        let header = device.read_vec_at(1024, 44)?;
        let version = &header[..4];
        if version == 1u32.to_le_bytes() || version == 1u32.to_be_bytes() {
            return Ok(Some(Swap {
                page,
                label: text(&header[28..44]),
                uuid: uuid_text(&header[12..28]),
            }));
        }
    }
    Ok(None)
}

/// Signatures that count even if an older filesystem's are still to be seen behind them.
fn opaque_with_priority(device: &dyn ReadAt) -> Result<Option<Opaque>> {
    if has(device, 0, b"LUKS\xba\xbe")? {
        return Ok(Some(Opaque {
            name: "crypto_LUKS",
            label: None,
            uuid: read(device, 168, 40)?.as_deref().and_then(text),
        }));
    }
    for sector in 0..4 {
        if has(device, sector * 512, b"LABELONE")? && has(device, sector * 512 + 24, b"LVM2 001")? {
            return Ok(Some(named("LVM2_member")));
        }
    }
    if has(device, 3, b"EXFAT   ")? {
        return Ok(Some(named("exFAT")));
    }
    if has(device, 3, b"NTFS    ")? {
        return Ok(Some(named("NTFS")));
    }
    if has(device, 4096, &0xa92b_4efc_u32.to_le_bytes())? {
        return Ok(Some(named("linux_raid_member")));
    }
    Ok(None)
}

fn opaque(device: &dyn ReadAt) -> Result<Opaque> {
    if has(device, 0x10040, b"_BHRfS_M")? {
        return Ok(Opaque {
            name: "btrfs",
            label: read(device, 0x1012b, 256)?.as_deref().and_then(text),
            uuid: read(device, 0x10020, 16)?.as_deref().map(uuid_text),
        });
    }
    if has(device, 0, b"XFSB")? {
        return Ok(Opaque {
            name: "xfs",
            label: read(device, 108, 12)?.as_deref().and_then(text),
            uuid: read(device, 32, 16)?.as_deref().map(uuid_text),
        });
    }
    if has(device, 1024, &0xf2f5_2010_u32.to_le_bytes())? {
        return Ok(Opaque {
            name: "f2fs",
            label: read(device, 1024 + 124, 1024)?.as_deref().and_then(utf16),
            uuid: read(device, 1024 + 108, 16)?.as_deref().map(uuid_text),
        });
    }
    let rest: [(u64, &[u8], &'static str); 6] = [
        (0, b"hsqs", "squashfs"),
        (32769, b"CD001", "iso9660"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
        (4086, b"S1SUSPEND", "a hibernated system"),
        (4086, b"S2SUSPEND", "a hibernated system"),
        (4086, b"LINHIB0001", "a hibernated system"),
    ];
    for (offset, magic, name) in rest {
        if has(device, offset, magic)? {
            return Ok(named(name));
        }
    }
    Ok(named("unknown"))
}

fn named(name: &'static str) -> Opaque {
    Opaque {
        name,
        label: None,
        uuid: None,
    }
}

fn has(device: &dyn ReadAt, offset: u64, magic: &[u8]) -> Result<bool> {
    Ok(read(device, offset, magic.len())?.is_some_and(|bytes| bytes == magic))
}

/// `None` past the end.
fn read(device: &dyn ReadAt, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if offset + len as u64 > device.len() {
        return Ok(None);
    }
    device.read_vec_at(offset, len).map(Some)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Text up to its first NUL.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0);
    some(
        char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect(),
    )
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
