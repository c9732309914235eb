//! What a worker makes of a plugin that misbehaves: one clear result, or one clear end.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use serde_json::{json, Value};

use super::{c_plugin, told, Worker};
use crate::support::{programs, Home};

#[track_caller]
fn fails(mode: &str, kind: &str, text: &str) {
    assert_eq!(Worker::faulty_in(mode).fails(), (kind.to_owned(), text.to_owned()), "{mode}");
}

#[test]
fn a_failure_arrives_whole() {
    let worker = Worker::faulty_in("error");
    let error = worker.next();
    assert_eq!(
        error,
        json!({
            "type": "error",
            "kind": "unreachable",
            "message": "cannot reach `nowhere`",
            "causes": ["the moon is full"],
            "hint": "wait for two weeks",
        })
    );
    worker.end().success();
}

#[test]
fn a_panic_is_an_error_with_its_text() {
    fails("panic", "plugin", "the plugin panicked: plugin bug 42");
}

#[test]
fn a_panic_on_another_thread_is_the_plugin_s_own_business() {
    assert!(Worker::faulty_in("panic_elsewhere").succeeds().stderr.contains("plugin bug 43"));
}

#[test]
fn a_crash_ends_the_worker_by_its_signal() {
    for (mode, signal) in [("segfault", 11), ("stack_overflow", 6), ("abort", 6)] {
        let end = Worker::faulty_in(mode).end();
        assert_eq!(end.status.signal(), Some(signal), "{mode}: {}", end.told());
        assert!(!end.status.core_dumped(), "{mode}");
        // Its hello and nothing more.
        assert_eq!(end.stdout.lines().count(), 1, "{mode}: {}", end.told());
    }
}

#[test]
fn an_exit_ends_the_worker_without_a_result() {
    let end = Worker::faulty_in("exit").end().success();
    assert_eq!(end.stdout.lines().count(), 1, "{}", end.told());
}

#[test]
fn what_a_plugin_prints_gets_into_no_message() {
    let end = Worker::faulty_in("noise").succeeds();
    assert_eq!(end.stderr.len(), 40_000 * 60);
    for line in end.stdout.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn noise_while_it_is_loaded_does_no_harm() {
    let home = Home::new();
    let start = home
        .ours(["plugin-worker".as_ref(), programs().plugin("faulty").as_os_str()])
        .env("DISTANT_FAULTY_LOAD", "noise");
    let mut worker = Worker { running: start.start(), home };
    worker.greet();
    worker.launch(json!({}));
    worker.succeeds();
}

#[test]
fn closed_descriptors_do_no_harm() {
    Worker::faulty_in("close_fds").succeeds();
}

#[test]
fn a_message_that_is_none_ends_the_launch() {
    fails(
        "bad_json",
        "plugin",
        "the plugin broke the protocol: its message is no JSON from column 24 on",
    );
    fails(
        "huge_message",
        "plugin",
        "the plugin broke the protocol: its message cannot be read: \
         it has 2097179 bytes, more than 1048576",
    );
}

#[test]
fn a_failure_without_a_word_gets_one() {
    fails("silent_failure", "plugin", "the plugin failed without saying why");
    fails("odd_status", "plugin", "the plugin failed without saying why");
}

#[test]
fn only_the_first_result_counts() {
    let end = Worker::faulty_in("two_results").succeeds();
    assert!(!end.stdout.contains("second thoughts"), "{}", end.told());
}

#[test]
fn nothing_comes_after_the_result() {
    let end = Worker::faulty_in("late_callbacks").succeeds();
    assert!(end.stdout.ends_with("{\"type\":\"done\"}\n"), "{}", end.told());
}

#[test]
fn messages_of_many_threads_arrive_whole_and_each_in_its_order() {
    let worker = Worker::faulty_in("crowd");
    let mut counts = [0; 16];
    for _ in 0..16 * 64 {
        let notice = worker.next();
        let (thread, count) = notice["text"].as_str().unwrap().split_once(' ').unwrap();
        let next = &mut counts[thread.parse::<usize>().unwrap()];
        assert_eq!(count.parse(), Ok(*next));
        *next += 1;
    }
    worker.succeeds();
}

#[test]
fn a_worker_whose_manager_is_gone_ends_whatever_its_plugin_does() {
    for mode in ["hang", "spin", "wait", "slow_cleanup", "endless_output", "endless_log"] {
        let mut worker = Worker::faulty_in(mode);
        worker.running.close_stdin();
        worker.end();
    }
}

#[test]
fn a_worker_whose_manager_is_gone_takes_what_it_started_along() {
    let mut worker = Worker::faulty();
    worker.launch(json!({ "mode": "fork", "stay": "true", "notice": "forked" }));
    assert_eq!(worker.next()["text"], "forked");
    worker.running.close_stdin();
    // The home finds out whether `sleep` is gone.
    assert_eq!(worker.end().status.signal(), Some(9));
}

#[test]
fn a_worker_that_cannot_even_load_its_plugin_ends_with_its_manager() {
    let home = Home::new();
    let library = c_plugin(&home, "table.c", "CONSTRUCTOR_HANG");
    let mut worker = Worker::start_in(home, &library);
    worker.running.close_stdin();
    worker.end();
}

#[test]
fn an_exit_in_a_c_plugin_is_an_end_without_a_result() {
    let home = Home::new();
    let library = c_plugin(&home, "table.c", "EXIT");
    let mut worker = Worker::start_in(home, &library);
    worker.greet();
    worker.launch(json!({}));
    assert_eq!(worker.end().success().stdout.lines().count(), 1);
}

#[test]
fn a_call_with_nonsense_is_refused() {
    let home = Home::new();
    let library = c_plugin(&home, "table.c", "NULL_MESSAGE");
    let mut worker = Worker::start_in(home, &library);
    worker.greet();
    worker.launch(json!({}));
    let (_, text) = worker.fails();
    assert_eq!(
        text,
        "the plugin broke the protocol: its message cannot be read: its address is null"
    );

    let home = Home::new();
    let library = c_plugin(&home, "table.c", "NULL_CONTEXT");
    let mut worker = Worker::start_in(home, &library);
    worker.greet();
    worker.launch(json!({}));
    worker.succeeds();
}

#[test]
fn a_plugin_that_writes_into_the_worker_s_pipes_hangs_nobody() {
    let mut worker = Worker::faulty_in("scribble");
    loop {
        let line = worker.running.line();
        if serde_json::from_str::<Value>(&line).is_err() {
            // What the manager calls a broken protocol.
            assert_eq!(line, "scribble");
            break;
        }
    }
    worker.running.close_stdin();
    worker.end();
}

#[test]
fn a_missing_file_is_named() {
    let worker = Worker::start(Path::new("/nowhere/libdistant_plugin_none.so"));
    let (kind, text) = told(&worker.running.json());
    assert_eq!(kind, "plugin");
    assert!(text.starts_with("cannot load `/nowhere/libdistant_plugin_none.so`: "), "{text}");
    worker.end().success();
}
