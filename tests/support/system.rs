//! What the kernel knows of processes, out of `/proc`.
//!
//! A process that outlived its parent has no relation left by which to find it, but it keeps the
//! environment that it was started with. So each fixture has a variable of its own in there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rustix::process::{kill_process, Pid, Signal};

use super::within;

/// One process as it was when it was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Its number.
    pub(crate) pid: u32,
    /// Its parent.
    pub(crate) parent: u32,
    /// `Z` for one that has ended and that nobody has waited for.
    pub(crate) state: char,
    /// What it was started with, blanks between the words.
    pub(crate) command: String,
    /// When it was started, in the kernel's ticks; with the number it names the process, whatever
    /// program it becomes and whoever adopts it.
    started: u64,
    /// Whether an environment can be read from it; also while the kernel does not say yet, or does
    /// not say any more of one that is about to end.
    has_environment: bool,
}

/// A flag of a process: it is the kernel's own, and never has an environment.
const OF_THE_KERNEL: u64 = 0x0020_0000;

impl Seen {
    fn at(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in parentheses, which may hold anything.
        let (head, tail) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = tail.split_whitespace().collect();
        // As proc(5) counts them: these begin with the third.
        let number = |count: usize| fields.get(count - 3)?.parse::<u64>().ok();
        let state = fields.first()?.chars().next()?;
        let parent = fields.get(1)?.parse().ok()?;
        let started = number(22)?;
        let has_ended = matches!(state, 'Z' | 'X');
        let [start, end] = [number(50)?, number(51)?];
        let is_empty = end > 0 && start == end;
        let has_environment = !is_empty && !has_ended && number(9)? & OF_THE_KERNEL == 0;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ").trim().to_owned();
        let name = || head.split_once(" (").map_or(head, |(_, name)| name).to_owned();
        let command = if words.is_empty() { name() } else { words };
        Some(Self { pid, parent, state, command, started, has_environment })
    }

    /// Tells whether the same process is still there, a zombie counting as gone.
    pub(crate) fn lives(&self) -> bool {
        let now = Self::at(self.pid);
        now.is_some_and(|now| !matches!(now.state, 'Z' | 'X') && now.started == self.started)
    }

    /// Kills it at once.
    pub(crate) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid as i32) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What to look for in `/proc`.
pub(crate) struct Look;

impl Look {
    /// Processes whose environment holds `NAME=value`, whatever became of their parents.
    pub(crate) fn marked(mark: &str) -> Vec<Seen> {
        let holds = |pid: &u32| loop {
            let environment = match fs::read(format!("/proc/{pid}/environ")) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => break false,
                environment => environment.unwrap_or_default(),
            };
            // A process that becomes another program, or is about to end, has nothing to be read
            // for a moment.
            if environment.is_empty() && Seen::at(*pid).is_some_and(|seen| seen.has_environment) {
                std::thread::yield_now();
                continue;
            }
            break environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        };
        processes().filter(holds).filter_map(Seen::at).collect()
    }

    /// Every process that runs.
    pub(crate) fn running() -> Vec<Seen> {
        processes().filter_map(Seen::at).collect()
    }

    /// Waits until no process with this mark is left; returns those that are still there after
    /// `limit`.
    pub(crate) fn left(mark: &str, limit: Duration) -> Vec<Seen> {
        let gone = within(limit, || Self::marked(mark).is_empty().then_some(()));
        gone.map_or_else(|| Self::marked(mark), |()| Vec::new())
    }

    /// Children of a process, zombies included.
    pub(crate) fn children(parent: u32) -> Vec<Seen> {
        processes().filter_map(Seen::at).filter(|seen| seen.parent == parent).collect()
    }

    /// What a process has open, as the kernel names it.
    pub(crate) fn open(pid: u32) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let name = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
        entries.filter_map(name).map(|path| path.display().to_string()).collect()
    }

    /// How many threads a process has.
    pub(crate) fn threads(pid: u32) -> usize {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
    }

    /// How often a process has gone to sleep by itself since it started.
    pub(crate) fn wake_ups(pid: u32) -> WakeUps {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let count = |task: &Path| field(&task.join("status"), "voluntary_ctxt_switches:");
        WakeUps(tasks.map(|task| (task.file_name(), count(&task.path()))).collect())
    }

    /// How much memory a process has to itself, in KiB.
    pub(crate) fn memory(pid: u32) -> u64 {
        field(Path::new(&format!("/proc/{pid}/status")), "RssAnon:")
    }
}

/// How often each thread of a process has gone to sleep by itself: one that ends takes its number
/// along.
pub(crate) struct WakeUps(BTreeMap<OsString, u64>);

impl WakeUps {
    /// How many there were from another moment to this one.
    pub(crate) fn since(&self, before: &Self) -> u64 {
        let of_thread = |(thread, count): (&OsString, &u64)| {
            count.saturating_sub(before.0.get(thread).copied().unwrap_or(0))
        };
        self.0.iter().map(of_thread).sum()
    }
}

/// A number in a file of `/proc` with a name before it; 0 if its thread has just ended.
fn field(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
