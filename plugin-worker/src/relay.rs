//! What passes between the manager and an executable plugin, byte by byte.
//!
//! One thread sleeps in one `poll` over both directions and the plugin's end. Nothing is judged
//! here but whether the plugin's hello says that it [runs commands](crate::commands); whatever breaks
//! the protocol is the manager's to tell.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use distant_plugin_api::message::{PluginMessage, MESSAGE_MAX};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use zeroize::Zeroizing;

use crate::commands::Handover;
use crate::program::{Pipes, Program};
use crate::GRACE;

/// From SIGTERM to SIGKILL where no manager is left to decide that.
pub(crate) const TERMINATE: Duration = Duration::from_secs(1);

/// Most bytes of a direction that wait here; then whoever sends them waits.
const BUFFER: usize = 64 * 1024;
/// A pipe that can be written to takes this much without waiting.
const PIECE: usize = 4096;
/// Most bytes that are taken from the pipe of a plugin that has ended, as something that it left
/// behind may go on writing.
const REST: usize = 1024 * 1024;

/// The manager and a plugin, and what passes between them.
pub(crate) struct Relay {
    from_host: Option<File>,
    to_host: Option<File>,
    from_plugin: Option<File>,
    to_plugin: Option<File>,
    inward: Buffer,
    outward: Buffer,
    /// Nothing of the plugin's first line is handed on before all of it is there.
    is_first_line: bool,
    /// The manager has closed its end, or was killed.
    is_host_gone: bool,
    /// When a plugin that nobody wants any more has to end.
    deadline: Option<Instant>,
    was_terminated: bool,
}

/// Why a relay has come to an end.
pub(crate) enum Outcome {
    /// The plugin has ended like this, and what it said is handed on.
    Ended(ExitStatus),
    /// The plugin wants more than a relay.
    RunsCommands(Box<Handover>),
}

/// Bytes on their way; an answer or a key may be among them.
#[derive(Default)]
struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    fn has_room(&self) -> bool {
        self.0.len() < BUFFER
    }

    /// Takes some of what is there; `None` at the end.
    fn fill(&mut self, from: &mut File) -> Option<usize> {
        let mut piece = Zeroizing::new([0; PIECE]);
        match from.read(&mut *piece) {
            Ok(0) => None,
            Ok(length) => {
                self.0.extend_from_slice(&piece[..length]);
                Some(length)
            }
            Err(error) => (error.kind() == ErrorKind::Interrupted).then_some(0),
        }
    }

    /// Hands on what a pipe takes at once; `None` if nobody reads it any more.
    fn drain(&mut self, to: &mut File) -> Option<()> {
        let piece = self.0.len().min(PIECE);
        match to.write(&self.0[..piece]) {
            Ok(length) => drop(self.0.drain(..length)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        Some(())
    }
}

/// What woke a relay.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Woken {
    Exited,
    FromHost,
    ToPlugin,
    FromPlugin,
    ToHost,
}

impl Relay {
    /// Stands between both.
    pub(crate) fn new(from_host: File, to_host: File, pipes: Pipes) -> Self {
        Self {
            from_host: Some(from_host),
            to_host: Some(to_host),
            from_plugin: Some(pipes.stdout.into()),
            to_plugin: Some(pipes.stdin.into()),
            inward: Buffer::default(),
            outward: Buffer::default(),
            is_first_line: true,
            is_host_gone: false,
            deadline: None,
            was_terminated: false,
        }
    }

