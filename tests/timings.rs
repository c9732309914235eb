//! `distant launch --timings`: where the time of a launch goes.

use serde_json::Value;

use crate::support::{Finished, Home, Manager, Sshd};

/// The steps that a JSON line tells, after a look at whether they make up the whole.
#[track_caller]
fn steps(finished: &Finished) -> Vec<String> {
    let lines = finished.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.into_iter().find(|line| line["type"] == "timings");
    let line = line.unwrap_or_else(|| panic!("no timings: {}", finished.told()));
    let total = line["total_ms"].as_f64().unwrap();
    let mut end = 0.0;
    let mut names = Vec::new();
    for step in line["steps"].as_array().unwrap() {
        let (at, took) = (step["at_ms"].as_f64().unwrap(), step["took_ms"].as_f64().unwrap());
        assert!((at - end).abs() < 0.01, "{line}");
        end = at + took;
        names.push(step["step"].as_str().unwrap().to_owned());
    }
    assert!((total - end).abs() < 0.01 && total > 0.0, "{line}");
    names
}

#[test]
fn timings_tell_each_step_of_a_launch_and_add_up() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let sshd = Sshd::start(&home);
    let own = ["command", "manager", "plan", "queue", "worker", "load", "request"];
    let local = ["start", "offer", "tcp", "proof", "ticket"];
    let ssh = ["resolve", "connect", "host_key", "authenticate"];
    let launch = || home.ours(["launch", "manager://localhost", "--timings"]);

    let finished = launch().arg("--format=json").run().success();
    assert_eq!(steps(&finished), [&own[..], &local].concat());
    // The last line stays what a program waits for.
    assert!(finished.stdout.trim_end().ends_with(r#""type":"launched"}"#), "{}", finished.told());
    for backend in ["ssh2", "libssh"] {
        let launch = sshd.launch(&home, backend, "").arg("--timings").arg("--format=json");
        let finished = launch.run().success();
        assert_eq!(steps(&finished), [&own[..], &ssh, &local].concat(), "{backend}");
    }

    let finished = launch().run().success();
    for step in own.iter().chain(&local) {
        assert!(finished.stderr.contains(&format!("  {step} ")), "{}", finished.told());
    }
    finished.id();
}

#[test]
fn timings_of_a_launch_that_fails_go_as_far_as_it_got() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let launch = ["launch", "manager://localhost", "--timings", "-fjson", "--distant", "/no/such"];
    let finished = home.ours(launch).run().code(1);
    let steps = steps(&finished);
    assert_eq!(steps.last().unwrap(), "plan", "{}", finished.told());
    let last = finished.stdout.lines().last().unwrap();
    assert!(last.contains(r#""type":"error""#), "{}", finished.told());
}

#[test]
fn timings_of_a_0_20_manager_are_those_of_this_side() {
    let home = Home::new();
    let _manager = Manager::start_peer(&home);
    // One that fails for sure: whether a working one does is a race of that manager's own.
    let launch = ["launch", "manager://localhost", "--timings", "-fjson", "--distant", "/no/such"];
    let finished = home.ours(launch).run().code(1);
    assert_eq!(steps(&finished), ["command", "manager"]);
}
