//! A card that misbehaves: a file in a FUSE file system of the tests' own, badcard.py.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::scratch::Scratch;

/// A misbehaving card, mounted.
pub struct BadCard {
    server: Child,
    folder: PathBuf,
}

impl BadCard {
    /// Mounts a card of `len` bytes, old data at its start, with faults that badcard.py knows.
    pub fn mount(scratch: &Scratch, name: &str, len: u64, faults: &[&str]) -> Self {
        let (folder, backing) = (scratch.path(name), scratch.path(&format!("{name}.bin")));
        fs::write(&backing, vec![0xa5; len.min(8 << 20) as usize]).unwrap();
        let sized = File::options().write(true).open(&backing).unwrap();
        sized.set_len(len).unwrap();
        fs::create_dir(&folder).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/proofs/lib/badcard.py");
        let mut server = Command::new("python3")
            .arg(script)
            .args([&folder, &backing])
            .args(faults)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = server.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n", "FUSE is needed");
        Self { server, folder }
    }

    /// Returns the card's path.
    pub fn card(&self) -> PathBuf {
        self.folder.join("card")
    }
}

impl Drop for BadCard {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
