//! Small cards, made by mke2fs, mkfs.fat, mkswap, sfdisk and sgdisk; and what holds two cards
//! against each other.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

pub use crate::scratch::{Scratch, noise};

const MIB: u64 = 1 << 20;

pub fn pishrink() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pishrink"))
}

/// Runs a tool that must succeed; returns what it printed.
pub fn run<A: AsRef<OsStr>>(tool: &str, words: impl IntoIterator<Item = A>) -> String {
    let mut command = Command::new(tool);
    command.args(words).env("MTOOLS_SKIP_CHECK", "1");
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("{tool} is needed for this test: {error}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let complained = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}\n{said}{complained}");
    said
}

impl Scratch {
    /// Holds what is in the folder, folders and tools' files aside, against a list.
    pub fn expect(&self, names: &[&str]) {
        let mut found: Vec<_> = fs::read_dir(self.path("."))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".part"))
            .collect();
        found.sort();
        assert_eq!(found, names);
    }

    pub fn mount(&self, image: &Path, options: &str) -> Mounted {
        let folder = self.path("mnt");
        fs::create_dir_all(&folder).unwrap();
        run(
            "mount",
            [
                OsStr::new("-o"),
                options.as_ref(),
                image.as_ref(),
                folder.as_ref(),
            ],
        );
        Mounted(folder)
    }

    pub fn tmpfs(&self, size: &str) -> Mounted {
        let folder = self.path("tmpfs");
        fs::create_dir_all(&folder).unwrap();
        let options = format!("size={size}");
        run(
            "mount",
            [
                OsStr::new("-t"),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                options.as_ref(),
                "none".as_ref(),
                folder.as_ref(),
            ],
        );
        Mounted(folder)
    }

    /// A folder of files for a root filesystem.
    fn tree(&self) -> PathBuf {
        let root = self.path("tree");
        if root.exists() {
            return root;
        }
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(root.join("home/pi/many")).unwrap();
        fs::write(root.join("etc/os-release"), "PRETTY_NAME=\"Test OS 12\"\n").unwrap();
        fs::write(root.join("etc/hostname"), "octopi\n").unwrap();
        for number in 0..300u32 {
            let name = format!("home/pi/many/file-{number}");
            fs::write(
                root.join(name),
                noise(number, u64::from(number * 37 % 9000)),
            )
            .unwrap();
        }
        fs::write(root.join("home/pi/large"), noise(7, 3 << 20)).unwrap();
        std::os::unix::fs::symlink("many/file-1", root.join("home/pi/link")).unwrap();
        root
    }

    /// Makes an ext4 filesystem whose files lie all over it.
    fn ext4(&self, name: &str, size: u64, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        let mut words: Vec<&OsStr> = ["-q", "-F", "-t", "ext4", "-L", "rootfs", "-d"]
            .map(OsStr::new)
            .to_vec();
        let tree = self.tree();
        words.push(tree.as_ref());
        words.extend(options.iter().map(OsStr::new));
        words.push(path.as_ref());
        run("mke2fs", words);
        // A file at the very end, so that something has to move.
        let tail = self.path("tail.part");
        fs::write(&tail, noise(99, 2 << 20)).unwrap();
        let fill = size * 6 / 10;
        let filler = self.path("filler.part");
        fs::write(&filler, noise(98, fill)).unwrap();
        let script = format!(
            "write {} filler\nwrite {} tail\nrm filler\n",
            filler.display(),
            tail.display()
        );
        let commands = self.path("commands.part");
        fs::write(&commands, script).unwrap();
        run(
            "debugfs",
            [
                OsStr::new("-w"),
                "-f".as_ref(),
                commands.as_ref(),
                path.as_ref(),
            ],
        );
        run("e2fsck", [OsStr::new("-fn"), path.as_ref()]);
        path
    }

    fn fat(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        run(
            "mkfs.fat",
            [
                OsStr::new("-F"),
                "16".as_ref(),
                "-n".as_ref(),
                "BOOT".as_ref(),
                path.as_ref(),
            ],
        );
        let cmdline = self.path("cmdline.part");
        fs::write(
            &cmdline,
            "console=serial0,115200 root=PARTUUID=x rootwait\n",
        )
        .unwrap();
        let kernel = self.path("kernel.part");
        fs::write(&kernel, noise(3, 900_000)).unwrap();
        for (from, to) in [(&cmdline, "::cmdline.txt"), (&kernel, "::kernel8.img")] {
            run(
                "mcopy",
                [OsStr::new("-i"), path.as_ref(), from.as_ref(), to.as_ref()],
            );
        }
        path
    }

    fn swap(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        run(
            "mkswap",
            [
                OsStr::new("-q"),
                "-L".as_ref(),
                "swappy".as_ref(),
                path.as_ref(),
            ],
        );
        // What was swapped out is nobody's business.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&noise(5, 1 << 20), 1 << 20).unwrap();
        path
    }

    /// Makes a card of 128 MiB whose first MiB is full of something.
    fn card(&self, table: &str, contents: &[(u64, &Path)]) -> PathBuf {
        let card = self.path("card.img");
        let file = File::create(&card).unwrap();
        file.set_len(128 * MIB).unwrap();
        file.write_all_at(&noise(1, 400), 0).unwrap();
        for kib in [8, 32, 600] {
            file.write_all_at(&noise(kib, 50_000), u64::from(kib) << 10)
                .unwrap();
        }
        sfdisk(&card, table);
        for (offset, part) in contents {
            let bytes = fs::read(part).unwrap();
            file.write_all_at(&bytes, *offset).unwrap();
            fs::remove_file(part).unwrap();
        }
        // Between partitions lies what nobody needs.
        file.write_all_at(&noise(4, 4096), 18 * MIB).unwrap();
        card
    }
}

/// Unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        // A test that is failing already has something else to say.
        assert!(std::thread::panicking() || status.is_ok_and(|status| status.success()));
    }
}

pub fn mbr(scratch: &Scratch) -> PathBuf {
    let boot = scratch.fat("boot", 16 * MIB);
    let root = scratch.ext4("root", 100 * MIB, &[]);
    scratch.card(
        "label: dos\nlabel-id: 0x1234abcd\n\
         start=2048, size=32768, type=c\nstart=40960, size=204800, type=83\n",
        &[(MIB, &boot), (20 * MIB, &root)],
    )
}

pub fn logical(scratch: &Scratch) -> PathBuf {
    let boot = scratch.fat("boot", 16 * MIB);
    let data = scratch.ext4("data", 8 * MIB, &["-b", "1024"]);
    let root = scratch.ext4("root", 80 * MIB, &[]);
    scratch.card(
        "label: dos\nstart=2048, size=32768, type=c\nstart=40960, type=5\n\
         start=43008, size=16384, type=83\nstart=61440, size=163840, type=83\n",
        &[(MIB, &boot), (21 * MIB, &data), (30 * MIB, &root)],
    )
}

pub fn gpt(scratch: &Scratch) -> PathBuf {
    let boot = scratch.fat("boot", 16 * MIB);
    let root = scratch.ext4("root", 100 * MIB, &["-O", "^has_journal"]);
    scratch.card(
        "label: gpt\nstart=2048, size=32768, type=U, name=\"boot fs\"\n\
         start=40960, size=204800, type=L, name=\"root\"\n",
        &[(MIB, &boot), (20 * MIB, &root)],
    )
}

pub fn bare(scratch: &Scratch) -> PathBuf {
    scratch.ext4("card.img", 64 * MIB, &["-b", "1024"])
}

pub fn swap_last(scratch: &Scratch) -> PathBuf {
    let boot = scratch.fat("boot", 16 * MIB);
    let root = scratch.ext4("root", 80 * MIB, &[]);
    let swap = scratch.swap("swap", 12 * MIB);
    scratch.card(
        "label: dos\nstart=2048, size=32768, type=c\nstart=40960, size=163840, type=83\n\
         start=206848, size=24576, type=82\n",
        &[(MIB, &boot), (20 * MIB, &root), (101 * MIB, &swap)],
    )
}

pub fn fat_last(scratch: &Scratch) -> PathBuf {
    let root = scratch.ext4("root", 80 * MIB, &[]);
    let boot = scratch.fat("boot", 16 * MIB);
    scratch.card(
        "label: gpt\nstart=40960, size=163840, type=L, name=root\n\
         start=206848, size=32768, type=U, name=setup\n",
        &[(20 * MIB, &root), (101 * MIB, &boot)],
    )
}

/// A bare filesystem, copied while it is mounted and written.
pub fn dirty(scratch: &Scratch) -> PathBuf {
    let card = scratch.ext4("card.img", 96 * MIB, &[]);
    let live = scratch.path("live.img");
    fs::rename(&card, &live).unwrap();
    let mounted = scratch.mount(&live, "loop");
    for number in 0..200u32 {
        fs::write(
            mounted.path().join(format!("new-{number}")),
            noise(number, 5000),
        )
        .unwrap();
    }
    run("sync", [OsStr::new("-f"), mounted.path().as_ref()]);
    for number in 0..50u32 {
        fs::remove_file(mounted.path().join(format!("new-{number}"))).unwrap();
    }
    // The folder's handle is closed again, or it could not be unmounted.
    File::open(mounted.path()).unwrap().sync_all().unwrap();
    fs::copy(&live, &card).unwrap();
    drop(mounted);
    fs::remove_file(&live).unwrap();
    card
}

/// Makes two files of partition 2 own the same blocks.
pub fn damage_root(card: &Path) {
    let at = format!("{}?offset={}", card.display(), partition(card, 2).start);
    run(
        "debugfs",
        [
            "-w",
            "-R",
            "set_inode_field home/pi/large block[3] 0",
            at.as_str(),
        ],
    );
    run(
        "debugfs",
        [
            "-w",
            "-R",
            "set_inode_field home/pi/large block[5] 9",
            at.as_str(),
        ],
    );
}

