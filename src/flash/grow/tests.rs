//! An expansion that stops anywhere: every write and sync is recorded, and for each number of
//! writes, and for writes lost within one step, the card that would be left is judged.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::*;
use crate::ext4::test_image::{Scratch, mke2fs};
use crate::flash::faulty::{Faults, FaultyCard};
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;
use crate::progress::Silent;

const MIB: u64 = 1 << 20;

/// What came to a card, in order.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Sync,
}

/// A card in memory that remembers all that is done to it.
struct Recorder {
    disk: MemoryDisk,
    ops: Mutex<Vec<Op>>,
}

impl Recorder {
    fn new(bytes: &[u8]) -> Self {
        Self {
            disk: MemoryDisk::from(bytes.to_vec()),
            ops: Mutex::new(Vec::new()),
        }
    }
}

impl ReadAt for Recorder {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_exact_at(offset, buf)
    }
}

impl WriteAt for Recorder {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let op = Op::Write(offset, buf.to_vec());
        self.ops.lock().unwrap().push(op);
        self.disk.write_all_at(offset, buf)
    }

    fn sync(&self) -> Result<()> {
        self.ops.lock().unwrap().push(Op::Sync);
        Ok(())
    }
}

impl Card for Recorder {
    fn discard(&self, _: Range<u64>) -> Result<bool> {
        Ok(false)
    }

    fn write_zeroes(&self, _: Range<u64>) -> Result<bool> {
        Ok(false)
    }

    fn drop_cache(&self) -> Result<()> {
        Ok(())
    }

    fn alignment(&self) -> u64 {
        512
    }
}

/// A card to expand.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    /// Does the filesystem have a journal that an expansion can use?
    journaled: bool,
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

/// A filesystem of 12 MiB with some files.
fn filesystem(options: &[&str]) -> Vec<u8> {
    let tree = Scratch::folder();
    for n in 0..20 {
        let contents = noise(n, 3000 + 977 * n as usize);
        fs::write(tree.as_ref().join(format!("file{n}")), contents).unwrap();
    }
    fs::write(tree.as_ref().join("large"), noise(9, 3 << 20)).unwrap();
    let folder = tree.as_ref().to_str().unwrap();
    mke2fs(
        12 * MIB,
        &[options, &["-g", "2048", "-N", "300", "-d", folder]].concat(),
    )
}

/// Runs debugfs commands on a filesystem.
fn debugfs(bytes: &[u8], commands: &str) -> Vec<u8> {
    let image = Scratch::file(bytes);
    let script = Scratch::file(commands.as_bytes());
    let script = script.as_ref().to_str().unwrap();
    image.run("debugfs", &["-w", "-f", script]);
    image.read()
}

/// A filesystem whose journal holds a transaction, and that has an orphan.
fn pulled() -> Vec<u8> {
    let bytes = filesystem(&[]);
    let image = Scratch::file(&bytes);
    let text = image.run("debugfs", &["-R", "stat /large"]);
    let inode: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The transaction rewrites a block of file data, which a mount would, too.
    let blocks = image.run("debugfs", &["-R", "blocks /file3"]);
    let block = blocks
        .split_whitespace()
        .find(|word| word.parse::<u64>().is_ok());
    let contents = Scratch::file(&noise(77, 1024));
    let contents = contents.as_ref().to_str().unwrap();
    debugfs(
        &bytes,
        &format!(
            "unlink /large\nset_inode_field <{inode}> links_count 0\n\
             set_inode_field <{inode}> dtime 0\nset_super_value last_orphan {inode}\n\
             jo\njw -b {} {contents}\njc\n",
            block.unwrap()
        ),
    )
}

fn sfdisk(bytes: &mut Vec<u8>, script: &str) {
    let image = Scratch::file(bytes);
    let mut child = Command::new("sfdisk")
        .args(["-q", "--no-tell-kernel"])
        .arg(image.as_ref())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("sfdisk is needed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    *bytes = image.read();
}

fn put(bytes: &mut [u8], at: u64, part: &[u8]) {
    bytes[at as usize..at as usize + part.len()].copy_from_slice(part);
}

/// `filesystem` at 1 MiB of a card of 28 MiB.
fn mbr(filesystem: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 28 << 20];
    sfdisk(&mut bytes, "label: dos\n2048,24576,83\n");
    put(&mut bytes, MIB, filesystem);
    bytes
}

