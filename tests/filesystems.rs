//! Filesystems whose used blocks alone are copied: made by their own mkfs over its options, filled
//! and emptied again, judged by their own fsck, and held against partclone. A tool that is missing
//! fails the test.

#[path = "common/badcard.rs"]
#[allow(dead_code)]
mod badcard;
#[path = "common/scratch.rs"]
mod scratch;
#[path = "flash/tools.rs"]
#[allow(dead_code, unused_imports)]
mod tools;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use tools::*;

/// A kind of filesystem, and the tools that know it, as lines of shell over `$f` (an image or a
/// loop device) and `$d` (a folder).
struct Kind {
    name: &'static str,
    /// Mounts `$f` on `$d`.
    mount: &'static str,
    fsck: &'static str,
    /// What reads the bytes in use, for partclone.
    partclone: &'static str,
}

const EXFAT: Kind = Kind {
    name: "exFAT",
    mount: "mount.exfat-fuse $f $d",
    fsck: "fsck.exfat -n $f",
    partclone: "partclone.exfat",
};

/// Runs shell lines with `$f` and `$d`.
fn with(file: &Path, folder: &Path, lines: &str) -> String {
    shell(&format!("f={} d={}\n{lines}", text(file), text(folder)))
}

impl Kind {
    /// Does `lines` with `image` mounted on `$d`.
    fn mounted(&self, scratch: &Scratch, image: &Path, lines: &str) -> String {
        let folder = scratch.path("mnt");
        fs::create_dir_all(&folder).unwrap();
        let device = Loop::attach_plainly(image);
        let mount = self.mount;
        with(
            &device.0,
            &folder,
            &format!("{mount} >&2; trap 'umount $d; sync' EXIT; {lines}"),
        )
    }

    /// Fills `image` and takes some of it away again, so that what is in use lies in pieces.
    fn age(&self, scratch: &Scratch, image: &Path) {
        let source = scratch.path("noise");
        fs::write(&source, noise(5, MIB)).unwrap();
        let lines = format!(
            "n={}; mkdir -p $d/games/many
             for i in $(seq 60); do head -c $((i * 997)) $n > $d/games/many/rom-$i; done
             for i in $(seq 8); do cat $n $n > $d/large-$i; done
             rm $d/games/many/rom-*[13579] $d/large-[247]
             cat $n $n $n $n $n > $d/games/pieces; echo words > $d/words.txt",
            text(&source)
        );
        self.mounted(scratch, image, &lines);
    }

    /// Lists all files with their sums.
    fn files(&self, scratch: &Scratch, image: &Path) -> String {
        let list = "cd $d; find . -type f | sort | xargs -d '\\n' sha256sum; cd /";
        self.mounted(scratch, image, list)
    }

    fn check(&self, image: &Path) {
        with(image, image, self.fsck);
    }

    /// Captures `image`, whose free bytes are made noise first, and judges the result.
    fn judge(&self, scratch: &Scratch, image: &Path, what: &str) -> Value {
        self.check(image);
        let before = self.files(scratch, image);
        let stored = self.stored_by_partclone(image);
        let out = scratch.path("out.img");
        let (code, said) = json(&["capture", "--force", text(image), text(&out)]);
        assert_eq!(code, 0, "{what}: {said:#}");
        let part = &said["plan"]["partitions"][0];
        assert_eq!(part["filesystem"], self.name, "{what}: {said:#}");
        assert_eq!(part["opaque"], false, "{what}: {said:#}");
        let mapped = said["plan"]["mapped_bytes"].as_u64().unwrap();
        assert!(
            mapped <= stored,
            "{what}: {mapped} bytes, partclone {stored}"
        );
        self.check(&out);
        assert_eq!(self.files(scratch, &out), before, "{what}");
        said
    }

