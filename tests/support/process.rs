//! A process of the test: what it prints line by line, and its end, each with a deadline.
//!
//! Every process starts a group of its own, which is killed when the fixture is dropped, so that a
//! failed test leaves nothing behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{
    kill_process, kill_process_group, pidfd_open, Pid, PidfdFlags, Signal as RawSignal,
};

use super::PATIENCE;

/// A signal that a test sends.
pub(crate) type Signal = RawSignal;

/// What a program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Everything on its stdout.
    pub(crate) stdout: String,
    /// Everything on its stderr.
    pub(crate) stderr: String,
    what: String,
}

impl Finished {
    /// Fails the test unless the program ended with this exit code.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Self {
        assert_eq!(self.status.code(), Some(expected), "{}", self.told());
        self
    }

    /// Fails the test unless the program succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> Self {
        self.code(0)
    }

    /// The one number on stdout, where it is a connection's id.
    #[track_caller]
    pub(crate) fn id(self) -> u32 {
        let this = self.success();
        let id = this.stdout.strip_suffix('\n').and_then(|line| line.parse().ok());
        id.unwrap_or_else(|| panic!("no connection id: {}", this.told()))
    }

    /// Everything about it, for the message of a failed test.
    pub(crate) fn told(&self) -> String {
        let Self { status, what, .. } = self;
        let (stdout, stderr) = (shortened(&self.stdout), shortened(&self.stderr));
        format!("`{what}` ended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// What a stream has given so far.
#[derive(Default)]
struct Stream {
    text: Vec<u8>,
    taken: usize,
    ended: bool,
}

/// A stream that a thread of its own reads.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<(Mutex<Stream>, Condvar)>);

impl Output {
    pub(super) fn read(source: impl Read + Send + 'static) -> Self {
        let this = Self::default();
        let output = this.clone();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            loop {
                let given = source.fill_buf().unwrap_or_default();
                let (stream, changed) = &*output.0;
                let mut stream = stream.lock().unwrap();
                stream.text.extend_from_slice(given);
                stream.ended = given.is_empty();
                changed.notify_all();
                if given.is_empty() {
                    break;
                }
                drop(stream);
                let count = given.len();
                source.consume(count);
            }
        });
        this
    }

    /// Waits until `found` finds something in the stream, and gives up after the deadline.
    fn wait<T>(&self, end: Instant, mut found: impl FnMut(&mut Stream) -> Option<T>) -> Option<T> {
        let (stream, changed) = &*self.0;
        let mut stream = stream.lock().unwrap();
        loop {
            if let Some(found) = found(&mut stream) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            stream = changed.wait_timeout(stream, left).unwrap().0;
        }
    }

    /// The next line without its end; `None` at the end of the stream.
    pub(super) fn line(&self, end: Instant) -> Option<Option<String>> {
        self.wait(end, |stream| {
            let rest = &stream.text[stream.taken..];
            let length = match rest.iter().position(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                None if stream.ended && rest.is_empty() => return Some(None),
                None if stream.ended => rest.len(),
                None => return None,
            };
            let line = String::from_utf8_lossy(&rest[..length]).trim_end().to_owned();
            stream.taken += length;
            Some(Some(line))
        })
    }

    /// Everything up to and including `text`, from where the last call stopped.
    pub(super) fn until(&self, text: &str, end: Instant) -> Option<String> {
        self.wait(end, |stream| {
            let rest = String::from_utf8_lossy(&stream.text[stream.taken..]).into_owned();
            let at = rest.find(text)? + text.len();
            stream.taken += at;
            Some(rest[..at].to_owned())
        })
    }

    /// Everything, once the stream has ended.
    pub(super) fn all(&self, end: Instant) -> Option<String> {
        self.wait(end, |stream| stream.ended.then(|| lossy(&stream.text)))
    }

    pub(super) fn so_far(&self) -> String {
        lossy(&self.0 .0.lock().unwrap().text)
    }
}

