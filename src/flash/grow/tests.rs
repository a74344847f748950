//! An expansion that stops anywhere: every write and sync is recorded, and for each number of
//! writes, and for writes lost within one step, the card that would be left is judged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind as IoErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::ext4::journal;
use crate::ext4::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Super, Superblock};
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
        &[&["-g", "2048", "-N", "300", "-d", folder], options].concat(),
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

/// A filesystem of 16 MiB as the kernel left it when the power went, with fast commits.
fn with_fast_commits() -> Vec<u8> {
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fast-commit.img.zst");
    zstd::decode_all(fs::read(packed).unwrap().as_slice()).unwrap()
}

/// `filesystem` at 1 MiB of a card of 28 MiB.
fn mbr(filesystem: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 28 << 20];
    let sectors = filesystem.len() / 512;
    sfdisk(&mut bytes, &format!("label: dos\n2048,{sectors},83\n"));
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
        ("reserved descriptors", &["-g", "512"], true),
        ("no resize_inode", &["-O", "^resize_inode"], true),
        (
            "descriptors without a place",
            &["-O", "^resize_inode", "-g", "512"],
            true,
        ),
        (
            "descriptors without a place, no checksums",
            &["-O", "^resize_inode,^metadata_csum", "-g", "512"],
            true,
        ),
    ] {
        add(name, mbr(&filesystem(options)), journaled);
    }
    for (name, options) in [
        ("no journal", &[] as &[&str]),
        ("ext2", &["-O", "^extent,^metadata_csum,^64bit"]),
        ("no journal, no checksums", &["-O", "^metadata_csum"]),
        ("no journal, reserved descriptors", &["-g", "512"]),
        (
            "no journal, descriptors without a place",
            &["-O", "^resize_inode", "-g", "512"],
        ),
    ] {
        let image = Scratch::file(&filesystem(options));
        image.run("tune2fs", &["-O", "^has_journal"]);
        add(name, mbr(&image.read()), false);
    }
    add("journal and orphan", mbr(&pulled()), true);
    add("fast commits", mbr(&with_fast_commits()), true);
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

/// The regular files of a filesystem.
type Files = BTreeMap<PathBuf, Vec<u8>>;

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
    /// As the kernel recovers them, and as e2fsck does, which loses some of fast commits.
    files: [Files; 2],
}

/// A card that an interruption leaves.
struct Cut<'a> {
    name: String,
    disk: &'a dyn ReadAt,
    /// Is it to be judged by tools? Of many writes between two syncs only some are.
    sampled: bool,
}

