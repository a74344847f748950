//! Cards: files, loop devices, several at once, too small ones, refused ones.

use std::fs;
use std::process::Command;

use super::tools::*;

#[test]
fn a_loop_device_is_flashed_grown_and_mounts() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let file = used_card(&scratch, "card", 300 * MIB);
    let card = Loop::attach(&file);
    let said = flash(text(&image), &card.0, &["--allow-any-device"]);
    assert_eq!(said["verified"], true);
    assert_eq!(said["expansion"]["new_filesystem"], 291 * MIB);
    assert_clean(&card.0, PI_ROOT);
    card.show_partitions();
    let mount = scratch.path("mount");
    fs::create_dir(&mount).unwrap();
    shell(&format!(
        "mount {card}p2 {mount}; trap 'umount {mount}' EXIT
         cmp {mount}/folder/noise {tree}/folder/noise
         test $(df -B1 --output=size {mount} | tail -1) -gt 250000000
         dd if=/dev/urandom of={mount}/full bs=1M 2>/dev/null || true",
        card = card.0.display(),
        mount = text(&mount),
        tree = text(&scratch.path("tree")),
    ));
    assert_clean(&card.0, PI_ROOT);
}

#[test]
fn sizes_equal_barely_enough_and_too_small() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    for (size, root) in [
        (64 * MIB, 55 * MIB),
        (64 * MIB + 512, 55 * MIB),
        (64 * MIB + 4096, 55 * MIB + 4096),
        (65 * MIB, 56 * MIB),
    ] {
        let card = used_card(&scratch, "card", size);
        flash(text(&image), &card, &[]);
        assert_clean(&card, PI_ROOT);
        assert_eq!(ext_len(&card, PI_ROOT), root, "card of {size}");
    }
    for packing in ["xz -0", "gzip -1"] {
        tool(
            "bash",
            &["-c", &format!("{packing} -k -f {}", text(&image))],
        );
    }
    for name in ["x.img", "x.img.xz", "x.img.gz"] {
        let card = used_card(&scratch, "card", 63 * MIB);
        let before = fs::read(&card).unwrap();
        let image = scratch.path(name);
        let (code, errors) = refusal(&["flash", text(&image), text(&card), "--yes", "--overwrite"]);
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains(&(63 * MIB).to_string()), "{errors}");
        assert!(errors.contains(&(64 * MIB).to_string()), "{errors}");
        // gzip does not tell its length, but the partition table does.
        assert!(fs::read(&card).unwrap() == before, "{name}");
    }
}

#[test]
fn several_cards_each_with_its_own_end() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let cards = [
        used_card(&scratch, "a", 100 * MIB),
        used_card(&scratch, "b", 50 * MIB),
        used_card(&scratch, "c", 200 * MIB),
    ];
    let [a, b, c] = [text(&cards[0]), text(&cards[1]), text(&cards[2])];
    let (code, said) = json(&["flash", text(&image), a, b, c, "--yes", "--overwrite"]);
    assert_eq!(code, 1, "{said:#}");
    let complete: Vec<_> = (0..3)
        .map(|i| said["cards"][i]["complete"].clone())
        .collect();
    assert_eq!(complete, [true, false, true]);
    assert_eq!(said["cards"][1]["error"]["kind"], "nospace");
    assert_eq!(ext_len(&cards[0], PI_ROOT), 91 * MIB);
    assert_eq!(ext_len(&cards[2], PI_ROOT), 191 * MIB);
    for card in [0, 2] {
        assert_clean(&cards[card], PI_ROOT);
    }
    let (code, said) = json(&["flash", text(&image), a, c, "--yes", "--overwrite"]);
    assert_eq!(code, 0, "{said:#}");
    let (code, errors) = refusal(&["flash", text(&image), a, a, "--yes", "--overwrite"]);
    assert_eq!(code, 2, "{errors}");
}

