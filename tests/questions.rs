//! Questions where nobody is there to answer: what the plugin makes of that is what is shown.

use serde_json::Value;

use crate::support::{Finished, Home, Invocation, Manager, Server, HELLO};

/// A plugin that asks, and says what it means if nobody answers.
fn asks(home: &Home, question: &str, kind: &str) {
    let text = format!(
        r#"#!/bin/sh
say() {{ printf '%s\n' "$1"; }}
say '{{"type":"hello","protocol":[1,1],"manifest":{{"name":"asks","schemes":["asks"]}}}}'
read -r hello && read -r launch || exit
say '{{"type":"ask","id":1,{question}}}'
read -r answer
case $answer in
*'"cancelled":true'*) say '{{"type":"error","kind":"{kind}","message":"`box` is not known","hint":"compare it"}}';;
*) say '{{"type":"error","kind":"other","message":"answered"}}';;
esac
"#
    );
    home.script("data/distant/plugins/distant-plugin-asks", &text);
    for folder in ["data", "data/distant", "data/distant/plugins"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(home.path(folder), mode).unwrap();
    }
}

/// In a session without a terminal.
fn alone(home: &Home, args: &[&str]) -> Invocation {
    let ours = &crate::support::programs().distant;
    home.program("setsid", ["--wait".as_ref(), ours.as_os_str()]).args(args)
}

fn last_line(finished: &Finished) -> Value {
    serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn what_a_plugin_says_where_nobody_answers_is_shown_in_both_formats() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let verification = r#""verification":{"kind":"host","text":"trust it?"}"#;
    let challenge = r#""challenge":{"questions":[{"text":"Password: "}]}"#;
    for (question, kind) in [(verification, "host_key"), (challenge, "authentication")] {
        asks(&home, question, kind);
        let shown = alone(&home, &["launch", "asks://box"]).run().code(1);
        assert!(shown.stderr.contains("error: `box` is not known\n"), "{}", shown.told());
        assert!(shown.stderr.ends_with("hint: compare it\n"), "{}", shown.told());
        assert_eq!(shown.stdout, "");

        let json =
            alone(&home, &["launch", "asks://box", "--format", "json"]).input(format!("{HELLO}\n"));
        let shown = json.run().code(1);
        let error = last_line(&shown);
        assert_eq!((&error["type"], &error["kind"]), (&"error".into(), &kind.into()), "{error}");
        let ended = "standard input ended before the question was answered";
        assert_eq!(error["msg"], format!("`box` is not known: {ended}"));
        assert_eq!(error["hint"], "compare it");
        assert!(shown.stderr.contains("`box` is not known"), "{}", shown.told());
    }
}

#[test]
fn connect_without_a_terminal_says_how_to_give_the_key() {
    let home = Home::new();
    let _manager = Manager::start(&home);
    let server = Server::start(&home);
    let destination = format!("distant://{}", server.address);
    let shown = alone(&home, &["connect", &destination]).run().code(1);
    let hint = "give the key by `--key-file <FILE>`, or on standard input with `--key-from-stdin`";
    assert!(shown.stderr.contains("a question needs a terminal"), "{}", shown.told());
    assert!(shown.stderr.ends_with(&format!("hint: {hint}\n")), "{}", shown.told());

    let json =
        alone(&home, &["connect", &destination, "--format", "json"]).input(format!("{HELLO}\n"));
    let error = last_line(&json.run().code(1));
    assert_eq!((&error["kind"], &error["hint"]), (&"cancelled".into(), &hint.into()), "{error}");
}
