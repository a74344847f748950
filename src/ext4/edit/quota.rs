//! Usage in the quota files: a radix tree over ids, in 1 KiB blocks (quota format "vfsv1", r1).
//!
//! ```text
//! block 0   magic, version, info
//! block 1   256 block numbers, by the highest byte of the id; three more levels like it
//! leaf      16 bytes of header, then entries of 72 bytes: dqb_id ... curinodes@24 ... curspace@48
//! ```
//! The files belong to the filesystem (`quota` feature) and count what each user, group and project
//! holds, so they change when the number of blocks of a file does.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::ext4::format::raw::le32;
use crate::ext4::format::superblock::RO_COMPAT_QUOTA;
use crate::ext4::read::metadata::Metadata;
use crate::io::ReadAt;
use crate::units::{BlockNr, InodeNr};

const QUOTA_BLOCK: u64 = 1024;
const ROOT_BLOCK: u32 = 1;
const LEAF_HEADER: usize = 16;
const ENTRY: usize = 72;
const CURINODES: usize = 24;
const CURSPACE: usize = 48;

/// A change of what one owner uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuotaDelta {
    pub uid: u32,
    pub gid: u32,
    pub projid: u32,
    pub inodes: i64,
    pub bytes: i64,
}

/// Applies `deltas` to all quota files; returns the filesystem blocks that change, by their
/// present numbers, with their new contents. An id without an entry is left alone.
///
/// # Errors
/// What the device fails with.
pub fn apply(
    metadata: &Metadata,
    view: &dyn ReadAt,
    deltas: &[QuotaDelta],
) -> Result<BTreeMap<BlockNr, Vec<u8>>> {
    let superblock = &metadata.fs.superblock;
    let mut edits = BTreeMap::new();
    if deltas.is_empty() || !superblock.has_ro_compat(RO_COMPAT_QUOTA) {
        return Ok(edits);
    }
    type IdOf = fn(&QuotaDelta) -> u32;
    let files: [(u32, IdOf); 3] = [
        (superblock.s_usr_quota_inum(), |delta| delta.uid),
        (superblock.s_grp_quota_inum(), |delta| delta.gid),
        (superblock.s_prj_quota_inum(), |delta| delta.projid),
    ];
    for (number, id_of) in files {
        if number == 0 || metadata.inode(InodeNr(number)).is_none() {
            continue;
        }
        let mut sums: BTreeMap<u32, (i64, i64)> = BTreeMap::new();
        for delta in deltas {
            let sum = sums.entry(id_of(delta)).or_default();
            sum.0 = sum.0.saturating_add(delta.inodes);
            sum.1 = sum.1.saturating_add(delta.bytes);
        }
        let mut file = QuotaFile {
            metadata,
            view,
            number: InodeNr(number),
            edits: &mut edits,
        };
        for (id, (inodes, bytes)) in sums {
            file.change(id, inodes, bytes)?;
        }
    }
    Ok(edits)
}

struct QuotaFile<'a> {
    metadata: &'a Metadata,
    view: &'a dyn ReadAt,
    number: InodeNr,
    edits: &'a mut BTreeMap<BlockNr, Vec<u8>>,
}

impl QuotaFile<'_> {
    fn change(&mut self, id: u32, inodes: i64, bytes: i64) -> Result<()> {
        let mut block = ROOT_BLOCK;
        for byte in id.to_be_bytes() {
            let Some(place) = self.find(block)? else {
                return Ok(());
            };
            let node = self.bytes(place);
            block = le32(node, 4 * usize::from(byte));
            if block == 0 {
                return Ok(());
            }
        }
        let Some(place) = self.find(block)? else {
            return Ok(());
        };
        let leaf = self.bytes(place);
        let entries = (QUOTA_BLOCK as usize - LEAF_HEADER) / ENTRY;
        let found = (0..entries)
            .map(|index| LEAF_HEADER + index * ENTRY)
            .find(|&at| {
                let entry = &leaf[at..at + ENTRY];
                le32(entry, 0) == id && entry.iter().any(|&byte| byte != 0)
            });
        let Some(at) = found else {
            return Ok(());
        };
        add(&mut leaf[at + CURINODES..], inodes);
        add(&mut leaf[at + CURSPACE..], bytes);
        Ok(())
    }

    /// Finds block `index` of the quota file: the filesystem block and the offset within it. The
    /// filesystem block is then in `edits`.
    fn find(&mut self, index: u32) -> Result<Option<(BlockNr, usize)>> {
        let size = self.metadata.fs.geometry.block_size;
        let offset = u64::from(index) * QUOTA_BLOCK;
        let Some(record) = self.metadata.inode(self.number) else {
            return Ok(None);
        };
        let logical = offset / size;
        let extent =
            self.metadata.extents(record).iter().find(|extent| {
                (u64::from(extent.logical)..extent.logical_end()).contains(&logical)
            });
        let Some(extent) = extent else {
            return Ok(None);
        };
        let block = extent.start + (logical - u64::from(extent.logical));
        if !self.edits.contains_key(&block) {
            let bytes = self.view.read_vec_at(block * size, size as usize)?;
            self.edits.insert(block, bytes);
        }
        Ok(Some((block, (offset % size) as usize)))
    }

    fn bytes(&mut self, (block, offset): (BlockNr, usize)) -> &mut [u8] {
        let bytes = self.edits.get_mut(&block).expect("find() has put it there");
        &mut bytes[offset..offset + QUOTA_BLOCK as usize]
    }
}

fn add(field: &mut [u8], delta: i64) {
    let Some(field) = field.first_chunk_mut::<8>() else {
        return;
    };
    *field = u64::from_le_bytes(*field)
        .saturating_add_signed(delta)
        .to_le_bytes();
}
