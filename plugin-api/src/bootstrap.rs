//! Starting a server over anything that can run a command.
//!
//! A plugin brings a [`Remote`]; [`launch`] does the rest of a launch: one command that finds and
//! starts `distant` and stays until it hears what became of it, the offer of what it said, a tunnel
//! where the server's port cannot be reached, and the server's end if nothing works. The command
//! kills the server when its connection ends, so a plugin that dies leaves nothing behind either.

mod offer;
mod script;
mod upload;
mod watch;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::connect_line::{ConnectLine, HELLO_LINE, HELLO_MAX, PROOF_LINE};
use crate::message::{
    BindServer, ErrorKind, LaunchError, LaunchRequest, LogLevel, ServerCommand, Stage,
};
use crate::Caller;
use watch::{remember, shown, Watch, Woken, OUTPUT_MAX, WORD_MAX};

/// Another machine, or another place on this one, that runs commands for us.
pub trait Remote: Sync {
    /// Runs one command by the login shell there, in a process group of its own, without a
    /// terminal. [`launch`] does so once; where a program has to be [brought](Remote::upload) there,
    /// that command takes it on its standard input.
    ///
    /// # Errors
    ///
    /// The command could not be run at all.
    fn exec(&self, command: &str) -> Result<Running, LaunchError>;

    /// How a server there is reached.
    fn reach(&self) -> Reach {
        Reach::Reported
    }

    /// Listens on this machine, and brings every connection to an address as seen from there, for
    /// as long as `self` lives. Where a socket or a program leads there,
    /// [`tunnel::listen`](crate::tunnel::listen) does the rest.
    ///
    /// # Errors
    ///
    /// It cannot: the default.
    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let message = format!("there is no way to bring a connection to `{to}`");
        Err(LaunchError::new(ErrorKind::PortUnreachable, message))
    }

    /// Brings a file of this machine to `to`, for which this knows a better way than the standard input
    /// of a command: an absolute path, without `..`, in a folder that is there, in the words of that machine, which
    /// may have blanks and whatever else means something to a shell. `caller` can be told the progress, and
    /// knows when nobody wants it any more.
    ///
    /// The command waits meanwhile. `None`, the default, is for those who know no other way. Whatever is
    /// at `to` after an error is removed, and what is there after a success is checked.
    fn upload(&self, file: &Path, to: &str, caller: &Caller) -> Option<Result<(), LaunchError>> {
        let _ = (file, to, caller);
        None
    }

    /// Whether a server ends with the command that has started it, as where a scheduler cleans up
    /// behind each command. Then the command stays, and with it the launch, for as long as the
    /// connection.
    fn stays(&self) -> bool {
        false
    }

    /// What [`Remote::forward`] goes through, for people: `ssh`.
    fn carrier(&self) -> &'static str {
        "the plugin"
    }

    /// Longest time from a command's start to the server's connect line.
    fn start_limit(&self) -> Duration {
        START_LIMIT
    }
}

/// How a server is reached from the host's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// By the address that the connection for the commands really goes to.
    Peer(SocketAddr),
    /// By this name or address.
    Host(String),
    /// By the address that the server says it listens on, or that its machine says it has.
    Reported,
    /// By [`Remote::forward`] alone, as behind a proxy.
    Tunnel,
}

