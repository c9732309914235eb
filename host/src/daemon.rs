//! Processes that stay in the background after the command that started them has ended.
//!
//! The background process is this program started again, in a session of its own. It says over a
//! pipe whether it is ready, so whoever started it knows that it is there, or why it is not. The
//! pipe is its standard output; what it writes to standard error until then becomes the reason
//! where it ends without giving one.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use distant_plugin_api::secret::Secret;
use distant_plugin_api::{ErrorKind, LaunchError};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process, Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::paths;

/// The hidden flag that tells the background process what it is; [`detach`] adds it.
pub const DETACHED_FLAG: &str = "--detached";

/// Most bytes of the background process's one message.
const MESSAGE_MAX: u64 = 64 * 1024;

/// How much of its standard error is kept for the reason of a failed start.
const LAST_WORDS_MAX: usize = 4 * 1024;

/// A background process that has said that it is ready.
#[derive(Debug)]
pub struct Detached {
    /// Its process id.
    pub pid: u32,
    /// What it wants to have printed; a server's connect line is a secret.
    pub said: Secret,
    /// What a person should know about it.
    pub remark: Option<String>,
}

impl Detached {
    /// Ends it by force. For whoever started it and finds that nobody can use it: a process id
    /// stays its own only until it has ended and was waited for.
    pub fn kill(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It has ended already, otherwise.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// What the background process says, once.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Ready { said: Secret, remark: Option<String> },
    Failed(LaunchError),
}

/// Starts this program again in the background and waits until it is ready.
///
/// It keeps the working folder, the environment and, until it is ready, standard input.
/// `within` is for all of the start; `None` waits for as long as it takes.
///
/// # Errors
///
/// Why it did not get ready; it has ended then.
pub fn detach<A: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = A>,
    within: Option<Duration>,
) -> Result<Detached, LaunchError> {
    let mut child = Command::new(paths::executable_to_spawn())
        .arg0("distant")
        .args(arguments)
        .arg(DETACHED_FLAG)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("the background process cannot be started").because(&e))?;
    let (Some(mut messages), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed("the background process has no pipes"));
    };
    // On a thread, so that a process that says much cannot block on a full pipe.
    let last_words = thread::spawn(move || last_words(errors));

    let deadline = within.map(|within| Instant::now() + within);
    let reason = match read_message(&mut messages, deadline) {
        Ok(Some(Message::Ready { said, remark })) => {
            return Ok(Detached { pid: child.id(), said, remark })
        }
        Ok(Some(Message::Failed(error))) => error,
        Ok(None) => ended(&mut child),
        Err(error) => {
            // It may be alive, and nobody would know of it.
            let _ = child.kill();
            failed("the background process did not get ready").because(&error)
        }
    };
    let _ = child.wait();
    let words = last_words.join().unwrap_or_default();
    Err(if reason.causes.is_empty() && !words.is_empty() {
        reason.caused_by(words)
    } else {
        reason
    })
}

fn failed(message: &str) -> LaunchError {
    LaunchError::new(ErrorKind::Other, message)
}

fn ended(child: &mut Child) -> LaunchError {
    let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    failed(&format!("the background process ended before it was ready ({how})"))
}

