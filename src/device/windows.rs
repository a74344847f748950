//! Windows: physical drives by number, their volumes locked and dismounted, unbuffered I/O.
//!
//! A write to a part of a disk that a mounted volume covers is denied unless that volume is locked by the
//! writer: the locks are held as long as the drive is open.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::windows::ffi::{OsStrExt, OsStringExt};
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::ptr;
use std::thread::sleep;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_CALL_NOT_IMPLEMENTED, ERROR_CRC, ERROR_DEV_NOT_EXIST,
    ERROR_DEVICE_NOT_CONNECTED, ERROR_DEVICE_REMOVED, ERROR_FILE_INVALID, ERROR_INVALID_FUNCTION,
    ERROR_INVALID_PARAMETER, ERROR_IO_DEVICE, ERROR_LOCK_VIOLATION, ERROR_MEDIA_CHANGED,
    ERROR_NO_MEDIA_IN_DRIVE, ERROR_NO_SUCH_DEVICE, ERROR_NOT_READY, ERROR_NOT_SUPPORTED,
    ERROR_SHARING_VIOLATION, ERROR_WRITE_PROTECT, GENERIC_READ, GENERIC_WRITE, HANDLE,
    INVALID_HANDLE_VALUE,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_SPARSE_FILE, FILE_FLAG_BACKUP_SEMANTICS,
    FILE_FLAG_NO_BUFFERING, FILE_FLAG_SEQUENTIAL_SCAN, FILE_FLAG_WRITE_THROUGH, FILE_SHARE_DELETE,
    FILE_SHARE_READ, FILE_SHARE_WRITE, FindFirstVolumeW, FindNextVolumeW, FindVolumeClose,
    GetDiskFreeSpaceExW, GetFileInformationByHandle, GetVolumeInformationByHandleW,
    GetVolumeInformationW, GetVolumeNameForVolumeMountPointW, GetVolumePathNameW,
    GetVolumePathNamesForVolumeNameW,
};
#[cfg(feature = "cli")]
use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, SetConsoleCtrlHandler};
use windows_sys::Win32::System::IO::DeviceIoControl;
use windows_sys::Win32::System::Ioctl::{
    FSCTL_ALLOW_EXTENDED_DASD_IO, FSCTL_DISMOUNT_VOLUME, FSCTL_LOCK_VOLUME, FSCTL_SET_SPARSE,
    FSCTL_SET_ZERO_DATA, IOCTL_DISK_GET_DRIVE_GEOMETRY_EX, IOCTL_DISK_GET_LENGTH_INFO,
    IOCTL_DISK_IS_WRITABLE, IOCTL_DISK_UPDATE_PROPERTIES, IOCTL_STORAGE_EJECT_MEDIA,
    IOCTL_STORAGE_MEDIA_REMOVAL, IOCTL_STORAGE_QUERY_PROPERTY, StorageAccessAlignmentProperty,
    StorageDeviceProperty,
};
use windows_sys::Win32::System::Power::{
    ES_CONTINUOUS, ES_SYSTEM_REQUIRED, SetThreadExecutionState,
};
use windows_sys::Win32::System::SystemInformation::GetSystemWindowsDirectoryW;

use super::files::strongest;
use super::open::expect_device;
use super::storage_query::{
    Descriptor, Extent, drive_number, extents, geometry, physical_sector, without_prefix,
};
use super::{Access, Bus, DeviceInfo, Opened, PathKind, Volume, not_a_device};
use crate::error::{Error, Result};
use crate::io::Synced;

/// The highest drive number asked for.
const LAST_DRIVE: u32 = 31;

/// `IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS` (ntddvol.h)
const IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS: u32 = 0x0056_0000;

/// In `GetVolumeInformation`'s flags (winnt.h).
const FILE_READ_ONLY_VOLUME: u32 = 0x0008_0000;

/// What unbuffered I/O on a file is aligned to: the largest sector in use.
const FILE_BLOCK: u64 = 4096;

/// One request; the system counts in 32 bits, and locks the pages of one.
const MAX_TRANSFER: usize = 16 << 20;

