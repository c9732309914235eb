//! A worker process as the manager has it, and what a plugin says of itself.
//!
//! Whatever the plugin starts is found by a variable of its environment, so a case can tell what is
//! left, and leaves nothing itself.

#![allow(clippy::disallowed_methods, reason = "a worker gets the environment without `LD_*`")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::message::{
    HostHello, HostMessage, LogLevel, PluginHello, PluginMessage, MESSAGE_MAX,
};
use distant_plugin_api::Manifest;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use crate::script::Ending;
use crate::{attached, Kit};

/// How long a cancelled launch may take to let go of everything: what a manager gives it.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// How long a plugin may take to say what it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long what a launch started may take to be gone after it.
pub(crate) const GONE: Duration = Duration::from_secs(4);
/// The variable by which everything that a launch started on this machine is found.
const MARK: &str = "DISTANT_PLUGIN_TEST";
/// Lines that wait to be looked at; then the plugin waits.
const LINES: usize = 64;
/// Characters of something unexpected that are shown.
const SHOWN: usize = 120;

pub(crate) enum Heard {
    Message(PluginMessage, String),
    Junk(String),
    End,
    Deadline,
}

/// A worker process.
pub(crate) struct Worker {
    /// `None` where it is the process that has started this one.
    child: Option<Child>,
    pub(crate) stdin: Option<Box<dyn Write + Send>>,
    lines: mpsc::Receiver<Result<(PluginMessage, String), String>>,
    pub(crate) stderr: Option<thread::JoinHandle<String>>,
    mark: String,
}

