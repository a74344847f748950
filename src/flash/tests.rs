//! Flashing cards in memory that misbehave: each fault ends in the right repair or the right error.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::faulty::{Faults, FaultyCard};
use super::*;
use crate::bmap::BmapBuilder;
use crate::codec::{Codec, Encoder};
use crate::io::RangeSet;
use crate::progress::{Progress, Silent};
use crate::units::ByteRange;

const MIB: u64 = 1 << 20;

/// An image of noise, with zeros from 5 to 7 MiB and a table that looks like nothing.
fn image(len: u64) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(len as usize)
        .collect();
    let zeros = (5 * MIB).min(len) as usize..(7 * MIB).min(len) as usize;
    bytes[zeros].fill(0);
    bytes[510..512].fill(0);
    bytes
}

/// An image in memory, as a stream.
struct Bytes {
    bytes: Vec<u8>,
    reopens: bool,
    opened: AtomicU64,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            reopens: true,
            opened: AtomicU64::new(0),
        }
    }
}

impl ImageSource for Bytes {
    fn open(&self) -> Result<Box<dyn ImageReader>> {
        let opened = self.opened.fetch_add(1, Ordering::SeqCst);
        assert!(self.reopens || opened == 0, "opened again");
        let bytes = std::io::Cursor::new(self.bytes.clone());
        StreamSource::new(move || Ok(bytes.clone()), true, None).open()
    }

    fn can_reopen(&self) -> bool {
        self.reopens
    }
}

fn options() -> Options {
    Options {
        stall: Duration::from_millis(60),
        give_up: Duration::from_millis(600),
        // What is flashed here is noise.
        any_image: true,
        ..Options::default()
    }
}

fn flash_cards(image: &Bytes, cards: &[&FaultyCard], options: &Options) -> Result<Vec<CardReport>> {
    let slots: Vec<_> = cards
        .iter()
        .enumerate()
        .map(|(index, card)| Slot {
            name: format!("card {index}"),
            card: *card,
            progress: &Silent,
        })
        .collect();
    flash(image, None, &slots, options)
}

fn flash_with(
    image: &dyn ImageSource,
    map: Option<&Bmap>,
    card: &FaultyCard,
    options: &Options,
) -> Result<CardReport> {
    let slot = Slot {
        name: "card".into(),
        card,
        progress: &Silent,
    };
    flash(image, map, &[slot], options).map(|mut reports| reports.remove(0))
}

fn flash_one(image: &Bytes, card: &FaultyCard) -> CardReport {
    flash_with(image, None, card, &options()).unwrap()
}

fn set(ranges: &[Range<u64>]) -> RangeSet {
    ranges.iter().cloned().collect()
}

fn always() -> AtomicU64 {
    AtomicU64::new(u64::MAX)
}

fn assert_good(image: &Bytes, card: &FaultyCard, report: &CardReport) {
    assert!(report.error.is_none(), "{:?}", report.error);
    assert!(report.is_verified());
    let len = image.bytes.len();
    assert!(card.contents()[..len] == image.bytes[..]);
    let verification = report.verification.as_ref().unwrap();
    assert_eq!(verification.bytes, len as u64);
}

/// The first block was never anything but zeros until `report` says it was published.
fn assert_withheld(card: &FaultyCard, report: &CardReport) {
    let log = card.log.lock().unwrap();
    // The probe stays away from the first block.
    let first: Vec<_> = log
        .iter()
        .enumerate()
        .filter(|(_, (start, ..))| *start < BLOCK)
        .map(|(index, (_, _, zero))| (index, *zero))
        .collect();
    assert!(first.first().is_none_or(|(_, zero)| *zero));
    match report.published {
        true => {
            let (index, zero) = first.last().unwrap();
            assert!(!zero);
            assert_eq!(*index, log.len() - 1, "the first block is the last write");
            assert!(first[..first.len() - 1].iter().all(|(_, zero)| *zero));
        }
        false => assert!(first.iter().all(|(_, zero)| *zero)),
    }
}

