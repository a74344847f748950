//! Bytes of the image on their way to the cards.

use std::ops::Range;
use std::sync::Arc;

use crate::io::AlignedBuf;
use crate::pipeline::Queue;

/// Bytes of the image on their way to the cards. The buffer goes back when all are done with it.
pub(super) struct Cell {
    /// Where the buffer's first byte belongs.
    pub(super) start: u64,
    pub(super) buf: Option<AlignedBuf>,
    pub(super) pool: Arc<Queue<AlignedBuf>>,
    pub(super) ranges: Vec<Range<u64>>,
    pub(super) runs: Vec<(Range<u64>, bool)>,
}

impl Cell {
    /// What to write.
    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// The same, cut where long runs of zeros (`true`) begin and end.
    pub(super) fn runs(&self) -> &[(Range<u64>, bool)] {
        &self.runs
    }

    pub(super) fn bytes(&self, range: &Range<u64>) -> &[u8] {
        let buf = self.buf.as_deref().unwrap_or_default();
        &buf[(range.start - self.start) as usize..(range.end - self.start) as usize]
    }

    pub(super) fn len(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some(buf) = self.buf.take() {
            self.pool.push(buf);
        }
    }
}
