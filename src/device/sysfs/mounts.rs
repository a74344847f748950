//! Mounts and swaps, from the texts of `/proc/self/mountinfo` and `/proc/swaps` (proc(5)), and which of
//! the places make a disk part of the running system.

use std::path::{Path, PathBuf};

use super::Number;

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

/// One line of mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) number: Number,
    pub(super) place: PathBuf,
    pub(super) fs_type: String,
    pub(super) source: String,
    /// Can the file system be written, whatever this mount of it allows?
    pub(super) writable: bool,
}

pub(super) fn is_system_place(place: &Path) -> bool {
    !FREE_PLACES.iter().any(|free| place.starts_with(free))
        && SYSTEM_PLACES.iter().any(|(system, levels)| {
            place
                .strip_prefix(system)
                .is_ok_and(|below| below.components().count() <= *levels)
        })
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/sda1 rw,errors=continue`
pub(super) fn parse_mount(line: &str) -> Option<Mount> {
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

pub(super) fn parse_swaps(text: &str) -> Vec<PathBuf> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(|path| unescape(path).into())
        .collect()
}

/// Undoes the kernel's escapes of blanks in paths: `\040`.
pub(super) fn unescape(text: &str) -> String {
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
