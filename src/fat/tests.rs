//! Filesystems made by mkfs.fat and filled by mtools; judged by fsck.vfat, blkid and mtools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;
use crate::error::ErrorKind;
use crate::fat::boot::Root;
use crate::io::WriteAt;
use crate::io::memory::{FaultyDisk, MemoryDisk};
use crate::scratch::Scratch;

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed as a judge: {error}"))
}

fn succeed(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {text}{errors}"
    );
    text
}

/// What mkfs.fat is asked for.
struct Case {
    kind: FatKind,
    kib: u64,
    args: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        kind: FatKind::Fat12,
        kib: 1440,
        args: &["-F12"],
    },
    Case {
        kind: FatKind::Fat12,
        kib: 8000,
        args: &["-F12", "-f1", "-s4"],
    },
    Case {
        kind: FatKind::Fat16,
        kib: 16_384,
        args: &["-F16"],
    },
    Case {
        kind: FatKind::Fat16,
        kib: 63_333,
        args: &["-F16", "-s2", "-r112", "-R8"],
    },
    Case {
        kind: FatKind::Fat32,
        kib: 40_000,
        args: &["-F32", "-s1"],
    },
    Case {
        kind: FatKind::Fat32,
        kib: 262_144,
        args: &["-F32", "-s4"],
    },
    Case {
        kind: FatKind::Fat32,
        kib: 81_001,
        args: &["-F32", "-S1024", "-s1", "-f1"],
    },
    Case {
        kind: FatKind::Fat16,
        kib: 524_288,
        args: &["-F16"],
    },
];

const CMDLINE: &str = "console=serial0,115200 root=PARTUUID=1234abcd-02 rootwait\n";

/// Makes a filesystem with files, directories, long names, gaps and deleted files.
fn make(scratch: &Scratch, case: &Case) -> PathBuf {
    let image = scratch.path("fat.img");
    let _ = fs::remove_file(&image);
    let path = image.to_str().unwrap();
    let kib = case.kib.to_string();
    let mut args = vec!["-C", "-n", "BOOTFS", "-i", "1A2B3C4D"];
    args.extend(case.args);
    args.extend([path, &kib]);
    succeed("mkfs.fat", &args);
    let host = scratch.path("host");
    fs::write(&host, CMDLINE).unwrap();
    let host_path = host.to_str().unwrap();
    succeed("mcopy", &["-i", path, host_path, "::cmdline.txt"]);
    succeed(
        "mcopy",
        &["-i", path, host_path, "::A long name with ümlauts.txt"],
    );
    succeed("mmd", &["-i", path, "::overlays"]);
    for number in 0..30usize {
        let contents: Vec<u8> = (0..number * 1300)
            .map(|at| ((at * number) >> 4) as u8)
            .collect();
        fs::write(&host, contents).unwrap();
        let name = format!("::overlays/a rather long name {number}.dtbo");
        succeed("mcopy", &["-i", path, host_path, &name]);
    }
    for number in [3, 4, 11, 28] {
        let name = format!("::overlays/a rather long name {number}.dtbo");
        succeed("mdel", &["-i", path, &name]);
    }
    image
}

fn load(path: &Path) -> MemoryDisk {
    MemoryDisk::from(fs::read(path).unwrap())
}

fn identify(disk: &MemoryDisk) -> Fat {
    Fat::identify(disk).unwrap().expect("it is FAT")
}

#[test]
fn what_is_not_allocated_can_be_zeroed() {
    let scratch = Scratch::new("fat");
    for case in CASES {
        let image = make(&scratch, case);
        let path = image.to_str().unwrap();
        let disk = load(&image);
        let fat = identify(&disk);
        assert_eq!(fat.kind(), case.kind);
        let usage = fat.usage(&disk).unwrap();
        assert!(
            usage.clean && usage.warnings.is_empty(),
            "{:?}",
            usage.warnings
        );

        let said = succeed("fsck.vfat", &["-n", path]);
        let counts = format!(" {}/{} clusters", usage.used_clusters, fat.cluster_count());
        assert!(said.contains(&counts), "{said} is not {counts}");
        let counted = usage.used_clusters + usage.free_clusters + usage.bad_clusters;
        assert_eq!(counted, fat.cluster_count());

        let before = scratch.path("before");
        let after = scratch.path("after");
        for folder in [&before, &after] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir(folder).unwrap();
        }
        succeed(
            "mcopy",
            &["-s", "-m", "-i", path, "::*", before.to_str().unwrap()],
        );
        // Garbage, not zeros: whatever is read outside must show.
        let mut bytes = disk.to_vec();
        for gap in usage.allocated.gaps(0..disk.len()) {
            bytes[gap.start as usize..gap.end as usize].fill(0xa5);
        }
        fs::write(&image, &bytes).unwrap();
        succeed("fsck.vfat", &["-n", path]);
        succeed(
            "mcopy",
            &["-s", "-m", "-i", path, "::*", after.to_str().unwrap()],
        );
        let (before, after) = (before.to_str().unwrap(), after.to_str().unwrap());
        succeed("diff", &["-r", before, after]);
        let used = u64::from(usage.used_clusters) * fat.cluster_size();
        assert_eq!(usage.allocated.total(), fat.geometry.data_start + used);
    }
}

