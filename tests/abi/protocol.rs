//! The lines between manager and worker: questions, offers, cancellation, and executables.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use serde_json::json;

use super::{Worker, KEY};
use crate::support::{programs, Home};

#[test]
fn a_manifest_says_what_the_plugin_takes() {
    let mut worker = Worker::start(programs().plugin("faulty"));
    let manifest = worker.greet();
    assert_eq!(manifest["name"], "faulty");
    assert_eq!(manifest["schemes"], json!(["faulty"]));
    let options = manifest["options"].as_array().unwrap();
    let key = options.iter().find(|option| option["name"] == "key").unwrap();
    assert_eq!(key["secret"], true);
    // Without a launch, the end of its input is all that it waits for.
    worker.running.close_stdin();
    worker.end();
}

#[test]
fn a_question_waits_for_its_own_answer() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "ask": "Word? ", "expect": "mellon", "verify": "Friend?" }));
    let verify = worker.next();
    assert_eq!(verify["verification"], json!({ "kind": "host", "text": "Friend?" }));
    let id = verify["id"].as_u64().unwrap();
    worker.say(json!({ "type": "answer", "id": id + 7, "valid": false }));
    worker.say(json!({ "type": "nonsense of a later version" }));
    worker.say(json!({ "type": "answer", "id": id, "valid": true }));
    let ask = worker.next();
    assert_eq!(ask["challenge"]["questions"][0]["text"], "Word? ");
    worker.say(json!({ "type": "answer", "id": ask["id"], "answers": ["mellon"] }));
    worker.succeeds();
}

#[test]
fn a_question_that_nobody_answers_is_a_refusal() {
    let check = |options, answer: serde_json::Value, expected: &str| {
        let mut worker = Worker::faulty();
        worker.launch(options);
        let mut reply = answer;
        reply["type"] = json!("answer");
        reply["id"] = worker.next()["id"].clone();
        worker.say(reply);
        assert_eq!(worker.fails().0, expected);
    };
    check(json!({ "verify": "?" }), json!({ "cancelled": true }), "host_key");
    check(json!({ "ask": "?" }), json!({ "cancelled": true }), "authentication");
    check(json!({ "ask": "?" }), json!({ "answers": ["one", "too many"] }), "authentication");
    check(json!({ "ask": "?" }), json!({}), "authentication");
}

#[test]
fn after_slow_another_way_may_be_offered() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "offer": "127.0.0.1:1", "tunnel": "127.0.0.1:2", "key": KEY }));
    let direct = worker.next();
    assert_eq!((&direct["port"], &direct["via"]), (&json!(1), &json!("direct")));
    worker.say(json!({ "type": "verdict", "id": direct["id"], "verdict": "slow" }));
    let tunnel = worker.next();
    assert_eq!((&tunnel["port"], &tunnel["via"]), (&json!(2), &json!("tunnel")));
    assert_ne!(tunnel["id"], direct["id"]);
    for id in [&direct["id"], &tunnel["id"]] {
        let by = &direct["id"];
        worker.say(json!({ "type": "verdict", "id": id, "verdict": "connected", "by": by }));
    }
    worker.succeeds();
}

#[test]
fn an_offer_made_again_is_not_sent_again() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "offer": "127.0.0.1:1", "key": KEY, "notice": "here" }));
    assert_eq!(worker.next()["text"], "here");
    let id = worker.next()["id"].clone();
    for verdict in ["slow", "slow", "connected"] {
        worker.say(json!({ "type": "verdict", "id": id, "verdict": verdict }));
    }
    // The next message is the result.
    assert_eq!(worker.next()["type"], "done");
    worker.end().success();
}

#[test]
fn cancel_wakes_a_plugin_wherever_it_waits() {
    for options in [
        json!({ "mode": "wait" }),
        json!({ "mode": "slow_cleanup" }),
        json!({ "ask": "?" }),
        json!({ "offer": "127.0.0.1:1", "key": KEY }),
    ] {
        let mut worker = Worker::faulty();
        worker.launch(options);
        worker.say(json!({ "type": "cancel" }));
        worker.say(json!({ "type": "cancel" }));
        assert_eq!(worker.fails().0, "cancelled");
    }
}

#[test]
fn a_plugin_may_hold_what_the_connection_needs_until_it_is_cancelled() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "offer": "127.0.0.1:1", "key": KEY, "stay": "true" }));
    let id = worker.next()["id"].clone();
    worker.say(json!({ "type": "verdict", "id": id, "verdict": "connected" }));
    worker.say(json!({ "type": "cancel" }));
    worker.succeeds();
}

