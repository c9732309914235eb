//! A worker as a child process: started without leaking a descriptor, ended without leaving a
//! process.
//!
//! Whoever holds a [`Child`] has not reaped it yet, so its process id, which is also the id of its
//! process group, is nobody else's. That is what makes killing the group safe, and why the group is
//! killed before the dead leader is reaped, never after.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Held while a worker is started. A plugin's opened file has no close-on-exec flag for the length
/// of its worker's `spawn`; without the lock another worker that starts at that moment would get
/// it too. Nothing else in the manager starts processes.
static SPAWNING: Mutex<()> = Mutex::new(());

/// The manager's ends of a worker's standard streams.
pub(super) struct Pipes {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

/// A worker that was started and not reaped yet. Dropping it kills its group and reaps it.
pub(super) struct Child {
    child: std::process::Child,
    exit: AsyncFd<OwnedFd>,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command` with pipes on its standard streams, and with `file` under the number that
    /// `arguments` is told.
    pub(super) fn spawn(
        command: &mut Command,
        file: &OwnedFd,
        arguments: impl FnOnce(&mut Command, RawFd),
    ) -> io::Result<(Self, Pipes)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = {
            let _alone = SPAWNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let inherited = rustix::io::dup(file)?;
            arguments(command, inherited.as_raw_fd());
            command.spawn()?
        };
        match Self::watch(&mut child) {
            Ok((exit, pipes)) => Ok((Self { child, exit, status: None }, pipes)),
            Err(error) => {
                // It has done nothing yet; killing and reaping cannot fail on a child of ours.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    fn watch(child: &mut std::process::Child) -> io::Result<(AsyncFd<OwnedFd>, Pipes)> {
        let exit = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::NONBLOCK)?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types that lie about their \
                                      descriptor; an `OwnedFd` does not"
        )]
        let exit = AsyncFd::with_interest(exit, Interest::READABLE)?;
        let missing = || io::Error::other("a standard stream is missing");
        let stdin = OwnedFd::from(child.stdin.take().ok_or_else(missing)?);
        let stdout = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
        let stderr = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);
        let pipes = Pipes {
            stdin: pipe::Sender::from_owned_fd(stdin)?,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        };
        Ok((exit, pipes))
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its process, which leads a group and a session of its own.
    pub(super) fn leader(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the worker is dead; it is not reaped by that.
    pub(super) async fn exited(&self) {
        // An error means that the runtime is shutting down, and then this child is dropped.
        if self.exit.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal to the worker and to everything in its process group.
    pub(super) fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // A worker that has not come to `setsid` yet has no group of its own, and a dead one
            // takes no signal: either may fail.
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), signal);
            let _ = rustix::process::pidfd_send_signal(self.exit.get_ref().as_fd(), signal);
        }
    }

    /// Kills what is left of the group, then reaps the worker. Blocks if the worker is not dead.
    pub(super) fn reap(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        self.signal(Signal::KILL);
        // Only somebody else's `wait` for every child could make this fail; nobody calls that.
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
        *self.status.insert(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.reap();
    }
}

/// Says how a process ended: `was killed by signal 11 (SIGSEGV)`, `exited with status 3`.
pub(super) fn describe(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("exited with status {}", status.code().unwrap_or_default());
    };
    let name = match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        3 => " (SIGQUIT)",
        4 => " (SIGILL)",
        5 => " (SIGTRAP)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        24 => " (SIGXCPU)",
        25 => " (SIGXFSZ)",
        31 => " (SIGSYS)",
        _ => "",
    };
    format!("was killed by signal {signal}{name}")
}
