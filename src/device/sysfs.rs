//! Linux's block devices, read from a sysfs tree and the texts of `/proc/self/mountinfo` and
//! `/proc/swaps` (proc(5)); no other program and no daemon is asked. All three are arguments, so that
//! trees of other machines test this anywhere.
//!
//! ```text
//! class/block/sdb -> ../../devices/pci…/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb
//!     dev (8:16)  size (in 512 bytes, always)  removable  ro  diskseq  queue/logical_block_size
//!     device/{vendor,model,name,serial,type}   holders/dm-0   loop/backing_file   dm/name
//!     sdb1/partition
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Bus, DeviceInfo, Volume};

/// Mounting one of these, or a folder so many levels below one, makes a disk part of the running system.
/// The last ones are where live systems and read-only roots keep the medium they run from.
const SYSTEM_PLACES: [(&str, usize); 14] = [
    ("/", 0),
    ("/usr", usize::MAX),
    ("/boot", usize::MAX),
    ("/efi", usize::MAX),
    ("/etc", usize::MAX),
    ("/var", usize::MAX),
    // A user's own folder; what he mounts in it may well be a card.
    ("/home", 1),
    ("/opt", 0),
    ("/snap", usize::MAX),
    ("/nix", usize::MAX),
    ("/cdrom", 0),
    ("/run/live", usize::MAX),
    ("/run/initramfs", usize::MAX),
    ("/media/root-ro", 0),
];

/// Below `/var`, and yet places to mount anything.
const FREE_PLACES: [&str; 3] = ["/var/run/media", "/var/mnt", "/var/tmp"];

/// Device numbers, as in `8:16`.
type Number = (u32, u32);

/// One line of mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    number: Number,
    place: PathBuf,
    fs_type: String,
    source: String,
    /// Can the file system be written, whatever this mount of it allows?
    writable: bool,
}

#[derive(Clone, Debug)]
struct Node {
    name: String,
    /// Its folder in sysfs, without symbolic links.
    folder: PathBuf,
    number: Number,
    /// The disk's name, for a partition.
    parent: Option<String>,
    /// What is made of it: device mapper, RAID.
    holders: Vec<String>,
}

/// The block devices and mounts of one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    nodes: BTreeMap<String, Node>,
    mounts: Vec<Mount>,
    swaps: Vec<PathBuf>,
}

