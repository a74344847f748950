//! Every card that an interruption leaves, judged by this program, e2fsck and the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Error as IoError, ErrorKind as IoErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::cases::{Case, cases, noise};
use super::*;
use crate::ext4::format::fs::Super;
use crate::ext4::format::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use crate::ext4::recover::journal;
use crate::ext4::test_image::Scratch;

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
        let replay = self.replay(name, *disk);
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

    fn replay(&self, name: &str, disk: &dyn ReadAt) -> journal::Replay {
        let window = Window::new(disk, self.partition(name, disk)).unwrap();
        let fs = Super::read(&window).unwrap().unwrap();
        journal::replay(&fs, &window).unwrap()
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
    /// journal it may refuse to write, and e2fsck has to mend the rest.
    fn judge_by_kernel(&self, Cut { name, disk, .. }: &Cut) {
        if !self.journaled && self.name.contains("without a place") {
            // Bitmaps move, and nothing undoes it: a mount before e2fsck can damage files.
            return;
        }
        let image = self.image(name, *disk);
        let mounted = Mounted::new(&image, "rw");
        let old = mounted.files();
        assert!(self.files.contains(&old), "{name}: files differ");
        let (mut files, end) = mounted.fill();
        if self.journaled {
            assert_eq!(end.kind(), IoErrorKind::StorageFull, "{name}: {end}");
            assert!(!files.is_empty(), "{name}");
        }
        files.extend(old.clone());
        drop(mounted);
        // The kernel's own replay of fast commits leaves wrong counts.
        if self.journaled && self.replay(name, *disk).fast_commits == 0 {
            let (code, text) = image.ask("e2fsck", &["-fn"]);
            assert_eq!(code, 0, "{name}, after a mount: {text}");
        } else {
            let (code, text) = image.ask("e2fsck", &["-fy"]);
            assert!(code <= 1, "{name}, after a mount: {text}");
        }
        self.assert_size(name, &image);
        let found = Mounted::new(&image, "ro").files();
        // Without a journal, what was written into groups that were being changed can be lost.
        let promised = if self.journaled { &files } else { &old };
        for (path, contents) in promised {
            let same = found.get(path) == Some(contents);
            assert!(same, "{name}: {} differs", path.display());
        }
        assert!(!self.journaled || found.len() == files.len(), "{name}");
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

    /// Writes files until one fails; returns those that are whole, and why there are no more.
    fn fill(&self) -> (Files, IoError) {
        let mut files = Files::new();
        for n in 0.. {
            let path = PathBuf::from(format!("new{n}"));
            let contents = noise(1000 + n, 300_000 + 1777 * n as usize);
            let place = self.0.as_ref().join(&path);
            if let Err(error) = fs::write(&place, &contents) {
                let _ = fs::remove_file(&place);
                return (files, error);
            }
            files.insert(path, contents);
        }
        unreachable!("there is always room")
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

/// The long form of the test above: proofs/cut-matrix runs it.
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
