//! Logs written by hand on filesystems made by mke2fs; debugfs replays them too.

use super::*;
use crate::error::ErrorKind;
use crate::ext4::format::raw::{be32, put_be32, put16, put32};
use crate::ext4::recover::journal::crc32_be::crc32_be;
use crate::ext4::recover::journal::superblock::SIZE;
use crate::ext4::test_image::{self, Scratch};
use crate::io::WriteAt;
use crate::io::memory::MemoryDisk;
use crate::random::random;

const BLOCK: usize = 1024;
const LEN: u64 = 8 << 20;
/// Blocks that no file uses.
const FREE: u64 = 6000;

fn mke2fs(features: &str) -> Vec<u8> {
    test_image::mke2fs(LEN, &["-O", features])
}

#[derive(Clone, Copy, Debug)]
struct Format {
    checksums: LogChecksums,
    is_64bit: bool,
    is_async: bool,
    /// Every tag carries a UUID, as ext3 of long ago wrote them.
    with_uuids: bool,
}

const PLAIN: Format = Format {
    checksums: LogChecksums::V3,
    is_64bit: true,
    is_async: false,
    with_uuids: false,
};

/// What a transaction holds.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Revoke(Vec<u64>),
}

/// Writes a log into an image, block by block.
struct Writer {
    disk: MemoryDisk,
    fs: Super,
    places: Vec<u64>,
    format: Format,
    superblock: Vec<u8>,
    at: usize,
    tid: u32,
}

impl Writer {
    fn new(image: &[u8], format: Format, at: usize, tid: u32) -> Self {
        let disk = MemoryDisk::from(image.to_vec());
        let fs = Super::read(&disk).unwrap().unwrap();
        let log = Log::open(&fs, &disk).unwrap();
        let places: Vec<u64> = (0..log.superblock.s_maxlen())
            .map(|at| log.place(at).unwrap())
            .collect();
        let offset = places[0] * BLOCK as u64;
        let mut superblock = disk.read_vec_at(offset, SIZE).unwrap();
        let (compat, checksum) = match format.checksums {
            LogChecksums::None => (0, 0),
            LogChecksums::V1 => (1, 0),
            LogChecksums::V2 => (0, 0x8),
            LogChecksums::V3 => (0, 0x10),
        };
        let incompat = 0x1
            | checksum
            | if format.is_64bit { 0x2 } else { 0 }
            | if format.is_async { 0x4 } else { 0 };
        put_be32(&mut superblock, 0x24, compat);
        put_be32(&mut superblock, 0x28, incompat);
        superblock[0x50] = if checksum != 0 { 4 } else { 0 };
        superblock[0x30..0x40].copy_from_slice(b"a journal's UUID");
        put_be32(&mut superblock, 0x18, tid);
        put_be32(&mut superblock, 0x1C, at as u32);
        Self {
            disk,
            fs,
            places,
            format,
            superblock,
            at,
            tid,
        }
    }

    fn has_crc32c(&self) -> bool {
        matches!(self.format.checksums, LogChecksums::V2 | LogChecksums::V3)
    }

    fn seed(&self) -> u32 {
        crc32c(!0, &self.superblock[0x30..0x40])
    }

    fn put(&mut self, block: &[u8]) {
        let offset = self.places[self.at] * BLOCK as u64;
        self.disk.write_all_at(offset, block).unwrap();
        self.at += 1;
        if self.at == self.places.len() {
            self.at = 1;
        }
    }

    fn header(&self, kind: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        put_be32(&mut block, 0, MAGIC);
        put_be32(&mut block, 4, kind);
        put_be32(&mut block, 8, self.tid);
        block
    }

    fn seal(&self, block: &mut [u8]) {
        if self.has_crc32c() {
            let checksum = crc32c(self.seed(), block);
            put_be32(block, BLOCK - 4, checksum);
        }
    }

    fn revoke(&mut self, blocks: &[u64]) {
        let mut block = self.header(5);
        let mut at = 16;
        for &revoked in blocks {
            if self.format.is_64bit {
                put_be32(&mut block, at, (revoked >> 32) as u32);
                at += 4;
            }
            put_be32(&mut block, at, revoked as u32);
            at += 4;
        }
        put_be32(&mut block, 12, at as u32);
        self.seal(&mut block);
        self.put(&block);
    }

