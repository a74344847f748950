//! Cards, a misbehaving device, and what pishrink says.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::badcard::BadCard;
use crate::scratch;

pub const MIB: u64 = 1 << 20;

/// Where the root filesystem of [`card`] begins.
pub const ROOT: u64 = 9 * MIB;

/// A folder of a test's own, its paths as text.
pub struct Scratch(scratch::Scratch);

impl Scratch {
    pub fn new(name: &str) -> Self {
        Self(scratch::Scratch::new(name))
    }

    pub fn path(&self, name: &str) -> String {
        text(self.0.path(name))
    }

    /// Mounts a card that misbehaves; returns its path as well.
    pub fn bad_card(&self, name: &str, len: u64, fault: &str) -> (BadCard, String) {
        let bad = BadCard::mount(&self.0, name, len, &[fault]);
        let path = text(bad.card());
        (bad, path)
    }

    /// Makes an empty card as a file.
    pub fn blank(&self, name: &str, len: u64) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    /// Makes a used card of 64 MiB: FAT at 1 MiB, ext4 at 9 MiB, files at the very end of it.
    pub fn card(&self, name: &str) -> String {
        self.card_of(
            name,
            "start=2048,size=16384,type=c\\nstart=18432,type=83\\n",
            55,
        )
    }

    /// Makes such a card with other partitions; the root gets so many MiB.
    pub fn card_of(&self, name: &str, table: &str, root_mib: u64) -> String {
        let (card, tree) = (self.blank(name, 64 * MIB), self.path("tree"));
        if fs::create_dir(&tree).is_ok() {
            fs::write(format!("{tree}/notes"), noise(2 * MIB)).unwrap();
        }
        let tail = self.path("tail");
        fs::write(&tail, noise(MIB)).unwrap();
        let (fill, fill_mib) = (self.path("fill"), root_mib * 7 / 10);
        File::create(&fill)
            .unwrap()
            .write_all_at(&noise(fill_mib * MIB), 0)
            .unwrap();
        shell(&format!(
            "printf 'label: dos\\nlabel-id: 0x1234abcd\\n{table}' | sfdisk -q {card}
             mkfs.vfat -n BOOT --offset 2048 {card} 4096 >/dev/null
             mkfs.ext4 -q -F -L rootfs -E offset={ROOT} -d {tree} {card} {root_mib}M
             printf 'write {fill} fill\\nwrite {tail} tail\\nrm fill\\n' |
                 debugfs -w -f - '{card}?offset={ROOT}' >/dev/null 2>&1
             rm {fill}; e2fsck -fn '{card}?offset={ROOT}' >/dev/null 2>&1"
        ));
        card
    }
}

/// What a run of pishrink said.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Holds a run that must fail against its exit code and the parts of its message: what happened,
    /// where, and what to do next, all in one line that begins with the program's name.
    #[track_caller]
    pub fn complains(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        let lines: Vec<_> = self
            .err
            .lines()
            .filter(|line| line.starts_with("pishrink: "))
            .collect();
        assert_eq!(lines.len(), 1, "one line, please: {}", self.err);
        assert_eq!(self.err.lines().last(), Some(lines[0]), "it comes last");
        for part in parts {
            assert!(lines[0].contains(part), "{part:?} is not in: {}", lines[0]);
        }
        // Words of programmers.
        for word in ["panicked", "Error {", "unwrap", "errno", "None", "Some("] {
            assert!(!self.err.contains(word), "{word:?} is in: {}", self.err);
        }
    }

    /// Holds a run that must succeed against parts of what it prints.
    #[track_caller]
    pub fn tells(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        for part in parts {
            assert!(self.out.contains(part), "{part:?} is not in: {}", self.out);
        }
    }
}

pub fn pishrink(words: &[&str]) -> Said {
    outcome(Command::new(env!("CARGO_BIN_EXE_pishrink")).args(words))
}

/// A folder that everybody reaches, wherever this clone lies, with a copy of the program in it.
pub struct Public(PathBuf);

impl Public {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pishrink-{name}-{}", std::process::id()));
        let path = folder.to_str().unwrap();
        shell(&format!(
            "mkdir {path}; chmod 755 {path}; mkdir -m 777 {path}/home"
        ));
        let program = env!("CARGO_BIN_EXE_pishrink");
        shell(&format!("install -m 755 {program} {path}/pishrink"));
        Self(folder)
    }

    /// Returns the path of a file in the folder; `home` is anybody's.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Runs pishrink as somebody who may nothing.
    pub fn pishrink_as_nobody(&self, words: &[&str]) -> Said {
        let identity = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(identity).arg(self.path("pishrink"));
        outcome(command.args(words).current_dir(&self.0))
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn outcome(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Said {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// Runs a line of shell that must succeed; returns what it printed.
#[track_caller]
pub fn shell(line: &str) -> String {
    let done = outcome(Command::new("bash").args(["-eo", "pipefail", "-c", line]));
    assert_eq!(done.code, Some(0), "{line}: {}{}", done.out, done.err);
    done.out
}

/// A loop device over a file.
pub struct Loop(pub String);

impl Loop {
    pub fn attach(file: &str) -> Self {
        Self(
            shell(&format!("losetup --show -fP {file}"))
                .trim()
                .to_owned(),
        )
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = outcome(Command::new("partx").args(["-d", &self.0]));
        let _ = outcome(Command::new("losetup").args(["-d", &self.0]));
    }
}

/// Noise that is always the same.
/// Noise with a partition table, so that it may be the image of a disk.
pub fn noise_disk(len: u64) -> Vec<u8> {
    let mut bytes = noise(len);
    bytes[446..510].fill(0);
    bytes[450] = 0x83;
    bytes[454..458].copy_from_slice(&2048u32.to_le_bytes());
    let sectors = (len / 512 - 2048) as u32;
    bytes[458..462].copy_from_slice(&sectors.to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

pub fn noise(len: u64) -> Vec<u8> {
    scratch::noise(1, len)
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

pub fn len(path: &str) -> u64 {
    fs::metadata(path).unwrap().len()
}

pub fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// Overwrites a few bytes.
pub fn patch(path: &str, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}
