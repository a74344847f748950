//! What a sound filesystem shows to a reader: its names, and what each stands for.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use pishrink::error::{Error, Result};
use pishrink::ext4::findings::Findings;
use pishrink::ext4::format::dir::{self, BlockKind, InlineDir};
use pishrink::ext4::format::extent::MapKind;
use pishrink::ext4::format::fs::Super;
use pishrink::ext4::format::inode::{INDEX_FL, Inode, ROOT_INO};
use pishrink::ext4::format::xattr::{self, INDEX_SYSTEM, Value};
use pishrink::ext4::read::metadata::{InodeRecord, Metadata};
use pishrink::ext4::recover::{journal, orphan};
use pishrink::io::{Overlay, ReadAt, is_zero};
use pishrink::units::InodeNr;

/// Paths, and all that may not change about what they name.
type Tree = BTreeMap<Vec<u8>, String>;

/// Compares a filesystem, after its recovery, with what was made of it.
///
/// # Panics
/// If anything differs.
pub fn assert_same(source: &dyn ReadAt, made: &dyn ReadAt) {
    let [before, after] = [source, made].map(|device| {
        let recovered = recovery(device).expect("it was recovered before");
        tree(&recovered.over(device)).expect("it was read before")
    });
    for (path, was) in &before {
        let name = String::from_utf8_lossy(path);
        assert_eq!(Some(was), after.get(path), "{name}");
    }
    assert_eq!(before.len(), after.len(), "there are new names");
}

/// Returns what recovery changes on a filesystem that was not unmounted.
///
/// # Errors
/// Those of the replay.
pub fn recovery(device: &dyn ReadAt) -> Result<Overlay> {
    let none = || Error::unsound("no ext filesystem here");
    let fs = Super::read(device)?.ok_or_else(none)?;
    let replayed = journal::replay(&fs, device)?.overlay;
    let view = replayed.over(device);
    let fs = Super::read(&view)?.ok_or_else(none)?;
    let orphans = orphan::finish_orphans(&fs, &view, 0)?;
    Ok(replayed.then(&orphans.overlay))
}

fn tree(device: &dyn ReadAt) -> Result<Tree> {
    let metadata = Metadata::read(device, &mut Findings::default())?;
    let reader = Reader { metadata, device };
    let mut tree = Tree::new();
    let mut seen = HashSet::new();
    let mut stack = vec![(Vec::new(), ROOT_INO)];
    while let Some((path, number)) = stack.pop() {
        let Some(record) = reader.metadata.inode(number) else {
            tree.insert(path, "nothing".into());
            continue;
        };
        let slot = reader.metadata.read_inode(device, number)?;
        tree.insert(path.clone(), reader.describe(record, &slot)?);
        if !record.is_dir() {
            continue;
        }
        assert!(seen.insert(number), "a directory has two names");
        for (name, child) in reader.names(record, &slot)? {
            stack.push(([&path[..], b"/", &name].concat(), child));
        }
    }
    Ok(tree)
}

struct Reader<'a> {
    metadata: Metadata,
    device: &'a dyn ReadAt,
}

impl Reader<'_> {
    fn block(&self, number: u64) -> Result<Vec<u8>> {
        let geometry = &self.metadata.fs.geometry;
        let len = geometry.block_size as usize;
        self.device.read_vec_at(geometry.offset(number), len)
    }

    fn names(&self, record: &InodeRecord, slot: &Inode) -> Result<Vec<(Vec<u8>, InodeNr)>> {
        let mut names = Vec::new();
        let mut add = |list: &[u8]| {
            let entries = dir::entries(list).map_while(std::result::Result::ok);
            let entries = entries.filter(|entry| entry.is_used() && !entry.is_dot_or_dotdot());
            names.extend(entries.map(|entry| (entry.name.to_vec(), entry.inode)));
        };
        if let Some(inline) = InlineDir::of(slot) {
            for list in inline.lists(slot.bytes()) {
                add(list);
            }
            return Ok(names);
        }
        let indexed = record.flags & INDEX_FL != 0;
        for extent in self.metadata.extents(record) {
            for skip in 0..extent.len() {
                let block = self.block(extent.start + u64::from(skip))?;
                let fs = &self.metadata.fs;
                let kind = dir::kind_of(fs, indexed, extent.logical + skip, &block);
                if kind != BlockKind::DxNode {
                    add(&block);
                }
            }
        }
        Ok(names)
    }

    fn describe(&self, record: &InodeRecord, slot: &Inode) -> Result<String> {
        let times = [slot.i_atime(), slot.i_ctime(), slot.i_mtime()];
        let mut text = format!(
            "mode {:o} owner {}:{} project {} links {} flags {:x} generation {} times {times:?}",
            record.mode,
            slot.uid(),
            slot.gid(),
            slot.projid(),
            record.links,
            record.flags,
            record.generation,
        );
        if !record.is_dir() {
            text += &format!(" size {}", record.size);
            text += &self.contents(record, slot)?;
        }
        for (index, name, value) in self.attributes(record, slot)? {
            text += &format!(" {index}.{}={value:x}", name.escape_ascii());
        }
        Ok(text)
    }

    fn contents(&self, record: &InodeRecord, slot: &Inode) -> Result<String> {
        let mut hash = DefaultHasher::new();
        let mut unwritten = 0;
        if record.kind == MapKind::None {
            slot.i_block().hash(&mut hash);
        }
        for extent in self.metadata.extents(record) {
            if extent.is_unwritten() {
                unwritten += extent.len();
                continue;
            }
            for skip in 0..extent.len() {
                let bytes = self.block(extent.start + u64::from(skip))?;
                if !is_zero(&bytes) {
                    (extent.logical + skip, bytes).hash(&mut hash);
                }
            }
        }
        Ok(format!(" unwritten {unwritten} data {:x}", hash.finish()))
    }

    /// Lists the attributes; of a value in an inode of its own only the size.
    fn attributes(&self, record: &InodeRecord, slot: &Inode) -> Result<Vec<(u8, Vec<u8>, u64)>> {
        let mut all = Vec::new();
        let mut add = |area: &xattr::Area, bytes: &[u8]| {
            for found in area.iter(bytes).map_while(std::result::Result::ok) {
                // There a directory keeps its entries.
                if record.is_dir() && (found.name_index, found.name) == (INDEX_SYSTEM, b"data") {
                    continue;
                }
                let mut hash = DefaultHasher::new();
                match found.value {
                    Value::Here(range) => bytes[range].hash(&mut hash),
                    Value::Inode { size, .. } => size.hash(&mut hash),
                }
                all.push((found.name_index, found.name.to_vec(), hash.finish()));
            }
        };
        if let Some(area) = xattr::in_slot(slot) {
            add(&area, slot.bytes());
        }
        if record.file_acl != 0 {
            let block = self.block(record.file_acl)?;
            if let Ok(area) = xattr::in_block(&block) {
                add(&area, &block);
            }
        }
        Ok(all)
    }
}
