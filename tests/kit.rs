//! The conformance kit: a good plugin passes every case, and each fault is found by the case that
//! is there for it.

mod faults;
mod hosts;
mod unreachable;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::abi::{c_plugin, c_template};
use crate::support::{programs, Home, Server, PATIENCE};

/// Runs the kit on a plugin; gives the status and the reason of each case.
fn cases(home: &Home, plugin: &Path, arguments: &[&str]) -> BTreeMap<String, (String, String)> {
    let test = home.ours(["plugin", "test", "--json"]).arg(plugin);
    let test = arguments.iter().fold(test, |test, argument| test.arg(argument));
    let finished = test.run_within(3 * PATIENCE);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| {
        panic!("no report: {}", finished.told());
    });
    let expected = if report["good"] == true { 0 } else { 1 };
    let finished = finished.code(expected);
    let cases = report["cases"].as_array().unwrap().iter().map(|case| {
        let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        (text("case"), (text("status"), text("reason")))
    });
    let cases: BTreeMap<_, _> = cases.collect();
    assert!(!cases.is_empty(), "{}", finished.told());
    cases
}

#[track_caller]
fn is_found(cases: &BTreeMap<String, (String, String)>, case: &str, status: &str, reason: &str) {
    let (found, why) = cases.get(case).unwrap_or_else(|| panic!("no `{case}`: {cases:#?}"));
    assert_eq!(found, status, "{case}: {cases:#?}");
    assert!(why.contains(reason), "{case}, no `{reason}`: {cases:#?}");
}

#[track_caller]
fn all_pass_but(cases: &BTreeMap<String, (String, String)>, skipped: &[&str]) {
    assert_eq!(cases.len(), 26, "{cases:#?}");
    for (case, (status, reason)) in cases {
        let expected = if skipped.contains(&case.as_str()) { "skip" } else { "pass" };
        assert_eq!(status, expected, "{case}: {reason}");
    }
}

/// What means nothing for a library that asks nothing.
const ASKS_NOTHING: [&str; 5] = [
    "launch.nobody_answers",
    "launch.no",
    "launch.odd_answers",
    "launch.unreachable_host",
    "launch.foreign_host",
];

#[test]
fn a_good_plugin_in_rust_passes_every_case() {
    let home = Home::new();
    let library = programs().plugin("manager_local");
    let cases = cases(&home, library, &["--launch", "manager://localhost"]);
    all_pass_but(&cases, &ASKS_NOTHING);
    is_found(&cases, "launch.plain", "pass", "it stays for as long as the connection lasts");
}

#[test]
fn a_good_plugin_in_c_passes_every_case() {
    let home = Home::new();
    let library = c_template(&home);
    let distant = programs().distant.display().to_string();
    let cases = cases(&home, &library, &["--launch", "program://here", "--distant", &distant]);
    all_pass_but(&cases, &[&ASKS_NOTHING[..], &["load.panic"]].concat());
    is_found(&cases, "load.panic", "skip", "it is not built by rustc");
}

fn renamed(home: &Home, file: &Path, name: &str) -> PathBuf {
    let renamed = home.path(name);
    fs::rename(file, &renamed).unwrap();
    renamed
}

#[test]
fn without_a_destination_the_launches_are_skipped_and_said_to_be() {
    let home = Home::new();
    let cases = cases(&home, programs().plugin("manager_local"), &[]);
    is_found(&cases, "load.hello", "pass", "manager-local");
    is_found(&cases, "launch.plain", "skip", "no destination was given that launches");
    assert!(cases.values().all(|(status, _)| status != "fail"));
}

