//! What `plugin doctor` remembers: launches that a plugin has ended badly, whoever saw it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::support::{Home, Manager};

fn examined(home: &Home, name: &str) -> (Value, String) {
    let json = home.ours(["plugin", "doctor", name, "--json"]).run().success();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let text = home.ours(["plugin", "doctor", name]).run().success().stdout;
    (json["plugins"][0].clone(), text)
}

/// A launch through the plugin that misbehaves on request, which fails.
fn fails(home: &Home, mode: &str) {
    // What comes to an end by itself has the usual time for it.
    let limit = if mode == "hang" { ",timeout=500" } else { "" };
    let options = format!("mode={mode}{limit}");
    home.ours(["launch", "faulty://x", "--options", &options]).run().code(1);
}

#[test]
fn the_doctor_tells_which_launches_a_plugin_has_ended_badly_of_late() {
    let home = Home::new();
    home.write("config/distant/config.toml", "[manager.limits]\nplugin = 1\n");
    let (before, text) = examined(&home, "faulty");
    assert_eq!(before["failures"].as_array().map(Vec::len), Some(0), "{before}");
    assert!(!text.contains("launches:"), "{text}");

    // Two managers, each with a plugin that ends badly in its own way; neither is there any more
    // when somebody asks.
    let first = Manager::start(&home);
    fails(&home, "segfault");
    // How a good plugin fails is no illness, and neither is a launch that nobody wants any more.
    fails(&home, "error");
    fails(&home, "bad_json");
    first.stop();
    let second = Manager::start(&home);
    fails(&home, "hang");
    fails(&home, "panic");
    fails(&home, "abort");
    second.kill();

    let (after, text) = examined(&home, "faulty");
    let failures = after["failures"].as_array().unwrap();
    let seen: Vec<_> = failures.iter().map(|it| it["how"].as_str().unwrap()).collect();
    assert_eq!(seen, ["crashed", "failed", "timed_out", "failed", "crashed"], "{after}");
    assert_eq!(failures[1]["message"], "the plugin panicked: plugin bug 42");
    let message = failures[2]["message"].as_str().unwrap();
    assert!(message.starts_with("plugin `faulty` came to no end within "), "{after}");
    let message = failures[4]["message"].as_str().unwrap();
    assert!(message.ends_with("was killed by signal 11 (SIGSEGV)"), "{after}");
    assert!(failures.iter().all(|it| it["at"].as_u64() > Some(1_700_000_000)), "{after}");
    let said = "note  launches: 5 launches failed because of it within 7 days, the last one ";
    assert!(text.contains(said), "{text}");
    assert!(text.contains(" ago: plugin `faulty` was killed by signal 6 (SIGABRT)"), "{text}");
    // It is nobody's business but the user's own.
    let file = home.path("cache/distant/plugin-failures.jsonl");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // Of another plugin nobody knows anything bad.
    let (other, text) = examined(&home, "manager-local");
    assert_eq!(other["failures"].as_array().map(Vec::len), Some(0), "{other}");
    assert!(!text.contains("launches:"), "{text}");
}

#[test]
fn what_a_plugin_said_last_is_told_without_what_plays_tricks_on_a_terminal() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let text = "#!/bin/sh\n\
                echo '{\"type\":\"hello\",\"protocol\":[1,1],\"manifest\":{\"name\":\"odd\",\"schemes\":[\"odd\"]}}'\n\
                read hello && read launch || exit\n\
                printf 'the \\033[31mdisk is full\\n' >&2\nexit 3\n";
    home.ours(["plugin", "add"]).arg(home.script("distant-plugin-odd", text)).run().success();
    home.ours(["launch", "odd://x"]).run().code(1);
    let (odd, text) = examined(&home, "odd");
    assert_eq!(odd["failures"][0]["last_words"], "the  [31mdisk is full");
    let said =
        "plugin `odd` exited with status 3 before answering; it last said: `the  [31mdisk is full`";
    assert!(text.contains(said), "{text}");
    // Another file in its place is not to blame for that.
    let place = home.path("data/distant/plugins/distant-plugin-odd");
    home.program("touch", ["-d", "1 minute"]).arg(place).run().success();
    assert!(examined(&home, "odd").1.contains("; the file was changed since\n"));
    // Asking it what it is is no launch, and whoever looks does not make it look worse.
    let crashes = "#!/bin/sh\necho no >&2\nexit 4\n";
    home.script("data/distant/plugins/distant-plugin-even", crashes);
    home.ours(["plugin", "list"]).run().success();
    let ill = home.ours(["plugin", "doctor", "even", "--json"]).run().code(1);
    let ill: Value = serde_json::from_str(&ill.stdout).unwrap();
    assert_eq!(ill["plugins"][0]["failures"].as_array().map(Vec::len), Some(0), "{ill}");
    drop(manager);
}
