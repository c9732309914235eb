//! The task that holds one worker: reads it, writes to it, bounds it, ends it.
//!
//! It goes on until the worker is reaped, whoever still cares. What it cannot know is whether the
//! worker's words make sense for a launch; that is the manager's part.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use distant_plugin_api::message::{HostMessage, Log, LogLevel, PluginMessage};
use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::process::Signal;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::child::{self, Child, Pipes};
use super::discovery::Kind;
use super::failures::{Failure, How};
use super::lines::{Allowance, Fault, LastWords, Messages};
use super::process::{Event, Limits};
use super::session;

/// What a line counts beside its bytes: handling the shortest one costs something too.
const LINE_COST: usize = 256;
/// Texts that a person may be shown during one launch; nobody reads more.
const NOTICES_MAX: u32 = 200;
/// Lines of a worker's log: at once, and a second.
const LOG_RATE: (u32, u32) = (1000, 200);

/// What a [`super::process::Process`] can tell its supervisor at any time.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) cancelled: CancellationToken,
    /// It has a launch to cancel; before that the end of its input says all.
    pub(super) launched: AtomicBool,
    /// More messages were sent than the worker reads.
    pub(super) overflowed: AtomicBool,
    /// A message was too long to send.
    pub(super) too_long: AtomicBool,
    /// It has taken longer than it may: in these words.
    pub(super) late: OnceLock<String>,
}

/// A message to a worker, with its newline. There may be a password in it.
pub(super) type Line = Zeroizing<Vec<u8>>;

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
pub(super) struct Supervisor {
    name: String,
    path: PathBuf,
    kind: Kind,
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
    /// The same for standard error, of which nobody sees but the end.
    noise: Allowance,
    deaf_until: Option<Instant>,
    log: LogFilter,
    notices_left: u32,
    limits: Limits,
    heard: Heard,
    end: End,
    fault: Option<LaunchError>,
    /// It gave an error for which nobody but the plugin is to blame, such as a panic.
    own_fault: Option<String>,
}

impl Supervisor {
    pub(super) fn new(
        (name, path, kind): (String, PathBuf, Kind),
        (child, pipes): (Child, Pipes),
        limits: Limits,
        log_level: LogLevel,
        (queue, events, shared): (mpsc::Receiver<Line>, mpsc::Sender<Event>, Arc<Shared>),
    ) -> Self {
        Self {
            name,
            path,
            kind,
            child,
            stdin: Some(pipes.stdin),
            unsent: Line::default(),
            queue,
            output: Messages::new(pipes.stdout),
            last_words: LastWords::new(pipes.stderr),
            events,
            undelivered: VecDeque::new(),
            shared,
            allowance: Allowance::new(limits.output, limits.output_rate),
            paused_until: None,
            noise: Allowance::new(limits.output, limits.output_rate),
            deaf_until: None,
            log: LogFilter::new(log_level),
            notices_left: NOTICES_MAX,
            limits,
            heard: Heard::Nothing,
            end: End::NotYet,
            fault: None,
            own_fault: None,
        }
    }

    /// Runs until the worker is reaped, and returns the events that were not delivered yet, with
    /// what the plugin did wrong.
    pub(super) async fn run(mut self) -> (mpsc::Sender<Event>, Vec<Event>, Option<Failure>) {
        loop {
            let listens = self.is_speaking() && !self.events.is_closed();
            let may_read = self.undelivered.is_empty() && self.paused_until.is_none();
            tokio::select! {
                () = self.child.exited() => {
                    self.hear_rest();
                    self.end_session().await;
                    return self.finish();
                }
                () = self.shared.cancelled.cancelled(), if self.end == End::NotYet => self.cancel(),
                () = until(self.end.deadline()) => self.press(),
                () = until(self.paused_until) => self.paused_until = None,
                () = until(self.deaf_until) => self.deaf_until = None,
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
                length = self.last_words.read(), if self.deaf_until.is_none() => {
                    let debt = self.noise.take(length);
                    self.deaf_until = (!debt.is_zero()).then(|| Instant::now() + debt);
                }
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
                if let PluginMessage::Error(error) = &message {
                    // Once it has been delivered the launch is cancelled in any case.
                    let is_its_own =
                        error.kind == ErrorKind::Plugin && !self.shared.cancelled.is_cancelled();
                    self.own_fault = is_its_own.then(|| error.one_line().into_owned());
                }
                self.heard = Heard::Result;
                self.undelivered.push_back(message);
                self.close_input();
                self.ask_to_end();
            }
            PluginMessage::Notice(_) if self.notices_left == 0 => {
                let message =
                    format!("plugin `{}` sent more than {NOTICES_MAX} notices", self.name);
                self.fault = Some(LaunchError::new(ErrorKind::Plugin, message));
                self.cancel();
            }
            message => {
                let is_notice = matches!(message, PluginMessage::Notice(_));
                self.notices_left -= u32::from(is_notice);
                self.undelivered.push_back(message);
            }
        }
    }

    fn explain(&self, fault: Fault) -> LaunchError {
        match fault {
            Fault::TooLong => broken(&self.name, "it sent a line of more than 1 MiB"),
            Fault::NotAMessage { line, why } if self.heard == Heard::Nothing => {
                let error = broken(&self.name, "its first line is no message");
                error.caused_by(why).caused_by(format!("`{line}`"))
            }
            Fault::NotAMessage { why, .. } => {
                broken(&self.name, "it sent a line that is no message").caused_by(why)
            }
            Fault::Io(kind) => {
                broken(&self.name, "its output cannot be read").because(&io::Error::from(kind))
            }
        }
    }

