//! ext2, ext3 and ext4 as volumes.

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::ext4::format::superblock::{
    COMPAT_HAS_JOURNAL, INCOMPAT_64BIT, INCOMPAT_EXTENTS, INCOMPAT_FLEX_BG, RO_COMPAT_HUGE_FILE,
    RO_COMPAT_METADATA_CSUM, STATE_ERRORS, STATE_VALID, Superblock,
};
use crate::ext4::owner::Owner;
use crate::ext4::{self, Ext4, Recovery};
use crate::io::ReadAt;
use crate::volume::content::{Content, ExtFacts, Facts, Owned};

pub(super) fn ext_content(
    superblock: &Superblock,
    device: &dyn ReadAt,
    target: ext4::Target,
) -> Result<Content> {
    let ext = match Ext4::open(device) {
        Ok(ext) => ext,
        // Not even the bitmaps mean what we know, so nothing of it is left away.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let mut content = Content::whole(device.len())
                .with_note(format!("copied whole: {}", error.one_line()));
            content.facts.ext = Some(ExtFacts {
                features: superblock.feature_names(),
                features_in_the_way: superblock.features_in_the_way(),
                new_total: device.len(),
                ..ExtFacts::default()
            });
            return Ok(content);
        }
        Err(error) => return Err(error),
    };
    sized_content(&ext, superblock, target)
}

/// The filesystem as its bitmaps have it, after `error` kept the rest from being read.
pub(super) fn bitmap_content(
    superblock: &Superblock,
    device: &dyn ReadAt,
    error: Error,
) -> Result<Content> {
    let kept = Ext4::open_by_bitmaps(device)
        .and_then(|ext| sized_content(&ext, superblock, ext4::Target::Keep));
    match kept {
        Ok(mut content) => {
            content.facts.clean = false;
            content.facts.unreadable = Some(error.one_line());
            Ok(content)
        }
        Err(other) if other.kind() == ErrorKind::Cancelled => Err(other),
        Err(_) => Err(error),
    }
}

pub(super) fn sized_content(
    ext: &Ext4,
    superblock: &Superblock,
    target: ext4::Target,
) -> Result<Content> {
    let in_the_way = ext.features_in_the_way();
    let kept = !in_the_way.is_empty() && target != ext4::Target::Keep;
    let target = if kept { ext4::Target::Keep } else { target };
    let image = ext.image(target)?;
    let Recovery {
        journal_was_dirty,
        transactions,
        fast_commits,
        orphans_deleted,
        orphans_truncated,
        ..
    } = ext.recovery();
    let new_total = image.overlay.len();
    let state = ext.superblock().s_state();
    let mut notes = Vec::new();
    if state & STATE_ERRORS != 0 {
        let note = "the kernel has marked it as having errors; none is there now";
        notes.push(note.into());
    }
    let facts = Facts {
        used: ext.used_bytes(),
        total: ext.total_bytes(),
        clean: state & STATE_VALID != 0
            && !journal_was_dirty
            && orphans_deleted == 0
            && orphans_truncated == 0,
        notes,
        ext: Some(ExtFacts {
            features: superblock.feature_names(),
            block_size: image.block_size,
            new_total,
            new_free: image.free_bytes,
            transactions_replayed: transactions,
            fast_commits_replayed: fast_commits,
            orphans_deleted,
            orphans_truncated,
            repairs: ext.findings().repairs().to_vec(),
            features_in_the_way: if kept { in_the_way } else { Vec::new() },
            moved_blocks: image.moved_blocks,
            moved_inodes: image.moved_inodes,
            moved: image.moved,
        }),
        ..Facts::default()
    };
    Ok(Content {
        overlay: image.overlay,
        stored: image.stored,
        facts,
    })
}

pub(super) fn ext_owned((range, owner): (Range<u64>, Owner)) -> Owned {
    match owner {
        Owner::File {
            inode,
            path,
            offset,
        } => {
            let path = path.map_or_else(
                || format!("inode {inode}, which no readable directory names"),
                |path| String::from_utf8_lossy(&path).into_owned(),
            );
            (range, path, Some(offset))
        }
        Owner::Metadata(name) => (range, name, None),
        Owner::Nobody => (range, "blocks that no readable file owns".into(), None),
    }
}

/// ext2, ext3 or ext4, the way blkid tells them apart.
pub(super) fn ext_name(superblock: &Superblock) -> &'static str {
    if superblock.has_incompat(INCOMPAT_EXTENTS | INCOMPAT_64BIT | INCOMPAT_FLEX_BG)
        || superblock.has_ro_compat(RO_COMPAT_HUGE_FILE | RO_COMPAT_METADATA_CSUM)
    {
        "ext4"
    } else if superblock.has_compat(COMPAT_HAS_JOURNAL) {
        "ext3"
    } else {
        "ext2"
    }
}

/// Two bytes of magic alone occur by chance.
pub(super) fn is_plausible(superblock: &Superblock) -> bool {
    superblock.s_log_block_size() <= 6
        && superblock.s_rev_level() <= 1
        && superblock.s_blocks_per_group() > 0
        && superblock.s_inodes_per_group() > 0
}
