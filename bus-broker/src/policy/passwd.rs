//! Users and groups by name: what `/etc/passwd` and `/etc/group` say.
//!
//! The files themselves, and no name service: a name service may be a client of this very bus, and
//! would wait for a broker that waits for it. Users that only a name service knows are given by
//! number.

use std::{fs, io, path::Path};

/// There is no such user; give a number, or a name that `/etc/passwd` has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/etc/passwd has no user {0}")]
pub struct NoSuchUser(String);

/// The id of a user, given by name or by number.
///
/// # Errors
///
/// It is no number, and the file has no such name.
pub fn user_id(user: &str) -> Result<u32, NoSuchUser> {
    if let Ok(id) = user.parse() {
        return Ok(id);
    }
    Accounts::read().user(user).ok_or_else(|| NoSuchUser(user.to_owned()))
}

/// The names of one moment.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: String,
    groups: String,
}

impl Accounts {
    /// Reads both files; one that is missing knows nobody.
    pub(super) fn read() -> Self {
        let read = |path: &str| text_of(Path::new(path)).unwrap_or_default();
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    pub(super) fn user(&self, name: &str) -> Option<u32> {
        id_of(&self.users, name)
    }

    pub(super) fn group(&self, name: &str) -> Option<u32> {
        id_of(&self.groups, name)
    }
}

fn text_of(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Both files have lines `NAME:x:ID:...`.
fn id_of(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_only_whole_and_at_the_beginning_of_a_line() {
        let text = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\nbad:x\n";
        assert_eq!(id_of(text, "root"), Some(0));
        assert_eq!(id_of(text, "alice"), Some(1000));
        for name in ["ali", "x", "bad", ""] {
            assert_eq!(id_of(text, name), None, "{name:?}");
        }
    }

    #[test]
    fn a_number_is_a_user_whether_or_not_the_file_has_it() {
        assert_eq!(user_id("4000000000"), Ok(4_000_000_000));
        assert!(user_id("nobody-has-this-name").is_err());
    }
}
