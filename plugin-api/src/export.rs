//! How a Rust plugin becomes a library: [`export_plugin!`](crate::export_plugin) and what it calls.
//!
//! The macro writes down only what has to be in the plugin's own crate, its two symbols; all else
//! is here. No panic passes: one in `launch` becomes that launch's error.

#![allow(unsafe_code, reason = "calls the host through its table")]

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};

use zeroize::Zeroizing;

use crate::abi::{self, CallerTable, LaunchFunction, PluginTable, Status, Text};
use crate::caller::{Caller, Channel};
use crate::message::{ErrorKind, HostMessage, LaunchError, PluginMessage, MESSAGE_MAX};
use crate::{forward, Plugin};

/// Makes a library that the host can load out of a plugin.
///
/// It takes an expression whose value implements [`Plugin`](crate::Plugin), and stands once in a
/// crate with `crate-type = ["cdylib"]`; `["cdylib", "rlib"]` is fine too, for instance for tests
/// of one's own. What several plugins share belongs into a crate without it: two crates with it
/// cannot be linked into one program, as each defines the same symbols.
///
/// A panic in the plugin ends the launch with its message. What the plugin says with `tracing`
/// arrives in the host's log.
///
/// ```
/// use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};
///
/// struct Nowhere;
///
/// impl Plugin for Nowhere {
///     fn manifest(&self) -> Manifest {
///         Manifest::new("nowhere", ["nowhere"])
///     }
///
///     fn launch(&self, _: &LaunchRequest, _: &Caller) -> Result<(), LaunchError> {
///         Err(LaunchError::cancelled())
///     }
/// }
///
/// export_plugin!(Nowhere);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($plugin:expr) => {
        const _: () = {
            static EXPORTED: $crate::export::Exported =
                $crate::export::Exported::new(|| ::std::boxed::Box::new($plugin), launch);

            unsafe extern "C" fn launch(
                caller: *const $crate::abi::CallerTable,
                request: $crate::abi::Text,
            ) -> $crate::abi::Status {
                // SAFETY: the host's promise for `PluginTable::launch`, passed on.
                unsafe { EXPORTED.launch(caller, request) }
            }

            #[unsafe(no_mangle)]
            extern "C" fn distant_plugin_v1() -> *const $crate::abi::PluginTable {
                EXPORTED.table()
            }

            extern "C" fn root() -> $crate::abi::RootResult {
                $crate::abi::root(distant_plugin_v1)
            }

            // `abi::ROOT_SYMBOL`, which an attribute cannot name.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: $crate::abi::Header = $crate::abi::header(root);
        };
    };
}

/// A plugin with the table that is handed out for it.
pub struct Exported {
    make: fn() -> Box<dyn Plugin>,
    launch: LaunchFunction,
    made: OnceLock<Option<Made>>,
}

struct Made {
    plugin: Box<dyn Plugin>,
    table: PluginTable,
}

impl Exported {
    /// Remembers how the plugin is made; that happens when its table is first asked for.
    pub const fn new(make: fn() -> Box<dyn Plugin>, launch: LaunchFunction) -> Self {
        Self { make, launch, made: OnceLock::new() }
    }

    fn made(&self) -> Option<&Made> {
        let make = AssertUnwindSafe(|| {
            let plugin = (self.make)();
            let manifest = serde_json::to_string(&plugin.manifest()).ok()?;
            // The table points at it for as long as the library is loaded.
            let manifest = Box::leak(manifest.into_boxed_str());
            Some(Made { plugin, table: PluginTable::new(Text::new(manifest), self.launch) })
        });
        // A panic here has printed its message, which the host shows.
        self.made.get_or_init(|| catch_unwind(make).unwrap_or(None)).as_ref()
    }

    /// Returns the plugin's table, null if the plugin panics while it says what it is.
    pub fn table(&'static self) -> *const PluginTable {
        self.made().map_or(std::ptr::null(), |made| &raw const made.table)
    }

