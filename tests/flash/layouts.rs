//! Expansion of every kind of partition table, while flashing and as a command of its own.

use std::fs;
use std::path::Path;

use super::tools::*;

/// Makes a disk of `mib` MiB with the partitions of an sfdisk script.
fn disk(scratch: &Scratch, name: &str, mib: u64, table: &str) -> std::path::PathBuf {
    let path = scratch.path(name);
    shell(&format!(
        "truncate -s {mib}M {path}; printf '{table}' | sfdisk -q {path}",
        path = text(&path)
    ));
    path
}

/// The partitions that sfdisk sees: number, first byte, length.
fn partitions(disk: &Path) -> Vec<(u32, u64, u64)> {
    let dump = tool("sfdisk", &["--json", text(disk)]);
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let entries = dump["partitiontable"]["partitions"].as_array().unwrap();
    let number = |node: &str| -> u32 {
        let digits = node.rfind(|c: char| !c.is_ascii_digit()).unwrap();
        node[digits + 1..].parse().unwrap()
    };
    entries
        .iter()
        .map(|entry| {
            (
                number(entry["node"].as_str().unwrap()),
                entry["start"].as_u64().unwrap() * 512,
                entry["size"].as_u64().unwrap() * 512,
            )
        })
        .collect()
}

#[test]
fn what_has_nothing_to_grow_is_good_all_the_same() {
    let scratch = Scratch::new("flash");
    for make in ["mkfs.vfat", "mkswap"] {
        let image = scratch.path("bare.img");
        shell(&format!(
            "rm -f {0}; truncate -s 8M {0}; {make} {0}",
            text(&image)
        ));
        let card = used_card(&scratch, "card", 16 * MIB);
        let (code, said) = json(&["flash", text(&image), text(&card), "--yes", "--overwrite"]);
        assert_eq!(code, 0, "{said:#}");
        assert_eq!(said["cards"][0]["verified"], true, "{said:#}");
        let note = said["cards"][0]["expansion"]["notes"][0].as_str().unwrap();
        assert!(note.contains("nothing is expanded"), "{note}");
        // Who asks for a size, or for nothing but that, is told that there is none.
        let sized = [
            "flash",
            text(&image),
            text(&card),
            "--yes",
            "--overwrite",
            "--expand",
        ];
        assert_eq!(json(&[&sized[..], &["12M"]].concat()).0, 3);
        assert_eq!(json(&["expand", text(&card), "--yes"]).0, 3);
    }
}

#[test]
fn gpt_with_its_backup_at_the_true_end() {
    let scratch = Scratch::new("flash");
    let table = "label: gpt\\nstart=2048,size=16384,type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7,name=boot\\nstart=18432,name=root\\n";
    let image = disk(&scratch, "x.img", 64, table);
    put_ext(&scratch, &image, PI_ROOT, 54 * MIB, "");
    let names = |path: &Path| tool("sgdisk", &["-i", "2", text(path)]);
    let identity = |path: &Path| {
        let text = names(path);
        let kept = |line: &&str| !line.starts_with("Last") && !line.starts_with("Partition size");
        text.lines().filter(kept).collect::<Vec<_>>().join("\n")
    };
    for size in [64 * MIB, 65 * MIB, 500 * MIB, 500 * MIB + 512] {
        let card = used_card(&scratch, "card", size);
        flash(text(&image), &card, &[]);
        let verdict = tool("sgdisk", &["-v", text(&card)]);
        assert!(verdict.contains("No problems found"), "{verdict}");
        assert_eq!(identity(&card), identity(&image));
        let (_, start, len) = partitions(&card)[1];
        assert_eq!(start, PI_ROOT);
        assert!(start + len + 33 * 512 + 4096 > size && start + len + 33 * 512 <= size);
        assert_clean(&card, PI_ROOT);
        assert_eq!(ext_len(&card, PI_ROOT), len / 4096 * 4096);
    }
    // As a command of its own, after dd and a longer file.
    let copy = scratch.path("copy");
    let twice = used_card(&scratch, "card", 500 * MIB);
    shell(&format!(
        "cp {} {1}; truncate -s 500M {1}",
        text(&image),
        text(&copy)
    ));
    let (code, said) = json(&["expand", text(&copy), "--dry-run"]);
    assert_eq!(code, 0, "{said:#}");
    let before = fs::read(&copy).unwrap();
    flash(text(&image), &twice, &[]);
    assert!(
        fs::read(&copy).unwrap() == before,
        "a dry run writes nothing"
    );
    let (code, said) = json(&["expand", text(&copy)]);
    assert_eq!(code, 0, "{said:#}");
    assert!(said["expansion"]["written"].as_u64().unwrap() < 4 * MIB);
    assert!(read(&copy, 0, 64 * MIB) == read(&twice, 0, 64 * MIB));
    let (code, said) = json(&["expand", text(&copy)]);
    assert_eq!((code, &said["expansion"]["written"]), (0, &0.into()));
}

