//! Programs that run for a launch: one that is asked something, and one that is the connection.
//!
//! Each ends with the thread that started it, also if that is killed. What it started itself is in
//! the process group of the launch, which is killed with it, so that nothing is left of either.

#![allow(unsafe_code, reason = "the death signal is set between fork and exec")]

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::{Caller, ErrorKind, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    getpid, getppid, pidfd_open, set_parent_process_death_signal, Pid, PidfdFlags, Signal,
};

use crate::guard::system;

/// Most that is read of what a program says.
const OUTPUT_MAX: usize = 1024 * 1024;
/// How much of a proxy's complaints is kept.
const WORDS_MAX: usize = 4 * 1024;
/// How long a proxy that has closed the connection may take to end, and then for its last words.
const STATUS_LIMIT: Duration = Duration::from_secs(1);

/// What a program said.
#[derive(Debug)]
pub struct Output {
    /// Whether its status is 0.
    pub success: bool,
    /// Its standard output.
    pub text: String,
    /// Its standard error.
    pub errors: String,
}

/// Runs a program to its end; nothing if there is no such program.
///
/// # Errors
///
/// `cancelled`; `timed_out` after the limit. It is killed then.
pub fn output(
    mut command: Command,
    limit: Duration,
    caller: &Caller,
) -> Result<Option<Output>, LaunchError> {
    let name = command.get_program().to_string_lossy().into_owned();
    die_with_us(&mut command);
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => Ended(child),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("the program `{name}` cannot be run");
            return Err(LaunchError::new(ErrorKind::Other, message).because(&error));
        }
    };
    let mut pipes = [
        child.0.stdout.take().map(OwnedFd::from).map(std::fs::File::from),
        child.0.stderr.take().map(OwnedFd::from).map(std::fs::File::from),
    ];
    let mut texts = [Vec::new(), Vec::new()];
    let deadline = Instant::now() + limit;
    let late = || {
        let message = format!("the program `{name}` did not end within {} s", limit.as_secs());
        LaunchError::new(ErrorKind::TimedOut, message)
    };
    while pipes.iter().any(Option::is_some) {
        let cancel = caller.cancel_fd();
        let mut fds = vec![PollFd::new(&cancel, PollFlags::IN)];
        let open: Vec<usize> = (0..2).filter(|index| pipes[*index].is_some()).collect();
        let borrowed = pipes.iter().flatten();
        fds.extend(borrowed.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let count = rustix::event::poll(&mut fds, left.as_ref());
        let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        caller.check()?;
        if count == Ok(0) {
            return Err(late());
        }
        for (index, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut buffer = [0; 4096];
            let count = pipes[index].as_mut().map_or(0, |pipe| pipe.read(&mut buffer).unwrap_or(0));
            if count == 0 || texts[index].len() > OUTPUT_MAX {
                pipes[index] = None;
            }
            texts[index].extend_from_slice(&buffer[..count]);
        }
    }
    // It may have closed both, and go on.
    let process = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty()).map_err(system)?;
    let cancel = caller.cancel_fd();
    let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&cancel, PollFlags::IN)];
    let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
    let count = rustix::event::poll(&mut fds, left.as_ref());
    caller.check()?;
    if count == Ok(0) {
        return Err(late());
    }
    let success = child.0.wait().is_ok_and(|status| status.success());
    let [text, errors] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Some(Output { success, text, errors }))
}

/// Has a command killed when the calling thread ends, which is the one that starts it.
fn die_with_us(command: &mut Command) {
    let parent = getpid();
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Whoever died before the line above sends no signal any more.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::ErrorKind::Interrupted.into())
        }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may happen; the closure makes
    // two system calls and allocates nothing.
    unsafe { command.pre_exec(die_with_parent) };
}

/// A child that is killed and reaped when dropped.
struct Ended(Child);

