//! Sources and targets, opened: a file or a device behind [`ReadAt`] and [`WriteAt`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::aligned::Bounced;
use super::{Access, DeviceInfo, Opened, PathKind, describe, not_a_device, os, safety};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, WriteAt, check_range};

/// An open file or device, with requests of any size handed on in pieces and repeated until all is done.
/// Offsets, lengths and memory must be as the medium wants them; [`Bounced`] sees to that.
#[derive(Debug)]
struct Medium {
    file: File,
    path: PathBuf,
    device: bool,
    len: u64,
    max_transfer: usize,
    /// What the last sync left uncertain.
    doubt: Mutex<Option<&'static str>>,
}

impl Medium {
    fn error(&self, doing: &str, count: usize, offset: u64, error: io::Error) -> Error {
        let doing = format!("{doing} {count} bytes at byte {offset} of");
        let early = error.kind() == io::ErrorKind::UnexpectedEof;
        let error = os::explain_request(error, &doing, &self.path);
        if early { error.gone() } else { error }
    }

    /// Makes one request, and makes it again while the device says that it is not ready.
    fn request(&self, mut request: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        patiently(
            |error| self.device && os::is_unready(error),
            sleep,
            &mut request,
        )
    }
}

impl ReadAt for Medium {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let piece = (buf.len() - done).min(self.max_transfer);
            let part = &mut buf[done..done + piece];
            match self.request(|| os::read_at(&self.file, part, at)) {
                // The length was right when it was opened: a card pulled out, a file cut short.
                Ok(0) => {
                    let end = io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early");
                    return Err(self.error("read", piece, at, end));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("read", piece, at, error)),
            }
        }
        Ok(())
    }
}

impl WriteAt for Medium {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        check_range(self.len, offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let piece = (buf.len() - done).min(self.max_transfer);
            let part = &buf[done..done + piece];
            match self.request(|| os::write_at(&self.file, part, at)) {
                Ok(0) => {
                    let zero = io::Error::new(io::ErrorKind::WriteZero, "it takes no more bytes");
                    return Err(self.error("write", piece, at, zero));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.error("write", piece, at, error)),
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let synced = os::sync(&self.file, self.device)
            .map_err(|error| os::explain_request(error, "write out", &self.path))?;
        *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) = synced.doubt();
        Ok(())
    }
}

/// How long a device that is not ready is waited for before each further try.
const UNREADY_PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Makes a request again after each pause while it fails with what `is_unready` says to pass.
fn patiently<T>(
    is_unready: impl Fn(&io::Error) -> bool,
    sleep: impl Fn(Duration),
    request: &mut dyn FnMut() -> io::Result<T>,
) -> io::Result<T> {
    for pause in UNREADY_PAUSES {
        match request() {
            Err(error) if is_unready(&error) => sleep(pause),
            ended => return ended,
        }
    }
    request()
}

fn over(opened: Opened, path: &Path, device: bool) -> (Bounced<Medium>, Vec<String>, Vec<File>) {
    let medium = Medium {
        file: opened.file,
        path: path.to_owned(),
        device,
        doubt: Mutex::new(None),
        len: opened.len,
        max_transfer: opened.max_transfer,
    };
    (
        Bounced::new(medium, opened.block, !opened.aligned_memory),
        opened.notes,
        opened.held,
    )
}

/// How a source is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceOptions {
    /// Read a device although it is mounted and can change meanwhile.
    pub allow_mounted: bool,
}

/// A file, a disk or a partition, open for reading only.
#[derive(Debug)]
pub struct SourceFile {
    disk: Bounced<Medium>,
    info: Option<DeviceInfo>,
    _held: Vec<File>,
}

impl SourceFile {
    /// Describes the device; `None` for a file.
    pub fn info(&self) -> Option<&DeviceInfo> {
        self.info.as_ref()
    }

    /// Returns the path as the user named it.
    pub fn path(&self) -> &Path {
        &self.disk.inner().path
    }
}