/// Explorer and virus scanners look at new cards for a moment.
const LOCK_RETRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(150);

const SHARE_ALL: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;

/// A volume with the pieces of disks it lies on.
struct FoundVolume {
    /// `\\?\Volume{…}`, without the backslash that would make it a folder.
    path: PathBuf,
    extents: Vec<Extent>,
}

pub(super) fn list() -> Result<Vec<DeviceInfo>> {
    let volumes = volumes();
    let system = system_disks(&volumes);
    Ok((0..=LAST_DRIVE)
        .filter_map(|number| drive(number, &volumes, &system).ok())
        .collect())
}

pub(super) fn describe(path: &Path) -> Result<DeviceInfo> {
    let number = number_of(path).ok_or_else(|| not_a_device(path))?;
    let volumes = volumes();
    drive(number, &volumes, &system_disks(&volumes))
        .map_err(|error| explain(error, "look at", path))
}

fn number_of(path: &Path) -> Option<u32> {
    drive_number(path.to_str()?)
}

fn drive(number: u32, volumes: &[FoundVolume], system: &[u32]) -> io::Result<DeviceInfo> {
    let name = format!("PhysicalDrive{number}");
    let path = PathBuf::from(format!(r"\\.\{name}"));
    // Without any right on it, anyone may ask these questions.
    let file = open_handle(&path, 0, SHARE_ALL, 0)?;
    let mut answer = [0; 1024];
    let count = query(&file, StorageDeviceProperty, &mut answer)?;
    let descriptor = Descriptor::from_bytes(&answer[..count]).ok_or(io::ErrorKind::InvalidData)?;
    let physical_block = query(&file, StorageAccessAlignmentProperty, &mut answer)
        .ok()
        .and_then(|count| physical_sector(&answer[..count]));
    // A reader without a card has no geometry.
    let (logical_block, size) = control(&file, IOCTL_DISK_GET_DRIVE_GEOMETRY_EX, &[], &mut answer)
        .ok()
        .and_then(|count| geometry(&answer[..count]))
        .unwrap_or((512, 0));
    let writable = control(&file, IOCTL_DISK_IS_WRITABLE, &[], &mut []);
    let on_it = volumes.iter().filter_map(|volume| {
        let here = volume.extents.iter().filter(|extent| extent.disk == number);
        let size = here.map(|extent| extent.len).reduce(u64::saturating_add)?;
        Some(describe_volume(&volume.path, size))
    });
    Ok(DeviceInfo {
        io_path: path.clone(),
        path,
        name,
        vendor: descriptor.vendor,
        model: descriptor.product,
        serial: descriptor.serial,
        size,
        logical_block,
        physical_block: physical_block.unwrap_or(logical_block),
        bus: descriptor.bus,
        removable: descriptor.removable,
        read_only: writable.is_err_and(|error| is_code(&error, ERROR_WRITE_PROTECT)),
        is_partition: false,
        parent: None,
        system: system.contains(&number) || descriptor.bus == Bus::Mapped,
        volumes: on_it.collect(),
        backing_file: None,
        generation: None,
    })
}

