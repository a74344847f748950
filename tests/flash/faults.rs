//! Runs that are killed, and a card that misbehaves behind a file system of the test's own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::tools::*;

#[test]
fn killed_at_any_moment_the_card_is_old_blank_or_complete() {
    let scratch = Scratch::new();
    let image = pi_image(&scratch, "x.img");
    let new = {
        // No zeros, so that all of it has to be written.
        let mut bytes = fs::read(&image).unwrap();
        let noise = noise(20 * MIB);
        bytes[40 * MIB as usize..60 * MIB as usize].copy_from_slice(&noise);
        fs::write(&image, &bytes).unwrap();
        bytes
    };
    let card = scratch.path("card");
    let old = noise(64 * MIB);
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

/// A misbehaving card, mounted.
struct BadCard {
    server: Child,
    folder: PathBuf,
}

impl BadCard {
    fn mount(scratch: &Scratch, name: &str, len: u64, faults: &[&str]) -> Self {
        let (folder, backing) = (
            scratch.path(name),
            scratch.card(&format!("{name}.bin"), len),
        );
        fs::create_dir(&folder).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flash/badcard.py");
        let mut server = Command::new("python3")
            .args([script, text(&folder), text(&backing)])
            .args(faults)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = server.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "FUSE is needed");
        Self { server, folder }
    }

    fn card(&self) -> PathBuf {
        self.folder.join("card")
    }
}

impl Drop for BadCard {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The image of [`pi_image`], with noise from 30 to 60 MiB, so that this is written whole.
fn noisy_image(scratch: &Scratch) -> PathBuf {
    let image = pi_image(scratch, "x.img");
    let mut bytes = fs::read(&image).unwrap();
    bytes[30 * MIB as usize..60 * MIB as usize].copy_from_slice(&noise(30 * MIB));
    fs::write(&image, bytes).unwrap();
    image
}

#[test]
fn a_misbehaving_card_ends_in_the_right_repair_or_the_right_message() {
    let scratch = Scratch::new();
    let image = noisy_image(&scratch);
    let place = 40 * MIB + 5000;
    let block = 40 * MIB + 4096;
    let at = |fault: &str| format!("{fault}={place}");
    let cases = [
        ("short", "short".to_owned(), 0, ""),
        ("flipped-once", at("flip-once"), 0, ""),
        (
            "flipped",
            at("flip"),
            4,
            "4096 bytes at byte 41947136 has a flipped bit",
        ),
        (
            "bad-write",
            at("bad-write"),
            4,
            "4096 bytes at byte 41947136",
        ),
        (
            "bad-read",
            at("bad-read"),
            4,
            "4096 bytes at byte 41947136 cannot be read",
        ),
        ("fake", format!("wrap={}", 40 * MIB), 4, "a counterfeit"),
        ("gone", format!("gone={}", 30 * MIB), 1, "No such device"),
    ];
    assert_eq!(block, 41_947_136);
    for (name, fault, expected, words) in cases {
        let bad = BadCard::mount(&scratch, name, 80 * MIB, &[&fault]);
        let card = bad.card();
        let arguments = [
            "flash",
            text(&image),
            text(&card),
            "--yes",
            "--expand",
            "none",
        ];
        let output = pishrink(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{name}: {errors}");
        assert!(errors.contains(words), "{name}: {errors}");
        let medium = scratch.path(&format!("{name}.bin"));
        if expected == 0 {
            assert!(
                read(&medium, 0, 64 * MIB) == fs::read(&image).unwrap(),
                "{name}"
            );
            let rewritten = errors.contains("writing them again");
            assert_eq!(rewritten, name == "flipped-once", "{errors}");
        } else {
            assert!(
                read(&medium, 0, 4096).iter().all(|&byte| byte == 0),
                "{name}"
            );
        }
    }
}

#[test]
fn counterfeit_capacity_is_found_before_anything_is_written() {
    let scratch = Scratch::new();
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
    let scratch = Scratch::new();
    let image = noisy_image(&scratch);
    let fault = format!("stall={},10", 40 * MIB);
    let bad = BadCard::mount(&scratch, "stalled", 80 * MIB, &[&fault]);
    let output = pishrink(&["flash", text(&image), text(&bad.card()), "--yes"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("has not answered for"), "{errors}");
}
