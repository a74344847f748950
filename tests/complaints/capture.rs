//! Complaints about reading a card and making it small.

use std::fs;
use std::process::Command;

use super::tools::*;

/// 3: "let me read a card to a file" (etcher#266 #641 #1153 #1733; rpi-imager#85 #228 #957).
#[test]
fn c03_read_a_card_to_a_file() {
    let scratch = Scratch::new("c03");
    let (card, image) = (scratch.card("card.img"), scratch.path("image.img"));
    let device = Loop::attach(&card);
    let said = pishrink(&["capture", &device.0, &image]);
    said.tells(&["image.img: 67.1 MB -> ", "sha256 of the contents: "]);
    shell(&format!("e2fsck -fn '{image}?offset={ROOT}'"));
}

/// 5: a dirty or slightly broken filesystem ends the work (PS#56 #65 #88 #101 #104 #228 #245).
#[test]
fn c05_dirty_filesystems_are_the_normal_case() {
    let scratch = Scratch::new("c05");
    let (card, image) = (scratch.card("card.img"), scratch.path("image.img"));
    let (live, mount) = (scratch.path("live.img"), scratch.path("mnt"));
    shell(&format!(
        "mv {card} {live}; mkdir {mount}; mount -o loop,offset={ROOT} {live} {mount}
         trap 'umount {mount}' EXIT
         seq 1 200 | (cd {mount}; xargs touch); sync -f {mount}; rm {mount}/1*; python3 -c '
import os; os.fsync(os.open(\"{mount}\", os.O_RDONLY))'
         cp {live} {card}"
    ));
    let said = pishrink(&["capture", &card, &image]);
    said.tells(&["journal replayed: "]);
    shell(&format!("e2fsck -fn '{image}?offset={ROOT}'"));
    // What only the counts get wrong is put right, and told.
    let card = scratch.card("counts.img");
    shell(&format!(
        "debugfs -w -R 'set_super_value free_blocks_count 77' '{card}?offset={ROOT}' 2>/dev/null"
    ));
    let said = pishrink(&["capture", "--force", &card, &image]);
    said.tells(&["put right: counts of free blocks or inodes were out of date"]);
    shell(&format!("e2fsck -fn '{image}?offset={ROOT}'"));
    // What is not sound is refused: which partition, what is wrong, and both ways on.
    shell(&format!(
        "debugfs -w -R 'set_inode_field notes block[5] 9' '{card}?offset={ROOT}' 2>/dev/null"
    ));
    fs::remove_file(&image).unwrap();
    let said = pishrink(&["capture", "--force", &card, &image]);
    said.complains(
        3,
        &[
            "partition 2 (ext4 \"rootfs\")",
            "damaged",
            "inode 1",
            "e2fsck -f",
            "--no-shrink --force-raw",
        ],
    );
    assert!(!exists(&image));
    pishrink(&[
        "capture",
        "--force",
        "--no-shrink",
        "--force-raw",
        &card,
        &image,
    ])
    .tells(&["saved block by block: "]);
}

/// 6: "already smallest", or gigabytes left over (PS#49 #58 #74 #76 #80 #127 #183 #186 #219 #299).
/// 30: an image that is captured again (PS#148 #227).
#[test]
fn c06_c30_the_smallest_image_stays_the_smallest() {
    let scratch = Scratch::new("c06");
    // 20 MiB behind the last partition belong to nobody.
    let table = "start=2048,size=16384,type=c\\nstart=18432,size=71680,type=83\\n";
    let card = scratch.card_of("card.img", table, 35);
    let (small, again) = (scratch.path("small.img"), scratch.path("again.img"));
    pishrink(&["capture", "--headroom", "0", &card, &small]).tells(&["67.1 MB -> "]);
    assert!(len(&small) < 24 * MIB, "{}", len(&small));
    let said = pishrink(&["capture", "--headroom", "0", &small, &again]);
    said.tells(&["again.img: "]);
    assert_eq!(len(&small), len(&again));
    shell(&format!("cmp {small} {again}"));
}

/// 7: error texts that mean nothing (etcher#2843 #2859 #2976 #2996 #3363 #4330 #4375; PS#50).
#[test]
fn c07_one_cause_and_one_next_step() {
    let scratch = Scratch::new("c07");
    let card = scratch.card("card.img");
    let (image, taken) = (scratch.path("new.img"), scratch.path("taken.img"));
    fs::write(&taken, "mine").unwrap();
    let folder = scratch.path("tree");
    let text = scratch.path("letter.txt");
    fs::write(&text, "Dear printer,\n").unwrap();
    let empty = scratch.blank("empty.img", 0);
    let missing = scratch.path("missing.img");
    let packed = scratch.path("cut.img.xz");
    shell(&format!(
        "(xz -0 -c {card} || true) | head -c 100000 > {packed}"
    ));
    let beyond = scratch.path("no/such/folder/new.img");
    let cases: [(i32, &str, &str, &[&str]); 9] = [
        (1, &missing, &image, &["missing.img", "No such file"]),
        (1, &card, &beyond, &["no/such/folder", "No such file"]),
        (
            2,
            &folder,
            &image,
            &["tree is a folder", "name a file or a block device"],
        ),
        (
            2,
            "-",
            &image,
            &["standard input", "name a file or a block device"],
        ),
        (3, &empty, &image, &["empty.img", "is empty"]),
        (
            3,
            &packed,
            &image,
            &["cut.img.xz", "a part of it is missing"],
        ),
        (
            5,
            &card,
            &taken,
            &["taken.img exists already", "--force replaces it"],
        ),
        (5, &card, &card, &["card.img", "exists already"]),
        (
            5,
            &card,
            &folder,
            &["tree is not a file", "flash writes cards"],
        ),
    ];
    for (code, from, to, parts) in cases {
        pishrink(&["capture", from, to]).complains(code, parts);
        assert!(!exists(&image), "{from}");
    }
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    // What may be no card is kept whole for those who ask for it, and said to be unknown.
    let whole = ["--no-shrink", "--force-raw"];
    let parts = &[
        "neither a partition table nor a filesystem",
        "--no-shrink --force-raw",
    ];
    pishrink(&["capture", &text, &image]).complains(3, parts);
    let said = pishrink(&[&["capture", &text, &image][..], &whole].concat());
    said.tells(&["unknown", "copied whole"]);
}

/// 8: permissions that end nowhere (rpi-imager#99 #270 #469 #501; etcher#2843 #2929; caligula#105).
/// What macOS says is tested beside its code.
#[test]
fn c08_permission_denied_says_how_to_get_it() {
    let scratch = Scratch::new("c08");
    let card = scratch.card("card.img");
    let device = Loop::attach(&card);
    let image = scratch.path("image.img");
    let public = Public::new("c08");
    let theirs = public.path("home/image.img");
    let said = public.pishrink_as_nobody(&["capture", &device.0, &theirs]);
    said.complains(1, &[&device.0, "ermission denied", "sudo", "group"]);
    // Busy is something else than denied.
    let mount = scratch.path("mnt");
    let part = format!("{}p2", device.0);
    shell(&format!(
        "test -e {part} || partx -a {device}; mkdir {mount}; mount {part} {mount}",
        device = device.0
    ));
    let said = pishrink(&["capture", &device.0, &image]);
    shell(&format!("umount {mount}"));
    said.complains(
        5,
        &[&device.0, "is mounted on", "unmount it", "--allow-mounted"],
    );
}

/// 11: a full copy is needed first, and the source is changed (PS#1 #2 #47 #86 #194 #248;
/// DietPi#1979 #5672).
#[test]
fn c11_the_source_is_only_read_and_the_size_known_before() {
    let scratch = Scratch::new("c11");
    let card = scratch.card("card.img");
    let before = shell(&format!("sha256sum {card}; chmod a-w {card}"));
    let image = scratch.path("image.img");
    let said = pishrink(&["capture", "--dry-run", "--headroom", "0", &card, &image]);
    said.tells(&["67.1 MB -> ", "blocks and 0 inodes move"]);
    assert!(!exists(&image));
    pishrink(&["capture", "--headroom", "0", &card, &image]).tells(&["67.1 MB -> "]);
    assert_eq!(shell(&format!("sha256sum {card}")), before);
    let blocks: u64 = shell(&format!("stat -c %b {image}"))
        .trim()
        .parse()
        .unwrap();
    assert!(blocks * 512 < 24 * MIB);
    // Too little room is found before the work, with both numbers.
    let small = scratch.path("small");
    shell(&format!(
        "mkdir {small}; mount -t tmpfs -o size=2m none {small}"
    ));
    let said = pishrink(&["capture", &card, &format!("{small}/image.img")]);
    let left = shell(&format!("ls {small}; umount {small}"));
    said.complains(
        1,
        &[
            "the image needs ",
            "2.10 MB free",
            "another disk",
            ".img.zst",
        ],
    );
    assert_eq!(left, "");
}

/// 12: the image does not boot, its table or ids changed (PS#24 #218 #220 #255 #70; OctoPi#436;
/// rpi-clone#168 #178 #192).
#[test]
fn c12_ids_and_boot_code_stay() {
    let scratch = Scratch::new("c12");
    let card = scratch.card("card.img");
    patch(&card, 0, &noise(440));
    patch(&card, 8192, &noise(100_000));
    let (image, target) = (
        scratch.path("image.img"),
        scratch.blank("target", 100 * MIB),
    );
    pishrink(&["capture", &card, &image]).tells(&["-> "]);
    pishrink(&["flash", &image, &target, "--yes", "--overwrite"]).tells(&["good"]);
    for made in [&image, &target] {
        // Boot code, disk id, and the boot loader behind the table.
        shell(&format!(
            "cmp -n 446 {card} {made}; cmp -i 512 -n 1048064 {card} {made}"
        ));
        let said = pishrink(&["inspect", made]);
        said.tells(&[
            "id 0x1234abcd",
            "PARTUUID=1234abcd-01",
            "PARTUUID=1234abcd-02",
        ]);
    }
    let uuid = |disk: &str| shell(&format!("blkid -p -O {ROOT} -s UUID -o value {disk}"));
    assert_eq!(uuid(&card), uuid(&target));
}

/// 13: layouts with more than two partitions (PS#25 #44 #116 #130 #182 #226 #232 #234 #309 #319).
/// 19: filesystems that are not ext (PS#26 #166 #233 #243 #286; shrink-backup#31).
#[test]
fn c13_c19_other_layouts_are_captured_and_it_is_said_what_stays() {
    let scratch = Scratch::new("c13");
    let image = scratch.path("image.img");
    let tables = [
        // Swap behind the root moves down.
        (
            "start=2048,size=16384,type=c\\nstart=18432,size=81920,type=83\\nstart=106496,type=82\\n",
            40,
        ),
        // A logical root.
        (
            "start=2048,size=12288,type=c\\nstart=16384,type=5\\nstart=18432,type=83\\n",
            55,
        ),
    ];
    for (table, mib) in tables {
        let card = scratch.card_of("card.img", table, mib);
        if mib == 40 {
            shell(&format!(
                "truncate -s 12M {0}; mkswap -q {0}; dd if={0} of={card} bs=1M seek=52 \
                            conv=notrunc status=none; rm {0}",
                scratch.path("swap")
            ));
        }
        let said = pishrink(&["capture", "--force", "--headroom", "0", &card, &image]);
        said.tells(&["ext4 \"rootfs\", ", " -> "]);
        assert!(len(&image) < 40 * MIB);
        assert_eq!(
            said.out.contains("moves from byte 54525952 to byte"),
            mib == 40
        );
        shell(&format!(
            "e2fsck -fn '{image}?offset={ROOT}'; sfdisk --verify {image}"
        ));
    }
    // A last partition that cannot be shrunk: whose fault, and that all of it is kept.
    let table =
        "start=2048,size=16384,type=c\\nstart=18432,size=81920,type=83\\nstart=106496,type=83\\n";
    let (signature, at) = (b"_BHRfS_M", 52 * MIB + 0x10040);
    let card = scratch.card_of("card.img", table, 40);
    patch(&card, at, signature);
    let said = pishrink(&["capture", "--force", &card, &image]);
    said.tells(&[
        "partition 3: btrfs",
        "copied whole",
        "nothing is shrunk: the last partition that could be, number 3, holds btrfs, not ext",
    ]);
    assert_eq!(len(&image), 64 * MIB);
}

/// 17: loop devices and mounts, which WSL and containers do not have (PS#68 #78 #188 #276 #335).
#[test]
fn c17_image_files_need_no_root_and_no_loop_device() {
    let scratch = Scratch::new("c17");
    let public = Public::new("c17");
    let card = public.path("card.img");
    let made = scratch.card("card.img");
    shell(&format!(
        "cp --sparse=always {made} {card}; chmod 644 {card}"
    ));
    let (image, target) = (public.path("home/image.img.zst"), public.path("home/card"));
    let said = public.pishrink_as_nobody(&["capture", &card, &image]);
    said.tells(&["image.img.zst: "]);
    let said =
        public.pishrink_as_nobody(&["flash", &image, &target, "--card-size", "100MiB", "--yes"]);
    said.tells(&["good"]);
    shell(&format!("e2fsck -fn '{target}?offset={ROOT}'"));
}

/// 21: inputs that are cut off, or one filesystem only, are noticed late (PS#28 #29 #50 #150 #198
/// #203 #252; RatOS#168).
#[test]
fn c21_cut_off_inputs_are_noticed_at_once() {
    let scratch = Scratch::new("c21");
    let card = scratch.card("card.img");
    let image = scratch.path("image.img");
    shell(&format!("truncate -s 40M {card}"));
    for words in [
        vec!["capture", &card, &image],
        vec!["flash", &card, &image, "--card-size", "80MiB", "--yes"],
    ] {
        let said = pishrink(&words);
        let (ends, has) = ((64 * MIB).to_string(), (40 * MIB).to_string());
        said.complains(
            3,
            &["partition 2 ends at byte", &ends, &has, "cut off", "again"],
        );
        let _ = fs::remove_file(&image);
    }
    // A single filesystem is fine.
    let bare = scratch.path("root.img");
    let whole = scratch.card("whole.img");
    shell(&format!("dd if={whole} of={bare} bs=1M skip=9 status=none"));
    pishrink(&["capture", &bare, &image]).tells(&["there is no partition table", "-> "]);
    shell(&format!("e2fsck -fn {image}"));
}

/// 26: what was deleted is still in the image (PS#59 #100 #141; pimod#81; TorBox#39).
#[test]
fn c26_deleted_files_are_not_in_the_image() {
    let scratch = Scratch::new("c26");
    let card = scratch.card("card.img");
    let (secret, marker) = (scratch.path("secret"), "my wifi password is swordfish");
    fs::write(&secret, marker.repeat(20_000)).unwrap();
    shell(&format!(
        "printf 'write {secret} secret\\nrm secret\\n' | debugfs -w -f - '{card}?offset={ROOT}' >/dev/null 2>&1
         mcopy -i {card}@@1M {secret} ::secret; mdel -i {card}@@1M ::secret
         grep -qa '{marker}' {card}"
    ));
    for options in [&["--headroom", "8MiB"][..], &["--no-shrink"]] {
        let image = scratch.path("image.img");
        let words = [
            &["capture", "--force", card.as_str(), image.as_str()][..],
            options,
        ]
        .concat();
        pishrink(&words).tells(&["-> "]);
        shell(&format!("! grep -qa '{marker}' {image}"));
    }
}

/// 27: other and faster compressors (PS#117 #124 #154 #171 #224).
#[test]
fn c27_compressors_are_told_apart_by_name_and_say_their_levels() {
    let scratch = Scratch::new("c27");
    let card = scratch.card("card.img");
    for (name, more, parts) in [
        (
            "x.img.xz",
            &["--level", "12"][..],
            &["xz has levels 0 to 9, not 12"][..],
        ),
        (
            "x.img.zst",
            &["--level", "30"],
            &["zstd has levels 1 to 19, not 30"],
        ),
        ("x.img", &["--level", "3"], &["raw images have no level"]),
        ("x.img.bz2", &[], &["bzip2 images are only read", ".img.xz"]),
        ("x.zip", &[], &["zip images are only read", ".img.xz"]),
        ("x.7z", &[], &["x.7z is named like a format", ".img.xz"]),
    ] {
        let image = scratch.path(name);
        let words = [&["capture", card.as_str(), image.as_str()][..], more].concat();
        pishrink(&words).complains(2, parts);
        assert!(!exists(&image));
    }
}

/// 23: silence, or a hang (PS#104 #118 #161; rpi-imager#1635 #1731): a line at once, a clean stop.
#[test]
fn c23_there_is_a_line_at_once_and_a_clean_stop() {
    let scratch = Scratch::new("c23");
    let card = scratch.card("card.img");
    let image = scratch.path("x.img.xz");
    let said = pishrink(&["capture", &card, &image, "--level", "1"]);
    said.tells(&["x.img.xz: "]);
    for line in ["checking", "capturing "] {
        assert!(
            said.err.lines().any(|found| found.starts_with(line)),
            "{}",
            said.err
        );
    }
    // A stop in the middle of writing; the signal comes when the card has been slow for a while.
    let image = scratch.path("raw.img");
    fs::write(&image, noise_disk(90 * MIB)).unwrap();
    let (_slow, slow) = scratch.bad_card("slow", 100 * MIB, &format!("stall={},3", 8 * MIB));
    let script = format!(
        "import signal, subprocess, sys, time
p = subprocess.Popen([{:?}, 'flash', {image:?}, {:?}, '--yes', '--overwrite'])
time.sleep(1.5)
p.send_signal(signal.SIGINT)
sys.exit(p.wait())",
        env!("CARGO_BIN_EXE_pishrink"),
        slow
    );
    let said = outcome(Command::new("python3").args(["-c", &script]));
    assert!(said.err.contains("stopping\u{2026}"), "{}", said.err);
    said.complains(
        130,
        &["stopped after ", "this card does not boot; flash it again"],
    );
}
