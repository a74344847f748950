//! Reading many single blocks in ascending order, with requests as large as their places allow.

use crate::error::Result;
use crate::ext4::format::fs::Super;
use crate::io::ReadAt;
use crate::units::BlockNr;

/// The longest request.
const MAX_REQUEST: u64 = 1 << 20;
/// Bytes read for nothing rather than by another request.
const MAX_GAP: u64 = 32 << 10;

/// Calls `take` with the bytes of each block of `items`, which are sorted by block.
///
/// # Errors
/// What the device or `take` fails with.
pub fn for_each_block<T>(
    view: &dyn ReadAt,
    fs: &Super,
    items: &[T],
    block_of: impl Fn(&T) -> BlockNr,
    mut take: impl FnMut(&T, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = fs.geometry.block_size;
    let mut buffer = Vec::new();
    let mut rest = items;
    while let Some(first) = rest.first() {
        let start = block_of(first);
        let mut end = start + 1;
        let mut count = 1;
        for next in &rest[1..] {
            let block = block_of(next);
            let far = block.saturating_sub(end) * size > MAX_GAP;
            if far || (block + 1 - start) * size > MAX_REQUEST {
                break;
            }
            end = end.max(block + 1);
            count += 1;
        }
        buffer.resize(((end - start) * size) as usize, 0);
        view.read_exact_at(fs.geometry.offset(start), &mut buffer)?;
        for item in &rest[..count] {
            let at = ((block_of(item) - start) * size) as usize;
            take(item, &buffer[at..at + size as usize])?;
        }
        rest = &rest[count..];
    }
    Ok(())
}
