//! Ending a server that a launch started.
//!
//! Its plugin ends it if it still holds something: a process, a tunnel. Else the one way that is
//! left is the connection itself: a server of this program's kind ends when asked to, a released
//! one runs `kill` on its own process. A server that nobody here started is left alone.

use std::time::Duration;

use tokio::time::Instant;

use super::connections::{Connection, Resident, Server};
use crate::wire::client::Status;
use crate::wire::envelope::Request;
use crate::wire::message::{ClientExtension, EXTENSION};

/// The server may still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KillError {
    /// It did not go in time.
    #[error("its server did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It is out of reach.
    #[error("its server cannot be reached")]
    Unreachable,
}

/// Ends the server of a connection that has left the table, and closes the connection.
pub(super) async fn end(connection: &Connection, limit: Duration) -> Result<(), KillError> {
    let deadline = Instant::now() + limit;
    let ended = tokio::time::timeout_at(deadline, end_server(connection)).await;
    let was_reachable = *connection.client.status().borrow() == Status::Connected;
    connection.client.close();
    let result = ended.unwrap_or(Err(match was_reachable {
        true => KillError::TimedOut(limit),
        false => KillError::Unreachable,
    }));
    match &result {
        Ok(()) => tracing::info!(connection = connection.id, "killed"),
        Err(error) => tracing::warn!(connection = connection.id, "killed, but {error}"),
    }
    result
}

/// Whether ending the server has to wait until it can be reached again.
pub(super) fn has_to_wait(connection: &Connection) -> bool {
    let is_held = |resident: &Resident| !resident.gone.is_cancelled();
    let is_lost = matches!(*connection.client.status().borrow(), Status::Reconnecting { .. });
    matches!(&connection.server, Server::Launched { resident, .. } if !is_held(resident)) && is_lost
}

async fn end_server(connection: &Connection) -> Result<(), KillError> {
    let Server::Launched { resident, proof } = &connection.server else { return Ok(()) };
    let held = !resident.gone.is_cancelled();
    resident.end.cancel();
    resident.gone.cancelled().await;
    let mut status = connection.client.status();
    let is_over = |status: &Status| matches!(status, Status::Closed { .. });
    // What is out of reach cannot be ended now; the caller's limit is how long it is waited for. But what
    // was held went with its worker, and only the end of its connection may not be seen as final yet.
    let found = status.wait_for(|it| held || *it == Status::Connected || is_over(it)).await;
    if found.map_or(true, |status| *status != Status::Connected) {
        return Ok(());
    }
    let request = if *proof { stop_request() } else { kill_request() };
    let client = connection.client.clone();
    // Its replies are read, as a queue that nobody empties would hold up the connection.
    let asked = async move {
        if let Ok(mut replies) = client.send(request).await {
            while replies.next().await.is_some() {}
        }
    };
    tokio::select! {
        () = asked => {}
        _ = status.wait_for(|status| *status != Status::Connected) => {}
    }
    Ok(())
}

/// What makes a server of this program's kind end.
fn stop_request() -> Request {
    let extension = ClientExtension { version: 1, stop: true, ..ClientExtension::default() };
    let mut request = Request::new(&serde_json::json!({ "type": "version" }));
    match serde_json::to_value(extension) {
        Ok(value) => drop(request.header.insert(EXTENSION.to_owned(), value)),
        Err(error) => tracing::error!(%error, "an extension cannot be written"),
    }
    request
}

/// What makes a released server end its own process: the parent of whatever it runs. What its launch
/// learnt of it is no help, as one that was slow to go to the background has another pid by now.
fn kill_request() -> Request {
    Request::new(&serde_json::json!({ "type": "proc_spawn", "cmd": "sh -c 'kill $PPID'" }))
}
