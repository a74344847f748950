//! Captures that are stopped anywhere and gone on with, and such that lost something.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::capture::output::tests::TestFiles;
use crate::capture::plan;
use crate::capture::rescue::tests::{Card, capture, small};
use crate::ext4::test_image::Scratch;
use crate::io::memory::{FaultyDisk, MemoryDisk};
use crate::progress::{Event, Phase, Silent};

fn options() -> RunOptions {
    RunOptions {
        codec: Codec::Raw,
        level: None,
        threads: 1,
        with_bmap: true,
    }
}

/// Stops when so many bytes were captured.
struct After(AtomicU64);

impl Progress for After {
    fn event(&self, event: Event) -> Result<()> {
        if let Event::Advanced {
            phase: Phase::Capture,
            bytes,
        } = event
        {
            let left = self.0.load(Ordering::SeqCst);
            if left < bytes || left == 0 {
                return Err(Error::cancelled());
            }
            self.0.fetch_sub(bytes, Ordering::SeqCst);
        }
        Ok(())
    }
}

fn names(folder: &Scratch) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn go_on(disk: &dyn ReadAt, paths: &ImagePaths, progress: &dyn Progress) -> Result<Captured> {
    let plan = plan(disk, &small(), &Silent)?;
    capture_resuming(
        &plan,
        disk,
        paths,
        &options(),
        &TestFiles::default(),
        progress,
    )
}

#[test]
fn a_stopped_capture_goes_on_and_ends_as_if_it_had_not_been_stopped() {
    let card = Card::new();
    let disk = card.failing(&[]);
    let (_, whole, expected) = capture(&disk, &small()).unwrap();
    let folder = Scratch::folder();
    let paths = ImagePaths::new(folder.as_ref().join("x.img"));
    // Before the first byte, then a mebibyte later, and then two more.
    for stop_after in [0, 1 << 20, 2 << 20] {
        let stop = After(AtomicU64::new(stop_after));
        let error = go_on(&disk, &paths, &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.hint().unwrap().contains("goes on"));
        assert_eq!(names(&folder), ["x.img.partial", "x.img.partial.mapfile"]);
        let error = paths.check(false).unwrap_err();
        assert!(error.hint().unwrap().contains("--resume"));
    }
    let before = MapFile::parse(&fs::read_to_string(paths.partial_map()).unwrap()).unwrap();
    assert!(before.there.total() >= 1 << 20);
    // What the map says to be there is not read again.
    let disk = FaultyDisk::new(MemoryDisk::from(card.bytes.clone()));
    let plan = plan(&disk, &small(), &Silent).unwrap();
    let planned = disk.read_so_far();
    let again = capture_resuming(
        &plan,
        &disk,
        &paths,
        &options(),
        &TestFiles::default(),
        &Silent,
    )
    .unwrap();
    for range in disk.read_so_far().iter() {
        for read in before.there.iter_within(range) {
            assert!(planned.gaps(read).is_empty());
        }
    }
    assert_eq!(names(&folder), ["x.img", "x.img.bmap"]);
    assert!(fs::read(&paths.image).unwrap() == expected);
    assert_eq!(again.content_sha256, whole.content_sha256);
    assert_eq!(again.file_sha256, whole.file_sha256);
    let bmap = fs::read_to_string(&paths.bmap).unwrap();
    assert_eq!(bmap, whole.bmap.unwrap().to_xml());
    let error = go_on(&disk, &paths, &Silent).unwrap_err();
    assert!(error.to_string().contains("is complete"), "{error}");
}

