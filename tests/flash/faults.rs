//! Runs that are killed, and a card that misbehaves behind a file system of the test's own.

use std::fs;
use std::process::{Command, Stdio};
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
