//! Tables made by hand: which bytes change, and what is not believed.

use super::super::*;
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;

/// Boot flag, type, start, sectors.
type Entry = (u8, u8, u32, u32);

pub(super) fn sector(entries: &[Entry]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (slot, &(flag, type_byte, start, sectors)) in entries.iter().enumerate() {
        let at = 446 + 16 * slot;
        sector[at] = flag;
        sector[at + 4] = type_byte;
        put(&mut sector, at + 8, &start.to_le_bytes());
        put(&mut sector, at + 12, &sectors.to_le_bytes());
    }
    put(&mut sector, 510, &[0x55, 0xAA]);
    sector
}

/// A disk of `sectors` sectors with the given ones filled.
pub(super) fn disk(sectors: u64, filled: &[(u64, [u8; 512])]) -> MemoryDisk {
    let disk = MemoryDisk::new(sectors * 512);
    for (lba, bytes) in filled {
        disk.write_all_at(lba * 512, bytes).unwrap();
    }
    disk
}

fn at(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start * 512, end * 512)
}

fn places(table: &PartitionTable) -> Vec<(u32, ByteRange)> {
    let partitions = table.partitions().iter();
    partitions.map(|p| (p.number, p.range)).collect()
}

/// Lists the bytes that differ on the new disk, as (sector, byte in it).
fn differences(disk: &MemoryDisk, layout: &Layout) -> Vec<(u64, u64)> {
    let new = layout.overlay.over(disk);
    let (old, new) = (
        disk.to_vec(),
        new.read_vec_at(0, layout.disk_len as usize).unwrap(),
    );
    (0..new.len())
        .filter(|&i| old.get(i).copied().unwrap_or(0) != new[i])
        .map(|i| (i as u64 / 512, i as u64 % 512))
        .collect()
}

#[test]
fn an_mbr_of_large_sectors_is_refused() {
    let mbr = sector(&[(0, 0x0C, 16, 16), (0, 0x83, 32, 100)]);
    let mut ext = [0; 512];
    put(&mut ext, 4, &100_u32.to_le_bytes());
    put(&mut ext, 56, &[0x53, 0xEF]);
    // The superblock lies 1024 bytes into partition 2, in one unit, in the other, in both.
    for (places, refused) in [
        (&[32 + 2][..], false),
        (&[32 * 8 + 2], true),
        (&[32 + 2, 32 * 8 + 2], false),
        (&[], false),
    ] {
        let mut filled = vec![(0, mbr)];
        filled.extend(places.iter().map(|&lba| (lba, ext)));
        match PartitionTable::read(&disk(1100, &filled)) {
            Ok(table) => assert!(!refused && table.is_some(), "{places:?}"),
            Err(error) => assert!(refused, "{places:?}: {error}"),
        }
        // Too short for the larger unit.
        filled.retain(|&(lba, _)| lba < 1000);
        assert!(PartitionTable::read(&disk(1050, &filled)).is_ok());
    }
}

/// p1 at 100..200; extended p2 at 300..1000: p5 at 310..400; EBR 500, p6 at 510..600.
fn logical() -> MemoryDisk {
    let mut mbr = sector(&[(0x80, 0x0C, 100, 100), (0, 0x05, 300, 700)]);
    mbr[..446].fill(0xB0);
    let mut first = sector(&[(0, 0x83, 10, 90), (0, 0x05, 200, 100)]);
    // Garbage in slots 3 and 4, and code in front, stay.
    first[..446].fill(0xE1);
    first[482..506].fill(0xFF);
    let second = sector(&[(0, 0x82, 10, 90)]);
    disk(2000, &[(0, mbr), (300, first), (500, second)])
}

/// Changes, sectors of the new disk at least, (sector, byte) of what differs.
type Case<'a> = (&'a [(usize, ByteRange)], u64, &'a [(u64, u64)]);

