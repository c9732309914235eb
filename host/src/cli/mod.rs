//! The command line: what is asked for becomes one call of a command, its outcome an exit code.
//!
//! A command gets a `Context`, writes through its terminal, and returns an exit code or a
//! `Failure`. Nothing here knows how anything is done.

mod api;
pub(crate) mod arguments;
mod cache;
mod channel;
mod complete;
pub(crate) mod config;
mod connect;
mod json;
mod launch;
mod listen;
mod log_file;
mod logging;
mod lsp;
mod manager;
mod manager_client;
mod person;
mod plugin;
mod server;
mod shell;
mod spawn;
pub(crate) mod terminal;
mod timings;
mod tty;

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, FromArgMatches};
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use tokio::signal::unix::{signal, SignalKind};

use arguments::{Arguments, Command, Common, Format, Manager, NamedPlugins, Network};
use config::Config;
use terminal::Terminal;

use crate::{paths, plugin as plugins};

/// The exit code of a command line that makes no sense.
const USAGE: u8 = 2;

/// What a command is given.
pub(crate) struct Context {
    /// The configuration files, merged.
    pub(crate) config: Config,
    /// What was said before the command's own flags; a daemon gets the same.
    pub(crate) common: Common,
    /// Where results and errors go.
    pub(crate) terminal: Terminal,
    /// When the program started.
    pub(crate) started: Instant,
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense; nothing was tried.
    Usage(LaunchError),
    /// It was tried and failed.
    Failed(LaunchError),
    /// A signal ended it, such as Ctrl-C; whoever sent it needs no words.
    Interrupted(SignalKind),
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        Self::Failed(error)
    }
}

impl Failure {
    /// Says that the command line makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(LaunchError::new(ErrorKind::InvalidOption, message))
    }

    /// Adds an error and its sources as the causes.
    pub(crate) fn because(self, error: &dyn std::error::Error) -> Self {
        self.with(|it| it.because(error))
    }

    /// Adds a cause.
    pub(crate) fn caused_by(self, cause: impl Into<String>) -> Self {
        self.with(|it| it.caused_by(cause))
    }

    /// Says what to try.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        self.with(|it| it.with_hint(hint))
    }

    fn with(self, change: impl FnOnce(LaunchError) -> LaunchError) -> Self {
        match self {
            Self::Usage(error) => Self::Usage(change(error)),
            Self::Failed(error) => Self::Failed(change(error)),
            Self::Interrupted(kind) => Self::Interrupted(kind),
        }
    }

    fn report(&self, terminal: &Terminal) -> ExitCode {
        match self {
            Self::Usage(error) => {
                terminal.error(error);
                ExitCode::from(USAGE)
            }
            // As with any program in front of `head`; but what is there now and whose id nobody has
            // seen comes with what ends it.
            Self::Failed(error) if terminal.is_abandoned() && error.hint.is_none() => {
                Self::Interrupted(SignalKind::pipe()).report(terminal)
            }
            Self::Failed(error) => {
                terminal.error(error);
                ExitCode::FAILURE
            }
            // As shells have it: 130 after Ctrl-C.
            Self::Interrupted(kind) => {
                terminal.finish_progress();
                ExitCode::from(u8::try_from(kind.as_raw_value()).map_or(USAGE, |n| n | 0x80))
            }
        }
    }
}

impl Context {
    /// Where the manager of a client's command is: the flag, then `[client]`.
    pub(crate) fn client_network(&self, given: &Network) -> Network {
        let config = &self.config.client;
        merge_network(given, &config.unix_socket, &config.windows_pipe)
    }

    /// Where the manager of a command about it is: the flag, then `[manager]`.
    pub(crate) fn manager_network(&self, given: &Network) -> Network {
        let config = &self.config.manager;
        merge_network(given, &config.unix_socket, &config.windows_pipe)
    }

    /// Where plugins are and how they are run: the same for a manager and for whoever asks what it
    /// would do.
    ///
    /// # Errors
    ///
    /// A path is relative, and the current folder is not known.
    pub(crate) fn plugins(&self, given: &NamedPlugins) -> Result<plugins::Settings, LaunchError> {
        let limits = self.config.manager.worker.clone();
        let mut settings = plugins::Settings { limits, ..plugins::Settings::default() };
        for (name, path) in &given.named {
            settings.named.push((name.clone(), absolute(paths::expand(path))?));
        }
        Ok(settings)
    }

    /// Runs a client's work to its end, or until a signal ends it by dropping it.
    ///
    /// # Errors
    ///
    /// The work's own, and [`Failure::Interrupted`].
    pub(crate) fn run<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.run_with_signals(async {
            tokio::select! {
                result = work => result,
                kind = end_signal() => Err(Failure::Interrupted(kind)),
            }
        })
    }

    /// Runs a client's work that sees to signals by itself.
    ///
    /// # Errors
    ///
    /// The work's own.
    pub(crate) fn run_with_signals<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| terminal::from_error("cannot start", &error))?;
        let result = runtime.block_on(work);
        // A thread may still wait for a line of standard input, and that may never come.
        runtime.shutdown_background();
        result
    }
}

