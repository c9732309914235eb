//! A stream that is asked for together with the signature of the login, a round trip less.
//!
//! sshd sends its word that we are in, a list of its host keys, and the word that a stream is open,
//! each only when the one before was acknowledged. Asked early enough it has the last two to send
//! at the same time. A session that does not block says what it waits for, and lets its caller go
//! on with something else meanwhile. What it says are its own words, as it has no other way to tell
//! how far it is: should they change, every answer is waited for again.

#![allow(unsafe_code, reason = "the crate `ssh2` has no function for the limit of a read")]

use std::ffi::c_long;

use distant_ssh::backend::{takes_flights, wait, Failure, Setup};
use libssh2_sys as raw;

use crate::{is_later, wants_write, Connection};

/// Said once a signature was sent, which only happens where the server would take its key.
const SIGNED: &str = "Would block waiting for publickey USERAUTH response";

/// The shortest limit of a read, in seconds, and the value for the usual one.
const SHORTEST: c_long = 1;
const USUAL: c_long = 0;

extern "C" {
    fn libssh2_session_set_read_timeout(session: *mut raw::LIBSSH2_SESSION, seconds: c_long);
}

/// A stream that is asked for behind a signature, before the server has said that it is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Early {
    /// Not to be asked for, or asked for in vain and forgotten.
    No,
    /// To be asked for.
    May,
    /// Asked for.
    Asked,
    /// Asked for in vain: the server had wanted more than the signature.
    InVain,
}

impl Early {
    /// Whether the server of a session may be asked.
    pub(crate) fn of(session: &ssh2::Session, setup: &Setup<'_>) -> Self {
        match setup.runs_command && session.banner().is_some_and(takes_flights) {
            true => Self::May,
            false => Self::No,
        }
    }
}

impl Connection {
    /// Works an attempt to log in with a key, and asks for the stream of the command behind its
    /// signature, once.
    pub(crate) fn sign_in(
        &mut self,
        attempt: impl Fn() -> Result<(), ssh2::Error>,
    ) -> Result<Result<(), ssh2::Error>, Failure> {
        self.session.set_blocking(false);
        let outcome = loop {
            match attempt() {
                Err(error) if is_later(&error) => {
                    if self.early == Early::May && error.message() == SIGNED {
                        self.ask_early()?;
                        // That may have read the answer to the attempt.
                        continue;
                    }
                    wait(self.integrity.socket(), wants_write(&self.session))?;
                }
                outcome => break outcome,
            }
        };
        self.session.set_blocking(true);
        if self.early == Early::Asked && !(outcome.is_ok() && self.session.authenticated()) {
            self.early = Early::InVain;
        }
        Ok(outcome)
    }

    fn ask_early(&mut self) -> Result<(), Failure> {
        self.early = Early::Asked;
        loop {
            match self.session.channel_session() {
                Err(error) if is_later(&error) && wants_write(&self.session) => {
                    wait(self.integrity.socket(), true)?;
                }
                Ok(channel) => {
                    self.opened = Some(channel);
                    return Ok(());
                }
                // It goes on where it is asked for the next time, or it fails there.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Has the session forget a stream that was asked for in vain, which it would wait for in place of
    /// the next one; `false` if it has to be tried again. It forgets only what has had its time: a
    /// second since it was asked for, most of which the rest of the login has taken.
    pub(crate) fn take_back(&mut self) -> bool {
        if self.early != Early::InVain {
            return true;
        }
        let limit = |seconds| {
            let mut session = self.session.raw();
            // SAFETY: the session lives, and its lock is held.
            unsafe { libssh2_session_set_read_timeout(&mut *session, seconds) }
        };
        limit(SHORTEST);
        let is_pending = self.session.channel_session().is_err_and(|error| is_later(&error));
        limit(USUAL);
        if !is_pending {
            self.early = Early::No;
        }
        !is_pending
    }
}