fn describe_volume(path: &Path, size: u64) -> Volume {
    let mut root = path.as_os_str().to_owned();
    root.push(r"\");
    let root = wide(Path::new(&root));
    let (mut label, mut fs_type) = ([0_u16; 261], [0_u16; 261]);
    let mut flags = 0;
    // SAFETY: `root` ends with 0; the buffers are as long as is said; null is allowed for the others.
    let known = unsafe {
        GetVolumeInformationW(
            root.as_ptr(),
            label.as_mut_ptr(),
            label.len() as u32,
            ptr::null_mut(),
            ptr::null_mut(),
            &mut flags,
            fs_type.as_mut_ptr(),
            fs_type.len() as u32,
        )
    } != 0;
    let text = |buf: &[u16]| {
        Some(narrow(buf).to_string_lossy().into_owned()).filter(|text| !text.is_empty())
    };
    let mut places = vec![0_u16; 4096];
    let mut count = 0;
    // SAFETY: as above; `count` gets the length used or needed.
    let found = unsafe {
        let len = places.len() as u32;
        GetVolumePathNamesForVolumeNameW(root.as_ptr(), places.as_mut_ptr(), len, &mut count)
    };
    let mount_points = places
        .split(|&unit| unit == 0)
        .take_while(|place| found != 0 && !place.is_empty())
        .map(|place| PathBuf::from(OsString::from_wide(place)))
        .collect();
    Volume {
        path: path.to_owned(),
        label: known.then(|| text(&label)).flatten(),
        fs_type: known.then(|| text(&fs_type)).flatten(),
        size,
        mount_points,
        // What Windows has no driver for, it does not change.
        mounted_read_write: known && flags & FILE_READ_ONLY_VOLUME == 0,
        in_use_by: None,
    }
}

/// Returns all volumes that lie on disks; one that cannot be asked lies on none.
fn volumes() -> Vec<FoundVolume> {
    let mut name = [0_u16; 261];
    let mut found = Vec::new();
    // SAFETY: the buffer is as long as is said.
    let search = unsafe { FindFirstVolumeW(name.as_mut_ptr(), name.len() as u32) };
    if search == INVALID_HANDLE_VALUE {
        return found;
    }
    loop {
        let path = narrow(&name)
            .to_string_lossy()
            .trim_end_matches('\\')
            .to_owned();
        let path = PathBuf::from(path);
        let extents = extents_of(&path);
        found.push(FoundVolume { path, extents });
        // SAFETY: `search` is open, the buffer is as long as is said.
        if unsafe { FindNextVolumeW(search, name.as_mut_ptr(), name.len() as u32) } == 0 {
            break;
        }
    }
    // SAFETY: `search` is open, and not used any more.
    unsafe { FindVolumeClose(search) };
    found
}

fn extents_of(volume: &Path) -> Vec<Extent> {
    let Ok(file) = open_handle(volume, 0, SHARE_ALL, 0) else {
        return vec![];
    };
    let mut answer = [0; 8 + 24 * 32];
    control(
        &file,
        IOCTL_VOLUME_GET_VOLUME_DISK_EXTENTS,
        &[],
        &mut answer,
    )
    .map(|count| extents(&answer[..count]))
    .unwrap_or_default()
}

/// Returns the numbers of the disks below Windows, the programs and this user's files.
fn system_disks(volumes: &[FoundVolume]) -> Vec<u32> {
    let mut places: Vec<PathBuf> = ["SystemDrive", "ProgramFiles", "USERPROFILE"]
        .iter()
        .filter_map(|name| env::var_os(name).map(PathBuf::from))
        .collect();
    let mut windows = [0_u16; 261];
    // SAFETY: the buffer is as long as is said.
    let len = unsafe { GetSystemWindowsDirectoryW(windows.as_mut_ptr(), windows.len() as u32) };
    if len > 0 && (len as usize) < windows.len() {
        places.push(narrow(&windows).into());
    }
    places
        .iter()
        .flat_map(|place| disks_under(place, volumes))
        .collect()
}

/// Returns the numbers of the disks that the file system of `path` lies on.
fn disks_under(path: &Path, volumes: &[FoundVolume]) -> Vec<u32> {
    let (mut root, mut name) = ([0_u16; 1024], [0_u16; 261]);
    let path = wide(path);
    // SAFETY: the text ends with 0, the buffer is as long as is said.
    if unsafe { GetVolumePathNameW(path.as_ptr(), root.as_mut_ptr(), root.len() as u32) } == 0 {
        return vec![];
    }
    // Documented for drives and folders as people write them, not for `\\?\C:\`.
    let root = narrow(&root);
    let root = wide(Path::new(without_prefix(&root.to_string_lossy())));
    // SAFETY: as above.
    let found = unsafe {
        GetVolumeNameForVolumeMountPointW(root.as_ptr(), name.as_mut_ptr(), name.len() as u32)
    };
    if found == 0 {
        return vec![];
    }
    let name = narrow(&name)
        .to_string_lossy()
        .trim_end_matches('\\')
        .to_owned();
    volumes
        .iter()
        .filter(|volume| volume.path.as_os_str().eq_ignore_ascii_case(&name))
        .flat_map(|volume| volume.extents.iter().map(|extent| extent.disk))
        .collect()
}

/// Locks and dismounts the volumes as long as the returned handles are open. Whoever looks at one later
/// mounts it again.
pub(super) fn unmount(info: &DeviceInfo, volumes: &[Volume], _force: bool) -> Result<Vec<File>> {
    volumes
        .iter()
        .map(|volume| lock(info, &volume.path))
        .collect()
}

/// Locks and dismounts a volume, as long as the returned handle is open.
fn lock(info: &DeviceInfo, volume: &Path) -> Result<File> {
    let shown = || format!("{} of {}", volume.display(), info.path.display());
    let file = open_handle(
        volume,
        GENERIC_READ | GENERIC_WRITE,
        FILE_SHARE_READ | FILE_SHARE_WRITE,
        0,
    )
    .map_err(|error| explain(error, "open the volume", volume))?;
    // Lets the last, partial cluster be reached as well; not every file system knows it.
    let _ = control(&file, FSCTL_ALLOW_EXTENDED_DASD_IO, &[], &mut []);
    let mut tries = 0;
    while let Err(error) = control(&file, FSCTL_LOCK_VOLUME, &[], &mut []) {
        tries += 1;
        if tries > LOCK_RETRIES {
            return Err(
                Error::refused(format!("cannot lock {}: it is in use", shown()))
                    .with_source(error)
                    .with_hint("close the windows and programs that show it"),
            );
        }
        sleep(LOCK_PAUSE);
    }
    control(&file, FSCTL_DISMOUNT_VOLUME, &[], &mut [])
        .map_err(|error| explain(error, "dismount", volume))?;
    Ok(file)
}

pub(super) fn free_space(dir: &Path) -> io::Result<u64> {
    let mut free = 0;
    let dir = wide(dir);
    // SAFETY: `dir` ends with 0; null is allowed for what is not asked.
    let done =
        unsafe { GetDiskFreeSpaceExW(dir.as_ptr(), &mut free, ptr::null_mut(), ptr::null_mut()) };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(free)
}

pub(super) fn is_same_file(a: &Path, b: &Path) -> io::Result<bool> {
    let (a, b) = (identity(a)?, identity(b)?);
    Ok(a.is_some() && a == b)
}

/// Returns volume and file number, or the drive's number alone.
fn identity(path: &Path) -> io::Result<Option<(u32, u32, u32)>> {
    if let Some(number) = number_of(path) {
        return Ok(Some((u32::MAX, u32::MAX, number)));
    }
    let file = match open_handle(path, 0, SHARE_ALL, FILE_FLAG_BACKUP_SEMANTICS) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut info = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open as long as `file` lives, `info` is of the type that is filled.
    if unsafe { GetFileInformationByHandle(handle(&file), &mut info) } == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Some((
        info.dwVolumeSerialNumber,
        info.nFileIndexHigh,
        info.nFileIndexLow,
    )))
}

