//! Every inode slot in use: fields that contradict each other, sizes, block counts.

use crate::error::Result;
use crate::ext4::check::Check;
use crate::ext4::check::attributes::{Owner, Policy, Summary};
use crate::ext4::format::dir::{InlineDir, inline_data};
use crate::ext4::format::extent::{EXTENT_MAGIC, MapKind, count_clusters};
use crate::ext4::format::inode::{
    BAD_INO, CASEFOLD_FL, ENCRYPT_FL, EXTENTS_FL, HUGE_FILE_FL, I_BLOCK_SIZE, INDEX_FL,
    INLINE_DATA_FL, Inode, JOURNAL_INO, RESIZE_INO, ROOT_INO, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO,
    S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, VERITY_FL,
};
use crate::ext4::format::raw::{le16, le32};
use crate::ext4::format::superblock::{
    COMPAT_DIR_INDEX, COMPAT_HAS_JOURNAL, COMPAT_IMAGIC_INODES, COMPAT_ORPHAN_FILE,
    COMPAT_RESIZE_INODE, INCOMPAT_64BIT, INCOMPAT_CASEFOLD, INCOMPAT_EXTENTS, INCOMPAT_INLINE_DATA,
    INCOMPAT_LARGEDIR, OS_HURD, RO_COMPAT_HUGE_FILE, RO_COMPAT_LARGE_FILE, RO_COMPAT_QUOTA,
    Superblock,
};
use crate::ext4::format::xattr;
use crate::ext4::read::metadata::InodeRecord;
use crate::units::InodeNr;

const IMMUTABLE_FL: u32 = 0x10;
const APPEND_FL: u32 = 0x20;
pub(super) const IMAGIC_FL: u32 = 0x2000;
/// The size from which a file needs `large_file`.
const LARGE_FILE: u64 = 1 << 31;
/// Bytes of inode table read at a time.
const TABLE_CHUNK: u64 = 1 << 20;

/// What an inode's number makes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Root,
    Journal,
    Quota,
    OrphanFile,
    /// Numbers below `s_first_ino` without a use of their own.
    Reserved,
    Ordinary,
}

impl Role {
    fn of(superblock: &Superblock, number: InodeNr) -> Self {
        let is = |field: u32| field == number.0;
        let quota = superblock.has_ro_compat(RO_COMPAT_QUOTA)
            && (is(superblock.s_usr_quota_inum())
                || is(superblock.s_grp_quota_inum())
                || is(superblock.s_prj_quota_inum()));
        let journal = superblock.has_compat(COMPAT_HAS_JOURNAL) && is(superblock.s_journal_inum());
        let orphan_file =
            superblock.has_compat(COMPAT_ORPHAN_FILE) && is(superblock.s_orphan_file_inum());
        match () {
            () if number == ROOT_INO => Role::Root,
            () if journal => Role::Journal,
            () if quota => Role::Quota,
            () if orphan_file => Role::OrphanFile,
            () if number.0 < superblock.first_ino() => Role::Reserved,
            () => Role::Ordinary,
        }
    }

    /// Is it a file that belongs to the filesystem itself?
    fn is_internal(self) -> bool {
        !matches!(self, Role::Root | Role::Ordinary)
    }
}

