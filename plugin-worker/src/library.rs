//! A plugin's library: loading it, checking its tables, and being the host that it calls.
//!
//! Nothing of the library is believed before it is checked, and nothing of it is ever unloaded:
//! threads and exit handlers that it brought along would run into the void.

#![allow(unsafe_code, reason = "loads foreign code, calls it and is called by it")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use distant_plugin_api::abi::{
    self, CallerTable, InvalidTable, PluginTable, RootSymbol, Status, TableFunction, Text,
};
use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{ErrorKind, LaunchError, Manifest};
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use zeroize::{Zeroize, Zeroizing};

use crate::session::{Refusal, Session};
use crate::{wrong_with, Arguments, HostTable};

/// A loaded and checked plugin.
pub(crate) struct Library {
    table: PluginTable,
    manifest: Manifest,
}

impl Library {
    /// Loads a library and checks that it is a plugin for this host.
    ///
    /// # Errors
    ///
    /// `plugin`: what is wrong with the file, in one line, and why.
    pub(crate) fn load(arguments: &Arguments) -> Result<Self, LaunchError> {
        let shown = arguments.path.as_path();
        let opened = arguments.fd.map(crate::program::descriptor_path);
        let file = opened.as_deref().unwrap_or(shown);
        // SAFETY: the library's initialisers run here. They are foreign code, which is why this
        // process has nothing to lose.
        let loaded = unsafe { Loaded::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
        let library = loaded.map_err(|error| {
            // The dynamic loader's own words are the source; they name the file as it was opened.
            let reason = std::error::Error::source(&error).unwrap_or(&error).to_string();
            let reason = reason.replace(&*file.to_string_lossy(), &shown.to_string_lossy());
            let message = format!("cannot load `{}`", shown.display());
            LaunchError::new(ErrorKind::Plugin, message).caused_by(first_line(&reason))
        })?;
        if let Some(fd) = arguments.fd {
            // SAFETY: the number was given to this process to load the file from, and nothing
            // else uses it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let found = Self::check(&library, shown);
        std::mem::forget(library);
        found
    }

    fn check(library: &Loaded, path: &Path) -> Result<Self, LaunchError> {
        // SAFETY: whatever exports this name promises that it is this function.
        let function = unsafe { library.get::<TableFunction>(abi::SYMBOL.as_bytes()) };
        let function = function.map_err(|_| {
            not_a_plugin(path).caused_by(format!("it has no symbol `{}`", abi::SYMBOL))
        })?;
        // SAFETY: a table with the right magic number and major keeps the promises that
        // `PluginTable::read` needs; anything else is not read beyond those.
        let table = unsafe { PluginTable::read(function()) }.map_err(|error| match error {
            InvalidTable::Major(..) => other_version(path, &error.to_string()),
            _ => not_a_plugin(path).because(&error),
        })?;
        // With another minor the layouts differ by right, and `struct_size` decides.
        if table.abi_minor == abi::ABI_MINOR {
            // SAFETY: only `abi_stable` makes a symbol of this name, and it is of this type.
            if let Ok(root) = unsafe { library.get::<RootSymbol>(abi::ROOT_SYMBOL.as_bytes()) } {
                root.check().map_err(|difference| other_version(path, &difference))?;
            }
        }
        let unreadable = |error: &dyn std::error::Error| {
            let message = format!("the manifest of `{}` cannot be read", path.display());
            LaunchError::new(ErrorKind::Plugin, message).because(error)
        };
        // SAFETY: the plugin promises that it stays valid while the library is loaded.
        let manifest = unsafe { table.manifest.read() }.map_err(|error| unreadable(&error))?;
        let manifest: Manifest =
            serde_json::from_str(manifest).map_err(|error| unreadable(&error))?;
        manifest.check().map_err(|reason| {
            let message = format!("the manifest of `{}` cannot be used", path.display());
            LaunchError::new(ErrorKind::Plugin, message).caused_by(reason)
        })?;
        Ok(Self { table, manifest })
    }

    /// What the plugin says of itself.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Runs the launch of this process.
    pub(crate) fn launch(
        &self,
        session: &'static Session,
        log_level: LogLevel,
        request: &str,
        host: HostTable,
    ) -> Status {
        let mut table = CallerTable {
            struct_size: size_of::<CallerTable>(),
            context: std::ptr::from_ref(session).cast_mut().cast(),
            send: Some(send),
            is_cancelled: Some(is_cancelled),
            cancel_fd: Some(cancel_fd),
            log_level: abi::level_number(log_level),
        };
        match host {
            HostTable::Usual => {}
            HostTable::Older => {
                table.struct_size = CallerTable::SIZE_MIN;
                table.log_level = u32::from_ne_bytes([NOWHERE; 4]);
            }
            HostTable::Newer => table.struct_size = size_of::<Followed>(),
        }
        // Threads of the plugin may call the host even after `launch` has returned.
        let followed = Box::leak(Box::new(Followed { table, behind: [NOWHERE; BEHIND] }));
        let caller = std::ptr::from_ref(followed).cast::<CallerTable>();
        let Some(launch) = self.table.launch else { return Status::MALFORMED };
        // SAFETY: the table was checked; the caller's table lives as long as the process, the
        // request until this returns.
        unsafe { launch(caller, Text::new(request)) }
    }
}

/// A byte of which no address consists.
const NOWHERE: u8 = 0xa5;
/// Bytes behind the table: room for eight members that nobody has thought of yet.
const BEHIND: usize = 64;

/// The table with what a plugin would find behind it, were it to look.
#[repr(C)]
struct Followed {
    table: CallerTable,
    behind: [u8; BEHIND],
}

fn not_a_plugin(path: &Path) -> LaunchError {
    let message = format!("`{}` is not a distant plugin", path.display());
    LaunchError::new(ErrorKind::Plugin, message)
}

fn other_version(path: &Path, difference: &str) -> LaunchError {
    let message = format!("`{}` was built for another version of distant", path.display());
    LaunchError::new(ErrorKind::Plugin, message)
        .caused_by(difference)
        .with_hint("build it again with the plugin API of this version")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

thread_local! {
    /// The reply that this thread has borrowed; see [`CallerTable::send`].
    static REPLY: RefCell<Zeroizing<String>> = RefCell::default();
}

/// Turns what the plugin gave as its context back into the session.
///
/// # Safety
///
/// `context` must be null or what [`Library::launch`] put into the table.
unsafe fn session(context: *mut c_void) -> Option<&'static Session> {
    // SAFETY: the caller's promise; the session is never freed.
    unsafe { context.cast_const().cast::<Session>().as_ref() }
}

/// [`CallerTable::send`].
///
/// # Safety
///
/// As a plugin promises there: the table's own context, a readable message, and a `reply` that is
/// null or can be written to.
unsafe extern "C" fn send(context: *mut c_void, message: Text, reply: *mut Text) -> Status {
    // SAFETY: the plugin's promise.
    let (session, text) = unsafe { (session(context), message.read()) };
    let Some(session) = session else { return Status::MALFORMED };
    let exchange = || -> Result<Status, LaunchError> {
        let broken = |why: String| {
            LaunchError::new(ErrorKind::Plugin, "the plugin broke the protocol").caused_by(why)
        };
        let text = text.map_err(|error| broken(format!("its message cannot be read: {error}")))?;
        let message = serde_json::from_str(text)
            .map_err(|error| broken(format!("its message {}", wrong_with(&error))))?;
        let answer = match session.send(message) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(Status::OK),
            Err(Refusal::Cancelled) => return Ok(Status::CANCELLED),
            Err(Refusal::Malformed(why)) => return Err(broken(why.to_owned())),
        };
        if reply.is_null() {
            return Ok(Status::OK);
        }
        let answer = serde_json::to_string(&answer).map_err(|error| broken(error.to_string()))?;
        let kept = REPLY.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            kept.zeroize();
            **kept = answer;
            Text::new(&kept)
        });
        // The thread is ending, so there is no place to lend the reply from.
        let Ok(kept) = kept else { return Ok(Status::FAILED) };
        // SAFETY: not null, and the plugin promises that it can be written to.
        unsafe { reply.write(kept) };
        Ok(Status::OK)
    };
    match catch_unwind(AssertUnwindSafe(exchange)) {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            session.fail(error);
            Status::MALFORMED
        }
        Err(_) => Status::FAILED,
    }
}

/// [`CallerTable::is_cancelled`].
///
/// # Safety
///
/// The table's own context.
unsafe extern "C" fn is_cancelled(context: *mut c_void) -> i32 {
    // SAFETY: the plugin's promise.
    unsafe { session(context) }.is_none_or(Session::is_cancelled).into()
}

/// [`CallerTable::cancel_fd`].
///
/// # Safety
///
/// The table's own context.
unsafe extern "C" fn cancel_fd(context: *mut c_void) -> i32 {
    // SAFETY: the plugin's promise.
    unsafe { session(context) }.map_or(-1, Session::cancel_fd)
}
