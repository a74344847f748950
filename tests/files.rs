//! Files read without mounting: what `ls` and `get` say and copy is what the kernel shows.
#![cfg(target_os = "linux")]

// Others hold cards against each other, too.
#[allow(dead_code)]
mod cards;
#[path = "common/scratch.rs"]
mod scratch;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cards::{pishrink, run};
use scratch::{Scratch, noise};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Runs pishrink; returns its code and what it printed to standard output and error.
fn ask(words: &[&OsStr]) -> (i32, String, String) {
    let done = pishrink().args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = done.status.code().unwrap();
    (code, text(&done.stdout), text(&done.stderr))
}

fn succeed(words: &[&dyn AsRef<OsStr>]) -> String {
    let words: Vec<&OsStr> = words.iter().map(|word| (*word).as_ref()).collect();
    let (code, said, complained) = ask(&words);
    assert_eq!(code, 0, "{words:?}: {said}{complained}");
    said
}

/// A folder with each kind of file, and names that are no text.
fn tree(scratch: &Scratch) -> PathBuf {
    let root = scratch.path("made");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("home/pi/many")).unwrap();
    fs::create_dir_all(root.join("boot/firmware")).unwrap();
    let fstab = "proc /proc proc\nLABEL=BOOT /boot/firmware vfat defaults 0 2\n";
    fs::write(root.join("etc/fstab"), fstab).unwrap();
    fs::write(root.join("etc/secret"), "x").unwrap();
    fs::set_permissions(root.join("etc/secret"), fs::Permissions::from_mode(0o400)).unwrap();
    for number in 0..300u32 {
        let name = format!("home/pi/many/a name that is not short {number}");
        fs::write(root.join(name), noise(number, u64::from(number) * 7)).unwrap();
    }
    fs::write(root.join("home/pi/empty"), "").unwrap();
    fs::write(root.join("home/pi/tiny"), "inline").unwrap();
    fs::write(root.join("home/pi/large"), noise(9, 3 << 20)).unwrap();
    let bytes = OsStr::from_bytes(b"gr\xfcn \x1b[2J");
    fs::write(root.join("home/pi").join(bytes), "not text").unwrap();
    let holes = File::create(root.join("home/pi/holes")).unwrap();
    holes.set_len(9 << 20).unwrap();
    for at in [0, 70_000, 5 << 20] {
        holes.write_all_at(b"here", at).unwrap();
    }
    symlink("tiny", root.join("home/pi/fast")).unwrap();
    symlink("/etc/fstab", root.join("home/pi/up")).unwrap();
    symlink("x/".repeat(90) + "x", root.join("home/pi/slow")).unwrap();
    let past = File::open(root.join("home/pi/tiny")).unwrap();
    let year = std::time::Duration::from_secs(1_000_000_007);
    past.set_modified(std::time::UNIX_EPOCH + year).unwrap();
    root
}

fn ext4(scratch: &Scratch, options: &[&str]) -> PathBuf {
    let path = scratch.path("fs.img");
    File::create(&path).unwrap().set_len(48 * MIB).unwrap();
    let tree = tree(scratch);
    let mut words: Vec<&OsStr> = vec!["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), tree.as_ref()];
    words.extend(options.iter().map(OsStr::new));
    words.push(path.as_ref());
    run("mke2fs", words);
    path
}

/// Lists a folder's files with all that get keeps of them.
fn listed(root: &Path, folder: &Path, list: &mut Vec<String>) {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap();
        let mode = meta.mode() & 0o170777;
        if meta.is_symlink() {
            list.push(format!(
                "{name:?} {mode:o} {:?}",
                fs::read_link(&path).unwrap()
            ));
            continue;
        }
        list.push(format!("{name:?} {mode:o} {}", meta.mtime()));
        if meta.is_dir() {
            listed(root, &path, list);
        }
    }
}

#[test]
fn whole_trees_are_what_the_kernel_shows() {
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,64bit"],
        &["-t", "ext4", "-I", "128", "-O", "metadata_csum"],
        &["-t", "ext4", "-O", "inline_data"],
        &["-t", "ext4", "-O", "bigalloc", "-C", "16384"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-O", "^dir_index,^filetype", "-b", "2048"],
    ] {
        let scratch = Scratch::new("trees");
        let image = ext4(&scratch, options);
        let to = scratch.path("copied");
        let said = succeed(&[&"get", &image, &"/", &to]);
        assert!(said.contains("307 files"), "{said}");
        let mounted = scratch.mount(&image, "loop,ro");
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        listed(&to, &to, &mut ours);
        listed(mounted.path(), mounted.path(), &mut theirs);
        assert_eq!(ours, theirs, "{options:?}");
        run(
            "diff",
            [
                OsStr::new("-r"),
                "--no-dereference".as_ref(),
                to.as_ref(),
                mounted.path().as_ref(),
            ],
        );
    }
}

