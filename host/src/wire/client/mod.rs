//! The client's end of the wire: one connection, any number of requests at the same time.
//!
//! A [`Client`] is a handle to a task that owns the connection and, over TCP, makes it again when
//! it is lost, without anybody noticing but for the delay.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use distant_plugin_api::secret::SessionKey;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch, Semaphore};
use tokio::time::{timeout, Instant};
use tokio_util::sync::CancellationToken;

pub(super) mod connect;
mod run;

use connect::Established;
use run::{Queued, Shared, Subscriber};

use super::envelope::{Request, Response};
use super::frame::{CompressionLevel, CompressionType};
use super::message::Authentication;
use super::outbox::Outbox;
use super::stream::Socket;
use super::{Closed, Told, FRAME_MAX};

/// Bytes that are kept of what was sent, for a reconnection.
const BACKUP: usize = 16 * 1024 * 1024;
/// A server that says nothing for so long is lost, usually.
const SILENCE: Duration = Duration::from_secs(20);
/// Before the second attempt to connect again, usually.
const BACK_OFF: Duration = Duration::from_secs(1);
/// For one attempt to connect again, usually.
const ATTEMPT: Duration = Duration::from_secs(30);
/// For a released server to notice that a connection is lost, usually. Who comes back over another
/// network wants an answer by then, and not after the quarter of an hour that its system may take.
const PATIENCE: Duration = Duration::from_secs(2 * 60);
/// Replies to one request that may wait to be taken.
const REPLIES: usize = 64;
/// Bytes that these may have together, beside the last one, which may have any length.
const REPLIES_BYTES: usize = 4 * 1024 * 1024;

/// How a client shows that it may use the server.
#[derive(Debug, Clone)]
pub enum Credential {
    /// Not at all (method `none`), as over the manager's own socket.
    None,
    /// Sends the key, as a released server wants it.
    Key(SessionKey),
    /// Proves the key and has the server prove it; the key is never sent, and there is no way back to sending it.
    Proof(SessionKey),
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// What to show.
    pub credential: Credential,
    /// What the server will say first, if somebody knows: a round trip less. Only with
    /// [`Credential::Proof`].
    pub told: Option<Told>,
    /// For all of it: to connect, to authenticate (with what the [`Authenticator`] takes), and to
    /// have the first answer.
    pub within: Duration,
    /// Whether a lost connection is made again. Over TCP only.
    pub reconnect: bool,
    /// How frames are compressed, if the server can.
    pub compression: Option<(CompressionType, CompressionLevel)>,
    /// A server that says nothing for so long is lost; it gives a sign of life every 5 s.
    pub silence: Duration,
    /// Before the second attempt to connect again; doubled each time, up to 60 s.
    pub back_off: Duration,
    /// For one attempt to connect again.
    pub attempt: Duration,
    /// A released server does not answer before it has noticed that the old connection is gone, and
    /// refuses everybody else meanwhile. After that time its refusal, or silence, is its last word.
    pub patience: Duration,
}

impl ClientOptions {
    /// Over the manager's own socket: no credential, no reconnection, 15 s.
    pub fn unix() -> Self {
        Self {
            credential: Credential::None,
            told: None,
            within: Duration::from_secs(15),
            reconnect: false,
            compression: None,
            silence: SILENCE,
            back_off: BACK_OFF,
            attempt: ATTEMPT,
            patience: PATIENCE,
        }
    }

    /// To a server: reconnects, not compressed.
    pub fn tcp(credential: Credential, within: Duration) -> Self {
        Self { credential, within, reconnect: true, ..Self::unix() }
    }
}

/// Sees what the server says while a client authenticates by `none`.
#[async_trait]
pub trait Authenticator: Send {
    /// One message of the server: the initialization, the start of the method, that it is finished.
    /// An answer to the first one is already on its way; an error takes it back by closing.
    ///
    /// # Errors
    ///
    /// Why the client does not want to go on; ends in [`ConnectError::Rejected`].
    async fn see(&mut self, message: &Authentication) -> Result<(), String>;
}

/// Goes along with everything.
#[async_trait]
impl Authenticator for () {
    async fn see(&mut self, _message: &Authentication) -> Result<(), String> {
        Ok(())
    }
}

