//! The manager's end of one worker.
//!
//! A task of its own holds the child and speaks with it, so a worker is
//! watched, bounded and ended in the same way whether its [`Process`] is used, ignored or dropped.
//! Nothing here waits for a plugin without a limit, and nothing a plugin does is an error of the
//! manager: it becomes one [`LaunchError`] in [`Event::Ended`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distant_plugin_api::message::{
    HostHello, HostMessage, LogLevel, PluginHello, PluginMessage, MESSAGE_MAX, PROTOCOL,
};
use distant_plugin_api::{ErrorKind, LaunchError};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::child::Child;
use super::discovery::Kind;
use super::failures::Failures;
use super::registry::Entry;
use super::supervisor::{broken, Line, Shared, Supervisor};
use crate::paths;
use crate::range::{number, seconds, OutOfRange};

/// Why most programs say nothing that their authors have seen at a terminal.
const FLUSH: &str =
    "its author: a program has to flush each line, as a pipe keeps them back until then";
/// Messages to a worker that may wait until it reads them; one that leaves more unread is broken.
const QUEUE: usize = 64;
/// Events that may wait for the manager; then the worker's output waits.
const EVENTS: usize = 16;
/// Variables of the launching client that a worker gets in place of the manager's own.
const CLIENT_ENVIRONMENT: [&str; 3] = ["SSH_AUTH_SOCK", "KRB5CCNAME", "LANG"];

/// Seconds of the longest time that can be set: an hour.
const LONGEST: f64 = 3600.0;
/// With fewer bytes a second no plugin could say what it has to.
const LEAST_OUTPUT: u32 = 4 * 1024;
const MOST_OUTPUT: u32 = 1024 * 1024 * 1024;

/// How long a worker may take, and how much it may say.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Limits {
    /// From the start of the process to its hello.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub hello: Duration,
    /// From `cancel`, or from its result, until it gets SIGTERM.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub grace: Duration,
    /// From SIGTERM to SIGKILL.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub terminate: Duration,
    /// Bytes of messages at once, and as many of standard error; it may say no more until
    /// [`Limits::output_rate`] has made room.
    pub output: u32,
    /// Bytes of messages a second, and as many of standard error.
    pub output_rate: u32,
}

impl Limits {
    /// Checks that a worker can work within these limits, and that they are limits.
    ///
    /// # Errors
    ///
    /// The first that is out of its range, by its name behind `prefix`.
    pub fn check(&self, prefix: &str) -> Result<(), OutOfRange> {
        let key = |name: &str| format!("{prefix}.{name}");
        seconds(&key("hello"), self.hello, 0.1..=LONGEST)?;
        seconds(&key("grace"), self.grace, 0.0..=LONGEST)?;
        seconds(&key("terminate"), self.terminate, 0.0..=LONGEST)?;
        number(&key("output"), self.output, LEAST_OUTPUT..=MOST_OUTPUT)?;
        number(&key("output_rate"), self.output_rate, LEAST_OUTPUT..=MOST_OUTPUT)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            grace: Duration::from_secs(2),
            terminate: Duration::from_secs(1),
            output: 4 * 1024 * 1024,
            output_rate: 1024 * 1024,
        }
    }
}

/// How workers are run, and which are still there. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    pub(super) program: PathBuf,
    pub(super) limits: Limits,
    pub(super) running: TaskTracker,
    /// Where failed launches are noted; `None` for workers that no launch wants.
    pub(super) failures: Option<Failures>,
}

/// What happens at a worker.
#[derive(Debug)]
pub enum Event {
    /// It said something. After `Done` or `Error` only `Ended` follows.
    Message(PluginMessage),
    /// It is reaped, and its process group is gone. `Ok` if it gave its result before.
    Ended(Result<(), LaunchError>),
}

/// One worker process. Dropping it cancels the launch in the background; see [`Process::cancel`].
pub struct Process {
    id: u32,
    spawned: Instant,
    messages: mpsc::Sender<Line>,
    events: mpsc::Receiver<Event>,
    shared: Arc<Shared>,
}

impl Process {
    /// Starts a worker for a plugin and waits for its hello.
    ///
    /// `environment` is the launching client's, empty where it told none; `log_level` is what of the
    /// plugin's log is wanted.
    ///
    /// # Errors
    ///
    /// All of kind `plugin`: the worker cannot be started or crashed, the file cannot be loaded, it
    /// said nothing in time, said something else than a hello, or speaks another protocol.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the worker as dropping a [`Process`] does.
    pub async fn start(
        entry: &Entry,
        environment: &BTreeMap<String, String>,
        log_level: LogLevel,
    ) -> Result<(Process, PluginHello), LaunchError> {
        let mut process = Self::spawn(entry, environment, log_level)?;
        let name = &entry.name;
        let limit = entry.hello_limit();
        let first = tokio::time::timeout(limit, process.next()).await.map_err(|_| {
            let message = format!("plugin `{name}` said nothing within {limit:?} of its start");
            process.is_late(&message);
            let error = LaunchError::new(ErrorKind::Plugin, message);
            match entry.kind {
                Kind::Executable => error.with_hint(FLUSH),
                Kind::Library => error,
            }
        })?;
        let hello = match first {
            Event::Message(PluginMessage::Hello(hello)) => hello,
            Event::Message(PluginMessage::Error(error)) => return Err(error.clipped()),
            Event::Ended(Err(error)) => return Err(error),
            _ => return Err(broken(name, "its first message is no hello")),
        };
        let [lowest, highest] = hello.protocol;
        let protocol = highest.min(PROTOCOL[1]);
        if protocol < lowest.max(PROTOCOL[0]) {
            let [ours, newest] = PROTOCOL;
            let message = format!(
                "plugin `{name}` speaks protocol {lowest} to {highest}, this program {ours} to {newest}"
            );
            return Err(LaunchError::new(ErrorKind::Plugin, message)
                .with_hint("install the plugin and `distant` in versions that belong together"));
        }
        process.send(HostMessage::Hello(HostHello { protocol, log_level }));
        Ok((process, hello))
    }

