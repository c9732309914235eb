//! One case with the plugin in this very process, for a debugger.
//!
//! The parts are changed over: this program is started again to play the host, and this process
//! becomes the worker that it speaks with. So breakpoints in the plugin work without following any
//! child.

#![allow(clippy::disallowed_methods, reason = "reads what this file has set")]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use distant_plugin_worker::{Arguments, HostTable};

use crate::Kit;

/// Set in the process that plays the host; its standard input is the connection to the worker.
const PART: &str = "DISTANT_PLUGIN_TEST_PART";

/// The connection to the worker, in the process that plays the host.
pub(crate) fn worker() -> Option<UnixStream> {
    std::env::var_os(PART)?;
    rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok().map(UnixStream::from)
}

/// Makes this process the worker, and never returns; in the process that plays the host it returns
/// at once. If that process cannot be started, the case goes on as usual.
pub(crate) fn become_worker(kit: &Kit) {
    if std::env::var_os(PART).is_some() {
        return;
    }
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let mut host = Command::new("/proc/self/exe");
    host.args(std::env::args_os().skip(1)).env(PART, "host").stdin(OwnedFd::from(theirs));
    // The worker ends its process group when the host is gone; this one has more to say then.
    host.process_group(0);
    if host.spawn().is_err() {
        return;
    }
    drop(host);
    // Without these two the worker says so at once.
    let _ = rustix::stdio::dup2_stdin(&ours);
    let _ = rustix::stdio::dup2_stdout(&ours);
    drop(ours);
    let exec = !kit.is_library;
    let arguments = Arguments { fd: None, exec, path: kit.plugin.clone(), host: HostTable::Usual };
    // It ends the process by itself once it runs.
    let _ = distant_plugin_worker::run(arguments);
}
