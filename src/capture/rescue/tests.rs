//! A small real card whose read errors the test chooses; mke2fs, debugfs, dumpe2fs and mtools
//! make it and know where things lie.

use std::fs;

use super::*;
use crate::capture::{CapturePlan, Captured, Loss, PlanOptions, RunOptions, Sink, plan, run};
use crate::codec::Codec;
use crate::ext4::test_image::{Scratch, mke2fs};
use crate::io::Edits;
use crate::io::memory::{FaultyDisk, MemoryDisk};
use crate::progress::Silent;
use crate::units::ByteRange;

const PART: u64 = 1 << 20;
const FS: u64 = 32 << 20;
const BLOCK: u64 = 1024;

/// A card with an ext4 filesystem as its first partition.
pub(in crate::capture) struct Card {
    pub(in crate::capture) bytes: Vec<u8>,
    filesystem: Scratch,
}

impl Card {
    pub(in crate::capture) fn new() -> Self {
        let tree = Scratch::folder();
        let home = tree.as_ref().join("home/pi");
        fs::create_dir_all(&home).unwrap();
        let noise = |seed: u32, len: usize| -> Vec<u8> {
            (0..len as u32)
                .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8 | 1)
                .collect()
        };
        fs::write(home.join("photo.jpg"), noise(1, 200 << 10)).unwrap();
        fs::write(home.join("film.mp4"), noise(2, 3 << 20)).unwrap();
        for n in 0..40 {
            fs::write(tree.as_ref().join(format!("file{n}")), noise(n, 2000)).unwrap();
        }
        let folder = tree.as_ref().to_str().unwrap();
        let contents = mke2fs(FS, &["-L", "rootfs", "-d", folder]);
        let mut bytes = vec![0; PART as usize];
        bytes[446 + 4] = 0x83;
        bytes[446 + 8..446 + 12].copy_from_slice(&(PART as u32 / 512).to_le_bytes());
        bytes[446 + 12..446 + 16].copy_from_slice(&(FS as u32 / 512).to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes.extend_from_slice(&contents);
        // Where a GPT would have its copy, which is looked for.
        bytes.resize(bytes.len() + (1 << 20), 0);
        Self {
            bytes,
            filesystem: Scratch::file(&contents),
        }
    }

    /// Asks debugfs; `question` is one command.
    fn ask(&self, question: &str) -> String {
        self.filesystem.run("debugfs", &["-R", question])
    }

    /// Where a block of a file begins on the card.
    pub(in crate::capture) fn block_of(&self, path: &str, index: usize) -> u64 {
        let blocks = self.ask(&format!("blocks {path}"));
        let numbers: Vec<u64> = blocks
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        PART + numbers[index] * BLOCK
    }

    /// The card's free blocks, as dumpe2fs lists them.
    fn free(&self) -> RangeSet {
        let text = self.filesystem.run("dumpe2fs", &[]);
        let lists = text.lines().filter_map(|line| {
            let line = line.strip_prefix("  ")?;
            line.strip_prefix("Free blocks: ")
        });
        lists
            .flat_map(|list| list.split(", "))
            .filter(|range| !range.is_empty())
            .map(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
                PART + first * BLOCK..PART + (last + 1) * BLOCK
            })
            .collect()
    }

    /// Where an inode's slot begins on the card.
    fn inode(&self, number: u64) -> u64 {
        let text = self.filesystem.run("dumpe2fs", &[]);
        let line = text.lines().find(|line| line.contains("Inode table at"));
        let table = line
            .unwrap()
            .trim()
            .strip_prefix("Inode table at ")
            .unwrap();
        let digits = table.find(|c: char| !c.is_ascii_digit()).unwrap();
        PART + table[..digits].parse::<u64>().unwrap() * BLOCK + (number - 1) * 256
    }

    pub(in crate::capture) fn failing(&self, bad: &[Range<u64>]) -> FaultyDisk<MemoryDisk> {
        FaultyDisk::new(MemoryDisk::from(self.bytes.clone()))
            .with_bad_reads(bad.iter().cloned().collect())
    }
}

pub(in crate::capture) fn small() -> PlanOptions {
    PlanOptions {
        headroom: 1 << 20,
        ..PlanOptions::default()
    }
}

