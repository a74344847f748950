//! What the command line says and leaves behind when it is used in odd ways.

#[allow(dead_code)]
mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const MIB: u64 = 1 << 20;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(common::folder(name))
    }

    fn path(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.0.join(name.as_ref())
    }

    /// A small ext4 filesystem without a table.
    fn disk(&self, name: impl AsRef<OsStr>) -> PathBuf {
        let path = self.path(name);
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4"])
            .arg(&path)
            .arg("16M")
            .status();
        assert!(made.unwrap().success());
        path
    }

    fn names(&self) -> Vec<OsString> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
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
        for command in [
            "flash _ _ --yes",
            "capture _ _",
            "inspect _",
            "verify _",
            "expand _",
        ] {
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
    let disk = scratch.disk("disk.img");
    let made = Command::new("sh")
        .arg("-c")
        .arg("xz -0 -k disk.img && gzip -1 disk.img.xz && rm disk.img")
        .current_dir(&scratch.0)
        .status();
    assert!(made.unwrap().success());
    let said = pishrink(&words(
        "flash _ _ --yes",
        &[&scratch.path("disk.img.xz.gz"), &card],
    ));
    assert_eq!(said.code, 3);
    assert!(said.err.contains("packed as xz"), "{}", said.err);
    assert!(!disk.exists() && fs::read(&card).unwrap() == before);
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
        let source = scratch.disk("source");
        let with = |end: &[u8]| scratch.path(OsStr::from_bytes(&[name, end].concat()));
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
    let source = scratch.disk("source");
    let long = "x".repeat(240);
    for (place, code) in [
        ("missing/x.img.xz", 2),
        ("missing/", 2),
        (&*format!("{long}.img.xz"), 1),
    ] {
        let said = pishrink(&words("capture _ _", &[&source, &scratch.path(place)]));
        assert_eq!(said.code, code, "{place}: {}", said.err);
        assert!(!said.err.contains("checking"), "{place}: {}", said.err);
    }
    assert_eq!(scratch.names(), ["source"]);
}

#[test]
fn a_card_file_that_was_made_for_a_failed_run_goes_again() {
    let scratch = Scratch::new("cli-created");
    let image = scratch.disk("disk.img");
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
    assert_eq!(scratch.names(), ["disk.img"]);
    // One that was there before stays, whatever becomes of it.
    fs::write(&a, vec![0; MIB as usize]).unwrap();
    let said = pishrink(&words("flash _ _ --yes", &[&image, &a]));
    assert_eq!(said.code, 1, "{}", said.err);
    let said = pishrink(&words("flash _ _ --card-size 20MiB", &[&image, &b]));
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(scratch.names(), ["a", "b", "disk.img"]);
}
