//! Orphans made by debugfs on filesystems made by mke2fs; e2fsck judges what is left of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::*;
use crate::error::ErrorKind;
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::inode::{I_BLOCK_SIZE, S_IFREG};
use crate::ext4::format::raw::put32;
use crate::ext4::format::superblock::Superblock;
use crate::ext4::read::inode_table::read_inode;
use crate::ext4::read::map::read_map;
use crate::ext4::test_image::{Scratch, mke2fs};
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;

const LEN: u64 = 24 << 20;
const BLOCK: u64 = 1024;
const NOW: u32 = 1_800_000_000;

/// Lines of e2fsck that are about bitmaps and counts, which our caller rebuilds.
fn is_about_counts(line: &str) -> bool {
    [
        "e2fsck ",
        "Pass ",
        "Fix? yes",
        "Update quota info",
        "[QUOTA WARNING]",
        "Padding",
    ]
    .iter()
    .any(|start| line.starts_with(start))
        || ["bitmap differences", "count wrong", "MODIFIED", " files ("]
            .iter()
            .any(|part| line.contains(part))
        || line.trim().is_empty()
}

/// An image in the making: debugfs edits it.
struct Image(Scratch);

impl Image {
    /// Makes a filesystem that holds the files of `folder`.
    fn new(args: &[&str], folder: &Scratch) -> Self {
        let folder = folder.as_ref().to_str().unwrap();
        let args = [args, &["-d", folder]].concat();
        Self(Scratch::file(&mke2fs(LEN, &args)))
    }

    fn debugfs(&self, command: &str) -> String {
        self.0.run("debugfs", &["-w", "-R", command])
    }

