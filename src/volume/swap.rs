//! Swap areas.

use crate::error::Result;
use crate::io::ReadAt;
use crate::units::uuid_text;
use crate::volume::signatures::{has, text};

/// A swap area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Swap {
    /// Bytes in a page of the machine that made it: the length of the header.
    pub page: u64,
    pub label: Option<String>,
    pub uuid: String,
}

/// `SWAPSPACE2` ends the first page; version, last page, bad pages, UUID and label stand from 1024.
pub(super) fn swap(device: &dyn ReadAt) -> Result<Option<Swap>> {
    for page in [4096, 8192, 16384, 32768, 65536] {
        if !has(device, page - 10, b"SWAPSPACE2")? {
            continue;
        }
        let header = device.read_vec_at(1024, 44)?;
        let version = &header[..4];
        if version == 1u32.to_le_bytes() || version == 1u32.to_be_bytes() {
            return Ok(Some(Swap {
                page,
                label: text(&header[28..44]),
                uuid: uuid_text(&header[12..28]),
            }));
        }
    }
    Ok(None)
}
