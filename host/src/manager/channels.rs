//! Channels: the requests of clients, side by side on the one connection to a server.
//!
//! Towards the server each request's id starts with its channel's, and replies are told apart by
//! that; what travels is not looked at. Bytes that a client has not taken yet are counted and
//! limited. A client that is behind slows the server down, but one that takes nothing for a while
//! loses its channel, as others wait behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use distant_plugin_api::{ErrorKind, LaunchError};
use tokio::sync::{mpsc, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connections::Connection;
use super::requester::{Requester, Session};
use super::service::Manager;
use super::Limits;
use crate::wire::channel;
use crate::wire::client::{Replies, Status};
use crate::wire::envelope::{Request, Response};
use crate::wire::message::{Header, ManagerResponse};

/// What a waiting response takes beside its payload.
const OVERHEAD: usize = 256;

#[derive(Debug)]
struct Channel {
    client: u32,
    connection: Arc<Connection>,
    /// Held while a request waits for room, so that those behind it stay behind it.
    turn: tokio::sync::Mutex<()>,
    /// Fires when its client closes it.
    closed: CancellationToken,
}

/// All channels of a manager.
#[derive(Debug, Default)]
pub(super) struct Channels {
    open: Mutex<HashMap<u32, Arc<Channel>>>,
}

/// The words of a 0.20 manager for a channel that is not there.
const NOT_OPEN: &str = "Channel is not open or does not exist";

impl Channels {
    fn get(&self, client: u32, id: u32) -> Option<Arc<Channel>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&id).filter(|channel| channel.client == client).cloned()
    }

    fn add(&self, channel: &Arc<Channel>) -> u32 {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut id = rand::random();
        while open.contains_key(&id) {
            id = rand::random();
        }
        open.insert(id, Arc::clone(channel));
        id
    }

    fn remove(&self, id: u32) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Sends a request through a channel; waits while the server does not keep up.
    ///
    /// Requests go in the order of the first polls of their futures.
    ///
    /// # Errors
    ///
    /// What to tell the client.
    pub(super) async fn send(
        &self,
        session: &Session,
        id: u32,
        mut request: Request,
    ) -> Result<(), String> {
        let channel = self.get(session.connection, id).ok_or(NOT_OPEN)?;
        request.id = format!("{id}_{}", request.id);
        let sent = async {
            let _turn = channel.turn.lock().await;
            channel.connection.client.fire(request).await.is_ok()
        };
        let is_sent = tokio::select! {
            biased;
            is_sent = sent => is_sent,
            () = channel.closed.cancelled() => false,
            () = channel.connection.over.cancelled() => false,
            () = session.gone.cancelled() => false,
        };
        is_sent.then_some(()).ok_or_else(|| NOT_OPEN.to_owned())
    }

    /// Closes a channel.
    ///
    /// # Errors
    ///
    /// What to tell the client.
    pub(super) fn close(&self, client: u32, id: u32) -> Result<(), String> {
        let channel = self.get(client, id).ok_or(NOT_OPEN)?;
        self.remove(id);
        channel.closed.cancel();
        Ok(())
    }
}

/// Opens a channel for a client and serves it in the background until either end goes.
///
/// # Errors
///
/// What to tell the client.
pub(super) async fn open(
    manager: &Arc<Manager>,
    requester: Requester,
    connection: u32,
) -> Result<(), String> {
    let connection = manager.connections.get(connection).ok_or("Connection does not exist")?;
    let permits = Arc::clone(&requester.session.channels);
    let permit = permits.try_acquire_owned().map_err(|_| {
        format!("there are {} open channels already, close one first", manager.limits.channels)
    })?;
    let client = requester.session.connection;
    let (turn, closed) = (tokio::sync::Mutex::default(), CancellationToken::new());
    let channel = Arc::new(Channel { client, connection, turn, closed });
    let id = manager.channels.add(&channel);
    let replies = channel.connection.client.route(id.to_string());
    let manager = Arc::clone(manager);
    // In order: no reply of the server can come before this one.
    requester.tell(&ManagerResponse::ChannelOpened { id }).await;
    tokio::spawn(async move {
        let reason = serve(&manager, &requester, &channel, id, replies).await;
        manager.channels.remove(id);
        drop(permit);
        if !channel.closed.is_cancelled() {
            requester.tell_because(&ManagerResponse::ChannelClosed { id }, reason).await;
        }
    });
    Ok(())
}

/// Serves a channel until it has to be closed, and returns why, where its client may not know.
async fn serve(
    manager: &Manager,
    requester: &Requester,
    channel: &Channel,
    id: u32,
    replies: Replies,
) -> Option<LaunchError> {
    // What waits in it has a permit of the client's backlog, which is its bound.
    let (sender, receiver) = mpsc::unbounded_channel();
    let backlog = &requester.session.backlog;
    let overrun = async {
        if take(manager, backlog, replies, sender).await.is_ok() {
            // What was taken is still to be delivered.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = deliver(requester, id, receiver) => None,
        () = overrun => {
            tracing::warn!(channel = id, "closed: its client does not take what comes");
            Some(fallen_behind(&manager.limits))
        }
        () = channel.closed.cancelled() => None,
        () = channel.connection.over.cancelled() => Some(over(&channel.connection)),
        () = requester.session.gone.cancelled() => None,
    }
}

fn fallen_behind(limits: &Limits) -> LaunchError {
    let (backlog, patience) = (limits.backlog / 1024, limits.patience.as_secs_f64());
    let message = "the manager closed the channel, as this end does not keep up with the server";
    LaunchError::new(ErrorKind::Other, message).caused_by(format!(
        "more than {backlog} KiB waited to be taken, and nothing was taken for {patience} s"
    ))
}

fn over(connection: &Connection) -> LaunchError {
    let message = format!("the connection {} is over", connection.id);
    let error = LaunchError::new(ErrorKind::Unreachable, message);
    match &*connection.client.status().borrow() {
        Status::Closed { reason } => error.caused_by(reason.clone()),
        Status::Connected | Status::Reconnecting { .. } => error.caused_by("it was ended here"),
    }
}

type Waiting = (Response, OwnedSemaphorePermit);

/// The client takes nothing.
struct Overrun;

/// Takes replies from the server's connection for as long as the client's backlog has room. Until
/// there is some the connection waits, and everybody's replies with it.
async fn take(
    manager: &Manager,
    backlog: &Arc<Semaphore>,
    mut replies: Replies,
    queue: mpsc::UnboundedSender<Waiting>,
) -> Result<(), Overrun> {
    let limits = &manager.limits;
    while let Some(response) = replies.next().await {
        let size = (response.payload.len() + OVERHEAD).min(limits.backlog);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let permit = match Arc::clone(backlog).try_acquire_many_owned(size) {
            Ok(permit) => permit,
            Err(_) => {
                let room = Arc::clone(backlog).acquire_many_owned(size);
                let room = tokio::time::timeout(limits.patience, room).await;
                room.ok().and_then(Result::ok).ok_or(Overrun)?
            }
        };
        if queue.send((response, permit)).is_err() {
            break;
        }
    }
    Ok(())
}

async fn deliver(requester: &Requester, id: u32, mut queue: mpsc::UnboundedReceiver<Waiting>) {
    while let Some((mut response, _permit)) = queue.recv().await {
        if let Some((_, origin)) = response.origin_id.split_once('_') {
            response.origin_id = origin.to_owned();
        }
        let payload = channel::response(id, &response);
        if requester.reply.send_bytes(Header::new(), payload).await.is_err() {
            break;
        }
    }
}