    /// Writes descriptors and data; returns the crc32 over them.
    fn data(&mut self, writes: &[(u64, Vec<u8>)]) -> u32 {
        let size = match self.format.checksums {
            LogChecksums::V3 => 16,
            LogChecksums::V2 => 10 + if self.format.is_64bit { 4 } else { 0 },
            _ => 8 + if self.format.is_64bit { 4 } else { 0 },
        };
        let room = (BLOCK - 12 - 4 - 16) / (size + if self.format.with_uuids { 16 } else { 0 });
        let mut sum = !0;
        for chunk in writes.chunks(room) {
            let mut block = self.header(1);
            let mut at = 12;
            let mut contents = Vec::new();
            for (index, (target, content)) in chunk.iter().enumerate() {
                let mut content = content.clone();
                let mut flags = 0;
                if be32(&content, 0) == MAGIC {
                    put_be32(&mut content, 0, 0);
                    flags |= 1;
                }
                let has_uuid = self.format.with_uuids || index == 0;
                if !has_uuid {
                    flags |= 2;
                }
                if index + 1 == chunk.len() {
                    flags |= 8;
                }
                let crc = crc32c(self.seed(), &self.tid.to_be_bytes());
                let crc = crc32c(crc, &content);
                put_be32(&mut block, at, *target as u32);
                put_be32(&mut block, at + 4, flags);
                if self.format.is_64bit {
                    put_be32(&mut block, at + 8, (target >> 32) as u32);
                }
                match self.format.checksums {
                    LogChecksums::V3 => put_be32(&mut block, at + 12, crc),
                    LogChecksums::V2 => {
                        put_be32(&mut block, at + 4, crc << 16 | flags);
                    }
                    _ => {}
                }
                at += size;
                if has_uuid {
                    at += 16;
                }
                contents.push(content);
            }
            self.seal(&mut block);
            sum = crc32_be(sum, &block);
            self.put(&block);
            for content in contents {
                sum = crc32_be(sum, &content);
                self.put(&content);
            }
        }
        sum
    }

    fn commit(&mut self, sum: u32) {
        let mut block = self.header(2);
        put_be32(&mut block, 52, 1_700_000_000_u32.wrapping_add(self.tid));
        if self.format.checksums == LogChecksums::V1 {
            block[12..14].copy_from_slice(&[1, 4]);
            put_be32(&mut block, 16, sum);
        } else if self.has_crc32c() {
            let checksum = crc32c(self.seed(), &block);
            put_be32(&mut block, 16, checksum);
        }
        self.put(&block);
        self.tid = self.tid.wrapping_add(1);
    }

    fn transaction(&mut self, ops: &[Op]) {
        let mut writes = Vec::new();
        for op in ops {
            match op {
                Op::Revoke(blocks) => self.revoke(blocks),
                Op::Write(target, content) => writes.push((*target, content.clone())),
            }
        }
        let sum = self.data(&writes);
        self.commit(sum);
    }

    /// Stores both superblocks.
    fn finish(mut self) -> MemoryDisk {
        let has_checksum = be32(&self.superblock, 0x28) & 0x18 != 0;
        put_be32(&mut self.superblock, 0xFC, 0);
        if has_checksum {
            let checksum = crc32c(!0, &self.superblock);
            put_be32(&mut self.superblock, 0xFC, checksum);
        }
        let offset = self.places[0] * BLOCK as u64;
        self.disk.write_all_at(offset, &self.superblock).unwrap();
        let mut superblock = self.fs.superblock.clone();
        superblock.set_s_feature_incompat(superblock.s_feature_incompat() | INCOMPAT_RECOVER);
        superblock.update_checksum();
        self.disk
            .write_all_at(SUPERBLOCK_OFFSET, superblock.bytes())
            .unwrap();
        self.disk
    }
}

