//! The last step of a flash: the withheld first bytes, the first block of all as the very last.

use super::lane::Lane;
use super::plan::{BLOCK, HEAD};
use super::write::Written;
use crate::error::{Error, ErrorKind, Result};
use crate::io::AlignedBuf;

/// How often the first bytes are written and read.
const ATTEMPTS: u32 = 3;

/// Makes a card's first bytes zeros, so that it looks empty until [`publish`].
pub(super) fn blank(lane: &Lane) -> Result<()> {
    let len = HEAD.min(lane.len());
    // The first block on its own, first: whatever happens next, the old table is gone.
    let first = AlignedBuf::zeroed(BLOCK.min(len) as usize);
    lane.slot.card.write_all_at(0, &first)?;
    lane.slot.card.sync()?;
    let rest = AlignedBuf::zeroed((len - first.len() as u64) as usize);
    lane.slot.card.write_all_at(first.len() as u64, &rest)?;
    lane.settle()
}

/// Writes the first bytes and reads them back. With `verify` false nothing is read.
///
/// # Errors
/// `Verify` if they cannot be read back; the first block is zeros then, as far as that depends on
/// this program.
pub(super) fn publish(lane: &Lane, written: &Written, verify: bool) -> Result<u64> {
    let mut head = AlignedBuf::zeroed(HEAD.min(lane.len()) as usize);
    let mut bytes = 0;
    for (start, part) in &written.head {
        let at = *start as usize;
        head[at..at + part.len()].copy_from_slice(part);
        bytes += part.len() as u64;
    }
    if bytes == 0 {
        return Ok(0);
    }
    let first = (BLOCK as usize).min(head.len());
    for _ in 0..ATTEMPTS {
        lane.write(first as u64, &head[first..])?;
        lane.settle()?;
        lane.write(0, &head[..first])?;
        lane.settle()?;
        if !verify {
            return Ok(bytes);
        }
        let mut seen = AlignedBuf::zeroed(head.len());
        if lane.read(0, &mut seen).is_ok() && seen[..] == head[..] {
            return Ok(bytes);
        }
    }
    // Half of a table is worse than none. That this fails as well adds nothing.
    let _ = blank(lane);
    Err(Error::new(
        ErrorKind::Verify,
        format!(
            "{}: the first {} bytes cannot be read back",
            lane.slot.name,
            head.len()
        ),
    )
    .with_hint("the card is worn out: use another one"))
}
