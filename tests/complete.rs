//! Completions, in the real shells, as keys are pressed.

use serde_json::Value;

use crate::support::{programs, Home, Terminal};

/// A home where `distant` is in the PATH.
fn home() -> Home {
    let home = Home::new();
    std::os::unix::fs::symlink(&programs().distant, home.path("bin/distant")).unwrap();
    home
}

/// Adds a plugin, with an option of two words.
fn add_pod(home: &Home) {
    let manifest = r#"{"name":"pod","schemes":["pod"],"options":[{"name":"image","type":{"enum":["small","large"]},"help":"which one"}]}"#;
    let text = format!("#!/bin/sh\necho '{{\"type\":\"hello\",\"protocol\":[1,1],\"manifest\":{manifest}}}'\nread x\n");
    let plugin = home.script("distant-plugin-pod", &text);
    home.ours(["plugin", "add"]).arg(plugin).run().success();
}

/// A shell that shows `> ` when it waits, with its completions of distant.
fn shell(home: &Home, words: &[&str], setup: &str) -> Terminal {
    let mut terminal = home.program(words[0], &words[1..]).env("PS1", "> ").on_terminal();
    terminal.type_keys(&format!("stty cols 200; PS1='> '; {setup}; echo re''ady\n"));
    terminal.expect("ready\r\n");
    terminal.expect("> ");
    terminal
}

/// Types the beginning of a line and TAB, and waits until the line has become this; then gives it
/// up.
#[track_caller]
fn becomes(terminal: &mut Terminal, typed: &str, line: &str) {
    terminal.type_keys(&format!("{typed}\t"));
    terminal.expect(line);
    forget(terminal);
}

/// Throws the line away that has been typed, and waits for the next prompt.
fn forget(terminal: &mut Terminal) {
    terminal.type_keys("\x15echo re''ady\n");
    terminal.expect("ready\r\n");
    terminal.expect("> ");
}

/// What every shell does alike.
fn lines(terminal: &mut Terminal) {
    becomes(terminal, "distant lau", "distant launch ");
    becomes(terminal, "distant launch man", "distant launch manager://");
    becomes(terminal, "distant launch s", "distant launch ssh://");
    becomes(terminal, "distant launch pod://x --options im", "--options image=");
    becomes(terminal, "distant launch pod://x --options image=s", "--options image=small");
    becomes(terminal, "distant plugin remove ", "remove pod ");
    becomes(terminal, "distant plugin doctor man", "doctor manager-local ");
    becomes(terminal, "distant launch ssh://box --opt", "distant launch ssh://box --options ");
    becomes(terminal, "distant launch ssh://box --options back", "--options backend=");
    becomes(terminal, "distant launch ssh://box --options backend=lib", "backend=libssh");
    becomes(terminal, "distant launch ssh://box --options verbose=true,prox", ",proxy_command=");
    becomes(terminal, "distant launch ssh://box --options ssh.tunnel=al", "ssh.tunnel=always");
    becomes(terminal, "distant launch --options time", "--options timeout=");
    becomes(terminal, "distant plugin info manager-", "info manager-local ");
    becomes(terminal, "distant plugin use ssh=lib", "use ssh=libssh ");
    becomes(terminal, "distant plugin new x --lang py", "--lang python ");
    becomes(terminal, "distant plugin add ./some-", "./some-where/");
    becomes(terminal, "distant launch --format j", "--format json ");
    becomes(terminal, "distant completions zs", "completions zsh ");
}

/// All options of a scheme, and all words of one, with nothing typed of them yet.
fn lists(terminal: &mut Terminal) {
    terminal.type_keys("distant launch ssh://box --options \t\t");
    terminal.expect("backend=");
    terminal.expect("tunnel=");
    forget(terminal);
    terminal.type_keys("distant launch ssh://box --options tunnel=\t\t");
    terminal.expect("always");
    terminal.expect("auto");
    terminal.expect("never");
    forget(terminal);
}

#[test]
fn bash_completes_commands_schemes_plugins_and_options() {
    let home = home();
    home.write("some-where/libdistant_plugin_x.so", "");
    add_pod(&home);
    let setup = "eval \"$(distant completions bash)\"; bind 'set enable-bracketed-paste off'";
    let mut terminal = shell(&home, &["bash", "--norc", "--noprofile", "-i"], setup);
    lines(&mut terminal);
    lists(&mut terminal);
    // Two that begin alike are listed.
    terminal.type_keys("distant launch ssh://box --options identit\t\t");
    terminal.expect("identities_only=");
    terminal.expect("identity_files=");
    forget(&mut terminal);
    // And in quotes, where the shell sees one word.
    becomes(
        &mut terminal,
        "distant launch ssh://box --options 'verbose=true,back",
        "true,backend=",
    );
    terminal.type_keys("exit\n");
    terminal.finish();
}

#[test]
fn zsh_completes_commands_schemes_plugins_and_options() {
    let home = home();
    home.write("some-where/libdistant_plugin_x.so", "");
    add_pod(&home);
    let setup = "unset zle_bracketed_paste; unsetopt prompt_sp; zle_highlight=(none); autoload -U compinit; compinit -D -u; \
                 eval \"$(distant completions zsh)\"";
    let mut terminal = shell(&home, &["zsh", "-f", "-i"], setup);
    lines(&mut terminal);
    lists(&mut terminal);
    // Those that begin alike are listed with what they mean.
    terminal.type_keys("distant launch ssh://box --options identit\t\t");
    terminal.expect("identities_only=  -- ");
    terminal.expect("identity_files=  -- ");
    forget(&mut terminal);
    terminal.type_keys("exit\n");
    terminal.finish();
}