    /// Returns the number of a file in the root.
    fn number(&self, name: &str) -> u32 {
        let text = self.debugfs(&format!("stat /{name}"));
        let number = text.split("Inode: ").nth(1).unwrap();
        number.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Puts files into the orphan list, with what the list needs of each.
    fn enlist(&self, orphans: &[(u32, Option<u64>)]) {
        let mut next = 0;
        for (number, size) in orphans.iter().rev() {
            match size {
                Some(size) => self.debugfs(&format!("sif <{number}> size {size}")),
                None => self.debugfs(&format!("sif <{number}> links_count 0")),
            };
            // debugfs takes dtime for a time, so the number has to look like one.
            self.debugfs(&format!("sif <{number}> dtime @{next}"));
            next = *number;
        }
        self.debugfs(&format!("ssv last_orphan {next}"));
    }

    fn finish(&self) -> Result<(Orphans, MemoryDisk)> {
        let disk = MemoryDisk::from(self.0.read());
        let fs = Super::read(&disk).unwrap().unwrap();
        let orphans = finish_orphans(&fs, &disk, NOW)?;
        Ok((orphans, disk))
    }
}

/// Applies the overlay, has e2fsck judge the result, and returns it with bitmaps mended.
fn judged(orphans: &Orphans, disk: &MemoryDisk) -> Image {
    let view = orphans.overlay.over(disk);
    let bytes = view.read_vec_at(0, LEN as usize).unwrap();
    let image = Image(Scratch::file(&bytes));
    let (code, text) = image.0.ask("e2fsck", &["-fy", "-E", "no_optimize_extents"]);
    let complaints: Vec<_> = text.lines().filter(|line| !is_about_counts(line)).collect();
    assert!(code <= 1 && complaints.is_empty(), "{code}: {text}");
    image
}

/// Writes a file with data in every other block up to `blocks`, and in one far away.
fn sparse_file(folder: &Scratch, name: &str, blocks: u64, far: u64) -> Vec<u8> {
    let path = folder.as_ref().join(name);
    let file = File::create(&path).unwrap();
    for block in (0..blocks).step_by(2).chain([far]) {
        let content = [1 + (block % 250) as u8; BLOCK as usize];
        file.write_all_at(&content, block * BLOCK).unwrap();
    }
    fs::read(path).unwrap()
}

#[test]
fn truncates_to_the_size() {
    let folder = Scratch::folder();
    let content = sparse_file(&folder, "file", 1800, 70_000);
    let far = content.len() as u64;
    for features in [
        "extent",
        "^extent,^64bit",
        "^extent,^64bit,^metadata_csum",
        "^huge_file",
    ] {
        let image = Image::new(&["-O", features], &folder);
        let original = image.0.read();
        let number = image.number("file");
        for size in [
            0,
            1,
            BLOCK,
            5 * BLOCK + 7,
            12 * BLOCK,
            13 * BLOCK,
            268 * BLOCK,
            269 * BLOCK - 1,
            700 * BLOCK + 1,
            1798 * BLOCK + 1000,
            1800 * BLOCK,
            60_000 * BLOCK,
            65_804 * BLOCK,
            far - 1,
            far,
        ] {
            let what = format!("{features}, {size} bytes");
            fs::write(&image.0, &original).unwrap();
            image.enlist(&[(number, Some(size))]);
            let (orphans, disk) = image.finish().unwrap_or_else(|e| panic!("{what}: {e:?}"));
            assert_eq!((orphans.deleted, orphans.truncated), (0, 1), "{what}");
            let after = judged(&orphans, &disk);
            let fs = Super::read(&disk).unwrap().unwrap();
            let freed = |disk: &dyn ReadAt| {
                let slot = read_inode(&fs, disk, InodeNr(number)).unwrap();
                slot.inode.blocks_512(&fs) as i64 * 512
            };
            let freed = freed(&disk) - freed(&orphans.overlay.over(&disk));
            let charged: i64 = orphans.quota_deltas.iter().map(|delta| delta.bytes).sum();
            assert_eq!(charged, -freed, "{what}");
            // What lay behind the end must not come back when the file grows.
            let full = size.next_multiple_of(BLOCK);
            after.debugfs(&format!("sif <{number}> size {full}"));
            let dump = Scratch::file(&[]);
            let target = dump.as_ref().to_str().unwrap();
            after.debugfs(&format!("dump <{number}> {target}"));
            let mut expected = content[..size as usize].to_vec();
            expected.resize(full as usize, 0);
            assert!(dump.read() == expected, "{what}");
        }
    }
}

#[test]
fn deletes_what_has_no_links() {
    let folder = Scratch::folder();
    sparse_file(&folder, "large", 900, 2000);
    fs::write(folder.as_ref().join("small"), "small").unwrap();
    fs::create_dir(folder.as_ref().join("folder")).unwrap();
    for features in [
        "extent",
        "^extent,^64bit",
        "^metadata_csum",
        "inline_data",
        "quota",
    ] {
        let image = Image::new(&["-O", features, "-I", "256"], &folder);
        let numbers: Vec<u32> = ["large", "small"]
            .map(|name| {
                let number = image.number(name);
                image.debugfs(&format!("unlink /{name}"));
                number
            })
            .to_vec();
        image.enlist(&[(numbers[0], None), (numbers[1], None)]);
        let (orphans, disk) = image.finish().unwrap();
        assert_eq!((orphans.deleted, orphans.truncated), (2, 0), "{features}");
        let inodes: i64 = orphans.quota_deltas.iter().map(|delta| delta.inodes).sum();
        assert_eq!(inodes, -2);
        judged(&orphans, &disk);
        let view = orphans.overlay.over(&disk);
        let after = Super::read(&view).unwrap().unwrap();
        assert_eq!(after.superblock.s_last_orphan(), 0);
        let slot = read_inode(&after, &view, InodeNr(numbers[0])).unwrap();
        assert_eq!(slot.inode.i_dtime(), NOW);
        assert!(
            finish_orphans(&after, &view, NOW)
                .unwrap()
                .overlay
                .is_empty()
        );
    }
}

#[test]
fn quota_files_forget_orphans() {
    let folder = Scratch::folder();
    sparse_file(&folder, "deleted", 900, 2000);
    sparse_file(&folder, "cut", 900, 2000);
    let value = Scratch::file(&[b'v'; 5000]);
    let image = Image::new(&["-O", "quota,project,ea_inode"], &folder);
    let path = value.as_ref().to_str().unwrap();
    image.debugfs(&format!("ea_set -f {path} /deleted user.large"));
    let (deleted, cut) = (image.number("deleted"), image.number("cut"));
    for number in [deleted, cut] {
        image.debugfs(&format!("sif <{number}> uid 1000"));
        image.debugfs(&format!("sif <{number}> projid 77"));
    }
    // Counts the usage as it is before the files become orphans.
    let (code, text) = image.0.ask("e2fsck", &["-fy", "-E", "no_optimize_extents"]);
    assert!(code <= 1, "{text}");
    image.0.run("e2fsck", &["-fn"]);
    image.debugfs("unlink /deleted");
    image.enlist(&[(deleted, None), (cut, Some(5000))]);
    let disk = MemoryDisk::from(image.0.read());
    let ext4 = crate::ext4::Ext4::open(&disk).unwrap();
    let kept = ext4.image(crate::ext4::Target::Keep).unwrap();
    let bytes = kept.overlay.over(&disk).read_vec_at(0, LEN as usize);
    let result = Scratch::file(&bytes.unwrap());
    let text = result.run("e2fsck", &["-fn"]);
    assert!(!text.contains("QUOTA"), "{text}");
}

#[test]
fn the_time_of_deletion_is_the_last_write_unless_given() {
    let folder = Scratch::folder();
    fs::write(folder.as_ref().join("file"), "file").unwrap();
    let image = Image::new(&[], &folder);
    let number = image.number("file");
    image.debugfs("unlink /file");
    image.enlist(&[(number, None)]);
    image.debugfs("ssv wtime @1234567890");
    let disk = MemoryDisk::from(image.0.read());
    let mut fs = Super::read(&disk).unwrap().unwrap();
    let wtime = crate::ext4::format::raw::le32(fs.superblock.bytes(), 0x30);
    for (now, expected) in [(0, wtime), (5, wtime), (NOW, NOW)] {
        let orphans = finish_orphans(&fs, &disk, now).unwrap();
        let slot = read_inode(&fs, &orphans.overlay.over(&disk), InodeNr(number)).unwrap();
        assert_eq!(slot.inode.i_dtime(), expected);
    }
    // Neither is a time: then at least nothing that looks like an inode's number.
    let mut bytes = fs.superblock.bytes().to_vec();
    bytes[0x2C..0x34].fill(0);
    fs.superblock = Superblock::new(bytes);
    let orphans = finish_orphans(&fs, &disk, 0).unwrap();
    let slot = read_inode(&fs, &orphans.overlay.over(&disk), InodeNr(number)).unwrap();
    assert_eq!(slot.inode.i_dtime(), u32::MAX);
}

#[test]
fn values_in_inodes_go_with_their_last_owner() {
    let folder = Scratch::folder();
    fs::write(folder.as_ref().join("file"), "file").unwrap();
    let value = Scratch::file(&[b'v'; 5000]);
    for features in ["ea_inode", "ea_inode,^metadata_csum"] {
        let image = Image::new(&["-O", features], &folder);
        let number = image.number("file");
        let path = value.as_ref().to_str().unwrap();
        image.debugfs(&format!("ea_set -f {path} /file user.large"));
        image.debugfs("unlink /file");
        image.enlist(&[(number, None)]);
        let (orphans, disk) = image.finish().unwrap();
        assert_eq!(orphans.deleted, 2, "{features}");
        let charged: i64 = orphans.quota_deltas.iter().map(|delta| delta.inodes).sum();
        assert_eq!(charged, -2);
        judged(&orphans, &disk);
    }
}

#[test]
fn inline_files_are_cut_in_place() {
    let folder = Scratch::folder();
    let content: Vec<u8> = (0..150).collect();
    fs::write(folder.as_ref().join("file"), &content).unwrap();
    for size in [0, 20, 60, 61, 100, 149, 150] {
        let image = Image::new(&["-O", "inline_data", "-I", "512"], &folder);
        let number = image.number("file");
        image.enlist(&[(number, Some(size))]);
        let (orphans, disk) = image.finish().unwrap();
        assert_eq!(orphans.truncated, 1);
        let after = judged(&orphans, &disk);
        let dump = Scratch::file(&[]);
        let target = dump.as_ref().to_str().unwrap();
        after.debugfs(&format!("dump <{number}> {target}"));
        // debugfs takes all 60 bytes of the inode, whatever the size.
        let mut expected = content[..size as usize].to_vec();
        expected.resize(expected.len().max(60), 0);
        assert_eq!(dump.read(), expected);
    }
}

/// Writes `entries` into the first block of the orphan file, and sets `orphan_present`.
fn fill_orphan_file(disk: &MemoryDisk, entries: &[u32]) -> Super {
    let fs = Super::read(disk).unwrap().unwrap();
    let number = InodeNr(fs.superblock.s_orphan_file_inum());
    let slot = read_inode(&fs, disk, number).unwrap();
    let map = read_map(&fs, disk, number, &slot.inode, &mut |_, _| Ok(())).unwrap();
    let block = map.extents[0].start;
    let mut bytes = disk.read_vec_at(block * BLOCK, BLOCK as usize).unwrap();
    for (index, &entry) in entries.iter().enumerate() {
        put32(&mut bytes, 4 * index, entry);
    }
    let seed = fs.checksums.inode_seed(number, slot.inode.i_generation());
    let crc = crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..1016]);
    put32(&mut bytes, 1020, crc);
    disk.write_all_at(block * BLOCK, &bytes).unwrap();
    let mut superblock = fs.superblock.clone();
    superblock.set_s_feature_ro_compat(superblock.s_feature_ro_compat() | RO_COMPAT_ORPHAN_PRESENT);
    superblock.update_checksum();
    disk.write_all_at(SUPERBLOCK_OFFSET, superblock.bytes())
        .unwrap();
    Super::read(disk).unwrap().unwrap()
}