/// A journal that was not replayed yet holds files, too.
#[test]
fn what_only_the_journal_has_is_there() {
    let scratch = Scratch::new("journal");
    let card = cards::dirty(&scratch);
    let to = scratch.path("copied");
    succeed(&[&"get", &card, &"/", &to]);
    let mounted = scratch.mount(&card, "loop");
    run(
        "diff",
        [
            OsStr::new("-r"),
            "--no-dereference".as_ref(),
            to.as_ref(),
            mounted.path().as_ref(),
        ],
    );
}

fn card(scratch: &Scratch) -> PathBuf {
    let root = ext4(scratch, &["-t", "ext4"]);
    let boot = scratch.path("boot.img");
    File::create(&boot).unwrap().set_len(16 * MIB).unwrap();
    run(
        "mkfs.fat",
        [OsStr::new("-n"), "BOOT".as_ref(), boot.as_ref()],
    );
    let cmdline = scratch.path("cmdline");
    fs::write(&cmdline, "console=tty1\n").unwrap();
    run(
        "mmd",
        [
            OsStr::new("-i"),
            boot.as_ref(),
            "::overlays of a long name".as_ref(),
        ],
    );
    let place = "::overlays of a long name/Ein Gruß.dtbo";
    for to in ["::cmdline.txt", place] {
        run(
            "mcopy",
            [
                OsStr::new("-i"),
                boot.as_ref(),
                cmdline.as_ref(),
                to.as_ref(),
            ],
        );
    }
    let card = scratch.path("card.img");
    let file = File::create(&card).unwrap();
    file.set_len(80 * MIB).unwrap();
    let table = scratch.path("table");
    fs::write(
        &table,
        "label: dos\nstart=2048, size=32768, type=c\nstart=40960, size=98304, type=83\n",
    )
    .unwrap();
    let script = format!("sfdisk -q {} < {}", card.display(), table.display());
    run("sh", ["-c", &script]);
    file.write_all_at(&fs::read(boot).unwrap(), MIB).unwrap();
    file.write_all_at(&fs::read(root).unwrap(), 20 * MIB)
        .unwrap();
    card
}