#[test]
fn logical_partitions_grow_with_their_container() {
    let scratch = Scratch::new("flash");
    let table = "label: dos\\nstart=2048,size=16384,type=c\\nstart=18432,type=5\\nstart=20480,size=8192,type=83\\nstart=30720,type=83\\n";
    let image = disk(&scratch, "x.img", 64, table);
    put_ext(&scratch, &image, 15 * MIB, 49 * MIB, "");
    let card = used_card(&scratch, "card", 256 * MIB);
    flash(text(&image), &card, &[]);
    let all = partitions(&card);
    assert_eq!(all.last(), Some(&(6, 15 * MIB, 241 * MIB)));
    assert_eq!(all[1], (2, 9 * MIB, 247 * MIB));
    assert_clean(&card, 15 * MIB);
    assert_eq!(ext_len(&card, 15 * MIB), 241 * MIB);
}

#[test]
fn trailing_swap_and_fat_go_to_the_end_again() {
    let scratch = Scratch::new("flash");
    let table = "label: dos\\nstart=2048,size=16384,type=c\\nstart=18432,size=81920,type=83\\nstart=100352,size=8192,type=82\\nstart=108544,size=16384,type=c\\n";
    let image = disk(&scratch, "x.img", 62, table);
    put_ext(&scratch, &image, PI_ROOT, 40 * MIB, "");
    let file = text(&image);
    let (swap, fat) = (49 * MIB, 53 * MIB);
    shell(&format!(
        "mkswap -q -L pause --offset {swap} {file} 4096 2>/dev/null || {{ truncate -s 4M {file}.swap; mkswap -q -L pause {file}.swap; dd if={file}.swap of={file} bs=1M seek=49 conv=notrunc status=none; }}
         mkfs.vfat -n DATA --offset {} {file} 8192 >/dev/null
         echo some words > {file}.txt; mcopy -i {file}@@{fat} {file}.txt ::words.txt",
        fat / 512
    ));
    let card = used_card(&scratch, "card", 300 * MIB);
    let said = flash(file, &card, &[]);
    assert_eq!(said["expansion"]["moved"], serde_json::json!([3, 4]));
    let all = partitions(&card);
    assert_eq!(all[3], (4, 292 * MIB, 8 * MIB));
    assert_eq!(all[2], (3, 288 * MIB, 4 * MIB));
    assert_eq!(all[1], (2, PI_ROOT, 279 * MIB));
    assert_clean(&card, PI_ROOT);
    assert_eq!(ext_len(&card, PI_ROOT), 279 * MIB);
    let words = shell(&format!(
        "mtype -i {}@@{} ::words.txt",
        text(&card),
        292 * MIB
    ));
    assert_eq!(words, "some words\n");
    shell(&format!(
        "dd if={} of={file}.fat bs=1M skip=292 count=8 status=none; fsck.vfat -n {file}.fat",
        text(&card)
    ));
    let label = tool(
        "blkid",
        &[
            "-p",
            "-O",
            &(288 * MIB).to_string(),
            "-s",
            "LABEL",
            "-o",
            "value",
            text(&card),
        ],
    );
    assert_eq!(label.trim(), "pause");
}

