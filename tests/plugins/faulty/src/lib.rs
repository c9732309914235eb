//! A plugin that misbehaves on request, so that tests can show that the host survives it.
//!
//! `faulty://…` with the option `mode` says how, `when` says at which point. Every other option
//! makes it do something well: ask, tell, offer a server that the test has started. The variable
//! `DISTANT_FAULTY_LOAD` (`hang`, `crash`, `exit`, `noise`) makes it misbehave while it is loaded.

#![allow(unsafe_code, reason = "does what no plugin should")]
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "as above")]

mod raw;

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use distant_plugin_api::message::{
    Challenge, LogLevel, Offer, Progress, Question, Stage, VerdictKind, Verification, Via,
};
use distant_plugin_api::options::{OptionSchema, OptionType, Options, Schema};
use distant_plugin_api::secret::SessionKey;
use distant_plugin_api::{Caller, ErrorKind, LaunchError, LaunchRequest, Manifest, Plugin};

/// Every way to misbehave, as `mode` names it, and what it means.
const MODES: [(&str, &str); 26] = [
    ("ok", "does what the other options say, and nothing bad"),
    ("error", "fails as a good plugin does"),
    ("panic", "panics"),
    ("panic_elsewhere", "panics on another thread, and goes on"),
    ("segfault", "writes to an address that is not its own"),
    ("stack_overflow", "calls itself for ever"),
    ("abort", "ends the process by SIGABRT"),
    ("exit", "ends the process with status 0"),
    ("hang", "sleeps, whatever the host says"),
    ("spin", "computes, whatever the host says"),
    ("wait", "waits until it is cancelled, and then returns"),
    ("slow_cleanup", "needs a second to return after it is cancelled"),
    ("noise", "prints 2.4 MB to standard output"),
    ("endless_output", "prints to standard output for ever"),
    ("endless_notices", "sends notices for ever"),
    ("endless_log", "writes to the log for ever"),
    ("close_fds", "closes the descriptors 0 to 63"),
    ("fork", "leaves `sleep 300` behind"),
    ("scribble", "writes to every descriptor that it finds"),
    ("bad_json", "sends something that is no JSON"),
    ("huge_message", "sends 2 MiB at once"),
    ("two_results", "says that it is done, and then that it failed"),
    ("late_callbacks", "goes on to send on another thread when it has returned"),
    ("crowd", "sends from 16 threads at once"),
    ("silent_failure", "fails without saying why"),
    ("odd_status", "returns a status that does not exist"),
];

struct Faulty;

impl Plugin for Faulty {
    fn manifest(&self) -> Manifest {
        let modes = MODES.iter().map(|(name, _)| (*name).to_owned()).collect();
        let points = ["start", "asked", "connected"].map(str::to_owned).to_vec();
        let text = |name, help| OptionSchema::new(name, OptionType::String, help);
        let mut key = text("key", "key of the server to offer");
        key.secret = true;
        let mut manifest = Manifest::new("faulty", ["faulty"]);
        manifest.version = env!("CARGO_PKG_VERSION").to_owned();
        manifest.description = "misbehaves on request".to_owned();
        manifest.options = Schema(vec![
            OptionSchema::new("mode", OptionType::Enum(modes), "how to misbehave").or("ok"),
            OptionSchema::new("when", OptionType::Enum(points), "at which point").or("start"),
            text("notice", "text to show"),
            text("log", "text to log, at every level"),
            text("ask", "question to ask"),
            text("expect", "what its answer has to be"),
            text("verify", "yes-or-no question to ask"),
            text("offer", "address and port of the server to offer"),
            text("tunnel", "address and port to offer where the first is slow or unreachable"),
            key,
            OptionSchema::new("proof", OptionType::Bool, "whether that server takes the proof"),
            text("pid", "process of that server"),
            OptionSchema::new("stay", OptionType::Bool, "stay in the launch until cancelled"),
        ]);
        manifest
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        let options = &request.options;
        let misbehave_at = |point| match options.get("when") {
            when if when.unwrap_or("start") == point => {
                misbehave(options.get("mode").unwrap_or("ok"), caller)
            }
            _ => Ok(()),
        };
        misbehave_at("start")?;
        talk(options, caller)?;
        misbehave_at("asked")?;
        if options.get("offer").is_some() {
            offer(options, caller)?;
        }
        misbehave_at("connected")?;
        if options.bool("stay")?.unwrap_or(false) {
            caller.wait_for_cancel();
        }
        Ok(())
    }
}

