//! What is on a card: its table, its filesystems, the system inside, and what capture would make.

use std::error::Error as StdError;
use std::sync::Arc;

use ext4_view::{Ext4 as View, Ext4Read};
use serde::Serialize;

use crate::capture::{CapturePlan, PlanOptions, Summary, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::fat::Fat;
use crate::io::{ReadAt, Source, Window};
use crate::progress::Progress;
use crate::units::ByteRange;

/// Longer files are not what they should be, in bytes.
const LONGEST_FILE: usize = 64 << 10;

/// What is known about a source.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// What capture would do; if it would refuse, what it would do with --no-shrink --force-raw.
    pub plan: Summary,
    /// Why capture would refuse.
    pub problem: Option<String>,
    pub system: Option<System>,
    /// The kernel's command line of a Raspberry Pi: `cmdline.txt` of the boot partition.
    pub cmdline: Option<String>,
    /// The source in equal stretches.
    pub picture: Vec<Cell>,
}

/// The operating system that was found; all of it is untrusted text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct System {
    pub partition: u32,
    /// `PRETTY_NAME` of os-release.
    pub name: Option<String>,
    pub hostname: Option<String>,
}

/// A stretch of the source, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cell {
    pub total: u64,
    /// In use, and staying at its place.
    pub used: u64,
    /// In use, and at another place in the image.
    pub moved: u64,
    /// Of the filesystem itself, and different in the image.
    pub metadata: u64,
}

/// Looks at `source`, and draws it in `cells` stretches.
///
/// # Errors
/// `Unsound` if not even the partition table can be read; `Cancelled` from `progress`; what the
/// source fails with.
pub fn inspect(
    source: &Arc<dyn ReadAt>,
    options: &PlanOptions,
    cells: usize,
    progress: &dyn Progress,
) -> Result<Inspection> {
    let (plan, problem) = match plan(&**source, options, progress) {
        Ok(plan) => (plan, None),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Unsound | ErrorKind::Unsupported | ErrorKind::Io
            ) =>
        {
            let whole = PlanOptions {
                shrink: false,
                force_raw: true,
                ..*options
            };
            match crate::capture::plan(&**source, &whole, progress) {
                Ok(plan) => (plan, Some(with_hint(&error))),
                Err(_) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    Ok(Inspection {
        problem,
        system: find_system(source, &plan.summary),
        cmdline: find_cmdline(&**source, &plan.summary),
        picture: picture(&plan, cells),
        plan: plan.summary,
    })
}

fn with_hint(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{}; {hint}", error.one_line()),
        None => error.one_line(),
    }
}

fn find_system(source: &Arc<dyn ReadAt>, summary: &Summary) -> Option<System> {
    let exts = summary
        .partitions
        .iter()
        .filter(|part| part.filesystem.starts_with("ext"));
    exts.filter_map(|part| {
        let reader = Reader {
            source: source.clone(),
            range: part.range,
        };
        // What this reader does not understand is just not known.
        let view = View::load(Box::new(reader)).ok()?;
        let release = ["/etc/os-release", "/usr/lib/os-release"]
            .into_iter()
            .find_map(|path| small_file(&view, path));
        let system = System {
            partition: part.number,
            name: release.as_deref().and_then(pretty_name),
            hostname: small_file(&view, "/etc/hostname")
                .map(|text| text.trim().to_owned())
                .filter(|name| !name.is_empty()),
        };
        (system.name.is_some() || system.hostname.is_some()).then_some(system)
    })
    .next()
}

fn find_cmdline(source: &dyn ReadAt, summary: &Summary) -> Option<String> {
    let fats = summary
        .partitions
        .iter()
        .filter(|part| part.filesystem.starts_with("FAT"));
    fats.filter_map(|part| {
        let window = Window::new(source, part.range).ok()?;
        let fat = Fat::identify(&window).ok()??;
        let bytes = fat
            .read_root_file(&window, "cmdline.txt", LONGEST_FILE)
            .ok()??;
        let line = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!line.is_empty()).then_some(line)
    })
    .next()
}

fn small_file(view: &View, path: &str) -> Option<String> {
    let mut file = view.open(path).ok()?;
    let len = usize::try_from(file.metadata().len()).ok()?;
    if len > LONGEST_FILE {
        return None;
    }
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_bytes(&mut bytes[done..]).ok()? {
            0 => return None,
            count => done += count,
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Decodes `PRETTY_NAME="..."` of os-release: a shell assignment.
fn pretty_name(release: &str) -> Option<String> {
    let value = release
        .lines()
        .find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?;
    let quote = value.chars().next().filter(|&c| c == '"' || c == '\'');
    let name = match quote {
        Some(quote) => value[1..].split(quote).next().unwrap_or_default(),
        None => value,
    };
    (!name.is_empty()).then(|| name.to_owned())
}

/// A partition, for ext4-view.
struct Reader {
    source: Arc<dyn ReadAt>,
    range: ByteRange,
}

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn StdError + Send + Sync + 'static>> {
        let window = Window::new(&*self.source, self.range).map_err(boxed)?;
        window.read_exact_at(start_byte, dst).map_err(boxed)
    }
}

fn boxed(error: Error) -> Box<dyn StdError + Send + Sync> {
    Box::new(error)
}

/// Draws the source as `cells` stretches of about equal length.
pub fn picture(plan: &CapturePlan, cells: usize) -> Vec<Cell> {
    let len = plan.summary.source_bytes;
    let cells = cells.max(1);
    let step = len.div_ceil(cells as u64).max(1);
    let mut picture = vec![Cell::default(); cells];
    let mut add = |start: u64, bytes: u64, count: &dyn Fn(&mut Cell, u64)| {
        let end = start.saturating_add(bytes).min(len);
        let mut at = start;
        while at < end {
            let next = (at / step + 1).saturating_mul(step).min(end);
            // OK: below `len`, so below `cells` steps.
            count(&mut picture[(at / step) as usize], next - at);
            at = next;
        }
    };
    add(0, len, &|cell, bytes| cell.total += bytes);
    for segment in plan.overlay.all_segments() {
        match segment.source {
            Source::Base(from) if from == segment.start => {
                add(from, segment.len, &|cell, bytes| cell.used += bytes);
            }
            Source::Base(from) => add(from, segment.len, &|cell, bytes| cell.moved += bytes),
            Source::Bytes(..) | Source::Patched(..) => {
                add(segment.start, segment.len, &|cell, bytes| {
                    cell.metadata += bytes;
                });
            }
            Source::Zero => {}
        }
    }
    picture.retain(|cell| cell.total > 0);
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_name_of_a_system() {
        for (text, name) in [
            ("ID=x\nPRETTY_NAME=\"Raspbian 12\"\n", Some("Raspbian 12")),
            ("PRETTY_NAME='a b'", Some("a b")),
            ("PRETTY_NAME=plain", Some("plain")),
            ("PRETTY_NAME=\"", None),
            ("PRETTY_NAME=", None),
            ("NAME=x", None),
        ] {
            assert_eq!(pretty_name(text).as_deref(), name, "{text:?}");
        }
    }
}
