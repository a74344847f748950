//! Complaints about what a copy is: whose keys, whose network, on which device.

use std::fs;

use super::tools::*;

/// What is somebody's own on a root filesystem.
const OWN: [(&str, &str); 5] = [
    ("etc/hostname", "voron\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    (
        "etc/ssh/ssh_host_ed25519_key",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n",
    ),
    (
        "etc/NetworkManager/system-connections/workshop.nmconnection",
        "[wifi]\nssid=workshop\n[wifi-security]\npsk=secret\n",
    ),
    (
        "etc/fstab",
        "/dev/nvme0n1p1 /boot/firmware vfat defaults 0 2\n/dev/nvme0n1p2 / ext4 defaults 0 1\n",
    ),
];

/// What is somebody's own on a boot filesystem.
const BOOT: [(&str, &str); 3] = [
    (
        "cmdline.txt",
        "console=tty1 root=/dev/nvme0n1p2 rootfstype=ext4 rootwait\n",
    ),
    ("userconf.txt", "pi:$6$salt$hash\n"),
    (
        "wpa_supplicant.conf",
        "network={ ssid=\"workshop\" psk=\"secret\" }\n",
    ),
];

/// A card of somebody's own.
fn own_card(scratch: &Scratch) -> String {
    let tree = scratch.path("tree");
    for (path, text) in OWN {
        let path = format!("{tree}/{path}");
        fs::create_dir_all(path.rsplit_once('/').unwrap().0).unwrap();
        fs::write(path, text).unwrap();
    }
    let card = scratch.card("card.img");
    for (name, text) in BOOT {
        let file = scratch.path(name);
        fs::write(&file, text).unwrap();
        shell(&format!("mcopy -i {card}@@{MIB} {file} ::{name}"));
    }
    card
}

/// Holds a card against what is its owner's.
#[track_caller]
fn assert_own(card: &str) {
    for (path, text) in OWN {
        let found = shell(&format!(
            "debugfs -R 'cat /{path}' '{card}?offset={ROOT}' 2>/dev/null"
        ));
        assert_eq!(found, text, "{path}");
    }
    for (name, text) in BOOT {
        assert_eq!(
            shell(&format!("mtype -i {card}@@{MIB} ::{name}")),
            text,
            "{name}"
        );
    }
}

/// 15: removing what is personal is missing, or kills ssh (PS#51 #123 #158 #168 #176 #179 #209 #230
/// #237 #244 #247 #256): nothing is removed, and who may share an image is told what is in it.
/// 16: images of one's own lost Wi-Fi and user (rpi-imager#213 #520 #1302 #1533; MagicMirrorOS#90;
/// raspOVOS#142).
#[test]
fn c15_c16_keys_users_and_networks_stay_and_whoever_shares_is_warned() {
    let scratch = Scratch::new("c15");
    let (card, image) = (own_card(&scratch), scratch.path("x.img.zst"));
    let warning =
        "The image holds everything that is on the card, host name, passwords and keys too";
    pishrink(&["capture", "--help"]).tells(&[warning]);
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    let target = scratch.blank("target", 100 * MIB);
    pishrink(&["flash", &image, &target, "--yes", "--overwrite"]).tells(&["good"]);
    assert_own(&target);
}

/// 18: clones share an address and a machine-id (piclone#17; Ubuntu-raspi4-unofficial#74;
/// johang/sd-card-images#157; systemd#9609): a copy in place of its card is meant to, and whoever makes
/// several is told.
#[test]
fn c18_whoever_makes_several_cards_is_told_that_they_are_one_system() {
    let scratch = Scratch::new("c18");
    let card = own_card(&scratch);
    let targets = ["a", "b"].map(|name| scratch.blank(name, 100 * MIB));
    let warning =
        "these cards are the same system: change host name, ssh host keys and /etc/machine-id";
    let said = pishrink(&["flash", &card, &targets[0], "--yes", "--overwrite"]);
    said.tells(&["good"]);
    assert!(!said.out.contains(warning), "{}", said.out);
    pishrink(&[
        "flash",
        &card,
        &targets[0],
        &targets[1],
        "--yes",
        "--overwrite",
    ])
    .tells(&["good", warning]);
    assert_own(&targets[1]);
    // One that failed makes no pair.
    let small = scratch.blank("small", 30 * MIB);
    let said = pishrink(&["flash", &card, &targets[0], &small, "--yes", "--overwrite"]);
    said.complains(1, &["too small"]);
    assert!(!said.out.contains(warning), "{}", said.out);
}

/// 22: roots on NVMe and USB do not expand (PS#18 #81 #215 #236; rpi-clone#123): no device's name
/// matters, nor is one written.
#[test]
fn c22_a_root_on_nvme_is_expanded_and_its_names_stay() {
    let scratch = Scratch::new("c22");
    let (card, image) = (own_card(&scratch), scratch.path("x.img"));
    pishrink(&["inspect", &card]).tells(&["cmdline.txt: console=tty1 root=/dev/nvme0n1p2"]);
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    let disk = scratch.blank("disk", 300 * MIB);
    pishrink(&["flash", &image, &disk, "--yes", "--overwrite"]).tells(&["ext4 to 305 MB", "good"]);
    assert_own(&disk);
    shell(&format!("e2fsck -fn '{disk}?offset={ROOT}'"));
}