/// Makes a path that means the same in every folder.
///
/// # Errors
///
/// The current folder is not known.
fn absolute(path: PathBuf) -> Result<PathBuf, LaunchError> {
    std::path::absolute(path)
        .map_err(|error| terminal::from_error("the current folder is not known", &error))
}

fn merge_network(given: &Network, socket: &Option<PathBuf>, pipe: &Option<String>) -> Network {
    Network {
        unix_socket: given.unix_socket.clone().or_else(|| socket.clone()),
        windows_pipe: given.windows_pipe.clone().or_else(|| pipe.clone()),
    }
}

/// Waits for a signal that asks the program to end.
async fn end_signal() -> SignalKind {
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
        kind
    };
    tokio::select! {
        kind = wait(SignalKind::interrupt()) => kind,
        kind = wait(SignalKind::terminate()) => kind,
        kind = wait(SignalKind::hangup()) => kind,
    }
}

/// Runs the program and returns its exit code.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let given: Vec<OsString> = std::env::args_os().collect();
    let arguments = match parse(&given) {
        Ok(arguments) => arguments,
        Err(error) => {
            let shown = terminal::show_clap(&error, |text| hide_passwords(text, &given));
            if error.use_stderr() && asks_for_json(&given) {
                terminal::show_usage_in_json(&shown);
            }
            let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            return ExitCode::from(code);
        }
    };
    if let Command::PluginWorker(it) = arguments.command {
        return distant_plugin_worker::run(distant_plugin_worker::Arguments {
            fd: it.fd,
            exec: it.exec,
            path: it.path,
            host: distant_plugin_test::host_table(it.host_table.as_deref()),
        });
    }
    if let Command::PluginProbe(it) = arguments.command {
        return distant_plugin_test::probe(&it.path);
    }
    // What a server starts for its clients is theirs, and may leave some.
    if !matches!(arguments.command, Command::Server(_)) {
        distant_plugin_worker::leave_no_core_dumps();
    }
    let terminal = Terminal::new(arguments.command.format());
    let config = match Config::load(arguments.common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return Failure::Failed(error).report(&terminal),
    };
    let context = Context { config, common: arguments.common, terminal, started };
    if arguments.command.is_configured() {
        for complaint in &context.config.misspelt {
            context.terminal.warn(complaint);
        }
    }
    let result = logging::start(&context, arguments.command.role())
        .and_then(|()| dispatch(arguments.command, &context));
    result.unwrap_or_else(|failure| failure.report(&context.terminal))
}

fn dispatch(command: Command, context: &Context) -> Result<ExitCode, Failure> {
    match command {
        Command::Server(arguments) => server::run(arguments, context),
        Command::Plugin(arguments) => plugin::run(arguments, context),
        Command::Completions(arguments) => complete::script(&arguments, context),
        Command::Complete(arguments) => complete::run(arguments, context),
        Command::Api(arguments) => api::run(&arguments, context),
        Command::Connect(arguments) => connect::run(&arguments, context),
        Command::Launch(arguments) => launch::run(&arguments, context),
        Command::Spawn(arguments) => spawn::run(&arguments, context),
        Command::Manager(arguments) => manager::run(arguments, context),
        // They read no configuration and write no log, so they never come here.
        Command::PluginWorker(_) | Command::PluginProbe(_) => Ok(ExitCode::from(USAGE)),
        Command::Fs(_) => Err(elsewhere("fs", "`distant spawn -- cat <FILE>` reads a file")),
        Command::Generate(_) => Err(elsewhere(
            "generate",
            "`distant completions <SHELL>` is here, and no key is required in a configuration",
        )),
        Command::Shell(_) => {
            Err(elsewhere("shell", "`distant spawn --pty -- bash -l` is a shell at a terminal"))
        }
        Command::SystemInfo(_) => {
            Err(elsewhere("system-info", "`distant spawn -- uname -a` tells the system"))
        }
        Command::Version(_) => {
            Err(elsewhere("version", "`distant manager version` tells that of the manager"))
        }
    }
}

/// Says who has a command of the released program, and what comes near to it here.
fn elsewhere(command: &str, here: &str) -> Failure {
    let error = LaunchError::new(
        ErrorKind::InvalidOption,
        format!("`distant {command}` is not part of this program"),
    );
    Failure::Usage(error.with_hint(format!(
        "{here}; distant 0.20.0 has `distant {command}`, and works over the connections of this \
         manager: `cargo install distant --version 0.20.0 --locked --root <DIR>`"
    )))
}

