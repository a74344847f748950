//! One block device: its folder in sysfs, and what the files there say of it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Number;
use crate::device::Bus;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Its folder in sysfs, without symbolic links.
    pub(super) folder: PathBuf,
    pub(super) number: Number,
    /// The disk's name, for a partition.
    pub(super) parent: Option<String>,
    /// What is made of it: device mapper, RAID.
    pub(super) holders: Vec<String>,
}

pub(super) fn read_node(name: &str, entry: &Path) -> Option<Node> {
    let folder = entry.canonicalize().ok()?;
    let (major, minor) = read_text(&folder.join("dev"))?
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))?;
    let parent = folder.join("partition").exists().then(|| {
        let disk = folder.parent()?.file_name()?;
        Some(disk.to_str()?.to_owned())
    });
    let mut holders: Vec<_> = fs::read_dir(folder.join("holders"))
        .into_iter()
        .flatten()
        .filter_map(|holder| holder.ok()?.file_name().into_string().ok())
        .collect();
    holders.sort();
    Some(Node {
        name: name.to_owned(),
        number: (major, minor),
        parent: parent.flatten(),
        holders,
        folder,
    })
}

pub(super) fn is_disk(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let boot_area = name.starts_with("mmcblk")
        && name
            .trim_end_matches(|c: char| c.is_ascii_digit())
            .ends_with("boot");
    let unfit = ["ram", "zram", "sr", "fd", "mtdblock"]
        .into_iter()
        .any(numbered);
    !(unfit || boot_area || (name.starts_with("mmcblk") && name.ends_with("rpmb")))
}

pub(super) fn bus_of(node: &Node) -> Bus {
    if node.name.starts_with("loop") {
        return Bus::Loop;
    }
    if node.name.starts_with("dm-") || node.name.starts_with("md") {
        return Bus::Mapped;
    }
    let mut bus = Bus::Other;
    // From the root towards the device: the last controller named is the one that drives it, as in a
    // card slot that hangs on USB, or a USB disk behind PCI.
    for part in node.folder.components() {
        let Some(part) = part.as_os_str().to_str() else {
            continue;
        };
        let numbered = |prefix: &str| {
            part.strip_prefix(prefix).is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        if numbered("usb") {
            bus = Bus::Usb;
        } else if part == "mmc_host" {
            bus = Bus::Mmc;
        } else if part == "nvme" {
            bus = Bus::Nvme;
        } else if numbered("ata") {
            bus = Bus::Sata;
        } else if numbered("virtio") {
            bus = Bus::Virtio;
        } else if numbered("host") && bus == Bus::Other {
            bus = Bus::Scsi;
        }
    }
    bus
}

pub(super) fn serial_of(disk: &Node) -> Option<String> {
    for file in ["serial", "device/serial", "device/wwid", "wwid"] {
        if let Some(serial) = read_text(&disk.folder.join(file)) {
            return Some(serial);
        }
    }
    // A USB reader's serial number belongs to the USB device, some folders up.
    disk.folder
        .ancestors()
        .find(|folder| folder.join("bDeviceClass").exists())
        .and_then(|folder| read_text(&folder.join("serial")))
}

pub(super) fn size_of(node: &Node) -> u64 {
    read_text(&node.folder.join("size"))
        .and_then(|sectors| sectors.parse::<u64>().ok())
        .and_then(|sectors| sectors.checked_mul(512))
        .unwrap_or(0)
}

pub(super) fn backing_file(node: &Node) -> Option<PathBuf> {
    read_text(&node.folder.join("loop/backing_file")).map(PathBuf::from)
}

pub(super) fn mapped_name(node: &Node) -> Option<String> {
    read_text(&node.folder.join("dm/name"))
}

/// Is `path` a name of the node's device file?
pub(super) fn names(path: &Path, node: &Node) -> bool {
    path == node_path(&node.name)
        || path
            .strip_prefix("/dev/mapper")
            .is_ok_and(|mapped| mapped_name(node).is_some_and(|name| mapped == Path::new(&name)))
}

pub(super) fn node_path(name: &str) -> PathBuf {
    // sysfs cannot have a slash in a name: cciss!c0d0.
    Path::new("/dev").join(name.replace('!', "/"))
}

/// Returns a small file's text without surrounding blanks, or `None` if there is none.
pub(super) fn read_text(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}