#[test]
fn only_the_needed_bytes_change() {
    const START: u64 = 8;
    const COUNT: u64 = 12;
    let entry = |slot: u64, field: u64| 446 + 16 * slot + field;
    let cases: [Case<'_>; 4] = [
        (&[], 1000, &[]),
        // p1 shorter: one length byte.
        (&[(0, at(100, 150))], 1000, &[(0, entry(0, COUNT))]),
        // p6 shorter: the extended partition, the link to p6's EBR and p6's own entry.
        (
            &[(2, at(510, 550))],
            550,
            &[
                (0, entry(1, COUNT)),
                (0, entry(1, COUNT) + 1),
                (300, entry(1, COUNT)),
                (500, entry(0, COUNT)),
            ],
        ),
        // p6 longer, past the extended partition's end (500 more sectors than 1000).
        (
            &[(2, at(510, 1500))],
            1500,
            &[
                (0, entry(1, COUNT)),
                (0, entry(1, COUNT) + 1),
                (300, entry(1, COUNT)),
                (300, entry(1, COUNT) + 1),
                (500, entry(0, COUNT)),
                (500, entry(0, COUNT) + 1),
            ],
        ),
    ];
    let disk = logical();
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    for (changes, sectors, expected) in cases {
        let len = DiskLen::Exact(sectors.max(1000) * 512);
        let layout = table.relayout(&disk, changes, len).unwrap();
        assert_eq!(differences(&disk, &layout), expected, "{changes:?}");
        let extended_end = if changes.iter().any(|change| change.0 == 2) {
            sectors
        } else {
            1000
        };
        assert_eq!(layout.table.extended(), [(2, at(300, extended_end))]);
        let short = table.relayout(&disk, changes, DiskLen::Minimal).unwrap();
        let last = short.table.partitions().last().unwrap().range.end;
        assert_eq!(short.disk_len, last);
    }
    // p6 behind a shorter p5: its EBR goes with it, ten sectors ahead.
    assert_eq!([0, 1, 2].map(|index| table.lead_in(index)), [0, 5120, 5120]);
    let changes = [(1, at(310, 340)), (2, at(360, 450))];
    let layout = table.relayout(&disk, &changes, DiskLen::Minimal).unwrap();
    assert_eq!(layout.disk_len, 450 * 512);
    assert_eq!(
        differences(&disk, &layout)
            .iter()
            .filter(|(sector, byte)| *sector != 350 && !(*sector == 0 && *byte >= 470))
            .collect::<Vec<_>>(),
        [&(300, entry(0, COUNT)), &(300, entry(1, START)),]
    );
    let moved = layout.overlay.over(&disk).read_vec_at(350 * 512, 512);
    assert_eq!(moved.unwrap(), sector(&[(0, 0x82, 10, 90)]));
    // Everything behind a shorter p1: the extended partition moves.
    let changes = [(0, at(100, 110)), (1, at(130, 220)), (2, at(300, 390))];
    let layout = table.relayout(&disk, &changes, DiskLen::Minimal).unwrap();
    assert_eq!(layout.table.extended(), [(2, at(120, 390))]);
    assert_eq!(
        layout.table.table_ranges(),
        [at(0, 1), at(120, 121), at(290, 291)]
    );
}

/// Extended p1 at 100..500: p5 at 110..200; an EBR without data at 250, that leads back to the
/// one of p6 at 220..240; p7 at 270..300.
fn goes_back() -> MemoryDisk {
    let mbr = sector(&[(0, 5, 100, 400)]);
    let first = sector(&[(0, 0x83, 10, 90), (0, 5, 150, 1)]);
    let empty = sector(&[(0, 0, 0, 0), (0, 5, 110, 30)]);
    let second = sector(&[(0, 0x83, 10, 20), (0, 5, 160, 40)]);
    let third = sector(&[(0, 0x82, 10, 30)]);
    let ebrs = [(100, first), (250, empty), (210, second), (260, third)];
    disk(1000, &[&[(0, mbr)], &ebrs[..]].concat())
}

