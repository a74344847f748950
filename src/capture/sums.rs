//! Sums over an image that is complete.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::bmap::{Bmap, BmapBuilder, ContentHash};
use crate::capture::summary::CapturePlan;
use crate::error::{Error, Result};
use crate::io::Source;
use crate::io::range_set::pieces;
use crate::progress::{Phase, Progress};

/// Reads an image's file once more, for its digest and map.
///
/// # Errors
/// What the file fails with, `Cancelled`.
pub fn summed(
    plan: &CapturePlan,
    file: &mut File,
    with_bmap: bool,
    progress: &dyn Progress,
) -> Result<(String, Option<Bmap>)> {
    let len = plan.image_bytes();
    progress.started(Phase::Verify, Some(plan.summary.mapped_bytes))?;
    let mut content = ContentHash::new();
    let mut bmap = with_bmap.then(|| BmapBuilder::new(len, &plan.mapped));
    let mut buf = vec![0; 1 << 20];
    for segment in plan.overlay.all_segments() {
        if matches!(segment.source, Source::Zero) {
            content.zeros(segment.len);
            if let Some(bmap) = &mut bmap {
                bmap.zeros(segment.start, segment.len)?;
            }
            continue;
        }
        for piece in pieces(segment.start..segment.end(), 1 << 20) {
            let part = &mut buf[..(piece.end - piece.start) as usize];
            file.seek(SeekFrom::Start(piece.start))
                .and_then(|_| file.read_exact(part))
                .map_err(|error| {
                    Error::io(format!("reading the image at byte {}", piece.start), error)
                })?;
            content.update(part);
            if let Some(bmap) = &mut bmap {
                bmap.update(piece.start, part)?;
            }
            progress.advanced(Phase::Verify, part.len() as u64)?;
        }
    }
    progress.finished(Phase::Verify)?;
    let bmap = bmap.map(BmapBuilder::finish).transpose()?;
    Ok((content.finish_hex(), bmap))
}