    /// Runs a launch.
    ///
    /// # Safety
    ///
    /// As the host promises for [`PluginTable::launch`]: `caller` points at a table, `request` at
    /// its text until this returns, and what is behind the table lives as long as the process.
    pub unsafe fn launch(&'static self, caller: *const CallerTable, request: Text) -> Status {
        // SAFETY: the caller's promise.
        let host = unsafe { CallerTable::read(caller) };
        let (Ok(table), Some(made)) = (host, self.made()) else { return Status::MALFORMED };
        let Some(host) = Host::new(table) else { return Status::MALFORMED };
        // SAFETY: the caller's promise.
        let request = unsafe { request.read() };
        let launch = AssertUnwindSafe(|| {
            let request = request.map_err(|error| unreadable(&error))?;
            let request = serde_json::from_str(request).map_err(|error| unreadable(&error))?;
            forward::start(Arc::clone(&host), abi::level_of_number(table.log_level));
            made.plugin.launch(&request, &Caller::new(Arc::clone(&host)))
        });
        let result = catch_unwind(launch).unwrap_or_else(|panic| Err(panicked(panic)));
        let Err(error) = result else { return Status::OK };
        let cancelled = error.kind == ErrorKind::Cancelled;
        match host.send(&PluginMessage::Error(error.clipped())) {
            Ok(_) if !cancelled => Status::FAILED,
            // Nobody listens any more.
            _ => Status::CANCELLED,
        }
    }
}

fn unreadable(error: &dyn std::error::Error) -> LaunchError {
    LaunchError::new(ErrorKind::Plugin, "the plugin cannot read the launch request").because(error)
}

fn panicked(panic: Box<dyn Any + Send>) -> LaunchError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    // Dropping what a plugin throws may panic again, and that one nobody would catch.
    std::mem::forget(panic);
    let error = LaunchError::new(ErrorKind::Plugin, "the plugin panicked");
    text.into_iter().fold(error, LaunchError::caused_by)
}

/// A host behind its table.
pub(crate) struct Host {
    table: CallerTable,
    cancel_fd: BorrowedFd<'static>,
}

impl Host {
    fn new(table: CallerTable) -> Option<Arc<Self>> {
        // SAFETY: `read` found the function, and takes the context that came with it.
        let descriptor = unsafe { table.cancel_fd?(table.context) };
        if descriptor < 0 {
            return None;
        }
        // SAFETY: the host keeps it open for as long as the process lives.
        let cancel_fd = unsafe { BorrowedFd::borrow_raw(descriptor) };
        Some(Arc::new(Self { table, cancel_fd }))
    }
}

impl Channel for Arc<Host> {
    fn send(&self, message: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
        let broken = |what: &str| LaunchError::new(ErrorKind::Plugin, what);
        // The message may be an offer and its reply an answer, so neither is left behind.
        let text = serde_json::to_string(message).map(Zeroizing::new).map_err(|error| {
            broken("the plugin made a message that cannot be sent").because(&error)
        })?;
        if text.len() >= MESSAGE_MAX {
            return Err(broken("the plugin made a message of more than 1 MiB"));
        }
        let send = self.table.send.ok_or_else(|| broken("the host takes no messages"))?;
        let mut reply = Text::EMPTY;
        // SAFETY: the function takes the context that came with it; both texts live here.
        let status = unsafe { send(self.table.context, Text::new(&text), &raw mut reply) };
        match status {
            Status::OK => {}
            Status::CANCELLED => return Err(LaunchError::cancelled()),
            Status::MALFORMED => return Err(broken("the host did not understand a message")),
            _ => return Err(broken("the host could not pass a message on")),
        }
        // SAFETY: the reply lives until this thread sends again, and it is read before.
        let reply = unsafe { reply.read() };
        let unreadable = |error: &dyn std::error::Error| {
            broken("the host gave an answer that cannot be read").because(error)
        };
        match reply.map_err(|error| unreadable(&error))? {
            "" => Ok(None),
            text => serde_json::from_str(text).map(Some).map_err(|error| unreadable(&error)),
        }
    }

    fn is_cancelled(&self) -> bool {
        // SAFETY: `read` found the function, and it takes the context that came with it.
        self.table.is_cancelled.is_none_or(|ask| unsafe { ask(self.table.context) } != 0)
    }

    fn cancel_fd(&self) -> BorrowedFd<'_> {
        self.cancel_fd
    }
}

#[cfg(test)]
mod tests;