#[test]
fn what_a_library_does_while_it_is_loaded_is_found() {
    let home = Home::new();
    let check = |variant: &str, case: &str, status: &str, reason: &str| {
        let library = c_plugin(&home, "restless.c", variant);
        let library = renamed(&home, &library, "libdistant_plugin_restless.so");
        is_found(&cases(&home, &library, &["--only", "load."]), case, status, reason);
    };
    check("NONE", "load.quiet", "pass", "");
    check("NONE", "load.exports", "pass", "");
    check("THREAD", "load.quiet", "fail", "it starts 1 threads");
    check("DESCRIPTOR", "load.quiet", "fail", "it opens `/etc/passwd` and keeps it");
    check("OUTPUT", "load.quiet", "fail", "it prints 16 bytes");
    check("NONE", "load.network", "pass", "");
    check("NETWORK", "load.network", "fail", "it uses the network while it says what it is");
    check("SLOW", "load.time", "fail", " ms, more than 100");
    check("CHANGES", "load.table", "fail", "another call returns another table");
    check("EXPORTS", "load.exports", "pass", "it also exports 1 names, as `inflate`");

    let check = |variant: &str, case: &str, status: &str, reason: &str| {
        let library = c_plugin(&home, "table.c", variant);
        is_found(&cases(&home, &library, &["--only", "load."]), case, status, reason);
    };
    check("NO_SYMBOL", "load.exports", "fail", "it has no symbol `distant_plugin_v1`");
    check("NO_SYMBOL", "load.hello", "fail", "it has no symbol `distant_plugin_v1`");
    check("MAJOR", "load.hello", "fail", "it has plugin ABI 2.1, this program has 1.1");
    check("TRUNCATED", "load.table", "fail", "its table has 40 bytes");
    check("CONSTRUCTOR_CRASH", "load.hello", "crash", "signal 11");
    check("CONSTRUCTOR_CRASH", "load.table", "crash", "signal 11");
    check("NONE", "load.manifest", "fail", "it calls itself `c`, but its file is named for `none`");
}

/// How long a launch may take whose case ends like this: what is not late by its nature may be slow
/// where the machine is.
fn seconds(status: &str) -> &'static str {
    if status == "timeout" {
        "3"
    } else {
        "60"
    }
}

/// A launch with the plugin that misbehaves on request: it offers a server that the test has.
fn faulty(server: &Server, options: &str) -> [String; 4] {
    let (address, key) = (server.address, &server.key);
    let options = format!("offer=\"{address}\",key={key},proof=true,{options}");
    ["--launch", "faulty://x", "--options", &options].map(str::to_owned)
}

#[test]
fn each_fault_of_a_library_is_found_by_its_case() {
    let home = Home::new();
    let server = Server::start(&home);
    let check = |options: &str, more: &[&str], case: &str, status: &str, reason: &str| {
        let arguments = faulty(&server, options);
        let mut arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["--timeout", seconds(status), "--only", case]);
        arguments.extend(more);
        let cases = cases(&home, programs().plugin("faulty"), &arguments);
        is_found(&cases, case, status, reason);
    };
    check("mode=ok", &[], "launch.plain", "pass", "");
    check("mode=panic", &[], "launch.plain", "fail", "the plugin panicked: plugin bug 42");
    check("mode=segfault", &[], "launch.plain", "crash", "signal 11");
    check("mode=exit", &[], "launch.plain", "crash", "status 0 before its result");
    check("mode=abort", &[], "launch.parallel", "crash", "signal 6");
    check("mode=hang", &[], "launch.plain", "timeout", "no end within 3 s");
    check("mode=scribble", &[], "launch.plain", "fail", "that is no message: `scribble`");
    check("mode=silent_failure", &[], "launch.plain", "fail", "without saying why");
    check("mode=error", &[], "launch.plain", "fail", "it fails: cannot reach `nowhere`");

    // It works, but does not let go.
    check("mode=hang,when=asked", &[], "launch.cancel", "timeout", "no end within 3 s");
    // The server is the test's own, so the launch that should have ended it is at fault.
    check("mode=wait,when=connected", &[], "launch.plain", "fail", "a server that still answers");
    check("mode=fork", &[], "launch.unreachable_server", "fail", "leaves behind: sleep 300");
    check("mode=hang,when=connected", &[], "launch.plain", "timeout", "it did not end within 2 s");

    // It asks, and shows what it hears.
    let asks = "ask=\"Your word? \",expect=mellon";
    let answer = ["--answer", "your word=mellon"];
    check(asks, &answer, "launch.plain", "pass", "");
    check(asks, &answer, "launch.nobody_answers", "pass", "");
    check(asks, &answer, "launch.odd_answers", "pass", "");
    check(asks, &answer, "launch.secrets", "pass", "");
    check(asks, &[], "launch.plain", "fail", "it asks `Your word?`, which no answer was given for");
    check("verify=\"Sure?\"", &[], "launch.no", "pass", "");
    let shown = format!("{asks},notice=\"you said mellon\"");
    check(&shown, &answer, "launch.secrets", "fail", "there is an answer in its `notice`");
    let logged = format!("log={}", server.key);
    check(&logged, &[], "launch.secrets", "fail", "there is the key of its server in its `log`");

    // Nothing is offered, or nothing is there.
    let nothing = ["--launch", "faulty://x", "--only", "launch.plain"];
    let found = cases(&home, programs().plugin("faulty"), &nothing);
    is_found(&found, "launch.plain", "fail", "it is done without an offer");
    let options = format!("offer=\"127.0.0.1:1\",key={}", server.key);
    let nowhere = ["--launch", "faulty://x", "--options", &options, "--only", "launch.plain"];
    let found = cases(&home, programs().plugin("faulty"), &nowhere);
    is_found(&found, "launch.plain", "fail", "nothing answers at `127.0.0.1:1`");
}

