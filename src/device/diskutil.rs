//! What macOS tells about disks: the property lists of `diskutil list -plist` and `diskutil info -plist`.
//!
//! ```text
//! list: AllDisksAndPartitions: [ { DeviceIdentifier, Size, MountPoint?, VolumeName?,
//!           Partitions:  [ { DeviceIdentifier, Size, VolumeName?, MountPoint? } ]
//!           APFSVolumes: [ { …, MountedSnapshots?: [ { SnapshotMountPoint } ] } ]
//!           APFSPhysicalStores: [ { DeviceIdentifier } ] } ]      the partitions a container lies on
//! info: DeviceIdentifier, MediaName, BusProtocol, Size, DeviceBlockSize, Internal, RemovableMedia,
//!       WritableMedia, WritableVolume, VirtualOrPhysical, WholeDisk, ParentWholeDisk
//! ```

use std::path::{Path, PathBuf};

use plist::{Dictionary, Value};

use super::{Bus, DeviceInfo, Volume};
use crate::error::{Error, ErrorKind, Result};

/// Mounting one of these, or a folder so many levels below one, makes a disk part of the running system.
const SYSTEM_PLACES: [(&str, usize); 7] = [
    ("/", 0),
    ("/System", usize::MAX),
    ("/private/var/vm", 0),
    ("/Users", 1),
    ("/usr", usize::MAX),
    ("/opt", 0),
    ("/nix", usize::MAX),
];

/// All disks with their parts, from `diskutil list -plist`.
#[derive(Debug)]
pub(super) struct Layout {
    disks: Vec<Disk>,
}

#[derive(Debug)]
struct Disk {
    /// `disk4`
    name: String,
    whole: Part,
    parts: Vec<Part>,
    /// For an APFS container: the partitions it lies on.
    stores: Vec<String>,
}

#[derive(Debug)]
struct Part {
    /// `disk4s1`
    name: String,
    size: u64,
    label: Option<String>,
    mount_points: Vec<PathBuf>,
}

/// Returns what diskutil says of its failure: with `-plist`, as a list that has an `ErrorMessage`.
pub(super) fn error_message(stdout: &[u8], stderr: &[u8]) -> String {
    let message = parse_dict(stdout).ok().and_then(|dict| {
        let message = dict.get("ErrorMessage")?.as_string()?;
        Some(message.trim().to_owned())
    });
    message.unwrap_or_else(|| {
        let text = [stderr, stdout].concat();
        String::from_utf8_lossy(&text).trim().to_owned()
    })
}

/// One device, from `diskutil info -plist`.
#[derive(Debug)]
pub(super) struct Info {
    dict: Dictionary,
}

impl Layout {
    pub(super) fn parse(plist: &[u8]) -> Result<Self> {
        let dict = parse_dict(plist)?;
        let disks = dictionaries(&dict, "AllDisksAndPartitions").filter_map(|disk| {
            let whole = parse_part(disk)?;
            Some(Disk {
                name: whole.name.clone(),
                whole,
                parts: dictionaries(disk, "Partitions")
                    .chain(dictionaries(disk, "APFSVolumes"))
                    .filter_map(parse_part)
                    .collect(),
                stores: dictionaries(disk, "APFSPhysicalStores")
                    .filter_map(name_of)
                    .collect(),
            })
        });
        Ok(Self {
            disks: disks.collect(),
        })
    }