fn whole() -> PlanOptions {
    PlanOptions {
        shrink: false,
        force_raw: true,
        ..PlanOptions::default()
    }
}

/// Captures `disk`; returns also the image.
pub(in crate::capture) fn capture(
    disk: &dyn ReadAt,
    options: &PlanOptions,
) -> Result<(CapturePlan, Captured, Vec<u8>)> {
    let plan = plan(disk, options, &Silent)?;
    let (captured, image) = carry_out(&plan, disk)?;
    Ok((plan, captured, image))
}

fn carry_out(plan: &CapturePlan, disk: &dyn ReadAt) -> Result<(Captured, Vec<u8>)> {
    let file = Scratch::file(&[]);
    let out = fs::OpenOptions::new().read(true).write(true).open(&file);
    let options = RunOptions {
        codec: Codec::Raw,
        level: None,
        threads: 1,
        with_bmap: true,
    };
    let mut sink = Sink::File(out.unwrap());
    let captured = run(plan, disk, &mut sink, &options, &Silent)?;
    Ok((captured, file.read()))
}

fn losses(captured: &Captured) -> &[Loss] {
    &captured.rescued.as_ref().expect("there were errors").losses
}

#[test]
fn a_bad_sector_costs_a_sector_of_its_file_and_free_space_is_not_touched() {
    let card = Card::new();
    let bad = card.block_of("/home/pi/photo.jpg", 5) + 512;
    let bad = bad..bad + 512;
    let free = card.free();
    assert!(free.total() > 16 << 20);
    let good = card.failing(&[]);
    let (_, smooth, expected) = capture(&good, &small()).unwrap();
    assert!(smooth.rescued.is_none());
    let mut faults: Vec<_> = free.iter().collect();
    faults.push(bad.clone());
    let disk = card.failing(&faults);
    let (plan, captured, image) = capture(&disk, &small()).unwrap();
    assert!(plan.image_bytes() < PART + FS / 2);
    for range in disk.read_so_far().iter() {
        let touched: Vec<_> = free.iter_within(range).collect();
        assert!(touched.is_empty(), "{touched:?}");
    }
    let differing: RangeSet = (0..image.len())
        .filter(|&at| image[at] != expected[at])
        .map(|at| at as u64..at as u64 + 1)
        .collect();
    assert_eq!((differing.run_count(), differing.total()), (1, 512));
    let lost = differing.iter().next().unwrap();
    assert!(crate::io::is_zero(
        &image[lost.start as usize..lost.end as usize]
    ));
    assert_eq!(
        losses(&captured),
        [Loss {
            source: ByteRange::new(bad.start, bad.end),
            partition: 1,
            owner: "/home/pi/photo.jpg".into(),
            file_offset: Some(5 * BLOCK + 512),
        }]
    );
    // The hashes are those of the image as it is.
    let sum = Scratch::file(&image).run("sha256sum", &[]);
    assert_eq!(captured.content_sha256, sum[..64]);
    let map = captured.rescued.unwrap().map_file;
    let entry = format!("0x{:08X}  0x00000200  -\n", bad.start);
    assert!(map.contains(&entry), "{map}");
    check_map(&map, plan.summary.source_bytes);
}

/// The map has a comment, a status line, and then all of the source without a gap.
fn check_map(map: &str, len: u64) {
    let mut lines = map.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next().unwrap().split_whitespace().count(), 3);
    let number = |text: &str| u64::from_str_radix(&text[2..], 16).unwrap();
    let mut end = 0;
    for line in lines {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(number(words[0]), end);
        assert!(["?", "+", "-"].contains(&words[2]));
        assert_eq!(number(words[1]) % SECTOR, 0);
        end += number(words[1]);
    }
    assert_eq!(end, len);
}

