//! Reads every name of an ext2/3/4 image through the crate `ext4-view` and prints one line for each:
//! path, type, mode, owner, mtime, size and SHA-256 of the contents, or the error met.
//!
//!     cargo run --example read-ext4 -- IMAGE
//!
//! A reader that shares no code with pishrink or the kernel. Of files above 16 MiB (sparse ones)
//! only the start is hashed: the crate seeks block by block. Exit code 2: the image cannot be opened at all.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use ext4_view::{Ext4, Ext4Error, FileType, Metadata, PathBuf};
use sha2::{Digest, Sha256};

const WHOLE: u64 = 16 << 20;
const START: u64 = 4 << 20;

fn main() -> ExitCode {
    let Some(image) = std::env::args_os().nth(1) else {
        eprintln!("usage: read-ext4 IMAGE");
        return ExitCode::from(2);
    };
    let fs = match Ext4::load_from_path(&image) {
        Ok(fs) => fs,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match list(&fs, &mut out).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn list(fs: &Ext4, out: &mut impl Write) -> io::Result<()> {
    let mut folders = vec![PathBuf::new("/")];
    while let Some(folder) = folders.pop() {
        let entries = match fs.read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                writeln!(out, "{}\terror {error}", folder.display())?;
                continue;
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    writeln!(out, "{}\terror in the directory: {error}", folder.display())?;
                    break;
                }
            };
            if matches!(entry.file_name().as_ref(), b"." | b"..") {
                continue;
            }
            let path = entry.path();
            let line = match describe(fs, &path) {
                Ok((line, is_dir)) => {
                    if is_dir {
                        folders.push(path.clone());
                    }
                    line
                }
                Err(error) => format!("error {error}"),
            };
            writeln!(out, "{}\t{line}", path.display())?;
        }
    }
    Ok(())
}

fn describe(fs: &Ext4, path: &PathBuf) -> Result<(String, bool), Ext4Error> {
    let meta = fs.symlink_metadata(path)?;
    let what = match meta.file_type() {
        FileType::Regular => format!("size={} sha256={}", meta.len(), digest(fs, path, &meta)?),
        FileType::Symlink => format!("target={}", fs.read_link(path)?.display()),
        other => format!("{other:?}"),
    };
    let line = format!(
        "mode={:o} owner={}:{} mtime={:?} {what}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.modified()
    );
    Ok((line, meta.is_dir()))
}

fn digest(fs: &Ext4, path: &PathBuf, meta: &Metadata) -> Result<String, Ext4Error> {
    let size = meta.len();
    let mut left = if size <= WHOLE { size } else { START };
    let mut file = fs.open(path)?;
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = file.read_bytes(&mut buffer[..wanted])?;
        if count == 0 {
            break;
        }
        sha.update(&buffer[..count]);
        left -= count as u64;
    }
    Ok(format!("{:x}", sha.finalize()))
}
