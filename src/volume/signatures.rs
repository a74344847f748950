//! Signatures of what is only ever copied whole.

use crate::error::Result;
use crate::io::ReadAt;
use crate::units::uuid_text;

/// What nothing is known of.
pub(super) const UNKNOWN: &str = "unknown";

/// What is known of something that is copied whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opaque {
    /// As blkid calls it, or a few words.
    pub name: &'static str,
    pub label: Option<String>,
    pub uuid: Option<String>,
}

/// Signatures that count even if an older filesystem's are still to be seen behind them.
pub(super) fn opaque_with_priority(device: &dyn ReadAt) -> Result<Option<Opaque>> {
    if has(device, 0, b"LUKS\xba\xbe")? {
        return Ok(Some(Opaque {
            name: "crypto_LUKS",
            label: None,
            uuid: read(device, 168, 40)?.as_deref().and_then(text),
        }));
    }
    for sector in 0..4 {
        if has(device, sector * 512, b"LABELONE")? && has(device, sector * 512 + 24, b"LVM2 001")? {
            return Ok(Some(named("LVM2_member")));
        }
    }
    if has(device, 3, b"NTFS    ")? {
        return Ok(Some(named("NTFS")));
    }
    if has(device, 4096, &0xa92b_4efc_u32.to_le_bytes())? {
        return Ok(Some(named("linux_raid_member")));
    }
    Ok(None)
}

pub(super) fn opaque(device: &dyn ReadAt) -> Result<Opaque> {
    if has(device, 0x10040, b"_BHRfS_M")? {
        return Ok(Opaque {
            name: "btrfs",
            label: read(device, 0x1012b, 256)?.as_deref().and_then(text),
            uuid: read(device, 0x10020, 16)?.as_deref().map(uuid_text),
        });
    }
    if has(device, 0, b"XFSB")? {
        return Ok(Opaque {
            name: "xfs",
            label: read(device, 108, 12)?.as_deref().and_then(text),
            uuid: read(device, 32, 16)?.as_deref().map(uuid_text),
        });
    }
    if has(device, 1024, &0xf2f5_2010_u32.to_le_bytes())? {
        return Ok(Opaque {
            name: "f2fs",
            label: read(device, 1024 + 124, 1024)?.as_deref().and_then(utf16),
            uuid: read(device, 1024 + 108, 16)?.as_deref().map(uuid_text),
        });
    }
    let rest: [(u64, &[u8], &'static str); 19] = [
        (0, b"hsqs", "squashfs"),
        (1024, b"H+\0\x04", "HFS+"),
        (1024, b"HX\0\x05", "HFS+"),
        (32, b"NXSB", "APFS"),
        (512, b"PM\0\0", "an Apple partition map"),
        (512, b"\x57\x45\x56\x82", "a BSD disklabel"),
        (32769, b"BEA01", "UDF"),
        (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcachefs"),
        (32768, b"JFS1", "jfs"),
        (65588, b"ReIsEr", "reiserfs"),
        (0, b"UBI#", "UBI"),
        (0, b"-rom1fs-", "romfs"),
        (0, b"\x45\x3d\xcd\x28", "cramfs"),
        (0, b"RDSK", "an Amiga partition table"),
        (32769, b"CD001", "iso9660"),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
        (4086, b"S1SUSPEND", "a hibernated system"),
        (4086, b"S2SUSPEND", "a hibernated system"),
        (4086, b"LINHIB0001", "a hibernated system"),
    ];
    for (offset, magic, name) in rest {
        if has(device, offset, magic)? {
            return Ok(named(name));
        }
    }
    Ok(named(UNKNOWN))
}

/// Is the second header of a LUKS2 disk there? It may lie at these places, by the header's length.
pub(super) fn has_luks_backup(device: &dyn ReadAt) -> Result<bool> {
    for shift in 14..=22 {
        if has(device, 1 << shift, b"SKUL\xba\xbe")? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn named(name: &'static str) -> Opaque {
    Opaque {
        name,
        label: None,
        uuid: None,
    }
}

pub(super) fn has(device: &dyn ReadAt, offset: u64, magic: &[u8]) -> Result<bool> {
    Ok(read(device, offset, magic.len())?.is_some_and(|bytes| bytes == magic))
}

/// `None` past the end.
pub(super) fn read(device: &dyn ReadAt, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if offset + len as u64 > device.len() {
        return Ok(None);
    }
    device.read_vec_at(offset, len).map(Some)
}

pub(super) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Text up to its first NUL.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

pub(super) fn utf16(bytes: &[u8]) -> Option<String> {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0);
    some(
        char::decode_utf16(units)
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect(),
    )
}
