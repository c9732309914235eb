//! Whatever ends, and whenever, nothing is left.
//!
//! The moments are spread evenly over the time that a launch takes here and now; [`super::stages`]
//! has the places where a launch stands still.

use std::time::{Duration, Instant};

use serde_json::json;

use super::each_backend;
use crate::support::wire::Wire;
use crate::support::{
    eventually, often, peer, programs, report, within, Home, Look, Manager, Signal, Sshd, PATIENCE,
};

/// Failed launches that each backend has to go through.
const FAILURES: usize = 200;

/// How often a manager is killed during a launch, for each backend.
const MANAGERS: usize = 60;

/// A part of a whole that is another one each time, and never near the last ones.
fn part(round: usize) -> f64 {
    (round as f64 * 0.618_033_988_75).fract()
}

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
        let mut usual = Duration::ZERO;
        for server in &servers {
            let since = Instant::now();
            let id = launch(server).run().id().to_string();
            usual = usual.max(since.elapsed());
            home.ours(["manager", "kill", &id]).run().success();
        }
        manager.assert_no_offspring();
        let before = (Look::open(manager.pid()).len(), Look::threads(manager.pid()));
        let wanted = often(FAILURES);
        let (mut round, mut failed) = (0, 0);
        while failed < wanted {
            let running = launch(&servers[round % 2]).start();
            // By time, as no event says where it is.
            if !running.ends_within(usual.mul_f64(part(round))) {
                match round % 3 {
                    0 => running.signal(Signal::INT),
                    1 => running.signal(Signal::KILL),
                    _ => {
                        let workers = manager.offspring().into_iter();
                        workers.filter(|it| it.command.contains("plugin-worker")).for_each(|it| it.kill());
                    }
                }
            }
            let ended = running.finish();
            match ended.stdout.trim().parse::<u32>() {
                Ok(id) => drop(home.ours(["manager", "kill", &id.to_string()]).run()),
                Err(_) => failed += 1,
            }
            round += 1;
            assert!(round < 20 * wanted, "only {failed} of {round} launches failed");
        }
        // A launch has succeeded, and its connection is there, a moment before its command line says
        // so; whoever was killed in that moment has not heard of it, and it may yet come about.
        let only_manager = || {
            for id in listed(&home) {
                home.ours(["manager", "kill", &id]).run();
            }
            (home.processes().len() == 1 && sshd.open() == 0).then_some(())
        };
        let left = within(PATIENCE, only_manager);
        assert!(left.is_some(), "{} connections, {:#?}", sshd.open(), home.processes());
        manager.assert_no_offspring();
        let steady = || {
            let now = (Look::open(manager.pid()).len(), Look::threads(manager.pid()));
            (now.0 <= before.0 + 2 && now.1 <= before.1 + 2).then_some(())
        };
        let is_steady = within(PATIENCE, steady).is_some();
        assert!(is_steady, "{before:?}, {:?}", Look::open(manager.pid()));
        report(format!("{failed} launches failed at any moment, {backend}: {round} started, nothing left"));
    }

    fn a_manager_that_is_killed_at_any_moment_leaves_nothing(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
        let servers = [programs().distant.display().to_string(), peer().display().to_string()];
        let launch = |server: &str| {
            home.ours(["launch", &to, "--distant", server, "--options", &options])
        };
        let manager = Manager::start(&home);
        // The first one has to read everything from the disk.
        let usual = [(); 2].map(|()| {
            let since = Instant::now();
            let id = launch(&servers[0]).run().id().to_string();
            let took = since.elapsed();
            home.ours(["manager", "kill", &id]).run().success();
            took
        });
        let usual = usual[0].min(usual[1]);
        manager.stop();
        let rounds = often(MANAGERS);
        let mut done = 0;
        for round in 0..rounds {
            let manager = Manager::start(&home);
            let running = launch(&servers[round % 2]).start();
            running.ends_within(usual.mul_f64(part(round)));
            manager.kill();
            let ended = running.finish();
            if ended.stdout.trim().parse::<u32>().is_ok() {
                // Its server is meant to outlive the manager.
                done += 1;
                home.clear();
            } else {
                assert!(ended.stderr.starts_with("error: "), "{}", ended.told());
                home.assert_empty();
            }
            eventually("an end of every ssh connection", || (sshd.open() == 0).then_some(()));
        }
        assert!(done < rounds, "no manager was killed in time");
        report(format!("{rounds} managers killed at any moment, {backend}: {done} launches were done, of the others nothing is left"));
    }

    fn a_server_is_told_to_stay_only_when_its_client_has_heard_of_it(backend: &str) {
        let home = Home::new();
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        for server in [&programs().distant, peer()] {
            let manager = Manager::start(&home);
            let options = format!(
                "backend={backend},identity_files=\"{}\",distant.bin=\"{}\"",
                sshd.identity(), server.display()
            );
            for is_killed in [false, true] {
                let client = connected_but_deaf(&manager, &sshd, &options);
                let is_listed = || !listed(&home).is_empty();
                eventually("the connection", || is_listed().then_some(()));
                if is_killed {
                    break;
                }
                client.end();
                eventually("an end of the connection", || (!is_listed()).then_some(()));
                manager.assert_no_offspring();
                eventually("an end of ssh", || (sshd.open() == 0).then_some(()));
            }
            manager.kill();
            home.assert_empty();
        }
    }
}

/// A client that has shown the ticket of a launch, and cannot be told that it has the connection:
/// it does not read, and a lot is on its way to it already.
fn connected_but_deaf(manager: &Manager, sshd: &Sshd, options: &str) -> Wire {
    let mut client = Wire::manager(manager.socket());
    let destination = format!("ssh://root@{}", sshd.address);
    let launch = json!({"type": "launch", "destination": destination, "options": options});
    let launched = client.ask("launch", &launch).unwrap();
    assert_eq!(launched["type"], "launched", "{launched}");
    // Each is answered by its own length, and together they are more than a socket takes.
    let wrong = format!("nothing://{}", ["x"; 120].join("."));
    let wrong = json!({"type": "connect", "destination": wrong, "options": ""});
    for id in 0..2000 {
        client.request(&format!("wrong{id}"), &wrong).unwrap();
    }
    let connect = json!({"type": "connect", "destination": launched["destination"], "options": ""});
    client.request("connect", &connect).unwrap();
    client
}

/// The ids of the connections that the manager has.
fn listed(home: &Home) -> Vec<String> {
    let list = home.ours(["manager", "list", "--format=json"]).run().success().stdout;
    let list: serde_json::Value =
        serde_json::from_str(list.lines().last().unwrap_or_default()).unwrap();
    let keys = list.as_object().unwrap().keys();
    keys.filter(|key| key.parse::<u32>().is_ok()).cloned().collect()
}
