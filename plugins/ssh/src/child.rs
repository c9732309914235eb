//! Programs that run for a launch: one that is asked something, and one that is the connection.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distant_plugin_api::{Caller, ErrorKind, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};

use crate::guard::system;

/// Most that is read of what a program says.
const OUTPUT_MAX: usize = 1024 * 1024;
/// How much of a proxy's complaints is kept.
const WORDS_MAX: usize = 4 * 1024;
/// How long a proxy that has closed the connection may take to end.
const STATUS_LIMIT: Duration = Duration::from_millis(200);

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
    let spawned = command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
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
            let message = format!("the program `{name}` did not end within {} s", limit.as_secs());
            return Err(LaunchError::new(ErrorKind::TimedOut, message));
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
    let success = child.0.wait().is_ok_and(|status| status.success());
    let [text, errors] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Some(Output { success, text, errors }))
}

/// A child that is killed with its whole group, and reaped, when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if let (Ok(None), Ok(id)) = (self.0.try_wait(), i32::try_from(self.0.id())) {
            if let Some(group) = Pid::from_raw(id) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        let _ = self.0.wait();
    }
}

/// A program whose input and output are the connection to an ssh server.
pub struct Proxy {
    child: Ended,
    words: Arc<Mutex<VecDeque<u8>>>,
    reader: Option<JoinHandle<()>>,
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
        shell.arg("-c").arg(format!("exec {command}")).process_group(0);
        if cwd.is_dir() {
            shell.current_dir(cwd);
        }
        let input = far.try_clone().map_err(system)?;
        shell.stdin(input).stdout(far).stderr(Stdio::piped());
        let mut child = shell.spawn().map_err(|error| {
            let message = format!("the proxy command `{command}` cannot be started");
            LaunchError::new(ErrorKind::Unreachable, message).because(&error)
        })?;
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = words.clone();
        let stderr = child.stderr.take();
        let read = move || {
            let mut buffer = [0; 1024];
            let Some(mut stderr) = stderr else { return };
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&buffer[..count]);
                let over = kept.len().saturating_sub(WORDS_MAX);
                kept.drain(..over);
            }
        };
        let reader = thread::Builder::new().name("proxy".into()).spawn(read).map_err(system)?;
        Ok((Self { child: Ended(child), words, reader: Some(reader) }, near.into()))
    }

    /// What it complained of, its status included if it has ended.
    pub fn last_words(&mut self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        // It has closed the connection; its status follows at once, if it means to end.
        let id = i32::try_from(self.child.0.id()).ok().and_then(Pid::from_raw);
        let handle = id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok());
        if let Some(handle) = handle {
            let mut fds = [PollFd::new(&handle, PollFlags::IN)];
            let _ = rustix::event::poll(&mut fds, Timespec::try_from(STATUS_LIMIT).ok().as_ref());
        }
        let ended = self.child.0.try_wait().ok().flatten();
        if let Some(status) = ended {
            words.push(format!("the proxy command ended with {status}"));
            if let Some(reader) = self.reader.take_if(|reader| reader.is_finished()) {
                let _ = reader.join();
            }
        }
        let kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        words.extend(text.lines().map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned));
        words
    }
}
