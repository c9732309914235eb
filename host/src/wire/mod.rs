//! The wire of distant 0.20, both ends of it: how programs talk over TCP and unix sockets.
//!
//! From the bottom up: [`frame`]s, a `handshake` that encrypts and authenticates, and [`envelope`]s
//! with requests and responses, whose payload stays bytes here. Everything is driven by events:
//! nothing polls, and an idle connection costs a heartbeat every 5 s. Everything that another program
//! can make grow has a limit. What an envelope says is in [`message`], and for the manager's busiest
//! messages in [`channel`].
//!
//! It does not know what a request means; that is for a [`server::Service`] and for the callers of
//! [`client::Client`].

use serde::de::DeserializeOwned;
use serde::Serialize;

pub mod channel;
pub mod client;
pub mod envelope;
pub mod frame;
mod handshake;
pub mod message;
mod outbox;
pub mod server;
mod stream;

pub use handshake::{Hello, Told};

/// Most bytes of a frame between ends that know each other.
///
/// Released programs know no bound, and a file travels in one frame: through a manager's channel with
/// up to two bytes for each of its own. Nothing is allocated before it has arrived.
pub const FRAME_MAX: usize = 256 * 1024 * 1024;

/// The connection is finally closed: nothing more can be sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed")]
pub struct Closed;

/// Most levels that a message may nest: enough for all of them, and little enough for a stack.
const DEPTH: usize = 128;

/// Writes a message as all of this wire is written: MessagePack, structs as maps.
fn pack<T: Serialize + ?Sized>(message: &T) -> Vec<u8> {
    // Our own types, into memory: nothing that can fail.
    rmp_serde::to_vec_named(message).unwrap_or_default()
}

/// Reads a message.
///
/// # Errors
///
/// What is wrong, without the values that it was wrong with: they may be secrets.
fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    use rmp_serde::decode::Error;

    let mut rest = bytes;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(DEPTH);
    let value = T::deserialize(&mut deserializer).map_err(|error| match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => "it ends too early".to_owned(),
        Error::DepthLimitExceeded => "it nests too deep".to_owned(),
        // These show names, all others may show values.
        Error::Syntax(text) | Error::Uncategorized(text)
            if ["missing field", "unknown field", "unknown variant", "duplicate field"]
                .iter()
                .any(|start| text.starts_with(start)) =>
        {
            text.chars().take(200).collect()
        }
        _ => "a value of another type than expected".to_owned(),
    })?;
    match rest {
        [] => Ok(value),
        _ => Err("something follows the message".to_owned()),
    }
}

#[cfg(test)]
mod tests;
