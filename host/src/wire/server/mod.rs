//! The server's end of the wire: connections in, requests out to a [`Service`].
//!
//! An idle connection costs a heartbeat every 5 s and nothing else, and all connections have theirs
//! at the same time, so that many of them wake the process up as often as one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use distant_plugin_api::secret::SessionKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval_at, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

mod connection;
mod reply;
mod setup;

pub use reply::{Reply, TrySendError};

use super::envelope::Request;
use super::{Hello, FRAME_MAX};
use connection::Connection;

/// After an error of the listener that concerns all connections, such as no more file descriptors.
const LISTENER_PAUSE: Duration = Duration::from_millis(200);

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A program somewhere.
    Tcp(SocketAddr),
    /// A program on this machine.
    Unix {
        /// The user that it runs as.
        uid: u32,
        /// Its process, if the system tells.
        pid: Option<i32>,
    },
}

/// Where connections come from.
#[async_trait]
pub trait Listener: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Waits for the next connection. Has to be cancellation safe.
    ///
    /// # Errors
    ///
    /// The next call may succeed; it comes after a pause.
    async fn accept(&mut self) -> io::Result<(Self::Stream, Peer)>;
}

#[async_trait]
impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, Peer)> {
        loop {
            let (stream, address) = TcpListener::accept(self).await?;
            match stream.set_nodelay(true) {
                Ok(()) => return Ok((stream, Peer::Tcp(address))),
                // It is gone already.
                Err(error) => debug!(%address, %error, "connection lost while accepting it"),
            }
        }
    }
}

#[async_trait]
impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        loop {
            let (stream, _) = UnixListener::accept(self).await?;
            match stream.peer_cred() {
                Ok(peer) => return Ok((stream, Peer::Unix { uid: peer.uid(), pid: peer.pid() })),
                Err(error) => debug!(%error, "connection lost while accepting it"),
            }
        }
    }
}

/// What a client has to show.
#[derive(Debug, Clone)]
pub enum Verifier {
    /// Nothing.
    None,
    /// The key, by proof or as it is.
    Key {
        /// That key.
        key: SessionKey,
    },
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// What a client has to show.
    pub verifier: Verifier,
    /// What somebody was told beforehand.
    pub hello: Option<Arc<Hello>>,
    /// How long the state of a lost connection is kept; `None`: not at all.
    pub reconnect: Option<Duration>,
    /// Whether a client may do without encryption.
    pub plain: bool,
    /// Connections that are not authenticated yet; more are closed at once.
    pub unauthenticated: usize,
    /// For a connection to authenticate.
    pub authentication: Duration,
    /// Connections that are authenticated, those included that may be taken up again; more are
    /// turned away, and told so.
    pub clients: usize,
    /// Requests of one connection that are handled at the same time; more wait unread.
    pub requests: usize,
    /// Bytes of a frame, in both directions.
    pub frame: usize,
    /// Bytes that are kept of what was sent, for a reconnection.
    pub backup: usize,
    /// Between two signs of life.
    pub heartbeat: Duration,
}

impl ServerOptions {
    /// For TCP: the key, 10 min for a reconnection, always encrypted.
    pub fn tcp(key: SessionKey) -> Self {
        Self {
            verifier: Verifier::Key { key },
            hello: None,
            reconnect: Some(Duration::from_secs(600)),
            plain: false,
            unauthenticated: 64,
            authentication: Duration::from_secs(10),
            // With those that are gone and may come back: some minutes of scripts that connect anew
            // for each command.
            clients: 64 * 1024,
            requests: 1024,
            frame: FRAME_MAX,
            backup: 16 * 1024 * 1024,
            heartbeat: Duration::from_secs(5),
        }
    }

    /// For a unix socket, whose end is final.
    pub fn unix() -> Self {
        Self {
            verifier: Verifier::None,
            hello: None,
            reconnect: None,
            plain: true,
            unauthenticated: 256,
            authentication: Duration::from_secs(10),
            clients: 512,
            requests: 1024,
            frame: FRAME_MAX,
            backup: 0,
            heartbeat: Duration::from_secs(5),
        }
    }
}

