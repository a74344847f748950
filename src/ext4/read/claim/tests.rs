//! Filesystems with bigalloc and shared_blocks, damaged by debugfs; e2fsck judges them as well.

use std::ops::Range;

use super::*;
use crate::error::ErrorKind;
use crate::ext4::findings::Findings;
use crate::ext4::format::fs::Super;
use crate::ext4::format::group_desc::GroupTable;
use crate::ext4::format::raw::put32;
use crate::ext4::read::inode_table::read_inode;
use crate::ext4::read::metadata::Metadata;
use crate::ext4::test_image::{Scratch, mke2fs};
use crate::ext4::{Ext4, Target};
use crate::io::memory::MemoryDisk;
use crate::io::{ReadAt, WriteAt};
use crate::units::InodeNr;

const LEN: u64 = 24 << 20;
const BLOCK: usize = 1024;
/// Of the filesystems with clusters.
const RATIO: u64 = 4;

/// An image in the making.
struct Image(Scratch);

/// What was told of a filesystem that was opened.
struct Opened {
    findings: Findings,
    recovery: crate::ext4::Recovery,
    in_the_way: Vec<String>,
}

impl Image {
    /// Makes a filesystem with files of 9, 6 and 30 blocks, the last in pieces that take a tree, and an
    /// attribute in a block.
    fn new(features: &str, more: &[&str]) -> Self {
        let folder = Scratch::folder();
        let path = folder.as_ref();
        std::fs::write(path.join("nine"), vec![9; 9 * BLOCK]).unwrap();
        std::fs::write(path.join("six"), vec![6; 6 * BLOCK - 1]).unwrap();
        let mut pieces = Vec::new();
        for piece in 0..30 {
            pieces.extend([vec![piece + 1; BLOCK], vec![0; 7 * BLOCK]].concat());
        }
        std::fs::write(path.join("pieces"), pieces).unwrap();
        let args = ["-O", features, "-d", path.to_str().unwrap()];
        let image = Self(Scratch::file(&mke2fs(LEN, &[&args[..], more].concat())));
        let value = Scratch::file(&[5; 300]);
        let value = value.as_ref().to_str().unwrap();
        image.debugfs(&[&format!("ea_set -f {value} /six user.a")]);
        let (code, text) = image.0.ask("e2fsck", &["-fy"]);
        assert!(code <= 1, "{text}");
        assert_eq!(image.judge(), 0);
        image
    }

    fn clustered() -> Self {
        Self::new("bigalloc", &["-C", "4096", "-g", "1024"])
    }

    fn debugfs(&self, commands: &[&str]) {
        for command in commands {
            self.0.run("debugfs", &["-w", "-R", command]);
        }
    }

    fn judge(&self) -> i32 {
        self.0.ask("e2fsck", &["-fn"]).0
    }

    /// Opens it, and gives what the image would put right.
    fn open(&self) -> crate::error::Result<Findings> {
        let disk = MemoryDisk::from(self.0.read());
        Ext4::open(&disk).map(|ext| ext.findings().clone())
    }

