//! Maps made here against bmaptool, bmaptool's against us, and hostile ones.

use std::fs;
use std::process::{Command, Output};

use super::*;
use crate::scratch::Scratch;

fn write(scratch: &Scratch, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(scratch.path(name), bytes).unwrap();
}

fn bmaptool(scratch: &Scratch, args: &[&str]) -> Output {
    Command::new("bmaptool")
        .args(args)
        .current_dir(scratch.folder())
        .output()
        .expect("bmaptool is needed as a judge")
}

/// An image of 1 MB and a bit, with data at both ends, and the bytes that are mapped.
fn sample() -> (Vec<u8>, RangeSet) {
    let mut image = vec![0; 1_000_123];
    let mapped: RangeSet = [
        0..512,
        4096 * 3..4096 * 90 + 7,
        700_000..700_001,
        995_000..1_000_123,
    ]
    .into_iter()
    .collect();
    for range in mapped.iter() {
        for at in range {
            image[at as usize] = ((at * 31) >> 3) as u8 | 1;
        }
    }
    (image, mapped)
}

fn build(image: &[u8], mapped: &RangeSet, step: usize) -> Result<Bmap> {
    let mut builder = BmapBuilder::new(image.len() as u64, mapped);
    for (index, chunk) in image.chunks(step).enumerate() {
        let offset = (index * step) as u64;
        match is_zero(chunk) {
            true => builder.zeros(offset, chunk.len() as u64)?,
            false => builder.update(offset, chunk)?,
        }
    }
    builder.finish()
}

