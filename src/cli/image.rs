//! The image that a command names, with what lies beside it: its block map and its checksum.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};

use super::args;
use super::download::{Remote, is_url};
use super::render::Screen;
use crate::bmap::Bmap;
use crate::capture::packed_as;
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::flash::{FileSource, ImageSource, StreamSource};

/// The most bytes of a block map that is fetched: far more than one of a card that is full of holes.
const LARGEST_MAP: u64 = 64 << 20;

/// The most bytes of a checksum file that is fetched.
const LARGEST_SUM: u64 = 64 << 10;

/// An image to be read.
pub struct Image {
    /// What messages call it.
    pub name: String,
    pub source: Box<dyn ImageSource>,
    pub map: Option<Bmap>,
    /// Is its sha256 known?
    pub checked: bool,
    /// The file it is in.
    pub path: Option<PathBuf>,
    /// Files that must stay as they are: the image and what lies beside it, the image first.
    pub files: Vec<PathBuf>,
}

/// What the user says about an image.
pub struct Wishes<'a> {
    pub bmap: Option<&'a Path>,
    pub no_bmap: bool,
    pub sha256: Option<[u8; 32]>,
}

impl Image {
    /// Finds the image `name`: a file, a URL, or `-` for standard input.
    ///
    /// # Errors
    /// What is wrong with the block map, or cannot be opened.
    pub fn find(name: &OsStr, wishes: &Wishes, screen: &Screen) -> Result<Self> {
        if name == "-" {
            let map = wishes.bmap.map(read_map).transpose()?;
            let stream = || Ok(std::io::stdin());
            return Ok(Self {
                name: "standard input".into(),
                source: Box::new(StreamSource::new(stream, false, wishes.sha256)),
                map,
                checked: wishes.sha256.is_some(),
                path: None,
                // What the shell put there with <.
                files: with_map(cfg!(unix).then(|| "/dev/stdin".into()), wishes.bmap),
            });
        }
        if let Some(url) = name.to_str().filter(|name| is_url(name)) {
            return Self::remote(url, wishes, screen);
        }
        let path = PathBuf::from(name);
        if let Some(pipe) = opened_pipe(&path) {
            let again = move || {
                let same = pipe.try_clone();
                same.map_err(|error| Error::io("cannot read the pipe", error))
            };
            return Ok(Self {
                name: path.display().to_string(),
                source: Box::new(StreamSource::new(again, false, wishes.sha256)),
                map: wishes.bmap.map(read_map).transpose()?,
                checked: wishes.sha256.is_some(),
                files: with_map(Some(path), wishes.bmap),
                path: None,
            });
        }
        let map = match wishes.bmap {
            Some(map) => Some(map.to_owned()),
            None if wishes.no_bmap => None,
            None => maps_beside(&path).into_iter().find(|map| map.is_file()),
        };
        if let Some(map) = map.as_ref().filter(|_| wishes.bmap.is_none()) {
            screen.detail(&format!("using the block map {}", map.display()));
        }
        let mut files = with_map(Some(path.clone()), map.as_deref());
        files.extend(sums_beside(&path));
        let map = map.as_deref().map(read_map).transpose()?;
        if let Some(map) = &map {
            refuse_map_of_packed(map, &path)?;
        }
        let sha256 = match wishes.sha256 {
            None => sha256_beside(&path, screen)?,
            given => given,
        };
        Ok(Self {
            name: path.display().to_string(),
            source: Box::new(FileSource::new(&path, sha256)),
            map,
            checked: sha256.is_some(),
            path: Some(path),
            files,
        })
    }

    fn remote(url: &str, wishes: &Wishes, screen: &Screen) -> Result<Self> {
        let remote = Remote::new(url, screen.interrupt());
        let map = match wishes.bmap {
            Some(map) => Some(read_map(map)?),
            None if wishes.no_bmap => None,
            None => remote_map(&remote, screen)?,
        };
        let sha256 = match wishes.sha256 {
            None => remote_sha256(&remote, screen)?,
            given => given,
        };
        Ok(Self {
            name: url.to_owned(),
            source: Box::new(StreamSource::new(move || remote.open(), true, sha256)),
            map,
            checked: sha256.is_some(),
            path: None,
            files: with_map(None, wishes.bmap),
        })
    }
}