#[test]
fn a_small_fat32_is_fat32() {
    // mtools takes these for FAT16, as the specification would; Linux and fsck.fat do not.
    let scratch = Scratch::new("fat");
    let image = scratch.path("fat.img");
    let path = image.to_str().unwrap();
    for size in ["-S512", "-S2048", "-S4096"] {
        let _ = fs::remove_file(&image);
        succeed(
            "mkfs.fat",
            &["-C", "-F32", "-s1", size, "-n", "SMALL", path, "30000"],
        );
        let disk = load(&image);
        let fat = identify(&disk);
        let usage = fat.usage(&disk).unwrap();
        assert_eq!((fat.kind(), fat.label()), (FatKind::Fat32, Some("SMALL")));
        let counts = format!(" {}/{} clusters", usage.used_clusters, fat.cluster_count());
        let said = succeed("fsck.vfat", &["-n", path]);
        assert!(said.contains(&counts), "{said} is not {counts}");
    }
}

#[test]
fn names_agree_with_blkid() {
    let scratch = Scratch::new("fat");
    for case in CASES.iter().take(6) {
        let image = make(&scratch, case);
        let path = image.to_str().unwrap();
        let fat = identify(&load(&image));
        let said = succeed("blkid", &["-p", "-o", "export", path]);
        for line in [
            format!("UUID={}", fat.uuid().unwrap()),
            format!("LABEL={}", fat.label().unwrap()),
            format!("VERSION={}", fat.kind()),
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        succeed("fatlabel", &[path, "NEW NAME"]);
        succeed("fatlabel", &["-i", path, "DEADBEEF"]);
        let fat = identify(&load(&image));
        assert_eq!(fat.label(), Some("NEW NAME"));
        assert_eq!(fat.uuid().as_deref(), Some("DEAD-BEEF"));
        succeed("fatlabel", &["-r", path]);
        assert_eq!(identify(&load(&image)).label(), None);
    }
}

#[test]
fn files_of_the_root_directory_are_read() {
    let scratch = Scratch::new("fat");
    for case in CASES {
        let image = make(&scratch, case);
        let path = image.to_str().unwrap();
        let host = scratch.path("host");
        let kernel: Vec<u8> = (0..400_000u32).map(|at| (at >> 3) as u8).collect();
        fs::write(&host, &kernel).unwrap();
        succeed(
            "mcopy",
            &["-i", path, host.to_str().unwrap(), "::kernel8.img"],
        );
        fs::write(&host, b"").unwrap();
        succeed("mcopy", &["-i", path, host.to_str().unwrap(), "::ssh"]);
        let disk = load(&image);
        let fat = identify(&disk);
        let read = |name, most| fat.read_root_file(&disk, name, most).unwrap();
        for name in ["cmdline.txt", "CMDLINE.TXT", "a long name with Ümlauts.txt"] {
            assert_eq!(
                read(name, 4096).as_deref(),
                Some(CMDLINE.as_bytes()),
                "{name}"
            );
        }
        assert_eq!(
            read("cmdline.txt", 7).as_deref(),
            Some(&CMDLINE.as_bytes()[..7])
        );
        assert!(read("kernel8.img", 1 << 20).unwrap() == kernel);
        assert_eq!(read("ssh", 10), Some(vec![]));
        for name in ["overlays", "BOOTFS", "nothing.txt", ""] {
            assert_eq!(read(name, 4096), None, "{name}");
        }
    }
}

#[test]
fn only_what_is_in_use_is_read() {
    let scratch = Scratch::new("fat");
    let disk = load(&make(&scratch, &CASES[5]));
    let allocated = identify(&disk).allocated(&disk).unwrap();
    let free: RangeSet = allocated.gaps(0..disk.len()).into_iter().collect();
    let disk = FaultyDisk::new(disk).with_bad_reads(free);
    let fat = Fat::identify(&disk).unwrap().unwrap();
    assert_eq!(fat.allocated(&disk).unwrap(), allocated);
    assert!(
        fat.read_root_file(&disk, "cmdline.txt", 100)
            .unwrap()
            .is_some()
    );
}

#[test]
fn damage_is_told() {
    let scratch = Scratch::new("fat");
    let disk = load(&make(&scratch, &CASES[5]));
    let fat = identify(&disk);
    let geometry = &fat.geometry;
    let sound = fat.usage(&disk).unwrap();
    let entry = |copy: u8, cluster: u64| geometry.fat_copy(copy) + cluster * 4;

    // A cluster that only the copy knows, and a bad one.
    let last = u64::from(geometry.clusters) + 1;
    disk.write_all_at(entry(1, last), &[0xff; 4]).unwrap();
    for copy in 0..2 {
        disk.write_all_at(entry(copy, last - 1), &[0xf7, 0xff, 0xff, 0x0f])
            .unwrap();
    }
    let usage = fat.usage(&disk).unwrap();
    assert_eq!(usage.bad_clusters, 1);
    assert!(usage.warnings[0].contains("disagree in 1 entries"));
    assert_eq!(
        usage.allocated.total(),
        sound.allocated.total() + fat.cluster_size()
    );

    // Not unmounted: by the FAT's bit, and by Linux's mark.
    disk.write_all_at(entry(0, 1) + 3, &[0x07]).unwrap();
    assert!(!fat.usage(&disk).unwrap().clean);
    disk.write_all_at(entry(0, 1) + 3, &[0x0f]).unwrap();
    assert!(fat.usage(&disk).unwrap().clean);
    disk.write_all_at(65, &[1]).unwrap();
    assert!(!identify(&disk).usage(&disk).unwrap().clean);

    // The second FAT is the active one: then the first one no longer counts.
    disk.write_all_at(40, &[0x81, 0]).unwrap();
    disk.write_all_at(entry(0, 0), &[0xf8, 0xff, 0xff, 0x0f])
        .unwrap();
    disk.write_all_at(entry(0, 3), &vec![0; 4000]).unwrap();
    let fat = identify(&disk);
    let second = fat.usage(&disk).unwrap();
    assert_eq!(second.used_clusters, sound.used_clusters + 1);
    assert_eq!(
        fat.read_root_file(&disk, "cmdline.txt", 9)
            .unwrap()
            .unwrap(),
        b"console=s"
    );
    disk.write_all_at(40, &[0x82, 0]).unwrap();
    assert_eq!(Fat::identify(&disk).unwrap_err().kind(), ErrorKind::Unsound);
    disk.write_all_at(40, &[0, 0]).unwrap();

    // A chain that runs in a circle: the root directory leads to itself.
    let Root::Chain { first } = geometry.root else {
        unreachable!()
    };
    disk.write_all_at(entry(0, u64::from(first)), &first.to_le_bytes())
        .unwrap();
    let start = geometry.cluster_start(first).unwrap();
    let mut full = vec![0xe5; geometry.cluster_size as usize];
    full[11] = 0x20;
    disk.write_all_at(start, &full).unwrap();
    let fat = identify(&disk);
    assert_eq!(fat.label(), Some("BOOTFS"), "the boot sector's own label");
    let _ = fat.read_root_file(&disk, "cmdline.txt", 9);

    let short = MemoryDisk::from(disk.to_vec()[..fat.len() as usize - 512].to_vec());
    assert_eq!(
        Fat::identify(&short).unwrap_err().kind(),
        ErrorKind::Unsound
    );
}

/// Breaks the chain of a file in every way, and holds what is said against fsck.fat.
#[test]
fn broken_chains_are_told_as_fsck_does() {
    let scratch = Scratch::new("fat");
    let path = make(&scratch, &CASES[4]);
    let whole = fs::read(&path).unwrap();
    let sound = load(&path);
    let fat = identify(&sound);
    let geometry = &fat.geometry;
    assert_eq!(fat.usage(&sound).unwrap().damage, Vec::<String>::new());
    // 29 * 1300 bytes are many clusters of a sector each.
    let name = "/overlays/a rather long name 29.dtbo";
    let mut first = None;
    let mut names = Clusters(name, &mut first);
    assert!(walk::walk_files(geometry, &sound, &mut names).unwrap());
    let first = ((first.unwrap() - geometry.data_start) / geometry.cluster_size) as u32 + 2;
    let second = first + 1;
    for (cluster, value, words) in [
        (second, 0, "marked as free"),
        (second, 0x0fff_fff7, "marked as bad"),
        (first, geometry.clusters + 2, "is not there"),
        (first, 1, "cluster 1, which is not there"),
        (first, 2, "shares cluster 2"),
        (first + 2, first, "shares cluster"),
        (second, 0x0fff_ffff, "has 1024 bytes of clusters"),
    ] {
        let disk = MemoryDisk::from(whole.clone());
        for copy in 0..2 {
            let at = geometry.fat_copy(copy) + u64::from(cluster) * 4;
            disk.write_all_at(at, &value.to_le_bytes()).unwrap();
        }
        let damage = identify(&disk).usage(&disk).unwrap().damage;
        let told = damage.iter().any(|line| line.contains(words));
        assert!(
            told && damage[0].contains("/overlays/"),
            "{words}: {damage:?}"
        );
        fs::write(&path, disk.to_vec()).unwrap();
        let fsck = run("fsck.fat", &["-n", path.to_str().unwrap()]);
        assert_eq!(fsck.status.code(), Some(1), "{words}");
    }
    // A chain that no file names costs nothing but room.
    let disk = MemoryDisk::from(whole);
    let last = u64::from(geometry.clusters) + 1;
    for copy in 0..2 {
        let at = geometry.fat_copy(copy) + last * 4;
        disk.write_all_at(at, &[0xff; 4]).unwrap();
    }
    let usage = identify(&disk).usage(&disk).unwrap();
    assert!(usage.damage.is_empty());
    assert!(usage.warnings[0].starts_with("1 clusters in use"));
}

/// Looks for the first cluster of a file.
struct Clusters<'a>(&'a str, &'a mut Option<u64>);

impl walk::Visit for Clusters<'_> {
    fn cluster(&mut self, chain: &walk::Chain, start: u64, offset: u64) {
        if chain.path == self.0 && offset == 0 {
            *self.1 = Some(start);
        }
    }
}

