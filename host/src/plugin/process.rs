//! The manager's end of one worker.
//!
//! A task of its own, the [`Supervisor`], holds the child and speaks with it, so a worker is
//! watched, bounded and ended in the same way whether its [`Process`] is used, ignored or dropped.
//! Nothing here waits for a plugin without a limit, and nothing a plugin does is an error of the
//! manager: it becomes one [`LaunchError`] in [`Event::Ended`].

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use distant_plugin_api::message::{
    HostHello, HostMessage, Log, LogLevel, PluginHello, PluginMessage, MESSAGE_MAX, PROTOCOL,
};
use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::child::{self, Child};
use super::discovery::Kind;
use super::lines::{Allowance, Fault, LastWords, Messages};
use super::registry::Entry;
use crate::paths;

/// Messages to a worker that may wait until it reads them; one that leaves more unread is broken.
const QUEUE: usize = 64;
/// Events that may wait for the manager; then the worker's output waits.
const EVENTS: usize = 16;
/// What a line counts beside its bytes: handling the shortest one costs something too.
const LINE_COST: usize = 256;
/// Lines of a worker's log: at once, and a second.
const LOG_RATE: (u32, u32) = (1000, 200);
/// Variables of the launching client that a worker gets in place of the manager's own.
const CLIENT_ENVIRONMENT: [&str; 2] = ["SSH_AUTH_SOCK", "LANG"];

/// How long a worker may take, and how much it may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the start of the process to its hello.
    pub hello: Duration,
    /// From `cancel`, or from its result, until it gets SIGTERM.
    pub grace: Duration,
    /// From SIGTERM to SIGKILL.
    pub terminate: Duration,
    /// Bytes of messages at once; it may say no more until [`Limits::output_rate`] has made room.
    pub output: u32,
    /// Bytes of messages a second.
    pub output_rate: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            grace: Duration::from_secs(2),
            terminate: Duration::from_secs(1),
            output: 4 * 1024 * 1024,
            output_rate: 1024 * 1024,
        }
    }
}

/// How workers are run, and which are still there. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    pub(super) program: PathBuf,
    pub(super) limits: Limits,
    pub(super) running: TaskTracker,
}

/// What happens at a worker.
#[derive(Debug)]
pub enum Event {
    /// It said something. After `Done` or `Error` only `Ended` follows.
    Message(PluginMessage),
    /// It is reaped, and its process group is gone. `Ok` if it gave its result before.
    Ended(Result<(), LaunchError>),
}

/// One worker process. Dropping it cancels the launch in the background; see [`Process::cancel`].
pub struct Process {
    id: u32,
    messages: mpsc::Sender<Line>,
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
}

/// What a [`Process`] can tell its supervisor at any time.
#[derive(Default)]
struct Shared {
    cancelled: CancellationToken,
    /// More messages were sent than the worker reads.
    overflowed: AtomicBool,
    /// A message was too long to send.
    too_long: AtomicBool,
}

/// A message to a worker, with its newline. There may be a password in it.
type Line = Zeroizing<Vec<u8>>;

impl Process {
    /// Starts a worker for a plugin and waits for its hello.
    ///
    /// `environment` is the launching client's, empty where it told none; `log_level` is what of the
    /// plugin's log is wanted.
    ///
    /// # Errors
    ///
    /// All of kind `plugin`: the worker cannot be started or crashed, the file cannot be loaded, it
    /// said nothing in time, said something else than a hello, or speaks another protocol.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the worker as dropping a [`Process`] does.
    pub async fn start(
        entry: &Entry,
        environment: &BTreeMap<String, String>,
        log_level: LogLevel,
    ) -> Result<(Process, PluginHello), LaunchError> {
        let mut process = Self::spawn(entry, environment, log_level)?;
        let name = &entry.name;
        let limit = entry.hello_limit();
        let first = tokio::time::timeout(limit, process.next()).await.map_err(|_| {
            let message = format!("plugin `{name}` said nothing within {limit:?} of its start");
            LaunchError::new(ErrorKind::Plugin, message)
        })?;
        let hello = match first {
            Event::Message(PluginMessage::Hello(hello)) => hello,
            Event::Message(PluginMessage::Error(error)) | Event::Ended(Err(error)) => {
                return Err(error)
            }
            _ => return Err(broken(name, "its first message is no hello")),
        };
        let [lowest, highest] = hello.protocol;
        let protocol = highest.min(PROTOCOL[1]);
        if protocol < lowest.max(PROTOCOL[0]) {
            let [ours, newest] = PROTOCOL;
            let message = format!(
                "plugin `{name}` speaks protocol {lowest} to {highest}, this program {ours} to {newest}"
            );
            return Err(LaunchError::new(ErrorKind::Plugin, message)
                .with_hint("install the plugin and `distant` in versions that belong together"));
        }
        process.send(HostMessage::Hello(HostHello { protocol, log_level }));
        Ok((process, hello))
    }

