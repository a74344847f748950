//! Fast commits written by hand on filesystems made by mke2fs; e2fsck judges the outcome. A recorded
//! crash of a kernel is replayed as well.

use std::fs;

use super::*;
use crate::error::ErrorKind;
use crate::ext4::check;
use crate::ext4::findings::Findings;
use crate::ext4::format::extent::Extent;
use crate::ext4::format::inode::{EXTENTS_FL, INDEX_FL, Inode};
use crate::ext4::format::raw::{put16, put32};
use crate::ext4::read::metadata::Metadata;
use crate::ext4::recover::tags::Scanner;
use crate::ext4::recover::tags::{
    ADD_RANGE, CREAT, DEL_RANGE, HEAD, INODE, LINK, PAD, TAIL, UNLINK,
};
use crate::ext4::test_image::{self, Scratch};
use crate::io::memory::MemoryDisk;
use crate::random::random;
use crate::units::BlockNr;
use crate::units::InodeNr;

const BLOCK: usize = 1024;
const LEN: u64 = 16 << 20;
const TID: u32 = 20;
const ROOT: u32 = 2;
/// The number of an inode that no file uses.
const NEW: u32 = 1500;
/// Blocks that no file uses.
const FREE: BlockNr = 12000;

/// Blocks of fast commits.
#[derive(Clone, Default)]
struct Area {
    bytes: Vec<u8>,
    crc: u32,
}

impl Area {
    fn new() -> Self {
        let mut area = Self::default();
        area.tag(HEAD, &words(&[0, TID]));
        area
    }

    fn put(&mut self, tag: u16, value: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend(tag.to_le_bytes());
        self.bytes.extend((value.len() as u16).to_le_bytes());
        self.bytes.extend(value);
        self.crc = crate::ext4::format::crc::crc32c(self.crc, &self.bytes[at..]);
    }

    fn left(&self) -> usize {
        BLOCK - self.bytes.len() % BLOCK
    }

    fn tag(&mut self, tag: u16, value: &[u8]) -> &mut Self {
        if value.len() + 8 > self.left() {
            let rest = vec![0; self.left() - 4];
            self.put(PAD, &rest);
        }
        self.put(tag, value);
        self
    }

    fn entry(&mut self, tag: u16, parent: u32, inode: u32, name: &str) -> &mut Self {
        let value = [&words(&[parent, inode]), name.as_bytes()].concat();
        self.tag(tag, &value)
    }

    fn range(&mut self, inode: u32, logical: u32, start: u64, raw_len: u16) -> &mut Self {
        let mut value = words(&[inode, logical, u32::from(raw_len), start as u32]);
        put16(&mut value, 10, (start >> 32) as u16);
        self.tag(ADD_RANGE, &value)
    }

    fn inode(&mut self, number: u32, mode: u16, links: u16, size: u32) -> &mut Self {
        let value = [words(&[number]), new_inode(mode, links, size)].concat();
        self.tag(INODE, &value)
    }

    fn file(&mut self, number: u32, parent: u32, name: &str) -> &mut Self {
        self.inode(number, 0o100_644, 1, 0);
        self.entry(CREAT, parent, number, name)
    }

    /// Ends a fast commit.
    fn tail(&mut self) -> &mut Self {
        if self.left() < 16 {
            let rest = vec![0; self.left() - 4];
            self.put(PAD, &rest);
        }
        let at = self.bytes.len();
        let len = self.left() - 4;
        self.bytes.extend(TAIL.to_le_bytes());
        self.bytes.extend((len as u16).to_le_bytes());
        self.bytes.extend(TID.to_le_bytes());
        let crc = crate::ext4::format::crc::crc32c(self.crc, &self.bytes[at..]);
        self.bytes.extend(crc.to_le_bytes());
        self.bytes.resize(at + 4 + len, 0);
        self.crc = 0;
        self
    }

