//! `pishrink capture --resume` from a card that nbdkit serves, which notes every read, and what is
//! refused.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use crate::cards::{self, Scratch, noise, pishrink, run};
use crate::failing::{Failing, listed_as};

const MIB: u64 = 1 << 20;

/// What the page cache asks for at once, or ahead, at the most.
const AHEAD: u64 = 512 << 10;

/// What mke2fs takes for small filesystems.
const BLOCK: u64 = 1024;

/// A bare filesystem with a film of 24 MiB.
fn film_card(scratch: &Scratch) -> PathBuf {
    let (card, tree) = (scratch.path("card.img"), scratch.path("tree"));
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("film"), noise(1, 24 << 20)).unwrap();
    let file = fs::File::create(&card).unwrap();
    file.set_len(64 * MIB).unwrap();
    let words = ["-q", "-F", "-t", "ext4", "-d"].map(Path::new);
    run("mke2fs", words.into_iter().chain([&*tree, &card]));
    card
}

fn start(source: &Path, image: &Path) -> Child {
    pishrink()
        .args(["capture", "--resume", "-q"])
        .args([source, image])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(source: &Path, image: &Path) -> Output {
    start(source, image).wait_with_output().unwrap()
}

/// The ranges that a map file says to be there.
fn there(map: &Path) -> Vec<Range<u64>> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let map = fs::read_to_string(map).unwrap();
    let lines = map.lines().filter(|line| line.ends_with("  +"));
    let ranges = lines.map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        number(words[0])..number(words[0]) + number(words[1])
    });
    ranges.collect()
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> u64 {
    a.end.min(b.end).saturating_sub(a.start.max(b.start))
}

#[test]
fn a_stopped_capture_goes_on_and_reads_only_what_is_missing() {
    let scratch = Scratch::new("resumed");
    let card = film_card(&scratch);
    let (whole, image) = (scratch.path("whole.img"), scratch.path("x.img"));
    let done = pishrink()
        .args(["capture", "-q"])
        .args([&card, &whole])
        .status();
    assert!(done.unwrap().success());
    let place = run("debugfs", ["-R", "bmap film 1000", card.to_str().unwrap()]);
    let place = place.trim().parse::<u64>().unwrap() * BLOCK / 4096 * 4096;
    let bad = place..place + 4096;

    // What planning reads, it reads each time.
    let failing = Failing::new(&scratch, &card, &bad);
    let words = ["capture", "-q", "--dry-run"].map(Path::new);
    run(
        env!("CARGO_BIN_EXE_pishrink"),
        words.into_iter().chain([failing.mounted.as_path(), &image]),
    );
    let planning = failing.reads();
    drop(failing);

    // Stopped when half of it is read.
    let failing = Failing::new(&scratch, &card, &bad);
    let child = start(&failing.mounted, &image);
    let enough: u64 = planning
        .iter()
        .map(|read| read.end - read.start)
        .sum::<u64>()
        + 14 * MIB;
    while failing
        .reads()
        .iter()
        .map(|read| read.end - read.start)
        .sum::<u64>()
        < enough
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    run("kill", ["-INT", &child.id().to_string()]);
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(130), "{said}");
    drop(failing);
    let map = scratch.path("x.img.partial.mapfile");
    scratch.expect(&[
        "card.img",
        "failing.img",
        "whole.img",
        "whole.img.bmap",
        "x.img.partial",
        "x.img.partial.mapfile",
    ]);
    let had = there(&map);
    let had_bytes: u64 = had.iter().map(|range| range.end - range.start).sum();
    assert!((7 * MIB..24 * MIB).contains(&had_bytes), "{had_bytes}");
    assert_eq!(listed_as(&map, "+") as u64 * 512, had_bytes);
    assert_eq!(listed_as(&map, "-"), 0);

    // It goes on: what is there is not read again, but for what the page cache reads ahead.
    let failing = Failing::new(&scratch, &card, &bad);
    let done = finish(&failing.mounted, &image);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(6), "{said}");
    let mut again = 0;
    for read in failing.reads() {
        if planning.contains(&read) {
            continue;
        }
        for had in &had {
            // Behind what was missing before it, and in front of what comes next.
            let inner = had.start + AHEAD..had.end.saturating_sub(4096);
            assert_eq!(overlap(&read, &inner), 0, "{read:?} is in {had:?}");
            again += overlap(&read, had);
        }
    }
    assert!(again <= AHEAD * had.len() as u64, "{again} of {had_bytes}");
    drop(failing);
    let map = scratch.path("x.img.mapfile");
    assert_eq!(listed_as(&map, "-"), 8);
    assert_eq!(listed_as(&map, "/*"), 0);
    let mut expected = fs::read(&whole).unwrap();
    let found = fs::read(&image).unwrap();
    let lost: Vec<_> = (0..found.len())
        .filter(|&at| found[at] != expected[at])
        .collect();
    let (first, last) = (lost[0] / 4096 * 4096, lost[lost.len() - 1]);
    assert!(last < first + 4096);
    expected[first..first + 4096].fill(0);
    assert!(found == expected);

    // The card is put into a better reader.
    let done = finish(&card, &image);
    assert_eq!(done.status.code(), Some(0));
    assert!(fs::read(&image).unwrap() == fs::read(&whole).unwrap());
    scratch.expect(&[
        "card.img",
        "failing.img",
        "whole.img",
        "whole.img.bmap",
        "x.img",
        "x.img.bmap",
    ]);
}

