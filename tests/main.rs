//! Every promise of the product, against the real programs.
//!
//! One binary, so that the workspace is built once for all of them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "this is all test code")]

mod abi;
mod bench;
mod complete;
mod docs;
mod doctor;
mod examples;
mod executable;
mod faulty;
mod hostile;
mod idle;
mod install;
mod interop;
mod kill;
mod kit;
mod launch;
mod malformed;
mod mistakes;
mod properties;
mod proxy;
mod questions;
mod registry;
mod secrets;
mod server;
mod soak;
mod spawn;
mod ssh;
mod support;
mod templates;
mod timings;
