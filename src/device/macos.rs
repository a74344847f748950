//! macOS: `diskutil` for the list and for unmounting, raw devices, `authopen` for those who are not root.
//!
//! A raw device (`/dev/rdisk4`) takes whole blocks only, tells its size by ioctl (stat says 0), and fails
//! `F_FULLFSYNC` with ENOTTY: that is why [`sync`] tells it from a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::{Errno, FdFlags};
use rustix::ioctl::{Getter, NoArg, Opcode, opcode};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::darwin::{self, Asked, OpenAs, System, When};
use super::diskutil::{self, Info, Layout, whole_name};
use super::files::strongest;
use super::open::expect_device;
use super::patience::{self, Patience};
#[cfg(feature = "cli")]
pub(super) use super::unix::on_interrupt;
use super::unix::{NO_WAIT, file_len, is_unknown, lock_alone, open_with};
pub(super) use super::unix::{create_private, is_same_file, make_sparse, read_at, write_at};
use super::{Access, DeviceInfo, Opened, PathKind, Volume, not_a_device};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Synced;

// sys/disk.h
const DKIOCEJECT: Opcode = opcode::none(b'd', 21);
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

/// This Mac.
struct Mac;

impl System for Mac {
    type File = File;

    fn diskutil(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        diskutil(arguments)
    }

    fn open(&self, path: &Path, how: OpenAs) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(how.write)
            .custom_flags(how.flags())
            .open(path)
    }

    fn authopen(&self, path: &Path, how: OpenAs) -> io::Result<Asked<File>> {
        authopen(path, how)
    }

    fn lock(&self, file: &File, alone: bool) -> io::Result<()> {
        super::unix::lock(file, alone)
    }

    fn eject(&self, file: &File) -> io::Result<()> {
        // SAFETY: DKIOCEJECT takes no argument.
        Ok(unsafe { rustix::ioctl::ioctl(file, NoArg::<DKIOCEJECT>::new()) }?)
    }

    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Failing media can keep diskutil for ever.
const PATIENCE: Patience = Patience {
    tell: Duration::from_secs(5),
    give_up: Duration::from_secs(60),
};

/// Runs diskutil and returns what it printed.
fn diskutil(arguments: &[&str]) -> Result<Vec<u8>> {
    let what = format!("diskutil {}", arguments.join(" "));
    let mut command = Command::new("/usr/sbin/diskutil");
    let output = patience::run(command.args(arguments), &what, PATIENCE)
        .map_err(|error| Error::io(format!("cannot run {what}"), error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = diskutil::error_message(&output.stdout, &output.stderr);
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
pub(super) fn unmount(info: &DeviceInfo, volumes: &[Volume], force: bool) -> Result<Vec<File>> {
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
    darwin::unmount(&Mac, &info.path, &commands, force)?;
    Ok(vec![])
}

pub(super) fn holds(info: &DeviceInfo, path: &Path) -> Result<bool> {
    let stat = match rustix::fs::statfs(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(explain(error.into(), "find", path)),
    };
    let source = text(&stat.f_mntfromname);
    let Some(name) = darwin::mounted_from(&source) else {
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
    // What the user wants to be read although it is mounted cannot be had alone.
    let exclusive = access != Access::Read || info.mounted().next().is_none();
    let again = || unmount_again(info, access);
    let (file, mut notes) = darwin::open(&Mac, path, access, exclusive, &again)?;
    let kind = path_kind(path).map_err(|error| explain(error, "open", path))?;
    expect_device(path, kind)?;
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

/// Unmounts what was mounted since the disk was looked at: the system looks at new cards for a while.
fn unmount_again(info: &DeviceInfo, access: Access) -> Result<()> {
    let now = describe(&info.path)?;
    let mounted: Vec<_> = now.mounted().cloned().collect();
    if mounted.is_empty() || !now.removable {
        return Ok(());
    }
    unmount(&now, &mounted, access != Access::Read).map(drop)
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
fn authopen(path: &Path, how: OpenAs) -> io::Result<Asked<File>> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new("/usr/libexec/authopen")
        .arg("-stdoutpipe")
        .arg("-o")
        .arg(how.flags().to_string())
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive_file(&ours);
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Nothing that long is worth showing.
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let status = child.wait()?;
    let file = received?.filter(|_| status.success());
    Ok(Asked { file, said })
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

pub(super) use darwin::{advise, is_unready};

/// Turns a system's error into one that says what can be done.
pub(super) fn explain(error: io::Error, doing: &str, path: &Path) -> Error {
    darwin::explain(error, doing, path, When::Opening, Mac.is_root())
}

/// As [`explain`], for a request to what is open.
pub(super) fn explain_request(error: io::Error, doing: &str, path: &Path) -> Error {
    darwin::explain(error, doing, path, When::Request, Mac.is_root())
}

/// Ejects the medium, and closes it.
pub(super) fn eject(info: &DeviceInfo, file: File, _held: Vec<File>) -> Result<bool> {
    darwin::eject(&Mac, file, &info.name).map(|()| true)
}

/// caffeinate, which ends with us.
pub(super) struct Awake(Child);

pub(super) fn stay_awake() -> Option<Awake> {
    let child = Command::new("/usr/bin/caffeinate")
        .args(["-i", "-m", "-w", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.ok().map(Awake)
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
