//! Patterns of paths: `*` and `?` within a name, `[a-z]` and `[!a-z]`, `**` for any folders.

use crate::files::names;

/// A pattern of paths from the root on.
#[derive(Clone, Debug)]
pub struct Glob(Vec<Vec<u8>>);

impl Glob {
    pub fn new(pattern: &[u8]) -> Self {
        let mut names = names(pattern);
        names.dedup_by(|one, other| *one == b"**" && *other == b"**");
        Self(names)
    }

    /// Does a path have what only patterns have?
    pub fn is_pattern(path: &[u8]) -> bool {
        path.iter().any(|byte| b"*?[".contains(byte))
    }

    /// Tells whether the pattern names `path`, and whether it may name something below it.
    pub fn judge(&self, path: &[Vec<u8>]) -> (bool, bool) {
        // How far into the pattern the names so far may have come.
        let mut at = vec![false; self.0.len() + 1];
        at[0] = true;
        self.skip_folders(&mut at);
        for name in path {
            let mut next = vec![false; at.len()];
            for (index, pattern) in self.0.iter().enumerate().filter(|(index, _)| at[*index]) {
                if pattern == b"**" {
                    next[index] = true;
                    // At its end it names what lies anywhere below.
                    next[index + 1] |= index + 1 == self.0.len();
                } else if name_matches(pattern, name) {
                    next[index + 1] = true;
                }
            }
            self.skip_folders(&mut next);
            at = next;
        }
        let end = self.0.len();
        (at[end], at[..end].iter().any(|&is| is))
    }

    /// `**` may stand for no folder.
    fn skip_folders(&self, at: &mut [bool]) {
        for index in 0..self.0.len().saturating_sub(1) {
            if at[index] && self.0[index] == b"**" {
                at[index + 1] = true;
            }
        }
    }
}

/// Does a name match a pattern of one name?
fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on after a mismatch: behind the last star, which then takes a byte more.
    let (mut p, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(1),
            Some(b'[') => class(&pattern[p..], name[n]),
            Some(&byte) if byte == name[n] => Some(1),
            _ => None,
        };
        match (step, retry) {
            (Some(step), _) => (p, n) = (p + step, n + 1),
            (None, Some((after, taken))) => {
                (p, n) = (after, taken + 1);
                retry = Some((after, taken + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Returns the length of the class that `pattern` begins with if `byte` is in it; one that is not
/// closed is the character itself.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let closing = pattern
        .iter()
        .skip(first + 1)
        .position(|&byte| byte == b']');
    let Some(end) = closing.map(|at| first + 1 + at) else {
        return (byte == b'[').then_some(1);
    };
    let members = &pattern[first..end];
    let mut at = 0;
    let mut is_in = false;
    while at < members.len() {
        let range = members[at..]
            .first_chunk::<3>()
            .filter(|range| range[1] == b'-');
        let (low, high, step) = range.map_or((members[at], members[at], 1), |r| (r[0], r[2], 3));
        is_in |= (low..=high).contains(&byte);
        at += step;
    }
    (is_in != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name, is_match) in [
            ("*", "anything", true),
            ("*.cfg", "printer.cfg", true),
            ("*.cfg", "printer.cfg.bak", false),
            ("p*t*r", "printer", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[", "[", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            let matches = name_matches(pattern.as_bytes(), name.as_bytes());
            assert_eq!(matches, is_match, "{pattern} {name}");
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!name_matches(pattern.as_bytes(), &[b'a'; 255]));
        let glob = Glob::new("/**/a".repeat(100).as_bytes());
        assert!(!glob.judge(&names("/a".repeat(50).as_bytes())).0);
    }
}
