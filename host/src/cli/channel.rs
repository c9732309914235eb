//! A channel: requests to a server and its responses, carried by the manager.

use std::path::Path;

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use distant_protocol::{Msg, Response};
use serde::Serialize;
use tokio::sync::mpsc;

use super::cache::Cache;
use super::manager_client::{extension, gone, read, unexpected, ManagerClient};
use super::terminal;
use crate::wire::channel;
use crate::wire::client::Replies;
use crate::wire::envelope::Request;
use crate::wire::message::{
    Header, ManagerExtension, ManagerRequest, ManagerResponse, UntypedResponse,
};

/// The connection to use: the one that was named, or the selected one.
///
/// # Errors
///
/// `invalid_option` if neither is there.
pub(crate) fn connection(named: Option<u32>, cache: &Path) -> Result<u32, LaunchError> {
    named.or_else(|| Cache::read(cache).selected()).ok_or_else(|| {
        LaunchError::new(ErrorKind::InvalidOption, "no connection is selected").with_hint(
            "name one with `--connection <ID>`, select one with `distant manager select`, \
             or make one with `distant launch`",
        )
    })
}

/// Opens a channel over a connection.
///
/// # Errors
///
/// There is no such connection, or the manager is gone.
pub(crate) async fn open(
    manager: &ManagerClient,
    connection: u32,
) -> Result<(Sender<'_>, Receiver), LaunchError> {
    let mut replies = manager.send(&ManagerRequest::OpenChannel { id: connection }).await?;
    let reply = replies.next().await.ok_or_else(gone)?;
    let id = match read(&reply) {
        Ok(ManagerResponse::ChannelOpened { id }) => id,
        Ok(_) => return Err(unexpected()),
        Err(error) => {
            let message = format!("no channel could be opened over the connection {connection}");
            return Err(LaunchError::new(error.kind, message)
                .caused_by(error.one_line())
                .with_hint("`distant manager list` shows the connections"));
        }
    };
    let (complaints, heard) = mpsc::unbounded_channel();
    Ok((Sender { manager, id, complaints }, Receiver { replies, complaints: heard, latest: None }))
}

/// Sends requests.
pub(crate) struct Sender<'a> {
    manager: &'a ManagerClient,
    id: u32,
    complaints: mpsc::UnboundedSender<Replies>,
}

impl Sender<'_> {
    /// Sends a request with an id that its responses will name.
    ///
    /// # Errors
    ///
    /// The manager is gone.
    pub(crate) async fn send<T: Serialize>(
        &self,
        header: Header,
        id: String,
        payload: &T,
    ) -> Result<(), LaunchError> {
        let payload = rmp_serde::to_vec_named(payload)
            .map_err(|error| terminal::from_error("cannot write a request", &error))?;
        let request = Request { header, id, payload: payload.into() };
        let complaint = self.manager.send_bytes(channel::request(self.id, &request)).await?;
        // The receiver may be gone, and then nobody wants to know.
        let _ = self.complaints.send(complaint);
        Ok(())
    }

    /// Closes the channel, as far as the manager is still there.
    pub(crate) async fn close(&self) {
        // What is left ends with the connection to the manager anyway.
        let _ = self.manager.ask(&ManagerRequest::CloseChannel { id: self.id }).await;
    }
}

/// Receives responses.
pub(crate) struct Receiver {
    replies: Replies,
    complaints: mpsc::UnboundedReceiver<Replies>,
    latest: Option<Replies>,
}

impl Receiver {
    /// The next response; `None` when the manager has closed the channel.
    ///
    /// # Errors
    ///
    /// The connection or the manager is gone, or whatever reason the manager gives for closing it.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<UntypedResponse>, LaunchError> {
        loop {
            let latest = async {
                match &mut self.latest {
                    Some(replies) => replies.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reply = self.replies.next() => {
                    let reply = reply.ok_or_else(gone)?;
                    if let Some(Ok((_, response))) = channel::parse_response(&reply.payload) {
                        return Ok(Some(response.into()));
                    }
                    match read(&reply)? {
                        ManagerResponse::Channel { response, .. } => return Ok(Some(response)),
                        ManagerResponse::ChannelClosed { .. } => {
                            return match extension(&reply) {
                                Some(ManagerExtension::Error(reason)) => Err(reason),
                                _ => Ok(None),
                            };
                        }
                        _ => return Err(unexpected()),
                    }
                }
                // A request that got through has no reply of its own; an error is what is left.
                complaint = latest => {
                    self.latest = None;
                    if let Some(complaint) = complaint {
                        read(&complaint)?;
                    }
                }
                Some(replies) = self.complaints.recv() => self.latest = Some(replies),
            }
        }
    }
}

/// Reads what a server says; one message or a batch.
///
/// # Errors
///
/// It says what nobody understands.
pub(crate) fn parse(response: &UntypedResponse) -> Result<Msg<Response>, LaunchError> {
    rmp_serde::from_slice(&response.payload)
        .map_err(|error| terminal::from_error("the server's response makes no sense", &error))
}
