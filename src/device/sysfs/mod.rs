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

mod mounts;
mod node;
#[cfg(all(test, unix))]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Bus, DeviceInfo, Volume};
use mounts::{Mount, is_system_place, parse_mount, parse_swaps};
use node::{
    Node, backing_file, bus_of, is_disk, mapped_name, names, node_path, read_node, read_text,
    serial_of, size_of,
};

/// Device numbers, as in `8:16`.
type Number = (u32, u32);

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
        self.node(number).map(|node| self.device(node))
    }

    /// Does the file system that the file `path` (absolute, without symbolic links) lies on need the
    /// device `name`, also through mappings and loop devices? `number` is that of the file's file
    /// system, as stat tells it: a path can lead through places that mountinfo shows in another way.
    pub(super) fn holds(&self, name: &str, path: &Path, number: Option<Number>) -> bool {
        let Some(node) = self.nodes.get(name) else {
            return false;
        };
        let mut family: BTreeSet<String> = self.family(node, true);
        // Writing a partition hits the whole disk's file system as well.
        family.extend(node.parent.clone());
        let by_number = number.and_then(|number| self.node(number));
        let mut seen = BTreeSet::new();
        let mut below: Vec<_> = by_number
            .or_else(|| self.node_under(path))
            .into_iter()
            .collect();
        while let Some(node) = below.pop() {
            if family.contains(&node.name) {
                return true;
            }
            // A loop device's file may lie on a file system on a loop device, even on itself.
            if !seen.insert(&node.name) {
                continue;
            }
            let disk = self.disk_of(node);
            let made_of = self.nodes.values().filter(|other| {
                other.holders.contains(&node.name) || other.holders.contains(&disk.name)
            });
            below.extend(made_of);
            below.extend(backing_file(disk).and_then(|file| self.node_under(&file)));
        }
        false
    }

    fn device(&self, node: &Node) -> DeviceInfo {
        let disk = self.disk_of(node);
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
                || within(self.node_under(swap))
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
                && backing_file(node).is_some_and(|file| self.holds(&disk.name, &file, None))
        });
        mounted || swapping || behind_loop
    }

    fn node(&self, number: Number) -> Option<&Node> {
        self.nodes.values().find(|node| node.number == number)
    }

    /// Returns the disk that a partition lies on, or the disk itself.
    fn disk_of<'a>(&'a self, node: &'a Node) -> &'a Node {
        let disk = node.parent.as_ref().and_then(|name| self.nodes.get(name));
        disk.unwrap_or(node)
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

    /// Returns the device that carries the file `path`, by the mount that it lies in.
    fn node_under(&self, path: &Path) -> Option<&Node> {
        // The last of several mounts on one place is the one that is seen.
        let mounts = self.mounts.iter();
        let mount = mounts
            .filter(|mount| path.starts_with(&mount.place))
            .max_by_key(|mount| mount.place.components().count())?;
        self.mounted_node(mount)
    }
}