    fn number(&self, name: &str) -> u32 {
        let text = self.0.run("debugfs", &["-R", &format!("stat /{name}")]);
        let number = text.split("Inode: ").nth(1).unwrap();
        number.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The block of a file before which it has `skip` others.
    fn block(&self, name: &str, skip: usize) -> u64 {
        let text = self.0.run("debugfs", &["-R", &format!("blocks /{name}")]);
        let digits = |line: &&str| line.starts_with(|first: char| first.is_ascii_digit());
        let blocks = text.lines().find(digits).unwrap().split_whitespace();
        let mut blocks = blocks.map(|block| block.parse().unwrap());
        blocks.nth(skip).unwrap()
    }

    /// How often does a file hold this byte?
    fn count(&self, name: &str, byte: u8) -> usize {
        let contents = self.0.run("debugfs", &["-R", &format!("cat /{name}")]);
        contents.bytes().filter(|&found| found == byte).count()
    }

    /// Captures it, which has to give a sound image of the same size.
    fn captured(&self) -> (Opened, Self, crate::io::RangeSet) {
        let disk = MemoryDisk::from(self.0.read());
        let opened = Ext4::open(&disk).unwrap();
        let image = opened.image(Target::Keep).unwrap();
        assert_eq!(image.overlay.len(), LEN);
        let view = image.overlay.over(&disk);
        let bytes = view.read_vec_at(0, LEN as usize).unwrap();
        // What need not be stored is zeros.
        for gap in image.stored.gaps(0..LEN) {
            let gap = &bytes[gap.start as usize..gap.end as usize];
            assert!(crate::io::is_zero(gap));
        }
        let captured = Self(Scratch::file(&bytes));
        let (code, text) = captured.0.ask("e2fsck", &["-fn"]);
        assert_eq!(code, 0, "{text}");
        // Of this one count e2fsck says nothing.
        let disk = MemoryDisk::from(bytes);
        let fs = Super::read(&disk).unwrap().unwrap();
        let groups = GroupTable::read(&fs, &disk).unwrap().groups;
        let free: u64 = groups
            .iter()
            .map(|desc| u64::from(desc.free_blocks()))
            .sum();
        let free = free * fs.geometry.cluster_ratio;
        assert_eq!(fs.superblock.free_blocks_count(), free);
        assert_eq!(
            opened.total_bytes() - opened.used_bytes(),
            free * BLOCK as u64
        );
        let opened = Opened {
            findings: opened.findings().clone(),
            recovery: opened.recovery(),
            in_the_way: opened.features_in_the_way(),
        };
        (opened, captured, image.stored)
    }
}

#[test]
fn who_may_have_which_cluster() {
    const SPLIT: &str = "lies in its cluster";
    let disk = MemoryDisk::from(mke2fs(LEN, &["-O", "bigalloc", "-C", "4096"]));
    let geometry = Super::read(&disk).unwrap().unwrap().geometry;
    assert_eq!(geometry.cluster_ratio, RATIO);
    // Runs of one file as (block of the file, blocks), and what is wrong with the last; 400 to 401 belong
    // to another file, 440 is a node of this one.
    type Run = (u32, Range<u64>);
    let cases: [(&[Run], &str); 14] = [
        (&[(0, 800..809)], ""),
        (&[(0, 800..802), (2, 802..809)], ""),
        (&[(0, 800..801), (3, 803..809), (10, 810..811)], ""),
        (&[(1, 801..802), (4, 900..901)], ""),
        (&[(0, 800..804), (4, 900..901)], ""),
        (&[(0, 801..802)], SPLIT),
        (&[(3, 800..804)], SPLIT),
        (&[(0, 800..801), (1, 901..902)], SPLIT),
        (&[(0, 800..806), (6, 902..904)], SPLIT),
        (&[(0, 800..801), (5, 801..802)], "in use elsewhere"),
        (&[(0, 800..804), (4, 800..804)], "in use elsewhere"),
        (&[(0, 396..404)], "in use elsewhere"),
        (&[(2, 402..404)], "in use elsewhere"),
        (&[(1, 441..442)], "in use elsewhere"),
    ];
    for (runs, expected) in cases {
        let mut used = Bitmap::new(geometry.blocks_count);
        used.set_range(400..402);
        let owned = Owned {
            geometry: &geometry,
            used: &mut used,
            shareable: None,
        };
        let mut claims = Claims {
            owned,
            may_share: true,
            last: None,
        };
        assert_eq!(claims.take(440..441, Piece::Node), Ok(()));
        let answers = runs.iter().map(|(logical, blocks)| {
            let piece = Piece::Data {
                logical: *logical,
                unwritten: false,
            };
            claims.take(blocks.clone(), piece)
        });
        let answers: Vec<_> = answers.collect();
        let (last, before) = answers.split_last().unwrap();
        assert!(before.iter().all(|answer| answer.is_ok()), "{runs:?}");
        match last {
            Ok(()) => assert_eq!(expected, "", "{runs:?}"),
            Err(Taken(text)) => {
                assert!(
                    !expected.is_empty() && text.contains(expected),
                    "{runs:?}: {text}"
                );
            }
        }
    }
}

/// Puts one value into an entry of the extents in a file's inode: 4 bytes at `field` of entry `index`.
fn patch_extent(image: &Image, name: &str, index: usize, field: usize, value: u32) {
    let number = InodeNr(image.number(name));
    let disk = MemoryDisk::from(image.0.read());
    let fs = Super::read(&disk).unwrap().unwrap();
    let mut slot = read_inode(&fs, &disk, number).unwrap();
    put32(slot.inode.i_block_mut(), 12 * (index + 1) + field, value);
    slot.inode.update_checksum(&fs.checksums, number);
    disk.write_all_at(slot.offset, slot.inode.bytes()).unwrap();
    let bytes = disk.read_vec_at(0, LEN as usize).unwrap();
    std::fs::write(&image.0, bytes).unwrap();
}

/// Offsets within an entry of a leaf, and of an index.
const EE_BLOCK: usize = 0;
const EE_START_LO: usize = 8;
const EI_LEAF_LO: usize = 4;

#[test]
fn damaged_clusters_are_refused() {
    const TAKEN: &str = "is in use elsewhere";
    const ASKEW: &str = "lies in its cluster in another place";
    let sound = Image::clustered();
    let bytes = sound.0.read();
    assert!(sound.open().is_ok());
    let nine = sound.block("nine", 0);
    let six = sound.block("six", 0);
    let node = {
        let meta = Metadata::read(&MemoryDisk::from(bytes.clone()), &mut Findings::default());
        let meta = meta.unwrap();
        let node = meta
            .inodes
            .iter()
            .flat_map(|inode| meta.nodes(inode))
            .next();
        node.unwrap().block
    };
    let table = {
        let disk = MemoryDisk::from(bytes.clone());
        let fs = Super::read(&disk).unwrap().unwrap();
        GroupTable::read(&fs, &disk).unwrap().groups[0].inode_table()
    };
    assert!([nine, six, node].iter().all(|block| block % RATIO == 0));
    type Damage<'a> = &'a dyn Fn(&Image);
    let cases: [(&str, Damage, &str); 10] = [
        (
            "another file's cluster",
            &|image| patch_extent(image, "nine", 0, EE_START_LO, six as u32),
            TAKEN,
        ),
        (
            "a block that nobody has of another file's last cluster",
            &|image| {
                // Block 10 of the file is the third of its cluster, as block 6 would be of the other's.
                patch_extent(image, "nine", 0, EE_START_LO, (six + 6) as u32);
                patch_extent(image, "nine", 0, EE_BLOCK, 10);
                image.debugfs(&["sif /nine size 19456"]);
            },
            TAKEN,
        ),
        (
            "a node's cluster",
            &|image| patch_extent(image, "nine", 0, EE_START_LO, node as u32),
            TAKEN,
        ),
        (
            "the groups' metadata",
            &|image| patch_extent(image, "six", 0, EE_START_LO, (table / RATIO * RATIO) as u32),
            TAKEN,
        ),
        (
            "a place beside its own in the cluster",
            &|image| patch_extent(image, "nine", 0, EE_START_LO, (nine + 1) as u32),
            ASKEW,
        ),
        (
            "a node within a file's cluster",
            &|image| patch_extent(image, "pieces", 0, EI_LEAF_LO, (six + 7) as u32),
            "extent header",
        ),
        (
            "attributes within a file's cluster",
            &|image| image.debugfs(&[&format!("sif /nine file_acl {}", six + 6)]),
            "is in use elsewhere",
        ),
        (
            "blocks counted one by one",
            &|image| image.debugfs(&["sif /nine blocks 18"]),
            "counts 18 sectors but has 24",
        ),
        (
            "attributes counted as a block",
            &|image| image.debugfs(&["sif /six blocks 18"]),
            "counts 18 sectors but has 24",
        ),
        (
            "pointers to blocks",
            &|image| {
                let first = format!("sif /nine block[0] {nine}");
                let mut commands = vec!["sif /nine flags 0".to_string(), first];
                commands.extend((1..15).map(|slot| format!("sif /nine block[{slot}] 0")));
                commands.extend(["size 1024", "blocks 8"].map(|rest| format!("sif /nine {rest}")));
                let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
                image.debugfs(&commands);
            },
            "pointers to blocks",
        ),
    ];
    for (what, damage, expected) in cases {
        std::fs::write(&sound.0, &bytes).unwrap();
        damage(&sound);
        assert_ne!(sound.judge(), 0, "{what}");
        let error = sound.open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound, "{what}");
        let text = error.one_line();
        assert!(text.contains(expected), "{what}: {text}");
    }
}