    /// Passes everything on until the plugin has ended. Where the manager is gone this takes the
    /// whole process group along, this process included.
    pub(crate) fn run(mut self, program: &mut Program) -> Outcome {
        loop {
            for (woken, flags) in self.wait(program) {
                match woken {
                    Woken::Exited => return Outcome::Ended(self.finish(program)),
                    Woken::FromHost => self.hear_host(flags),
                    Woken::ToPlugin => {
                        let open = self.to_plugin.as_mut();
                        if open.and_then(|it| self.inward.drain(it)).is_none() {
                            self.to_plugin = None;
                        }
                    }
                    Woken::FromPlugin => {
                        let open = self.from_plugin.as_mut();
                        if open.and_then(|it| self.outward.fill(it)).is_none() {
                            self.from_plugin = None;
                        }
                    }
                    Woken::ToHost => {
                        let open = self.to_host.as_mut();
                        if open.and_then(|it| self.outward.drain(it)).is_none() {
                            self.to_host = None;
                        }
                    }
                }
            }
            if self.is_first_line {
                if let Some(handover) = self.look_at_first_line() {
                    return Outcome::RunsCommands(Box::new(handover));
                }
            }
            self.settle();
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.press(program);
            }
        }
    }

    /// Sleeps until something can be done.
    fn wait(&self, program: &Program) -> Vec<(Woken, PollFlags)> {
        let mut fds = vec![(Woken::Exited, PollFd::new(&program.exited, PollFlags::IN))];
        if let Some(file) = &self.from_host {
            // Without room, only the end of the manager is of interest, and only once.
            let room = self.inward.has_room();
            if room || !self.is_host_gone {
                let flags = if room { PollFlags::IN } else { PollFlags::empty() };
                fds.push((Woken::FromHost, PollFd::new(file, flags)));
            }
        }
        if let Some(file) = self.to_plugin.as_ref().filter(|_| !self.inward.0.is_empty()) {
            fds.push((Woken::ToPlugin, PollFd::new(file, PollFlags::OUT)));
        }
        let has_room = self.is_first_line || self.outward.has_room();
        if let Some(file) = self.from_plugin.as_ref().filter(|_| has_room) {
            fds.push((Woken::FromPlugin, PollFd::new(file, PollFlags::IN)));
        }
        let has_news = !self.is_first_line && !self.outward.0.is_empty();
        if let Some(file) = self.to_host.as_ref().filter(|_| has_news) {
            fds.push((Woken::ToHost, PollFd::new(file, PollFlags::OUT)));
        }
        let (woken, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        let left = self.deadline.map(|it| it.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // An error is an interruption by a signal, after which nothing is ready.
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let flags = fds.iter().map(PollFd::revents);
        woken.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect()
    }

    fn hear_host(&mut self, flags: PollFlags) {
        let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        let mut ended = false;
        if self.inward.has_room() {
            let open = self.from_host.as_mut();
            ended = open.and_then(|it| self.inward.fill(it)).is_none();
        }
        if ended {
            self.from_host = None;
        }
        if (ended || hung_up) && !self.is_host_gone {
            self.is_host_gone = true;
            self.deadline = Some(Instant::now() + GRACE);
        }
    }

    /// Looks whether the plugin's first line is complete. If it is a hello that asks for more than a
    /// relay, gives everything away, unless a side has ended already.
    fn look_at_first_line(&mut self) -> Option<Handover> {
        let said = &self.outward.0;
        // Like the manager, which skips empty lines.
        let begin = said.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(said.len());
        let end = said[begin..].iter().position(|byte| *byte == b'\n');
        if end.is_none() && self.from_plugin.is_some() && said.len() <= MESSAGE_MAX {
            return None;
        }
        self.is_first_line = false;
        let end = begin + end? + 1;
        let hello = match serde_json::from_slice(&said[begin..end]) {
            Ok(PluginMessage::Hello(hello)) if hello.manifest.runs_commands => hello,
            _ => return None,
        };
        let sides = (&self.from_host, &self.to_host, &self.from_plugin, &self.to_plugin);
        let (Some(_), Some(_), Some(_), Some(_)) = sides else { return None };
        self.outward.0.drain(..end);
        Some(Handover {
            hello,
            from_host: self.from_host.take()?,
            to_host: self.to_host.take()?,
            from_plugin: self.from_plugin.take()?,
            to_plugin: self.to_plugin.take()?,
            inward: std::mem::take(&mut self.inward).0,
            outward: std::mem::take(&mut self.outward).0,
        })
    }

    /// Passes on that a side has ended, and forgets what nobody takes.
    fn settle(&mut self) {
        if self.to_plugin.is_none() {
            self.inward = Buffer::default();
        } else if self.from_host.is_none() && self.inward.0.is_empty() {
            self.to_plugin = None;
        }
        if self.to_host.is_none() {
            self.outward = Buffer::default();
        } else if self.from_plugin.is_none() && self.outward.0.is_empty() {
            self.to_host = None;
        }
    }

    /// Goes one step further with a plugin that has not ended in time.
    fn press(&mut self, program: &Program) {
        if self.was_terminated {
            program.signal(Signal::KILL);
            self.deadline = None;
        } else {
            self.was_terminated = true;
            program.signal(Signal::TERM);
            self.deadline = Some(Instant::now() + TERMINATE);
        }
    }

    /// Hands on what a plugin that has ended left in its pipe.
    fn finish(mut self, program: &mut Program) -> ExitStatus {
        let status = program.status();
        let mut left = REST;
        if let Some(mut to_host) = self.to_host.take() {
            loop {
                // A manager that does not read is waited for: it does, or it ends.
                if to_host.write_all(&self.outward.0).is_err() {
                    break;
                }
                self.outward = Buffer::default();
                let Some(from_plugin) = self.from_plugin.as_mut().filter(|_| left > 0) else {
                    break;
                };
                let mut fds = [PollFd::new(from_plugin, PollFlags::IN)];
                if !matches!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(1)) {
                    break;
                }
                let Some(length) = self.outward.fill(from_plugin) else { break };
                left = left.saturating_sub(length);
            }
        }
        let is_over = self.is_host_gone || self.from_host.as_ref().is_none_or(is_hung_up);
        if is_over {
            // What the plugin left in the group ends too, and so does this process.
            program.signal(Signal::KILL);
        }
        status
    }
}

/// Tells whether nobody can write to a pipe any more.
fn is_hung_up(file: &File) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::empty())];
    matches!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(1))
}