#[test]
fn refuses_what_would_destroy_something() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let file = used_card(&scratch, "card", 80 * MIB);
    let before = fs::read(&file).unwrap();
    let card = Loop::attach(&file);
    let device = text(&card.0);
    for (arguments, words) in [
        (vec![text(&file), "--overwrite"], "--yes"),
        (vec![text(&image), "--yes"], "is the image itself"),
        (vec![device, "--yes"], "--allow-any-device"),
    ] {
        let (code, errors) = refusal(&[&["flash", text(&image)], &arguments[..]].concat());
        assert_eq!(code, 5, "{errors}");
        assert!(errors.contains(words), "{errors}");
    }
    assert!(fs::read(&file).unwrap() == before);
    let (code, _) = refusal(&[
        "flash",
        text(&image),
        "/nonexistent/card",
        "--yes",
        "--overwrite",
    ]);
    assert_ne!(code, 0);
    let (code, errors) = refusal(&["flash", text(&image), text(&file), "--card-size", "80MiB"]);
    assert_eq!(code, 5, "{errors}");
    assert!(fs::read(&file).unwrap() == before);
    // The partition of a disk, and a disk that is mounted and not removable.
    flash(text(&image), &card.0, &["--allow-any-device"]);
    card.show_partitions();
    let part = format!("{device}p2");
    let (code, errors) = refusal(&["flash", text(&image), &part, "--yes", "--allow-any-device"]);
    assert_eq!(code, 5, "{errors}");
    let mount = scratch.path("mount");
    fs::create_dir(&mount).unwrap();
    tool("mount", &[&part, text(&mount)]);
    let output = pishrink(&["flash", text(&image), device, "--yes", "--allow-any-device"]);
    let on_card = pishrink(&["expand", device, "--yes", "--allow-any-device"]);
    tool("umount", &[text(&mount)]);
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(on_card.status.code(), Some(5));
}

#[test]
fn without_verification_it_does_not_claim_any() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let card = used_card(&scratch, "card", 80 * MIB);
    let said = flash(text(&image), &card, &["--no-verify"]);
    assert_eq!(said["verified"], false);
    assert!(said["verification"].is_null());
    assert_clean(&card, PI_ROOT);
}

#[test]
fn wiping_leaves_nothing_behind() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let map = scratch.path("x.img.bmap");
    tool("bmaptool", &["create", "-o", text(&map), text(&image)]);
    let card = scratch.path("card");
    fs::write(&card, noise(1, 80 * MIB)).unwrap();
    let said = flash(text(&image), &card, &["--wipe", "--expand", "none"]);
    assert!(said["wiped_bytes"].as_u64().unwrap() > 40 * MIB);
    assert!(read(&card, 0, 64 * MIB) == fs::read(&image).unwrap());
    assert!(
        read(&card, 64 * MIB, 16 * MIB)
            .iter()
            .all(|&byte| byte == 0)
    );
}

/// What is read back comes from the medium, not from a cache.
#[test]
fn verification_reads_past_the_cache() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let card = used_card(&scratch, "card", 80 * MIB);
    let log = scratch.path("strace");
    let status = Command::new("strace")
        .args([
            "-f",
            "-e",
            "trace=openat,pread64,fadvise64",
            "-o",
            text(&log),
        ])
        .args([
            env!("CARGO_BIN_EXE_pishrink"),
            "flash",
            text(&image),
            text(&card),
        ])
        .args(["--yes", "--overwrite", "--quiet"])
        .status();
    let Ok(status) = status else {
        panic!("strace is needed");
    };
    assert!(status.success());
    let log = fs::read_to_string(log).unwrap();
    let opened = log
        .lines()
        .find(|line| line.contains("/card\"") && line.contains("O_RDWR"));
    assert!(opened.is_some_and(|line| line.contains("O_DIRECT")));
    assert!(log.contains("fadvise64") && log.contains("POSIX_FADV_DONTNEED"));
}
