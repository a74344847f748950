//! The cards that the tests expand.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::MIB;
use crate::ext4::test_image::{Scratch, mke2fs};

/// A card to expand.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) bytes: Vec<u8>,
    /// Does the filesystem have a journal that an expansion can use?
    pub(super) journaled: bool,
}

pub(super) fn noise(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

/// A filesystem of 12 MiB with some files.
pub(super) fn filesystem(options: &[&str]) -> Vec<u8> {
    let tree = Scratch::folder();
    for n in 0..20 {
        let contents = noise(n, 3000 + 977 * n as usize);
        fs::write(tree.as_ref().join(format!("file{n}")), contents).unwrap();
    }
    fs::write(tree.as_ref().join("large"), noise(9, 3 << 20)).unwrap();
    let folder = tree.as_ref().to_str().unwrap();
    mke2fs(
        12 * MIB,
        &[&["-g", "2048", "-N", "300", "-d", folder], options].concat(),
    )
}

/// Runs debugfs commands on a filesystem.
fn debugfs(bytes: &[u8], commands: &str) -> Vec<u8> {
    let image = Scratch::file(bytes);
    let script = Scratch::file(commands.as_bytes());
    let script = script.as_ref().to_str().unwrap();
    image.run("debugfs", &["-w", "-f", script]);
    image.read()
}

/// A filesystem whose journal holds a transaction, and that has an orphan.
fn pulled() -> Vec<u8> {
    let bytes = filesystem(&[]);
    let image = Scratch::file(&bytes);
    let text = image.run("debugfs", &["-R", "stat /large"]);
    let inode: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    // The transaction rewrites a block of file data, which a mount would, too.
    let blocks = image.run("debugfs", &["-R", "blocks /file3"]);
    let block = blocks
        .split_whitespace()
        .find(|word| word.parse::<u64>().is_ok());
    let contents = Scratch::file(&noise(77, 1024));
    let contents = contents.as_ref().to_str().unwrap();
    debugfs(
        &bytes,
        &format!(
            "unlink /large\nset_inode_field <{inode}> links_count 0\n\
             set_inode_field <{inode}> dtime 0\nset_super_value last_orphan {inode}\n\
             jo\njw -b {} {contents}\njc\n",
            block.unwrap()
        ),
    )
}

fn sfdisk(bytes: &mut Vec<u8>, script: &str) {
    let image = Scratch::file(bytes);
    let mut child = Command::new("sfdisk")
        .args(["-q", "--no-tell-kernel"])
        .arg(image.as_ref())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("sfdisk is needed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    *bytes = image.read();
}

fn put(bytes: &mut [u8], at: u64, part: &[u8]) {
    bytes[at as usize..at as usize + part.len()].copy_from_slice(part);
}

/// A filesystem of 16 MiB as the kernel left it when the power went, with fast commits.
fn with_fast_commits() -> Vec<u8> {
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fast-commit.img.zst");
    zstd::decode_all(fs::read(packed).unwrap().as_slice()).unwrap()
}

/// `filesystem` at 1 MiB of a card of 28 MiB.
pub(super) fn mbr(filesystem: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 28 << 20];
    let sectors = filesystem.len() / 512;
    sfdisk(&mut bytes, &format!("label: dos\n2048,{sectors},83\n"));
    put(&mut bytes, MIB, filesystem);
    bytes
}

fn tool(name: &str, len: u64, args: &[&str]) -> Vec<u8> {
    let file = Scratch::file(&vec![0; len as usize]);
    file.run(name, args);
    file.read()
}

pub(super) fn cases() -> Vec<Case> {
    let plain = filesystem(&[]);
    let swap = tool("mkswap", MIB, &["-q"]);
    let fat = tool("mkfs.vfat", 4 * MIB, &["-F", "12"]);
    let mut cases = vec![Case {
        name: "plain, behind an MBR",
        bytes: mbr(&plain),
        journaled: true,
    }];
    let mut add = |name, bytes, journaled| {
        cases.push(Case {
            name,
            bytes,
            journaled,
        });
    };
    for (name, options, journaled) in [
        ("no flex_bg", &["-O", "^flex_bg"] as &[&str], true),
        ("no checksums", &["-O", "^metadata_csum"], true),
        ("blocks of 4 KiB", &["-b", "4096", "-J", "size=4"], true),
        ("uninit_bg", &["-O", "^metadata_csum,uninit_bg"], true),
        (
            "ext3",
            &["-O", "^extent,^metadata_csum,^64bit,^flex_bg"],
            true,
        ),
        ("reserved descriptors", &["-g", "512"], true),
        ("no resize_inode", &["-O", "^resize_inode"], true),
        (
            "descriptors without a place",
            &["-O", "^resize_inode", "-g", "512"],
            true,
        ),
        (
            "descriptors without a place, no checksums",
            &["-O", "^resize_inode,^metadata_csum", "-g", "512"],
            true,
        ),
        (
            "groups without room",
            &[
                "-O",
                "^resize_inode,^flex_bg,^sparse_super",
                "-g",
                "1024",
                // Else it fills a group, and would have to move.
                "-J",
                "size=1,location=6600",
            ],
            true,
        ),
    ] {
        add(name, mbr(&filesystem(options)), journaled);
    }
    for (name, options) in [
        ("no journal", &[] as &[&str]),
        ("ext2", &["-O", "^extent,^metadata_csum,^64bit"]),
        ("no journal, no checksums", &["-O", "^metadata_csum"]),
        ("no journal, reserved descriptors", &["-g", "512"]),
        (
            "no journal, descriptors without a place",
            &["-O", "^resize_inode", "-g", "512"],
        ),
    ] {
        let image = Scratch::file(&filesystem(options));
        image.run("tune2fs", &["-O", "^has_journal"]);
        add(name, mbr(&image.read()), false);
    }
    add("journal and orphan", mbr(&pulled()), true);
    add("fast commits", mbr(&with_fast_commits()), true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,2048,c\n4096,28672,5\n6144,24576,83\n",
    );
    put(&mut bytes, 3 * MIB, &plain);
    add("logical", bytes, true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,34816,5\n4096,24576,83\n30720,2048,82\n34816,2048,82\n",
    );
    put(&mut bytes, 2 * MIB, &plain);
    put(&mut bytes, 15 * MIB, &swap);
    put(&mut bytes, 17 * MIB, &swap);
    add("logical, two swaps behind it", bytes, true);
    let mut bytes = vec![0; 28 << 20];
    sfdisk(
        &mut bytes,
        "label: dos\n2048,24576,83\n26624,8192,c\n34816,2048,82\n",
    );
    put(&mut bytes, MIB, &plain);
    put(&mut bytes, 13 * MIB, &fat);
    put(&mut bytes, 17 * MIB, &swap);
    add("FAT and swap behind it", bytes, true);
    let table = Scratch::file(&vec![0; 14 << 20]);
    table.run("sgdisk", &["-n", "1:2048:26623"]);
    let mut bytes = table.read();
    put(&mut bytes, MIB, &plain);
    bytes.resize(28 << 20, 0);
    add("GPT", bytes.clone(), true);
    let table = Scratch::file(&bytes);
    table.run("sgdisk", &["-e"]);
    add("GPT whose backup is at the end", table.read(), true);
    cases
}
