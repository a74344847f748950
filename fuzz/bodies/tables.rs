//! Partition tables: sound ones with damaged fields and, in a GPT, mended checksums. What is
//! accepted can be changed, and captured into an image with the same partitions in it.

use std::ops::Range;
use std::sync::OnceLock;

use pishrink::capture::{CapturePlan, PlanOptions, plan};
use pishrink::error::{ErrorKind, Result};
use pishrink::io::{ReadAt, Source};
use pishrink::partition::{DiskLen, PartitionTable, TableKind};
use pishrink::progress::Silent;
use pishrink::units::ByteRange;

use super::disk::{Disk, Input, Place, unpack};
use super::is_refusal;

const UNMENDED: u8 = 1;
const KEEP_SIZES: u8 = 2;

/// Made by proofs/make_fuzz_bases.py.
const MBR: &[&[u8]] = &[include_bytes!("../../testdata/fuzz/bases/mbr.img.zst")];
const GPT: &[&[u8]] = &[
    include_bytes!("../../testdata/fuzz/bases/gpt.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/gpt4k.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/hybrid.img.zst"),
];

/// A sound disk.
struct Base {
    bytes: Vec<u8>,
    sector: u64,
    kind: TableKind,
    places: Vec<Place<()>>,
    telling: Vec<u64>,
}

pub fn mbr(data: &[u8]) {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    damaged(data, BASES.get_or_init(|| read_all(MBR)));
}

pub fn gpt(data: &[u8]) {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    damaged(data, BASES.get_or_init(|| read_all(GPT)));
}

fn read_all(packed: &[&'static [u8]]) -> Vec<Base> {
    packed
        .iter()
        .map(|packed| Base::read(unpack(packed)))
        .collect()
}

fn damaged(data: &[u8], bases: &'static [Base]) {
    let Some(input) = Input::decode(data) else {
        return;
    };
    let base = &bases[input.base % bases.len()];
    let mut disk = Disk::new(&base.bytes);
    input.damage(&mut disk, &base.places, &base.telling);
    if input.flags & UNMENDED == 0 && base.kind == TableKind::Gpt {
        for at in [base.sector, disk.len() - base.sector] {
            mend(&mut disk, base.sector, at);
        }
    }
    let table = match PartitionTable::read(&disk) {
        Ok(Some(table)) => table,
        Ok(None) => return,
        Err(error) => return is_refusal(&error),
    };
    are_apart(&table, disk.len());
    table.max_end(u64::MAX);
    change(&disk, &table, u64::from(input.amount));
    let options = PlanOptions {
        headroom: u64::from(input.amount % 8) << 14,
        shrink: input.flags & KEEP_SIZES == 0,
        force_raw: false,
    };
    match plan(&disk, &options, &Silent) {
        Ok(plan) => captured(&plan, &disk, &table),
        Err(error) => is_refusal(&error),
    }
}

fn are_apart(table: &PartitionTable, disk_len: u64) {
    let mut end = 0;
    for partition in table.partitions() {
        assert!(partition.range.start >= end, "{:?} overlaps", partition);
        assert!(!partition.range.is_empty());
        end = partition.range.end;
    }
    assert!(end <= disk_len);
    let tables = table.table_ranges();
    for partition in table.partitions() {
        assert!(
            tables
                .iter()
                .all(|t| t.intersect(&partition.range).is_none())
        );
    }
}

/// Gives one partition another place.
fn change(disk: &Disk, table: &PartitionTable, amount: u64) {
    let (size, count) = (table.sector_size(), table.partitions().len());
    if count == 0 {
        return;
    }
    let index = amount as usize % count;
    let old = table.partitions()[index].range;
    let start = match amount >> 3 & 1 {
        0 => old.start,
        _ => (amount >> 4) * size,
    };
    let range = ByteRange::new(start, start + (1 + amount * 7 % 4096) * size);
    let len = match amount >> 2 & 1 {
        0 => DiskLen::Minimal,
        _ => DiskLen::Exact(disk.len() + (amount >> 5) * 100),
    };
    let layout = match table.relayout(disk, &[(index, range)], len) {
        Ok(layout) => layout,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "{}", error.one_line());
            return;
        }
    };
    // Table bytes land in the table, and nowhere else.
    let tables = layout.table.table_ranges();
    for segment in layout.overlay.all_segments() {
        if let Source::Bytes(..) = segment.source {
            let inside = |r: &ByteRange| r.start <= segment.start && segment.end() <= r.end;
            assert!(tables.iter().any(inside), "{segment:?} {tables:?}");
        }
    }
    are_apart(&layout.table, layout.disk_len);
}

