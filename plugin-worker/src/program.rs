//! An executable plugin as a child of the worker.
//!
//! It stays in the worker's process group, so whoever ends the group ends it and what it has
//! started; and the kernel ends it with the worker, so a plugin that listens to nobody does not
//! outlive a worker that was killed.

#![allow(unsafe_code, reason = "prepares a child between fork and exec, and ends without handlers")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::Arguments;

/// A running executable plugin.
pub(crate) struct Program {
    child: Child,
    /// Readable once it has ended.
    pub(crate) exited: OwnedFd,
}

/// Its standard input and output.
pub(crate) struct Pipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
}

impl Program {
    /// Starts the file that was checked. The thread that calls this has to live as long as the
    /// process: the plugin ends with it.
    ///
    /// # Errors
    ///
    /// `plugin`: it cannot be run.
    pub(crate) fn start(arguments: &Arguments) -> Result<(Self, Pipes), LaunchError> {
        Self::spawn(arguments).map_err(|error| {
            let message = format!("cannot run `{}`", arguments.path.display());
            LaunchError::new(ErrorKind::Plugin, message).because(&error)
        })
    }

    fn spawn(arguments: &Arguments) -> io::Result<(Self, Pipes)> {
        // A script's interpreter opens the file again, by which time the descriptor is gone; so a
        // script goes by its path.
        let checked = arguments.fd.map(descriptor_path).filter(|path| !is_script(path));
        if let Some(fd) = arguments.fd {
            // SAFETY: the number was given to this process for this file, and nothing closes it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            // One that cannot be set is not open; then running it fails with the reason.
            let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
        // A request to end goes to the whole group, and then this process has to see to it that
        // the plugin does. It must not end first, as that would kill the plugin.
        // SAFETY: no handler is involved.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        let mut command = Command::new(checked.as_deref().unwrap_or(&arguments.path));
        command.arg0(&arguments.path).stdin(Stdio::piped()).stdout(Stdio::piped());
        ends_with_this_thread(&mut command);
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a standard stream is missing");
        let pipes = Pipes {
            stdin: child.stdin.take().ok_or_else(missing)?.into(),
            stdout: child.stdout.take().ok_or_else(missing)?.into(),
        };
        let exited = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok((Self { child, exited }, pipes))
    }

    /// Sends a signal to everything in the worker's process group.
    pub(crate) fn signal(&self, signal: Signal) {
        let own = rustix::process::getpid();
        // Either may fail for a plugin that has just ended.
        let _ = match rustix::process::getpgrp() == own {
            true => rustix::process::kill_process_group(own, signal),
            // Somebody else's group: theirs to end.
            false => rustix::process::pidfd_send_signal(&self.exited, signal),
        };
    }

    /// How it ended; waits for that.
    pub(crate) fn status(&mut self) -> ExitStatus {
        // Nobody else waits for children here, so this cannot fail.
        self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0))
    }
}

/// Lets a command be killed with the thread that starts it, and react to SIGTERM, whatever this
/// process does about that.
pub(crate) fn ends_with_this_thread(command: &mut Command) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            // It has died before it could take this process along.
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        // SAFETY: no handler is involved.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: between fork and exec this makes three system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Ends this process as that one ended, so that whoever started it sees the same.
pub(crate) fn end_like(status: ExitStatus) -> ! {
    if let Some(signal) = status.signal() {
        // SAFETY: no handler is involved. There is no core dump, as the limit is zero.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
    // SAFETY: it touches no memory. There is nothing here that an exit handler could do.
    unsafe { libc::_exit(status.code().unwrap_or(1)) }
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"#!"
}

/// The path by which a file that is open here is opened again.
pub(crate) fn descriptor_path(fd: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{fd}"))
}