#[test]
fn empties_the_orphan_file() {
    let folder = Scratch::folder();
    fs::write(folder.as_ref().join("a"), [1; 3000]).unwrap();
    fs::write(folder.as_ref().join("b"), [2; 3000]).unwrap();
    let image = Image::new(&["-O", "orphan_file"], &folder);
    let (a, b) = (image.number("a"), image.number("b"));
    image.debugfs("unlink /a");
    image.debugfs(&format!("sif <{a}> links_count 0"));
    image.debugfs(&format!("sif <{b}> size 10"));
    let disk = MemoryDisk::from(image.0.read());
    let fs = fill_orphan_file(&disk, &[0, a, 0, 0, b]);
    let orphans = finish_orphans(&fs, &disk, NOW).unwrap();
    assert_eq!((orphans.deleted, orphans.truncated), (1, 1));
    judged(&orphans, &disk);
    let view = orphans.overlay.over(&disk);
    let after = Super::read(&view).unwrap().unwrap();
    assert!(!after.superblock.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT));
    assert!(orphan_file(&after, &view).unwrap().entries.is_empty());
    // The same file named twice.
    let fs = fill_orphan_file(&disk, &[a, a]);
    let error = finish_orphans(&fs, &disk, NOW).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
}

#[test]
fn a_list_that_leads_astray_is_refused() {
    let folder = Scratch::folder();
    fs::write(folder.as_ref().join("a"), [1; 3000]).unwrap();
    fs::write(folder.as_ref().join("b"), [2; 3000]).unwrap();
    let image = Image::new(&["-O", "orphan_file"], &folder);
    let (a, b) = (image.number("a"), image.number("b"));
    let original = image.0.read();
    for (what, commands) in [
        (
            "loop",
            vec![
                format!("sif <{a}> dtime @{b}"),
                format!("sif <{b}> dtime @{a}"),
            ],
        ),
        ("itself", vec![format!("sif <{a}> dtime @{a}")]),
        ("reserved", vec![format!("sif <{a}> dtime @8")]),
        ("too high", vec![format!("sif <{a}> dtime @4000000000")]),
        ("unused", vec![format!("sif <{a}> dtime @{}", b + 1)]),
        (
            "a device with links",
            vec![format!("sif <{a}> mode 020644")],
        ),
        ("errors", vec!["ssv state 2".into()]),
        (
            "blocks outside",
            vec![format!("sif <{a}> block[5] 4000000")],
        ),
    ] {
        fs::write(&image.0, &original).unwrap();
        image.enlist(&[(a, Some(10))]);
        for command in &commands {
            image.debugfs(command);
        }
        let kind = image.finish().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::Unsound), "{what}");
    }
    // Errors alone are no reason.
    fs::write(&image.0, &original).unwrap();
    image.debugfs("ssv state 2");
    assert!(image.finish().unwrap().0.overlay.is_empty());
}