/// How a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It works.
    Connected,
    /// It was lost and is being made again; requests wait.
    Reconnecting {
        /// Why.
        reason: String,
    },
    /// It is over.
    Closed {
        /// Why.
        reason: String,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, on none of the addresses.
    #[error("the connection was refused")]
    Refused {
        /// Of the last address.
        source: io::Error,
    },
    /// No answer within the time.
    #[error("no answer within {within:?}")]
    TimedOut {
        /// What was waited for.
        within: Duration,
    },
    /// The connection was closed before the other end had said a word: something in between, such
    /// as a proxy or a tunnel, takes connections for a server that it does not reach.
    #[error("the connection was closed before the server had said anything")]
    Closed,
    /// The other end closed at the credential, or failed to prove the key.
    #[error("{reason}")]
    Rejected {
        /// Why, as far as this end can tell.
        reason: String,
    },
    /// The other end speaks another version.
    #[error("the other end has version {version}, which this one does not speak")]
    Incompatible {
        /// That version.
        version: String,
    },
    /// The other end does not speak this protocol.
    #[error("the other end broke the protocol: {reason}")]
    Protocol {
        /// What it did.
        reason: String,
    },
    /// Anything else.
    #[error("cannot connect")]
    Io {
        /// What the system says.
        source: io::Error,
    },
}

/// Why a request was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
    /// The other end would close the connection because of it.
    #[error("the request has {length} bytes, and only {FRAME_MAX} fit into a message")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// A connection to a server or manager: a handle, cheap to clone.
///
/// Dropping the last one, and all [`Replies`], closes it, after what is queued was written.
#[derive(Debug, Clone)]
pub struct Client(Arc<Handle>);

