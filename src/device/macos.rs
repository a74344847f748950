//! macOS: `diskutil` for the list and for unmounting, raw devices, `authopen` for those who are not root.
//!
//! A raw device (`/dev/rdisk4`) takes whole blocks only, tells its size by ioctl (stat says 0), and fails
//! `F_FULLFSYNC` with ENOTTY: that is why [`sync`] tells it from a file.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::ioctl::{Getter, NoArg, Opcode, opcode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::diskutil::{Info, Layout, whole_name};
use super::files::strongest;
use super::open::expect_device;
use super::unix::{NO_WAIT, file_len, is_errno, is_unknown, lock_alone, open_with};
pub(super) use super::unix::{create_private, is_same_file, make_sparse, read_at, write_at};
use super::{Access, DeviceInfo, Opened, PathKind, Volume, not_a_device};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Synced;

// sys/disk.h
const DKIOCSYNCHRONIZECACHE: Opcode = opcode::none(b'd', 22);
const DKIOCGETBLOCKSIZE: Opcode = opcode::read::<u32>(b'd', 24);
const DKIOCGETBLOCKCOUNT: Opcode = opcode::read::<u64>(b'd', 25);
const DKIOCGETMAXBYTECOUNTREAD: Opcode = opcode::read::<u64>(b'd', 70);
const DKIOCGETMAXBYTECOUNTWRITE: Opcode = opcode::read::<u64>(b'd', 71);

/// One request to a file; the kernel refuses 2 GiB and more.
const MAX_TRANSFER: usize = 1 << 30;

pub(super) fn list() -> Result<Vec<DeviceInfo>> {
    let layout = layout()?;
    let names: Vec<_> = layout.names().map(str::to_owned).collect();
    // A disk that was pulled out meanwhile is left out.
    Ok(names
        .iter()
        .filter_map(|name| device(&layout, name).ok())
        .collect())
}

pub(super) fn describe(path: &Path) -> Result<DeviceInfo> {
    let name = device_name(path)?.ok_or_else(|| not_a_device(path))?;
    device(&layout()?, &name)
}

fn layout() -> Result<Layout> {
    Layout::parse(&diskutil(&["list", "-plist"])?)
}

fn device(layout: &Layout, name: &str) -> Result<DeviceInfo> {
    let info = Info::parse(&diskutil(&["info", "-plist", name])?)?;
    let fixed: Vec<&str> = layout
        .mounted(name)
        .into_iter()
        .filter(|part| {
            let info = diskutil(&["info", "-plist", part]).and_then(|plist| Info::parse(&plist));
            info.is_ok_and(|info| !info.is_writable_volume())
        })
        .collect();
    layout
        .device(&info, &|part| !fixed.contains(&part))
        .ok_or_else(|| Error::new(ErrorKind::Io, format!("diskutil does not know {name}")))
}

/// Runs diskutil and returns what it printed.
fn diskutil(arguments: &[&str]) -> Result<Vec<u8>> {
    let what = format!("diskutil {}", arguments.join(" "));
    let output = Command::new("/usr/sbin/diskutil")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io(format!("cannot run {what}"), error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&[output.stderr, output.stdout].concat())
        .trim()
        .to_owned();
    Err(Error::new(ErrorKind::Io, format!("{what} failed: {said}")))
}

/// Returns `disk4` for `/dev/disk4` and `/dev/rdisk4`, `None` for what is no disk.
fn device_name(path: &Path) -> Result<Option<String>> {
    let path = path
        .canonicalize()
        .map_err(|error| explain(error, "look at", path))?;
    let name = path.strip_prefix("/dev").ok().and_then(Path::to_str);
    let name = name.map(|name| name.strip_prefix('r').unwrap_or(name));
    Ok(name
        .filter(|name| whole_name(name).is_some())
        .map(str::to_owned))
}

/// What is unmounted stays so until the disk is closed by its last writer: nothing has to be held.
pub(super) fn unmount(info: &DeviceInfo, volumes: &[Volume]) -> Result<Vec<File>> {
    let mut commands = Vec::new();
    if info.is_partition {
        commands.extend(
            volumes
                .iter()
                .map(|volume| ("unmount", volume.path.display().to_string())),
        );
    } else if !volumes.is_empty() {
        // APFS containers are disks of their own; the disk comes last.
        let layout = layout()?;
        commands.extend(
            layout
                .containers(&info.name)
                .map(|name| ("unmountDisk", name.to_owned())),
        );
        commands.push(("unmountDisk", info.name.clone()));
    }
    for (verb, name) in commands {
        diskutil(&[verb, &name]).map_err(|error| {
            let what = format!("cannot unmount {}", info.path.display());
            Error::refused(what).with_source(error).with_hint(
                "close the programs that use it, Disk Utility too, or eject it in the Finder",
            )
        })?;
    }
    Ok(vec![])
}

