//! Linux: sysfs and `/proc` for the list, ioctls for the rest.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, opcode};
use rustix::mount::UnmountFlags;

use super::files::strongest;
use super::open::expect_device;
use super::patience::{self, Patience};
use super::sysfs::Snapshot;
#[cfg(feature = "cli")]
pub(super) use super::unix::on_interrupt;
use super::unix::{NO_WAIT, file_len, is_errno, is_unknown, lock, lock_alone, locked, open_with};
pub(super) use super::unix::{
    create_private, is_same_file, make_sparse, path_kind, read_at, write_at,
};
use super::{Access, AlignedBuf, Bus, DeviceInfo, Opened, PathKind, Volume, not_a_device};
use crate::error::{Error, Result};
use crate::io::Synced;

// linux/fs.h
const CDROMEJECT: rustix::ioctl::Opcode = opcode::none(0x53, 0x09); // linux/cdrom.h
const BLKRRPART: rustix::ioctl::Opcode = opcode::none(0x12, 95);
const BLKFLSBUF: rustix::ioctl::Opcode = opcode::none(0x12, 97);
const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: rustix::ioctl::Opcode = opcode::none(0x12, 127);

// linux/magic.h
const MSDOS_SUPER_MAGIC: u64 = 0x4d44;
const EXFAT_SUPER_MAGIC: u64 = 0x2011_bab0;

/// Failing media can keep a program for ever.
const PATIENCE: Patience = Patience {
    tell: Duration::from_secs(5),
    give_up: Duration::from_secs(60),
};

/// Enough for the direct I/O of every common file system.
const FILE_BLOCK: u64 = 4096;

/// The kernel moves no more than this in one call.
const MAX_TRANSFER: usize = 0x7fff_f000;

/// A device that was just unmounted, or whose card was just put in, is often held for a moment by
/// programs that look at new devices.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(150);

pub(super) fn list() -> Result<Vec<DeviceInfo>> {
    Ok(snapshot()?.disks())
}

pub(super) fn describe(path: &Path) -> Result<DeviceInfo> {
    let meta = fs::metadata(path).map_err(|error| explain(error, "look at", path))?;
    if !meta.file_type().is_block_device() {
        return Err(not_a_device(path));
    }
    snapshot()?
        .find(split(meta.rdev()))
        .ok_or_else(|| not_a_device(path))
}

fn split(number: u64) -> (u32, u32) {
    (rustix::fs::major(number), rustix::fs::minor(number))
}

fn snapshot() -> Result<Snapshot> {
    let text =
        |path: &str| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mounts = text("/proc/self/mountinfo")
        .map_err(|error| Error::io("cannot read /proc/self/mountinfo", error))?;
    // A kernel without swap has no such file.
    let swaps = text("/proc/swaps").unwrap_or_default();
    Snapshot::read(Path::new("/sys"), &mounts, &swaps)
        .map_err(|error| Error::io("cannot read /sys/class/block", error))
}

/// What is unmounted stays so: nothing has to be held.
pub(super) fn unmount(info: &DeviceInfo, volumes: &[Volume], _force: bool) -> Result<Vec<File>> {
    for volume in volumes {
        // The last mount may lie on the first.
        for place in volume.mount_points.iter().rev() {
            let mut result = unmount_patiently(place);
            if result
                .as_ref()
                .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
            {
                // Desktops let the user who sits there unmount what was mounted for him.
                let mut command = Command::new("udisksctl");
                command.args(["unmount", "--no-user-interaction", "-b"]);
                let done = patience::run(command.arg(&volume.path), "udisksctl", PATIENCE);
                if done.is_ok_and(|output| output.status.success()) {
                    result = Ok(());
                }
            }
            result.map_err(|error| {
                let what = format!(
                    "unmount {} of {}, on",
                    volume.path.display(),
                    info.path.display()
                );
                if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
                    Error::refused(format!("cannot {what} {}: it is in use", place.display()))
                        .with_hint(format!(
                            "close what uses it: fuser -vm '{}'",
                            place.display()
                        ))
                } else {
                    explain(error, &what, place)
                }
            })?;
        }
    }
    Ok(vec![])
}

