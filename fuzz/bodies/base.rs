//! The sound filesystems that are damaged, and where everything lies in them.

use std::ops::Range;
use std::sync::OnceLock;

use pishrink::error::Result;
use pishrink::ext4::findings::Findings;
use pishrink::ext4::format::dir::{self, BlockKind};
use pishrink::ext4::format::extent::MapKind;
use pishrink::ext4::format::fs::Super;
use pishrink::ext4::format::inode::INDEX_FL;
use pishrink::ext4::format::superblock::SUPERBLOCK_OFFSET;
use pishrink::ext4::read::metadata::{InodeRecord, Metadata};
use pishrink::io::ReadAt;
use pishrink::io::memory::MemoryDisk;
use pishrink::units::{BlockNr, GroupNr, InodeNr};

use super::disk::{Place, unpack};
use super::log::LogMap;
use super::tree::recovery;

/// Made by proofs/make_fuzz_bases.py.
const PACKED: &[&[u8]] = &[
    include_bytes!("../../testdata/fuzz/bases/today.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/dirty.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/uninit.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/ext3.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/inside.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/quota.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/pages.img.zst"),
    include_bytes!("../../testdata/fuzz/bases/clusters.img.zst"),
];

/// What lies at a place, as far as its checksum needs to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Super,
    Desc,
    BlockBitmap(GroupNr),
    InodeBitmap(GroupNr),
    Inode(InodeNr),
    ExtentNode(InodeNr, BlockNr),
    Directory(InodeNr, BlockNr, BlockKind),
    Attributes(BlockNr),
    Orphans(InodeNr, BlockNr),
    /// A block of the journal.
    Log,
    /// Has no checksum.
    Plain,
}

/// A sound filesystem.
pub struct Base {
    pub bytes: Vec<u8>,
    pub fs: Super,
    pub places: Vec<Place<What>>,
    /// What the journal target damages.
    pub log_places: Vec<Place<What>>,
    /// Where the log's blocks lie, if the filesystem has one that is not empty.
    pub log: Option<LogMap>,
    /// Numbers that mean something here.
    pub telling: Vec<u64>,
}

/// Returns all filesystems.
pub fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let read = |packed: &&'static [u8]| Base::read(unpack(packed)).expect("a base is sound");
        PACKED.iter().map(read).collect()
    })
}

impl Base {
    fn read(bytes: Vec<u8>) -> Result<Self> {
        let disk = MemoryDisk::from(bytes.clone());
        let recovered = recovery(&disk)?;
        let view = recovered.over(&disk);
        let mut findings = Findings::default();
        let metadata = Metadata::read(&view, &mut findings)?;
        assert!(findings.is_sound(), "{:?}", findings.damage());
        let log = LogMap::read(&metadata, &disk);
        let mut places = super_places();
        add_groups(&metadata, &mut places);
        for inode in &metadata.inodes {
            add_inode(&metadata, &view, inode, &mut places)?;
        }
        let blocks = metadata.xattr_blocks.keys();
        places.extend(blocks.map(|&block| whole(&metadata, block, What::Attributes(block))));
        let mut log_places = super_places();
        if let Some(log) = &log {
            let start = log.offset(0);
            places.push(place(start..start + 0x60, What::Log));
            // The log's own header is its most telling part, then what follows it.
            log_places.extend((0..6).map(|_| place(start..start + 0x60, What::Log)));
            log_places.push(place(start..start + 0x100, What::Log));
            log_places.extend(log.used(&disk).map(|range| place(range, What::Log)));
        }
        Ok(Self {
            telling: telling(&metadata),
            fs: metadata.fs,
            bytes,
            places,
            log_places,
            log,
        })
    }
}

fn place(range: Range<u64>, what: What) -> Place<What> {
    Place { range, what }
}

fn whole(metadata: &Metadata, block: BlockNr, what: What) -> Place<What> {
    place(metadata.fs.geometry.bytes(block, 1), what)
}

/// The superblock's fields: most of its bytes are none.
fn super_places() -> Vec<Place<What>> {
    let fields = [0..0x68, 0xCE..0x108, 0x150..0x178, 0x240..0x290];
    fields
        .map(|range| {
            let range = SUPERBLOCK_OFFSET + range.start..SUPERBLOCK_OFFSET + range.end;
            place(range, What::Super)
        })
        .into()
}

