//! Ending what a library waits in: no ssh library can be interrupted, but a socket can be shut.
//!
//! A [`Guard`] watches the launch's cancel and a deadline, on a thread of its own, and shuts the
//! socket that it guards when either comes; the call that waits then ends at once with an error.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use distant_plugin_api::{Caller, ErrorKind, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::Shutdown;
use rustix::pipe::{pipe_with, PipeFlags};

/// Guards one socket until it is dropped.
pub struct Guard {
    state: Arc<State>,
    wake: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    socket: OwnedFd,
    clock: Mutex<Clock>,
}

struct Clock {
    deadline: Option<Instant>,
    /// What was left when the clock was stopped.
    left: Option<Duration>,
    late: bool,
}

impl State {
    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the error for a system call that fails only when the system is out of something.
pub fn system(error: impl std::error::Error) -> LaunchError {
    LaunchError::new(ErrorKind::Other, "this machine is out of something").because(&error)
}

impl Guard {
    /// Guards a socket against a cancel, and against a deadline once there is one.
    ///
    /// # Errors
    ///
    /// The system has no file descriptors or threads left.
    pub fn new(socket: &OwnedFd, caller: &Caller) -> Result<Self, LaunchError> {
        let socket = socket.try_clone().map_err(system)?;
        let cancel = caller.cancel_fd().try_clone_to_owned().map_err(system)?;
        let (woken, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system)?;
        let clock = Mutex::new(Clock { deadline: None, left: None, late: false });
        let state = Arc::new(State { socket, clock });
        let watched = state.clone();
        let watch = move || watch(&watched, &cancel, &woken);
        let thread = thread::Builder::new().name("guard".into()).spawn(watch).map_err(system)?;
        Ok(Self { state, wake: Some(wake), thread: Some(thread) })
    }

    /// Gives the calls from now on so much time together.
    pub fn limit(&self, limit: Duration) {
        self.state.clock().deadline = Some(Instant::now() + limit);
        self.wake();
    }

    /// Takes the deadline away.
    pub fn unlimited(&self) {
        self.state.clock().deadline = None;
    }

    /// Stops the clock while a person is asked.
    pub fn while_asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        {
            let mut clock = self.state.clock();
            clock.left =
                clock.deadline.take().map(|it| it.saturating_duration_since(Instant::now()));
        }
        let answer = ask();
        {
            let mut clock = self.state.clock();
            clock.deadline = clock.left.take().map(|left| Instant::now() + left);
        }
        self.wake();
        answer
    }

    /// Whether the deadline came.
    pub fn is_late(&self) -> bool {
        self.state.clock().late
    }

    /// Ends every call on the socket, now and from now on.
    pub fn shut(&self) {
        // It may be shut already.
        let _ = rustix::net::shutdown(&self.state.socket, Shutdown::Both);
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            // A full pipe wakes as well.
            let _ = rustix::io::write(wake, &[0]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // It only polls, and has nothing to panic about.
            let _ = thread.join();
        }
    }
}

fn watch(state: &State, cancel: &OwnedFd, woken: &OwnedFd) {
    loop {
        let deadline = state.clock().deadline;
        let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(cancel, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, timeout.as_ref());
        let (cancelled, wakes) = (fds[0].revents(), fds[1].revents());
        if !cancelled.is_empty() {
            let _ = rustix::net::shutdown(&state.socket, Shutdown::Both);
            return;
        }
        if wakes.contains(PollFlags::IN) {
            let mut buffer = [0; 16];
            let _ = rustix::io::read(woken.as_fd(), &mut buffer);
        } else if wakes.contains(PollFlags::HUP) {
            return;
        }
        if ready == Ok(0) {
            let mut clock = state.clock();
            if clock.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                clock.late = true;
                let _ = rustix::net::shutdown(&state.socket, Shutdown::Both);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::tests::Host;

    /// A guarded socket, and its other end.
    fn guarded(caller: &Caller) -> (Guard, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Guard::new(&near.into(), caller).unwrap(), far)
    }

    /// Whether the other end is shut within this time.
    fn is_shut(far: &mut UnixStream, within: Duration) -> bool {
        far.set_read_timeout(Some(within)).unwrap();
        far.read(&mut [0]).is_ok()
    }

    const LIMIT: Duration = Duration::from_secs(1);
    const LONGER: Duration = Duration::from_millis(1500);

    #[test]
    fn what_is_late_is_ended_and_the_time_of_a_question_does_not_count() {
        let caller = Host::caller();
        let (guard, mut far) = guarded(&caller);
        guard.limit(LIMIT);
        assert!(!guard.while_asking(|| is_shut(&mut far, LONGER)) && !guard.is_late());
        assert!(is_shut(&mut far, 60 * LIMIT) && guard.is_late());

        let (guard, mut far) = guarded(&caller);
        guard.limit(LIMIT);
        guard.unlimited();
        assert!(!is_shut(&mut far, LONGER) && !guard.is_late());
    }
}
