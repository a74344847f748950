//! What must not be written is refused, whatever the user allows, and what must hold still is not read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::tools::*;

/// Undone at the end, also of a failing test.
struct Undo(&'static str, PathBuf);

impl Drop for Undo {
    fn drop(&mut self) {
        let _ = Command::new(self.0).arg(&self.1).status();
    }
}

fn mount(device: &Path, place: &Path, options: &str) -> Undo {
    fs::create_dir_all(place).unwrap();
    tool("mount", &["-o", options, text(device), text(place)]);
    Undo("umount", place.to_owned())
}

/// A loop device with the image of [`pi_image`] on it, its partitions visible.
fn pi_card(scratch: &Scratch, name: &str) -> (PathBuf, Loop) {
    let file = pi_image(scratch, name);
    let card = Loop::attach(&file);
    card.show_partitions();
    (file, card)
}

fn part(card: &Loop, number: u32) -> PathBuf {
    format!("{}p{number}", text(&card.0)).into()
}

/// Flash and expand must refuse the device, with these words, though the user allows all he can.
fn assert_refused(image: &Path, device: &str, words: &str) {
    let allowed = ["--yes", "--allow-any-device"];
    for command in [&["flash", text(image), device][..], &["expand", device][..]] {
        if command[0] == "expand" && words.contains("holds the image") {
            continue;
        }
        let (code, errors) = refusal(&[command, &allowed[..]].concat());
        assert_eq!(code, 5, "{command:?}: {errors}");
        assert!(errors.contains(words), "{command:?}: {errors}");
    }
}

#[test]
fn the_running_systems_disk() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let (file, card) = pi_card(&scratch, "system.img");
    let device = text(&card.0);
    // Below /var lies what the system works with.
    let place = PathBuf::from(format!("/var/lib/pishrink-test-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let folder = Undo("rmdir", place.clone());
    let mounted = mount(&part(&card, 2), &place, "ro");
    let before = fs::read(&file).unwrap();
    assert_refused(&image, device, "carries the running system");
    assert_refused(&image, text(&part(&card, 1)), "carries the running system");
    drop(mounted);
    drop(folder);

    let swap = part(&card, 1);
    tool("mkswap", &[text(&swap)]);
    tool("swapon", &[text(&swap)]);
    let swapping = Undo("swapoff", swap);
    assert_refused(&image, device, "carries the running system");
    drop(swapping);
    assert!(fs::read(&file).unwrap()[9 * MIB as usize..] == before[9 * MIB as usize..]);

    // The disk that these tests themselves run from, as far as there is one.
    let root = tool("findmnt", &["-n", "-o", "SOURCE", "/"]);
    if root.starts_with("/dev/") {
        let listed = tool("lsblk", &["-n", "-o", "PKNAME", root.trim()]);
        let name = match listed.trim() {
            "" => root.trim().to_owned(),
            parent => format!("/dev/{parent}"),
        };
        let (_, said) = json(&["devices", "--all"]);
        let devices = said["devices"].as_array().unwrap();
        let own = devices
            .iter()
            .find(|d| d["device"]["path"] == name.as_str());
        let own = own.unwrap_or_else(|| panic!("{name} is not in {said:#}"));
        assert_eq!(own["device"]["system"], true);
        assert!(own["hidden"].as_str().unwrap().contains("running system"));
    }
}

#[test]
fn partitions_mounted_and_write_protected_disks() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let (file, card) = pi_card(&scratch, "card.img");
    let device = text(&card.0);
    let link = scratch.path("by-id");
    symlink(part(&card, 2), &link).unwrap();
    for name in [text(&part(&card, 2)), text(&link)] {
        assert_refused(&image, name, "is a partition");
    }
    let place = scratch.path("mnt");
    for options in ["rw", "ro"] {
        let _mounted = mount(&part(&card, 2), &place, options);
        assert_refused(&image, device, "and is not a removable device");
    }
    // Somebody else has it open and says that nobody may join.
    let before = fs::read(&file).unwrap();
    let mut holder = Command::new("python3")
        .args(["-c", "import os, sys\nos.open(sys.argv[1], os.O_RDWR | os.O_EXCL)\nprint('held', flush=True)\nsys.stdin.read()", device])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_refused(&image, device, "it is in use");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    drop(card);
    let card = Loop(
        tool("losetup", &["--show", "-f", "-r", text(&file)])
            .trim()
            .into(),
    );
    assert_refused(&image, text(&card.0), "is write-protected");
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
fn a_card_that_is_not_removable_needs_a_word_and_is_listed_with_its_reason() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let file = used_card(&scratch, "card", 80 * MIB);
    let card = Loop::attach(&file);
    let link = scratch.path("by-id");
    symlink(&card.0, &link).unwrap();
    let (code, errors) = refusal(&["flash", text(&image), text(&link), "--yes", "--overwrite"]);
    assert_eq!(code, 5, "{errors}");
    let device = text(&card.0);
    assert!(
        errors.contains(&format!("{device} is not removable")),
        "{errors}"
    );
    assert!(errors.contains("--allow-any-device"), "{errors}");
    // Two names for one card, and what lies below it.
    let again = Loop::attach(&file);
    for other in [&link, &file, &again.0] {
        for both in [[device, text(other)], [text(other), device]] {
            let options = ["--yes", "--overwrite", "--allow-any-device"];
            let (code, errors) = refusal(&[&["flash", text(&image)], &both[..], &options].concat());
            assert_eq!(code, 2, "{errors}");
            assert!(errors.contains("are the same target"), "{errors}");
        }
    }
    drop(again);
    let shown = |all: &[&str]| {
        let output = pishrink(&[&["devices"], all].concat());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(!shown(&[]).contains(device));
    let all = shown(&["--all"]);
    let reason = all
        .lines()
        .skip_while(|line| !line.starts_with(device))
        .nth(1);
    assert!(reason.unwrap().contains("stands for the file"), "{all}");
}

#[test]
fn a_card_that_holds_the_image_by_whatever_name() {
    let scratch = Scratch::new("flash");
    let (_, card) = pi_card(&scratch, "card.img");
    let place = scratch.path("mnt");
    let _mounted = mount(&part(&card, 2), &place, "rw");
    let folder = place.join("images");
    fs::create_dir(&folder).unwrap();
    let image = folder.join("os.img");
    fs::write(&image, noise(1, 2 * MIB)).unwrap();
    let link = scratch.path("os.img");
    symlink(&image, &link).unwrap();
    let elsewhere = scratch.path("elsewhere");
    let _bound = mount(&folder, &elsewhere, "bind");
    // In a filesystem whose own file lies on the card.
    let inner = folder.join("inner.img");
    shell(&format!(
        "truncate -s 8M {0}; mkfs.ext4 -q {0}",
        text(&inner)
    ));
    let disk = Loop::attach(&inner);
    let within = scratch.path("within");
    let _within = mount(&disk.0, &within, "rw");
    fs::write(within.join("os.img"), noise(1, 2 * MIB)).unwrap();
    for image in [
        image,
        link,
        elsewhere.join("os.img"),
        scratch.path("mnt/images/../images/os.img"),
        within.join("os.img"),
    ] {
        assert_refused(&image, text(&card.0), "holds the image");
    }
}

/// What a terminal makes of the key.
const CTRL_C: &str = "\u{3}";

/// Runs pishrink on a terminal and gives one answer when asked. Returns what was on the screen.
fn on_a_terminal(answer: &str, arguments: &[&str]) -> (Option<i32>, String) {
    const SCRIPT: &str = "
import os, pty, sys
pid, screen = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
seen, asked = b'', False
while True:
    try:
        data = os.read(screen, 4096)
    except OSError:
        break
    if not data:
        break
    seen += data
    if not asked and b'Type yes' in seen:
        os.write(screen, sys.argv[1].encode())
        asked = True
sys.stdout.buffer.write(seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let output: Output = Command::new("python3")
        .args([
            "-c",
            SCRIPT,
            &format!("{answer}{}", if answer == CTRL_C { "" } else { "\n" }),
            env!("CARGO_BIN_EXE_pishrink"),
        ])
        .args(arguments)
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), seen)
}

#[test]
fn who_is_asked_must_say_yes() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let (file, card) = pi_card(&scratch, "card.img");
    let before = fs::read(&file).unwrap();
    let arguments = ["flash", text(&image), text(&card.0), "--allow-any-device"];
    for answer in ["no", "", "yess"] {
        let (code, seen) = on_a_terminal(answer, &arguments);
        assert_eq!(code, Some(5), "{seen}");
        // What would be lost: the disk, its size, its volumes.
        for part in [text(&card.0), "67.1 MB", text(&part(&card, 2)), "57.7 MB"] {
            assert!(seen.contains(part), "{seen}");
        }
        assert!(seen.contains("nothing was written"), "{seen}");
        assert!(fs::read(&file).unwrap() == before);
    }
    // Nobody is asked about a card that is too small.
    let small = used_card(&scratch, "small", MIB);
    let words = ["flash", text(&image), text(&small), "--overwrite"];
    let (code, seen) = on_a_terminal("yes", &words);
    assert_eq!(code, Some(1), "{seen}");
    assert!(
        seen.contains("too small") && !seen.contains("Type yes"),
        "{seen}"
    );
    // A part of a card is no image of it, unless that is said.
    let (root, out) = (part(&card, 2), scratch.path("part.img"));
    let (code, errors) = refusal(&["capture", text(&root), text(&out)]);
    assert_eq!(code, 5, "{errors}");
    assert!(
        errors.contains(text(&card.0)) && errors.contains("--partition"),
        "{errors}"
    );
    let (code, said) = json(&["capture", text(&root), text(&out), "--partition"]);
    assert_eq!(code, 0, "{said:#}");
    // The first one ends it.
    let (code, seen) = on_a_terminal(CTRL_C, &arguments);
    assert_eq!(code, Some(130), "{seen}");
    assert!(seen.contains("nothing was written"), "{seen}");
    assert!(fs::read(&file).unwrap() == before);
    let (code, seen) = on_a_terminal("yes", &arguments);
    assert_eq!(code, Some(0), "{seen}");
    // Without a terminal there is nobody to say it.
    for more in [&[][..], &["--json"][..]] {
        let (code, errors) = refusal(&[&arguments[..], more].concat());
        assert_eq!(code, 5, "{errors}");
    }
}

