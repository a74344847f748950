//! Arguments that name things in each other's places, or in dd's words. What was meant is told from
//! what the paths are, before anything is opened, and answered with the command for it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::download::is_url;
use super::render::clean;
use crate::device;
use crate::error::{Error, Result};

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Thing {
    Device,
    File,
    /// Nothing, or nothing that holds an image: no mistake of this kind.
    Other,
}

impl Thing {
    fn of(path: &Path) -> Self {
        match path {
            _ if device::is_device(path) => Self::Device,
            _ if path.is_file() => Self::File,
            _ => Self::Other,
        }
    }
}

/// Refuses to write a file from a card, which is what capture does. A file that `--card-size` will
/// make (`makes_files`) is a card.
///
/// # Errors
/// `Refused`, with the command that was meant.
pub fn flash(image: &OsStr, targets: &[PathBuf], makes_files: bool) -> Result<()> {
    if image == "-" || image.to_str().is_some_and(is_url) {
        return Ok(());
    }
    let image = Path::new(image);
    let things: Vec<_> = targets.iter().map(|target| Thing::of(target)).collect();
    match swapped_in_flash(Thing::of(image), &things) {
        Some(at) if things[at] == Thing::File => Err(either(&targets[at], image)),
        Some(at) if !makes_files => Err(saves(image, &targets[at])),
        _ => no_files_among_devices(targets.iter().filter(|_| makes_files)),
    }
}

/// Returns which target is no card, where the image is one. A file counts before a name that is
/// free.
fn swapped_in_flash(image: Thing, targets: &[Thing]) -> Option<usize> {
    let place = |thing| targets.iter().position(|&target| target == thing);
    match image {
        Thing::Device => place(Thing::File).or_else(|| place(Thing::Other)),
        _ => None,
    }
}

/// Refuses to make an image of what is to become a card, and in the place of one.
///
/// # Errors
/// `Refused`, with the command that was meant.
pub fn capture(source: &Path, image: &Path) -> Result<()> {
    match (Thing::of(source), Thing::of(image)) {
        (Thing::File, Thing::Device) => Err(either(source, image)),
        (Thing::Device, Thing::Device) => Err(refused(
            "both are devices, and capture makes a file".into(),
            &[(&["flash"], source, image, "copies the one to the other")],
        )),
        (Thing::Other, Thing::Device) => Err(saves(image, source)),
        _ => no_files_among_devices(std::iter::once(image)),
    }
}

/// Refuses a card in the image's place.
///
/// # Errors
/// `Refused`, with the command that was meant.
pub fn verify(image: &Path, card: Option<&Path>) -> Result<()> {
    match card {
        Some(card) if (Thing::of(image), Thing::of(card)) == (Thing::Device, Thing::File) => {
            Err(refused(
                format!(
                    "{} is a card and {} a file: verify takes the image first",
                    image.display(),
                    card.display()
                ),
                &[(&["verify"], card, image, "")],
            ))
        }
        _ => Ok(()),
    }
}

/// Both could have been meant.
fn either(file: &Path, card: &Path) -> Error {
    refused(
        format!("{} is a card and {} a file", card.display(), file.display()),
        &[
            (&["flash"], file, card, "writes the card"),
            (&["capture"], card, file, "saves the card"),
        ],
    )
}

fn saves(card: &Path, file: &Path) -> Error {
    refused(
        format!("{} is a card, and the only thing here", card.display()),
        &[(&["capture"], card, file, "saves the card")],
    )
}

/// An image would fill the memory that device nodes lie in, or take the place of one of them.
fn no_files_among_devices<P: AsRef<Path>>(mut paths: impl Iterator<Item = P>) -> Result<()> {
    let among = |path: &Path| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.is_some_and(|folder| folder.starts_with("/dev") && !folder.starts_with("/dev/shm"))
    };
    let Some(path) = paths.find(|path| among(path.as_ref())) else {
        return Ok(());
    };
    let path = path.as_ref();
    let refused = Error::refused(format!(
        "{} is among the system's devices, where no file belongs",
        path.display()
    ));
    Err(match path.file_name() {
        Some(name) if name == "stdout" => refused.with_hint("standard output is -"),
        _ => refused.with_hint(
            "`pishrink devices` lists the cards; put the card in, or name another folder",
        ),
    })
}

/// The words before the two paths, the paths, and what that does.
type Meant<'a> = (&'a [&'a str], &'a Path, &'a Path, &'a str);