pub(super) fn holds(info: &DeviceInfo, path: &Path) -> Result<bool> {
    let number = number_of(&info.path);
    // A folder can be a mount point on the way, which only the whole path tells.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(disks_under(&path, &volumes())
        .into_iter()
        .any(|disk| Some(disk) == number))
}

pub(super) fn path_kind(path: &Path) -> io::Result<PathKind> {
    if number_of(path).is_some() {
        return Ok(PathKind::Device);
    }
    let text = path.as_os_str().to_string_lossy();
    if text.starts_with(r"\\.\") {
        return Ok(PathKind::Unfit(
            r"no disk: those are called \\.\PhysicalDrive and a number",
        ));
    }
    let meta = fs::metadata(path)?;
    Ok(if meta.is_file() {
        PathKind::File
    } else if meta.is_dir() {
        PathKind::Unfit("a folder")
    } else {
        PathKind::Unfit("no file")
    })
}

pub(super) fn open_device(info: &DeviceInfo, access: Access) -> Result<Opened> {
    let path = &info.io_path;
    expect_device(
        path,
        path_kind(path).map_err(|error| explain(error, "open", path))?,
    )?;
    // A volume without a letter counts as well: all that lies under a write must be locked. A source's
    // have been locked by `unmount`, or the user wants it read as it is.
    let mut held = Vec::new();
    if access != Access::Read {
        let number = number_of(path);
        for volume in volumes() {
            let mut extents = volume.extents.iter();
            if extents.any(|extent| Some(extent.disk) == number) {
                held.push(lock(info, &volume.path)?);
            }
        }
    }
    let (rights, flags) = match access {
        Access::Read => (GENERIC_READ, FILE_FLAG_SEQUENTIAL_SCAN),
        Access::Write { direct: true } => (
            GENERIC_READ | GENERIC_WRITE,
            FILE_FLAG_NO_BUFFERING | FILE_FLAG_WRITE_THROUGH,
        ),
        Access::Write { direct: false } => (GENERIC_READ | GENERIC_WRITE, 0),
    };
    let file = open_handle(path, rights, FILE_SHARE_READ | FILE_SHARE_WRITE, flags)
        .map_err(|error| explain(error, "open", path))?;
    let mut len = [0; 8];
    control(&file, IOCTL_DISK_GET_LENGTH_INFO, &[], &mut len)
        .map_err(|error| explain(error, "ask the size of", path))?;
    Ok(Opened {
        file,
        len: u64::from_le_bytes(len),
        block: u64::from(info.logical_block),
        aligned_memory: true,
        max_transfer: MAX_TRANSFER,
        notes: vec![],
        held,
    })
}

