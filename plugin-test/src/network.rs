//! Whether a plugin, or anything that it starts, makes a socket of the internet.
//!
//! The kernel stops whoever calls `socket` for one, and asks here: it is noted, and refused. That
//! holds for a library as for a script and the programs that a script runs. Where the kernel or a
//! container does not allow to watch, that is an error, as a case must not pass for that.

#![allow(unsafe_code, reason = "the kernel's filter of system calls has no safe interface here")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{poll, PollFd, PollFlags};

use crate::worker::short;

/// Something that is watched.
pub(crate) struct Watch {
    /// Closing it ends the watching.
    stop: OwnedFd,
    seen: JoinHandle<Vec<String>>,
}

/// Starts something, and watches every process that comes of it.
///
/// # Errors
///
/// The system does not allow to watch.
pub(crate) fn watch<T: Send>(start: impl FnOnce() -> T + Send) -> io::Result<(T, Watch)> {
    // A filter is for ever, and for a thread and whatever it starts: so this is one of its own.
    let watched = || {
        let listener = install()?;
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let seen = thread::spawn(move || listen(&listener, &stopped));
        Ok((start(), Watch { stop, seen }))
    };
    let done = thread::scope(|scope| scope.spawn(watched).join());
    done.unwrap_or_else(|_| Err(io::Error::other("the thread that was watched broke down")))
}

impl Watch {
    /// The command lines of all who tried, in their order.
    pub(crate) fn seen(self) -> Vec<String> {
        drop(self.stop);
        self.seen.join().unwrap_or_default()
    }
}

/// Answers the kernel until nobody wants to know any more. Its thread is filtered as the one that
/// started it, so it must make no such socket itself: nobody would answer.
fn listen(listener: &OwnedFd, stopped: &OwnedFd) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let mut fds =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(stopped, PollFlags::empty())];
        // An error is an interruption by a signal, after which nothing is ready.
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if fds[0].revents().contains(PollFlags::IN) {
            seen.extend(refuse(listener));
        } else if fds.iter().any(|fd| !fd.revents().is_empty()) {
            return seen;
        }
    }
}

/// Lets one call fail; tells who made it.
fn refuse(listener: &OwnedFd) -> Option<String> {
    // SAFETY: both are plain numbers, for which zero is a value; the kernel wants them zeroed.
    let (mut call, mut reply): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`, which lives until then.
    let received =
        unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if received != 0 {
        // Whoever called was killed meanwhile.
        return None;
    }
    let words = std::fs::read(format!("/proc/{}/cmdline", call.pid)).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).replace('\0', " ");
    reply.id = call.id;
    reply.error = -libc::EACCES;
    // SAFETY: the kernel reads one `seccomp_notif_resp`. It fails only for a caller that is gone.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply) };
    Some(short(words.trim()))
}

/// The machine whose system calls have the numbers that this file was built with; a program for
/// another one may have others, and is not looked at.
const MACHINE: Option<u32> = match () {
    // `AUDIT_ARCH_…` of the kernel: the machine's number in ELF, 64 bits, little end first.
    () if cfg!(target_arch = "x86_64") => Some(0xc000_003e),
    () if cfg!(target_arch = "aarch64") => Some(0xc000_00b7),
    () if cfg!(target_arch = "riscv64") => Some(0xc000_00f3),
    () => None,
};

/// Filters the system calls of this thread and its children; gives the descriptor by which the
/// kernel asks.
fn install() -> io::Result<OwnedFd> {
    let machine = MACHINE.ok_or(io::ErrorKind::Unsupported)?;
    let code = |code: u32| u16::try_from(code).unwrap_or_default();
    let statement = |it: u32, k: u32| libc::sock_filter { code: code(it), jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| {
        let is_equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
        libc::sock_filter { code: is_equal, jt, jf, k }
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let answer = libc::BPF_RET | libc::BPF_K;
    let socket = u32::try_from(libc::SYS_socket).unwrap_or_default();
    let [v4, v6] = [libc::AF_INET, libc::AF_INET6].map(|it| u32::try_from(it).unwrap_or_default());
    // `seccomp_data`: the call's number at 0, the machine at 4, the low half of the first argument
    // at 16.
    let mut program = [
        statement(load, 4),
        jump(machine, 0, 6),
        statement(load, 0),
        jump(socket, 0, 4),
        statement(load, 16),
        jump(v4, 1, 0),
        jump(v6, 0, 1),
        statement(answer, libc::SECCOMP_RET_USER_NOTIF),
        statement(answer, libc::SECCOMP_RET_ALLOW),
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
