//! How a service answers.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::wire::envelope::{pack, Response};
use crate::wire::message::Header;
use crate::wire::outbox::{Outbox, Refused};
use crate::wire::Closed;

/// Replies to one request: any number of times, from anywhere. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reply {
    outbox: Arc<Outbox>,
    origin_id: Arc<str>,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError {
    /// The queue is full.
    #[error("the client does not keep up")]
    Full,
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
}

impl Reply {
    pub(super) fn new(outbox: Arc<Outbox>, origin_id: &str) -> Self {
        Self { outbox, origin_id: origin_id.into() }
    }

    fn frame(&self, header: Header, payload: Bytes) -> Bytes {
        Response::new(header, &*self.origin_id, payload).to_frame()
    }

    /// Sends a reply; waits while the queue is full.
    ///
    /// # Errors
    ///
    /// The connection is over.
    ///
    /// # Cancellation
    ///
    /// Dropping the future before it is ready sends nothing.
    pub async fn send<T: Serialize + Sync + ?Sized>(&self, payload: &T) -> Result<(), Closed> {
        self.send_bytes(Header::new(), pack(payload)).await
    }

    /// Sends a reply with a header.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_with<T: Serialize + Sync + ?Sized>(
        &self,
        header: Header,
        payload: &T,
    ) -> Result<(), Closed> {
        self.send_bytes(header, pack(payload)).await
    }

    /// Sends a reply whose payload is MessagePack already.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_bytes(&self, header: Header, payload: Bytes) -> Result<(), Closed> {
        self.outbox.push(self.frame(header, payload)).await
    }

    /// Sends a reply if there is room in the queue.
    ///
    /// # Errors
    ///
    /// There is none, or the connection is over.
    pub fn try_send<T: Serialize + ?Sized>(
        &self,
        header: Header,
        payload: &T,
    ) -> Result<(), TrySendError> {
        self.outbox.try_push(&self.frame(header, pack(payload))).map_err(|refused| match refused {
            Refused::Full => TrySendError::Full,
            Refused::Closed => TrySendError::Closed,
        })
    }

    /// Sends a reply and blocks the thread while the queue is full. Never on a thread of the
    /// runtime, which may be the one that has to write.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn blocking_send<T: Serialize + ?Sized>(&self, payload: &T) -> Result<(), Closed> {
        self.outbox.push_blocking(&self.frame(Header::new(), pack(payload)))
    }

    /// Waits until the connection is finally over.
    pub async fn closed(&self) {
        self.outbox.closed().await;
    }

    /// Whether the connection is finally over.
    pub fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}
