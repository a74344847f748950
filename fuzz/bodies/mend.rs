//! Right checksums over damaged structures: without them, a damaged field would only ever show
//! that checksums are compared.

use pishrink::ext4::format::crc::crc32c;
use pishrink::ext4::format::dir;
use pishrink::ext4::format::group_desc::GroupTable;
use pishrink::ext4::format::inode::Inode;
use pishrink::ext4::format::raw::{le16, put32};
use pishrink::ext4::format::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use pishrink::ext4::format::xattr;
use pishrink::units::{BlockNr, InodeNr};

use super::base::{Base, What};
use super::disk::Disk;

/// Stores the checksums of everything in `hit`, and of what contains those.
pub fn mend(base: &Base, disk: &mut Disk, hit: &[What]) {
    let mut descriptors = hit.contains(&What::Desc);
    for &what in hit {
        match what {
            What::Super | What::Desc | What::Log | What::Plain => {}
            What::BlockBitmap(_) | What::InodeBitmap(_) => {
                bitmap(base, disk, what);
                descriptors = true;
            }
            What::Inode(number) => inode(base, disk, number),
            other => block(base, disk, other),
        }
    }
    if let Some(log) = &base.log
        && hit.contains(&What::Log)
    {
        log.mend(disk);
    }
    let geometry = &base.fs.geometry;
    if descriptors && let Ok(table) = GroupTable::read(&base.fs, disk) {
        let start = geometry.offset(geometry.super_start(0) + 1);
        disk.put(start, &table.encode(&base.fs));
    }
    if hit.contains(&What::Super) {
        let range = SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64;
        let mut superblock = Superblock::new(disk.get(&range));
        superblock.update_checksum();
        disk.put(SUPERBLOCK_OFFSET, superblock.bytes());
    }
}

/// Puts a bitmap's checksum into its descriptor.
fn bitmap(base: &Base, disk: &mut Disk, what: What) {
    let found = base.places.iter().find(|place| place.what == what);
    let Some(place) = found.filter(|_| base.fs.checksums.enabled()) else {
        return;
    };
    let (group, low, high) = match what {
        What::BlockBitmap(group) => (group, 0x18, 0x38),
        What::InodeBitmap(group) => (group, 0x1A, 0x3A),
        _ => return,
    };
    let crc = base.fs.checksums.bitmap(&disk.get(&place.range));
    let geometry = &base.fs.geometry;
    let desc = geometry.offset(geometry.super_start(0) + 1) + u64::from(group) * geometry.desc_size;
    disk.put(desc + low, &(crc as u16).to_le_bytes());
    if geometry.desc_size >= 64 {
        disk.put(desc + high, &((crc >> 16) as u16).to_le_bytes());
    }
}

/// The inode, and the blocks whose checksums begin with its number and generation.
fn inode(base: &Base, disk: &mut Disk, number: InodeNr) {
    let slot = slot(base, number);
    let mut inode = Inode(disk.get(&slot));
    inode.update_checksum(&base.fs.checksums, number);
    disk.put(slot.start, inode.bytes());
    for place in &base.places {
        match place.what {
            What::ExtentNode(owner, _) | What::Directory(owner, ..) | What::Orphans(owner, _)
                if owner == number =>
            {
                block(base, disk, place.what);
            }
            _ => {}
        }
    }
}

fn slot(base: &Base, number: InodeNr) -> std::ops::Range<u64> {
    let found = base.places.iter().find(|p| p.what == What::Inode(number));
    let slot = found.expect("an owner is in the list, with its whole slot first");
    slot.range.clone()
}

fn block(base: &Base, disk: &mut Disk, what: What) {
    let fs = &base.fs;
    if !fs.checksums.enabled() {
        return;
    }
    let place = |number: BlockNr| fs.geometry.bytes(number, 1);
    let generation =
        |disk: &Disk, owner: InodeNr| Inode(disk.get(&slot(base, owner))).i_generation();
    match what {
        What::ExtentNode(owner, number) => {
            let mut node = disk.get(&place(number));
            let tail = 12 * (usize::from(le16(&node, 4)) + 1);
            if tail + 4 <= node.len() {
                let seed = fs.checksums.inode_seed(owner, generation(disk, owner));
                let crc = crc32c(seed, &node[..tail]);
                put32(&mut node, tail, crc);
                disk.put(place(number).start, &node);
            }
        }
        What::Directory(owner, number, kind) => {
            let mut bytes = disk.get(&place(number));
            dir::update_checksum(fs, owner, generation(disk, owner), kind, &mut bytes);
            disk.put(place(number).start, &bytes);
        }
        What::Attributes(number) => {
            let mut bytes = disk.get(&place(number));
            xattr::update_checksum(fs, number, &mut bytes);
            disk.put(place(number).start, &bytes);
        }
        What::Orphans(owner, number) => {
            let mut bytes = disk.get(&place(number));
            let tail = bytes.len() - 8;
            let seed = fs.checksums.inode_seed(owner, generation(disk, owner));
            let crc = crc32c(crc32c(seed, &number.to_le_bytes()), &bytes[..tail]);
            put32(&mut bytes, tail + 4, crc);
            disk.put(place(number).start, &bytes);
        }
        _ => {}
    }
}