#[test]
fn what_was_lost_is_filled_in_when_it_can_be_read() {
    let card = Card::new();
    let start = card.block_of("/home/pi/film.mp4", 100);
    let bad = start..start + 700 * 512;
    let (_, whole, expected) = capture(&card.failing(&[]), &small()).unwrap();
    let folder = Scratch::folder();
    let paths = ImagePaths::new(folder.as_ref().join("x.img"));
    let lost = |captured: Captured| captured.rescued.map(|rescued| rescued.unreadable_bytes);
    // Not asked to keep anything: what is lost can be filled in all the same.
    let failing = card.failing(std::slice::from_ref(&bad));
    let planned = plan(&failing, &small(), &Silent).unwrap();
    let captured = crate::capture::capture_to_file(
        &planned,
        &failing,
        &paths,
        &options(),
        false,
        &TestFiles::default(),
        &Silent,
    );
    assert_eq!(lost(captured.unwrap()), Some(700 * 512));
    let all = ["x.img", "x.img.bmap", "x.img.mapfile"];
    assert_eq!(names(&folder), all);
    // Half of it comes back.
    let half = card.failing(&[bad.start..start + 350 * 512]);
    let captured = go_on(&half, &paths, &Silent).unwrap();
    let sum = Scratch::file(&fs::read(&paths.image).unwrap()).run("sha256sum", &[]);
    assert_eq!(captured.content_sha256, sum[..64]);
    assert_eq!(lost(captured), Some(350 * 512));
    assert_eq!(names(&folder), all);
    // A run that is stopped leaves nothing under the image's name.
    let stop = After(AtomicU64::new(0));
    let error = go_on(&half, &paths, &stop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(names(&folder), ["x.img.partial", "x.img.partial.mapfile"]);
    let captured = go_on(&card.failing(&[]), &paths, &Silent).unwrap();
    assert_eq!(captured.content_sha256, whole.content_sha256);
    assert_eq!(lost(captured), None);
    assert_eq!(names(&folder), ["x.img", "x.img.bmap"]);
    assert!(fs::read(&paths.image).unwrap() == expected);
}

#[test]
fn another_card_another_option_and_another_map_are_refused() {
    let card = Card::new();
    let start = card.block_of("/home/pi/film.mp4", 100);
    let failing = card.failing(&[start..start + 512]);
    let folder = Scratch::folder();
    let paths = ImagePaths::new(folder.as_ref().join("x.img"));
    go_on(&failing, &paths, &Silent).unwrap();
    let image = fs::read(&paths.image).unwrap();
    let map = fs::read_to_string(&paths.mapfile).unwrap();
    let refusal = |disk: &dyn ReadAt, options: &crate::capture::PlanOptions| {
        let plan = plan(disk, options, &Silent).unwrap();
        let error = capture_resuming(
            &plan,
            disk,
            &paths,
            &self::options(),
            &TestFiles::default(),
            &Silent,
        )
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        error.to_string()
    };
    let other = crate::capture::PlanOptions {
        headroom: 5 << 20,
        ..small()
    };
    assert!(refusal(&failing, &other).contains("another capture"));
    // The same card, changed since.
    let mut bytes = card.bytes.clone();
    let part = Scratch::file(&bytes[1 << 20..]);
    let tuned = part.ask("tune2fs", &["-L", "other"]);
    assert_eq!(tuned.0, 0, "{tuned:?}");
    bytes[1 << 20..].copy_from_slice(&part.read());
    let text = refusal(&MemoryDisk::from(bytes), &small());
    assert!(text.contains("another capture"), "{text}");
    fs::write(&paths.mapfile, map.replace("# Plan", "# Plane")).unwrap();
    assert!(refusal(&failing, &small()).contains("does not tell"));
    fs::write(&paths.mapfile, &map).unwrap();
    fs::write(&paths.image, &image[..image.len() - 512]).unwrap();
    assert!(refusal(&failing, &small()).contains("bytes, and not"));
    fs::remove_file(&paths.image).unwrap();
    assert!(refusal(&failing, &small()).contains("but not the image"));
}

#[test]
fn bad_areas_wait_until_all_good_ones_are_read() {
    let card = Card::new();
    let start = card.block_of("/home/pi/film.mp4", 0);
    let failing = card.failing(&[start + 512..start + 1024]);
    let order = Order {
        disk: failing,
        reads: std::sync::Mutex::new(Vec::new()),
    };
    let planned = plan(&order, &small(), &Silent).unwrap();
    order.reads.lock().unwrap().clear();
    let file = Scratch::file(&[]);
    let out = fs::OpenOptions::new().read(true).write(true).open(&file);
    let mut sink = Sink::File(out.unwrap());
    crate::capture::run(&planned, &order, &mut sink, &options(), &Silent).unwrap();
    let reads = order.reads.into_inner().unwrap();
    // The first failure is a large request; the next request that touches the place comes after
    // one at every other place of the plan.
    let touches =
        |&(from, len): &(u64, usize)| from < start + 1024 && start + 512 < from + len as u64;
    let first = reads.iter().position(touches).unwrap();
    let second = first + 1 + reads[first + 1..].iter().position(touches).unwrap();
    let mut left = map::read_ranges(&planned.overlay, planned.summary.source_bytes);
    for &(from, len) in &reads[..second] {
        left.remove(from..from + len as u64);
    }
    // What was skipped behind it aside.
    assert!(left.total() <= 4 << 20, "{left:?}");
    assert!(reads[second].1 <= 1 << 20);
}

/// Remembers what was asked for.
struct Order {
    disk: FaultyDisk<MemoryDisk>,
    reads: std::sync::Mutex<Vec<(u64, usize)>>,
}

impl ReadAt for Order {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.lock().unwrap().push((offset, buf.len()));
        self.disk.read_exact_at(offset, buf)
    }
}