/// What fish would offer for a line, each without its description.
fn fish(home: &Home, line: &str) -> Vec<String> {
    let script = format!("distant completions fish | source; complete -C \"{line}\"");
    let offered = home.program("fish", ["--no-config", "-c", &script]).run().success().stdout;
    let values = offered.lines().map(|it| it.split('\t').next().unwrap().to_owned());
    values.collect()
}

#[test]
fn fish_completes_commands_schemes_plugins_and_options() {
    let home = home();
    home.write("some-where/libdistant_plugin_x.so", "");
    for (line, expected) in [
        ("distant lau", &["launch"][..]),
        ("distant launch man", &["manager://"]),
        ("distant launch s", &["ssh://"]),
        (
            "distant launch ssh://box --options tunnel=",
            &["tunnel=always", "tunnel=auto", "tunnel=never"],
        ),
        ("distant plugin use ssh=", &["ssh=libssh", "ssh=openssh", "ssh=ssh2"]),
        ("distant plugin remove ", &[]),
        ("distant launch ssh://box --opt", &["--options"]),
        ("distant launch ssh://box --options back", &["backend="]),
        ("distant launch ssh://box --options backend=lib", &["backend=libssh"]),
        ("distant launch ssh://box --options identit", &["identities_only=", "identity_files="]),
        ("distant launch ssh://box --options verbose=t", &["verbose=true"]),
        ("distant launch ssh://box --options a=1,ssh.back", &["a=1,ssh.backend="]),
        ("distant launch manager://x --options back", &["backend="]),
        ("distant launch manager://x --options identit", &[]),
        ("distant plugin info manager-", &["manager-local"]),
        ("distant plugin use ssh=lib", &["ssh=libssh"]),
        ("distant plugin add ./some-", &["./some-where/"]),
        ("distant launch --format=j", &["--format=json"]),
        ("distant launch ssh://box --distant-upload ne", &["never"]),
        ("distant launch ssh://box --distant-upload ./some-", &["./some-where/"]),
        ("distant launch ssh://box --options distant.upload=au", &["distant.upload=auto"]),
    ] {
        let mut offered = fish(&home, line);
        offered.sort();
        assert_eq!(offered, expected, "{line}");
    }
    let all = fish(&home, "distant launch ssh://box --options ");
    for option in ["backend=", "distant.bin=", "identity_files=", "timeout=", "tunnel="] {
        assert!(all.iter().any(|it| it == option), "no {option}: {all:?}");
    }
    // The descriptions are those of the plugin.
    let script = "distant completions fish | source; complete -C 'distant launch --options verb'";
    let offered = home.program("fish", ["--no-config", "-c", script]).run().success().stdout;
    assert!(offered.starts_with("verbose=\t") && offered.len() > 15, "{offered}");
}

#[test]
fn a_plugin_that_was_just_added_is_completed() {
    let home = home();
    add_pod(&home);
    assert_eq!(fish(&home, "distant launch po"), ["pod://"]);
    assert_eq!(fish(&home, "distant launch pod://x --options im"), ["image="]);
    assert_eq!(fish(&home, "distant launch pod://x --options image=l"), ["image=large"]);
    let both = fish(&home, "distant launch pod://x --options image=");
    assert_eq!(both, ["image=large", "image=small"]);
    assert_eq!(fish(&home, "distant plugin info po"), ["pod"]);
    assert_eq!(fish(&home, "distant plugin doctor po"), ["pod"]);
    assert_eq!(fish(&home, "distant plugin use pod="), ["pod=pod"]);
    // Only what was added can be removed.
    assert_eq!(fish(&home, "distant plugin remove "), ["pod"]);
}

#[test]
fn the_options_of_a_scheme_are_shown_as_a_table() {
    let home = home();
    let shown = home.ours(["launch", "--help-options", "ssh"]).run().success().stdout;
    let columns = shown.lines().next().unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(columns, ["OPTION", "TYPE", "DEFAULT", "MEANING"]);
    for (name, facts) in [
        ("verbose", &["`true` or `false`", " false "][..]),
        ("timeout", &["a whole number of milliseconds", " 15000 "]),
        ("distant.bin", &["text", " - "]),
    ] {
        let line = shown.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        assert!(facts.iter().all(|fact| line.contains(fact)), "{line}");
    }
    let json = ["launch", "--help-options", "SSH://", "--options", "backend=libssh", "-f", "json"];
    let shown: Value = serde_json::from_str(&home.ours(json).run().success().stdout).unwrap();
    assert_eq!((&shown["scheme"], &shown["plugin"]), (&"ssh".into(), &"libssh".into()));
    let names = shown["options"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap());
    assert!(names.clone().any(|it| it == "tunnel") && names.clone().any(|it| it == "distant.args"));

    let unknown = home.ours(["launch", "--help-options", "shs"]).run().code(1);
    assert!(unknown.stderr.contains("did you mean `ssh`?"), "{}", unknown.told());
    home.ours(["launch", "--help-options", "ssh", "ssh://box"]).run().code(2);
    home.ours(["launch"]).run().code(2);
}