fn filled(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

fn with_magic(byte: u8) -> Vec<u8> {
    let mut content = filled(byte);
    put_be32(&mut content, 0, MAGIC);
    content
}

fn recover(disk: &MemoryDisk) -> Result<Replay> {
    let fs = Super::read(disk)?.expect("an ext4 superblock");
    replay(&fs, disk)
}

fn block_after(disk: &MemoryDisk, replay: &Replay, block: u64) -> Vec<u8> {
    let view = replay.overlay.over(disk);
    view.read_vec_at(block * BLOCK as u64, BLOCK).unwrap()
}

/// Where the log starts in most tests: near the end of the ring, at an id near the end of 32 bits.
const START: (usize, u32) = (1021, u32::MAX - 1);

/// Revokes and rewrites in all orders, in a log that wraps around, with ids that wrap around.
fn write_history(image: &[u8], format: Format) -> MemoryDisk {
    let mut writer = Writer::new(image, format, START.0, START.1);
    let write = |index: u64, byte: u8| Op::Write(FREE + index, filled(byte));
    writer.transaction(&[
        write(0, 0xA1),
        write(1, 0xB1),
        write(3, 0xD1),
        Op::Write(FREE + 2, with_magic(0xC1)),
    ]);
    writer.transaction(&[Op::Revoke(vec![FREE + 1, FREE + 3]), write(0, 0xA2)]);
    let mut many: Vec<Op> = (100..250).map(|index| write(index, index as u8)).collect();
    many.push(write(1, 0xB3));
    writer.transaction(&many);
    writer.transaction(&[Op::Revoke(vec![FREE, 1 << 20]), write(4, 0xE4)]);
    // The power goes before the commit block.
    writer.data(&[(FREE + 5, filled(0xF5))]);
    writer.finish()
}

#[test]
fn replays_what_debugfs_replays() {
    let image = mke2fs("^resize_inode");
    let plain_image = mke2fs("^metadata_csum,^64bit");
    for checksums in [
        LogChecksums::None,
        LogChecksums::V1,
        LogChecksums::V2,
        LogChecksums::V3,
    ] {
        for bits in 0..8 {
            let format = Format {
                checksums,
                is_64bit: bits & 1 != 0,
                is_async: bits & 2 != 0,
                with_uuids: bits & 4 != 0,
            };
            let image = if format.is_64bit {
                &image
            } else {
                &plain_image
            };
            let disk = write_history(image, format);
            let replayed = recover(&disk).unwrap_or_else(|e| panic!("{format:?}: {e:?}"));
            assert_eq!((replayed.needed, replayed.transactions), (true, 4));
            assert_eq!(replayed.blocks, 1 + 150 + 1 + 1, "{format:?}");
            for (index, content) in [
                (0, filled(0)),
                (1, filled(0xB3)),
                (2, with_magic(0xC1)),
                (3, filled(0)),
                (4, filled(0xE4)),
                (5, filled(0)),
                (200, filled(200)),
            ] {
                let block = block_after(&disk, &replayed, FREE + index);
                assert!(block == content, "{format:?}: block {index}");
            }
            let oracle = Scratch::file(&disk.to_vec());
            oracle.run("debugfs", &["-n", "-w", "-R", "journal_run"]);
            let mut theirs = oracle.read();
            let view = replayed.overlay.over(&disk);
            let mut ours = view.read_vec_at(0, LEN as usize).unwrap();
            for image in [&mut ours, &mut theirs] {
                // s_wtime, s_lastcheck, s_kbytes_written and the checksum over them.
                for (at, len) in [(0x30, 4), (0x40, 4), (0x178, 8), (0x274, 1), (0x3FC, 4)] {
                    image[1024 + at..1024 + at + len].fill(0);
                }
            }
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{format:?}: differs from debugfs");
        }
    }
}

#[test]
fn leaves_an_empty_log() {
    let image = mke2fs("^resize_inode");
    let disk = write_history(&image, PLAIN);
    let replayed = recover(&disk).unwrap();
    let view = replayed.overlay.over(&disk);
    let after = Super::read(&view).unwrap().unwrap();
    assert!(!after.superblock.has_incompat(INCOMPAT_RECOVER));
    let log = Log::open(&after, &view).unwrap();
    assert_eq!(log.superblock.s_start(), 0);
    assert_eq!(log.superblock.s_sequence(), START.1.wrapping_add(5));
    // Once more, and there is nothing to do.
    let again = replay(&after, &view).unwrap();
    assert!(!again.needed && again.overlay.is_empty());
}

#[test]
fn without_needs_recovery_the_log_is_thrown_away() {
    let image = mke2fs("^resize_inode");
    let disk = write_history(&image, PLAIN);
    let original = MemoryDisk::from(image);
    let superblock = original.read_vec_at(SUPERBLOCK_OFFSET, BLOCK).unwrap();
    disk.write_all_at(SUPERBLOCK_OFFSET, &superblock).unwrap();
    let replayed = recover(&disk).unwrap();
    assert_eq!(
        (replayed.needed, replayed.transactions, replayed.blocks),
        (false, 0, 0)
    );
    assert_eq!(block_after(&disk, &replayed, FREE + 1), filled(0));
    let view = replayed.overlay.over(&disk);
    let log = Log::open(&Super::read(&view).unwrap().unwrap(), &view).unwrap();
    assert_eq!(log.superblock.s_start(), 0);
}

#[test]
fn keeps_the_record_of_errors() {
    let image = mke2fs("^resize_inode");
    let journaled = MemoryDisk::from(image.clone());
    let block_1 = journaled.read_vec_at(1024, BLOCK).unwrap();
    let mut writer = Writer::new(&image, PLAIN, 1, 7);
    writer.transaction(&[Op::Write(1, block_1)]);
    let disk = writer.finish();
    let mut bytes = disk.read_vec_at(1024, BLOCK).unwrap();
    put32(&mut bytes, ERROR_RECORD.start, 3);
    let mut superblock = Superblock::new(bytes);
    superblock.set_s_state(superblock.s_state() | STATE_ERRORS);
    superblock.update_checksum();
    disk.write_all_at(1024, superblock.bytes()).unwrap();
    let replayed = recover(&disk).unwrap();
    let after = Super::read(&replayed.overlay.over(&disk)).unwrap().unwrap();
    assert_eq!(after.superblock.s_state() & STATE_ERRORS, STATE_ERRORS);
    assert_eq!(after.superblock.bytes()[ERROR_RECORD.start], 3);
}

/// One way to damage a log of three transactions, and what comes of it: an error, or the number
/// of transactions that are left.
type Damage = (
    &'static str,
    Format,
    fn(&mut Writer),
    std::result::Result<u32, ErrorKind>,
);

#[test]
fn damage_is_refused_and_a_cut_is_not() {
    const V1: Format = Format {
        checksums: LogChecksums::V1,
        ..PLAIN
    };
    const ASYNC: Format = Format {
        is_async: true,
        ..V1
    };
    const NONE: Format = Format {
        checksums: LogChecksums::None,
        ..PLAIN
    };
    const UNSOUND: std::result::Result<u32, ErrorKind> = Err(ErrorKind::Unsound);
    // The log: 1 descriptor, 2 data, 3 commit | 4 revoke, 5 descriptor, 6 data, 7 commit |
    // 8 descriptor, 9 data, 10 commit.
    let cases: &[Damage] = &[
        ("nothing", PLAIN, |_| {}, Ok(3)),
        ("descriptor", PLAIN, |w| w.flip(1, 800), UNSOUND),
        ("data", PLAIN, |w| w.flip(6, 800), UNSOUND),
        ("data, unnoticed", NONE, |w| w.flip(6, 800), Ok(3)),
        ("data, v1", V1, |w| w.flip(6, 800), UNSOUND),
        ("last data, v1", V1, |w| w.flip(9, 800), UNSOUND),
        ("last data, async", ASYNC, |w| w.flip(9, 800), Ok(2)),
        ("data, async", ASYNC, |w| w.flip(6, 800), UNSOUND),
        ("revoke", PLAIN, |w| w.flip(4, 800), UNSOUND),
        ("commit", PLAIN, |w| w.flip(7, 800), UNSOUND),
        ("commit missing", PLAIN, |w| w.wipe(10), Ok(2)),
        ("first commit missing", PLAIN, |w| w.wipe(3), Ok(0)),
        ("last descriptor missing", PLAIN, |w| w.wipe(8), Ok(2)),
        ("r_count", NONE, |w| w.put_at(4, 12, 2000), UNSOUND),
        (
            "r_count below its header",
            NONE,
            |w| w.put_at(4, 12, 3),
            Ok(3),
        ),
        ("target", NONE, |w| w.put_at(1, 12, 8192), UNSOUND),
        ("target's high word", NONE, |w| w.put_at(1, 20, 1), UNSOUND),
        (
            "target in the journal",
            NONE,
            |w| w.put_at(1, 12, w.places[5] as u32),
            UNSOUND,
        ),
        (
            "s_errno",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x20, !4),
            UNSOUND,
        ),
        (
            "magic",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0, 1),
            UNSOUND,
        ),
        (
            "s_blocksize",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0xC, 4096),
            UNSOUND,
        ),
        (
            "s_maxlen",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x10, 1025),
            UNSOUND,
        ),
        (
            "s_first",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x14, 1024),
            UNSOUND,
        ),
        (
            "s_start",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x1C, 1024),
            UNSOUND,
        ),
        ("checksum type", PLAIN, |w| w.superblock[0x50] = 1, UNSOUND),
        (
            "two versions",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x28, 0x1B),
            UNSOUND,
        ),
        (
            "unknown feature",
            PLAIN,
            |w| put_be32(&mut w.superblock, 0x28, 0x53),
            Err(ErrorKind::Unsupported),
        ),
        (
            "fast commits without an end",
            PLAIN,
            |w| w.fast_commit(20),
            UNSOUND,
        ),
        ("old fast commits", PLAIN, |w| w.fast_commit(19), Ok(3)),
    ];
    let image = mke2fs("^resize_inode");
    for (name, format, damage, outcome) in cases {
        let mut writer = Writer::new(&image, *format, 1, 17);
        writer.transaction(&[Op::Write(FREE, filled(1))]);
        writer.transaction(&[Op::Revoke(vec![FREE + 9]), Op::Write(FREE, filled(2))]);
        writer.transaction(&[Op::Write(FREE + 1, filled(3))]);
        damage(&mut writer);
        let disk = writer.finish();
        let result = recover(&disk).map(|replayed| replayed.transactions);
        assert_eq!(
            result.as_ref().map_err(|e| e.kind()),
            outcome.as_ref().map_err(|k| *k),
            "{name}: {result:?}"
        );
    }
}