#[test]
fn clusters_that_are_marked_wrongly_are_put_right() {
    for features in ["bigalloc", "bigalloc,^metadata_csum", "bigalloc,^flex_bg"] {
        let image = Image::new(features, &["-C", "4096", "-g", "1024"]);
        let bytes = image.0.read();
        let (nine, last) = (image.block("nine", 0), image.block("nine", 8));
        for (commands, expected) in [
            (vec!["setb 4000 9".into()], "3 clusters were marked as used"),
            (vec![format!("freeb {last}")], "1 clusters of files"),
            (
                vec![format!("freeb {nine} 4"), "setb 3900".into()],
                "1 clusters of files",
            ),
        ] {
            std::fs::write(&image.0, &bytes).unwrap();
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            image.debugfs(&commands);
            assert_ne!(image.judge(), 0, "{commands:?}");
            let (opened, captured, _) = image.captured();
            let repairs = opened.findings.repairs();
            let told = repairs.iter().any(|text| text.contains(expected));
            assert!(told, "{commands:?}: {repairs:?}");
            assert_eq!(captured.count("nine", 9), 9 * BLOCK);
        }
    }
}

/// Free blocks and what nobody owns of a cluster stay out of the image.
#[test]
fn only_blocks_with_an_owner_are_stored() {
    let image = Image::clustered();
    let mut bytes = image.0.read();
    let (six, free) = (image.block("six", 0) as usize, 20_000);
    for block in [six + 6, free] {
        bytes[block * BLOCK..][..BLOCK].fill(0xEE);
    }
    std::fs::write(&image.0, &bytes).unwrap();
    let (_, captured, stored) = image.captured();
    let captured = captured.0.read();
    for (block, is_stored) in [(six + 5, true), (six + 6, false), (free, false)] {
        let range = block * BLOCK..(block + 1) * BLOCK;
        assert_eq!(crate::io::is_zero(&captured[range.clone()]), !is_stored);
        assert_eq!(
            stored.intersects(range.start as u64..range.end as u64),
            is_stored
        );
    }
}