impl Ended {
    /// Kills it, unless it has ended already, and reaps it.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        // An error means that it has ended.
        let _ = self.0.kill();
        self.0.wait()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A program whose input and output are the connection to an ssh server.
pub struct Proxy {
    child: Ended,
    words: Arc<Mutex<VecDeque<u8>>>,
    /// Ends when all that it said is in the words.
    heard: Mutex<Receiver<()>>,
}

impl Proxy {
    /// Starts it by `sh`, and gives the other end of its input and output.
    ///
    /// # Errors
    ///
    /// `unreachable` if it cannot be started.
    pub fn start(command: &str, cwd: &Path) -> Result<(Self, OwnedFd), LaunchError> {
        let (near, far) = UnixStream::pair().map_err(system)?;
        let far = OwnedFd::from(far);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(format!("exec {command}"));
        if cwd.is_dir() {
            shell.current_dir(cwd);
        }
        let input = far.try_clone().map_err(system)?;
        shell.stdin(input).stdout(far).stderr(Stdio::piped());
        die_with_us(&mut shell);
        let mut child = shell.spawn().map_err(|error| {
            let message = format!("the proxy command `{command}` cannot be started");
            LaunchError::new(ErrorKind::Unreachable, message).because(&error)
        })?;
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = words.clone();
        let stderr = child.stderr.take();
        let (hearing, heard) = mpsc::channel();
        let read = move || {
            let _hearing = hearing;
            let mut buffer = [0; 1024];
            let Some(mut stderr) = stderr else { return };
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let over = kept.len().saturating_sub(WORDS_MAX);
                kept.drain(..over);
            }
        };
        thread::Builder::new().name("proxy".into()).spawn(read).map_err(system)?;
        Ok((Self { child: Ended(child), words, heard: heard.into() }, near.into()))
    }

    /// What it complained of, its status included if it has ended.
    pub fn last_words(&mut self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        // It has closed the connection; its status follows at once, if it means to end.
        let id = i32::try_from(self.child.0.id()).ok().and_then(Pid::from_raw);
        let handle = id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
        let has_ended = handle.is_some_and(|handle| {
            let mut fds = [PollFd::new(&handle, PollFlags::IN)];
            rustix::event::poll(&mut fds, Timespec::try_from(STATUS_LIMIT).ok().as_ref()) == Ok(1)
        });
        if let Some(status) = has_ended.then(|| self.child.end()).and_then(Result::ok) {
            words.push(format!("the proxy command ended with {status}"));
            // Something that it started may keep the pipe open.
            let heard = self.heard.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = heard.recv_timeout(STATUS_LIMIT);
        }
        let kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        words.extend(text.lines().map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Host;

    #[test]
    fn a_program_that_closes_its_output_and_goes_on_has_a_limit() {
        let mut command = Command::new("sh");
        command.args(["-c", "exec >&- 2>&-; exec sleep 1000"]);
        let error = output(command, Duration::from_millis(200), &Host::caller()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::TimedOut);
    }

    /// Starts a proxy, and waits until it has closed the connection.
    fn ended(command: &str) -> Proxy {
        let (proxy, socket) = Proxy::start(command, Path::new("/")).unwrap();
        assert_eq!(UnixStream::from(socket).read(&mut [0]).unwrap(), 0);
        proxy
    }

    const STATUS: &str = "the proxy command ended with exit status: 7";

    #[test]
    fn what_a_proxy_says_last_is_heard_even_if_it_ends_at_once() {
        for _ in 0..100 {
            let mut proxy = ended("sh -c 'echo no way >&2; exit 7'");
            assert_eq!(proxy.last_words(), [STATUS, "no way"]);
        }
    }

    #[test]
    fn what_a_proxy_leaves_behind_does_not_keep_its_words() {
        let mut proxy =
            ended("sh -c 'sleep 1000 >/dev/null & echo $! >&2; echo no way >&2; exit 7'");
        let words = proxy.last_words();
        let left = Pid::from_raw(words[1].parse().unwrap()).unwrap();
        rustix::process::kill_process(left, Signal::KILL).unwrap();
        assert_eq!((words[0].as_str(), words[2].as_str()), (STATUS, "no way"));
    }
}
