use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use super::*;
use crate::error::ErrorKind;

/// A Mac that answers as it is told, and notes what it is asked.
#[derive(Default)]
struct Play {
    /// What open gives, one after the other, the last one for ever; 0 opens.
    opens: RefCell<Vec<i32>>,
    /// How often diskutil fails.
    diskutil_fails: Cell<u32>,
    /// Only force helps.
    held: bool,
    lock: i32,
    eject: i32,
    user: bool,
    authopen: Option<&'static str>,
    log: RefCell<Vec<String>>,
}

impl Play {
    fn note(&self, what: impl Into<String>) {
        self.log.borrow_mut().push(what.into());
    }

    fn log(&self) -> String {
        self.log.take().join(", ")
    }
}

/// Notes that it is closed.
struct Handle<'a>(&'a Play);

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        self.0.note("close");
    }
}

fn answer(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

impl<'a> System for &'a Play {
    type File = Handle<'a>;

    fn diskutil(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.note(arguments.join(" "));
        let left = self.diskutil_fails.get();
        self.diskutil_fails.set(left.saturating_sub(1));
        if left > 0 || (self.held && !arguments.contains(&"force")) {
            let said = "dissented by PID 7 (/usr/sbin/mds)";
            return Err(Error::new(ErrorKind::Io, said));
        }
        Ok(vec![])
    }

    fn open(&self, path: &Path, how: OpenAs) -> io::Result<Handle<'a>> {
        self.note(format!("open {} {}", path.display(), how.flags()));
        let mut opens = self.opens.borrow_mut();
        let code = match opens.len() {
            0 => 0,
            1 => opens[0],
            _ => opens.remove(0),
        };
        answer(code).map(|()| Handle(self))
    }

    fn authopen(&self, _: &Path, how: OpenAs) -> io::Result<Asked<Handle<'a>>> {
        self.note(format!("authopen -o {}", how.flags()));
        let said = self.authopen.unwrap_or_default().to_owned();
        let file = self.authopen.is_none().then(|| Handle(self));
        Ok(Asked { file, said })
    }

    fn lock(&self, _: &Handle, alone: bool) -> io::Result<()> {
        self.note(if alone { "lock" } else { "share" });
        answer(self.lock)
    }

    fn eject(&self, _: &Handle) -> io::Result<()> {
        self.note("eject");
        answer(self.eject)
    }

    fn is_root(&self) -> bool {
        !self.user
    }

    fn sleep(&self, time: Duration) {
        self.note(format!("{} ms", time.as_millis()));
    }
}

const WRITE: Access = Access::Write { direct: true };

fn disk() -> PathBuf {
    "/dev/rdisk4".into()
}

fn open_play(play: &Play, access: Access) -> Result<Vec<String>> {
    let unmount = || {
        play.note("unmount");
        Ok(())
    };
    open(&play, &disk(), access, true, &unmount).map(|(_, notes)| notes)
}

#[test]
fn unmounting_is_tried_again_and_forced_for_flash_only() {
    let commands = [("unmountDisk", "disk4".to_owned())];
    let unmount = |play: &Play, force| unmount(&play, &disk(), &commands, force);
    let play = Play::default();
    unmount(&play, true).unwrap();
    assert_eq!(play.log(), "unmountDisk disk4");
    play.diskutil_fails.set(1);
    unmount(&play, false).unwrap();
    assert_eq!(play.log(), "unmountDisk disk4, 1000 ms, unmountDisk disk4");
    let held = Play {
        held: true,
        ..Play::default()
    };
    unmount(&held, true).unwrap();
    let twice = "unmountDisk disk4, 1000 ms, unmountDisk disk4";
    assert_eq!(held.log(), format!("{twice}, unmountDisk force disk4"));
    let error = unmount(&held, false).unwrap_err();
    assert_eq!(held.log(), twice);
    assert_eq!(error.kind(), ErrorKind::Refused);
    // Who dissents is passed on.
    assert!(
        error.one_line().contains("/usr/sbin/mds"),
        "{}",
        error.one_line()
    );
}

#[test]
fn a_disk_is_opened_alone_in_both_directions() {
    let play = Play::default();
    assert!(open_play(&play, WRITE).unwrap().is_empty());
    assert_eq!(play.log(), "open /dev/rdisk4 38, lock, close");
    assert!(open_play(&play, Access::Read).unwrap().is_empty());
    assert_eq!(play.log(), "open /dev/rdisk4 36, share, close");
}

#[test]
fn a_disk_that_is_busy_is_unmounted_and_opened_again() {
    let play = Play::default();
    *play.opens.borrow_mut() = vec![EBUSY, EAGAIN, 0];
    open_play(&play, WRITE).unwrap();
    let again = "open /dev/rdisk4 38, 500 ms, unmount";
    assert_eq!(
        play.log(),
        format!("{again}, {again}, open /dev/rdisk4 38, lock, close")
    );
    // For ever: writing is refused.
    *play.opens.borrow_mut() = vec![EBUSY];
    let error = open_play(&play, WRITE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("in use"), "{error}");
    let waited = play.log().matches("500 ms").count();
    assert_eq!(waited, OPEN_TRIES as usize);
    // Reading does without.
    *play.opens.borrow_mut() = [vec![EBUSY; OPEN_TRIES as usize + 1], vec![0]].concat();
    let notes = open_play(&play, Access::Read).unwrap();
    assert!(notes[0].contains("another program"), "{notes:?}");
    assert!(play.log().ends_with("open /dev/rdisk4 0, share, close"));
    // Where it is not known.
    *play.opens.borrow_mut() = vec![ENOTSUP, 0];
    assert_eq!(open_play(&play, WRITE).unwrap().len(), 1);
    assert!(play.log().ends_with("open /dev/rdisk4 2, lock, close"));
}

