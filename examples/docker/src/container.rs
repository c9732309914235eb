//! A container, by way of the docker command line.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use distant_plugin_api::bootstrap::{Reach, Remote, Running};
use distant_plugin_api::{ErrorKind, LaunchError, LaunchRequest};

/// What is asked of a container: whether it runs, its network, its addresses.
const FORMAT: &str = "{{.State.Running}} {{.HostConfig.NetworkMode}}\
                      {{range .NetworkSettings.Networks}} {{.IPAddress}}{{end}}";

/// Connects standard input and output to `$1` port `$2`, both together being `$3`, by whatever the
/// container has. Each way ends when either side does.
const FORWARD: &str = r#"
has() { command -v "$1" >/dev/null 2>&1; }
has socat && exec socat - "TCP:$3"
has nc && exec nc "$1" "$2"
has bash && exec bash -c '
exec 4<&0 3<>"/dev/tcp/$1/$2" || exit
cat <&4 >&3 4<&- & one=$!
cat <&3 3<&- 4<&- & other=$!
wait -n; kill $one $other 2>/dev/null' bash "$1" "$2"
has python3 && exec python3 -c '
import os, socket, sys, threading
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def there():
    while data := os.read(0, 65536):
        s.sendall(data)
    os._exit(0)
threading.Thread(target=there, daemon=True).start()
while data := s.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
' "$1" "$2"
echo "a connection needs socat, nc, bash or python3 in the container" >&2
exit 1"#;

/// The pause after a connection that could not be taken, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How the command line is called.
#[derive(Debug, Clone)]
pub(crate) struct Docker {
    program: String,
    context: Option<String>,
    host: Option<String>,
}

impl Docker {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (flag, value) in [("--context", &self.context), ("--host", &self.host)] {
            if let Some(value) = value {
                command.arg(flag).arg(value);
            }
        }
        command
    }

    /// Whether containers run on this very machine, so that their addresses mean something here.
    fn is_local(&self) -> bool {
        let host = std::env::var("DOCKER_HOST").ok();
        let host = self.host.as_deref().or(host.as_deref()).unwrap_or("unix://");
        self.context.is_none() && host.starts_with("unix://")
    }

    fn failed(&self, error: &io::Error) -> LaunchError {
        let message = format!("cannot run `{}`", self.program);
        LaunchError::new(ErrorKind::Unreachable, message)
            .because(error)
            .with_hint("install it where the manager runs, or name it with `--options program=`")
    }
}

/// A container that runs.
pub(crate) struct Container {
    docker: Docker,
    name: String,
    user: Option<String>,
    /// Where a server in it is reached.
    pub(crate) reach: Reach,
    /// It is in the network of its machine.
    pub(crate) shares_network: bool,
}

impl Container {
    /// Looks for the container of a request.
    ///
    /// # Errors
    ///
    /// * `unresolved`: there is none of that name.
    /// * `unreachable`: it does not run, or docker does not answer.
    pub(crate) fn find(request: &LaunchRequest) -> Result<Self, LaunchError> {
        let option = |key: &str| request.options.get(key).map(str::to_owned);
        let docker = Docker {
            program: option("program").unwrap_or_else(|| "docker".to_owned()),
            context: option("context"),
            host: option("host"),
        };
        let name = option("container").unwrap_or_else(|| request.destination.host.clone());
        let user = option("user").or_else(|| request.destination.user.clone());

        let mut inspect = docker.command();
        inspect.args(["container", "inspect", "--format", FORMAT, "--", &name]);
        let output =
            inspect.stdin(Stdio::null()).output().map_err(|error| docker.failed(&error))?;
        if !output.status.success() {
            return Err(refusal(&name, &output));
        }
        let (reach, shares_network) =
            reach(&name, &String::from_utf8_lossy(&output.stdout), docker.is_local())?;
        Ok(Self { docker, name, user, reach, shares_network })
    }

    /// Runs a shell's script in there. Its processes are no children of what is started here, which
    /// only carries their streams; the end of their input is what ends them.
    fn shell(&self, words: &[&str]) -> Command {
        let mut command = self.docker.command();
        command.args(["exec", "-i"]);
        if let Some(user) = &self.user {
            command.args(["--user", user]);
        }
        command.args([&self.name, "sh", "-c"]).args(words).process_group(0);
        command
    }
}

/// Why docker does not show a container.
fn refusal(name: &str, output: &Output) -> LaunchError {
    let words = String::from_utf8_lossy(&output.stderr);
    let is_missing = words.to_lowercase().contains("no such container");
    let error = match is_missing {
        true => LaunchError::new(ErrorKind::Unresolved, format!("there is no container `{name}`"))
            .with_hint("`docker ps --all` shows those there are"),
        false => LaunchError::new(ErrorKind::Unreachable, "docker does not answer"),
    };
    words.lines().filter(|it| !it.trim().is_empty()).take(4).fold(error, LaunchError::caused_by)
}

/// Reads what [`FORMAT`] gives: where a server is reached, and whether the network is shared.
pub(crate) fn reach(name: &str, shown: &str, is_local: bool) -> Result<(Reach, bool), LaunchError> {
    let mut words = shown.split_whitespace();
    if words.next() != Some("true") {
        let message = format!("the container `{name}` does not run");
        return Err(LaunchError::new(ErrorKind::Unreachable, message)
            .with_hint(format!("`docker start {name}`")));
    }
    let shares_network = words.next() == Some("host");
    let address = words.find(|it| it.parse::<std::net::IpAddr>().is_ok());
    Ok(match address {
        _ if !is_local => (Reach::Tunnel, false),
        _ if shares_network => (Reach::Host("127.0.0.1".to_owned()), true),
        Some(address) => (Reach::Host(address.to_owned()), false),
        None => (Reach::Tunnel, false),
    })
}

impl Remote for Container {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        let mut shell = self.shell(&[command]);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shell.spawn().map_err(|error| self.docker.failed(&error))?;
        let missing = || self.docker.failed(&io::Error::other("a standard stream is missing"));
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let child = Mutex::new(child);
        Ok(Running {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ending: Box::new(move || {
                let status = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait();
                status.ok().flatten().map(|status| status.to_string())
            }),
        })
    }

    fn reach(&self) -> Reach {
        self.reach.clone()
    }

    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let failed = |error: &io::Error| {
            let message = format!("there is no tunnel to `{to}` in the container");
            LaunchError::new(ErrorKind::PortUnreachable, message).because(error)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|it| failed(&it))?;
        let near = listener.local_addr().map_err(|error| failed(&error))?;
        let (host, port, address) = (to.ip().to_string(), to.port().to_string(), to.to_string());
        let (docker, name, user) = (self.docker.clone(), self.name.clone(), self.user.clone());
        let (reach, shares_network) = (self.reach.clone(), self.shares_network);
        let container = Self { docker, name, user, reach, shares_network };
        thread::spawn(move || {
            let words = [FORWARD, "sh", host.as_str(), port.as_str(), address.as_str()];
            for socket in listener.incoming() {
                let carried = socket.and_then(|socket| carry(container.shell(&words), socket));
                match carried {
                    Ok(mut child) => drop(thread::spawn(move || child.wait())),
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        });
        Ok(near)
    }

    fn carrier(&self) -> &'static str {
        "docker exec"
    }
}

/// Lets a command have a connection for its input and output; what it complains of is logged.
fn carry(mut command: Command, socket: TcpStream) -> io::Result<Child> {
    socket.set_nodelay(true)?;
    let out = OwnedFd::from(socket.try_clone()?);
    command.stdin(OwnedFd::from(socket)).stdout(out).spawn()
}
