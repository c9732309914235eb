//! A manager that runs in the foreground, as a child of the test.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::home::MUTE;
use super::process::{shortened, Signal};
use super::{eventually, Finished, Home, Look, Running, Seen};

/// The variable by which the processes of one manager are found.
const MARK: &str = "DISTANT_TEST_MANAGER";

/// How long a manager and all that it started may take to end.
const TIME_TO_END: Duration = Duration::from_secs(15);

/// A manager on the user's socket of a home. Dropping it ends it as a person would, and fails the
/// test if it does not end well or leaves a process.
pub(crate) struct Manager {
    process: Option<Running>,
    socket: PathBuf,
    log: PathBuf,
    mark: String,
    ours: bool,
}

impl Manager {
    /// Starts ours.
    pub(crate) fn start(home: &Home) -> Self {
        Self::start_with(home, &[])
    }

    /// Starts ours with further arguments.
    pub(crate) fn start_with(home: &Home, args: &[&str]) -> Self {
        let args = ["manager", "listen", "--user"].iter().chain(args);
        Self::listen(home, home.ours(args), true)
    }

    /// Starts the released 0.20.0. What its launches start may survive it, and is killed with it.
    pub(crate) fn start_peer(home: &Home) -> Self {
        Self::listen(home, home.peer(["manager", "listen", "--user"]), false)
    }

    /// Starts a manager by any command that listens on the home's socket.
    pub(crate) fn listen(home: &Home, invocation: super::Invocation, ours: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let process = invocation.env(MARK, &mark).start();
        let socket = home.socket();
        eventually("a manager that answers", || {
            assert!(!process.ends_within(Duration::ZERO), "it ended: {}", process.told());
            UnixStream::connect(&socket).ok()
        });
        let log = home.path("cache/distant/manager.log");
        Self { process: Some(process), socket, log, mark: format!("{MARK}={mark}"), ours }
    }

    fn process(&self) -> &Running {
        self.process.as_ref().expect("only ending takes it")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// It, and what it and its launches started.
    pub(crate) fn processes(&self) -> Vec<Seen> {
        Look::marked(&self.mark)
    }

    /// What it started: workers, servers, and what those started.
    pub(crate) fn offspring(&self) -> Vec<Seen> {
        let mut seen = self.processes();
        seen.retain(|process| process.pid != self.pid());
        seen
    }

    /// The servers that it or its workers started and that run.
    pub(crate) fn servers(&self) -> Vec<Seen> {
        let mut seen = self.offspring();
        seen.retain(|process| process.command.contains("server listen"));
        seen
    }

    /// Waits until a launch has started the program of [`Home::mute`], or `sleep 1000` otherwise.
    pub(crate) fn wait_for_mute(&self) {
        eventually("the server of the launch", || {
            self.offspring().iter().any(|seen| seen.command == MUTE).then_some(())
        });
    }

    /// Waits until nothing that it started is left: no process, no zombie.
    #[track_caller]
    pub(crate) fn assert_no_offspring(&self) {
        let rest = || {
            let mut seen = self.offspring();
            seen.extend(Look::children(self.pid()));
            seen
        };
        let gone = super::within(TIME_TO_END, || rest().is_empty().then_some(()));
        assert!(gone.is_some(), "still there after {TIME_TO_END:?}: {:#?}", rest());
    }

    /// Waits until it has said this in its log.
    #[track_caller]
    pub(crate) fn said(&self, text: &str) {
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        eventually("a line of the manager's log", || log().contains(text).then_some(()));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits for its end after something else has ended it.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let finished = self.process.take().expect("only ending takes it").finish();
        self.assert_nothing_left();
        finished
    }

    /// Kills it the hard way; what it started has to end by itself.
    #[track_caller]
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
        self.finish();
    }

    /// Ends it with SIGTERM, and everything that it started with it.
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.signal(Signal::TERM);
        self.finish().success()
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        if self.ours {
            let left = Look::left(&self.mark, TIME_TO_END);
            left.iter().for_each(Seen::kill);
            assert!(left.is_empty(), "the manager left behind: {left:#?}");
        } else {
            while !Look::marked(&self.mark).is_empty() {
                self.processes().iter().for_each(Seen::kill);
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let log = shortened(&log);
            eprintln!("the manager of the failed test: {}\n{log}", process.told());
            drop(process);
            self.processes().iter().for_each(Seen::kill);
            return;
        }
        process.signal(Signal::TERM);
        let finished = process.finish();
        if self.ours {
            finished.success();
        }
        self.assert_nothing_left();
    }
}
