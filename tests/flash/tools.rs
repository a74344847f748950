//! Folders, processes and images that the tests share.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub use crate::badcard::BadCard;
pub use crate::scratch::{Scratch, noise};

pub const MIB: u64 = 1 << 20;

/// Makes a file of `len` bytes of old data at its start, holes behind.
pub fn used_card(scratch: &Scratch, name: &str, len: u64) -> PathBuf {
    let path = scratch.path(name);
    let file = File::create(&path).unwrap();
    file.set_len(len).unwrap();
    let old = vec![0xa5; len.min(8 * MIB) as usize];
    file.write_all_at(&old, 0).unwrap();
    path
}

/// A loop device over a file.
pub struct Loop(pub PathBuf);

impl Loop {
    pub fn attach(file: &Path) -> Self {
        let options = ["--show", "-f", "-P", "--direct-io=on", text(file)];
        Self(tool("losetup", &options).trim().into())
    }

    /// Over a file that cannot be read past the cache.
    pub fn attach_plainly(file: &Path) -> Self {
        Self(tool("losetup", &["--show", "-f", text(file)]).trim().into())
    }

    /// Has the partitions appear; some kernels leave that to tools.
    pub fn show_partitions(&self) {
        let first = format!("{}p1", text(&self.0));
        let device = text(&self.0);
        shell(&format!(
            "udevadm settle 2>/dev/null || sleep 0.2; test -e {first} || partx -a {device}"
        ));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("partx").arg("-d").arg(&self.0).output();
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a tool that must succeed; returns what it printed.
pub fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name} is needed: {error}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {printed}{errors}"
    );
    printed
}

/// Runs a line of shell that must succeed.
pub fn shell(line: &str) -> String {
    tool("bash", &["-ec", line])
}

pub fn pishrink(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pishrink"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs pishrink with --json; returns the exit code and the result.
pub fn json(arguments: &[&str]) -> (i32, Value) {
    let output = pishrink(&[arguments, &["--json"]].concat());
    let printed = String::from_utf8_lossy(&output.stdout);
    let object = serde_json::from_str(&printed).unwrap_or_else(|error| {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{arguments:?} gave no JSON ({error}): {printed}{errors}")
    });
    (output.status.code().unwrap(), object)
}

/// Flashes one card that must end up good; returns what is said of it.
pub fn flash(image: &str, target: &Path, more: &[&str]) -> Value {
    let arguments = [
        &["flash", image, text(target), "--yes", "--overwrite"],
        more,
    ]
    .concat();
    let (code, object) = json(&arguments);
    assert_eq!(code, 0, "{object:#}");
    let card = object["cards"][0].clone();
    assert_eq!(card["complete"], true, "{object:#}");
    card
}

/// Exit code and text of a run that must fail.
pub fn refusal(arguments: &[&str]) -> (i32, String) {
    let output = pishrink(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    (output.status.code().unwrap(), errors)
}

pub fn read(path: &Path, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, start)
        .unwrap();
    bytes
}

/// Checks the filesystem that begins at byte `start`.
pub fn assert_clean(disk: &Path, start: u64) {
    tool(
        "e2fsck",
        &["-fn", &format!("{}?offset={start}", text(disk))],
    );
}

/// Bytes of the filesystem that begins at byte `start`.
pub fn ext_len(disk: &Path, start: u64) -> u64 {
    let place = format!("{}?offset={start}", text(disk));
    let printed = tool("dumpe2fs", &["-h", &place]);
    let field = |name: &str| -> u64 {
        let line = printed.lines().find(|line| line.starts_with(name));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    field("Block count:") * field("Block size:")
}

/// Puts an ext filesystem with some files at byte `start` of a disk.
pub fn put_ext(scratch: &Scratch, disk: &Path, start: u64, len: u64, options: &str) {
    let tree = scratch.path("tree");
    if !tree.exists() {
        fs::create_dir_all(tree.join("folder")).unwrap();
        fs::write(tree.join("hello"), "hello\n").unwrap();
        fs::write(tree.join("folder/noise"), noise(1, 3 * MIB)).unwrap();
    }
    shell(&format!(
        "mkfs.ext4 -q -F {options} -E offset={start} -d {} {} {}k",
        text(&tree),
        text(disk),
        len / 1024
    ));
}

/// A Raspberry Pi style image of 64 MiB: FAT at 1 MiB, ext4 at 9 MiB.
pub fn pi_image(scratch: &Scratch, name: &str) -> PathBuf {
    let image = scratch.path(name);
    shell(&format!(
        "truncate -s 64M {image}
         printf 'label: dos\\nstart=2048,size=16384,type=c\\nstart=18432,type=83\\n' | sfdisk -q {image}
         mkfs.vfat -n BOOT --offset 2048 {image} 8192 >/dev/null",
        image = text(&image)
    ));
    put_ext(scratch, &image, PI_ROOT, 55 * MIB, "");
    image
}

/// Where the root filesystem of [`pi_image`] begins.
pub const PI_ROOT: u64 = 9 * MIB;
