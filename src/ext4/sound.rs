//! Filesystems that were checked: nothing else is planned, moved or written.

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::check;
use crate::ext4::edit::quota;
use crate::ext4::findings::Findings;
use crate::ext4::format::superblock::Superblock;
use crate::ext4::read::metadata::Metadata;
use crate::ext4::recover::Recovered;
use crate::io::ReadAt;

/// A filesystem in which a check has found nothing wrong. [`Recovered::check`] is its only maker, so
/// that what nobody has checked cannot be planned:
///
/// ```compile_fail,E0308
/// # use pishrink::ext4::{findings::Findings, read::metadata::Metadata};
/// # let device = pishrink::io::memory::MemoryDisk::new(1 << 20);
/// let metadata = Metadata::read(&device, &mut Findings::default()).unwrap();
/// pishrink::ext4::plan::plan(&metadata, 1000);
/// ```
pub struct Sound<'a> {
    recovered: Recovered<'a>,
    metadata: Metadata,
    findings: Findings,
}

impl<'a> Recovered<'a> {
    /// Reads all metadata and checks it as `e2fsck` would.
    ///
    /// # Errors
    /// `Unsound` with the first findings in its text; what the device fails with.
    pub fn check(mut self) -> Result<Sound<'a>> {
        let mut findings = Findings::default();
        let view = self.overlay.over(self.device);
        let metadata = Metadata::read(&view, &mut findings)?;
        for (block, bytes) in quota::apply(&metadata, &view, &self.quota_deltas)? {
            let offset = self.fs.geometry.offset(block);
            self.overlay.set_bytes(offset, bytes.clone());
            self.finished.set_bytes(offset, bytes);
        }
        if findings.is_sound() {
            findings.merge(check::check(&self.overlay.over(self.device), &metadata)?);
        }
        if !findings.is_sound() {
            return Err(unsound(&findings));
        }
        Ok(Sound {
            recovered: self,
            metadata,
            findings,
        })
    }
}

impl<'a> Sound<'a> {
    /// Returns the filesystem before it was judged.
    pub fn recovered(&self) -> &Recovered<'a> {
        &self.recovered
    }

    /// Returns what was read of it.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns what the image puts right.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }
}

/// Reads and checks a filesystem of which the bitmaps alone will be trusted.
pub(super) fn judge(view: &dyn ReadAt) -> Result<Findings> {
    let mut findings = Findings::default();
    let metadata = Metadata::read(view, &mut findings)?;
    if findings.is_sound() {
        findings.merge(check::check(view, &metadata)?);
    }
    Ok(findings)
}

/// Does nobody know, e2fsck neither, what a feature does to the ownership of blocks? Then what the
/// bitmaps mark is kept, whoever owns it.
pub(super) fn has_foreign_features(superblock: &Superblock) -> bool {
    let understood = [
        "external journal",
        "sparse_super2",
        "meta_bg",
        "bigalloc",
        "shared_blocks",
    ];
    superblock
        .features_in_the_way()
        .iter()
        .any(|name| !understood.contains(&name.as_str()))
}

/// What helps a filesystem that is damaged.
const REPAIR: &str = "repair it with `e2fsck -f` on a copy or on the card, or save every block with --no-shrink --force-raw";

/// Adds what helps to an error that says that the filesystem is damaged, and nothing more.
pub(super) fn with_repair_hint(error: Error) -> Error {
    match (error.kind(), error.hint()) {
        (ErrorKind::Unsound, None) => error.with_hint(REPAIR),
        _ => error,
    }
}

pub(super) fn unsound(findings: &Findings) -> Error {
    const SHOWN: usize = 3;
    let mut text = findings.damage()[..findings.damage().len().min(SHOWN)].join("; ");
    let more = findings.damage_total() - (findings.damage().len().min(SHOWN)) as u64;
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Error::unsound(format!("the ext4 filesystem is damaged: {text}")).with_hint(REPAIR)
}
