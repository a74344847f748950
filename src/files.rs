//! Files inside filesystems, read by path: one tree for each filesystem, and the tree that a running
//! system sees, where one filesystem is mounted in another.
//!
//! Names and link targets are bytes, as a medium has them: nobody may trust them.

mod glob;

pub use glob::Glob;

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// Symlinks that one path may lead through, as in Linux.
const MAX_LINKS: u32 = 40;
/// Bytes of a path, links included, as in Linux.
const MAX_PATH: usize = 4096;
/// Folders within one another that are gone into.
const MAX_DEPTH: usize = 256;
/// Names of one folder that are held in memory.
const MAX_NAMES: usize = 1 << 20;

/// What something in a tree is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    File,
    Folder,
    Symlink,
    /// A character or block device, a pipe, a socket, or something unknown.
    Special,
}

/// What is known of a file without reading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    pub kind: Kind,
    /// In bytes.
    pub len: u64,
    /// The permission bits, up to 0o7777; `None` where the filesystem has none.
    pub mode: Option<u16>,
    pub uid: u32,
    pub gid: u32,
    /// When it was last changed, in seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// A number by which a tree finds a file again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Node(pub u64);

/// A stretch of a file, in order.
pub enum Stretch<'a> {
    Data(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// Takes the names of a folder and what they stand for, until it breaks off.
pub type OnName<'a> = &'a mut dyn FnMut(&[u8], Node) -> Result<ControlFlow<()>>;
/// Takes a file's stretches, until it breaks off.
pub type OnStretch<'a> = &'a mut dyn FnMut(Stretch<'_>) -> Result<ControlFlow<()>>;

/// The files of one filesystem.
pub trait Tree {
    fn root(&self) -> Node;

    /// # Errors
    /// `Unsound` for damage, what the medium fails with.
    fn stat(&self, node: Node) -> Result<Stat>;

    /// Goes through a folder, without `.` and `..`, in the order of the medium.
    ///
    /// # Errors
    /// `Unsound` for damage, after all names that can still be read; what `visit` or the medium
    /// fails with.
    fn list(&self, folder: Node, visit: OnName<'_>) -> Result<()>;

    /// Goes through a file's bytes.
    ///
    /// # Errors
    /// `Unsound` for damage, `Unsupported` for what is encrypted, what `visit` or the medium fails
    /// with.
    fn read(&self, file: Node, visit: OnStretch<'_>) -> Result<()>;

    /// Returns a symlink's target, not more than 4096 bytes.
    ///
    /// # Errors
    /// As [`Tree::read`].
    fn target(&self, link: Node) -> Result<Vec<u8>>;

    /// Finds a name in a folder.
    ///
    /// # Errors
    /// As [`Tree::list`].
    fn lookup(&self, folder: Node, name: &[u8]) -> Result<Option<Node>> {
        let mut found = None;
        let listed = self.list(folder, &mut |other, node| {
            if other != name {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(node);
            Ok(ControlFlow::Break(()))
        });
        match found {
            Some(node) => Ok(Some(node)),
            None => listed.map(|()| None),
        }
    }
}

/// Reads a small file whole.
///
/// # Errors
/// `Unsupported` if it is longer than `most` bytes; as [`Tree::read`].
pub fn read_small(tree: &dyn Tree, file: Node, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tree.read(file, &mut |stretch| {
        let more = match stretch {
            Stretch::Data(data) => data.len() as u64,
            Stretch::Hole(len) => len,
        };
        if bytes.len() as u64 + more > most as u64 {
            return Err(Error::unsupported(format!(
                "the file is longer than {most} bytes"
            )));
        }
        match stretch {
            Stretch::Data(data) => bytes.extend_from_slice(data),
            // OK: not more than `most`.
            Stretch::Hole(len) => bytes.resize(bytes.len() + len as usize, 0),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(bytes)
}

/// A file in one of several trees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Place {
    /// Which tree.
    pub tree: usize,
    pub node: Node,
}

/// What is done with each name of a folder, and what it stands for.
pub type Visit<'a> = dyn FnMut(&[u8], Place) -> Result<ControlFlow<()>> + 'a;

/// The names of a folder that could be read, in order, and what kept the others from it.
pub type Listed = (Vec<(Vec<u8>, Place)>, Option<Error>);

/// A place, and the path without links that leads there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub place: Place,
    /// Names from the root on.
    pub path: Vec<Vec<u8>>,
}

impl Found {
    /// Returns what lies in this folder under a name.
    pub fn entry(&self, name: Vec<u8>, place: Place) -> Self {
        let mut path = self.path.clone();
        path.push(name);
        Self { place, path }
    }

    /// Returns the path as users write it.
    pub fn text(&self) -> String {
        text_of(&self.path)
    }
}

/// Writes names as a path from the root on.
pub fn text_of(path: &[Vec<u8>]) -> String {
    if path.is_empty() {
        return "/".to_owned();
    }
    path.iter()
        .map(|name| format!("/{}", String::from_utf8_lossy(name)))
        .collect()
}

/// Trees mounted in one another, as a running system sees them.
pub struct Forest<'a> {
    trees: Vec<Box<dyn Tree + 'a>>,
    /// Where trees are mounted in the first one: names from the root on.
    mounts: Vec<(Vec<Vec<u8>>, usize)>,
}

impl<'a> Forest<'a> {
    /// A forest whose root is `root`.
    pub fn new(root: Box<dyn Tree + 'a>) -> Self {
        Self {
            trees: vec![root],
            mounts: Vec::new(),
        }
    }

    /// Mounts a tree at a path. A folder that is not there appears in no list, but can be named.
    pub fn mount(&mut self, path: &[u8], tree: Box<dyn Tree + 'a>) {
        self.mounts.push((names(path), self.trees.len()));
        self.trees.push(tree);
    }

    pub fn tree(&self, place: Place) -> &dyn Tree {
        &*self.trees[place.tree]
    }

    pub fn root(&self) -> Found {
        Found {
            place: Place {
                tree: 0,
                node: self.trees[0].root(),
            },
            path: Vec::new(),
        }
    }

    /// # Errors
    /// As [`Tree::stat`].
    pub fn stat(&self, place: Place) -> Result<Stat> {
        self.tree(place).stat(place.node)
    }

    /// Finds what a path from the root names; `None` if there is nothing. Links on the way are
    /// followed, one at its end if `follow`.
    ///
    /// # Errors
    /// `Unsound` for damage and for links that lead in a circle, what a medium fails with.
    pub fn find(&self, path: &[u8], follow: bool) -> Result<Option<Found>> {
        let mut left = names(path);
        left.reverse();
        let mut trail = vec![self.root()];
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            // OK to unwrap: the root stays.
            let folder = trail.last().unwrap();
            if self.stat(folder.place)?.kind != Kind::Folder {
                return Ok(None);
            }
            let Some(found) = self.child(folder, &name)? else {
                return Ok(None);
            };
            let is_link = self.stat(found.place)?.kind == Kind::Symlink;
            if !is_link || left.is_empty() && !follow {
                trail.push(found);
                continue;
            }
            links += 1;
            let target = self.tree(found.place).target(found.place.node)?;
            let ahead: usize = left.iter().map(|name| name.len() + 1).sum();
            if links > MAX_LINKS || ahead + target.len() > MAX_PATH {
                return Err(Error::unsound(format!(
                    "{}: symlinks lead in a circle",
                    found.text()
                )));
            }
            if target.first() == Some(&b'/') {
                trail.truncate(1);
            }
            left.extend(names(&target).into_iter().rev());
        }
        Ok(trail.pop())
    }

    /// Finds a name in a folder, which may be the root of another tree.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    pub fn child(&self, folder: &Found, name: &[u8]) -> Result<Option<Found>> {
        let mut path = folder.path.clone();
        path.push(name.to_vec());
        let found = match self.mounted(&path) {
            Some(place) => Some(place),
            None => self
                .tree(folder.place)
                .lookup(folder.place.node, name)?
                .map(|node| Place {
                    tree: folder.place.tree,
                    node,
                }),
        };
        Ok(found.map(|place| Found { place, path }))
    }

    /// Goes through a folder, and lists what is mounted in place of what is beneath.
    ///
    /// # Errors
    /// As [`Tree::list`].
    pub fn list(&self, folder: &Found, visit: &mut Visit<'_>) -> Result<()> {
        let tree = folder.place.tree;
        let mut path = folder.path.clone();
        self.tree(folder.place)
            .list(folder.place.node, &mut |name, node| {
                path.push(name.to_vec());
                let mounted = self.mounted(&path);
                path.pop();
                visit(name, mounted.unwrap_or(Place { tree, node }))
            })
    }

    /// Lists what a folder holds, in the order of the names: those that could be read, and what kept
    /// the others from it.
    ///
    /// # Errors
    /// `Unsupported` for more names than are held in memory.
    pub fn listed(&self, folder: &Found) -> Result<Listed> {
        let mut found = Vec::new();
        let mut too_many = false;
        let listed = self.list(folder, &mut |name, place| {
            too_many = found.len() >= MAX_NAMES;
            if too_many {
                return Ok(ControlFlow::Break(()));
            }
            found.push((name.to_vec(), place));
            Ok(ControlFlow::Continue(()))
        });
        if too_many {
            return Err(Error::unsupported(format!(
                "{}: the folder has more than {MAX_NAMES} names",
                folder.text()
            )));
        }
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok((found, listed.err()))
    }

    /// Gives `visit` whatever a pattern names, in the order of the names; links are not followed.
    ///
    /// # Errors
    /// As [`Tree::list`].
    pub fn matches(&self, glob: &Glob, visit: &mut dyn FnMut(Found) -> Result<()>) -> Result<()> {
        self.matches_below(&self.root(), glob, 0, visit)
    }

    fn matches_below(
        &self,
        folder: &Found,
        glob: &Glob,
        depth: usize,
        visit: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        check_depth(folder, depth)?;
        let (names, damage) = self.listed(folder)?;
        for (name, place) in names {
            let entry = folder.entry(name, place);
            let (is_match, goes_on) = glob.judge(&entry.path);
            let is_folder = goes_on && self.stat(entry.place)?.kind == Kind::Folder;
            if is_match {
                visit(entry.clone())?;
            }
            if is_folder {
                self.matches_below(&entry, glob, depth + 1, visit)?;
            }
        }
        damage.map_or(Ok(()), Err)
    }

    fn mounted(&self, path: &[Vec<u8>]) -> Option<Place> {
        let (_, tree) = self.mounts.iter().find(|(mount, _)| mount == path)?;
        Some(Place {
            tree: *tree,
            node: self.trees[*tree].root(),
        })
    }
}

/// Refuses folders so deep that only damage makes them.
///
/// # Errors
/// `Unsound` from 256 folders within one another on.
pub fn check_depth(folder: &Found, depth: usize) -> Result<()> {
    if depth < MAX_DEPTH {
        return Ok(());
    }
    let name = String::from_utf8_lossy(folder.path.last().map_or(b"", |name| name));
    Err(Error::unsound(format!(
        "{name}: more than {MAX_DEPTH} folders lie within one another"
    )))
}

/// Splits a path into names, without `.`.
pub fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree written as paths; a link has its target behind `->`.
    struct Written(Vec<(&'static str, Kind, &'static str)>);

    impl Tree for Written {
        fn root(&self) -> Node {
            Node(u64::MAX)
        }

        fn stat(&self, node: Node) -> Result<Stat> {
            let kind = match node {
                Node(u64::MAX) => Kind::Folder,
                Node(index) => self.0[index as usize].1,
            };
            Ok(Stat {
                kind,
                len: 0,
                mode: None,
                uid: 0,
                gid: 0,
                modified: (0, 0),
            })
        }

        fn list(&self, folder: Node, visit: OnName<'_>) -> Result<()> {
            let prefix = match folder {
                Node(u64::MAX) => String::new(),
                Node(index) => format!("{}/", self.0[index as usize].0),
            };
            for (index, (path, ..)) in self.0.iter().enumerate() {
                let name = path.strip_prefix(prefix.as_str());
                if let Some(name) = name.filter(|name| !name.contains('/'))
                    && visit(name.as_bytes(), Node(index as u64))?.is_break()
                {
                    break;
                }
            }
            Ok(())
        }

        fn read(&self, _: Node, _: OnStretch<'_>) -> Result<()> {
            Ok(())
        }

        fn target(&self, link: Node) -> Result<Vec<u8>> {
            Ok(self.0[link.0 as usize].2.as_bytes().to_vec())
        }
    }

    fn forest() -> Forest<'static> {
        let mut forest = Forest::new(Box::new(Written(vec![
            ("etc", Kind::Folder, ""),
            ("etc/fstab", Kind::File, ""),
            ("boot", Kind::Folder, ""),
            ("boot/firmware", Kind::Folder, ""),
            ("boot/firmware/hidden", Kind::File, ""),
            ("boot/cmdline.txt", Kind::Symlink, "firmware/cmdline.txt"),
            ("up", Kind::Symlink, "../../etc/../etc/fstab"),
            ("circle", Kind::Symlink, "/circle"),
            ("long", Kind::Symlink, "long/long"),
            ("dead", Kind::Symlink, "/nothing"),
        ])));
        let fat = Written(vec![("cmdline.txt", Kind::File, "")]);
        forest.mount(b"/boot/firmware", Box::new(fat));
        forest
    }

    #[test]
    fn paths_lead_through_links_and_mounts() {
        let forest = forest();
        for (path, end) in [
            ("/", Some("/")),
            ("etc//fstab", Some("/etc/fstab")),
            ("/etc/./../../etc/fstab", Some("/etc/fstab")),
            ("/up", Some("/etc/fstab")),
            ("/boot/cmdline.txt", Some("/boot/firmware/cmdline.txt")),
            ("/boot/firmware/hidden", None),
            ("/etc/fstab/x", None),
            ("/dead", None),
        ] {
            let found = forest.find(path.as_bytes(), true).unwrap();
            assert_eq!(found.map(|found| found.text()).as_deref(), end, "{path}");
        }
        let link = forest.find(b"/up", false).unwrap().unwrap();
        assert_eq!(link.text(), "/up");
        for path in ["/circle", "/long/x"] {
            let error = forest.find(path.as_bytes(), true).unwrap_err();
            assert!(error.one_line().contains("in a circle"), "{path}");
        }
    }

    #[test]
    fn patterns_find_what_is_mounted() {
        let forest = forest();
        for (pattern, expected) in [
            ("/boot/*/cmd*", "/boot/firmware/cmdline.txt"),
            ("/**/*.txt", "/boot/cmdline.txt /boot/firmware/cmdline.txt"),
            ("/e?c", "/etc"),
            (
                "/boot/**",
                "/boot/cmdline.txt /boot/firmware /boot/firmware/cmdline.txt",
            ),
        ] {
            let mut found = Vec::new();
            let glob = Glob::new(pattern.as_bytes());
            forest
                .matches(&glob, &mut |entry| {
                    found.push(entry.text());
                    Ok(())
                })
                .unwrap();
            assert_eq!(found.join(" "), expected, "{pattern}");
        }
    }
}
