//! Every size that a filesystem may get: clean by e2fsck's judgement, with the same files, planned
//! the same way twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use ext4_view::Ext4 as View;
use pishrink::error::ErrorKind;
use pishrink::ext4::{Ext4, Image, Target};
use pishrink::io::memory::MemoryDisk;
use pishrink::io::{ReadAt, WriteAt};

const MIB: u64 = 1 << 20;

/// An empty filesystem in a folder of its own.
fn empty(name: &str, size: u64, options: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("ext4_sizes")
        .join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let image = folder.join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(size)
        .unwrap();
    let common = ["-qF", "-t", "ext4", "-b", "1024", "-J", "size=1"];
    run("mke2fs", &[&common[..], options].concat(), &image);
    image
}

/// Writes a file of `len` bytes beside `image` and returns its path.
fn contents(image: &Path, name: &str, len: u64) -> String {
    let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 | 1).collect();
    let path = image.with_file_name(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// Runs a script of debugfs's, which e2fsck has nothing to say about afterwards.
fn fill(image: &Path, commands: &[String]) {
    let script = image.with_file_name("script");
    std::fs::write(&script, commands.join("\n")).unwrap();
    run("debugfs", &["-w", "-f", script.to_str().unwrap()], image);
    clean(image);
}

/// A filesystem whose files lie behind a hole of `hole` bytes, many of them in pieces.
fn make(name: &str, size: u64, hole: u64, options: &[&str]) -> PathBuf {
    let image = empty(name, size, options);
    let contents = |name: &str, len: u64| contents(&image, name, len);
    let mut commands = vec![format!("write {} hole", contents("hole", hole))];
    for number in 0..40 {
        let dir = number / 8;
        if number % 8 == 0 {
            commands.push(format!("mkdir dir{dir}"));
        }
        let file = contents(&format!("file{number}"), 700 + 5000 * number);
        commands.push(format!("write {file} dir{dir}/file{number}"));
        commands.push(format!("write {file} between{number}"));
    }
    commands.push(format!("symlink long {}", "l".repeat(200)));
    commands.push("rm hole".into());
    // What comes last finds its room in pieces.
    commands.extend(
        (0..40)
            .step_by(2)
            .map(|number| format!("rm between{number}")),
    );
    commands.push(format!("write {} pieces", contents("pieces", hole / 8)));
    fill(&image, &commands);
    image
}

fn run(tool: &str, args: &[&str], image: &Path) {
    let output = Command::new(tool).args(args).arg(image).output();
    let output = output.unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {output:?}");
}

/// Removes what `make` made.
fn remove(image: &Path) {
    std::fs::remove_dir_all(image.parent().unwrap()).unwrap();
}

fn clean(image: &Path) {
    run("e2fsck", &["-fn"], image);
}

fn disk(image: &Path) -> MemoryDisk {
    MemoryDisk::from(std::fs::read(image).unwrap())
}

/// Stores bytes beside `image`, and returns the path once e2fsck has nothing to say about them.
fn judged(image: &Path, bytes: Vec<u8>) -> PathBuf {
    let result = image.with_file_name("result");
    std::fs::write(&result, bytes).unwrap();
    clean(&result);
    result
}

fn bytes_of(image: &Image, disk: &MemoryDisk) -> Vec<u8> {
    let len = image.overlay.len() as usize;
    image.overlay.over(disk).read_vec_at(0, len).unwrap()
}

/// All files by path, with what they hold, as an independent reader sees them.
fn files(image: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let view = View::load_from_path(image).unwrap();
    let mut folders = vec![ext4_view::PathBuf::new("/")];
    let mut found = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in view.read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            if entry.file_name() == "." || entry.file_name() == ".." {
                continue;
            }
            let held = if kind.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else if kind.is_symlink() {
                view.read_link(&path).unwrap().as_ref().to_vec()
            } else {
                view.read(&path).unwrap()
            };
            found.insert(path.as_ref().to_vec(), held);
        }
    }
    found
}

