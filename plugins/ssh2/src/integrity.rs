//! The end of a connection one of whose packets was changed on the way.
//!
//! libssh2 drops such a packet, says so to whoever just waited, in one of many ways, and goes on
//! with the next: with some ciphers that is nonsense which it takes for genuine. So whoever was in
//! between could have what follows read as something else, or have a piece of it be missing.

#![allow(unsafe_code, reason = "libssh2 takes a C function that it tells of changed packets")]

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distant_ssh::backend::Failure;
use libssh2_sys as raw;
use rustix::net::Shutdown;

/// `LIBSSH2_CALLBACK_MACERROR` of `libssh2.h`.
const MAC_ERROR: c_int = 3;

type Callback = unsafe extern "C" fn();

extern "C" {
    fn libssh2_session_callback_set2(
        session: *mut raw::LIBSSH2_SESSION,
        kind: c_int,
        callback: Option<Callback>,
    ) -> Option<Callback>;
}

/// The sessions that are watched, by the address that libssh2 knows them by.
static SESSIONS: Mutex<Vec<(usize, Arc<State>)>> = Mutex::new(Vec::new());

fn sessions() -> MutexGuard<'static, Vec<(usize, Arc<State>)>> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State {
    is_broken: AtomicBool,
    socket: OwnedFd,
}

/// Whether a session's packets are whole. Dropping the last one ends the watch.
#[derive(Clone)]
pub(crate) struct Integrity(Arc<Watch>);

struct Watch(Arc<State>);

impl Integrity {
    /// Watches a session, and shuts its socket as soon as a packet turns out to be changed.
    pub(crate) fn of(session: &ssh2::Session, socket: OwnedFd) -> Self {
        let state = Arc::new(State { is_broken: AtomicBool::new(false), socket });
        let mut session = session.raw();
        let session: *mut raw::LIBSSH2_SESSION = &mut *session;
        sessions().push((session.addr(), Arc::clone(&state)));
        // SAFETY: the session lives, its lock is held, and `changed` is what libssh2 calls for this
        // kind; its own declaration has one type for all kinds.
        unsafe {
            let changed = changed as unsafe extern "C" fn(_, _, _, _) -> _;
            let callback = std::mem::transmute::<MacError, Callback>(changed);
            libssh2_session_callback_set2(session, MAC_ERROR, Some(callback));
        }
        Self(Arc::new(Watch(state)))
    }

    /// The socket of the session.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.0 .0.socket
    }

    /// Fails for ever once a packet was changed.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        match self.0 .0.is_broken.load(Ordering::SeqCst) {
            true => Err(Failure("libssh2: a packet was changed on the way".into())),
            false => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Not by the address: a session that was made since the end of this one may have it.
        sessions().retain(|(_, state)| !Arc::ptr_eq(state, &self.0));
    }
}

type MacError = unsafe extern "C" fn(
    *mut raw::LIBSSH2_SESSION,
    *const c_char,
    c_int,
    *mut *mut c_void,
) -> c_int;

/// Is told of a packet that does not fit its code; 1 has libssh2 not take it.
///
/// # Safety
///
/// None of what it gets is looked into.
unsafe extern "C" fn changed(
    session: *mut raw::LIBSSH2_SESSION,
    _packet: *const c_char,
    _length: c_int,
    _theirs: *mut *mut c_void,
) -> c_int {
    // The newest of this address: an older one has ended, and is about to leave the list.
    let known = sessions().iter().rfind(|(known, _)| *known == session.addr()).cloned();
    if let Some((_, state)) = known {
        state.is_broken.store(true, Ordering::SeqCst);
        // It may be shut already.
        let _ = rustix::net::shutdown(&state.socket, Shutdown::Both);
    }
    1
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_session_at_the_address_of_an_older_one_is_watched_on() {
        let at = std::ptr::without_provenance_mut::<raw::LIBSSH2_SESSION>(0xd15);
        let watch = || {
            let socket = UnixStream::pair().unwrap().0.into();
            let state = Arc::new(State { is_broken: AtomicBool::new(false), socket });
            sessions().push((at.addr(), Arc::clone(&state)));
            Integrity(Arc::new(Watch(state)))
        };
        let (old, new) = (watch(), watch());
        drop(old);
        // SAFETY: none of it is looked into.
        unsafe { changed(at, std::ptr::null(), 0, std::ptr::null_mut()) };
        assert!(new.check().is_err());
        let (old, new) = (watch(), watch());
        // SAFETY: as above.
        unsafe { changed(at, std::ptr::null(), 0, std::ptr::null_mut()) };
        assert!(new.check().is_err() && old.check().is_ok());
    }
}