fn refused(what: String, meant: &[Meant]) -> Error {
    let commands: Vec<_> = meant
        .iter()
        .map(|(words, first, second, does)| {
            let command = command(words, [first.as_os_str(), second.as_os_str()]);
            match does.is_empty() {
                true => command,
                false => format!("{command} ({does})"),
            }
        })
        .collect();
    Error::refused(what).with_hint(format!("did you mean: {}", commands.join(", or: ")))
}

/// Returns the command as a shell takes it.
pub fn command<'a>(words: &[&str], paths: impl IntoIterator<Item = &'a OsStr>) -> String {
    let mut text = "pishrink".to_owned();
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
    for path in paths {
        text.push(' ');
        text.push_str(&quoted(&path.to_string_lossy()));
    }
    text
}

/// Puts quotes around what a shell would not take as one plain word.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,=@%\\".contains(c);
    let plain = |c: char| plain(c) && (cfg!(windows) || c != '\\');
    match word {
        _ if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        _ if cfg!(windows) => format!("\"{}\"", clean(word)),
        _ => format!("'{}'", clean(word).replace('\'', r"'\''")),
    }
}

/// Answers `if=` and `of=`, if they are among the arguments (the program's name is not), with the
/// command that was meant.
pub fn in_words_of_dd(words: &[OsString]) -> Option<Error> {
    let words: Vec<_> = words
        .iter()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.to_str())
        .collect();
    let value = |key: &str| {
        let word = words.iter().find(|word| word.starts_with(key))?;
        (!Path::new(word).exists()).then(|| &word[key.len()..])
    };
    let (from, to) = (value("if="), value("of="));
    if from.is_none() && to.is_none() {
        return None;
    }
    // The command, if there is one, and a path that was written as it should be.
    let mut others = words.iter().filter(|word| {
        !word.starts_with('-')
            && word
                .split_once('=')
                .is_none_or(|(key, _)| key.contains('/'))
    });
    let verb = others.next().copied();
    let other = others.next().copied();
    let from = from.or(other).unwrap_or("IMAGE");
    let to = to.or(other).unwrap_or("TARGET");
    let names_device = |path: &str| path.starts_with("/dev/") || path.starts_with(r"\\.\");
    let verb = match verb {
        _ if names_device(to) => "flash",
        _ if names_device(from) => "capture",
        Some(verb @ ("capture" | "verify")) => verb,
        _ => "flash",
    };
    let meant = command(&[verb], [OsStr::new(from), OsStr::new(to)]);
    Some(
        Error::usage("if= and of= are words of dd; here the paths alone are enough")
            .with_hint(format!("write: {meant}")),
    )
}

#[cfg(test)]
mod tests {
    use super::Thing::*;
    use super::*;

    #[test]
    fn a_file_is_the_target_of_no_card() {
        for (image, targets, found) in [
            (Device, &[File][..], Some(0)),
            (Device, &[Device, File], Some(1)),
            (Device, &[Other, File], Some(1)),
            (Device, &[Device, Other], Some(1)),
            (Device, &[Device], None),
            (File, &[File, Device], None),
            (Other, &[File], None),
        ] {
            assert_eq!(
                swapped_in_flash(image, targets),
                found,
                "{image:?} {targets:?}"
            );
        }
    }

    #[test]
    fn words_of_dd_are_translated() {
        for (words, meant) in [
            ("flash if=x.img of=/dev/sdb bs=4M", "flash x.img /dev/sdb"),
            ("if=x.img of=/dev/sdb", "flash x.img /dev/sdb"),
            ("if=/dev/sdb of=x.img", "capture /dev/sdb x.img"),
            ("capture if=a of=b", "capture a b"),
            ("flash x.img of=/dev/sdb --yes", "flash x.img /dev/sdb"),
            ("capture /dev/sdb of=x.img", "capture /dev/sdb x.img"),
            ("flash if=x.img", "flash x.img TARGET"),
        ] {
            let words: Vec<_> = words.split(' ').map(OsString::from).collect();
            let hint = in_words_of_dd(&words).map(|error| error.hint().map(str::to_owned));
            assert_eq!(hint, Some(Some(format!("write: pishrink {meant}"))));
        }
        for words in ["flash a b", "capture a b --format xz", "flash -- if=a of=b"] {
            let words: Vec<_> = words.split(' ').map(OsString::from).collect();
            assert!(in_words_of_dd(&words).is_none());
        }
    }

    #[test]
    #[cfg(unix)]
    fn commands_can_be_pasted() {
        for (word, text) in [
            ("a/b-1.img", "a/b-1.img"),
            ("my card.img", "'my card.img'"),
            ("it's", r"'it'\''s'"),
            ("$(x)", "'$(x)'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), text);
        }
    }
}
