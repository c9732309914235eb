//! A running `ssh`: started so that it does not outlive the launch, and ended.

#![allow(unsafe_code, reason = "the death signal is set between fork and exec")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, Pid, PidfdFlags, Signal};

/// How long a process that has nothing to do any more may take to end, and then to obey.
pub(crate) const END_LIMIT: Duration = Duration::from_millis(500);

/// A running `ssh`.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) child: Arc<Mutex<Child>>,
    /// Readable once it has ended.
    pub(crate) exited: Arc<OwnedFd>,
}

impl Process {
    /// Starts it; it ends with the thread that calls this, which lives as long as the launch.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // Whoever died before the line above sends no signal any more.
            match rustix::process::getppid() == Some(parent) {
                true => Ok(()),
                false => Err(io::ErrorKind::Interrupted.into()),
            }
        };
        // SAFETY: between fork and exec only what is async-signal-safe may happen; the closure
        // makes two system calls and allocates nothing.
        unsafe { command.pre_exec(die_with_parent) };
        let mut child = command.spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(exited) => Ok(Self { child: Arc::new(Mutex::new(child)), exited: Arc::new(exited) }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// How it ended, if it does in time.
    pub(crate) fn ends_within(&self, limit: Duration) -> Option<ExitStatus> {
        let limit = Timespec::try_from(limit).ok();
        let exited = self.exited.as_fd();
        // An interruption only makes it shorter.
        let _ = rustix::event::poll(&mut [PollFd::new(&exited, PollFlags::IN)], limit.as_ref());
        self.lock().try_wait().ok().flatten()
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        // Fails for one that has ended.
        let _ = rustix::process::pidfd_send_signal(self.exited.as_fd(), signal);
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Ends it, after it had the time to end by itself.
    pub(crate) fn end(&self, by_itself: bool) {
        if by_itself && self.ends_within(END_LIMIT).is_some() {
            return;
        }
        self.signal(Signal::TERM);
        if self.ends_within(END_LIMIT).is_none() {
            self.kill();
            let _ = self.lock().wait();
        }
    }
}

/// How a process ended, for people.
pub(crate) fn described(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("status {}", status.code().unwrap_or_default()),
    }
}
