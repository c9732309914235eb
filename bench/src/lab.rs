//! Where everything runs: the programs, and homes of their own for them.

#![allow(clippy::disallowed_methods, reason = "it finds its tools by its own environment")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{getrlimit, getuid, setrlimit, Resource};

use crate::interrupt::Interrupt;
use crate::link::Link;
use crate::process::{self, Running};
use crate::{Arguments, Failure};

/// The longest that anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The variable that marks everything that is started.
pub(crate) const MARK: &str = "DISTANT_BENCH";
pub(crate) const SSHD: &str = "/usr/sbin/sshd";
const PEER_VERSION: &str = "0.20.0";
/// What is needed beside the two programs, and Debian's packages of it.
const NEEDED: [(&str, &str); 5] = [
    (SSHD, "openssh-server"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("strip", "binutils"),
    ("setsid", "util-linux"),
];
/// What is needed to delay packets.
const NEEDED_BY_ROOT: [(&str, &str); 2] = [("ip", "iproute2"), ("python3", "python3")];

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Peer,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Peer];

    /// The longest that a command may take: 0.20.0 takes 15 s for a missing program, and some it never
    /// ends.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Ours => PATIENCE,
            Self::Peer => Duration::from_secs(25),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "distant",
            Self::Peer => "0.20.0",
        }
    }
}

/// A way to get to something on the other side of ssh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// `distant launch` with this backend.
    Launch(Side, &'static str),
    /// `ssh HOST true`.
    Ssh,
    /// The same with the key exchange that the ssh libraries do: OpenSSH's own choice, which resists
    /// quantum computers, takes its client much longer.
    SshCurve,
    /// What mosh does before it leaves ssh: `ssh HOST mosh-server new`.
    Mosh,
}

impl Way {
    /// Whether it starts nothing that stays.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self, Self::Ssh | Self::SshCurve)
    }

    /// Whose command it is.
    pub(crate) fn side(&self) -> Side {
        match self {
            Self::Launch(side, _) => *side,
            Self::Ssh | Self::SshCurve | Self::Mosh => Side::Ours,
        }
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Launch(side, backend) => format!("{}, {backend}", side.name()),
            Self::Ssh => "`ssh host true`".to_owned(),
            Self::SshCurve => "the same by curve25519".to_owned(),
            Self::Mosh => "mosh's bootstrap".to_owned(),
        }
    }
}

/// The programs, and a folder for everything that they write.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
    distant: PathBuf,
    peer: PathBuf,
    mosh: Option<PathBuf>,
    pub(crate) user: String,
    /// Why packets cannot be delayed, where they cannot.
    no_packets: Option<String>,
}

