//! The orphan file: blocks of inode numbers, 0 for a free slot, each with a tail.
//!
//! ```text
//! entries: 4 bytes each, up to the last 8 bytes of the block, which are ob_magic, ob_checksum
//! ```

use crate::error::{Error, Result};
use crate::ext4::edit::delete::{MAX_BYTES, MAX_ORPHANS, too_many};
use crate::ext4::format::crc::crc32c;
use crate::ext4::format::fs::Super;
use crate::ext4::format::inode::S_IFREG;
use crate::ext4::format::raw::{le32, put32};
use crate::ext4::format::superblock::{COMPAT_ORPHAN_FILE, RO_COMPAT_ORPHAN_PRESENT};
use crate::ext4::read::inode_table::read_inode;
use crate::ext4::read::map::read_map_alone;
use crate::io::ReadAt;
use crate::units::InodeNr;

const OB_MAGIC: u32 = 0x0B10_CA04;
const TAIL: usize = 8;

/// What the orphan file holds.
#[derive(Debug, Default)]
pub struct OrphanFile {
    pub entries: Vec<u32>,
    /// The blocks that hold entries, as they look without: byte offset and content.
    pub cleared: Vec<(u64, Vec<u8>)>,
}

/// Reads the orphan file, if the filesystem has one.
///
/// # Errors
/// `Unsound` for a damaged file; what the device fails with.
pub fn orphan_file(fs: &Super, device: &dyn ReadAt) -> Result<OrphanFile> {
    let mut file = OrphanFile::default();
    if !fs.superblock.has_compat(COMPAT_ORPHAN_FILE) {
        if fs.superblock.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT) {
            return Err(Error::unsound(
                "ext4 superblock: orphan_present without orphan_file",
            ));
        }
        return Ok(file);
    }
    let number = InodeNr(fs.superblock.s_orphan_file_inum());
    let broken = |text: String| Error::unsound(format!("ext4: orphan file: {text}"));
    let inode = read_inode(fs, device, number)?.inode;
    if inode.format() != S_IFREG || inode.i_links_count() == 0 || !inode.has_block_map(fs) {
        return Err(broken(format!("inode {number} is none")));
    }
    let map =
        read_map_alone(fs, device, number, &inode).map_err(|error| error.of("orphan file"))?;
    let geometry = &fs.geometry;
    let seed = fs.checksums.inode_seed(number, inode.i_generation());
    let entries_end = geometry.block_size as usize - TAIL;
    for block in map.extents.iter().flat_map(|e| e.start..e.end()) {
        let offset = geometry.offset(block);
        let mut bytes = device.read_vec_at(offset, geometry.block_size as usize)?;
        if le32(&bytes, entries_end) != OB_MAGIC {
            return Err(broken(format!("block {block} has no magic number")));
        }
        let checksum = |bytes: &[u8]| {
            let crc = crc32c(seed, &block.to_le_bytes());
            crc32c(crc, &bytes[..entries_end])
        };
        if fs.checksums.enabled() && le32(&bytes, entries_end + 4) != checksum(&bytes) {
            return Err(broken(format!(
                "the checksum of block {block} does not match"
            )));
        }
        let entries = bytes[..entries_end].chunks_exact(4).map(|e| le32(e, 0));
        let before = file.entries.len();
        file.entries.extend(entries.filter(|&entry| entry != 0));
        if file.entries.len() > before {
            bytes[..entries_end].fill(0);
            if fs.checksums.enabled() {
                let checksum = checksum(&bytes);
                put32(&mut bytes, entries_end + 4, checksum);
            }
            file.cleared.push((offset, bytes));
            let held = file.cleared.len() as u64 * geometry.block_size;
            if held > MAX_BYTES || file.entries.len() > MAX_ORPHANS {
                return Err(too_many());
            }
        }
    }
    Ok(file)
}
