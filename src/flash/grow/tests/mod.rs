//! An expansion that stops anywhere: every write and sync is recorded, and for each number of
//! writes, and for writes lost within one step, the card that would be left is judged.

mod cases;
mod cuts;

use std::ops::Range;
use std::sync::Mutex;

use super::*;
use crate::flash::faulty::{Faults, FaultyCard};
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;
use crate::progress::Silent;
use cases::{filesystem, mbr};

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

/// Such a card is good all the same, and someone else can grow what it holds.
#[test]
fn a_filesystem_with_unknown_features_lets_its_partition_grow() {
    for (options, text) in [
        (&["-O", "bigalloc"][..], "bigalloc"),
        (&["-O", "^metadata_csum"], "FEATURE_I30"),
    ] {
        let mut filesystem = filesystem(options);
        if text == "FEATURE_I30" {
            const S_FEATURE_INCOMPAT: usize = 1024 + 0x60;
            filesystem[S_FEATURE_INCOMPAT + 3] |= 0x40;
        }
        let bytes = mbr(&filesystem);
        let card = Recorder::new(&bytes);
        let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
        let done = plan.run(&card, &Silent).unwrap();
        assert!(done.new_partition > done.old_partition && done.written < MIB);
        let note = done.notes.join("; ");
        assert!(
            note.starts_with("only the partition") && note.contains(text),
            "{note}"
        );
        let after = card.disk.to_vec();
        assert!(after[MIB as usize..][..filesystem.len()] == filesystem);

        let bare = Recorder::new(&filesystem);
        let plan = ExpandPlan::new(&bare, ExpandTo::Max).unwrap();
        assert!(plan.is_nothing());
    }
}

/// An empty extended partition neither moves nor is overrun.
#[test]
fn growth_ends_before_an_empty_extended_partition() {
    let mut bytes = mbr(&filesystem(&[]));
    let start = 20 * MIB;
    let entry = [
        &[0, 0, 0, 0, 5, 0, 0, 0][..],
        &(start as u32 / 512).to_le_bytes(),
        &8192_u32.to_le_bytes(),
    ];
    bytes[462..478].copy_from_slice(&entry.concat());
    let card = Recorder::new(&bytes);
    let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
    let done = plan.run(&card, &Silent).unwrap();
    assert_eq!(done.new_partition, start - MIB);
    assert!(done.notes[0].starts_with("an empty part"));
    let table = PartitionTable::read(&card.disk).unwrap().unwrap();
    assert_eq!(table.extended(), [(2, ByteRange::new(start, 24 * MIB))]);
}

/// The chain goes through an EBR behind its partition, which has no room to move along.
#[test]
fn what_no_chain_can_express_does_not_grow() {
    const KIB: usize = 1024;
    let mut bytes = mbr(&filesystem(&[]));
    bytes.truncate(16896 * KIB);
    let mut put = |sector: usize, slot: usize, type_byte: u8, start: usize, len: usize| {
        let at = sector * KIB + 446 + 16 * slot;
        bytes[at + 4] = type_byte;
        bytes[at + 8..at + 12].copy_from_slice(&(2 * start as u32).to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&(2 * len as u32).to_le_bytes());
        bytes[sector * KIB + 510..][..2].copy_from_slice(&[0x55, 0xAA]);
    };
    put(0, 1, 5, 14 * 1024, 2560);
    put(14 * 1024, 1, 5, 2304, 1);
    put(14 * 1024 + 2304, 1, 5, 256, 1280);
    put(14 * 1024 + 256, 0, 0x82, 256, 1024);
    let swap = (14 * 1024 + 512) * KIB;
    bytes[swap + 1024] = 1;
    bytes[swap + 4086..][..10].copy_from_slice(b"SWAPSPACE2");
    let card = Recorder::new(&bytes);
    let plan = ExpandPlan::new(&card, ExpandTo::Max).unwrap();
    let notes = plan.summary().notes.join("; ");
    assert!(
        notes.starts_with("partitions keep their places: "),
        "{notes}"
    );
    assert!(plan.is_nothing() && plan.summary().moved.is_empty());
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
