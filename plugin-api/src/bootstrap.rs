//! Starting a server over anything that can run a command.
//!
//! A plugin brings a [`Remote`]; [`launch`] does the rest of a launch: one command that finds and
//! starts `distant` and stays until it hears what became of it, the offer of what it said, a tunnel
//! where the server's port cannot be reached, and the server's end if nothing works. The command
//! kills the server when its connection ends, so a plugin that dies leaves nothing behind either.

mod offer;
mod script;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::connect_line::{ConnectLine, PROOF_LINE};
use crate::message::{
    BindServer, ErrorKind, LaunchError, LaunchRequest, LogLevel, ServerCommand, Stage,
};
use crate::Caller;

/// Another machine, or another place on this one, that runs commands for us.
pub trait Remote: Sync {
    /// Runs one command by the login shell there, in a process group of its own, without a
    /// terminal.
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
    /// as long as `self` lives.
    ///
    /// # Errors
    ///
    /// It cannot: the default.
    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        let message = format!("there is no way to bring a connection to `{to}`");
        Err(LaunchError::new(ErrorKind::PortUnreachable, message))
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
/// Longest line that is kept, and most bytes read before the connect line.
const LINE_MAX: usize = 64 * 1024;
const LINE_END: [char; 2] = ['\r', '\n'];
const OUTPUT_MAX: usize = 4 * 1024 * 1024;
/// Lines of the last words that an error shows, and their length.
const WORDS: usize = 6;
const WORD_MAX: usize = 400;
/// Addresses of a machine that are kept.
const ADDRESSES_MAX: usize = 16;
/// Places that an error shows, and their length: a `PATH` may be long.
const PLACES: usize = 6;
const PLACE_MAX: usize = 4096;

/// Starts a server over `remote`, offers it to the host, and returns when nothing is held any more.
///
/// # Errors
///
/// * `server_not_found`: no program there; the causes say where it was looked for.
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
        Ok(()) => server.keep(&request.destination.host),
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
        let running = remote.exec(&command)?;
        let mut watch = Watch::new(running.stdout, running.stderr, marker, running.ending);
        let mut server = Found::default();
        if let Err(error) = server.listen(request, remote.start_limit(), &mut watch, caller) {
            drop(running.stdin);
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
            watch,
            stdin: Some(File::from(running.stdin)),
        })
    }

    /// Lets the server live without us, and waits until the command says that it does.
    fn keep(&mut self, place: &str) -> Result<(), LaunchError> {
        let Some(mut stdin) = self.stdin.take() else { return Ok(()) };
        // If this fails, the connection is gone, which is what is found just below.
        let _ = stdin.write_all(script::KEEP.as_bytes());
        let deadline = Instant::now() + KEEP_LIMIT;
        loop {
            while let Some(line) = self.watch.next_line() {
                if line == "kept" {
                    self.watch.until_end(KILL_LIMIT);
                    return Ok(());
                }
            }
            self.watch.total = 0;
            match self.watch.wait(Some(deadline), None)? {
                Woken::Data => {}
                Woken::End | Woken::Deadline => {
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
                Woken::Data => {}
                Woken::Deadline if self.line.is_some() => return Ok(()),
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
            "half" => remember(&mut self.words, rest),
            "say" if rest.trim() == PROOF_LINE => self.proof = true,
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
            return tried
                .fold(error, LaunchError::caused_by)
                .with_hint("install distant there, or name it with `--distant <PATH>`");
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
        words.iter().cloned().fold(error, LaunchError::caused_by)
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
        words.iter().cloned().fold(error, LaunchError::caused_by)
    }

    fn flood(&self, place: &str, watch: &Watch) -> LaunchError {
        let message = format!("`{place}` prints without an end, and no server");
        let error = LaunchError::new(ErrorKind::ServerNotStarted, message);
        let words = if self.begun { &self.words } else { &watch.noise };
        words.iter().cloned().fold(error, LaunchError::caused_by)
    }
}

/// A text from there, short enough and without what could play tricks on a terminal.
fn shown(text: &str, most: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(most).collect()
}

/// Keeps one of the places that were looked at, of which there are few.
fn note(places: &mut Vec<String>, place: &str) {
    if places.len() < PLACES {
        places.push(shown(place, PLACE_MAX));
    }
}

/// Keeps a line as one of the last words, without anything that may be a key.
fn remember(words: &mut Vec<String>, line: &str) {
    let line = shown(line, WORD_MAX);
    if line.is_empty() {
        return;
    }
    let is_key = |word: &str| word.bytes().filter(u8::is_ascii_hexdigit).count() >= 16;
    let shown: Vec<_> = line
        .split(' ')
        .map(|word| if word.contains("distant://") && is_key(word) { "[redacted]" } else { word })
        .collect();
    words.push(shown.join(" "));
    if words.len() > WORDS {
        words.remove(0);
    }
}

/// Reads both outputs of a command, and tells the script's lines from noise.
struct Watch {
    stdout: Option<File>,
    stderr: Option<File>,
    marker: String,
    ending: Box<dyn Fn() -> Option<String> + Send + Sync>,
    pending: Vec<u8>,
    errors: Vec<u8>,
    noise: Vec<String>,
    total: usize,
}

/// Why [`Watch::wait`] returned.
enum Woken {
    Data,
    Deadline,
    End,
}

impl Watch {
    fn new(
        stdout: OwnedFd,
        stderr: OwnedFd,
        marker: String,
        ending: Box<dyn Fn() -> Option<String> + Send + Sync>,
    ) -> Self {
        Self {
            stdout: Some(stdout.into()),
            stderr: Some(stderr.into()),
            marker,
            ending,
            pending: Vec::new(),
            errors: Vec::new(),
            noise: Vec::new(),
            total: 0,
        }
    }

    /// The next complete line of the script, without its marker.
    fn next_line(&mut self) -> Option<String> {
        while let Some(line) = take_line(&mut self.pending) {
            let own = line.strip_prefix(&self.marker).and_then(|rest| rest.strip_prefix(' '));
            match own {
                Some(own) => return Some(own.trim_end_matches(LINE_END).to_owned()),
                None => remember(&mut self.noise, &line),
            }
        }
        None
    }

    /// Waits for output, the end of it, a deadline or a cancel, and reads what there is.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        caller: Option<&Caller>,
    ) -> Result<Woken, LaunchError> {
        loop {
            let Some(stdout) = &self.stdout else { return Ok(Woken::End) };
            let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(stdout, PollFlags::IN)];
            if let Some(stderr) = &self.stderr {
                fds.push(PollFd::new(stderr, PollFlags::IN));
            }
            let cancel = caller.map(Caller::cancel_fd);
            if let Some(cancel) = &cancel {
                fds.push(PollFd::new(cancel, PollFlags::IN));
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    let message = "the command's output cannot be read";
                    return Err(LaunchError::new(ErrorKind::Other, message).because(&error));
                }
                Ok(0) => return Ok(Woken::Deadline),
                Ok(_) => {}
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if let Some(caller) = caller {
                caller.check()?;
            }
            if self.stderr.is_some() && ready[1] {
                self.hear_complaints();
            }
            if ready[0] {
                let count = read_some(&mut self.stdout, &mut self.pending);
                self.total += count;
                return Ok(if count == 0 { Woken::End } else { Woken::Data });
            }
            if self.total > OUTPUT_MAX {
                return Ok(Woken::Data);
            }
        }
    }

    /// Reads the complaints until their end, at most for this long: something that the command left
    /// behind may keep them open.
    fn drain(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while let Some(stderr) = &self.stderr {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(stderr, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1..) if self.total <= OUTPUT_MAX => self.hear_complaints(),
                _ => return,
            }
        }
    }

    fn hear_complaints(&mut self) {
        let count = read_some(&mut self.stderr, &mut self.errors);
        self.total += count;
        while let Some(line) = take_line(&mut self.errors) {
            remember(&mut self.noise, &line);
        }
    }

    /// Reads until the command ends, at most for this long.
    fn until_end(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline
            && matches!(self.wait(Some(deadline), None), Ok(Woken::Data))
        {
            self.pending.clear();
            self.total = 0;
        }
    }

    /// Waits until the command ends by itself; a cancel is the error.
    fn hold(&mut self, caller: &Caller) -> Result<(), LaunchError> {
        while matches!(self.wait(None, Some(caller))?, Woken::Data) {
            self.pending.clear();
            self.total = 0;
        }
        Ok(())
    }
}

/// Reads once, and closes the file at its end.
fn read_some(file: &mut Option<File>, into: &mut Vec<u8>) -> usize {
    let mut buffer = [0; 16 * 1024];
    let count = file.as_mut().map_or(0, |file| file.read(&mut buffer).unwrap_or(0));
    if count == 0 {
        *file = None;
    }
    into.extend_from_slice(&buffer[..count]);
    count
}

/// Takes a complete line out, or the middle of one that is too long to be of interest.
fn take_line(pending: &mut Vec<u8>) -> Option<String> {
    let end = match pending.iter().position(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        None if pending.len() > LINE_MAX => pending.len(),
        None => return None,
    };
    let line: Vec<u8> = pending.drain(..end).collect();
    Some(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
#[path = "bootstrap/tests.rs"]
mod tests;
