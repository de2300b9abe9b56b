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

/// The groups of a user, as the files have them: its own, and those that name it.
#[must_use]
pub fn groups_of(user: &str) -> Vec<u32> {
    Accounts::read().groups_of(user)
}

/// The id of a group of users, given by name or by number.
///
/// # Errors
///
/// It is no number, and the file has no such name.
pub fn group_id(group: &str) -> Result<u32, NoSuchGroup> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    Accounts::read().group(group).ok_or_else(|| NoSuchGroup(group.to_owned()))
}

/// There is no such group; give a number, or a name that `/etc/group` has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("/etc/group has no group {0}")]
pub struct NoSuchGroup(String);

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

    /// `user` may be a number.
    fn groups_of(&self, user: &str) -> Vec<u32> {
        let line = self.users.lines().find(|line| {
            let mut fields = line.split(':');
            let name = fields.next();
            name == Some(user) || fields.nth(1) == Some(user)
        });
        let name = line.and_then(|line| line.split(':').next()).unwrap_or(user);
        let own = line.and_then(|line| line.split(':').nth(3)?.parse().ok());
        let naming = self.groups.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(2);
            let id = fields.next()?.parse().ok()?;
            fields.next()?.split(',').any(|member| member.trim() == name).then_some(id)
        });
        own.into_iter().chain(naming).collect()
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
    fn the_groups_of_a_user_are_its_own_and_those_that_name_it() {
        let accounts = Accounts {
            users: "alice:x:1000:100::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n".to_owned(),
            groups: "audio:x:29:bob,alice\nusers:x:100:\nvideo:x:44:bob\n".to_owned(),
        };
        assert_eq!(accounts.groups_of("alice"), [100, 29]);
        assert_eq!(accounts.groups_of("1000"), [100, 29]);
        assert!(accounts.groups_of("carol").is_empty());
    }

    #[test]
    fn a_number_is_a_user_whether_or_not_the_file_has_it() {
        assert_eq!(user_id("4000000000"), Ok(4_000_000_000));
        assert!(user_id("nobody-has-this-name").is_err());
    }
}