impl Check<'_> {
    /// Reads all slots that may hold something, and checks them.
    pub(super) fn inodes(&mut self) -> Result<()> {
        let geometry = &self.fs.geometry;
        let size = geometry.inode_size;
        let mut place = 0;
        for group in 0..geometry.groups {
            let slots = u64::from(self.meta.slots_in_use(group));
            let table = geometry.offset(self.meta.table.groups[group as usize].inode_table());
            let per_chunk = TABLE_CHUNK.max(size) / size;
            for index in (0..slots).step_by(per_chunk as usize) {
                let count = per_chunk.min(slots - index);
                let chunk = self
                    .view
                    .read_vec_at(table + index * size, (count * size) as usize)?;
                for (within, slot) in chunk.chunks_exact(size as usize).enumerate() {
                    let number = geometry.inode_at(group, (index + within as u64) as u32);
                    match self.meta.inodes.get(place) {
                        Some(record) if record.number == number => {
                            self.live_inode(place, &Inode(slot))?;
                            place += 1;
                        }
                        _ => self.other_slot(number, &Inode(slot))?,
                    }
                }
            }
        }
        self.findings.leftovers(std::mem::take(&mut self.leftovers));
        Ok(())
    }

    /// Is a deletion time really an inode's number, a link of the list of orphans? Clocks that stood
    /// at 1970 make the same numbers.
    pub(super) fn is_low_dtime(&self, dtime: u32) -> bool {
        let bytes = self.fs.superblock.bytes();
        let count = self.fs.superblock.s_inodes_count();
        // s_mtime, s_wtime, s_mkfs_time
        let clock_was_wrong = [0x2C, 0x30, 0x108]
            .into_iter()
            .any(|at| (1..count).contains(&le32(bytes, at)));
        (1..count).contains(&dtime) && !clock_was_wrong
    }

    /// A slot that holds no inode in use.
    fn other_slot(&mut self, number: InodeNr, inode: &Inode<&[u8]>) -> Result<()> {
        if number == BAD_INO {
            return self.bad_blocks_inode(inode);
        }
        let has_resize_inode = self.fs.superblock.has_compat(COMPAT_RESIZE_INODE);
        if number == RESIZE_INO && has_resize_inode || crate::io::is_zero(inode.bytes()) {
            return Ok(());
        }
        let bad_checksum = !inode.checksum_matches(&self.fs.checksums, number);
        let low_dtime = self.is_low_dtime(inode.i_dtime());
        if number.0 < self.fs.superblock.first_ino() {
            let used_elsewhere = matches!(number, JOURNAL_INO | InodeNr(3 | 4));
            if inode.i_mode() != 0
                || inode.blocks_512(self.fs) != 0
                || inode.file_acl(self.fs) != 0
                || used_elsewhere && le32(inode.i_block(), 0) != 0
                || inode.size() > largest_with_pointers(self.fs.geometry.block_size)
                || inode.has_flag(CASEFOLD_FL | INLINE_DATA_FL | EXTENTS_FL | INDEX_FL)
                || low_dtime
                || bad_checksum
            {
                self.inode_damaged(number, "is reserved but not empty");
            }
            return Ok(());
        }
        let undead = inode.i_mode() != 0 && inode.i_dtime() == 0;
        if undead || low_dtime || bad_checksum {
            self.leftovers.push(number);
        }
        Ok(())
    }

    fn live_inode(&mut self, place: usize, inode: &Inode<&[u8]>) -> Result<()> {
        let record = &self.meta.inodes[place];
        let role = Role::of(&self.fs.superblock, record.number);
        self.fields(record, role, inode);
        if role.is_internal() {
            self.internal_file(record, role);
        }
        let summary = self.slot_attributes(record, inode)?;
        let charge = if role.is_internal() {
            0
        } else {
            summary.charge
        };
        match record.mode & S_IFMT {
            S_IFDIR | S_IFREG => {}
            S_IFLNK => self.symlink(record, inode)?,
            S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => self.special_file(record, inode),
            _ if role == Role::Reserved && record.mode == 0 => {}
            _ => self.inode_damaged(
                record.number,
                format_args!("has an impossible mode {:#o}", record.mode),
            ),
        }
        self.inline(place, inode);
        self.sizes(record);
        self.block_count(record, inode, charge);
        let ea_inodes = summary.ea_inodes + self.shared_charge(record).1;
        self.charge_quota(record, inode, ea_inodes);
        if record.flags & ENCRYPT_FL != 0 {
            self.encryption(place, summary);
        }
        Ok(())
    }

    fn fields(&mut self, record: &InodeRecord, role: Role, inode: &Inode<&[u8]>) {
        let superblock = &self.fs.superblock;
        let has = |flag: u32| record.flags & flag != 0;
        let dir = record.is_dir();
        // Neither the kernel nor e2fsck looks at these fields in the filesystem's own files.
        let ordinary = !role.is_internal();
        let linux = ordinary && superblock.s_creator_os() != OS_HURD;
        let extents_known = superblock.has_incompat(INCOMPAT_EXTENTS);
        let looks_like_extents = !has(EXTENTS_FL)
            && extents_known
            && matches!(record.mode & S_IFMT, S_IFREG | S_IFDIR)
            && is_extent_header(inode.i_block());
        let dtime = inode.i_dtime();
        let problems = [
            (
                dtime != 0 && (!role.is_internal() || self.is_low_dtime(dtime)),
                "is in use but has a time of deletion",
            ),
            (
                has(CASEFOLD_FL) && !(dir && superblock.has_incompat(INCOMPAT_CASEFOLD)),
                "has the case-folding flag, but is no directory or the feature is missing",
            ),
            (
                has(INLINE_DATA_FL) && has(EXTENTS_FL),
                "has both extents and inline data",
            ),
            (
                has(INLINE_DATA_FL) && !superblock.has_incompat(INCOMPAT_INLINE_DATA),
                "has inline data without the feature",
            ),
            (
                has(EXTENTS_FL) && !extents_known,
                "has the extents flag without the feature",
            ),
            (looks_like_extents, "has extents without the flag"),
            (ordinary && le32(inode.bytes(), 0x70) != 0, "has an i_faddr"),
            (
                dir && inode.i_size_high() != 0 && !superblock.has_incompat(INCOMPAT_LARGEDIR),
                "is a directory of more than 4 GiB",
            ),
            (
                linux && !superblock.has_incompat(INCOMPAT_64BIT) && inode.i_file_acl_high() != 0,
                "has a high half of its xattr block's number without 64bit",
            ),
            (
                linux
                    && !superblock.has_ro_compat(RO_COMPAT_HUGE_FILE)
                    && inode.i_blocks_high() != 0,
                "has a high half of its block count without huge_file",
            ),
            (
                ordinary && has(IMAGIC_FL) && !superblock.has_compat(COMPAT_IMAGIC_INODES),
                "has the imagic flag",
            ),
            (
                has(INDEX_FL) && !(dir && superblock.has_compat(COMPAT_DIR_INDEX)),
                "has the index flag, but is no directory or the feature is missing",
            ),
            (
                // A symlink's one block is never written again.
                self.fs.geometry.cluster_ratio > 1
                    && record.mode & S_IFMT != S_IFLNK
                    && record.kind == MapKind::Indirect
                    && !self.meta.extents(record).is_empty(),
                "has pointers to blocks where blocks come in clusters",
            ),
            (
                has(INDEX_FL) && has(INLINE_DATA_FL),
                "has both an index and inline data",
            ),
            (
                role == Role::Root && !dir,
                "is the root directory, but not a directory",
            ),
            (
                record.mode & S_IFMT == S_IFREG
                    && record.size >= LARGE_FILE
                    && !superblock.has_ro_compat(RO_COMPAT_LARGE_FILE),
                "is larger than 2 GiB without large_file",
            ),
        ];
        for (wrong, text) in problems {
            if wrong {
                self.inode_damaged(record.number, text);
            }
        }
    }

    fn internal_file(&mut self, record: &InodeRecord, role: Role) {
        let regular = record.mode & S_IFMT == S_IFREG;
        match role {
            Role::Journal | Role::Quota | Role::OrphanFile if !regular => self.inode_damaged(
                record.number,
                "belongs to the filesystem itself but is no regular file",
            ),
            Role::Reserved => {
                // The boot loader's inode may be a file; the others have to be empty.
                const BOOT_LOADER_INO: InodeNr = InodeNr(5);
                let fits = match record.number {
                    BOOT_LOADER_INO => !record.is_dir(),
                    JOURNAL_INO | InodeNr(3 | 4) => false,
                    _ => record.mode == 0,
                };
                if !fits {
                    self.inode_damaged(record.number, "is reserved but in use");
                }
            }
            _ => {}
        }
    }

    fn slot_attributes(&mut self, record: &InodeRecord, inode: &Inode<&[u8]>) -> Result<Summary> {
        let size = self.fs.geometry.inode_size;
        if size <= 128 {
            return Ok(Summary::default());
        }
        let extra = inode.extra_isize();
        let fits = (4..=size - 128).contains(&u64::from(extra)) && extra.is_multiple_of(4);
        if extra != 0 && !fits {
            self.inode_damaged(
                record.number,
                format_args!("has an i_extra_isize of {extra}"),
            );
            return Ok(Summary::default());
        }
        let owner = Owner::Slot {
            number: record.number,
            generation: record.generation,
            inline: record.flags & INLINE_DATA_FL != 0,
        };
        match xattr::in_slot(inode) {
            Some(area) => self.attributes(owner, inode.bytes(), &area),
            None => Ok(Summary::default()),
        }
    }

    fn special_file(&mut self, record: &InodeRecord, inode: &Inode<&[u8]>) {
        let has = |flags: u32| record.flags & flags != 0;
        let spare = inode.i_block()[16..].iter().any(|&byte| byte != 0);
        let problems = [
            (
                has(INDEX_FL | EXTENTS_FL),
                "is a device, pipe or socket with the flags of a file",
            ),
            (
                has(IMMUTABLE_FL | APPEND_FL) && spare,
                "is a device, pipe or socket with the contents of a file",
            ),
            (record.size != 0, "is a device, pipe or socket with a size"),
        ];
        if let Some((_, text)) = problems.into_iter().find(|problem| problem.0) {
            self.inode_damaged(record.number, text);
        }
    }

    fn symlink(&mut self, record: &InodeRecord, inode: &Inode<&[u8]>) -> Result<()> {
        if record.flags & INLINE_DATA_FL != 0 {
            let inline = inline_data(inode).map(|more| (I_BLOCK_SIZE + more.len()) as u64);
            if inline != Some(record.size) {
                self.inode_damaged(record.number, "is a symlink of a wrong size");
            }
            return Ok(());
        }
        let fast = record.kind == MapKind::None;
        let target = if fast {
            inode.i_block().to_vec()
        } else {
            let extents = self.meta.extents(record);
            let one = matches!(extents, [only] if only.logical == 0 && only.len() == 1);
            if !one || !self.meta.nodes(record).is_empty() {
                self.inode_damaged(record.number, "is a symlink without its one block");
                return Ok(());
            }
            let geometry = &self.fs.geometry;
            let at = geometry.offset(extents[0].start);
            self.view.read_vec_at(at, geometry.block_size as usize)?
        };
        let len = if record.flags & ENCRYPT_FL != 0 {
            usize::from(le16(&target, 0)) + 2
        } else {
            let end = target.iter().position(|&byte| byte == 0);
            end.unwrap_or(target.len())
        };
        let place_fits = fast == (record.size < I_BLOCK_SIZE as u64);
        if record.flags & INDEX_FL != 0
            || len == 0
            || len >= target.len()
            || len as u64 != record.size
            || !place_fits
        {
            self.inode_damaged(record.number, "is a symlink of a wrong size");
        }
        Ok(())
    }

    fn inline(&mut self, place: usize, inode: &Inode<&[u8]>) {
        let record = &self.meta.inodes[place];
        if record.flags & INLINE_DATA_FL == 0 {
            return;
        }
        let Some(more) = inline_data(inode) else {
            self.inode_damaged(
                record.number,
                "has inline data without the attribute for it",
            );
            return;
        };
        let Some(dir) = self.dir_at(place) else {
            return;
        };
        if record.size != (I_BLOCK_SIZE + more.len()) as u64
            || !more.len().is_multiple_of(4)
            || (1..12).contains(&more.len())
        {
            self.inode_damaged(
                record.number,
                format_args!("is a directory of {} bytes within its inode", record.size),
            );
        }
        if let Some(parts) = InlineDir::of(inode) {
            self.inline_directory(dir, &parts, inode.bytes());
        }
    }

    /// `i_size` against the last block; symlinks are judged by their targets.
    fn sizes(&mut self, record: &InodeRecord) {
        let superblock = &self.fs.superblock;
        let block_size = self.fs.geometry.block_size;
        if record.mode & S_IFMT == S_IFLNK {
            return;
        }
        if record.flags & INLINE_DATA_FL != 0 {
            if record.size > largest_with_pointers(block_size) {
                let text = format!("has {} bytes, and all within itself", record.size);
                self.inode_damaged(record.number, text);
            }
            return;
        }
        let extents = self.meta.extents(record);
        let size = record.size;
        let blocks = extents.last().map_or(0, |last| last.logical_end());
        if record.is_dir() {
            let s_prealloc_dir_blocks = u64::from(superblock.bytes()[0xCD]);
            let gap = extents
                .iter()
                .try_fold(0, |at, extent| {
                    (u64::from(extent.logical) == at).then(|| extent.logical_end())
                })
                .is_none();
            let unwritten = extents.iter().any(|extent| extent.is_unwritten());
            let too_big = !superblock.has_incompat(INCOMPAT_LARGEDIR)
                && blocks > (1 << 21) >> superblock.s_log_block_size();
            let wrong_size = !size.is_multiple_of(block_size)
                || size / block_size > blocks
                || blocks - size / block_size > s_prealloc_dir_blocks;
            for (wrong, text) in [
                (blocks == 0, "is a directory without blocks"),
                (gap, "is a directory with a hole"),
                (unwritten, "is a directory with unwritten blocks"),
                (too_big, "is a directory of more than 2 GiB"),
                (wrong_size && blocks > 0, "is a directory of a wrong size"),
            ] {
                if wrong {
                    self.inode_damaged(record.number, text);
                }
            }
            return;
        }
        let written = extents.iter().rev().find(|extent| !extent.is_unwritten());
        let last = written.map_or(0, |extent| extent.logical_end() - 1);
        let limit = match record.kind {
            MapKind::Extents => (block_size << 32) - 1,
            _ => largest_with_pointers(block_size),
        };
        if (size < last * block_size && record.flags & VERITY_FL == 0) || size > limit {
            self.inode_damaged(
                record.number,
                format_args!("has {size} bytes but blocks up to number {last}"),
            );
        }
    }

    fn block_count(&mut self, record: &InodeRecord, inode: &Inode<&[u8]>, charge: u64) {
        if self.fs.superblock.s_creator_os() == OS_HURD {
            return;
        }
        let geometry = &self.fs.geometry;
        let ratio = geometry.cluster_ratio;
        let data = count_clusters(self.meta.extents(record), ratio);
        let nodes = self.meta.nodes(record).len() as u64;
        let xattr = if record.file_acl == 0 {
            0
        } else {
            1 + self.shared_charge(record).0
        };
        let clusters = data + nodes + xattr + charge;
        let expected = clusters * ratio * (geometry.block_size / 512);
        let huge = record.flags & HUGE_FILE_FL != 0
            && self.fs.superblock.has_ro_compat(RO_COMPAT_HUGE_FILE);
        if record.blocks_512 != expected || huge && inode.i_blocks_high() != 0 {
            self.inode_damaged(
                record.number,
                format_args!("counts {} sectors but has {expected}", record.blocks_512),
            );
        }
    }

    /// Returns clusters and inodes that it is charged for the large values of its xattr block.
    fn shared_charge(&self, record: &InodeRecord) -> (u64, u64) {
        self.ea_charges
            .get(&record.file_acl)
            .copied()
            .unwrap_or_default()
    }

    /// The policy itself is opaque, but it has to be there.
    fn encryption(&mut self, place: usize, summary: Summary) {
        let record = &self.meta.inodes[place];
        let in_block = self.block_policies.get(&record.file_acl).copied();
        match summary.policy.or(in_block) {
            // OK: there are fewer inodes than 2^32.
            Some(policy @ (Policy::Known(_) | Policy::Foreign)) => {
                self.encrypted.push((place as u32, policy));
            }
            _ => self.inode_damaged(record.number, "is encrypted but has no valid policy"),
        }
    }
}

/// Returns how many bytes a file with indirect blocks can have.
pub(super) fn largest_with_pointers(block_size: u64) -> u64 {
    let per_node = block_size / 4;
    (12 + per_node + per_node.pow(2) + per_node.pow(3)).saturating_mul(block_size)
}

/// Could `i_block` be the root of an extent tree?
fn is_extent_header(i_block: &[u8]) -> bool {
    let (entries, max) = (le16(i_block, 2), le16(i_block, 4));
    le16(i_block, 0) == EXTENT_MAGIC && entries <= max && (2..=4).contains(&max)
}