fn with_map(image: Option<PathBuf>, map: Option<&Path>) -> Vec<PathBuf> {
    image.into_iter().chain(map.map(Path::to_owned)).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Fetches the block map that lies beside an image on the web, under one of the names that it may have
/// beside a file.
fn remote_map(remote: &Remote, screen: &Screen) -> Result<Option<Bmap>> {
    let Some((folder, name)) = remote.name() else {
        return Ok(None);
    };
    for name in maps_beside(Path::new(name)) {
        let url = format!("{folder}{}", name.display());
        if let Some(xml) = remote.beside(url.clone(), LARGEST_MAP)? {
            screen.detail(&format!("using the block map {url}"));
            let map = Bmap::parse(&xml).map_err(|error| error.within(&url))?;
            return Ok(Some(map));
        }
    }
    Ok(None)
}

fn remote_sha256(remote: &Remote, screen: &Screen) -> Result<Option<[u8; 32]>> {
    let Some((folder, name)) = remote.name() else {
        return Ok(None);
    };
    let url = format!("{folder}{name}.sha256");
    let Some(text) = remote.beside(url.clone(), LARGEST_SUM)? else {
        return Ok(None);
    };
    screen.detail(&format!("using the checksum {url}"));
    parse_sha256(&text, name, &url).map(Some)
}

/// Opens what a shell writes as `<(command)`, or another pipe: it can be read once, from its start.
fn opened_pipe(path: &Path) -> Option<File> {
    let mut file = File::open(path).ok()?;
    file.stream_position().is_err().then_some(file)
}

/// Refuses a map that was made of the packed file, instead of the image in it.
fn refuse_map_of_packed(map: &Bmap, image: &Path) -> Result<()> {
    let is_as_long = std::fs::metadata(image).is_ok_and(|there| there.len() == map.image_size);
    if !is_as_long || packed_as(image)? == Codec::Raw {
        return Ok(());
    }
    Err(Error::unsound(format!(
        "the block map is of the packed file {} itself, not of the image in it",
        image.display()
    ))
    .with_hint("--no-bmap does without; bmaptool makes a right one of the unpacked image"))
}

fn read_map(path: &Path) -> Result<Bmap> {
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let xml = std::fs::read(path).map_err(failed)?;
    Bmap::parse(&xml).map_err(|error| error.within(path.display()))
}

/// Returns the names under which an image's block map may lie beside it, the closest one first:
/// `x.img.xz.bmap`, `x.img.bmap`, `x.bmap`.
fn maps_beside(image: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut base = image.to_owned();
    loop {
        names.push(with_suffix(&base, ".bmap"));
        if Codec::from_extension(&base).is_none() {
            return names;
        }
        base.set_extension("");
    }
}

/// Returns the names under which an image's checksum may lie beside it, the closest one first:
/// `x.img.xz.sha256`, `x.img.sha256`, `x.sha256`. Each may be of the file or of what is packed in it.
fn sums_beside(image: &Path) -> Vec<PathBuf> {
    let maps = maps_beside(image).into_iter();
    maps.map(|map| map.with_extension("sha256")).collect()
}

fn sha256_beside(image: &Path, screen: &Screen) -> Result<Option<[u8; 32]>> {
    for (place, path) in sums_beside(image).into_iter().enumerate() {
        if !path.is_file() {
            continue;
        }
        let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
        let text = std::fs::read(&path).map_err(failed)?;
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let found = parse_sha256(&text, &name, &path.display().to_string());
        // Under a shorter name it may be another file's.
        if found.is_ok() || place == 0 {
            screen.detail(&format!("using the checksum {}", path.display()));
            return found.map(Some);
        }
    }
    Ok(None)
}

/// Finds the sha256 of the file `name` in what sha256sum, shasum, certutil or PowerShell say of it,
/// or in a list of checksums. `place` is where that was read.
fn parse_sha256(text: &[u8], name: &str, place: &str) -> Result<[u8; 32]> {
    let text = decode_text(text);
    let sums: Vec<_> = text
        .lines()
        .filter_map(|line| {
            // Where a name had to be escaped, a backslash comes first.
            let mut words = line.split_whitespace();
            let sum = words.find_map(|word| args::parse_sha256(word.trim_start_matches('\\')).ok());
            Some((sum?, mentions(line, name)))
        })
        .collect();
    let named = sums.iter().find(|(_, named)| *named);
    match (named, &sums[..]) {
        // The only one may be under a name that the file had before.
        (Some((sum, _)), _) | (None, [(sum, _)]) => return Ok(*sum),
        (None, []) => Err(Error::unsound(format!("{place} has no sha256"))),
        (None, _) => Err(Error::unsound(format!("{place} has no sha256 of {name}"))),
    }
    .map_err(|error| error.with_hint("remove it if it is not this image's, or give --sha256"))
}

/// Is `name` a word of its own in `line`?
fn mentions(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, name)| {
        let before = line[..at].chars().next_back();
        let behind = line[at + name.len()..].chars().next();
        before.is_none_or(|c| " \t*/\\(".contains(c)) && behind.is_none_or(|c| " \t):".contains(c))
    })
}