#[test]
fn the_log_arrives_at_the_level_that_the_host_keeps() {
    let texts = |level: &str| {
        let mut worker = Worker::start(programs().plugin("faulty"));
        assert_eq!(worker.running.json()["type"], "hello");
        worker.say(json!({ "type": "hello", "protocol": 1, "log_level": level }));
        worker.launch(json!({ "log": "hear, hear" }));
        let mut texts = Vec::new();
        loop {
            let message = worker.next();
            if message["type"] == "done" {
                worker.end().success();
                return texts;
            }
            assert_eq!(message["type"], "log", "{message}");
            assert_eq!(message["target"], "distant_plugin_faulty");
            let text = message["text"].as_str().unwrap();
            texts.push(format!("{} {text}", message["level"].as_str().unwrap()));
        }
    };
    assert_eq!(texts("off"), [""; 0]);
    assert_eq!(texts("warn"), ["error hear, hear"]);
    let all = ["error hear, hear", "info launch: hear, hear size=3", "trace hear, hear"];
    assert_eq!(texts("debug"), all[..2]);
    assert_eq!(texts("trace"), all);
}

#[test]
fn a_worker_runs_one_launch() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "mode": "wait" }));
    worker.launch(json!({}));
    let expected = ("plugin".to_owned(), "the host asked for a second launch".to_owned());
    assert_eq!(worker.fails(), expected);
}

#[test]
fn a_host_that_breaks_the_protocol_is_told() {
    let long = format!("{{\"type\":\"cancel\",\"x\":\"{}\"}}", "x".repeat(1 << 20));
    for (line, expected) in [
        ("nonsense", "the host sent a line that is no JSON from column 2 on"),
        (long.as_str(), "the host sent a line of more than 1 MiB"),
        (r#"{"type":"hello","protocol":9}"#, "the host speaks another version of the protocol"),
        (
            r#"{"type":"launch","destination":"a b"}"#,
            "the host sent a line that has a member of the wrong type or value",
        ),
    ] {
        let worker = Worker::start(programs().plugin("faulty"));
        assert_eq!(worker.running.json()["type"], "hello");
        let mut worker = worker;
        // It may end before it has read all of it.
        worker.running.feed(format!("{line}\n").as_bytes());
        assert_eq!(worker.fails(), ("plugin".to_owned(), expected.to_owned()));
    }
}

/// A worker that leads no group yet, as under the manager; the other tests start theirs as leaders
/// of a group, so that it can be killed.
fn start_plainly(home: &Home, arguments: &[&str]) -> std::process::Child {
    let mut command = Command::new(&programs().distant);
    command.arg("plugin-worker").args(arguments).env_clear();
    let (name, value) = home.mark().split_once('=').unwrap();
    command.env(name, value).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_worker_has_a_session_of_its_own_and_dumps_no_core() {
    let home = Home::new();
    let library = programs().plugin("faulty").to_str().unwrap();
    let mut child = start_plainly(&home, &[library]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"type\":\"hello\""), "{line}");

    let pid = child.id();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");

    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn the_file_that_was_checked_is_the_one_that_is_loaded() {
    let home = Home::new();
    let path = home.path("libdistant_plugin_swapped.so");
    std::fs::copy(programs().plugin("faulty"), &path).unwrap();
    let checked = File::open(&path).unwrap();
    rustix::io::fcntl_setfd(&checked, rustix::io::FdFlags::empty()).unwrap();
    let fd = checked.as_raw_fd().to_string();
    std::fs::rename(home.write("other", "another file by now"), &path).unwrap();

    let mut child = start_plainly(&home, &["--fd", &fd, path.to_str().unwrap()]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"name\":\"faulty\""), "{line}");

    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn an_executable_plugin_is_the_worker_s_child_and_in_its_session() {
    let home = Home::new();
    let script = home.script(
        "distant-plugin-script",
        "#!/bin/sh\nread hello\nulimit -c\nps -o sid= -p $$ | tr -d ' '\necho $PPID $0 \"$hello\"\n",
    );
    // A script by its path, a program by the descriptor.
    for (plugin, by_descriptor) in [(script.as_path(), false), ("/bin/sh".as_ref(), true)] {
        let file = File::open(plugin).unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let fd = file.as_raw_fd().to_string();
        let shown = if by_descriptor { "/shown" } else { plugin.to_str().unwrap() };
        let mut child = start_plainly(&home, &["--fd", &fd, "--exec", shown]);
        let mut stdin = child.stdin.take().unwrap();
        if by_descriptor {
            let script = std::fs::read_to_string(&script).unwrap().replace("read hello\n", "");
            stdin.write_all(format!("hello=hi\n{script}").as_bytes()).unwrap();
        } else {
            stdin.write_all(b"hi\n").unwrap();
        }
        drop(stdin);
        let pid = child.id();
        let printed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(printed, format!("0\n{pid}\n{pid} {shown} hi\n"));
    }
}

#[test]
fn a_program_that_cannot_run_is_named() {
    let home = Home::new();
    let mut child = start_plainly(&home, &["--exec", "/nowhere/distant-plugin-none"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let error: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(error["message"], "cannot run `/nowhere/distant-plugin-none`");
    child.wait().unwrap();
}

#[test]
fn a_person_who_starts_a_worker_by_hand_is_told_what_it_is() {
    let home = Home::new();
    let terminal = home.ours(["plugin-worker", "any"]).on_terminal();
    let (status, printed) = terminal.finish();
    assert_eq!(status.code(), Some(2));
    assert!(
        printed.contains("`distant plugin-worker` runs one plugin for one launch"),
        "{printed}"
    );
}