impl ReadAt for SourceFile {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn forget_cached(&self) {
        // Without the right to do it, reading still works.
        let _ = os::drop_cache(&self.disk.inner().file, self.info.is_some());
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_exact_at(offset, buf)
    }
}

/// Opens the file or block device `path` for reading only.
///
/// A device is judged by [`safety::assess_source`] first: a removable one's volumes are unmounted, so that
/// what is read holds still.
///
/// # Errors
/// `Usage` for what has no fixed bytes (folders, pipes, standard input), `Refused` for a mounted source,
/// `Io` if the system says no.
pub fn open_source(path: &Path, options: &SourceOptions) -> Result<SourceFile> {
    if path == Path::new("-") {
        return Err(unfit(
            path,
            "standard input, which cannot be read at any place",
        ));
    }
    match kind_of(path)? {
        PathKind::Unfit(what) => Err(unfit(path, what)),
        PathKind::File => {
            let (disk, _, _held) = over(os::open_file(path, Access::Read)?, path, false);
            Ok(SourceFile {
                disk,
                info: None,
                _held,
            })
        }
        PathKind::Device => {
            let mut info = describe(path)?;
            let actions = safety::assess_source(&info, options)?;
            let mut unmounted = Vec::new();
            if !actions.unmount.is_empty() {
                unmounted = os::unmount(&info, &actions.unmount, false)?;
                info = describe(path)?;
            }
            if info.size == 0 {
                return Err(no_medium(&info));
            }
            let (disk, _, mut held) = over(os::open_device(&info, Access::Read)?, path, true);
            held.append(&mut unmounted);
            // What the cache holds of the device may be older than what its file systems wrote. This
            // writes out and forgets clean pages only; without the right to do it, reading still works.
            let _ = os::drop_cache(&disk.inner().file, true);
            Ok(SourceFile {
                disk,
                info: Some(info),
                _held: held,
            })
        }
    }
}

/// What a target's path turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    Device(Box<DeviceInfo>),
    /// A regular file, which stands for a card of its size.
    File(PathBuf),
}

impl Target {
    /// Returns the path as the user named it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Device(info) => &info.path,
            Self::File(path) => path,
        }
    }
}

/// Tells what `path` is, without changing anything.
///
/// # Errors
/// `Usage` if it can be no target, `Io` if it cannot be looked at.
pub fn resolve_target(path: &Path) -> Result<Target> {
    match kind_of(path)? {
        PathKind::File => Ok(Target::File(path.to_owned())),
        PathKind::Device => Ok(Target::Device(Box::new(describe(path)?))),
        PathKind::Unfit(what) => Err(unfit(path, what)),
    }
}

/// How a target is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetOptions {
    /// Past the system's cache, where that is possible.
    pub direct: bool,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { direct: true }
    }
}

/// A device or file, open for reading and writing, that nobody else writes meanwhile.
#[derive(Debug)]
pub struct OpenTarget {
    disk: Bounced<Medium>,
    info: Option<DeviceInfo>,
    notes: Vec<String>,
    _held: Vec<File>,
}

/// Opens `target`, which [`safety::assess_target`] has judged and the user has confirmed.
///
/// A device must still be the one that was described; its volumes are unmounted if it is removable.
///
/// # Errors
/// `Refused` if the device changed or is in use, `Io` if the system says no.
pub fn open_target(target: &Target, options: &TargetOptions) -> Result<OpenTarget> {
    let access = Access::Write {
        direct: options.direct,
    };
    let (opened, info) = match target {
        Target::File(path) => (os::open_file(path, access)?, None),
        Target::Device(info) => {
            let now = free_device(info)?;
            let opened = os::open_device(&now, access)?;
            // Between the look and the opening another device may have got the name; from here on it
            // is held.
            if !describe(&now.path)?.is_same_medium(&now) {
                return Err(changed(&now));
            }
            (opened, Some(now))
        }
    };
    if opened.len == 0 {
        let hint = "create a file of the card's size first (--card-size)";
        let what = format!("{} is empty", target.path().display());
        return Err(Error::new(ErrorKind::NoSpace, what).with_hint(hint));
    }
    if let Some(info) = &info
        && info.size != opened.len
    {
        return Err(changed(info));
    }
    let (disk, notes, _held) = over(opened, target.path(), info.is_some());
    Ok(OpenTarget {
        disk,
        info,
        notes,
        _held,
    })
}