/// p1 in front of an extended partition that is larger than its p5, and p3 behind it.
#[test]
fn an_extended_partition_gives_up_its_spare_end() {
    let mbr = sector(&[(0, 0x83, 10, 50), (0, 0x0F, 100, 400), (0, 0x0C, 600, 100)]);
    let ebr = sector(&[(0, 0x83, 10, 90)]);
    let disk = disk(1000, &[(0, mbr), (100, ebr)]);
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    for (p3, extended) in [
        (at(200, 300), at(100, 200)),
        (at(450, 550), at(100, 200)),
        (at(500, 600), at(100, 500)),
    ] {
        let len = DiskLen::Minimal;
        let layout = table.relayout(&disk, &[(2, p3)], len).unwrap();
        assert_eq!(layout.table.extended(), [(2, extended)], "{p3:?}");
        assert_eq!(layout.disk_len, p3.end);
    }
}

#[test]
fn what_never_moves_is_an_obstacle() {
    let empty_chain = sector(&[]);
    let filled = [
        (0, sector(&[(0, 0x83, 10, 50), (0, 5, 100, 400)])),
        (100, empty_chain),
    ];
    let table = PartitionTable::read(&disk(1000, &filled)).unwrap().unwrap();
    assert_eq!(table.obstacle(60 * 512), Some(100 * 512));
    assert_eq!(table.obstacle(101 * 512), None);
    // A chain that ends with an EBR without data.
    let filled = [
        (0, sector(&[(0, 5, 100, 400)])),
        (100, sector(&[(0, 0x83, 10, 90), (0, 5, 200, 1)])),
        (300, empty_chain),
    ];
    let table = PartitionTable::read(&disk(1000, &filled)).unwrap().unwrap();
    assert_eq!(table.obstacle(200 * 512), Some(300 * 512));
    // One that goes back: it stays with p6, whatever moves behind it.
    let table = PartitionTable::read(&goes_back()).unwrap().unwrap();
    assert_eq!(table.obstacle(240 * 512), Some(250 * 512));
    assert_eq!(table.obstacle(251 * 512), None);
    let table = PartitionTable::read(&logical()).unwrap().unwrap();
    assert_eq!(table.obstacle(0), None);
}

#[test]
fn layouts_that_cannot_be() {
    use ErrorKind::{NoSpace, Unsupported, Usage};
    let disk = logical();
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    let exact = DiskLen::Exact(1000 * 512);
    for (change, len, kind, text) in [
        ((9, at(1, 2)), exact, Usage, "no partition at position 9"),
        ((0, at(100, 100)), exact, Usage, "not whole sectors"),
        (
            (0, ByteRange::new(1, 512)),
            exact,
            Usage,
            "not whole sectors",
        ),
        ((0, at(0, 10)), exact, Usage, "the MBR"),
        ((0, at(100, 301)), exact, Usage, "extended partition 2"),
        (
            (1, at(310, 501)),
            exact,
            Usage,
            "an EBR of extended partition 2",
        ),
        ((1, at(310, 520)), exact, Usage, "overlap"),
        (
            (2, at(510, 1001)),
            exact,
            NoSpace,
            "would end at byte 512512",
        ),
        ((2, at(305, 309)), exact, Unsupported, "where an EBR"),
        (
            (2, at(510, 1 << 33)),
            DiskLen::Minimal,
            Unsupported,
            "new place of partition 6",
        ),
    ] {
        let error = table.relayout(&disk, &[change], len).unwrap_err();
        assert_eq!(error.kind(), kind, "{change:?}: {error}");
        assert!(error.to_string().contains(text), "{change:?}: {error}");
    }
}

#[test]
fn how_far_the_last_may_reach() {
    let table = PartitionTable::read(&logical()).unwrap().unwrap();
    let limit = u64::from(u32::MAX) * 512;
    for (len, end) in [
        (1_000_000, 999_424),
        (600 * 512, 600 * 512),
        (599 * 512, 592 * 512),
        (1 << 50, limit - limit % 4096),
        (u64::MAX, limit - limit % 4096),
        (0, 0),
    ] {
        assert_eq!(table.max_end(len), end, "{len}");
    }
}