#[test]
fn lost_inodes_keep_the_filesystem_at_its_size() {
    let card = Card::new();
    let bad = card.inode(17);
    let disk = card.failing(&[bad..bad + 512]);
    let (plan, captured, image) = capture(&disk, &small()).unwrap();
    let part = &plan.summary.partitions[0];
    assert_eq!(part.new_range, part.range);
    let unreadable = part.facts.unreadable.as_deref().unwrap();
    assert_eq!(unreadable, "the inode table of group 0 (inodes 17 to 18)");
    let losses = losses(&captured);
    assert_eq!((losses.len(), &*losses[0].owner), (1, unreadable));
    // All that is in use is there, but for these 512 bytes.
    let free = card.free();
    let journal = card.ask("blocks <8>");
    let mut different = RangeSet::new();
    for at in (0..image.len()).step_by(512) {
        if image[at..at + 512] != card.bytes[at..at + 512] {
            different.insert(at as u64..at as u64 + 512);
        }
    }
    for range in free.iter() {
        different.remove(range);
    }
    for word in journal.split_whitespace() {
        if let Ok(block) = word.parse::<u64>() {
            different.remove(PART + block * BLOCK..PART + (block + 1) * BLOCK);
        }
    }
    // The rest may be the superblock's state; nothing else is rewritten.
    different.remove(PART + 1024..PART + 2048);
    assert_eq!(different.iter().collect::<Vec<_>>(), [bad..bad + 512]);
}

#[test]
fn without_the_superblock_or_the_table_every_block_can_be_saved() {
    let card = Card::new();
    for (bad, place) in [
        (PART + 1024..PART + 2048, "partition 1"),
        (0..512, "partition table"),
    ] {
        let disk = card.failing(std::slice::from_ref(&bad));
        let error = capture(&disk, &small()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.one_line().contains(place), "{}", error.one_line());
        assert!(error.hint().unwrap().contains("--no-shrink --force-raw"));
        let (_, captured, image) = capture(&disk, &whole()).unwrap();
        let mut expected = card.bytes.clone();
        expected[bad.start as usize..bad.end as usize].fill(0);
        assert!(image == expected, "{place}");
        let rescued = captured.rescued.unwrap();
        assert_eq!(rescued.unreadable_bytes, bad.end - bad.start);
    }
}

#[test]
fn large_bad_areas_are_followed_to_their_edges() {
    let card = Card::new();
    let first = card.block_of("/home/pi/film.mp4", 100);
    let last = card.block_of("/home/pi/film.mp4", 2500);
    let disk = card.failing(&[first + 512..last]);
    let (_, captured, _) = capture(&disk, &small()).unwrap();
    let losses = losses(&captured);
    assert!(losses.iter().all(|loss| loss.owner == "/home/pi/film.mp4"));
    let total: u64 = losses.iter().map(|loss| loss.source.len()).sum();
    assert_eq!(total, last - first - 512);
}

#[test]
fn what_cannot_be_read_is_zeros_whatever_the_buffer_held() {
    let disk = FaultyDisk::new(MemoryDisk::from(vec![7; 300_000]))
        .with_bad_reads([1000..1001, 70_000..150_000].into_iter().collect());
    let mut rescue = Rescue::new(&disk, Phase::Capture, &Silent);
    let mut buf = vec![9; 200_000];
    assert!(!rescue.attempt(100, &mut buf).unwrap());
    rescue.read(100, &mut buf).unwrap();
    let unread = rescue.into_unread().ranges;
    assert_eq!(
        unread.iter().collect::<Vec<_>>(),
        [512..1024, 69_632..150_016]
    );
    for (at, &byte) in (100..).zip(&buf) {
        assert_eq!(byte, if unread.contains(at) { 0 } else { 7 }, "{at}");
    }
}

/// A disk whose first `left` requests for a range fail.
struct Moody {
    disk: MemoryDisk,
    range: Range<u64>,
    left: std::sync::atomic::AtomicU32,
    gone: bool,
}

impl ReadAt for Moody {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let touches = offset < self.range.end && self.range.start < offset + buf.len() as u64;
        let down = |left: u32| left.checked_sub(1);
        if touches && self.left.fetch_update(SeqCst, SeqCst, down).is_ok() {
            let cause = std::io::Error::from_raw_os_error(5);
            let error = Error::io(format!("reading at byte {offset}"), cause);
            return Err(if self.gone { error.gone() } else { error });
        }
        self.disk.read_exact_at(offset, buf)
    }
}

