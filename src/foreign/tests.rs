//! Filesystems as their own mkfs makes them, then damaged.

use std::process::{Command, Stdio};

use super::*;
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;
use crate::scratch::Scratch;

/// Makes a filesystem by a line of shell over `$f`, a file of `mib` MiB.
fn made(mib: u64, mkfs: &str) -> MemoryDisk {
    let scratch = Scratch::new("foreign");
    let path = scratch.path("volume");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    let status = Command::new("sh")
        .args(["-ec", mkfs])
        .env("f", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{mkfs}: is the tool installed?");
    MemoryDisk::from(std::fs::read(&path).unwrap())
}

fn changed(disk: &MemoryDisk, at: u64, change: impl Fn(u8) -> u8) -> MemoryDisk {
    let copy = MemoryDisk::from(disk.read_vec_at(0, disk.len() as usize).unwrap());
    let byte = copy.read_vec_at(at, 1).unwrap()[0];
    copy.write_all_at(at, &[change(byte)]).unwrap();
    copy
}

fn patched(disk: &MemoryDisk, patches: &[Patch]) -> MemoryDisk {
    let copy = MemoryDisk::from(disk.read_vec_at(0, disk.len() as usize).unwrap());
    for (offset, bytes) in patches {
        copy.write_all_at(*offset, bytes).unwrap();
    }
    copy
}

mod exfat {
    use super::*;

    fn volume(disk: &MemoryDisk) -> Foreign {
        Foreign::by_boot_sector(disk).unwrap().unwrap()
    }

    /// Byte `at` of both boot regions, with the sums as they must be then.
    fn resummed(disk: &MemoryDisk, at: u64, value: u8) -> MemoryDisk {
        let disk = changed(disk, at, |_| value);
        let disk = changed(&disk, 12 * 512 + at, |_| value);
        for region in [0, 12 * 512] {
            let bytes = disk.read_vec_at(region, 11 * 512).unwrap();
            let sum = super::super::exfat::checksum(&bytes).to_le_bytes();
            let sums = sum.repeat(128);
            disk.write_all_at(region + 11 * 512, &sums).unwrap();
        }
        disk
    }

    #[test]
    fn its_place_is_told_in_both_boot_sectors() {
        let fresh = made(8, "mkfs.exfat -L card $f");
        let disk = resummed(&fresh, 65, 8);
        let foreign = volume(&disk);
        assert_eq!(foreign.label(), Some("card"));
        // The true place, 2048 sectors, is put right; any other stays.
        let there = foreign.moved(&disk, 2048 * 512, 4096 * 512).unwrap();
        let moved = patched(&disk, &there);
        assert_eq!(volume(&moved).name(), "exFAT");
        assert!(volume(&moved).can_move());
        for at in [64, 12 * 512 + 64] {
            assert_eq!(le64(&moved.read_vec_at(at, 8).unwrap(), 0), 4096);
        }
        let back = volume(&moved).moved(&moved, 4096 * 512, 2048 * 512);
        let back = patched(&moved, &back.unwrap());
        let all = |disk: &MemoryDisk| disk.read_vec_at(0, disk.len() as usize).unwrap();
        assert!(all(&back) == all(&disk));
        assert_eq!(foreign.moved(&disk, 512, 1024).unwrap(), []);
        assert_eq!(volume(&fresh).moved(&fresh, 512, 1024).unwrap(), []);
    }

    #[test]
    fn what_is_not_sure_is_an_error() {
        let fresh = made(8, "mkfs.exfat $f");
        let usage = volume(&fresh).usage(&fresh).unwrap();
        assert!(usage.clean && usage.notes.is_empty());
        assert!(usage.allocated.total() < 4 << 20);
        let region = |at| changed(&fresh, at, |byte| byte ^ 1);
        // The sum, a field under it, the boot code.
        for disk in [region(11 * 512), region(92), region(200)] {
            let foreign = volume(&disk);
            assert_eq!((foreign.name(), foreign.can_move()), ("exFAT", false));
            assert_eq!(foreign.usage(&disk).unwrap_err().kind(), ErrorKind::Unsound);
        }
        // Flags are not under the sum. A second FAT is not known.
        let dirty = changed(&fresh, 106, |_| 2);
        let usage = volume(&dirty).usage(&dirty).unwrap();
        assert!(!usage.clean && usage.notes.len() == 1);
        for (at, value) in [(110, 2), (105, 2), (96, 0), (99, 200), (108, 20)] {
            let disk = resummed(&fresh, at, value);
            let error = volume(&disk).usage(&disk).unwrap_err();
            assert!(matches!(
                error.kind(),
                ErrorKind::Unsound | ErrorKind::Unsupported
            ));
        }
    }

    /// A file that the bitmap forgets, and chains that cannot be.
    #[test]
    fn files_count_as_well_as_the_bitmap() {
        let fresh = made(8, "mkfs.exfat $f");
        let boot = fresh.read_vec_at(0, 512).unwrap();
        let (fat, heap) = (le32(&boot, 80), le32(&boot, 88));
        let cluster = 512u64 << boot[109];
        let place = |number: u64| u64::from(heap) * 512 + (number - 2) * cluster;
        let root = place(u64::from(le32(&boot, 96)));
        let entries = fresh.read_vec_at(root, 4096).unwrap();
        let end = entries.chunks(32).position(|entry| entry[0] == 0).unwrap() as u64 * 32;
        let with_file = |flags: u8, first: u32, len: u64| {
            let disk = changed(&fresh, root, |byte| byte);
            let mut set = vec![0u8; 96];
            set[0] = 0x85;
            set[1] = 2;
            set[32] = 0xc0;
            set[33] = flags;
            set[32 + 20..32 + 24].copy_from_slice(&first.to_le_bytes());
            set[32 + 24..64].copy_from_slice(&len.to_le_bytes());
            set[64] = 0xc1;
            disk.write_all_at(root + end, &set).unwrap();
            disk
        };
        let contiguous = with_file(3, 100, 3 * cluster - 5);
        let usage = volume(&contiguous).usage(&contiguous).unwrap();
        assert!(usage.notes[0].contains("marked as free"), "{usage:?}");
        let range = place(100)..place(103);
        let kept: Vec<_> = usage.allocated.iter_within(range.clone()).collect();
        assert_eq!(kept, [range]);
        let chain = with_file(1, 100, 2 * cluster);
        let entry = u64::from(fat) * 512 + 400;
        chain.write_all_at(entry, &103u32.to_le_bytes()).unwrap();
        let ends = [0xff; 4];
        chain.write_all_at(entry + 12, &ends).unwrap();
        let usage = volume(&chain).usage(&chain).unwrap();
        for number in [100, 103] {
            assert!(usage.allocated.contains(place(number)), "{usage:?}");
        }
        assert!(!usage.allocated.contains(place(101)));
        // Too short; in a circle; out of the heap; another's clusters.
        let circle = with_file(1, 100, 9 * cluster);
        circle.write_all_at(entry, &100u32.to_le_bytes()).unwrap();
        let short = with_file(1, 100, 2 * cluster);
        short.write_all_at(entry, &ends).unwrap();
        let far = with_file(3, 100, u64::MAX);
        let shared = with_file(3, 2, cluster);
        for disk in [circle, short, far, shared] {
            let error = volume(&disk).usage(&disk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound);
        }
    }
}