    fn cancel(&mut self) {
        self.ask_to_end();
        if !self.shared.launched.load(Ordering::Relaxed) {
            return self.close_input();
        }
        let mut cancel = serde_json::to_vec(&HostMessage::Cancel).unwrap_or_default();
        cancel.push(b'\n');
        // What still waits is not worth reading any more, but half a line has to become whole.
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
        if self.stdin.is_some() {
            self.unsent.extend(cancel);
        }
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

    /// Takes what a dead worker has said before that.
    fn hear_rest(&mut self) {
        while self.is_speaking() {
            match self.output.rest() {
                Ok(Some(message)) => self.take(message),
                Ok(None) => break,
                Err(fault) => self.fault = Some(self.explain(fault)),
            }
        }
    }

    /// Ends what a worker has left that did not come to do it. A library starts programs itself and may
    /// mean them to stay.
    async fn end_session(&mut self) {
        let is_launched = self.shared.launched.load(Ordering::Relaxed);
        let came_to_it = self.heard == Heard::Result && !self.was_killed();
        if self.kind == Kind::Library || !is_launched || came_to_it {
            return;
        }
        self.child.signal(Signal::KILL);
        let (leader, grace) = (self.child.leader(), self.limits.grace);
        // Where it breaks down, somebody is left; the worker is reaped all the same.
        let _ = tokio::task::spawn_blocking(move || session::end(leader, grace)).await;
    }

    /// Reaps a dead worker and makes the last events of what it left.
    fn finish(mut self) -> (mpsc::Sender<Event>, Vec<Event>, Option<Failure>) {
        let status = self.child.reap();
        if self.shared.cancelled.is_cancelled() {
            let is_result = |it: &_| matches!(it, PluginMessage::Done | PluginMessage::Error(_));
            self.undelivered.retain(is_result);
        }
        let last_words = self.last_words.finish();
        let how = self.how(status);
        let result = match self.heard {
            Heard::Result => Ok(()),
            _ => Err(self.failure(status, last_words.clone())),
        };
        let failure = how
            .map(|(how, message)| Failure::now(&self.path, how, &message, last_words.as_deref()));
        let undelivered = self.undelivered.into_iter().map(Event::Message);
        (self.events, undelivered.chain([Event::Ended(result)]).collect(), failure)
    }

    fn was_killed(&self) -> bool {
        matches!(self.end, End::Terminated(_) | End::Killed)
    }

    /// What the plugin did wrong, if it did: also where nobody wants to hear of its launch any more.
    fn how(&mut self, status: ExitStatus) -> Option<(How, String)> {
        let was_cancelled = self.shared.cancelled.is_cancelled();
        let has_result = self.heard == Heard::Result;
        if self.shared.too_long.load(Ordering::Relaxed) {
            // That is the doing of whoever asked for the launch.
            None
        } else if let Some(late) = self.shared.late.get() {
            Some((How::TimedOut, late.clone()))
        } else if self.shared.overflowed.load(Ordering::Relaxed) {
            Some((How::BrokeProtocol, self.unread().message))
        } else if let Some(fault) = &self.fault {
            Some((How::BrokeProtocol, fault.one_line().into_owned()))
        } else if self.was_killed() && (was_cancelled || has_result) {
            Some((How::Killed, self.lingered()))
        } else if let Some(fault) = self.own_fault.take() {
            Some((How::Failed, fault))
        } else if has_result || was_cancelled {
            None
        } else if self.was_killed() {
            Some((How::Killed, self.went_on().message))
        } else {
            Some((How::Crashed, self.ended(status)))
        }
    }

    fn unread(&self) -> LaunchError {
        broken(&self.name, "it does not read what it is sent")
    }

    fn went_on(&self) -> LaunchError {
        broken(&self.name, "it closed its output and went on running")
    }

    fn lingered(&self) -> String {
        format!("plugin `{}` did not let go of it in time and was killed", self.name)
    }

    fn ended(&self, status: ExitStatus) -> String {
        let before = if status.code().is_some() { " before answering" } else { "" };
        format!("plugin `{}` {}{before}", self.name, child::describe(status))
    }

    fn failure(&mut self, status: ExitStatus, last_words: Option<String>) -> LaunchError {
        let error = if self.shared.overflowed.load(Ordering::Relaxed) {
            self.unread()
        } else if self.shared.too_long.load(Ordering::Relaxed) {
            let name = &self.name;
            let message = format!("the launch is too long for plugin `{name}`: more than 1 MiB");
            return LaunchError::new(ErrorKind::InvalidOption, message);
        } else if self.shared.cancelled.is_cancelled() {
            // What it does wrong after that is nobody's concern any more.
            let error = LaunchError::cancelled();
            return if self.was_killed() { error.caused_by(self.lingered()) } else { error };
        } else if let Some(fault) = self.fault.take() {
            fault
        } else if self.was_killed() {
            self.went_on()
        } else {
            LaunchError::new(ErrorKind::Plugin, self.ended(status))
        };
        last_words.into_iter().fold(error, LaunchError::caused_by)
    }
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

/// Says that a worker did not keep to the protocol.
pub(super) fn broken(name: &str, how: &str) -> LaunchError {
    let message = format!("plugin `{name}` broke the protocol: {how}");
    LaunchError::new(ErrorKind::Plugin, message)
}
