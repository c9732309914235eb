//! A home of one's own: folders, environment, and what is started in it.
//!
//! No variable of the test's own environment gets in, so a test gives the same on every machine. A
//! home that is dropped looks for processes that were started in it and are still there.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{peer, programs, Finished, Look, Running, Terminal, HELLO, PATIENCE};

/// The variable by which processes of a home are found.
const MARK: &str = "DISTANT_TEST_HOME";

/// What the server program runs that never says anything.
pub(super) const MUTE: &str = "sleep 1000";

/// How long something may take to end after what it belonged to has ended.
const TIME_TO_END: Duration = Duration::from_secs(15);

/// A temporary folder that programs take for their user's home.
pub(crate) struct Home {
    folder: tempfile::TempDir,
    mark: String,
}

impl Home {
    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        Self::within(Path::new("/tmp"))
    }

    /// Makes an empty one in this folder; short, as a socket's path may have 107 bytes.
    pub(crate) fn within(parent: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("dt").tempdir_in(parent).unwrap();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{MARK}={}.{count}", std::process::id());
        let this = Self { folder, mark };
        for name in ["bin", "config", "cache", "data", "run", "tmp"] {
            fs::create_dir(this.path(name)).unwrap();
        }
        fs::set_permissions(this.path("run"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        this
    }

    /// A path in it.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in it, with the folders above.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes an executable file in it.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        super::executable(&path, text);
        path
    }

    /// A server program that runs and never says how it is reached; [`super::Manager::wait_for_mute`]
    /// tells when a launch has started it.
    pub(crate) fn mute(&self) -> String {
        self.script("mute", &format!("#!/bin/sh\nexec {MUTE}\n")).display().to_string()
    }

    /// Where a manager of this home listens by default.
    pub(crate) fn socket(&self) -> PathBuf {
        let name = rustix::process::getuid();
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let of_id = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let user = fields.next()?;
            (fields.nth(1)? == name.as_raw().to_string()).then_some(user)
        });
        self.path("run/distant").join(format!("{}.distant.sock", of_id.unwrap()))
    }

    /// Where the id of the last connection is kept.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path("cache/distant/cache.toml")
    }

    /// Our program with these arguments.
    pub(crate) fn ours<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.program(&programs().distant, args)
    }

    /// The released 0.20.0 with these arguments.
    pub(crate) fn peer<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.program(peer(), args)
    }

    /// Any program in this home.
    pub(crate) fn program<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Invocation {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path());
        command.env_clear().env("HOME", self.folder.path());
        for (name, folder) in [
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_RUNTIME_DIR", "run"),
            ("TMPDIR", "tmp"),
        ] {
            command.env(name, self.path(folder));
        }
        let mut path = self.path("bin").into_os_string();
        path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("PATH", path).env("LANG", "C.UTF-8").env("TERM", "xterm-256color");
        let (name, value) = self.mark.split_once('=').unwrap();
        command.env(name, value);
        Invocation { command, input: Vec::new() }
    }

    /// What by name and value marks the environment of every process of this home.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// The processes of this home.
    pub(crate) fn processes(&self) -> Vec<super::Seen> {
        Look::marked(&self.mark)
    }

    /// Waits until nothing runs in this home any more, and fails the test if something stays.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        let left = Look::left(&self.mark, TIME_TO_END);
        assert!(left.is_empty(), "still there after {TIME_TO_END:?}: {left:#?}");
    }

    /// Kills everything that runs in this home, for tests that mean to leave something.
    pub(crate) fn clear(&self) {
        while !Look::left(&self.mark, Duration::ZERO).is_empty() {
            self.processes().iter().for_each(super::Seen::kill);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let limit = if std::thread::panicking() { Duration::ZERO } else { TIME_TO_END };
        let left = Look::left(&self.mark, limit);
        self.clear();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// A program that is about to be started.
pub(crate) struct Invocation {
    command: Command,
    input: Vec<u8>,
}

impl Invocation {
    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    /// Adds arguments.
    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets the folder that it starts in.
    pub(crate) fn cwd(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Gives it this on stdin; without it, it sees the end of its stdin at once.
    pub(crate) fn input(mut self, input: impl AsRef<[u8]>) -> Self {
        self.input.extend_from_slice(input.as_ref());
        self
    }

    /// Starts it; what it reads comes from [`Running::say`].
    pub(crate) fn start(mut self) -> Running {
        Running::start(&mut self.command)
    }

    /// Starts it in JSON mode, and goes through the manager's own round.
    #[track_caller]
    pub(crate) fn in_json(self) -> Running {
        let mut running = self.args(&["--format", "json"]).start();
        assert_eq!(running.json()["type"], "auth_initialization");
        running.say(HELLO);
        assert_eq!(running.json()["type"], "auth_start_method");
        assert_eq!(running.json()["type"], "auth_finished");
        running
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Finished {
        self.run_within(PATIENCE)
    }

    /// Runs it to its end, which may take this long.
    #[track_caller]
    pub(crate) fn run_within(mut self, limit: Duration) -> Finished {
        let mut running = Running::start(&mut self.command);
        running.feed(&self.input);
        running.finish_within(limit)
    }

    /// Starts it on a terminal of its own.
    pub(crate) fn on_terminal(self) -> Terminal {
        Terminal::start(&self.command)
    }
}

#[test]
fn what_outlives_its_parent_is_found_and_fails_the_test() {
    let home = Home::new();
    home.program("sh", ["-c", "setsid sleep 1000 >/dev/null 2>&1 & "]).run().success();
    let left = home.processes();
    assert_eq!(left.len(), 1, "{left:#?}");
    assert!(left[0].lives());
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let left = Look::left(home.mark(), Duration::ZERO);
        assert!(left.is_empty());
    }));
    assert!(failed.is_err());
    home.clear();
    assert!(!left[0].lives());
}