fn tool(name: &str, len: u64, args: &[&str]) -> Vec<u8> {
    let file = Scratch::file(&vec![0; len as usize]);
    file.run(name, args);
    file.read()
}

fn cases() -> Vec<Case> {
    let plain = filesystem(&[]);
    let swap = tool("mkswap", MIB, &["-q"]);
    let fat = tool("mkfs.vfat", 4 * MIB, &["-F", "12"]);
    let mut cases = vec![Case {
        name: "plain, behind an MBR",
        bytes: mbr(&plain),
        journaled: true,
    }];
    let mut add = |name, bytes, journaled| {
        cases.push(Case {
            name,
            bytes,
            journaled,
        });
    };
    for (name, options, journaled) in [
        ("no flex_bg", &["-O", "^flex_bg"] as &[&str], true),
        ("no checksums", &["-O", "^metadata_csum"], true),
        ("blocks of 4 KiB", &["-b", "4096", "-J", "size=4"], true),
        ("uninit_bg", &["-O", "^metadata_csum,uninit_bg"], true),
        (
            "ext3",
            &["-O", "^extent,^metadata_csum,^64bit,^flex_bg"],
            true,
        ),
        ("no resize_inode", &["-O", "^resize_inode"], false),
        (
            "ext2",
            &["-O", "^has_journal,^extent,^metadata_csum,^64bit"],
            false,
        ),
        ("no journal", &["-O", "^has_journal"], false),
    ] {
        add(name, mbr(&filesystem(options)), journaled);
    }
    add("journal and orphan", mbr(&pulled()), true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,2048,c\n4096,28672,5\n6144,24576,83\n",
    );
    put(&mut bytes, 3 * MIB, &plain);
    add("logical", bytes, true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,34816,5\n4096,24576,83\n30720,2048,82\n34816,2048,82\n",
    );
    put(&mut bytes, 2 * MIB, &plain);
    put(&mut bytes, 15 * MIB, &swap);
    put(&mut bytes, 17 * MIB, &swap);
    add("logical, two swaps behind it", bytes, true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,24576,83\n26624,8192,c\n34816,2048,82\n",
    );
    put(&mut bytes, MIB, &plain);
    put(&mut bytes, 13 * MIB, &fat);
    put(&mut bytes, 17 * MIB, &swap);
    add("FAT and swap behind it", bytes, true);
    let table = Scratch::file(&vec![0; 14 << 20]);
    table.run("sgdisk", &["-n", "1:2048:26623"]);
    let mut bytes = table.read();
    put(&mut bytes, MIB, &plain);
    bytes.resize(28 << 20, 0);
    add("GPT", bytes.clone(), true);
    let table = Scratch::file(&bytes);
    table.run("sgdisk", &["-e"]);
    add("GPT whose backup is at the end", table.read(), true);
    cases
}

/// A random number generator whose runs can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// What an expansion does, and the sizes that may be met on the way.
struct Model {
    name: &'static str,
    base: Vec<u8>,
    ops: Vec<Op>,
    journaled: bool,
    /// All places of partitions, by number, before and after.
    places: Vec<(u32, ByteRange)>,
    grows: u32,
    sizes: [u64; 2],
}

impl Model {
    fn new(case: &Case) -> Self {
        let card = Recorder::new(&case.bytes);
        let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
        let summary = plan.run(&card, &Silent).unwrap();
        let places = |disk: &dyn ReadAt| -> Vec<_> {
            let table = PartitionTable::read(disk).unwrap().unwrap();
            let partitions = table.partitions().iter();
            partitions.map(|part| (part.number, part.range)).collect()
        };
        let before = MemoryDisk::from(case.bytes.clone());
        assert!(
            summary.new_filesystem > summary.old_filesystem,
            "{}: {summary:?}",
            case.name
        );
        // The plan's own idea of the result is what was written.
        let flat = plan.flat(before.len());
        assert!(
            flat.over(&before)
                .read_vec_at(0, before.len() as usize)
                .unwrap()
                == card.disk.to_vec(),
            "{}",
            case.name
        );
        Self {
            name: case.name,
            base: case.bytes.clone(),
            journaled: case.journaled,
            places: [places(&before), places(&card)].concat(),
            grows: summary.partition.unwrap(),
            sizes: [
                summary.old_filesystem.unwrap(),
                summary.new_filesystem.unwrap(),
            ],
            ops: card.ops.into_inner().unwrap(),
        }
    }

