//! Damages single fields of sound filesystems, mends the checksums over them, and compares the
//! checker's verdict with `e2fsck -fn`. Run by proofs/check-against-e2fsck.
//!
//! `against_e2fsck ROUNDS SEED IMAGE...`: the images are changed and put back.
//! Exit code 1 if e2fsck found damage that the checker did not.

mod image;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::process::{Command, ExitCode};

use image::Image;
use pishrink::error::{Error, Result};
use pishrink::ext4::check::check;
use pishrink::ext4::findings::Findings;
use pishrink::ext4::format::crc::crc32c;
use pishrink::ext4::format::dir::{self, BlockKind};
use pishrink::ext4::format::extent::MapKind;
use pishrink::ext4::format::fs::Super;
use pishrink::ext4::format::group_desc::GroupTable;
use pishrink::ext4::format::inode::{INDEX_FL, INLINE_DATA_FL};
use pishrink::ext4::format::superblock::{RO_COMPAT_BIGALLOC, RO_COMPAT_SHARED_BLOCKS, Superblock};
use pishrink::ext4::format::xattr;
use pishrink::ext4::read::metadata::{InodeRecord, Metadata};
use pishrink::io::{ReadAt, WriteAt};
use pishrink::units::InodeNr;

/// A generator whose numbers depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }

    /// Damages a field of `width` bytes at `at`.
    fn damage(&mut self, bytes: &mut [u8], at: usize, width: usize) -> String {
        let mut raw = [0; 8];
        raw[..width].copy_from_slice(&bytes[at..at + width]);
        let old = u64::from_le_bytes(raw);
        let new = match self.roll(9) {
            0 => old ^ 1 << self.roll(8 * width),
            1 => old.wrapping_add(1),
            2 => old.wrapping_sub(1),
            3 => 0,
            4 => u64::MAX,
            5 => self.roll(32) as u64,
            6 => self.roll(1 << 31) as u64,
            7 => old.wrapping_add(4),
            _ => {
                let from = self.roll(bytes.len() - width + 1);
                let mut raw = [0; 8];
                raw[..width].copy_from_slice(&bytes[from..from + width]);
                u64::from_le_bytes(raw)
            }
        };
        bytes[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
        let mut now = [0; 8];
        now[..width].copy_from_slice(&bytes[at..at + width]);
        format!(
            "+{at:#x}/{width}: {old:#x} -> {:#x}",
            u64::from_le_bytes(now)
        )
    }
}

/// What was changed: where, the new bytes, and in words.
struct Change {
    offset: u64,
    bytes: Vec<u8>,
    text: String,
}

fn mutate(image: &Image, meta: &Metadata, dice: &mut Dice) -> Result<Option<Change>> {
    let mend = dice.roll(20) != 0;
    let other_rules = RO_COMPAT_BIGALLOC | RO_COMPAT_SHARED_BLOCKS;
    if meta.fs.superblock.has_ro_compat(other_rules) && dice.roll(3) == 0 {
        return extent(image, meta, dice);
    }
    match dice.roll(16) {
        0 => superblock(image, dice, mend).map(Some),
        1 => group(image, meta, dice, mend).map(Some),
        2..=6 => inode(image, meta, dice, mend).map(Some),
        7 => node(image, meta, dice, mend),
        8..=12 => directory(image, meta, dice, mend),
        13 | 14 => xattr_block(image, meta, dice, mend),
        _ => own_files(image, meta, dice, mend),
    }
}

fn superblock(image: &Image, dice: &mut Dice, mend: bool) -> Result<Change> {
    let mut bytes = image.read_vec_at(1024, 1024)?;
    let width = [1, 2, 4][dice.roll(3)];
    let at = dice.roll(0x290 / width) * width;
    let text = dice.damage(&mut bytes, at, width);
    if mend {
        let mut superblock = Superblock::new(bytes.clone());
        superblock.update_checksum();
        bytes = superblock.bytes().to_vec();
    }
    Ok(Change {
        offset: 1024,
        bytes,
        text: format!("superblock {text}"),
    })
}

