//! Images that end before their filesystems do: a download or a copy that broke off.
//!
//! Decisions: an image may be shorter than its partitions, since some makers leave out what the
//! first boot fills in. Only a filesystem that is longer tells that something is missing.

use crate::error::{Error, Result};
use crate::ext4::format::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, Superblock};
use crate::io::prefix::Prefix;
use crate::partition::PartitionTable;
use crate::units::human_bytes;

/// Refuses an image of `image_len` bytes that begins with `first` if an ext filesystem reaches past
/// its end. `read` fills a buffer from a byte of the image; it may come back short.
///
/// # Errors
/// `Unsound`, or what `read` fails with.
pub(super) fn refuse(
    first: &[u8],
    image_len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let table = PartitionTable::read(&Prefix(first)).ok().flatten();
    let parts: Vec<(u32, u64, u64)> = match &table {
        Some(table) => table
            .partitions()
            .iter()
            .map(|part| (part.number, part.range.start, part.range.end))
            .collect(),
        // One filesystem over all of it.
        None => vec![(0, 0, u64::MAX)],
    };
    for (number, start, _) in parts.into_iter().filter(|part| part.2 > image_len) {
        let mut bytes = vec![0; SUPERBLOCK_OFFSET as usize + SUPERBLOCK_SIZE];
        let known = usize::try_from(start).ok();
        match known.and_then(|start| first.get(start..start.checked_add(bytes.len())?)) {
            Some(known) => bytes.copy_from_slice(known),
            None if start < image_len => read(start, &mut bytes)?,
            None => {}
        }
        let Some(superblock) = Superblock::read(&Prefix(&bytes))? else {
            continue;
        };
        let size = 1024_u64 << superblock.s_log_block_size().min(6);
        let end = superblock
            .blocks_count()
            .saturating_mul(size)
            .saturating_add(start);
        if end > image_len {
            let what = match number {
                0 => "its filesystem".to_owned(),
                number => format!("the filesystem of partition {number}"),
            };
            return Err(Error::unsound(format!(
                "the image is cut off: {what} ends at byte {end} ({}), but the image has only {image_len} bytes ({})",
                human_bytes(end),
                human_bytes(image_len)
            ))
            .with_hint("fetch or copy the image again, whole"));
        }
    }
    Ok(())
}