/// A partition's bytes.
#[derive(Clone, Debug)]
pub struct Part {
    pub start: u64,
    pub len: u64,
    pub table: Value,
}

fn table(image: &Path) -> Option<Value> {
    let done = Command::new("sfdisk")
        .arg("-J")
        .arg(image)
        .output()
        .expect("sfdisk is needed for this test");
    let table: Value = serde_json::from_slice(&done.stdout).ok()?;
    Some(table["partitiontable"].clone())
}

fn partitions(image: &Path) -> Vec<Part> {
    let Some(table) = table(image) else {
        let len = fs::metadata(image).unwrap().len();
        let table = Value::Null;
        return vec![Part {
            start: 0,
            len,
            table,
        }];
    };
    let sector = table["sectorsize"].as_u64().unwrap_or(512);
    let parts = table["partitions"].as_array().unwrap().iter();
    parts
        .map(|part| Part {
            start: part["start"].as_u64().unwrap() * sector,
            len: part["size"].as_u64().unwrap() * sector,
            table: part.clone(),
        })
        .collect()
}

/// Returns the partition with this number (its place in sfdisk's list, from 1).
pub fn partition(image: &Path, number: usize) -> Part {
    partitions(image)[number - 1].clone()
}

pub fn check_table(image: &Path) {
    let Some(table) = table(image) else { return };
    run("sfdisk", [OsStr::new("--verify"), image.as_ref()]);
    if table["label"] == "gpt" {
        let said = run("sgdisk", [OsStr::new("-v"), image.as_ref()]);
        assert!(said.contains("No problems found"), "{said}");
    }
}

/// Holds an image against its card: the gap, what the table says, and all files.
pub fn compare(scratch: &Scratch, card: &Path, image: &Path) {
    let (old, new) = (partitions(card), partitions(image));
    assert_eq!(old.len(), new.len());
    if let (Some(old), Some(new)) = (table(card), table(image)) {
        assert_eq!(old["id"], new["id"]);
        assert_eq!(old["label"], new["label"]);
        compare_gap(card, image, new["label"] == "gpt");
    }
    for (number, (old, new)) in old.iter().zip(&new).enumerate() {
        for key in ["type", "uuid", "name", "bootable", "attrs"] {
            assert_eq!(old.table[key], new.table[key], "partition {number}: {key}");
        }
        if old.table["type"] == "5" {
            continue;
        }
        let old = files_of(scratch, card, old, "old");
        let new = files_of(scratch, image, new, "new");
        run(
            "diff",
            [
                OsStr::new("-r"),
                "--no-dereference".as_ref(),
                old.as_ref(),
                new.as_ref(),
            ],
        );
    }
}

/// Boot loaders live before the first partition, around the table.
fn compare_gap(card: &Path, image: &Path, gpt: bool) {
    let read = |path| {
        let mut bytes = vec![0; MIB as usize];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        bytes
    };
    let (old, new) = (read(card), read(image));
    assert_eq!(old[..446], new[..446]);
    let table = if gpt { 34 * 512 } else { 512 };
    assert!(old[table..] == new[table..], "the gap differs");
}

/// Copies all files of a partition's filesystem to a folder, after checking it.
fn files_of(scratch: &Scratch, image: &Path, part: &Part, name: &str) -> PathBuf {
    let folder = scratch.path(&format!("files-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let file = scratch.path(&format!("{name}.part"));
    let mut bytes = vec![0; part.len as usize];
    File::open(image)
        .unwrap()
        .read_exact_at(&mut bytes, part.start)
        .unwrap();
    fs::write(&file, &bytes).unwrap();
    let blkid = run(
        "blkid",
        [
            OsStr::new("-p"),
            "-o".as_ref(),
            "value".as_ref(),
            "-s".as_ref(),
            "TYPE".as_ref(),
            file.as_ref(),
        ],
    );
    match blkid.trim() {
        "ext4" => {
            run("e2fsck", [OsStr::new("-fn"), file.as_ref()]);
            let request = format!("rdump / {}", folder.display());
            run(
                "debugfs",
                [OsStr::new("-R"), request.as_ref(), file.as_ref()],
            );
        }
        "vfat" => {
            run("fsck.vfat", [OsStr::new("-n"), file.as_ref()]);
            run(
                "mcopy",
                [
                    OsStr::new("-s"),
                    "-i".as_ref(),
                    file.as_ref(),
                    "::*".as_ref(),
                    folder.as_ref(),
                ],
            );
        }
        "swap" => {
            fs::write(folder.join("header"), &bytes[..4096]).unwrap();
            assert!(name == "old" || bytes[4096..].iter().all(|&byte| byte == 0));
        }
        other => panic!("{other:?} in {part:?}"),
    }
    folder
}

fn sfdisk(card: &Path, table: &str) {
    let script = card.with_extension("part");
    fs::write(&script, table).unwrap();
    let command = format!(
        "sfdisk -q --no-tell-kernel {} < {}",
        card.display(),
        script.display()
    );
    run("sh", ["-c", &command]);
    fs::remove_file(&script).unwrap();
}
