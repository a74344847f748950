//! Disks beyond the round numbers: filesystems of more than 2^32 blocks (16 TiB), and the 2 TiB that
//! an MBR can say. The disks are in memory or sparse files, so they take next to no room; a real
//! filesystem of 17 TiB, filled by the kernel, is in `proofs/scale.py --huge`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pishrink::error::ErrorKind;
use pishrink::ext4::read::metadata::Metadata;
use pishrink::ext4::{Ext4, Growth, Target};
use pishrink::io::memory::MemoryDisk;
use pishrink::io::{ReadAt, WriteAt};
use pishrink::units::InodeNr;

const BLOCK: u64 = 4096;
const TIB: u64 = 1 << 40;
/// The first block number that does not fit into 32 bits.
const BEYOND: u64 = 1 << 32;

/// A folder of a test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("large-{name}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Makes a filesystem of 64 MiB with one file, /noise, whose inode is 12.
    fn filesystem(&self, features: &str) -> PathBuf {
        let (image, tree) = (self.0.join("image"), self.0.join("tree"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("noise"), noise()).unwrap();
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(&format!(
            "mke2fs -q -F -t ext4 -b 4096 -N 16 -O {features} -d {} {}",
            tree.display(),
            image.display()
        ));
        image
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn run(line: &str) -> String {
    let done = Command::new("bash").args(["-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}{errors}");
    said
}

fn noise() -> Vec<u8> {
    (0..100_000u64).map(|at| ((at * at) >> 7) as u8).collect()
}

/// Puts a filesystem at the beginning of a disk of `len` bytes, and grows it over all of it.
fn grown(image: &Path, len: u64) -> (MemoryDisk, Growth) {
    let disk = MemoryDisk::new(len);
    disk.write_all_at(0, &std::fs::read(image).unwrap())
        .unwrap();
    let growth = Ext4::open(&disk).unwrap().grow(len).unwrap();
    growth.steps.commit(&disk, &mut |_, _| Ok(())).unwrap();
    (disk, growth)
}

/// Gives the file, inode 12, new places: so many blocks from there on, one extent each.
fn put_file_at(disk: &MemoryDisk, places: &[(u64, usize)]) {
    let ext = Ext4::open(disk).unwrap();
    let meta = Metadata::read(disk, &mut ext.findings().clone()).unwrap();
    let number = InodeNr(12);
    let mut slot = meta.read_inode(disk, number).unwrap();
    let root = slot.i_block_mut();
    root[2] = places.len() as u8;
    let mut bytes = noise();
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    let mut logical = 0;
    for (index, &(block, count)) in places.iter().enumerate() {
        let part = &bytes[logical * BLOCK as usize..][..count * BLOCK as usize];
        disk.write_all_at(block * BLOCK, part).unwrap();
        let entry = &mut root[12 * (index + 1)..][..12];
        entry[..4].copy_from_slice(&(logical as u32).to_le_bytes());
        entry[4..6].copy_from_slice(&(count as u16).to_le_bytes());
        entry[6..8].copy_from_slice(&((block >> 32) as u16).to_le_bytes());
        entry[8..].copy_from_slice(&(block as u32).to_le_bytes());
        logical += count;
    }
    assert_eq!(logical * BLOCK as usize, bytes.len());
    slot.update_checksum(&meta.fs.checksums, number);
    disk.write_all_at(meta.inode_offset(number), slot.bytes())
        .unwrap();
}

#[test]
fn a_file_behind_block_2_to_the_32_comes_down_and_stays_the_same() {
    let scratch = Scratch::new("beyond");
    let image = scratch.filesystem("64bit,^resize_inode");
    // Group 3^11, which carries copies, begins behind 2^32 blocks.
    let (disk, growth) = grown(&image, 22 * TIB);
    assert_eq!(growth.new_len, 22 * TIB);
    let ext = Ext4::open(&disk).unwrap();
    assert!(ext.findings().repairs().is_empty(), "{:?}", ext.findings());
    assert_eq!(ext.superblock().blocks_count(), 22 * TIB / BLOCK);
    assert_eq!(ext.superblock().s_blocks_count_hi(), 1);
    let copy = disk.read_vec_at(177_147 * 32768 * BLOCK, 1024).unwrap();
    assert_eq!(copy[0x38..0x3A], [0x53, 0xEF]);
    assert_eq!(copy[0x150..0x154], [1, 0, 0, 0]);
    let last = 22 * TIB / BLOCK - 25;
    for places in [
        &[(BEYOND - 10, 10), (BEYOND + 100, 15)][..],
        &[(BEYOND + 100, 5), (BEYOND - 10, 10), (last, 10)],
        &[(last, 25)],
    ] {
        put_file_at(&disk, places);
        let ext = Ext4::open(&disk).unwrap();
        // The bitmaps know nothing of it, which is put right.
        assert!(!ext.findings().repairs().is_empty());
        let kept = ext.image(Target::Keep).unwrap();
        assert_eq!((kept.overlay.len(), kept.moved_blocks), (22 * TIB, 0));
        let view = kept.overlay.over(&disk);
        assert!(Ext4::open(&view).unwrap().findings().repairs().is_empty());
        for &(place, count) in places {
            assert!(kept.stored.contains(place * BLOCK));
            assert!(kept.stored.contains((place + count as u64) * BLOCK - 1));
        }
        let shrunk = ext.image(Target::Headroom(0)).unwrap();
        assert!(shrunk.moved_blocks >= 25);
        let len = shrunk.overlay.len();
        assert!(len < 64 << 20, "{len}");
        std::fs::write(
            &image,
            shrunk
                .overlay
                .over(&disk)
                .read_vec_at(0, len as usize)
                .unwrap(),
        )
        .unwrap();
        run(&format!("e2fsck -fn {}", image.display()));
        let out = scratch.0.join("out");
        run(&format!(
            "debugfs -R 'dump noise {}' {}",
            out.display(),
            image.display()
        ));
        assert!(std::fs::read(&out).unwrap() == noise());
    }
}

#[test]
fn sizes_around_2_to_the_32_blocks() {
    let scratch = Scratch::new("around");
    let image = scratch.filesystem("64bit,^resize_inode");
    let small = MemoryDisk::from(std::fs::read(&image).unwrap());
    let least = Ext4::open(&small).unwrap().minimum_bytes().unwrap();
    for blocks in [BEYOND - 1, BEYOND, BEYOND + 32768 + 600] {
        let (disk, growth) = grown(&image, blocks * BLOCK);
        assert_eq!(growth.new_len, blocks * BLOCK);
        let ext = Ext4::open(&disk).unwrap();
        assert_eq!(ext.superblock().blocks_count(), blocks);
        assert_eq!(ext.minimum_bytes().unwrap(), least, "{blocks}");
    }
}

#[test]
fn a_partial_group_below_2_to_the_32_blocks_is_filled_and_gone_beyond() {
    let scratch = Scratch::new("across");
    let image = scratch.filesystem("64bit,^resize_inode");
    let beyond = BEYOND + 32768 + 600;
    let disk = MemoryDisk::new(beyond * BLOCK);
    disk.write_all_at(0, &std::fs::read(&image).unwrap())
        .unwrap();
    for blocks in [BEYOND - 1, BEYOND, beyond] {
        let ext = Ext4::open(&disk).unwrap();
        let growth = ext.grow(blocks * BLOCK).unwrap();
        growth.steps.commit(&disk, &mut |_, _| Ok(())).unwrap();
        let ext = Ext4::open(&disk).unwrap();
        assert!(ext.findings().repairs().is_empty(), "{:?}", ext.findings());
        assert_eq!(ext.superblock().blocks_count(), blocks);
    }
}

#[test]
fn without_64bit_growth_stops_below_2_to_the_32_blocks() {
    let scratch = Scratch::new("narrow");
    let image = scratch.filesystem("^64bit,^resize_inode");
    let (disk, growth) = grown(&image, 20 * TIB);
    assert_eq!(growth.new_len, (BEYOND - 32768) * BLOCK);
    Ext4::open(&disk).unwrap();
    // A superblock that claims more than the device has is not believed.
    let cut = MemoryDisk::new(15 * TIB);
    cut.write_all_at(0, &disk.read_vec_at(0, 64 << 20).unwrap())
        .unwrap();
    let error = Ext4::open(&cut).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
    assert!(
        error.to_string().contains(&(15 * TIB).to_string()),
        "{error}"
    );
}

/// A card of 3 TiB: an MBR reaches 2 TiB of it, a GPT all.
#[test]
fn an_mbr_grows_to_2_tib_and_a_gpt_beyond() {
    let scratch = Scratch::new("tables");
    let image = scratch.filesystem("64bit,^resize_inode");
    let bytes = std::fs::read(&image).unwrap();
    for (label, end) in [
        ("dos", (BEYOND - 1) * 512 / BLOCK * BLOCK),
        ("gpt", 3 * TIB - BLOCK * 5),
    ] {
        let card = scratch.0.join(label);
        let file = File::create(&card).unwrap();
        file.set_len(66 << 20).unwrap();
        file.write_all_at(&bytes, 1 << 20).unwrap();
        let name = card.display();
        run(&format!(
            "printf 'label: {label}\\nstart=2048,size=131072\\n' | sfdisk -q {name}"
        ));
        file.set_len(3 * TIB).unwrap();
        let done = Command::new(env!("CARGO_BIN_EXE_pishrink"))
            .args(["expand", "--json"])
            .arg(&card)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned()
            + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        let told: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let told = &told["expansion"];
        assert_eq!(told["new_partition"], end - (1 << 20), "{label}: {said}");
        assert_eq!(told["new_filesystem"], (end - (1 << 20)) / BLOCK * BLOCK);
        run(&format!(
            "sfdisk --verify {name}; e2fsck -fn '{name}?offset=1048576'"
        ));
        // Below 2 TiB nothing has to be said; that the rest stays unused has.
        let notes = told["notes"].to_string();
        assert_eq!(notes.contains("2 TiB"), label == "dos", "{notes}");
    }
}
