//! `pishrink ls`: the files on a card or in an image.

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::args::Ls;
use super::capture::{Opened, about};
use super::exit::Exit;
use super::render::Screen;
use crate::codec::foreign;
use crate::device::{self, SourceOptions, safety::sanitize};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Forest, Found, Glob, Kind, Stat};
use crate::units::{date_text, human_bytes};
use crate::volume::disk::{Disk, System};

pub fn run(args: &Ls, screen: &Screen) -> Result<Exit> {
    let opened = open(&args.source, args.allow_mounted, screen)?;
    let named = |error| about(&args.source, error);
    let disk = Disk::read(&*opened.file).map_err(named)?;
    let (system, path) = system(&disk, &args.path).map_err(named)?;
    tell_doubts(&system, screen);
    let forest = &system.forest;
    let mut listing = Listing::default();
    let damage = if Glob::is_pattern(&path) && forest.find(&path, false)?.is_none() {
        let glob = Glob::new(&path);
        let listed = forest.matches(&glob, &mut |found| {
            stop(screen)?;
            listing.add(forest, &found, &found.text())
        });
        if listing.objects.is_empty() && listed.is_ok() {
            return Err(nothing(&args.source, &args.path));
        }
        listed.err()
    } else {
        let found = find(forest, &path)?.ok_or_else(|| nothing(&args.source, &args.path))?;
        match forest.stat(found.place)?.kind {
            Kind::Folder => listing.folder(forest, &found, screen)?,
            _ => {
                listing.add(forest, &found, &found.text())?;
                None
            }
        }
    };
    if let Some(error) = &damage
        && error.kind() == ErrorKind::Cancelled
    {
        return Err(Error::cancelled());
    }
    let problem = damage.as_ref().map(Error::one_line);
    screen.result(
        &listing.text(),
        &json!({ "entries": listing.objects, "problem": problem }),
    );
    Ok(match damage {
        Some(error) => {
            screen.complain(&about(&args.source, error));
            Exit::Unsound
        }
        None => Exit::Done,
    })
}

/// Opens a card or an image to look for files in it.
pub(super) fn open(source: &Path, allow_mounted: bool, screen: &Screen) -> Result<Opened> {
    let options = SourceOptions { allow_mounted };
    let opened = Opened::open(source, &options, None, screen)?;
    foreign::refuse_disk(&*opened.file).map_err(|error| about(source, error))?;
    Ok(opened)
}

/// Opens the files that a path is about; returns the path without the partition's number.
pub(super) fn system<'d>(disk: &'d Disk<'_>, path: &OsStr) -> Result<(System<'d>, Vec<u8>)> {
    let path = device::tree::bytes(path);
    match on_partition(&path) {
        Some((number, path)) => Ok((disk.partition(number)?, path.to_vec())),
        None => Ok((disk.system()?, path)),
    }
}

/// Splits `2:/etc` into the partition's number and the path on it.
fn on_partition(path: &[u8]) -> Option<(u32, &[u8])> {
    let colon = path.iter().position(|&byte| byte == b':')?;
    let number = std::str::from_utf8(&path[..colon]).ok()?.parse().ok()?;
    Some((number, &path[colon + 1..]))
}

pub(super) fn tell_doubts(system: &System<'_>, screen: &Screen) {
    for doubt in &system.doubts {
        screen.say(doubt);
    }
}

/// Finds what a path names, or the link itself if it leads nowhere.
pub(super) fn find(forest: &Forest<'_>, path: &[u8]) -> Result<Option<Found>> {
    match forest.find(path, true) {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) => forest.find(path, false),
        Err(error) => match forest.find(path, false) {
            Ok(Some(found)) => Ok(Some(found)),
            _ => Err(error),
        },
    }
}

pub(super) fn nothing(source: &Path, path: &OsStr) -> Error {
    let source = source.display();
    Error::usage(format!("there is no {} in {source}", path.display()))
        .with_hint(format!("pishrink ls {source} shows what there is"))
}

/// # Errors
/// `Cancelled` once the user has asked for it.
pub(super) fn stop(screen: &Screen) -> Result<()> {
    match screen.interrupt().requested() {
        true => Err(Error::cancelled()),
        false => Ok(()),
    }
}

