//! Whatever ends, and whenever, nothing is left.

use std::time::Duration;

use super::each_backend;
use crate::support::{often, peer, programs, report, within, Home, Look, Manager, Signal, Sshd};

each_backend! {
    fn launches_that_end_at_any_moment_leave_nothing(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let servers = [programs().distant.display().to_string(), peer().display().to_string()];
        let launch = |server: &str| {
            home.ours(["launch", &to, "--distant", server, "--options", &options])
        };
        let id = launch(&servers[0]).run().id().to_string();
        home.ours(["manager", "kill", &id]).run().success();
        manager.assert_no_offspring();
        let before = (Look::open(manager.pid()).len(), Look::threads(manager.pid()));
        let rounds = often(200);
        let mut finished = 0;
        for round in 0..rounds {
            let running = launch(&servers[round % 2]).start();
            // From the first moment to some time after the usual end.
            let moment = Duration::from_millis(900 * round as u64 / rounds as u64);
            if running.ends_within(moment) {
                finished += 1;
                let id = running.finish().id().to_string();
                home.ours(["manager", "kill", &id]).run().success();
                continue;
            }
            match round % 3 {
                0 => running.signal(Signal::INT),
                1 => running.signal(Signal::KILL),
                _ => {
                    let workers = manager.offspring().into_iter();
                    workers.filter(|it| it.command.contains("plugin-worker")).for_each(|it| it.kill());
                }
            }
            let ended = running.finish();
            if let Ok(id) = ended.stdout.trim().parse::<u32>() {
                home.ours(["manager", "kill", &id.to_string()]).run().success();
            }
        }
        manager.assert_no_offspring();
        let only_manager = || (home.processes().len() == 1).then_some(());
        let left = within(Duration::from_secs(20), only_manager);
        assert!(left.is_some(), "{:#?}", home.processes());
        let steady = || {
            let now = (Look::open(manager.pid()).len(), Look::threads(manager.pid()));
            (now.0 <= before.0 + 2 && now.1 <= before.1 + 2).then_some(())
        };
        let is_steady = within(Duration::from_secs(20), steady).is_some();
        assert!(is_steady, "{before:?}, {:?}", Look::open(manager.pid()));
        report(format!("{rounds} launches ended at any moment, {backend}: {finished} were done, nothing left"));
    }
}