    /// Returns the names of all whole disks, APFS containers too.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().map(|disk| disk.name.as_str())
    }

    /// Returns the names of the containers that lie on the disk `name`.
    pub(super) fn containers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.disks
            .iter()
            .filter(move |disk| {
                disk.stores
                    .iter()
                    .any(|store| whole_name(store) == Some(name))
            })
            .map(|disk| disk.name.as_str())
    }

    /// Does the device `name` (a disk, partition, volume or snapshot) lie on the disk `disk`?
    pub(super) fn lies_on(&self, name: &str, disk: &str) -> bool {
        let Some(whole) = whole_name(name) else {
            return false;
        };
        whole == disk || self.containers(disk).any(|container| container == whole)
    }

    /// Returns the names of the mounted parts of the device `name`, whose info tells if they are writable.
    pub(super) fn mounted(&self, name: &str) -> Vec<&str> {
        self.parts(name)
            .into_iter()
            .flat_map(|part| self.with_container(part))
            .filter(|part| !part.mount_points.is_empty())
            .map(|part| part.name.as_str())
            .collect()
    }

    /// Describes the disk or partition that `info` tells about. `writable` tells whether a mounted part's
    /// file system can be written.
    pub(super) fn device(
        &self,
        info: &Info,
        writable: &dyn Fn(&str) -> bool,
    ) -> Option<DeviceInfo> {
        let name = name_of(&info.dict)?;
        let parent = whole_name(&name)?.to_owned();
        let is_partition = name != parent;
        let disk = self.disks.iter().find(|disk| disk.name == parent);
        let bus = if disk.is_some_and(|disk| !disk.stores.is_empty()) {
            Bus::Mapped
        } else {
            info.bus()
        };
        let block = info
            .number("DeviceBlockSize")
            .and_then(|size| u32::try_from(size).ok())
            .filter(|size| size.is_power_of_two())
            .unwrap_or(512);
        let removable = match bus {
            Bus::Loop | Bus::Mapped => false,
            Bus::Mmc => true,
            Bus::Usb => !info.is("Internal") || info.is("RemovableMedia"),
            _ => info.is("RemovableMedia"),
        };
        let parts = self.parts(&name).into_iter();
        Some(DeviceInfo {
            path: Path::new("/dev").join(&name),
            // The raw device: the other one goes through a cache in small pieces.
            io_path: Path::new("/dev").join(format!("r{name}")),
            vendor: None,
            model: info.text("MediaName"),
            serial: None,
            size: info
                .number("Size")
                .or(info.number("TotalSize"))
                .unwrap_or(0),
            logical_block: block,
            physical_block: block,
            bus,
            removable,
            read_only: info.dict.contains_key("WritableMedia") && !info.is("WritableMedia"),
            is_partition,
            system: self.is_system(&parent),
            volumes: parts.map(|part| self.volume(part, writable)).collect(),
            backing_file: None,
            generation: None,
            parent: is_partition.then(|| Path::new("/dev").join(parent)),
            name,
        })
    }

    /// Returns the parts of a disk, and the disk itself if it is mounted whole; or the one part.
    fn parts(&self, name: &str) -> Vec<&Part> {
        let Some(disk) = self
            .disks
            .iter()
            .find(|disk| Some(disk.name.as_str()) == whole_name(name))
        else {
            return vec![];
        };
        let whole = (!disk.whole.mount_points.is_empty()).then_some(&disk.whole);
        whole
            .into_iter()
            .chain(&disk.parts)
            .filter(|part| name == disk.name || name == part.name)
            .collect()
    }

    fn volume(&self, part: &Part, writable: &dyn Fn(&str) -> bool) -> Volume {
        let all = self.with_container(part);
        Volume {
            path: Path::new("/dev").join(&part.name),
            label: part.label.clone(),
            fs_type: None,
            size: part.size,
            mount_points: all
                .iter()
                .flat_map(|part| part.mount_points.clone())
                .collect(),
            mounted_read_write: all
                .iter()
                .any(|part| !part.mount_points.is_empty() && writable(&part.name)),
            in_use_by: None,
        }
    }

    /// Returns the part and, if it carries an APFS container, that one's volumes.
    fn with_container<'a>(&'a self, part: &'a Part) -> Vec<&'a Part> {
        let within = self
            .disks
            .iter()
            .filter(|disk| disk.stores.contains(&part.name));
        std::iter::once(part)
            .chain(within.flat_map(|disk| &disk.parts))
            .collect()
    }

    fn is_system(&self, name: &str) -> bool {
        let on_it = |disk: &&Disk| {
            disk.name == name || self.containers(name).any(|other| other == disk.name)
        };
        self.disks
            .iter()
            .filter(on_it)
            .flat_map(|disk| disk.parts.iter().chain([&disk.whole]))
            .flat_map(|part| &part.mount_points)
            .any(|place| {
                SYSTEM_PLACES.iter().any(|(system, levels)| {
                    place
                        .strip_prefix(system)
                        .is_ok_and(|below| below.components().count() <= *levels)
                })
            })
    }
}