    fn spawn(
        entry: &Entry,
        environment: &BTreeMap<String, String>,
        log_level: LogLevel,
    ) -> Result<Self, LaunchError> {
        let workers = entry.workers();
        let mut command = Command::new(&workers.program);
        command.arg0("distant").env_clear().envs(worker_environment(environment));
        // The tracker is told first, so that no worker exists that nobody waits for.
        let token = workers.running.token();
        let (child, pipes) = Child::spawn(&mut command, entry.file(), |command, number| {
            command.arg("plugin-worker").arg("--fd").arg(number.to_string());
            if entry.kind == Kind::Executable {
                command.arg("--exec");
            }
            command.arg(&entry.path);
        })
        .map_err(|error| {
            let message = format!("cannot start a worker for plugin `{}`", entry.name);
            LaunchError::new(ErrorKind::Plugin, message).because(&error)
        })?;

        let (messages, queue) = mpsc::channel(QUEUE);
        let (sender, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared::default());
        let id = child.id();
        let supervisor = Supervisor::new(
            (entry.name.clone(), entry.path.clone(), entry.kind),
            (child, pipes),
            workers.limits.clone(),
            log_level,
            (queue, sender, Arc::clone(&shared)),
        );
        let failures = workers.failures.clone();
        tokio::spawn(async move {
            let (events, last, failure) = supervisor.run().await;
            if let (Some(failures), Some(failure)) = (failures, failure) {
                // A person may ask as soon as the launch has failed.
                let _ = tokio::task::spawn_blocking(move || failures.add(&failure)).await;
            }
            // The worker is gone; whether anybody wants to know it is no reason to wait.
            drop(token);
            for event in last {
                if events.send(event).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { id, spawned: Instant::now(), messages, events, shared })
    }

    /// Queues a message and never waits. To a worker that has ended it goes nowhere; one that
    /// leaves too many unread is cancelled, and [`Event::Ended`] says so.
    pub fn send(&self, message: HostMessage) {
        if let HostMessage::Launch(_) = message {
            self.shared.launched.store(true, Ordering::Relaxed);
        }
        let mut line = Line::new(Vec::with_capacity(1024));
        // Writing these types into memory cannot fail.
        if serde_json::to_writer(&mut *line, &message).is_err() || line.len() >= MESSAGE_MAX {
            self.shared.too_long.store(true, Ordering::Relaxed);
            self.shared.cancelled.cancel();
            return;
        }
        line.push(b'\n');
        if let Err(mpsc::error::TrySendError::Full(_)) = self.messages.try_send(line) {
            self.shared.overflowed.store(true, Ordering::Relaxed);
            self.shared.cancelled.cancel();
        }
    }

    /// Ends the launch: the worker is told, gets [`Limits::grace`] to let go of everything, then
    /// SIGTERM, and [`Limits::terminate`] later SIGKILL, with its whole group.
    pub fn cancel(&self) {
        self.shared.cancelled.cancel();
    }

    /// Notes that it takes longer than it may, and in which words that is said. It is not ended by
    /// that; see [`Process::cancel`].
    pub fn is_late(&self, message: &str) {
        // What was said first is why the launch is given up.
        let _ = self.shared.late.set(message.to_owned());
    }

    /// Waits for what happens next. After [`Event::Ended`] nothing does, and it returns
    /// `Ended(Ok(()))` at once.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Ended(Ok(())))
    }

    /// When its process had been started, which is before it said anything.
    pub fn spawned(&self) -> Instant {
        self.spawned
    }

    /// The id of the worker's process, and of its process group.
    pub fn pid(&self) -> u32 {
        self.id
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The manager's environment with the launching client's agent, tickets and language.
fn worker_environment(client: &BTreeMap<String, String>) -> Vec<(OsString, OsString)> {
    let mut environment = paths::worker_environment();
    if !client.is_empty() {
        // A client that has no agent must not get the manager's.
        environment.retain(|(name, _)| !CLIENT_ENVIRONMENT.iter().any(|it| name == it));
        let taken = client.iter().filter(|(name, _)| CLIENT_ENVIRONMENT.contains(&name.as_str()));
        environment.extend(taken.map(|(name, value)| (name.into(), value.into())));
    }
    environment
}

#[cfg(test)]
mod tests;