#[test]
fn other_filesystems_get_a_larger_partition_and_a_word() {
    let scratch = Scratch::new("flash");
    let table = "label: dos\\nstart=2048,size=16384,type=c\\n";
    let image = disk(&scratch, "x.img", 16, table);
    shell(&format!(
        "mkfs.vfat --offset 2048 {} 8192 >/dev/null",
        text(&image)
    ));
    let card = used_card(&scratch, "card", 40 * MIB);
    let said = flash(text(&image), &card, &[]);
    let notes = said["expansion"]["notes"].to_string();
    assert!(notes.contains("only its partition"), "{notes}");
    assert_eq!(partitions(&card), [(1, MIB, 39 * MIB)]);
    let (code, said) = json(&["verify", text(&image), text(&card)]);
    assert_eq!((code, &said["expanded"]), (0, &true.into()));
}

#[test]
fn a_size_and_a_filesystem_without_a_table() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let card = used_card(&scratch, "card", 200 * MIB);
    flash(text(&image), &card, &["--expand", "100MiB"]);
    assert_eq!(partitions(&card)[1], (2, PI_ROOT, 100 * MIB));
    assert_eq!(ext_len(&card, PI_ROOT), 100 * MIB);
    let (code, errors) = refusal(&["expand", text(&card), "--size", "300MiB"]);
    assert_eq!(code, 1, "{errors}");
    let (code, errors) = refusal(&["expand", text(&card), "--size", "10MiB"]);
    assert_eq!(code, 2, "{errors}");
    assert_eq!(json(&["expand", text(&card), "--size", "150MiB"]).0, 0);
    assert_eq!(ext_len(&card, PI_ROOT), 150 * MIB);
    assert_eq!(json(&["expand", text(&card)]).0, 0);
    assert_eq!(ext_len(&card, PI_ROOT), 191 * MIB);
    assert_clean(&card, PI_ROOT);
    let bare = used_card(&scratch, "bare", 40 * MIB);
    put_ext(&scratch, &bare, 0, 40 * MIB, "");
    let card = used_card(&scratch, "card", 100 * MIB);
    flash(text(&bare), &card, &[]);
    assert_eq!(ext_len(&card, 0), 100 * MIB);
    assert_clean(&card, 0);
}

#[test]
fn what_a_filesystem_does_not_reach_is_told() {
    let scratch = Scratch::new("flash");
    let card = scratch.path("small-groups.img");
    // Its descriptors must fit into a group of 256 KiB.
    shell(&format!(
        "truncate -s 8M {0}
         mke2fs -qF -t ext4 -b 1024 -g 256 -N 512 -O ^resize_inode,^flex_bg {0} 2>/dev/null
         truncate -s 3G {0}",
        text(&card)
    ));
    let (code, said) = json(&["expand", text(&card)]);
    assert_eq!(code, 0, "{said:#}");
    assert!(ext_len(&card, 0) < 3 << 30);
    let note = said["expansion"]["notes"][0].as_str().unwrap();
    assert!(note.contains("stays unused"), "{note}");
    assert_clean(&card, 0);
}

#[test]
fn a_damaged_filesystem_is_flashed_but_not_expanded() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    shell(&format!(
        "debugfs -w -R 'set_bg 0 free_blocks_count 1' {}?offset={PI_ROOT} 2>/dev/null
         debugfs -w -R 'clri /folder' {0}?offset={PI_ROOT} 2>/dev/null",
        text(&image)
    ));
    let card = used_card(&scratch, "card", 100 * MIB);
    let (code, said) = json(&["flash", text(&image), text(&card), "--yes", "--overwrite"]);
    assert_eq!(code, 3, "{said:#}");
    assert_eq!(said["cards"][0]["complete"], true);
    assert_eq!(said["cards"][0]["verified"], true);
    let message = said["cards"][0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("not expanded"), "{message}");
    assert!(read(&card, 0, 64 * MIB) == fs::read(&image).unwrap());
}
