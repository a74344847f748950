//! Files that are no image of a disk: a virtual machine's disk in its own format, an archive, a
//! web page. Written to a card, or captured as it is, such a file would be of no use to anybody.
//!
//! Decisions: only what is known for sure is refused, and nothing that has a boot signature; an
//! image that nobody knows may still be one.

use std::path::Path;

use super::Codec;
use crate::error::{Error, Result};
use crate::io::ReadAt;

/// How many first bytes are looked at.
const FIRST: usize = 1024;
/// How many last ones.
pub const LAST: usize = 512;
/// What a disk has at the least.
const SECTOR: usize = 512;

/// What a format is called and what helps, by bytes at a place.
type Known = (usize, &'static [u8], &'static str, &'static str);

const CONVERT: &str = "qemu-img convert -O raw FILE card.img makes a raw image of it";
const HDIUTIL: &str = "hdiutil convert FILE -format UDTO -o card makes a raw image, card.cdr";
const GIVE_IMAGE: &str = "give the image itself; a map beside it is found";
const PARTCLONE: &str = "partclone.restore (Clonezilla) makes a partition of it";
const VENDOR: &str =
    "the maker's own program writes it (PhoenixCard, RKDevTool); or look for an image for SD cards";
const UNPACK: &str = "unpack it and give the image itself";

const KNOWN: &[Known] = &[
    (0, b"QFI\xfb", "a QEMU disk (qcow2)", CONVERT),
    (0, b"KDMV", "a VMware disk (vmdk)", CONVERT),
    (0, b"COWD", "a VMware disk (vmdk)", CONVERT),
    (
        0,
        b"# Disk DescriptorFile",
        "the description of a VMware disk (vmdk)",
        CONVERT,
    ),
    (0, b"vhdxfile", "a Hyper-V disk (vhdx)", CONVERT),
    (0, b"conectix", "a virtual PC's disk (vhd)", CONVERT),
    (
        0x40,
        b"\x7f\x10\xda\xbe",
        "a VirtualBox disk (vdi)",
        CONVERT,
    ),
    (
        0,
        b"\x3a\xff\x26\xed",
        "an Android sparse image",
        "simg2img FILE card.img makes a raw image of it",
    ),
    (
        0,
        b"EVF\x09\x0d\x0a\xff\x00",
        "an EnCase image (ewf)",
        "ewfexport makes a raw image of it",
    ),
    (0, b"partclone-image", "a partclone image", PARTCLONE),
    (
        0,
        b"\0ntfsclone-image",
        "an ntfsclone image",
        "ntfsclone --restore-image makes a partition of it",
    ),
    (0, b"IMAGEWTY", "a pack of Allwinner's (IMAGEWTY)", VENDOR),
    (0, b"RKFW", "a pack of Rockchip's (RKFW)", VENDOR),
    (0, b"RKAF", "a pack of Rockchip's (RKAF)", VENDOR),
    (
        0,
        b"MSWIM\0\0\0",
        "a Windows image (wim)",
        "wimapply or DISM lays its files out on a partition",
    ),
    (
        0,
        b"encrcdsa",
        "an encrypted Apple disk image (dmg)",
        HDIUTIL,
    ),
    (
        0,
        b"cdsaencr",
        "an encrypted Apple disk image (dmg)",
        HDIUTIL,
    ),
    (0, b"sprs", "an Apple sparse image (sparseimage)", HDIUTIL),
    (
        0,
        b"shdw",
        "the changes to an Apple disk image (shadow)",
        HDIUTIL,
    ),
    (
        0,
        b"070701",
        "a cpio archive, maybe an update (swu)",
        UNPACK,
    ),
    (
        0,
        b"070702",
        "a cpio archive, maybe an update (swu)",
        UNPACK,
    ),
    (0, b"070707", "a cpio archive", UNPACK),
    (0, b"\xc7\x71", "a cpio archive", UNPACK),
    (0, b"!<arch>\n", "an ar or deb archive", UNPACK),
    (0, b"MSCF\0\0\0\0", "a cabinet (cab)", UNPACK),
    (0, b"xar!", "a xar archive (pkg)", UNPACK),
    (0, b"\x89LZO\x00\x0d\x0a\x1a\x0a", "packed as lzop", UNPACK),
    (0, b"\x1f\x9d", "packed by compress (.Z)", UNPACK),
    (0, b"\x1f\x1e", "packed by pack (.z)", UNPACK),
    // Properties and a dictionary of 64 KiB to 64 MiB, as lzma writes them.
    (0, b"\x5d\0\0\x01\0", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\x10\0", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\x40\0", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\x80\0", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\0\x01", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\0\x02", "packed as lzma", UNPACK),
    (0, b"\x5d\0\0\0\x04", "packed as lzma", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "packed as lz4", UNPACK),
    (0, b"LZIP", "packed as lzip", UNPACK),
    (0, b"%PDF-", "a PDF document", ""),
];

/// Text that begins a page or a document, in lower case.
const PAGES: [&[u8]; 3] = [b"<!doctype", b"<html", b"<?xml"];

/// Endings of names that promise another format than those that are written.
const ENDINGS: [&str; 18] = [
    "7z", "br", "lz", "lz4", "lzma", "lzo", "ova", "qcow2", "rar", "tar", "tbz2", "tgz", "txz",
    "vdi", "vhd", "vhdx", "vmdk", "z",
];

/// Does a file's name promise a format that is not written?
pub fn is_promised(path: impl AsRef<Path>) -> bool {
    let extension = path.as_ref().extension().and_then(|text| text.to_str());
    extension.is_some_and(|text| ENDINGS.contains(&text.to_ascii_lowercase().as_str()))
}

/// Refuses a file, or what is taken for a disk, if it is known to be no disk's image. Of any length:
/// what is only read may be anything.
///
/// # Errors
/// As [`refuse`]; what cannot be read is no error here.
pub fn refuse_disk(disk: &dyn ReadAt) -> Result<()> {
    let mut first = vec![0; disk.len().min(FIRST as u64) as usize];
    let mut last = vec![0; disk.len().min(LAST as u64) as usize];
    if disk.read_exact_at(0, &mut first).is_err() {
        return Ok(());
    }
    if disk
        .read_exact_at(disk.len() - last.len() as u64, &mut last)
        .is_err()
    {
        last.clear();
    }
    first.resize(first.len().max(SECTOR), 0);
    refuse(&first, &last)
}

/// Refuses contents that begin with `first` and end with `last` if they are known to be no disk's.
/// `first` is a kilobyte, or shorter if that is all; `last` is half of that, or empty where it is
/// not known.
///
/// # Errors
/// `Unsupported`, with what it is and what helps.
pub fn refuse(first: &[u8], last: &[u8]) -> Result<()> {
    if first.get(510..512) == Some(b"\x55\xaa") {
        return Ok(());
    }
    refuse_head(first)?;
    if first.len() < SECTOR {
        let len = first.len();
        return Err(Error::unsupported(format!(
            "it is no image of a disk: it has only {len} bytes"
        )));
    }
    let (what, hint) = if last.len() == LAST && last.starts_with(b"koly") {
        (
            "an Apple disk image that is packed (dmg)".to_owned(),
            HDIUTIL,
        )
    } else if PAGES.iter().any(|page| is_page(first, page)) && names_a_map(first) {
        ("a block map (bmap)".to_owned(), GIVE_IMAGE)
    } else if PAGES.iter().any(|page| is_page(first, page)) {
        let hint = "look into it: a server may have sent it instead of the image";
        ("a web page or a document".to_owned(), hint)
    } else {
        // Packed twice, or given where only a plain image will do.
        match Codec::detect(first) {
            Codec::Raw => return Ok(()),
            codec => (format!("packed as {codec}"), UNPACK),
        }
    };
    Err(refusal(&what, hint))
}

/// Refuses what begins like one of the known formats; `first` may be a few bytes only.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_head(first: &[u8]) -> Result<()> {
    let is_at =
        |(at, bytes, ..): &&Known| first.get(*at..).is_some_and(|rest| rest.starts_with(bytes));
    match KNOWN.iter().find(is_at) {
        Some((_, _, what, hint)) => Err(refusal(what, hint)),
        None => Ok(()),
    }
}

fn refusal(what: &str, hint: &str) -> Error {
    let error = Error::unsupported(format!("it is no image of a disk, but {what}"));
    match hint.is_empty() {
        true => error,
        false => error.with_hint(hint),
    }
}

/// Is it XML of which bmaptool's, or this program's, first words are?
fn names_a_map(first: &[u8]) -> bool {
    let has = |words: &[u8]| first.windows(words.len()).any(|there| there == words);
    has(b"<bmap ") || has(b"the block map for an image")
}

fn is_page(first: &[u8], page: &[u8]) -> bool {
    let text = first
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(first)
        .trim_ascii_start();
    text.get(..page.len())
        .is_some_and(|begin| begin.eq_ignore_ascii_case(page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::io::memory::MemoryDisk;

    #[test]
    fn tells_what_is_no_disk() {
        let at = |at: usize, bytes: &[u8]| {
            let mut first = vec![0; FIRST];
            first[at..at + bytes.len()].copy_from_slice(bytes);
            first
        };
        for (at_byte, bytes, name) in [
            (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
            (0, b"KDMV\x01", "vmdk"),
            (0x40, b"\x7f\x10\xda\xbe", "vdi"),
            (257, b"ustar\0", "tar"),
            (0, b"7z\xbc\xaf\x27\x1c", "7z"),
            (0, b"\n <!DOCTYPE html>", "web page"),
            (0, b"\xef\xbb\xbf<?xml version", "document"),
            (0, b"\x28\xb5\x2f\xfd", "zstd"),
            (0, b"PK\x03\x04", "zip"),
            (0, b"RKFW", "Rockchip"),
            (0, b"IMAGEWTY", "Allwinner"),
            (0, b"partclone-image", "partclone"),
            (0, b"\x5d\0\0\x80\0", "lzma"),
            (0, b"sprs", "sparse"),
            (
                0,
                b"<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">",
                "block map",
            ),
        ] {
            let error = refuse(&at(at_byte, bytes), &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
        let mut dmg = [0; LAST];
        dmg[..4].copy_from_slice(b"koly");
        assert!(refuse(&[0; FIRST], &dmg).is_err());
        assert!(refuse(b"hello", b"").is_err());
        let mut disk = at(0, b"QFI\xfb");
        assert!(refuse_disk(&MemoryDisk::from(disk.clone())).is_err());
        disk[..4].fill(0);
        refuse_disk(&MemoryDisk::from(disk)).unwrap();
        refuse_disk(&MemoryDisk::from(b"hello".to_vec())).unwrap();
    }

    #[test]
    fn lets_pass_what_may_be_a_disk() {
        let mut signed = vec![0; FIRST];
        signed[..4].copy_from_slice(b"QFI\xfb");
        signed[510..512].copy_from_slice(b"\x55\xaa");
        refuse(&signed, &[]).unwrap();
        refuse(&[0; FIRST], &[0; LAST]).unwrap();
        refuse(&[7; FIRST], &[7; LAST]).unwrap();
    }
}