#[test]
fn orphans_give_their_clusters_back() {
    for features in ["bigalloc", "bigalloc,quota"] {
        let image = Image::new(features, &["-C", "4096", "-g", "1024"]);
        let [six, nine, pieces] = ["six", "nine", "pieces"].map(|name| image.number(name));
        let free = |image: &Image| {
            let text = image.0.run("dumpe2fs", &["-h"]);
            let line = text.lines().find(|line| line.starts_with("Free blocks"));
            let count = line.unwrap().split_whitespace().last().unwrap();
            count.parse::<u64>().unwrap()
        };
        let before = free(&image);
        // Deleted, cut within a cluster, cut so that no tree is needed.
        image.debugfs(&[
            "unlink /six",
            &format!("sif <{six}> links_count 0"),
            &format!("sif <{six}> dtime @{nine}"),
            &format!("sif <{nine}> size 2500"),
            &format!("sif <{nine}> dtime @{pieces}"),
            &format!("sif <{pieces}> size 10000"),
            &format!("sif <{pieces}> dtime @0"),
            &format!("ssv last_orphan {six}"),
        ]);
        let (opened, captured, _) = image.captured();
        let recovery = opened.recovery;
        assert_eq!(
            (recovery.orphans_deleted, recovery.orphans_truncated),
            (1, 2)
        );
        // Two clusters and one of attributes; two of three; 28 of 30 and the tree's node.
        assert_eq!(free(&captured) - before, (3 + 2 + 28 + 1) * RATIO);
        assert_eq!(captured.count("nine", 9), 2500);
    }
}

#[test]
fn fast_commits_and_orphans_do_not_go_with_shared_blocks() {
    let image = Image::new("^resize_inode", &[]);
    image.debugfs(&["feature shared_blocks"]);
    assert!(image.open().is_ok());
    let number = image.number("nine");
    image.debugfs(&[
        &format!("sif <{number}> size 100"),
        &format!("sif <{number}> dtime @0"),
        &format!("ssv last_orphan {number}"),
    ]);
    let error = image.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

/// Whatever several files own is theirs alone, and e2fsck sees it so; it says nothing of blocks that a
/// file shares with the filesystem itself, which are refused here.
#[test]
fn files_share_blocks() {
    for features in ["^resize_inode", "^resize_inode,^metadata_csum,^has_journal"] {
        let image = Image::new(features, &[]);
        let (nine, six) = (image.block("nine", 0), image.block("six", 0));
        image.debugfs(&["feature shared_blocks"]);
        let first: Vec<String> = (0..6)
            .map(|at| format!("sif /six bmap[{at}] {}", nine + [0, 1, 2, 2, 2, 5][at]))
            .collect();
        let commands: Vec<&str> = first.iter().map(String::as_str).collect();
        image.debugfs(&commands);
        assert_eq!(image.0.ask("e2fsck", &["-fy"]).0, 1);
        assert_eq!(image.judge(), 0);
        let (opened, captured, stored) = image.captured();
        assert_eq!(opened.in_the_way, ["shared_blocks"]);
        assert_eq!(opened.findings.repairs(), &[] as &[String]);
        assert!(!stored.intersects(six * BLOCK as u64..(six + 1) * BLOCK as u64));
        assert_eq!(captured.count("six", 9), 6 * BLOCK - 1);
        let bytes = image.0.read();
        let disk = MemoryDisk::from(bytes.clone());
        let meta = Metadata::read(&disk, &mut Findings::default()).unwrap();
        let node = meta
            .inodes
            .iter()
            .flat_map(|inode| meta.nodes(inode))
            .next();
        let node = node.unwrap().block;
        let attributes = *meta.xattr_blocks.keys().next().unwrap();
        let table = meta.table.groups[0].inode_table();
        for (block, flags) in [(node, 0), (attributes, 0), (table, 0), (nine, 1)] {
            std::fs::write(&image.0, &bytes).unwrap();
            // Unwritten ones would become zeros.
            patch_extent(&image, "six", 0, EE_START_LO, block as u32);
            patch_extent(&image, "six", 0, 4, 1 + flags * 0x8000);
            let text = image.open().unwrap_err().one_line();
            assert!(
                text.contains("is in use elsewhere"),
                "{block} {flags}: {text}"
            );
        }
    }
}
