//! libssh's own log: for the host's, and for one thing that libssh says nowhere else.
//!
//! When a packet turns out to be forged, libssh drops it and takes no other, but does not wake the
//! call that waits for it: that would wait until its limit. The log is where it can be heard.

#![allow(unsafe_code, reason = "libssh takes a C function for its log")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void, CStr};
use std::os::fd::{BorrowedFd, RawFd};

use libssh_rs_sys as raw;
use rustix::net::Shutdown;

/// How the line begins by which libssh says that it cannot go on with a connection.
const BROKEN: &str = "Packet: processed ";

thread_local! {
    /// The socket of the session that this thread works with, and whether its log is wanted. The
    /// function for the log is one of each thread, too.
    static SESSION: Cell<(Option<RawFd>, bool)> = const { Cell::new((None, false)) };
}

/// Listens to libssh's log of this thread, whose session has this socket; hands all of it to the
/// host if it is wanted.
pub(crate) fn listen(socket: RawFd, is_wanted: bool) {
    SESSION.set((Some(socket), is_wanted));
    // SAFETY: the function lives as long as the library, which is never unloaded.
    unsafe {
        raw::ssh_set_log_callback(Some(take));
    }
}

/// Takes one line of libssh's own log.
///
/// # Safety
///
/// `line` must point to a NUL-terminated string that lives until this returns. libssh promises
/// that for the callback given to `ssh_set_log_callback`, and may call it from any thread.
unsafe extern "C" fn take(
    level: c_int,
    _function: *const c_char,
    line: *const c_char,
    _user: *mut c_void,
) {
    if line.is_null() {
        return;
    }
    let (socket, is_wanted) = SESSION.get();
    // SAFETY: the caller's promise above; the text is copied before we return.
    let line = unsafe { CStr::from_ptr(line) }.to_string_lossy();
    if line.contains(BROKEN) {
        if let Some(socket) = socket {
            // SAFETY: libssh is in the middle of reading from this very socket.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            // It may be shut already.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }
    if !is_wanted {
        return;
    }
    if level <= 1 {
        tracing::warn!(target: "libssh", "{line}");
    } else {
        tracing::info!(target: "libssh", "{line}");
    }
}
