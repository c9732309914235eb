//! One connection of a server, over as many TCP connections as it takes.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::{watch, Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info};

use super::reply::Limit;
use super::setup::{self, Client};
use super::{Heart, Peer, Reply, Server, Service};
use crate::wire::envelope::Request;
use crate::wire::handshake::SharedKey;
use crate::wire::outbox::Outbox;
use crate::wire::stream::{Reading, Socket, Stream, Writing, FLUSH};

/// What is kept of a connection.
///
/// There is always exactly one task for it: that of its latest TCP connection, also after that one
/// was lost, until the next takes over.
pub(super) struct Connection<S: Service> {
    id: u32,
    pub(super) outbox: Arc<Outbox>,
    session: Arc<S::Session>,
    /// Whether whoever takes it up again has to prove the password instead of sending it.
    pub(super) is_proved: bool,
    /// One-time passwords to take it up again: the newest, and the one before as long as the client
    /// may not have got that.
    passwords: Mutex<Vec<SharedKey>>,
    /// Held by whoever reads and writes, or is about to.
    attached: Arc<AsyncMutex<Attached>>,
    /// Counts who wants to take over.
    claims: watch::Sender<u64>,
    /// Counts who did.
    takeovers: watch::Sender<u64>,
    requests: Arc<Semaphore>,
    limit: Arc<Limit>,
    /// Given back with the last trace of it.
    _place: OwnedSemaphorePermit,
}

/// What is known only between frames.
pub(super) struct Attached {
    /// Frames that the client has sent since its `Connect` frame.
    pub(super) received: u64,
}

/// The right to read and write.
pub(super) struct Attachment {
    attached: OwnedMutexGuard<Attached>,
    claims: watch::Receiver<u64>,
}

impl std::ops::Deref for Attachment {
    type Target = Attached;

    fn deref(&self) -> &Attached {
        &self.attached
    }
}

impl<S: Service> Connection<S> {
    pub(super) fn passwords(&self) -> MutexGuard<'_, Vec<SharedKey>> {
        self.passwords.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_passwords(&self, passwords: Vec<SharedKey>) {
        *self.passwords() = passwords;
    }

    /// Waits for the right to read and write; `None` if the connection is over.
    pub(super) async fn take_over(&self) -> Option<Attachment> {
        self.claims.send_modify(|claims| *claims += 1);
        let attached = Arc::clone(&self.attached).lock_owned().await;
        let claims = self.claims.subscribe();
        (!self.outbox.is_closed()).then_some(Attachment { attached, claims })
    }

    /// Ends the connection for good; its task does the rest.
    pub(super) fn give_up(&self) {
        self.outbox.close();
    }
}

/// Why a connection does not go on over this TCP connection.
enum End {
    /// It may over another one.
    Lost(String),
    /// It must not.
    Final(String),
}

/// Runs one TCP connection or unix socket, from its first byte to the end of what it belongs to.
pub(super) async fn run<T: Socket, S: Service>(
    server: Arc<Server<S>>,
    socket: T,
    peer: Peer,
    place: OwnedSemaphorePermit,
) {
    let set_up = timeout(server.options.authentication, setup::set_up(&server, socket));
    let set_up = tokio::select! {
        set_up = set_up => set_up,
        () = server.shutdown.cancelled() => return,
    };
    let (stream, client) = match set_up {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return info!(?peer, %error, "connection refused"),
        Err(_) => return info!(?peer, "connection closed: it did not authenticate in time"),
    };
    drop(place);
    let (connection, attachment) = match client {
        Client::New { id, password, is_proved, place } => {
            let connection = open(&server, &stream, (id, password, is_proved), &peer, place);
            // Nobody else knows it yet.
            let Some(attachment) = connection.take_over().await else { return };
            if server.options.reconnect.is_some() {
                server.connections().insert(id, Arc::clone(&connection));
            }
            (connection, attachment)
        }
        Client::Known { connection, attachment } => (connection, attachment),
    };
    let id = connection.id;
    connection.takeovers.send_modify(|takeovers| *takeovers += 1);
    let mut takeovers = connection.takeovers.subscribe();
    info!(id, ?peer, "connected");
    let end = attend(&server, &connection, stream, attachment).await;
    let reason = match (end, server.options.reconnect) {
        (End::Lost(reason), Some(keep)) => {
            info!(id, reason, "connection lost");
            tokio::select! {
                biased;
                // Somebody else has it now, and all that follows.
                _ = takeovers.changed() => return,
                () = connection.outbox.closed() => "its messages are lost".to_owned(),
                () = server.shutdown.cancelled() => "shutdown".to_owned(),
                () = sleep(keep) => {
                    // Who is about to take over is let do so.
                    let _attached = connection.attached.lock().await;
                    if takeovers.has_changed().unwrap_or(false) {
                        return;
                    }
                    connection.outbox.close();
                    "nobody has taken it up again".to_owned()
                }
            }
        }
        (End::Lost(reason), None) | (End::Final(reason), _) => reason,
    };
    info!(id, reason, "connection closed");
    connection.outbox.close();
    server.connections().remove(&id);
    server.service.closed(&connection.session);
}

