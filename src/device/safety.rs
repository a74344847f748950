//! What may be read, written, shown: judged from [`DeviceInfo`] alone, without a system call.

use std::path::{Path, PathBuf};

use super::{Bus, DeviceInfo, SourceOptions, Volume};
use crate::error::{Error, Result};
use crate::units::human_bytes;

/// The largest device that is taken for a card, in bytes: larger ones are disks that hold someone's data.
pub const LARGEST_CARD: u64 = 512_110_190_592;

/// The longest text of a device that is shown, in characters.
const LONGEST_TEXT: usize = 64;

/// What must be done before a device is opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Actions {
    /// The volumes to unmount.
    pub unmount: Vec<Volume>,
}

/// By what a target is judged besides itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TargetRules<'a> {
    /// The user insists on a device that does not look like a card.
    pub allow_any_device: bool,
    /// The image file, if the target holds it ([`super::target_holds`]).
    pub holds_image: Option<&'a Path>,
}

/// Tells why `pishrink devices` does not show a disk, or `None` for one that looks like a card.
pub fn hidden_reason(info: &DeviceInfo) -> Option<String> {
    if info.bus == Bus::Loop {
        return Some(match &info.backing_file {
            Some(file) => format!("stands for the file {}", shown(file)),
            None => "stands for a file".to_owned(),
        });
    }
    if info.bus == Bus::Mapped {
        return Some("is made of other devices".to_owned());
    }
    if info.system {
        return Some(system_reason(info));
    }
    if info.size == 0 {
        return Some("has no medium in it".to_owned());
    }
    unlike_a_card(info)
}

/// Is it something that people take out when they are done: the medium of a card reader, or a stick?
/// What is built in, and files that are shown as devices, stay.
pub fn can_be_ejected(info: &DeviceInfo) -> bool {
    let plugged = match info.bus {
        Bus::Usb => true,
        Bus::Mmc => info.removable,
        _ => false,
    };
    plugged && !info.system && !info.is_partition && info.backing_file.is_none()
}

/// Judges a device that is to be overwritten.
///
/// # Errors
/// `Refused`, with the reason and what can be done, if it must not be.
pub fn assess_target(info: &DeviceInfo, rules: &TargetRules) -> Result<Actions> {
    let place = shown(&info.path);
    if info.system {
        return Err(carries_system(info));
    }
    if info.is_partition {
        let hint = match &info.parent {
            Some(disk) => format!("name the whole disk, {}", shown(disk)),
            None => "name the whole disk".to_owned(),
        };
        return Err(Error::refused(format!("{place} is a partition, not a disk")).with_hint(hint));
    }
    if let Some(image) = rules.holds_image {
        let image = shown(image);
        return Err(Error::refused(format!(
            "{place} holds the image {image}, which writing would destroy"
        ))
        .with_hint("copy the image to another disk first"));
    }
    if !rules.allow_any_device
        && let Some(reason) = unlike_a_card(info)
    {
        return Err(Error::refused(format!("{place} {reason}"))
            .with_hint("--allow-any-device, if this really is the one to erase"));
    }
    if info.read_only {
        return Err(Error::refused(format!("{place} is write-protected"))
            .with_hint("move the switch on the card's or adapter's side"));
    }
    let unmount: Vec<_> = info.mounted().cloned().collect();
    if !unmount.is_empty() && !info.removable {
        return Err(mounted_and_fixed(info));
    }
    if let Some(volume) = info
        .volumes
        .iter()
        .find(|volume| volume.in_use_by.is_some())
    {
        return Err(in_use(info, volume));
    }
    Ok(Actions { unmount })
}

/// Judges a device that is to be read: its contents should hold still meanwhile.
///
/// # Errors
/// `Refused` if it is mounted writable and cannot be unmounted, unless `allow_mounted`.
pub fn assess_source(info: &DeviceInfo, options: &SourceOptions) -> Result<Actions> {
    if options.allow_mounted {
        return Ok(Actions::default());
    }
    let changing: Vec<_> = info
        .volumes
        .iter()
        .filter(|volume| volume.mounted_read_write)
        .cloned()
        .collect();
    let Some(first) = changing.first() else {
        return Ok(Actions::default());
    };
    if info.system || !info.removable {
        return Err(Error::refused(format!(
            "{} is mounted{} and can change while it is read",
            shown(&info.path),
            mounted_on(first)
        ))
        .with_hint("unmount it, or --allow-mounted for a copy that may need repair"));
    }
    if let Some(volume) = changing.iter().find(|volume| volume.in_use_by.is_some()) {
        return Err(in_use(info, volume));
    }
    Ok(Actions { unmount: changing })
}

