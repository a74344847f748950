//! `pishrink capture` and `inspect` from outside: small cards made by the usual tools, judged by
//! the usual tools. A tool that is missing fails the test.

mod cards;
#[cfg(target_os = "linux")]
#[path = "capture/failing.rs"]
mod failing;
#[cfg(target_os = "linux")]
#[path = "capture/resume.rs"]
mod resume;
#[path = "common/scratch.rs"]
mod scratch;
#[cfg(target_os = "linux")]
#[path = "capture/unsure.rs"]
mod unsure;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cards::{Scratch, pishrink, run};
use serde_json::Value;

/// Captures `card` and holds the image against it in every way the tools can.
fn judge(scratch: &Scratch, card: &Path, options: &[&str]) -> Value {
    let before = run("sha256sum", [card]);
    let image = scratch.path("out.img");
    let done = pishrink()
        .args(["capture", "--json", "--force"])
        .args(options)
        .args([card, &image])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{stderr}");
    assert_eq!(run("sha256sum", [card]), before, "the source changed");
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    let digest = run("sha256sum", [&image]);
    assert_eq!(told["file_sha256"], digest[..64]);
    assert_eq!(told["content_sha256"], digest[..64]);
    assert_eq!(fs::metadata(&image).unwrap().len(), told["file_bytes"]);
    cards::check_table(&image);
    cards::compare(scratch, card, &image);
    // What a card gets by the block map is the image.
    let copy = scratch.path("copy.img");
    let _ = fs::remove_file(&copy);
    run(
        "bmaptool",
        [Path::new("-q"), Path::new("copy"), &image, &copy],
    );
    run("cmp", [&image, &copy]);
    told
}

#[test]
fn mbr_with_a_primary_root() {
    let scratch = Scratch::new("mbr");
    let card = cards::mbr(&scratch);
    let told = judge(&scratch, &card, &["--headroom", "0"]);
    let image = told["plan"]["image_bytes"].as_u64().unwrap();
    assert!(image < 40 << 20, "{image}");
    // The file is sparse: FAT's free space is a hole.
    let blocks = run("stat", [Path::new("-c%b"), &scratch.path("out.img")]);
    assert!(blocks.trim().parse::<u64>().unwrap() * 512 < image);
    let told = judge(&scratch, &card, &["--headroom", "8MiB"]);
    let roomy = told["plan"]["image_bytes"].as_u64().unwrap();
    assert!((image + (7 << 20)..=image + (9 << 20)).contains(&roomy));
    let why = |told: &serde_json::Value| {
        let notes = told["plan"]["notes"].as_array().unwrap();
        let found = notes.iter().map(|note| note.as_str().unwrap());
        found
            .map(str::to_owned)
            .find(|note| note.contains("partition 2 "))
    };
    assert_eq!(why(&told), None);
    let told = judge(&scratch, &card, &["--headroom", "1TB"]);
    assert_eq!(
        why(&told).unwrap(),
        "partition 2 keeps its size: over its minimum it has less than the 1.00 TB of --headroom"
    );
    let told = judge(&scratch, &card, &["--no-shrink"]);
    assert_eq!(why(&told), None);
    assert_eq!(
        told["plan"]["image_bytes"],
        fs::metadata(&card).unwrap().len()
    );
}

#[test]
fn mbr_with_a_logical_root() {
    let scratch = Scratch::new("logical");
    let card = cards::logical(&scratch);
    let told = judge(&scratch, &card, &["--headroom", "0"]);
    assert!(told["plan"]["image_bytes"].as_u64().unwrap() < 48 << 20);
    judge(&scratch, &card, &["--no-shrink"]);
}

#[test]
fn gpt() {
    let scratch = Scratch::new("gpt");
    let card = cards::gpt(&scratch);
    let told = judge(&scratch, &card, &["--headroom", "0"]);
    assert!(told["plan"]["image_bytes"].as_u64().unwrap() < 40 << 20);
    judge(&scratch, &card, &["--no-shrink"]);
}

#[test]
fn a_filesystem_without_a_table() {
    let scratch = Scratch::new("bare");
    let card = cards::bare(&scratch);
    let told = judge(&scratch, &card, &["--headroom", "0"]);
    assert!(told["plan"]["image_bytes"].as_u64().unwrap() < 24 << 20);
    judge(&scratch, &card, &["--no-shrink"]);
}

