//! Whether a plugin, or anything that it starts, makes a socket of the internet.
//!
//! The kernel stops whoever calls `socket` for one, and asks here: it is noted, and refused. That
//! holds for a library as for a script and the programs that a script runs. Where the kernel or a
//! container does not allow to watch, that is an error, and a program whose calls have other numbers
//! than ours is noted too: a case must not pass for either.

#![allow(unsafe_code, reason = "the kernel's filter of system calls has no safe interface here")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{poll, PollFd, PollFlags};

use crate::worker::short;

/// The first number of a system call that is none of the machine's own: x86-64 has a second set there.
const FOREIGN: u32 = 0x4000_0000;

/// Something that is watched.
pub(crate) struct Watch {
    /// Closing it ends the watching.
    stop: OwnedFd,
    seen: JoinHandle<Seen>,
}

/// What was seen, by the command lines of those who did it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// They tried to make a socket of the internet, in this order.
    pub(crate) tried: Vec<String>,
    /// It makes calls as another machine's program, of which nobody can tell what they are.
    pub(crate) unknown: Option<String>,
}

/// Starts something, and watches every process that comes of it.
///
/// # Errors
///
/// The system does not allow to watch, or not as it should.
pub(crate) fn watch<T: Send>(start: impl FnOnce() -> T + Send) -> io::Result<(T, Watch)> {
    // A filter is for ever, and for a thread and whatever it starts: so this is one of its own.
    let watched = || {
        let machine = MACHINE.ok_or(io::ErrorKind::Unsupported)?;
        let listener = install(machine)?;
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let seen = thread::spawn(move || listen(&listener, machine, &stopped));
        check()?;
        Ok((start(), Watch { stop, seen }))
    };
    let done = thread::scope(|scope| scope.spawn(watched).join());
    done.unwrap_or_else(|_| Err(io::Error::other("the thread that was watched broke down")))
}

/// Number of sockets that [`check`] tries to make.
const CHECKED: usize = 2;

/// Tries what is to be seen: under an emulator, for one, a filter may be taken and never asked.
fn check() -> io::Result<()> {
    let v4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
    let v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).map(drop);
    let is_refused =
        |it: io::Result<()>| it.is_err_and(|it| it.kind() == io::ErrorKind::PermissionDenied);
    if is_refused(v4) && is_refused(v6) {
        return Ok(());
    }
    Err(io::Error::other("it does not tell of every socket"))
}

impl Watch {
    /// All that was seen.
    pub(crate) fn seen(self) -> Seen {
        drop(self.stop);
        let mut seen = self.seen.join().unwrap_or_default();
        // Those were ours.
        seen.tried.drain(..CHECKED.min(seen.tried.len()));
        seen
    }
}

/// Answers the kernel until nobody wants to know any more. Its thread is filtered as the one that
/// started it, so it must make no such socket itself: nobody would answer.
fn listen(listener: &OwnedFd, machine: u32, stopped: &OwnedFd) -> Seen {
    let mut seen = Seen::default();
    loop {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::empty())];
        // An error is an interruption by a signal, after which nothing is ready.
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if fds[0].revents().contains(PollFlags::IN) {
            answer(listener, machine, &mut seen);
        } else if fds.iter().any(|fd| !fd.revents().is_empty()) {
            return seen;
        }
    }
}

