//! Whose code may run: sshd's rule for files that somebody's safety depends on.
//!
//! A plugin is opened once; the checks are made on that descriptor and on every folder above its
//! file, and the worker loads that descriptor. So what was checked is what runs.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::discovery::Origin;
use crate::paths;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why a file cannot be used as a plugin, and what would mend that: both for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) reason: String,
    pub(super) mend: Option<String>,
    /// It is another file than the one that was trusted.
    pub(super) changed: bool,
}

impl Complaint {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), mend: None, changed: false }
    }

    pub(super) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// How much is asked of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The file and every folder above it belong to root or us, and nobody else may write there. A
    /// group may that has nobody but us in it, as each account's own has on many systems, whose umask
    /// is 002 then.
    Full,
    /// As for the program that is running: whoever may write to its folder may replace it as well,
    /// so only the opened file counts, and a group may write, as with a umask of 002.
    OwnFolder,
    /// `allow_unsafe_path`: any regular file.
    Nothing,
}

impl Rule {
    /// The rule for a file that was found in `folder`; its real place may be another.
    pub(super) fn of(origin: Origin, folder: &Path, file: &Path) -> Self {
        let is_there = || file.parent() == folder.canonicalize().ok().as_deref();
        if origin == Origin::Program && is_there() {
            Self::OwnFolder
        } else {
            Self::Full
        }
    }
}

/// Opens a plugin's file and checks whether it may be trusted. `path` has no links in it.
pub(super) fn open(path: &Path, rule: Rule) -> Result<(File, Metadata), Complaint> {
    // Not blocking, as it may be a pipe that nobody writes to.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW).bits();
    // Flags are small positive numbers.
    let flags = i32::try_from(flags).unwrap_or_default();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| unreadable(path, &error))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() {
        return Err(Complaint::new("it is no regular file"));
    }
    let us = rustix::process::geteuid().as_raw();
    if let Some(fault) = Facts::of(&metadata).fault(us, rule, false) {
        return Err(fault.complain(path, "file", metadata.mode()));
    }
    if rule == Rule::Full {
        folders(path, us)?;
    }
    Ok((file, metadata))
}

/// Checks every folder above a file.
pub(super) fn folders(path: &Path, us: u32) -> Result<(), Complaint> {
    path.ancestors().skip(1).try_for_each(|folder| check_folder(folder, us))
}

fn check_folder(folder: &Path, us: u32) -> Result<(), Complaint> {
    let metadata = folder.metadata().map_err(|error| unreadable(folder, &error))?;
    match Facts::of(&metadata).fault(us, Rule::Full, true) {
        Some(fault) => Err(fault.complain(folder, "directory", metadata.mode())),
        None => Ok(()),
    }
}

/// Everything that the rule does not allow about a file and the folders above it, where [`open`]
/// stops at the first. `path` has no links in it.
pub(super) fn walk(path: &Path, rule: Rule) -> Vec<Complaint> {
    let us = rustix::process::geteuid().as_raw();
    let of_file = path.metadata().map_err(|error| unreadable(path, &error)).and_then(|metadata| {
        match Facts::of(&metadata).fault(us, rule, false) {
            Some(fault) => Err(fault.complain(path, "file", metadata.mode())),
            None => Ok(()),
        }
    });
    let above = path.ancestors().skip(1).filter(|_| rule == Rule::Full);
    let above = above.map(|folder| check_folder(folder, us));
    std::iter::once(of_file).chain(above).filter_map(Result::err).collect()
}

fn unreadable(path: &Path, error: &io::Error) -> Complaint {
    let path_shown = quoted(path);
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Complaint::new(format!("`{}` may not be read", path.display()))
                .mend(format!("chmod u+r {path_shown}"))
        }
        _ => Complaint::new(format!("`{}` cannot be opened: {error}", path.display())),
    }
}

/// What the rule looks at.
#[derive(Debug, Clone, Copy)]
struct Facts {
    owner: u32,
    mode: u32,
    /// Its group has nobody but its owner in it.
    is_private: bool,
}

/// What the rule does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Owner(u32),
    Group,
    Others,
}