#[test]
fn every_size_down_to_the_minimum() {
    let cases: [(&str, &[&str]); 3] = [
        ("plain", &["-g", "2048", "-N", "600"]),
        (
            "no-flex",
            &["-g", "2048", "-N", "600", "-O", "^flex_bg,^64bit"],
        ),
        (
            "indirect",
            &[
                "-g",
                "4096",
                "-N",
                "600",
                "-O",
                "^extent,^64bit,^metadata_csum",
            ],
        ),
    ];
    for (name, options) in cases {
        let image = make(name, 20 * MIB, 9 * MIB, options);
        let disk = disk(&image);
        let ext = Ext4::open(&disk).unwrap();
        let expected = files(&image);
        let least = ext.minimum_bytes().unwrap() / 1024;
        let present = ext.total_bytes() / 1024;
        let group: u64 = options[1].parse().unwrap();
        let mut sizes = BTreeSet::from([least, least + 1, present - 1, present]);
        for end in (1..present).step_by(group as usize) {
            sizes.extend([end - 1, end, end + 1]);
        }
        sizes.extend((least..present).step_by((present - least) as usize / 10));
        for blocks in sizes.range(least..) {
            let target = Target::Blocks(*blocks);
            let planned = ext
                .image(target)
                .unwrap_or_else(|error| panic!("{name}: {blocks} of {least}: {error}"));
            assert!(
                (least..=*blocks).contains(&planned.blocks),
                "{name}: {blocks}"
            );
            let again = ext.image(target).unwrap();
            let bytes = bytes_of(&planned, &disk);
            assert!(bytes == bytes_of(&again, &disk), "{name}: {blocks}");
            assert_eq!(planned.stored, again.stored, "{name}: {blocks}");
            let result = judged(&image, bytes);
            assert!(files(&result) == expected, "{name}: {blocks}");
        }
        let error = ext.image(Target::Blocks(least - 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{name}: {error}");
        remove(&image);
    }
}

/// Plans the minimum, which is then full and not larger than what resize2fs leaves; the tree of
/// `file` has only `nodes` nodes in it.
fn minimum_is_full(image: &Path, file: &str, nodes: usize) {
    let disk = disk(image);
    let ext = Ext4::open(&disk).unwrap();
    let planned = ext.image(Target::Headroom(0)).unwrap();
    let result = judged(image, bytes_of(&planned, &disk));
    assert!(files(&result) == files(image));
    let said = |what: &str| {
        let mut debugfs = Command::new("debugfs");
        let output = debugfs.args(["-R", what]).arg(&result).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let header = said("stats -h");
    let free = header.lines().find(|line| line.starts_with("Free blocks:"));
    assert!(free.unwrap().ends_with(" 0"), "{free:?}");
    let stat = said(&format!("stat {file}"));
    assert_eq!(stat.matches("(ETB").count(), nodes, "{stat}");
    loop {
        let before = std::fs::metadata(image).unwrap().len();
        run("resize2fs", &["-fM"], image);
        if std::fs::metadata(image).unwrap().len() == before {
            assert!(planned.blocks * 1024 <= before, "{before}");
            break;
        }
    }
}

#[test]
fn at_the_minimum_pieces_are_cut_where_it_costs_nothing() {
    let options = ["-N", "600", "-O", "^has_journal,^resize_inode"];
    let image = empty("full-pieces", 8 * MIB, &options);
    let lengths = |step: u64| {
        let length = |number: u64| if number * step % 13 < 6 { 8 } else { 1 };
        (0..252).map(length).collect::<Vec<u64>>()
    };
    let (low, gaps) = (lengths(5), lengths(7));
    let block = contents(&image, "block", 1024);
    let eight = contents(&image, "eight", 8192);
    let source = |len| if len == 1 { &block } else { &eight };
    let mut commands: Vec<String> = (0..8).map(|dir| format!("mkdir dir{dir}")).collect();
    for (number, len) in low.iter().enumerate() {
        let dir = number % 8;
        commands.push(format!("write {} dir{dir}/low{number}", source(*len)));
        commands.push(format!("write {block} dir{dir}/wall{number}"));
    }
    for (number, len) in gaps.iter().enumerate() {
        let dir = number % 8;
        commands.push(format!("write {} dir{dir}/gap{number}", source(*len)));
        commands.push(format!("write {block} dir{dir}/high{number}"));
    }
    commands.extend((0..252).map(|number| format!("rm dir{}/gap{number}", number % 8)));
    let total = gaps.iter().sum::<u64>();
    let pieces = contents(&image, "pieces", total * 1024);
    commands.push(format!("write {pieces} pieces"));
    commands.extend((0..252).map(|number| format!("rm dir{}/low{number}", number % 8)));
    fill(&image, &commands);
    minimum_is_full(&image, "pieces", 3);
    remove(&image);
}

#[test]
fn at_the_minimum_trees_are_packed() {
    let options = ["-N", "600", "-O", "^has_journal,^resize_inode"];
    let image = empty("full-loose", 8 * MIB, &options);
    let loose = contents(&image, "loose", 1200 * 1024);
    let behind = contents(&image, "behind", 4096 * 1024);
    let mut commands = vec![format!("write {loose} loose")];
    // Each hole cuts an extent; then most of what is between the holes goes as well.
    let holes = (0..1200).step_by(2);
    let between = (1..1200).step_by(2).filter(|at| at % 40 != 1);
    commands.extend(
        holes
            .chain(between)
            .map(|at| format!("punch loose {at} {at}")),
    );
    commands.push(format!("write {behind} behind"));
    fill(&image, &commands);
    minimum_is_full(&image, "loose", 1);
    remove(&image);
}

/// Grows in place to `len` bytes; returns the judged result.
fn grown(image: &Path, len: u64) -> PathBuf {
    let old = std::fs::read(image).unwrap();
    let disk = MemoryDisk::new(len);
    // A card holds anything behind the filesystem.
    let rest = vec![0xA5; (len as usize) - old.len()];
    disk.write_all_at(0, &old).unwrap();
    disk.write_all_at(old.len() as u64, &rest).unwrap();
    let ext = Ext4::open(&disk).unwrap();
    let growth = ext.grow(len).unwrap();
    assert!(growth.new_len >= growth.old_len && growth.new_len <= len);
    growth.steps.commit(&disk, &mut |_, _| Ok(())).unwrap();
    judged(image, disk.to_vec())
}

#[test]
fn growth_in_place() {
    let cases: [(&str, &[&str]); 4] = [
        ("grow", &["-g", "2048", "-N", "600"]),
        (
            "grow-no-resize",
            &["-g", "2048", "-N", "600", "-O", "^resize_inode"],
        ),
        (
            "grow-no-flex",
            &[
                "-g",
                "2048",
                "-N",
                "600",
                "-O",
                "^flex_bg,^64bit,^resize_inode",
            ],
        ),
        (
            "grow-old",
            &[
                "-g",
                "2048",
                "-N",
                "600",
                "-O",
                "^extent,^64bit,^metadata_csum,^resize_inode",
            ],
        ),
    ];
    for (name, options) in cases {
        let image = make(name, 20 * MIB, 9 * MIB, options);
        let expected = files(&image);
        for len in [
            20 * MIB,
            20 * MIB + 1024,
            21 * MIB,
            22 * MIB - 4096,
            64 * MIB,
            300 * MIB,
        ] {
            let result = grown(&image, len);
            assert!(files(&result) == expected, "{name}: {len}");
        }
        remove(&image);
    }
}

#[test]
fn growth_where_no_group_has_room() {
    for features in ["^resize_inode,^flex_bg,^sparse_super", "^resize_inode"] {
        let options = ["-g", "2048", "-N", "600", "-O", features];
        let image = make("grow-full", 20 * MIB, 9 * MIB, &options);
        let expected = files(&image);
        let disk = disk(&image);
        let ext = Ext4::open(&disk).unwrap();
        let least = ext.image(Target::Headroom(0)).unwrap();
        std::fs::write(&image, bytes_of(&least, &disk)).unwrap();
        let result = grown(&image, 300 * MIB);
        assert!(files(&result) == expected, "{features}");
        let len = std::fs::metadata(&result).unwrap().len();
        let disk = self::disk(&result);
        let ext = Ext4::open(&disk).unwrap();
        assert!(len - ext.total_bytes() < 2 * MIB, "{features}");
        remove(&image);
    }
}

#[test]
fn growth_clears_what_deleted_inodes_left() {
    let image = make("leftovers", 20 * MIB, 9 * MIB, &["-g", "2048", "-N", "600"]);
    // The number of the first file between the others, which was deleted.
    let script = image.with_file_name("script");
    std::fs::write(&script, "sif <15> mode 0100644\nsif <15> dtime 0\n").unwrap();
    run("debugfs", &["-w", "-f", script.to_str().unwrap()], &image);
    let disk = disk(&image);
    let ext = Ext4::open(&disk).unwrap();
    assert_eq!(ext.findings().slots_to_clear().len(), 1);
    for len in [20 * MIB, 40 * MIB] {
        grown(&image, len);
    }
    remove(&image);
}

#[test]
fn what_tune2fs_leaves_of_checksums_is_put_right() {
    let options = ["-N", "600", "-O", "orphan_file,metadata_csum"];
    let image = empty("tuned", 20 * MIB, &options);
    run("tune2fs", &["-O", "^metadata_csum"], &image);
    let disk = disk(&image);
    let ext = Ext4::open(&disk).unwrap();
    for target in [Target::Keep, Target::Headroom(0), Target::Headroom(MIB)] {
        let planned = ext.image(target).unwrap();
        judged(&image, bytes_of(&planned, &disk));
    }
    grown(&image, 20 * MIB);
    grown(&image, 300 * MIB);
    remove(&image);
}

/// What `e2fsck` mends without a question, or does not even mind, is no reason to refuse.
#[test]
fn what_other_writers_leave_is_put_right() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("size7", &[], &["sif <7> size 65536"]),
        ("none7", &[], &["sif <7> size 4096"]),
        ("huge7", &[], &["sif <7> size 281474976710656"]),
        (
            "unused",
            &["-O", "^metadata_csum,^uninit_bg"],
            &["set_bg 0 itable_unused 100"],
        ),
        ("zero1", &["-O", "metadata_csum"], &["clri <1>"]),
    ];
    for (name, options, commands) in cases {
        let image = empty(&format!("others-{name}"), 20 * MIB, options);
        for command in *commands {
            run("debugfs", &["-w", "-R", command], &image);
        }
        let disk = disk(&image);
        let ext = Ext4::open(&disk).unwrap_or_else(|error| panic!("{name}: {error}"));
        for target in [Target::Keep, Target::Headroom(0)] {
            let planned = ext.image(target).unwrap();
            judged(&image, bytes_of(&planned, &disk));
        }
        grown(&image, 60 * MIB);
        remove(&image);
    }
}
