//! Complaints about writing a card.

use std::fs;
use std::process::Command;

use super::tools::*;

/// 1: a shrunk image does not expand on today's systems (PS#339 #338 #313 #267 #250 #151 #6;
/// pi-gen#861 #853): it is expanded while it is flashed, whatever system is on it.
#[test]
fn c01_cards_are_expanded_when_they_are_written() {
    let scratch = Scratch::new("c01");
    let (card, image) = (scratch.card("card.img"), scratch.path("image.img"));
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    let target = scratch.blank("target", 200 * MIB);
    pishrink(&["flash", &image, &target, "--yes", "--overwrite"])
        .tells(&["ext4 to 200 MB", "good"]);
    shell(&format!("e2fsck -fn '{target}?offset={ROOT}'"));
    // Written by another tool, it takes one command.
    shell(&format!(
        "dd if={image} of={target} conv=notrunc bs=1M status=none"
    ));
    pishrink(&["expand", &target]).tells(&["partition 2: ext4 to 200 MB", "read back"]);
    shell(&format!("e2fsck -fn '{target}?offset={ROOT}'"));
    pishrink(&["expand", &target]).tells(&["partition 2: nothing to expand"]);
    // What cannot grow is told.
    let table =
        "start=2048,size=16384,type=c\\nstart=18432,size=81920,type=83\\nstart=106496,type=83\\n";
    let other = scratch.card_of("other.img", table, 40);
    patch(&other, 52 * MIB + 0x10040, b"_BHRfS_M");
    let said = pishrink(&["flash", &other, &target, "--yes", "--overwrite"]);
    said.tells(&[
        "partition to ",
        "btrfs is not a filesystem that grows here: only its partition does",
    ]);
}

/// 2: "verification failed", and no word on whose fault it is (rpi-imager#41 #212 #244 #323 #593
/// #626 #815 #856 #1077 #1455 #1721; etcher#1725 #1812 #4253 #4280).
#[test]
fn c02_a_failed_verification_says_where_how_and_whose_fault() {
    let scratch = Scratch::new("c02");
    let image = scratch.path("x.img");
    fs::write(&image, noise_disk(60 * MIB)).unwrap();
    let at = 40 * MIB + 5000;
    let place = format!("4096 bytes at byte {}", 40 * MIB + 4096);
    // The card's fault, or its reader's.
    for (name, fault, how, next) in [
        (
            "flips",
            format!("flip={at}"),
            " has a flipped bit",
            "try another reader",
        ),
        (
            "dead",
            format!("bad-read={at}"),
            " cannot be read",
            "try another reader",
        ),
        (
            "full",
            format!("bad-write={at}"),
            " reads as zeros",
            "try another reader",
        ),
    ] {
        let (_bad, bad) = scratch.bad_card(name, 80 * MIB, &fault);
        let said = pishrink(&["flash", &image, &bad, "--yes", "--overwrite"]);
        let place = format!("{place}{how}");
        said.complains(4, &[&bad, &place, next, "the card is worn out"]);
        assert!(said.out.contains("failed"), "{}", said.out);
    }
    // Passing trouble is repaired, and told.
    let (_bad, bad) = scratch.bad_card("once", 80 * MIB, &format!("flip-once={at}"));
    let said = pishrink(&[
        "flash",
        &image,
        &bad,
        "--yes",
        "--overwrite",
        "--expand",
        "none",
    ]);
    said.tells(&["good"]);
    assert!(
        said.err.contains("read back wrong; writing them again"),
        "{}",
        said.err
    );
    // The image's fault.
    let target = scratch.blank("target", 80 * MIB);
    shell(&format!("bmaptool -q create -o {image}.bmap {image}"));
    patch(&image, at, b"!");
    let said = pishrink(&["flash", &image, &target, "--yes", "--overwrite"]);
    said.complains(
        4,
        &[
            "the image is damaged: bytes ",
            "fetch or capture the image again",
        ],
    );
    fs::remove_file(format!("{image}.bmap")).unwrap();
    let digest = "0".repeat(64);
    let said = pishrink(&[
        "flash",
        &image,
        &target,
        "--yes",
        "--overwrite",
        "--sha256",
        &digest,
    ]);
    said.complains(4, &["the image's SHA-256 is ", &digest]);
}