#[test]
fn bmaptool_copies_by_our_map() {
    let (image, mapped) = sample();
    let bmap = build(&image, &mapped, 4096).unwrap();
    let scratch = Scratch::new("copy");
    write(&scratch, "card.img", &image);
    write(&scratch, "card.img.bmap", bmap.to_xml());
    let output = bmaptool(&scratch, &["copy", "card.img", "out.img"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("block map format version 2.0"), "{said}");
    assert!(fs::read(scratch.path("out.img")).unwrap() == image);

    let mut other = image.clone();
    other[4096 * 50] ^= 1;
    write(&scratch, "other.img", &other);
    let output = bmaptool(
        &scratch,
        &["copy", "--bmap", "card.img.bmap", "other.img", "out2.img"],
    );
    assert!(!output.status.success(), "the ranges' checksums count");

    let tampered = bmap.to_xml().replace("3-90", "3-91");
    write(&scratch, "tampered.bmap", &tampered);
    let output = bmaptool(
        &scratch,
        &["copy", "--bmap", "tampered.bmap", "card.img", "out3.img"],
    );
    assert!(!output.status.success(), "the map's own checksum counts");
    let error = Bmap::parse(tampered.as_bytes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Verify);
}

#[test]
fn reads_what_bmaptool_makes() {
    let (image, _) = sample();
    let scratch = Scratch::new("create");
    write(&scratch, "card.img", &image);
    // Holes for bmaptool to find.
    let dig = Command::new("fallocate")
        .arg("-d")
        .arg(scratch.path("card.img"))
        .status();
    assert!(dig.unwrap().success());
    let output = bmaptool(&scratch, &["create", "-o", "card.bmap", "card.img"]);
    assert!(output.status.success());
    let xml = fs::read(scratch.path("card.bmap")).unwrap();
    let bmap = Bmap::parse(&xml).unwrap();
    assert_eq!(bmap.image_size, image.len() as u64);
    assert!(bmap.ranges.len() > 2);
    for range in &bmap.ranges {
        let bytes = bmap.bytes_of(range);
        let hash = Sha256::digest(&image[bytes.start as usize..bytes.end as usize]);
        assert_eq!(range.sha256, Some(hash.into()));
    }
    // The same blocks, seen by ourselves.
    assert_eq!(build(&image, &bmap.mapped_bytes(), 1000).unwrap(), bmap);

    let mut tampered = xml.clone();
    let place = xml
        .windows(6)
        .position(|window| window == b"Range ")
        .unwrap();
    tampered[place + 14] ^= 1;
    assert!(Bmap::parse(&tampered).is_err());
}

#[test]
fn the_builder_cuts_at_ranges_and_rounds_out() {
    let (image, mapped) = sample();
    let expected = build(&image, &mapped, image.len()).unwrap();
    let ranges: Vec<_> = expected
        .ranges
        .iter()
        .map(|range| (range.first, range.last))
        .collect();
    assert_eq!(ranges, [(0, 0), (3, 90), (170, 170), (242, 244)]);
    assert_eq!(expected.mapped_blocks, 1 + 88 + 1 + 3);
    assert_eq!(expected.blocks(), 245);
    let last = expected.bytes_of(&expected.ranges[3]);
    assert_eq!(last, ByteRange::new(242 * 4096, 1_000_123));
    for step in [1, 511, 4096, 65_536] {
        assert_eq!(build(&image, &mapped, step).unwrap(), expected);
    }
    assert_eq!(Bmap::parse(expected.to_xml().as_bytes()).unwrap(), expected);

    let mut whole = ContentHash::new();
    whole.update(&image[..600_000]);
    whole.zeros(100_000);
    whole.update(&image[700_000..]);
    assert_eq!(whole.finish(), <[u8; 32]>::from(Sha256::digest(&image)));
}

#[test]
fn the_builder_refuses_what_does_not_fit() {
    let (mut image, mapped) = sample();
    image[4096 * 95] = 1;
    let error = build(&image, &mapped, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "unmapped data");
    let mut builder = BmapBuilder::new(10_000, &RangeSet::new());
    builder.zeros(0, 4096).unwrap();
    assert!(builder.update(5000, &[0; 10]).is_err(), "a gap");
    assert!(builder.zeros(4096, 5905).is_err(), "past the end");
    assert!(builder.finish().is_err(), "too few");
    let empty = BmapBuilder::new(0, &RangeSet::new()).finish().unwrap();
    assert_eq!(Bmap::parse(empty.to_xml().as_bytes()).unwrap(), empty);
}

/// Gives a map with the right checksum of its own.
fn sealed(body: &str) -> String {
    let zeros = "0".repeat(64);
    let xml = format!(
        "<bmap version=\"2.0\">{body}<ChecksumType>sha256</ChecksumType>\
         <BmapFileChecksum>{zeros}</BmapFileChecksum></bmap>"
    );
    let own = hex(&Sha256::digest(&xml).into());
    xml.replace(&zeros, &own)
}

fn fields(size: &str, block: &str, blocks: &str, mapped: &str, ranges: &str) -> String {
    sealed(&format!(
        "<ImageSize>{size}</ImageSize><BlockSize>{block}</BlockSize><BlocksCount>{blocks}</BlocksCount>\
         <MappedBlocksCount>{mapped}</MappedBlocksCount><BlockMap>{ranges}</BlockMap>"
    ))
}

#[test]
fn contradictions_are_refused() {
    let good = fields(
        "10000",
        "4096",
        "3",
        "2",
        "<Range>0</Range><Range> 2 - 2 </Range>",
    );
    assert_eq!(Bmap::parse(good.as_bytes()).unwrap().ranges.len(), 2);
    let huge = "18446744073709551615";
    for (what, xml) in [
        (
            "blocks",
            fields("10000", "4096", "4", "1", "<Range>0</Range>"),
        ),
        (
            "mapped",
            fields("10000", "4096", "3", "2", "<Range>0</Range>"),
        ),
        (
            "overlap",
            fields(
                "10000",
                "4096",
                "3",
                "3",
                "<Range>0-1</Range><Range>1</Range>",
            ),
        ),
        (
            "order",
            fields(
                "10000",
                "4096",
                "3",
                "2",
                "<Range>1</Range><Range>0</Range>",
            ),
        ),
        (
            "reversed",
            fields("10000", "4096", "3", "2", "<Range>1-0</Range>"),
        ),
        (
            "past the end",
            fields("10000", "4096", "3", "4", "<Range>0-3</Range>"),
        ),
        (
            "block size 0",
            fields("10000", "0", "3", "1", "<Range>0</Range>"),
        ),
        (
            "huge range",
            fields(
                "10000",
                "4096",
                "3",
                "1",
                &format!("<Range>0-{huge}</Range>"),
            ),
        ),
        (
            "beyond u64",
            fields(
                "10000",
                "4096",
                "3",
                "1",
                &format!("<Range>{huge}9</Range>"),
            ),
        ),
        (
            "sign",
            fields("+10000", "4096", "3", "1", "<Range>0</Range>"),
        ),
        (
            "word",
            fields("10000", "4096", "3", "1", "<Range>all</Range>"),
        ),
        (
            "chksum",
            fields("10000", "4096", "3", "1", "<Range chksum=\"12\">0</Range>"),
        ),
        (
            "twice",
            sealed("<ImageSize>1</ImageSize><ImageSize>2</ImageSize>"),
        ),
        ("missing", sealed("")),
        (
            "huge image",
            fields(huge, "4096", "3", "1", "<Range>0</Range>"),
        ),
        ("cut off", good[..good.len() - 9].to_owned()),
        ("other", "<svg></svg>".to_owned()),
        ("nothing", String::new()),
        ("no XML", "\0\0PK\x03\x04".to_owned()),
        ("two roots", format!("{good}{good}")),
        ("deep", "<bmap version=\"2.0\">".repeat(100_000)),
        (
            "entity bomb",
            format!("<!DOCTYPE bmap [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]>{good}"),
        ),
    ] {
        let error = Bmap::parse(xml.as_bytes()).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Unsound, "{what}: {error}");
    }
    let newer = good.replace("2.0", "3.0");
    assert_eq!(
        Bmap::parse(newer.as_bytes()).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let sha1 = good.replace(">sha256<", ">sha1<");
    assert_eq!(
        Bmap::parse(sha1.as_bytes()).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn older_versions_are_read() {
    let old = "<?xml version=\"1.0\" ?>\n<bmap version=\"1.3\"><ImageSize> 10000 </ImageSize>\
        <BlockSize>4096</BlockSize><BlocksCount>3</BlocksCount><MappedBlocksCount>1</MappedBlocksCount>\
        <BmapFileSHA1> da39a3ee5e6b4b0d3255bfef95601890afd80709 </BmapFileSHA1>\
        <BlockMap><Range sha1=\"da39a3ee5e6b4b0d3255bfef95601890afd80709\"> 1 </Range></BlockMap></bmap>";
    let bmap = Bmap::parse(old.as_bytes()).unwrap();
    let range = BmapRange {
        first: 1,
        last: 1,
        sha256: None,
    };
    assert_eq!(bmap.ranges, [range]);
    let (image, mapped) = sample();
    let xml = build(&image, &mapped, 4096).unwrap().to_xml();
    let renamed = xml.replace("version=\"2.0\"", "version=\"1.4\"");
    assert_eq!(
        Bmap::parse(renamed.as_bytes()).unwrap_err().kind(),
        ErrorKind::Verify
    );
}

#[test]
fn mutations_never_panic() {
    let (image, mapped) = sample();
    let xml = build(&image, &mapped, 4096).unwrap().to_xml().into_bytes();
    let mut state = 11u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize
    };
    for _ in 0..20_000 {
        let mut damaged = xml.clone();
        for _ in 0..1 + next() % 4 {
            let at = next() % damaged.len();
            match next() % 3 {
                0 => damaged[at] = b"<>/\"-&!0 \0\xff"[next() % 11],
                1 => drop(damaged.drain(at..(at + next() % 40).min(xml.len() / 2).max(at))),
                _ => damaged[at] ^= 1 << (next() % 8),
            }
        }
        // The case of the checksum's digits is free; everything else counts.
        if !damaged.eq_ignore_ascii_case(&xml) {
            assert!(Bmap::parse(&damaged).is_err());
        }
    }
}