impl Info {
    pub(super) fn parse(plist: &[u8]) -> Result<Self> {
        let dict = parse_dict(plist)?;
        Ok(Self { dict })
    }

    /// Can the mounted volume be written? Unknown means yes.
    pub(super) fn is_writable_volume(&self) -> bool {
        !self.dict.contains_key("WritableVolume") || self.is("WritableVolume")
    }

    fn bus(&self) -> Bus {
        match self.text("BusProtocol").unwrap_or_default().as_str() {
            "USB" => Bus::Usb,
            "Secure Digital" => Bus::Mmc,
            "SATA" | "ATA" | "ATAPI" => Bus::Sata,
            "PCI-Express" | "PCI" | "Apple Fabric" | "NVMe" => Bus::Nvme,
            "Thunderbolt" => Bus::Thunderbolt,
            "SCSI"
            | "SCSI Parallel Interface"
            | "SAS"
            | "Serial Attached SCSI"
            | "FireWire"
            | "Fibre Channel Interface" => Bus::Scsi,
            "Disk Image" | "Virtual Interface" => Bus::Loop,
            _ if self.text("VirtualOrPhysical").as_deref() == Some("Virtual") => Bus::Mapped,
            _ => Bus::Other,
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        text(&self.dict, key)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.dict.get(key)?.as_unsigned_integer()
    }

    fn is(&self, key: &str) -> bool {
        self.dict.get(key).and_then(Value::as_boolean) == Some(true)
    }
}

/// Returns the disk's name within a device's: `disk3` of `disk3s1s1`; `None` for anything else.
pub(super) fn whole_name(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("disk")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let slices = &rest[digits..];
    let valid = digits > 0
        && slices
            .split('s')
            .skip(1)
            .all(|slice| !slice.is_empty() && slice.bytes().all(|byte| byte.is_ascii_digit()))
        && (slices.is_empty() || slices.starts_with('s'));
    valid.then(|| &name[.."disk".len() + digits])
}

fn parse_dict(plist: &[u8]) -> Result<Dictionary> {
    let value = Value::from_reader_xml(plist).map_err(|error| {
        Error::new(ErrorKind::Io, "diskutil's answer is no property list").with_source(error)
    })?;
    value
        .into_dictionary()
        .ok_or_else(|| Error::new(ErrorKind::Io, "diskutil's answer is no dictionary"))
}

fn parse_part(dict: &Dictionary) -> Option<Part> {
    let snapshots = dictionaries(dict, "MountedSnapshots")
        .filter_map(|snapshot| text(snapshot, "SnapshotMountPoint"));
    Some(Part {
        name: name_of(dict)?,
        size: dict
            .get("Size")
            .and_then(Value::as_unsigned_integer)
            .unwrap_or(0),
        label: text(dict, "VolumeName"),
        mount_points: text(dict, "MountPoint")
            .into_iter()
            .chain(snapshots)
            .map(PathBuf::from)
            .collect(),
    })
}

/// Returns the device's name if it is one: it becomes part of paths and arguments.
fn name_of(dict: &Dictionary) -> Option<String> {
    text(dict, "DeviceIdentifier").filter(|name| whole_name(name).is_some())
}

fn dictionaries<'a>(
    dict: &'a Dictionary,
    key: &str,
) -> impl Iterator<Item = &'a Dictionary> + use<'a> {
    dict.get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_dictionary)
}