    /// Calls `judge` with the card after each number of writes, and with `losses` cards more for
    /// each step that lack some of the step's writes.
    fn cuts(&self, losses: u64, judge: &mut dyn FnMut(&str, &dyn ReadAt)) {
        let base = MemoryDisk::from(self.base.clone());
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut now = Overlay::new(base.len());
        let mut settled = now.clone();
        let mut step: Vec<(u64, &[u8])> = Vec::new();
        judge(&format!("{}, nothing written", self.name), &base);
        for (number, op) in self.ops.iter().enumerate() {
            match op {
                Op::Write(offset, bytes) => {
                    now.set_bytes(*offset, bytes.as_slice());
                    step.push((*offset, bytes));
                    let name = format!("{}, cut after write {number}", self.name);
                    judge(&name, &now.over(&base));
                }
                Op::Sync => {
                    for round in 0..losses {
                        let mut torn = settled.clone();
                        for &(offset, bytes) in &step {
                            lose(&mut torn, offset, bytes, &mut dice);
                        }
                        let name = format!("{}, {round}th loss before op {number}", self.name);
                        judge(&name, &torn.over(&base));
                    }
                    settled = now.clone();
                    step.clear();
                }
            }
        }
    }

    /// The table can be read, its partitions are where they were or where they go, and the
    /// filesystem is sound once its journal is replayed, with the old size or the new one.
    fn judge(&self, name: &str, disk: &dyn ReadAt) {
        let partition = self.partition(name, disk);
        let window = Window::new(disk, partition).unwrap();
        if !self.journaled {
            return;
        }
        let ext = Ext4::open(&window).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = ext.total_bytes();
        assert!(self.sizes.contains(&size), "{name}: {size}");
    }

    fn partition(&self, name: &str, disk: &dyn ReadAt) -> ByteRange {
        let table = PartitionTable::read(disk)
            .unwrap_or_else(|error| panic!("{name}: {}", error.one_line()))
            .unwrap_or_else(|| panic!("{name}: no table"));
        for part in table.partitions() {
            let found = (part.number, part.range);
            assert!(self.places.contains(&found), "{name}: {found:?}");
        }
        let found = table
            .partitions()
            .iter()
            .find(|part| part.number == self.grows);
        found.unwrap_or_else(|| panic!("{name}: it has gone")).range
    }

    /// e2fsck says so, too: not a word once the journal is replayed. Without one, it repairs by
    /// itself what there is.
    fn judge_by_e2fsck(&self, name: &str, disk: &dyn ReadAt) {
        let range = self.partition(name, disk);
        let bytes = disk.read_vec_at(range.start, range.len() as usize).unwrap();
        let image = Scratch::file(&bytes);
        let first = match self.journaled {
            true => image.ask("e2fsck", &["-E", "journal_only", "-p"]),
            false => image.ask("e2fsck", &["-p"]),
        };
        assert!(first.0 <= 1, "{name}: {first:?}");
        let (code, text) = image.ask("e2fsck", &["-fn"]);
        assert_eq!(code, 0, "{name}: {text}");
        let wrong = image.ask("dumpe2fs", &["-h"]).1;
        let count = |what: &str| -> u64 {
            let line = wrong.lines().find_map(|line| line.strip_prefix(what));
            line.unwrap().trim().parse().unwrap()
        };
        let size = count("Block count:") * count("Block size:");
        assert!(self.sizes.contains(&size), "{name}: {size}");
        assert!(
            self.files(&image) == self.files_before(),
            "{name}: files differ"
        );
    }

    /// So does the kernel: it mounts the card, finds the files, and writes to it; e2fsck finds
    /// nothing afterwards.
    fn judge_by_kernel(&self, name: &str, disk: &dyn ReadAt, bytes_to_write: usize) {
        let range = self.partition(name, disk);
        let bytes = disk.read_vec_at(range.start, range.len() as usize).unwrap();
        let (image, folder) = (Scratch::file(&bytes), Scratch::folder());
        let path = image.as_ref().to_str().unwrap();
        folder.run("mount", &["-o", "loop", path]);
        for n in 0..20 {
            let file = fs::read(folder.as_ref().join(format!("file{n}")));
            assert_eq!(file.unwrap().len(), 3000 + 977 * n, "{name}");
        }
        let written = fs::write(folder.as_ref().join("new"), noise(3, bytes_to_write));
        folder.run("umount", &[]);
        written.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (code, text) = image.ask("e2fsck", &["-fn"]);
        assert_eq!(code, 0, "{name}, after a mount: {text}");
    }