#[test]
fn a_library_that_looks_behind_the_end_of_its_host_s_table_is_found() {
    let home = Home::new();
    let check = |variant: &str, case: &str, status: &str, reason: &str| {
        let library = c_plugin(&home, "restless.c", variant);
        let arguments = ["--launch", "restless://x", "--only", case];
        is_found(&cases(&home, &library, &arguments), case, status, reason);
    };
    // It offers nothing, which is the first thing that is said; a crash is said before that.
    check("NONE", "launch.newer_host", "fail", "it is done without an offer");
    check("LOOKS_BEHIND", "launch.newer_host", "crash", "signal 11");
    check("LOOKS_BEHIND", "launch.older_host", "fail", "it is done without an offer");
    check("LOGS_ALL", "launch.older_host", "fail", "it reads the log level behind the end");
}

/// A program that offers a server which somebody else has started.
const PROGRAM: &str = r#"#!/bin/sh
say() { printf '%s\n' "$1"; }
say '{"type":"hello","protocol":[1,1],"manifest":{"name":"odd","version":"1","schemes":["odd"]}}'
while read -r line; do
    case $line in
        '{"type":"launch"'*) say '{"type":"offer","id":1,"host":"127.0.0.1","port":PORT,"key":"KEY"}' ;;
        '{"type":"verdict","id":1,"verdict":"connected"'*) say '{"type":"done"}'; exit ;;
        '{"type":"verdict","id":1,"verdict":"unreachable"'* | '{"type":"verdict","id":1,"verdict":"refused"'*)
            say '{"type":"error","kind":"port_unreachable","message":"there is no way"}'; exit ;;
        '{"type":"cancel"'*) exit ;;
    esac
done
"#;