/// What answers requests.
///
/// The calls for one session come in this order: `open`, then `attached` and `detached` by turns,
/// `closed`. None of them may block.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// What is kept of one connection.
    type Session: Send + Sync + 'static;

    /// Whether a client that has shown what it has to is let in; comes before `open`.
    ///
    /// # Errors
    ///
    /// Why it is not, for its user.
    fn admit(&self) -> Result<(), String> {
        Ok(())
    }

    /// A connection is authenticated.
    fn open(&self, connection: u32, peer: &Peer) -> Self::Session;

    /// Its TCP connection is there, for the first time or again.
    fn attached(&self, _session: &Self::Session) {}

    /// Its TCP connection is lost, or closed; the state may be kept for a reconnection.
    fn detached(&self, _session: &Self::Session) {}

    /// The state is gone; the session is dropped after this. Requests that are still being handled
    /// are not cancelled; see [`Reply::closed`].
    fn closed(&self, _session: &Self::Session) {}

    /// Handles one request, in a task of its own. The requests of a connection start in the order
    /// in which they arrive: each runs to its first wait before the next one starts.
    async fn handle(&self, session: Arc<Self::Session>, request: Request, reply: Reply);

    /// MessagePack payload of the reply to a request that cannot be read but for its id, whose handler
    /// panicked, or whose reply is too long for a message.
    fn malformed(&self, reason: &str) -> Vec<u8>;
}

/// Serves all connections of `listener` until `shutdown`.
///
/// Returns when all of them are closed, after what was queued for them was written (1 s at most).
///
/// # Cancellation
///
/// Dropping the future stops accepting; the connections go on. Use `shutdown`.
pub async fn serve<L: Listener, S: Service>(
    mut listener: L,
    options: ServerOptions,
    service: Arc<S>,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        newcomers: Arc::new(Semaphore::new(options.unauthenticated)),
        clients: Arc::new(Semaphore::new(options.clients)),
        options,
        service,
        shutdown,
        connections: Mutex::default(),
        heart: Heart::default(),
    });
    let tasks = TaskTracker::new();
    tasks.spawn(Arc::clone(&server).beat());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.shutdown.cancelled() => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept connections");
                tokio::select! {
                    () = tokio::time::sleep(LISTENER_PAUSE) => continue,
                    () = server.shutdown.cancelled() => break,
                }
            }
        };
        match Arc::clone(&server.newcomers).try_acquire_owned() {
            Ok(place) => {
                tasks.spawn(connection::run(Arc::clone(&server), socket, peer, place));
            }
            Err(_) => warn!(?peer, "too many connections that did not authenticate yet"),
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// What the connections of a server share.
struct Server<S: Service> {
    options: ServerOptions,
    service: Arc<S>,
    shutdown: CancellationToken,
    /// Places for connections that did not authenticate yet.
    newcomers: Arc<Semaphore>,
    /// Places for those that did.
    clients: Arc<Semaphore>,
    /// Those that can be taken up again.
    connections: Mutex<HashMap<u32, Arc<Connection<S>>>>,
    heart: Heart,
}

/// The one timer of a server.
#[derive(Default)]
struct Heart {
    /// Wakes every connection up for its heartbeat.
    beat: Notify,
    /// How many connections there are to be woken, and a call for when the first one comes.
    listeners: Mutex<usize>,
    wanted: Notify,
}

/// Keeps the heart beating.
struct Listening<'a>(&'a Heart);

impl Heart {
    fn listeners(&self) -> MutexGuard<'_, usize> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self) -> Listening<'_> {
        *self.listeners() += 1;
        self.wanted.notify_one();
        Listening(self)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        *self.0.listeners() -= 1;
    }
}

impl<S: Service> Server<S> {
    /// A place for a client that has shown what it has to, or what it is told in place of one.
    fn admit(&self) -> Result<OwnedSemaphorePermit, String> {
        self.service.admit()?;
        Arc::clone(&self.clients)
            .try_acquire_owned()
            .map_err(|_| format!("the limit of {} clients is reached", self.options.clients))
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u32, Arc<Connection<S>>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Beats while there are connections; sleeps while there are none.
    async fn beat(self: Arc<Self>) {
        let beating = async {
            loop {
                self.heart.wanted.notified().await;
                let period = self.options.heartbeat;
                let mut ticks = interval_at(Instant::now() + period, period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while *self.heart.listeners() > 0 {
                    ticks.tick().await;
                    self.heart.beat.notify_waiters();
                }
            }
        };
        tokio::select! {
            () = beating => {}
            () = self.shutdown.cancelled() => {}
        }
    }
}