impl Facts {
    fn of(metadata: &Metadata) -> Self {
        let (owner, mode) = (metadata.uid(), metadata.mode());
        // Root needs no group, and what is in its own is everybody's who was ever put there.
        let is_private = owner != 0
            && mode & GROUP_WRITES != 0
            && accounts()
                .is_some_and(|(users, groups)| is_private(&users, &groups, owner, metadata.gid()));
        Self { owner, mode, is_private }
    }

    fn fault(self, us: u32, rule: Rule, is_folder: bool) -> Option<Fault> {
        if rule == Rule::Nothing {
            return None;
        }
        if self.owner != 0 && self.owner != us {
            return Some(Fault::Owner(self.owner));
        }
        // In a sticky folder nobody can replace what belongs to somebody else.
        if is_folder && self.mode & STICKY != 0 {
            return None;
        }
        if self.mode & OTHERS_WRITE != 0 {
            return Some(Fault::Others);
        }
        let group_counts = rule == Rule::Full && !self.is_private;
        (group_counts && self.mode & GROUP_WRITES != 0).then_some(Fault::Group)
    }
}

/// The accounts and groups of this machine. Where they come from a network, no group is private.
fn accounts() -> Option<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).ok();
    Some((read("/etc/passwd")?, read("/etc/group")?))
}