pub(super) fn holds(info: &DeviceInfo, path: &Path) -> Result<bool> {
    let stat = match rustix::fs::statfs(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(explain(error.into(), "find", path)),
    };
    let source = text(&stat.f_mntfromname);
    let Some(name) = source.strip_prefix("/dev/") else {
        return Ok(false);
    };
    let disk = whole_name(&info.name).unwrap_or(&info.name);
    Ok(layout()?.lies_on(name, disk))
}

pub(super) fn path_kind(path: &Path) -> io::Result<PathKind> {
    let kind = fs::metadata(path)?.file_type();
    // A raw disk is a character device.
    if (kind.is_block_device() || kind.is_char_device()) && matches!(device_name(path), Ok(Some(_)))
    {
        return Ok(PathKind::Device);
    }
    super::unix::path_kind(path)
}

pub(super) fn open_device(info: &DeviceInfo, access: Access) -> Result<Opened> {
    let path = &info.io_path;
    let fail = |error| explain(error, "open", path);
    let mut notes = Vec::new();
    let file = match open_with(path, access, OFlags::empty()) {
        Err(error) if is_denied(&error) && !rustix::process::geteuid().is_root() => {
            authopen(path, access).map_err(|cause| explain(error, "open", path).within(cause))?
        }
        result => result.map_err(fail)?,
    };
    expect_device(path, path_kind(path).map_err(fail)?)?;
    if access != Access::Read
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
    {
        notes.push("the device could not be locked".to_owned());
    }
    // SAFETY: these requests write one value of the type that their number tells, to the getter's own.
    let (block, count, max) = unsafe {
        (
            rustix::ioctl::ioctl(&file, Getter::<DKIOCGETBLOCKSIZE, u32>::new()),
            rustix::ioctl::ioctl(&file, Getter::<DKIOCGETBLOCKCOUNT, u64>::new()),
            match access {
                Access::Read => {
                    rustix::ioctl::ioctl(&file, Getter::<DKIOCGETMAXBYTECOUNTREAD, u64>::new())
                }
                Access::Write { .. } => {
                    rustix::ioctl::ioctl(&file, Getter::<DKIOCGETMAXBYTECOUNTWRITE, u64>::new())
                }
            },
        )
    };
    let size_of = |error: Errno| explain(error.into(), "ask the size of", path);
    let block = u64::from(block.map_err(size_of)?).max(1);
    let len = count.map_err(size_of)?.checked_mul(block).unwrap_or(0);
    uncached(&file, &mut notes);
    // A limit that is no whole number of blocks, or none, is of no use.
    let max = max.unwrap_or(0).min(MAX_TRANSFER as u64);
    let max = if max < block {
        1 << 20
    } else {
        max - max % block
    };
    Ok(Opened {
        file,
        len,
        block,
        aligned_memory: true,
        max_transfer: max as usize,
        notes,
        held: vec![],
    })
}

pub(super) fn open_file(path: &Path, access: Access) -> Result<Opened> {
    let fail = |error| explain(error, "open", path);
    let mut notes = Vec::new();
    let file = open_with(path, access, NO_WAIT).map_err(fail)?;
    if access != Access::Read {
        lock_alone(&file, path, &mut notes)?;
    }
    if (access == Access::Write { direct: true }) {
        uncached(&file, &mut notes);
    }
    let len = file_len(&file, path)?;
    Ok(Opened {
        file,
        len,
        // F_NOCACHE takes any range of a file.
        block: 1,
        aligned_memory: false,
        max_transfer: MAX_TRANSFER,
        notes,
        held: vec![],
    })
}

fn uncached(file: &File, notes: &mut Vec<String>) {
    if rustix::fs::fcntl_nocache(file, true).is_err() {
        notes.push("the cache could not be turned off".to_owned());
    }
}

