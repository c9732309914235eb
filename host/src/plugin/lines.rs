//! What a worker says: messages, one JSON object a line, and its standard error.
//!
//! Everything is bounded here: the length of a line, the rate of all lines, the rate of the log
//! among them, the rate of standard error and what is remembered of it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use distant_plugin_api::message::{PluginMessage, MESSAGE_MAX};
use rustix::buffer::spare_capacity;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Bytes taken from a pipe at once: what Linux puts into one unless told otherwise.
const CHUNK: usize = 64 * 1024;
/// Chunks that the largest pipe holds which a process may make (1 MiB).
const PIPE_CHUNKS: usize = 16;
/// Bytes of standard error that are remembered.
const STDERR_KEPT: usize = 8 * 1024;
/// Lines of standard error that an error shows.
const STDERR_SHOWN: usize = 5;
/// Characters of a line that is no message which an error shows.
const JUNK_SHOWN: usize = 80;

/// Why a worker's output cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A line is longer than [`MESSAGE_MAX`].
    TooLong,
    /// A line is no message. The text is its beginning, which may be shown only before the hello,
    /// as a later line may be a damaged offer with a key in it; why it is none has no value of it.
    NotAMessage { line: String, why: String },
    /// Reading failed.
    Io(io::ErrorKind),
}

/// The messages on a worker's standard output.
pub(super) struct Messages {
    pipe: pipe::Receiver,
    /// Wiped when dropped, as an offer has a key in it. A usual line never outgrows it.
    buffer: Zeroizing<Vec<u8>>,
    /// Bytes at the start of `buffer` that were searched for a newline already.
    searched: usize,
    ended: bool,
    /// How often [`Messages::rest`] may still read.
    rest_left: usize,
}

impl Messages {
    pub(super) fn new(pipe: pipe::Receiver) -> Self {
        let buffer = Zeroizing::new(Vec::with_capacity(2 * CHUNK));
        Self { pipe, buffer, searched: 0, ended: false, rest_left: PIPE_CHUNKS }
    }

    /// Waits for the next message and says how long its line was; `None` at the end of the output.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Option<(PluginMessage, usize)>, Fault> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            self.pipe.readable().await.map_err(|error| Fault::Io(error.kind()))?;
            self.buffer.reserve(CHUNK);
            match self.pipe.try_read_buf(&mut *self.buffer) {
                Ok(length) => self.ended = length == 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Fault::Io(error.kind())),
            }
        }
    }

    /// Returns the next message of a worker that is dead: what it wrote is all in the pipe, so
    /// there is nothing to wait for. Something that escaped from its group may hold the pipe open
    /// and go on writing; no more is read than a pipe can hold.
    pub(super) fn rest(&mut self) -> Result<Option<PluginMessage>, Fault> {
        loop {
            if let Some((message, _)) = self.buffered()? {
                return Ok(Some(message));
            }
            if self.ended {
                return Ok(None);
            }
            self.buffer.reserve(CHUNK);
            let length = rustix::io::read(&self.pipe, spare_capacity(&mut self.buffer));
            self.rest_left = self.rest_left.saturating_sub(1);
            self.ended = length.unwrap_or(0) == 0 || self.rest_left == 0;
        }
    }

    /// Reads and forgets, so that a worker whose words do not matter any more can go on writing.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost that matters.
    pub(super) async fn discard(&mut self) {
        self.buffer.clear();
        self.searched = 0;
        if self.ended || self.pipe.readable().await.is_err() {
            return std::future::pending().await;
        }
        self.buffer.reserve(CHUNK);
        self.ended = matches!(self.pipe.try_read_buf(&mut *self.buffer), Ok(0));
    }

    fn buffered(&mut self) -> Result<Option<(PluginMessage, usize)>, Fault> {
        loop {
            let newline = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n');
            let length = match newline {
                Some(position) => self.searched + position + 1,
                // The last line of a script may lack its newline, that of a crash its end.
                None if self.ended => {
                    let message = serde_json::from_slice(&self.buffer).ok();
                    let length = self.buffer.len();
                    self.buffer.clear();
                    self.searched = 0;
                    return Ok(message.map(|message| (message, length)));
                }
                None => {
                    self.searched = self.buffer.len();
                    let too_long = self.searched >= MESSAGE_MAX;
                    return if too_long { Err(Fault::TooLong) } else { Ok(None) };
                }
            };
            if length > MESSAGE_MAX {
                return Err(Fault::TooLong);
            }
            let line = self.buffer[..length].trim_ascii();
            let message = (!line.is_empty()).then(|| {
                let junk = |error| Fault::NotAMessage {
                    line: readable(line, JUNK_SHOWN),
                    why: distant_plugin_worker::misfit(&error),
                };
                serde_json::from_slice(line).map_err(junk)
            });
            self.buffer.drain(..length);
            self.searched = 0;
            if let Some(message) = message {
                return message.map(|message| Some((message, length)));
            }
        }
    }
}

