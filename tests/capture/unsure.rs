//! File systems that fail at the end, or know no sync: a whole image stays. The failures are put in front
//! of the system's calls.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::cards::{self, Scratch, pishrink, run};

/// fsync, rename and ftruncate that fail as the environment says.
const FAILING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
static int failing(const char *name) {
    const char *code = getenv(name);
    if (code) errno = atoi(code);
    return code != 0;
}
int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    return failing("FSYNC") ? -1 : real(fd);
}
int fdatasync(int fd) { return fsync(fd); }
int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return failing("RENAME") ? -1 : real(from, to);
}
int ftruncate64(int fd, off64_t len) {
    int (*real)(int, off64_t) = dlsym(RTLD_NEXT, "ftruncate64");
    return len > 0xffffffffLL && failing("FTRUNCATE") ? -1 : real(fd, len);
}
"#;

struct Shim(PathBuf);

impl Shim {
    fn new(scratch: &Scratch) -> Self {
        let (source, library) = (scratch.path("failing.c"), scratch.path("failing.so"));
        fs::write(&source, FAILING).unwrap();
        let how = ["-shared", "-fPIC", "-o"].map(Path::new);
        run("cc", [&how[..], &[&library, &source]].concat());
        Self(library)
    }

    fn capture(&self, card: &Path, image: &Path, faults: &[(&str, &str)]) -> Output {
        let mut command = pishrink();
        command.arg("capture").args([card, image]);
        command.env("LD_PRELOAD", &self.0);
        command.envs(faults.iter().copied()).output().unwrap()
    }
}

#[test]
fn images_survive_a_file_system_that_knows_no_sync_or_fails_at_the_end() {
    let scratch = Scratch::new("unsure");
    let card = cards::mbr(&scratch);
    let shim = Shim::new(&scratch);
    let image = scratch.path("out.img.zst");
    let partial = scratch.path("out.img.zst.partial");
    let good = shim.capture(&card, &image, &[]);
    assert!(good.status.success(), "{good:?}");
    let expected = fs::read(&image).unwrap();
    // EINVAL, ENOTTY, ENOSYS, EOPNOTSUPP
    for code in ["22", "25", "38", "95"] {
        fs::remove_file(&image).unwrap();
        fs::remove_file(scratch.path("out.img.zst.bmap")).unwrap();
        let done = shim.capture(&card, &image, &[("FSYNC", code)]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(0), "{code}: {said}");
        assert!(
            said.contains("cannot tell when it is on the disk"),
            "{said}"
        );
        assert!(fs::read(&image).unwrap() == expected);
    }
    // EIO while it is synced, EPERM for its name.
    for fault in [("FSYNC", "5"), ("RENAME", "1")] {
        for name in ["out.img.zst", "out.img.zst.bmap"] {
            fs::remove_file(scratch.path(name)).unwrap();
        }
        let done = shim.capture(&card, &image, &[fault]);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        let whole = format!("{} is whole, but", partial.display());
        assert!(said.contains(&whole), "{said}");
        assert!(fs::read(&partial).unwrap() == expected);
        // What the message says to do.
        let verify = pishrink().arg("verify").arg(&partial).output().unwrap();
        assert!(verify.status.success(), "{verify:?}");
        fs::rename(&partial, &image).unwrap();
        fs::remove_file(scratch.path("out.img.zst.partial.sha256")).unwrap();
        fs::write(scratch.path("out.img.zst.bmap"), "").unwrap();
    }
}

#[test]
fn an_image_too_large_for_its_file_system_is_refused_before_the_card_is_read() {
    let scratch = Scratch::new("fat32");
    let shim = Shim::new(&scratch);
    // A swap area keeps its size.
    let card = scratch.path("card.img");
    let mut header = vec![0; 4096];
    header[1024] = 1;
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    fs::write(&card, header).unwrap();
    let file = fs::File::options().write(true).open(&card).unwrap();
    file.set_len(5 << 30).unwrap();
    let image = scratch.path("out.img");
    // EFBIG
    let done = shim.capture(&card, &image, &[("FTRUNCATE", "27")]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("takes no files of 4 GiB"), "{said}");
    assert!(said.contains(".img.xz"), "{said}");
    assert!(!image.exists() && !scratch.path("out.img.partial").exists());
}

#[test]
fn images_are_private_and_belong_to_who_called_sudo() {
    let scratch = Scratch::new("owner");
    let card = cards::mbr(&scratch);
    let image = scratch.path("out.img");
    let done = pishrink()
        .arg("capture")
        .args([&card, &image])
        .envs([("SUDO_UID", "1001"), ("SUDO_GID", "1002")])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    for name in ["out.img", "out.img.bmap"] {
        let meta = fs::metadata(scratch.path(name)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o600, "{name}");
        // The tests run as root.
        assert_eq!((meta.uid(), meta.gid()), (1001, 1002), "{name}");
    }
}
