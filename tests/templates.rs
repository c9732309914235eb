//! What `distant plugin new` writes, from there to a launch: it builds, passes its own tests, is
//! added, and launches, in each language.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    copy_executable, other_builds, programs, repository, variable, Home, Manager, PATIENCE,
};

/// A home where `distant` is in the PATH.
fn home() -> Home {
    let home = Home::new();
    std::os::unix::fs::symlink(&programs().distant, home.path("bin/distant")).unwrap();
    home
}

/// Writes a project.
fn project(home: &Home, name: &str, language: &str) -> PathBuf {
    let new = home.ours(["plugin", "new", name, "--lang", language]);
    let made = new.run().success().stdout;
    let folder = home.path(format!("distant-plugin-{name}"));
    assert!(made.starts_with(&format!("made {}; next, in there:\n", folder.display())), "{made}");
    assert!(made.ends_with(&format!("\n  distant launch {name}://here\n")), "{made}");
    folder
}

/// Adds the plugin and launches with it, as the last two lines of `plugin new` say.
fn add_and_launch(home: &Home, file: &Path, name: &str) {
    let manager = Manager::start(home);
    home.ours(["plugin", "add"]).arg(file).run().success();
    let destination = format!("{name}://here");
    let id = home.ours(["launch", &destination]).run().id().to_string();
    let spawn = home.ours(["spawn", "--connection", &id, "--", "echo", "hello from there"]);
    assert_eq!(spawn.run().success().stdout, "hello from there\n");
    home.ours(["manager", "kill", &id]).run().success();
    home.ours(["plugin", "remove", name]).run().success();
    manager.assert_no_offspring();
}

/// Runs `make` there, and returns what it prints.
fn make(home: &Home, folder: &Path, goals: &[&str]) -> String {
    let make = home.program("make", ["-C"]).arg(folder);
    goals.iter().fold(make, |make, goal| make.arg(goal)).run_within(4 * PATIENCE).success().stdout
}

#[test]
fn a_new_plugin_in_sh_passes_its_tests_and_launches() {
    let home = home();
    let folder = project(&home, "hello", "sh");
    let said = make(&home, &folder, &["test"]);
    assert!(said.contains("pass    launch.cancel: at "), "{said}");
    assert!(said.contains(" 0 failed"), "{said}");
    add_and_launch(&home, &folder.join("distant-plugin-hello"), "hello");
}

#[test]
fn a_new_plugin_in_python_passes_its_tests_and_launches() {
    let home = home();
    let folder = project(&home, "hello-py", "python");
    let said = make(&home, &folder, &["test"]);
    assert!(said.contains("pass    launch.cancel: at ") && said.contains(" 0 failed"), "{said}");
    add_and_launch(&home, &folder.join("distant-plugin-hello-py"), "hello-py");
}

#[test]
fn a_new_plugin_in_c_passes_its_tests_under_sanitizers_and_launches() {
    let home = home();
    let folder = project(&home, "hello-c", "c");
    let said = make(&home, &folder, &["all", "test"]);
    for case in ["table", "launches", "cancelled", "older_host", "newer_host"] {
        assert!(said.contains(&format!("pass    {case}\n")), "no {case}: {said}");
    }
    assert!(said.contains("11 cases, 0 failed\n"), "{said}");
    assert!(said.contains("pass    launch.newer_host\n") && said.contains(" 0 failed"), "{said}");
    add_and_launch(&home, &folder.join("libdistant_plugin_hello_c.so"), "hello-c");
}

#[test]
fn the_tests_of_the_c_template_find_what_is_wrong() {
    let home = home();
    let folder = project(&home, "bad", "c");
    let good = fs::read_to_string(folder.join("plugin.c")).unwrap();
    let fails = |from: &str, to: &str, said: &str| {
        assert!(good.contains(from), "{from}");
        fs::write(folder.join("plugin.c"), good.replacen(from, to, 1)).unwrap();
        let make = home.program("make", ["-C"]).arg(&folder).arg("test-sanitized");
        let made = make.run_within(2 * PATIENCE).code(2);
        let all = format!("{}{}", made.stdout, made.stderr);
        assert!(all.contains(said), "no `{said}`: {}", made.told());
    };
    // A server that is left behind, memory that is, and a read behind the end of the request.
    let end = "    kill(server, SIGKILL);\n    \
               while (waitpid(server, NULL, 0) < 0 && errno == EINTR)\n        ;\n    close";
    fails(end, "    close", "expected: nothing is left of the server");
    fails("        free(words[--count]);", "        count--;", "LeakSanitizer");
    let whole = "whole = {request.ptr, request.ptr + request.len};";
    let beyond = "whole = {request.ptr + request.len, request.ptr + request.len + 64};";
    fails(whole, beyond, "AddressSanitizer");
}

/// Cargo with a target folder that is kept from run to run, and the versions of the workspace.
fn cargo(folder: &Path, words: &[&str]) -> String {
    let target = other_builds();
    fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    let cargo = variable("CARGO").unwrap_or_else(|| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(words).arg("--target-dir").arg(target).current_dir(folder);
    // Everything that it needs is here, as the workspace needs it too.
    command.env("CARGO_NET_OFFLINE", "true").env_remove("RUSTFLAGS");
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn a_new_plugin_in_rust_passes_its_tests_and_launches() {
    let home = home();
    let folder = project(&home, "hello-rs", "rust");
    let said = cargo(&folder, &["test"]);
    assert!(said.contains("pass    launch.cancel: at ") && said.contains(" 0 failed"), "{said}");
    assert!(said.contains("pass    load.exports\n"), "{said}");
    cargo(&folder, &["build"]);
    let library = other_builds().join("debug/libdistant_plugin_hello_rs.so");
    add_and_launch(&home, &library, "hello-rs");
}

#[test]
fn what_cannot_be_made_is_said() {
    let home = home();
    project(&home, "hello", "sh");
    let again = home.ours(["plugin", "new", "hello", "--lang", "c"]).run().code(1);
    assert!(again.stderr.contains("there is something in `"), "{}", again.told());
    home.ours(["plugin", "new", "Hello", "--lang", "c"]).run().code(2);
    home.ours(["plugin", "new", "hello", "--lang", "cobol"]).run().code(2);
    let api = ["plugin", "new", "other", "--lang", "rust", "--api", "/tmp"];
    let refused = home.ours(api).run().code(1);
    assert!(refused.stderr.contains("`/tmp` is no clone of distant"), "{}", refused.told());
    // A program that is far from where it was built needs to be told.
    let alone = home.path("tmp/distant");
    copy_executable(&programs().distant, &alone);
    let refused = home.program(&alone, ["plugin", "new", "other", "--lang", "rust"]).run().code(1);
    assert!(refused.stderr.contains("name the clone with `--api`"), "{}", refused.told());
    let elsewhere = ["plugin", "new", "other", "--lang", "python", "--dir", "x/y", "--json"];
    let made = home.program(&alone, elsewhere).run().success().stdout;
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert!(Path::new(made["files"][0].as_str().unwrap()).is_file(), "{made}");
    assert_eq!(made["next"][2], "distant launch other://here");
}
