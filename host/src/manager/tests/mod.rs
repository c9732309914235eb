//! What a manager promises, shown from its socket.

mod channels;
mod connections;
mod launch;
mod questions;
mod socket;
mod support;
