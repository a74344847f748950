//! What the black-box tests share: a scratch folder, and running the proofs that judge the binary.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the package.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of its own for a test, on the disk of the target folder; `MATRIX_DIR` keeps one between runs.
pub fn folder(name: &str) -> PathBuf {
    let folder = match std::env::var_os("MATRIX_DIR") {
        Some(kept) => PathBuf::from(kept).join(name),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
    };
    std::fs::create_dir_all(&folder).expect("the scratch folder can be made");
    folder
}

/// Runs one of `proofs/` on the binary of this build; its output is shown when the test fails.
///
/// The proofs need root, Python 3 and e2fsprogs, and say so: a missing oracle fails the test.
pub fn run_proof<A: AsRef<OsStr>>(script: &str, arguments: &[A]) {
    let output = Command::new(root().join("proofs").join(script))
        .args(arguments)
        .env("PISHRINK", env!("CARGO_BIN_EXE_pishrink"))
        .output()
        .expect("the script can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    println!("{said}{complained}");
    assert!(
        output.status.success(),
        "proofs/{script}: {}",
        output.status
    );
}