#[test]
fn chains_that_are_not_believed() {
    let mbr = sector(&[(0, 0x83, 10, 10), (0, 0x0F, 100, 500)]);
    let link = |start| (0, 0x05, start, 50);
    let data = |start, count| (0, 0x83, start, count);
    for (ebrs, text) in [
        (
            vec![(100, vec![data(1, 9), link(0)])],
            "comes back to sector 100",
        ),
        (
            vec![
                (100, vec![data(1, 9), link(50)]),
                (150, vec![data(1, 9), link(80)]),
                (180, vec![data(1, 9), link(50)]),
            ],
            "comes back to sector 150",
        ),
        (
            vec![(100, vec![data(1, 9), link(500)])],
            "leaves it, to sector 600",
        ),
        (
            vec![(100, vec![data(1, 500)])],
            "logical partition 5 (sectors 101 to 600)",
        ),
        (
            vec![(100, vec![data(1, u32::MAX)])],
            "is not inside extended partition 2",
        ),
        (
            vec![(100, vec![data(1, 60), link(50)]), (150, vec![data(1, 9)])],
            "overlap",
        ),
        (vec![(100, vec![data(0, 9)])], "overlap"),
    ] {
        let filled: Vec<_> = ebrs.iter().map(|(lba, e)| (*lba, sector(e))).collect();
        let disk = disk(1000, &[&[(0, mbr)], &filled[..]].concat());
        let error = PartitionTable::read(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound);
        assert!(error.to_string().contains(text), "{error}");
    }
    // 257 EBRs in a row, without any data.
    let mbr = sector(&[(0, 0x05, 1, 900)]);
    let chain = (1..300).map(|lba| (lba, sector(&[link(lba as u32)])));
    let filled: Vec<_> = std::iter::once((0, mbr)).chain(chain).collect();
    let error = PartitionTable::read(&disk(1000, &filled)).unwrap_err();
    assert!(error.to_string().contains("more than 256 EBRs"), "{error}");
}

#[test]
fn odd_chains_that_linux_follows() {
    let mbr = sector(&[(0, 0x85, 100, 500), (0, 0x83, 10, 10)]);
    // The link in front of the data, a first EBR without data, a dead end.
    let disk = disk(
        1000,
        &[
            (0, mbr),
            (100, sector(&[(0, 0x05, 50, 50)])),
            (150, sector(&[(0, 0x0F, 300, 1), (0, 0x83, 5, 20)])),
            (400, sector(&[(0, 0x83, 5, 20), (0, 0x05, 450, 50)])),
        ],
    );
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!(
        places(&table),
        [(2, at(10, 20)), (5, at(155, 175)), (6, at(405, 425))]
    );
    assert_eq!(
        table.warnings(),
        ["the chain of extended partition 1 ends at sector 550, which is not an EBR"]
    );
    // The empty EBR moves with the first partition; the dead end would lead nowhere.
    assert_eq!(table.lead_in(1), 55 * 512);
    let changes = [(1, at(85, 105)), (2, at(115, 135))];
    let layout = table.relayout(&disk, &changes, DiskLen::Minimal).unwrap();
    assert_eq!(layout.table.extended(), [(1, at(30, 135))]);
    assert_eq!(layout.table.warnings(), [] as [String; 0]);
    assert_eq!(layout.disk_len, 135 * 512);
}

