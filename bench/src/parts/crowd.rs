//! Many launches at once at one sshd, beside as many `ssh host true`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Lab, Side, Way};
use crate::process::{self, cpu_with_children, descendants, field};
use crate::report::{Cell, Goal, Report, Sample};
use crate::site::{Distance, Site};
use crate::{Arguments, Failure};

/// How often each crowd sets out.
const ROUNDS: usize = 3;

/// The longest that a crowd may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What one crowd cost.
struct Crowd {
    seconds: f64,
    succeeded: usize,
    /// Seconds of processor time: clients, the manager with its workers, sshd with what it started.
    cpu: [f64; 3],
    /// KiB of the manager and its workers at their peak, above what the manager had before.
    memory: u64,
}

/// Measures it.
pub(crate) fn measure(lab: &Lab, arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let columns = [
        "seconds",
        "succeeded",
        "a second",
        "clients, CPU ms each",
        "manager and workers, CPU ms each",
        "sshd, CPU ms each",
        "manager and workers, KiB each",
    ];
    let mut table =
        report.table("crowd", "Many launches at once, and as many `ssh host true`", &columns);
    let ours = lab.backends().into_iter().map(|it| Way::Launch(Side::Ours, it));
    let ways: Vec<_> = [Way::Ssh, Way::SshCurve]
        .into_iter()
        .chain(ours)
        .chain([Way::Launch(Side::Peer, "ssh2")])
        .collect();
    let site = Site::new(lab, Distance::Here)?;
    let largest = arguments.crowds.iter().max().copied();
    for &count in &arguments.crowds {
        let mut crowds: Vec<Vec<Crowd>> = ways.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            report.progress(&format!("{count} at once, round {} of {ROUNDS}", round + 1));
            for (way, crowds) in ways.iter().zip(&mut crowds) {
                let is_peer = matches!(way, Way::Launch(Side::Peer, _));
                // Those that are slow take minutes, and vary little.
                let is_slow = is_peer || matches!(way, Way::Ssh | Way::Launch(_, "openssh"));
                let rounds = if is_slow && count >= 100 { 1 } else { ROUNDS };
                if round < rounds && (!is_peer || count <= arguments.peer_crowd) {
                    let name = format!("{count} × {}", way.name());
                    if count >= 100 {
                        report.progress(&name);
                    }
                    crowds.extend(report.attempt(&name, crowd(&site, way, count)));
                    report.attempt(&name, site.clear(way));
                }
            }
        }
        for (way, of_way) in ways.iter().zip(&crowds) {
            if !of_way.is_empty() {
                table.add(format!("{count} × {}", way.name()), cells(way, count, of_way));
            }
            if Some(count) == largest && matches!(way, Way::Launch(Side::Ours, _)) {
                promise(report, way, count, &crowds[0], of_way);
            }
        }
    }
    Ok(())
}

/// What all crowds of one size and way have in common.
fn sample(crowds: &[Crowd], of: impl Fn(&Crowd) -> f64) -> Option<Sample> {
    Sample::of(crowds.iter().map(of).collect())
}

/// How many got in at the worst; `None` if nobody set out.
fn worst(crowds: &[Crowd]) -> Option<usize> {
    crowds.iter().map(|it| it.succeeded).min()
}

fn cells(way: &Way, count: usize, crowds: &[Crowd]) -> Vec<Cell> {
    let each = count as f64;
    let cpu = |part: usize| sample(crowds, |it| it.cpu[part] * 1e3 / each);
    // What is no launch has no manager.
    let of_launch = |sample: Option<Sample>| sample.filter(|_| !way.is_bare());
    vec![
        sample(crowds, |it| it.seconds).into(),
        format!("{} of {count}", worst(crowds).unwrap_or_default()).into(),
        sample(crowds, |it| it.succeeded as f64 / it.seconds).into(),
        cpu(0).into(),
        of_launch(cpu(1)).into(),
        cpu(2).into(),
        of_launch(sample(crowds, |it| it.memory as f64 / each)).into(),
    ]
}

/// Reports what was promised of so many launches at once.
fn promise(report: &Report, way: &Way, count: usize, bare: &[Crowd], crowds: &[Crowd]) {
    let seconds = |of: &[Crowd]| sample(of, |it| it.seconds).map(|it| it.median);
    let ratio = seconds(bare).zip(seconds(crowds)).map(|(ssh, launch)| ssh / launch);
    let name = way.name();
    let what = format!("rate of {count} launches at once against `ssh host true`, {name}");
    report.target(what, Goal::AtLeast(0.9), ratio, "×");
    let share = worst(crowds).map(|it| it as f64 / count as f64);
    let what = format!("success of {count} launches at once, {name}");
    report.target(what, Goal::AtLeast(1.0), share, "×");
}

fn crowd(site: &Site<'_>, way: &Way, count: usize) -> Result<Crowd, Failure> {
    let side = way.side();
    let (manager, sshd) = (site.manager(side), site.sshd.pid());
    let cpu = || {
        let of = |pid| cpu_with_children(pid).iter().sum();
        [cpu_with_children(std::process::id())[1], of(manager), of(sshd)]
    };
    let commands: Vec<_> = (0..count).map(|_| site.command(way)).collect::<Result<_, _>>()?;
    let peak = Peak::watch(manager);
    let before: [f64; 3] = cpu();
    let begun = Instant::now();
    let mut running = Vec::with_capacity(count);
    for mut command in commands {
        running.push(process::start(&mut command)?);
    }
    let mut succeeded = 0;
    for client in running {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if client.finish(left).is_ok_and(|it| it.status.success()) {
            succeeded += 1;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let memory = peak.stop();
    // The last worker or session is waited for a moment after its client has ended.
    if !way.is_bare() {
        crate::lab::until("workers that have ended", || {
            descendants(manager).is_empty() || side == Side::Peer
        })?;
    }
    let after = cpu();
    Ok(Crowd { seconds, succeeded, cpu: [0, 1, 2].map(|at| after[at] - before[at]), memory })
}

/// A thread that looks now and then how much memory a manager and its workers have.
struct Peak {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    before: u64,
    thread: thread::JoinHandle<()>,
}

impl Peak {
    fn watch(manager: u32) -> Self {
        let memory = move || -> u64 {
            let workers = descendants(manager).into_iter().chain([manager]);
            workers.map(|pid| field(&format!("/proc/{pid}/status"), "RssAnon:")).sum()
        };
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let before = memory();
        let thread = thread::spawn({
            let (stop, most) = (Arc::clone(&stop), Arc::clone(&most));
            move || {
                while !stop.load(Ordering::Acquire) {
                    let begun = Instant::now();
                    most.fetch_max(memory(), Ordering::AcqRel);
                    // Looking at hundreds of processes takes time that they could use.
                    thread::sleep(Duration::from_millis(50).max(begun.elapsed() * 20));
                }
            }
        });
        Self { stop, most, before, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        // It does not panic; if it did, what it saw before counts.
        let _ = self.thread.join();
        self.most.load(Ordering::Acquire).saturating_sub(self.before)
    }
}
