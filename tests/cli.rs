//! What the command line says and leaves behind when it is used in odd ways.

#![cfg(target_os = "linux")]

#[path = "../src/scratch.rs"]
mod scratch;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scratch::Scratch;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A small ext4 filesystem without a table.
fn disk(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&path)
        .arg("16M")
        .stdout(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    path
}

fn names(scratch: &Scratch) -> Vec<OsString> {
    let entries = fs::read_dir(scratch.folder()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn pishrink<A: AsRef<OsStr>>(arguments: &[A]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_pishrink"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Said {
        code: output.status.code().expect("it ends by itself"),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn words<'a>(command: &'a str, paths: &[&'a Path]) -> Vec<&'a OsStr> {
    let mut paths = paths.iter();
    command
        .split_whitespace()
        .map(|word| match word {
            "_" => paths.next().unwrap().as_os_str(),
            word => OsStr::new(word),
        })
        .collect()
}

#[test]
fn json_is_one_object_also_when_the_arguments_are_wrong() {
    for (arguments, code) in [
        ("--json capture", 2),
        ("flash a b --sha256 12 --json", 2),
        ("inspect /nonexistent --json", 1),
        ("capture a b --json --force-raw", 2),
    ] {
        let said = pishrink(&words(arguments, &[]));
        assert_eq!(said.code, code, "{arguments}");
        let object: Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(object["error"]["code"], code, "{arguments}");
        assert!(!said.err.is_empty());
    }
    // Not asked for: nothing on standard output.
    assert_eq!(pishrink(&["capture", "--", "--json"]).out, "");
    assert_eq!(pishrink(&["--help"]).code, 0);
}

#[test]
fn what_is_no_image_of_a_disk_reaches_no_card() {
    let scratch = Scratch::new("cli-foreign");
    let card = scratch.path("card");
    let before = vec![0x5a; 4 * MIB as usize];
    fs::write(&card, &before).unwrap();
    let padded = |begin: &[u8]| [begin, &vec![0; 100_000]].concat();
    let mut tar = padded(b"octopi.img");
    tar[257..262].copy_from_slice(b"ustar");
    for (name, bytes, what) in [
        ("a.qcow2", padded(b"QFI\xfb\0\0\0\x03"), "qcow2"),
        ("a.img", padded(b"<!DOCTYPE html><html>log in"), "web page"),
        ("a.tar", tar, "tar archive"),
        ("a.txt", b"hello".to_vec(), "only 5 bytes"),
    ] {
        let file = scratch.path(name);
        fs::write(&file, bytes).unwrap();
        let out = scratch.path("out.img.zst");
        let all = [
            "flash _ _ --yes --overwrite",
            "verify _",
            "capture _ _",
            "inspect _",
            "expand _",
        ];
        // Short things are no cards, but may be kept: nothing is lost by that.
        let commands = match name {
            "a.txt" => &all[..2],
            _ => &all[..],
        };
        for command in commands {
            let paths = match command.starts_with("flash") {
                true => [&*file, &card],
                false => [&*file, &out],
            };
            let said = pishrink(&words(command, &paths));
            assert_eq!(said.code, 3, "{command} {name}: {}", said.err);
            let told = said.out + &said.err;
            assert!(told.contains(what), "{command} {name}: {told}");
        }
        assert!(!out.exists());
        assert!(fs::read(&card).unwrap() == before, "{name}");
    }
    // Packed twice.
    let image = disk(&scratch, "disk.img");
    let made = Command::new("sh")
        .arg("-c")
        .arg("xz -0 -k disk.img && gzip -1 disk.img.xz && rm disk.img")
        .current_dir(scratch.folder())
        .status();
    assert!(made.unwrap().success());
    let said = pishrink(&words(
        "flash _ _ --yes --overwrite",
        &[&scratch.path("disk.img.xz.gz"), &card],
    ));
    assert_eq!(said.code, 3);
    assert!(said.err.contains("packed as xz"), "{}", said.err);
    assert!(!image.exists() && fs::read(&card).unwrap() == before);
}

#[test]
fn names_that_are_no_text_work_throughout() {
    let scratch = Scratch::new("cli-names");
    for name in [
        &b"odd\xff\xfe"[..],
        b"two\nlines \"quoted\" 'x'",
        b"esc\x1b[31m",
        b"-dash",
    ] {
        let source = disk(&scratch, "source");
        let with = |end: &[u8]| {
            let name = [name, end].concat();
            scratch.folder().join(OsStr::from_bytes(&name))
        };
        let (image, card) = (with(b".img.zst"), with(b".card"));
        for command in [
            "capture -- _ _",
            "verify -- _",
            "flash --card-size 24MiB -- _ _",
            "verify -- _ _",
            "expand -- _",
            "inspect -- _",
        ] {
            let paths: &[&Path] = match command {
                "capture -- _ _" => &[&source, &image],
                "verify -- _" => &[&image],
                "expand -- _" | "inspect -- _" => &[&card],
                _ => &[&image, &card],
            };
            let json = command.replace("--", "--json --");
            let command = match command.contains("--card-size") {
                true => "flash --json --card-size 24MiB -- _ _",
                false => &json,
            };
            let said = pishrink(&words(command, paths));
            assert_eq!(said.code, 0, "{command} {name:?}: {}", said.err);
            serde_json::from_str::<Value>(&said.out).unwrap();
        }
        let said = pishrink(&words("verify -- _", &[&image]));
        assert_eq!(said.out.lines().count(), 1, "{}", said.out);
        assert!(!said.out.contains('\x1b'));
    }
}

#[test]
fn where_the_image_cannot_go_is_found_before_the_source_is_read() {
    let scratch = Scratch::new("cli-places");
    let source = disk(&scratch, "source");
    let long = "x".repeat(240);
    for (place, code) in [
        ("missing/x.img.xz", 1),
        ("missing/", 2),
        (&*format!("{long}.img.xz"), 1),
    ] {
        let said = pishrink(&words("capture _ _", &[&source, &scratch.path(place)]));
        assert_eq!(said.code, code, "{place}: {}", said.err);
        assert!(!said.err.contains("checking"), "{place}: {}", said.err);
    }
    assert_eq!(names(&scratch), ["source"]);
}

#[test]
fn a_card_file_that_was_made_for_a_failed_run_goes_again() {
    let scratch = Scratch::new("cli-created");
    let image = disk(&scratch, "disk.img");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let too_small = pishrink(&words("flash _ _ --card-size 1MiB", &[&image, &a]));
    assert_eq!(too_small.code, 1, "{}", too_small.err);
    let twice = pishrink(&words("flash _ _ _ --card-size 20MiB", &[&image, &a, &a]));
    assert_eq!(twice.code, 5, "{}", twice.err);
    let wish = pishrink(&words(
        "flash _ _ --card-size 20MiB --expand 1GB",
        &[&image, &b],
    ));
    assert_eq!(wish.code, 1);
    assert!(wish.err.contains("1000000000 bytes"), "{}", wish.err);
    assert_eq!(names(&scratch), ["disk.img"]);
    // One that was there before stays, whatever becomes of it.
    fs::write(&a, vec![0; MIB as usize]).unwrap();
    let said = pishrink(&words("flash _ _ --yes --overwrite", &[&image, &a]));
    assert_eq!(said.code, 1, "{}", said.err);
    let said = pishrink(&words("flash _ _ --card-size 20MiB", &[&image, &b]));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(names(&scratch), ["a", "b", "disk.img"]);
}

#[test]
fn a_pipe_is_an_image_like_standard_input() {
    let scratch = Scratch::new("cli-pipe");
    let image = disk(&scratch, "disk.img");
    let made = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "xz -0 -k {0} && {1} flash <(xz -dc {0}.xz) {2} --card-size 20MiB --json",
            image.display(),
            env!("CARGO_BIN_EXE_pishrink"),
            scratch.path("card").display()
        ))
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let object: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(object["cards"][0]["verified"], true);
}

#[test]
fn a_dumb_terminal_gets_lines_and_no_image() {
    let scratch = Scratch::new("cli-terminal");
    let image = disk(&scratch, "disk.img");
    let on_terminal = |term: &str, words: &str| {
        let output = Command::new("script")
            .args([
                "-qec",
                &format!("stty cols 20; {} {words}", env!("CARGO_BIN_EXE_pishrink")),
            ])
            .arg("/dev/null")
            .env("TERM", term)
            .stdin(Stdio::null())
            .output()
            .expect("util-linux's script is there");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let capture = format!("capture {} {}.out.img", image.display(), image.display());
    let (code, said) = on_terminal("dumb", &capture);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("\ncapturing ") && !said.contains('\x1b'),
        "{said}"
    );
    let (code, said) = on_terminal("xterm", &format!("{capture} --force"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains('\x1b'), "{said}");
    let (code, said) = on_terminal("xterm", &format!("capture {} -", image.display()));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("terminal"), "{said}");
}

/// A block of xz takes a minute on a slow machine; nobody waits for it who pressed Ctrl-C.
#[test]
fn packing_stops_at_once() {
    let scratch = Scratch::new("cli-stop");
    let source = disk(&scratch, "source");
    // Long enough for some blocks, and slow to pack.
    let text: Vec<u8> = (0u32..)
        .flat_map(|number| format!("{:x} ", number.wrapping_mul(2_654_435_761) >> 7).into_bytes())
        .take(150 * MIB as usize)
        .collect();
    fs::write(&source, text).unwrap();
    let image = scratch.path("x.img.xz");
    let child = Command::new(env!("CARGO_BIN_EXE_pishrink"))
        .args(words(
            "capture _ _ --no-shrink --force-raw --level 9 --threads 1 --quiet",
            &[&source, &image],
        ))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let begun = std::time::Instant::now();
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    // Before it, that the signal was heard.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.ends_with("pishrink: stopped\n"), "{said}");
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    assert_eq!(names(&scratch), ["source"]);
}

#[test]
fn a_device_that_stands_for_the_image_is_no_target() {
    let scratch = Scratch::new("cli-loop");
    let image = disk(&scratch, "disk.img");
    let attached = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(&image)
        .output()
        .unwrap();
    let device = PathBuf::from(String::from_utf8_lossy(&attached.stdout).trim());
    let said = pishrink(&words(
        "flash _ _ --yes --allow-any-device",
        &[&image, &device],
    ));
    let detached = Command::new("losetup").arg("-d").arg(&device).status();
    assert!(detached.unwrap().success());
    assert_eq!(said.code, 5, "{}", said.err);
    assert!(said.err.contains("disk.img"), "{}", said.err);
}

#[test]
fn words_that_people_type_are_understood() {
    let scratch = Scratch::new("cli-words");
    let (image, out, card) = (
        disk(&scratch, "disk.img"),
        scratch.path("out.img.zst"),
        scratch.path("card"),
    );
    let said = pishrink(&words("backup _ _ --json-progress", &[&image, &out]));
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("next: pishrink flash "), "{}", said.out);
    // Nothing else on standard error.
    let told: Vec<Value> = said
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{}", said.err)))
        .collect();
    let capturing = told.iter().find(|object| object["phase"] == "capturing");
    let capturing = capturing.unwrap_or_else(|| panic!("{}", said.err));
    assert_eq!(capturing["event"], "progress");
    assert!(capturing["total_bytes"].as_u64() > Some(0));
    for command in ["write", "restore"] {
        let line = format!("{command} _ _ --card-size 24MiB --verbose");
        let said = pishrink(&words(&line, &[&out, &card]));
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.err.contains("using the block map"), "{}", said.err);
        fs::remove_file(&card).unwrap();
    }
    assert_eq!(pishrink(&["list"]).code, 0);
    assert!(pishrink(&["version"]).out.starts_with("pishrink "));
    let said = pishrink(&words("flash _ _ --card-size 16", &[&out, &card]));
    assert_eq!(said.code, 2);
    assert!(said.err.contains("16GB"), "{}", said.err);
}
