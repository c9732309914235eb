//! The manager: the daemon that launches servers and keeps the connections to them.
//!
//! One per user, reached over a unix socket by the manager protocol of distant 0.20. A launch is a
//! task that owns its worker process; a connection is an entry of one table that any client may
//! use. Whatever belongs to a client ends with it; whatever belongs to the manager ends with
//! [`run`]. It knows plugins by their messages alone and loads no foreign code.

mod channels;
mod clock;
mod connect;
mod connections;
mod kill;
mod launch;
mod line;
mod offers;
mod plan;
mod questions;
mod requester;
mod service;
mod socket;
mod tickets;
mod upload;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{signal, Signal, SignalKind};
use tokio_util::sync::CancellationToken;

use crate::plugin;
use crate::range::{number, seconds, OutOfRange};
use crate::wire::server::{serve, ServerOptions};
use service::{Manager, Requests};
use socket::Socket;

/// Requests of one client that wait for their server to take them; the rest wait unread.
const REQUESTS: usize = 128;

/// Seconds of the longest time that can be set: a day.
const LONGEST: f64 = 86_400.0;

/// Whom the socket is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// This user, and root.
    #[default]
    Owner,
    /// This user's group too.
    Group,
    /// Everybody on this machine.
    Anyone,
}

/// How to run a manager.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The socket to listen on.
    pub socket: PathBuf,
    /// Whom it is for.
    pub access: Access,
    /// Where plugins are and how they are run.
    pub plugins: plugin::Settings,
    /// What a launch and a client may take.
    pub limits: Limits,
}

impl Settings {
    /// Listens on `socket` for this user, with everything else as usual.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            access: Access::default(),
            plugins: plugin::Settings::default(),
            limits: Limits::default(),
        }
    }
}

/// What a launch and a client may take.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Launches that run at the same time, from the worker's start to the verdict; the rest wait.
    pub launches: usize,
    /// Launches and connects of one client that run or wait; more are refused.
    pub pending: usize,
    /// For all that a plugin does itself, from the request to its first offer. `timeout` comes on
    /// top; while a question is open this clock stands still.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub plugin: Duration,
    /// An upload may take longer than that, for as long as it gets on, but not longer than this.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub upload: Duration,
    /// For a plugin's wait for a place to run, such as in a scheduler's queue; the clock of `plugin`
    /// stands still meanwhile.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub allocate: Duration,
    /// For somebody to answer a question.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub question: Duration,
    /// Questions of one launch that are open at the same time; more are cancelled.
    pub questions: usize,
    /// Offers of one launch; more end it.
    pub offers: usize,
    /// Silence after which a plugin is told to offer another way.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub slow: Duration,
    /// For the ticket of a launch to be redeemed.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub ticket: Duration,
    /// For a connection that was asked for by hand.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub connect: Duration,
    /// For a server to end, and for all of them when the manager does.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub kill: Duration,
    /// Clients at the same time; more are turned away.
    pub clients: usize,
    /// Channels of one client that are open at the same time.
    pub channels: usize,
    /// Bytes from servers that one client has not taken yet.
    pub backlog: usize,
    /// How long a client that does not take them may hold up a server's connection.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub patience: Duration,
    /// How long a released server that does not answer, or refuses, is asked to take a lost
    /// connection up again.
    #[serde(deserialize_with = "crate::seconds::deserialize")]
    pub reconnect: Duration,
}

