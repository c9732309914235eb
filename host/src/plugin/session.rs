//! What a worker that did not end as it should has left behind.
//!
//! What runs for an executable plugin is in groups of its own, each to be ended with its program. The
//! worker does that; where it was killed nobody does, but all of them are still in its session. Only
//! who has left that on purpose, as a server does that is to stay, is none of its business.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

/// How often it is looked again who is there: who is killed may just have started another.
const LOOKS: usize = 10;

/// How long somebody may take to be dead who was killed.
const DYING: Duration = Duration::from_millis(200);

/// Ends the session of a process that has died and is not reaped, so that the number is nobody else's.
/// Its members see the end of what they read first, and have `grace` to do what they do then, such
/// as to end a server that is not wanted any more. Blocks for as long.
pub(super) fn end(leader: Pid, grace: Duration) {
    let deadline = Instant::now() + grace;
    for _ in 0..LOOKS {
        let members = members(leader);
        if members.is_empty() {
            return;
        }
        // A signal fails for one that has ended just now.
        let is_killed = |member: &OwnedFd| {
            !has_ended(member, deadline) && pidfd_send_signal(member, Signal::KILL).is_ok()
        };
        let killed: Vec<_> = members.into_iter().filter(is_killed).collect();
        for member in killed {
            has_ended(&member, Instant::now() + DYING);
        }
    }
}

/// Those of a session that live, without its leader.
fn members(leader: Pid) -> Vec<OwnedFd> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|it| Pid::from_raw(it.file_name().to_str()?.parse().ok()?));
    let member = |pid: Pid| {
        // Opened first: so what is read is of this process, or it has ended and gets no signal.
        let member = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        is_in(&stat, leader).then_some(member)
    };
    pids.filter(|pid| *pid != leader).filter_map(member).collect()
}

/// Whether a line of `/proc/PID/stat` is of a live process in this session.
fn is_in(stat: &str, leader: Pid) -> bool {
    // The name of its program comes before, in parentheses, and may have any in it.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let is_alive = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
    is_alive && fields.nth(2).and_then(|it| it.parse().ok()) == Some(leader.as_raw_nonzero().get())
}

fn has_ended(member: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        // An error is an interruption by a signal.
        if let Ok(count) = poll(&mut [PollFd::new(member, PollFlags::IN)], timeout.as_ref()) {
            return count > 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_of_a_process_is_read_whatever_its_name() {
        let check = |stat: &str, leader: i32, expected: bool| {
            assert_eq!(is_in(stat, Pid::from_raw(leader).unwrap()), expected, "{stat}");
        };
        check("7 (sh) S 1 5 3 0 -1 4194560 1", 3, true);
        check("7 (sh) S 1 5 3 0 -1 4194560 1", 5, false);
        check("7 (a) S 1 1 9 (b) R 1 5 3 0 -1", 3, true);
        check("7 (a) S 1 1 9 (b) R 1 5 3 0 -1", 9, false);
        check("7 (sh) Z 1 5 3 0 -1", 3, false);
        check("7 (sh) S", 3, false);
        check("", 3, false);
    }
}
