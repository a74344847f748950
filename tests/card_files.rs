//! Files that stand for cards, and what is neither file nor device: on every system, also under wine and
//! qemu (proofs/run-foreign).

#[path = "../src/scratch.rs"]
mod scratch;

use std::fs;
use std::path::Path;

use pishrink::device::{
    self, SourceOptions, Target, TargetOptions, create_card_file, is_same_file, open_source,
    open_target, resolve_target, target_holds,
};
use pishrink::error::ErrorKind;
use pishrink::io::{ReadAt, WriteAt};
use scratch::Scratch;

#[test]
fn a_card_file_is_created_sparse_and_never_over_another() {
    let scratch = Scratch::new("create");
    for size in [0, 1, 513] {
        let error = create_card_file(&scratch.path("odd"), size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
    let path = scratch.path("card.img");
    let before = device::free_space(scratch.folder()).unwrap();
    create_card_file(&path, 8_000_000_000).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 8_000_000_000);
    let after = device::free_space(scratch.folder()).unwrap();
    assert!(
        after > before.saturating_sub(4_000_000_000),
        "{before} {after}"
    );
    fs::write(&path, "mine").unwrap();
    assert_eq!(
        create_card_file(&path, 512).unwrap_err().kind(),
        ErrorKind::Refused
    );
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn a_card_file_is_written_exactly_and_by_one_only() {
    const LEN: usize = 4 << 20;
    let scratch = Scratch::new("write");
    let path = scratch.path("card.img");
    create_card_file(&path, LEN as u64).unwrap();
    let target = resolve_target(&path).unwrap();
    assert_eq!(target, Target::File(path.clone()));
    for direct in [true, false] {
        let open = open_target(&target, &TargetOptions { direct }).unwrap();
        assert_eq!((open.len(), open.info()), (LEN as u64, None));
        let mut expected = open.read_vec_at(0, LEN).unwrap();
        for (seed, (offset, len)) in [(0, LEN), (1, 1), (4095, 4098), (LEN - 1, 1), (9, 0)]
            .into_iter()
            .enumerate()
        {
            let bytes: Vec<u8> = (0..len)
                .map(|at| (at * 7 + seed) as u8 ^ u8::from(direct))
                .collect();
            open.write_all_at(offset as u64, &bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes);
        }
        if open.write_zeroes(70_000..1_200_001).unwrap() {
            expected[70_000..1_200_001].fill(0);
        }
        open.drop_cache().unwrap();
        assert!(open.read_vec_at(0, LEN).unwrap() == expected);
        assert!(!open.reread_table().unwrap());
        let error = open.write_all_at(LEN as u64 - 1, &[0; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsound);

        let error = open_target(&target, &TargetOptions { direct }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{}", error.one_line());
        drop(open);
        let source = open_source(&path, &SourceOptions::default()).unwrap();
        assert!(source.info().is_none());
        assert!(source.read_vec_at(3, LEN - 3).unwrap() == expected[3..]);
        assert_eq!(fs::metadata(&path).unwrap().len(), LEN as u64);
    }
}

#[test]
fn odd_and_empty_files() {
    let scratch = Scratch::new("odd");
    // A tail that direct I/O cannot write: written all the same, and told where it matters.
    let odd = scratch.path("odd.img");
    fs::write(&odd, vec![1; 5000]).unwrap();
    let open = open_target(&Target::File(odd.clone()), &TargetOptions::default()).unwrap();
    assert_eq!(
        open.notes().len(),
        usize::from(!cfg!(target_os = "macos")),
        "{:?}",
        open.notes()
    );
    open.write_all_at(4990, &[2; 10]).unwrap();
    open.drop_cache().unwrap();
    drop(open);
    assert_eq!(
        fs::read(&odd).unwrap()[4985..],
        [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    );

    let empty = scratch.path("empty");
    fs::write(&empty, "").unwrap();
    let error = open_target(&Target::File(empty), &TargetOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
}

#[test]
fn the_same_file_by_another_name() {
    let scratch = Scratch::new("same");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    fs::write(&a, "x").unwrap();
    fs::write(&b, "x").unwrap();
    let detour = scratch.path(".").join("a");
    let link = scratch.path("link");
    fs::hard_link(&a, &link).unwrap();
    for (other, same) in [(&a, true), (&detour, true), (&link, true), (&b, false)] {
        assert_eq!(
            is_same_file(&a, other).unwrap(),
            same,
            "{}",
            other.display()
        );
        assert_eq!(target_holds(&Target::File(a.clone()), other).unwrap(), same);
    }
    let missing = scratch.path("missing");
    assert!(!is_same_file(&a, &missing).unwrap());
    assert!(!is_same_file(&missing, &missing).unwrap());
}

#[test]
fn what_is_no_file_is_refused() {
    let scratch = Scratch::new("kinds");
    for path in [scratch.folder(), Path::new("-")] {
        let error = open_source(path, &SourceOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
    assert_eq!(
        resolve_target(scratch.folder()).unwrap_err().kind(),
        ErrorKind::Usage
    );
    let missing = scratch.path("missing");
    assert_eq!(
        open_source(&missing, &SourceOptions::default())
            .unwrap_err()
            .kind(),
        ErrorKind::Io
    );
    assert_eq!(resolve_target(&missing).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn disks_can_be_listed() {
    for info in device::list().unwrap() {
        assert!(!info.name.is_empty());
        assert!(!info.is_partition);
        assert!(info.logical_block.is_power_of_two());
    }
}