/// Each map would be walked from its start, however many orphans claim the same one.
#[test]
fn orphans_own_blocks_alone() {
    let folder = Scratch::folder();
    sparse_file(&folder, "a", 40, 50);
    sparse_file(&folder, "b", 40, 50);
    for features in ["extent,^metadata_csum", "^extent,^64bit,^metadata_csum"] {
        let image = Image::new(&["-O", features], &folder);
        let (a, b) = (image.number("a"), image.number("b"));
        image.enlist(&[(a, Some(5 * BLOCK)), (b, Some(5 * BLOCK))]);
        assert_eq!(image.finish().unwrap().0.truncated, 2);
        let mut bytes = image.0.read();
        let disk = MemoryDisk::from(bytes.clone());
        let fs = Super::read(&disk).unwrap().unwrap();
        let offset = |number| {
            let slot = read_inode(&fs, &disk, InodeNr(number)).unwrap();
            slot.offset as usize + crate::ext4::format::inode::I_BLOCK
        };
        let (from, to) = (offset(a), offset(b));
        bytes.copy_within(from..from + I_BLOCK_SIZE, to);
        fs::write(&image.0, bytes).unwrap();
        let error = image.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound);
        assert!(error.one_line().contains("in use elsewhere"), "{error}");
    }
}

#[test]
fn endless_orphans_are_not_held_in_memory() {
    let image = mke2fs(LEN, &["-O", "^metadata_csum"]);
    let disk = MemoryDisk::from(image);
    let mut fs = Super::read(&disk).unwrap().unwrap();
    let first = 20;
    for count in [MAX_ORPHANS as u32, MAX_ORPHANS as u32 + 1] {
        for number in first..first + count {
            let mut slot =
                crate::ext4::read::inode_table::read_slot(&fs, &disk, InodeNr(number)).unwrap();
            slot.inode.set_i_mode(S_IFREG | 0o644);
            let last = number + 1 == first + count;
            slot.inode.set_i_dtime(if last { 0 } else { number + 1 });
            disk.write_all_at(slot.offset, &slot.inode.0).unwrap();
        }
        fs.superblock.set_s_last_orphan(first);
        let done = finish_orphans(&fs, &disk, NOW);
        match count as usize > MAX_ORPHANS {
            true => assert_eq!(done.unwrap_err().kind(), ErrorKind::Unsupported),
            false => assert_eq!(done.unwrap().deleted, count),
        }
    }
}
