//! Runs that are killed, and a card that misbehaves behind a file system of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::tools::*;

#[test]
fn killed_at_any_moment_the_card_is_old_blank_or_complete() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let new = {
        // No zeros, so that all of it has to be written.
        let mut bytes = fs::read(&image).unwrap();
        let noise = noise(1, 20 * MIB);
        bytes[40 * MIB as usize..60 * MIB as usize].copy_from_slice(&noise);
        fs::write(&image, &bytes).unwrap();
        bytes
    };
    let card = scratch.path("card");
    let old = noise(1, 64 * MIB);
    let mut outcomes = [0; 3];
    let mut limit = 200_u64;
    for round in 0..50_u64 {
        fs::write(&card, &old).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pishrink"))
            .args([
                "flash",
                text(&image),
                text(&card),
                "--yes",
                "--overwrite",
                "--expand",
                "none",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the run, in no order.
        std::thread::sleep(Duration::from_millis(round * 37 % 50 * limit / 50));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = fs::read(&card).unwrap();
        let first = &now[..4096];
        if first == &old[..4096] {
            assert!(now == old, "written before it was blanked");
            outcomes[0] += 1;
        } else if first.iter().all(|&byte| byte == 0) {
            outcomes[1] += 1;
        } else {
            assert!(now == new, "published before it was complete");
            outcomes[2] += 1;
            limit = (limit * 9 / 10).max(30);
        }
        if outcomes[2] == 0 && round % 10 == 9 {
            limit *= 2;
        }
    }
    // All three were met, or the moments prove nothing.
    assert!(outcomes.iter().all(|&count| count > 0), "{outcomes:?}");
}

/// The image of [`pi_image`], with noise from 30 to 60 MiB, so that this is written whole.
fn noisy_image(scratch: &Scratch) -> PathBuf {
    let image = pi_image(scratch, "x.img");
    let mut bytes = fs::read(&image).unwrap();
    bytes[30 * MIB as usize..60 * MIB as usize].copy_from_slice(&noise(1, 30 * MIB));
    fs::write(&image, bytes).unwrap();
    image
}

/// A place that the tests have misbehave, within the noise, and its block.
const PLACE: u64 = 40 * MIB + 5000;
const BLOCK: u64 = 41_947_136;

#[test]
fn a_misbehaving_card_ends_in_the_right_repair_or_the_right_message() {
    let scratch = Scratch::new("flash");
    let image = noisy_image(&scratch);
    let at = |fault: &str| format!("{fault}={PLACE}");
    let first = |fault: &str| format!("{fault}=100");
    let block = |what: &str| format!("4096 bytes at byte {BLOCK}{what}");
    let head = "the first 1048576 bytes cannot be read back".to_owned();
    let cases = [
        ("short", "short".to_owned(), 0, String::new()),
        ("write-fails-once", at("bad-write-once"), 0, String::new()),
        ("read-fails-once", at("bad-read-once"), 0, String::new()),
        ("flipped-once", at("flip-once"), 0, String::new()),
        ("flipped", at("flip"), 4, block(" has a flipped bit")),
        ("bad-write", at("bad-write"), 4, block("")),
        ("bad-read", at("bad-read"), 4, block(" cannot be read")),
        ("first-flipped", first("flip"), 4, head.clone()),
        ("head-unreadable", "bad-read=500000".to_owned(), 4, head),
        (
            "fake",
            format!("wrap={}", 40 * MIB),
            4,
            "a counterfeit".to_owned(),
        ),
        (
            "gone",
            format!("gone={}", 30 * MIB),
            1,
            "No such device".to_owned(),
        ),
    ];
    for (name, fault, expected, words) in cases {
        let bad = BadCard::mount(&scratch, name, 80 * MIB, &[&fault]);
        let card = bad.card();
        let arguments = [
            "flash",
            text(&image),
            text(&card),
            "--yes",
            "--overwrite",
            "--expand",
            "none",
        ];
        let output = pishrink(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{name}: {errors}");
        assert!(errors.contains(&words), "{name}: {errors}");
        let medium = scratch.path(&format!("{name}.bin"));
        if expected == 0 {
            assert!(
                read(&medium, 0, 64 * MIB) == fs::read(&image).unwrap(),
                "{name}"
            );
            let rewritten = errors.contains("writing them again");
            assert_eq!(rewritten, name == "flipped-once", "{errors}");
        } else {
            assert!(looks_empty(&medium, &fault), "{name}");
        }
    }
}

/// Is the first block zeros, but for the bit that a card flips there?
fn looks_empty(medium: &Path, fault: &str) -> bool {
    let mut first = read(medium, 0, 4096);
    if fault == "flip=100" {
        first[100] ^= 4;
    }
    first.iter().all(|&byte| byte == 0)
}

#[test]
fn a_card_that_takes_no_writes_is_left_as_it_was() {
    let scratch = Scratch::new("flash");
    let image = noisy_image(&scratch);
    for (name, fault, words) in [
        (
            "first",
            "bad-write=100",
            "cannot write 4096 bytes at byte 0",
        ),
        ("sync", "bad-sync", "cannot write out"),
    ] {
        let bad = BadCard::mount(&scratch, name, 80 * MIB, &[fault]);
        let medium = scratch.path(&format!("{name}.bin"));
        let before = fs::read(&medium).unwrap();
        let (code, errors) = refusal(&[
            "flash",
            text(&image),
            text(&bad.card()),
            "--yes",
            "--overwrite",
        ]);
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert!(fs::read(&medium).unwrap()[4096..] == before[4096..]);
    }
}

/// The same behind the kernel's block layer, which cuts and merges requests.
#[test]
fn a_misbehaving_block_device() {
    let scratch = Scratch::new("flash");
    let image = noisy_image(&scratch);
    let at = |fault: &str| format!("{fault}={PLACE}");
    for (name, fault, expected, words) in [
        ("short", "short".to_owned(), 0, ""),
        ("flipped-once", at("flip-once"), 0, "writing them again"),
        ("flipped", at("flip"), 4, "has a flipped bit"),
        ("bad-write", at("bad-write"), 4, "cannot be read back"),
        ("bad-read", at("bad-read"), 4, "cannot be read"),
        (
            "gone",
            format!("gone={}", 30 * MIB),
            1,
            "the device is gone",
        ),
    ] {
        let bad = BadCard::mount(&scratch, name, 80 * MIB, &[&fault]);
        let card = Loop::attach_plainly(&bad.card());
        let device = text(&card.0);
        let arguments = ["flash", text(&image), device, "--yes", "--allow-any-device"];
        let output = pishrink(&[&arguments[..], &["--expand", "none"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{name}: {errors}");
        assert!(errors.contains(words), "{name}: {errors}");
        drop(card);
        let medium = scratch.path(&format!("{name}.bin"));
        match expected {
            0 => assert!(
                read(&medium, 0, 64 * MIB) == fs::read(&image).unwrap(),
                "{name}"
            ),
            _ => assert!(looks_empty(&medium, &fault), "{name}"),
        }
    }
}

#[test]
fn of_several_cards_the_good_ones_are_finished() {
    let scratch = Scratch::new("flash");
    let image = noisy_image(&scratch);
    let gone = BadCard::mount(&scratch, "gone", 80 * MIB, &[&format!("gone={}", 30 * MIB)]);
    let flips = BadCard::mount(&scratch, "flips", 80 * MIB, &[&format!("flip={PLACE}")]);
    let stalls = format!("stall={},3", 40 * MIB);
    let slow = BadCard::mount(&scratch, "slow", 80 * MIB, &[&stalls]);
    let cards = [
        used_card(&scratch, "a", 80 * MIB),
        gone.card(),
        flips.card(),
        used_card(&scratch, "small", 20 * MIB),
        slow.card(),
        used_card(&scratch, "b", 100 * MIB),
    ];
    let mut arguments = vec!["flash", text(&image)];
    arguments.extend(cards.iter().map(|card| text(card)));
    arguments.extend(["--yes", "--overwrite"]);
    let (code, said) = json(&arguments);
    // That of the first card that failed.
    assert_eq!(code, 1, "{said:#}");
    let field = |name: &str| -> Vec<_> {
        let cards = said["cards"].as_array().unwrap();
        cards.iter().map(|card| card[name].clone()).collect()
    };
    let good = [true, false, false, false, true, true];
    assert_eq!(field("complete"), good);
    assert_eq!(field("verified"), good);
    let kinds: Vec<_> = field("error").iter().map(|e| e["kind"].clone()).collect();
    let expected = [
        None,
        Some("io"),
        Some("verify"),
        Some("nospace"),
        None,
        None,
    ];
    assert_eq!(kinds, expected.map(serde_json::Value::from));
    for (card, len) in [("a", 71), ("slow.bin", 71), ("b", 91)] {
        let card = scratch.path(card);
        assert_clean(&card, PI_ROOT);
        assert_eq!(ext_len(&card, PI_ROOT), len * MIB);
    }
    for card in ["gone.bin", "flips.bin"] {
        assert!(looks_empty(&scratch.path(card), ""), "{card}");
    }
    let small = scratch.path("small");
    assert!(read(&small, 0, 4096).iter().all(|&byte| byte == 0xa5));

    // What a person sees: a line for each, and each error.
    let output = pishrink(&[
        "flash",
        text(&image),
        text(&cards[0]),
        text(&cards[3]),
        "--yes",
        "--overwrite",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let table = String::from_utf8_lossy(&output.stdout);
    let results: Vec<_> = table.lines().filter(|line| line.contains("good")).collect();
    assert_eq!(results.len(), 1, "{table}");
    assert!(table.contains("failed"), "{table}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("too small"), "{errors}");
}

#[test]
fn counterfeit_capacity_is_found_before_anything_is_written() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let fault = format!("wrap={}", 64 * MIB);
    let bad = BadCard::mount(&scratch, "fake", 128 * MIB, &[&fault]);
    let medium = scratch.path("fake.bin");
    let before = fs::read(&medium).unwrap();
    let card = Loop::attach_plainly(&bad.card());
    let arguments = [
        "flash",
        text(&image),
        text(&card.0),
        "--yes",
        "--allow-any-device",
    ];
    let (code, errors) = refusal(&arguments);
    assert_eq!(code, 4, "{errors}");
    assert!(
        errors.contains("claims 134 MB but has at most 67.1 MB"),
        "{errors}"
    );
    drop(card);
    assert!(fs::read(&medium).unwrap() == before);
}

#[test]
fn a_stalled_card_is_named() {
    let scratch = Scratch::new("flash");
    let image = noisy_image(&scratch);
    let fault = format!("stall={},10", 40 * MIB);
    let bad = BadCard::mount(&scratch, "stalled", 80 * MIB, &[&fault]);
    let output = pishrink(&[
        "flash",
        text(&image),
        text(&bad.card()),
        "--yes",
        "--overwrite",
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("has not answered for"), "{errors}");
}
