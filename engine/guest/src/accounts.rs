//! Users and groups of the image, from its own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).
//!
//! Read by hand: the name service switch of libc needs shared libraries, and the image may have
//! neither them nor the files.

use thiserror::Error;

/// Who a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Empty when the image has no name for the number.
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups, the primary one among them.
    pub groups: Vec<u32>,
    pub home: String,
    /// Empty when the image does not say.
    pub shell: String,
}

#[derive(Debug, PartialEq, Eq, Error)]
pub enum AccountError {
    #[error("the image has no user `{}`", .0.escape_debug())]
    NoUser(String),
    #[error("the image has no group `{}`", .0.escape_debug())]
    NoGroup(String),
}

/// The account databases of an image.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Contents of the two files; empty when the image has none.
    pub fn new(passwd: &[u8], group: &[u8]) -> Self {
        Self {
            passwd: String::from_utf8_lossy(passwd).into_owned(),
            group: String::from_utf8_lossy(group).into_owned(),
        }
    }

    /// Finds `user`, `uid`, `user:group` or `uid:gid` (OCI image-spec, config.md, `User`); an empty
    /// one is root. A number needs no entry.
    pub fn find(&self, specification: &str) -> Result<Account, AccountError> {
        let (user, group) = match specification.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (specification, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let mut account = self.user(user)?;
        match group {
            // As the runtimes do it: a group that is given replaces all others.
            Some(group) => {
                account.gid = self.group(group)?;
                account.groups = vec![account.gid];
            }
            None => account.groups = self.groups_of(&account.name, account.gid),
        }
        Ok(account)
    }

    fn user(&self, user: &str) -> Result<Account, AccountError> {
        let number: Option<u32> = user.parse().ok();
        let found = self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            let (home, shell) = (fields.nth(1).unwrap_or(""), fields.next().unwrap_or(""));
            // A name counts before a number: a user may be called `1000`.
            (name == user || number == Some(uid)).then(|| Account {
                name: name.to_owned(),
                uid,
                gid,
                groups: Vec::new(),
                home: if home.is_empty() { "/".to_owned() } else { home.to_owned() },
                shell: shell.to_owned(),
            })
        });
        match (found, number) {
            (Some(account), _) => Ok(account),
            (None, Some(uid)) => Ok(Account {
                name: if uid == 0 { "root".to_owned() } else { String::new() },
                uid,
                gid: 0,
                groups: Vec::new(),
                home: if uid == 0 { "/root".to_owned() } else { "/".to_owned() },
                shell: String::new(),
            }),
            (None, None) if user == "root" => self.user("0"),
            (None, None) => Err(AccountError::NoUser(user.to_owned())),
        }
    }

    fn group(&self, group: &str) -> Result<u32, AccountError> {
        let named = self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == group).then(|| fields.nth(1)?.parse().ok()).flatten()
        });
        named
            .or_else(|| group.parse().ok())
            .or_else(|| (group == "root").then_some(0))
            .ok_or_else(|| AccountError::NoGroup(group.to_owned()))
    }

    fn groups_of(&self, user: &str, primary: u32) -> Vec<u32> {
        let mut groups = vec![primary];
        for line in self.group.lines() {
            let mut fields = line.split(':');
            let Some(gid) = fields.nth(2).and_then(|gid| gid.parse().ok()) else { continue };
            let members = fields.next().unwrap_or("");
            if !user.is_empty() && members.split(',').any(|member| member == user) && !groups.contains(&gid) {
                groups.push(gid);
            }
        }
        // What Linux takes (NGROUPS_MAX).
        groups.truncate(65536);
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::new(
            b"root:x:0:0:root:/root:/bin/bash\nbroken line\napp:x:1000:100::/srv/app:/bin/sh\n",
            b"root:x:0:\nusers:x:100:\naudio:x:29:other,app\nvideo:x:44:app\n",
        )
    }

    fn check(specification: &str, expected: (u32, u32, &[u32], &str)) {
        let account = accounts().find(specification).unwrap();
        assert_eq!(
            (account.uid, account.gid, account.groups.as_slice(), account.home.as_str()),
            expected,
            "{specification}"
        );
    }

    #[test]
    fn all_forms_are_found() {
        check("", (0, 0, &[0], "/root"));
        check("root", (0, 0, &[0], "/root"));
        check("app", (1000, 100, &[100, 29, 44], "/srv/app"));
        check("1000", (1000, 100, &[100, 29, 44], "/srv/app"));
        check("app:audio", (1000, 29, &[29], "/srv/app"));
        check("1000:7", (1000, 7, &[7], "/srv/app"));
        check("4711", (4711, 0, &[0], "/"));
        check(":audio", (0, 29, &[29], "/root"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        assert_eq!(accounts().find("nobody"), Err(AccountError::NoUser("nobody".into())));
        assert_eq!(accounts().find("app:none"), Err(AccountError::NoGroup("none".into())));
    }

    #[test]
    fn an_image_without_files_has_root() {
        let root = Accounts::default().find("root").unwrap();
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
    }
}
