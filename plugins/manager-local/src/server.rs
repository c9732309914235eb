//! The server process of one launch: it is heard, watched, and never left behind.
//!
//! Whatever it prints is read until it closes its ends, because a distant 0.20.0 that is not
//! listened to dies of it. Nothing here polls: one thread reads each pipe, and whoever waits sleeps
//! in one `poll` over the process, what it printed, and the cancellation.

#![allow(unsafe_code, reason = "the death signal is set between fork and exec")]

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::connect_line::{ConnectLine, HELLO_LINE, PROOF_LINE};
use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::{
    getpid, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal, Pid,
    PidfdFlags, Signal,
};

/// Between the request to end and the end by force.
const GRACE: Duration = Duration::from_secs(1);

/// For the rest of what a process printed before it ended or closed its output.
const DRAIN: Duration = Duration::from_millis(500);

/// For what follows the connect line. Both distant 0.20.0 and ours send it at once; a program
/// that only prints the line waits this long.
const AFTER_LINE: Duration = Duration::from_millis(200);

/// Longest line that is understood; the rest of a longer one is not kept.
const LINE_MAX: usize = 4096;

/// How many lines are kept of each stream for the error.
const LAST_LINES: usize = 8;

/// How a server is reached, as it said itself.
#[derive(Debug, Clone)]
pub(crate) struct Listening {
    /// Its connect line.
    pub(crate) line: ConnectLine,
    /// Whether the key can be proved to it.
    pub(crate) proof: bool,
}

/// Why a server is not there.
#[derive(Debug)]
pub(crate) enum NotListening {
    /// It has ended.
    Ended(ExitStatus),
    /// It has closed its output, and never can say how it is reached.
    Silenced,
    /// It said nothing for too long.
    TimedOut,
    /// Nobody wants it any more.
    Cancelled,
    /// The system does not let us wait.
    System(io::Error),
}

/// What ended a wait for a server that listens.
#[derive(Debug)]
pub(crate) enum Event {
    /// It ended by itself.
    Ended(ExitStatus),
    /// Nobody wants it any more.
    Cancelled,
}

/// A server process; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Our server ends when this closes, even if this process is killed.
    lifeline: Option<ChildStdin>,
    process: OwnedFd,
    output: Arc<Output>,
}

impl Server {
    /// Starts a command. The calling thread has to live as long as the server: when it ends, so
    /// does the server, at once and whatever it does.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or the system refuses a descriptor or thread.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let parent = getpid();
        let die_with_parent = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Whoever died before the line above sends no signal any more.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only what is async-signal-safe may happen; the closure
        // makes two system calls and allocates nothing.
        unsafe { command.pre_exec(die_with_parent) };
        let output = Arc::new(Output::new()?);
        let mut child = command.spawn()?;
        let lifeline = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        // From here on dropping it ends the process.
        let server = Self { child, lifeline, process, output };
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            Output::read_on_a_thread(&server.output, stdout, Stream::Out)?;
            Output::read_on_a_thread(&server.output, stderr, Stream::Err)?;
        }
        Ok(server)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server has said how it is reached.
    ///
    /// # Errors
    ///
    /// It never will.
    pub(crate) fn wait_listening(
        &mut self,
        cancel: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<Listening, NotListening> {
        let mut line_seen: Option<Instant> = None;
        loop {
            if let Some(status) = self.child.try_wait().map_err(NotListening::System)? {
                self.drain();
                return Err(NotListening::Ended(status));
            }
            let mut until = deadline;
            {
                let heard = self.output.heard();
                match &heard.line {
                    Some(line) => {
                        let grace = *line_seen.get_or_insert_with(Instant::now) + AFTER_LINE;
                        if heard.complete || heard.output_closed || Instant::now() >= grace {
                            return Ok(Listening { line: line.clone(), proof: heard.proof });
                        }
                        until = grace;
                    }
                    None if heard.output_closed => {
                        drop(heard);
                        return Err(self.silenced());
                    }
                    None => {}
                }
            }
            let [_, cancelled, heard] =
                wait([self.process.as_fd(), cancel, self.output.changed.as_fd()], Some(until))
                    .map_err(NotListening::System)?;
            if cancelled {
                return Err(NotListening::Cancelled);
            }
            if heard {
                self.output.seen();
            }
            // Also for one that goes on saying something else.
            if line_seen.is_none() && Instant::now() >= deadline {
                return Err(NotListening::TimedOut);
            }
        }
    }

    /// Its output is closed: most likely it is about to end, with a status that says more.
    fn silenced(&mut self) -> NotListening {
        let _ = wait([self.process.as_fd()], Some(Instant::now() + DRAIN));
        match self.child.try_wait() {
            Ok(Some(status)) => {
                self.drain();
                NotListening::Ended(status)
            }
            Ok(None) => NotListening::Silenced,
            Err(error) => NotListening::System(error),
        }
    }

    /// Waits until the server ends or nobody wants it any more.
    ///
    /// # Errors
    ///
    /// The system does not let us wait.
    pub(crate) fn wait_end(&mut self, cancel: BorrowedFd<'_>) -> io::Result<Event> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Event::Ended(status));
            }
            let [_, cancelled] = wait([self.process.as_fd(), cancel], None)?;
            if cancelled {
                return Ok(Event::Cancelled);
            }
        }
    }

    /// Tells whether the server has ended already, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            self.drain();
        }
        status
    }

    /// What the server said last, without lines that could hold its key or are meant for no person.
    pub(crate) fn last_words(&self) -> Vec<String> {
        let heard = self.output.heard();
        let words = if heard.errors.is_empty() { &heard.others } else { &heard.errors };
        words.iter().cloned().collect()
    }

    /// Gives the readers time to take what a dead process left in its pipes. Something else may
    /// hold them open.
    fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN;
        loop {
            {
                let heard = self.output.heard();
                if heard.output_closed && heard.errors_closed {
                    return;
                }
            }
            match wait([self.output.changed.as_fd()], Some(deadline)) {
                Ok([true]) => self.output.seen(),
                _ => return,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.lifeline = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            // An error means that it has just ended.
            let _ = pidfd_send_signal(&self.process, Signal::TERM);
            let _ = wait([self.process.as_fd()], Some(Instant::now() + GRACE));
            if matches!(self.child.try_wait(), Ok(None)) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }
}

