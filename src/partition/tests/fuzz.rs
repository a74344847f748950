//! Damaged tables with mended checksums: refused or understood, never a panic, and what is
//! understood can be changed.

use super::super::*;
use super::bytes::{disk, sector};
use crate::io::memory::{FaultyDisk, MemoryDisk};
use crate::io::{RangeSet, Source, WriteAt};
use crate::random::random;

fn mbr_seed() -> MemoryDisk {
    let mbr = sector(&[
        (0x80, 0x0C, 100, 100),
        (0, 0x83, 200, 50),
        (0, 0x05, 300, 700),
    ]);
    let first = sector(&[(0, 0x83, 10, 90), (0, 0x05, 200, 100)]);
    let second = sector(&[(0, 0x82, 10, 90), (0, 0x05, 400, 100)]);
    let third = sector(&[(0, 0x83, 10, 90)]);
    disk(2000, &[(0, mbr), (300, first), (500, second), (700, third)])
}

const GPT_SECTORS: u64 = 300;

/// A GPT with 32 entries, of which the first, second and 16th are used.
fn gpt_seed(size: u64) -> MemoryDisk {
    let disk = MemoryDisk::new(GPT_SECTORS * size);
    let last = GPT_SECTORS - 1;
    let mut array = vec![0; 4096];
    for (slot, first, end) in [(0, 20, 40), (15, 40, 60), (1, 100, 200u64)] {
        let entry = &mut array[slot * 128..][..128];
        entry[..32].fill(slot as u8 + 1);
        put(entry, 32, &(first as u64).to_le_bytes());
        put(entry, 40, &(end - 1).to_le_bytes());
    }
    let array_sectors = 4096 / size;
    let mbr = sector(&[(0, 0xEE, 1, last as u32), (0, 0x0C, 20, 20)]);
    disk.write_all_at(0, &mbr).unwrap();
    for (lba, other, entries) in [(1, last, 2), (last, 1, last - array_sectors)] {
        let mut header = vec![0; size as usize];
        put(&mut header, 0, b"EFI PART\0\0\x01\0\x5C\0\0\0");
        for (at, value) in [
            (24, lba),
            (32, other),
            (40, 10),
            (48, last - 9),
            (72, entries),
        ] {
            put(&mut header, at, &u64::to_le_bytes(value));
        }
        put(&mut header, 80, &32u32.to_le_bytes());
        put(&mut header, 84, &128u32.to_le_bytes());
        disk.write_all_at(lba * size, &header).unwrap();
        disk.write_all_at(entries * size, &array).unwrap();
        mend(&disk, size, lba);
    }
    disk
}

/// Makes the checksums of the header at `lba` right, where its fields still allow it.
fn mend(disk: &MemoryDisk, size: u64, lba: u64) {
    let mut header = disk.read_vec_at(lba * size, size as usize).unwrap();
    let array_len = u64::from(u32_at(&header, 80)) * u64::from(u32_at(&header, 84));
    let array_at = u64_at(&header, 72).saturating_mul(size);
    if array_len < 1 << 20
        && let Ok(array) = disk.read_vec_at(array_at, array_len as usize)
    {
        put(&mut header, 88, &crc32fast::hash(&array).to_le_bytes());
    }
    put(&mut header, 16, &[0; 4]);
    let header_size = (u32_at(&header, 12) as usize).min(header.len());
    let crc = crc32fast::hash(&header[..header_size]);
    put(&mut header, 16, &crc.to_le_bytes());
    disk.write_all_at(lba * size, &header).unwrap();
}

