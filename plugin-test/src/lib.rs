//! Tells the author of a plugin everything that is wrong with it, before a user meets it.
//!
//! `distant plugin test PATH` runs these cases; so does a plugin's own `cargo test`. Each case runs
//! the plugin in a worker process of its own, the very one that a manager uses, and plays the
//! manager: it answers questions as the author says, decides about offers, cancels at every point,
//! goes away. Libraries and executables are told apart by their names and get the same cases.
//!
//! # From `cargo test`
//!
//! The cases start the test's own program again as their workers, so it needs a `main` of its own:
//!
//! ```toml
//! [lib]
//! name = "distant_plugin_hello"
//! crate-type = ["cdylib", "rlib"]
//!
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! ```no_run
//! use distant_plugin_test::{library, stand_in, Kit, Launch};
//!
//! fn main() -> std::process::ExitCode {
//!     distant_plugin_test::main(|| {
//!         // Where it leads, and a stand-in for `distant`, so that the test needs none.
//!         let launch = Launch::to("hello://here").server(stand_in());
//!         Kit::new(library("hello")).launch(launch)
//!     })
//! }
//! ```
//!
//! Without [`Kit::launch`] only the cases that load the plugin are run, and the others say that
//! they were skipped. A launch is repeated many times, so it should lead to a place where that does
//! no harm.

mod attached;
mod host;
mod launch;
mod load;
mod network;
mod probe;
mod report;
mod script;
mod server;
mod symbols;
mod worker;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use distant_plugin_api::options::Options;
use distant_plugin_worker::{Arguments, HostTable};

pub use probe::probe;
pub use report::{Outcome, Report, Status};
#[doc(hidden)]
pub use worker::environment;

/// How long a launch may take altogether unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The cases for one plugin.
#[derive(Debug, Clone)]
pub struct Kit {
    plugin: PathBuf,
    is_library: bool,
    launch: Option<Launch>,
    unreachable: Option<String>,
    only: Vec<String>,
    seed: u64,
    timeout: Duration,
    in_process: bool,
    /// Whether its launches last as long as the connection, once one has shown it.
    stays: Arc<OnceLock<bool>>,
}

/// A launch that works: what the cases vary.
#[derive(Debug, Clone)]
pub struct Launch {
    destination: String,
    options: Options,
    answers: Vec<(String, String)>,
    program: Option<String>,
}

impl Launch {
    /// Launches to a destination of one of the plugin's schemes.
    pub fn to(destination: impl Into<String>) -> Self {
        let (options, answers) = (Options::new(), Vec::new());
        Self { destination: destination.into(), options, answers, program: None }
    }

    /// Gives an option, as `--options` would.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(key, value);
        self
    }

    /// Gives several options.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        for (key, value) in options.iter() {
            self.options.insert(key, value);
        }
        self
    }

    /// Answers every question whose text has `question` in it. Yes-or-no questions are answered by
    /// yes. A question without an answer fails the case.
    #[must_use]
    pub fn answer(mut self, question: impl Into<String>, answer: impl Into<String>) -> Self {
        self.answers.push((question.into(), answer.into()));
        self
    }

    /// Names the program that is started as the server, as `--distant` would.
    #[must_use]
    pub fn server(mut self, program: impl Into<String>) -> Self {
        self.program = Some(program.into());
        self
    }
}

impl Kit {
    /// Makes the cases for a plugin's file: a library if its name ends in `.so` or `.dylib`, else a
    /// program.
    pub fn new(plugin: impl Into<PathBuf>) -> Self {
        let plugin = plugin.into();
        let plugin = std::path::absolute(&plugin).unwrap_or(plugin);
        let is_library = plugin.extension().is_some_and(|it| it == "so" || it == "dylib");
        let (only, seed, timeout) = (Vec::new(), 1, TIMEOUT);
        let (launch, unreachable, in_process) = (None, None, false);
        let stays = Arc::default();
        Self { plugin, is_library, launch, unreachable, only, seed, timeout, in_process, stays }
    }

    /// Gives the launch that the launch cases vary; without it they are skipped.
    #[must_use]
    pub fn launch(mut self, launch: Launch) -> Self {
        self.launch = Some(launch);
        self
    }

    /// Gives a destination where nothing answers; without it one case is skipped.
    #[must_use]
    pub fn unreachable(mut self, destination: impl Into<String>) -> Self {
        self.unreachable = Some(destination.into());
        self
    }

