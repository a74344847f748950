//! Block devices and files: listed, described, judged, opened.
//!
//! ```text
//! path ── describe ── DeviceInfo ── safety::assess_* ── open_source / open_target ── ReadAt, WriteAt
//! ```
//!
//! Each operating system has one file with the same function list (`linux`, `macos`, `windows`); what
//! decodes text or bytes of a system (`sysfs`, `diskutil`, `storage_query`) is tested on all of them.
//! This is the only part of the crate that may use `unsafe`.

mod aligned;
mod awake;
#[cfg(any(target_os = "macos", test))]
mod darwin;
#[cfg(any(target_os = "macos", test))]
pub(crate) mod diskutil;
mod files;
mod open;
#[cfg_attr(windows, expect(dead_code))]
mod patience;
pub mod safety;
#[cfg(any(windows, test))]
mod storage_query;
#[cfg(any(target_os = "linux", test))]
mod sysfs;
#[cfg_attr(unix, path = "tree_unix.rs")]
#[cfg_attr(windows, path = "tree_windows.rs")]
pub mod tree;
#[cfg(unix)]
mod unix;

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(target_os = "macos", path = "macos.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod os;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use crate::io::{AlignedBuf, MEMORY_ALIGNMENT};
pub use awake::{Awake, stay_awake};
pub use files::SystemFiles;
pub use open::{
    OpenTarget, SourceFile, SourceOptions, Target, TargetOptions, create_card_file, open_source,
    open_target, resolve_target,
};
pub use patience::tell_waits;

use crate::error::{Error, ErrorKind, Result};

/// How a device is attached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    Usb,
    /// An SD or MMC host controller: a card in a built-in slot, or soldered eMMC.
    Mmc,
    Sata,
    Scsi,
    Nvme,
    Thunderbolt,
    /// A virtual machine's disk.
    Virtio,
    /// A file shown as a device: loop devices, attached disk images.
    Loop,
    /// Made of other devices: LVM, LUKS, RAID, APFS containers.
    Mapped,
    Other,
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usb => "USB",
            Self::Mmc => "SD/MMC",
            Self::Sata => "SATA",
            Self::Scsi => "SCSI",
            Self::Nvme => "NVMe",
            Self::Thunderbolt => "Thunderbolt",
            Self::Virtio => "virtual machine",
            Self::Loop => "file",
            Self::Mapped => "mapped",
            Self::Other => "other",
        })
    }
}

/// A block device. Names and labels are as the device tells them: hostile text, to be shown only
/// through [`safety::sanitize`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceInfo {
    /// What the user names: `/dev/sdb`, `/dev/disk4`, `\\.\PhysicalDrive2`.
    pub path: PathBuf,
    /// What is opened: `/dev/rdisk4` on macOS, else `path`.
    pub io_path: PathBuf,
    /// The system's short name: `sdb`, `disk4`, `PhysicalDrive2`.
    pub name: String,
    pub vendor: Option<String>,
    pub model: Option<String>,
    pub serial: Option<String>,
    /// In bytes; 0 for a reader without a card.
    pub size: u64,
    /// The smallest unit of a request, in bytes.
    pub logical_block: u32,
    /// The unit that the medium writes without reading first, in bytes.
    pub physical_block: u32,
    pub bus: Bus,
    /// Is it, or the medium in it, made to be taken out?
    pub removable: bool,
    /// Is it write-protected?
    pub read_only: bool,
    pub is_partition: bool,
    /// The disk that a partition lies on.
    pub parent: Option<PathBuf>,
    /// Does the running system live on it, directly or through LVM, LUKS or RAID?
    pub system: bool,
    /// Its partitions, and the whole disk if that is mounted itself.
    pub volumes: Vec<Volume>,
    /// The file behind a [`Bus::Loop`] device.
    pub backing_file: Option<PathBuf>,
    /// A number that changes with each medium put in, where the system counts them.
    pub generation: Option<u64>,
}

impl DeviceInfo {
    /// Is it the same medium in the same place as `other`, by all that identifies it?
    pub fn is_same_medium(&self, other: &Self) -> bool {
        let identity = |info: &Self| {
            (
                info.path.clone(),
                info.size,
                info.bus,
                info.vendor.clone(),
                info.model.clone(),
                info.serial.clone(),
                info.generation,
                info.backing_file.clone(),
            )
        };
        identity(self) == identity(other)
    }

    /// Returns the volumes that are mounted.
    pub fn mounted(&self) -> impl Iterator<Item = &Volume> {
        self.volumes
            .iter()
            .filter(|volume| !volume.mount_points.is_empty())
    }
}

