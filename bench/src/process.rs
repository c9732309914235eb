//! Programs that are run to their end under a deadline, and what the kernel says that they cost.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use distant_plugin_test::environment;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process, pidfd_open, Pid, PidfdFlags, Signal};

use crate::Failure;

/// Whether anything may be started. It is held while something is, so that whoever ends everything
/// overlooks nothing.
static IS_OPEN: RwLock<bool> = RwLock::new(true);

/// Lets nothing be started any more.
pub(crate) fn close() {
    *IS_OPEN.write().unwrap_or_else(PoisonError::into_inner) = false;
}

/// Starts a program in a process group of its own: what a terminal sends for Ctrl-C is for this
/// program alone, which ends the others in their order.
pub(crate) fn spawn(command: &mut Command) -> Result<Child, Failure> {
    let is_open = IS_OPEN.read().unwrap_or_else(PoisonError::into_inner);
    if !*is_open {
        return Err("interrupted".into());
    }
    let child = command.process_group(0).spawn();
    let name = command.get_program().to_string_lossy();
    Ok(child.map_err(|error| format!("cannot start `{name}`: {error}"))?)
}

/// A program that has been started; its output goes into files, so that nobody waits for a reader.
pub(crate) struct Running {
    child: Child,
    begun: Instant,
    stdout: File,
    stderr: File,
    what: String,
}

/// How a program ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    /// From its start to its end.
    pub(crate) took: Duration,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    what: String,
}

impl Finished {
    /// Fails unless it ended well.
    pub(crate) fn success(self) -> Result<Self, Failure> {
        if self.status.success() {
            return Ok(self);
        }
        Err(format!("`{}` ended with {}: {}{}", self.what, self.status, self.stdout, self.stderr)
            .into())
    }

    /// Milliseconds that it took.
    pub(crate) fn milliseconds(&self) -> f64 {
        self.took.as_secs_f64() * 1e3
    }
}

/// Starts a program with an empty input.
pub(crate) fn start(command: &mut Command) -> Result<Running, Failure> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let what: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let file =
        || tempfile::tempfile().map_err(|error| format!("there is no temporary folder: {error}"));
    let (stdout, stderr) = (file()?, file()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let begun = Instant::now();
    let child = spawn(command)?;
    Ok(Running { child, begun, stdout, stderr, what: what.join(" ") })
}