impl Command {
    fn format(&self) -> Format {
        match self {
            Self::Launch(it) => it.format.format,
            Self::Connect(it) => it.format.format,
            Self::Api(_) => Format::Json,
            Self::Manager(it) => it.format(),
            Self::Plugin(it) => it.format(),
            _ => Format::Shell,
        }
    }

    /// Whether what a configuration says matters most to it; the others would only repeat warnings.
    fn is_configured(&self) -> bool {
        matches!(self, Self::Launch(_) | Self::Connect(_) | Self::Manager(Manager::Listen(_)))
    }

    fn role(&self) -> logging::Role {
        match self {
            Self::Manager(Manager::Listen(_)) => logging::Role::Manager,
            Self::Server(_) => logging::Role::Server,
            _ => logging::Role::Client,
        }
    }
}

impl Manager {
    fn format(&self) -> Format {
        match self {
            Self::Select(it) => it.format.format,
            Self::Version(it) | Self::Stop(it) => it.format.format,
            Self::Info(it) | Self::Kill(it) => it.format.format,
            Self::List(it) => it.format.format,
            Self::Listen(_) | Self::Service(_) => Format::Shell,
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<Arguments, clap::Error> {
    let command = match io::stdout().is_terminal() {
        true => Arguments::command(),
        // Whoever pipes the help has a width of their own.
        false => Arguments::command().term_width(0),
    };
    let matches = command.try_get_matches_from(arguments)?;
    Arguments::from_arg_matches(&matches)
}

/// Whether a command line that cannot be read asks for JSON.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let flags = arguments.iter().skip(1).take_while(|it| *it != "--");
    let flags: Vec<_> = flags.filter_map(|it| it.to_str()).collect();
    let is_value = |pair: &[&str]| matches!(pair, ["-f" | "--format", "json"]);
    flags.iter().any(|flag| matches!(*flag, "--format=json" | "-fjson" | "-f=json" | "--json"))
        || flags.windows(2).any(is_value)
}

/// Takes out of clap's words what a destination among the arguments has for a password.
fn hide_passwords(text: String, arguments: &[OsString]) -> String {
    let passwords = arguments.iter().filter_map(|argument| password_of(argument));
    passwords.fold(text, |text, password| text.replace(password, "[redacted]"))
}

fn password_of(argument: &OsStr) -> Option<&str> {
    let text = argument.to_str()?;
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let (login, _) = rest.rsplit_once('@')?;
    let (_, password) = login.split_once(':')?;
    Some(password).filter(|password| !password.is_empty())
}

#[cfg(test)]
impl Context {
    fn for_test(common: Common) -> Self {
        let (terminal, started) = (Terminal::new(Format::Shell), Instant::now());
        Self { config: Config::default(), common, terminal, started }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_of_launch_is_that_of_0_20() {
        let error = Arguments::command()
            .term_width(0)
            .try_get_matches_from(["distant", "launch", "--help"])
            .unwrap_err();
        let cache = paths::cache_file().display().to_string();
        let shown =
            error.render().to_string().replace(&cache, "/home/runner/.cache/distant/cache.toml");
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect();
        let (shown, page): (Vec<String>, Vec<String>) =
            (lines(&shown), lines(include_str!("launch_help.txt")));
        // What is below them are words of our own.
        assert_eq!(shown[..page.len()], page);
    }

    #[test]
    fn a_password_is_taken_out_of_what_clap_repeats() {
        let shown = |line: &[&str]| {
            let given: Vec<OsString> = line.iter().map(Into::into).collect();
            let error = parse(&given).unwrap_err();
            hide_passwords(error.render().to_string(), &given)
        };
        let text = shown(&["distant", "launch", "box", "ssh://me:hunter2@box"]);
        assert!(text.contains("ssh://me:[redacted]@box"), "{text}");
        let text = shown(&["distant", "ssh://me:hunt:er2@a@box"]);
        assert!(!text.contains("er2"), "{text}");
    }

    #[test]
    fn signals_have_the_exit_codes_of_a_shell() {
        let terminal = Terminal::new(Format::Shell);
        for (kind, code) in [(SignalKind::interrupt(), 130), (SignalKind::terminate(), 143)] {
            let shown = format!("{:?}", Failure::Interrupted(kind).report(&terminal));
            assert_eq!(shown, format!("{:?}", ExitCode::from(code)));
        }
    }

    #[test]
    fn a_command_of_the_released_program_says_where_it_is() {
        for line in
            [&["distant", "fs", "read", "--help", "/x"][..], &["distant", "shell", "--", "a"]]
        {
            assert!(parse(&line.iter().map(Into::into).collect::<Vec<_>>()).is_ok(), "{line:?}");
        }
        let Failure::Usage(error) = elsewhere("fs", "x does it") else { panic!() };
        assert_eq!(error.message, "`distant fs` is not part of this program");
        assert!(error.hint.unwrap().starts_with("x does it; distant 0.20.0 has `distant fs`"));
    }
}