#[test]
fn each_fault_of_a_program_is_found_by_its_case() {
    let home = Home::new();
    let server = Server::start(&home);
    let good = PROGRAM.replace("PORT", &server.address.port().to_string());
    let good = good.replace("KEY", &server.key);
    let check = |text: &str, case: &str, status: &str, reason: &str| {
        let program = home.script("distant-plugin-odd", text);
        let arguments = ["--launch", "odd://x", "--timeout", seconds(status), "--only", case];
        is_found(&cases(&home, &program, &arguments), case, status, reason);
    };
    for case in ["load.quiet", "load.hang_up", "launch.plain", "launch.nonsense", "launch.slow"] {
        check(&good, case, "pass", "");
    }
    check(&good, "load.exports", "skip", "it is a program");
    check(&good, "load.panic", "skip", "it is a program");
    // Somebody else's server stays, which is what the case is there for.
    check(&good, "launch.cancel", "fail", "a server that still answers on 127.0.0.1:");

    let after = |text: &str, more: &str| good.replacen(text, &format!("{text}\n{more}"), 1);
    let noisy = after("#!/bin/sh", "echo starting >&2");
    check(&noisy, "load.quiet", "fail", "it prints to standard error: starting");
    let chatty = good.replacen("while", "say '{\"type\":\"notice\",\"text\":\"hi\"}'\nwhile", 1);
    check(&chatty, "load.quiet", "fail", "it says more than its hello");
    let deaf =
        good.replacen("while read", "trap '' TERM\nwhile :; do sleep 1; done\nwhile read", 1);
    check(&deaf, "load.hang_up", "timeout", "it goes on running when its input has ended");
    check(&good.replace("[1,1]", "[2,3]"), "load.hello", "fail", "it speaks protocol 2 to 3");
    check(&good.replace("\"odd\",\"v", "\"even\",\"v"), "load.manifest", "fail", "it calls itself");
    let late = good.replacen(
        "say '{\"type\":\"done\"}'; exit",
        "say '{\"type\":\"done\"}'; say '{\"type\":\"notice\",\"text\":\"ps\"}'; exit",
        1,
    );
    check(&late, "launch.plain", "fail", "after its result it says more");
    // One that never stops talking: soon it has said too much, or its time is over.
    let offers = "say '{\"type\":\"offer\"";
    let endless = |lines: &str| good.replacen(offers, &format!("{lines}; {offers}"), 1);
    let long = format!("exec yes '{{\"type\":\"log\",\"text\":\"{}\"}}'", "x".repeat(100_000));
    check(&endless(&long), "launch.plain", "fail", "it says more than 16 MiB");
    // A process for each line keeps it from saying too much in time.
    let short = "while /bin/true; do say '{\"type\":\"log\",\"text\":\"\"}'; done";
    check(&endless(short), "launch.plain", "timeout", "the launch came to no end within 3 s");
    let stays = good.replacen(
        "say '{\"type\":\"done\"}'; exit",
        "say '{\"type\":\"done\"}'; exec sleep 9",
        1,
    );
    check(&stays, "launch.plain", "timeout", "it gave its result, and went on running for 2 s");
    // Anything that is a verdict is taken for its own.
    let hasty = good.replacen(
        "'{\"type\":\"verdict\",\"id\":1,\"verdict\":\"connected\"'*",
        "*'\"connected\"'*",
        1,
    );
    let hasty = hasty.replacen("'{\"type\":\"cancel\"'*", "*cancel*", 1);
    check(&hasty, "launch.nonsense", "crash", "status 0 before its result");
    let wrong = good.replace("port_unreachable", "other");
    check(&wrong, "launch.refused_server", "fail", "leaves behind");
}

#[test]
fn a_case_can_be_run_in_the_process_of_a_debugger() {
    let home = Home::new();
    let library = programs().plugin("manager_local");
    let test = home.ours(["plugin", "test", "--launch", "manager://x", "--only", "launch.plain"]);
    let running = test.arg("--in-process").arg(library).start();
    let line = running.line();
    assert_eq!(line, "pass    launch.plain: it stays for as long as the connection lasts");
    // How the process ends that a debugger looks at is the worker's affair.
    let finished = running.finish();
    assert!(finished.stdout.contains("1 passed, 0 failed"), "{}", finished.told());
}

#[test]
fn the_cases_are_listed_with_what_each_shows() {
    let home = Home::new();
    let listed = home.ours(["plugin", "test", "--list"]).run().success().stdout;
    assert!(listed.contains("launch.cancel              cancelled anywhere, "), "{listed}");
    let none = home.ours(["plugin", "test", "--only", "nonesuch"]);
    let none = none.arg(programs().plugin("manager_local")).run().code(2);
    assert!(none.stderr.contains("no case has that in its name"), "{}", none.told());
}