    fn spawn(
        entry: &Entry,
        environment: &BTreeMap<String, String>,
        log_level: LogLevel,
    ) -> Result<Self, LaunchError> {
        let workers = entry.workers();
        let mut command = Command::new(&workers.program);
        command.env_clear().envs(worker_environment(environment));
        // The tracker is told first, so that no worker exists that nobody waits for.
        let token = workers.running.token();
        let (child, pipes) = Child::spawn(&mut command, entry.file(), |command, number| {
            command.arg("plugin-worker").arg("--fd").arg(number.to_string());
            if entry.kind == Kind::Executable {
                command.arg("--exec");
            }
            command.arg(&entry.path);
        })
        .map_err(|error| {
            let message = format!("cannot start a worker for plugin `{}`", entry.name);
            LaunchError::new(ErrorKind::Plugin, message).because(&error)
        })?;

        let (messages, queue) = mpsc::channel(QUEUE);
        let (sender, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared::default());
        let id = child.id();
        let limits = workers.limits.clone();
        let supervisor = Supervisor {
            name: entry.name.clone(),
            child,
            stdin: Some(pipes.stdin),
            unsent: Line::default(),
            queue,
            output: Messages::new(pipes.stdout),
            last_words: LastWords::new(pipes.stderr),
            events: sender,
            undelivered: VecDeque::new(),
            shared: Arc::clone(&shared),
            allowance: Allowance::new(limits.output, limits.output_rate),
            paused_until: None,
            log: LogFilter::new(log_level),
            limits,
            heard: Heard::Nothing,
            end: End::NotYet,
            fault: None,
        };
        tokio::spawn(async move {
            let (events, last) = supervisor.run().await;
            // The worker is gone; whether anybody wants to know it is no reason to wait.
            drop(token);
            for event in last {
                if events.send(event).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { id, messages, events, shared })
    }

    /// Queues a message and never waits. To a worker that has ended it goes nowhere; one that
    /// leaves too many unread is cancelled, and [`Event::Ended`] says so.
    pub fn send(&self, message: HostMessage) {
        let mut line = Line::new(Vec::with_capacity(1024));
        // Writing these types into memory cannot fail.
        if serde_json::to_writer(&mut *line, &message).is_err() || line.len() >= MESSAGE_MAX {
            self.shared.too_long.store(true, Ordering::Relaxed);
            self.shared.cancelled.cancel();
            return;
        }
        line.push(b'\n');
        if let Err(mpsc::error::TrySendError::Full(_)) = self.messages.try_send(line) {
            self.shared.overflowed.store(true, Ordering::Relaxed);
            self.shared.cancelled.cancel();
        }
    }

    /// Ends the launch: the worker is told, gets [`Limits::grace`] to let go of everything, then
    /// SIGTERM, and [`Limits::terminate`] later SIGKILL, with its whole group.
    pub fn cancel(&self) {
        self.shared.cancelled.cancel();
    }

    /// Waits for what happens next. After [`Event::Ended`] nothing does, and it returns
    /// `Ended(Ok(()))` at once.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Ended(Ok(())))
    }

    /// The id of the worker's process, and of its process group.
    pub fn pid(&self) -> u32 {
        self.id
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How far the end of a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    /// It should end by itself until then.
    Asked(Instant),
    /// It has got SIGTERM and should die until then.
    Terminated(Instant),
    /// It has got SIGKILL.
    Killed,
}

impl End {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Asked(deadline) | Self::Terminated(deadline) => Some(deadline),
            Self::NotYet | Self::Killed => None,
        }
    }
}

/// What a worker's output has brought so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Messages,
    /// Its result; whatever it says after that is ignored.
    Result,
    /// The end of its output without a result.
    End,
}

/// Holds a worker from its start until it is reaped.
struct Supervisor {
    name: String,
    child: Child,
    /// `None` once the end of its input has told the worker that nothing will follow.
    stdin: Option<pipe::Sender>,
    unsent: Line,
    queue: mpsc::Receiver<Line>,
    output: Messages,
    last_words: LastWords,
    events: mpsc::Sender<Event>,
    undelivered: VecDeque<PluginMessage>,
    shared: Arc<Shared>,
    allowance: Allowance,
    paused_until: Option<Instant>,
    log: LogFilter,
    limits: Limits,
    heard: Heard,
    end: End,
    fault: Option<LaunchError>,
}

