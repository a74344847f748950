//! Names that the host can hold.

/// Whose names they have to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    Linux,
    /// Names are text.
    Mac,
    /// Some characters and names mean something else.
    Windows,
}

/// The host that this program runs on.
pub const HOST: Host = if cfg!(windows) {
    Host::Windows
} else if cfg!(target_os = "macos") {
    Host::Mac
} else {
    Host::Linux
};

/// Makes a name one of a single file in a folder of the host: neither a path nor a way up.
pub fn mended(name: &[u8], host: Host) -> Vec<u8> {
    let mut name = match host {
        Host::Linux => name.to_vec(),
        Host::Mac | Host::Windows => String::from_utf8_lossy(name)
            .replace('\u{fffd}', "_")
            .into_bytes(),
    };
    let is_bad = |byte: u8| match host {
        Host::Linux | Host::Mac => matches!(byte, b'/' | 0),
        Host::Windows => byte < b' ' || b"<>:\"/\\|?*".contains(&byte),
    };
    for byte in &mut name {
        if is_bad(*byte) {
            *byte = b'_';
        }
    }
    if matches!(&name[..], b"" | b"." | b"..") {
        name = vec![b'_'; name.len().max(1)];
    }
    if host == Host::Windows {
        // Windows leaves these away, and takes the name for another.
        if let Some(last) = name.last_mut().filter(|last| matches!(last, b'.' | b' ')) {
            *last = b'_';
        }
        if is_reserved(&name) {
            name.insert(0, b'_');
        }
    }
    name
}

/// Is it the name of a device, with or without an extension?
fn is_reserved(name: &[u8]) -> bool {
    let stem = name.split(|&byte| byte == b'.').next().unwrap_or_default();
    let stem = stem.trim_ascii_end().to_ascii_uppercase();
    matches!(&stem[..], b"CON" | b"PRN" | b"AUX" | b"NUL")
        || matches!(
            &stem[..],
            [b'C', b'O', b'M', b'0'..=b'9'] | [b'L', b'P', b'T', b'0'..=b'9']
        )
}

/// Returns a name for the `number`th file of that name: `a.cfg`, `a~2.cfg`, `a~3.cfg`.
pub fn numbered(name: &[u8], number: u32) -> Vec<u8> {
    if number <= 1 {
        return name.to_vec();
    }
    let dot = name
        .iter()
        .rposition(|&byte| byte == b'.')
        .filter(|&at| at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    [stem, format!("~{number}").as_bytes(), extension].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_a_path() {
        for (name, linux, windows) in [
            (&b"printer.cfg"[..], &b"printer.cfg"[..], "printer.cfg"),
            (b"..", b"__", "__"),
            (b"../../etc/x", b".._.._etc_x", ".._.._etc_x"),
            (b"", b"_", "_"),
            (b"a\0b", b"a_b", "a_b"),
            (b"C:\\x", b"C:\\x", "C__x"),
            (b"con", b"con", "_con"),
            (b"Lpt1.txt", b"Lpt1.txt", "_Lpt1.txt"),
            (b"end. ", b"end. ", "end._"),
            (b"gr\xfcn", b"gr\xfcn", "gr_n"),
        ] {
            assert_eq!(mended(name, Host::Linux), linux);
            assert_eq!(mended(name, Host::Windows), windows.as_bytes());
        }
        assert_eq!(mended(b"gr\xfcn", Host::Mac), b"gr_n");
    }

    #[test]
    fn names_that_meet_get_numbers() {
        for (name, number, expected) in [
            ("a.cfg", 1, "a.cfg"),
            ("a.cfg", 2, "a~2.cfg"),
            (".bashrc", 3, ".bashrc~3"),
            ("README", 2, "README~2"),
        ] {
            assert_eq!(numbered(name.as_bytes(), number), expected.as_bytes());
        }
    }
}
