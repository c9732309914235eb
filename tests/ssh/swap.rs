//! One scheme, several plugins, one manager: who serves `ssh://` is changed while it runs.

use std::os::unix::fs::PermissionsExt;

use crate::support::{programs, Home, Manager, Sshd};

/// An executable that leaves the connecting to the system's `ssh`.
const PROGRAM: &str = r#"#!/bin/sh
echo '{"type":"hello","protocol":[1,1],"manifest":{"name":"by-hand","schemes":["ssh"],"runs_commands":true}}'
while read -r line; do
    case $line in
        '{"type":"exec"'*) echo '{"type":"run","id":1,"argv":["ssh","-F","none","-i","IDENTITY","-p","PORT","-o","UserKnownHostsFile=KNOWN","root@127.0.0.1","{command}"],"address":"127.0.0.1"}' ;;
    esac
done
"#;

#[test]
fn the_plugin_of_ssh_is_swapped_without_a_restart() {
    let home = Home::new();
    let manager = Manager::start(&home);
    let pid = manager.pid();
    let sshd = Sshd::start(&home);
    sshd.make_known(&home);
    let identity = sshd.identity();
    let known = home.path(".ssh/known_hosts");
    let text = PROGRAM
        .replace("IDENTITY", &identity)
        .replace("PORT", &sshd.address.port().to_string())
        .replace("KNOWN", known.to_str().unwrap());
    let program = home.script("build/distant-plugin-by-hand", &text);

    let to = format!("ssh://root@{}", sshd.address);
    let distant = programs().distant.display().to_string();
    let key = format!("identity_files=\"{identity}\"");
    // Nobody has to say which one: that is what was chosen last.
    let launch = |options: &str| {
        let arguments = ["launch", &to, "--distant", &distant, "--options", options];
        let id = home.ours(arguments).run().id().to_string();
        let echo = home.ours(["spawn", "--connection", &id, "--", "echo", "hi"]);
        assert_eq!(echo.run().success().stdout, "hi\n");
        home.ours(["manager", "kill", &id]).run().success();
    };
    let chosen = |name: &str| {
        let choice = format!("ssh={name}");
        home.ours(["plugin", "use", &choice]).run().success();
        let shown = home.ours(["launch", "--help-options", "ssh", "-f", "json"]).run().success();
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["plugin"], name);
    };
    launch(&key);
    chosen("libssh");
    launch(&key);
    chosen("openssh");
    launch(&key);
    home.ours(["plugin", "add"]).arg(&program).run().success();
    // Added is not chosen.
    launch(&key);
    chosen("by-hand");
    // It takes no such option, so it is really the other one that is asked now.
    let arguments = ["launch", &to, "--distant", &distant, "--options", &key];
    let refused = home.ours(arguments).run().code(1);
    assert!(refused.stderr.contains("unknown option `identity_files` for plugin `by-hand`"));
    launch("");
    let mode = std::fs::metadata(home.path("data/distant/plugins/distant-plugin-by-hand"));
    assert_eq!(mode.unwrap().permissions().mode() & 0o777, 0o755);
    chosen("ssh2");
    launch(&key);
    chosen("by-hand");
    launch("");
    // And when it is gone, its scheme goes back.
    home.ours(["plugin", "remove", "by-hand"]).run().success();
    launch(&key);
    assert_eq!(manager.pid(), pid);
}