/// How many cuts between two syncs are judged by tools.
const SAMPLES: usize = 12;

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
        let mut model = Self {
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
            files: [Files::new(), Files::new()],
        };
        let image = model.image(case.name, &before);
        model.files[0] = Mounted::new(&image, "rw").files();
        let image = model.image(case.name, &before);
        image.ask("e2fsck", &["-fy"]);
        model.files[1] = Mounted::new(&image, "ro").files();
        assert!(model.files[0].len() >= 20, "{}", case.name);
        model
    }

    /// The filesystem that is on a card.
    fn image(&self, name: &str, disk: &dyn ReadAt) -> Scratch {
        let range = self.partition(name, disk);
        Scratch::file(&disk.read_vec_at(range.start, range.len() as usize).unwrap())
    }

    /// Calls `judge` with the card after each number of writes, and with `losses` cards more for
    /// each step that lack some of the step's writes.
    fn cuts(&self, losses: u64, judge: &mut dyn FnMut(&Cut)) {
        let base = MemoryDisk::from(self.base.clone());
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut now = Overlay::new(base.len());
        let mut settled = now.clone();
        let mut step: Vec<(u64, &[u8])> = Vec::new();
        let name = format!("{}, nothing written", self.name);
        let disk = &base;
        let sampled = true;
        judge(&Cut {
            name,
            disk,
            sampled,
        });
        for (number, op) in self.ops.iter().enumerate() {
            match op {
                Op::Write(offset, bytes) => {
                    now.set_bytes(*offset, bytes.as_slice());
                    step.push((*offset, bytes));
                    let rest = self.ops[number..].iter();
                    let rest = rest.take_while(|op| matches!(op, Op::Write(..))).count();
                    let every = (step.len() - 1 + rest).div_ceil(SAMPLES);
                    let name = format!("{}, cut after write {number}", self.name);
                    let disk = &now.over(&base);
                    let sampled = rest % every == 1 % every;
                    judge(&Cut {
                        name,
                        disk,
                        sampled,
                    });
                }
                Op::Sync => {
                    for round in 0..losses {
                        let mut torn = settled.clone();
                        for &(offset, bytes) in &step {
                            lose(&mut torn, offset, bytes, &mut dice);
                        }
                        let name = format!("{}, {round}th loss before op {number}", self.name);
                        let disk = &torn.over(&base);
                        let sampled = step.len() > 1;
                        judge(&Cut {
                            name,
                            disk,
                            sampled,
                        });
                    }
                    settled = now.clone();
                    step.clear();
                }
            }
        }
    }

    /// The table can be read, its partitions are where they were or where they go, and the
    /// filesystem is sound once its journal is replayed, with the old size or the new one.
    fn judge(&self, Cut { name, disk, .. }: &Cut) {
        let partition = self.partition(name, *disk);
        let window = Window::new(*disk, partition).unwrap();
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

    /// e2fsck says so, too: not a word once the journal is replayed. Without one, it repairs what
    /// there is, and so what its own replay of fast commits leaves. Where it asks whether to
    /// replay, it is told yes.
    fn judge_by_e2fsck(&self, Cut { name, disk, .. }: &Cut) {
        let window = Window::new(*disk, self.partition(name, *disk)).unwrap();
        let fs = Super::read(&window).unwrap().unwrap();
        let replay = journal::replay(&fs, &window).unwrap();
        let asks = !replay.needed && !replay.overlay.is_empty();
        let answers: &[&[&str]] = match self.journaled {
            true if asks || replay.fast_commits > 0 => &[&["-fy"]],
            true => &[&["-E", "journal_only", "-p"], &["-fy"]],
            false => &[&["-fy"]],
        };
        for answer in answers {
            let image = self.image(name, *disk);
            let first = image.ask("e2fsck", answer);
            assert!(first.0 <= 1, "{name}: {first:?}");
            let (code, text) = image.ask("e2fsck", &["-fn"]);
            assert_eq!(code, 0, "{name}: {text}");
            self.assert_size(name, &image);
            let files = Mounted::new(&image, "ro").files();
            assert!(self.files.contains(&files), "{name}: files differ");
        }
    }

    fn assert_size(&self, name: &str, image: &Scratch) {
        let mut bytes = [0; SUPERBLOCK_SIZE];
        let mut file = fs::File::open(image).unwrap();
        file.seek(SeekFrom::Start(SUPERBLOCK_OFFSET)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        let superblock = Superblock::new(bytes.as_slice());
        let size = superblock.blocks_count() << (10 + superblock.s_log_block_size());
        assert!(self.sizes.contains(&size), "{name}: {size}");
    }

    /// So does the kernel, with nobody before it: it mounts the card, finds the files, and writes
    /// until it is full; e2fsck finds nothing afterwards, and all files are there. Without a
    /// journal that is true only of what e2fsck leaves.
    fn judge_by_kernel(&self, Cut { name, disk, .. }: &Cut) {
        let image = self.image(name, *disk);
        let mounted = Mounted::new(&image, "rw");
        let mut files = mounted.files();
        assert!(self.files.contains(&files), "{name}: files differ");
        files.extend(mounted.fill(name));
        drop(mounted);
        if self.journaled {
            let (code, text) = image.ask("e2fsck", &["-fn"]);
            assert_eq!(code, 0, "{name}, after a mount: {text}");
        } else {
            let (code, text) = image.ask("e2fsck", &["-fy"]);
            assert!(code <= 1, "{name}, after a mount: {text}");
        }
        self.assert_size(name, &image);
        let found = Mounted::new(&image, "ro").files();
        if !self.journaled && found != files {
            let old = self.files[0]
                .keys()
                .all(|key| found.get(key) == files.get(key));
            println!("XX {name}: old the same {old}");
            return;
        }
        assert!(
            found == files,
            "{name}: files differ after they were written"
        );
    }
}

/// A filesystem, mounted by the kernel.
struct Mounted(Scratch);

impl Mounted {
    fn new(image: &Scratch, options: &str) -> Self {
        let folder = Scratch::folder();
        let options = format!("loop,{options}");
        let path = image.as_ref().to_str().unwrap();
        folder.run("mount", &["-o", &options, path]);
        Self(folder)
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.0.as_ref().join(&folder)).unwrap() {
                let entry = entry.unwrap();
                let path = folder.join(entry.file_name());
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    files.insert(path, fs::read(entry.path()).unwrap());
                }
            }
        }
        files
    }

    /// Writes files until there is no room; returns those that are whole.
    fn fill(&self, name: &str) -> Files {
        let mut files = Files::new();
        for n in 0.. {
            let path = PathBuf::from(format!("new{n}"));
            let contents = noise(1000 + n, 300_000 + 1777 * n as usize);
            match fs::write(self.0.as_ref().join(&path), &contents) {
                Ok(()) => files.insert(path, contents),
                Err(error) => {
                    assert_eq!(error.kind(), IoErrorKind::StorageFull, "{name}: {error}");
                    fs::remove_file(self.0.as_ref().join(&path)).unwrap();
                    break;
                }
            };
        }
        assert!(!files.is_empty(), "{name}");
        files
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..100 {
            if self.0.ask("umount", &[]).0 == 0 {
                return;
            }
            // A process that another test starts has our open files until its exec.
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(std::thread::panicking(), "it cannot be unmounted");
    }
}

#[test]
fn an_expansion_cut_off_anywhere_leaves_the_old_or_the_new_filesystem() {
    for case in cases() {
        let model = Model::new(&case);
        let mut count = 0;
        model.cuts(6, &mut |cut| {
            model.judge(cut);
            match count % 61 {
                0 => model.judge_by_e2fsck(cut),
                30 => model.judge_by_kernel(cut),
                _ => {}
            }
            count += 1;
        });
        let done = finished(&case);
        let done = Cut {
            name: case.name.into(),
            disk: &done,
            sampled: true,
        };
        model.judge_by_e2fsck(&done);
        model.judge_by_kernel(&done);
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
#[ignore = "mounts thousands of file systems"]
fn e2fsck_and_the_kernel_judge_every_cut() {
    let cases = cases();
    let wanted = std::env::var("CUT_MATRIX_CARDS").ok();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if wanted
                .as_ref()
                .is_some_and(|wanted| !case.name.contains(wanted))
            {
                continue;
            }
            let begun = Instant::now();
            let model = Model::new(case);
            let (mut count, mut judged) = (0, 0);
            model.cuts(20, &mut |cut| {
                model.judge(cut);
                if cut.sampled {
                    model.judge_by_e2fsck(cut);
                    model.judge_by_kernel(cut);
                    judged += 1;
                }
                count += 1;
            });
            let seconds = begun.elapsed().as_secs();
            println!(
                "{}: {count} cuts, {judged} of them by e2fsck and the kernel, {seconds} s",
                case.name
            );
        }
    };
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
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
