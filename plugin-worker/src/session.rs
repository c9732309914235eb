//! What a worker knows of its launch: who waits for which answer, and whether it is over.
//!
//! Any thread of the plugin may send at any time, also when the launch has ended; the thread that
//! reads from the host wakes whoever waits. After the first result nothing is sent any more.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use distant_plugin_api::abi::Status;
use distant_plugin_api::message::{
    Answer, Ask, AskKind, HostMessage, Offer, PluginHello, PluginMessage, Run, Verdict,
    VerdictKind, MESSAGE_MAX,
};
use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use zeroize::Zeroizing;

/// Most questions that are open at a time, and most offers of one launch.
const OPEN_MAX: usize = 64;

/// One launch, as the worker sees it.
pub(crate) struct Session {
    output: Mutex<Output>,
    state: Mutex<State>,
    changed: Condvar,
    /// Readable once `cancelling` has been written to.
    cancelled: OwnedFd,
    cancelling: OwnedFd,
}

struct Output {
    to_host: File,
    /// The result has been sent, or nobody is there to read it.
    ended: bool,
}

#[derive(Default)]
struct State {
    asks: BTreeMap<u64, Option<Answer>>,
    offers: BTreeMap<u64, Offered>,
    run: RunState,
    /// Why a launch that is cancelled was not cancelled by the host.
    stopped: Option<LaunchError>,
    launched: bool,
    cancelled: bool,
    host_gone: bool,
}

/// How far the one question to an executable plugin is.
#[derive(Default)]
enum RunState {
    #[default]
    Unasked,
    Asked,
    Answered(Run),
    /// It was taken, or none will come.
    Over,
}

#[derive(Default)]
struct Offered {
    verdicts: VecDeque<VerdictKind>,
    last: Option<VerdictKind>,
}

/// Why a message was not sent, or its answer never came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nobody wants the launch any more.
    Cancelled,
    /// The message breaks the protocol.
    Malformed(&'static str),
}