/// A command that [`Remote::exec`] has started. Dropping it ends the command's input.
pub struct Running {
    /// The command's standard input.
    pub stdin: OwnedFd,
    /// What it prints; its end is the end of the command or of the connection.
    pub stdout: OwnedFd,
    /// What it complains of. It is always read, so that nothing there waits for it.
    pub stderr: OwnedFd,
    /// Tells how it ended, once it has: `status 127`, `signal TERM`.
    pub ending: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Which way the host shall connect to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tunnel {
    /// Directly, and through [`Remote::forward`] where that does not work.
    #[default]
    Auto,
    /// Directly or not at all.
    Never,
    /// Through [`Remote::forward`] alone.
    Always,
}

impl Tunnel {
    /// What the plugin's option `tunnel` says; without one, [`Tunnel::Auto`].
    pub fn of(request: &LaunchRequest) -> Self {
        match request.options.get("tunnel").map(str::to_lowercase).as_deref() {
            Some("never") => Self::Never,
            Some("always") => Self::Always,
            _ => Self::Auto,
        }
    }
}

/// Longest time from the command's start to the connect line, unless [`Remote::start_limit`] says
/// otherwise.
pub const START_LIMIT: Duration = Duration::from_secs(15);

/// How long a server that has said its connect line may take to say the rest.
const PROOF_LIMIT: Duration = Duration::from_secs(1);
/// How long the last words may take that come by another way than the output, whose end has come.
const WORDS_LIMIT: Duration = Duration::from_secs(1);
/// How long a killed server may take until the launch ends without waiting for the news of it.
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// How long the command may take to say that it has heard `keep`. Nobody waits for that but the
/// launch itself, and the line may be slow; what is not heard is the end of the server.
const KEEP_LIMIT: Duration = Duration::from_secs(15);
/// Addresses of a machine that are kept.
const ADDRESSES_MAX: usize = 16;
/// Places that an error shows, and their length: a `PATH` may be long.
const PLACES: usize = 6;
const PLACE_MAX: usize = 4096;

/// Starts a server over `remote`, offers it to the host, and returns when nothing is held any more.
///
/// # Errors
///
/// * `server_not_found`: no program there; the causes say where it was looked for, or why none could
///   be brought there.
/// * `server_not_started`: its last words are the causes.
/// * `timed_out`: nothing came for [`Remote::start_limit`].
/// * `port_unreachable`: the host could connect in no way.
/// * `unreachable`: the connection ended before the server was told to stay without it.
/// * `cancelled`: nobody wants it any more.
///
/// The server, if one was started, is killed in each of these cases.
pub fn launch(
    remote: &dyn Remote,
    request: &LaunchRequest,
    tunnel: Tunnel,
    caller: &Caller,
) -> Result<(), LaunchError> {
    caller.stage(Stage::Start)?;
    let mut server = Server::start(remote, request, caller)?;
    match offer::offer(remote, request, tunnel, caller, &mut server) {
        Ok(()) => server.keep(&request.destination.host, KEEP_LIMIT),
        Err(error) => {
            server.kill();
            Err(error)
        }
    }
}

/// A server that was started and waits for the word.
struct Server {
    line: ConnectLine,
    /// What its machine says it is reached by.
    addresses: Vec<IpAddr>,
    pid: Option<u32>,
    proof: bool,
    hello: Option<String>,
    watch: Watch,
    stdin: Option<File>,
}

impl Server {
    fn start(
        remote: &dyn Remote,
        request: &LaunchRequest,
        caller: &Caller,
    ) -> Result<Self, LaunchError> {
        let marker = format!("distant-{:032x}", rand::random::<u128>());
        let asks_for_addresses = remote.reach() == Reach::Reported;
        let command = script::command(&request.server, &marker, asks_for_addresses)?;
        let (mut watch, mut stdin) = Watch::new(remote.exec(&command)?, marker);
        let mut server = Found::default();
        let mut outcome = server.listen(request, remote.start_limit(), &mut watch, caller);
        if let (Err(_), true, Some(program)) = (&outcome, server.missing, &request.server.upload) {
            stdin = upload::bring(remote, request, program, caller, &mut watch, stdin)?;
            server = Found { begun: true, ..Found::default() };
            outcome = caller
                .stage(Stage::Start)
                .and_then(|()| server.listen(request, remote.start_limit(), &mut watch, caller));
        }
        if let Err(error) = outcome {
            drop(stdin);
            watch.until_end(KILL_LIMIT);
            return Err(error);
        }
        let place = request.destination.host.as_str();
        let by_ssh = matches!(remote.reach(), Reach::Peer(_) | Reach::Tunnel);
        if server.unbound && by_ssh && request.server.bind == BindServer::Ssh {
            let text = format!(
                "`{place}` does not say which address ssh came to, so the server listens on all"
            );
            caller.notice(LogLevel::Warn, text)?;
        }
        let line = server.line.ok_or_else(LaunchError::cancelled)?;
        watch.total = 0;
        Ok(Self {
            line,
            addresses: server.addresses,
            pid: server.daemon.or(server.process),
            proof: server.proof,
            hello: server.hello,
            watch,
            stdin: Some(File::from(stdin)),
        })
    }