/// Words for how a process ended.
pub(crate) fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Sleeps until one of the descriptors is readable; tells which are.
fn wait<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut entries = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut entries, timeout.as_ref()) {
        Ok(_) => Ok(entries.map(|entry| !entry.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// What both streams have said so far.
#[derive(Debug)]
struct Output {
    heard: Mutex<Heard>,
    /// Readable when `heard` has changed.
    changed: OwnedFd,
}

#[derive(Debug, Default)]
struct Heard {
    line: Option<ConnectLine>,
    proof: bool,
    /// What belongs to the connect line has been seen to its end.
    complete: bool,
    output_closed: bool,
    errors_closed: bool,
    /// The last lines of standard error.
    errors: VecDeque<String>,
    /// The last lines of standard output that are no connect line.
    others: VecDeque<String>,
}

impl Output {
    fn new() -> io::Result<Self> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { heard: Mutex::default(), changed })
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        // Full only after 2^64 - 1 changes that nobody looked at; it is readable then.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    fn seen(&self) {
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
    }

    fn read_on_a_thread(
        this: &Arc<Self>,
        pipe: impl Read + Send + 'static,
        stream: Stream,
    ) -> io::Result<()> {
        let this = Arc::clone(this);
        let thread = thread::Builder::new().name("server-output".to_owned());
        thread.spawn(move || this.read(pipe, stream)).map(drop)
    }

    fn read(&self, mut pipe: impl Read, stream: Stream) {
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            let count = match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            for &byte in &buffer[..count] {
                if byte == b'\n' {
                    self.heard().take(&line, stream);
                    line.clear();
                } else if line.len() < LINE_MAX {
                    line.push(byte);
                }
            }
            self.tell();
        }
        let mut heard = self.heard();
        if !line.is_empty() {
            // Half a line is no connect line, but may be half of the reason.
            heard.keep(&String::from_utf8_lossy(&line), stream);
        }
        match stream {
            Stream::Out => heard.output_closed = true,
            Stream::Err => heard.errors_closed = true,
        }
        drop(heard);
        self.tell();
    }
}

impl Heard {
    fn take(&mut self, line: &[u8], stream: Stream) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if stream == Stream::Out && !self.complete {
            if self.line.is_some() {
                self.proof = text == PROOF_LINE;
                self.complete = true;
                return;
            }
            self.line = ConnectLine::parse(text);
            if self.line.is_some() {
                return;
            }
        }
        self.keep(text, stream);
    }

    fn keep(&mut self, text: &str, stream: Stream) {
        let text = text.trim();
        if text.is_empty() || text.contains("distant://") || text.starts_with(HELLO_LINE) {
            return;
        }
        let lines = match stream {
            Stream::Out => &mut self.others,
            Stream::Err => &mut self.errors,
        };
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }
}