#[test]
fn a_good_card_holds_the_image_and_the_first_block_comes_last() {
    for len in [512, 5000, MIB, 2 * MIB, 2 * MIB + 512, 11 * MIB + 777] {
        let image = Bytes::new(image(len));
        let card = FaultyCard::new(12 * MIB, Faults::default());
        let report = flash_one(&image, &card);
        assert_good(&image, &card, &report);
        assert_withheld(&card, &report);
        assert_eq!(image.opened.load(Ordering::SeqCst), 1);
        // The image leaves the rest alone, but for the blank beginning.
        assert_eq!(card.discarded.lock().unwrap().total(), report.discarded);
        assert_eq!(report.discarded, 12 * MIB - len.max(MIB));
    }
}

#[test]
fn long_zeros_are_left_to_the_card_and_read_back() {
    let image = Bytes::new(image(9 * MIB));
    let card = FaultyCard::new(10 * MIB, Faults::default());
    assert_good(&image, &card, &flash_one(&image, &card));
    assert_eq!(*card.zeroed.lock().unwrap(), set(&[5 * MIB..7 * MIB]));
    for faults in [
        Faults {
            cannot_zero: true,
            ..Faults::default()
        },
        Faults {
            lies_about_zeros: true,
            ..Faults::default()
        },
    ] {
        let card = FaultyCard::new(10 * MIB, faults);
        let report = flash_one(&image, &card);
        assert_good(&image, &card, &report);
        let found = &report.verification.unwrap().found;
        assert_eq!(found.is_empty(), card.faults.cannot_zero);
    }
}

#[test]
fn what_can_be_repaired_is_repaired() {
    let image = Bytes::new(image(11 * MIB));
    let place = 3 * MIB + 12345;
    let block = ByteRange::new(3 * MIB + 12288, 3 * MIB + 16384);
    let flipped = Some((block, Class::FlippedBits { count: 1 }));
    let cases = [
        (
            "a write that fails once",
            Faults {
                bad_writes: set(&[place..place + 1]),
                failing_writes: AtomicU64::new(1),
                ..Faults::default()
            },
            None,
        ),
        (
            "a read that fails once",
            Faults {
                bad_reads: set(&[place..place + 1]),
                failing_reads: AtomicU64::new(1),
                ..Faults::default()
            },
            None,
        ),
        (
            "a bit that flips once",
            Faults {
                flips_once: Mutex::new(vec![place]),
                ..Faults::default()
            },
            flipped,
        ),
        (
            "a block that cannot be read at first",
            Faults {
                bad_reads: set(&[place..place + 1]),
                failing_reads: AtomicU64::new(3),
                ..Faults::default()
            },
            Some((block, Class::Unreadable)),
        ),
    ];
    for (name, faults, found) in cases {
        let card = FaultyCard::new(12 * MIB, faults);
        let report = flash_one(&image, &card);
        assert_good(&image, &card, &report);
        assert_withheld(&card, &report);
        let verification = report.verification.unwrap();
        let expected: Vec<_> = found
            .into_iter()
            .map(|(range, class)| Difference { range, class })
            .collect();
        assert_eq!(verification.found, expected, "{name}");
        let bytes = expected.iter().map(|d| d.range.len()).sum::<u64>();
        assert_eq!(verification.rewritten, bytes, "{name}");
    }
}

#[test]
fn what_stays_wrong_is_named_and_never_published() {
    let image = Bytes::new(image(11 * MIB));
    let place = 3 * MIB + 12345;
    let block = ByteRange::new(3 * MIB + 12288, 3 * MIB + 16384);
    let cases = [
        (
            Faults {
                flips: vec![place],
                ..Faults::default()
            },
            Class::FlippedBits { count: 1 },
        ),
        (
            Faults {
                bad_reads: set(&[place..place + 1]),
                failing_reads: always(),
                ..Faults::default()
            },
            Class::Unreadable,
        ),
        (
            Faults {
                bad_writes: set(&[place..place + 1]),
                failing_writes: always(),
                ..Faults::default()
            },
            Class::Other,
        ),
        (
            Faults {
                shifts: vec![(block.start..block.end, 512)],
                ..Faults::default()
            },
            Class::Shifted { by: 512 },
        ),
    ];
    for (faults, class) in cases {
        let card = FaultyCard::new(12 * MIB, faults);
        let report = flash_one(&image, &card);
        assert_withheld(&card, &report);
        assert!(!report.published && !report.is_verified());
        let error = report.error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Verify);
        assert!(error.to_string().contains("at byte 3"), "{error}");
        let remaining = report.verification.unwrap().remaining;
        let named = remaining.iter().find(|d| d.range.start <= block.start);
        assert_eq!(named.map(|d| d.class), Some(class), "{remaining:?}");
        let wrong: u64 = remaining.iter().map(|d| d.range.len()).sum();
        // A write that fails takes its whole request with it, of which 4 KiB are rewritten apart.
        assert!(wrong <= 8192, "{remaining:?}");
    }
}

