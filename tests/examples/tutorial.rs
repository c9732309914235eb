//! The programs and commands of `docs/plugins.md`, as somebody would who follows it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{built, conforms, install, kill_worker, over_there, refused};
use crate::support::{copy_executable, programs, repository, variable, Home, Invocation, Manager};

/// The blocks of the guide whose first line ends with `mark`, such as `run` or `file=src/lib.rs`.
fn blocks(mark: &str) -> Vec<String> {
    let guide = fs::read_to_string(repository().join("docs/plugins.md")).unwrap();
    let parts = guide.split("\n```").skip(1).step_by(2);
    let marked = parts.filter_map(|part| part.split_once('\n'));
    let marked = marked.filter(|(first, _)| first.split_once(' ').is_some_and(|it| it.1 == mark));
    marked.map(|(_, text)| format!("{text}\n")).collect()
}

/// The one file of that name in a language.
fn file(language: &str, name: &str) -> String {
    let guide = fs::read_to_string(repository().join("docs/plugins.md")).unwrap();
    let (_, rest) = guide.split_once(&format!("\n```{language} file={name}\n")).unwrap();
    rest.split_once("\n```").unwrap().0.to_owned() + "\n"
}

/// A home that another user can look into, with a `distant` of its own.
fn home() -> Home {
    let home = Home::new();
    fs::set_permissions(home.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    copy_executable(&programs().distant, &home.path("bin/distant"));
    // A person has it in a place where it is found by itself.
    let bin = home.path("bin/distant").display().to_string();
    home.write("config/distant/config.toml", format!("[client.launch]\nbin = \"{bin}\"\n"));
    home
}

fn launch(home: &Home, destination: &str) -> Invocation {
    home.ours(["launch", destination])
}

fn put(home: &Home, name: &str, text: &str) -> PathBuf {
    let script = home.script(&format!("built/{name}"), text);
    install(home, &script);
    script
}

#[test]
fn the_guides_shell_plugin_is_tested_added_and_launches_by_the_guides_commands() {
    let home = home();
    let data = home.path("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    home.write("work/distant-plugin-user", file("sh", "distant-plugin-user"));
    let [commands] = &blocks("run")[..] else { panic!("one block to run") };
    let followed = home.program("sh", ["-e", "-c", commands]).cwd(home.path("work")).run();
    let followed = followed.success();
    assert!(followed.stdout.ends_with("\nnobody\n"), "{}", followed.told());
    home.program(home.path("bin/distant"), ["manager", "stop"]).run().success();
}

#[test]
fn the_guides_python_plugin_asks_refuses_and_launches() {
    let home = home();
    put(&home, "distant-plugin-user", &file("python", "distant-plugin-user"));
    let manager = Manager::start(&home);
    launch(&home, "user://nobody").run().id();
    assert_eq!(over_there(&home, &["id", "-un"]), "nobody\n");
    launch(&home, "user://root").arg("--options=sure=true").run().id();
    assert_eq!(over_there(&home, &["id", "-un"]), "root\n");
    let hint = "\nhint: `getent passwd` lists them";
    refused(launch(&home, "user://nonesuch"), &["error: there is no user `nonesuch`\n", hint]);
    refused(launch(&home, "user://root"), &["error: nobody said that it may be root\n"]);
    let wrong = launch(&home, "user://root").arg("--options=sure=perhaps");
    refused(wrong, &["`sure`", "`true` or `false`"]);
    manager.stop();
}

#[test]
fn the_guides_plugin_that_does_it_all_launches_and_leaves_nothing() {
    let home = home();
    let plugin = put(&home, "distant-plugin-child", &file("python", "distant-plugin-child"));
    let distant = home.path("bin/distant").display().to_string();
    let words = ["--launch", "child://here", "--distant", &distant, "--only", "load."];
    let cases = ["plain", "slow", "parallel", "nonsense", "_server", "_host", "cancel", "hang_up"];
    let cases = cases.into_iter().chain(["secrets"]);
    let only = cases.flat_map(|case| ["--only", case]);
    conforms(&home, &plugin, &words.into_iter().chain(only).collect::<Vec<_>>(), 18);
    let manager = Manager::start(&home);
    let id = launch(&home, "child://here").run().id().to_string();
    assert_eq!(over_there(&home, &["echo", "hi"]), "hi\n");
    home.ours(["manager", "kill", &id]).run().success();
    manager.assert_no_offspring();
    launch(&home, "child://here").run().id();
    kill_worker(&manager);
    manager.assert_no_offspring();
    let missing = home.ours(["launch", "child://here", "--distant=/nowhere/distant"]);
    refused(missing, &["error: cannot start `/nowhere/distant`\n", "No such file"]);
    let ends = launch(&home, "child://here").arg("--distant-args=--nonsense");
    refused(ends, &["error: no server started here\n", "caused by: it ended with status 2"]);
    manager.assert_no_offspring();
}

#[test]
fn the_guides_rust_plugin_builds_passes_its_tests_and_launches() {
    let home = home();
    for (language, name) in
        [("toml", "Cargo.toml"), ("rust", "src/lib.rs"), ("rust", "tests/conformance.rs")]
    {
        let clone = format!("{}/plugin-", repository().display());
        home.write(
            &format!("work/{name}"),
            file(language, name).replace("../distant/plugin-", &clone),
        );
    }
    // What this needs is what the product needs, and in the same versions it is there already.
    fs::copy(repository().join("Cargo.lock"), home.path("work/Cargo.lock")).unwrap();
    let target = built("docker");
    cargo(&home, &["test"], &target);
    cargo(&home, &["build"], &target);
    install(&home, &target.join("debug/libdistant_plugin_user.so"));
    let manager = Manager::start(&home);
    launch(&home, "user://nobody").run().id();
    assert_eq!(over_there(&home, &["id", "-un"]), "nobody\n");
    manager.stop();
}

/// Runs cargo on the plugin in `work`.
fn cargo(home: &Home, words: &[&str], target: &Path) {
    let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).args(["--quiet", "--target-dir"]).arg(target);
    let done = command.current_dir(home.path("work")).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "cargo {words:?}: {said}");
}