/// Lines and objects about files.
#[derive(Default)]
struct Listing {
    /// Mode, owner, length, date, name.
    rows: Vec<[String; 5]>,
    objects: Vec<Value>,
}

impl Listing {
    fn folder(
        &mut self,
        forest: &Forest<'_>,
        folder: &Found,
        screen: &Screen,
    ) -> Result<Option<Error>> {
        let (names, damage) = forest.listed(folder)?;
        for (name, place) in names {
            stop(screen)?;
            let text = String::from_utf8_lossy(&name).into_owned();
            self.add(forest, &folder.entry(name, place), &text)?;
        }
        Ok(damage)
    }

    fn add(&mut self, forest: &Forest<'_>, found: &Found, shown: &str) -> Result<()> {
        let stat = match forest.stat(found.place) {
            Ok(stat) => stat,
            Err(error) if error.kind() == ErrorKind::Unsound => {
                self.damaged(found, shown, &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let target = match stat.kind {
            Kind::Symlink => forest.tree(found.place).target(found.place.node).ok(),
            _ => None,
        };
        let target = target.map(|target| String::from_utf8_lossy(&target).into_owned());
        let mut name = sanitize(shown);
        if let Some(target) = &target {
            // Writing to a String cannot fail.
            let _ = write!(name, " -> {}", sanitize(target));
        }
        if stat.kind == Kind::Folder {
            name.push('/');
        }
        let owner = match stat.mode {
            Some(_) => format!("{}:{}", stat.uid, stat.gid),
            None => "-".to_owned(),
        };
        let len = match stat.kind {
            Kind::File => human_bytes(stat.len),
            _ => "-".to_owned(),
        };
        let date = date_text(stat.modified.0);
        self.rows.push([mode_text(&stat), owner, len, date, name]);
        self.objects.push(json!({
            "path": found.text(),
            "kind": stat.kind,
            "bytes": stat.len,
            "mode": stat.mode.map(|mode| format!("{mode:04o}")),
            "uid": stat.uid,
            "gid": stat.gid,
            "modified": stat.modified.0,
            "target": target,
        }));
        Ok(())
    }

    fn damaged(&mut self, found: &Found, shown: &str, error: &Error) {
        let dash = || "-".to_owned();
        let name = format!("{}  ({})", sanitize(shown), error.one_line());
        let mode = "??????????".to_owned();
        self.rows.push([mode, dash(), dash(), dash(), name]);
        let text = found.text();
        self.objects
            .push(json!({ "path": text, "problem": error.one_line() }));
    }

    fn text(&self) -> String {
        let width = |column: usize| {
            let lens = self.rows.iter().map(|row| row[column].chars().count());
            lens.max().unwrap_or(0)
        };
        let (owners, lens, dates) = (width(1), width(2), width(3));
        let mut text = String::new();
        for [mode, owner, len, date, name] in &self.rows {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{mode}  {owner:owners$}  {len:>lens$}  {date:dates$}  {name}"
            );
        }
        text
    }
}

/// Writes kind and permissions as ls does.
fn mode_text(stat: &Stat) -> String {
    let kind = match stat.kind {
        Kind::File => '-',
        Kind::Folder => 'd',
        Kind::Symlink => 'l',
        Kind::Special => 's',
    };
    let Some(mode) = stat.mode else {
        return format!("{kind}---------");
    };
    let mut text = String::from(kind);
    for (shift, special, letters) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, true) => 'x',
            (false, false) => '-',
            (true, true) => letters.as_bytes()[0].into(),
            (true, false) => letters.as_bytes()[1].into(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_name_a_partition() {
        for (path, expected) in [
            ("2:/etc", Some((2, "/etc"))),
            ("12:", Some((12, ""))),
            ("/etc", None),
            ("/a/2:/x", None),
            ("C:/x", None),
        ] {
            let expected = expected.map(|(number, rest)| (number, rest.as_bytes()));
            assert_eq!(on_partition(path.as_bytes()), expected, "{path}");
        }
    }
}
