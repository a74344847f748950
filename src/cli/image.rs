//! The image that a command names, with what lies beside it: its block map and its checksum.

use std::path::{Path, PathBuf};

use super::download::{Remote, is_url};
use super::render::Screen;
use crate::bmap::Bmap;
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
    /// The file it is in.
    pub path: Option<PathBuf>,
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
    pub fn find(name: &str, wishes: &Wishes, screen: &Screen) -> Result<Self> {
        if name == "-" {
            let map = wishes.bmap.map(read_map).transpose()?;
            let stream = || Ok(std::io::stdin());
            return Ok(Self {
                name: "standard input".into(),
                source: Box::new(StreamSource::new(stream, false, wishes.sha256)),
                map,
                path: None,
            });
        }
        if is_url(name) {
            return Self::remote(name, wishes, screen);
        }
        let path = PathBuf::from(name);
        let map = match wishes.bmap {
            Some(map) => Some(map.to_owned()),
            None if wishes.no_bmap => None,
            None => maps_beside(&path).into_iter().find(|map| map.is_file()),
        };
        if let Some(map) = map.as_ref().filter(|_| wishes.bmap.is_none()) {
            screen.say(&format!("using the block map {}", map.display()));
        }
        let map = map.as_deref().map(read_map).transpose()?;
        let sha256 = match wishes.sha256 {
            None => sha256_beside(&path, screen)?,
            given => given,
        };
        Ok(Self {
            name: name.to_owned(),
            source: Box::new(FileSource::new(&path, sha256)),
            map,
            path: Some(path),
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
            path: None,
        })
    }
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
            screen.say(&format!("using the block map {url}"));
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
    screen.say(&format!("using the checksum {url}"));
    parse_sha256(&text, &url).map(Some)
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
        let mut name = base.clone().into_os_string();
        name.push(".bmap");
        names.push(PathBuf::from(name));
        if Codec::from_extension(&base).is_none() {
            return names;
        }
        base.set_extension("");
    }
}

fn sha256_beside(image: &Path, screen: &Screen) -> Result<Option<[u8; 32]>> {
    let mut name = image.to_owned().into_os_string();
    name.push(".sha256");
    let path = PathBuf::from(name);
    if !path.is_file() {
        return Ok(None);
    }
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let text = std::fs::read(&path).map_err(failed)?;
    screen.say(&format!("using the checksum {}", path.display()));
    parse_sha256(&text, &path.display().to_string()).map(Some)
}

/// Decodes what sha256sum writes: the digest, and perhaps the name of the file.
fn parse_sha256(text: &[u8], place: &str) -> Result<[u8; 32]> {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace()
        .next()
        .and_then(|word| super::args::parse_sha256(word).ok())
        .ok_or_else(|| Error::unsound(format!("{place} does not begin with a sha256")))
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
}