#[test]
fn a_source_that_can_change_is_not_captured() {
    let scratch = Scratch::new("flash");
    let (_, card) = pi_card(&scratch, "card.img");
    let place = scratch.path("mnt");
    let image = scratch.path("out.img");
    let capture = ["capture", text(&card.0), text(&image)];
    let whole = mount(&part(&card, 2), &place, "rw");
    fs::write(place.join("new"), "written before\n").unwrap();
    tool("sync", &["-f", text(&place)]);
    let source = part(&card, 2);
    for source in [text(&card.0), text(&source)] {
        for command in [&["capture", source, text(&image)][..], &["inspect", source]] {
            let (code, errors) = refusal(command);
            assert_eq!(code, 5, "{command:?}: {errors}");
            assert!(errors.contains("can change while it is read"), "{errors}");
            assert!(errors.contains("--allow-mounted"), "{errors}");
        }
    }
    assert!(!image.exists());
    let (code, said) = json(&[&capture[..], &["--allow-mounted"]].concat());
    assert_eq!(code, 0, "{said:#}");
    assert_clean(&image, PI_ROOT);
    drop(whole);
    let _mounted = mount(&part(&card, 2), &place, "ro");
    let (code, said) = json(&[&capture[..], &["--force"]].concat());
    assert_eq!(code, 0, "{said:#}");
    assert_clean(&image, PI_ROOT);
}

