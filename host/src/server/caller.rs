//! Who made a request, as those see it who answer it now and have more to say later.

use bytes::Bytes;
use distant_protocol::{Msg, Response};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::wire::message::Header;
use crate::wire::server::Reply;
use crate::wire::Closed;

/// Who made a request: all that concerns it goes there, now and later. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) connection: u32,
    reply: Reply,
    answered: CancellationToken,
}

impl Caller {
    pub(super) fn new(connection: u32, reply: Reply) -> Self {
        Self { connection, reply, answered: CancellationToken::new() }
    }

    /// Sends a message; waits for as long as the client does not keep up.
    ///
    /// # Errors
    ///
    /// The client is gone for good.
    pub(super) async fn send(&self, message: &Msg<Response>) -> Result<(), Closed> {
        self.reply.send(message).await
    }

    /// Sends a message that is encoded already.
    ///
    /// # Errors
    ///
    /// The client is gone for good.
    pub(super) async fn send_bytes(&self, message: Bytes) -> Result<(), Closed> {
        self.reply.send_bytes(Header::new(), message).await
    }

    /// Waits until the request itself has its answer, which precedes everything else.
    pub(super) async fn answered(&self) {
        tokio::select! {
            () = self.answered.cancelled() => {}
            () = self.gone() => {}
        }
    }

    /// Lets everything else go out once this is dropped.
    pub(super) fn answering(&self) -> DropGuard {
        self.answered.clone().drop_guard()
    }

    /// Waits until the client is gone for good.
    pub(super) async fn gone(&self) {
        self.reply.closed().await;
    }
}
