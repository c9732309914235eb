//! Executable plugins: what their parent, the worker, sees to.

mod commands;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::{eventually, Home, Look, Manager, Running, Seen, Signal, HELLO};

/// Puts an executable plugin for `NAME://` where the host looks; the body follows its hello.
fn plugin(home: &Home, name: &str, members: &str, body: &str) -> PathBuf {
    let text = format!(
        "#!/bin/sh\necho '{{\"type\":\"hello\",\"protocol\":[1,1],\"manifest\":{{\
         \"name\":\"{name}\",\"schemes\":[\"{name}\"]{members}}}}}'\n{body}\n"
    );
    let path = home.script(&format!("data/distant/plugins/distant-plugin-{name}"), &text);
    for folder in path.ancestors().skip(1).take(3) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

/// Ignores the end of its input and SIGTERM, as does what it starts, and says when it has begun.
const DEAF: &str = "trap '' TERM; read hello; read launch || exit; sleep 1000 & \
     echo '{\"type\":\"notice\",\"text\":\"deaf\"}'; while :; do wait; done";

fn is_worker(seen: &Seen) -> bool {
    seen.command.contains("plugin-worker")
}

/// Kills one of those that take part in the launch of a deaf plugin; nothing is left of it.
#[track_caller]
fn killed(victim: impl Fn(&Seen) -> bool, signal: Signal) {
    let home = Home::new();
    plugin(&home, "deaf", "", DEAF);
    let manager = Manager::start(&home);
    let launch = home.ours(["launch", "deaf://box"]).start();
    manager.wait_for_mute();
    let picked: Vec<_> = home.processes().into_iter().filter(victim).collect();
    assert_eq!(picked.len(), 1, "{picked:?}");
    let pid = rustix::process::Pid::from_raw(picked[0].pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let finished = launch.finish();
    assert_ne!(finished.status.code(), Some(0), "{}", finished.told());
    if picked[0].pid == manager.pid() {
        manager.finish();
        assert!(Look::marked(home.mark()).is_empty());
    } else {
        manager.assert_no_offspring();
    }
}

#[test]
fn an_executable_that_listens_to_nobody_does_not_outlive_a_killed_manager() {
    killed(|seen| seen.command.contains("manager listen"), Signal::KILL);
}

#[test]
fn an_executable_that_listens_to_nobody_does_not_outlive_a_killed_worker() {
    killed(is_worker, Signal::KILL);
}

#[test]
fn an_executable_that_listens_to_nobody_does_not_outlive_ctrl_c() {
    killed(|seen| seen.command.contains("distant launch deaf"), Signal::INT);
}

#[test]
fn an_executable_that_ends_is_told_as_it_ended_with_its_last_words() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let check = |name: &str, end: &str, expected: &[&str]| {
        plugin(&home, name, "", &format!("read hello; read launch || exit; {end}"));
        let failed = home.ours(["launch", &format!("{name}://box")]).run().code(1);
        for text in expected {
            assert!(failed.stderr.contains(text), "{text}: {}", failed.told());
        }
    };
    let of = |name: &str, end: &str| format!("error: plugin `{name}` {end}");
    let status = of("status", "exited with status 3 before answering");
    check("status", "echo no way >&2; exit 3", &[&status, "caused by: no way"]);
    check("signal", "kill -SEGV $$", &[&of("signal", "was killed by signal 11 (SIGSEGV)")]);
    check("killed", "kill -KILL $$", &[&of("killed", "was killed by signal 9 (SIGKILL)")]);
    let mute = of("mute", "broke the protocol: it closed its output and went on running");
    check("mute", "exec >&-; sleep 1000", &[&mute]);
    let junk = of("junk", "broke the protocol: it sent a line that is no message");
    check("junk", "echo rubbish; sleep 1000", &[&junk]);
    let long = of("long", "broke the protocol: it sent a line of more than 1 MiB");
    check("long", "tr '\\0' x </dev/zero", &[&long]);
    let told = r#"echo '{"type":"error","kind":"other","message":"it is closed"}'; sleep 1000"#;
    check("told", told, &["error: it is closed"]);
}

#[test]
fn an_executable_gets_every_byte_and_costs_nothing_while_it_waits() {
    let home = Home::new();
    let manager = Manager::start(&home);
    // An answer of 200 kB: more than any pipe on the way holds.
    let body = r#"read hello; read launch || exit
        echo '{"type":"ask","id":1,"challenge":{"questions":[{"text":"long?"}]}}'
        read -r answer
        echo '{"type":"ask","id":2,"challenge":{"questions":[{"text":"'${#answer}'"}]}}'
        read -r cancel; echo '{"type":"error","kind":"cancelled","message":"as you like"}'"#;
    plugin(&home, "echo", "", body);
    let mut launch = home.ours(["launch", "echo://box", "--format", "json"]).start();
    assert_eq!(asked(&mut launch), "long?");
    let answer = "x".repeat(200_000);
    launch.say(&format!(r#"{{"type":"auth_challenge_response","answers":["{answer}"]}}"#));
    let length: usize = asked(&mut launch).parse().unwrap();
    assert!(length > answer.len(), "{length}");
    let worker = manager.offspring().into_iter().find(is_worker).unwrap();
    // It has handed the question on, and has yet to go to sleep.
    let mut last = 0;
    let before = eventually("a worker that waits", || {
        let before = std::mem::replace(&mut last, switches(&worker));
        let ends = launch.ends_within(std::time::Duration::from_millis(200));
        (!ends && before == last).then_some(last)
    });
    assert!(!launch.ends_within(std::time::Duration::from_secs(1)), "{}", launch.told());
    assert_eq!(switches(&worker), before, "it woke up while there was nothing to do");
    launch.signal(Signal::INT);
    launch.finish();
    manager.assert_no_offspring();
}

/// Waits for a question, and gives its text.
fn asked(launch: &mut Running) -> String {
    loop {
        let message = launch.json();
        match message["type"].as_str().unwrap() {
            "auth_initialization" => {
                launch.say(HELLO);
            }
            "auth_challenge" => {
                return message["questions"][0]["text"].as_str().unwrap().to_owned();
            }
            _ => {}
        }
    }
}

/// How often a process went to sleep of its own accord.
fn switches(seen: &Seen) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", seen.pid)).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}