fn group(image: &Image, meta: &Metadata, dice: &mut Dice, mend: bool) -> Result<Change> {
    let geometry = &meta.fs.geometry;
    let group = dice.roll(geometry.groups as usize);
    let size = geometry.desc_size as usize;
    let start = geometry.offset(geometry.super_start(0) + 1);
    let len = (geometry.desc_blocks * geometry.block_size) as usize;
    let mut table = image.read_vec_at(start, len)?;
    let width = [1, 2, 4][dice.roll(3)];
    let at = dice.roll(size / width) * width;
    let bytes = &mut table[group * size..(group + 1) * size];
    let text = dice.damage(bytes, at, width);
    if mend {
        image.write_all_at(start, &table)?;
        let decoded = GroupTable::read(&meta.fs, image)?;
        let mended = decoded.encode(&meta.fs);
        table[..mended.len()].copy_from_slice(&mended);
    }
    Ok(Change {
        offset: start,
        bytes: table,
        text: format!("group {group} {text}"),
    })
}

fn inode(image: &Image, meta: &Metadata, dice: &mut Dice, mend: bool) -> Result<Change> {
    let number = match dice.roll(8) {
        0 => InodeNr(1 + dice.roll(meta.fs.superblock.first_ino() as usize) as u32),
        1 => {
            let group = dice.roll(meta.fs.geometry.groups as usize) as u32;
            let slots = meta.slots_in_use(group).max(1);
            meta.fs
                .geometry
                .inode_at(group, dice.roll(slots as usize) as u32)
        }
        2 | 3 => {
            let with_xattr: Vec<_> = meta.inodes.iter().filter(|i| !i.is_regular()).collect();
            with_xattr[dice.roll(with_xattr.len())].number
        }
        _ => meta.inodes[dice.roll(meta.inodes.len())].number,
    };
    let mut inode = meta.read_inode(image, number)?;
    let len = inode.0.len();
    let width = [1, 2, 4][dice.roll(3)];
    let area = match dice.roll(4) {
        0 => xattr::in_slot(&inode).map_or(0..len, |area| area.base - 4..len),
        1 => 0x28..0x64,
        _ => 0..len.min(0xA0),
    };
    let at = area.start + dice.roll((area.len() / width).max(1)) * width;
    let mode = inode.i_mode();
    let text = dice.damage(&mut inode.0, at, width);
    if mend {
        inode.update_checksum(&meta.fs.checksums, number);
    }
    Ok(Change {
        offset: meta.inode_offset(number),
        bytes: inode.0,
        text: format!("inode {number} (mode {mode:#o}) {text}"),
    })
}

trait Kind {
    fn is_regular(&self) -> bool;
}

impl Kind for InodeRecord {
    fn is_regular(&self) -> bool {
        self.mode & 0xF000 == 0x8000
    }
}