impl Writer {
    fn edit(&mut self, at: usize, edit: impl FnOnce(&mut [u8])) {
        let offset = self.places[at] * BLOCK as u64;
        let mut block = self.disk.read_vec_at(offset, BLOCK).unwrap();
        edit(&mut block);
        self.disk.write_all_at(offset, &block).unwrap();
    }

    fn flip(&mut self, at: usize, byte: usize) {
        self.edit(at, |block| block[byte] ^= 1);
    }

    fn wipe(&mut self, at: usize) {
        self.edit(at, |block| block.fill(0));
    }

    fn put_at(&mut self, at: usize, byte: usize, value: u32) {
        self.edit(at, |block| put_be32(block, byte, value));
    }

    /// Reserves 64 blocks for fast commits and puts one there.
    fn fast_commit(&mut self, tid: u32) {
        let incompat = be32(&self.superblock, 0x28);
        put_be32(&mut self.superblock, 0x28, incompat | 0x20);
        put_be32(&mut self.superblock, 0x54, 64);
        self.edit(1024 - 64 + 1, |block| {
            put16(block, 0, 9);
            put16(block, 2, 8);
            put32(block, 8, tid);
        });
    }
}

#[test]
fn a_log_without_an_end_ends() {
    let image = mke2fs("^resize_inode");
    let mut writer = Writer::new(&image, PLAIN, 1, 17);
    for _ in 1..1024 {
        writer.revoke(&[FREE]);
    }
    let replayed = recover(&writer.finish()).unwrap();
    assert_eq!(replayed.transactions, 0);
}