/// Runs a capture with --resume that must be refused in one line.
fn refused(source: &Path, image: &Path, more: &[&str], code: i32, parts: &[&str]) {
    let done = pishrink()
        .args(["capture", "--resume"])
        .args(more)
        .args([source, image])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(code), "{said}");
    let lines: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("pishrink: "))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {said}");
    }
}

#[test]
fn what_nobody_can_go_on_with_is_refused() {
    let scratch = Scratch::new("refused");
    let card = cards::mbr(&scratch);
    let image = scratch.path("x.img");
    for name in ["x.img.xz", "x.img.zst", "x.img.gz"] {
        let parts = [
            "--resume needs a raw image",
            "cannot be changed",
            "capture to .img",
        ];
        refused(&card, &scratch.path(name), &[], 2, &parts);
    }
    let parts = ["standard output is gone", "name an .img file"];
    refused(&card, Path::new("-"), &[], 2, &parts);
    scratch.expect(&["card.img"]);

    // A capture that lost something leaves a map.
    let root = cards::partition(&card, 2).start;
    let at = format!("{}?offset={root}", card.display());
    let block = run("debugfs", ["-R", "bmap /tail 8", &at]);
    let start = (root + block.trim().parse::<u64>().unwrap() * BLOCK) / 4096 * 4096;
    let failing = Failing::new(&scratch, &card, &(start..start + 4096));
    assert_eq!(finish(&failing.mounted, &image).status.code(), Some(6));
    drop(failing);
    fs::remove_file(scratch.path("failing.img")).unwrap();
    let names = ["card.img", "x.img", "x.img.bmap", "x.img.mapfile"];
    scratch.expect(&names);
    let map = scratch.path("x.img.mapfile");
    let text = fs::read_to_string(&map).unwrap();

    // Other options; a map of something else, of ddrescue's own, and none at all.
    let parts = ["x.img.mapfile is about another capture", "--force"];
    refused(&card, &image, &["--headroom", "1M"], 5, &parts);
    let other = text.replace("# Plan: ", "# Plan: 0");
    fs::write(&map, other).unwrap();
    refused(&card, &image, &[], 5, &parts);
    fs::write(&map, text.replace("# Plan: ", "# ")).unwrap();
    refused(
        &card,
        &image,
        &[],
        5,
        &["does not tell what the image was made of", "--force"],
    );
    fs::write(&map, "no map").unwrap();
    refused(
        &card,
        &image,
        &[],
        5,
        &["does not tell what the image was made of"],
    );
    fs::write(&map, "0x0 + 1\nnonsense\n").unwrap();
    refused(&card, &image, &[], 3, &["line 2 of the map file"]);
    fs::write(&map, [0xff; 100]).unwrap();
    refused(&card, &image, &[], 3, &["is not a map file"]);
    fs::remove_file(&map).unwrap();
    refused(&card, &image, &[], 5, &["x.img is complete", "--force"]);
    fs::write(&map, &text).unwrap();

    // A card that was written meanwhile: a file on its ext4, and one on its FAT.
    let sound = fs::read(&card).unwrap();
    let parts = [
        "x.img.mapfile is about another capture",
        "the card, its metadata or the options",
    ];
    let note = scratch.path("note.part");
    fs::write(&note, "written meanwhile").unwrap();
    let request = format!("write {} note", note.display());
    run("debugfs", ["-w", "-R", &request, &at]);
    refused(&card, &image, &[], 5, &parts);
    fs::write(&card, &sound).unwrap();
    let boot = cards::partition(&card, 1).start;
    let disk = format!("{}@@{boot}", card.display());
    let note = note.to_str().unwrap();
    run("mcopy", ["-o", "-i", &disk, note, "::cmdline.txt"]);
    refused(&card, &image, &[], 5, &parts);
    fs::write(&card, &sound).unwrap();
    scratch.expect(&names);
    let done = finish(&card, &image);
    assert_eq!(done.status.code(), Some(0));
    scratch.expect(&names[..3]);
}