#[test]
fn swap_and_fat_behind_the_root_move_down() {
    for (name, card) in [
        ("swap-last", cards::swap_last as fn(&Scratch) -> _),
        ("fat-last", cards::fat_last),
    ] {
        let scratch = Scratch::new(name);
        let card = card(&scratch);
        let told = judge(&scratch, &card, &["--headroom", "0"]);
        assert!(told["plan"]["image_bytes"].as_u64().unwrap() < 64 << 20);
        let parts = told["plan"]["partitions"].as_array().unwrap();
        let last = parts.last().unwrap();
        let (old, new) = (&last["range"]["start"], &last["new_range"]["start"]);
        assert!(new.as_u64().unwrap() < old.as_u64().unwrap());
        assert_eq!(new.as_u64().unwrap() % (1 << 20), 0);
    }
}

#[test]
fn a_card_pulled_while_mounted() {
    let scratch = Scratch::new("dirty");
    let card = cards::dirty(&scratch);
    let told = judge_dirty(&scratch, &card);
    let part = &told["plan"]["partitions"][0];
    assert_eq!(part["clean"], false);
    assert!(part["transactions_replayed"].as_u64().unwrap() > 0);
}

/// The kernel, on a copy, is the judge of what a replay gives.
fn judge_dirty(scratch: &Scratch, card: &Path) -> Value {
    let recovered = scratch.path("recovered.img");
    fs::copy(card, &recovered).unwrap();
    let mounted = scratch.mount(&recovered, "loop");
    drop(mounted);
    let image = scratch.path("out.img");
    let done = pishrink()
        .args(["capture", "--json", "--headroom", "0"])
        .args([card, &image])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{stderr}");
    run("e2fsck", [Path::new("-fn"), &image]);
    cards::compare(scratch, &recovered, &image);
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn packed_images_have_the_same_contents() {
    let scratch = Scratch::new("packed");
    let card = cards::mbr(&scratch);
    let raw = scratch.path("raw.img");
    let status = pishrink().arg("capture").args([&card, &raw]).status();
    assert!(status.unwrap().success());
    for (name, tool) in [
        ("x.img.xz", "xz"),
        ("x.img.gz", "gzip"),
        ("x.img.zst", "zstd"),
    ] {
        let image = scratch.path(name);
        let done = pishrink()
            .args(["capture", "--json", "--level", "1"])
            .args([&card, &image])
            .output()
            .unwrap();
        assert!(done.status.success(), "{name}");
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(told["file_sha256"], run("sha256sum", [&image])[..64]);
        assert_eq!(told["content_sha256"], run("sha256sum", [&raw])[..64]);
        let script = format!("{tool} -dc {} | cmp - {}", image.display(), raw.display());
        run("sh", ["-c", &script]);
        // bmaptool finds the map by the image's name.
        let copy = scratch.path("copy.img");
        let _ = fs::remove_file(&copy);
        run(
            "bmaptool",
            [Path::new("-q"), Path::new("copy"), &image, &copy],
        );
        run("cmp", [&raw, &copy]);
        // And as a source it is unpacked first.
        let again = scratch.path("again.img");
        let status = pishrink()
            .args(["capture", "--quiet", "--force"])
            .args([&image, &again])
            .status();
        assert!(status.unwrap().success(), "{name}");
        cards::compare(&scratch, &card, &again);
        let temporary = scratch.path("again.img.source.partial");
        assert!(!temporary.exists());
    }
    let script = format!(
        "{} capture {} - | cmp - {}",
        env!("CARGO_BIN_EXE_pishrink"),
        card.display(),
        raw.display()
    );
    run("sh", ["-c", &script]);
}

#[test]
fn refuses_with_the_documented_codes() {
    let scratch = Scratch::new("codes");
    let card = cards::bare(&scratch);
    let taken = scratch.path("taken.img");
    fs::write(&taken, "mine").unwrap();
    let (card_name, taken_name) = (card.to_str().unwrap(), taken.to_str().unwrap());
    let new_name = scratch.path("new.img");
    let new_name = new_name.to_str().unwrap();
    let folder = scratch.path("");
    let folder = folder.to_str().unwrap();
    for (code, words, expected) in [
        (5, vec![card_name, taken_name], "exists already"),
        (5, vec![card_name, card_name, "--force"], "source itself"),
        (5, vec![card_name, folder, "--force"], "not a file"),
        (2, vec!["-", new_name], "standard input"),
        (2, vec![card_name, new_name, "--format", "bz2"], "bz2"),
        (2, vec![card_name, new_name, "--level", "3"], "level"),
        (2, vec![card_name, new_name, "--force-raw"], "no-shrink"),
        (2, vec![folder, new_name], ""),
        (1, vec!["/nowhere/at/all", new_name], "No such file"),
        (1, vec![card_name, "/nowhere/at/all.img"], "No such file"),
    ] {
        let done = pishrink().arg("capture").args(&words).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {said}");
        assert!(!Path::new(new_name).exists());
    }
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    scratch.expect(&["card.img", "taken.img"]);
    // A dry run writes nothing either.
    let done = pishrink()
        .args(["capture", "--dry-run", card_name, new_name])
        .output()
        .unwrap();
    assert!(done.status.success());
    assert!(String::from_utf8_lossy(&done.stdout).contains("->"));
    scratch.expect(&["card.img", "taken.img"]);
    // An old map does not stay beside a new image.
    let map = scratch.path("taken.img.bmap");
    fs::write(&map, "old").unwrap();
    let status = pishrink()
        .args([
            "capture",
            "--quiet",
            "--force",
            "--no-bmap",
            card_name,
            taken_name,
        ])
        .status();
    assert!(status.unwrap().success());
    scratch.expect(&["card.img", "taken.img"]);
}

#[test]
fn damage_is_refused_and_can_be_saved_whole() {
    let scratch = Scratch::new("damaged");
    let card = cards::mbr(&scratch);
    cards::damage_root(&card);
    let image = scratch.path("out.img");
    let done = pishrink()
        .args(["capture", "--json"])
        .args([&card, &image])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{said}");
    assert!(
        said.contains("partition 2") && said.contains("e2fsck"),
        "{said}"
    );
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(told["error"]["code"], 3);
    scratch.expect(&["card.img"]);
    let status = pishrink()
        .args(["capture", "--quiet", "--no-shrink", "--force-raw"])
        .args([&card, &image])
        .status();
    assert!(status.unwrap().success());
    let script = format!(
        "cmp {} {} -i {}",
        card.display(),
        image.display(),
        cards::partition(&card, 2).start
    );
    run("sh", ["-c", &script]);
    // Looking at it works, and says so.
    let done = pishrink().arg("inspect").arg(&card).output().unwrap();
    assert_eq!(done.status.code(), Some(3));
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(
        text.contains("NOT SOUND") && text.contains("would refuse"),
        "{text}"
    );
}

#[test]
fn a_card_with_a_damaged_table_can_be_saved_whole() {
    let scratch = Scratch::new("damaged-table");
    let (card, image) = (cards::mbr(&scratch), scratch.path("out.img"));
    let mut bytes = fs::read(&card).unwrap();
    // The first partition is far longer than the card.
    bytes[446 + 14] = 0xFF;
    fs::write(&card, bytes).unwrap();
    let capture = |options: &[&str]| {
        let mut command = pishrink();
        let command = command.args(["capture"]).args(options);
        let done = command.args([&card, &image]).output().unwrap();
        (
            done.status.code(),
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )
    };
    let (code, said) = capture(&[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("ends at byte") && !image.exists(), "{said}");
    let (code, said) = capture(&["--quiet", "--no-shrink", "--force-raw"]);
    assert_eq!(code, Some(0), "{said}");
    run("cmp", [&card, &image]);
}

#[test]
fn a_stop_leaves_nothing_behind() {
    let scratch = Scratch::new("stopped");
    let card = cards::mbr(&scratch);
    let mut stopped = 0;
    for format in ["x.img", "x.img.xz"] {
        for wait in [0, 5, 20, 60, 150, 400] {
            let mut child = pishrink()
                .args(["capture", "--no-shrink", "--force"])
                .args([&card, &scratch.path(format)])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(wait));
            run("kill", ["-INT", &child.id().to_string()]);
            let status = child.wait().unwrap();
            match status.code() {
                // It was faster than the signal.
                Some(0) => {
                    let _ = fs::remove_file(scratch.path(format));
                    let _ = fs::remove_file(scratch.path(&format!("{format}.bmap")));
                }
                // The signal came before it was taken over, and so before any file was made.
                None => {}
                code => {
                    assert_eq!(code, Some(130));
                    stopped += 1;
                }
            }
            scratch.expect(&["card.img"]);
        }
    }
    assert!(stopped > 0);
}

#[test]
fn a_full_disk_is_seen_before_the_work_or_leaves_nothing() {
    let scratch = Scratch::new("full");
    let card = cards::mbr(&scratch);
    let small = scratch.tmpfs("2m");
    for (name, expected) in [("x.img", "free"), ("x.img.zst", "")] {
        let done = pishrink()
            .arg("capture")
            .args([&card, &small.path().join(name)])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0);
    }
    // A reader that goes away is an error, not a crash.
    let script = format!(
        "{} capture {} - 2>{}/said | head -c 1000 >/dev/null",
        env!("CARGO_BIN_EXE_pishrink"),
        card.display(),
        small.path().display()
    );
    run("sh", ["-c", &script]);
    let said = fs::read_to_string(small.path().join("said")).unwrap();
    assert!(said.contains("pishrink: writing the image"), "{said}");
}