    /// Lets the server live without us, and waits until the command says that it does.
    fn keep(&mut self, place: &str, limit: Duration) -> Result<(), LaunchError> {
        let Some(mut stdin) = self.stdin.take() else { return Ok(()) };
        // If this fails, the connection is gone, which is what is found just below.
        let _ = stdin.write_all(script::KEEP.as_bytes());
        let deadline = Instant::now() + limit;
        loop {
            while let Some(line) = self.watch.next_line() {
                if line == "kept" {
                    self.watch.until_end(KILL_LIMIT);
                    return Ok(());
                }
            }
            self.watch.total = 0;
            match self.watch.wait(Some(deadline), None)? {
                // What never stops printing would keep us from seeing that it is late.
                Woken::Data | Woken::Writable if Instant::now() < deadline => {}
                _ => {
                    let message = format!("the server on `{place}` ended with what started it");
                    return Err(LaunchError::new(ErrorKind::Unreachable, message)
                        .caused_by("the connection ended before the server was told to stay"));
                }
            }
        }
    }

    /// Ends the server, and waits until the command says so.
    fn kill(&mut self) {
        drop(self.stdin.take());
        self.watch.until_end(KILL_LIMIT);
    }
}

/// What the script has said so far.
#[derive(Default)]
struct Found {
    begun: bool,
    missing: bool,
    closed: bool,
    unbound: bool,
    proof: bool,
    hello: Option<String>,
    addresses: Vec<IpAddr>,
    tried: Vec<String>,
    not_executable: Vec<String>,
    process: Option<u32>,
    daemon: Option<u32>,
    exit: Option<String>,
    line: Option<ConnectLine>,
    words: Vec<String>,
}

impl Found {
    /// Reads until the server has said its connect line, and all that comes with it.
    fn listen(
        &mut self,
        request: &LaunchRequest,
        limit: Duration,
        watch: &mut Watch,
        caller: &Caller,
    ) -> Result<(), LaunchError> {
        let mut deadline = Instant::now() + limit;
        let place = request.destination.host.as_str();
        loop {
            while let Some(line) = watch.next_line() {
                self.take(&line);
            }
            if self.line.is_some() {
                if self.proof || self.closed {
                    return Ok(());
                }
                deadline = deadline.min(Instant::now() + PROOF_LIMIT);
            } else if self.missing || self.closed {
                return Err(self.failure(place, &request.server, watch));
            } else if watch.total > OUTPUT_MAX {
                return Err(self.flood(place, watch));
            }
            match watch.wait(Some(deadline), Some(caller))? {
                // Also of what never stops printing, so that it always has data.
                _ if self.line.is_some() && Instant::now() >= deadline => return Ok(()),
                Woken::Data | Woken::Writable => {}
                Woken::Deadline => return Err(self.silence(place, limit, watch)),
                Woken::End => {
                    watch.drain(WORDS_LIMIT);
                    return Err(self.failure(place, &request.server, watch));
                }
            }
        }
    }

    fn take(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "begin" => self.begun = true,
            "missing" => self.missing = true,
            "closed" => self.closed = true,
            "unbound" => self.unbound = true,
            "addresses" => {
                let addresses = rest.split_whitespace().filter_map(|it| it.parse::<IpAddr>().ok());
                self.addresses.extend(addresses.take(ADDRESSES_MAX));
            }
            "tried" if !rest.is_empty() => note(&mut self.tried, rest),
            "noexec" => note(&mut self.not_executable, rest),
            "pid" => self.process = rest.parse().ok(),
            "server" => self.daemon = rest.parse().ok(),
            "exit" => self.exit = Some(shown(rest, WORD_MAX)),
            // What is cut off of a hello is no word for a person either.
            "half" if rest.starts_with(HELLO_LINE) => {}
            "half" => remember(&mut self.words, rest),
            "say" if rest.trim() == PROOF_LINE => self.proof = true,
            "say" if rest.starts_with(HELLO_LINE) => {
                let hello = rest[HELLO_LINE.len()..].trim();
                self.hello = Some(hello.to_owned()).filter(|it| it.len() <= HELLO_MAX);
            }
            "say" => match ConnectLine::parse(rest) {
                Some(line) => {
                    self.line.get_or_insert(line);
                }
                None => remember(&mut self.words, rest),
            },
            _ => {}
        }
    }

