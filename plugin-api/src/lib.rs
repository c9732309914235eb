//! The contract between the distant launcher host and its plugins.
//!
//! A plugin serves one or more schemes: `distant launch SCHEME://…` runs it in a process of its
//! own. A Rust plugin implements [`Plugin`] and names it with [`export_plugin!`]; the messages that
//! travel are those of [`message`], so a plugin in C (`include/distant_plugin.h`) or an executable
//! in any language says the same things.
//!
//! A launch is a transaction: [`Plugin::launch`] starts a server, offers it with [`Caller::offer`]
//! while it still holds everything it opened, and only lets go when the verdict is `connected`.
//!
//! Most plugins need no more than [`bootstrap`]: they say how a command is run there, as a
//! [`Remote`](bootstrap::Remote), and [`bootstrap::launch`] does the rest. `docs/plugins.md` is the
//! guide for authors: tutorial, every message, testing, packaging, limits and promises.
//!
//! # A whole plugin
//!
//! This one runs the server on the host's own machine. Its `Cargo.toml` has this crate as its only
//! dependency and a library that C can load:
//!
//! ```toml
//! [lib]
//! name = "distant_plugin_here"
//! crate-type = ["cdylib"]
//! ```
//!
//! ```
//! use std::io::{BufRead, BufReader};
//! use std::process::{Child, Command, Stdio};
//!
//! use distant_plugin_api::connect_line::ConnectLine;
//! use distant_plugin_api::message::{Offer, Stage, VerdictKind, Via};
//! use distant_plugin_api::options::{OptionSchema, OptionType, Schema};
//! use distant_plugin_api::{
//!     export_plugin, Caller, ErrorKind, LaunchError, LaunchRequest, Manifest, Plugin,
//! };
//!
//! struct Here;
//!
//! /// Ends the server in whatever way the launch is left, by `?` too.
//! struct Server(Child);
//!
//! impl Drop for Server {
//!     fn drop(&mut self) {
//!         let _ = self.0.kill();
//!         let _ = self.0.wait();
//!     }
//! }
//!
//! impl Plugin for Here {
//!     fn manifest(&self) -> Manifest {
//!         let mut manifest = Manifest::new("here", ["here"]);
//!         manifest.version = env!("CARGO_PKG_VERSION").to_owned();
//!         manifest.description = "runs a server on this machine".to_owned();
//!         // The host checks these before it runs anything, and fills the default in.
//!         manifest.options = Schema(vec![
//!             OptionSchema::new("nice", OptionType::Bool, "run it at a low priority").or("false"),
//!         ]);
//!         manifest
//!     }
//!
//!     fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
//!         caller.stage(Stage::Start)?;
//!         let program = request.server.program.as_deref().unwrap_or("distant");
//!         let nice = request.options.bool("nice")?.unwrap_or(false);
//!         let mut command = Command::new(if nice { "nice" } else { program });
//!         if nice {
//!             command.arg(program);
//!         }
//!         let child = command
//!             .args(["server", "listen", "--host", "127.0.0.1"])
//!             .args(&request.server.args)
//!             .stdout(Stdio::piped())
//!             .spawn()
//!             .map_err(|error| {
//!                 let message = format!("cannot start `{program}`");
//!                 LaunchError::new(ErrorKind::ServerNotFound, message).because(&error)
//!             })?;
//!         let mut server = Server(child);
//!
//!         // A server that says nothing for ever is killed with this process, once somebody cancels.
//!         let output = server.0.stdout.take().into_iter().flat_map(|it| BufReader::new(it).lines());
//!         let line = output.map_while(Result::ok).find_map(|line| ConnectLine::parse(&line));
//!         let line = line.ok_or_else(|| {
//!             LaunchError::new(ErrorKind::ServerNotStarted, "no server started here")
//!                 .with_hint("try `distant server listen` by hand")
//!         })?;
//!
//!         let offer = Offer {
//!             id: caller.next_id(),
//!             host: line.address.ip().to_string(),
//!             port: line.address.port(),
//!             key: line.key,
//!             pid: Some(server.0.id()),
//!             proof: false,
//!             hello: None,
//!             via: Via::Direct,
//!         };
//!         loop {
//!             match caller.offer(&offer)? {
//!                 VerdictKind::Connected { .. } => break,
//!                 // The host is still trying, and there is no other way to offer.
//!                 VerdictKind::Slow => {}
//!                 VerdictKind::Unreachable { reason } | VerdictKind::Refused { reason } => {
//!                     let message = "the server cannot be reached";
//!                     let error = LaunchError::new(ErrorKind::PortUnreachable, message);
//!                     return Err(error.caused_by(reason));
//!                 }
//!                 _ => return Err(LaunchError::new(ErrorKind::Other, "the server was refused")),
//!             }
//!         }
//!         // The server is this process's child, so the launch lasts as long as it does.
//!         caller.wait_for_cancel();
//!         Ok(())
//!     }
//! }
//!
//! export_plugin!(Here);
//! # fn main() {}
//! ```
//!
//! The library goes into a folder where the host looks, such as `~/.local/share/distant/plugins`,
//! under the name that cargo gives it (`libdistant_plugin_NAME.so`); `distant plugin list` shows it
//! or says what is wrong with it. The next launch uses a new file; nothing is restarted.
//!
//! # What a plugin may rely on
//!
//! * A process of its own for each launch: it may block, keep statics and change the working
//!   folder. A panic ends the launch with its text, a crash with its signal. Standard input is
//!   empty; what it prints shows up in the host's log, as does what it says with `tracing`.
//! * Options that [`Schema::check`](options::Schema::check) has let through, with plain keys and
//!   defaults filled in. Paths in them are the client's: relative ones start at
//!   [`LaunchRequest::cwd`], `~` is `HOME` in [`LaunchRequest::environment`].
//! * Cancellation that wakes it: [`Caller::offer`], [`Caller::ask`] and the others end with
//!   `cancelled`, and [`Caller::cancel_fd`] is there for `poll`. After two seconds more the process
//!   and whatever it has started in its process group are killed.
//!
//! # What the host relies on
//!
//! * When `launch` returns an error, nothing that it started is left.
//! * No secret in a notice, a log line or an error. [`secret::Secret`] helps.
//! * The crate is built with unwinding panics; with `panic = "abort"` a panic is a crash.
//!
//! # Testing one
//!
//! [`Channel`] is the host as a [`Caller`] sees it. A plugin's own tests put one of theirs in its
//! place, and call `launch` directly.

pub mod abi;
pub mod bootstrap;
mod caller;
pub mod connect_line;
pub mod destination;
#[cfg(test)]
mod documentation;
mod error;
#[doc(hidden)]
pub mod export;
mod forward;
mod manifest;
pub mod message;
pub mod options;
pub mod secret;
pub mod tunnel;

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