#[test]
fn paths_are_those_of_the_running_system() {
    let scratch = Scratch::new("system");
    let raw = card(&scratch);
    run("xz", ["-k", "-0", raw.to_str().unwrap()]);
    for image in [raw.clone(), scratch.path("card.img.xz")] {
        assert_eq!(
            succeed(&[&"get", &image, &"/boot/firmware/CMDLINE.txt", &"-"]),
            "console=tty1\n"
        );
        let json = succeed(&[&"ls", &image, &"/boot/**/*.dtbo", &"--json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        let path = "/boot/firmware/overlays of a long name/Ein Gruß.dtbo";
        assert_eq!(json["entries"][0]["path"], path);
        assert_eq!(json["entries"][0]["bytes"], 13);
    }
    let said = succeed(&[&"ls", &raw, &"/home/pi"]);
    assert!(said.contains(" fast -> tiny\n"), "{said}");
    assert!(said.contains("2001-09-09 01:46  tiny\n"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    assert!(succeed(&[&"ls", &raw, &"1:"]).contains("cmdline.txt"));
    assert_eq!(succeed(&[&"get", &raw, &"2:etc/secret", &"-"]), "x");
    // Links lead through the tree of the card, not of this machine.
    let said = succeed(&[&"get", &raw, &"/home/pi/up", &"-"]);
    assert!(said.contains("LABEL=BOOT"), "{said}");
    for (words, says) in [
        (&["ls", "/nothing"][..], "there is no /nothing"),
        (&["ls", "/*/nothing*"], "there is no"),
        (&["ls", "7:/"], "there is no partition 7"),
        (&["get", "/etc", "-"], "is no file"),
        (&["get", "/*", "nowhere"], "is no folder"),
    ] {
        let words = words.iter().map(OsStr::new);
        let mut words: Vec<_> = words.collect();
        words.insert(1, raw.as_ref());
        let (code, _, complained) = ask(&words);
        assert_eq!(code, 2, "{words:?}: {complained}");
        assert!(complained.contains(says), "{complained}");
        assert_eq!(complained.lines().count(), 1, "{complained}");
    }
}

#[test]
fn what_exists_stays() {
    let scratch = Scratch::new("exists");
    let card = card(&scratch);
    let to = scratch.path("mine");
    fs::write(&to, "mine").unwrap();
    let words: [&OsStr; 4] = [
        "get".as_ref(),
        card.as_ref(),
        "etc/secret".as_ref(),
        to.as_ref(),
    ];
    let (code, _, complained) = ask(&words);
    assert_eq!(code, 2, "{complained}");
    assert!(complained.contains("--force"), "{complained}");
    assert_eq!(fs::read(&to).unwrap(), b"mine");
    succeed(&[&"get", &card, &"etc/secret", &to, &"--force"]);
    assert_eq!(fs::read(&to).unwrap(), b"x");
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o400);
    let (code, ..) = ask(&["get".as_ref(), card.as_ref(), "etc".as_ref(), to.as_ref()]);
    assert_eq!(code, 2);
    // A folder takes what is copied, beside what is there.
    let folder = scratch.path("folder");
    fs::create_dir(&folder).unwrap();
    symlink("/tmp/pishrink-nothing", folder.join("secret")).unwrap();
    let said = succeed(&[&"get", &card, &"/etc/s*", &folder]);
    assert!(said.contains("secret~2"), "{said}");
    assert!(!Path::new("/tmp/pishrink-nothing").exists());
}

/// Replaces a name wherever it is on a medium.
fn rename_on(image: &Path, from: &[u8], to: &[u8]) {
    let mut bytes = fs::read(image).unwrap();
    let places: Vec<_> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    fs::write(image, bytes).unwrap();
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let scratch = Scratch::new("hostile");
    let made = scratch.path("made");
    fs::create_dir_all(made.join("deep/QQfolderQQ")).unwrap();
    fs::write(made.join("deep/QQevilfileQQ"), "evil").unwrap();
    fs::write(made.join("deep/QQfolderQQ/inside"), "evil").unwrap();
    let outside = scratch.path("outside");
    fs::create_dir(&outside).unwrap();
    // Two names become one: a link, and a folder that would be filled through it.
    symlink(&outside, made.join("deep/QQlinkQQ.")).unwrap();
    fs::create_dir(made.join("deep/QQlonkQQ.")).unwrap();
    fs::write(made.join("deep/QQlonkQQ./through"), "evil").unwrap();
    let image = scratch.path("fs.img");
    File::create(&image).unwrap().set_len(8 * MIB).unwrap();
    let options = "-q -F -t ext4 -O ^metadata_csum,^dir_index -d";
    let mut words: Vec<&OsStr> = options.split(' ').map(OsStr::new).collect();
    words.extend([OsStr::new(&made), image.as_ref()]);
    run("mke2fs", words);
    rename_on(&image, b"QQevilfileQQ", b"../../evil!!");
    rename_on(&image, b"QQfolderQQ", b"/tmp/evil!");
    rename_on(&image, b"QQlonkQQ.", b"QQlinkQQ.");
    let to = scratch.path("deeper/copied");
    fs::create_dir(scratch.path("deeper")).unwrap();
    let said = succeed(&[&"get", &image, &"/deep", &to]);
    assert!(
        said.contains("renamed: /deep/../../evil!! is .._.._evil!! here"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_dir(scratch.path("deeper")).unwrap().count(), 1);
    assert!(!Path::new("/tmp/evil!").exists());
    assert_eq!(fs::read(to.join(".._.._evil!!")).unwrap(), b"evil");
    assert_eq!(fs::read(to.join("_tmp_evil!/inside")).unwrap(), b"evil");
    assert_eq!(
        fs::read(to.join("QQlinkQQ~2.")).unwrap_err().kind(),
        std::io::ErrorKind::IsADirectory
    );
}

#[test]
fn damage_is_named_and_the_rest_is_copied() {
    let scratch = Scratch::new("damage");
    let image = ext4(&scratch, &["-t", "ext4", "-O", "metadata_csum"]);
    let command = "set_inode_field home/pi/large block[0] 0";
    run("debugfs", ["-w", "-R", command, image.to_str().unwrap()]);
    let to = scratch.path("copied");
    let words: [&OsStr; 5] = [
        "get".as_ref(),
        image.as_ref(),
        "/home/pi".as_ref(),
        to.as_ref(),
        "--json".as_ref(),
    ];
    let (code, said, complained) = ask(&words);
    assert_eq!(code, 6, "{said}{complained}");
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(json["not_readable"][0]["path"], "/home/pi/large");
    assert!(!to.join("large").exists());
    assert!(to.join("many").is_dir());
    assert_eq!(fs::read(to.join("holes")).unwrap().len(), 9 << 20);
}
