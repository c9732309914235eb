//! The plugins of `examples/`, each built as its author would, installed for a user, and launched.

mod chroot;
mod docker;
mod slurm;
mod tutorial;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::support::{executable, programs, repository, variable, Home, Invocation, Manager};

/// Held while something is built, as several tests want the same.
static BUILDING: Mutex<()> = Mutex::new(());

/// Where what is built of the examples is kept from run to run.
fn built(example: &str) -> PathBuf {
    let target = programs().distant.ancestors().nth(2).unwrap();
    target.join("examples-of-plugins").join(example)
}

/// The folder of an example.
fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// Runs `make` in the folder of an example, with what it builds going elsewhere.
fn make(name: &str, goals: &[&str]) -> PathBuf {
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let out = built(name);
    let mut argument = OsString::from("OUT=");
    argument.push(&out);
    let mut command = Command::new("make");
    command.arg("-s").args(goals).arg(argument).current_dir(example(name));
    // A jobserver of somebody else's `make` is none of this one's.
    command.env_remove("MAKEFLAGS").env_remove("MFLAGS");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "make {goals:?} of {name}: {said}");
    out
}

/// Runs cargo in the folder of an example, in a target folder of its own; what it needs is the same as
/// for the product, so it is there.
fn cargo(name: &str, words: &[&str]) -> PathBuf {
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let out = built(name);
    let mut command = Command::new(variable("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).args(["--quiet", "--locked", "--target-dir"]).arg(&out);
    let done = command.current_dir(example(name)).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "cargo {words:?} of {name}: {said}");
    out
}

/// Installs a plugin's file where the host looks for the user's own.
fn install(home: &Home, file: &Path) {
    let name = file.file_name().unwrap().to_str().unwrap();
    let place = home.path("data/distant/plugins").join(name);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    executable(&place, fs::read(file).unwrap());
    for folder in place.ancestors().skip(1).take(3) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Kills the worker of a launch.
fn kill_worker(manager: &Manager) {
    let mut workers = manager.offspring();
    workers.retain(|seen| seen.command.contains("plugin-worker"));
    assert_eq!(workers.len(), 1, "{workers:#?}");
    workers[0].kill();
}

/// Runs a command over the connection that was made last, and returns what it prints.
#[track_caller]
fn over_there(home: &Home, command: &[&str]) -> String {
    let spawn = home.ours(["spawn", "--"].iter().chain(command));
    spawn.run().success().stdout
}

/// Runs the conformance kit, with these words for its launches; cases that make no sense for the plugin
/// may be skipped, and this many have to pass.
#[track_caller]
fn conforms(home: &Home, file: &Path, words: &[&str], least: usize) {
    let test = home.ours(["plugin", "test", "--json"]).arg(file);
    let test = words.iter().fold(test, |test, word| test.arg(*word));
    let done = test.run_within(Duration::from_secs(300)).success();
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let outcomes = report["cases"].as_array().unwrap();
    let passed = outcomes.iter().filter(|it| it["status"] == "pass").count();
    assert!(passed >= least, "{passed} passed: {}", done.told());
}

/// A launch that is refused, with these words on stderr.
#[track_caller]
fn refused(launch: Invocation, words: &[&str]) {
    let failed = launch.run().code(1);
    for word in words {
        assert!(failed.stderr.contains(word), "no `{word}`: {}", failed.told());
    }
    assert_eq!(failed.stdout, "");
}