/// Returns `text` fit for a terminal and for the eye: no control or invisible characters, no change of
/// direction, one line, of bounded length.
pub fn sanitize(text: &str) -> String {
    let visible = text
        .chars()
        // A bound on the work as well: what follows cannot become visible.
        .take(LONGEST_TEXT * 16)
        .map(|c| {
            if c.is_whitespace() || c.is_control() {
                ' '
            } else {
                c
            }
        })
        .filter(|&c| !is_invisible(c));
    let mut shown = String::new();
    let mut count = 0;
    let mut space = false;
    for c in visible {
        if c == ' ' {
            space = count > 0;
            continue;
        }
        let needed = 1 + usize::from(space);
        if count + needed > LONGEST_TEXT {
            shown.push('…');
            break;
        }
        if std::mem::take(&mut space) {
            shown.push(' ');
        }
        shown.push(c);
        count += needed;
    }
    shown
}

/// Characters that change how their neighbours look while showing nothing themselves.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        // Marks that stack on one letter and can climb over the lines above.
        | '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{20d0}'..='\u{20ff}')
}

fn unlike_a_card(info: &DeviceInfo) -> Option<String> {
    if !info.removable {
        return Some(format!("is not removable ({})", info.bus));
    }
    (info.size > LARGEST_CARD)
        .then(|| format!("is larger than any card ({})", human_bytes(info.size)))
}

fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    // A path may be longer than a name: the user must be able to tell which one it is.
    if text.chars().count() > LONGEST_TEXT
        && !text.chars().any(|c| c.is_control() || is_invisible(c))
    {
        return text;
    }
    sanitize(&text)
}

fn mounted_on(volume: &Volume) -> String {
    match volume.mount_points.first() {
        Some(place) => format!(" on {}", shown(place)),
        None => String::new(),
    }
}

fn system_reason(info: &DeviceInfo) -> String {
    let places: Vec<&PathBuf> = info
        .volumes
        .iter()
        .flat_map(|volume| &volume.mount_points)
        .collect();
    match places.iter().min_by_key(|place| place.as_os_str().len()) {
        Some(place) => format!("carries the running system ({})", shown(place)),
        None => "carries the running system".to_owned(),
    }
}

pub(super) fn carries_system(info: &DeviceInfo) -> Error {
    Error::refused(format!("{} {}", shown(&info.path), system_reason(info)))
}

pub(super) fn mounted_and_fixed(info: &DeviceInfo) -> Error {
    let place = info.mounted().next().map(mounted_on).unwrap_or_default();
    Error::refused(format!(
        "{} is mounted{place}, and is not a removable device",
        shown(&info.path)
    ))
    .with_hint("unmount it yourself if it really is the one")
}

