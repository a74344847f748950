//! `pishrink verify`: an image against what is known of it, or a card against an image.

use std::path::Path;

use serde_json::json;

use super::args::Verify;
use super::capture::about;
use super::exit::Exit;
use super::image::{Image, Wishes};
use super::mistaken;
use super::render::{Screen, clean};
use super::watch::Watched;
use crate::bmap::Bmap;
use crate::device::{self, SourceOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::flash::{self, Checked};
use crate::io::ReadAt;
use crate::units::human_bytes;

/// Differences that are shown one by one.
const SHOWN: usize = 20;

pub fn run(args: &Verify, screen: &Screen) -> Result<Exit> {
    mistaken::verify(&args.image, args.device.as_deref())?;
    let wishes = Wishes {
        bmap: args.bmap.as_deref(),
        no_bmap: false,
        sha256: args.sha256,
    };
    let image = Image::find(args.image.as_os_str(), &wishes, screen)?;
    let options = SourceOptions {
        allow_mounted: args.allow_mounted,
    };
    let name = args.device.as_deref().unwrap_or(&args.image);
    let name = name.display().to_string();
    let card = match &args.device {
        Some(path) => Some(device::open_source(path, &options)?),
        None => None,
    };
    let on_device = card.as_ref().and_then(|card| card.info());
    let _awake = on_device.map(|_| device::stay_awake());
    let watch = screen.watch(&name);
    let card = card.as_ref().map(|card| Watched {
        inner: card,
        watch: &watch,
    });
    let card = card.as_ref().map(|card| card as &dyn ReadAt);
    let checked = flash::check(&*image.source, image.map.as_ref(), card, screen)
        .map_err(|error| about(Path::new(&image.name), error))?;
    screen.result(
        &describe(&checked, &image, card.is_some()),
        &json!({
            "image": image.name,
            "image_bytes": checked.image_len,
            "checked_bytes": checked.bytes,
            "with_block_map": image.map.is_some(),
            "with_sha256": image.checked,
            "expanded": checked.expanded,
            "differences": checked.differences,
            "mounted_since": checked.mounted_since,
        }),
    );
    if !checked.differences.is_empty() {
        let wrong: u64 = checked.differences.iter().map(|d| d.range.len()).sum();
        screen.complain(&Error::new(
            ErrorKind::Verify,
            format!("the card differs from the image in {}", human_bytes(wrong)),
        ));
        return Ok(Exit::VerifyFailed);
    }
    Ok(match checked.mounted_since.is_empty() {
        true => Exit::Done,
        false => Exit::MountedSince,
    })
}

fn describe(checked: &Checked, image: &Image, with_card: bool) -> String {
    let mut lines = Vec::new();
    let bytes = human_bytes(checked.bytes);
    if !with_card {
        let full = |map: &Bmap| map.ranges.iter().all(|range| range.sha256.is_some());
        let by = match (image.map.as_ref().is_some_and(full), image.checked) {
            (true, true) => "as its block map and its sha256 say",
            (true, false) => "as its block map says",
            (false, true) => "as its sha256 says",
            (false, false) => "readable to its end; there is no block map or sha256 to check it by",
        };
        lines.push(format!("{}: {bytes} {by}", clean(&image.name)));
    } else if checked.differences.is_empty() && checked.mounted_since.is_empty() {
        let how = match checked.expanded {
            true => "as in the image, and expanded",
            false => "as in the image",
        };
        lines.push(format!("{bytes} are {how}"));
    }
    if !checked.mounted_since.is_empty() {
        let bytes: u64 = checked.mounted_since.iter().map(|range| range.len()).sum();
        let all_else = match checked.differences.is_empty() {
            true => ", all else is as written",
            false => "",
        };
        lines.push(format!(
            "mounted since: a system's own files, marks and times differ ({}){all_else}",
            human_bytes(bytes)
        ));
    }
    for difference in checked.differences.iter().take(SHOWN) {
        let range = difference.range;
        lines.push(format!(
            "{} bytes at byte {}: {}",
            range.len(),
            range.start,
            difference.class
        ));
    }
    if checked.differences.len() > SHOWN {
        let more = checked.differences.len() - SHOWN;
        lines.push(format!("and {more} more places"));
    }
    lines.join("\n")
}
