//! An image that is whole stays, whatever the file system does then.

use std::collections::BTreeMap;

use super::*;
use crate::capture::rescue::tests::{Card, small};
use crate::capture::{capture_resuming, plan};
use crate::ext4::test_image::Scratch;
use crate::progress::Silent;

/// The system's files, of which some requests fail.
#[derive(Default)]
pub(in crate::capture) struct TestFiles {
    /// What syncing a file whose name ends so gives.
    sync: Option<(&'static str, io::ErrorKind)>,
    synced: Option<Synced>,
    /// To what names nothing can be renamed.
    rename: &'static str,
    /// What cannot be created.
    create: &'static str,
    largest: Option<u64>,
    created: Mutex<BTreeMap<u64, PathBuf>>,
}

impl TestFiles {
    fn id(file: &File) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
    }
}

fn failure<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(5))
}

impl Files for TestFiles {
    fn create_new(&self, path: &Path) -> io::Result<File> {
        if !self.create.is_empty() && path.to_string_lossy().ends_with(self.create) {
            return failure();
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        let mut created = self.created.lock().unwrap();
        created.insert(Self::id(&file), path.to_owned());
        Ok(file)
    }

    fn make_sparse(&self, _file: &File) {}

    fn sync(&self, file: &File) -> io::Result<Synced> {
        let created = self.created.lock().unwrap();
        let path = created.get(&Self::id(file)).cloned().unwrap_or_default();
        match self.sync {
            Some((name, kind)) if path.to_string_lossy().ends_with(name) => Err(kind.into()),
            _ => Ok(self.synced.unwrap_or(Synced::Full)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.rename.is_empty() && to.to_string_lossy().ends_with(self.rename) {
            return failure();
        }
        fs::rename(from, to)
    }

    fn sync_folder(&self, _folder: &Path) {}

    fn can_hold(&self, _file: &File, len: u64) -> bool {
        self.largest.is_none_or(|largest| len <= largest)
    }
}

fn names(folder: &Scratch) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn capture_with(
    card: &Card,
    paths: &ImagePaths,
    codec: Codec,
    files: &TestFiles,
    progress: &dyn Progress,
) -> Result<Captured> {
    let disk = card.failing(&[]);
    let plan = plan(&disk, &small(), &Silent).unwrap();
    let options = RunOptions {
        codec,
        level: None,
        threads: 1,
        with_bmap: true,
    };
    capture_to_file(&plan, &disk, paths, &options, false, files, progress)
}

#[test]
fn a_whole_image_stays_when_it_cannot_be_synced_or_renamed() {
    let card = Card::new();
    for files in [
        TestFiles {
            sync: Some((".img.zst.partial", io::ErrorKind::PermissionDenied)),
            ..TestFiles::default()
        },
        TestFiles {
            sync: Some((".img.zst.partial", io::ErrorKind::StorageFull)),
            ..TestFiles::default()
        },
        TestFiles {
            rename: "x.img.zst",
            ..TestFiles::default()
        },
    ] {
        let folder = Scratch::folder();
        let paths = ImagePaths::new(folder.as_ref().join("x.img.zst"));
        let error = capture_with(&card, &paths, Codec::Zstd, &files, &Silent).unwrap_err();
        assert!(
            error.to_string().contains("x.img.zst.partial is whole"),
            "{error}"
        );
        assert!(
            error.hint().unwrap().contains("pishrink verify"),
            "{error:?}"
        );
        let kept = ["x.img.zst.partial", "x.img.zst.partial.sha256"];
        assert_eq!(names(&folder), kept);
        let image = fs::read(paths.partial()).unwrap();
        // The sum beside it is the file's own.
        let sum = fs::read_to_string(paths.partial_sum()).unwrap();
        let found = Scratch::file(&image).run("sha256sum", &[]);
        assert_eq!(sum[..64], found[..64]);
        assert!(sum.ends_with("  x.img.zst.partial\n"), "{sum}");
        // The same command again does not remove it.
        let again = TestFiles::default();
        let error = capture_with(&card, &paths, Codec::Zstd, &again, &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(fs::read(paths.partial()).unwrap() == image);
        // Nor does who stops it. (Those of other tests are listed there as well.)
        assert!(!unfinished().contains(&paths.partial()));
        assert_eq!(names(&folder), kept);
        fs::rename(paths.partial_sum(), folder.as_ref().join("away")).unwrap();
        capture_with(&card, &paths, Codec::Zstd, &again, &Silent).unwrap();
        assert!(fs::read(&paths.image).unwrap() == image);
    }
}

#[test]
fn an_image_has_its_name_even_if_its_map_cannot_be_written() {
    let card = Card::new();
    for files in [
        TestFiles {
            create: ".bmap.partial",
            ..TestFiles::default()
        },
        TestFiles {
            sync: Some((".bmap.partial", io::ErrorKind::StorageFull)),
            ..TestFiles::default()
        },
        TestFiles {
            rename: ".bmap",
            ..TestFiles::default()
        },
    ] {
        let folder = Scratch::folder();
        let paths = ImagePaths::new(folder.as_ref().join("x.img"));
        // One of an image before it never stays beside the new one.
        fs::write(&paths.bmap, "old").unwrap();
        let refused = capture_with(&card, &paths, Codec::Raw, &files, &Silent);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
        fs::remove_file(&paths.bmap).unwrap();
        let captured = capture_with(&card, &paths, Codec::Raw, &files, &Silent).unwrap();
        let error = captured.besides.unwrap();
        assert!(error.to_string().contains("x.img is whole"), "{error}");
        assert_eq!(names(&folder), ["x.img"]);
    }
}

/// Keeps what is told.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn event(&self, event: Event) -> Result<()> {
        if let Event::Note(text) = event {
            self.0.lock().unwrap().push(text);
        }
        Ok(())
    }
}

#[test]
fn where_no_sync_is_known_the_image_is_good_and_the_doubt_is_told() {
    let card = Card::new();
    for (synced, words) in [
        (Synced::Full, ""),
        (Synced::HandedOn, "empty its cache"),
        (Synced::Unknown, "cannot tell"),
    ] {
        let folder = Scratch::folder();
        let paths = ImagePaths::new(folder.as_ref().join("x.img.xz"));
        let files = TestFiles {
            synced: Some(synced),
            ..TestFiles::default()
        };
        let notes = Notes::default();
        let captured = capture_with(&card, &paths, Codec::Xz, &files, &notes).unwrap();
        assert!(captured.besides.is_none());
        assert_eq!(names(&folder), ["x.img.xz", "x.img.xz.bmap"]);
        let notes = notes.0.into_inner().unwrap().join("\n");
        assert_eq!(notes.is_empty(), words.is_empty(), "{notes}");
        assert!(notes.contains(words), "{notes}");
    }
}

#[test]
fn a_resumed_image_that_cannot_be_synced_goes_on_from_where_it_is() {
    let card = Card::new();
    let folder = Scratch::folder();
    let paths = ImagePaths::new(folder.as_ref().join("x.img"));
    let disk = card.failing(&[]);
    let plan = plan(&disk, &small(), &Silent).unwrap();
    let options = RunOptions {
        codec: Codec::Raw,
        level: None,
        threads: 1,
        with_bmap: true,
    };
    let failing = TestFiles {
        rename: "x.img",
        ..TestFiles::default()
    };
    let capture = |files| capture_resuming(&plan, &disk, &paths, &options, files, &Silent);
    let error = capture(&failing).unwrap_err();
    assert!(error.to_string().contains("is whole"), "{error}");
    let image = fs::read(paths.partial()).unwrap();
    capture(&TestFiles::default()).unwrap();
    assert!(fs::read(&paths.image).unwrap() == image);
    assert_eq!(names(&folder), ["x.img", "x.img.bmap"]);
}

#[test]
fn what_no_file_can_hold_is_refused_before_anything_is_read() {
    let folder = Scratch::folder();
    let paths = ImagePaths::new(folder.as_ref().join("x.img"));
    let fat = TestFiles {
        largest: Some(u64::from(u32::MAX)),
        ..TestFiles::default()
    };
    paths.check_length(&fat, u64::from(u32::MAX)).unwrap();
    let error = paths.check_length(&fat, 1 << 32).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.hint().unwrap().contains(".img.xz"), "{error:?}");
    paths.check_length(&TestFiles::default(), 1 << 40).unwrap();
    assert!(names(&folder).is_empty());
    let cause = io::Error::from(io::ErrorKind::FileTooLarge);
    let error = crate::capture::sink::writing(1 << 32, cause);
    assert!(error.hint().unwrap().contains(".img.xz"), "{error:?}");
}