/// Puts a telling or a random value over one to eight bytes somewhere in the table.
fn damage(disk: &MemoryDisk, state: &mut u64, table: &PartitionTable) {
    let ranges = table.table_ranges();
    let mbr = table.kind() == TableKind::Mbr;
    let range = ranges[random(state, ranges.len() as u64) as usize];
    // The entries of an MBR or EBR; the fields of a header and the first entries of an array.
    let start = if range.start == 0 || mbr { 440 } else { 0 };
    let width = 1 << random(state, 4);
    let within = start + random(state, (range.len().min(512) - start) / 2) * 2;
    let value = match random(state, 5) {
        0 => u64::MAX >> random(state, 64),
        1 => 1 << random(state, 64),
        2 => random(state, 2000),
        3 => 0,
        _ => random(state, u64::MAX).wrapping_mul(0x9E37_79B9_7F4A_7C15),
    };
    let offset = range.start + within;
    let width = width.min(disk.len() - offset) as usize;
    disk.write_all_at(offset, &value.to_le_bytes()[..width])
        .unwrap();
}

/// Changes a partition or two of a table at random, applies what comes out, and reads it again.
fn change(disk: &MemoryDisk, state: &mut u64, table: &PartitionTable) -> bool {
    let size = table.sector_size();
    let count = table.partitions().len() as u64;
    let mut changes = Vec::new();
    for _ in 0..random(state, 3).min(count) {
        let index = random(state, count) as usize;
        let old = table.partitions()[index].range;
        let start = match random(state, 3) {
            0 => random(state, 2000) * size,
            _ => old.start,
        };
        changes.push((
            index,
            ByteRange::new(start, start + random(state, 300) * size),
        ));
    }
    let len = match random(state, 3) {
        0 => DiskLen::Minimal,
        1 => DiskLen::Exact(disk.len()),
        _ => DiskLen::Exact(random(state, 3000) * size + random(state, 2) * 100),
    };
    let layout = match table.relayout(disk, &changes, len) {
        Ok(layout) => layout,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "{}", error.one_line());
            return false;
        }
    };
    // Table bytes land in the table, and nowhere else.
    let new_tables = layout.table.table_ranges();
    for segment in layout.overlay.all_segments() {
        if let Source::Bytes(..) = segment.source {
            let inside =
                |range: &ByteRange| range.start <= segment.start && segment.end() <= range.end;
            assert!(new_tables.iter().any(inside), "{segment:?} {new_tables:?}");
            let bytes = ByteRange::new(segment.start, segment.end());
            let hit = |p: &Partition| p.range.intersect(&bytes).is_some();
            assert!(!layout.table.partitions().iter().any(hit));
        }
    }
    true
}

#[test]
fn damaged_tables_never_panic() {
    let mut state = 3;
    let (mut read, mut changed) = (0, 0);
    let seeds: [fn() -> MemoryDisk; 3] = [mbr_seed, || gpt_seed(512), || gpt_seed(4096)];
    let clean = seeds.map(|seed| PartitionTable::read(&seed()).unwrap().unwrap());
    for table in &clean {
        assert!(table.warnings().is_empty(), "{:?}", table.warnings());
    }
    for round in 0..60_000 {
        let which = round % seeds.len();
        let disk = seeds[which]();
        let size = clean[which].sector_size();
        for _ in 0..random(&mut state, 5) {
            damage(&disk, &mut state, &clean[which]);
        }
        if which > 0 && random(&mut state, 8) > 0 {
            mend(&disk, size, 1);
            mend(&disk, size, GPT_SECTORS - 1);
        }
        if let Ok(Some(table)) = PartitionTable::read(&disk) {
            read += 1;
            assert!(table.partitions().iter().all(|p| p.range.end <= disk.len()));
            table.max_end(u64::MAX);
            changed += u32::from(change(&disk, &mut state, &table));
        }
    }
    // Neither refusing everything nor believing everything.
    assert!(
        (30_000..58_000).contains(&read),
        "{read} of 60000 were read"
    );
    assert!(changed > 20_000, "{changed} were changed");
}