fn open<T: Socket, S: Service>(
    server: &Server<S>,
    stream: &Stream<T>,
    (id, password, is_proved): (u32, SharedKey, bool),
    peer: &Peer,
    place: OwnedSemaphorePermit,
) -> Arc<Connection<S>> {
    let keep = if server.options.reconnect.is_some() { server.options.backup } else { 0 };
    Arc::new(Connection {
        id,
        outbox: Arc::new(Outbox::new(stream.writing.sent, keep)),
        session: Arc::new(server.service.open(id, peer)),
        is_proved,
        passwords: Mutex::new(vec![password]),
        attached: Arc::new(AsyncMutex::new(Attached { received: stream.reading.received })),
        claims: watch::channel(0).0,
        takeovers: watch::channel(0).0,
        requests: Arc::new(Semaphore::new(server.options.requests)),
        _place: place,
        limit: Arc::new(Limit {
            frame: server.options.frame,
            refusal: {
                let service = Arc::clone(&server.service);
                Box::new(move |reason| service.malformed(reason))
            },
        }),
    })
}

/// Reads and writes until the TCP connection is lost, taken over, or the server is shut down.
async fn attend<T: Socket, S: Service>(
    server: &Arc<Server<S>>,
    connection: &Arc<Connection<S>>,
    stream: Stream<T>,
    mut attachment: Attachment,
) -> End {
    let Stream { mut reading, mut writing } = stream;
    server.service.attached(&connection.session);
    let end = {
        let write = write(&server.heart, &mut writing, &connection.outbox);
        tokio::pin!(write);
        tokio::select! {
            end = read(server, connection, &mut reading) => end,
            written = &mut write => match written {
                Ok(()) => End::Final("closed".to_owned()),
                Err(error) => End::Lost(error.to_string()),
            },
            _ = attachment.claims.changed() => {
                End::Lost("the client has another connection for it".to_owned())
            }
            () = server.shutdown.cancelled() => {
                connection.outbox.finish();
                // Whatever comes of it, it is over.
                let _ = timeout(FLUSH, write).await;
                End::Final("shutdown".to_owned())
            }
        }
    };
    if matches!(end, End::Final(_)) {
        let _ = timeout(FLUSH, writing.shut()).await;
    }
    attachment.attached.received = reading.received;
    server.service.detached(&connection.session);
    end
}

/// Writes what is queued, and heartbeats while there is nothing.
async fn write<T: Socket>(
    heart: &Heart,
    writing: &mut Writing<T>,
    outbox: &Outbox,
) -> io::Result<()> {
    let _listening = heart.listen();
    // The first beat counts for this: released clients may lose what comes right behind the set-up.
    let mut has_written = true;
    loop {
        let beat = heart.beat.notified();
        tokio::select! {
            biased;
            is_ready = outbox.ready() => {
                if !is_ready {
                    return Ok(());
                }
                writing.put_queued(outbox);
                has_written = true;
            }
            () = beat => {
                if !std::mem::replace(&mut has_written, false) && writing.put(&[]) {
                    outbox.count_heartbeat();
                }
            }
        }
        writing.flush().await?;
    }
}

async fn read<T: Socket, S: Service>(
    server: &Arc<Server<S>>,
    connection: &Arc<Connection<S>>,
    reading: &mut Reading<T>,
) -> End {
    loop {
        // Before reading: what was read counts as received, so it must not get lost in a wait.
        let place = Arc::clone(&connection.requests).acquire_owned().await;
        let content = match reading.next().await {
            Ok(Some(content)) => content,
            Ok(None) => return End::Lost("the client closed the connection".to_owned()),
            Err(error) => return End::Lost(error.to_string()),
        };
        // It goes on, so it has got the new password.
        connection.passwords().truncate(1);
        if content.is_empty() {
            continue;
        }
        match Request::from_frame(&content) {
            Ok(request) => {
                debug!(id = connection.id, request = request.id, "request");
                handle(server, connection, Ok(request), place.ok());
            }
            Err(invalid) => match invalid.id {
                Some(id) => handle(server, connection, Err((id, invalid.reason)), place.ok()),
                None => return End::Final(invalid.to_string()),
            },
        }
    }
}

/// Starts to handle a request, or the reply to one that is none.
///
/// It runs here to its first wait, so that requests start in their order, and those that need not
/// wait need no task.
fn handle<S: Service>(
    server: &Arc<Server<S>>,
    connection: &Arc<Connection<S>>,
    request: Result<Request, (String, String)>,
    place: Option<OwnedSemaphorePermit>,
) {
    let service = Arc::clone(&server.service);
    let session = Arc::clone(&connection.session);
    let id = match &request {
        Ok(request) => &request.id,
        Err((id, _)) => id,
    };
    let reply = Reply::new(Arc::clone(&connection.outbox), Arc::clone(&connection.limit), id);
    let mut handling = Box::pin(async move {
        let reason = match request {
            Ok(request) => {
                let handled = service.handle(session, request, reply.clone());
                match AssertUnwindSafe(handled).catch_unwind().await {
                    Ok(()) => return,
                    Err(_) => {
                        error!("a request made its handler panic");
                        "the server failed to handle it".to_owned()
                    }
                }
            }
            Err((_, reason)) => reason,
        };
        // If it cannot be sent, there is nobody to be told.
        let _ = reply.refuse(&reason).await;
        drop(place);
    });
    // Where the task has used up its time slice, a lock that is free is not given to it. Then a later
    // request could have it first.
    if tokio::task::unconstrained(handling.as_mut()).now_or_never().is_none() {
        tokio::spawn(handling);
    }
}
