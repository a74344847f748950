//! The files of a FAT, by path. A file's number is the byte at which its short entry lies.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::fat::boot::{Geometry, Root, u16_at, u32_at};
use crate::fat::chain::walk;
use crate::fat::dir::{ENTRY, MAX_DIRECTORY, entries};
use crate::fat::{Fat, dir};
use crate::files::{Kind, Node, OnName, OnStretch, Stat, Stretch, Tree};
use crate::io::ReadAt;

/// No entry stands for the root.
const ROOT: Node = Node(u64::MAX);

/// Where stretches of a folder lie: the place in its list, and the byte on the device.
type Stretches = Vec<(usize, u64)>;

/// The files of a FAT on `device`.
pub struct FatTree<D> {
    fat: Fat,
    device: D,
}

impl<D: ReadAt> FatTree<D> {
    pub fn new(fat: Fat, device: D) -> Self {
        Self { fat, device }
    }

    fn geometry(&self) -> &Geometry {
        &self.fat.geometry
    }

    fn short(&self, node: Node) -> Result<Vec<u8>> {
        self.device.read_vec_at(node.0, ENTRY)
    }

    /// Reads a folder's entries, and where each stretch of them lies: its place in the list and its
    /// byte on the device.
    fn folder(&self, node: Node) -> Result<(Vec<u8>, Stretches)> {
        let geometry = self.geometry();
        let first = match (node, geometry.root) {
            (ROOT, Root::Fixed { start, len }) => {
                let bytes = self.device.read_vec_at(start, len as usize)?;
                return Ok((bytes, vec![(0, start)]));
            }
            (ROOT, Root::Chain { first }) => first,
            (node, _) => {
                let short = self.short(node)?;
                let found = dir::Found::of(&short);
                if !found.is_dir() {
                    return Err(Error::unsound("FAT: a name is no folder"));
                }
                found.first_cluster(geometry)
            }
        };
        let most = MAX_DIRECTORY.div_ceil(geometry.cluster_size);
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        walk(geometry, &self.device, first, most, |start| {
            let cluster = self
                .device
                .read_vec_at(start, geometry.cluster_size as usize)?;
            let more = cluster.chunks_exact(ENTRY).all(|entry| entry[0] != 0);
            places.push((bytes.len(), start));
            bytes.extend(cluster);
            Ok(more)
        })?;
        Ok((bytes, places))
    }
}

impl<D: ReadAt> Tree for FatTree<D> {
    fn root(&self) -> Node {
        ROOT
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let (kind, len, modified) = if node == ROOT {
            (Kind::Folder, 0, 0)
        } else {
            let short = self.short(node)?;
            let modified = seconds(u16_at(&short, 24), u16_at(&short, 22));
            match dir::Found::of(&short).is_dir() {
                true => (Kind::Folder, 0, modified),
                false => (Kind::File, u64::from(u32_at(&short, 28)), modified),
            }
        };
        Ok(Stat {
            kind,
            len,
            mode: None,
            uid: 0,
            gid: 0,
            modified: (modified, 0),
        })
    }

    fn list(&self, folder: Node, visit: OnName<'_>) -> Result<()> {
        let (bytes, places) = self.folder(folder)?;
        for found in entries(&bytes) {
            let at = found.at;
            let Some(name) = found.name().filter(|name| !name.is_empty()) else {
                continue;
            };
            // OK to unwrap: the first stretch begins at 0.
            let (from, start) = places.iter().rfind(|(from, _)| *from <= at).unwrap();
            let node = Node(start + (at - from) as u64);
            if visit(name.as_bytes(), node)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Names are the same in any case.
    fn lookup(&self, folder: Node, name: &[u8]) -> Result<Option<Node>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        let mut node = None;
        self.list(folder, &mut |other, found| {
            // OK: names are made from text.
            let other = String::from_utf8_lossy(other);
            if !dir::same(&other, name) {
                return Ok(ControlFlow::Continue(()));
            }
            node = Some(found);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(node)
    }

    fn read(&self, file: Node, visit: OnStretch<'_>) -> Result<()> {
        let short = match file {
            ROOT => return Err(Error::unsupported("FAT: a folder is no file")),
            file => self.short(file)?,
        };
        let geometry = self.geometry();
        let len = u64::from(u32_at(&short, 28));
        let mut left = len;
        let first = dir::Found::of(&short).first_cluster(geometry);
        if left > 0 {
            walk(geometry, &self.device, first, u64::MAX, |start| {
                let count = left.min(geometry.cluster_size);
                let bytes = self.device.read_vec_at(start, count as usize)?;
                left -= count;
                let goes_on = visit(Stretch::Data(&bytes))?.is_continue();
                if !goes_on {
                    left = 0;
                }
                Ok(left > 0)
            })?;
        }
        match left {
            0 => Ok(()),
            _ => Err(Error::unsound(format!(
                "the FAT filesystem is damaged: a file ends after {} of {len} bytes",
                len - left
            ))),
        }
    }

    fn target(&self, _: Node) -> Result<Vec<u8>> {
        Err(Error::unsupported("FAT: there are no symlinks"))
    }
}

/// Returns a date and a time as seconds since 1970, as if both were of UTC.
fn seconds(date: u16, time: u16) -> i64 {
    let (year, month, day) = (date >> 9, date >> 5 & 15, date & 31);
    let days = crate::units::days_since_1970(
        1980 + i64::from(year),
        u32::from(month).clamp(1, 12),
        u32::from(day).max(1),
    );
    let (hour, minute, pair) = (time >> 11, time >> 5 & 63, time & 31);
    days * 86_400 + i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(pair) * 2
}