/// Looks at the device again, right before it is opened, and unmounts what is mounted on it.
fn free_device(info: &DeviceInfo) -> Result<DeviceInfo> {
    let now = describe(&info.path)?;
    if !now.is_same_medium(info) {
        return Err(changed(info));
    }
    if now.size == 0 {
        return Err(no_medium(&now));
    }
    if now.system {
        return Err(safety::carries_system(&now));
    }
    let mounted: Vec<_> = now.mounted().cloned().collect();
    if !mounted.is_empty() {
        // It may have been mounted since it was judged.
        if !now.removable {
            return Err(safety::mounted_and_fixed(&now));
        }
        os::unmount(&now, &mounted, true)?;
    }
    Ok(now)
}

impl OpenTarget {
    /// Describes the device as it was right before it was opened; `None` for a file.
    pub fn info(&self) -> Option<&DeviceInfo> {
        self.info.as_ref()
    }

    /// Returns the path as the user named it.
    pub fn path(&self) -> &Path {
        &self.disk.inner().path
    }

    /// Returns what was asked for and could not be had, each a clause for the user.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns what the last sync left uncertain, a clause for the user.
    pub fn doubt(&self) -> Option<&'static str> {
        let doubt = self.disk.inner().doubt.lock();
        *doubt.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the multiple of bytes that is written without a detour.
    pub fn alignment(&self) -> u64 {
        self.disk.block()
    }

    /// Tells the medium that the bytes of `range` are not needed; what they read as afterwards is undefined.
    /// Only whole blocks within the range are discarded. Returns false if the medium cannot.
    pub fn discard(&self, range: Range<u64>) -> Result<bool> {
        let Some((start, len)) = self.whole_blocks(&range)? else {
            return Ok(true);
        };
        os::discard(self.file(), self.info.is_some(), start, len)
            .map_err(|error| os::explain(error, "discard blocks of", self.path()))
    }

    /// Makes the bytes of `range` zeros without sending them. Returns false, with some or none of them
    /// zeroed, if the medium cannot: then they must be written.
    pub fn write_zeroes(&self, range: Range<u64>) -> Result<bool> {
        let (start, end) = match self.whole_blocks(&range)? {
            Some((start, len)) => (start, start + len),
            None => (range.end, range.end),
        };
        if start < end {
            let done = os::write_zeroes(self.file(), self.info.is_some(), start, end - start)
                .map_err(|error| os::explain(error, "zero blocks of", self.path()))?;
            if !done {
                return Ok(false);
            }
        }
        // The ends, less than a block each (or a range within one or two blocks).
        for edge in [
            range.start..start.min(range.end),
            end.max(range.start)..range.end,
        ] {
            if edge.start < edge.end {
                self.write_all_at(edge.start, &vec![0; (edge.end - edge.start) as usize])?;
            }
        }
        Ok(true)
    }

    /// Makes the system forget what it cached of the target, so that the next read comes from the medium.
    /// Syncs first.
    pub fn drop_cache(&self) -> Result<()> {
        self.sync()?;
        os::drop_cache(self.file(), self.info.is_some())
            .map_err(|error| os::explain(error, "drop what is cached of", self.path()))
    }

    /// Asks the system to read the partition table again. Returns false where there is nothing to ask.
    pub fn reread_table(&self) -> Result<bool> {
        if self.info.is_none() {
            return Ok(false);
        }
        os::reread_table(self.file()).map_err(|error| {
            os::explain(
                error,
                "have the system reread the partitions of",
                self.path(),
            )
        })
    }

