//! Devices on Linux, proven on loop devices: needs root, losetup, sfdisk, mkfs.ext4 and mount.
#![cfg(target_os = "linux")]

#[path = "../src/scratch.rs"]
mod scratch;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pishrink::device::{
    self, AlignedBuf, Bus, SourceOptions, Target, TargetOptions, create_card_file, describe,
    open_source, open_target, resolve_target, safety, target_holds,
};
use pishrink::error::ErrorKind;
use pishrink::io::{ReadAt, WriteAt};
use scratch::Scratch;

const MIB: u64 = 1 << 20;

fn card(scratch: &Scratch, name: &str, size: u64) -> PathBuf {
    let path = scratch.path(name);
    create_card_file(&path, size).unwrap();
    path
}

struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path, options: &[&str]) -> Self {
        let file = file.to_str().unwrap();
        let name = run("losetup", &[&["--show", "-f"], options, &[file]].concat());
        Self(name.trim().into())
    }

    fn part(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.0.display()).into()
    }

    fn target(&self) -> Target {
        resolve_target(&self.0).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &Path, place: PathBuf) -> Self {
        fs::create_dir_all(&place).unwrap();
        run(
            "mount",
            &[device.to_str().unwrap(), place.to_str().unwrap()],
        );
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-q").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn partition(file: &Path, script: &str) {
    let scratch = file.with_extension("sfdisk");
    fs::write(&scratch, script).unwrap();
    let line = format!("sfdisk -q '{}' < '{}'", file.display(), scratch.display());
    run("sh", &["-c", &line]);
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) >> 3) as u8 ^ seed).collect()
}

#[test]
fn describes_disks_partitions_and_mounts() {
    let scratch = Scratch::new("describe");
    let file = card(&scratch, "card.img", 64 * MIB);
    partition(&file, "label: dos\n2048,32768,c\n34816,,83\n");
    // With -P, the kernel forgets the partitions when it is detached; partx is for kernels of small
    // virtual machines, which know no partition tables.
    let disk = Loop::attach(&file, &["-P"]);
    run("partx", &["-u", disk.0.to_str().unwrap()]);
    run("mkfs.ext4", &["-q", disk.part(2).to_str().unwrap()]);

    let info = describe(&disk.0).unwrap();
    assert_eq!(
        (info.size, info.bus, info.removable),
        (64 * MIB, Bus::Loop, false)
    );
    assert_eq!(
        (info.read_only, info.is_partition, info.system),
        (false, false, false)
    );
    assert_eq!(info.backing_file.as_deref(), Some(file.as_path()));
    assert_eq!(info.logical_block, 512);
    assert_eq!(info.volumes.len(), 2);
    assert_eq!(info.volumes[0].size, 16 * MIB);
    assert!(device::list().unwrap().contains(&info));
    assert!(safety::hidden_reason(&info).unwrap().contains("card.img"));

    let link = scratch.path("link");
    std::os::unix::fs::symlink(disk.part(2), &link).unwrap();
    let part = describe(&link).unwrap();
    assert_eq!(part.path, disk.part(2));
    assert!(part.is_partition);
    assert_eq!(part.parent, Some(disk.0.clone()));
    let error = safety::assess_target(&part, &any_device()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);

    let mount = Mounted::new(&disk.part(2), scratch.path("a b"));
    let inner = mount.0.join("inner");
    let nested = Mounted::new(&disk.part(2), inner.clone());
    let info = describe(&disk.0).unwrap();
    assert_eq!(info.volumes[1].mount_points, [mount.0.clone(), inner]);
    assert!(info.volumes[1].mounted_read_write);
    assert_eq!(info.volumes[1].fs_type.as_deref(), Some("ext4"));
    assert_eq!(device::mounts_of(&disk.0).unwrap(), info.volumes[1..]);

    // Mounted, and a loop device is not removable: neither source nor target.
    let target = Target::Device(Box::new(info.clone()));
    let refusals = [
        safety::assess_target(&info, &any_device()).unwrap_err(),
        open_target(&target, &TargetOptions::default()).unwrap_err(),
        open_source(&disk.0, &SourceOptions::default()).unwrap_err(),
    ];
    for error in refusals {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("mounted on"), "{error}");
    }
    let options = SourceOptions {
        allow_mounted: true,
    };
    assert_eq!(open_source(&disk.0, &options).unwrap().len(), 64 * MIB);
    // The other partition holds still.
    open_source(&disk.part(1), &SourceOptions::default()).unwrap();

    let image = mount.0.join("os.img");
    fs::write(&image, "x").unwrap();
    assert!(target_holds(&target, &image).unwrap());
    // What a loop device is made of is on it as well.
    assert!(target_holds(&target, &file).unwrap());
    assert!(!target_holds(&target, Path::new("/etc/hostname")).unwrap());
    assert!(!target_holds(&target, Path::new("/no/such/image")).unwrap());

    // A file that is open keeps it busy, which is said; then it goes, inner mount first.
    let open = File::open(&image).unwrap();
    let busy = device::unmount(&info, &info.volumes).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Refused);
    assert!(busy.hint().unwrap().contains("fuser"));
    drop(open);
    device::unmount(
        &describe(&disk.0).unwrap(),
        &describe(&disk.0).unwrap().volumes,
    )
    .unwrap();
    assert_eq!(describe(&disk.0).unwrap().mounted().count(), 0);
    drop((nested, mount));
    open_target(&disk.target(), &TargetOptions::default()).unwrap();
}

