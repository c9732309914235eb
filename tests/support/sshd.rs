//! A real sshd with host keys of its own: the test listens, and each connection gets an `sshd -i`.
//!
//! So there is no port to choose and nothing to wait for, and a test can count the connections, cut
//! them, or put something of its own in between.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

use super::{programs, Home, Invocation};

/// The kinds of host keys that an [`Sshd`] has.
pub(crate) const HOST_KEYS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];

/// The program, by the full path that it wants to be started by.
const SSHD: &str = "/usr/sbin/sshd";

/// A listening sshd. It stops listening when dropped; its connections end with their clients.
pub(crate) struct Sshd {
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// Makes a key pair with the real `ssh-keygen`; the private half is at `path`.
pub(crate) fn keygen(path: &Path, args: &[&str]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-C", "a comment", "-f"]).arg(path).args(args).stdin(Stdio::null());
    let made = keygen.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

impl Sshd {
    /// Starts one that lets root in with [`Sshd::identity`].
    pub(crate) fn start(home: &Home) -> Self {
        Self::with(home, "")
    }

    /// Starts one with further lines of configuration, which count before the usual ones.
    pub(crate) fn with(home: &Home, lines: &str) -> Self {
        Self::run(home, lines, &[SSHD])
    }

    /// Starts one that lives in a network of its own, so that nothing but ssh gets there.
    pub(crate) fn apart(home: &Home) -> Self {
        let script = format!("ip link set lo up && exec {SSHD} \"$@\"");
        Self::run(home, "", &["unshare", "--net", "sh", "-c", &script, SSHD])
    }

    /// The same in an environment that has these variables too, each as `NAME=value`.
    pub(crate) fn within(home: &Home, lines: &str, variables: &[String]) -> Self {
        let variables = variables.iter().map(String::as_str);
        Self::run(
            home,
            lines,
            &["env"].into_iter().chain(variables).chain([SSHD]).collect::<Vec<_>>(),
        )
    }

    fn run(home: &Home, lines: &str, program: &[&str]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let folder = home.path(format!("sshd{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all("/run/sshd").unwrap();
        let mut config = format!("{lines}\n");
        for kind in HOST_KEYS {
            let key = folder.join(format!("host_{kind}"));
            let bits: &[&str] = if kind == "rsa" { &["-b", "2048"] } else { &[] };
            keygen(&key, &[&["-N", "", "-t", kind], bits].concat());
            config.push_str(&format!("HostKey {}\n", key.display()));
        }
        keygen(&folder.join("identity"), &["-N", "", "-t", "ed25519"]);
        let authorized = folder.join("authorized");
        fs::copy(folder.join("identity.pub"), &authorized).unwrap();
        let remote = folder.join("home");
        fs::create_dir_all(&remote).unwrap();
        let (name, value) = home.mark().split_once('=').unwrap();
        let (files, remote) = (authorized.display(), remote.display());
        config.push_str(&format!(
            "AuthorizedKeysFile {files}\nStrictModes no\nPermitRootLogin yes\nPidFile none\n\
             LogLevel VERBOSE\nUseDNS no\n\
             SetEnv {name}={value} HOME={remote} XDG_CACHE_HOME={remote}/cache XDG_RUNTIME_DIR={remote}\n"
        ));
        let path = folder.join("config");
        fs::write(&path, config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            folder,
            connections: Arc::default(),
            open: Arc::default(),
            stop: Arc::default(),
        };
        let (connections, stop) = (this.connections.clone(), this.stop.clone());
        let open = this.open.clone();
        let log = this.folder.join("log");
        let program: Vec<_> = program.iter().map(|word| (*word).to_owned()).collect();
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                connections.fetch_add(1, Ordering::Release);
                serve(&program, connection, &path, &log, open.clone());
            }
        });
        this
    }

    /// A private key that gets in.
    pub(crate) fn identity(&self) -> String {
        self.folder.join("identity").display().to_string()
    }

    /// A file of this server.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Lets one more public key in.
    pub(crate) fn authorize(&self, public: &Path) {
        let file = self.folder.join("authorized");
        let both = [fs::read(&file).unwrap(), fs::read(public).unwrap()].concat();
        fs::write(file, both).unwrap();
    }

    /// The lines of known_hosts for it, of these kinds.
    pub(crate) fn known(&self, kinds: &[&str]) -> String {
        let line = |kind: &&str| {
            let key = fs::read_to_string(self.folder.join(format!("host_{kind}.pub"))).unwrap();
            let words: Vec<_> = key.split_whitespace().take(2).collect();
            format!("{} {}\n", self.name(), words.join(" "))
        };
        kinds.iter().map(line).collect()
    }

    /// Its name in known_hosts.
    pub(crate) fn name(&self) -> String {
        format!("[{}]:{}", self.address.ip(), self.address.port())
    }

    /// Makes it known in a home.
    pub(crate) fn make_known(&self, home: &Home) {
        home.write(".ssh/known_hosts", self.known(&["ed25519"]));
    }

    /// `distant launch` to it as root, with our server, a known host and the right key; the options
    /// come last, so they win.
    pub(crate) fn launch(&self, home: &Home, backend: &str, options: &str) -> Invocation {
        if !home.path(".ssh/known_hosts").exists() {
            self.make_known(home);
        }
        let key = format!("identity_files=\"{}\"", self.identity());
        self.launch_as(home, "root", &format!("backend={backend},{key},{options}"))
    }

    /// `distant launch` to it with our server and these options alone.
    pub(crate) fn launch_as(&self, home: &Home, user: &str, options: &str) -> Invocation {
        let distant = programs().distant.display().to_string();
        let to = format!("ssh://{user}@{}", self.address);
        home.ours(["launch", &to, "--distant", &distant, "--options", options])
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// How many connections there are now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// What the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn serve(
    program: &[String],
    connection: TcpStream,
    config: &Path,
    log: &Path,
    open: Arc<AtomicUsize>,
) {
    let log = fs::File::options().create(true).append(true).open(log).unwrap();
    let socket = OwnedFd::from(connection);
    let mut sshd = Command::new(&program[0]);
    sshd.args(&program[1..])
        .arg("-ief")
        .arg(config)
        .stdin(socket.try_clone().unwrap())
        .stdout(socket)
        .stderr(log);
    open.fetch_add(1, Ordering::Release);
    let mut child = sshd.spawn().expect("the tests need openssh-server: see `make test`");
    thread::spawn(move || {
        let _ = child.wait();
        open.fetch_sub(1, Ordering::Release);
    });
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if thread::panicking() {
            eprintln!("the log of sshd: {}", self.log());
        }
    }
}
