//! How a service answers.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::wire::envelope::Response;
use crate::wire::message::Header;
use crate::wire::outbox::{Outbox, Refused};
use crate::wire::{pack, Closed};

/// Replies to one request: any number of times, from anywhere. Cheap to clone.
///
/// A reply that is too long for a message is replaced by what [`Service::malformed`] makes of that.
///
/// [`Service::malformed`]: super::Service::malformed
#[derive(Clone)]
pub struct Reply {
    outbox: Arc<Outbox>,
    limit: Arc<Limit>,
    origin_id: Arc<str>,
}

/// How long a reply may be, and what goes in the place of one that is longer.
pub(super) struct Limit {
    /// Bytes of a frame.
    pub(super) frame: usize,
    /// Makes the payload of a reply that says why there is no other.
    pub(super) refusal: Box<Refusal>,
}

type Refusal = dyn Fn(&str) -> Vec<u8> + Send + Sync;

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("origin_id", &self.origin_id).finish_non_exhaustive()
    }
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
    pub(super) fn new(outbox: Arc<Outbox>, limit: Arc<Limit>, origin_id: &str) -> Self {
        Self { outbox, limit, origin_id: origin_id.into() }
    }

    /// A frame that the client takes: one that is too long would end its connection.
    fn frame(&self, header: Header, payload: Bytes) -> Bytes {
        let frame = Response::new(header, &*self.origin_id, payload).to_frame();
        let limit = self.limit.frame;
        if frame.len() <= limit {
            return frame;
        }
        let reason =
            format!("the reply has {} bytes, and only {limit} fit into a message", frame.len());
        self.refusal(&reason)
    }

    fn refusal(&self, reason: &str) -> Bytes {
        let payload = (self.limit.refusal)(reason).into();
        Response::new(Header::new(), &*self.origin_id, payload).to_frame()
    }

    /// Says why there is no other reply.
    pub(super) async fn refuse(&self, reason: &str) -> Result<(), Closed> {
        self.outbox.push(self.refusal(reason)).await
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
        self.send_bytes(Header::new(), pack(payload).into()).await
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
        self.send_bytes(header, pack(payload).into()).await
    }

    /// Sends a reply whose payload is MessagePack already.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub async fn send_bytes(&self, header: Header, payload: Bytes) -> Result<(), Closed> {
        self.outbox.push(self.frame(header, payload)).await
    }

    /// Waits until all that was sent so far is where the client can read it, whatever becomes of this
    /// process. Over a unix socket only.
    ///
    /// # Errors
    ///
    /// The connection is over.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost.
    pub async fn flushed(&self) -> Result<(), Closed> {
        self.outbox.flushed().await
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
        self.outbox.try_push(&self.frame(header, pack(payload).into())).map_err(|refused| {
            match refused {
                Refused::Full => TrySendError::Full,
                Refused::Closed => TrySendError::Closed,
            }
        })
    }

    /// Sends a reply and blocks the thread while the queue is full. Never on a thread of the
    /// runtime, which may be the one that has to write.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn blocking_send<T: Serialize + ?Sized>(&self, payload: &T) -> Result<(), Closed> {
        self.outbox.push_blocking(&self.frame(Header::new(), pack(payload).into()))
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