    /// Ejects the medium of a card reader or stick, and closes the device. Returns false, and has the system
    /// look at the device again, if it is none of these, or its kind needs no ejecting.
    ///
    /// # Errors
    /// `Io` with what the system said. All that was written is safe.
    pub fn eject(self) -> Result<bool> {
        let Some(info) = self.info.filter(safety::can_be_ejected) else {
            return Ok(false);
        };
        os::eject(&info, self.disk.into_inner().file, self._held)
    }

    fn file(&self) -> &File {
        &self.disk.inner().file
    }

    /// Returns offset and length of the whole blocks within `range`, if there is one.
    fn whole_blocks(&self, range: &Range<u64>) -> Result<Option<(u64, u64)>> {
        check_range(
            self.len(),
            range.start,
            range.end.saturating_sub(range.start),
        )?;
        // Files' holes are made of their file system's blocks, whatever writes may be aligned to.
        let block = self.alignment().max(512);
        let start = range.start.next_multiple_of(block);
        let end = range.end - range.end % block;
        Ok((start < end).then(|| (start, end - start)))
    }
}

impl ReadAt for OpenTarget {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_exact_at(offset, buf)
    }
}

impl WriteAt for OpenTarget {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.disk.write_all_at(offset, buf)
    }

    fn sync(&self) -> Result<()> {
        self.disk.sync()
    }
}

/// Creates a new file of `size` zero bytes, without taking up space for them, to stand for a card.
///
/// # Errors
/// `Usage` for a size that no card has, `Refused` if there is such a file, `Io` if it cannot be made.
pub fn create_card_file(path: &Path, size: u64) -> Result<()> {
    if size == 0 || !size.is_multiple_of(512) {
        return Err(Error::usage(format!(
            "a card's size is a multiple of 512 bytes, {size} is not"
        )));
    }
    let file = os::create_private(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let place = path.display();
            Error::refused(format!("{place} exists already"))
                .with_hint("--overwrite instead of --card-size writes over it, as it is")
        }
        _ => os::explain(error, "create", path),
    })?;
    os::make_sparse(&file);
    file.set_len(size).map_err(|error| {
        // It is ours, and empty: leave nothing behind.
        let _ = std::fs::remove_file(path);
        os::explain(error, "make a card of", path)
    })
}

fn kind_of(path: &Path) -> Result<PathKind> {
    os::path_kind(path).map_err(|error| os::explain(error, "open", path))
}

fn unfit(path: &Path, what: &str) -> Error {
    let place = path.display();
    Error::usage(format!("{place} is {what}")).with_hint("name a file or a block device")
}

fn no_medium(info: &DeviceInfo) -> Error {
    let place = info.path.display();
    Error::new(ErrorKind::Io, format!("{place} has no medium in it")).with_hint("put the card in")
}

fn changed(info: &DeviceInfo) -> Error {
    let place = info.path.display();
    Error::refused(format!("{place} is not the device it was a moment ago"))
        .with_hint("leave the card in, and start again")
}

/// Guards against a device path that turned into something else between two looks.
pub(super) fn expect_device(path: &Path, kind: PathKind) -> Result<()> {
    match kind {
        PathKind::Device => Ok(()),
        _ => Err(not_a_device(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_device_that_is_not_ready_is_asked_again_three_times() {
        let busy = || Err(io::Error::from(io::ErrorKind::ResourceBusy));
        let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
        for (failing, waited, comes) in [
            (0, 0, true),
            (2, 1200, true),
            (3, 4200, true),
            (4, 4200, false),
        ] {
            let slept = RefCell::new(Duration::ZERO);
            let mut left = failing;
            let mut request = || {
                left -= 1;
                if left < 0 { Ok(7) } else { busy() }
            };
            let done = patiently(is_busy, |time| *slept.borrow_mut() += time, &mut request);
            assert_eq!(done.is_ok(), comes, "{failing}");
            assert_eq!(slept.into_inner().as_millis(), waited, "{failing}");
        }
        let mut count = 0;
        let other = patiently(is_busy, |_| panic!("nothing to wait for"), &mut || {
            count += 1;
            Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied))
        });
        assert!(other.is_err() && count == 1);
    }
}