/// Runs a program to its end, within a time that only a broken one needs.
pub(crate) fn run(command: &mut Command, within: Duration) -> Result<Finished, Failure> {
    start(command)?.finish(within)
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and kills it after the deadline.
    pub(crate) fn finish(mut self, within: Duration) -> Result<Finished, Failure> {
        if !self.ends_within(within.saturating_sub(self.begun.elapsed()))? {
            self.kill_tree();
            return Err(format!("`{}` did not end within {within:?}", self.what).into());
        }
        let took = self.begun.elapsed();
        let status = self.child.wait()?;
        let mut text = [String::new(), String::new()];
        for (file, text) in [&mut self.stdout, &mut self.stderr].into_iter().zip(&mut text) {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        let [stdout, stderr] = text;
        Ok(Finished { status, took, stdout, stderr, what: self.what.clone() })
    }

    /// Whether it ends within this time.
    pub(crate) fn ends_within(&self, limit: Duration) -> Result<bool, Failure> {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Ok(ended) => return Ok(ended > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until what it is for is there, and fails at once if it ends before.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut found = None;
        let mut has_ended = Ok(false);
        let waited = crate::lab::until(what, || {
            // In this order: what it was there for before it ended counts.
            has_ended = self.ends_within(Duration::ZERO);
            found = look(self);
            found.is_some() || !matches!(has_ended, Ok(false))
        });
        let told = self.told();
        match (found, waited) {
            (Some(found), _) => Ok(found),
            (None, Ok(())) => Err(format!("`{}` ended: {told}", self.what).into()),
            (None, Err(error)) => Err(format!("{error}: {told}").into()),
        }
    }

    /// Ends it as a person would, and the hard way if it does not.
    pub(crate) fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end by itself in between.
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            if !matches!(self.ends_within(Duration::from_secs(15)), Ok(true)) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
    }

    /// Kills it with all that it has started.
    pub(crate) fn kill_tree(&mut self) {
        let pid = self.pid();
        kill_all(|| descendants(pid).into_iter().chain([pid]).collect());
        let _ = self.child.wait();
    }

    /// What it has said so far.
    pub(crate) fn told(&mut self) -> String {
        let mut text = String::new();
        for file in [&mut self.stdout, &mut self.stderr] {
            // Whatever can be read is better than nothing.
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Seconds on a processor, over all threads that still run.
    pub(crate) cpu: f64,
    /// Times that it went to sleep by itself.
    pub(crate) wake_ups: u64,
    /// KiB that it has to itself.
    pub(crate) memory: u64,
}

/// What a process has used; threads that have ended are left out of all but the memory.
pub(crate) fn usage(pid: u32) -> Usage {
    let mut usage =
        Usage { memory: field(&format!("/proc/{pid}/status"), "RssAnon:"), ..Usage::default() };
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let task = task.path();
        usage.wake_ups += field(&task.join("status").to_string_lossy(), "voluntary_ctxt_switches:");
        let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        let on_cpu = text.split(' ').next().and_then(|it| it.parse::<u64>().ok());
        usage.cpu += on_cpu.unwrap_or(0) as f64 / 1e9;
    }
    usage
}

/// Seconds that a process has used with all its ended threads, and the children that it waited for.
pub(crate) fn cpu_with_children(pid: u32) -> [f64; 2] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: Vec<u64> =
        fields.split(' ').skip(11).take(4).filter_map(|it| it.parse().ok()).collect();
    let seconds = |ticks: &[u64]| {
        ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64
    };
    ticks.split_at_checked(2).map_or([0.0; 2], |(own, children)| [seconds(own), seconds(children)])
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|it| it.parse::<u32>().ok()));
    }
    found
}

/// The children of a process, and theirs.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut at = 0;
    while at < found.len() {
        found.extend(children(found[at]));
        at += 1;
    }
    found
}

/// A number in a file of `/proc` with a name before it.
pub(crate) fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Processes whose environment has this entry.
pub(crate) fn marked(mark: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holds = |pid: &u32| {
        let environment = environment(Path::new(&format!("/proc/{pid}"))).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    pids.filter(holds).collect()
}

/// Kills every process that has this mark, until there is none.
pub(crate) fn kill_marked(mark: &str) {
    kill_all(|| marked(mark));
}

/// Kills what is found, until nothing is. They are stopped first, so that none of them starts another
/// one unseen, whose parent is gone when it is looked for.
pub(crate) fn kill_all(find: impl Fn() -> Vec<u32>) {
    let send = |pid: u32, signal| {
        if let Some(pid) = Pid::from_raw(pid as i32) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    };
    let end = Instant::now() + Duration::from_secs(20);
    let mut found = BTreeSet::new();
    while Instant::now() < end {
        let now: BTreeSet<_> = find().into_iter().filter(|&pid| is_alive(pid)).collect();
        if now.is_empty() {
            return;
        }
        if now.is_subset(&found) {
            std::mem::take(&mut found).into_iter().for_each(|pid| send(pid, Signal::KILL));
            std::thread::park_timeout(Duration::from_millis(5));
        } else {
            now.iter().for_each(|&pid| send(pid, Signal::STOP));
            found = now;
        }
    }
}

/// Whether a process is there, and not only waits for somebody to be told of its end.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_killed_whose_parents_end_first() {
        // The last command keeps the shell in the middle from becoming one of them.
        let script = "sleep 600 & (sleep 600 & sleep 600; :) & wait";
        let mut running = start(Command::new("sh").args(["-c", script])).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        let tree = loop {
            let tree = descendants(running.pid());
            if tree.len() == 4 || Instant::now() > end {
                break tree;
            }
        };
        assert_eq!(tree.len(), 4);
        running.kill_tree();
        assert!(!tree.into_iter().any(is_alive));
    }
}
