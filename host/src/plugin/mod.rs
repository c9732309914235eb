//! Plugins: which there are, which one serves a launch, and the worker process that runs it.
//!
//! The manager loads no foreign code. [`registry`] finds plugin files and says what they can,
//! [`process`] is the manager's end of one worker, and [`options`] checks what a person gave
//! against what the chosen plugin takes.

mod cache;
mod child;
mod choice;
mod config;
mod discovery;
mod doctor;
mod failures;
mod format;
mod install;
mod lines;
mod listing;
mod manifest;
pub mod options;
pub mod process;
mod refusal;
pub mod registry;
mod session;
mod supervisor;
#[cfg(test)]
mod support;
mod trust;

pub(crate) use config::read as read_trusted;
pub use discovery::{Folder, Kind, Origin};
pub use doctor::{Check, Examined, Verdict};
pub use failures::{Failure, How};
pub use install::{Added, Allowed, Removed, Warning};
pub use listing::{Listed, ServedScheme, State};
pub use options::CheckedOptions;
pub use process::{Event, Limits, Process};
pub(crate) use refusal::nearest;
pub use registry::{Entry, Registry, Settings};
