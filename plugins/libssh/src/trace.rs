//! libssh's own log, handed to the host's.

#![allow(unsafe_code, reason = "libssh takes a C function for its log")]

use std::ffi::{c_char, c_int, c_void, CStr};

use libssh_rs_sys as raw;

/// Hands every line that libssh logs to the host; which lines those are is the session's level.
pub(crate) fn forward() {
    // SAFETY: the function lives as long as the library, which is never unloaded.
    unsafe {
        raw::ssh_set_log_callback(Some(take));
    }
}

/// Hands one line of libssh's own log to the host.
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
    // SAFETY: the caller's promise above; the text is copied before we return.
    let line = unsafe { CStr::from_ptr(line) }.to_string_lossy();
    if level <= 1 {
        tracing::warn!(target: "libssh", "{line}");
    } else {
        tracing::info!(target: "libssh", "{line}");
    }
}
