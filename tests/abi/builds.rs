//! Plugins that were built by other means than this workspace: another compiler, another
//! `abi_stable`, another layout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::{told, Worker};
use crate::support::{other_builds, repository, variable, Home};

/// The compiler that the system has, as Debian's package `rustc` puts it there.
const RUSTC: &str = "/usr/bin/rustc";

/// Builds a library out of one file of `tests/plugins`, by the system's own compiler.
pub(crate) fn rustc_plugin(home: &Home, name: &str, flags: &[&str]) -> PathBuf {
    let library = home.path(format!("libdistant_plugin_{name}.so"));
    let source = repository().join(format!("tests/plugins/{name}.rs"));
    let built = Command::new(RUSTC)
        .args(["--edition=2021", "--crate-type=cdylib", "-Dwarnings"])
        .args(flags)
        .arg("-o")
        .arg(&library)
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("{RUSTC}: {error}; `make test-tools` installs it"));
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

#[test]
fn a_plugin_that_the_system_s_own_rustc_built_launches() {
    let home = Home::new();
    let library = rustc_plugin(&home, "other_rustc", &["-Cpanic=abort"]);
    let mut worker = Worker::start_in(home, &library);
    assert_eq!(worker.greet()["name"], "other-rustc");
    worker.say(json!({ "type": "launch", "destination": "other-rustc://box" }));
    assert_eq!(worker.next()["text"], "launched");
    worker.succeeds();
}

/// A plugin by the API, which says that it was launched.
const PLUGIN: &str = r#"
use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{export_plugin, Caller, LaunchError, LaunchRequest, Manifest, Plugin};

struct Elsewhere;

impl Plugin for Elsewhere {
    fn manifest(&self) -> Manifest {
        Manifest::new("elsewhere", ["elsewhere"])
    }

    fn launch(&self, _: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        caller.notice(LogLevel::Info, "launched")
    }
}

export_plugin!(Elsewhere);
"#;

/// Builds the plugin with a copy of the API in which `change` has changed something, in a workspace
/// of its own that is kept from run to run. Gives the library, and the versions that are in it.
fn build(home: &Home, name: &str, change: impl Fn(&str, String) -> String) -> (PathBuf, String) {
    // What is common is built once, and both libraries have one name.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let target = other_builds();
    let folder = target.join(name);
    let write = |path: &str, text: String| {
        let path = folder.join(path);
        // What is the same keeps its time, so that cargo need not build it again.
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        }
    };
    for path in sources(&repository().join("plugin-api")) {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(repository()).unwrap().to_str().unwrap();
        write(path, change(path, text));
    }
    let workspace = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let (start, rest) = workspace.split_once("members = [").unwrap();
    let (_, rest) = rest.split_once("\n[workspace.package]").unwrap();
    let members = r#"members = ["plugin-api", "elsewhere"]"#;
    let text = format!("{start}{members}\n\n[workspace.package]{rest}");
    write("Cargo.toml", change("Cargo.toml", text));
    write("elsewhere/src/lib.rs", PLUGIN.to_owned());
    let manifest = "[package]\nname = \"distant-plugin-elsewhere\"\nversion = \"0.1.0\"\n\
                    edition = \"2021\"\n[lib]\nname = \"distant_plugin_elsewhere\"\n\
                    crate-type = [\"cdylib\"]\n[dependencies]\n\
                    distant-plugin-api.workspace = true\n";
    write("elsewhere/Cargo.toml", manifest.to_owned());
    if !folder.join("Cargo.lock").exists() {
        // The versions of this workspace, but for what is changed.
        fs::copy(repository().join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    }
    let cargo = variable("CARGO").unwrap_or_else(|| "cargo".to_owned());
    let built = Command::new(cargo)
        .args(["build", "-p", "distant-plugin-elsewhere", "--target-dir"])
        .arg(&target)
        .current_dir(&folder)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let library = home.path("libdistant_plugin_elsewhere.so");
    fs::copy(target.join("debug/libdistant_plugin_elsewhere.so"), &library).unwrap();
    (library, fs::read_to_string(folder.join("Cargo.lock")).unwrap())
}

/// The files of a crate that a build of it needs.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.join("Cargo.toml")];
    let mut folders = vec![folder.join("src"), folder.join("include")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let is_folder = entry.path().is_dir();
            if is_folder { &mut folders } else { &mut found }.push(entry.path());
        }
    }
    found
}

#[test]
fn a_plugin_with_another_patch_version_of_abi_stable_launches() {
    let home = Home::new();
    let (library, lock) = build(&home, "older-abi-stable", |path, text| match path {
        "Cargo.toml" => {
            let ours = "abi_stable = { version = \"0.11.3\"";
            assert!(text.contains(ours));
            text.replace(ours, "abi_stable = { version = \"=0.11.2\"")
        }
        _ => text,
    });
    assert!(lock.contains("name = \"abi_stable\"\nversion = \"0.11.2\""), "{lock}");
    let mut worker = Worker::start_in(home, &library);
    assert_eq!(worker.greet()["name"], "elsewhere");
    worker.launch(json!({}));
    assert_eq!(worker.next()["text"], "launched");
    worker.succeeds();
}

#[test]
fn a_plugin_with_another_layout_of_the_tables_is_refused_in_one_line() {
    // A member more, but the minor of before: somebody has changed the tables without a word.
    let home = Home::new();
    let (library, _) = build(&home, "other-layout", |path, text| {
        if path != "plugin-api/src/abi.rs" {
            return text;
        }
        let member = "request: Text) -> Status>,\n}\n\n/// The table a host gives";
        assert!(text.contains(member));
        text.replacen(member, "request: Text) -> Status>,\n    /// New.\n    pub more: u32,\n}\n\n/// The table a host gives", 1)
            .replace("launch: Some(launch),\n", "launch: Some(launch),\n            more: 0,\n")
            .replace("launch: None,\n", "launch: None,\n            more: 0,\n")
    });
    let worker = Worker::start_in(home, &library);
    let (kind, text) = told(&worker.running.json());
    assert_eq!(kind, "plugin");
    let start = format!("`{}` was built for another version of distant: ", library.display());
    assert!(text.starts_with(&start) && !text.contains('\n') && text.len() < 600, "{text}");
    worker.end().success();
}
