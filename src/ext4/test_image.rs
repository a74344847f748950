//! For tests: image files for the tools that serve as oracles. A tool that is missing fails the
//! test.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::io::is_zero;

const PAGE: usize = 4096;

/// A file or folder for one test, gone when the test is over.
pub struct Scratch(PathBuf);

impl Scratch {
    fn path() -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("pishrink-test-{}-{count}", std::process::id()))
    }

    /// A file with these bytes; zeros are holes.
    pub fn file(bytes: &[u8]) -> Self {
        let path = Self::path();
        let mut file = fs::File::create(&path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            if !is_zero(page) {
                let at = SeekFrom::Start((index * PAGE) as u64);
                file.seek(at).and_then(|_| file.write_all(page)).unwrap();
            }
        }
        Self(path)
    }

    pub fn folder() -> Self {
        let path = Self::path();
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs `tool` with `args` and the path behind them; returns its exit code and output.
    pub fn ask(&self, tool: &str, args: &[&str]) -> (i32, String) {
        let output = Command::new(tool).args(args).arg(&self.0).output();
        let output = output.unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    /// The same; it has to succeed.
    pub fn run(&self, tool: &str, args: &[&str]) -> String {
        let (code, text) = self.ask(tool, args);
        assert_eq!(code, 0, "{tool} {args:?}: {text}");
        text
    }

    pub fn read(&self) -> Vec<u8> {
        fs::read(&self.0).unwrap()
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = if self.0.is_dir() {
            fs::remove_dir_all(&self.0)
        } else {
            fs::remove_file(&self.0)
        };
    }
}

/// Makes an ext4 filesystem of `len` bytes in blocks of 1 KiB.
pub fn mke2fs(len: u64, args: &[&str]) -> Vec<u8> {
    let file = Scratch::file(&[]);
    let sized = fs::OpenOptions::new().write(true).open(&file).unwrap();
    sized.set_len(len).unwrap();
    let common = ["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1"];
    file.run("mke2fs", &[&common[..], args].concat());
    file.read()
}