/// A part of a disk that can carry a file system.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Volume {
    /// `/dev/sdb1`, `/dev/disk4s1`, `\\?\Volume{…}`.
    pub path: PathBuf,
    pub label: Option<String>,
    /// The system's name for it, where the system tells without reading the medium.
    pub fs_type: Option<String>,
    /// In bytes.
    pub size: u64,
    pub mount_points: Vec<PathBuf>,
    /// Can the file system change now? True if any of its mounts can write.
    pub mounted_read_write: bool,
    /// What else keeps it busy: `swap`, `dm-0`.
    pub in_use_by: Option<String>,
}

/// Returns all whole disks, in the order of their names, also those that [`safety::hidden_reason`] hides.
///
/// # Errors
/// `Io` if the system's list cannot be read; a single device that cannot be asked is left out.
pub fn list() -> Result<Vec<DeviceInfo>> {
    os::list()
}

/// Describes the block device (whole or a partition) that `path` names, through symbolic links.
///
/// # Errors
/// `Usage` if it is none, `Io` if it cannot be asked.
pub fn describe(path: &Path) -> Result<DeviceInfo> {
    os::describe(path)
}

/// Returns the volumes of the device `path` that are mounted.
pub fn mounts_of(path: &Path) -> Result<Vec<Volume>> {
    Ok(describe(path)?.mounted().cloned().collect())
}

/// Unmounts `volumes` of the device `info`, all their mount points. (Windows mounts them again when
/// somebody looks at them.)
///
/// # Errors
/// `Refused` with what to do if one is in use, `Io` else.
pub fn unmount(info: &DeviceInfo, volumes: &[Volume]) -> Result<()> {
    os::unmount(info, volumes, false).map(drop)
}

/// Has `handler` called, on a thread of its own, when the user wants the program to stop: Ctrl-C, SIGTERM,
/// SIGHUP, a console that is closed. Where that cannot be had, they end it as they always did.
#[cfg(feature = "cli")]
pub fn on_interrupt(handler: fn()) {
    os::on_interrupt(handler);
}

/// Adds what helps against a failure of the system, where that is known and nothing is said yet.
#[must_use]
pub fn advise(error: Error) -> Error {
    os::advise(error)
}

/// Returns how many bytes this user can still write to the file system of the folder `dir`.
pub fn free_space(dir: &Path) -> Result<u64> {
    os::free_space(dir).map_err(|error| os::explain(error, "ask the free space of", dir))
}

/// Does `path` name a device, whole or a partition? False if it cannot be looked at.
pub fn is_device(path: &Path) -> bool {
    matches!(os::path_kind(path), Ok(PathKind::Device))
}

/// Do both paths name the same file or device? A path that names nothing is no other.
pub fn is_same_file(a: &Path, b: &Path) -> Result<bool> {
    os::is_same_file(a, b).map_err(|error| os::explain(error, "compare", a))
}

/// Would writing to `target` destroy the file `image`: is it the same file, or does the target carry the
/// file system that the image lies on?
pub fn target_holds(target: &Target, image: &Path) -> Result<bool> {
    match target {
        Target::File(path) => is_same_file(path, image),
        Target::Device(info) => {
            let behind = info.backing_file.as_deref().into_iter();
            for path in behind.chain([&*info.path]) {
                if is_same_file(path, image)? {
                    return Ok(true);
                }
            }
            os::holds(info, image)
        }
    }
}

/// Would writing to one of two targets change the other: are they the same file or device, is one a
/// loop device of the other, or are both loop devices of one file?
///
/// # Errors
/// `Io` if one of them cannot be asked.
pub fn targets_overlap(one: &Target, other: &Target) -> Result<bool> {
    if target_holds(one, other.path())? || target_holds(other, one.path())? {
        return Ok(true);
    }
    match (one, other) {
        (Target::Device(one), Target::Device(other)) => {
            match (&one.backing_file, &other.backing_file) {
                (Some(one), Some(other)) => is_same_file(one, other),
                _ => Ok(false),
            }
        }
        _ => Ok(false),
    }
}

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PathKind {
    File,
    Device,
    /// Something that has no fixed bytes: what it is.
    Unfit(&'static str),
}

/// How a device or file is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Read,
    /// Also for writing, and nobody else meanwhile. `direct`: past the system's cache.
    Write {
        direct: bool,
    },
}

/// What the operating systems' `open_*` return.
struct Opened {
    file: File,
    /// In bytes.
    len: u64,
    /// Requests must be multiples of so many bytes.
    block: u64,
    /// Must memory be aligned as well?
    aligned_memory: bool,
    /// The most bytes of one request.
    max_transfer: usize,
    /// What was asked for and could not be had.
    notes: Vec<String>,
    /// Kept open as long as the device is: locks of its volumes.
    held: Vec<File>,
}

fn not_a_device(path: &Path) -> Error {
    Error::new(
        ErrorKind::Usage,
        format!("{} is not a block device", path.display()),
    )
}
