//! Anything at all in a partition: what is told apart by magic numbers.

use pishrink::ext4::Target;
use pishrink::io::ReadAt;
use pishrink::volume::Volume;

use super::disk::Disk;
use super::is_refusal;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// The input is pieces, each behind its place (3 bytes) and its length (1 byte).
pub fn volume(data: &[u8]) {
    let mut disk = Disk::new(&ZEROS);
    let mut rest = data;
    while let Some((&[a, b, c, len], after)) = rest.split_first_chunk() {
        let (piece, left) = after.split_at(after.len().min(usize::from(len)));
        disk.put(u64::from(u32::from_le_bytes([a, b, c, 0])), piece);
        rest = left;
    }
    let volume = Volume::identify(&disk).expect("memory never fails");
    assert!(!volume.name().is_empty());
    volume.label();
    volume.uuid();
    match volume.content(&disk, Target::Headroom(1 << 14)) {
        Ok(content) => {
            assert!(content.overlay.len() <= disk.len());
            assert!(content.stored.iter().all(|range| range.end <= disk.len()));
        }
        Err(error) => is_refusal(&error),
    }
}
