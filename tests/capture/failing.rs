//! `pishrink capture` from a card that fails at places the test chooses: nbdkit serves an image
//! and refuses to read some of it, nbdfuse makes that a file, and a loop device a disk.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cards::{self, Scratch, pishrink, run};

/// What mke2fs takes for small filesystems.
const BLOCK: u64 = 1024;

/// What the page cache reads at a time.
const PAGE: u64 = 4096;

/// A card that cannot be read in one place. The page cache makes that whole pages.
pub struct Failing {
    server: Child,
    pub mounted: PathBuf,
    device: String,
    log: PathBuf,
}

impl Failing {
    pub fn new(scratch: &Scratch, card: &Path, bad: &Range<u64>) -> Self {
        let mounted = scratch.path("failing.img");
        fs::write(&mounted, []).unwrap();
        let log = scratch.path("reads.part");
        fs::write(&log, []).unwrap();
        let (path, start, end) = (card.display(), bad.start, bad.end);
        let read = format!(
            "pread=echo $4 $3 >> {}
             if [ $4 -lt {end} ] && [ $(($4 + $3)) -gt {start} ]; then
                 echo EIO bad sector >&2; exit 1
             fi
             dd if={path} iflag=skip_bytes,count_bytes,fullblock bs=64k skip=$4 count=$3 status=none",
            log.display()
        );
        let mut server = Command::new("nbdfuse")
            .arg(&mounted)
            .args(["[", "nbdkit", "eval", "can_write=exit 3"])
            .arg(format!("get_size=stat -Lc%s {path}"))
            .args([read.as_str(), "]"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("nbdfuse is needed: {error}"));
        let len = fs::metadata(card).unwrap().len();
        for _ in 0..200 {
            if fs::metadata(&mounted).unwrap().len() == len {
                let words = ["--find", "--show", "--read-only"].map(PathBuf::from);
                let words = words.iter().chain([&mounted]);
                let device = run("losetup", words).trim().to_owned();
                return Self {
                    server,
                    mounted,
                    device,
                    log,
                };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = server.kill();
        let _ = server.wait();
        panic!("nbdfuse and nbdkit do not serve");
    }

    /// What was asked of it so far: offsets and lengths in bytes. Its page cache answers for
    /// itself, and asks for more than it was asked.
    pub fn reads(&self) -> Vec<Range<u64>> {
        let log = fs::read_to_string(&self.log).unwrap();
        let reads = log.lines().filter_map(|line| {
            let (start, len) = line.split_once(' ')?;
            let (start, len): (u64, u64) = (start.parse().ok()?, len.parse().ok()?);
            Some(start..start + len)
        });
        reads.collect()
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = Command::new("fusermount3")
            .arg("-u")
            .arg(&self.mounted)
            .status();
        let _ = self.server.wait();
    }
}

/// How many sectors a map file has of these kinds.
pub fn listed_as(map: &Path, kinds: &str) -> usize {
    let kinds = format!("-l{kinds}");
    let words = [Path::new("-b512"), Path::new(&kinds), map];
    run("ddrescuelog", words).lines().count()
}

/// Where a file's `index`th block begins on the card, whose partition `number` it is in.
fn place_of(card: &Path, number: usize, path: &str, index: u64) -> u64 {
    let start = cards::partition(card, number).start;
    let at = format!("{}?offset={start}", card.display());
    let request = format!("bmap {path} {index}");
    let block = run("debugfs", ["-R", request.as_str(), at.as_str()]);
    let block = block.lines().last().unwrap().trim().to_owned();
    start + block.parse::<u64>().unwrap() * BLOCK
}

#[test]
fn a_failing_card_is_captured_and_the_lost_file_named() {
    let scratch = Scratch::new("failing");
    let card = cards::mbr(&scratch);
    let file = "/tail";
    let index = 8;
    let start = place_of(&card, 2, file, index);
    let before = start % PAGE;
    let bad = start - before..start - before + PAGE;
    let whole = scratch.path("whole.img");
    run(
        env!("CARGO_BIN_EXE_pishrink"),
        [Path::new("capture"), Path::new("-q"), &card, &whole],
    );
    let failing = Failing::new(&scratch, &card, &bad);
    for (source, name) in [
        (failing.mounted.as_path(), "file.img"),
        (Path::new(&failing.device), "device.img"),
    ] {
        let image = scratch.path(name);
        let done = pishrink()
            .args(["capture", "--json"])
            .args([source, &image])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(6), "{stderr}");
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        let rescued = &told["rescued"];
        assert_eq!(rescued["unreadable_bytes"], PAGE);
        let loss = &rescued["losses"][0];
        assert_eq!(loss["owner"], file);
        assert_eq!(loss["file_offset"], index * BLOCK - before);
        assert_eq!(loss["partition"], 2);
        assert_eq!(loss["source"]["start"], bad.start);
        assert_eq!(told["file_sha256"], run("sha256sum", [&image])[..64]);
        // People are told the same.
        let done = pishrink()
            .args(["capture", "--force"])
            .args([source, &image])
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(6));
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let from = index * BLOCK - before;
        let line = format!(
            "{PAGE} bytes of {file} from its byte {from} on (partition 2, byte {start} of the source)",
            start = bad.start
        );
        assert!(said.contains(&line), "{said}");
        // Only that stretch differs from what a sound card gives.
        let (expected, found) = (fs::read(&whole).unwrap(), fs::read(&image).unwrap());
        let differing: Vec<_> = (0..found.len())
            .filter(|&at| found[at] != expected[at])
            .collect();
        assert_eq!(expected.len(), found.len());
        let (first, last) = (differing[0], differing[differing.len() - 1]);
        assert!(last - first < PAGE as usize, "{first} to {last}");
        assert!(found[first..=last].iter().all(|&byte| byte == 0));
        let map = fs::read_to_string(scratch.path(&format!("{name}.mapfile"))).unwrap();
        let line = format!("0x{:08X}  0x00001000  -", bad.start);
        assert!(map.lines().any(|found| found == line), "{map}");
        // So reads ddrescue it.
        let map = scratch.path(&format!("{name}.mapfile"));
        let listed = run("ddrescuelog", [Path::new("-b512"), Path::new("-l-"), &map]);
        let sectors: Vec<_> = (bad.start / 512..bad.end / 512)
            .map(|sector| sector.to_string())
            .collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), sectors);
        assert_eq!(listed_as(&map, "/*"), 0);
    }
}