    fn scan(&self) -> Result<FastCommits> {
        let mut scanner = Scanner::new(TID, BLOCK, 256);
        for block in self.bytes.chunks(BLOCK) {
            let mut block = block.to_vec();
            block.resize(BLOCK, 0);
            if !scanner.take(&block)? {
                break;
            }
        }
        Ok(scanner.finish())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn new_inode(mode: u16, links: u16, size: u32) -> Vec<u8> {
    let mut inode = Inode(vec![0; 160]);
    inode.set_i_mode(mode);
    inode.set_i_links_count(links);
    inode.set_i_size_lo(size);
    inode.set_i_flags(EXTENTS_FL);
    inode.set_i_generation(0x1234);
    inode.set_i_mtime(1_700_000_000);
    put16(&mut inode.0, 0x80, 32);
    inode.0
}

/// A filesystem with a few files in it.
fn image(features: &str) -> Vec<u8> {
    let folder = Scratch::folder();
    let root = folder.as_ref();
    fs::create_dir(root.join("dir")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("file"), vec![b'f'; 40_000]).unwrap();
    fs::write(root.join("dir/inner"), b"inner").unwrap();
    let path = root.to_str().unwrap();
    test_image::mke2fs(LEN, &["-O", features, "-N", "2048", "-d", path])
}

struct Replayed {
    file: Scratch,
    metadata: Metadata,
    changed: bool,
}

impl Replayed {
    /// Lists a directory: a line for each entry, the name between slashes.
    fn list(&self, path: &str) -> String {
        let text = self.file.run("debugfs", &["-R", &format!("ls -p {path}")]);
        // It shows the first entry of a block even if that is not in use.
        let used = text.lines().filter(|line| !line.starts_with("/0/"));
        used.collect::<Vec<_>>().join("\n")
    }
}

/// Replays; the outcome has to be sound but for bitmaps and counts.
fn recover(image: &[u8], area: &Area) -> Result<Replayed> {
    let disk = MemoryDisk::from(image.to_vec());
    let fs = Super::read(&disk)?.unwrap();
    let replayed = replay(&fs, &disk, &area.scan()?)?;
    let view = replayed.overlay.over(&disk);
    let mut findings = Findings::default();
    let metadata = Metadata::read(&view, &mut findings)?;
    findings.merge(check::check(&view, &metadata)?);
    assert!(findings.is_sound(), "{:?}", findings.damage());
    let bytes = view.read_vec_at(0, view.len() as usize)?;
    let changed = bytes != image;
    let file = judge(&bytes);
    Ok(Replayed {
        file,
        metadata,
        changed,
    })
}

/// Lets e2fsck mend bitmaps and counts; it must find nothing else.
fn judge(bytes: &[u8]) -> Scratch {
    let file = Scratch::file(bytes);
    let (code, text) = file.ask("e2fsck", &["-fy"]);
    assert!(code <= 1, "{text}");
    let harmless = [
        "differences",
        "count wrong",
        "Fix? yes",
        "Pass ",
        "e2fsck",
        "FILE SYSTEM WAS MODIFIED",
        " files (",
    ];
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        assert!(harmless.iter().any(|text| line.contains(text)), "{text}");
    }
    file
}

fn number_of(image: &[u8], path: &str) -> u32 {
    let file = Scratch::file(image);
    let text = file.run("debugfs", &["-R", &format!("stat {path}")]);
    let rest = text.split("Inode: ").nth(1).unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn the_scan_ends_where_the_kernel_ends_it() {
    let one = || {
        let mut area = Area::new();
        area.entry(UNLINK, ROOT, 12, "gone").tail();
        area
    };
    let two = || {
        let mut area = one();
        area.entry(LINK, ROOT, 12, "back").tail();
        area
    };
    type Damage = fn(&mut Vec<u8>);
    // How many fast commits, and how many tags that change something.
    type Outcome = Result<(u32, usize), ErrorKind>;
    let cases: &[(&str, Area, Damage, Outcome)] = &[
        ("two", two(), |_| {}, Ok((2, 2))),
        ("none", two(), |b| put16(b, 0, PAD), Ok((0, 0))),
        (
            "another transaction",
            two(),
            |b| put32(b, 8, TID - 1),
            Ok((0, 0)),
        ),
        (
            "features",
            two(),
            |b| put32(b, 4, 1),
            Err(ErrorKind::Unsupported),
        ),
        (
            "first damaged",
            one(),
            |b| b[20] ^= 1,
            Err(ErrorKind::Unsound),
        ),
        ("second damaged", two(), |b| b[BLOCK + 9] ^= 1, Ok((1, 1))),
        ("second cut off", two(), |b| b[BLOCK..].fill(0), Ok((1, 1))),
        (
            "first cut off",
            one(),
            |b| b[12..].fill(0),
            Err(ErrorKind::Unsound),
        ),
        ("too long", two(), |b| put16(b, BLOCK + 2, 2000), Ok((1, 1))),
        ("too short", two(), |b| put16(b, BLOCK + 2, 8), Ok((1, 1))),
        ("unknown tag", two(), |b| put16(b, BLOCK, 10), Ok((1, 1))),
    ];
    for (name, area, damage, expected) in cases {
        let mut area = area.clone();
        damage(&mut area.bytes);
        let result = area.scan();
        let found = result.map(|commits| (commits.count, commits.tags().count()));
        assert_eq!(
            found.as_ref().map_err(|error| error.kind()),
            expected.as_ref().map_err(|kind| *kind),
            "{name}"
        );
    }
    // Kernels before 6.2 left out the last byte of each block.
    let mut old = one();
    let at = BLOCK - old.bytes.len() % BLOCK;
    assert_eq!(at, BLOCK);
    let mut area = Area::new();
    area.entry(UNLINK, ROOT, 12, "gone");
    let start = area.bytes.len();
    area.bytes.extend(TAIL.to_le_bytes());
    area.bytes
        .extend(((BLOCK - start - 5) as u16).to_le_bytes());
    area.bytes.extend(TID.to_le_bytes());
    let crc = crate::ext4::format::crc::crc32c(area.crc, &area.bytes[start..]);
    area.bytes.extend(crc.to_le_bytes());
    area.bytes.resize(BLOCK, 0);
    old.bytes = area.bytes;
    assert_eq!(old.scan().unwrap().count, 1);
}

#[test]
fn names_come_and_go() {
    for features in [
        "^resize_inode",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,^filetype",
    ] {
        let image = image(features);
        let [file, dir, inner, empty] =
            ["/file", "/dir", "/dir/inner", "/empty"].map(|path| number_of(&image, path));
        let mut area = Area::new();
        // A file with blocks, which gets a second name and loses the first.
        area.inode(NEW, 0o100_600, 1, 3000)
            .range(NEW, 0, FREE, 3)
            .entry(CREAT, ROOT, NEW, "made")
            .entry(LINK, dir, NEW, "second")
            .entry(UNLINK, ROOT, NEW, "made");
        // A directory, with a file in it and another one in that.
        area.inode(NEW + 1, 0o040_755, 9, 1024)
            .entry(CREAT, ROOT, NEW + 1, "newdir")
            .file(NEW + 2, NEW + 1, "nested")
            .inode(NEW + 3, 0o040_700, 2, 1024)
            .entry(CREAT, NEW + 1, NEW + 3, "deeper");
        area.tail();
        area.entry(UNLINK, dir, inner, "inner")
            .entry(UNLINK, ROOT, empty, "empty")
            .entry(LINK, ROOT, file, "also")
            .entry(LINK, ROOT, file, "also");
        // All of these are about nobody.
        area.entry(LINK, ROOT, NEW + 9, "nobody")
            .entry(UNLINK, ROOT, NEW + 9, "nobody")
            .entry(UNLINK, NEW + 9, file, "file")
            .range(NEW + 9, 0, FREE + 50, 1);
        area.tail();
        let replayed = recover(&image, &area).unwrap();
        let root = replayed.list("/");
        for name in ["/file/", "/also/", "/newdir/", "/dir/"] {
            assert!(root.contains(name), "{name}: {root}");
        }
        for name in ["/made/", "/empty/", "/nobody/"] {
            assert!(!root.contains(name), "{name}: {root}");
        }
        let nested = replayed.list("/newdir");
        assert!(nested.contains("/nested/") && nested.contains("/deeper/"));
        assert!(!replayed.list("/dir").contains("/inner/"));
        let links = |number| {
            let record = replayed.metadata.inode(InodeNr(number));
            record.map_or(0, |record| record.links)
        };
        assert_eq!(
            [file, NEW, NEW + 1, NEW + 3, ROOT, inner, empty].map(links),
            [2, 1, 3, 2, 5, 0, 0]
        );
        let second = replayed.metadata.inode(InodeNr(NEW)).unwrap();
        assert_eq!(
            replayed.metadata.extents(second),
            [Extent::new(0, FREE, 3, false)]
        );
        assert_eq!((second.size, second.blocks_512), (3000, 6));
    }
}

#[test]
fn ranges_change_a_map() {
    let image = image("^resize_inode");
    let file = number_of(&image, "/file");
    let mut area = Area::new();
    // The first blocks go elsewhere, one in the middle of them becomes a hole, one is unwritten.
    area.range(file, 0, FREE, 40)
        .range(file, 10, FREE + 100, 5)
        .range(file, 30, FREE + 30, 32768 + 2)
        .tag(DEL_RANGE, &words(&[file, 20, 3]))
        .tag(DEL_RANGE, &words(&[file, 38, u32::MAX - 38]));
    area.tail();
    let replayed = recover(&image, &area).unwrap();
    let record = replayed.metadata.inode(InodeNr(file)).unwrap();
    assert_eq!(
        replayed.metadata.extents(record),
        [
            Extent::new(0, FREE, 10, false),
            Extent::new(10, FREE + 100, 5, false),
            Extent::new(15, FREE + 15, 5, false),
            Extent::new(23, FREE + 23, 7, false),
            Extent::new(30, FREE + 30, 2, true),
            Extent::new(32, FREE + 32, 6, false),
        ]
    );
    // Six do not fit into the inode.
    assert_eq!(replayed.metadata.nodes(record).len(), 1);
    assert_eq!(record.blocks_512, 36 * 2);
}

#[test]
fn a_number_given_to_another_file_brings_nothing_along() {
    let image = image("^resize_inode");
    let file = number_of(&image, "/file");
    let mut area = Area::new();
    area.entry(UNLINK, ROOT, file, "file")
        .file(file, ROOT, "another")
        .inode(NEW, 0o100_600, 1, 0)
        .tail();
    let replayed = recover(&image, &area).unwrap();
    let record = replayed.metadata.inode(InodeNr(file)).unwrap();
    assert_eq!(
        (record.size, record.generation, record.links),
        (0, 0x1234, 1)
    );
    assert!(replayed.metadata.extents(record).is_empty());
    // Nobody said what its name is.
    assert!(replayed.metadata.inode(InodeNr(NEW)).is_none());
}

#[test]
fn directories_that_overflow_get_an_index() {
    for features in ["^resize_inode", "^dir_index", "^metadata_csum"] {
        let image = image(features);
        let dir = number_of(&image, "/dir");
        let mut area = Area::new();
        let names: Vec<String> = (0..500)
            .map(|n| format!("a-name-of-some-length-{n}"))
            .collect();
        for (name, number) in names.iter().zip(NEW..) {
            area.file(number, dir, name);
        }
        area.tail();
        // Into the index, and out of it.
        area.entry(UNLINK, dir, NEW, &names[0]);
        area.file(NEW + 500, dir, "one-more").tail();
        let replayed = recover(&image, &area).unwrap();
        let listed = replayed.list("/dir");
        for name in &names[1..] {
            assert!(listed.contains(&format!("/{name}/")), "{name}");
        }
        assert!(listed.contains("/inner/") && listed.contains("/one-more/"));
        let record = replayed.metadata.inode(InodeNr(dir)).unwrap();
        assert_eq!(record.flags & INDEX_FL != 0, features != "^dir_index");
        // What is there now takes more, leaf by leaf.
        let again = replayed.file.read();
        let mut area = Area::new();
        for number in NEW + 501..NEW + 540 {
            area.file(number, dir, &format!("later-{number}"));
        }
        area.entry(UNLINK, dir, NEW + 7, &names[7]).tail();
        let listed = recover(&again, &area).unwrap().list("/dir");
        assert!(listed.contains("/later-2030/"), "{listed}");
        assert!(!listed.contains(&format!("/{}/", names[7])));
    }
}

#[test]
fn refuses_what_contradicts_the_filesystem() {
    let image = image("^resize_inode");
    let file = number_of(&image, "/file");
    let dir = number_of(&image, "/dir");
    const UNSOUND: ErrorKind = ErrorKind::Unsound;
    let many = LEN / BLOCK as u64;
    type Write = Box<dyn Fn(&mut Area)>;
    let cases: Vec<(&str, Write, ErrorKind)> = vec![
        (
            "a range past the end",
            Box::new(move |a| {
                a.range(file, 0, many - 1, 2);
            }),
            UNSOUND,
        ),
        (
            "a range in the superblock",
            Box::new(move |a| {
                a.range(file, 0, 1, 1);
            }),
            UNSOUND,
        ),
        (
            "a range past 2^32",
            Box::new(move |a| {
                a.range(file, u32::MAX, FREE, 2);
            }),
            UNSOUND,
        ),
        (
            "a directory's range",
            Box::new(move |a| {
                a.range(dir, 0, FREE, 1);
            }),
            UNSOUND,
        ),
        (
            "an inode that cannot be",
            Box::new(|a| {
                a.inode(9999, 0o100_644, 1, 0);
            }),
            UNSOUND,
        ),
        (
            "a first name for nobody",
            Box::new(|a| {
                a.entry(CREAT, ROOT, NEW, "nobody");
            }),
            UNSOUND,
        ),
        (
            "a name that is taken",
            Box::new(|a| {
                a.file(NEW, ROOT, "file");
            }),
            UNSOUND,
        ),
        (
            "an impossible name",
            Box::new(|a| {
                a.file(NEW, ROOT, "a/b");
            }),
            UNSOUND,
        ),
        (
            "a second name for a directory",
            Box::new(move |a| {
                a.entry(LINK, ROOT, dir, "again");
            }),
            UNSOUND,
        ),
        (
            "a directory that is not empty",
            Box::new(move |a| {
                a.entry(UNLINK, ROOT, dir, "dir");
            }),
            UNSOUND,
        ),
        (
            "a name in a file",
            Box::new(move |a| {
                a.file(NEW, file, "in");
            }),
            UNSOUND,
        ),
    ];
    for (name, write, kind) in cases {
        let mut area = Area::new();
        write(&mut area);
        area.tail();
        let result = recover(&image, &area).map(|replayed| replayed.changed);
        assert_eq!(result.as_ref().map_err(|e| e.kind()), Err(kind), "{name}");
    }
    let mut area = Area::new();
    area.range(file, 0, FREE, 1).tail();
    let plain = self::image("^extent,^64bit");
    let result = recover(&plain, &area).map(|replayed| replayed.changed);
    assert_eq!(
        result.map_err(|e| e.kind()),
        Err(ErrorKind::Unsupported),
        "blocks of a file without extents"
    );
}

/// Tags that make sense one by one, but not together: never a panic, and what the check finds sound is
/// sound to e2fsck as well.
#[test]
fn survives_any_order_of_tags() {
    // Replay only reads them.
    let disks = ["^resize_inode", "^metadata_csum,^dir_index"].map(|features| {
        let disk = MemoryDisk::from(image(features));
        (Super::read(&disk).unwrap().unwrap(), disk)
    });
    let mut state = 1u64;
    let mut random = move |below: usize| random(&mut state, below as u64) as usize;
    let mut sound = 0;
    for round in 0..600 {
        let (fs, disk) = &disks[round % 2];
        let mut area = Area::new();
        let numbers = [ROOT, 12, 13, 14, 15, NEW, NEW + 1, NEW + 2, 0, 8, 9999];
        let names = ["file", "dir", "inner", "empty", "new", "newer", "a/b", ".."];
        for _ in 0..1 + random(12) {
            // The last ones make no sense at all.
            let few = if random(20) == 0 { 3 } else { 0 };
            let number = numbers[random(numbers.len() - 3 + few)];
            let parent = numbers[random(numbers.len() - 3 + few)];
            let name = names[random(names.len() - if few > 0 { 0 } else { 2 })];
            let start = FREE + random(200) as u64;
            match random(8) {
                0 => area.file(number, parent, name),
                1 => area.entry(LINK, parent, number, name),
                2 | 3 => area.entry(UNLINK, parent, number, name),
                4 => area.range(number, random(40) as u32, start, random(33000) as u16),
                5 => {
                    let values = [number, random(40) as u32, random(50) as u32];
                    area.tag(DEL_RANGE, &words(&values))
                }
                6 => {
                    area.inode(number, 0o040_755, 2, 1024);
                    area.entry(CREAT, parent, number, name)
                }
                _ => {
                    let mut inode = new_inode(0o100_644, random(3) as u16, 9000);
                    if random(3) == 0 {
                        inode[random(160)] ^= 1 << random(8);
                    }
                    area.tag(INODE, &[words(&[number]), inode].concat())
                }
            };
        }
        area.tail();
        let Ok(replayed) = replay(fs, disk, &area.scan().unwrap()) else {
            continue;
        };
        let view = replayed.overlay.over(disk);
        let mut findings = Findings::default();
        let metadata = Metadata::read(&view, &mut findings).unwrap();
        if findings.is_sound() {
            findings.merge(check::check(&view, &metadata).unwrap());
        }
        if findings.is_sound() {
            judge(&view.read_vec_at(0, view.len() as usize).unwrap());
            sound += 1;
        }
    }
    assert!(sound > 40, "only {sound} were sound");
}

/// A crash that a kernel left, with 8 fast commits of all kinds: the files are those of the kernel's
/// own recovery.
#[test]
fn a_recorded_crash_gives_what_the_kernel_makes_of_it() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fast-commit");
    let packed = fs::read(format!("{folder}.img.zst")).unwrap();
    let disk = MemoryDisk::from(zstd::decode_all(packed.as_slice()).unwrap());
    let ext = crate::ext4::Ext4::open(&disk).unwrap();
    assert_eq!(ext.recovery().fast_commits, 8);
    let image = ext.image(crate::ext4::Target::Keep).unwrap();
    let bytes = image
        .overlay
        .over(&disk)
        .read_vec_at(0, disk.len() as usize);
    let file = Scratch::file(&bytes.unwrap());
    file.run("e2fsck", &["-fn"]);
    let dump = Scratch::folder();
    let target = dump.as_ref().to_str().unwrap();
    file.run("debugfs", &["-R", &format!("rdump / {target}")]);
    let mut found = Vec::new();
    list(dump.as_ref(), "", &mut found);
    found.sort();
    let expected = fs::read_to_string(format!("{folder}.txt")).unwrap();
    let mut expected: Vec<&str> = expected.lines().collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// What fast commits say becomes a transaction in the log's free blocks, if there is room.
#[test]
fn a_log_without_room_takes_no_transaction_in_place_of_its_own() {
    use crate::ext4::recover::journal::commit::replacement;
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fast-commit.img.zst");
    let packed = fs::read(packed).unwrap();
    let disk = MemoryDisk::from(zstd::decode_all(packed.as_slice()).unwrap());
    let found = Super::read(&disk).unwrap().unwrap();
    let transaction = |count: u64| {
        let blocks: Vec<_> = (1..=count).map(|n| (n, vec![1; 1024])).collect();
        replacement(&found, &disk, &blocks).unwrap()
    };
    // The journal has 4352 blocks, 256 of them for fast commits.
    assert!(transaction(4352 - 256).is_none());
    let placed = transaction(3000).unwrap().log;
    let places: std::collections::BTreeSet<u64> = placed.iter().map(|block| block.0).collect();
    assert!(placed.len() > 3000 && places.len() == placed.len());
}

fn list(folder: &std::path::Path, prefix: &str, found: &mut Vec<String>) {
    use sha2::{Digest, Sha256};
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &format!("{path}/"), found);
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        found.push(format!("{hash} {} {path}", bytes.len()));
    }
}
