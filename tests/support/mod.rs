//! What every test stands on: the real programs, a home of one's own, and a look at what is left.
//!
//! Nothing here waits for a while: a wait is for an event and has a deadline, and a fixture that is
//! dropped fails its test if a process outlived it. So each test is a test for leaks too.

mod home;
mod manager;
mod process;
mod programs;
mod proxy;
mod server;
mod sshd;
mod system;
mod terminal;
pub(crate) mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub(crate) use home::{Home, Invocation};
pub(crate) use manager::Manager;
pub(crate) use process::Signal;
pub(crate) use process::{Finished, Running};
pub(crate) use programs::{
    copy_executable, executable, other_builds, peer, programs, repository, variable,
};
pub(crate) use proxy::Proxy;
pub(crate) use server::{bound, refusing, Server};
pub(crate) use sshd::{keygen, Sshd};
pub(crate) use system::{Look, Seen};
pub(crate) use terminal::Terminal;

/// The answer that the manager's own round waits for in JSON mode.
pub(crate) const HELLO: &str = r#"{"type":"auth_initialization_response","methods":["none"]}"#;

/// The longest that anything may take which should take no time; long, as the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Held shared by tests that measure time, and alone by those that leave no time to others.
static CALM: RwLock<()> = RwLock::new(());

/// Keeps those away that load all cores, while somebody measures time.
pub(crate) fn calm() -> RwLockReadGuard<'static, ()> {
    CALM.read().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps those away that measure time, while somebody loads all cores.
pub(crate) fn loud() -> RwLockWriteGuard<'static, ()> {
    CALM.write().unwrap_or_else(PoisonError::into_inner)
}

/// Measures time, but for what the machine stands still: nothing gets on then, whoever is measured.
pub(crate) struct Stopwatch {
    begun: Instant,
    /// In microseconds.
    lost: Arc<AtomicU64>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let (beat, usual) = (Duration::from_millis(10), Duration::from_millis(50));
        let this = Self { begun: Instant::now(), lost: Arc::default() };
        let (mut last, lost) = (this.begun, Arc::downgrade(&this.lost));
        std::thread::spawn(move || {
            while let Some(lost) = lost.upgrade() {
                std::thread::park_timeout(beat);
                let now = Instant::now();
                let late = now.duration_since(last).saturating_sub(usual);
                lost.fetch_add(late.as_micros() as u64, Ordering::Relaxed);
                last = now;
            }
        });
        this
    }

    /// The time since its start in which the machine did something.
    pub(crate) fn elapsed(&self) -> Duration {
        let lost = Duration::from_micros(self.lost.load(Ordering::Relaxed));
        self.begun.elapsed().saturating_sub(lost)
    }
}

/// How often to do what has to be done very often: `full` times if `DISTANT_SOAK` is `full`, else
/// a tenth of that.
pub(crate) fn often(full: usize) -> usize {
    match programs::variable("DISTANT_SOAK").as_deref() {
        Some("full" | "1") => full,
        _ => full.div_ceil(10),
    }
}

/// Waits until `look` finds something, for what the kernel sends no event of: sockets that answer,
/// the contents of `/proc`. Fails with `what` after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match within(PATIENCE, look) {
        Some(found) => found,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// The same with a limit of one's own; `None` once it has passed.
pub(crate) fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Writes a figure down for whoever ran the tests; `make test` shows them all at the end.
pub(crate) fn report(line: String) {
    use std::io::Write;
    let target = programs().distant.parent().and_then(std::path::Path::parent).unwrap();
    let file = std::fs::File::options().create(true).append(true).open(target.join("figures.txt"));
    file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    eprintln!("{line}");
}