/// Damages one extent of a file, mostly so that it names blocks near it, or another file's.
fn extent(image: &Image, meta: &Metadata, dice: &mut Dice) -> Result<Option<Change>> {
    let extents = |record: &&InodeRecord| !meta.extents(record).is_empty();
    let mapped = |record: &&InodeRecord| record.kind == MapKind::Extents && extents(record);
    let files: Vec<_> = meta.inodes.iter().filter(mapped).collect();
    if files.is_empty() {
        return Ok(None);
    }
    let record = files[dice.roll(files.len())];
    let other = meta.extents(files[dice.roll(files.len())]);
    let other = other[dice.roll(other.len())].start as u32;
    let ratio = meta.fs.geometry.cluster_ratio as u32;
    let leaves: Vec<_> = meta.nodes(record).iter().collect();
    let leaves: Vec<_> = leaves.into_iter().filter(|node| node.level == 1).collect();
    let mut inode = meta.read_inode(image, record.number)?;
    let (offset, mut bytes, start) = if leaves.is_empty() {
        (meta.inode_offset(record.number), inode.0.clone(), 0x28)
    } else {
        let offset = meta
            .fs
            .geometry
            .offset(leaves[dice.roll(leaves.len())].block);
        let size = meta.fs.geometry.block_size as usize;
        (offset, image.read_vec_at(offset, size)?, 0)
    };
    let count = usize::from(u16::from_le_bytes([bytes[start + 2], bytes[start + 3]]));
    let at = start + 12 * (1 + dice.roll(count));
    let step = [1, 1, ratio, ratio - 1, ratio / 2, 2 * ratio][dice.roll(6)].max(1);
    let twist = |dice: &mut Dice, old: u32| match dice.roll(2) {
        0 => old.wrapping_add(step),
        _ => old.wrapping_sub(step),
    };
    let read32 = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
    let (field, new) = match dice.roll(6) {
        0 => (0, twist(dice, read32(at))),
        1 => (4, twist(dice, read32(at + 4) & 0xFFFF)),
        2 => (4, read32(at + 4) & 0xFFFF ^ 0x8000),
        3 => (8, twist(dice, read32(at + 8))),
        4 => (8, other),
        _ => (8, other / ratio * ratio + read32(at) % ratio),
    };
    let width = if field == 4 { 2 } else { 4 };
    bytes[at + field..at + field + width].copy_from_slice(&new.to_le_bytes()[..width]);
    if leaves.is_empty() {
        inode.0 = bytes;
        inode.update_checksum(&meta.fs.checksums, record.number);
        bytes = inode.0;
    } else if meta.fs.checksums.enabled() {
        let seed = meta
            .fs
            .checksums
            .inode_seed(record.number, record.generation);
        let max = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let tail = 12 * (max + 1);
        let crc = crc32c(seed, &bytes[..tail]);
        bytes[tail..tail + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let text = format!(
        "extent of inode {} at {at} +{field} -> {new}",
        record.number
    );
    Ok(Some(Change {
        offset,
        bytes,
        text,
    }))
}

fn node(image: &Image, meta: &Metadata, dice: &mut Dice, mend: bool) -> Result<Option<Change>> {
    let nodes: Vec<_> = meta
        .inodes
        .iter()
        .flat_map(|inode| meta.nodes(inode).iter().map(move |node| (inode, node)))
        .collect();
    if nodes.is_empty() {
        return Ok(None);
    }
    let (inode, node) = nodes[dice.roll(nodes.len())];
    let size = meta.fs.geometry.block_size as usize;
    let offset = meta.fs.geometry.offset(node.block);
    let mut bytes = image.read_vec_at(offset, size)?;
    let width = [1, 2, 4][dice.roll(3)];
    let within = if dice.roll(2) == 0 { 64 } else { size };
    let at = dice.roll(within / width) * width;
    let text = dice.damage(&mut bytes, at, width);
    if mend && inode.kind == MapKind::Extents && meta.fs.checksums.enabled() {
        let max = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        let tail = 12 * (max + 1);
        if tail + 4 <= size {
            let seed = meta.fs.checksums.inode_seed(inode.number, inode.generation);
            let crc = crc32c(seed, &bytes[..tail]);
            bytes[tail..tail + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let text = format!("node {} of inode {} {text}", node.block, inode.number);
    Ok(Some(Change {
        offset,
        bytes,
        text,
    }))
}

fn directory(
    image: &Image,
    meta: &Metadata,
    dice: &mut Dice,
    mend: bool,
) -> Result<Option<Change>> {
    let dirs: Vec<_> = meta
        .inodes
        .iter()
        .filter(|inode| inode.is_dir() && inode.flags & INLINE_DATA_FL == 0)
        .collect();
    let indexed: Vec<_> = dirs.iter().filter(|d| d.flags & INDEX_FL != 0).collect();
    let record = if !indexed.is_empty() && dice.roll(3) == 0 {
        indexed[dice.roll(indexed.len())]
    } else if dirs.is_empty() {
        return Ok(None);
    } else {
        dirs[dice.roll(dirs.len())]
    };
    let is_indexed = record.flags & INDEX_FL != 0;
    let blocks = dir::blocks(&meta.fs, image, meta.extents(record), is_indexed)?;
    let index: Vec<_> = blocks
        .iter()
        .filter(|b| b.kind != BlockKind::Leaf)
        .collect();
    let found = if !index.is_empty() && dice.roll(2) == 0 {
        *index[dice.roll(index.len())]
    } else {
        blocks[dice.roll(blocks.len())]
    };
    let offset = meta.fs.geometry.offset(found.block);
    let mut bytes = image.read_vec_at(offset, meta.fs.geometry.block_size as usize)?;
    let fields: Vec<(usize, usize)> = dir::entries(&bytes)
        .map_while(|entry| entry.ok())
        .filter(|entry| entry.is_used() || dice.roll(8) == 0)
        .flat_map(|entry| {
            let at = entry.offset;
            [
                (at, 4),
                (at + 4, 2),
                (at + 6, 1),
                (at + 7, 1),
                (at + 8, 1),
                (at + 9, 1),
            ]
        })
        .collect();
    let mut text = String::new();
    let (at, width) = if found.kind != BlockKind::Leaf && dice.roll(4) != 0 {
        let width = [1, 2, 4][dice.roll(3)];
        let within = if dice.roll(2) == 0 { 0x40 } else { 0x200 };
        (dice.roll(within / width) * width, width)
    } else if fields.is_empty() {
        (dice.roll(bytes.len() / 4) * 4, 4)
    } else {
        fields[dice.roll(fields.len())]
    };
    if width == 4 && found.kind == BlockKind::Leaf && dice.roll(2) == 0 {
        let other = meta.inodes[dice.roll(meta.inodes.len())].number;
        bytes[at..at + 4].copy_from_slice(&other.0.to_le_bytes());
        text.push_str(&format!("+{at:#x} -> inode {other}"));
    } else {
        text.push_str(&dice.damage(&mut bytes, at, width));
    }
    if mend {
        let (number, generation) = (record.number, record.generation);
        dir::update_checksum(&meta.fs, number, generation, found.kind, &mut bytes);
    }
    let text = format!(
        "{:?} {} of directory {} {text}",
        found.kind, found.logical, record.number
    );
    Ok(Some(Change {
        offset,
        bytes,
        text,
    }))
}

fn xattr_block(
    image: &Image,
    meta: &Metadata,
    dice: &mut Dice,
    mend: bool,
) -> Result<Option<Change>> {
    let blocks: Vec<_> = meta.xattr_blocks.keys().copied().collect();
    if blocks.is_empty() {
        return Ok(None);
    }
    let block = blocks[dice.roll(blocks.len())];
    let offset = meta.fs.geometry.offset(block);
    let mut bytes = image.read_vec_at(offset, meta.fs.geometry.block_size as usize)?;
    let width = [1, 2, 4][dice.roll(3)];
    let within = if dice.roll(4) == 0 { bytes.len() } else { 96 };
    let at = dice.roll(within / width) * width;
    let text = dice.damage(&mut bytes, at, width);
    if mend {
        xattr::update_checksum(&meta.fs, block, &mut bytes);
    }
    Ok(Some(Change {
        offset,
        bytes,
        text: format!("xattr block {block} {text}"),
    }))
}

/// The resize inode's lists and the orphan file.
fn own_files(
    image: &Image,
    meta: &Metadata,
    dice: &mut Dice,
    mend: bool,
) -> Result<Option<Change>> {
    let geometry = &meta.fs.geometry;
    let orphan = InodeNr(meta.fs.superblock.s_orphan_file_inum());
    let orphan = meta.inode(orphan).filter(|_| dice.roll(2) == 0);
    let (block, what) = match (orphan, meta.resize_inode) {
        (Some(record), _) if !meta.extents(record).is_empty() => {
            let extent = meta.extents(record)[0];
            (
                extent.start + dice.roll(extent.len() as usize) as u64,
                "orphan file",
            )
        }
        (_, Some(resize)) => {
            let first = geometry.super_start(0) + 1 + geometry.desc_blocks;
            let reserved = geometry.reserved_gdt_blocks as usize;
            if dice.roll(2) == 0 || reserved == 0 {
                (resize.double_indirect, "resize list")
            } else {
                (first + dice.roll(reserved) as u64, "reserved block")
            }
        }
        _ => return Ok(None),
    };
    let offset = geometry.offset(block);
    let mut bytes = image.read_vec_at(offset, geometry.block_size as usize)?;
    let within = if dice.roll(2) == 0 { 64 } else { bytes.len() };
    let at = dice.roll(within / 4) * 4;
    let text = dice.damage(&mut bytes, at, 4);
    if let (true, Some(record), "orphan file") = (mend, orphan, what) {
        let tail = bytes.len() - 8;
        let seed = meta
            .fs
            .checksums
            .inode_seed(record.number, record.generation);
        let crc = crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..tail]);
        bytes[tail + 4..].copy_from_slice(&crc.to_le_bytes());
    }
    Ok(Some(Change {
        offset,
        bytes,
        text: format!("{what} {block} {text}"),
    }))
}

/// Lines of e2fsck's that the image puts right, or that are no finding.
const HARMLESS: &[&str] = &[
    "e2fsck ",
    "Pass ",
    "Block bitmap differences",
    "Inode bitmap differences",
    "Free blocks count wrong",
    "Free inodes count wrong",
    // Of a group whose count of free inodes is too low.
    "has invalid unused inodes count",
    "Directories count wrong",
    "Padding at end of",
    "could be narrower",
    "could be shorter",
    "bitmap does not match checksum",
    "group is marked BLOCK_UNINIT",
    "WARNING: Filesystem still has errors",
    "differences: ",
];

/// Is it more of a line about differences between bitmaps?
fn is_more_differences(line: &str) -> bool {
    line.starts_with(' ')
        && line
            .split_whitespace()
            .all(|word| word.starts_with(['+', '-']))
}

enum Verdict {
    Sound,
    /// Only what the image puts right.
    Differences,
    Damaged(Vec<String>),
}

fn e2fsck(path: &str) -> Verdict {
    let output = Command::new("timeout")
        .args(["60", "e2fsck", "-fn", path])
        .output()
        .expect("e2fsck");
    if output.status.code() == Some(0) {
        return Verdict::Sound;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !HARMLESS.iter().any(|h| line.contains(h)))
        .filter(|line| !is_more_differences(line))
        .filter(|line| !(line.contains(" files (") && line.contains(" blocks")))
        .filter(|line| !matches!(line.trim(), "IGNORED." | "Fix? no"))
        .map(String::from)
        .collect();
    if text.contains("differences") || text.contains("count wrong") || text.contains("Padding") {
        if lines.is_empty() {
            return Verdict::Differences;
        }
    } else {
        lines.push(format!("exit {:?}", output.status.code()));
    }
    Verdict::Damaged(lines)
}

fn verdict(image: &Image) -> Result<Findings> {
    let mut findings = Findings::default();
    let metadata = match Metadata::read(image, &mut findings) {
        Ok(metadata) => metadata,
        Err(error) => {
            findings.damaged(error.one_line());
            return Ok(findings);
        }
    };
    let unknown = metadata.fs.superblock.features_in_the_way();
    if unknown.iter().any(|name| name.starts_with("FEATURE_")) {
        findings.damaged("features that nobody knows");
    }
    if findings.is_sound() {
        findings.merge(check(image, &metadata)?);
    }
    Ok(findings)
}

/// Does the image get rid of what was found?
fn is_put_right(findings: &Findings) -> bool {
    let texts = ["leftovers in their slots", "resize inode's lists"];
    findings
        .repairs()
        .iter()
        .any(|repair| texts.iter().any(|text| repair.contains(text)))
}

fn run() -> Result<u64> {
    let mut args = std::env::args().skip(1);
    let mut number = || args.next().and_then(|text| text.parse::<u64>().ok());
    let (Some(rounds), Some(seed)) = (number(), number()) else {
        return Err(Error::usage("against_e2fsck ROUNDS SEED IMAGE..."));
    };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut missed = 0;
    for path in args {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let image = Image::new(file.map_err(|error| Error::io(&path, error))?)?;
        let mut findings = Findings::default();
        let meta = Metadata::read(&image, &mut findings)?;
        if Super::read(&image)?.is_none() || meta.inodes.is_empty() {
            return Err(Error::usage(format!("{path} holds nothing")));
        }
        for round in 0..rounds {
            let image_seed = u64::from(crc32c(0, path.as_bytes()));
            let start = (seed + round) ^ image_seed << 32;
            let mut dice = Dice(start.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            for _ in 0..8 {
                dice.roll(2);
            }
            let start = image.len().min(256 << 10);
            let superblocks = image.read_vec_at(0, start as usize)?;
            let Some(change) = mutate(&image, &meta, &mut dice)? else {
                continue;
            };
            image.write_all_at(0, &superblocks)?;
            let old = image.read_vec_at(change.offset, change.bytes.len())?;
            if old == change.bytes {
                continue;
            }
            image.write_all_at(change.offset, &change.bytes)?;
            let ours = verdict(&image);
            let theirs = e2fsck(&path);
            image.write_all_at(change.offset, &old)?;
            let ours = ours?;
            let name = path.rsplit('/').next().unwrap_or(&path);
            let case = format!("{name} seed {}: {}", seed + round, change.text);
            let key = match (&theirs, ours.is_sound(), ours.repairs().is_empty()) {
                (Verdict::Sound, true, _) => "both sound",
                (Verdict::Sound, false, _) => {
                    println!("STRICTER {case}\n    ours: {}", ours.damage()[0]);
                    "stricter"
                }
                (Verdict::Damaged(_), false, _) => "both damaged",
                (Verdict::Differences, false, _) => "stricter on differences",
                (Verdict::Differences, true, false) => "both differences",
                (Verdict::Differences, true, true) => {
                    println!("UNSEEN DIFFERENCES {case}");
                    "unseen differences"
                }
                // The only field that was changed is among them.
                (Verdict::Damaged(_), true, _) if is_put_right(&ours) => "both put right",
                (Verdict::Damaged(lines), true, _) => {
                    missed += 1;
                    println!("MISSED {case}");
                    for line in lines.iter().take(4) {
                        println!("    e2fsck: {line}");
                    }
                    for text in ours.repairs() {
                        println!("    ours: {text}");
                    }
                    "missed"
                }
            };
            *counts.entry(key).or_default() += 1;
        }
    }
    println!("{counts:?}");
    Ok(missed)
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{}", error.one_line());
            ExitCode::from(2)
        }
    }
}