    /// Runs only cases whose name has this in it. May be repeated.
    #[must_use]
    pub fn only(mut self, part: impl Into<String>) -> Self {
        self.only.push(part.into());
        self
    }

    /// Makes the cases that try nonsense try other nonsense. Each seed gives the same every time.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how long one launch may take altogether; a minute unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Loads the library in this very process, so that a debugger sees it. The process then ends
    /// with the first worker that the case would have started.
    #[must_use]
    pub fn in_process(mut self, in_process: bool) -> Self {
        self.in_process = in_process;
        self
    }

    /// Every case with the line that says what it shows.
    pub fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
        load::CASES.iter().chain(launch::CASES).map(|case| (case.name, case.about))
    }

    /// Runs the cases, one after another; `each` hears of every outcome as it comes.
    pub fn run(&self, mut each: impl FnMut(&Outcome)) -> Report {
        if self.in_process {
            attached::become_worker(self);
        }
        let is_wanted =
            |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        let cases = load::CASES.iter().chain(launch::CASES);
        let outcomes = cases.filter(|case| is_wanted(case.name)).map(|case| {
            let outcome = report::run(case, self);
            each(&outcome);
            outcome
        });
        let outcomes = outcomes.collect();
        Report { plugin: self.plugin.clone(), seed: self.seed, outcomes }
    }
}

/// The path of a plugin's library as `cargo test` has just built it, by the name that follows
/// `distant_plugin_`. Its crate needs the types `cdylib` and `rlib`: without the second, cargo does
/// not build it for a test.
pub fn library(name: &str) -> PathBuf {
    let file =
        format!("libdistant_plugin_{}{}", name.replace('-', "_"), std::env::consts::DLL_SUFFIX);
    let this = std::env::current_exe().unwrap_or_default();
    this.parent().unwrap_or(Path::new("/")).join(file)
}

/// A program that stands in for `distant`, for [`Launch::server`]: this test itself, which
/// [`main`] makes behave like `distant server listen` as far as a launch can see.
pub fn stand_in() -> String {
    std::env::current_exe().unwrap_or_default().display().to_string()
}

/// Runs a test program that has `harness = false`: the cases, or the part of one that this process
/// was started for.
///
/// The arguments are those of `cargo test`: a word picks the cases whose names have it in them,
/// `--list` names them all, `--seed=N` sets the seed; flags that mean nothing here are ignored.
pub fn main(kit: impl FnOnce() -> Kit) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(code) = child(&arguments) {
        return code;
    }
    let mut kit = kit();
    let mut output = std::io::stdout();
    for argument in arguments.iter().filter_map(|it| it.to_str()) {
        match argument.strip_prefix("--") {
            Some("list") => {
                let lines: String =
                    Kit::cases().map(|(name, _)| format!("{name}: test\n")).collect();
                // Nobody is left to be told.
                let _ = output.write_all(lines.as_bytes());
                return ExitCode::SUCCESS;
            }
            Some(flag) => {
                let seed = flag.strip_prefix("seed=").and_then(|seed| seed.parse().ok());
                kit = seed.map_or(kit.clone(), |seed| kit.seed(seed));
            }
            None => kit = kit.only(argument),
        }
    }
    let report = kit.run(|outcome| {
        let _ = writeln!(output, "{outcome}");
    });
    let _ = writeln!(std::io::stdout(), "\n{}", report.summary());
    if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Does the part of a case that this process was started for, if it was.
fn child(arguments: &[OsString]) -> Option<ExitCode> {
    let words: Vec<_> = arguments.iter().map(|it| it.to_string_lossy()).collect();
    match words.first()?.as_ref() {
        "plugin-worker" => {
            let path = PathBuf::from(arguments.last()?);
            let table = words.iter().position(|it| it == "--host-table");
            let table = table.and_then(|at| words.get(at + 1));
            let host = host_table(table.map(AsRef::as_ref));
            let exec = words.iter().any(|it| it == "--exec");
            Some(distant_plugin_worker::run(Arguments { fd: None, exec, path, host }))
        }
        "plugin-probe" => Some(probe(Path::new(arguments.get(1)?))),
        "server" if words.get(1).is_some_and(|it| it == "listen") => Some(server::run(&words[2..])),
        _ => None,
    }
}

/// Reads the worker's `--host-table`.
pub fn host_table(word: Option<&str>) -> HostTable {
    match word {
        Some("older") => HostTable::Older,
        Some("newer") => HostTable::Newer,
        _ => HostTable::Usual,
    }
}