/// Decodes text; Windows writes UTF-16, which it marks.
fn decode_text(text: &[u8]) -> String {
    let utf16 = |bytes: &[u8], decode: fn([u8; 2]) -> u16| {
        let pairs = bytes.chunks_exact(2);
        let units: Vec<_> = pairs.map(|pair| decode([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match text {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_looked_for_under_shorter_and_shorter_names() {
        for (image, names) in [
            ("a/x.img.xz", "a/x.img.xz.bmap a/x.img.bmap a/x.bmap"),
            ("x.img", "x.img.bmap x.bmap"),
            ("x.1", "x.1.bmap"),
        ] {
            let names: Vec<_> = names.split(' ').map(PathBuf::from).collect();
            assert_eq!(maps_beside(Path::new(image)), names);
        }
    }

    #[test]
    fn sums_are_looked_for_as_maps_are() {
        let names = ["x.zip.sha256", "x.sha256"].map(PathBuf::from);
        assert_eq!(sums_beside(Path::new("x.zip")), names);
    }

    #[test]
    fn checksums_are_read_as_many_tools_write_them() {
        let (ours, other) = ("0a".repeat(32), "1b".repeat(32));
        let sum = [0x0a; 32];
        let utf16: String = format!("{ours}  x.img\r\n");
        let utf16: Vec<u8> = [0xff, 0xfe]
            .into_iter()
            .chain(utf16.encode_utf16().flat_map(u16::to_le_bytes))
            .collect();
        for (text, found) in [
            (format!("{ours}  x.img\n"), true),
            (format!("{ours} *./out/x.img\r\n"), true),
            (format!("\\{ours}  x.img\n"), true),
            (ours.to_uppercase(), true),
            (format!("SHA256 (x.img) = {ours}\n"), true),
            (format!("SHA2-256(x.img)= {ours}\n"), true),
            (
                format!("SHA256 hash of x.img:\r\n{ours}\r\nCertUtil: done.\r\n"),
                true,
            ),
            (format!("\u{feff}# sums\n{ours}  renamed.img"), true),
            (
                format!("{other}  x.img.xz\n{ours}  x.img\n{other}  ax.img\n"),
                true,
            ),
            (format!("{other}  x.img.xz\n{ours}  y.img\n"), false),
            (String::new(), false),
            ("0a0a  x.img".into(), false),
        ] {
            let read = parse_sha256(text.as_bytes(), "x.img", "x.img.sha256");
            assert_eq!(read.ok(), found.then_some(sum), "{text:?}");
        }
        assert_eq!(parse_sha256(&utf16, "x.img", "").unwrap(), sum);
    }
}