    fn files_before(&self) -> Vec<u8> {
        let disk = MemoryDisk::from(self.base.clone());
        let range = self.partition(self.name, &disk);
        let bytes = disk.read_vec_at(range.start, range.len() as usize).unwrap();
        let image = Scratch::file(&bytes);
        image.ask("e2fsck", &["-fy"]);
        self.files(&image)
    }

    fn files(&self, image: &Scratch) -> Vec<u8> {
        let mut all = Vec::new();
        for n in 0..20 {
            let name = format!("cat /file{n}");
            all.extend(image.run("debugfs", &["-R", &name]).into_bytes());
        }
        all
    }
}

#[test]
fn an_expansion_cut_off_anywhere_leaves_the_old_or_the_new_filesystem() {
    for case in cases() {
        let model = Model::new(&case);
        let mut count = 0;
        model.cuts(6, &mut |name, disk| {
            model.judge(name, disk);
            if count % 61 == 0 {
                model.judge_by_e2fsck(name, disk);
            }
            count += 1;
        });
        let done = finished(&case);
        model.judge_by_e2fsck(case.name, &done);
        model.judge_by_kernel(case.name, &done, 5 << 20);
    }
}

/// Writes none, all, or some pages of `bytes`.
fn lose(disk: &mut Overlay, offset: u64, bytes: &[u8], dice: &mut Dice) {
    match dice.roll(3) {
        0 => {}
        1 => disk.set_bytes(offset, bytes),
        _ => {
            for (index, page) in bytes.chunks(4096).enumerate() {
                if dice.roll(2) == 0 {
                    disk.set_bytes(offset + 4096 * index as u64, page);
                }
            }
        }
    }
}

fn finished(case: &Case) -> MemoryDisk {
    let card = Recorder::new(&case.bytes);
    let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
    plan.run(&card, &Silent).unwrap();
    card.disk
}

/// The long form of the test above: scripts/cut-matrix runs it.
#[test]
#[ignore = "runs e2fsck thousands of times"]
fn e2fsck_judges_every_cut() {
    for case in cases() {
        let model = Model::new(&case);
        let mut count = 0;
        model.cuts(20, &mut |name, disk| {
            model.judge(name, disk);
            model.judge_by_e2fsck(name, disk);
            if model.journaled && count % 5 == 0 {
                model.judge_by_kernel(name, disk, 100_000);
            }
            count += 1;
        });
        println!("{}: {count} cuts", case.name);
    }
}

#[test]
fn what_reads_back_wrong_while_expanding_is_written_again() {
    let bytes = mbr(&filesystem(&[]));
    let card = Recorder::new(&bytes);
    let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
    plan.run(&card, &Silent).unwrap();
    let expected = card.disk.to_vec();
    let ops = card.ops.into_inner().unwrap();
    let writes: Vec<u64> = ops
        .iter()
        .filter_map(|op| match op {
            Op::Write(offset, bytes) => Some(offset + bytes.len() as u64 / 2),
            Op::Sync => None,
        })
        .collect();
    assert!(writes.len() > 10);
    for &place in &writes {
        let once = Faults {
            flips_once: Mutex::new(vec![place]),
            ..Faults::default()
        };
        let card = FaultyCard::holding(&bytes, once);
        let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
        plan.run(&card, &Silent).unwrap();
        assert!(card.contents() == expected, "at {place}");
        let failing = Faults {
            bad_writes: std::iter::once(place..place + 1).collect(),
            failing_writes: 2.into(),
            ..Faults::default()
        };
        let card = FaultyCard::holding(&bytes, failing);
        let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
        plan.run(&card, &Silent).unwrap();
        assert!(card.contents() == expected, "at {place}");
        let always = Faults {
            flips: vec![place],
            ..Faults::default()
        };
        let card = FaultyCard::holding(&bytes, always);
        let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
        let error = plan.run(&card, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Verify, "at {place}: {error}");
    }
}