#[test]
fn an_ebr_without_its_signature_hides_partitions() {
    let mbr = sector(&[(0, 0x05, 100, 500), (0, 0x83, 10, 10)]);
    let first = sector(&[(0, 0x83, 5, 20), (0, 0x05, 50, 50)]);
    let mut damaged = sector(&[(0, 0x83, 5, 20)]);
    damaged[510] = 0x59;
    let disk = disk(1000, &[(0, mbr), (100, first), (150, damaged)]);
    let error = PartitionTable::read(&disk).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
    let text = "the EBR of extended partition 1 at sector 150 names partitions";
    assert!(error.to_string().contains(text), "{error}");
    // What is no entry is no EBR: the chain just ends there, as for Linux.
    damaged[446] = 0x17;
    disk.write_all_at(150 * 512, &damaged).unwrap();
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    assert_eq!((table.partitions().len(), table.warnings().len()), (2, 1));
    // Nor does Linux follow a link without a length.
    damaged[446] = 0;
    damaged[510] = 0x55;
    disk.write_all_at(150 * 512, &damaged).unwrap();
    let first = sector(&[(0, 0x83, 5, 20), (0, 0x05, 50, 0)]);
    disk.write_all_at(100 * 512, &first).unwrap();
    let error = PartitionTable::read(&disk).unwrap_err();
    let text = "sector 100 leads to partitions behind sector 150";
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn table_or_not() {
    let fits = (0x80, 0x83, 8, 100);
    let fat = |entries: &[Entry]| {
        let mut sector = sector(entries);
        put(&mut sector, 0, &[0xEB, 0x58, 0x90]);
        put(&mut sector, 11, &[0, 2, 8, 1, 0, 2, 0, 2, 200, 0, 0xF8]);
        sector
    };
    let mut unsigned = sector(&[fits]);
    unsigned[510] = 0;
    let mut ext = [0; 512];
    put(&mut ext, 4, &[100]);
    put(&mut ext, 56, &[0x53, 0xEF]);
    let none = [0; 512];
    for (what, first, third, expected) in [
        ("zeros", none, none, "none"),
        ("no signature", unsigned, none, "none"),
        ("no entries", sector(&[]), none, "none"),
        ("a table", sector(&[fits]), none, "table"),
        (
            "a table before an old superblock",
            sector(&[fits]),
            ext,
            "table",
        ),
        ("a table behind a FAT header", fat(&[fits]), none, "table"),
        ("FAT", fat(&[]), none, "none"),
        (
            "FAT with a fake entry",
            fat(&[(0x80, 0x0C, 0, 1000)]),
            none,
            "none",
        ),
        (
            "FAT with text",
            fat(&[(b'N', b'o', 99999, 77777)]),
            none,
            "none",
        ),
        ("an odd flag", sector(&[(1, 0x83, 8, 100)]), none, "warned"),
        (
            "an odd flag and ext",
            sector(&[(1, 0x83, 8, 100)]),
            ext,
            "none",
        ),
        ("junk", sector(&[(b'N', b'o', 99999, 77777)]), none, "none"),
        (
            "past the end",
            sector(&[(0, 0x83, 8, 1000)]),
            none,
            "partition 1 ends at byte 516096, but the disk has only 512000 bytes",
        ),
        (
            "past the end, and ext",
            sector(&[(0, 0x83, 8, 1000)]),
            ext,
            "none",
        ),
        (
            "overlap",
            sector(&[fits, (0, 0x83, 107, 9)]),
            none,
            "partition 1 (sectors 8 to 107) and partition 2 (sectors 107 to 115) overlap",
        ),
        (
            "sector 0",
            sector(&[(0, 0x83, 0, 9)]),
            none,
            "the MBR (sectors 0 to 0) and partition 1 (sectors 0 to 8) overlap",
        ),
        (
            "type EE, no GPT",
            sector(&[(0, 0xEE, 1, 999)]),
            none,
            "both copies of the GPT are damaged: primary: there is no GPT header; backup: there is no GPT header",
        ),
        (
            "type EE elsewhere",
            sector(&[(0, 0xEE, 8, 99)]),
            none,
            "table",
        ),
    ] {
        let disk = disk(1000, &[(0, first), (2, third)]);
        let got = match PartitionTable::read(&disk) {
            Ok(None) => "none".to_string(),
            Ok(Some(table)) if table.warnings().is_empty() => "table".to_string(),
            Ok(Some(_)) => "warned".to_string(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsound);
                error.to_string()
            }
        };
        assert_eq!(got, expected, "{what}");
    }
    for len in [0, 1, 511, 512, 1024, 1536] {
        let mut short = sector(&[]).to_vec();
        short.resize(len, 0);
        assert!(
            PartitionTable::read(&MemoryDisk::from(short))
                .unwrap()
                .is_none()
        );
    }
}