#[test]
fn a_second_run_is_refused() {
    for access in [WRITE, Access::Read] {
        let play = Play {
            lock: EAGAIN,
            ..Play::default()
        };
        let error = open_play(&play, access).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("another pishrink"), "{error}");
    }
    let play = Play {
        lock: ENOTSUP,
        ..Play::default()
    };
    assert_eq!(open_play(&play, WRITE).unwrap().len(), 1);
}

#[test]
fn authopen_is_asked_and_heard() {
    let user = |said| Play {
        opens: RefCell::new(vec![EACCES]),
        user: true,
        authopen: said,
        ..Play::default()
    };
    let play = user(None);
    open_play(&play, WRITE).unwrap();
    assert_eq!(
        play.log(),
        "open /dev/rdisk4 38, authopen -o 38, lock, close"
    );
    for (said, kind, words) in [
        ("", ErrorKind::Refused, "permission was not given"),
        (
            "authopen: couldn't open /dev/rdisk4: Resource busy\n",
            ErrorKind::Refused,
            "in use",
        ),
        (
            "authopen: couldn't open /dev/rdisk4: Operation not permitted",
            ErrorKind::Io,
            "cannot open",
        ),
        (
            "authopen: the sky falls",
            ErrorKind::Refused,
            "the sky falls",
        ),
    ] {
        let play = user(Some(said));
        let error = open_play(&play, WRITE).unwrap_err();
        assert_eq!(error.kind(), kind, "{said}");
        assert!(error.one_line().contains(words), "{}", error.one_line());
        assert!(error.hint().is_some(), "{said}");
        let busy = said.contains("busy");
        assert_eq!(play.log().contains("500 ms, unmount"), busy, "{said}");
    }
}

#[test]
fn ejects_while_it_is_open_and_by_diskutil_else() {
    let eject = |play: &Play| super::eject(&play, Handle(play), "disk4");
    let play = Play::default();
    eject(&play).unwrap();
    assert_eq!(play.log(), "eject, close");
    let play = Play {
        eject: EBUSY,
        ..Play::default()
    };
    play.diskutil_fails.set(2);
    eject(&play).unwrap();
    let again = "eject disk4, 1000 ms";
    assert_eq!(
        play.log(),
        format!("eject, close, {again}, {again}, eject disk4")
    );
    play.diskutil_fails.set(3);
    let error = eject(&play).unwrap_err();
    assert!(error.to_string().contains("dissented"), "{error}");
}

#[test]
fn errors_say_what_helps() {
    let cases = [
        // errno, opening, root, kind, gone, words
        (EBUSY, true, true, ErrorKind::Refused, false, "Disk Utility"),
        (EBUSY, false, true, ErrorKind::Io, true, "pulled out"),
        (ENXIO, false, true, ErrorKind::Io, true, "pulled out"),
        (ENODEV, true, true, ErrorKind::Io, true, "pulled out"),
        (EPWROFF, false, true, ErrorKind::Io, true, "pulled out"),
        (EACCES, true, false, ErrorKind::Io, false, "sudo"),
        (EACCES, true, true, ErrorKind::Io, false, "write-protected"),
        (EROFS, true, true, ErrorKind::Io, false, "write-protected"),
        (EPERM, true, true, ErrorKind::Io, false, "Full Disk Access"),
        (
            EPERM,
            true,
            false,
            ErrorKind::Io,
            false,
            "Removable Volumes",
        ),
        (EIO, false, true, ErrorKind::Io, false, "another reader"),
        (EDEVERR, false, true, ErrorKind::Io, false, "another reader"),
        (
            ETIMEDOUT,
            false,
            true,
            ErrorKind::Io,
            false,
            "another reader",
        ),
    ];
    for (code, opening, root, kind, gone, words) in cases {
        let when = if opening {
            When::Opening
        } else {
            When::Request
        };
        let error = io::Error::from_raw_os_error(code);
        let error = explain(error, "read", &disk(), when, root);
        assert_eq!((error.kind(), error.is_gone()), (kind, gone), "{code}");
        assert!(error.hint().unwrap().contains(words), "{code}: {error:?}");
    }
    assert!(is_unready(&io::Error::from_raw_os_error(EBUSY)));
    assert!(!is_unready(&io::Error::from_raw_os_error(EIO)));
    let plain = |code| Error::io("creating x", io::Error::from_raw_os_error(code));
    assert!(
        advise(plain(EPERM))
            .hint()
            .unwrap()
            .contains("Full Disk Access")
    );
    assert_eq!(advise(plain(EACCES)).hint(), None);
    assert_eq!(advise(plain(EPERM).with_hint("x")).hint(), Some("x"));
}

#[test]
fn knows_where_a_file_system_was_mounted_from() {
    for (source, name) in [
        ("/dev/disk4s1", Some("disk4s1")),
        ("msdos://disk4s1/BOOTFS", Some("disk4s1")),
        ("exfat://disk5s2", Some("disk5s2")),
        ("//user@nas/share", None),
        ("map auto_home", None),
        ("smb://disk", None),
    ] {
        assert_eq!(mounted_from(source), name, "{source}");
    }
}