#[test]
fn headers_that_are_not_believed() {
    // Offset in both headers, bytes there, what is wrong.
    for (at, value, text) in [
        (12, &[91, 0][..], "the header's size is 91"),
        (12, &[1, 2], "the header's size is 513"),
        (24, &[9], "the header belongs elsewhere"),
        (40, &[0xFF, 0xFF], "sector numbers contradict"),
        (40, &[0xFF; 16], "sector numbers contradict"),
        (48, &[9, 0], "sector numbers contradict"),
        (72, &[0xFF; 8], "sector numbers contradict"),
        (80, &[0], "it has 0 entries of 128 bytes"),
        (80, &[1, 4], "it has 1025 entries of 128 bytes"),
        (84, &[192], "it has 32 entries of 192 bytes"),
        (84, &[64], "it has 32 entries of 64 bytes"),
        (84, &[0, 32], "it has 32 entries of 8192 bytes"),
    ] {
        for size in [512, 4096] {
            let disk = gpt_seed(size);
            let text = if size == 4096 {
                text.replace("is 513", "is 4097")
            } else {
                text.into()
            };
            let oversized = [1, 16];
            let value = if text.contains("4097") {
                &oversized
            } else {
                value
            };
            for lba in [1, GPT_SECTORS - 1] {
                disk.write_all_at(lba * size + at, value).unwrap();
                mend(&disk, size, lba);
            }
            let error = PartitionTable::read(&disk).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsound);
            assert_eq!(
                error.to_string().matches(&text).count(),
                2,
                "{text}: {error}"
            );
        }
    }
}

#[test]
fn entries_that_are_not_believed() {
    // Slot, first sector, last sector.
    for (slot, first, last, text) in [
        (
            1,
            50,
            49,
            "partition 2 ends (sector 49) before it starts (sector 50)",
        ),
        (
            1,
            9,
            12,
            "partition 2 (sectors 9 to 12) is not inside the usable sectors 10 to 290",
        ),
        (
            1,
            280,
            291,
            "partition 2 (sectors 280 to 291) is not inside the usable sectors 10 to 290",
        ),
        (
            1,
            280,
            300,
            "partition 2 ends at byte 154112, but the disk has only 153600 bytes",
        ),
        (
            1,
            59,
            70,
            "partition 16 (sectors 40 to 59) and partition 2 (sectors 59 to 70) overlap",
        ),
        (
            1,
            0,
            u64::MAX,
            "partition 2 ends at byte 9444732965739290427392, but the disk has only 153600 bytes",
        ),
    ] {
        let disk = gpt_seed(512);
        let entry = 1024 + 128 * slot;
        disk.write_all_at(entry + 32, &u64::to_le_bytes(first))
            .unwrap();
        disk.write_all_at(entry + 40, &u64::to_le_bytes(last))
            .unwrap();
        mend(&disk, 512, 1);
        let error = PartitionTable::read(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound);
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn an_unreadable_copy_is_a_damaged_one() {
    for size in [512, 4096] {
        let bad = std::iter::once(size..size + 1).collect();
        let disk = FaultyDisk::new(gpt_seed(size)).with_bad_reads(bad);
        let table = PartitionTable::read(&disk).unwrap().unwrap();
        assert_eq!((table.sector_size(), table.partitions().len()), (size, 3));
        assert!(table.warnings()[0].contains("injected read error"));
        // The header is written anew, and the new disk never asks for the old one.
        let layout = table.relayout(&disk, &[], DiskLen::Minimal).unwrap();
        assert!(layout.table.warnings().is_empty());
    }
}

/// An image that keeps the card's length keeps them, for a recovery.
#[test]
fn the_remains_of_a_backup_count_as_table() {
    for size in [512, 4096] {
        let last = GPT_SECTORS - 1;
        let whole = PartitionTable::read(&gpt_seed(size)).unwrap().unwrap();
        for bad in [last * size + 57, last * size - 1] {
            let disk = gpt_seed(size);
            disk.write_all_at(bad, &[0x77]).unwrap();
            let table = PartitionTable::read(&disk).unwrap().unwrap();
            assert_eq!(table.warnings().len(), 1);
            let bytes = |table: &PartitionTable| -> RangeSet {
                let ranges = table.table_ranges();
                ranges.iter().map(|r| r.start..r.end).collect()
            };
            assert_eq!(bytes(&table), bytes(&whole));
        }
    }
}