impl Worker {
    fn start(kit: &Kit, table: Option<&str>) -> io::Result<Self> {
        if let Some(stream) = kit.in_process.then(attached::worker).flatten() {
            let (sender, lines) = mpsc::sync_channel(LINES);
            let output = stream.try_clone()?;
            thread::spawn(move || read_lines(output, &sender));
            let stdin: Box<dyn Write + Send> = Box::new(Attached(stream));
            let mark = format!("{MARK}=attached");
            return Ok(Self { child: None, stdin: Some(stdin), lines, stderr: None, mark });
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}.{count}", std::process::id());
        let mut command = Command::new("/proc/self/exe");
        command.arg("plugin-worker");
        if !kit.is_library {
            command.arg("--exec");
        }
        if let Some(table) = table {
            command.args(["--host-table", table]);
        }
        command.arg(&kit.plugin).env(MARK, &mark);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"LD_") {
                command.env_remove(name);
            }
        }
        let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn()?;
        let (sender, lines) = mpsc::sync_channel(LINES);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || read_lines(stdout, &sender));
        }
        let stderr = child.stderr.take().map(|stderr| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                // What was read until it failed is enough.
                let _ = stderr.take(8 << 20).read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        let stdin = child.stdin.take().map(|it| Box::new(it) as Box<dyn Write + Send>);
        let mark = format!("{MARK}={mark}");
        Ok(Self { child: Some(child), stdin, lines, stderr, mark })
    }

    pub(crate) fn next(&self, deadline: Instant) -> Heard {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(Ok((message, text))) => Heard::Message(message, text),
            Ok(Err(junk)) => Heard::Junk(junk),
            Err(mpsc::RecvTimeoutError::Timeout) => Heard::Deadline,
            Err(mpsc::RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    pub(crate) fn say(&mut self, message: &HostMessage) {
        if let Ok(line) = serde_json::to_string(message) {
            self.say_line(&line);
        }
    }

    pub(crate) fn say_line(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            // One that does not listen any more is heard of in other ways.
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Waits for its end; `None` if it does not come.
    pub(crate) fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let Some(child) = &mut self.child else { return Some(ExitStatus::default()) };
        let end = Instant::now() + limit;
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let left = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
            // An error is an interruption by a signal.
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
    }

    /// What it started and is still there; nothing once `limit` has shown that all is gone.
    pub(crate) fn left(&self, limit: Duration) -> Vec<(OwnedFd, String)> {
        let end = Instant::now() + limit;
        loop {
            let left = marked(&self.mark);
            if left.is_empty() || Instant::now() >= end {
                return left;
            }
            // The kernel sends no event when somebody else's child ends.
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Worker {
    /// Leaves nothing behind that the plugin started here.
    fn drop(&mut self) {
        self.stdin = None;
        for _ in 0..100 {
            let left = marked(&self.mark);
            if left.is_empty() {
                break;
            }
            for (process, _) in left {
                // It may have ended by itself meanwhile.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The connection to a worker whose input ends when this is dropped.
struct Attached(UnixStream);

impl Write for Attached {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It has ended by itself otherwise.
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

/// The processes whose environment holds this, with their command lines.
fn marked(mark: &str) -> Vec<(OwnedFd, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let found = entries.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        // Before it is looked at, so that what is killed is no other one with its number.
        let process = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
        let environment = environment(&entry.path())?;
        let is_it = environment.split(|byte| *byte == 0).any(|it| it == mark.as_bytes());
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        is_it.then(|| (process, short(words.trim())))
    });
    found.collect()
}

/// What a process was started with. One that is becoming another program shows nothing of it for a
/// moment, and is waited for. `process` is its folder in `/proc`; `None` if it is gone.
pub fn environment(process: &Path) -> Option<Vec<u8>> {
    let end = Instant::now() + GRACE;
    loop {
        let environment = std::fs::read(process.join("environ")).ok()?;
        if !environment.is_empty() || Instant::now() >= end {
            return Some(environment);
        }
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        // As proc(5) counts them; these begin with the third, behind a name that may hold anything.
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
        let number = |count: usize| fields.get(count - 3)?.parse::<u64>().ok();
        let [memory, from, to] = [number(23)?, number(50)?, number(51)?];
        // The kernel's own and what has ended have no memory; others were started with nothing.
        if memory == 0 || (to > 0 && from == to) {
            return Some(environment);
        }
        thread::yield_now();
    }
}

fn read_lines(
    stdout: impl Read,
    sender: &mpsc::SyncSender<Result<(PluginMessage, String), String>>,
) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        match (&mut stdout).take(MESSAGE_MAX as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(length) if length > MESSAGE_MAX => {
                let _ = sender.send(Err("a line of more than 1 MiB".to_owned()));
                return;
            }
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if text.is_empty() {
            continue;
        }
        let message = serde_json::from_slice(&line).map_err(|error| {
            format!("`{}`, as {}", short(&text), distant_plugin_worker::misfit(&error))
        });
        if sender.send(message.map(|message| (message, text))).is_err() {
            return;
        }
    }
}

/// The start of a text, without what could play tricks on a terminal.
pub(crate) fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect()
}

/// The last line that says something; what Rust adds to a panic is how to hear more of it.
pub(crate) fn last_words(stderr: &str) -> String {
    let line = stderr.lines().rfind(|it| !it.trim().is_empty() && !it.starts_with("note: "));
    line.map(|it| format!(": {}", short(it.trim()))).unwrap_or_default()
}

/// Says how a process ended.
pub(crate) fn described(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was killed by signal {signal}"),
        (None, code) => format!("it exited with status {} before its result", code.unwrap_or(0)),
    }
}

/// Starts a worker and waits for its hello.
pub(crate) fn greet(kit: &Kit, table: Option<&str>) -> Result<(Worker, PluginHello), Ending> {
    let mut worker = Worker::start(kit, table)
        .map_err(|error| Ending::Unusable(format!("no worker can be started: {error}")))?;
    match worker.next(Instant::now() + HELLO) {
        Heard::Message(PluginMessage::Hello(hello), _) => {
            let [lowest, highest] = hello.protocol;
            if !(lowest..=highest).contains(&1) {
                let reason = format!("it speaks protocol {lowest} to {highest}, hosts speak 1");
                return Err(Ending::Protocol(reason));
            }
            Ok((worker, hello))
        }
        Heard::Message(PluginMessage::Error(error), _) => Err(Ending::Error(error)),
        Heard::Message(_, text) => {
            Err(Ending::Protocol(format!("its first message is no hello: `{}`", short(&text))))
        }
        Heard::Junk(junk) => Err(Ending::Protocol(format!("its first line is no message: {junk}"))),
        Heard::End => match worker.end(GRACE) {
            Some(status) => {
                let words = worker.stderr.take().and_then(|it| it.join().ok()).unwrap_or_default();
                let text = format!("{}{}", described(status), last_words(&words));
                Err(Ending::Nothing(text, false))
            }
            None => Err(Ending::Protocol("it closed its output instead of saying hello".into())),
        },
        Heard::Deadline => {
            Err(Ending::Timeout(format!("it did not say hello within {} s", HELLO.as_secs())))
        }
    }
}

/// What a plugin says of itself, how long it took, what it printed to standard error, and whether
/// it ended when its input did.
pub(crate) struct Greeting {
    pub(crate) manifest: Manifest,
    pub(crate) took: Duration,
    pub(crate) stderr: String,
    pub(crate) more: Option<String>,
    pub(crate) ended: bool,
    pub(crate) left: Vec<String>,
}

/// Asks a plugin what it is, and nothing else.
pub(crate) fn ask_what_it_is(kit: &Kit) -> Result<Greeting, Ending> {
    let start = Instant::now();
    let (mut worker, hello) = greet(kit, None)?;
    let took = start.elapsed();
    // As a manager does, which says who it is before it knows that it wants nothing more.
    let log_level = LogLevel::Off;
    worker.say(&HostMessage::Hello(HostHello { protocol: 1, log_level }));
    worker.stdin = None;
    let ended = worker.end(GRACE).is_some();
    let left = worker.left(if ended { GONE } else { Duration::ZERO });
    let left: Vec<_> = left.into_iter().map(|(_, words)| words).collect();
    let more = match worker.next(Instant::now()) {
        Heard::Message(_, text) | Heard::Junk(text) => Some(short(&text)),
        Heard::End | Heard::Deadline => None,
    };
    let can_join = ended && left.is_empty();
    let stderr = worker.stderr.take().filter(|_| can_join).and_then(|it| it.join().ok());
    let manifest = hello.manifest;
    Ok(Greeting { manifest, took, stderr: stderr.unwrap_or_default(), more, ended, left })
}
