//! Blocks of directories and of extended attributes, as bytes without a filesystem around them.

use std::sync::OnceLock;

use pishrink::ext4::format::dir::{self, BlockKind, DirEntry, InlineDir};
use pishrink::ext4::format::fs::Super;
use pishrink::ext4::format::inode::{EXTENTS_FL, INLINE_DATA_FL, Inode};
use pishrink::ext4::format::xattr::{self, Area, Value};
use pishrink::units::InodeNr;

use super::base::bases;

const SIZES: [usize; 4] = [1024, 2048, 4096, 65536];

pub fn directory(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    let mut block = bytes.to_vec();
    block.resize(SIZES[usize::from(choice % 4)], 0);
    let fs = fs();
    let before = list(&block);
    assert!(before.iter().all(|(_, name)| name.len() < 256));
    let plus = |old: InodeNr| InodeNr(old.0.wrapping_add(7));
    let changed = dir::relocate_entries(&mut block, BlockKind::Leaf, &plus);
    let used = before.iter().filter(|(number, _)| *number != 0);
    assert_eq!(changed, used.count() > 0);
    let after = list(&block);
    if before.iter().all(|(number, _)| number.wrapping_add(7) != 0) {
        let moved = before.iter().map(|(number, name)| match number {
            0 => (0, name.clone()),
            _ => (number.wrapping_add(7), name.clone()),
        });
        assert!(moved.eq(after), "other names after new numbers");
    }
    dir::looks_like_node(&block);
    dir::has_leaf_tail(&block);
    let _ = dir::dx_info(&block);
    if block.len() as u64 != fs.geometry.block_size {
        return;
    }
    for kind in [BlockKind::Leaf, BlockKind::DxRoot, BlockKind::DxNode] {
        if let Ok(pairs) = dir::dx_pairs(fs, kind, &block) {
            assert!(pairs.count() <= dir::dx_limit(fs, kind));
        }
        let mut copy = block.clone();
        if dir::update_checksum(fs, InodeNr(12), 5, kind, &mut copy) {
            assert!(dir::checksum_matches(fs, InodeNr(12), 5, kind, &copy));
        }
    }
}

/// Lists numbers and names, which have to follow each other within the block.
fn list(block: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut end = 0;
    let entries = dir::entries(block).map_while(Result::ok);
    entries
        .map(|entry: DirEntry<'_>| {
            assert_eq!(entry.offset, end);
            end += entry.rec_len;
            assert!(end <= block.len() && entry.name.len() + 8 <= entry.rec_len);
            (entry.inode.0, entry.name.to_vec())
        })
        .collect()
}

pub fn xattr(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    if choice < 128 {
        let mut block = bytes.to_vec();
        block.resize(SIZES[usize::from(choice % 4)], 0);
        if let Ok(area) = xattr::in_block(&block) {
            attributes(&area, &mut block);
        }
        let fs = fs();
        xattr::update_checksum(fs, 77, &mut block);
        assert!(xattr::checksum_matches(fs, 77, &block));
        return;
    }
    let mut slot = bytes.to_vec();
    slot.resize(128 << (choice % 4), 0);
    let inode = Inode(slot.as_slice());
    let (extra, flags) = (inode.extra_isize(), inode.i_flags());
    assert!(slot.len() > 128 || extra == 0);
    if let Some(inline) = InlineDir::of(&inode) {
        assert!(
            inline
                .lists(&slot)
                .iter()
                .all(|part| part.len() < slot.len())
        );
        assert_ne!(flags & INLINE_DATA_FL, 0);
    }
    inode.is_fast_symlink(fs());
    assert!(flags & INLINE_DATA_FL == 0 || !inode.has_block_map(fs()));
    assert!(flags & EXTENTS_FL == 0 || !inode.is_fast_symlink(fs()));
    if let Some(area) = xattr::in_slot(&inode) {
        attributes(&area, &mut slot);
    }
    dir::relocate_inline(&mut slot, &|old| InodeNr(old.0 ^ 1));
}

fn attributes(area: &Area, bytes: &mut [u8]) {
    let mut end = area.entries.start;
    let mut in_inodes = 0;
    for found in area.iter(bytes).map_while(Result::ok) {
        assert_eq!(found.offset, end);
        end = found.entry_range().end;
        assert!(end <= bytes.len());
        match found.value {
            Value::Here(range) => {
                assert!(range.end <= bytes.len());
                xattr::entry_hashes(found.name, xattr::value_words(bytes, range.clone()));
                let first = area.find(bytes, found.name_index, found.name);
                assert!(first.is_none_or(|first| first.end <= bytes.len()));
            }
            Value::Inode { number, .. } => {
                assert_ne!(number.0, 0);
                in_inodes += 1;
            }
        }
    }
    if let Ok(stop) = area.entries_end(bytes) {
        assert!(stop >= end && stop < bytes.len());
    }
    let before = area.iter(bytes).count();
    let changed = area.relocate_value_inodes(bytes, &|old| InodeNr(old.0 | 1 << 31));
    assert!(!changed || in_inodes > 0);
    assert_eq!(area.iter(bytes).count(), before);
}

/// Any filesystem with checksums and blocks of 1 KiB.
fn fs() -> &'static Super {
    static FS: OnceLock<&'static Super> = OnceLock::new();
    FS.get_or_init(|| {
        let mut all = bases().iter().map(|base| &base.fs);
        all.find(|fs| fs.checksums.enabled() && fs.geometry.block_size == 1024)
            .expect("there is such a base")
    })
}
