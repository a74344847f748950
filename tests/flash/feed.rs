//! What people feed it: files that are no disk's, disks of another kind, archives as others make them.

use std::fs;
use std::path::{Path, PathBuf};

use super::tools::*;

const CARD: [&str; 3] = ["--card-size", "96MiB", "--yes"];

/// Flashes to a new file of 96 MiB that must not be left behind; returns code and text.
fn refused(image: &Path, card: &Path, more: &[&str]) -> (i32, String) {
    let arguments = [&["flash", text(image), text(card)][..], &CARD, more].concat();
    let told = refusal(&arguments);
    assert!(!card.exists(), "{}", told.1);
    told
}

#[test]
fn what_nothing_is_known_of_needs_a_consent_of_its_own() {
    let scratch = Scratch::new("feed");
    let (file, card) = (scratch.path("x.bin"), scratch.path("card"));
    let mut bytes = noise(3, 8 * MIB);
    bytes[510..512].fill(0);
    fs::write(&file, &bytes).unwrap();
    shell(&format!("gzip -k {}", text(&file)));
    for file in [&file, &scratch.path("x.bin.gz")] {
        let (code, said) = refused(file, &card, &[]);
        assert_eq!(code, 3);
        assert!(
            said.contains("neither a partition table nor a filesystem"),
            "{said}"
        );
        assert!(said.contains("--allow-any-image"), "{said}");
        let words = [
            &["flash", text(file), text(&card)][..],
            &CARD,
            &["--allow-any-image"],
        ]
        .concat();
        let (code, told) = json(&words);
        assert_eq!(code, 0, "{told:#}");
        let report = &told["cards"][0];
        assert_eq!(
            (&report["verified"], &report["contents_known"]),
            (&true.into(), &false.into())
        );
        assert!(read(&card, 0, 8 * MIB) == bytes);
        fs::remove_file(&card).unwrap();
        let out = pishrink(&words).stdout;
        assert!(!String::from_utf8_lossy(&out).contains("good"));
        fs::remove_file(&card).unwrap();
    }
    // As an image of a card, too.
    let image = scratch.path("x.img");
    let (code, said) = refusal(&["capture", text(&file), text(&image)]);
    assert_eq!(code, 3);
    assert!(said.contains("--no-shrink --force-raw"), "{said}");
    // By their heads, some are known to be something else.
    for (head, name) in [
        (&b"RKFW"[..], "Rockchip"),
        (b"IMAGEWTY", "Allwinner"),
        (b"partclone-image", "partclone"),
        (b"070701", "cpio"),
        (b"sprs", "sparse"),
        (b"\x5d\0\0\x80\0\xff", "lzma"),
    ] {
        bytes[..head.len()].copy_from_slice(head);
        fs::write(&file, &bytes).unwrap();
        shell(&format!("gzip -kf {}", text(&file)));
        for file in [&file, &scratch.path("x.bin.gz")] {
            // No consent makes a disk of it.
            let (code, said) = refused(file, &card, &["--allow-any-image"]);
            assert_eq!(code, 3);
            assert!(said.contains(name), "{said}");
        }
        let (code, said) = refusal(&["capture", text(&file), text(&image)]);
        assert!(code == 3 && said.contains(name), "{said}");
    }
}

/// The mark of a packed Apple image is at its end.
#[test]
fn a_dmg_is_refused_packed_or_not() {
    let scratch = Scratch::new("feed");
    let (file, card) = (scratch.path("a.dmg"), scratch.path("card"));
    let mut bytes = noise(4, 5 * MIB + 512);
    bytes[510..512].fill(0);
    let end = 5 * MIB as usize;
    bytes[end..end + 4].copy_from_slice(b"koly");
    fs::write(&file, &bytes).unwrap();
    shell(&format!("zstd -qk {}", text(&file)));
    for name in ["a.dmg", "a.dmg.zst"] {
        let (code, said) = refused(&scratch.path(name), &card, &["--allow-any-image"]);
        assert_eq!(code, 3, "{said}");
        assert!(said.contains("hdiutil convert"), "{said}");
    }
}