/// A disk that has no room for one file more.
#[test]
fn no_room_for_the_map_is_told_and_costs_nothing_that_was_read() {
    let scratch = Scratch::new("full-map");
    let card = film_card(&scratch);
    let block = run("debugfs", ["-R", "bmap film 1000", card.to_str().unwrap()]);
    let start = block.trim().parse::<u64>().unwrap() * BLOCK / 4096 * 4096;
    let failing = Failing::new(&scratch, &card, &(start..start + 4096));
    let source = failing.mounted.as_path();
    let said = |done: &Output| {
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("pishrink: "))
            .collect();
        assert_eq!((done.status.code(), lines.len()), (Some(1), 1), "{text}");
        lines[0].to_owned()
    };
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // The folder counts as a file of its own. What cannot be gone on with is no use to anybody.
    let disk = scratch.tmpfs("64m,nr_inodes=2");
    let image = disk.path().join("x.img");
    let line = said(&finish(source, &image));
    assert!(
        line.contains("x.img.partial.mapfile") && line.contains("No space left"),
        "{line}"
    );
    assert!(names(disk.path()).is_empty(), "{:?}", names(disk.path()));
    let done = pishrink()
        .args(["capture", "--no-bmap"])
        .args([source, &image])
        .output();
    let line = said(&done.unwrap());
    assert!(
        line.contains("x.img is whole") && line.contains("x.img.mapfile"),
        "{line}"
    );
    assert_eq!(names(disk.path()), ["x.img"]);
    fs::remove_file(&image).unwrap();
    // At the end, what was read is kept.
    let more = |inodes: u32| {
        let options = format!("remount,nr_inodes={inodes}");
        run("mount", [Path::new("-o"), Path::new(&options), disk.path()]);
    };
    more(4);
    let line = said(&finish(source, &image));
    assert!(
        line.contains("x.img.mapfile") && line.contains("goes on from there"),
        "{line}"
    );
    assert_eq!(
        names(disk.path()),
        ["x.img.partial", "x.img.partial.mapfile"]
    );
    more(10);
    assert_eq!(finish(source, &image).status.code(), Some(6));
    assert_eq!(names(disk.path()), ["x.img", "x.img.bmap", "x.img.mapfile"]);
}