fn text(dict: &Dictionary, key: &str) -> Option<String> {
    let text = dict.get(key)?.as_string()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const LIST: &[u8] = include_bytes!("../../testdata/diskutil/list.plist");

    /// The disks of a laptop: its own, a USB card reader's, a locked card in its slot.
    pub(crate) fn laptop() -> Vec<DeviceInfo> {
        [
            &include_bytes!("../../testdata/diskutil/info-internal.plist")[..],
            include_bytes!("../../testdata/diskutil/info-usb-reader.plist"),
            include_bytes!("../../testdata/diskutil/info-sd-slot.plist"),
        ]
        .map(device)
        .into()
    }

    fn device(info: &[u8]) -> DeviceInfo {
        let layout = Layout::parse(LIST).unwrap();
        let writable = |name: &str| name != "disk5s2";
        layout
            .device(&Info::parse(info).unwrap(), &writable)
            .unwrap()
    }

    #[test]
    fn names_are_taken_apart() {
        for (name, whole) in [
            ("disk0", Some("disk0")),
            ("disk12s3", Some("disk12")),
            ("disk3s1s1", Some("disk3")),
            ("disk", None),
            ("disks1", None),
            ("disk1s", None),
            ("disk1x", None),
            ("disk1s2x", None),
            ("rdisk1", None),
            ("disk1/../../x", None),
            ("", None),
        ] {
            assert_eq!(whole_name(name), whole, "{name}");
        }
    }

    #[test]
    fn a_card_in_a_usb_reader() {
        let card = device(include_bytes!(
            "../../testdata/diskutil/info-usb-reader.plist"
        ));
        assert_eq!(card.path, Path::new("/dev/disk4"));
        assert_eq!(card.io_path, Path::new("/dev/rdisk4"));
        assert_eq!(card.model.as_deref(), Some("STORAGE DEVICE"));
        assert_eq!((card.size, card.logical_block), (31_914_983_424, 512));
        assert_eq!(
            (card.bus, card.removable, card.system),
            (Bus::Usb, true, false)
        );
        assert_eq!((card.read_only, card.is_partition), (false, false));
        assert_eq!(card.volumes.len(), 2);
        assert_eq!(card.volumes[0].label.as_deref(), Some("bootfs"));
        assert_eq!(card.volumes[0].mount_points, [Path::new("/Volumes/bootfs")]);
        assert!(card.volumes[0].mounted_read_write);
        assert_eq!(card.volumes[1].path, Path::new("/dev/disk4s2"));
        assert!(card.volumes[1].mount_points.is_empty());
    }

    #[test]
    fn a_card_in_the_slot_of_a_laptop() {
        let card = device(include_bytes!("../../testdata/diskutil/info-sd-slot.plist"));
        assert_eq!(
            (card.bus, card.removable, card.system),
            (Bus::Mmc, true, false)
        );
        // The switch on its side is locked.
        assert!(card.read_only);
        assert!(!card.volumes[1].mounted_read_write);
    }

    #[test]
    fn the_system_disk_is_found_through_its_container() {
        let internal = device(include_bytes!(
            "../../testdata/diskutil/info-internal.plist"
        ));
        assert_eq!(
            (internal.bus, internal.removable, internal.system),
            (Bus::Nvme, false, true)
        );
        let places: Vec<_> = internal
            .volumes
            .iter()
            .flat_map(|v| &v.mount_points)
            .collect();
        assert!(places.contains(&&PathBuf::from("/")), "{places:?}");
        let container = device(include_bytes!(
            "../../testdata/diskutil/info-container.plist"
        ));
        assert_eq!(
            (container.bus, container.removable, container.system),
            (Bus::Mapped, false, true)
        );

        let layout = Layout::parse(LIST).unwrap();
        for (name, disk, lies) in [
            ("disk3s1s1", "disk0", true),
            ("disk3s5", "disk0", true),
            ("disk3s5", "disk3", true),
            ("disk4s1", "disk4", true),
            ("disk4s1", "disk0", false),
            ("disk40", "disk4", false),
            ("nonsense", "disk4", false),
        ] {
            assert_eq!(layout.lies_on(name, disk), lies, "{name} {disk}");
        }
        assert_eq!(
            layout.names().collect::<Vec<_>>(),
            ["disk0", "disk3", "disk4", "disk5", "disk6"]
        );
    }

    #[test]
    fn partitions_and_images() {
        let layout = Layout::parse(LIST).unwrap();
        assert_eq!(layout.mounted("disk4"), ["disk4s1"]);
        assert_eq!(layout.mounted("disk4s2"), [""; 0]);
        assert_eq!(layout.mounted("disk0"), ["disk3s1", "disk3s2", "disk3s5"]);
        let info = Info::parse(include_bytes!(
            "../../testdata/diskutil/info-partition.plist"
        ));
        assert!(info.unwrap().is_writable_volume());
        let info = Info::parse(include_bytes!("../../testdata/diskutil/info-image.plist"));
        assert!(!info.unwrap().is_writable_volume());
        let part = device(include_bytes!(
            "../../testdata/diskutil/info-partition.plist"
        ));
        assert!(part.is_partition);
        assert_eq!(part.parent.as_deref(), Some(Path::new("/dev/disk4")));
        assert_eq!(part.volumes.len(), 1);
        let image = device(include_bytes!("../../testdata/diskutil/info-image.plist"));
        assert_eq!((image.bus, image.removable), (Bus::Loop, false));
    }

    /// The layout of disks that are given as name, and what comes after it in `diskutil list`.
    fn layout(disks: &[(&str, &str)]) -> Layout {
        let disks: String = disks
            .iter()
            .map(|(name, more)| {
                format!(
                    "<dict><key>DeviceIdentifier</key><string>{name}</string>\
                     <key>Size</key><integer>500107862016</integer>{more}</dict>"
                )
            })
            .collect();
        let plist = format!(
            "<plist version=\"1.0\"><dict><key>AllDisksAndPartitions</key>\
             <array>{disks}</array></dict></plist>"
        );
        Layout::parse(plist.as_bytes()).unwrap()
    }

    /// A disk of 500 GB with these keys in `diskutil info`; `!` in front of one says false.
    fn info(name: &str, bus: &str, flags: &[&str]) -> Info {
        let flags: String = flags
            .iter()
            .map(|flag| match flag.strip_prefix('!') {
                Some(flag) => format!("<key>{flag}</key><false/>"),
                None => format!("<key>{flag}</key><true/>"),
            })
            .collect();
        let plist = format!(
            "<plist version=\"1.0\"><dict><key>DeviceIdentifier</key><string>{name}</string>\
             <key>BusProtocol</key><string>{bus}</string><key>DeviceBlockSize</key>\
             <integer>512</integer><key>TotalSize</key><integer>500107862016</integer>\
             {flags}</dict></plist>"
        );
        Info::parse(plist.as_bytes()).unwrap()
    }

    #[test]
    fn what_can_be_taken_out() {
        let disks = layout(&[("disk2", "")]);
        for (bus, flags, expected) in [
            (
                "USB",
                &["!Internal", "!RemovableMedia"][..],
                (Bus::Usb, true),
            ),
            ("USB", &["Internal", "RemovableMedia"], (Bus::Usb, true)),
            // Some Macs hang their own keyboard's or camera's storage on USB.
            ("USB", &["Internal", "!RemovableMedia"], (Bus::Usb, false)),
            (
                "Secure Digital",
                &["Internal", "RemovableMedia"],
                (Bus::Mmc, true),
            ),
            (
                "PCI-Express",
                &["Internal", "!RemovableMedia"],
                (Bus::Nvme, false),
            ),
            ("Thunderbolt", &["!Internal"], (Bus::Thunderbolt, false)),
            ("SATA", &["Internal", "!RemovableMedia"], (Bus::Sata, false)),
            ("SCSI Parallel Interface", &[], (Bus::Scsi, false)),
            ("Disk Image", &["RemovableMedia"], (Bus::Loop, false)),
            ("Something New", &["Internal"], (Bus::Other, false)),
        ] {
            let device = disks.device(&info("disk2", bus, flags), &|_| true).unwrap();
            assert_eq!((device.bus, device.removable), expected, "{bus} {flags:?}");
            assert_eq!(device.size, 500_107_862_016);
        }
    }

    #[test]
    fn disks_without_a_table_and_disks_with_containers() {
        let mount = |place: &str| format!("<key>MountPoint</key><string>{place}</string>");
        let store = |name: &str| {
            format!(
                "<key>APFSPhysicalStores</key><array><dict><key>DeviceIdentifier</key>\
                 <string>{name}</string></dict></array>"
            )
        };
        let volume = |name: &str, place: &str| {
            format!(
                "<key>APFSVolumes</key><array><dict><key>DeviceIdentifier</key>\
                 <string>{name}</string>{}</dict></array>",
                mount(place)
            )
        };
        let part = |name: &str| {
            format!(
                "<key>Partitions</key><array><dict><key>DeviceIdentifier</key>\
                 <string>{name}</string></dict></array>"
            )
        };
        let disks = layout(&[
            ("disk2", &mount("/Volumes/NO NAME")),
            ("disk3", &part("disk3s2")),
            (
                "disk4",
                &(store("disk3s2") + &volume("disk4s1", "/Volumes/Backup")),
            ),
            ("disk5", &part("disk5s1")),
            (
                "disk6",
                &(store("disk5s1") + &volume("disk6s1", "/System/Volumes/Data")),
            ),
            // A name that would lead elsewhere is none.
            ("disk7/../x", &mount("/Volumes/X")),
        ]);
        let usb = |name: &str| {
            let info = info(name, "USB", &["!Internal"]);
            disks.device(&info, &|_| true).unwrap()
        };
        let whole = usb("disk2");
        assert_eq!(whole.volumes.len(), 1);
        assert_eq!(whole.volumes[0].path, Path::new("/dev/disk2"));
        assert_eq!(
            whole.volumes[0].mount_points,
            [Path::new("/Volumes/NO NAME")]
        );
        // What is mounted of the container keeps the disk below it busy.
        let backup = usb("disk3");
        assert_eq!(
            backup.volumes[0].mount_points,
            [Path::new("/Volumes/Backup")]
        );
        assert!(!backup.system);
        assert_eq!(disks.containers("disk3").collect::<Vec<_>>(), ["disk4"]);
        assert!(disks.lies_on("disk4s1", "disk3"));
        assert_eq!(usb("disk4").bus, Bus::Mapped);
        // A Mac that started from an external disk.
        assert!(usb("disk5").system && usb("disk6").system);
        assert!(disks.names().all(|name| !name.contains('/')));
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in [
            "",
            "<plist>",
            "<plist><array/></plist>",
            "Could not find disk: disk9",
        ] {
            assert!(Layout::parse(text.as_bytes()).is_err(), "{text}");
            assert!(Info::parse(text.as_bytes()).is_err(), "{text}");
        }
        let empty = b"<plist version=\"1.0\"><dict/></plist>";
        let layout = Layout::parse(empty).unwrap();
        assert!(
            layout
                .device(&Info::parse(empty).unwrap(), &|_| true)
                .is_none()
        );
    }

    #[test]
    fn failures_are_understood_as_text_and_as_a_list() {
        let list = br#"<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict><key>Error</key><true/>
<key>ErrorMessage</key><string>Could not find disk: disk9</string></dict></plist>"#;
        assert_eq!(error_message(list, b""), "Could not find disk: disk9");
        let text = error_message(b"Unmount failed\n", b"dissented by PID 7\n");
        assert_eq!(text, "dissented by PID 7\nUnmount failed");
    }
}