impl Supervisor {
    /// Runs until the worker is reaped, and returns the events that were not delivered yet.
    async fn run(mut self) -> (mpsc::Sender<Event>, Vec<Event>) {
        loop {
            let listens = self.is_speaking() && !self.events.is_closed();
            let may_read = self.undelivered.is_empty() && self.paused_until.is_none();
            tokio::select! {
                () = self.child.exited() => return self.finish(),
                () = self.shared.cancelled.cancelled(), if self.end == End::NotYet => self.cancel(),
                () = until(self.end.deadline()) => self.press(),
                () = until(self.paused_until) => self.paused_until = None,
                Some(line) = self.queue.recv(), if self.unsent.is_empty() => self.unsent = line,
                written = write(self.stdin.as_ref(), &self.unsent), if !self.unsent.is_empty() => {
                    match written {
                        Some(length) => drop(self.unsent.drain(..length)),
                        // It reads no more. If that is wrong, its end will show it.
                        None => self.close_input(),
                    }
                }
                () = deliver(&self.events, &mut self.undelivered),
                    if !self.undelivered.is_empty() => {}
                heard = listen(&mut self.output, listens), if !listens || may_read => {
                    if let Some(heard) = heard {
                        self.hear(heard);
                    }
                }
                () = self.last_words.read() => {}
            }
        }
    }

    fn is_speaking(&self) -> bool {
        matches!(self.heard, Heard::Nothing | Heard::Messages) && self.fault.is_none()
    }

    fn hear(&mut self, heard: Result<Option<(PluginMessage, usize)>, Fault>) {
        match heard {
            Ok(Some((message, length))) => {
                let debt = self.allowance.take(length + LINE_COST);
                self.paused_until = (!debt.is_zero()).then(|| Instant::now() + debt);
                self.take(message);
            }
            // There will be no result, but how it exits says more about why.
            Ok(None) => {
                self.heard = Heard::End;
                self.ask_to_end();
            }
            Err(fault) => {
                self.fault = Some(self.explain(fault));
                self.cancel();
            }
        }
    }

    fn take(&mut self, message: PluginMessage) {
        self.heard = Heard::Messages;
        match message {
            PluginMessage::Log(log) => self.undelivered.extend(self.log.pass(log)),
            PluginMessage::Done | PluginMessage::Error(_) => {
                self.heard = Heard::Result;
                self.undelivered.push_back(message);
                self.close_input();
                self.ask_to_end();
            }
            message => self.undelivered.push_back(message),
        }
    }

    fn explain(&self, fault: Fault) -> LaunchError {
        match fault {
            Fault::TooLong => broken(&self.name, "a line of more than 1 MiB"),
            Fault::NotAMessage(line) if self.heard == Heard::Nothing => {
                broken(&self.name, "its first line is no message").caused_by(format!("`{line}`"))
            }
            Fault::NotAMessage(_) => broken(&self.name, "a line that is no message"),
            Fault::Io(kind) => {
                broken(&self.name, "its output cannot be read").because(&io::Error::from(kind))
            }
        }
    }

    fn cancel(&mut self) {
        let mut cancel = serde_json::to_vec(&HostMessage::Cancel).unwrap_or_default();
        cancel.push(b'\n');
        // What still waits is not worth reading any more, but half a line has to become whole.
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
        if self.stdin.is_some() {
            self.unsent.extend(cancel);
        }
        self.ask_to_end();
    }

    fn ask_to_end(&mut self) {
        if self.end == End::NotYet {
            self.end = End::Asked(Instant::now() + self.limits.grace);
        }
    }

    fn close_input(&mut self) {
        self.stdin = None;
        self.unsent = Line::default();
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
    }

    /// Goes one step further with a worker that has not ended in time.
    fn press(&mut self) {
        if let End::Asked(_) = self.end {
            self.child.signal(Signal::TERM);
            self.end = End::Terminated(Instant::now() + self.limits.terminate);
        } else {
            self.child.signal(Signal::KILL);
            self.end = End::Killed;
        }
    }

