//! Where everything runs: homes of their own, the programs, and a site with an sshd and managers.

#![allow(clippy::disallowed_methods, reason = "it finds its tools by its own environment")]

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{getrlimit, getuid, setrlimit, Resource};

use crate::link::{Link, Proxy, FAR};
use crate::process::{self, Finished, Running};
use crate::Failure;

/// The longest that one launch may take: 0.20.0 takes 15 s for a missing program.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The variable that marks everything that is started.
const MARK: &str = "DISTANT_BENCH";
/// The variable that marks what an sshd starts.
const SERVER_MARK: &str = "DISTANT_BENCH_SERVER";
const PEER_VERSION: &str = "0.20.0";
const SSHD: &str = "/usr/sbin/sshd";

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    Peer,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Peer];

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
    user: String,
}

impl Lab {
    /// Finds or builds the programs, and makes the homes.
    pub(crate) fn new(peer: Option<PathBuf>, no_build: bool) -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let folder = this.parent().ok_or("this program is in no folder")?;
        if !no_build {
            build(folder)?;
        }
        let distant = folder.join("distant");
        let cache = std::env::var_os("DISTANT_PEER_CACHE").map(PathBuf::from).or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            cache
                .or_else(|| Some(std::env::home_dir()?.join(".cache")))
                .map(|it| it.join("distant-peer"))
        });
        let peer = peer.or_else(|| Some(cache?.join(PEER_VERSION).join("bin/distant")));
        let peer = peer.filter(|it| it.exists()).ok_or(
            "there is no distant 0.20.0: `make test` builds it, or name one with `--peer`",
        )?;
        for needed in [&distant, Path::new(SSHD)] {
            if !needed.exists() {
                return Err(format!("`{}` is missing", needed.display()).into());
            }
        }
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
        let lab = Self {
            // Short, as a socket's path may have 107 bytes.
            folder: tempfile::Builder::new().prefix("db").tempdir_in("/tmp")?,
            distant,
            peer,
            mosh: program("mosh-server"),
            user: user.ok_or("this user has no name")?,
        };
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
        lab.end_with_signals();
        Ok(lab)
    }

    /// Ends everything when a signal ends this program.
    fn end_with_signals(&self) {
        let (mark, folder) = (self.mark(), self.folder.path().to_owned());
        std::thread::spawn(move || {
            use tokio::signal::unix::{signal, SignalKind};
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build()
            else {
                return;
            };
            runtime.block_on(async {
                let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
                let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                process::kill_marked(&mark);
                // Nobody is left to be told.
                let _ = fs::remove_dir_all(folder);
                #[allow(clippy::exit, reason = "a signal ends it, whatever it is doing")]
                std::process::exit(130);
            });
        });
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
        let output = Command::new(program).arg(flag).output();
        let said = output.map(|it| [it.stdout, it.stderr].concat()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let line = said.lines().next().unwrap_or_default();
        line.split([',', '[']).next().unwrap_or_default().trim().to_owned()
    }

    /// The entry of the environment that marks everything that is started.
    fn mark(&self) -> String {
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
        let mut manager = process::start(command.args(["manager", "listen", "--user"]))?;
        let socket = self.socket(side);
        until("a manager that answers", || UnixStream::connect(&socket).is_ok())
            .map_err(|error| format!("{error}: {}", manager.told()))?;
        Ok(manager)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        process::kill_marked(&self.mark());
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
    let status = cargo.arg(folder.parent().unwrap_or(top)).stdin(Stdio::null()).status()?;
    if !status.success() {
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

/// How far away the sshd of a [`Site`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// On this machine.
    Here,
    /// Behind a line that takes so many milliseconds each way.
    Line(u32),
}

/// An sshd, a manager of each side that reaches it, and what lies between.
pub(crate) struct Site<'a> {
    lab: &'a Lab,
    pub(crate) managers: [Running; 2],
    pub(crate) sshd: Running,
    address: SocketAddr,
    namespace: Option<String>,
    _link: Option<Link>,
}

impl<'a> Site<'a> {
    /// Starts everything.
    pub(crate) fn new(lab: &'a Lab, distance: Distance) -> Result<Self, Failure> {
        let link = match distance {
            Distance::Line(delay) if lab.is_root() => Some(Link::new(lab, delay)?),
            _ => None,
        };
        let listen = match link {
            Some(_) => FAR.parse()?,
            // Free a moment ago; whoever takes it in between makes sshd end, which is said.
            None => TcpListener::bind("127.0.0.1:0")?.local_addr()?,
        };
        let sshd = sshd(lab, listen, link.as_ref())?;
        let address = match distance {
            Distance::Line(delay) if link.is_none() => Proxy::start(listen, delay)?,
            _ => listen,
        };
        let key = fs::read_to_string(lab.path("host.pub"))?;
        let words: Vec<_> = key.split_whitespace().take(2).collect();
        let known = format!("[{}]:{} {}\n", address.ip(), address.port(), words.join(" "));
        for side in Side::BOTH {
            fs::write(lab.home(side).join(".ssh/known_hosts"), &known)?;
        }
        let namespace = link.as_ref().map(Link::near);
        let managers = [
            lab.manager(Side::Ours, namespace.as_deref())?,
            lab.manager(Side::Peer, namespace.as_deref())?,
        ];
        let site = Self { lab, managers, sshd, address, namespace, _link: link };
        // The first one of each is not like the others: caches, and manifests.
        for way in lab.ways() {
            site.run(&way, &[])?.success()?;
            site.clear(&way)?;
        }
        Ok(site)
    }

    /// The process of a side's manager.
    pub(crate) fn manager(&self, side: Side) -> u32 {
        self.managers[side as usize].pid()
    }

    /// Options that make a launch get in.
    fn options(&self, backend: &str, identity: &str) -> String {
        format!("backend={backend},identity_files=\"{}\"", self.lab.path(identity).display())
    }

    /// `distant launch` with this server and these options, in the format in which ours tells the
    /// most.
    pub(crate) fn launch(
        &self,
        side: Side,
        server: &Path,
        address: SocketAddr,
        options: &str,
    ) -> Command {
        let mut command = self.lab.side(side, &["launch"]);
        command.arg(format!("ssh://{}@{address}", self.lab.user));
        command.arg("--distant").arg(server).arg("--options").arg(options);
        command.args(["--distant-args", "--shutdown lonely=120"]);
        if side == Side::Ours {
            command.args(["--timings", "--format", "json"]);
        }
        command
    }

    /// A launch that cannot work, or a working one if nothing is wrong.
    pub(crate) fn launch_with(
        &self,
        side: Side,
        backend: &str,
        wrong: Option<Wrong>,
    ) -> Result<Command, Failure> {
        let identity = if wrong == Some(Wrong::Key) { "stranger" } else { "identity" };
        let mut options = self.options(backend, identity);
        if wrong == Some(Wrong::HostKey) {
            let nobody = self.lab.path("nobody");
            fs::write(&nobody, "")?;
            options += &format!(",user_known_hosts_files=\"{}\"", nobody.display());
        }
        let address = match wrong {
            Some(Wrong::Port) => TcpListener::bind((self.address.ip(), 0))
                .or_else(|_| TcpListener::bind("127.0.0.1:0"))?
                .local_addr()?,
            _ => self.address,
        };
        let missing = Path::new("/nonexistent/distant");
        let server = if wrong == Some(Wrong::Program) { missing } else { self.lab.program(side) };
        Ok(self.launch(side, server, address, &options))
    }

    /// OpenSSH's client with these flags and this command.
    fn ssh(&self, flags: &[&str], words: &[&str]) -> Command {
        let home = self.lab.home(Side::Ours);
        let mut command = match &self.namespace {
            None => self.lab.command(&home, "ssh"),
            Some(name) => {
                let mut command = self.lab.command(&home, "ip");
                command.args(["netns", "exec", name, "ssh"]);
                command
            }
        };
        let known = format!("UserKnownHostsFile={}", home.join(".ssh/known_hosts").display());
        let port = self.address.port().to_string();
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o"]);
        command.arg(known).args(flags).args(["-o", "GlobalKnownHostsFile=none", "-i"]);
        command.arg(self.lab.path("identity")).args(["-p", &port]);
        command.arg(format!("{}@{}", self.lab.user, self.address.ip())).args(words);
        command
    }

    /// The command of a way.
    pub(crate) fn command(&self, way: &Way) -> Result<Command, Failure> {
        Ok(match way {
            Way::Launch(side, backend) => self.launch_with(*side, backend, None)?,
            Way::Ssh => self.ssh(&[], &["true"]),
            Way::SshCurve => self.ssh(&["-o", "KexAlgorithms=curve25519-sha256"], &["true"]),
            Way::Mosh => self.ssh(&[], &["mosh-server", "new", "-s", "-l", "LANG=C.UTF-8"]),
        })
    }

    /// Goes a way once.
    pub(crate) fn run(&self, way: &Way, more: &[&str]) -> Result<Finished, Failure> {
        process::run(self.command(way)?.args(more), PATIENCE)
    }

    /// Goes a way once, with success, and takes back what it started.
    pub(crate) fn timed(&self, way: &Way) -> Result<Finished, Failure> {
        let finished = self.run(way, &[])?.success()?;
        self.clear(way)?;
        Ok(finished)
    }

    /// Ends what a way has started: its connections, and its servers on the other side.
    pub(crate) fn clear(&self, way: &Way) -> Result<(), Failure> {
        if let Way::Launch(side, _) = way {
            let list = process::run(&mut self.lab.side(*side, &["manager", "list"]), PATIENCE)?;
            for id in list.success()?.stdout.lines().filter_map(connection_id) {
                let id = id.to_string();
                process::run(&mut self.lab.side(*side, &["manager", "kill", &id]), PATIENCE)?;
            }
        }
        if !way.is_bare() {
            process::kill_marked(&format!("{SERVER_MARK}={}", std::process::id()));
        }
        Ok(())
    }
}

/// The connection that a line of `manager list` is about.
fn connection_id(line: &str) -> Option<u32> {
    line.split(|it: char| !it.is_ascii_digit()).find_map(|word| word.parse().ok())
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        self.managers.iter_mut().for_each(Running::stop);
        process::kill_marked(&format!("{SERVER_MARK}={}", std::process::id()));
        self.sshd.stop();
    }
}

