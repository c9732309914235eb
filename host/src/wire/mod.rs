//! The 0.20 wire, both ends of it.

pub mod channel;
pub mod client;
pub mod envelope;
pub mod frame;
mod handshake;
pub mod message;
mod outbox;
pub mod server;
mod stream;

/// Most bytes of a frame between ends that know each other.
///
/// Released programs know no bound, and a file travels in one frame: through a manager's channel with
/// up to two bytes for each of its own. Nothing is allocated before it has arrived.
pub const FRAME_MAX: usize = 256 * 1024 * 1024;

/// The connection is finally closed: nothing more can be sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection is closed")]
pub struct Closed;

#[cfg(test)]
mod tests;