fn unmount_patiently(place: &Path) -> io::Result<()> {
    for _ in 0..BUSY_RETRIES {
        match rustix::mount::unmount(place, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => sleep(BUSY_PAUSE),
            // Not a mount any more: somebody else was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

pub(super) fn holds(info: &DeviceInfo, path: &Path) -> Result<bool> {
    let found = path
        .canonicalize()
        .and_then(|path| fs::metadata(&path).map(|meta| (path, meta.dev())));
    match found {
        Ok((path, number)) => Ok(snapshot()?.holds(&info.name, &path, Some(split(number)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(explain(error, "find", path)),
    }
}

pub(super) fn open_device(info: &DeviceInfo, access: Access) -> Result<Opened> {
    let path = &info.io_path;
    let mut notes = Vec::new();
    let mut direct = access == Access::Write { direct: true };
    // Exclusive means for block devices: no mount now or meanwhile, no other program of this kind.
    let exclusive = match access {
        Access::Read => OFlags::empty(),
        Access::Write { .. } => OFlags::EXCL,
    };
    let mut tries = 0;
    let mut file = loop {
        let cache = if direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        match open_with(path, access, exclusive | cache) {
            Ok(file) => break file,
            Err(error) if direct && is_errno(&error, Errno::INVAL) => {
                notes.push("direct I/O is not possible here: going through the cache".to_owned());
                direct = false;
            }
            Err(error) if is_errno(&error, Errno::BUSY) && tries < BUSY_RETRIES => {
                tries += 1;
                sleep(BUSY_PAUSE);
            }
            Err(error) => return Err(explain(error, "open", path)),
        }
    };
    expect_device(
        path,
        path_kind_of(&file).map_err(|error| explain(error, "look at", path))?,
    )?;
    if access == Access::Read {
        // Best effort: it doubles the kernel's read-ahead.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    }
    lock_device(&file, access, path, &mut notes)?;
    let len = file
        .seek(SeekFrom::End(0))
        .map_err(|error| explain(error, "ask the size of", path))?;
    let block = rustix::fs::ioctl_blksszget(&file)
        .unwrap_or(info.logical_block)
        .max(512);
    Ok(Opened {
        len,
        block: if direct { u64::from(block) } else { 1 },
        aligned_memory: direct,
        max_transfer: MAX_TRANSFER,
        notes,
        held: vec![],
        file,
    })
}

/// Keeps other runs away: writers from readers and each other. udev honours the lock as well, and leaves
/// a half-written table alone; it takes it itself for a moment.
fn lock_device(file: &File, access: Access, path: &Path, notes: &mut Vec<String>) -> Result<()> {
    let alone = access != Access::Read;
    for _ in 0..BUSY_RETRIES {
        match lock(file, alone) {
            Ok(()) => return Ok(()),
            Err(error) if is_errno(&error, Errno::WOULDBLOCK) => sleep(BUSY_PAUSE),
            Err(_) => {
                notes.push("the device could not be locked".to_owned());
                return Ok(());
            }
        }
    }
    Err(locked(path))
}

pub(super) fn open_file(path: &Path, access: Access) -> Result<Opened> {
    let fail = |error| explain(error, "open", path);
    let mut notes = Vec::new();
    let mut direct = access == Access::Write { direct: true };
    let len = fs::metadata(path).map_err(fail)?.len();
    if direct && !len.is_multiple_of(FILE_BLOCK) {
        direct = false;
        notes.push(format!(
            "direct I/O needs a file of whole {FILE_BLOCK}-byte blocks: going through the cache"
        ));
    }
    let mut file = None;
    if direct {
        match open_with(path, access, NO_WAIT | OFlags::DIRECT).and_then(probe_direct) {
            Ok(opened) => file = Some(opened),
            Err(error) if is_errno(&error, Errno::INVAL) => {
                direct = false;
                notes.push(
                    "this file system refuses direct I/O: going through the cache".to_owned(),
                );
            }
            Err(error) => return Err(fail(error)),
        }
    }
    let file = match file {
        Some(file) => file,
        None => open_with(path, access, NO_WAIT).map_err(fail)?,
    };
    if access == Access::Read {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    } else {
        lock_alone(&file, path, &mut notes)?;
    }
    let len = file_len(&file, path)?;
    Ok(Opened {
        len,
        block: if direct { FILE_BLOCK } else { 1 },
        aligned_memory: direct,
        max_transfer: MAX_TRANSFER,
        notes,
        held: vec![],
        file,
    })
}

/// Some file systems let a file be opened for direct I/O and fail at the first request.
fn probe_direct(file: File) -> io::Result<File> {
    let mut buf = AlignedBuf::zeroed(FILE_BLOCK as usize);
    file.read_at(&mut buf, 0)?;
    Ok(file)
}

fn path_kind_of(file: &File) -> io::Result<PathKind> {
    Ok(if file.metadata()?.file_type().is_block_device() {
        PathKind::Device
    } else {
        PathKind::Unfit("no device any more")
    })
}

pub(super) fn sync(file: &File, _device: bool) -> io::Result<Synced> {
    strongest(|| file.sync_all(), None, is_unknown)
}

pub(super) fn free_space(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

pub(super) fn can_hold(file: &File, len: u64) -> bool {
    match rustix::fs::fstatfs(file) {
        Ok(stat) if stat.f_type as u64 == MSDOS_SUPER_MAGIC => len <= u64::from(u32::MAX),
        // It may write the zeros, which takes as long as the image.
        Ok(stat) if stat.f_type as u64 == EXFAT_SUPER_MAGIC => true,
        // What lies behind a share or FUSE is told by trying.
        _ => !file
            .set_len(len)
            .is_err_and(|error| error.kind() == io::ErrorKind::FileTooLarge),
    }
}

pub(super) fn drop_cache(file: &File, device: bool) -> io::Result<()> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
    if device {
        // SAFETY: BLKFLSBUF takes no argument; it writes out and forgets the device's pages.
        match unsafe { rustix::ioctl::ioctl(file, NoArg::<BLKFLSBUF>::new()) } {
            // Only for the administrator; the advice above did the same for clean, unmapped pages.
            Ok(()) | Err(Errno::ACCESS | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn discard(file: &File, device: bool, start: u64, len: u64) -> io::Result<bool> {
    if !device {
        return punch(file, start, len);
    }
    // SAFETY: BLKDISCARD takes a pointer to start and length, two u64, which it only reads.
    let request = unsafe { Setter::<BLKDISCARD, [u64; 2]>::new([start, len]) };
    possible(block_ioctl(file, request))
}

pub(super) fn write_zeroes(file: &File, device: bool, start: u64, len: u64) -> io::Result<bool> {
    if !device {
        return Ok(punch(file, start, len)?
            || possible(retry(|| {
                rustix::fs::fallocate(file, FallocateFlags::ZERO_RANGE, start, len)
            }))?);
    }
    // SAFETY: BLKZEROOUT takes a pointer to start and length, two u64, which it only reads.
    let request = unsafe { Setter::<BLKZEROOUT, [u64; 2]>::new([start, len]) };
    possible(block_ioctl(file, request))
}

pub(super) fn reread_table(file: &File) -> io::Result<bool> {
    for _ in 0..BUSY_RETRIES {
        // SAFETY: BLKRRPART takes no argument.
        match unsafe { rustix::ioctl::ioctl(file, NoArg::<BLKRRPART>::new()) } {
            Ok(()) => return Ok(true),
            // Loop devices without partition scanning, disks that cannot have partitions.
            Err(Errno::INVAL | Errno::NOTTY) => return Ok(false),
            Err(Errno::BUSY) => sleep(BUSY_PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Ejects the medium as eject(1) does. Built-in slots know no such request, and need none.
pub(super) fn eject(info: &DeviceInfo, file: File, _held: Vec<File>) -> Result<bool> {
    // SAFETY: CDROMEJECT takes no argument.
    match unsafe { rustix::ioctl::ioctl(&file, NoArg::<CDROMEJECT>::new()) } {
        Ok(()) => Ok(true),
        Err(error) => {
            // Best effort, as it stays: who takes it out does not need it.
            let _ = reread_table(&file);
            match info.bus {
                Bus::Mmc => Ok(false),
                _ => Err(explain(error.into(), "eject", &info.path)),
            }
        }
    }
}

/// systemd-inhibit around a program that ends with its standard input, which ends with us.
pub(super) struct Awake(Child);

pub(super) fn stay_awake() -> Option<Awake> {
    let child = Command::new("systemd-inhibit")
        .args(["--what=sleep:idle", "--mode=block", "--no-ask-password"])
        .args(["--who=pishrink", "--why=A card is being read or written"])
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C is for us, who may go on for a moment.
        .process_group(0)
        .spawn();
    child.ok().map(Awake)
}

impl Drop for Awake {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends at once; one that hangs is not waited for.
        for _ in 0..20 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

fn block_ioctl<const OPCODE: rustix::ioctl::Opcode>(
    file: &File,
    request: Setter<OPCODE, [u64; 2]>,
) -> rustix::io::Result<()> {
    // SAFETY: the callers' opcodes take what the setter points to. They are not repeated when
    // interrupted: the kernel restarts them or reports how it ended.
    unsafe { rustix::ioctl::ioctl(file.as_fd(), request) }
}

/// A hole reads as zeros and takes no space.
fn punch(file: &File, start: u64, len: u64) -> io::Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    possible(retry(|| rustix::fs::fallocate(file, flags, start, len)))
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(&mut call)
}

/// Tells "this medium cannot" from "it failed".
fn possible(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Turns a system's error into one that says what can be done.
pub(super) fn explain(error: io::Error, doing: &str, path: &Path) -> Error {
    let context = format!("cannot {doing} {}", path.display());
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => {
            return Error::refused(format!("{context}: it is in use"))
                .with_source(error)
                .with_hint(format!(
                    "close or unmount what uses it: lsblk, fuser -v {}",
                    path.display()
                ));
        }
        Some(Errno::ACCESS | Errno::PERM) if is_device(path) => {
            "run it with sudo, or join the group that owns the device (often: disk)"
        }
        Some(Errno::ROFS) => {
            "the card is write-protected: move the switch on its or the adapter's side"
        }
        Some(Errno::NOMEDIUM) => {
            return Error::io(context, error)
                .gone()
                .with_hint("there is no card, or it was pulled out: put it in");
        }
        Some(Errno::NXIO | Errno::NODEV | Errno::SHUTDOWN) => {
            return Error::io(context, error)
                .gone()
                .with_hint("the device is gone: was the card pulled out?");
        }
        Some(Errno::IO) => "the device fails: try another reader or card, and look at dmesg",
        _ => return Error::io(context, error),
    };
    Error::io(context, error).with_hint(hint)
}

/// As [`explain`], for a request to what is open.
pub(super) fn explain_request(error: io::Error, doing: &str, path: &Path) -> Error {
    explain(error, doing, path)
}

/// The kernel waits for devices that are not ready by itself.
pub(super) fn is_unready(_error: &io::Error) -> bool {
    false
}

pub(super) fn advise(error: Error) -> Error {
    error
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}