impl Lab {
    /// Finds or builds the programs, and makes the homes.
    pub(crate) fn new(arguments: &Arguments, interrupt: &Interrupt) -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let folder = this.parent().ok_or("this program is in no folder")?;
        if !arguments.no_build {
            build(folder)?;
        }
        let distant = folder.join("distant");
        if !distant.exists() {
            return Err(format!("`{}` is missing", distant.display()).into());
        }
        let peer = find_peer(arguments.peer.clone())?;
        check_tools()?;
        // Each connection is a descriptor in a manager and in a server, which inherit this.
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        setrlimit(Resource::Nofile, files)?;
        let passwd = fs::read_to_string("/etc/passwd")?;
        let uid = getuid().as_raw().to_string();
        let user = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        });
        let mut lab = Self {
            // Short, as a socket's path may have 107 bytes.
            folder: tempfile::Builder::new().prefix("db").tempdir_in("/tmp")?,
            distant,
            peer,
            mosh: program("mosh-server"),
            user: user.ok_or("this user has no name")?,
            no_packets: None,
        };
        interrupt.remove(lab.folder.path());
        for home in ["ours", "peer", "remote"] {
            for folder in ["config", "cache", "data", "run", "tmp", ".ssh"] {
                fs::create_dir_all(lab.path(home).join(folder))?;
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(lab.path(home).join(folder), private)?;
            }
        }
        for key in ["host", "identity", "stranger"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-N", "", "-t", "ed25519", "-f"]).arg(lab.path(key));
            process::run(&mut keygen, PATIENCE)?.success()?;
        }
        lab.no_packets = if lab.is_root() {
            Link::new(&lab, 0).err().map(|error| error.to_string())
        } else {
            Some("there was no root".to_owned())
        };
        Ok(lab)
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The home of a program's client and manager.
    pub(crate) fn home(&self, side: Side) -> PathBuf {
        self.path(match side {
            Side::Ours => "ours",
            Side::Peer => "peer",
        })
    }

    /// A side's program.
    pub(crate) fn program(&self, side: Side) -> &Path {
        match side {
            Side::Ours => &self.distant,
            Side::Peer => &self.peer,
        }
    }

    pub(crate) fn mosh(&self) -> Option<&Path> {
        self.mosh.as_deref()
    }

    /// The folder that cargo builds into.
    pub(crate) fn target(&self) -> PathBuf {
        self.distant.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
    }

    /// The profile that was built in.
    pub(crate) fn profile(&self) -> String {
        let folder = self.distant.parent().and_then(Path::file_name);
        folder.map_or_else(String::new, |it| it.to_string_lossy().into_owned())
    }

    pub(crate) fn is_root(&self) -> bool {
        getuid().is_root()
    }

    /// Why packets cannot be delayed, so that a proxy delays bytes in their place.
    pub(crate) fn no_packets(&self) -> Option<&str> {
        self.no_packets.as_deref()
    }

    /// The backends of ours that are there.
    pub(crate) fn backends(&self) -> Vec<&'static str> {
        let exists = |name: &&str| {
            let folder = self.distant.parent().unwrap_or(Path::new("."));
            folder.join(format!("libdistant_plugin_{name}.so")).exists()
                || folder.join(format!("distant-plugin-{name}")).exists()
        };
        ["ssh2", "libssh", "openssh"].into_iter().filter(exists).collect()
    }

    /// Every way to compare.
    pub(crate) fn ways(&self) -> Vec<Way> {
        let ours = self.backends().into_iter().map(|it| Way::Launch(Side::Ours, it));
        let peer = ["ssh2", "libssh"].map(|it| Way::Launch(Side::Peer, it));
        let mosh = self.mosh.is_some().then_some(Way::Mosh);
        ours.chain(peer).chain([Way::Ssh, Way::SshCurve]).chain(mosh).collect()
    }

    /// What a program says about its version, in one line.
    pub(crate) fn version(&self, program: &str, flag: &str) -> String {
        let output = process::run(Command::new(program).arg(flag), PATIENCE);
        let said = output.map(|it| it.stdout + &it.stderr).unwrap_or_default();
        let line = said.lines().next().unwrap_or_default();
        line.split([',', '[']).next().unwrap_or_default().trim().to_owned()
    }

    /// The entry of the environment that marks everything that is started.
    pub(crate) fn mark() -> String {
        format!("{MARK}={}", std::process::id())
    }

    /// The entry of the environment that marks what a side's own commands start.
    pub(crate) fn mark_of(&self, side: Side) -> String {
        format!("HOME={}", self.home(side).display())
    }

    /// A program in a home, with nothing of this program's environment.
    pub(crate) fn command(&self, home: &Path, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().current_dir(home).env("HOME", home);
        for (name, folder) in [
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_RUNTIME_DIR", "run"),
            ("TMPDIR", "tmp"),
        ] {
            command.env(name, home.join(folder));
        }
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LANG", "C.UTF-8").env("USER", &self.user);
        command.env(MARK, std::process::id().to_string());
        command
    }

    /// A side's program in its home.
    pub(crate) fn side(&self, side: Side, args: &[&str]) -> Command {
        let mut command = self.command(&self.home(side), self.program(side));
        command.args(args);
        command
    }

    /// Where a side's manager listens.
    pub(crate) fn socket(&self, side: Side) -> PathBuf {
        self.home(side).join("run/distant").join(format!("{}.distant.sock", self.user))
    }

    /// Starts a side's manager, in a network namespace if one is given, and waits until it answers.
    pub(crate) fn manager(&self, side: Side, namespace: Option<&str>) -> Result<Running, Failure> {
        let mut command = match namespace {
            None => self.side(side, &[]),
            Some(name) => {
                let mut command = self.command(&self.home(side), "ip");
                command.args(["netns", "exec", name]).arg(self.program(side));
                command
            }
        };
        let socket = self.socket(side);
        // 0.20.0 leaves its own, and does not start where there is one.
        let _ = fs::remove_file(&socket);
        let mut manager = process::start(command.args(["manager", "listen", "--user"]))?;
        manager.until("a manager that answers", |_| UnixStream::connect(&socket).ok())?;
        Ok(manager)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        process::kill_marked(&Self::mark());
    }
}

/// The released program: the one that was named, or that of the tests.
fn find_peer(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let cache = std::env::var_os("DISTANT_PEER_CACHE").map(PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
        cache.map(|it| it.join("distant-peer"))
    });
    let peer = named.or_else(|| Some(cache?.join(PEER_VERSION).join("bin/distant")));
    peer.filter(|it| it.exists()).ok_or_else(|| {
        "there is no distant 0.20.0: `make test` builds it, or name one with `--peer`".into()
    })
}

/// Before anything is measured: half an hour later is too late.
fn check_tools() -> Result<(), Failure> {
    let by_root = if getuid().is_root() { &NEEDED_BY_ROOT[..] } else { &[] };
    let all = NEEDED.iter().chain(by_root);
    let missing: Vec<_> = all
        .filter(|(name, _)| program(name).is_none())
        .map(|(name, package)| format!("`{name}` (Debian: {package})"))
        .collect();
    match missing[..] {
        [] => Ok(()),
        _ => Err(format!("missing: {}", missing.join(", ")).into()),
    }
}

/// Builds what is measured, in the profile that this program was built in.
fn build(folder: &Path) -> Result<(), Failure> {
    let profile = match folder.file_name().and_then(|it| it.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => return Err("this program is in no folder of a profile".into()),
    };
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--profile", profile, "--target-dir"]).current_dir(top);
    cargo.arg(folder.parent().unwrap_or(top)).stdin(Stdio::null());
    if !process::spawn(&mut cargo)?.wait()?.success() {
        return Err("the workspace does not build".into());
    }
    Ok(())
}

/// Looks a program up.
fn program(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|it| it.is_file())
}

/// Waits for what the kernel sends no event of.
pub(crate) fn until(what: &str, mut is_there: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    while !is_there() {
        if Instant::now() > end {
            return Err(format!("waited {PATIENCE:?} in vain for {what}").into());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}
