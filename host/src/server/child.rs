//! Starts the processes that clients ask for, so that none of them outlives the server.
//!
//! Each leads a group of its own (with a terminal a session), by which a server ends it together
//! with all that it has started. A server that is killed can do nothing any more, so each gets
//! SIGKILL from the system then. That signal comes when the *thread* ends that started the process:
//! one thread starts them all, and lives as long as the server.

#![allow(unsafe_code, reason = "session, terminal and death signal are set between fork and exec")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::{
    getpid, getppid, ioctl_tiocsctty, set_parent_process_death_signal, setsid, Signal,
};
use rustix::pty::{grantpt, ioctl_tiocgptpeer, openpt, unlockpt, OpenptFlags};
use rustix::termios::{tcsetwinsize, Winsize};
use tokio::sync::oneshot;

/// The thread that starts processes; when this is dropped, those that still run are killed.
#[derive(Debug)]
pub(super) struct Starter {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    command: Command,
    answer: oneshot::Sender<io::Result<Child>>,
}

impl Starter {
    pub(super) fn new() -> io::Result<Self> {
        let (jobs, received) = mpsc::channel::<Job>();
        thread::Builder::new().name("process-starter".to_owned()).spawn(move || {
            for Job { mut command, answer } in received {
                if let Err(Ok(mut child)) = answer.send(command.spawn()) {
                    // Whoever asked for it has gone meanwhile.
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        })?;
        Ok(Self { jobs })
    }

    /// Starts a process with pipes for its standard streams.
    ///
    /// # Cancellation
    ///
    /// A process that was started for nobody is killed at once.
    pub(super) async fn start(&self, mut command: Command) -> io::Result<Child> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let server = getpid();
        let prepare = move || die_with(server);
        // SAFETY: between fork and exec only what is async-signal-safe may happen; the closure
        // makes system calls and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        self.spawn(command).await
    }

    /// Starts a process whose standard streams are a terminal; gives the other end of that, which
    /// does not block.
    ///
    /// # Cancellation
    ///
    /// As for [`Self::start`].
    pub(super) async fn start_in_terminal(
        &self,
        mut command: Command,
        size: Winsize,
    ) -> io::Result<(Child, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        tcsetwinsize(&ours, size)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
        let server = getpid();
        let prepare = move || {
            die_with(server)?;
            setsid()?;
            // Without it Ctrl-C and a changed size would reach nobody.
            ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        };
        // SAFETY: as in `start`; `stdin` only names descriptor 0, which is the terminal by now.
        unsafe { command.pre_exec(prepare) };
        Ok((self.spawn(command).await?, ours))
    }

    async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the server is ending");
        self.jobs.send(Job { command, answer }).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn die_with(server: rustix::process::Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A server that died before the line above sends no signal any more.
    if getppid() == Some(server) {
        Ok(())
    } else {
        Err(io::ErrorKind::Interrupted.into())
    }
}
