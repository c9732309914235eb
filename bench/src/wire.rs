//! A client of either manager, made of our own wire: what it costs is the same for all that is
//! compared.

use std::path::Path;

use distant::wire::channel;
use distant::wire::client::{Client, ClientOptions, Replies};
use distant::wire::envelope::{Request, Response};
use distant::wire::message::{
    Authentication, AuthenticationResponse, ManagerRequest, ManagerResponse,
};
use distant_plugin_api::secret::Secret;
use distant_protocol as protocol;

use crate::Failure;

/// A connection to a manager.
pub(crate) struct Manager {
    client: Client,
}

impl Manager {
    /// Connects to the one that listens there.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Failure> {
        Ok(Self { client: Client::connect_unix(socket, ClientOptions::unix(), ()).await? })
    }

    async fn ask(&self, request: &ManagerRequest) -> Result<(ManagerResponse, Replies), Failure> {
        let mut replies = self.client.send(Request::new(request)).await?;
        loop {
            let reply = replies.next().await.ok_or("the manager is gone")?;
            match reply.parse::<ManagerResponse>()? {
                ManagerResponse::Error { description } => return Err(description.into()),
                // The server's own round, which a 0.20.0 manager passes on.
                ManagerResponse::Authenticate {
                    id,
                    msg: Authentication::Initialization { methods },
                } => {
                    let msg = AuthenticationResponse::Initialization { methods };
                    self.client
                        .fire(Request::new(&ManagerRequest::Authenticate { id, msg }))
                        .await?;
                }
                ManagerResponse::Authenticate { .. } => {}
                response => return Ok((response, replies)),
            }
        }
    }

    /// Has it connect to a server.
    pub(crate) async fn connect_to(
        &self,
        destination: &str,
        options: &str,
    ) -> Result<u32, Failure> {
        let (destination, options) = (Secret::new(destination), Secret::new(options));
        match self.ask(&ManagerRequest::Connect { destination, options }).await?.0 {
            ManagerResponse::Connected { id } => Ok(id),
            other => Err(format!("no connection but {other:?}").into()),
        }
    }

    /// Opens a channel over a connection.
    pub(crate) async fn open(&self, id: u32) -> Result<Channel, Failure> {
        match self.ask(&ManagerRequest::OpenChannel { id }).await? {
            (ManagerResponse::ChannelOpened { id }, replies) => {
                Ok(Channel { client: self.client.clone(), id, replies })
            }
            (other, _) => Err(format!("no channel but {other:?}").into()),
        }
    }
}

/// A channel to a server.
pub(crate) struct Channel {
    client: Client,
    id: u32,
    replies: Replies,
}

impl Channel {
    /// Sends a request.
    pub(crate) async fn send(&self, request: &protocol::Request) -> Result<(), Failure> {
        let request = Request::new(request);
        let payload = channel::request(self.id, &request);
        let envelope = Request { header: request.header, id: request.id, payload };
        Ok(self.client.fire(envelope).await?)
    }

    /// Takes the next response as it travelled.
    pub(crate) async fn next(&mut self) -> Result<Response, Failure> {
        let reply = self.replies.next().await.ok_or("the manager is gone")?;
        let response = channel::parse_response(&reply.payload).ok_or("no channel message")?;
        Ok(response?.1)
    }

    /// Sends a request and waits for its response, which must be no error.
    pub(crate) async fn ask(&mut self, request: &protocol::Request) -> Result<Response, Failure> {
        self.send(request).await?;
        let response = self.next().await?;
        check(&response)?;
        Ok(response)
    }
}

/// Fails if a response is an error.
pub(crate) fn check(response: &Response) -> Result<(), Failure> {
    // An answer with a file in it need not be read to know that it is none.
    if response.payload.len() < 4096 {
        if let protocol::Msg::Single(protocol::Response::Error(error)) =
            rmp_serde::from_slice(&response.payload)?
        {
            return Err(error.to_string().into());
        }
    }
    Ok(())
}
