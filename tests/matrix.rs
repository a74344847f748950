//! Captures on the generated filesystems of the matrix, judged by tools that share no code with us.
//!
//! These take minutes, root and loop devices, so plain `cargo test` leaves them out:
//!
//!     cargo test --test matrix -- --ignored matrix_quick
//!
//! The judging itself is in scripts/make-matrix, scripts/judge-matrix and scripts/mutate, which can be run
//! by hand on single cases. `MATRIX_DIR` names a folder in which the filesystems are kept between runs;
//! `MATRIX_GROW=1` judges `pishrink expand` as well.

mod common;

use common::{folder, run_script};

#[test]
#[ignore = "two minutes, root and loop devices"]
fn matrix_quick() {
    let folder = folder("matrix");
    run_script("make-matrix", &["--quick".as_ref(), folder.as_os_str()]);
    run_script("judge-matrix", &["--quick".as_ref(), folder.as_os_str()]);
}

#[test]
#[ignore = "ten minutes, root and loop devices"]
fn matrix_whole() {
    let folder = folder("matrix");
    run_script("make-matrix", &[folder.as_os_str()]);
    run_script("judge-matrix", &[folder.as_os_str()]);
}

#[test]
#[ignore = "two minutes, root and loop devices"]
fn judge_notices_every_way_of_being_wrong() {
    let folder = folder("judge");
    let case = "shared-xattr";
    run_script(
        "make-matrix",
        &["--only".as_ref(), case.as_ref(), folder.as_os_str()],
    );
    run_script(
        "judge-matrix",
        &[
            "--self-test".as_ref(),
            "--only".as_ref(),
            case.as_ref(),
            folder.as_os_str(),
        ],
    );
}

#[test]
#[ignore = "a minute, root and loop devices"]
fn damaged_filesystems_are_refused_or_captured_soundly() {
    let folder = folder("mutate");
    run_script(
        "mutate",
        &[
            "--count".as_ref(),
            "400".as_ref(),
            "--work".as_ref(),
            folder.as_os_str(),
        ],
    );
}