/// The image as it is written: what is not mapped is zeros.
struct Image<'a> {
    plan: &'a CapturePlan,
    disk: &'a Disk,
}

impl ReadAt for Image<'_> {
    fn len(&self) -> u64 {
        self.plan.overlay.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.plan
            .overlay
            .over(self.disk)
            .read_exact_at(offset, buf)?;
        let end = offset + buf.len() as u64;
        for gap in self.plan.mapped.gaps(offset..end) {
            buf[(gap.start - offset) as usize..(gap.end - offset) as usize].fill(0);
        }
        Ok(())
    }
}

fn captured(plan: &CapturePlan, disk: &Disk, table: &PartitionTable) {
    let image = Image { plan, disk };
    let new = PartitionTable::read(&image)
        .expect("the image's table is sound")
        .expect("the image has a table");
    assert_eq!(new.kind(), table.kind());
    assert_eq!(new.disk_id(), table.disk_id());
    let names = |table: &PartitionTable| {
        let partitions = table.partitions().iter().enumerate();
        partitions
            .map(|(index, p)| (p.number, p.kind.clone(), p.logical, table.part_uuid(index)))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&new), names(table));
    for (partition, told) in new.partitions().iter().zip(&plan.summary.partitions) {
        assert_eq!(partition.range, told.new_range);
        if told.filesystem.starts_with("ext") {
            continue;
        }
        for mapped in plan
            .mapped
            .iter_within(told.new_range.start..told.new_range.end)
        {
            let len = (mapped.end - mapped.start) as usize;
            let from = told.range.start + (mapped.start - told.new_range.start);
            let same =
                image.read_vec_at(mapped.start, len).ok() == disk.read_vec_at(from, len).ok();
            assert!(same, "partition {} differs", partition.number);
        }
    }
}

impl Base {
    fn read(bytes: Vec<u8>) -> Self {
        let disk = pishrink::io::memory::MemoryDisk::from(bytes.clone());
        let table = PartitionTable::read(&disk).expect("a base is sound");
        let table = table.expect("a base has a table");
        assert_eq!(table.warnings(), [""; 0]);
        let sector = table.sector_size();
        let mut places = Vec::new();
        let mut telling = vec![0, 1, 5, 0xF, 0x85, 0xEE, 0x83, 128, disk.len() / sector];
        for range in table.table_ranges() {
            add_places(&bytes, range.start..range.end, &mut places);
            telling.extend([range.start / sector, range.end / sector]);
        }
        for partition in table.partitions() {
            let range = partition.range;
            telling.extend([range.start, range.end, range.len()].map(|bytes| bytes / sector));
        }
        Self {
            bytes,
            sector,
            kind: table.kind(),
            places,
            telling,
        }
    }
}

/// The fields of whichever part of a table lies in `range`.
fn add_places(bytes: &[u8], range: Range<u64>, places: &mut Vec<Place<()>>) {
    let within = &bytes[range.start as usize..range.end as usize];
    let mut add = |from: u64, len: u64| {
        places.push(Place {
            range: range.start + from..range.start + from + len,
            what: (),
        });
    };
    if within.starts_with(b"EFI PART") {
        add(0, 96);
        add(24, 68);
    } else if within.len() >= 512 && within[510..512] == [0x55, 0xAA] {
        for entry in 0..4 {
            add(446 + 16 * entry, 16);
        }
        add(440, 72);
    } else {
        for entry in 0..6 {
            add(128 * entry, 56);
        }
        add(128 * 127, 128);
    }
}

/// Makes the checksums of the header at byte `at` right, where its fields still allow it.
fn mend(disk: &mut Disk, size: u64, at: u64) {
    let mut header = disk.get(&(at..at + size));
    let number =
        |header: &[u8], at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let array = u64::from(number(&header, 80)) * u64::from(number(&header, 84));
    let lba = u64::from(number(&header, 72)) | u64::from(number(&header, 76)) << 32;
    if array < 1 << 20
        && let Ok(array) = disk.read_vec_at(lba.saturating_mul(size), array as usize)
    {
        header[88..92].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
    }
    header[16..20].fill(0);
    let len = (number(&header, 12) as usize).min(header.len());
    let crc = crc32fast::hash(&header[..len]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    disk.put(at, &header);
}