#[test]
fn a_journal_elsewhere_is_not_replayed() {
    let image = mke2fs("^resize_inode");
    for (needed, compat, inum, kind) in [
        (true, COMPAT_HAS_JOURNAL, 0, Some(ErrorKind::Unsupported)),
        (false, COMPAT_HAS_JOURNAL, 0, None),
        (true, 0, 0, None),
        (true, 0, 8, Some(ErrorKind::Unsound)),
        (true, COMPAT_HAS_JOURNAL, 9, Some(ErrorKind::Unsound)),
    ] {
        let disk = MemoryDisk::from(image.clone());
        let mut superblock = Superblock::read(&disk).unwrap().unwrap();
        let others = superblock.s_feature_compat() & !COMPAT_HAS_JOURNAL;
        superblock.set_s_feature_compat(others | compat);
        if needed {
            superblock.set_s_feature_incompat(superblock.s_feature_incompat() | INCOMPAT_RECOVER);
        }
        superblock.set_s_journal_inum(inum);
        superblock.update_checksum();
        disk.write_all_at(1024, superblock.bytes()).unwrap();
        let result = recover(&disk);
        assert_eq!(result.as_ref().err().map(|e| e.kind()), kind, "{result:?}");
        if let Ok(replayed) = result {
            let view = replayed.overlay.over(&disk);
            let after = Superblock::read(&view).unwrap().unwrap();
            assert!(!after.has_incompat(INCOMPAT_RECOVER));
        }
    }
}

