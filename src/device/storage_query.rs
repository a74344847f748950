//! What Windows tells about disks, in bytes as `DeviceIoControl` returns them (winioctl.h, ntddstor.h).
//! All numbers are little-endian.
//!
//! ```text
//! STORAGE_DEVICE_DESCRIPTOR            DISK_GEOMETRY_EX            VOLUME_DISK_EXTENTS
//!  10 RemovableMedia      u8            20 BytesPerSector u32       0 NumberOfDiskExtents u32
//!  12 VendorIdOffset      u32           24 DiskSize       u64       8 then per extent, 24 bytes:
//!  16 ProductIdOffset     u32          STORAGE_ACCESS_ALIGNMENT       0 DiskNumber     u32
//!  24 SerialNumberOffset  u32           16 BytesPerLogicalSector      8 StartingOffset u64
//!  28 BusType             u32           20 BytesPerPhysicalSector    16 ExtentLength   u64
//! ```

use super::Bus;

/// From `IOCTL_STORAGE_QUERY_PROPERTY` with `StorageDeviceProperty`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Descriptor {
    pub(super) vendor: Option<String>,
    pub(super) product: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) bus: Bus,
    pub(super) removable: bool,
}

/// A piece of a disk that belongs to a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) disk: u32,
    /// In bytes.
    pub(super) len: u64,
}

impl Descriptor {
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = |at| text_at(bytes, u32_at(bytes, at)?);
        let removable_media = *bytes.get(10)? != 0;
        let bus = bus_of(u32_at(bytes, 28)?);
        Some(Self {
            vendor: text(12),
            product: text(16),
            serial: text(24),
            bus,
            removable: match bus {
                Bus::Usb => true,
                Bus::Loop | Bus::Mapped => false,
                // Soldered eMMC sits on the bus of cards, but says that it stays.
                _ => removable_media,
            },
        })
    }
}

/// Returns bytes per sector and size in bytes, from `IOCTL_DISK_GET_DRIVE_GEOMETRY_EX`.
pub(super) fn geometry(bytes: &[u8]) -> Option<(u32, u64)> {
    let sector = u32_at(bytes, 20).filter(|size| size.is_power_of_two())?;
    Some((sector, u64_at(bytes, 24)?))
}

/// Returns bytes per physical sector, from `StorageAccessAlignmentProperty`.
pub(super) fn physical_sector(bytes: &[u8]) -> Option<u32> {
    u32_at(bytes, 20).filter(|size| size.is_power_of_two())
}

/// Decodes `IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS`, as many as the bytes hold.
pub(super) fn extents(bytes: &[u8]) -> Vec<Extent> {
    let count = u32_at(bytes, 0).unwrap_or(0) as usize;
    let body = bytes.get(8..).unwrap_or_default();
    body.chunks_exact(24)
        .take(count)
        .filter_map(|extent| {
            Some(Extent {
                disk: u32_at(extent, 0)?,
                len: u64_at(extent, 16)?,
            })
        })
        .collect()
}

/// Returns N for `\\.\PhysicalDriveN` (or `\\?\…`), in any case.
pub(super) fn drive_number(path: &str) -> Option<u32> {
    let name = path.strip_prefix(r"\\.\").or(path.strip_prefix(r"\\?\"))?;
    let prefix = name.get(.."PhysicalDrive".len())?;
    let digits = &name[prefix.len()..];
    let valid = prefix.eq_ignore_ascii_case("PhysicalDrive")
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().ok())?
}

/// Returns `C:\…` for `\\?\C:\…`, and anything else as it is.
pub(super) fn without_prefix(path: &str) -> &str {
    match path.strip_prefix(r"\\?\") {
        Some(rest) if rest.as_bytes().get(1) == Some(&b':') => rest,
        _ => path,
    }
}

/// STORAGE_BUS_TYPE
fn bus_of(number: u32) -> Bus {
    match number {
        1 | 2 | 4 | 5 | 6 | 9 | 10 => Bus::Scsi,
        3 | 11 => Bus::Sata,
        7 => Bus::Usb,
        12 | 13 => Bus::Mmc,
        14 | 15 => Bus::Loop,
        8 | 16 => Bus::Mapped,
        17 => Bus::Nvme,
        _ => Bus::Other,
    }
}

