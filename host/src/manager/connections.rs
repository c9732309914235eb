//! The connections that a manager keeps: one table, open to every client.
//!
//! A connection is in the table for as long as it may be used. It leaves by `kill`, when its server
//! is gone for good, and when the worker that held it is gone; then its channels close.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::options::Options;
use tokio_util::sync::CancellationToken;

use crate::wire::client::{Client, Status};
use crate::wire::envelope::Request;
use crate::wire::message::{ConnectionInfo, ConnectionList};

/// For a server to show that it is still there after the worker that launched it ended.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The worker of a launch that was committed.
#[derive(Debug, Clone)]
pub(super) struct Resident {
    /// Fire it to cancel the worker.
    pub(super) end: CancellationToken,
    /// Fires when the worker is gone.
    pub(super) gone: CancellationToken,
}

/// Whose the server at the other end is.
#[derive(Debug)]
pub(super) enum Server {
    /// Somebody else's: only the connection is ours.
    Foreign,
    /// A launch of this manager started it.
    Launched {
        /// The launch's worker, which may hold something that the server needs.
        resident: Resident,
        /// Whether it is a server of this program's kind, which ends when asked to.
        proof: bool,
    },
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u32,
    /// Where it leads, without a password.
    destination: Destination,
    /// What it was made with, without secrets.
    options: Options,
    pub(super) client: Client,
    pub(super) server: Server,
    /// Fires when it has left the table.
    pub(super) over: CancellationToken,
}

impl Connection {
    /// Tells how it is to be listed; no key is in it.
    pub(super) fn info(&self) -> ConnectionInfo {
        let mut options = self.options.clone();
        if matches!(*self.client.status().borrow(), Status::Reconnecting { .. }) {
            options.insert("state", "reconnecting");
        }
        ConnectionInfo {
            id: self.id,
            destination: self.destination.to_string(),
            options: options.to_string(),
        }
    }
}

/// A destination as released clients can read it too, which would refuse a whole list of others for
/// one that has a `_` or a zone.
pub(super) fn for_released(mut destination: Destination, client: &Client) -> Destination {
    if destination.host.contains(['_', '%']) {
        destination.host = reached(client);
    }
    destination
}

/// The address of a server, without its zone.
pub(super) fn reached(client: &Client) -> String {
    client.peer().map_or("localhost".to_owned(), |it| it.ip().to_string())
}

type Table = BTreeMap<u32, Arc<Connection>>;

/// All connections of a manager.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    table: Arc<Mutex<Table>>,
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection under a new id, and watches it for as long as it is there.
    pub(super) fn add(
        &self,
        client: Client,
        mut destination: Destination,
        options: Options,
        server: Server,
    ) -> Arc<Connection> {
        destination.password = None;
        let destination = for_released(destination, &client);
        let mut table = self.table();
        // 0 is what a cache file has where nothing is selected.
        let mut id = 0;
        while id == 0 || table.contains_key(&id) {
            id = rand::random();
        }
        let over = CancellationToken::new();
        let connection = Arc::new(Connection { id, destination, options, client, server, over });
        table.insert(id, Arc::clone(&connection));
        drop(table);
        tokio::spawn(self.clone().watch(Arc::clone(&connection)));
        connection
    }

    /// Looks a connection up.
    pub(super) fn get(&self, id: u32) -> Option<Arc<Connection>> {
        self.table().get(&id).cloned()
    }

    /// Lists all, without keys.
    pub(super) fn list(&self) -> ConnectionList {
        let table = self.table();
        ConnectionList(table.iter().map(|(id, it)| (*id, it.destination.to_string())).collect())
    }

    /// Takes a connection out; its channels close.
    pub(super) fn remove(&self, id: u32) -> Option<Arc<Connection>> {
        let removed = self.table().remove(&id);
        removed.inspect(|connection| connection.over.cancel())
    }

    /// Takes all connections out.
    pub(super) fn remove_all(&self) -> Vec<Arc<Connection>> {
        let removed: Vec<_> = std::mem::take(&mut *self.table()).into_values().collect();
        removed.into_iter().inspect(|connection| connection.over.cancel()).collect()
    }

    /// Drops a connection whose server is gone.
    fn drop_dead(&self, connection: &Connection, reason: &str) {
        if let Some(connection) = self.remove(connection.id) {
            connection.client.close();
            let destination = &connection.destination;
            tracing::info!(connection = connection.id, %destination, "dropped: {reason}");
        }
    }

    async fn watch(self, connection: Arc<Connection>) {
        let mut status = connection.client.status();
        let reason = loop {
            let now = status.borrow_and_update().clone();
            match now {
                Status::Closed { reason } => break reason,
                Status::Reconnecting { reason } => {
                    tracing::info!(connection = connection.id, "reconnecting: {reason}");
                }
                Status::Connected => {}
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() {
                    break "the connection is closed".to_owned();
                },
                () = connection.over.cancelled() => return,
            }
        };
        self.drop_dead(&connection, &reason);
    }

    /// Drops a connection if its server ended together with the worker that launched it.
    ///
    /// A worker ends right after the launch where it holds nothing any more. Then the server is
    /// there and says so. One that lived and died with its worker is not worth reconnecting to.
    pub(super) async fn check(&self, connection: &Connection) {
        let mut status = connection.client.status();
        let answers = async {
            let version = Request::new(&serde_json::json!({ "type": "version" }));
            match connection.client.send(version).await {
                Ok(mut replies) => replies.next().await.is_some(),
                Err(_) => false,
            }
        };
        let is_dead = tokio::select! {
            answers = answers => !answers,
            _ = status.wait_for(|status| *status != Status::Connected) => true,
            () = tokio::time::sleep(SIGN_OF_LIFE) => false,
            () = connection.over.cancelled() => return,
        };
        if is_dead {
            self.drop_dead(connection, "its server ended");
        }
    }
}