/// Random damage under valid checksums: never a panic, never without an end, and what is accepted
/// stays within the device.
#[test]
fn survives_mutations() {
    let image = mke2fs("^resize_inode");
    let mut state = 1u64;
    let mut random = move |below: usize| random(&mut state, below as u64) as usize;
    let mut accepted = 0;
    let formats = [LogChecksums::None, LogChecksums::V2, LogChecksums::V3].map(|checksums| {
        let format = Format { checksums, ..PLAIN };
        write_history(&image, format)
    });
    for round in 0..5000 {
        let disk = &formats[round % formats.len()];
        let format = Format {
            checksums: [LogChecksums::None, LogChecksums::V2, LogChecksums::V3][round % 3],
            ..PLAIN
        };
        let fs = Super::read(disk).unwrap().unwrap();
        let mut overlay = Overlay::new(disk.len());
        let log = Log::open(&fs, disk).unwrap();
        for _ in 0..1 + random(3) {
            // The history starts at block 1021 of the log and ends before 200.
            let index = (1021 + random(200)) % 1023;
            let at = if random(8) == 0 { 0 } else { 1 + index as u32 };
            let offset = log.place(at).unwrap() * BLOCK as u64;
            let mut block = overlay.over(disk).read_vec_at(offset, BLOCK).unwrap();
            let reach = if random(3) == 0 { BLOCK - 4 } else { 64 };
            let field = random(reach / 4) * 4;
            let value = match random(4) {
                0 => random(1 << 31) as u32,
                1 => random(16) as u32,
                2 => !(random(16) as u32),
                _ => be32(&block, field) ^ 1 << random(32),
            };
            put_be32(&mut block, field, value);
            mend(&log, format, at, &mut block);
            overlay.set_bytes(offset, block);
        }
        let view = overlay.over(disk);
        if let Ok(replayed) = replay(&fs, &view) {
            accepted += 1;
            let end = replayed.overlay.all_segments().last().unwrap().end();
            assert_eq!(end, LEN);
        }
    }
    assert!(accepted > 500, "only {accepted} mutations were accepted");
}

/// Makes the checksum of a block of the log match again.
fn mend(log: &Log<'_>, format: Format, at: u32, block: &mut [u8]) {
    if !matches!(format.checksums, LogChecksums::V2 | LogChecksums::V3) {
        return;
    }
    let (field, seed) = match be32(block, 4) {
        _ if at == 0 => (0xFC, !0),
        2 => (16, log.superblock.seed()),
        1 | 5 => (BLOCK - 4, log.superblock.seed()),
        _ => return,
    };
    put_be32(block, field, 0);
    let checksum = crc32c(seed, block);
    put_be32(block, field, checksum);
}

#[test]
fn endless_logs_are_not_held_in_memory() {
    let image = test_image::mke2fs(LEN, &["-O", "^resize_inode", "-J", "size=2"]);
    for (blocks, fine) in [(1100, true), (1300, false)] {
        let mut writer = Writer::new(&image, PLAIN, 1, 7);
        let write = |index| Op::Write(FREE + index, filled(index as u8));
        writer.transaction(&(0..blocks).map(write).collect::<Vec<_>>());
        let replayed = recover(&writer.finish());
        match fine {
            true => assert_eq!(replayed.unwrap().blocks, blocks),
            false => assert_eq!(replayed.unwrap_err().kind(), ErrorKind::Unsupported),
        }
    }
}
