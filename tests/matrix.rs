//! Captures on the generated filesystems of the matrix, judged by tools that share no code with us.
//!
//! They need root and loop devices. The judging itself is in proofs/make_matrix.py,
//! proofs/judge_matrix.py and proofs/mutate.py, which can be run by hand on single cases and, without
//! `--quick`, on all of them. `MATRIX_DIR` names a folder in which the filesystems are kept between runs;
//! `MATRIX_GROW=1` judges `pishrink expand` as well.

mod common;

use common::{folder, run_proof};

#[test]
fn matrix_quick() {
    let folder = folder("matrix");
    run_proof("make_matrix.py", &["--quick".as_ref(), folder.as_os_str()]);
    run_proof("judge_matrix.py", &["--quick".as_ref(), folder.as_os_str()]);
}

#[test]
fn judge_notices_every_way_of_being_wrong() {
    let folder = folder("judge");
    let case = "shared-xattr";
    run_proof(
        "make_matrix.py",
        &["--only".as_ref(), case.as_ref(), folder.as_os_str()],
    );
    run_proof(
        "judge_matrix.py",
        &[
            "--self-test".as_ref(),
            "--only".as_ref(),
            case.as_ref(),
            folder.as_os_str(),
        ],
    );
}

#[test]
fn damaged_filesystems_are_refused_or_captured_soundly() {
    let folder = folder("mutate");
    run_proof(
        "mutate.py",
        &[
            "--count".as_ref(),
            "120".as_ref(),
            "--work".as_ref(),
            folder.as_os_str(),
        ],
    );
}

#[test]
fn damaged_tables_are_refused_or_captured_soundly() {
    let folder = folder("mutate-tables");
    run_proof(
        "mutate_tables.py",
        &[
            "--count".as_ref(),
            "120".as_ref(),
            "--work".as_ref(),
            folder.as_os_str(),
        ],
    );
}