    /// Bytes that partclone keeps.
    fn stored_by_partclone(&self, image: &Path) -> u64 {
        let said = with(
            image,
            image,
            &format!("{} -c -s $f -O /dev/null -L /dev/null 2>&1", self.partclone),
        );
        let number = |name: &str, unit: &str| -> u64 {
            let line = said.lines().find(|line| line.starts_with(name)).unwrap();
            let word = match unit {
                "" => line.split_whitespace().nth(2),
                _ => line
                    .split("= ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next()),
            };
            word.unwrap().parse().unwrap()
        };
        number("Space in use:", "blocks") * number("Block size:", "")
    }
}

fn blank(scratch: &Scratch, mib: u64) -> PathBuf {
    let path = scratch.path("volume.img");
    let _ = fs::remove_file(&path);
    let file = fs::File::create(&path).unwrap();
    file.set_len(mib * MIB).unwrap();
    path
}

#[test]
fn exfat_keeps_what_is_in_use() {
    let scratch = Scratch::new("exfat");
    for options in [
        "",
        "-c 512",
        "-c 64K",
        "-b 4M -L games",
        "-c 256K --pack-bitmap",
    ] {
        let image = blank(&scratch, 48);
        with(&image, &image, &format!("mkfs.exfat {options} $f"));
        EXFAT.age(&scratch, &image);
        EXFAT.judge(&scratch, &image, options);
    }
}

/// Copies the bytes of a disk from `start` on to a file.
fn cut_out(scratch: &Scratch, disk: &Path, start: u64, len: u64) -> PathBuf {
    let path = scratch.path("cut.img");
    fs::write(&path, read(disk, start, len)).unwrap();
    path
}

/// The partitions of a disk: first byte and length of each.
fn partitions(disk: &Path) -> Vec<(u64, u64)> {
    let dump: Value = serde_json::from_str(&tool("sfdisk", &["--json", text(disk)])).unwrap();
    let entries = dump["partitiontable"]["partitions"].as_array().unwrap();
    let bytes = |entry: &Value, key: &str| entry[key].as_u64().unwrap() * 512;
    let places = entries.iter();
    places
        .map(|entry| (bytes(entry, "start"), bytes(entry, "size")))
        .collect()
}

/// A card as RetroPie has it: a boot partition, the root, and games behind it.
fn games_card(scratch: &Scratch, kind: &Kind, mkfs: &str, type_byte: &str) -> PathBuf {
    let games = blank(scratch, 24);
    with(&games, &games, mkfs);
    kind.age(scratch, &games);
    let card = scratch.path("card.img");
    shell(&format!(
        "truncate -s 113M {0}; printf 'label: dos\\nstart=8192,size=8192,type=c\\n\
         start=16384,size=163840,type=83\\nstart=180224,size=49152,type={type_byte}\\n' | sfdisk -q {0}
         mkfs.vfat -n BOOT --offset 8192 {0} 4096 >/dev/null
         dd if={1} of={0} bs=1M seek=88 conv=notrunc status=none",
        text(&card),
        text(&games)
    ));
    put_ext(scratch, &card, 8 * MIB, 80 * MIB, "");
    card
}

/// The root in front of the games shrinks, they move down whole, and back when flashed.
fn games_move(scratch: &Scratch, kind: &Kind, mkfs: &str, type_byte: &str) {
    let card = games_card(scratch, kind, mkfs, type_byte);
    let before = partitions(&card);
    let games = |disk: &Path| {
        let (start, len) = partitions(disk)[2];
        let cut = cut_out(scratch, disk, start, len);
        kind.check(&cut);
        (kind.files(scratch, &cut), read(&cut, 0, len))
    };
    let (files, bytes) = games(&card);
    let image = scratch.path("image.img");
    let (code, said) = json(&["capture", "--headroom", "0", text(&card), text(&image)]);
    assert_eq!(code, 0, "{said:#}");
    let packed = partitions(&image);
    assert!(packed[2].0 < before[2].0 - 40 * MIB, "{said:#}");
    assert_eq!(packed[2].1, before[2].1);
    assert_eq!(games(&image).0, files);
    // A card like the old one, a slightly smaller and a much larger one.
    for size in [113 * MIB, 109 * MIB, 300 * MIB] {
        let target = used_card(scratch, "target", size);
        let said = flash(text(&image), &target, &[]);
        let grown = partitions(&target);
        assert_eq!(
            grown[2],
            (size / MIB * MIB - 24 * MIB, 24 * MIB),
            "{said:#}"
        );
        assert_eq!(grown[1].0 + grown[1].1, grown[2].0, "{said:#}");
        assert_clean(&target, grown[1].0);
        assert_eq!(ext_len(&target, grown[1].0), grown[1].1);
        let (now, there) = games(&target);
        assert_eq!(now, files);
        // What tells the place is right again, to the byte.
        if size == 113 * MIB {
            assert!(there[..24 * 512] == bytes[..24 * 512]);
        }
    }
}

#[test]
fn exfat_behind_the_root_makes_room() {
    let scratch = Scratch::new("games");
    // The place that Windows and the kernel's partitioner write there.
    let mkfs = "mkfs.exfat -c 4096 $f";
    games_move(&scratch, &EXFAT, mkfs, "7");
}
