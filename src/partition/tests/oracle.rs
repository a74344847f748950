//! The tools' tables: read like they do, change, and ask them what they think of the result.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::gpt::disk::LogicalBlockSize;
use serde_json::Value;

use super::super::*;
use crate::io::{Source, WriteAt};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A sparse file that stands for a card, removed in the end.
#[derive(Debug)]
struct Card {
    path: PathBuf,
    file: File,
}

impl Card {
    fn new(name: &str, len: u64) -> Self {
        let path =
            std::env::temp_dir().join(format!("pishrink-table-{}-{name}.img", std::process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).unwrap();
        file.set_len(len).unwrap();
        Self { path, file }
    }

    fn sfdisk(name: &str, len: u64, script: &str) -> Self {
        let card = Self::new(name, len);
        let mut child = Command::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&card.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sfdisk must be installed");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success(), "{name}: {script}");
        card
    }

    fn sgdisk(name: &str, len: u64, calls: &[&str]) -> Self {
        let card = Self::new(name, len);
        for call in calls {
            run(Command::new("sgdisk").args(call.split(' ')).arg(&card.path));
        }
        card
    }

    /// A copy of the table alone; sgdisk sleeps for a second whenever it writes.
    fn duplicate(&self, name: &str) -> Self {
        let copy = Self::new(name, self.len());
        for range in self.read().table_ranges() {
            let bytes = self.read_vec_at(range.start, range.len() as usize).unwrap();
            copy.write_all_at(range.start, &bytes).unwrap();
        }
        copy
    }

    fn read(&self) -> PartitionTable {
        PartitionTable::read(self).unwrap().expect("a table")
    }

    /// Makes the file what the layout says.
    fn apply(&self, layout: &Layout) {
        for segment in layout.overlay.all_segments() {
            let bytes = match segment.source {
                Source::Base(from) => {
                    assert_eq!(from, segment.start);
                    continue;
                }
                Source::Bytes(ref bytes, at) => bytes[at..at + segment.len as usize].to_vec(),
                Source::Zero => vec![0; segment.len as usize],
                Source::Patched(..) => panic!("a table is written anew"),
            };
            if segment.end() > self.len() {
                self.file.set_len(segment.end()).unwrap();
            }
            self.write_all_at(segment.start, &bytes).unwrap();
        }
        self.file.set_len(layout.disk_len).unwrap();
    }

    /// What sfdisk says of the table, without the fields that name the file.
    fn json(&self) -> Value {
        let out = run(Command::new("sfdisk").arg("--json").arg(&self.path));
        let mut json: Value = serde_json::from_str(&out).unwrap();
        json["partitiontable"].take()
    }

    /// Number, first byte and length of what sfdisk lists, extended partitions left out.
    fn listed(&self) -> Vec<(u32, u64, u64)> {
        let path = self.path.to_str().unwrap();
        let mut listed: Vec<_> = self.json()["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| !["5", "f", "85"].contains(&entry["type"].as_str().unwrap()))
            .map(|entry| {
                let node = entry["node"].as_str().unwrap().strip_prefix(path).unwrap();
                let bytes = |key: &str| entry[key].as_u64().unwrap() * 512;
                (
                    node.trim_start_matches('p').parse().unwrap(),
                    bytes("start"),
                    bytes("size"),
                )
            })
            .collect();
        listed.sort_by_key(|entry| entry.1);
        listed
    }

    /// Asks all judges.
    fn judge(&self, table: &PartitionTable) {
        assert_eq!(self.listed(), summary(table));
        assert_eq!(
            table.disk_id(),
            self.json()["id"].as_str().unwrap().to_lowercase()
        );
        let verdict = run(Command::new("sfdisk").arg("--verify").arg(&self.path));
        assert!(verdict.contains("No errors detected"), "{verdict}");
        let crates = match table.kind() {
            TableKind::Gpt => {
                sgdisk_verify(&self.path);
                self.judge_mirrors(table);
                by_gpt_crate(&self.file, LogicalBlockSize::Lb512)
            }
            // mbrman computes the bytes of an EBR with 32 bits.
            TableKind::Mbr if self.ebr_above_4g(table) => return,
            TableKind::Mbr => by_mbrman(&self.file),
        };
        assert_eq!(crates, summary(table));
    }

    /// Every entry of a hybrid MBR must still mirror a partition, and none may overlap.
    fn judge_mirrors(&self, table: &PartitionTable) {
        let mut mbr = [0; 512];
        self.read_exact_at(0, &mut mbr).unwrap();
        let entries = [0, 1, 2, 3].map(|slot| mbr::Entry::of(&mbr, slot));
        let bytes = |sectors: u32| u64::from(sectors) * 512;
        for entry in entries
            .iter()
            .filter(|e| e.is_used() && e.type_byte != 0xEE)
        {
            let (start, len) = (bytes(entry.start), bytes(entry.sectors));
            assert!(summary(table).iter().any(|p| (p.1, p.2) == (start, len)));
        }
        if entries.iter().filter(|entry| entry.is_used()).count() == 1 {
            assert_eq!(bytes(entries[0].sectors), round_down(self.len(), 512) - 512);
        }
    }

    fn ebr_above_4g(&self, table: &PartitionTable) -> bool {
        let last = table.table_ranges().pop().unwrap();
        last.start >= 4 * GIB
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl ReadAt for Card {
    fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|error| Error::io("reading", error))
    }
}

impl WriteAt for Card {
    fn write_all_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.file
            .write_all_at(buf, offset)
            .map_err(|error| Error::io("writing", error))
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

fn run(command: &mut Command) -> String {
    let out = command.output().expect("the tool must be installed");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

fn sgdisk_verify(path: &Path) {
    let verdict = run(Command::new("sgdisk").arg("-v").arg(path));
    assert!(verdict.contains("No problems found"), "{verdict}");
    // It also warns, with less noise, of an array that is not in sector 2.
    assert!(!verdict.contains("Warning!"), "{verdict}");
}

fn summary(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    table
        .partitions()
        .iter()
        .map(|p| (p.number, p.range.start, p.range.len()))
        .collect()
}

fn by_gpt_crate(file: &File, size: LogicalBlockSize) -> Vec<(u32, u64, u64)> {
    let unit = size.as_u64();
    let disk = ::gpt::GptConfig::new()
        .logical_block_size(size)
        .open_from_device(file.try_clone().unwrap())
        .unwrap();
    let entries = disk.partitions().iter();
    let mut all: Vec<_> = entries
        .map(|(&number, p)| {
            (
                number,
                p.first_lba * unit,
                (p.last_lba + 1 - p.first_lba) * unit,
            )
        })
        .collect();
    all.sort_by_key(|entry| entry.1);
    all
}

fn by_mbrman(file: &File) -> Vec<(u32, u64, u64)> {
    let mbr = mbrman::MBR::read_from(&mut file.try_clone().unwrap(), 512).unwrap();
    let mut all: Vec<_> = mbr
        .iter()
        .filter(|(_, entry)| entry.is_used() && !entry.is_extended())
        .map(|(number, entry)| {
            let (start, sectors) = (u64::from(entry.starting_lba), u64::from(entry.sectors));
            (number as u32, start * 512, sectors * 512)
        })
        .collect();
    all.sort_by_key(|entry| entry.1);
    all
}

const PRIMARY: &str = "label: dos\nlabel-id: 0x12345678\n\
    start=8192, size=524288, type=c, bootable\nstart=532480, size=2097152, type=83\n";
/// The first partition by number is the last by position.
const UNORDERED: &str = "label: dos\nlabel-id: 0xdeadbeef\n\
    start=1000000, size=1000000, type=83\nstart=2048, size=65536, type=c\n";
/// NOOBS: p3 and p5 to p7 of which two lie above 4 GiB.
const LOGICAL: &str = "label: dos\nlabel-id: 0x0badcafe\n\
    start=8192, size=524288, type=c, bootable\nstart=532480, size=4194304, type=83\n\
    start=4726784, type=f\nstart=4728832, size=1048576, type=83\n\
    start=9000000, size=1000000, type=83\nstart=10500000, size=500000, type=82\n";
/// Debian: the root is primary, the swap behind it logical.
const SWAP: &str = "label: dos\nlabel-id: 0x00000001\n\
    start=2048, size=2000000, type=83, bootable\nstart=2004992, type=5\n\
    start=2007040, size=100000, type=82\n";
/// HAOS has holes in its numbers; here they are out of order as well.
const GAPS: [&str; 2] = [
    "-n 1:2048:+8M -t 1:0700 -c 1:boot -n 15:0:+8M -n 2:0:+16M -c 2:root -A 2:set:2",
    "-U 11111111-2222-3333-4444-555555555555 -u 2:AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE",
];
const HYBRID: [&str; 2] = ["-n 1:2048:+8M -t 1:0700 -n 2:0:+16M", "-h 1:2"];

#[test]
fn reads_what_the_tools_read() {
    for (name, card) in [
        ("primary", Card::sfdisk("r-primary", 2 * GIB, PRIMARY)),
        ("unordered", Card::sfdisk("r-unordered", GIB, UNORDERED)),
        ("logical", Card::sfdisk("r-logical", 6 * GIB, LOGICAL)),
        ("swap", Card::sfdisk("r-swap", 2 * GIB, SWAP)),
        ("gaps", Card::sgdisk("r-gaps", 64 * MIB, &GAPS)),
        ("hybrid", Card::sgdisk("r-hybrid", 64 * MIB, &HYBRID)),
        (
            "many",
            Card::sgdisk("r-many", 64 * MIB, &["-S 256", "-n 200:0:+1M"]),
        ),
        (
            "moved",
            Card::sgdisk("r-moved", 64 * MIB, &["-j 1000", "-n 1:0:+1M"]),
        ),
    ] {
        let table = card.read();
        assert!(
            table.warnings().is_empty(),
            "{name}: {:?}",
            table.warnings()
        );
        card.judge(&table);
        let same = table
            .relayout(&card, &[], DiskLen::Exact(card.len()))
            .unwrap();
        assert!(same.overlay.is_empty(), "{name} changes without a change");
    }
}

/// What to do with the partition at an index: its new start and end, in bytes.
type Change = fn(&PartitionTable, u64) -> Vec<(usize, ByteRange)>;

fn sized(table: &PartitionTable, index: usize, len: u64) -> (usize, ByteRange) {
    let start = table.partitions()[index].range.start;
    (index, ByteRange::new(start, start + len))
}

fn moved(table: &PartitionTable, index: usize, start: u64) -> (usize, ByteRange) {
    let len = table.partitions()[index].range.len();
    (index, ByteRange::new(start, start + len))
}

fn shrink_last(table: &PartitionTable, _: u64) -> Vec<(usize, ByteRange)> {
    vec![sized(table, table.partitions().len() - 1, 5 * MIB)]
}

fn grow_last(table: &PartitionTable, len: u64) -> Vec<(usize, ByteRange)> {
    let index = table.partitions().len() - 1;
    let start = table.partitions()[index].range.start;
    vec![(index, ByteRange::new(start, table.max_end(len)))]
}

/// Shrinks the last but one and moves the last down behind it.
fn shrink_and_follow(table: &PartitionTable, _: u64) -> Vec<(usize, ByteRange)> {
    let last = table.partitions().len() - 1;
    let shrunk = sized(table, last - 1, 7 * MIB);
    let start = (shrunk.1.end + table.lead_in(last)).next_multiple_of(MIB);
    vec![shrunk, moved(table, last, start)]
}

/// The way back: the last moves to the end, the last but one grows up to it.
fn grow_and_lead(table: &PartitionTable, len: u64) -> Vec<(usize, ByteRange)> {
    let last = table.partitions().len() - 1;
    let start = table.max_end(len) - table.partitions()[last].range.len();
    let start = round_down(start, MIB);
    let before = table.partitions()[last - 1].range.start;
    let end = start - table.lead_in(last);
    vec![
        (last - 1, ByteRange::new(before, end)),
        moved(table, last, start),
    ]
}

#[test]
fn changes_satisfy_the_tools() {
    let changes: [(&str, Change, bool); 4] = [
        ("shrink", shrink_last, true),
        ("grow", grow_last, false),
        ("follow", shrink_and_follow, true),
        ("lead", grow_and_lead, false),
    ];
    for (name, original) in [
        ("primary", Card::sfdisk("c-primary", 2 * GIB, PRIMARY)),
        ("unordered", Card::sfdisk("c-unordered", GIB, UNORDERED)),
        ("logical", Card::sfdisk("c-logical", 6 * GIB, LOGICAL)),
        ("swap", Card::sfdisk("c-swap", 2 * GIB, SWAP)),
        ("gaps", Card::sgdisk("c-gaps", 64 * MIB, &GAPS)),
        ("hybrid", Card::sgdisk("c-hybrid", 64 * MIB, &HYBRID)),
        (
            "moved",
            Card::sgdisk("c-moved", 64 * MIB, &["-j 1000 -n 1:0:+8M -n 2:0:+9M"]),
        ),
    ] {
        for (what, change, minimal) in changes {
            let card = original.duplicate("changed");
            eprintln!("{what} {name}");
            let table = card.read();
            let new_len = if minimal {
                DiskLen::Minimal
            } else {
                DiskLen::Exact(9 * GIB + 512)
            };
            let wanted = change(&table, 9 * GIB + 512);
            let layout = table.relayout(&card, &wanted, new_len).unwrap();
            let before = card.json();
            card.apply(&layout);
            let after = card.read();
            assert!(after.warnings().is_empty(), "{:?}", after.warnings());
            assert_eq!(summary(&after), summary(&layout.table));
            card.judge(&after);
            assert_only_places_differ(&before, &card.json());
            assert_no_stale_tables(&card, &table, &after);
            if minimal {
                let end = after.partitions().last().unwrap().range.end;
                let backup = if after.kind() == TableKind::Gpt {
                    33 * 512
                } else {
                    0
                };
                assert_eq!(card.len(), end + backup, "{what} {name}");
            }
        }
    }
}

/// A backup that is no longer one would confuse every tool that looks for it.
fn assert_no_stale_tables(card: &Card, before: &PartitionTable, after: &PartitionTable) {
    let now = after.table_ranges();
    for range in before.table_ranges() {
        let gone = !now.iter().any(|table| table.intersect(&range).is_some());
        if before.kind() == TableKind::Gpt && gone && range.end <= card.len() {
            let bytes = card.read_vec_at(range.start, range.len() as usize).unwrap();
            assert!(crate::io::is_zero(&bytes), "{range:?}");
        }
    }
}

/// Types, names, GUIDs, flags, the disk's id: everything but start and size.
fn assert_only_places_differ(before: &Value, after: &Value) {
    let strip = |table: &Value| {
        let mut table = table.clone();
        table["lastlba"].take();
        for entry in table["partitions"].as_array_mut().unwrap() {
            entry["start"].take();
            entry["size"].take();
        }
        table
    };
    assert_eq!(strip(before), strip(after));
}

/// A loop device with 4096-byte sectors.
struct LoopDevice(String);

impl LoopDevice {
    fn new(card: &Card) -> Self {
        let out = run(Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(&card.path));
        Self(out.trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn large_sectors() {
    let card = Card::new("4096", 64 * MIB);
    {
        let device = LoopDevice::new(&card);
        run(Command::new("sgdisk")
            .args(["-n", "1:256:+8M", "-n", "5:0:+16M", "-c", "5:root"])
            .arg(&device.0));
        run(Command::new("sync").arg(&device.0));
    }
    let mut len = 64 * MIB;
    for (change, new_len) in [
        (shrink_last as Change, DiskLen::Minimal),
        (grow_last, DiskLen::Exact(GIB)),
        (shrink_and_follow, DiskLen::Minimal),
    ] {
        let table = card.read();
        assert_eq!((table.kind(), table.sector_size()), (TableKind::Gpt, 4096));
        assert_eq!(
            table
                .partitions()
                .iter()
                .map(|p| p.number)
                .collect::<Vec<_>>(),
            [1, 5]
        );
        assert!(table.warnings().is_empty(), "{:?}", table.warnings());
        if let DiskLen::Exact(exact) = new_len {
            len = exact;
        }
        let layout = table
            .relayout(&card, &change(&table, len), new_len)
            .unwrap();
        card.apply(&layout);
        let device = LoopDevice::new(&card);
        sgdisk_verify(Path::new(&device.0));
        assert_eq!(
            by_gpt_crate(&card.file, LogicalBlockSize::Lb4096),
            summary(&layout.table)
        );
    }
}

/// In the primary array, wherever that is.
const ARRAY: i64 = i64::MAX;

#[test]
fn a_damaged_copy_is_written_anew() {
    let usual = Card::sgdisk("usual", 64 * MIB, &GAPS);
    let jumped = Card::sgdisk("jumped", 64 * MIB, &["-j 500", GAPS[0]]);
    // Where the damage is, from the start or (negative) from the end, and what the warning says.
    for (at, text) in [
        (512 + 60, "primary GPT is damaged: the header's checksum"),
        (512, "primary GPT is damaged: there is no GPT header"),
        (
            ARRAY,
            "primary GPT is damaged: the checksum of its partition array",
        ),
        (
            -512 + 60,
            "backup GPT is missing or damaged: the header's checksum",
        ),
        (
            -33 * 512 + 40,
            "backup GPT is missing or damaged: the checksum of its",
        ),
    ] {
        for (original, primary_array) in [(&usual, 2), (&jumped, 500)] {
            let card = original.duplicate("damaged");
            let at = match at {
                ARRAY => primary_array * 512 + 40,
                0.. => at as u64,
                _ => card.len() - at.unsigned_abs(),
            };
            card.write_all_at(at, &[0x5A]).unwrap();
            let table = card.read();
            assert_eq!(summary(&table), summary(&original.read()));
            assert!(table.warnings()[0].contains(text), "{:?}", table.warnings());
            let layout = table
                .relayout(&card, &grow_last(&table, GIB), DiskLen::Exact(GIB))
                .unwrap();
            card.apply(&layout);
            let table = card.read();
            assert!(table.warnings().is_empty(), "{:?}", table.warnings());
            let array = ByteRange::new(primary_array * 512, (primary_array + 32) * 512);
            assert!(table.table_ranges().contains(&array));
            card.judge(&table);
        }
    }
}

#[test]
fn a_cut_off_image_gets_its_backup_back() {
    let card = Card::sgdisk("cut", 64 * MIB, &GAPS);
    let end = card.read().partitions().last().unwrap().range.end;
    card.file.set_len(end).unwrap();
    let table = card.read();
    assert_eq!(table.warnings().len(), 2, "{:?}", table.warnings());
    let layout = table.relayout(&card, &[], DiskLen::Minimal).unwrap();
    assert_eq!(layout.disk_len, end + 33 * 512);
    card.apply(&layout);
    card.judge(&card.read());
    card.file.set_len(end - 512).unwrap();
    let error = PartitionTable::read(&card).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsound);
    assert_eq!(
        error.to_string(),
        format!(
            "partition 2 ends at byte {end}, but the disk has only {} bytes",
            end - 512
        )
    );
    // Both copies gone: said, not taken for a disk without a table.
    card.write_all_at(512, &[0; 512]).unwrap();
    let error = PartitionTable::read(&card).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("both copies of the GPT are damaged")
    );
}

#[test]
fn bare_filesystems_have_no_table() {
    for (name, tool, args) in [
        ("fat16", "mkfs.vfat", &["-F", "16"][..]),
        ("fat32", "mkfs.vfat", &["-F", "32"]),
        ("fat-mbr", "mkfs.vfat", &["-F", "32", "--mbr=y"]),
        ("ext4", "mkfs.ext4", &["-q"]),
    ] {
        let card = Card::new(&format!("bare-{name}"), 64 * MIB);
        run(Command::new(tool).args(args).arg(&card.path));
        assert!(PartitionTable::read(&card).unwrap().is_none(), "{name}");
    }
}