/// A hybrid ISO as xorriso makes it, of the kind that `options` say.
fn iso(scratch: &Scratch, name: &str, options: &str) -> PathBuf {
    let (iso, tree) = (scratch.path(name), scratch.path("tree"));
    shell(&format!(
        "mkdir -p {tree}; head -c 3000000 /dev/urandom >{tree}/kernel; truncate -s 2M {efi}
         mkfs.vfat {efi} >/dev/null; head -c 432 /dev/urandom >{mbr}
         xorriso -as mkisofs -quiet -o {iso} -V LIVE {options} {tree} 2>/dev/null",
        tree = text(&tree),
        efi = text(&scratch.path("efi.img")),
        mbr = text(&scratch.path("mbr.bin")),
        iso = text(&iso),
        options = options
            .replace("MBR", text(&scratch.path("mbr.bin")))
            .replace("EFI", text(&scratch.path("efi.img"))),
    ));
    iso
}

#[test]
fn hybrid_isos_are_written_and_captured_as_they_are() {
    let scratch = Scratch::new("feed");
    let card = scratch.path("card");
    for (name, options) in [
        ("plain.iso", ""),
        (
            "arch.iso",
            "-partition_offset 16 -append_partition 2 0xef EFI --mbr-force-bootable -G MBR",
        ),
        (
            "ubuntu.iso",
            "-partition_offset 16 -append_partition 2 0xef EFI -appended_part_as_gpt",
        ),
        ("debian.iso", "DEBIAN"),
    ] {
        let debian = options == "DEBIAN";
        let image = iso(&scratch, name, if debian { "" } else { options });
        if debian {
            // Partition 1 covers all from sector 0, a second one lies in it.
            let sectors = fs::metadata(&image).unwrap().len() / 512;
            let mut bytes = fs::read(&image).unwrap();
            for (at, kind, start, len) in [(446, 0, 0, sectors as u32), (462, 0xef, 300, 4000)] {
                bytes[at + 4] = kind;
                bytes[at + 8..at + 12].copy_from_slice(&u32::to_le_bytes(start));
                bytes[at + 12..at + 16].copy_from_slice(&u32::to_le_bytes(len));
            }
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            fs::write(&image, bytes).unwrap();
        }
        let bytes = fs::read(&image).unwrap();
        let words = [&["flash", text(&image), text(&card)][..], &CARD].concat();
        let (code, said) = json(&words);
        assert_eq!(code, 0, "{name}: {said:#}");
        assert_eq!(said["cards"][0]["verified"], true);
        assert!(read(&card, 0, bytes.len() as u64) == bytes, "{name}");
        let rest = read(&card, bytes.len() as u64, 96 * MIB - bytes.len() as u64);
        assert!(rest.iter().all(|&byte| byte == 0), "{name}");
        // The stick gives the ISO again.
        let back = scratch.path("back.img");
        let (code, said) = json(&["capture", "--force", text(&card), text(&back)]);
        assert_eq!(code, 0, "{name}: {said:#}");
        assert!(fs::read(&back).unwrap() == bytes, "{name}");
        let said = pishrink(&["inspect", text(&card)]);
        assert!(said.status.success());
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("iso9660 \"LIVE\""), "{name}: {said}");
        let (code, said) = refusal(&["expand", text(&card), "--yes"]);
        assert!(code == 3 && said.contains("ISO"), "{said}");
        assert!(read(&card, 0, bytes.len() as u64) == bytes, "{name}");
        fs::remove_file(&card).unwrap();
        let (code, _) = refused(&image, &card, &["--expand", "64MiB"]);
        assert_eq!(code, 2);
    }
}

/// A table counts in the device's sectors.
#[test]
fn a_table_of_other_sectors_is_refused_by_default() {
    let scratch = Scratch::new("feed");
    let image = pi_image(&scratch, "x.img");
    let disk = scratch.path("disk");
    fs::File::create(&disk).unwrap().set_len(96 * MIB).unwrap();
    let words = ["--show", "-f", "-b", "4096", text(&disk)];
    let device = Loop(tool("losetup", &words).trim().into());
    let target = text(&device.0);
    let words = ["flash", text(&image), target, "--yes", "--allow-any-device"];
    let (code, said) = refusal(&words);
    assert_eq!(code, 5, "{said}");
    assert!(
        said.contains("sectors of 512 bytes") && said.contains("--allow-sector-size"),
        "{said}"
    );
    assert!(read(&disk, 0, MIB).iter().all(|&byte| byte == 0));
    let (code, said) = json(&[&words[..], &["--allow-sector-size"]].concat());
    assert_eq!(code, 0, "{said:#}");
    let out = pishrink(&["inspect", target]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("no system finds the partitions"));
    let (code, said) = refusal(&["expand", target, "--yes", "--allow-any-device"]);
    assert_eq!(code, 5, "{said}");
    // The other way round: a GPT of large sectors.
    let large = scratch.path("large.img");
    shell(&format!(
        "truncate -s 64M {large}; L=$(losetup --show -f -b 4096 {large})
         echo start=512,size=8192 | sfdisk -q -X gpt $L; losetup -d $L",
        large = text(&large)
    ));
    drop(device);
    let device = Loop::attach(&disk);
    let (code, said) = refusal(&[
        "flash",
        text(&large),
        text(&device.0),
        "--yes",
        "--allow-any-device",
    ]);
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("sectors of 4096 bytes"), "{said}");
}

