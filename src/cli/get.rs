//! `pishrink get`: files off a card or out of an image.

mod names;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Seek, SeekFrom, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::args::Get;
use super::capture::about;
use super::exit::Exit;
use super::ls::{find, nothing, open, stop, system, tell_doubts};
use super::render::Screen;
use crate::device::{SystemFiles, safety::sanitize, tree};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Forest, Found, Glob, Kind, Place, Stat, Stretch, check_depth};
use crate::io::Files;
use crate::units::human_bytes;
use crate::volume::disk::Disk;
use names::{HOST, mended, numbered};

/// Of what is not as it was, so many lines are shown on a terminal.
const LINES: usize = 30;
/// The permission bits of what has none.
const PLAIN_FILE: u16 = 0o644;
const PLAIN_FOLDER: u16 = 0o755;

pub fn run(args: &Get, screen: &Screen) -> Result<Exit> {
    let to_stdout = args.to == Path::new("-");
    if to_stdout {
        screen.take_stdout();
    }
    let opened = open(&args.source, args.allow_mounted, screen)?;
    let named = |error| about(&args.source, error);
    let disk = Disk::read(&*opened.file).map_err(named)?;
    let (system, path) = system(&disk, &args.path).map_err(named)?;
    tell_doubts(&system, screen);
    let forest = &system.forest;
    let is_pattern = Glob::is_pattern(&path) && forest.find(&path, false)?.is_none();
    if to_stdout {
        let found = match is_pattern {
            true => None,
            false => find(forest, &path)?,
        };
        let found = found.ok_or_else(|| nothing(&args.source, &args.path))?;
        return to_standard_output(forest, &found, screen).map_err(named);
    }
    let mut getting = Getting {
        forest,
        screen,
        done: Done::default(),
        folders: HashSet::new(),
    };
    let to = if is_pattern {
        if !args.to.is_dir() {
            return Err(Error::usage(format!(
                "{} is no folder, and a pattern may name many files",
                args.to.display()
            ))
            .with_hint("make the folder first"));
        }
        getting.all(&Glob::new(&path), &args.to).map_err(named)?;
        if getting.done.is_nothing() {
            return Err(nothing(&args.source, &args.path));
        }
        args.to.clone()
    } else {
        let found = find(forest, &path)?.ok_or_else(|| nothing(&args.source, &args.path))?;
        getting.one(&found, &args.to, args.force).map_err(named)?
    };
    let done = getting.done;
    screen.result(&done.text(&to), &done.object(&to));
    Ok(match done.lost.is_empty() {
        true => Exit::Done,
        false => Exit::Losses,
    })
}