#[test]
fn a_target_that_is_not_there() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let missing = scratch.path("newcard.img");
    let (code, errors) = refusal(&[
        "flash",
        text(&image),
        text(&missing),
        "--yes",
        "--overwrite",
    ]);
    assert_eq!(code, 1, "{errors}");
    for word in ["No such file", "pishrink devices", "--card-size"] {
        assert!(errors.contains(word), "{errors}");
    }
    assert!(!missing.exists());
}

/// A backup is not written over by who takes the image for the second word.
#[test]
fn a_file_that_exists_is_no_target_unless_that_is_said() {
    let scratch = Scratch::new("flash");
    let image = pi_image(&scratch, "x.img");
    let backup = used_card(&scratch, "backup.img", 80 * MIB);
    let card = Loop::attach(&used_card(&scratch, "card", 80 * MIB));
    let new = scratch.path("new.img");
    let (link, hard) = (scratch.path("link"), scratch.path("hard"));
    symlink(&image, &link).unwrap();
    fs::hard_link(&image, &hard).unwrap();
    let (image, backup_name, device) = (text(&image), text(&backup), text(&card.0));
    let (flash, capture) = (
        format!("pishrink flash {backup_name} {device}"),
        format!("pishrink capture {device} {backup_name}"),
    );
    let new_capture = format!("pishrink capture {device} {}", text(&new));
    let before = (fs::read(&backup).unwrap(), fs::read(&card.0).unwrap());
    for (arguments, words) in [
        (
            vec!["flash", image, backup_name],
            vec!["exists", "--overwrite"],
        ),
        (vec!["flash", image, device, backup_name], vec!["exists"]),
        (vec!["flash", device, backup_name], vec![&flash, &capture]),
        (
            vec!["flash", device, backup_name, "--overwrite"],
            vec![&flash],
        ),
        (vec!["flash", device, text(&new), backup_name], vec![&flash]),
        (vec!["flash", device, text(&new)], vec![&new_capture]),
        (
            vec!["flash", image, text(&link), "--overwrite"],
            vec!["image itself"],
        ),
        (
            vec!["flash", image, text(&hard), "--overwrite"],
            vec!["image itself"],
        ),
        (
            vec!["flash", image, "/dev/pishrink.img", "--card-size", "80MiB"],
            vec!["devices"],
        ),
    ] {
        let more: &[&str] = &["--yes", "--allow-any-device", "--no-bmap"];
        let (code, errors) = refusal(&[&arguments[..], more].concat());
        assert_eq!(code, 5, "{arguments:?}: {errors}");
        for words in words {
            assert!(errors.contains(words), "{arguments:?}: {errors}");
        }
    }
    for (arguments, words) in [
        (
            vec!["capture", backup_name, device],
            vec![&*flash, &capture],
        ),
        (vec!["capture", text(&new), device], vec![&new_capture]),
        (vec!["capture", backup_name, "/dev/stdout"], vec!["-"]),
        (
            vec!["capture", backup_name, "/dev/pishrink.img"],
            vec!["among the system's devices"],
        ),
        (
            vec!["verify", device, backup_name],
            vec!["pishrink verify", "image first"],
        ),
    ] {
        let (code, errors) = refusal(&arguments);
        assert_eq!(code, 5, "{arguments:?}: {errors}");
        for words in words {
            assert!(errors.contains(words), "{arguments:?}: {errors}");
        }
    }
    let of = format!("of={device}");
    let (code, errors) = refusal(&["flash", &format!("if={backup_name}"), &of, "bs=4M"]);
    assert_eq!(code, 2);
    assert!(errors.contains(&flash), "{errors}");
    assert!(!new.exists());
    assert!(before == (fs::read(&backup).unwrap(), fs::read(&card.0).unwrap()));
    // What belongs to the image, and what comes in by <.
    let sum = scratch.path("x.img.sha256");
    fs::write(&sum, "").unwrap();
    let words = [
        "flash",
        image,
        text(&sum),
        "--overwrite",
        "--yes",
        "--sha256",
    ];
    let (code, errors) = refusal(&[&words[..], &[&"0".repeat(64)]].concat());
    assert_eq!(code, 5, "{errors}");
    let output = Command::new(env!("CARGO_BIN_EXE_pishrink"))
        .args(["flash", "-", backup_name, "--overwrite", "--yes"])
        .stdin(fs::File::open(&backup).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(fs::read(&backup).unwrap() == before.0);
}