#[test]
fn a_card_that_keeps_its_old_contents_is_told_apart() {
    let image = Bytes::new(image(11 * MIB));
    let card = FaultyCard::new(
        12 * MIB,
        Faults {
            stuck: set(&[MIB..12 * MIB]),
            cannot_zero: true,
            ..Faults::default()
        },
    );
    let no_probe = Options {
        probe: false,
        ..options()
    };
    let report = flash_with(&image, None, &card, &no_probe).unwrap();
    let error = report.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Verify);
    let remaining = report.verification.unwrap().remaining;
    assert!(remaining.iter().any(|d| d.class == Class::OldContents));
    let wrong: u64 = remaining.iter().map(|d| d.range.len()).sum();
    assert_eq!(wrong, 10 * MIB);
}

#[test]
fn the_probe_finds_less_capacity_than_claimed_before_anything_is_written() {
    let image = Bytes::new(image(3 * MIB));
    for faults in [
        Faults {
            wraps_at: Some(8 * MIB),
            ..Faults::default()
        },
        Faults {
            drops_from: Some(9 * MIB),
            ..Faults::default()
        },
    ] {
        let card = FaultyCard::new(16 * MIB, faults);
        let before = card.contents();
        let report = flash_one(&image, &card);
        let error = report.error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Verify);
        assert!(error.to_string().contains("claims 16.8 MB"), "{error}");
        assert!(card.contents() == before, "the old contents are back");
    }
    let card = FaultyCard::new(16 * MIB, Faults::default());
    let before = card.contents();
    assert_good(&image, &card, &flash_one(&image, &card));
    assert!(card.contents()[3 * MIB as usize..] == before[3 * MIB as usize..]);
}

#[test]
fn without_the_probe_reading_back_finds_wrapped_capacity() {
    let image = Bytes::new(image(15 * MIB));
    let card = FaultyCard::new(
        16 * MIB,
        Faults {
            wraps_at: Some(8 * MIB),
            cannot_zero: true,
            ..Faults::default()
        },
    );
    let no_probe = Options {
        probe: false,
        ..options()
    };
    let report = flash_with(&image, None, &card, &no_probe).unwrap();
    assert!(!report.published);
    let error = report.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Verify);
    assert!(error.hint().unwrap().contains("counterfeit"));
    let remaining = report.verification.unwrap().remaining;
    let aliased = remaining.iter().any(|d| {
        d.class
            == Class::OtherBlock {
                place: d.range.start + 8 * MIB,
            }
    });
    assert!(aliased, "{remaining:?}");
    assert_eq!(image.opened.load(Ordering::SeqCst), 1, "not rewritten");
}

#[test]
fn a_card_pulled_out_stops_and_the_others_go_on() {
    let image = Bytes::new(image(40 * MIB));
    let gone = || Faults {
        gone_after: Some(20 * MIB),
        ..Faults::default()
    };
    let cards = [
        FaultyCard::new(41 * MIB, Faults::default()),
        FaultyCard::new(41 * MIB, gone()),
        FaultyCard::new(39 * MIB, Faults::default()),
        FaultyCard::new(41 * MIB, Faults::default()),
    ];
    let cards: Vec<_> = cards.iter().collect();
    let reports = flash_cards(&image, &cards, &options()).unwrap();
    for index in [0, 3] {
        assert_good(&image, cards[index], &reports[index]);
    }
    for (card, report) in cards.iter().zip(&reports) {
        assert_withheld(card, report);
    }
    let error = reports[1].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(!reports[1].published);
    // The stream's length is not known beforehand: the small card fails on the way.
    let error = reports[2].error.as_ref().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains(&(39 * MIB).to_string()));
    let alone = flash_one(&image, &FaultyCard::new(41 * MIB, gone()));
    assert!(alone.error.is_some() && !alone.published);
}

/// Remembers what it is told.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn event(&self, event: Event) -> Result<()> {
        if let Event::Note(text) = event {
            self.0.lock().unwrap().push(text);
        }
        Ok(())
    }
}

