//! `pishrink devices`: the cards that can be written.

use std::fmt::Write;

use serde_json::json;

use super::args::Devices;
use super::exit::Exit;
use super::render::Screen;
use crate::device::{self, DeviceInfo, safety};
use crate::error::Result;
use crate::units::human_bytes;

pub fn run(args: &Devices, screen: &Screen) -> Result<Exit> {
    let mut devices: Vec<_> = device::list()?
        .into_iter()
        .map(|info| (safety::hidden_reason(&info), info))
        .collect();
    if !args.all {
        devices.retain(|(hidden, _)| hidden.is_none());
    }
    let mut text = listed(&devices);
    if devices.is_empty() {
        text = match args.all {
            true => "no disks found".to_owned(),
            false => "no cards found; --all also lists other disks".to_owned(),
        };
    }
    let objects: Vec<_> = devices
        .iter()
        .map(|(hidden, info)| json!({ "device": info, "hidden": hidden }))
        .collect();
    screen.result(&text, &json!({ "devices": objects }));
    Ok(Exit::Done)
}

fn listed(devices: &[(Option<String>, DeviceInfo)]) -> String {
    let mut text = String::new();
    for (hidden, info) in devices {
        describe(&mut text, info, hidden.as_deref());
    }
    text
}

/// Adds the lines about one disk; names and labels are the device's own words.
pub(super) fn describe(text: &mut String, info: &DeviceInfo, hidden: Option<&str>) {
    let name: Vec<_> = [&info.vendor, &info.model]
        .into_iter()
        .flatten()
        .map(|part| safety::sanitize(part))
        .filter(|part| !part.is_empty())
        .collect();
    let name = match name.is_empty() {
        true => "unnamed".to_owned(),
        false => name.join(" "),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{}  {}  {}  {}{}",
        safety::sanitize(&info.path.to_string_lossy()),
        human_bytes(info.size),
        info.bus,
        name,
        if info.read_only {
            "  write-protected"
        } else {
            ""
        },
    );
    if let Some(reason) = hidden {
        let _ = writeln!(text, "    not shown without --all: {reason}");
    }
    for volume in &info.volumes {
        let label = volume.label.as_deref().map(safety::sanitize);
        let places: Vec<_> = volume
            .mount_points
            .iter()
            .map(|place| safety::sanitize(&place.to_string_lossy()))
            .collect();
        let _ = writeln!(
            text,
            "    {}  {}  {}{}",
            safety::sanitize(&volume.path.to_string_lossy()),
            human_bytes(volume.size),
            label.unwrap_or_default(),
            match places.is_empty() {
                true => String::new(),
                false => format!("  mounted on {}", places.join(", ")),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::diskutil::tests::laptop;

    /// Complaint 4 of tests/complaints: no macOS (PS#27 #79 #107 #164 #278 #305 #310 #318 #326;
    /// intel/bmap-tools#4): cards are listed from what diskutil says, and the Mac's own disk is
    /// none.
    #[test]
    fn a_mac_lists_its_cards() {
        let devices: Vec<_> = laptop()
            .into_iter()
            .map(|info| (safety::hidden_reason(&info), info))
            .collect();
        let text = listed(&devices);
        for block in [
            "/dev/disk4  31.9 GB  USB  STORAGE DEVICE\n\
             \x20   /dev/disk4s1  537 MB  bootfs  mounted on /Volumes/bootfs\n",
            "/dev/disk5  63.9 GB  SD/MMC  Built In SDXC Reader  write-protected\n",
            "/dev/disk0  500 GB  NVMe  APPLE SSD AP0512Z\n\
             \x20   not shown without --all: carries the running system (/)\n",
        ] {
            assert!(text.contains(block), "{text}");
        }
        assert_eq!(text.matches("not shown").count(), 1, "{text}");
    }
}
