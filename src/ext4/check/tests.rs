//! Every kind of damage, made by debugfs, judged by the checker and by e2fsck.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::ErrorKind;
use crate::ext4::check::check;
use crate::ext4::findings::Findings;
use crate::ext4::read::metadata::Metadata;
use crate::io::memory::MemoryDisk;

/// A folder that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("check-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(program: &str, args: &[&str]) -> Option<i32> {
    let output = Command::new(program).args(args).output();
    output
        .expect("the tools of e2fsprogs are here")
        .status
        .code()
}

/// Makes a filesystem with a bit of everything that mke2fs can put there.
fn make(folder: &Path, options: &[&str]) -> PathBuf {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("dir/sub")).unwrap();
    std::fs::create_dir_all(tree.join("many")).unwrap();
    std::fs::write(tree.join("file"), vec![7; 20_000]).unwrap();
    std::fs::write(tree.join("dir/other"), "x").unwrap();
    std::os::unix::fs::symlink("file", tree.join("short")).unwrap();
    std::os::unix::fs::symlink("l".repeat(100), tree.join("long")).unwrap();
    for number in 0..900 {
        std::fs::write(tree.join(format!("many/ä-name-that-is-long-{number}")), "").unwrap();
    }
    let image = folder.join("image");
    let _ = std::fs::remove_file(&image);
    let text = image.to_str().unwrap();
    let mut args = vec![
        "-qF",
        "-b",
        "1024",
        "-N",
        "2000",
        "-d",
        tree.to_str().unwrap(),
    ];
    args.extend(options);
    args.extend([text, "12M"]);
    assert_eq!(run("mke2fs", &args), Some(0));
    let attribute = folder.join("attribute");
    std::fs::write(&attribute, vec![5; 300]).unwrap();
    let attribute = format!("ea_set -f {} /file user.a", attribute.display());
    // A seed of its own would put the names into other blocks each time.
    let seed = "ssv hash_seed 01234567-89ab-4cde-8f01-23456789abcd";
    debugfs(
        &image,
        &[&attribute, "mknod dev c 1 3", "mknod pipe p", seed],
    );
    // The index comes from e2fsck, and so do the counts that debugfs leaves wrong.
    assert!(run("e2fsck", &["-fyD", text]) <= Some(1));
    assert_eq!(run("e2fsck", &["-fn", text]), Some(0));
    image
}

fn debugfs(image: &Path, commands: &[&str]) {
    for command in commands {
        let args = ["-w", "-R", command, image.to_str().unwrap()];
        assert_eq!(run("debugfs", &args), Some(0), "{command}");
    }
}

fn findings(image: &Path) -> Findings {
    let disk = MemoryDisk::from(std::fs::read(image).unwrap());
    let mut findings = Findings::default();
    let metadata = Metadata::read(&disk, &mut findings).unwrap();
    findings.merge(check(&disk, &metadata).unwrap());
    findings
}

/// Applies each case's commands to a copy; both judges have to see the damage, and the checker has
/// to say what it is.
fn judge(name: &str, options: &[&str], cases: &[(&[&str], &str)]) {
    let scratch = Scratch::new(name);
    let sound = make(&scratch.0, options);
    let found = findings(&sound);
    assert_eq!(found.damage(), &[] as &[String], "{options:?}");
    for (commands, expected) in cases {
        let image = scratch.0.join("damaged");
        std::fs::copy(&sound, &image).unwrap();
        debugfs(&image, commands);
        let code = run("e2fsck", &["-fn", image.to_str().unwrap()]);
        assert_ne!(code, Some(0), "{commands:?}");
        let found = findings(&image);
        assert!(
            found.damage().iter().any(|text| text.contains(expected)),
            "{commands:?}: {:?}",
            found.damage()
        );
    }
}