/// Whether a group is the account's own, by name and number, and nobody else is in it.
fn is_private(users: &str, groups: &str, owner: u32, group: u32) -> bool {
    fn fields(line: &str) -> Option<(&str, u32, &str)> {
        let mut fields = line.splitn(4, ':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some((name, id, fields.next().unwrap_or_default()))
    }
    let users: Vec<_> = users.lines().filter_map(fields).collect();
    let Some((name, ..)) = users.iter().find(|(_, id, _)| *id == owner) else { return false };
    let in_it = |(.., rest): &&(&str, u32, &str)| {
        rest.split(':').next().and_then(|it| it.parse().ok()) == Some(group)
    };
    let mut primary = users.iter().filter(in_it);
    let is_theirs = primary.next().is_some_and(|(_, id, _)| *id == owner);
    let mut groups = groups.lines().filter_map(fields).filter(|(_, id, _)| *id == group);
    let group = groups.next();
    let is_own = group.is_some_and(|(own, _, members)| {
        own == *name && members.split(',').all(|member| member.is_empty() || member == *name)
    });
    is_theirs && primary.next().is_none() && is_own && groups.next().is_none()
}

impl Fault {
    fn complain(self, path: &Path, what: &str, mode: u32) -> Complaint {
        let mode = mode & 0o7777;
        let (why, mend) = match self {
            Self::Owner(owner) => (
                format!("it belongs to user {owner}, neither to root nor to you"),
                format!("chown {} {}", shell_words::quote(&paths::user_name()), quoted(path)),
            ),
            Self::Group => {
                (format!("its group may write to it (mode {mode:04o})"), chmod("g-w", path))
            }
            Self::Others => {
                (format!("everybody may write to it (mode {mode:04o})"), chmod("go-w", path))
            }
        };
        let shown = path.display();
        Complaint::new(format!("bad ownership or modes for {what} `{shown}`: {why}")).mend(mend)
    }
}

fn chmod(change: &str, path: &Path) -> String {
    format!("chmod {change} {}", quoted(path))
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

/// Follows every link on the way to a file.
pub(super) fn real_path(path: &Path) -> Result<PathBuf, Complaint> {
    path.canonicalize().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => {
            Complaint::new("it is a link to a file that does not exist")
        }
        io::ErrorKind::NotFound => Complaint::new("there is no such file"),
        _ => unreadable(path, &error),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{symlink, PermissionsExt};

    use super::*;

    const US: u32 = 1000;

    fn check(rule: Rule, is_folder: bool, owner: u32, mode: u32, expected: Option<Fault>) {
        let fault = Facts { owner, mode, is_private: false }.fault(US, rule, is_folder);
        assert_eq!(fault, expected, "{rule:?} {is_folder} {owner} {mode:o}");
    }

    #[test]
    fn only_root_and_we_may_have_written_a_plugin() {
        use Rule::{Full, Nothing, OwnFolder};
        for rule in [Full, OwnFolder] {
            check(rule, false, US, 0o755, None);
            check(rule, false, 0, 0o644, None);
            check(rule, false, 1001, 0o755, Some(Fault::Owner(1001)));
            check(rule, false, US, 0o757, Some(Fault::Others));
            check(rule, false, 0, 0o1757, Some(Fault::Others));
        }
        check(Full, false, US, 0o775, Some(Fault::Group));
        check(OwnFolder, false, US, 0o775, None);
        check(Full, true, US, 0o700, None);
        check(Full, true, 0, 0o1777, None);
        check(Full, true, 1001, 0o1777, Some(Fault::Owner(1001)));
        check(Full, true, US, 0o775, Some(Fault::Group));
        check(Full, true, US, 0o777, Some(Fault::Others));
        check(Nothing, false, 1001, 0o777, None);
    }

    #[test]
    fn a_group_may_write_that_has_nobody_but_us_in_it() {
        let facts = |mode| Facts { owner: US, mode, is_private: true };
        assert_eq!(facts(0o664).fault(US, Rule::Full, false), None);
        assert_eq!(facts(0o775).fault(US, Rule::Full, true), None);
        assert_eq!(facts(0o666).fault(US, Rule::Full, false), Some(Fault::Others));

        let users = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        let check = |users: &str, groups: &str, group: u32| is_private(users, groups, US, group);
        assert!(check(users, "root:x:0:\nme:x:1000:\n", 1000));
        assert!(check(users, "me:x:1000:me", 1000));
        // Somebody is in it, by either file; it is somebody else's, or not known here.
        assert!(!check(users, "me:x:1000:me,you", 1000));
        assert!(!check(&format!("{users}you:x:1001:1000::/:\n"), "me:x:1000:", 1000));
        assert!(!check(users, "me:x:1000:\nstaff:x:50:", 50));
        assert!(!check(users, "users:x:1000:", 1000));
        assert!(!check(users, "me:x:1000:\nalso:x:1000:you", 1000));
        assert!(!check(users, "", 1000));
        assert!(!check("", "me:x:1000:", 1000));
    }

    /// A folder of our own in the temporary one, which is sticky, and a file in it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("libdistant_plugin_x.so");
        fs::write(&file, "x").unwrap();
        set_mode(&file, 0o644);
        (folder, file)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_complaint_is_that_of_sshd_and_says_what_mends_it() {
        let (_folder, file) = place();
        assert!(open(&file, Rule::Full).is_ok());

        set_mode(&file, 0o666);
        let shown = file.display();
        let complaint = open(&file, Rule::OwnFolder).unwrap_err();
        assert_eq!(
            complaint.reason,
            format!(
                "bad ownership or modes for file `{shown}`: everybody may write to it (mode 0666)"
            )
        );
        assert_eq!(complaint.mend, Some(format!("chmod go-w {shown}")));

        set_mode(&file, 0o664);
        assert!(open(&file, Rule::OwnFolder).is_ok());
        assert!(open(&file, Rule::Full).unwrap_err().reason.contains("its group may write"));
        assert!(open(&file, Rule::Nothing).is_ok());
    }

    #[test]
    fn a_folder_that_others_may_write_to_counts_only_outside_of_the_programs_own() {
        let (_folder, file) = place();
        let parent = file.parent().unwrap();
        set_mode(parent, 0o775);
        let complaint = open(&file, Rule::Full).unwrap_err();
        let expected = format!("bad ownership or modes for directory `{}`", parent.display());
        assert!(complaint.reason.starts_with(&expected), "{complaint:?}");
        assert_eq!(complaint.mend, Some(format!("chmod g-w {}", parent.display())));
        assert!(open(&file, Rule::OwnFolder).is_ok());
        set_mode(parent, 0o1777);
        assert!(open(&file, Rule::Full).is_ok());
    }

    #[test]
    fn only_a_regular_file_is_a_plugin() {
        let (_folder, file) = place();
        let other = |name: &str| file.with_file_name(name);
        fs::create_dir(other("folder")).unwrap();
        assert_eq!(open(&other("folder"), Rule::Full).unwrap_err().reason, "it is no regular file");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            other("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(open(&other("pipe"), Rule::Full).unwrap_err().reason, "it is no regular file");
        symlink("nowhere", other("link")).unwrap();
        let reason = real_path(&other("link")).unwrap_err().reason;
        assert_eq!(reason, "it is a link to a file that does not exist");
    }
}