/// Says and asks what the options want.
fn talk(options: &Options, caller: &Caller) -> Result<(), LaunchError> {
    caller.stage(Stage::Connect)?;
    caller.progress(Progress { stage: Stage::Upload, done: 1, total: 2 })?;
    if let Some(text) = options.get("notice") {
        caller.notice(LogLevel::Info, text)?;
    }
    if let Some(text) = options.get("log") {
        tracing::error!("{text}");
        tracing::info_span!("launch").in_scope(|| tracing::info!(size = 3, "{text}"));
        tracing::trace!("{text}");
    }
    if let Some(text) = options.get("verify") {
        let question = Verification { kind: "host".to_owned(), text: text.to_owned() };
        if !caller.verify(question)? {
            return Err(LaunchError::new(ErrorKind::HostKey, "nobody said that it is right"));
        }
    }
    if let Some(text) = options.get("ask") {
        let question = Question { text: text.to_owned(), ..Question::default() };
        let answers =
            caller.ask(Challenge { questions: vec![question], ..Challenge::default() })?;
        let expected = options.get("expect").unwrap_or_default();
        if answers.iter().any(|answer| answer.expose() != expected) {
            return Err(LaunchError::new(ErrorKind::Authentication, "the answer is wrong"));
        }
    }
    Ok(())
}

/// Offers the server that the options name until there is a verdict.
fn offer(options: &Options, caller: &Caller) -> Result<(), LaunchError> {
    let invalid = |key| LaunchError::new(ErrorKind::InvalidOption, format!("`{key}` is wrong"));
    let key: Option<SessionKey> = options.get("key").and_then(|key| key.parse().ok());
    let key = key.ok_or_else(|| invalid("key"))?;
    let make = |address: &str, via| {
        let address: SocketAddr = address.parse().map_err(|_| invalid("offer"))?;
        Ok(Offer {
            id: caller.next_id(),
            host: address.ip().to_string(),
            port: address.port(),
            key: key.clone(),
            pid: options.get("pid").and_then(|pid| pid.parse().ok()),
            proof: options.bool("proof")?.unwrap_or(false),
            hello: None,
            via,
        })
    };
    let mut direct = make(options.get("offer").unwrap_or_default(), Via::Direct)?;
    let mut tunnel = options.get("tunnel");
    loop {
        match (caller.offer(&direct)?, tunnel.take()) {
            (VerdictKind::Connected { .. }, _) => return Ok(()),
            (VerdictKind::Slow | VerdictKind::Unreachable { .. }, Some(address)) => {
                direct = make(address, Via::Tunnel)?;
            }
            (VerdictKind::Slow, None) => {}
            (VerdictKind::Unreachable { reason } | VerdictKind::Refused { reason }, _) => {
                let error = LaunchError::new(ErrorKind::PortUnreachable, "the offer was refused");
                return Err(error.caused_by(reason));
            }
            _ => return Err(LaunchError::new(ErrorKind::Other, "an unknown verdict")),
        }
    }
}

fn misbehave(mode: &str, caller: &Caller) -> Result<(), LaunchError> {
    match mode {
        "error" => {
            let cause = std::io::Error::other("the moon is full");
            let error = LaunchError::new(ErrorKind::Unreachable, "cannot reach `nowhere`");
            return Err(error.because(&cause).with_hint("wait for two weeks"));
        }
        "panic" => panic!("plugin bug 42"),
        "panic_elsewhere" => {
            let _ = thread::spawn(|| panic!("plugin bug 43")).join();
        }
        "segfault" => raw::segfault(),
        "stack_overflow" => {
            std::hint::black_box(recurse(std::hint::black_box(1)));
        }
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "hang" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        "spin" => loop {
            std::hint::spin_loop();
        },
        "wait" => {
            caller.wait_for_cancel();
            caller.check()?;
        }
        "slow_cleanup" => {
            caller.wait_for_cancel();
            thread::sleep(Duration::from_secs(1));
            caller.check()?;
        }
        "noise" => (0..40_000).for_each(|line| println!("{line:059}")),
        "endless_output" => loop {
            println!("{:0100}", 0);
        },
        "endless_notices" => loop {
            let _ = caller.notice(LogLevel::Info, "still here");
        },
        "endless_log" => loop {
            tracing::error!("still here");
        },
        "close_fds" => raw::close_fds(),
        "fork" => {
            Command::new("sleep").arg("300").spawn().map(drop).map_err(|error| {
                LaunchError::new(ErrorKind::Other, "cannot start `sleep`").because(&error)
            })?;
        }
        "scribble" => raw::scribble(),
        "bad_json" => {
            raw::send("{\"type\":\"notice\",\"text\":");
        }
        "huge_message" => {
            raw::send(&format!("{{\"type\":\"notice\",\"text\":\"{}\"}}", "x".repeat(2 << 20)));
        }
        "two_results" => {
            raw::send(r#"{"type":"done"}"#);
            raw::send(r#"{"type":"error","kind":"other","message":"on second thoughts"}"#);
        }
        "late_callbacks" => raw::send_for_ever(),
        "crowd" => thread::scope(|scope| {
            for thread in 0..16 {
                scope.spawn(move || {
                    for count in 0..64 {
                        let _ = caller.notice(LogLevel::Info, format!("{thread} {count}"));
                    }
                });
            }
        }),
        "silent_failure" => raw::return_status(1),
        "odd_status" => raw::return_status(77),
        _ => {}
    }
    Ok(())
}

#[allow(unconditional_recursion, reason = "that is the fault")]
fn recurse(depth: u64) -> u64 {
    std::hint::black_box([depth; 64]);
    recurse(depth + 1) + depth
}