fn add_groups(metadata: &Metadata, places: &mut Vec<Place<What>>) {
    let geometry = &metadata.fs.geometry;
    let descriptors = geometry.offset(geometry.super_start(0) + 1);
    for (group, desc) in (0..).zip(&metadata.table.groups) {
        let start = descriptors + u64::from(group) * geometry.desc_size;
        places.push(place(start..start + geometry.desc_size, What::Desc));
        let bits = [
            (
                desc.block_bitmap(),
                geometry.blocks_per_group / geometry.cluster_ratio,
                What::BlockBitmap(group),
            ),
            (
                desc.inode_bitmap(),
                u64::from(geometry.inodes_per_group),
                What::InodeBitmap(group),
            ),
        ];
        for (block, bits, what) in bits {
            let start = geometry.offset(block);
            places.push(place(start..start + bits / 8, what));
        }
        if group > 0 && geometry.has_backup(group) {
            let start = geometry.offset(geometry.group_start(group));
            places.push(place(start..start + 2 * geometry.block_size, What::Plain));
        }
    }
    if let Some(resize) = metadata.resize_inode {
        places.push(whole(metadata, resize.double_indirect, What::Plain));
        let reserved = geometry.super_start(0) + 1 + geometry.desc_blocks;
        places.push(whole(metadata, reserved, What::Plain));
    }
}

fn add_inode(
    metadata: &Metadata,
    view: &dyn ReadAt,
    inode: &InodeRecord,
    places: &mut Vec<Place<What>>,
) -> Result<()> {
    let (number, superblock) = (inode.number, &metadata.fs.superblock);
    let slot = metadata.inode_offset(number);
    let size = metadata.fs.geometry.inode_size;
    places.push(place(slot..slot + size, What::Inode(number)));
    if inode.kind != MapKind::None {
        // Where its blocks are, once more.
        places.push(place(slot + 0x28..slot + 0x64, What::Inode(number)));
    }
    for node in metadata.nodes(inode) {
        let what = match inode.kind {
            MapKind::Extents => What::ExtentNode(number, node.block),
            _ => What::Plain,
        };
        places.push(whole(metadata, node.block, what));
    }
    let extents = metadata.extents(inode);
    if inode.is_dir() {
        let indexed = inode.flags & INDEX_FL != 0;
        for extent in extents {
            for skip in 0..extent.len() {
                let block = extent.start + u64::from(skip);
                let geometry = &metadata.fs.geometry;
                let len = geometry.block_size as usize;
                let bytes = view.read_vec_at(geometry.offset(block), len)?;
                let kind = dir::kind_of(&metadata.fs, indexed, extent.logical + skip, &bytes);
                places.push(whole(metadata, block, What::Directory(number, block, kind)));
            }
        }
    }
    let quota = [
        superblock.s_usr_quota_inum(),
        superblock.s_grp_quota_inum(),
        superblock.s_prj_quota_inum(),
    ];
    let orphans = superblock.s_orphan_file_inum() == number.0;
    if orphans || quota.contains(&number.0) {
        let blocks = extents.iter().flat_map(|e| e.start..e.end()).take(4);
        places.extend(blocks.map(|block| {
            let what = if orphans {
                What::Orphans(number, block)
            } else {
                What::Plain
            };
            whole(metadata, block, what)
        }));
    }
    Ok(())
}

/// Limits, numbers of blocks and of inodes, and their neighbours.
fn telling(metadata: &Metadata) -> Vec<u64> {
    let geometry = &metadata.fs.geometry;
    let inodes = u64::from(geometry.inodes_count());
    let mut telling = vec![
        0,
        1,
        2,
        7,
        8,
        11,
        geometry.blocks_count,
        geometry.blocks_count - 1,
        inodes,
        inodes + 1,
        geometry.block_size,
        geometry.blocks_per_group,
        0x7FFF,
        0x8000,
        0x8001,
        0xFFFF,
        u64::from(u32::MAX),
        u64::MAX,
        1 << 32,
        1 << 44,
    ];
    for desc in &metadata.table.groups {
        telling.extend([desc.block_bitmap(), desc.inode_bitmap(), desc.inode_table()]);
    }
    for inode in metadata.inodes.iter().step_by(5) {
        telling.push(u64::from(inode.number.0));
        telling.extend(metadata.extents(inode).iter().map(|e| e.start).take(1));
        telling.extend(metadata.nodes(inode).iter().map(|n| n.block).take(1));
    }
    telling
}