/// 9: the wrong disk was erased (rpi-imager#84 #234 #439 #528 #982 #1161 #1327; etcher#2129).
#[test]
fn c09_nothing_but_a_card_is_erased() {
    let scratch = Scratch::new("c09");
    let (image, disk) = (scratch.card("x.img"), scratch.card("disk.img"));
    let before = shell(&format!("sha256sum {disk}"));
    let device = Loop::attach(&disk);
    let part = format!("{}p2", device.0);
    shell(&format!("test -e {part} || partx -a {}", device.0));
    let flash = |target: &str, more: &[&str]| {
        pishrink(&[&["flash", image.as_str(), target][..], more].concat())
    };
    let said = flash(&device.0, &["--yes"]);
    said.complains(5, &[&device.0, "is not removable", "--allow-any-device"]);
    let said = flash(&part, &["--yes", "--allow-any-device"]);
    said.complains(
        5,
        &[
            &part,
            "is a partition, not a disk",
            "name the whole disk",
            &device.0,
        ],
    );
    let said = flash(&device.0, &["--allow-any-device"]);
    said.complains(5, &["no terminal to ask", "--yes"]);
    flash(&image, &["--yes"]).complains(5, &[&image, "is the image itself"]);
    assert_eq!(shell(&format!("sha256sum {disk}")), before);
    // In a world of its own, the device carries the system.
    let script = format!(
        "mount {part} /home; exec {} flash {image} {} --yes --allow-any-device",
        env!("CARGO_BIN_EXE_pishrink"),
        device.0
    );
    let said = outcome(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    said.complains(5, &[&device.0, "carries the running system (/home)"]);
}

/// 10: a card of the same size is a few MB too small (rpi-imager#228 #769; bookworm-feedback#419;
/// raspiBackup#57 #165 #413; PS#130).
#[test]
fn c10_a_card_a_few_megabytes_smaller_will_do() {
    let scratch = Scratch::new("c10");
    let (card, image) = (scratch.card("card.img"), scratch.path("image.img"));
    let smaller = scratch.blank("smaller", 62 * MIB);
    // What dd copied does not fit: both sizes, before anything is written.
    shell(&format!(
        "printf old | dd of={smaller} conv=notrunc status=none"
    ));
    let said = pishrink(&["flash", &card, &smaller, "--yes", "--overwrite"]);
    let (has, needs) = ((62 * MIB).to_string(), (64 * MIB).to_string());
    said.complains(
        1,
        &["the card is too small", &has, &needs, "capture shrinks it"],
    );
    shell(&format!("test \"$(head -c 3 {smaller})\" = old"));
    // What was captured does.
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    pishrink(&["flash", &image, &smaller, "--yes", "--overwrite"])
        .tells(&["ext4 to 55.6 MB", "good"]);
    shell(&format!("e2fsck -fn '{smaller}?offset={ROOT}'"));
}

/// 14: slow writes (rpi-imager#235 #1205 #1306 #1321 #1365 #1390; etcher#3474): large requests, and
/// only of what is in use.
#[test]
fn c14_cards_are_written_in_large_requests_and_only_where_something_is() {
    let scratch = Scratch::new("c14");
    let image = scratch.path("x.img");
    pishrink(&["capture", &scratch.card("card.img"), &image]).tells(&["-> "]);
    let device = Loop::attach(&scratch.blank("target", 400 * MIB));
    // Requests and sectors that were written.
    let written = || -> (u64, u64) {
        let name = device.0.rsplit('/').next().unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        (fields[4], fields[6])
    };
    let before = written();
    let words = [
        "flash",
        &image,
        &device.0,
        "--yes",
        "--allow-any-device",
        "--expand",
        "none",
    ];
    let said = pishrink(&words);
    said.tells(&["good"]);
    let after = written();
    let (requests, bytes) = (after.0 - before.0, 512 * (after.1 - before.1));
    assert!(bytes < len(&image), "{bytes}");
    assert!(
        bytes / requests > 128 << 10,
        "{bytes} bytes in {requests} requests"
    );
    let told = said
        .out
        .lines()
        .find(|line| line.starts_with(&device.0))
        .unwrap();
    assert!(told.contains(" MB  ") && !told.contains("419 MB"), "{told}");
}

/// 20: a drive is missing from the list (rpi-imager#158 #552 #606 #684 #748 #1352 #1420).
#[test]
fn c20_the_list_says_why_a_disk_is_not_in_it() {
    let scratch = Scratch::new("c20");
    let file = scratch.blank("disk.img", 64 * MIB);
    let device = Loop::attach(&file);
    let said = pishrink(&["devices"]);
    said.tells(&[]);
    assert!(
        !said.out.contains(&format!("{}  ", device.0)),
        "{}",
        said.out
    );
    let said = pishrink(&["devices", "--all"]);
    let reason = format!("not shown without --all: stands for the file {file}");
    said.tells(&[&format!("{}  67.1 MB", device.0), &reason]);
}

/// 24: counterfeit cards (rpi-imager#278 #1394 #1445; etcher#44 #1923; f3#15 #144).
#[test]
fn c24_counterfeits_are_named_before_anything_is_written() {
    let scratch = Scratch::new("c24");
    let image = scratch.card("x.img");
    let (_bad, bad) = scratch.bad_card("fake", 256 * MIB, &format!("wrap={}", 64 * MIB));
    let device = shell(&format!("losetup --show -f {}", bad));
    let device = Loop(device.trim().to_owned());
    let said = pishrink(&["flash", &image, &device.0, "--yes", "--allow-any-device"]);
    let claim = format!("{} claims 268 MB but has at most 67.1 MB", device.0);
    said.complains(
        4,
        &[&claim, "the card is counterfeit or broken: give it back"],
    );
}

/// 25: many cards at once (rpi-imager#2 #37 #380 #514; rpi-clone#81; bb-imager-rs#245).
#[test]
fn c25_each_of_many_cards_has_its_own_result() {
    let scratch = Scratch::new("c25");
    let image = scratch.card("x.img");
    let cards: Vec<_> = [("a", 80), ("b", 30), ("c", 100)]
        .map(|(name, mib)| scratch.blank(name, mib * MIB))
        .into();
    let said = pishrink(&[
        "flash",
        &image,
        &cards[0],
        &cards[1],
        &cards[2],
        "--yes",
        "--overwrite",
    ]);
    let (small, needs) = ((30 * MIB).to_string(), (64 * MIB).to_string());
    said.complains(1, &[&cards[1], "too small", &small, &needs]);
    for (card, word) in [(0, "good"), (1, "failed"), (2, "good")] {
        let mut lines = said.out.lines();
        let line = lines.find(|line| line.starts_with(&cards[card])).unwrap();
        assert!(line.ends_with(word), "{}", said.out);
    }
}

/// 28: block maps: unused blocks need not be written (rpi-imager#233 #1382; etcher#171 #2128), and
/// wrong maps destroyed cards (etcher#2754 #3475 #3892 #3942).
#[test]
fn c28_block_maps_are_made_used_and_never_trusted() {
    let scratch = Scratch::new("c28");
    let (card, image) = (scratch.card("card.img"), scratch.path("x.img"));
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    let map = format!("{image}.bmap");
    let target = scratch.blank("target", 80 * MIB);
    let flash = |image: &str| pishrink(&["flash", image, &target, "--yes", "--overwrite"]);
    flash(&image).tells(&["good"]);
    let sound = fs::read_to_string(&map).unwrap();
    // One digit changed, and the map of another image.
    fs::write(&map, sound.replacen("</Range>", " </Range>", 1)).unwrap();
    let said = flash(&image);
    said.complains(4, &[&map, "changed or damaged: fetch it again"]);
    let other = scratch.path("other.img");
    fs::write(&other, noise(10 * MIB)).unwrap();
    fs::write(format!("{other}.bmap"), &sound).unwrap();
    let said = flash(&other);
    let size = (10 * MIB).to_string();
    said.complains(3, &["the block map is of an image of", &size, "--no-bmap"]);
}

/// 29: the final size is one's own to choose (PS#114 #271 #321; armbian#243; raspi-config#12).
#[test]
fn c29_the_final_size_can_be_chosen_and_limits_are_told() {
    let scratch = Scratch::new("c29");
    let image = scratch.card("x.img");
    let target = scratch.blank("target", 200 * MIB);
    for (size, grown) in [
        ("none", "good"),
        ("100MiB", "ext4 to 105 MB"),
        ("max", "ext4 to 200 MB"),
    ] {
        pishrink(&[
            "flash",
            &image,
            &target,
            "--yes",
            "--overwrite",
            "--expand",
            size,
        ])
        .tells(&[grown]);
        shell(&format!("e2fsck -fn '{target}?offset={ROOT}'"));
    }
    let said = pishrink(&["expand", &target, "--size", "1GiB"]);
    said.complains(1, &["cannot grow to 1073741824 bytes", "there is room for"]);
    let said = pishrink(&["expand", &target, "--size", "20MiB"]);
    said.complains(2, &["partition 2 has ", "already", "capture shrinks"]);
    let said = pishrink(&[
        "flash",
        &image,
        &target,
        "--yes",
        "--overwrite",
        "--expand",
        "big",
    ]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("'big'"), "{}", said.err);
}