/// What lies where a table would be is code, whatever numbers it makes.
#[test]
fn a_boot_floppy_comes_back_as_it_was_captured() {
    let scratch = Scratch::new("feed");
    let (floppy, image, card) = (
        scratch.path("x.img"),
        scratch.path("y.img"),
        scratch.path("card"),
    );
    let mut bytes = vec![0; 10 * MIB as usize];
    let code = b"\x55\0\0\0\x55\0\0\0\x11\x11\x11\x11\x10\0\0\0";
    bytes[446..462].copy_from_slice(code);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(&floppy, &bytes).unwrap();
    tool(
        env!("CARGO_BIN_EXE_pishrink"),
        &["capture", text(&floppy), text(&image)],
    );
    let said = flash(text(&image), &card, &["--card-size", "64MiB"]);
    assert_eq!(said["verified"], true);
    assert!(read(&card, 0, 10 * MIB) == bytes);
}

/// A zeroed first EBR hides a root filesystem from everybody.
#[test]
fn a_lost_ebr_is_no_empty_extended_partition() {
    let scratch = Scratch::new("feed");
    let card = scratch.path("e.img");
    let path = text(&card);
    shell(&format!(
        "truncate -s 100M {path}
         printf 'start=2048,size=20480,type=c\\nstart=22528,size=180000,type=5\\nstart=24576,size=170000,type=83\\n' |
             sfdisk -q {path}
         mkfs.vfat --offset=2048 {path} 10240 >/dev/null
         mke2fs -q -F -t ext4 -E offset=$((24576*512)) {path} 80M
         dd status=none if=/dev/zero of={path} bs=512 seek=22528 count=1 conv=notrunc"
    ));
    let (code, said) = refusal(&["capture", path, text(&scratch.path("o.img"))]);
    assert_eq!(code, 3);
    assert!(
        said.contains("no EBR at its start") && said.contains("--force-raw"),
        "{said}"
    );
    // Nothing at all in it is as good as empty.
    shell(&format!(
        "dd status=none if=/dev/zero of={path} bs=1M seek=11 count=88 conv=notrunc"
    ));
    tool(
        env!("CARGO_BIN_EXE_pishrink"),
        &["capture", path, text(&scratch.path("o.img"))],
    );
}

/// Metadata behind a gzip member, and folders that Etcher's archives have.
#[test]
fn images_as_makers_pack_them() {
    let scratch = Scratch::new("feed");
    let image = pi_image(&scratch, "x.img");
    let card = scratch.path("card");
    shell(&format!(
        "cd {folder}; (gzip -1c x.img; echo '{{\"metadata_version\": \"1.1\"}}') >x.img.gz
         mkdir .meta; echo x >.meta/logo.svg; echo x >.meta/instructions.markdown
         zip -qr x.zip x.img .meta; sha256sum x.img >x.sha256",
        folder = text(image.parent().unwrap())
    ));
    for (name, note) in [
        ("x.img.gz", "bytes behind the gzip data"),
        ("x.zip", "using the checksum"),
    ] {
        let packed = scratch.path(name);
        let words = [&["flash", text(&packed), text(&card)][..], &CARD].concat();
        let done = pishrink(&[&words[..], &["--verbose"]].concat());
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{name}: {errors}");
        assert!(errors.contains(note), "{name}: {errors}");
        assert_clean(&card, PI_ROOT);
        fs::remove_file(&card).unwrap();
    }
    let map = scratch.path("x.img.bmap");
    tool("bmaptool", &["create", "-o", text(&map), text(&image)]);
    let (code, said) = refused(&map, &card, &[]);
    assert!(
        code == 3 && said.contains("block map") && said.contains("give the image"),
        "{said}"
    );
    // A map that was made of the packed file.
    let (packed, map) = (scratch.path("x.img.gz"), scratch.path("x.img.gz.bmap"));
    tool("bmaptool", &["create", "-o", text(&map), text(&packed)]);
    let (code, said) = refused(&packed, &card, &[]);
    assert!(code == 3 && said.contains("--no-bmap"), "{said}");
}