/// A panic while a lock was held has already ended the launch; the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Begins a session; `protect` moves a descriptor out of the plugin's reach.
    pub(crate) fn new(
        to_host: File,
        protect: impl Fn(OwnedFd) -> Result<OwnedFd, Errno>,
    ) -> io::Result<Self> {
        let (cancelled, cancelling) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            output: Mutex::new(Output { to_host, ended: false }),
            state: Mutex::default(),
            changed: Condvar::new(),
            cancelled: protect(cancelled)?,
            cancelling: protect(cancelling)?,
        })
    }

    /// Writes one line; whatever `ends` the launch is the last one.
    fn write(&self, message: &PluginMessage, ends: bool) -> Result<(), Refusal> {
        let mut line = Zeroizing::new(Vec::with_capacity(512));
        serde_json::to_writer(&mut *line, message)
            .map_err(|_| Refusal::Malformed("a message cannot be written as JSON"))?;
        line.push(b'\n');
        if line.len() > MESSAGE_MAX {
            return Err(Refusal::Malformed("a message has more than 1 MiB"));
        }
        let mut output = lock(&self.output);
        if output.ended {
            return Err(Refusal::Cancelled);
        }
        output.ended = ends;
        output.to_host.write_all(&line).map_err(|_| {
            output.ended = true;
            Refusal::Cancelled
        })
    }

    /// Sends the first message.
    pub(crate) fn introduce(&self, hello: PluginHello) {
        // Nobody there is found out by the thread that reads.
        let _ = self.write(&PluginMessage::Hello(hello), false);
    }

    /// Sends a message of the plugin's and, for an ask or an offer, waits for the answer.
    pub(crate) fn send(&self, message: PluginMessage) -> Result<Option<HostMessage>, Refusal> {
        let ends = matches!(message, PluginMessage::Done | PluginMessage::Error(_));
        match message {
            PluginMessage::Ask(ask) => self.ask(ask).map(HostMessage::Answer).map(Some),
            PluginMessage::Offer(offer) => self.offer(offer).map(HostMessage::Verdict).map(Some),
            PluginMessage::Hello(_) => Err(Refusal::Malformed("`hello` is the host's to send")),
            PluginMessage::Run(_) => Err(Refusal::Malformed("`run` answers nothing here")),
            PluginMessage::Other => Ok(None),
            // How it ended and why are told even when nobody wants the launch any more.
            PluginMessage::Log(_) => self.write(&message, false).map(|()| None),
            _ if ends => self.write(&message, true).map(|()| None),
            _ if self.is_cancelled() => Err(Refusal::Cancelled),
            _ => self.write(&message, false).map(|()| None),
        }
    }

    fn ask(&self, ask: Ask) -> Result<Answer, Refusal> {
        let id = ask.id;
        if let AskKind::Other = ask.question {
            return Ok(Answer { id, answers: None, valid: None, cancelled: true });
        }
        let mut state = lock(&self.state);
        if state.asks.len() >= OPEN_MAX {
            return Err(Refusal::Malformed("too many questions are open"));
        }
        if state.asks.insert(id, None).is_some() {
            return Err(Refusal::Malformed("two open questions have the same id"));
        }
        drop(state);
        let written = self.write(&PluginMessage::Ask(ask), false);
        let answer = written.and_then(|()| self.wait(|state| state.asks.get_mut(&id)?.take()));
        lock(&self.state).asks.remove(&id);
        answer
    }

    fn offer(&self, offer: Offer) -> Result<Verdict, Refusal> {
        let id = offer.id;
        let mut state = lock(&self.state);
        let is_new = !state.offers.contains_key(&id);
        if is_new && state.offers.len() >= OPEN_MAX {
            return Err(Refusal::Malformed("there are too many offers"));
        }
        state.offers.entry(id).or_default();
        drop(state);
        if is_new {
            self.write(&PluginMessage::Offer(offer), false)?;
        }
        let result = self.wait(|state| {
            let offered = state.offers.get_mut(&id)?;
            if let Some(next) = offered.verdicts.pop_front() {
                offered.last = Some(next);
            } else if offered.last == Some(VerdictKind::Slow) {
                return None;
            }
            // A final verdict stays what it is, however often it is asked for.
            offered.last.clone()
        })?;
        Ok(Verdict { id, result })
    }

    /// Waits until there is what is looked for, or nobody wants it any more. What has come before
    /// the launch was cancelled still counts.
    fn wait<T>(&self, look: impl Fn(&mut State) -> Option<T>) -> Result<T, Refusal> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if state.cancelled {
                return Err(Refusal::Cancelled);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes an answer in; one that nobody waits for is dropped.
    pub(crate) fn answered(&self, answer: Answer) {
        if let Some(waiting) = lock(&self.state).asks.get_mut(&answer.id) {
            *waiting = Some(answer);
        }
        self.changed.notify_all();
    }

    /// Hands on a message of an executable plugin's, whose answer is its own to take.
    pub(crate) fn pass(&self, message: &PluginMessage) {
        // Nobody there is found out by the thread that reads; too long it cannot be, as it was read.
        let _ = self.write(message, false);
    }

    /// An executable plugin is about to be asked how a command is run.
    pub(crate) fn wants_run(&self) {
        let mut state = lock(&self.state);
        if matches!(state.run, RunState::Unasked) {
            state.run = RunState::Asked;
        }
    }

    /// Takes in how a command is run, or that this will never be said. Tells whether anybody waits.
    pub(crate) fn ran(&self, run: Option<Run>) -> bool {
        let mut state = lock(&self.state);
        let is_asked = matches!(state.run, RunState::Asked);
        state.run = match (run, is_asked) {
            (Some(run), true) => RunState::Answered(run),
            (None, _) if !matches!(state.run, RunState::Answered(_)) => RunState::Over,
            _ => return false,
        };
        self.changed.notify_all();
        is_asked
    }

    /// Waits for how a command is run; `None` if it will never be said.
    pub(crate) fn wait_for_run(&self) -> Result<Option<Run>, Refusal> {
        self.wait(|state| match std::mem::replace(&mut state.run, RunState::Over) {
            RunState::Answered(run) => Some(Some(run)),
            RunState::Over => Some(None),
            waiting => {
                state.run = waiting;
                None
            }
        })
    }

    /// Cancels the launch because of the plugin; the first reason counts.
    pub(crate) fn stop(&self, error: LaunchError) {
        lock(&self.state).stopped.get_or_insert(error);
        self.cancel();
    }

    /// Why the launch was [stopped](Self::stop), if it was.
    pub(crate) fn stopped(&self) -> Option<LaunchError> {
        lock(&self.state).stopped.take()
    }

    /// Takes a verdict in; one for an offer that was never made is dropped.
    pub(crate) fn decided(&self, verdict: Verdict) {
        if let Some(offered) = lock(&self.state).offers.get_mut(&verdict.id) {
            offered.verdicts.push_back(verdict.result);
        }
        self.changed.notify_all();
    }

    /// Tells the plugin in every way there is that nobody wants the launch any more.
    pub(crate) fn cancel(&self) {
        let first = !std::mem::replace(&mut lock(&self.state).cancelled, true);
        self.changed.notify_all();
        if first {
            // Fails only where the plugin has filled the pipe itself; then it is readable anyway.
            let _ = rustix::io::write(self.cancelling.as_fd(), &[0]);
        }
    }

    /// Ends the launch with what `launch` returned, unless it has sent its result itself.
    pub(crate) fn finish(&self, status: Status) {
        let failed = |what: &str| LaunchError::new(ErrorKind::Plugin, what);
        let result = match status {
            Status::OK => PluginMessage::Done,
            Status::CANCELLED => PluginMessage::Error(LaunchError::cancelled()),
            Status::MALFORMED => {
                PluginMessage::Error(failed("the plugin cannot read the host's table or request"))
            }
            _ => PluginMessage::Error(failed("the plugin failed without saying why")),
        };
        // A refusal means that the result is out, or that nobody reads it.
        let _ = self.write(&result, true);
    }

    /// Ends the launch because the plugin, the host or the worker is broken.
    pub(crate) fn fail(&self, error: LaunchError) {
        let _ = self.write(&PluginMessage::Error(error.clipped()), true);
        self.cancel();
    }

    /// The host has closed its end.
    pub(crate) fn host_is_gone(&self) {
        lock(&self.state).host_gone = true;
        self.cancel();
    }

    /// The host has asked for the launch.
    pub(crate) fn launched(&self) {
        lock(&self.state).launched = true;
    }

    /// Whether the launch may hold something that has to be cleaned up.
    pub(crate) fn is_launched(&self) -> bool {
        lock(&self.state).launched
    }

    /// Whether nobody wants the launch any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        lock(&self.state).cancelled
    }

    /// Whether the host has closed its end.
    pub(crate) fn is_host_gone(&self) -> bool {
        lock(&self.state).host_gone
    }

    /// Becomes readable, and stays so, when nobody wants the launch any more.
    pub(crate) fn cancelled(&self) -> BorrowedFd<'_> {
        self.cancelled.as_fd()
    }

    /// The number of [`Session::cancelled`].
    pub(crate) fn cancel_fd(&self) -> RawFd {
        self.cancelled.as_raw_fd()
    }
}