/// Reads the text at `offset`, where 0 means none.
fn text_at(bytes: &[u8], offset: u32) -> Option<String> {
    let text = bytes.get(offset as usize..).filter(|_| offset != 0)?;
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..)?.get(..4)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..)?.get(..8)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(bus: u32, removable: u8) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes[10] = removable;
        bytes[28..32].copy_from_slice(&bus.to_le_bytes());
        for (at, text) in [
            (12, "Generic \0"),
            (16, "STORAGE DEVICE  \0"),
            (24, "000000000819\0"),
        ] {
            let offset = bytes.len() as u32;
            bytes[at..at + 4].copy_from_slice(&offset.to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn decodes_devices() {
        for (bus, removable_media, expected, removable) in [
            (7, 1, Bus::Usb, true),
            (7, 0, Bus::Usb, true),
            (12, 1, Bus::Mmc, true),
            (12, 0, Bus::Mmc, false),
            (17, 0, Bus::Nvme, false),
            (11, 0, Bus::Sata, false),
            (15, 1, Bus::Loop, false),
            (16, 0, Bus::Mapped, false),
            (18, 0, Bus::Other, false),
            (u32::MAX, 0, Bus::Other, false),
        ] {
            let decoded = Descriptor::from_bytes(&descriptor(bus, removable_media)).unwrap();
            assert_eq!(
                (decoded.bus, decoded.removable),
                (expected, removable),
                "{bus}"
            );
            assert_eq!(decoded.vendor.as_deref(), Some("Generic"));
            assert_eq!(decoded.product.as_deref(), Some("STORAGE DEVICE"));
            assert_eq!(decoded.serial.as_deref(), Some("000000000819"));
        }
    }

    #[test]
    fn short_and_wild_answers_are_none() {
        let whole = descriptor(7, 1);
        for len in 0..32 {
            assert_eq!(Descriptor::from_bytes(&whole[..len]), None);
        }
        let mut wild = whole;
        wild[12..16].fill(0xff);
        wild[16..20].fill(0);
        let decoded = Descriptor::from_bytes(&wild).unwrap();
        assert_eq!((decoded.vendor, decoded.product), (None, None));
        assert_eq!(geometry(&[0; 32]), None);
        assert_eq!(geometry(&[0; 8]), None);
        assert_eq!(physical_sector(&[0; 3]), None);
    }

    #[test]
    fn decodes_extents_and_sizes() {
        let mut bytes = vec![0; 8 + 48];
        bytes[0] = 2;
        bytes[8] = 3;
        bytes[24..32].copy_from_slice(&1000_u64.to_le_bytes());
        bytes[32] = 5;
        bytes[48..56].copy_from_slice(&7_u64.to_le_bytes());
        let expected = [Extent { disk: 3, len: 1000 }, Extent { disk: 5, len: 7 }];
        assert_eq!(extents(&bytes), expected);
        bytes[..4].fill(0xff);
        assert_eq!(extents(&bytes), expected);
        assert_eq!(extents(&bytes[..40]), expected[..1]);
        assert_eq!(extents(&[]), []);

        let mut bytes = vec![0; 32];
        bytes[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&31_914_983_424_u64.to_le_bytes());
        assert_eq!(geometry(&bytes), Some((4096, 31_914_983_424)));
        assert_eq!(physical_sector(&bytes), Some(4096));
    }

    #[test]
    fn paths_as_people_write_them() {
        for (path, plain) in [
            (r"\\?\C:\", r"C:\"),
            (r"\\?\d:\mount\point\", r"d:\mount\point\"),
            (r"C:\", r"C:\"),
            (r"\\?\UNC\server\share\", r"\\?\UNC\server\share\"),
            (
                r"\\?\Volume{b75e2c83-0000-0000-0000-602f00000000}\",
                r"\\?\Volume{b75e2c83-0000-0000-0000-602f00000000}\",
            ),
            (r"\\?\", r"\\?\"),
            (r"\\?\ü:", r"\\?\ü:"),
        ] {
            assert_eq!(without_prefix(path), plain);
        }
    }

    #[test]
    fn drive_names() {
        for (path, number) in [
            (r"\\.\PhysicalDrive2", Some(2)),
            (r"\\?\physicaldrive31", Some(31)),
            (r"\\.\PhysicalDrive", None),
            (r"\\.\PhysicalDrive2x", None),
            (r"\\.\PhysicalDrive99999999999", None),
            (r"\\.\C:", None),
            ("PhysicalDrive1", None),
            ("ü", None),
            (r"\\.\PhysicalDrivü1", None),
        ] {
            assert_eq!(drive_number(path), number, "{path}");
        }
    }
}