/// Has the system ask the user for permission, and receives the open file through a socket: authopen(1)
/// sends it as a message of its own kind (`SCM_RIGHTS`) to what it has as standard output.
fn authopen(path: &Path, access: Access) -> Result<File> {
    let broken = |error: io::Error| Error::io("cannot ask for permission (authopen)", error);
    let flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write { .. } => OFlags::RDWR,
    };
    let (ours, theirs) = UnixStream::pair().map_err(broken)?;
    let mut child = Command::new("/usr/libexec/authopen")
        .arg("-stdoutpipe")
        .arg("-o")
        .arg(flags.bits().to_string())
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(broken)?;
    let received = receive_file(&ours);
    let status = child.wait().map_err(broken)?;
    match received.map_err(broken)? {
        Some(file) if status.success() => Ok(file),
        _ => Err(Error::refused("permission was not given").with_hint(
            "answer the system's question, or run it with sudo (over ssh there is no question)",
        )),
    }
}

fn receive_file(socket: &UnixStream) -> io::Result<Option<File>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::empty())
    })?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let Some(file) = files.next() else {
        return Ok(None);
    };
    // No flag of recvmsg does that here: diskutil must not inherit it and keep the disk busy.
    rustix::io::fcntl_setfd(&file, FdFlags::CLOEXEC)?;
    Ok(Some(File::from(file)))
}

pub(super) fn sync(file: &File, device: bool) -> io::Result<Synced> {
    if !device {
        // F_FULLFSYNC has the disk empty its cache as well; fsync(2) alone does not. Most shares, and exFAT
        // of some versions, know only that.
        let plain = || Ok(rustix::io::retry_on_intr(|| rustix::fs::fsync(file))?);
        return strongest(|| file.sync_all(), Some(&plain), is_unknown);
    }
    // For a raw device fsync(2) does nothing, and F_FULLFSYNC is refused. Its writes pass no cache of the
    // system's, and this has the device empty its own.
    // SAFETY: DKIOCSYNCHRONIZECACHE takes no argument.
    let flush = || unsafe { rustix::ioctl::ioctl(file, NoArg::<DKIOCSYNCHRONIZECACHE>::new()) };
    let flush = || Ok(rustix::io::retry_on_intr(flush)?);
    // Devices without a cache say that they know no such request.
    strongest(flush, None, is_unknown).map(|_| Synced::Full)
}

pub(super) fn free_space(dir: &Path) -> io::Result<u64> {
    // statvfs counts blocks in 32 bits here.
    let stat = rustix::fs::statfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(u64::from(stat.f_bsize)))
}

pub(super) fn can_hold(file: &File, len: u64) -> bool {
    // Trying would write the zeros on HFS+ and exFAT.
    let Ok(stat) = rustix::fs::fstatfs(file) else {
        return true;
    };
    let (kind, source) = (text(&stat.f_fstypename), text(&stat.f_mntfromname));
    !(kind == "msdos" || source.starts_with("msdos:")) || len <= u64::from(u32::MAX)
}

/// Returns the C string in a fixed array.
fn text(array: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = array
        .iter()
        .map(|&byte| byte as u8)
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Raw devices and files opened with `F_NOCACHE` leave nothing behind.
pub(super) fn drop_cache(_file: &File, _device: bool) -> io::Result<()> {
    Ok(())
}

pub(super) fn discard(_file: &File, _device: bool, _start: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

pub(super) fn write_zeroes(
    _file: &File,
    _device: bool,
    _start: u64,
    _len: u64,
) -> io::Result<bool> {
    Ok(false)
}

/// The system looks at the table by itself when the last writer closes the disk.
pub(super) fn reread_table(_file: &File) -> io::Result<bool> {
    Ok(false)
}

fn is_denied(error: &io::Error) -> bool {
    is_errno(error, Errno::ACCESS) || is_errno(error, Errno::PERM)
}

/// Turns a system's error into one that says what can be done.
pub(super) fn explain(error: io::Error, doing: &str, path: &Path) -> Error {
    let context = format!("cannot {doing} {}", path.display());
    let on_device = path.starts_with("/dev");
    let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => {
            return Error::refused(format!("{context}: it is in use"))
                .with_source(error)
                .with_hint(
                    "close Disk Utility and what else uses it, then: diskutil unmountDisk force",
                );
        }
        Some(Errno::ACCESS) if on_device => "run it with sudo",
        Some(Errno::PERM) if on_device => {
            "allow your terminal System Settings > Privacy & Security > Files and Folders > Removable Volumes"
        }
        Some(Errno::ROFS) => {
            "the card is write-protected: move the switch on its or the adapter's side"
        }
        Some(Errno::NXIO | Errno::NODEV) => "the device is gone: was the card pulled out?",
        Some(Errno::IO) => "the device fails: try another reader or card",
        _ => return Error::io(context, error),
    };
    Error::io(context, error).with_hint(hint)
}
