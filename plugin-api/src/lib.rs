//! The contract between the distant launcher host and its plugins.
//!
//! A plugin serves one or more schemes: `distant launch SCHEME://…` runs it in a process of its
//! own. A Rust plugin implements [`Plugin`] and names it with `export_plugin!`; the messages that
//! travel are those of [`message`], so a plugin in C or any other language says the same things.
//!
//! A launch is a transaction: [`Plugin::launch`] starts a server, offers it with [`Caller::offer`]
//! while it still holds everything it opened, and only lets go when the verdict is `connected`.

pub mod abi;
mod caller;
pub mod connect_line;
pub mod destination;
mod error;
#[doc(hidden)]
pub mod export;
mod forward;
mod manifest;
pub mod message;
pub mod options;
pub mod secret;

pub use caller::{Caller, Channel};
pub use error::{ErrorKind, LaunchError};
pub use manifest::{Manifest, HOST_OPTIONS};
pub use message::LaunchRequest;

/// Launches servers for the schemes of its manifest.
pub trait Plugin: Send + Sync {
    /// Tells what the plugin is and what it can. Called once, before anything else; it must not
    /// start a thread, open a file or print.
    fn manifest(&self) -> Manifest;

    /// Runs one launch on a thread of its own, and returns when it holds nothing any more.
    ///
    /// It stays in the call for as long as it holds something that the connection needs, such as a
    /// tunnel or a child process, and watches [`Caller::cancel_fd`] all the while.
    ///
    /// # Errors
    ///
    /// Whatever went wrong; nothing that this launch started may be left then.
    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError>;
}