/// The end of a worker's standard error.
pub(super) struct LastWords {
    pipe: pipe::Receiver,
    kept: VecDeque<u8>,
    ended: bool,
}

impl LastWords {
    pub(super) fn new(pipe: pipe::Receiver) -> Self {
        Self { pipe, kept: VecDeque::with_capacity(STDERR_KEPT), ended: false }
    }

    /// Reads some, and returns how many bytes; waits for ever at the end.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the future is dropped.
    pub(super) async fn read(&mut self) -> usize {
        if self.ended || self.pipe.readable().await.is_err() {
            return std::future::pending().await;
        }
        let mut chunk = [0; CHUNK];
        match self.pipe.try_read(&mut chunk) {
            Ok(length) => {
                self.keep(&chunk[..length]);
                return length;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
        0
    }

    /// Takes in what a dead worker left in the pipe, and returns its last lines.
    pub(super) fn finish(&mut self) -> Option<String> {
        for _ in 0..PIPE_CHUNKS {
            let mut chunk = [0; CHUNK];
            match rustix::io::read(&self.pipe, &mut chunk) {
                Ok(length) if length > 0 => self.keep(&chunk[..length]),
                _ => break,
            }
        }
        let text = readable(self.kept.make_contiguous(), STDERR_KEPT);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(STDERR_SHOWN)..];
        (!last.is_empty()).then(|| last.join("; "))
    }

    fn keep(&mut self, chunk: &[u8]) {
        self.ended = chunk.is_empty();
        let chunk = &chunk[chunk.len().saturating_sub(STDERR_KEPT)..];
        let excess = (self.kept.len() + chunk.len()).saturating_sub(STDERR_KEPT);
        self.kept.drain(..excess);
        self.kept.extend(chunk);
    }
}

/// Makes text of bytes that anybody may have written: no control characters but line ends.
fn readable(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let shown = text.chars().map(|it| match it {
        '\n' => '\n',
        it if it.is_control() => ' ',
        it => it,
    });
    shown.take(most).collect()
}

/// An amount that refills with time: how much somebody may say.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(most: u32, per_second: u32) -> Self {
        let (most, per_second) = (f64::from(most), f64::from(per_second.max(1)));
        Self { left: most, most, per_second, at: Instant::now() }
    }

    /// Takes `amount`, into debt if need be, and returns how long the debt lasts.
    pub(super) fn take(&mut self, amount: usize) -> Duration {
        self.refill();
        // No message has so many bytes that the conversion loses any.
        self.left -= amount as f64;
        Duration::from_secs_f64((-self.left / self.per_second).max(0.0))
    }

    /// Takes one, unless none is left.
    pub(super) fn try_one(&mut self) -> bool {
        self.refill();
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let gained = (now - self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.most);
        self.at = now;
    }
}
