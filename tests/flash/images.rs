//! What an image can be: packed, piped, mapped, damaged.

use std::fs;
use std::process::{Command, Stdio};

use super::tools::*;

#[test]
fn every_packing_gives_the_same_card() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let file = text(&image);
    shell(&format!(
        "xz -T2 -0 -k {file}; gzip -1 -k {file}; zstd -q -1 -k {file}; bzip2 -1 -k {file}
         cd $(dirname {file}); zip -q x.zip x.img; cp x.img.xz misnamed.gz"
    ));
    for name in [
        "x.img",
        "x.img.xz",
        "x.img.gz",
        "x.img.zst",
        "x.img.bz2",
        "x.zip",
        "misnamed.gz",
    ] {
        let packed = scratch.path(name);
        let card = used_card(&scratch, "card", 80 * MIB);
        let said = flash(text(&packed), &card, &["--expand", "none"]);
        assert_eq!(said["verified"], true);
        assert!(
            read(&card, 0, 64 * MIB) == fs::read(&image).unwrap(),
            "{name}"
        );
        let child = Command::new(env!("CARGO_BIN_EXE_pishrink"))
            .args(["flash", "-", text(&card), "--yes", "--overwrite", "--quiet"])
            .stdin(fs::File::open(&packed).unwrap())
            .stderr(Stdio::inherit())
            .status()
            .unwrap();
        assert!(child.success(), "{name} from standard input");
        assert_clean(&card, PI_ROOT);
        assert_eq!(ext_len(&card, PI_ROOT), 71 * MIB);
        let (code, said) = json(&["verify", text(&packed), text(&card)]);
        assert_eq!(code, 0, "{said:#}");
        assert_eq!(said["expanded"], true);
    }
}

#[test]
fn a_block_map_gives_what_bmaptool_copies() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let map = scratch.path("x.img.bmap");
    tool("bmaptool", &["create", "-o", text(&map), text(&image)]);
    tool("xz", &["-0", "-k", text(&image)]);
    let (card, theirs) = (scratch.path("card"), scratch.path("theirs"));
    for name in ["x.img", "x.img.xz"] {
        let name = scratch.path(name);
        let _ = fs::remove_file(&card);
        let said = flash(
            text(&name),
            &card,
            &["--expand", "none", "--card-size", "80MiB"],
        );
        let written = said["written_bytes"].as_u64().unwrap();
        assert!(written < 30 * MIB, "{said:#}");
        fs::write(&theirs, "").unwrap();
        tool(
            "bmaptool",
            &["copy", "--bmap", text(&map), text(&name), text(&theirs)],
        );
        // bmaptool stops at the image's last mapped block.
        let len = fs::metadata(&theirs).unwrap().len();
        assert!(read(&card, 0, len) == fs::read(&theirs).unwrap());
        let (code, said) = json(&["verify", text(&name)]);
        assert_eq!((code, &said["with_block_map"]), (0, &true.into()));
    }
    // A byte changed within a mapped range: named, and the card is left blank.
    let mut bytes = fs::read(&image).unwrap();
    bytes[(PI_ROOT + 1024 + 0x78) as usize] ^= 1;
    fs::write(&image, bytes).unwrap();
    let arguments = ["flash", text(&image), text(&card), "--yes", "--overwrite"];
    let (code, errors) = refusal(&arguments);
    assert_eq!(code, 4, "{errors}");
    assert!(errors.contains("bytes 9437184 to"), "{errors}");
    assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    assert_eq!(refusal(&["verify", text(&image)]).0, 4);
    // Another file as map, and none.
    let (code, _) = refusal(&[&arguments[..], &["--bmap", text(&image)]].concat());
    assert_eq!(code, 3);
    flash(text(&image), &card, &["--no-bmap", "--expand", "none"]);
}

#[test]
fn a_damaged_image_leaves_a_blank_card() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    tool("xz", &["-0", "-k", text(&image)]);
    let packed = scratch.path("x.img.xz");
    let whole = fs::read(&packed).unwrap();
    let card = used_card(&scratch, "card", 80 * MIB);
    fs::write(&packed, &whole[..whole.len() - 100]).unwrap();
    let (code, errors) = refusal(&["flash", text(&packed), text(&card), "--yes", "--overwrite"]);
    assert_eq!(code, 3, "{errors}");
    assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    let (code, errors) = refusal(&["verify", text(&packed)]);
    assert_eq!(code, 3, "{errors}");
}

#[test]
fn checksums_given_or_beside_the_image_count() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    shell(&format!(
        "cd $(dirname {file}); zip -q x.zip x.img; xz -0 -k x.img
         for f in x.zip x.img.xz; do sha256sum $f > $f.sha256; done",
        file = text(&image)
    ));
    let card = used_card(&scratch, "card", 80 * MIB);
    for name in ["x.zip", "x.img.xz"] {
        let packed = scratch.path(name);
        flash(text(&packed), &card, &[]);
        let sidecar = scratch.path(&format!("{name}.sha256"));
        let wrong = fs::read_to_string(&sidecar)
            .unwrap()
            .replace(['1', '2'], "3");
        fs::write(&sidecar, wrong).unwrap();
        let (code, errors) =
            refusal(&["flash", text(&packed), text(&card), "--yes", "--overwrite"]);
        assert_eq!(code, 4, "{errors}");
        assert!(errors.contains("SHA-256"), "{errors}");
        assert!(read(&card, 0, MIB).iter().all(|&byte| byte == 0));
    }
}