#[test]
fn inspect_tells_how_a_filesystem_was_left() {
    let scratch = Scratch::new("left");
    let card = scratch.path("card.img");
    let make = format!("truncate -s 4M {0}; mke2fs -qF {0}", card.display());
    run("sh", ["-c", &make]);
    for (state, tells) in [
        (1, " used, clean"),
        (0, " used, not cleanly unmounted"),
        (3, "marked it as having errors"),
    ] {
        let request = format!("ssv state {state}");
        run("debugfs", ["-w", "-R", &request, card.to_str().unwrap()]);
        let done = pishrink().arg("inspect").arg(&card).output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && text.contains(tells), "{text}");
    }
}

#[test]
fn inspect_tells_what_is_there() {
    let scratch = Scratch::new("inspect");
    let card = cards::mbr(&scratch);
    let done = pishrink().arg("inspect").arg(&card).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}");
    for part in [
        "MBR",
        "FAT16 \"BOOT\"",
        "ext4 \"rootfs\"",
        "metadata_csum",
        "clean",
        "system: Test OS 12, hostname octopi",
        "cmdline.txt: console=serial0",
        "capture would make: 134 MB ->",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let done = pishrink()
        .args(["inspect", "--json"])
        .arg(&card)
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(told["system"]["name"], "Test OS 12");
    assert_eq!(told["plan"]["partitions"].as_array().unwrap().len(), 2);
    let shown: u64 = told["picture"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell["total"].as_u64().unwrap())
        .sum();
    assert_eq!(shown, fs::metadata(&card).unwrap().len());
    // An empty source, and one of zeros.
    let empty = scratch.path("empty");
    fs::write(&empty, "").unwrap();
    let status = pishrink()
        .args(["-q", "inspect"])
        .arg(&empty)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(3));
    let zeros = scratch.path("zeros");
    fs::write(&zeros, [0; 5000]).unwrap();
    let status = pishrink()
        .args(["-q", "inspect"])
        .arg(&zeros)
        .status()
        .unwrap();
    // Nothing in it is known: what capture would say of it.
    assert_eq!(status.code(), Some(3));
}

/// A card pulled while it was written to: what waits in its journal is told, also what only fast
/// commits hold.
#[test]
fn inspect_tells_what_the_journal_holds() {
    let scratch = Scratch::new("pending");
    let packed = fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/fast-commit.img.zst"
    ));
    let card = scratch.path("card.img");
    fs::write(&card, zstd::decode_all(&packed.unwrap()[..]).unwrap()).unwrap();
    let done = pishrink().arg("inspect").arg(&card).output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}");
    let pending = "8 fast commits in the journal)";
    assert!(text.contains(pending), "{text}");
}
