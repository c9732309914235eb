//! A site: an sshd, a manager of each side that reaches it, and the line between them.

use std::cell::RefCell;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::lab::{Lab, Side, Way, MARK, SSHD};
use crate::link::{Link, Proxy, FAR};
use crate::process::{self, Finished, Running};
use crate::Failure;

/// The variable that marks what an sshd starts.
const SERVER_MARK: &str = "DISTANT_BENCH_SERVER";

/// How far away the sshd of a [`Site`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// On this machine.
    Here,
    /// Behind a line that takes so many milliseconds each way.
    Line(u32),
}

impl Distance {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Here => "without a line".to_owned(),
            Self::Line(delay) => format!("over a line of {delay} ms each way"),
        }
    }
}

/// An sshd, a manager of each side that reaches it, and what lies between.
pub(crate) struct Site<'a> {
    lab: &'a Lab,
    managers: RefCell<[Running; 2]>,
    pub(crate) sshd: Running,
    address: SocketAddr,
    namespace: Option<String>,
    _link: Option<Link>,
}

impl<'a> Site<'a> {
    /// Starts everything.
    pub(crate) fn new(lab: &'a Lab, distance: Distance) -> Result<Self, Failure> {
        let link = match distance {
            Distance::Line(delay) if lab.no_packets().is_none() => Some(Link::new(lab, delay)?),
            _ => None,
        };
        let listen = match link {
            Some(_) => FAR.parse()?,
            None => free_address()?,
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
        let managers = RefCell::new(managers);
        let site = Self { lab, managers, sshd, address, namespace, _link: link };
        // The first one of each is not like the others: caches, and manifests. What does not work at
        // all is found out by whoever measures it.
        for way in lab.ways() {
            let _ = site.timed(&way);
        }
        Ok(site)
    }

    /// The process of a side's manager.
    pub(crate) fn manager(&self, side: Side) -> u32 {
        self.managers.borrow()[side as usize].pid()
    }

    /// Runs a command of a side. One that does not end may be one whose manager hangs, as that of
    /// 0.20.0 does at times; so there is another one then.
    pub(crate) fn run(&self, side: Side, command: &mut Command) -> Result<Finished, Failure> {
        let begun = Instant::now();
        let finished = process::run(command, side.patience());
        if finished.is_err() && begun.elapsed() >= side.patience() {
            let manager = &mut self.managers.borrow_mut()[side as usize];
            manager.kill_tree();
            *manager = self.lab.manager(side, self.namespace.as_deref())?;
        }
        finished
    }

    /// A launch that cannot work, or a working one if nothing is wrong; ours in the format in which it
    /// tells the most.
    pub(crate) fn launch(
        &self,
        side: Side,
        backend: &str,
        wrong: Option<Wrong>,
    ) -> Result<Command, Failure> {
        let home = self.lab.home(side);
        let mut command = match wrong {
            None => self.lab.command(&home, self.lab.program(side)),
            // Without a terminal, as 0.20.0 would ask there.
            Some(_) => {
                let mut command = self.lab.command(&home, "setsid");
                command.arg("--wait").arg(self.lab.program(side));
                command
            }
        };
        let host = match wrong {
            // No name ends so (RFC 6761).
            Some(Wrong::Name) => "nowhere.invalid".to_owned(),
            _ => self.address.ip().to_string(),
        };
        let port = match wrong {
            Some(Wrong::Port) => free_address()?.port(),
            _ => self.address.port(),
        };
        let identity = if wrong == Some(Wrong::Key) { "stranger" } else { "identity" };
        let identity = self.lab.path(identity);
        let mut options = format!("backend={backend},identity_files=\"{}\"", identity.display());
        if wrong == Some(Wrong::HostKey) {
            let nobody = self.lab.path("nobody");
            fs::write(&nobody, "")?;
            options += &format!(",user_known_hosts_files=\"{}\"", nobody.display());
        }
        let missing = Path::new("/nonexistent/distant");
        let server = if wrong == Some(Wrong::Program) { missing } else { self.lab.program(side) };
        command.arg("launch").arg(format!("ssh://{}@{host}:{port}", self.lab.user));
        command.arg("--distant").arg(server).arg("--options").arg(options);
        command.args(["--distant-args", "--shutdown lonely=120"]);
        if side == Side::Ours {
            command.args(["--timings", "--format", "json"]);
        }
        Ok(command)
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
            Way::Launch(side, backend) => self.launch(*side, backend, None)?,
            Way::Ssh => self.ssh(&[], &["true"]),
            Way::SshCurve => self.ssh(&["-o", "KexAlgorithms=curve25519-sha256"], &["true"]),
            Way::Mosh => self.ssh(&[], &["mosh-server", "new", "-s", "-l", "LANG=C.UTF-8"]),
        })
    }

    /// Goes a way once, with success, and takes back what it started.
    pub(crate) fn timed(&self, way: &Way) -> Result<Finished, Failure> {
        let finished = self.run(way.side(), &mut self.command(way)?);
        self.clear(way)?;
        finished?.success()
    }

    /// Ends what a way has started: its connections, and its servers on the other side.
    pub(crate) fn clear(&self, way: &Way) -> Result<(), Failure> {
        if let Way::Launch(side, _) = way {
            let list = self.run(*side, &mut self.lab.side(*side, &["manager", "list"]))?;
            for id in list.success()?.stdout.lines().filter_map(connection_id) {
                let id = id.to_string();
                self.run(*side, &mut self.lab.side(*side, &["manager", "kill", &id]))?;
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
        self.managers.get_mut().iter_mut().for_each(Running::stop);
        process::kill_marked(&format!("{SERVER_MARK}={}", std::process::id()));
        // With its sessions: the last of them may not have heard yet that their clients are gone, and
        // without a line they never will.
        self.sshd.kill_tree();
    }
}

/// What may be wrong with a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    Program,
    Key,
    Port,
    HostKey,
    Name,
}

impl Wrong {
    pub(crate) const ALL: [Self; 5] =
        [Self::Program, Self::Key, Self::Port, Self::HostKey, Self::Name];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Program => "missing program",
            Self::Key => "wrong key",
            Self::Port => "closed port",
            Self::HostKey => "unknown host key",
            Self::Name => "unknown host name",
        }
    }
}

/// An address where nobody listens. It was free a moment ago; whoever takes it in between makes an
/// sshd end, which is said.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
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
    sshd.until("an sshd that listens", |_| match link {
        None => TcpStream::connect(address).ok().map(drop),
        Some(link) => link.answers(lab, address).then_some(()),
    })?;
    Ok(sshd)
}