fn in_use(info: &DeviceInfo, volume: &Volume) -> Error {
    let user = sanitize(volume.in_use_by.as_deref().unwrap_or_default());
    let hint = if user == "swap" {
        format!("swapoff {}", shown(&volume.path))
    } else {
        "close what is made of it first (cryptsetup close, vgchange -an, mdadm --stop)".to_owned()
    };
    let (part, disk) = (shown(&volume.path), shown(&info.path));
    Error::refused(format!("{part} of {disk} is in use ({user})")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn card() -> DeviceInfo {
        DeviceInfo {
            path: "/dev/sdb".into(),
            io_path: "/dev/sdb".into(),
            name: "sdb".into(),
            vendor: Some("Generic".into()),
            model: Some("STORAGE DEVICE".into()),
            serial: Some("000000000819".into()),
            size: 31_914_983_424,
            logical_block: 512,
            physical_block: 512,
            bus: Bus::Usb,
            removable: true,
            read_only: false,
            is_partition: false,
            parent: None,
            system: false,
            volumes: vec![],
            backing_file: None,
            generation: Some(7),
        }
    }

    fn mounted(place: &str) -> Volume {
        Volume {
            path: "/dev/sdb1".into(),
            mount_points: vec![place.into()],
            mounted_read_write: true,
            ..Volume::default()
        }
    }

    fn with(change: impl FnOnce(&mut DeviceInfo)) -> DeviceInfo {
        let mut info = card();
        change(&mut info);
        info
    }

    #[test]
    fn only_what_is_taken_out_is_ejected() {
        let slot = |removable| {
            with(|info| {
                info.bus = Bus::Mmc;
                info.removable = removable;
            })
        };
        let file = PathBuf::from("/home/x/card.img");
        for (info, ejected) in [
            (card(), true),
            // Many readers say that they are fixed.
            (with(|info| info.removable = false), true),
            (slot(true), true),
            (slot(false), false),
            (with(|info| info.system = true), false),
            (with(|info| info.is_partition = true), false),
            (with(|info| info.bus = Bus::Sata), false),
            (with(|info| info.bus = Bus::Nvme), false),
            (with(|info| info.bus = Bus::Virtio), false),
            (with(|info| info.bus = Bus::Loop), false),
            (with(|info| info.backing_file = Some(file)), false),
        ] {
            assert_eq!(can_be_ejected(&info), ejected, "{info:?}");
        }
    }

    #[test]
    fn targets_are_refused_for_the_right_reason() {
        let any = TargetRules {
            allow_any_device: true,
            holds_image: None,
        };
        let image = Path::new("/media/x/os.img");
        let holding = TargetRules {
            allow_any_device: true,
            holds_image: Some(image),
        };
        let none = TargetRules::default();
        let swapping = Volume {
            path: "/dev/sdb2".into(),
            in_use_by: Some("swap".into()),
            ..Volume::default()
        };
        let cases: [(DeviceInfo, TargetRules, Option<&str>); 12] = [
            (card(), none, None),
            (with(|i| i.volumes = vec![mounted("/media/x")]), none, None),
            (with(|i| i.removable = false), none, Some("not removable")),
            (with(|i| i.removable = false), any, None),
            (
                with(|i| i.size = 1 << 40),
                none,
                Some("larger than any card"),
            ),
            (with(|i| i.size = 1 << 40), any, None),
            (with(|i| i.read_only = true), any, Some("write-protected")),
            (with(|i| i.is_partition = true), any, Some("is a partition")),
            (card(), holding, Some("holds the image /media/x/os.img")),
            (
                with(|i| i.volumes = vec![swapping]),
                any,
                Some("in use (swap)"),
            ),
            (
                with(|i| {
                    i.system = true;
                    i.volumes = vec![mounted("/boot"), mounted("/")];
                }),
                any,
                Some("carries the running system (/)"),
            ),
            (
                with(|i| {
                    i.removable = false;
                    i.volumes = vec![mounted("/srv")];
                }),
                any,
                Some("mounted on /srv"),
            ),
        ];
        for (info, rules, refusal) in cases {
            match (assess_target(&info, &rules), refusal) {
                (Ok(actions), None) => {
                    assert_eq!(actions.unmount, info.mounted().cloned().collect::<Vec<_>>());
                }
                (Err(error), Some(part)) => {
                    assert_eq!(error.kind(), ErrorKind::Refused);
                    assert!(error.to_string().contains(part), "{error}");
                }
                (result, _) => panic!("{info:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn sources_hold_still_or_are_refused() {
        let strict = SourceOptions::default();
        let lax = SourceOptions {
            allow_mounted: true,
        };
        let writable = with(|i| i.volumes = vec![mounted("/media/x")]);
        assert_eq!(
            assess_source(&writable, &strict).unwrap().unmount,
            writable.volumes
        );
        assert_eq!(assess_source(&writable, &lax).unwrap(), Actions::default());
        let readable = with(|i| {
            i.volumes = vec![mounted("/media/x")];
            i.volumes[0].mounted_read_write = false;
            i.removable = false;
        });
        assert_eq!(
            assess_source(&readable, &strict).unwrap(),
            Actions::default()
        );
        for info in [
            with(|i| {
                i.volumes = vec![mounted("/srv")];
                i.removable = false;
            }),
            // A Pi's own card: removable, but never unmounted.
            with(|i| {
                i.volumes = vec![mounted("/")];
                i.system = true;
            }),
        ] {
            let error = assess_source(&info, &strict).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert_eq!(assess_source(&info, &lax).unwrap(), Actions::default());
        }
    }

    #[test]
    fn lists_only_cards() {
        for (info, reason) in [
            (card(), None),
            (with(|i| i.size = LARGEST_CARD), None),
            (with(|i| i.size = 0), Some("has no medium in it")),
            (
                with(|i| i.size = LARGEST_CARD + 1),
                Some("is larger than any card (512 GB)"),
            ),
            (
                with(|i| {
                    i.removable = false;
                    i.bus = Bus::Nvme;
                }),
                Some("is not removable (NVMe)"),
            ),
            (
                with(|i| {
                    i.bus = Bus::Loop;
                    i.backing_file = Some("/tmp/a.img".into());
                }),
                Some("stands for the file /tmp/a.img"),
            ),
            (
                with(|i| i.system = true),
                Some("carries the running system"),
            ),
        ] {
            assert_eq!(hidden_reason(&info).as_deref(), reason);
        }
    }

    #[test]
    fn hostile_text_becomes_plain() {
        for (text, plain) in [
            ("SanDisk Ultra  ", "SanDisk Ultra"),
            ("  a \t\n b\0", "a b"),
            ("\u{1b}[31mred\u{7}", "[31mred"),
            ("safe\u{202e}gpj.exe", "safegpj.exe"),
            ("a\u{200b}b\u{feff}c\u{2066}d\u{e0041}", "abcd"),
            ("Z\u{300}\u{301}\u{302}algo", "Zalgo"),
            ("Größe 大", "Größe 大"),
            ("a\u{2028}b\u{85}c", "a b c"),
            ("", ""),
            ("\u{200b}", ""),
        ] {
            assert_eq!(sanitize(text), plain);
        }
        let long = sanitize(&"x".repeat(1 << 20));
        assert_eq!(long.chars().count(), LONGEST_TEXT + 1);
        assert!(long.ends_with('…'));
        assert_eq!(
            sanitize(&"x".repeat(LONGEST_TEXT)),
            "x".repeat(LONGEST_TEXT)
        );
        assert_eq!(sanitize(&"\u{200b}".repeat(1 << 20)), "");
    }
}
