//! Accounts that a test makes on this machine, as root, and removes.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;

/// useradd and userdel lock each other out, and fail then.
static ACCOUNTS: Mutex<()> = Mutex::new(());

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
        let shell = this.write("shell", script);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(shell, mode).unwrap();
        this
    }

    fn with(shell: Option<&str>, password: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dt{}-{count}", std::process::id());
        let home = PathBuf::from(format!("/home/{name}"));
        let own = home.join("shell").display().to_string();
        let shell = shell.unwrap_or(&own);
        let _one = ACCOUNTS.lock().unwrap();
        let mut add = Command::new("/usr/sbin/useradd");
        add.args(["--create-home", "--home-dir"]).arg(&home).args(["--shell", shell, &name]);
        let added = add.output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let mut set = Command::new("/usr/sbin/chpasswd").stdin(Stdio::piped()).spawn().unwrap();
        let line = format!("{name}:{password}\n");
        set.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        assert!(set.wait().unwrap().success());
        Self { name, home }
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
        let _one = ACCOUNTS.lock();
        let removed = Command::new("/usr/sbin/userdel").args(["-f", "-r", &self.name]).output();
        // The mail spool that it never had is no reason to fail.
        assert!(removed.is_ok(), "{removed:?}");
    }
}