    /// Says why there is no server, when the command has come to its end.
    fn failure(&self, place: &str, server: &ServerCommand, watch: &Watch) -> LaunchError {
        if let Some(file) = self.not_executable.first().filter(|_| self.missing) {
            let message = format!("`{file}` on `{place}` is not executable");
            return LaunchError::new(ErrorKind::ServerNotFound, message)
                .with_hint(format!("`chmod +x {file}` there, or name another with `--distant`"));
        }
        if self.missing {
            let name = server.program.as_deref().unwrap_or("distant");
            let message = format!("there is no `{name}` on `{place}`");
            let error = LaunchError::new(ErrorKind::ServerNotFound, message);
            let tried = self.tried.iter().map(|tried| format!("not in {tried}"));
            let hint = match &server.upload {
                None => {
                    "install distant there, name it with `--distant <PATH>`, or let \
                     `--distant-upload auto` bring it"
                }
                Some(_) => {
                    "what was brought there was gone at once: does something clean up there?"
                }
            };
            return tried.fold(error, LaunchError::caused_by).with_hint(hint);
        }
        let (words, hint) = if self.begun {
            let hint = "see what `distant server listen` says there, and check `--distant-args`";
            (&self.words, hint)
        } else if watch.noise.iter().any(|line| line.contains("is not recognized")) {
            (&watch.noise, "this looks like Windows, which is not supported yet; use Unix or WSL")
        } else {
            (&watch.noise, "commands have to be allowed there: try one by hand, such as `true`")
        };
        let message = match self.begun {
            true => format!("no server started on `{place}`"),
            false => format!("`{place}` did not run the command that starts a server"),
        };
        let mut error = LaunchError::new(ErrorKind::ServerNotStarted, message).with_hint(hint);
        let status = self.exit.as_ref().filter(|status| *status != "0");
        let ending = status.map(|status| format!("status {status}"));
        let ended = || if self.begun { None } else { (watch.ending)() };
        match ending.or_else(ended) {
            Some(ending) => error = error.caused_by(format!("the command ended with {ending}")),
            None if self.begun && !self.closed => {
                error = error.caused_by("the connection ended while the server was starting");
            }
            None => {}
        }
        with_last_words(error, words.iter().map(String::as_str))
    }

    fn silence(&self, place: &str, limit: Duration, watch: &Watch) -> LaunchError {
        let limit = match limit.subsec_millis() {
            0 => format!("{} s", limit.as_secs()),
            _ => format!("{} ms", limit.as_millis()),
        };
        let (message, words, hint) = if self.begun {
            let message = format!("the server on `{place}` was not ready within {limit}");
            (message, &self.words, "see what `distant server listen` says there")
        } else {
            let message = format!("`{place}` did not run a command within {limit}");
            let hint = "a start-up file of the login shell may wait, or replace the shell \
                        (`exec`): try a command by hand, such as `true`";
            (message, &watch.noise, hint)
        };
        let error = LaunchError::new(ErrorKind::TimedOut, message).with_hint(hint);
        with_last_words(error, words.iter().map(String::as_str))
    }

    fn flood(&self, place: &str, watch: &Watch) -> LaunchError {
        let message = format!("`{place}` prints without an end, and no server");
        let error = LaunchError::new(ErrorKind::ServerNotStarted, message);
        let words = if self.begun { &self.words } else { &watch.noise };
        with_last_words(error, words.iter().map(String::as_str))
    }
}

/// Adds what a server said before it ended, a cause for each line; of its own errors the words that
/// mark their parts are left out, as they are marked again.
pub fn with_last_words<'a>(
    error: LaunchError,
    words: impl IntoIterator<Item = &'a str>,
) -> LaunchError {
    words.into_iter().fold(error, |error, line| {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        match line.strip_prefix("caused by: ").unwrap_or(line) {
            // distant 0.20.0 puts this between what and why.
            "Caused by:" => error,
            // Whoever said it, it is not this program's.
            line if line.starts_with("hint: ") => error.caused_by(format!("its {line}")),
            line => error.caused_by(line),
        }
    })
}

/// Keeps one of the places that were looked at, of which there are few.
fn note(places: &mut Vec<String>, place: &str) {
    if places.len() < PLACES {
        places.push(shown(place, PLACE_MAX));
    }
}

#[cfg(test)]
#[path = "bootstrap/tests.rs"]
mod tests;