pub(super) fn open_file(path: &Path, access: Access) -> Result<Opened> {
    let fail = |error| explain(error, "open", path);
    let mut notes = Vec::new();
    let len = fs::metadata(path).map_err(fail)?.len();
    let mut direct = access == Access::Write { direct: true };
    if direct && !len.is_multiple_of(FILE_BLOCK) {
        direct = false;
        notes.push(format!(
            "unbuffered I/O needs a file of whole {FILE_BLOCK}-byte blocks: going through the cache"
        ));
    }
    let file = match access {
        Access::Read => open_handle(path, GENERIC_READ, SHARE_ALL, FILE_FLAG_SEQUENTIAL_SCAN),
        Access::Write { .. } => {
            let unbuffered = FILE_FLAG_NO_BUFFERING | FILE_FLAG_WRITE_THROUGH;
            // Others may read it, but not write.
            let flags = if direct { unbuffered } else { 0 };
            open_handle(path, GENERIC_READ | GENERIC_WRITE, FILE_SHARE_READ, flags)
        }
    }
    .map_err(fail)?;
    Ok(Opened {
        len: file.metadata().map_err(fail)?.len(),
        file,
        block: if direct { FILE_BLOCK } else { 1 },
        aligned_memory: direct,
        max_transfer: MAX_TRANSFER,
        notes,
        held: vec![],
    })
}

pub(super) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(buf, offset)
}

pub(super) fn write_at(file: &File, buf: &[u8], offset: u64) -> io::Result<usize> {
    file.seek_write(buf, offset)
}

pub(super) fn sync(file: &File, device: bool) -> io::Result<Synced> {
    let unknown = [
        ERROR_INVALID_FUNCTION,
        ERROR_NOT_SUPPORTED,
        ERROR_INVALID_PARAMETER,
        ERROR_CALL_NOT_IMPLEMENTED,
    ];
    let is_unknown = |error: &io::Error| unknown.iter().any(|&code| is_code(error, code));
    // Some drivers of readers know no such request; writes to a drive go through its cache anyway.
    strongest(|| file.sync_all(), None, is_unknown).map(|synced| match device {
        true => Synced::Full,
        false => synced,
    })
}

/// Creates a file that was not there. Who can read it is for its folder to say.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