fn to_standard_output(forest: &Forest<'_>, file: &Found, screen: &Screen) -> Result<Exit> {
    if forest.stat(file.place)?.kind != Kind::File {
        return Err(Error::usage(format!("{} is no file", file.text()))
            .with_hint("standard output takes one file; name a folder to copy to"));
    }
    let mut out = std::io::stdout().lock();
    let failed = |error| Error::io("cannot write to standard output", error);
    let zeros = vec![0; 64 << 10];
    forest
        .tree(file.place)
        .read(file.place.node, &mut |stretch| {
            stop(screen)?;
            match stretch {
                Stretch::Data(data) => out.write_all(data).map_err(failed)?,
                Stretch::Hole(len) => {
                    let mut left = len;
                    while left > 0 {
                        stop(screen)?;
                        let count = left.min(zeros.len() as u64);
                        out.write_all(&zeros[..count as usize]).map_err(failed)?;
                        left -= count;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
    out.flush().map_err(failed)?;
    Ok(Exit::Done)
}

/// What was done, in numbers and by name.
#[derive(Default)]
struct Done {
    files: u64,
    folders: u64,
    links: u64,
    bytes: u64,
    /// Path on the card, and the name here.
    renamed: Vec<(String, PathBuf)>,
    /// What is no file, folder or link, or cannot be here; and why.
    left_out: Vec<(String, String)>,
    /// What could not be read, and why.
    lost: Vec<(String, String)>,
}

impl Done {
    fn is_nothing(&self) -> bool {
        self.files + self.folders + self.links == 0
            && self.left_out.is_empty()
            && self.lost.is_empty()
    }

    fn text(&self, to: &Path) -> String {
        let mut counts = Vec::new();
        for (count, one, many) in [
            (self.files, "file", "files"),
            (self.folders, "folder", "folders"),
            (self.links, "link", "links"),
        ] {
            if count > 0 {
                counts.push(format!("{count} {}", if count == 1 { one } else { many }));
            }
        }
        let what = match counts.is_empty() {
            true => "nothing".to_owned(),
            false => counts.join(", "),
        };
        let mut text = format!("{}: {what}, {}\n", to.display(), human_bytes(self.bytes));
        let renamed = self.renamed.iter().map(|(path, name)| {
            let name = name.file_name().unwrap_or_default().display();
            format!("renamed: {} is {name} here", sanitize(path))
        });
        let left_out = self.left_out.iter();
        let left_out =
            left_out.map(|(path, why)| format!("left out: {}: {}", sanitize(path), sanitize(why)));
        let lost = self.lost.iter();
        let lost = lost.map(|(path, why)| format!("NOT READABLE: {}: {why}", sanitize(path)));
        let lines: Vec<_> = lost.chain(left_out).chain(renamed).collect();
        for line in lines.iter().take(LINES) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
        if lines.len() > LINES {
            let _ = writeln!(text, "and {} more; --json lists all", lines.len() - LINES);
        }
        text
    }

    fn object(&self, to: &Path) -> Value {
        let pairs = |pairs: &[(String, String)]| -> Vec<Value> {
            let object = |(path, why): &(String, String)| json!({ "path": path, "reason": why });
            pairs.iter().map(object).collect()
        };
        let renamed: Vec<_> = self
            .renamed
            .iter()
            .map(|(path, name)| json!({ "path": path, "here": name.to_string_lossy() }))
            .collect();
        json!({
            "to": to.to_string_lossy(),
            "files": self.files,
            "folders": self.folders,
            "links": self.links,
            "bytes": self.bytes,
            "renamed": renamed,
            "left_out": pairs(&self.left_out),
            "not_readable": pairs(&self.lost),
        })
    }
}

/// Files on their way.
struct Getting<'a> {
    forest: &'a Forest<'a>,
    screen: &'a Screen,
    done: Done,
    /// Folders that were gone into: a folder has one place only.
    folders: HashSet<Place>,
}

impl Getting<'_> {
    /// Copies what a path names; returns where to.
    fn one(&mut self, found: &Found, to: &Path, force: bool) -> Result<PathBuf> {
        let name = match found.path.last() {
            Some(name) => name.clone(),
            None => b"files".to_vec(),
        };
        let path = match to.is_dir() {
            true => to.join(tree::name(&mended(&name, HOST))),
            false => to.to_owned(),
        };
        let exists = fs::symlink_metadata(&path).is_ok();
        let stat = self.forest.stat(found.place)?;
        let replaces = exists && force && stat.kind == Kind::File && !path.is_dir();
        if exists && !replaces {
            let error = Error::usage(format!("{} exists", path.display()));
            return Err(match stat.kind {
                Kind::File if !path.is_dir() => {
                    error.with_hint("name another file, or --force to replace it")
                }
                _ => error.with_hint("name another place to copy to"),
            });
        }
        if replaces {
            self.replace(found, &stat, &path)?;
            return Ok(path);
        }
        match stat.kind {
            Kind::File => self.file(found, &stat, &path)?,
            Kind::Folder => self.folder(found, &stat, &path, 0)?,
            Kind::Symlink => self.link(found, &path)?,
            Kind::Special => {
                return Err(Error::usage(format!("{} is no file", found.text())));
            }
        }
        Ok(path)
    }

    /// Copies all that a pattern names into a folder.
    fn all(&mut self, glob: &Glob, folder: &Path) -> Result<()> {
        let mut found = Vec::new();
        self.forest.matches(glob, &mut |entry| {
            stop(self.screen)?;
            found.push(entry);
            Ok(())
        })?;
        let mut copied: Option<Found> = None;
        for entry in found {
            // What lies in a folder that is copied comes with it.
            let is_within = |folder: &Found| entry.path.starts_with(&folder.path);
            if copied.as_ref().is_some_and(is_within) {
                continue;
            }
            self.entry(&entry, folder, 0)?;
            copied = Some(entry);
        }
        Ok(())
    }

    /// Copies something into a folder, under a name that is free there.
    fn entry(&mut self, entry: &Found, folder: &Path, depth: usize) -> Result<()> {
        stop(self.screen)?;
        let stat = match self.forest.stat(entry.place) {
            Ok(stat) => stat,
            Err(error) => return self.lose(entry, error),
        };
        if stat.kind == Kind::Special {
            let why = "neither a file nor a folder nor a link".to_owned();
            self.done.left_out.push((entry.text(), why));
            return Ok(());
        }
        let name = entry.path.last().map_or(&b"files"[..], |name| name);
        let host = mended(name, HOST);
        for number in 1..1000 {
            let path = folder.join(tree::name(&numbered(&host, number)));
            // Not even through a link to nothing.
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            if number > 1 || host != name {
                self.done.renamed.push((entry.text(), path.clone()));
            }
            let copied = match stat.kind {
                Kind::File => self.file(entry, &stat, &path),
                Kind::Folder => self.folder(entry, &stat, &path, depth),
                _ => self.link(entry, &path),
            };
            return copied.or_else(|error| self.lose(entry, error));
        }
        let why = "too many files have this name here".to_owned();
        self.done.left_out.push((entry.text(), why));
        Ok(())
    }

    /// Notes what cannot be read, and goes on; not if nothing can be written.
    fn lose(&mut self, entry: &Found, error: Error) -> Result<()> {
        let is_medium = matches!(error.kind(), ErrorKind::Unsound | ErrorKind::Unsupported)
            || error.kind() == ErrorKind::Io && !error.one_line().starts_with(WRITING);
        if !is_medium {
            return Err(error);
        }
        self.done.lost.push((entry.text(), error.one_line()));
        Ok(())
    }

    fn folder(&mut self, folder: &Found, stat: &Stat, to: &Path, depth: usize) -> Result<()> {
        check_depth(folder, depth)?;
        if !self.folders.insert(folder.place) {
            return Err(Error::unsound("the folder has another place already"));
        }
        tree::create_folder(to).map_err(|error| writing(to, error))?;
        self.done.folders += 1;
        let (names, damage) = self.forest.listed(folder)?;
        for (name, place) in names {
            self.entry(&folder.entry(name, place), to, depth + 1)?;
        }
        let mode = stat.mode.unwrap_or(PLAIN_FOLDER);
        tree::set_folder_attributes(to, mode, time(stat.modified));
        damage.map_or(Ok(()), Err)
    }

    fn link(&mut self, link: &Found, to: &Path) -> Result<()> {
        let target = self.forest.tree(link.place).target(link.place.node)?;
        if tree::create_link(&target, to).map_err(|error| writing(to, error))? {
            self.done.links += 1;
        } else {
            let why = format!("a link to {}", String::from_utf8_lossy(&target));
            self.done.left_out.push((link.text(), why));
        }
        Ok(())
    }

    fn replace(&mut self, file: &Found, stat: &Stat, to: &Path) -> Result<()> {
        let mut name = to.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(name);
        self.file(file, stat, &part)?;
        fs::rename(&part, to).map_err(|error| {
            let _ = fs::remove_file(&part);
            writing(to, error)
        })
    }

    /// Copies a file to a place where nothing is; what cannot be finished is removed.
    fn file(&mut self, file: &Found, stat: &Stat, to: &Path) -> Result<()> {
        let mut out = SystemFiles.create_new(to).map_err(|error| {
            let hint = error.kind() == IoKind::AlreadyExists;
            let error = writing(to, error);
            match hint {
                true => error.with_hint("something else makes files there"),
                false => error,
            }
        })?;
        let copied = self.contents(file, &mut out, to);
        match copied {
            Ok(len) => {
                tree::set_attributes(&out, stat.mode.unwrap_or(PLAIN_FILE), time(stat.modified));
                self.done.files += 1;
                self.done.bytes += len;
                Ok(())
            }
            Err(error) => {
                drop(out);
                let _ = fs::remove_file(to);
                Err(error)
            }
        }
    }

    fn contents(&self, file: &Found, out: &mut File, to: &Path) -> Result<u64> {
        SystemFiles.make_sparse(out);
        let mut at = 0;
        self.forest
            .tree(file.place)
            .read(file.place.node, &mut |stretch| {
                stop(self.screen)?;
                at += match stretch {
                    Stretch::Data(data) => {
                        out.write_all(data).map_err(|error| writing(to, error))?;
                        data.len() as u64
                    }
                    Stretch::Hole(len) => {
                        out.seek(SeekFrom::Start(at + len))
                            .map_err(|error| writing(to, error))?;
                        len
                    }
                };
                Ok(ControlFlow::Continue(()))
            })?;
        out.set_len(at).map_err(|error| writing(to, error))?;
        Ok(at)
    }
}

const WRITING: &str = "cannot write ";

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("{WRITING}{}", path.display()), error)
}

/// Returns a time as the system has it; the beginning of 1970 if that is impossible.
fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole),
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole),
    };
    let time = time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}