/// Lets one call fail, or go on where nobody can tell what it is; notes who made it.
fn answer(listener: &OwnedFd, machine: u32, seen: &mut Seen) {
    // SAFETY: both are plain numbers, for which zero is a value; the kernel wants them zeroed.
    let (mut call, mut reply): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`, which lives until then.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if received != 0 {
        // Whoever called was killed meanwhile.
        return;
    }
    let words = || {
        let words = std::fs::read(format!("/proc/{}/cmdline", call.pid)).unwrap_or_default();
        short(String::from_utf8_lossy(&words).replace('\0', " ").trim())
    };
    // SAFETY: the kernel reads one `seccomp_notif_resp`, which lives until then.
    let send = |reply: &mut libc::seccomp_notif_resp| unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, reply)
    };
    reply.id = call.id;
    if call.data.arch != machine || call.data.nr.cast_unsigned() >= FOREIGN {
        seen.unknown.get_or_insert_with(words);
        reply.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or_default();
        if send(&mut reply) == 0 {
            return;
        }
        // An older kernel cannot let it go on, and would let it wait for ever.
        (reply.flags, reply.error) = (0, -libc::ENOSYS);
    } else {
        seen.tried.push(words());
        reply.error = -libc::EACCES;
    }
    // It fails only for a caller that is gone.
    send(&mut reply);
}

/// The machine whose system calls have the numbers that this file was built with.
const MACHINE: Option<u32> = match () {
    // `AUDIT_ARCH_…` of the kernel: the machine's number in ELF, 64 bits, little end first.
    () if cfg!(not(all(target_pointer_width = "64", target_endian = "little"))) => None,
    () if cfg!(target_arch = "x86_64") => Some(0xc000_003e),
    () if cfg!(target_arch = "aarch64") => Some(0xc000_00b7),
    () if cfg!(target_arch = "riscv64") => Some(0xc000_00f3),
    () => None,
};

/// Filters the system calls of this thread and its children; gives the descriptor by which the
/// kernel asks.
fn install(machine: u32) -> io::Result<OwnedFd> {
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    let statement = |it: u32, k: u32| libc::sock_filter { code: code(it), jt: 0, jf: 0, k };
    let jump = |how: u32, k: u32, jt: u8, jf: u8| {
        let code = code(libc::BPF_JMP | how | libc::BPF_K);
        libc::sock_filter { code, jt, jf, k }
    };
    let (equal, at_least) = (libc::BPF_JEQ, libc::BPF_JGE);
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let answer = libc::BPF_RET | libc::BPF_K;
    let socket = u32::try_from(libc::SYS_socket).unwrap_or_default();
    let [v4, v6] = [libc::AF_INET, libc::AF_INET6].map(|it| u32::try_from(it).unwrap_or_default());
    // `seccomp_data`: the call's number at 0, the machine at 4, the low half of the first argument
    // at 16.
    let mut program = [
        statement(load, 4),
        jump(equal, machine, 0, 7),
        statement(load, 0),
        jump(at_least, FOREIGN, 5, 0),
        jump(equal, socket, 0, 3),
        statement(load, 16),
        jump(equal, v4, 2, 0),
        jump(equal, v6, 1, 0),
        statement(answer, libc::SECCOMP_RET_ALLOW),
        statement(answer, libc::SECCOMP_RET_USER_NOTIF),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or_default(),
        filter: program.as_mut_ptr(),
    };
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: it takes no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it reads the program, which lives until then.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const filter) };
    let listener = i32::try_from(listener).unwrap_or(-1);
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_a_socket_is_refused_and_named() {
        let (made, watch) = watch(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)).unwrap();
        assert_eq!(made.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let seen = watch.seen();
        assert_eq!((seen.tried.len(), seen.unknown), (1, None));
        let own = std::env::current_exe().unwrap().display().to_string();
        assert!(seen.tried[0].starts_with(&short(&own)), "{:?}", seen.tried);
    }

    #[test]
    fn where_the_filter_sees_nothing_it_is_not_believed() {
        let error = check().unwrap_err();
        assert_eq!(error.to_string(), "it does not tell of every socket");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn who_makes_calls_of_another_machine_is_noted_and_goes_on() {
        // SAFETY: it touches no memory, in either set of calls.
        let call = || unsafe { libc::syscall(libc::SYS_getpid | libc::c_long::from(FOREIGN)) };
        let (_, watch) = watch(call).unwrap();
        let seen = watch.seen();
        assert!(seen.tried.is_empty() && seen.unknown.is_some(), "{seen:?}");
    }
}