impl Limits {
    /// Checks that launches can work within these limits, and that they are limits.
    ///
    /// # Errors
    ///
    /// The first that is out of its range, by its name behind `prefix`.
    pub fn check(&self, prefix: &str) -> Result<(), OutOfRange> {
        let key = |name: &str| format!("{prefix}.{name}");
        for (name, given, most) in [
            ("launches", self.launches, 1024),
            ("pending", self.pending, 1024),
            ("questions", self.questions, 1024),
            ("offers", self.offers, 1024),
            ("clients", self.clients, 65_536),
            ("channels", self.channels, 65_536),
        ] {
            number(&key(name), given, 1..=most)?;
        }
        number(&key("backlog"), self.backlog, 64 * 1024..=1024 * 1024 * 1024)?;
        for (name, given, least) in [
            ("plugin", self.plugin, 0.1),
            ("upload", self.upload, 0.0),
            ("allocate", self.allocate, 0.0),
            ("question", self.question, 0.1),
            ("slow", self.slow, 0.0),
            ("ticket", self.ticket, 0.1),
            ("connect", self.connect, 0.1),
            ("kill", self.kill, 0.1),
            ("patience", self.patience, 0.0),
            ("reconnect", self.reconnect, 0.0),
        ] {
            seconds(&key(name), given, least..=LONGEST)?;
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            launches: 16,
            pending: 64,
            plugin: Duration::from_secs(120),
            upload: Duration::from_secs(60 * 60),
            allocate: Duration::from_secs(24 * 60 * 60),
            question: Duration::from_secs(5 * 60),
            questions: 8,
            offers: 16,
            slow: Duration::from_secs(2),
            ticket: Duration::from_secs(30),
            connect: Duration::from_secs(15),
            kill: Duration::from_secs(5),
            clients: 512,
            channels: 256,
            backlog: 16 * 1024 * 1024,
            patience: Duration::from_secs(2),
            reconnect: Duration::from_secs(2 * 60),
        }
    }
}

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// There is one already, and it listens.
    #[error("address in use: a manager listens on `{}` already", socket.display())]
    InUse {
        /// Its socket.
        socket: PathBuf,
    },
    /// The socket or its lock is there and is another user's.
    #[error("`{}` belongs to another user (uid {uid})", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// That user.
        uid: u32,
    },
    /// Something that is no socket has the socket's name.
    #[error("`{}` is there and is no socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// No socket can have such a long name.
    #[error("`{}` is too long for a socket, which has about 100 bytes", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl ManagerError {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source }
    }
}

/// Runs a manager until it is told to stop: by SIGTERM, SIGINT, SIGHUP or a client; or until its socket
/// is gone and its last client too.
///
/// `ready` is called once clients can connect. When this returns, the servers that were launched
/// are ended, no worker is left and the socket is removed.
///
/// # Errors
///
/// See [`ManagerError`]; all of them come before `ready`.
///
/// # Cancellation
///
/// Dropping the future removes the socket and drops every connection, but ends servers only as far
/// as their plugins do so by themselves.
pub async fn run(settings: Settings, ready: impl FnOnce()) -> Result<(), ManagerError> {
    let mut signals = Signals::listen()
        .map_err(|e| ManagerError::io("listen for signals for", &settings.socket, e))?;
    let (socket, listener) = Socket::bind(&settings.socket, settings.access).await?;
    let manager = Arc::new(Manager::new(settings.plugins, settings.limits));
    let service = Arc::new(Requests(Arc::clone(&manager)));
    let clients = manager.limits.clients;
    let options = ServerOptions { requests: REQUESTS, clients, ..ServerOptions::unix() };
    let shutdown = CancellationToken::new();
    let _closes = shutdown.clone().drop_guard();
    let serving = tokio::spawn(serve(listener, options, service, shutdown.clone()));
    tracing::info!(socket = %settings.socket.display(), "the manager is ready");
    ready();

    tokio::select! {
        () = signals.any() => tracing::info!("a signal ends the manager"),
        () = manager.stop_wanted() => tracing::info!("a client ends the manager"),
        () = abandoned(&socket, &manager) => {}
    }
    // Whoever comes now finds nobody, and may start another one, which waits for this one's lock.
    socket.remove();
    tokio::select! {
        () = manager.end() => {}
        () = signals.any() => tracing::warn!("a second signal: servers may be left"),
    }
    manager.say_stopped().await;
    shutdown.cancel();
    drop(serving.await);
    Ok(())
}

/// Waits until the socket is gone, and then until nobody is connected any more: nobody will come, so
/// the manager and its servers would stay for ever.
async fn abandoned(socket: &Socket, manager: &Manager) {
    socket.gone().await;
    tracing::warn!("the socket is gone: the manager ends with its last client");
    manager.clients_gone().await;
}

/// The signals that end a manager.
struct Signals(Vec<Signal>);

impl Signals {
    fn listen() -> io::Result<Self> {
        let mut kinds = vec![SignalKind::terminate(), SignalKind::interrupt()];
        if !is_hangup_ignored() {
            kinds.push(SignalKind::hangup());
        }
        kinds.into_iter().map(signal).collect::<io::Result<_>>().map(Self)
    }

    async fn any(&mut self) {
        let received = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures::future::select_all(received).await;
    }
}

/// Whether whoever started this process wants it to outlive its terminal, as `nohup` does.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit stands for signal 1, which is SIGHUP.
    mask.is_some_and(|mask| mask & 1 == 1)
}
