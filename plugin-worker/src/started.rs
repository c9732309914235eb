//! Programs of this machine that a plugin names: one for the command, one for each connection of a
//! tunnel. Each is in a process group of its own, which is ended with it. If the worker is killed the
//! kernel ends the program; what that has started hears of it by the end of its streams, and whoever
//! does not listen is ended by the manager, which knows the worker's session.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use distant_plugin_api::tunnel::{self, Far};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::program::ends_with_this_thread;

/// What a program might take for its own, although it belongs to whoever started the manager.
const NOT_ITS_OWN: [&str; 3] = ["SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY"];

/// One such program. Dropping it ends it.
pub(crate) struct Started {
    child: Child,
    exited: OwnedFd,
    is_reaped: bool,
}

/// The ends of its standard streams.
pub(crate) struct Ends {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    /// Unless it shares ours.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Started {
    /// Starts a program; it ends with the thread that calls this.
    pub(crate) fn start(argv: &[String], shares_stderr: bool) -> io::Result<(Self, Ends)> {
        let mut command = Command::new(argv.first().map_or("", String::as_str));
        command.args(argv.iter().skip(1)).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(if shares_stderr { Stdio::inherit() } else { Stdio::piped() });
        for name in NOT_ITS_OWN {
            command.env_remove(name);
        }
        ends_with_this_thread(&mut command);
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().map(OwnedFd::from);
        let exited = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let exited = exited.inspect_err(|_| {
            // It has done nothing yet.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let started = Self { child, exited, is_reaped: false };
        let missing = || io::Error::other("a standard stream is missing");
        let (stdin, stdout) = (stdin.ok_or_else(missing)?, stdout.ok_or_else(missing)?);
        Ok((started, Ends { stdin: stdin.into(), stdout: stdout.into(), stderr }))
    }

    /// Waits until it has ended; tells whether it has in time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        ends_within(&self.exited, limit)
    }

    /// How it ended, if it has within this time: `status 127`, `signal 9`.
    pub(crate) fn ending(&mut self, limit: Duration) -> Option<String> {
        if self.is_reaped || !self.ends_within(limit) {
            return None;
        }
        let status = self.end()?;
        Some(match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("status {}", status.code().unwrap_or_default()),
        })
    }

    /// Ends it and what is left of its group, unless that was done.
    pub(crate) fn end(&mut self) -> Option<std::process::ExitStatus> {
        if std::mem::replace(&mut self.is_reaped, true) {
            return None;
        }
        // Not reaped yet, so the group is nobody else's; it fails if all of it has ended.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        self.child.wait().ok()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits until a process has ended; tells whether it has in time.
pub(crate) fn ends_within(exited: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(exited, PollFlags::IN)];
        // An error is an interruption by a signal.
        if let Ok(count) = rustix::event::poll(&mut fds, timeout.as_ref()) {
            return count > 0;
        }
    }
}

/// Listens on this machine, and starts `argv` for every connection, for as long as the process lives.
pub(crate) fn forward(argv: Vec<String>) -> io::Result<SocketAddr> {
    // What is started ends with the thread that starts it, which is always the same.
    tunnel::listen(move || {
        let started = Started::start(&argv, true).inspect_err(|error| {
            let program = argv.first().map_or("", String::as_str);
            // Standard error is shown where the launch fails.
            let _ = writeln!(io::stderr(), "cannot run `{program}`: {error}");
        });
        let (started, Ends { stdin, stdout, .. }) = started?;
        let end = move || drop(started);
        let (to, from) = (File::from(stdin), File::from(stdout));
        Ok(Far { to: Box::new(to), from: Box::new(from), end: Box::new(end) })
    })
}