#[test]
fn what_can_be_read_in_the_end_is_no_loss_and_a_pulled_card_is_the_end() {
    let card = Card::new();
    let at = card.block_of("/home/pi/photo.jpg", 0);
    let moody = |range: Range<u64>, left, gone| Moody {
        disk: MemoryDisk::from(card.bytes.clone()),
        range,
        left: std::sync::atomic::AtomicU32::new(left),
        gone,
    };
    let spot = at..at + 512;
    let (_, _, expected) = capture(&card.failing(&[]), &small()).unwrap();
    let (_, captured, image) = capture(&moody(spot.clone(), 4, false), &small()).unwrap();
    assert!(image == expected);
    let rescued = captured.rescued.unwrap();
    assert_eq!((rescued.read_errors, rescued.unreadable_bytes), (4, 0));
    assert!(rescued.losses.is_empty());
    // It is not gone if only this place says so.
    let (_, captured, _) = capture(&moody(spot, u32::MAX, true), &small()).unwrap();
    assert_eq!(captured.rescued.unwrap().unreadable_bytes, 512);
    let planned = plan(&card.failing(&[]), &small(), &Silent).unwrap();
    let whole = 0..card.bytes.len() as u64;
    let error = carry_out(&planned, &moody(whole, u32::MAX, true)).unwrap_err();
    assert_eq!((error.kind(), error.is_gone()), (ErrorKind::Io, true));
}

/// A run with changes gets them also where it could be read only in the end; what stays lost is zeros.
#[test]
fn what_is_read_late_is_changed_like_the_rest() {
    let card = Card::new();
    let at = card.block_of("/home/pi/photo.jpg", 0);
    let mut plan = plan(&card.failing(&[]), &small(), &Silent).unwrap();
    let segments = plan.overlay.all_segments();
    let mut places = segments.filter_map(|segment| {
        let from = segment.source.base()?;
        let holds = (from..from + segment.len).contains(&at);
        holds.then(|| segment.start + (at - from))
    });
    let start = places.next().unwrap();
    drop(places);
    let old = &card.bytes[at as usize..at as usize + 1024];
    let mut new = old.to_vec();
    for byte in new.iter_mut().step_by(100) {
        *byte ^= 1;
    }
    plan.overlay
        .set_patched(start, 1024, at, Edits::between(old, &new));
    let len = plan.image_bytes() as usize;
    let expected = plan
        .overlay
        .over(&card.failing(&[]))
        .read_vec_at(0, len)
        .unwrap();
    assert_eq!(expected[start as usize..start as usize + 1024], new);
    let moody = Moody {
        disk: MemoryDisk::from(card.bytes.clone()),
        range: at..at + 512,
        left: std::sync::atomic::AtomicU32::new(3),
        gone: false,
    };
    let (captured, image) = carry_out(&plan, &moody).unwrap();
    assert!(image == expected);
    assert_eq!(captured.rescued.unwrap().unreadable_bytes, 0);
    let (_, image) = carry_out(&plan, &card.failing(&[at..at + 512])).unwrap();
    let part = &image[start as usize..start as usize + 1024];
    assert!(part[..512].iter().all(|&byte| byte == 0));
    assert_eq!(part[512..], new[512..]);
}

#[test]
fn files_on_fat_are_named_too() {
    let image = Scratch::file(&[]);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    image.run("mkfs.vfat", &["-F", "16", "-s", "1", "-n", "BOOT"]);
    let contents: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8 + 1).collect();
    let source = Scratch::file(&contents);
    let (from, at) = (
        source.as_ref().to_str().unwrap(),
        image.as_ref().to_str().unwrap(),
    );
    Scratch::file(&[]).ask("mmd", &["-i", at, "::/overlays", "::/unused"]);
    let name = "::/overlays/a long name.dtbo";
    let copied = std::process::Command::new("mcopy")
        .args(["-i", at, from, name])
        .status();
    assert!(copied.unwrap().success());
    let bytes = image.read();
    let start = bytes
        .windows(512)
        .position(|window| window == &contents[..512])
        .unwrap() as u64;
    let disk = FaultyDisk::new(MemoryDisk::from(bytes))
        .with_bad_reads([start + 4096..start + 4608].into_iter().collect());
    let (_, captured, _) = capture(&disk, &small()).unwrap();
    let losses = losses(&captured);
    assert_eq!(losses.len(), 1);
    assert_eq!(losses[0].owner, "/overlays/a long name.dtbo");
    assert_eq!(losses[0].file_offset, Some(4096));
}