#[test]
fn a_stalled_card_is_named_and_a_stuck_one_does_not_hold_up_the_others() {
    let image = Bytes::new(image(90 * MIB));
    let stalls = |millis| Faults {
        stall: Mutex::new(Some((20 * MIB, Duration::from_millis(millis)))),
        ..Faults::default()
    };
    let cards = [
        FaultyCard::new(91 * MIB, Faults::default()),
        FaultyCard::new(91 * MIB, stalls(300)),
        FaultyCard::new(91 * MIB, stalls(2500)),
    ];
    let notes: Vec<_> = cards.iter().map(|_| Notes::default()).collect();
    let slots: Vec<_> = cards
        .iter()
        .zip(&notes)
        .enumerate()
        .map(|(index, (card, notes))| Slot {
            name: format!("card {index}"),
            card,
            progress: notes,
        })
        .collect();
    let reports = flash(&image, None, &slots, &options()).unwrap();
    assert_good(&image, &cards[0], &reports[0]);
    assert_good(&image, &cards[1], &reports[1]);
    let notes = notes[1].0.lock().unwrap().join("\n");
    assert!(notes.contains("has not answered for"), "{notes}");
    assert!(notes.contains("answers again"), "{notes}");
    let error = reports[2].error.as_ref().unwrap();
    assert!(error.to_string().contains("does not answer any more"));
    assert!(!reports[2].published);
}

