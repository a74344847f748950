//! FAT filesystems of all three kinds, with damage in the boot sector, the tables and the root.

use std::sync::OnceLock;

use pishrink::ext4::Target;
use pishrink::fat::Fat;
use pishrink::io::{RangeSet, ReadAt};
use pishrink::volume::Volume;

use super::disk::{Disk, Input, Place, unpack};
use super::is_refusal;

/// Made by proofs/make_fuzz_bases.py.
const PACKED: &[&[u8]] = &[
    include_bytes!("../../testdata/fuzz/bases/fat12.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/fat16.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/fat32.img.zst"),
];

struct Base {
    bytes: Vec<u8>,
    places: Vec<Place<()>>,
    telling: Vec<u64>,
}

pub fn fat(data: &[u8]) {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    let bases = BASES.get_or_init(|| PACKED.iter().map(|p| Base::read(unpack(p))).collect());
    let Some(input) = Input::decode(data) else {
        return;
    };
    let base = &bases[input.base % bases.len()];
    let mut disk = Disk::new(&base.bytes);
    input.damage(&mut disk, &base.places, &base.telling);
    if input.flags & 1 != 0 {
        disk.set_len(disk.len() - u64::from(input.amount) % disk.len());
    }
    let fat = match Fat::identify(&disk) {
        Ok(Some(fat)) => fat,
        Ok(None) => return,
        Err(error) => return is_refusal(&error),
    };
    assert!((512..=disk.len()).contains(&fat.len()));
    let usage = fat.usage(&disk).expect("memory never fails");
    let clusters = usage.used_clusters + usage.free_clusters + usage.bad_clusters;
    assert_eq!(clusters, fat.cluster_count());
    assert!(usage.allocated.iter().all(|range| range.end <= fat.len()));
    assert!(usage.warnings.iter().all(|line| !line.contains('\n')));
    for name in ["config.txt", "a rather long name.text"] {
        match fat.read_root_file(&disk, name, 5000) {
            Ok(file) => assert!(file.is_none_or(|file| file.len() <= 5000)),
            Err(error) => is_refusal(&error),
        }
    }
    let everything = RangeSet::from(0..disk.len());
    let mut end = 0;
    for (range, owner, _) in fat.owners(&disk, &everything).expect("memory never fails") {
        assert!(range.start >= end && range.end <= disk.len() && !owner.is_empty());
        end = range.end;
    }
    let volume = Volume::identify(&disk).expect("memory never fails");
    match volume.content(&disk, Target::Keep) {
        Ok(content) => assert!(content.stored.iter().all(|range| range.end <= disk.len())),
        Err(error) => is_refusal(&error),
    }
}

impl Base {
    fn read(bytes: Vec<u8>) -> Self {
        let small = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let (sector, reserved, root_entries) = (small(11), small(14), small(17));
        let table = match small(22) {
            0 => small(36) | small(38) << 16,
            sectors => sectors,
        };
        let first = reserved * sector;
        let data = first + u64::from(bytes[16]) * table * sector;
        let mut ranges = vec![0..90, 0..36, 11..36, data..data + 512, data..data + 128];
        if root_entries == 0 {
            // FSInfo, and the copy of the boot sector.
            ranges.extend([sector + 480..sector + 512, 6 * sector..6 * sector + 90]);
        }
        for copy in 0..u64::from(bytes[16]) {
            let start = first + copy * table * sector;
            ranges.extend([start..start + 16, start..start + 256]);
        }
        let places = ranges.into_iter().map(|range| Place { range, what: () });
        Self {
            places: places.collect(),
            telling: vec![
                0,
                1,
                2,
                3,
                0xFF7,
                0xFF8,
                0xFFF,
                0xFFF7,
                0xFFF8,
                0xFFFF,
                4084,
                4085,
                4086,
                65524,
                65525,
                65526,
                0x0FFF_FFF7,
                0x0FFF_FFF8,
                0x0FFF_FFFF,
                512,
                1024,
                4096,
                32768,
                table,
                reserved,
                root_entries,
            ],
            bytes,
        }
    }
}