/// What may be wrong with a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Program,
    Key,
    Port,
    HostKey,
}

impl Wrong {
    pub(crate) const ALL: [Self; 4] = [Self::Program, Self::Key, Self::Port, Self::HostKey];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Program => "missing program",
            Self::Key => "wrong key",
            Self::Port => "closed port",
            Self::HostKey => "unknown host key",
        }
    }
}

/// Starts an sshd that takes any number of logins at once.
fn sshd(lab: &Lab, address: SocketAddr, link: Option<&Link>) -> Result<Running, Failure> {
    if lab.is_root() {
        fs::create_dir_all("/run/sshd")?;
    }
    fs::copy(lab.path("identity.pub"), lab.path("authorized"))?;
    let (remote, mark) = (lab.path("remote"), format!("{SERVER_MARK}={}", std::process::id()));
    let remote = remote.display();
    let config = format!(
        "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
         PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PidFile none\nUseDNS no\nMaxStartups 2000:100:4000\nLogLevel ERROR\n\
         SetEnv {mark} {}={} HOME={remote} XDG_CACHE_HOME={remote}/cache XDG_RUNTIME_DIR={remote}/run\n",
        lab.path("host").display(),
        lab.path("authorized").display(),
        MARK,
        std::process::id(),
    );
    let file = lab.path("sshd_config");
    fs::write(&file, config)?;
    let mut command = match link {
        None => lab.command(&lab.path("remote"), SSHD),
        Some(link) => {
            let mut command = lab.command(&lab.path("remote"), "ip");
            command.args(["netns", "exec", &link.far(), SSHD]);
            command
        }
    };
    let mut sshd = process::start(command.arg("-Def").arg(file))?;
    let answers = || match link {
        None => TcpStream::connect(address).is_ok(),
        Some(link) => link.answers(lab, address),
    };
    let mut ended = Ok(false);
    until("an sshd that listens", || {
        ended = sshd.ends_within(Duration::ZERO);
        answers() || !matches!(ended, Ok(false))
    })?;
    match ended? {
        false => Ok(sshd),
        true => Err(format!("sshd ended: {}", sshd.told()).into()),
    }
}