#[test]
fn fields_of_inodes() {
    judge(
        "fields",
        &["-t", "ext4"],
        &[
            (
                &["sif /file size 1"],
                "has 1 bytes but blocks up to number 19",
            ),
            (&["sif /file blocks 2"], "counts 2 sectors but has 42"),
            (&["sif /file dtime 1234567890"], "time of deletion"),
            (&["sif /file mode 070644"], "impossible mode"),
            (&["sif /file faddr 9"], "i_faddr"),
            (&["sif /file extra_isize 3"], "i_extra_isize of 3"),
            (&["sif /file flags 0x81000"], "index flag"),
            (
                &["sif /file flags 0x10000000"],
                "inline data without the feature",
            ),
            (&["sif /file flags 0x40080000"], "case-folding"),
            (&["sif /file flags 0x80800"], "no valid policy"),
            (&["sif /file flags 0"], "extents without the flag"),
            (&["sif /dir size 100"], "directory of a wrong size"),
            (&["sif /dir size 4096"], "directory of a wrong size"),
            (&["sif /short size 3"], "symlink of a wrong size"),
            (&["sif /long size 99"], "symlink of a wrong size"),
            (&["sif /dev size 5"], "socket with a size"),
            (&["sif /pipe flags 0x80000"], "flags of a file"),
            (&["sif <2> mode 0100755"], "root directory"),
            (&["sif <8> mode 040755"], "regular file"),
            (&["sif <8> size 65536"], "too short or with a hole"),
            (&["sif <7> flags 0x1000"], "no valid resize inode"),
            (&["sif <9> mode 0100644"], "reserved"),
            (&["sif <10> size 281474976710656"], "reserved"),
            (&["sif <1> mode 0100644"], "list of bad blocks"),
            (&["sif <1> dtime @4"], "list of bad blocks"),
            (&["ssv r_blocks_count 9000"], "more than half"),
            (&["ssv journal_inum 0"], "names no journal"),
            (&["ssv orphan_file_inum 12"], "filesystem's own inodes"),
            (&["ssv encoding 9", "feature casefold"], "names an encoding"),
            (
                &["ssv journal_uuid 12345678-1234-1234-1234-123456789abc"],
                "two journals",
            ),
        ],
    );
}

#[test]
fn names_and_links() {
    judge(
        "links",
        &["-t", "ext4"],
        &[
            (&["sif /file links_count 7"], "counts 7 links but has 1"),
            (&["sif /dir links_count 9"], "counts 9 links but has 3"),
            (&["unlink /dir/other"], "no directory names it"),
            (&["link /file /again"], "counts 1 links but has 2"),
            (&["clri /file"], "not in use"),
            (&["link <8> /journal"], "own inodes"),
            (&["link /dir /file2"], "second one for directory"),
            (&["link <2> /dir/root"], "names the root directory"),
            (&["unlink /dir"], "the root does not lead to"),
            (
                &["unlink /dir", "link /dir /dir/sub/loop"],
                "the root does not lead to",
            ),
            (
                &["unlink /dir/sub", "link /dir/../many /dir/sub"],
                "second one for directory",
            ),
            (&["sif /many flags 0x80000"], "too long or too short"),
        ],
    );
}

#[test]
fn entries_without_checksums() {
    judge(
        "entries",
        &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
        &[
            (&["zap_block -f /dir -o 0 -l 1 -p 77 0"], "wrong '.'"),
            (
                &["zap_block -f /dir -o 8 -l 1 -p 65 0"],
                "without '.' or '..'",
            ),
            (
                &["zap_block -f /dir -o 12 -l 1 -p 13 0"],
                "but its '..' is 13",
            ),
            (
                &["zap_block -f /dir -o 16 -l 1 -p 9 0"],
                "impossible length",
            ),
            (&["zap_block -f /dir -o 17 -l 1 -p 255 0"], "past the end"),
            (&["zap_block -f /dir -o 31 -l 1 -p 3 0"], "has type 3"),
            (&["zap_block -f /dir -o 33 -l 1 -p 47 0"], "slash or a zero"),
            (&["zap_block -f /dir -o 30 -l 1 -p 0 0"], "has no name"),
            (&["zap_block -f /dir -o 25 -l 1 -p 255 0"], "not in use"),
            (
                &["zap_block -f /many -o 28 -l 1 -p 7 0"],
                "hashes of version 7",
            ),
            (&["zap_block -f /many -o 29 -l 1 -p 7 0"], "unknown length"),
            (&["zap_block -f /many -o 30 -l 1 -p 2 0"], "too deep"),
            (&["zap_block -f /many -o 31 -l 1 -p 3 0"], "unknown flags"),
            (&["zap_block -f /many -o 32 -l 1 -p 9 0"], "wrong limit"),
            (&["zap_block -f /many -o 34 -l 2 -p 255 0"], "wrong count"),
            (&["zap_block -f /many -o 34 -l 1 -p 2 0"], "misses a block"),
            (&["zap_block -f /many -o 37 -l 1 -p 9 0"], "does not have"),
            (&["zap_block -f /many -o 43 -l 1 -p 255 0"], "out of order"),
            (&["zap_block -f /many -o 44 -l 1 -p 1 0"], "a block twice"),
            (
                &["zap_block -f /many -o 30 -l 1 -p 1 0"],
                "at the wrong depth",
            ),
            (
                &["zap_block -f /many -o 8 -l 1 -p 98 3"],
                "into the wrong block",
            ),
        ],
    );
}