    /// Reaps a dead worker and makes the last events of what it left.
    fn finish(mut self) -> (mpsc::Sender<Event>, Vec<Event>) {
        let status = self.child.reap();
        while self.is_speaking() {
            match self.output.rest() {
                Ok(Some(message)) => self.take(message),
                Ok(None) => break,
                Err(fault) => self.fault = Some(self.explain(fault)),
            }
        }
        if self.shared.cancelled.is_cancelled() {
            let is_result = |it: &_| matches!(it, PluginMessage::Done | PluginMessage::Error(_));
            self.undelivered.retain(is_result);
        }
        let result = match self.heard {
            Heard::Result => Ok(()),
            _ => Err(self.failure(status)),
        };
        let undelivered = self.undelivered.into_iter().map(Event::Message);
        (self.events, undelivered.chain([Event::Ended(result)]).collect())
    }

    fn failure(&mut self, status: ExitStatus) -> LaunchError {
        let name = &self.name;
        let was_killed = matches!(self.end, End::Terminated(_) | End::Killed);
        let error = if let Some(fault) = self.fault.take() {
            fault
        } else if self.shared.overflowed.load(Ordering::Relaxed) {
            broken(name, "it does not read what it is sent")
        } else if self.shared.too_long.load(Ordering::Relaxed) {
            let message = format!("the launch is too long for plugin `{name}`: more than 1 MiB");
            return LaunchError::new(ErrorKind::InvalidOption, message);
        } else if self.shared.cancelled.is_cancelled() {
            let error = LaunchError::cancelled();
            let killed = format!("plugin `{name}` did not let go of it in time and was killed");
            return if was_killed { error.caused_by(killed) } else { error };
        } else if was_killed {
            broken(name, "it closed its output and went on running")
        } else {
            let before = if status.code().is_some() { " before answering" } else { "" };
            let message = format!("plugin `{name}` {}{before}", child::describe(status));
            LaunchError::new(ErrorKind::Plugin, message)
        };
        self.last_words.finish().into_iter().fold(error, LaunchError::caused_by)
    }
}

/// Says that a worker did not keep to the protocol.
fn broken(name: &str, how: &str) -> LaunchError {
    let message = format!("plugin `{name}` spoke no protocol that this program knows: {how}");
    LaunchError::new(ErrorKind::Plugin, message)
}

/// The manager's environment with the launching client's agent and language.
fn worker_environment(client: &BTreeMap<String, String>) -> Vec<(OsString, OsString)> {
    let mut environment = paths::worker_environment();
    if !client.is_empty() {
        // A client that has no agent must not get the manager's.
        environment.retain(|(name, _)| !CLIENT_ENVIRONMENT.iter().any(|it| name == it));
        let taken = client.iter().filter(|(name, _)| CLIENT_ENVIRONMENT.contains(&name.as_str()));
        environment.extend(taken.map(|(name, value)| (name.into(), value.into())));
    }
    environment
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Writes some of `line`; `None` if it cannot be written.
async fn write(stdin: Option<&pipe::Sender>, line: &[u8]) -> Option<usize> {
    let stdin = stdin?;
    loop {
        stdin.writable().await.ok()?;
        match stdin.try_write(line) {
            Ok(length) => return Some(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Hands the first message over as soon as there is room; all are void when nobody wants them.
async fn deliver(events: &mpsc::Sender<Event>, undelivered: &mut VecDeque<PluginMessage>) {
    match events.reserve().await {
        Ok(permit) => {
            if let Some(message) = undelivered.pop_front() {
                permit.send(Event::Message(message));
            }
        }
        Err(_) => undelivered.clear(),
    }
}

/// Takes the next message, or whatever comes of a worker whose words do not matter any more.
async fn listen(
    output: &mut Messages,
    listens: bool,
) -> Option<Result<Option<(PluginMessage, usize)>, Fault>> {
    if listens {
        return Some(output.next().await);
    }
    output.discard().await;
    None
}

/// Lets the wanted part of a log through, but not more than anybody could read.
struct LogFilter {
    level: LogLevel,
    allowance: Allowance,
    left_out: u64,
}

impl LogFilter {
    fn new(level: LogLevel) -> Self {
        Self { level, allowance: Allowance::new(LOG_RATE.0, LOG_RATE.1), left_out: 0 }
    }

    fn pass(&mut self, log: Log) -> impl Iterator<Item = PluginMessage> {
        let is_wanted = log.level <= self.level;
        let passes = is_wanted && self.allowance.try_one();
        self.left_out += u64::from(is_wanted && !passes);
        let left_out = if passes { std::mem::take(&mut self.left_out) } else { 0 };
        let note = (left_out > 0).then(|| Log {
            level: LogLevel::Warn,
            target: log.target.clone(),
            text: format!("{left_out} lines of the log were left out"),
        });
        note.into_iter().chain(passes.then_some(log)).map(PluginMessage::Log)
    }
}

#[cfg(test)]
mod tests;