pub(super) fn can_hold(file: &File, len: u64) -> bool {
    let mut kind = [0_u16; 261];
    // SAFETY: the handle is open as long as `file` lives; the buffer is as long as is said; null is allowed
    // for the others.
    let known = unsafe {
        GetVolumeInformationByHandleW(
            handle(file),
            ptr::null_mut(),
            0,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            kind.as_mut_ptr(),
            kind.len() as u32,
        )
    } != 0;
    let fat = known && narrow(&kind).to_string_lossy().starts_with("FAT");
    !fat || len <= u64::from(u32::MAX)
}

/// Unbuffered handles leave nothing behind.
pub(super) fn drop_cache(_file: &File, _device: bool) -> io::Result<()> {
    Ok(())
}

pub(super) fn discard(file: &File, device: bool, start: u64, len: u64) -> io::Result<bool> {
    // In a file that is not sparse it would write the zeros.
    let sparse = || {
        file.metadata()
            .map(|meta| meta.file_attributes() & FILE_ATTRIBUTE_SPARSE_FILE != 0)
    };
    Ok(!device && sparse()? && write_zeroes(file, device, start, len)?)
}

pub(super) fn write_zeroes(file: &File, device: bool, start: u64, len: u64) -> io::Result<bool> {
    if device {
        return Ok(false);
    }
    // FILE_ZERO_DATA_INFORMATION: the first byte, and the one after the last.
    let range: [u8; 16] = {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&start.to_le_bytes());
        range[8..].copy_from_slice(&(start + len).to_le_bytes());
        range
    };
    // Not every file system can; then the zeros are written.
    Ok(control(file, FSCTL_SET_ZERO_DATA, &range, &mut []).is_ok())
}

/// Best effort: without it, the first write near the end fills all before it.
pub(super) fn make_sparse(file: &File) {
    let _ = control(file, FSCTL_SET_SPARSE, &[], &mut []);
}

pub(super) fn reread_table(file: &File) -> io::Result<bool> {
    control(file, IOCTL_DISK_UPDATE_PROPERTIES, &[], &mut []).map(|_| true)
}

/// Ejects the medium; its volumes are locked and dismounted as long as `held` is there.
pub(super) fn eject(info: &DeviceInfo, file: File, held: Vec<File>) -> Result<bool> {
    if !info.removable {
        // A disk that cannot lose its medium: the system looks at it again.
        let _ = reread_table(&file);
        return Ok(false);
    }
    // PREVENT_MEDIA_REMOVAL: allow it. Not every driver knows that.
    let _ = control(&file, IOCTL_STORAGE_MEDIA_REMOVAL, &[0], &mut []);
    let ejected = control(&file, IOCTL_STORAGE_EJECT_MEDIA, &[], &mut []);
    drop(held);
    match ejected {
        Ok(_) => Ok(true),
        Err(error) => {
            let _ = reread_table(&file);
            Err(explain(error, "eject", &info.path))
        }
    }
}

#[cfg(feature = "cli")]
static HANDLER: std::sync::OnceLock<fn()> = std::sync::OnceLock::new();

#[cfg(feature = "cli")]
pub(super) fn on_interrupt(handler: fn()) {
    let _ = HANDLER.set(handler);
    // SAFETY: `console_event` has the type that is asked for, and is there as long as the program.
    unsafe { SetConsoleCtrlHandler(Some(console_event), 1) };
}

/// The system calls it on a thread of its own.
#[cfg(feature = "cli")]
unsafe extern "system" fn console_event(event: u32) -> windows_sys::core::BOOL {
    if let Some(handler) = HANDLER.get() {
        handler();
    }
    // Once this returns from what is more than a key, the program is ended: the work gets the time that
    // the system gives it.
    if event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT {
        sleep(Duration::from_secs(30));
    }
    1
}

/// Until it is dropped, on the thread that asked for it.
pub(super) struct Awake(());

pub(super) fn stay_awake() -> Option<Awake> {
    // SAFETY: it takes flags, and touches no memory of ours.
    let before = unsafe { SetThreadExecutionState(ES_CONTINUOUS | ES_SYSTEM_REQUIRED) };
    (before != 0).then_some(Awake(()))
}

