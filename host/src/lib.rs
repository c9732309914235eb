//! The launcher host: starts distant servers through plugins and keeps the connections to them.
//!
//! ARCHITECTURE.md at the top of the repository is the map of this crate.

pub mod cli;
pub mod daemon;
mod elf;
pub mod manager;
pub mod paths;
pub mod plugin;
mod range;
mod seconds;
pub mod server;
pub mod wire;
