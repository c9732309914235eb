//! Launches by the hundred on a machine that has no time, and what is left of each.

use std::collections::BTreeMap;
use std::process::{Child, Command};

use crate::support::{eventually, loud, often, report, Home, Look, Manager};

/// Launches in a row.
const LAUNCHES: usize = 500;

/// Keeps every core busy until it is dropped.
struct Load(Vec<Child>);

impl Load {
    fn on_every_core() -> Self {
        let cores = std::thread::available_parallelism().unwrap().get();
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..cores).map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// What a manager holds, how many of each. A pipe or socket has a number of its own each time,
/// which is left out.
fn held(pid: u32) -> BTreeMap<String, usize> {
    let mut open = BTreeMap::new();
    for name in Look::open(pid) {
        let kind = name.split_once(":[").map_or(name.as_str(), |(kind, _)| kind);
        *open.entry(kind.to_owned()).or_default() += 1;
    }
    open
}

/// Waits until a manager holds nothing that it did not hold before. It may hold less: the last
/// client before may not have been quite gone.
fn assert_holds_no_more(pid: u32, before: &BTreeMap<String, usize>) {
    eventually("no more files and sockets than before", || {
        let is_known = |(kind, count): (&String, &usize)| before.get(kind) >= Some(count);
        held(pid).iter().all(is_known).then_some(())
    });
}

#[test]
fn launches_in_a_row_under_load_all_work_and_leave_nothing() {
    let _loud = loud();
    let home = Home::new();
    let manager = Manager::start(&home);
    let pid = manager.pid();
    let one = || {
        let id = home.ours(["launch", "manager://localhost"]).run().id().to_string();
        home.ours(["manager", "kill", &id]).run().success();
        manager.assert_no_offspring();
    };
    one();
    eventually("the manager at rest", || (Look::threads(pid) < 64).then_some(()));
    let (before, threads) = (held(pid), Look::threads(pid));
    let memory = Look::memory(pid);
    let _load = Load::on_every_core();
    let count = often(LAUNCHES);
    for _ in 0..count {
        one();
    }
    assert_holds_no_more(pid, &before);
    // A runtime may start a thread late, but not one for each launch.
    eventually("no more threads than before", || (Look::threads(pid) <= threads + 2).then_some(()));
    let grown = Look::memory(pid).saturating_sub(memory);
    report(format!("{count} launches under load: the manager grew by {grown} KiB"));
    assert!(grown < 4096 + 8 * count as u64, "it grew by {grown} KiB");
}

#[test]
fn launches_at_the_same_time_all_work_and_leave_nothing() {
    let home = Home::new();
    let manager = Manager::start(&home);
    for _ in 0..often(20) {
        let launches: Vec<_> =
            (0..20).map(|_| home.ours(["launch", "manager://localhost"]).start()).collect();
        let ids: Vec<_> = launches.into_iter().map(|launch| launch.finish().id()).collect();
        assert_eq!(manager.servers().len(), ids.len());
        let kills: Vec<_> =
            ids.iter().map(|id| home.ours(["manager", "kill", &id.to_string()]).start()).collect();
        kills.into_iter().for_each(|kill| drop(kill.finish().success()));
        manager.assert_no_offspring();
    }
}

#[test]
fn clients_that_come_and_go_leave_nothing() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let pid = manager.pid();
    let ask = || drop(home.ours(["manager", "version"]).run().success());
    (0..5).for_each(|_| ask());
    let (before, memory) = (held(pid), Look::memory(pid));
    let count = often(900);
    (0..count).for_each(|_| ask());
    assert_holds_no_more(pid, &before);
    let grown = Look::memory(pid).saturating_sub(memory);
    report(format!("{count} clients that came and went: the manager grew by {grown} KiB"));
    // The released one keeps 11 KiB of each.
    assert!(grown < 512 + 2 * count as u64, "it grew by {grown} KiB");
}
