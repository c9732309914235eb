//! The plugin boundary: the tables, and the worker that stands between a library and the host.
//!
//! The tests here are the manager of one worker: they start `distant plugin-worker` and speak its
//! lines. What a manager does about a broken worker is tested with the manager.

pub(crate) mod builds;
mod faults;
mod protocol;
mod tables;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{json, Value};

use crate::support::{programs, repository, Finished, Home, Running, PATIENCE};

/// A key as no server has it.
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A worker, spoken to as the manager does.
struct Worker {
    running: Running,
    /// Fails the test if the worker leaves a process behind.
    home: Home,
}

impl Worker {
    /// Starts the worker of a plugin's file.
    fn start(plugin: &Path) -> Self {
        Self::start_in(Home::new(), plugin)
    }

    fn start_in(home: Home, plugin: &Path) -> Self {
        let running = home.ours(["plugin-worker".as_ref(), plugin.as_os_str()]).start();
        Self { running, home }
    }

    /// Starts the plugin that misbehaves on request and answers its hello.
    fn faulty() -> Self {
        let mut this = Self::start(programs().plugin("faulty"));
        this.greet();
        this
    }

    /// Starts it and a launch in this mode.
    fn faulty_in(mode: &str) -> Self {
        let mut this = Self::faulty();
        this.launch(json!({ "mode": mode }));
        this
    }

    /// Reads the plugin's hello and answers it; returns its manifest.
    fn greet(&mut self) -> Value {
        let hello = self.running.json();
        assert_eq!(hello["type"], "hello", "{hello}");
        self.say(json!({ "type": "hello", "protocol": 1, "log_level": "trace" }));
        hello["manifest"].clone()
    }

    fn say(&mut self, message: Value) {
        self.running.say(&message.to_string());
    }

    fn launch(&mut self, options: Value) {
        self.say(json!({ "type": "launch", "destination": "faulty://box", "options": options }));
    }

    /// The next message, progress left out.
    #[track_caller]
    fn next(&self) -> Value {
        loop {
            let message = self.running.json();
            if message["type"] != "progress" {
                return message;
            }
        }
    }

    /// Waits for its end without closing its stdin, as a manager would.
    #[track_caller]
    fn end(self) -> Finished {
        assert!(self.running.ends_within(PATIENCE), "{}", self.running.told());
        self.running.finish()
    }

    /// Reads up to the result, and fails the test unless the launch has succeeded.
    #[track_caller]
    fn succeeds(self) -> Finished {
        loop {
            let message = self.next();
            match message["type"].as_str() {
                Some("done") => return self.end().success(),
                Some("error") => panic!("{message}"),
                _ => {}
            }
        }
    }

    /// Reads up to the error, and returns its kind with message and causes in one line.
    #[track_caller]
    fn fails(self) -> (String, String) {
        loop {
            let message = self.next();
            match message["type"].as_str() {
                Some("done") => panic!("the launch has succeeded"),
                Some("error") => {
                    self.end().success();
                    return told(&message);
                }
                _ => {}
            }
        }
    }
}

/// The kind of an error, and its message and causes in one line.
fn told(error: &Value) -> (String, String) {
    let causes = error["causes"].as_array().unwrap().iter();
    let texts = std::iter::once(&error["message"]).chain(causes);
    let texts: Vec<_> = texts.map(|text| text.as_str().unwrap()).collect();
    (error["kind"].as_str().unwrap().to_owned(), texts.join(": "))
}

/// Builds a library out of a C file of `tests/plugins/c`.
pub(crate) fn c_plugin(home: &Home, source: &str, variant: &str) -> PathBuf {
    let source = repository().join("tests/plugins/c").join(source);
    compiled(home, &source, &variant.to_lowercase(), &[format!("-DVARIANT_{variant}")])
}

/// Builds the plugin that `distant plugin new --lang c` writes, as plugin `program`.
pub(crate) fn c_template(home: &Home) -> PathBuf {
    let template = repository().join("host/templates/c/plugin.c.in");
    let text = std::fs::read_to_string(template).unwrap().replace("@NAME@", "program");
    compiled(home, &home.write("program.c", text), "program", &[])
}

fn compiled(home: &Home, source: &Path, name: &str, flags: &[String]) -> PathBuf {
    let library = home.path(format!("libdistant_plugin_{name}.so"));
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-O1"])
        .args(flags)
        .arg("-I")
        .arg(repository().join("plugin-api/include"))
        .arg(source)
        .arg("-o")
        .arg(&library)
        .status()
        .unwrap();
    assert!(built.success(), "{} does not compile as {name}", source.display());
    library
}