/// What all handles of a connection share.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    /// When the first byte could be sent; over TCP only.
    reached: Option<Instant>,
    /// Who listens on the unix socket.
    uid: Option<u32>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Client {
    /// Connects over TCP to the first of `addresses` that answers.
    ///
    /// The first answer is that to a `version` request: with it the server has shown that it works.
    /// A refused credential is final, also if there are more addresses.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`]; of several addresses the last one's.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub async fn connect_tcp(
        addresses: &[SocketAddr],
        options: ClientOptions,
    ) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + options.within;
        let none = io::Error::new(io::ErrorKind::InvalidInput, "no address to connect to");
        let mut last = ConnectError::Io { source: none };
        for (index, address) in addresses.iter().enumerate() {
            // A mute address must not use up the time of those after it.
            let share = deadline.saturating_duration_since(Instant::now())
                / (addresses.len() - index).try_into().unwrap_or(1);
            let attempt = timeout(share, Self::connect_as_told(*address, &options)).await;
            match attempt.unwrap_or(Err(ConnectError::TimedOut { within: options.within })) {
                Ok(client) => return Ok(client),
                Err(
                    error @ (ConnectError::Rejected { .. } | ConnectError::Incompatible { .. }),
                ) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects with what is known of the server, and without where that turns out to be of no use,
    /// as after somebody else was there first.
    async fn connect_as_told(
        address: SocketAddr,
        options: &ClientOptions,
    ) -> Result<Self, ConnectError> {
        let outcome = Self::connect_to(address, options).await;
        let is_no_use =
            matches!(outcome, Err(ConnectError::Rejected { .. } | ConnectError::Protocol { .. }));
        match &options.told {
            Some(_) if is_no_use => {
                let options = ClientOptions { told: None, ..options.clone() };
                Self::connect_to(address, &options).await
            }
            _ => outcome,
        }
    }

    async fn connect_to(
        address: SocketAddr,
        options: &ClientOptions,
    ) -> Result<Self, ConnectError> {
        let reached = connect::reach(address).await;
        let socket = reached.map_err(|error| not_reached(error, options.within))?;
        let reached = Instant::now();
        let first = Request::new(&BTreeMap::from([("type", "version")]));
        let frame = first.to_frame();
        let established = connect::establish(socket, options, &mut (), Some(&frame)).await?;
        let reconnect = options.reconnect.then_some(address);
        let keep = if options.reconnect { BACKUP } else { 0 };
        let client =
            Self::new(established.stream.writing.sent - 1, keep, Some((address, reached)), None);
        // The first request is written already: over the outbox it gets into the backup.
        let outbox = &client.0.shared.outbox;
        outbox.push(frame).await.map_err(|_| not_answered())?;
        outbox.take(1);
        let mut replies = client.subscribe(first.id);
        client.start(established, reconnect, options);
        // It shows that the server works. What it says may be long, and nobody needs it.
        drop(replies.next().await.ok_or_else(not_answered)?);
        Ok(client)
    }

    /// Connects to a unix socket. An end of that connection is final.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub async fn connect_unix(
        path: &Path,
        options: ClientOptions,
        mut authenticator: impl Authenticator,
    ) -> Result<Self, ConnectError> {
        let connecting = async {
            let reached = UnixStream::connect(path).await;
            let socket = reached.map_err(|error| not_reached(error, options.within))?;
            let uid = socket.peer_cred().ok().map(|it| it.uid());
            let established =
                connect::establish(socket, &options, &mut authenticator, None).await?;
            let client = Self::new(established.stream.writing.sent, 0, None, uid);
            client.start(established, None, &options);
            Ok(client)
        };
        let within = options.within;
        timeout(within, connecting).await.unwrap_or(Err(ConnectError::TimedOut { within }))
    }

    /// Sends a request; waits while the queue is full, also while the connection is made again.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    ///
    /// # Cancellation
    ///
    /// Dropping the future before it is ready sends nothing.
    pub async fn send(&self, request: Request) -> Result<Replies, SendError> {
        let replies = self.subscribe(request.id.clone());
        self.fire(request).await?;
        Ok(replies)
    }

    /// Subscribes to the replies to a request that is sent after this, or to those of a route.
    fn subscribe(&self, id: String) -> Replies {
        let (sender, receiver) = mpsc::channel(REPLIES);
        let room = Arc::new(Semaphore::new(REPLIES_BYTES));
        self.0.shared.subscribers().insert(id.clone(), Subscriber { sender, room });
        if self.0.shared.outbox.is_closed() {
            // It closed in between, so nobody else takes this away again.
            self.0.shared.subscribers().remove(&id);
        }
        Replies { id, receiver, client: self.clone() }
    }

    /// Sends a request whose replies go to a [`Self::route`], or to nobody; waits while the queue is
    /// full, also while the connection is made again.
    ///
    /// # Errors
    ///
    /// See [`SendError`].
    ///
    /// # Cancellation
    ///
    /// Dropping the future before it is ready sends nothing.
    pub async fn fire(&self, request: Request) -> Result<(), SendError> {
        let frame = request.to_frame();
        if frame.len() > FRAME_MAX {
            return Err(SendError::TooLong { length: frame.len() });
        }
        self.0.shared.outbox.push(frame).await.map_err(|Closed| SendError::Closed)
    }

    /// Takes the replies to all requests whose id is `prefix`, then `_`, then anything.
    ///
    /// No state is kept for any of these requests, so there may be any number of them.
    pub fn route(&self, prefix: impl Into<String>) -> Replies {
        self.subscribe(prefix.into())
    }

    /// How the connection is, now and later.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.0.shared.status.subscribe()
    }

    /// The address that was reached; none for a unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// When the address was reached, which is when the set-up began; none for a unix socket.
    pub fn reached(&self) -> Option<std::time::Instant> {
        self.0.reached.map(Instant::into_std)
    }

    /// The user that listens on the unix socket; none over TCP.
    pub fn peer_uid(&self) -> Option<u32> {
        self.0.uid
    }

    /// Closes the connection for every handle, after what is queued was written.
    pub fn close(&self) {
        self.0.shared.stop.cancel();
    }

    fn new(
        written: u64,
        keep: usize,
        peer: Option<(SocketAddr, Instant)>,
        uid: Option<u32>,
    ) -> Self {
        let (peer, reached) = peer.unzip();
        let shared = Arc::new(Shared {
            outbox: Outbox::new(written, keep),
            subscribers: Mutex::default(),
            status: watch::channel(Status::Connected).0,
            stop: CancellationToken::new(),
        });
        Self(Arc::new(Handle { shared, peer, reached, uid }))
    }

    fn start<S: Socket>(
        &self,
        established: Established<S>,
        reconnect: Option<SocketAddr>,
        options: &ClientOptions,
    ) {
        let shared = Arc::clone(&self.0.shared);
        tokio::spawn(run::run(shared, established, reconnect, options.clone()));
    }
}

fn not_answered() -> ConnectError {
    ConnectError::Protocol { reason: "it closed the connection instead of answering".to_owned() }
}

fn not_reached(source: io::Error, within: Duration) -> ConnectError {
    match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            ConnectError::Refused { source }
        }
        io::ErrorKind::TimedOut => ConnectError::TimedOut { within },
        _ => ConnectError::Io { source },
    }
}

/// What a server replies to one request, or to those of a route. Dropping it unsubscribes.
///
/// Replies that nobody takes hold up all others of the connection once 64 of them wait, or 4 MiB, so
/// take them or drop this.
#[derive(Debug)]
pub struct Replies {
    id: String,
    receiver: mpsc::Receiver<Queued>,
    client: Client,
}

impl Replies {
    /// The next reply; `None` when the connection is over.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Response> {
        let (response, _its_room) = self.receiver.recv().await?;
        Some(response)
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.client.0.shared.subscribers().remove(&self.id);
    }
}