impl Snapshot {
    /// Reads the tree at `sys` (`/sys`). Devices that vanish meanwhile are left out.
    pub(super) fn read(sys: &Path, mountinfo: &str, swaps: &str) -> std::io::Result<Self> {
        let mut nodes = BTreeMap::new();
        for entry in fs::read_dir(sys.join("class/block"))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if let Some(node) = read_node(&name, &entry.path()) {
                nodes.insert(name, node);
            }
        }
        Ok(Self {
            nodes,
            mounts: mountinfo.lines().filter_map(parse_mount).collect(),
            swaps: parse_swaps(swaps),
        })
    }

    /// Returns all whole disks but those that are never a medium: RAM disks, optical drives, the
    /// boot areas of eMMC, loop and network devices with nothing behind them.
    pub(super) fn disks(&self) -> Vec<DeviceInfo> {
        let mut disks: Vec<_> = self
            .nodes
            .values()
            .filter(|node| node.parent.is_none() && is_disk(&node.name))
            .map(|node| self.device(node))
            .filter(|info| match info.bus {
                Bus::Loop => info.backing_file.is_some(),
                _ => info.size > 0 || !info.name.starts_with("nbd"),
            })
            .collect();
        // sdb before sdaa, loop2 before loop10.
        disks.sort_by_key(|info| (info.name.len(), info.name.clone()));
        disks
    }

    /// Describes the device with these numbers.
    pub(super) fn find(&self, number: Number) -> Option<DeviceInfo> {
        self.nodes
            .values()
            .find(|node| node.number == number)
            .map(|node| self.device(node))
    }

    /// Does the file system that the file `path` (absolute, without symbolic links) lies on need the
    /// device `name`, also through mappings and loop devices?
    pub(super) fn holds(&self, name: &str, path: &Path) -> bool {
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        let mut family: BTreeSet<String> = self.family(node, true);
        // Writing a partition hits the whole disk's file system as well.
        family.extend(node.parent.clone());
        let mut path = path.to_owned();
        // A loop device's file may lie on a file system on a loop device, and so on.
        for _ in 0..self.nodes.len() + 1 {
            let Some(under) = self
                .mount_under(&path)
                .and_then(|mount| self.mounted_node(mount))
            else {
                return false;
            };
            if family.contains(&under.name) {
                return true;
            }
            let disk = under.parent.as_ref().and_then(|name| self.nodes.get(name));
            let Some(file) = backing_file(disk.unwrap_or(under)) else {
                return false;
            };
            path = file;
        }
        false
    }

    fn device(&self, node: &Node) -> DeviceInfo {
        let disk = node
            .parent
            .as_ref()
            .and_then(|name| self.nodes.get(name))
            .unwrap_or(node);
        let text = |file: &str| read_text(&disk.folder.join(file));
        let number = |file: &str| text(file).and_then(|text| text.parse::<u64>().ok());
        let bus = bus_of(disk);
        let block = |file: &str| {
            number(file)
                .and_then(|size| u32::try_from(size).ok())
                .filter(|size| size.is_power_of_two())
        };
        let logical_block = block("queue/logical_block_size").unwrap_or(512);
        let path = node_path(&node.name);
        DeviceInfo {
            io_path: path.clone(),
            path,
            name: node.name.clone(),
            vendor: text("device/vendor").filter(|vendor| !vendor.starts_with("0x")),
            model: text("device/model").or_else(|| text("device/name")),
            serial: serial_of(disk),
            size: size_of(node),
            logical_block,
            physical_block: block("queue/physical_block_size").unwrap_or(logical_block),
            bus,
            removable: match bus {
                // A slot in the machine says 0; soldered eMMC is no card, though on the same bus.
                Bus::Mmc => text("device/type").as_deref() != Some("MMC"),
                Bus::Usb => true,
                Bus::Loop | Bus::Mapped => false,
                _ => number("removable") == Some(1),
            },
            read_only: number("ro") == Some(1)
                || read_text(&node.folder.join("ro")).as_deref() == Some("1"),
            is_partition: node.parent.is_some(),
            parent: node.parent.as_deref().map(node_path),
            system: self.is_system(disk),
            volumes: self.volumes(node),
            backing_file: backing_file(disk),
            generation: number("diskseq"),
        }
    }

    fn volumes(&self, node: &Node) -> Vec<Volume> {
        let mut parts: Vec<_> = self
            .nodes
            .values()
            .filter(|part| part.parent.as_deref() == Some(&node.name))
            .collect();
        parts.sort_by_key(|part| (part.name.len(), &part.name));
        let mut volumes: Vec<_> = parts.into_iter().map(|part| self.volume(part)).collect();
        let whole = self.volume(node);
        if node.parent.is_some() || !whole.mount_points.is_empty() || whole.in_use_by.is_some() {
            volumes.insert(0, whole);
        }
        volumes
    }

    fn volume(&self, node: &Node) -> Volume {
        // What is mounted of a LUKS container on a stick changes the stick.
        let family = self.family(node, false);
        let mounts: Vec<_> = self
            .mounts
            .iter()
            .filter(|mount| {
                self.mounted_node(mount)
                    .is_some_and(|node| family.contains(&node.name))
            })
            .collect();
        let swapped = self.swaps.iter().any(|swap| names(swap, node));
        Volume {
            path: node_path(&node.name),
            label: None,
            fs_type: mounts
                .iter()
                .find(|mount| self.is_mount_of(mount, node))
                .map(|mount| mount.fs_type.clone()),
            size: size_of(node),
            mount_points: mounts.iter().map(|mount| mount.place.clone()).collect(),
            mounted_read_write: mounts.iter().any(|mount| mount.writable),
            in_use_by: match node.holders.first() {
                _ if swapped => Some("swap".to_owned()),
                Some(holder) => Some(
                    self.nodes
                        .get(holder)
                        .and_then(mapped_name)
                        .unwrap_or(holder.clone()),
                ),
                None => None,
            },
        }
    }

    /// Returns the names of the device, all that is made of it, and, if asked, of its partitions.
    fn family(&self, node: &Node, with_parts: bool) -> BTreeSet<String> {
        let mut family = BTreeSet::new();
        let mut next = vec![node.name.clone()];
        while let Some(name) = next.pop() {
            let Some(node) = self.nodes.get(&name) else {
                continue;
            };
            // A name already met ends there: holders cannot loop, a hostile tree can.
            if !family.insert(name) {
                continue;
            }
            next.extend(node.holders.iter().cloned());
            // A RAID has partitions of its own: they are made of the device, too.
            if with_parts || family.len() > 1 {
                let parts = self.nodes.values();
                next.extend(
                    parts
                        .filter(|part| part.parent.as_deref() == Some(&node.name))
                        .map(|part| part.name.clone()),
                );
            }
        }
        family
    }

    fn is_system(&self, disk: &Node) -> bool {
        let family = self.family(disk, true);
        let within = |node: Option<&Node>| node.is_some_and(|node| family.contains(&node.name));
        let mounted = self
            .mounts
            .iter()
            .any(|mount| is_system_place(&mount.place) && within(self.mounted_node(mount)));
        let swapping = self.swaps.iter().any(|swap| {
            within(self.nodes.values().find(|node| names(swap, node)))
                || within(
                    self.mount_under(swap)
                        .and_then(|mount| self.mounted_node(mount)),
                )
        });
        // A live system's root is a loop device, whose file lies on the stick.
        let behind_loop = self.nodes.values().any(|node| {
            !family.contains(&node.name)
                && self.mounts.iter().any(|mount| {
                    is_system_place(&mount.place)
                        && !mount.place.starts_with("/snap")
                        && !mount.place.starts_with("/var/lib")
                        && self.is_mount_of(mount, node)
                })
                && backing_file(node).is_some_and(|file| self.holds(&disk.name, &file))
        });
        mounted || swapping || behind_loop
    }

    fn mounted_node(&self, mount: &Mount) -> Option<&Node> {
        self.nodes
            .values()
            .find(|node| self.is_mount_of(mount, node))
    }

    fn is_mount_of(&self, mount: &Mount, node: &Node) -> bool {
        // btrfs and others with several devices have numbers of their own (major 0).
        mount.number == node.number
            || (mount.number.0 == 0 && names(Path::new(&mount.source), node))
    }

    /// Returns the mount that `path` lies in.
    fn mount_under(&self, path: &Path) -> Option<&Mount> {
        // The last of several mounts on one place is the one that is seen.
        self.mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.place))
            .max_by_key(|mount| mount.place.components().count())
    }
}

