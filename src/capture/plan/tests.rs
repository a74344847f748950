//! Layouts that a table cannot have.

use super::*;
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;

/// Writes a sector of a partition table; of an entry: slot, type, start, sectors.
fn table_sector(disk: &MemoryDisk, lba: u64, entries: &[(u64, u8, u32, u32)]) {
    let at = lba * 512;
    for &(slot, type_byte, start, sectors) in entries {
        let at = at + 446 + 16 * slot;
        disk.write_all_at(at + 4, &[type_byte]).unwrap();
        disk.write_all_at(at + 8, &start.to_le_bytes()).unwrap();
        disk.write_all_at(at + 12, &sectors.to_le_bytes()).unwrap();
    }
    disk.write_all_at(at + 510, &[0x55, 0xAA]).unwrap();
}

/// An EBR without data stays with the partition that its chain goes back to, here in the way
/// of one that would move.
#[test]
fn what_no_chain_can_express_stays() {
    let disk = MemoryDisk::new(1000 * 512);
    table_sector(&disk, 0, &[(0, 5, 100, 400)]);
    table_sector(&disk, 100, &[(0, 0x83, 10, 90), (1, 5, 150, 1)]);
    table_sector(&disk, 250, &[(1, 5, 110, 30)]);
    table_sector(&disk, 210, &[(0, 0x83, 10, 20), (1, 5, 160, 40)]);
    table_sector(&disk, 260, &[(0, 0x82, 10, 30)]);
    let table = PartitionTable::read(&disk).unwrap().unwrap();
    let at = |start: u64, end: u64| ByteRange::new(start * 512, end * 512);
    let old = [at(110, 200), at(220, 240), at(270, 300)];
    let wanted = vec![old[0], at(220, 225), at(236, 266)];
    let (ranges, layout, note) = lay_out(&table, &disk, &old, wanted, Some(1)).unwrap();
    assert_eq!(ranges, [old[0], at(220, 225), old[2]]);
    assert_eq!(layout.disk_len, 300 * 512);
    assert!(note.unwrap().contains("overlap"));
    // Where nothing is in the way, all of it is as wanted.
    let wanted = vec![old[0], at(220, 225), at(262, 292)];
    let (ranges, _, note) = lay_out(&table, &disk, &old, wanted.clone(), Some(1)).unwrap();
    assert_eq!((ranges, note), (wanted, None));
}