#[test]
fn other_filesystems_are_not_fat() {
    let scratch = Scratch::new("fat");
    for (program, args) in [
        ("mkfs.ext4", &["-q", "-F"][..]),
        ("mkfs.ext2", &["-q", "-F", "-b1024"]),
        ("mkswap", &[]),
    ] {
        let image = scratch.path("other.img");
        // On top of a FAT, whose remains may stay.
        make(&scratch, &CASES[3]);
        fs::rename(scratch.path("fat.img"), &image).unwrap();
        let mut all = args.to_vec();
        all.push(image.to_str().unwrap());
        succeed(program, &all);
        assert_eq!(Fat::identify(&load(&image)).unwrap(), None, "{program}");
    }
    let disk = load(&make(&scratch, &CASES[3]));
    for name in [b"NTFS    ", b"EXFAT   "] {
        disk.write_all_at(3, name).unwrap();
        assert_eq!(Fat::identify(&disk).unwrap(), None);
    }
    let mut mbr = vec![0; 8192];
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    for bytes in [vec![], vec![0; 512], vec![0xff; 4096], mbr] {
        assert_eq!(Fat::identify(&MemoryDisk::from(bytes)).unwrap(), None);
    }
}

#[test]
fn mutations_never_panic_or_hang() {
    let scratch = Scratch::new("fat");
    let mut state = 5u64;
    let mut next = |end: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 20) % end
    };
    for case in [&CASES[0], &CASES[2], &CASES[4]] {
        let disk = load(&make(&scratch, case));
        let geometry = identify(&disk).geometry;
        let mut identified = 0;
        for _ in 0..2500 {
            let mut undo = Vec::new();
            for _ in 0..1 + next(4) {
                let at = match next(4) {
                    0 | 1 => next(90),
                    2 => geometry.fat_start + next(geometry.fat_len.min(2048)),
                    _ => geometry.data_start.saturating_sub(4096) + next(16_384),
                };
                let mut old = [0];
                disk.read_exact_at(at, &mut old).unwrap();
                undo.push((at, old));
                let new = match next(3) {
                    0 => [0, 1, 0x7f, 0x80, 0xff][next(5) as usize],
                    1 => old[0] ^ 1 << next(8),
                    _ => next(256) as u8,
                };
                disk.write_all_at(at, &[new]).unwrap();
            }
            if let Ok(Some(fat)) = Fat::identify(&disk) {
                identified += 1;
                let usage = fat.usage(&disk).unwrap();
                assert_eq!(usage.allocated.gaps(fat.len()..u64::MAX).len(), 1);
                let clusters = usage.used_clusters + usage.free_clusters + usage.bad_clusters;
                assert_eq!(clusters, fat.cluster_count());
                assert!(usage.damage.len() <= 4);
                let _ = fat.read_root_file(&disk, "kernel8.img", 1 << 20);
                let _ = fat.read_root_file(&disk, "a long name with ümlauts.txt", 1 << 20);
            }
            for (at, old) in undo.into_iter().rev() {
                disk.write_all_at(at, &old).unwrap();
            }
        }
        assert!(identified > 180, "only {identified} were still FAT");
    }
}