#[test]
fn names_that_come_twice() {
    let scratch = Scratch::new("twice");
    let image = make(&scratch.0, &["-t", "ext4", "-O", "^metadata_csum"]);
    debugfs(&image, &["link /dir/other /dir/othes"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let at = bytes.windows(5).position(|name| name == b"othes").unwrap();
    bytes[at..at + 5].copy_from_slice(b"other");
    std::fs::write(&image, bytes).unwrap();
    assert_ne!(run("e2fsck", &["-fn", image.to_str().unwrap()]), Some(0));
    let text = "has two entries 'other'";
    assert!(
        findings(&image)
            .damage()
            .iter()
            .any(|found| found.contains(text))
    );
}

#[test]
fn quota_usage() {
    judge(
        "quota",
        &[
            "-t",
            "ext4",
            "-O",
            "quota",
            "-E",
            "quotatype=usrquota:grpquota",
        ],
        &[
            (&["sif /file uid 77"], "wrong usage"),
            (&["sif /dir gid 77"], "wrong usage"),
        ],
    );
}

/// e2fsck leaves symlinks with inline targets out when it writes quota files.
#[test]
fn quota_with_inline_symlinks() {
    let scratch = Scratch::new("quota-inline");
    let options = ["-t", "ext4", "-O", "quota,inline_data", "-I", "256"];
    let image = make(&scratch.0, &options);
    let text = image.to_str().unwrap();
    let links = |sound: bool| {
        assert_eq!(run("e2fsck", &["-fn", text]) == Some(0), sound);
        findings(&image).is_sound()
    };
    let target = "t".repeat(80);
    debugfs(&image, &[&format!("symlink /linked {target}")]);
    // The file counts neither the link nor, so far, anything else that is wrong.
    assert!(links(true));
    debugfs(&image, &["write /etc/hostname more"]);
    assert!(!links(false));
    assert_eq!(run("e2fsck", &["-fy", text]), Some(1));
    assert!(links(true));
}

/// An id that comes twice, once with another usage: whichever is read last, one of them is wrong.
#[test]
fn quota_of_the_same_id_twice() {
    let scratch = Scratch::new("quota-twice");
    let options = ["-t", "ext4", "-O", "quota", "-E", "quotatype=usrquota"];
    let image = make(&scratch.0, &options);
    let sound = std::fs::read(&image).unwrap();
    let disk = MemoryDisk::from(sound.clone());
    let meta = Metadata::read(&disk, &mut Findings::default()).unwrap();
    let file = meta.inode(crate::units::InodeNr(3)).unwrap();
    // The leaf is the last of the tree's blocks of 1 KiB: 16 bytes, then entries of 72.
    let leaf = meta.extents(file).last().unwrap().end() as usize * 1024 - 1024;
    for (from, to) in [(16, 16 + 72), (16, 16 + 5 * 72)] {
        let mut bytes = sound.clone();
        bytes.copy_within(leaf + from..leaf + from + 72, leaf + to);
        bytes[leaf + to + 24] ^= 1;
        std::fs::write(&image, &bytes).unwrap();
        assert_ne!(run("e2fsck", &["-fn", image.to_str().unwrap()]), Some(0));
        let found = findings(&image);
        assert!(found.damage()[0].contains("wrong usage"), "{found:?}");
        let mut other_way_round = bytes;
        let (first, second) = (leaf + from + 24, leaf + to + 24);
        other_way_round.swap(first, second);
        std::fs::write(&image, &other_way_round).unwrap();
        assert!(!findings(&image).is_sound());
    }
}

#[test]
fn descriptors_are_no_larger_than_the_kernel_takes_them() {
    let scratch = Scratch::new("desc-size");
    let image = scratch.0.join("image");
    let text = image.to_str().unwrap();
    let args = [
        "-qF",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-O",
        "64bit,^metadata_csum",
    ];
    assert_eq!(
        run("mke2fs", &[&args[..], &[text, "16M"]].concat()),
        Some(0)
    );
    for (size, fine) in [(64, true), (2048, false), (4096, false)] {
        debugfs(&image, &[&format!("ssv desc_size {size}")]);
        assert_eq!(run("e2fsck", &["-fn", text]) == Some(0), fine);
        let disk = MemoryDisk::from(std::fs::read(&image).unwrap());
        let read = Metadata::read(&disk, &mut Findings::default());
        assert_eq!(read.is_ok(), fine, "{size}");
    }
}

#[test]
fn attributes() {
    judge(
        "attributes",
        &["-t", "ext4", "-I", "128", "-O", "^metadata_csum"],
        &[
            (&["sif /file file_acl 0"], "sectors"),
            (
                &["sif /dir/other file_acl 9000"],
                "xattr block 9000: the block's magic is wrong",
            ),
        ],
    );
}

#[test]
fn sizes_of_inline_data() {
    judge(
        "inline-size",
        &["-t", "ext4", "-I", "256", "-O", "inline_data"],
        &[(
            &["sif /dir/other size 562640715777"],
            "has 562640715777 bytes, and all within itself",
        )],
    );
}

/// e2fsck finds no inline data behind an attribute that lies outside, even an empty one.
#[test]
fn attributes_beside_inline_data() {
    let scratch = Scratch::new("beside-inline");
    let options = [
        "-t",
        "ext4",
        "-I",
        "256",
        "-O",
        "inline_data,^metadata_csum",
    ];
    let image = make(&scratch.0, &options);
    assert_eq!(findings(&image).damage(), &[] as &[String]);
    let disk = MemoryDisk::from(std::fs::read(&image).unwrap());
    let meta = Metadata::read(&disk, &mut Findings::default()).unwrap();
    let inline = |record: &&crate::ext4::read::metadata::InodeRecord| {
        record.flags & crate::ext4::format::inode::INLINE_DATA_FL != 0
    };
    let record = meta.inodes.iter().find(inline).unwrap();
    let slot = meta.read_inode(&disk, record.number).unwrap();
    let area = crate::ext4::format::xattr::in_slot(&slot).unwrap();
    let entry = area.iter(slot.bytes()).next().unwrap().unwrap();
    assert_eq!(
        entry.value,
        crate::ext4::format::xattr::Value::Here(entry.offset..entry.offset)
    );
    let at = meta.inode_offset(record.number) as usize + entry.offset + 2;
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[at..at + 2].copy_from_slice(&0x2000u16.to_le_bytes());
    std::fs::write(&image, bytes).unwrap();
    assert_ne!(run("e2fsck", &["-fn", image.to_str().unwrap()]), Some(0));
    assert!(findings(&image).damage()[0].contains("past the end"));
}

/// e2fsck finds no inline data beside an attribute in an inode that has a place here as well.
#[test]
fn large_values_beside_inline_data() {
    let scratch = Scratch::new("large-beside-inline");
    let features = "inline_data,ea_inode,^metadata_csum";
    let image = make(&scratch.0, &["-t", "ext4", "-I", "256", "-O", features]);
    let value = scratch.0.join("value");
    std::fs::write(&value, vec![9; 5000]).unwrap();
    let command = format!("ea_set -f {} /dir/other user.large", value.display());
    debugfs(&image, &[&command]);
    assert!(run("e2fsck", &["-fy", image.to_str().unwrap()]) <= Some(1));
    assert_eq!(findings(&image).damage(), &[] as &[String]);
    let mut bytes = std::fs::read(&image).unwrap();
    let name = bytes.windows(5).rposition(|name| name == b"large");
    // Of the entry before the name: e_value_offs.
    let at = name.unwrap() - 16 + 2;
    bytes[at] = 8;
    std::fs::write(&image, bytes).unwrap();
    assert_ne!(run("e2fsck", &["-fn", image.to_str().unwrap()]), Some(0));
    assert!(findings(&image).damage()[0].contains("and yet here"));
}

#[test]
fn large_values_need_their_feature() {
    let scratch = Scratch::new("no-ea-inode");
    let image = make(&scratch.0, &["-t", "ext4", "-I", "256", "-O", "ea_inode"]);
    let value = scratch.0.join("value");
    std::fs::write(&value, vec![9; 5000]).unwrap();
    debugfs(
        &image,
        &[&format!("ea_set -f {} /file user.large", value.display())],
    );
    assert!(run("e2fsck", &["-fy", image.to_str().unwrap()]) <= Some(1));
    assert_eq!(findings(&image).damage(), &[] as &[String]);
    debugfs(&image, &["feature ^ea_inode"]);
    assert!(findings(&image).damage()[0].contains("without ea_inode"));
}

#[test]
fn unsigned_names_are_hashed_so() {
    // As on a card that was first mounted on ARM, where the kernel's characters are unsigned.
    let scratch = Scratch::new("unsigned");
    let image = make(&scratch.0, &["-t", "ext4"]);
    debugfs(&image, &["ssv flags 2"]);
    assert!(!findings(&image).is_sound());
    let text = image.to_str().unwrap();
    assert!(run("e2fsck", &["-fyD", text]) <= Some(1));
    assert_eq!(findings(&image).damage(), &[] as &[String]);
}

#[test]
fn translators_of_the_hurd_are_not_understood() {
    let scratch = Scratch::new("hurd");
    let image = make(&scratch.0, &["-t", "ext2"]);
    debugfs(&image, &["ssv creator_os 1"]);
    assert_eq!(findings(&image).damage(), &[] as &[String]);
    debugfs(&image, &["sif /file version 9"]);
    assert_ne!(run("e2fsck", &["-fn", image.to_str().unwrap()]), Some(0));
    let disk = MemoryDisk::from(std::fs::read(&image).unwrap());
    let error = Metadata::read(&disk, &mut Findings::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