fn read_node(name: &str, entry: &Path) -> Option<Node> {
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

fn is_disk(name: &str) -> bool {
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

fn bus_of(node: &Node) -> Bus {
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

fn serial_of(disk: &Node) -> Option<String> {
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

fn size_of(node: &Node) -> u64 {
    read_text(&node.folder.join("size"))
        .and_then(|sectors| sectors.parse::<u64>().ok())
        .and_then(|sectors| sectors.checked_mul(512))
        .unwrap_or(0)
}

fn backing_file(node: &Node) -> Option<PathBuf> {
    read_text(&node.folder.join("loop/backing_file")).map(PathBuf::from)
}

fn mapped_name(node: &Node) -> Option<String> {
    read_text(&node.folder.join("dm/name"))
}

/// Is `path` a name of the node's device file?
fn names(path: &Path, node: &Node) -> bool {
    path == node_path(&node.name)
        || path
            .strip_prefix("/dev/mapper")
            .is_ok_and(|mapped| mapped_name(node).is_some_and(|name| mapped == Path::new(&name)))
}

fn node_path(name: &str) -> PathBuf {
    // sysfs cannot have a slash in a name: cciss!c0d0.
    Path::new("/dev").join(name.replace('!', "/"))
}

fn is_system_place(place: &Path) -> bool {
    !FREE_PLACES.iter().any(|free| place.starts_with(free))
        && SYSTEM_PLACES.iter().any(|(system, levels)| {
            place
                .strip_prefix(system)
                .is_ok_and(|below| below.components().count() <= *levels)
        })
}

/// Returns a small file's text without surrounding blanks, or `None` if there is none.
fn read_text(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/sda1 rw,errors=continue`
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (major, minor) = before.next()?.split_once(':')?;
    let place = before.nth(1)?;
    let mut after = after.split(' ');
    let (fs_type, source, options) = (after.next()?, after.next()?, after.next()?);
    Some(Mount {
        number: (major.parse().ok()?, minor.parse().ok()?),
        place: unescape(place).into(),
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        writable: options.split(',').any(|option| option == "rw"),
    })
}

fn parse_swaps(text: &str) -> Vec<PathBuf> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(|path| unescape(path).into())
        .collect()
}

/// Undoes the kernel's escapes of blanks in paths: `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = (byte == b'\\')
            .then(|| std::str::from_utf8(tail.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A sysfs tree in a folder of its own, removed at the end.
    struct Tree {
        root: PathBuf,
    }

    impl Tree {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("pishrink-sysfs-{}-{number}", std::process::id());
            let root = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("class/block")).unwrap();
            Self { root }
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }

        /// Adds a device at `folder`, its last part being the name, with `files` in it.
        fn add(&self, folder: &str, dev: &str, bytes: u64, files: &[(&str, &str)]) {
            let name = folder.rsplit('/').next().unwrap();
            self.write(&format!("{folder}/dev"), dev);
            self.write(&format!("{folder}/size"), &(bytes / 512).to_string());
            for (file, text) in files {
                self.write(&format!("{folder}/{file}"), text);
            }
            symlink(
                format!("../../{folder}"),
                self.root.join("class/block").join(name),
            )
            .unwrap();
        }

        fn hold(&self, folder: &str, holder: &str) {
            self.write(&format!("{folder}/holders/{holder}"), "");
        }

        fn snapshot(&self, mountinfo: &str, swaps: &str) -> Snapshot {
            Snapshot::read(&self.root, mountinfo, swaps).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    const USB: &str = "devices/pci0000:00/0000:00:14.0/usb2/2-1";
    const NVME: &str = "devices/pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0/nvme0n1";
    const MMC: &str =
        "devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0";
    const EMMC: &str = "devices/pci0000:00/0000:00:1a.0/mmc_host/mmc1/mmc1:0001/block/mmcblk1";

    /// A laptop: LUKS on NVMe with LVM in it, a USB card reader with a mounted card and an empty slot, a
    /// built-in card slot, soldered eMMC, a loop device and what is never listed.
    fn laptop() -> Tree {
        let tree = Tree::new();
        let sdb = format!("{USB}/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb");
        tree.write(&format!("{USB}/bDeviceClass"), "00");
        tree.write(&format!("{USB}/serial"), "000000000819");
        let card = [
            ("removable", "1"),
            ("ro", "0"),
            ("diskseq", "11"),
            ("queue/logical_block_size", "512"),
            ("queue/physical_block_size", "512"),
            ("device/vendor", "Generic "),
            ("device/model", "STORAGE DEVICE  "),
        ];
        tree.add(&sdb, "8:16", 31_914_983_424, &card);
        tree.add(
            &format!("{sdb}/sdb1"),
            "8:17",
            268_435_456,
            &[("partition", "1"), ("ro", "0")],
        );
        tree.add(
            &format!("{sdb}/sdb2"),
            "8:18",
            31_000_000_512,
            &[("partition", "2"), ("ro", "0")],
        );
        tree.add(
            &sdb.replace(":0/block/sdb", ":1/block/sdc"),
            "8:32",
            0,
            &[("removable", "1")],
        );

        tree.add(
            NVME,
            "259:0",
            1_000_204_886_016,
            &[
                ("removable", "0"),
                ("ro", "0"),
                ("queue/physical_block_size", "4096"),
            ],
        );
        tree.write(
            "devices/pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0/model",
            "WD SN770",
        );
        tree.add(
            &format!("{NVME}/nvme0n1p1"),
            "259:1",
            536_870_912,
            &[("partition", "1")],
        );
        tree.add(
            &format!("{NVME}/nvme0n1p2"),
            "259:2",
            999_000_000_512,
            &[("partition", "2")],
        );
        tree.hold(&format!("{NVME}/nvme0n1p2"), "dm-0");
        let mapped = "devices/virtual/block";
        tree.add(
            &format!("{mapped}/dm-0"),
            "254:0",
            998_000_000_000,
            &[("dm/name", "luks-1")],
        );
        tree.hold(&format!("{mapped}/dm-0"), "dm-1");
        tree.hold(&format!("{mapped}/dm-0"), "dm-2");
        tree.add(
            &format!("{mapped}/dm-1"),
            "254:1",
            900_000_000_000,
            &[("dm/name", "vg-root")],
        );
        tree.add(
            &format!("{mapped}/dm-2"),
            "254:2",
            90_000_000_000,
            &[("dm/name", "vg-swap")],
        );

        // A slot in the machine says that it is not removable.
        tree.add(
            MMC,
            "179:0",
            63_864_569_856,
            &[("removable", "0"), ("ro", "1")],
        );
        let slot = MMC.trim_end_matches("/block/mmcblk0");
        tree.write(&format!("{slot}/type"), "SD");
        symlink("../..", tree.root.join(MMC).join("device")).unwrap();
        tree.write(&format!("{slot}/name"), "SN64G");
        tree.write(&format!("{slot}/serial"), "0x8c2a4b1d");
        tree.add(
            &format!("{MMC}/mmcblk0p1"),
            "179:1",
            63_860_000_256,
            &[("partition", "1")],
        );
        tree.add(
            EMMC,
            "179:32",
            31_268_536_320,
            &[("removable", "0"), ("device/type", "MMC")],
        );
        tree.add(&format!("{EMMC}/mmcblk1boot0"), "179:64", 4_194_304, &[]);

        let loops = |name: &str| format!("{mapped}/{name}");
        tree.add(
            &loops("loop0"),
            "7:0",
            1 << 30,
            &[("loop/backing_file", "/home/me/a b.img")],
        );
        tree.add(&loops("loop1"), "7:1", 0, &[]);
        tree.add(
            &loops("loop10"),
            "7:10",
            1 << 20,
            &[("loop/backing_file", "/media/card/b.img")],
        );
        tree.add(&loops("nbd0"), "43:0", 0, &[]);
        for (name, dev) in [("zram0", "253:0"), ("ram0", "1:0"), ("sr0", "11:0")] {
            tree.add(&loops(name), dev, 1 << 30, &[]);
        }
        tree
    }

    const MOUNTS: &str = "\
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro
28 27 259:1 / /boot/efi rw,relatime shared:2 - vfat /dev/nvme0n1p1 rw,fmask=0022
29 27 0:25 / /proc rw - proc proc rw
31 27 8:17 / /media/my\\040card rw,nosuid shared:4 - vfat /dev/sdb1 rw
32 27 8:18 / /media/card ro,nosuid shared:5 - ext4 /dev/sdb2 rw
33 27 8:18 /a /mnt/bind ro shared:5 - ext4 /dev/sdb2 rw
34 27 7:10 / /mnt/inner rw - ext4 /dev/loop10 rw
35 27 179:1 / /media/slot ro - ext4 /dev/mmcblk0p1 ro
broken line
36 27 x:y / /nowhere rw - ext4 /dev/null rw
";
    const SWAPS: &str = "\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/dm-2                               partition\t8388604\t\t0\t\t-2
";

    fn named<'a>(disks: &'a [DeviceInfo], name: &str) -> &'a DeviceInfo {
        disks.iter().find(|info| info.name == name).unwrap()
    }

    #[test]
    fn lists_a_laptop() {
        let tree = laptop();
        let disks = tree.snapshot(MOUNTS, SWAPS).disks();
        let names: Vec<_> = disks.iter().map(|info| info.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "sdb", "sdc", "dm-0", "dm-1", "dm-2", "loop0", "loop10", "mmcblk0", "mmcblk1",
                "nvme0n1"
            ]
        );

        let card = named(&disks, "sdb");
        assert_eq!(card.path, Path::new("/dev/sdb"));
        assert_eq!(
            (card.bus, card.removable, card.system),
            (Bus::Usb, true, false)
        );
        assert_eq!(card.model.as_deref(), Some("STORAGE DEVICE"));
        assert_eq!(card.vendor.as_deref(), Some("Generic"));
        assert_eq!(card.serial.as_deref(), Some("000000000819"));
        assert_eq!((card.size, card.generation), (31_914_983_424, Some(11)));
        assert_eq!((card.logical_block, card.physical_block), (512, 512));
        let mounted: Vec<_> = card
            .volumes
            .iter()
            .map(|v| (&v.path, &v.mount_points))
            .collect();
        assert_eq!(
            mounted,
            [
                (
                    &PathBuf::from("/dev/sdb1"),
                    &vec![PathBuf::from("/media/my card")]
                ),
                (
                    &PathBuf::from("/dev/sdb2"),
                    &vec![PathBuf::from("/media/card"), PathBuf::from("/mnt/bind")]
                ),
            ]
        );
        // Mounted read-only here, but the file system itself is writable.
        assert!(card.volumes[1].mounted_read_write);
        assert_eq!(card.volumes[1].fs_type.as_deref(), Some("ext4"));

        assert_eq!(named(&disks, "sdc").size, 0);

        let slot = named(&disks, "mmcblk0");
        assert_eq!(
            (slot.bus, slot.removable, slot.read_only),
            (Bus::Mmc, true, true)
        );
        assert_eq!(slot.model.as_deref(), Some("SN64G"));
        assert_eq!(slot.serial.as_deref(), Some("0x8c2a4b1d"));
        assert!(!slot.volumes[0].mounted_read_write);
        let soldered = named(&disks, "mmcblk1");
        assert_eq!((soldered.bus, soldered.removable), (Bus::Mmc, false));

        let nvme = named(&disks, "nvme0n1");
        assert_eq!(
            (nvme.bus, nvme.removable, nvme.system),
            (Bus::Nvme, false, true)
        );
        assert_eq!((nvme.logical_block, nvme.physical_block), (512, 4096));
        assert_eq!(nvme.volumes[1].in_use_by.as_deref(), Some("luks-1"));
        assert_eq!(nvme.volumes[1].mount_points, [PathBuf::from("/")]);

        let loop0 = named(&disks, "loop0");
        assert_eq!(loop0.bus, Bus::Loop);
        assert_eq!(
            loop0.backing_file.as_deref(),
            Some(Path::new("/home/me/a b.img"))
        );
        assert!(!loop0.system);
    }

    #[test]
    fn finds_partitions_by_number() {
        let tree = laptop();
        let snapshot = tree.snapshot(MOUNTS, SWAPS);
        let part = snapshot.find((8, 18)).unwrap();
        assert!(part.is_partition);
        assert_eq!(part.parent.as_deref(), Some(Path::new("/dev/sdb")));
        assert_eq!(part.size, 31_000_000_512);
        assert_eq!(part.volumes.len(), 1);
        assert_eq!(part.volumes[0].mount_points.len(), 2);
        assert!(part.removable);
        assert!(snapshot.find((8, 99)).is_none());
    }

    #[test]
    fn the_running_system_is_found_through_all_layers() {
        let line = |dev: &str, place: &str, source: &str| {
            format!("1 1 {dev} / {place} rw - ext4 {source} rw\n")
        };
        let header = "Filename Type Size Used Priority\n";
        let cases = [
            (line("254:1", "/", "/dev/mapper/vg-root"), "", "nvme0n1"),
            (line("259:1", "/boot", "/dev/nvme0n1p1"), "", "nvme0n1"),
            (line("8:18", "/", "/dev/root"), "", "sdb"),
            (line("8:16", "/home", "/dev/sdb"), "", "sdb"),
            (line("8:18", "/var/lib/docker", "/dev/sdb2"), "", "sdb"),
            // btrfs: a number of its own, so the source must tell.
            (line("0:40", "/", "/dev/sdb2"), "", "sdb"),
            (line("0:40", "/", "/dev/mapper/vg-root"), "", "nvme0n1"),
            (String::new(), "/dev/sdb2 partition 1 0 -2\n", "sdb"),
            (
                line("8:18", "/mnt/x", "/dev/sdb2"),
                "/mnt/x/swapfile file 1 0 -2\n",
                "sdb",
            ),
            // A live system: its root is a file on the stick.
            (
                line("8:17", "/media/card", "/dev/sdb1") + &line("7:10", "/", "/dev/loop10"),
                "",
                "sdb",
            ),
        ];
        let tree = laptop();
        for (mounts, swaps, system) in cases {
            let disks = tree.snapshot(&mounts, &format!("{header}{swaps}")).disks();
            let found: Vec<_> = disks
                .iter()
                .filter(|info| info.system && !matches!(info.bus, Bus::Mapped | Bus::Loop))
                .map(|info| info.name.as_str())
                .collect();
            assert_eq!(found, [system], "{mounts}{swaps}");
        }
        for (place, system) in [
            ("/home/me", true),
            ("/home/me/card", false),
            ("/opt/x", false),
            ("/var/tmp/x", false),
            ("/variable", false),
            ("/mnt", false),
            ("/run/media/me/usr", false),
            ("/boot/firmware", true),
        ] {
            assert_eq!(is_system_place(Path::new(place)), system, "{place}");
        }
        let idle = tree
            .snapshot(&line("8:17", "/media/usr", "/dev/sdb1"), header)
            .disks();
        assert!(idle.iter().all(|info| !info.system));
    }

    #[test]
    fn tells_which_disk_a_file_lies_on() {
        let tree = laptop();
        let snapshot = tree.snapshot(MOUNTS, SWAPS);
        for (disk, file, held) in [
            ("sdb", "/media/card/os.img", true),
            ("sdb", "/media/my card/os.img", true),
            ("sdb2", "/media/card/os.img", true),
            ("sdb1", "/media/card/os.img", false),
            ("sdb", "/media/cards/os.img", false),
            ("sdb", "/home/me/os.img", false),
            // Through LVM on LUKS.
            ("nvme0n1", "/home/me/os.img", true),
            // On a loop device whose file lies on the card.
            ("sdb", "/mnt/inner/os.img", true),
            ("loop10", "/mnt/inner/os.img", true),
            ("nvme0n1", "/mnt/inner/os.img", false),
            ("nothing", "/home/me/os.img", false),
        ] {
            assert_eq!(snapshot.holds(disk, Path::new(file)), held, "{disk} {file}");
        }
    }

    #[test]
    fn a_raid_has_partitions_of_its_own() {
        let tree = Tree::new();
        let (disk, raid) = (
            "devices/x/ata1/host0/block/sda",
            "devices/virtual/block/md127",
        );
        tree.add(disk, "8:0", 1 << 30, &[]);
        tree.add(
            &format!("{disk}/sda1"),
            "8:1",
            1 << 29,
            &[("partition", "1")],
        );
        tree.hold(&format!("{disk}/sda1"), "md127");
        tree.add(raid, "9:127", 1 << 29, &[]);
        tree.add(
            &format!("{raid}/md127p1"),
            "259:5",
            1 << 28,
            &[("partition", "1")],
        );
        let mounts = "1 1 259:5 / /srv rw - ext4 /dev/md127p1 rw\n";
        let disks = tree.snapshot(mounts, "").disks();
        let sda = named(&disks, "sda");
        assert_eq!((sda.bus, sda.system), (Bus::Sata, false));
        assert_eq!(sda.volumes[0].mount_points, [PathBuf::from("/srv")]);
        assert_eq!(sda.volumes[0].in_use_by.as_deref(), Some("md127"));
        let disks = tree.snapshot(&mounts.replace("/srv", "/"), "").disks();
        assert!(named(&disks, "sda").system);
    }

    #[test]
    fn hostile_trees_end() {
        let tree = Tree::new();
        let folder = "devices/virtual/block/dm-0";
        tree.add(
            folder,
            "254:0",
            0,
            &[
                ("size", "18446744073709551615"),
                ("queue/logical_block_size", "3"),
            ],
        );
        tree.hold(folder, "dm-0");
        tree.add(
            "devices/x/loop0",
            "7:0",
            512,
            &[("loop/backing_file", "/mnt/self.img")],
        );
        tree.add("devices/x/bad", "not numbers", 512, &[]);
        symlink("../../devices/gone", tree.root.join("class/block/gone")).unwrap();
        let snapshot = tree.snapshot("1 1 7:0 / /mnt rw - ext4 /dev/loop0 rw\n", "");
        let disks = snapshot.disks();
        assert_eq!(disks.len(), 2);
        assert_eq!((disks[0].size, disks[0].logical_block), (0, 512));
        assert!(!snapshot.holds("dm-0", Path::new("/mnt/x")));
    }

    #[test]
    fn undoes_escapes() {
        for (text, plain) in [
            ("/a\\040b", "/a b"),
            ("/a\\134040", "/a\\040"),
            ("/a\\", "/a\\"),
            ("/a\\9", "/a\\9"),
            ("/ü\\011", "/ü\t"),
        ] {
            assert_eq!(unescape(text), plain);
        }
    }
}
