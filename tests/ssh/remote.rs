//! Accounts that a test makes on this machine, as root, and removes.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{flock, FlockOperation};

use crate::support::executable;

/// Whatever changes accounts locks all others out, which fail then; so one at a time does, whichever
/// run of the tests it belongs to.
const LOCK: &str = "/tmp/distant-tests-accounts.lock";

/// Runs a program that changes accounts, with this as its input; gives what it says where it fails.
fn change(words: &[&str], input: &str) -> Result<(), String> {
    let lock = File::options().create(true).append(true).open(LOCK).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut changes = command.spawn().unwrap();
    // One that reads nothing is none the worse for it.
    let _ = changes.stdin.take().unwrap().write_all(input.as_bytes());
    let done = changes.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    done.status.success().then_some(()).ok_or_else(|| format!("{words:?}: {said}"))
}

/// An account with a home folder. Dropping it ends its processes and removes both.
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
}

impl Account {
    /// Makes one with this login shell and password.
    pub(crate) fn new(shell: &str, password: &str) -> Self {
        Self::with(Some(shell), password)
    }

    /// Makes one whose login shell is this script, in its own home folder.
    pub(crate) fn with_own_shell(script: &str, password: &str) -> Self {
        let this = Self::with(None, password);
        executable(&this.home.join("shell"), script);
        this
    }

    fn with(shell: Option<&str>, password: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dt{}-{count}", std::process::id());
        let home = PathBuf::from(format!("/home/{name}"));
        let own = home.join("shell").display().to_string();
        let folder = home.display().to_string();
        let add = ["/usr/sbin/useradd", "--create-home", "--home-dir", &folder, "--shell"];
        change(&[&add[..], &[shell.unwrap_or(&own), &name]].concat(), "").unwrap();
        let this = Self { name, home };
        this.set_password(password);
        this
    }

    /// Gives it another password.
    pub(crate) fn set_password(&self, password: &str) {
        change(&["/usr/sbin/chpasswd"], &format!("{}:{password}\n", self.name)).unwrap();
    }

    /// Takes its password away, so that it needs none.
    pub(crate) fn clear_password(&self) {
        change(&["passwd", "-q", "-d", &self.name], "").unwrap();
    }

    /// Puts another account into its group.
    pub(crate) fn let_into_group(&self, other: &str) {
        change(&["/usr/sbin/usermod", "-a", "-G", &self.name, other], "").unwrap();
    }

    /// Writes a file into its home folder, with the folders above.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // The mail spool that it never had is no reason to fail.
        let _ = change(&["/usr/sbin/userdel", "-f", "-r", &self.name], "");
    }
}