/// The end of a text, if it is long.
pub(super) fn shortened(text: &str) -> String {
    let least = text.len().saturating_sub(4000);
    let start = (least..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(least);
    let cut = if start > 0 { format!("({start} bytes before this)\n") } else { String::new() };
    format!("{cut}{}", &text[start..])
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// Waits for a process to end; `false` if it still runs after `limit`.
pub(super) fn wait_for_end(pidfd: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(ended) => return ended > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot wait for a process: {error}"),
        }
    }
}

/// A program that runs.
pub(crate) struct Running {
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<ChildStdin>,
    stdout: Output,
    stderr: Output,
    what: String,
}

impl Running {
    /// Starts a program in a group of its own, its three streams being pipes.
    pub(crate) fn start(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let what = words.join(" ");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `{what}`: {error}"));
        let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty()).unwrap();
        let stdin = child.stdin.take();
        let stdout = Output::read(child.stdout.take().unwrap());
        let stderr = Output::read(child.stderr.take().unwrap());
        Self { child, pidfd, stdin, stdout, stderr, what }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its stdin.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is closed");
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Writes all of this to its stdin and closes it. A program that ends without having read it
    /// is none the worse for it.
    pub(crate) fn feed(&mut self, input: &[u8]) {
        let mut stdin = self.stdin.take().expect("stdin is closed");
        let input = input.to_owned();
        thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
    }

    /// Lets it see the end of its stdin.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line on its stdout; fails the test at the end of the stream.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        match self.stdout.line(Instant::now() + PATIENCE) {
            Some(Some(line)) => line,
            Some(None) => panic!("no more lines from {}", self.told()),
            None => panic!("waited {PATIENCE:?} for a line from {}", self.told()),
        }
    }

    /// The next line on its stdout, if it comes within this time.
    pub(crate) fn line_within(&self, limit: Duration) -> Option<String> {
        self.stdout.line(Instant::now() + limit).flatten()
    }

    /// Waits until it has said this on its stderr, from where the last call stopped.
    #[track_caller]
    pub(crate) fn told_on_stderr(&self, text: &str, limit: Duration) {
        let found = self.stderr.until(text, Instant::now() + limit);
        assert!(found.is_some(), "waited {limit:?} for `{text}` from {}", self.told());
    }

    /// The next line on its stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next message that is more than something to be read.
    #[track_caller]
    pub(crate) fn answer(&self) -> serde_json::Value {
        let mut message = self.json();
        while message["type"] == "auth_info" {
            message = self.json();
        }
        message
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(pid_of(&self.child), signal).unwrap();
    }

    /// Tells whether it ends within this time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        wait_for_end(&self.pidfd, limit)
    }

    /// Waits for its end and that of its output.
    #[track_caller]
    pub(crate) fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    /// The same for what may take this long.
    #[track_caller]
    pub(crate) fn finish_within(mut self, limit: Duration) -> Finished {
        self.close_stdin();
        assert!(self.ends_within(limit), "it does not end: {}", self.told());
        let status = self.child.wait().unwrap();
        let end = Instant::now() + PATIENCE;
        let (Some(stdout), Some(stderr)) = (self.stdout.all(end), self.stderr.all(end)) else {
            panic!("it ended, but somebody still holds its output open: {}", self.told());
        };
        Finished { status, stdout, stderr, what: self.what.clone() }
    }

    /// What it has said so far.
    pub(crate) fn told(&self) -> String {
        let (stdout, stderr) = (self.stdout.so_far(), self.stderr.so_far());
        let (stdout, stderr) = (shortened(&stdout), shortened(&stderr));
        format!("`{}`\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---", self.what)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do where it has ended and was waited for: its number may be another's then.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

pub(super) fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

#[test]
fn a_process_is_read_told_and_waited_for() {
    let mut cat = Running::start(&mut Command::new("cat"));
    cat.say("{\"a\":1}");
    assert_eq!(cat.json()["a"], 1);
    assert!(!cat.ends_within(Duration::ZERO));
    cat.close_stdin();
    assert_eq!(cat.finish().success().stdout, "{\"a\":1}\n");

    let sleeper = Running::start(Command::new("sleep").arg("1000"));
    sleeper.signal(Signal::TERM);
    assert_eq!(sleeper.finish().status.signal(), Some(15));
}