impl Drop for Awake {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { SetThreadExecutionState(ES_CONTINUOUS) };
    }
}

fn query(file: &File, property: i32, answer: &mut [u8]) -> io::Result<usize> {
    // STORAGE_PROPERTY_QUERY: the property, PropertyStandardQuery (0), room for more.
    let mut question = [0; 12];
    question[..4].copy_from_slice(&property.to_le_bytes());
    control(file, IOCTL_STORAGE_QUERY_PROPERTY, &question, answer)
}

/// Sends a request to a driver; returns how many bytes it answered.
fn control(file: &File, code: u32, question: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: the handle is open as long as `file` lives; both buffers are as long as is said, and the
    // answer is plain bytes. All codes used here copy through the system's own buffers, so that alignment
    // does not matter. The handle is not overlapped, so that nothing is written after the return.
    let done = unsafe {
        DeviceIoControl(
            handle(file),
            code,
            question.as_ptr().cast(),
            question.len() as u32,
            answer.as_mut_ptr().cast(),
            answer.len() as u32,
            &mut count,
            ptr::null_mut(),
        )
    };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((count as usize).min(answer.len()))
}

fn handle(file: &File) -> HANDLE {
    file.as_raw_handle()
}

fn open_handle(path: &Path, rights: u32, share: u32, flags: u32) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(rights)
        .share_mode(share)
        .custom_flags(flags)
        .open(path)
}

/// Returns the path as the system takes it, with a 0 at its end.
fn wide(path: &Path) -> Vec<u16> {
    path.as_os_str().encode_wide().chain([0]).collect()
}

/// Returns the text before the first 0.
fn narrow(buf: &[u16]) -> OsString {
    let end = buf.iter().position(|&unit| unit == 0).unwrap_or(buf.len());
    OsString::from_wide(&buf[..end])
}

fn is_code(error: &io::Error, code: u32) -> bool {
    error.raw_os_error() == Some(code as i32)
}

/// What is said of a device that does not answer any more.
const GONE: [u32; 8] = [
    ERROR_NOT_READY,
    ERROR_DEV_NOT_EXIST,
    ERROR_NO_SUCH_DEVICE,
    ERROR_FILE_INVALID,
    ERROR_MEDIA_CHANGED,
    ERROR_NO_MEDIA_IN_DRIVE,
    ERROR_DEVICE_NOT_CONNECTED,
    ERROR_DEVICE_REMOVED,
];

/// As [`explain`], for a request to what is open.
pub(super) fn explain_request(error: io::Error, doing: &str, path: &Path) -> Error {
    explain(error, doing, path)
}

/// The system waits for devices that are not ready by itself.
pub(super) fn is_unready(_error: &io::Error) -> bool {
    false
}

pub(super) fn advise(error: Error) -> Error {
    error
}

/// Turns a system's error into one that says what can be done.
pub(super) fn explain(error: io::Error, doing: &str, path: &Path) -> Error {
    let context = format!("cannot {doing} {}", path.display());
    let on_device = path.as_os_str().to_string_lossy().starts_with(r"\\");
    let hint = match error.raw_os_error().map(|code| code as u32) {
        Some(ERROR_SHARING_VIOLATION | ERROR_LOCK_VIOLATION) => {
            return Error::refused(format!("{context}: it is in use"))
                .with_source(error)
                .with_hint("close the windows and programs that use it");
        }
        Some(ERROR_ACCESS_DENIED) if on_device => {
            "run it as administrator; if you do, look at Controlled Folder Access in Windows Security"
        }
        Some(ERROR_WRITE_PROTECT) => {
            "the card is write-protected: move the switch on its or the adapter's side"
        }
        Some(code) if GONE.contains(&code) => {
            return Error::io(context, error)
                .gone()
                .with_hint("there is no card, or it was pulled out: put it in");
        }
        Some(ERROR_CRC | ERROR_IO_DEVICE) => "the device fails: try another reader or card",
        _ => return Error::io(context, error),
    };
    Error::io(context, error).with_hint(hint)
}