fn any_device() -> safety::TargetRules<'static> {
    safety::TargetRules {
        allow_any_device: true,
        holds_image: None,
    }
}

#[test]
fn targets_are_written_exactly_and_exclusively() {
    let scratch = Scratch::new("write");
    for (name, options, block) in [("512", &[][..], 512), ("4096", &["-b", "4096"][..], 4096)] {
        let file = card(&scratch, name, 8 * MIB);
        let disk = Loop::attach(&file, options);
        let target = open_target(&disk.target(), &TargetOptions::default()).unwrap();
        assert_eq!(
            target.notes(),
            [""; 0],
            "direct I/O and the lock work on loop devices"
        );
        assert_eq!((target.len(), target.alignment()), (8 * MIB, block));
        assert_eq!(target.info().unwrap().logical_block, block as u32);

        let mut expected = vec![0; 8 * MIB as usize];
        for (seed, (offset, len)) in [
            (0, 4096),
            (4096, 1),
            (5, 70_000),
            (8 * MIB - 3, 3),
            (512, 512),
        ]
        .into_iter()
        .enumerate()
        {
            let bytes = pattern(len, seed as u8);
            target.write_all_at(offset, &bytes).unwrap();
            expected[offset as usize..][..len].copy_from_slice(&bytes);
        }
        let mut aligned = AlignedBuf::zeroed(2 * MIB as usize);
        aligned.copy_from_slice(&pattern(2 * MIB as usize, 99));
        target.write_all_at(4 * MIB, &aligned).unwrap();
        expected[4 * MIB as usize..6 * MIB as usize].copy_from_slice(&aligned);
        target.drop_cache().unwrap();
        assert!(target.read_vec_at(0, expected.len()).unwrap() == expected);
        assert!(fs::read(&file).unwrap() == expected);
        for (offset, len) in [(8 * MIB, 1), (8 * MIB - 1, 2), (u64::MAX, 1)] {
            let error = target.write_all_at(offset, &vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound);
        }

        // Nobody else gets it meanwhile.
        let error = open_target(&disk.target(), &TargetOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
        drop(target);
        open_target(&disk.target(), &TargetOptions { direct: false }).unwrap();
    }
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let scratch = Scratch::new("discard");
    let file = card(&scratch, "card.img", 4 * MIB);
    let disk = Loop::attach(&file, &[]);
    for target in [
        disk.target(),
        Target::File(card(&scratch, "file.img", 4 * MIB)),
    ] {
        let target = open_target(&target, &TargetOptions::default()).unwrap();
        let mut expected = pattern(4 * MIB as usize, 5);
        target.write_all_at(0, &expected).unwrap();
        for range in [
            MIB..2 * MIB,
            100..70_001,
            513..514,
            1023..1025,
            4 * MIB - 1..4 * MIB,
            7..7,
        ] {
            assert!(target.write_zeroes(range.clone()).unwrap());
            expected[range.start as usize..range.end as usize].fill(0);
            target.drop_cache().unwrap();
            assert!(
                target.read_vec_at(0, expected.len()).unwrap() == expected,
                "{range:?}"
            );
        }
        // Loop devices and files give zeros for what was discarded; the ends stay as they were.
        assert!(target.discard(2 * MIB + 1..3 * MIB - 1).unwrap());
        let (start, end) = (2 * MIB as usize + 4096, 3 * MIB as usize - 4096);
        expected[start..end].fill(0);
        let after = target.read_vec_at(0, expected.len()).unwrap();
        assert!(after[start..end] == expected[start..end]);
        assert!(after[..=2 * MIB as usize] == expected[..=2 * MIB as usize]);
        assert!(after[3 * MIB as usize - 1..] == expected[3 * MIB as usize - 1..]);
        let past = target.discard(0..4 * MIB + 512).unwrap_err();
        assert_eq!(past.kind(), ErrorKind::Unsound);
    }
}

#[test]
fn the_kernel_rereads_the_table_when_asked() {
    let scratch = Scratch::new("table");
    let file = card(&scratch, "card.img", 8 * MIB);
    partition(&file, "label: dos\n2048,2048,c\n4096,,83\n");
    let disk = Loop::attach(&file, &["-P"]);
    let count = || describe(&disk.0).unwrap().volumes.len();
    // 0 where the kernel knows no such tables.
    let known = count();
    run("addpart", &[disk.0.to_str().unwrap(), "7", "6000", "100"]);
    assert_eq!(count(), known + 1);
    let target = open_target(&disk.target(), &TargetOptions::default()).unwrap();
    assert!(target.reread_table().unwrap());
    assert_eq!(count(), known);
    drop(target);
    // Without partition scanning there is nothing to ask.
    let plain = Loop::attach(&card(&scratch, "plain.img", MIB), &[]);
    let target = open_target(&plain.target(), &TargetOptions::default()).unwrap();
    assert!(!target.reread_table().unwrap());
}

#[test]
fn another_card_in_the_same_reader_is_refused() {
    let scratch = Scratch::new("swap");
    let file = card(&scratch, "card.img", MIB);
    let disk = Loop::attach(&file, &[]);
    let target = disk.target();
    // A larger one, as far as can be told. (To attach another file could lose the device to a test
    // that looks for a free one.)
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2 * MIB)
        .unwrap();
    run("losetup", &["-c", disk.0.to_str().unwrap()]);
    let error = open_target(&target, &TargetOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(
        error.to_string().contains("not the device it was"),
        "{error}"
    );
    open_target(&disk.target(), &TargetOptions::default()).unwrap();
}

#[test]
fn write_protected_devices_are_sources_only() {
    let scratch = Scratch::new("readonly");
    let disk = Loop::attach(&card(&scratch, "card.img", MIB), &["-r"]);
    let info = describe(&disk.0).unwrap();
    assert!(info.read_only);
    let error = safety::assess_target(&info, &any_device()).unwrap_err();
    assert!(error.to_string().contains("write-protected"), "{error}");
    let source = open_source(&disk.0, &SourceOptions::default()).unwrap();
    assert_eq!(source.read_vec_at(1000, 100).unwrap(), [0; 100]);
}

#[test]
fn sources_are_read_as_they_are_now() {
    let scratch = Scratch::new("source");
    let file = card(&scratch, "card.img", 4 * MIB + 512);
    let disk = Loop::attach(&file, &[]);
    let open = || open_source(&disk.0, &SourceOptions::default()).unwrap();
    let held = open();
    assert_eq!(held.len(), 4 * MIB + 512);
    assert_eq!(held.read_vec_at(4 * MIB, 512).unwrap(), [0; 512]);
    // Past the device's own cache, as a file system on a partition does it.
    let bytes = pattern(512, 1);
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(&bytes, 4 * MIB)
        .unwrap();
    assert_eq!(open().read_vec_at(4 * MIB, 512).unwrap(), bytes);
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let scratch = Scratch::new("kinds");
    let fifo = scratch.path("fifo");
    run("mkfifo", &[fifo.to_str().unwrap()]);
    for (path, reason) in [
        (scratch.folder(), "a folder"),
        (&fifo, "a pipe"),
        (Path::new("/dev/null"), "a character device"),
        (Path::new("-"), "standard input"),
    ] {
        let error = open_source(path, &SourceOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(reason), "{error}");
    }
    for path in [scratch.folder(), &fifo, Path::new("/dev/null")] {
        assert_eq!(resolve_target(path).unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(describe(path).unwrap_err().kind(), ErrorKind::Usage);
    }
    let missing = scratch.path("missing");
    assert_eq!(
        open_source(&missing, &SourceOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::Io
    );
    assert_eq!(resolve_target(&missing).unwrap_err().kind(), ErrorKind::Io);
}