/// Reads the one message; `None` if the pipe is closed without one.
fn read_message(
    pipe: &mut (impl Read + AsFd),
    deadline: Option<Instant>,
) -> io::Result<Option<Message>> {
    // A connect line may be in it.
    let mut line = zeroize::Zeroizing::new(Vec::new());
    let mut buffer = zeroize::Zeroizing::new([0; 4096]);
    while !line.ends_with(b"\n") {
        wait_readable(pipe, deadline)?;
        let count = pipe.read(&mut *buffer)?;
        if count == 0 {
            return Ok(None);
        }
        line.extend_from_slice(&buffer[..count]);
        if line.len() as u64 > MESSAGE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its message is too long"));
        }
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

fn wait_readable(pipe: &impl AsFd, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its time to start is over"))
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn last_words(mut errors: impl Read) -> String {
    let mut tail = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = errors.read(&mut buffer) {
        tail.extend_from_slice(&buffer[..count]);
        let surplus = tail.len().saturating_sub(LAST_WORDS_MAX);
        tail.drain(..surplus);
    }
    String::from_utf8_lossy(&tail).trim().to_owned()
}

/// The way of a background process to say that it is ready, or why it never will be.
///
/// Dropping it without a word tells the other side that the start failed.
#[derive(Debug)]
pub struct Readiness {
    pipe: File,
    null: File,
    remark: Option<String>,
}

/// Nobody waits for the background process any more: it should end.
#[derive(Debug, thiserror::Error)]
#[error("whoever started this background process is gone")]
pub struct Abandoned(#[source] io::Error);

impl Readiness {
    /// Leaves the session of the terminal and takes standard output as the way to say so; from now
    /// on standard output leads nowhere. Called once, by a process with the [`DETACHED_FLAG`].
    ///
    /// # Errors
    ///
    /// The system refuses a descriptor.
    pub fn begin() -> io::Result<Self> {
        // Fails only for a process that leads a group already; it is without a terminal then too,
        // or was started by hand.
        let _ = rustix::process::setsid();
        // For `ps` and `top`: it was started by way of /proc/self/exe.
        let _ = rustix::thread::set_name(c"distant");
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
        rustix::stdio::dup2_stdout(&null)?;
        Ok(Self { pipe: File::from(pipe), null, remark: None })
    }

    /// Has the person who started it told something, once it is ready.
    pub fn remark(&mut self, remark: String) {
        self.remark = Some(remark);
    }

    /// Says that it is ready and what to print for it, after letting go of standard input and
    /// standard error.
    ///
    /// # Errors
    ///
    /// Nobody listens any more.
    pub fn ready(mut self, said: Secret) -> Result<(), Abandoned> {
        let _ = rustix::stdio::dup2_stdin(&self.null);
        let _ = rustix::stdio::dup2_stderr(&self.null);
        let remark = self.remark.take();
        self.say(&Message::Ready { said, remark }).map_err(Abandoned)
    }

    /// Says why it failed.
    pub fn failed(mut self, error: LaunchError) {
        // Whoever is gone cannot be told.
        let _ = self.say(&Message::Failed(error));
    }

    fn say(&mut self, message: &Message) -> io::Result<()> {
        let mut line = zeroize::Zeroizing::new(serde_json::to_vec(message)?);
        line.push(b'\n');
        self.pipe.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(bytes: &[u8], within: Option<Duration>) -> io::Result<Option<Message>> {
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(bytes).unwrap();
        // With a limit the pipe stays open, as if the process still ran.
        let writer = within.map(|_| writer);
        let message = read_message(&mut reader, within.map(|within| Instant::now() + within));
        drop(writer);
        message
    }

    #[test]
    fn a_message_is_read_whole() {
        let text = b"{\"ready\":{\"said\":\"\\r\\nx\",\"remark\":\"y\"}}\n";
        let Ok(Some(Message::Ready { said, remark })) = receive(text, None) else { panic!() };
        assert_eq!((said.expose(), remark.as_deref()), ("\r\nx", Some("y")));
        let text = b"{\"failed\":{\"kind\":\"other\",\"message\":\"the port is taken\"}}\n";
        let Ok(Some(Message::Failed(error))) = receive(text, None) else { panic!() };
        assert_eq!(error.message, "the port is taken");
    }

    #[test]
    fn what_is_no_message_is_an_error_and_no_wait_for_ever() {
        assert!(matches!(receive(b"", None), Ok(None)));
        assert!(matches!(receive(b"{\"ready\":", None), Ok(None)));
        assert!(receive(b"hello\n", None).is_err());
        let late = receive(b"{\"ready\":", Some(Duration::from_millis(20)));
        assert_eq!(late.err().unwrap().kind(), io::ErrorKind::TimedOut);
        let long = [b'x'; MESSAGE_MAX as usize - 1000];
        let (mut reader, mut writer) = io::pipe().unwrap();
        let writing = thread::spawn(move || {
            let _ = writer.write_all(&long);
            let _ = writer.write_all(&[b'x'; 2000]);
        });
        let error = read_message(&mut reader, None).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        writing.join().unwrap();
    }
}