#[test]
fn a_listener_can_stop_it() {
    let image = Bytes::new(image(11 * MIB));
    struct After(AtomicU64);
    impl Progress for After {
        fn event(&self, event: Event) -> Result<()> {
            // A busy machine tells of stalls, between the steps that ask.
            if matches!(event, Event::Note(_)) {
                return Ok(());
            }
            match self.0.fetch_sub(1, Ordering::SeqCst) {
                1 => Err(Error::cancelled()),
                _ => Ok(()),
            }
        }
    }
    // Each event in turn is the one that stops it.
    let mut events = 1;
    loop {
        let card = FaultyCard::new(12 * MIB, Faults::default());
        let slots = [Slot {
            name: "card".into(),
            card: &card,
            progress: &After(AtomicU64::new(events)),
        }];
        let report = flash(&image, None, &slots, &options()).unwrap().remove(0);
        assert_withheld(&card, &report);
        match report.error {
            Some(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            None => break,
        }
        assert!(!report.published);
        events += 1;
    }
    assert!(events > 15);
}

#[test]
fn a_stream_that_cannot_be_read_again_is_read_back_again_only() {
    let mut image = Bytes::new(image(11 * MIB));
    image.reopens = false;
    let place = 3 * MIB;
    let card = FaultyCard::new(
        12 * MIB,
        Faults {
            bad_reads: set(&[place..place + 1]),
            failing_reads: AtomicU64::new(3),
            ..Faults::default()
        },
    );
    let report = flash_one(&image, &card);
    assert_good(&image, &card, &report);
    assert_eq!(report.verification.unwrap().rewritten, 0);
    let mut image = Bytes::new(image.bytes);
    image.reopens = false;
    let card = FaultyCard::new(
        12 * MIB,
        Faults {
            flips_once: Mutex::new(vec![place]),
            ..Faults::default()
        },
    );
    let report = flash_one(&image, &card);
    assert_eq!(report.error.unwrap().kind(), ErrorKind::Verify);
    assert!(!report.published);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Encoder::new(Codec::Gzip, None, 1, Vec::new()).unwrap();
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn map_of(bytes: &[u8], mapped: &[Range<u64>]) -> Bmap {
    let mut builder = BmapBuilder::new(bytes.len() as u64, &set(mapped));
    builder.update(0, bytes).unwrap();
    builder.finish().unwrap()
}

#[test]
fn a_block_map_limits_what_is_written_and_proves_the_image() {
    let mut image = Bytes::new(image(20 * MIB + 512));
    let mapped = [
        0..3 * MIB,
        9 * MIB..10 * MIB + 4096,
        19 * MIB..20 * MIB + 512,
    ];
    for gap in set(&mapped).gaps(0..20 * MIB + 512) {
        image.bytes[gap.start as usize..gap.end as usize].fill(0);
    }
    let map = map_of(&image.bytes, &mapped);
    for wipe in [false, true] {
        let card = FaultyCard::new(22 * MIB, Faults::default());
        let before = card.contents();
        let options = Options { wipe, ..options() };
        let report = flash_with(&image, Some(&map), &card, &options).unwrap();
        assert!(report.is_verified(), "{:?}", report.error);
        assert_eq!(report.written, set(&mapped).total());
        let unused = set(&[
            3 * MIB..9 * MIB,
            10 * MIB + 4096..19 * MIB,
            20 * MIB + 512..22 * MIB,
        ]);
        let contents = card.contents();
        for range in mapped.iter().cloned() {
            let range = range.start as usize..range.end as usize;
            assert!(contents[range.clone()] == image.bytes[range]);
        }
        for range in unused.iter() {
            let range = range.start as usize..range.end as usize;
            match wipe {
                true => assert!(contents[range].iter().all(|&byte| byte == 0)),
                false => assert!(contents[range.clone()] == before[range]),
            }
        }
        let unused = unused.total();
        let done = (report.discarded, report.wiped);
        assert_eq!(done, if wipe { (0, unused) } else { (unused, 0) });
        let checked = report.verification.unwrap().bytes;
        assert_eq!(checked, report.written + report.wiped);
    }
    // One wrong byte of the image, in any range, and nothing is published.
    for place in [5, 9 * MIB, 20 * MIB + 511] {
        let mut wrong = Bytes::new(image.bytes.clone());
        wrong.bytes[place as usize] ^= 1;
        let card = FaultyCard::new(22 * MIB, Faults::default());
        let error = flash_with(&wrong, Some(&map), &card, &options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Verify);
        assert!(error.to_string().contains("bytes "), "{error}");
        assert_withheld(&card, &CardReport::default());
    }
    // Too short, too long.
    for len in [20 * MIB, 20 * MIB + 1024] {
        let mut wrong = Bytes::new(image.bytes.clone());
        wrong.bytes.resize(len as usize, 0);
        let card = FaultyCard::new(22 * MIB, Faults::default());
        let error = flash_with(&wrong, Some(&map), &card, &options()).unwrap_err();
        assert!(matches!(
            error.kind(),
            ErrorKind::Unsound | ErrorKind::Verify
        ));
        assert_withheld(&card, &CardReport::default());
    }
}

#[test]
fn a_sha256_is_that_of_the_file_or_of_what_is_in_it() {
    let bytes = image(3 * MIB);
    let packed = gzip(&bytes);
    let hash = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    for (sha256, good) in [
        (hash(&bytes), true),
        (hash(&packed), true),
        (hash(b"other"), false),
    ] {
        let stream = packed.clone();
        let source = StreamSource::new(
            move || Ok(std::io::Cursor::new(stream.clone())),
            true,
            Some(sha256),
        );
        let card = FaultyCard::new(4 * MIB, Faults::default());
        match flash_with(&source, None, &card, &options()) {
            Ok(report) => assert!(good && report.is_verified()),
            Err(error) => {
                assert!(!good);
                assert_eq!(error.kind(), ErrorKind::Verify);
                assert_withheld(&card, &CardReport::default());
            }
        }
    }
}

#[test]
fn a_damaged_image_is_an_error_of_the_image() {
    let bytes = image(3 * MIB);
    let mut packed = gzip(&bytes);
    packed.truncate(packed.len() - 5);
    let source = StreamSource::new(move || Ok(std::io::Cursor::new(packed.clone())), true, None);
    let card = FaultyCard::new(4 * MIB, Faults::default());
    let error = flash_with(&source, None, &card, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
    assert_withheld(&card, &CardReport::default());
}

#[test]
fn partitions_past_the_cards_end_are_refused_before_the_first_write() {
    // 55 AA, one Linux partition from sector 2048, 8 MiB long.
    let mut bytes = image(2 * MIB);
    bytes[446..510].fill(0);
    bytes[450] = 0x83;
    bytes[454..458].copy_from_slice(&2048_u32.to_le_bytes());
    bytes[458..462].copy_from_slice(&16384_u32.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    let card = FaultyCard::new(8 * MIB, Faults::default());
    let report = flash_one(&Bytes::new(bytes.clone()), &card);
    let error = report.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("need 9437184 bytes"), "{error}");
    assert!(card.log.lock().unwrap().is_empty());
    let card = FaultyCard::new(9 * MIB, Faults::default());
    let image = Bytes::new(bytes);
    assert_good(&image, &card, &flash_one(&image, &card));
}
