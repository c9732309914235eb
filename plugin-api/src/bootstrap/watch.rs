//! Reading what a command of ours says among whatever else its shell prints.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::Running;
use crate::message::{ErrorKind, LaunchError};
use crate::Caller;

/// Longest line that is kept, and most bytes read before the command says what it is run for.
const LINE_MAX: usize = 64 * 1024;
const LINE_END: [char; 2] = ['\r', '\n'];
pub(super) const OUTPUT_MAX: usize = 4 * 1024 * 1024;
/// Lines of the last words that an error shows, and their length.
const WORDS: usize = 6;
pub(super) const WORD_MAX: usize = 400;

/// A text from there, short enough and without what could play tricks on a terminal.
pub(super) fn shown(text: &str, most: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(most).collect()
}

/// Keeps a line as one of the last words, without anything that may be a key.
pub(super) fn remember(words: &mut Vec<String>, line: &str) {
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
pub(super) struct Watch {
    stdout: Option<File>,
    stderr: Option<File>,
    marker: String,
    pub(super) ending: Box<dyn Fn() -> Option<String> + Send + Sync>,
    pending: Vec<u8>,
    errors: Vec<u8>,
    pub(super) noise: Vec<String>,
    pub(super) total: usize,
}

/// Why [`Watch::wait`] returned.
pub(super) enum Woken {
    Data,
    /// The other descriptor takes something, or will take nothing any more.
    Writable,
    Deadline,
    End,
}

impl Watch {
    /// Takes the outputs of a command, and gives its input back.
    pub(super) fn new(running: Running, marker: String) -> (Self, OwnedFd) {
        let watch = Self {
            stdout: Some(running.stdout.into()),
            stderr: Some(running.stderr.into()),
            marker,
            ending: running.ending,
            pending: Vec::new(),
            errors: Vec::new(),
            noise: Vec::new(),
            total: 0,
        };
        (watch, running.stdin)
    }

    /// The next complete line of the script, without its marker.
    pub(super) fn next_line(&mut self) -> Option<String> {
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
    pub(super) fn wait(
        &mut self,
        deadline: Option<Instant>,
        caller: Option<&Caller>,
    ) -> Result<Woken, LaunchError> {
        self.wait_beside(None, deadline, caller)
    }

    /// Like [`Watch::wait`], and for a descriptor to take something.
    pub(super) fn wait_beside(
        &mut self,
        writable: Option<BorrowedFd<'_>>,
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
            if let Some(writable) = &writable {
                fds.push(PollFd::new(writable, PollFlags::OUT));
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
            if writable.is_some() && ready.last() == Some(&true) {
                return Ok(Woken::Writable);
            }
            if self.total > OUTPUT_MAX {
                return Ok(Woken::Data);
            }
        }
    }

    /// Reads the complaints until their end, at most for this long: something that the command left
    /// behind may keep them open.
    pub(super) fn drain(&mut self, limit: Duration) {
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
    pub(super) fn until_end(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline
            && matches!(self.wait(Some(deadline), None), Ok(Woken::Data))
        {
            self.pending.clear();
            self.total = 0;
        }
    }

    /// Waits until the command ends by itself; a cancel is the error.
    pub(super) fn hold(&mut self, caller: &Caller) -> Result<(), LaunchError> {
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
