//! `distant server listen`: serves this machine, here or in the background.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use distant_plugin_api::connect_line;
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::LaunchError;

use super::config::{ServerListen, ServerWatch};
use super::{terminal, Context, Failure};
use crate::daemon::{self, Readiness};
use crate::paths;
use crate::server::{
    self, parse_seconds, Announcement, BindHost, LaunchSettings, PortRange, Settings, Shutdown,
    WatchSettings,
};

/// How long a server in the background may take to be ready; the lookup of a name is part of it.
const START: Duration = Duration::from_secs(60);

/// `distant server`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listen for incoming requests as a server
    Listen(Box<Listen>),
}

/// `distant server listen`. A flag that was not given may stand in the configuration.
#[derive(Debug, Clone, Args)]
struct Listen {
    /// The address to listen on
    ///
    /// `any` is every address of this machine, and the default. `ssh` is the one that the ssh
    /// session came to, as $SSH_CONNECTION has it; where there is none, every address. Anything
    /// else is an IP address or the name of one.
    #[arg(long, value_name = "ssh|any|IP", value_parser = parse::<BindHost>, display_order = 1)]
    host: Option<BindHost>,
    /// The port to listen on, or a range of ports to take the first free one of
    ///
    /// With 0, the default, the operating system picks a port that is free.
    #[arg(long, value_name = "PORT[:PORT2]", value_parser = parse::<PortRange>, display_order = 3)]
    port: Option<PortRange>,
    /// Take IPv6 for `--host any` and for names
    #[arg(short = '6', long, display_order = 4)]
    use_ipv6: bool,
    /// When to end without being told to
    ///
    /// `never`, the default; `after=N`: N seconds after the start, whoever is connected; `lonely=N`:
    /// when nobody has been connected for N seconds.
    #[arg(long, value_parser = parse::<Shutdown>, display_order = 6)]
    shutdown: Option<Shutdown>,
    /// The folder to work in
    #[arg(long, display_order = 7)]
    current_dir: Option<PathBuf>,
    /// Run in the background, and return as soon as clients can connect
    #[arg(long, display_order = 8)]
    daemon: bool,
    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,
    /// Look at watched files again and again, instead of having the system tell their changes
    #[arg(long, display_order = 9)]
    watch_polling: bool,
    /// Seconds between two looks, with `--watch-polling`
    #[arg(long, value_parser = parse_duration, allow_negative_numbers = true, display_order = 10)]
    watch_poll_interval: Option<Duration>,
    /// Compare what is in watched files, with `--watch-polling` (very slow)
    #[arg(long, display_order = 11)]
    watch_compare_contents: bool,
    /// Seconds for which changes of files are collected before they are told [default: 0.5]
    #[arg(long, value_parser = parse_duration, allow_negative_numbers = true, display_order = 12)]
    watch_debounce_timeout: Option<Duration>,
    /// Seconds between two looks whether that time is over [default: a quarter of it]
    #[arg(long, value_parser = parse_duration, allow_negative_numbers = true, display_order = 13)]
    watch_debounce_tick_rate: Option<Duration>,
    /// Read the key from stdin instead of making one: exactly 32 bytes, which are no text
    #[arg(long, display_order = 14)]
    key_from_stdin: bool,
    /// Of use only on Windows
    #[arg(long, hide = true)]
    output_to_local_pipe: Option<OsString>,
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    parse_seconds(text).map_err(|error| error.to_string())
}

/// Runs the command.
///
/// # Errors
///
/// The server does not start; in the background too.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Failure> {
    let Command::Listen(listen) = arguments.command;
    if listen.daemon && !listen.detached {
        return detach(&listen, context).map(|()| ExitCode::SUCCESS);
    }
    if !listen.detached {
        let settings = settings(*listen, context)?;
        serve(settings, |announcement| {
            if let Some(remark) = announcement.remark {
                context.terminal.warn(&remark);
            }
            // Released managers close their end as soon as they have read the connect line.
            let _ = context.terminal.bytes(announcement.said.expose().as_bytes());
            Ok(())
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let readiness = Readiness::begin()
        .map_err(|error| terminal::from_error("the background process cannot begin", &error))?;
    let mut readiness = Some(readiness);
    let served = settings(*listen, context).and_then(|settings| {
        serve(settings, |announcement| {
            let Some(mut readiness) = readiness.take() else { return Ok(()) };
            if let Some(remark) = announcement.remark {
                readiness.remark(remark);
            }
            // A server whose key nobody has heard must not stay.
            readiness.ready(announcement.said).map_err(io::Error::other)
        })
    });
    match (served, readiness) {
        (Err(Failure::Failed(error) | Failure::Usage(error)), Some(readiness)) => {
            readiness.failed(error);
            Ok(ExitCode::FAILURE)
        }
        (served, _) => served.map(|()| ExitCode::SUCCESS),
    }
}

/// Starts the server in the background and says how it is reached.
fn detach(listen: &Listen, context: &Context) -> Result<(), Failure> {
    // What is wrong with the settings is said without starting anything.
    settings(Listen { key_from_stdin: false, ..listen.clone() }, context)?;
    // Whoever has to type the key takes as long as it takes.
    let within = (!listen.key_from_stdin).then_some(START);
    let server = daemon::detach(std::env::args_os().skip(1), within)?;
    if let Some(remark) = &server.remark {
        context.terminal.warn(remark);
    }
    let line = connect_line::detached_line(server.pid);
    let said = Secret::new(format!("{line}\n{}", server.said.expose()));
    context.terminal.bytes(said.expose().as_bytes()).map_err(|error| {
        // Nobody has its key, so nobody can ever use it.
        server.kill();
        error.into()
    })
}

fn serve(
    settings: Settings,
    announce: impl FnOnce(Announcement) -> io::Result<()>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| terminal::from_error("cannot start", &error))?;
    let served = runtime.block_on(server::run(settings, announce));
    // A client's request may still keep a thread busy, and that may never end.
    runtime.shutdown_background();
    served.map_err(|error| {
        tracing::error!(%error, "the server does not start");
        Failure::Failed(error.into())
    })
}

fn settings(listen: Listen, context: &Context) -> Result<Settings, Failure> {
    let configured: &ServerListen = &context.config.server.listen;
    let shutdown = listen.shutdown.or(from_config("shutdown", configured.shutdown.as_deref())?);
    let host = listen.host.clone().or(from_config("host", configured.host.as_deref())?);
    let ports = listen.port.or(from_config("port", configured.port.as_deref())?);
    let current_dir = listen.current_dir.as_ref().or(configured.current_dir.as_ref());
    Ok(Settings {
        host: host.unwrap_or(BindHost::Any),
        ports: ports.unwrap_or_default(),
        use_ipv6: listen.use_ipv6 || configured.use_ipv6.unwrap_or(false),
        shutdown: shutdown.unwrap_or_default(),
        current_dir: current_dir.map(|folder| paths::expand(folder)),
        watch: watch_settings(&listen, &context.config.server.watch)?,
        launch: LaunchSettings {
            announce_proof: paths::is_launched(),
            first_client: paths::is_launched().then(paths::watchdog),
            lifeline: paths::has_lifeline(),
            ssh_address: paths::ssh_connection_address(),
        },
        key: listen.key_from_stdin.then(key_from_stdin).transpose()?,
    })
}

fn from_config<T: FromStr<Err: Display>>(
    key: &str,
    text: Option<&str>,
) -> Result<Option<T>, LaunchError> {
    text.map(str::parse).transpose().map_err(|error: T::Err| {
        let value = text.unwrap_or_default();
        let message = format!("`server.listen.{key}` in the configuration is `{value}`");
        LaunchError::new(ErrorKind::InvalidOption, message).caused_by(error.to_string())
    })
}

fn watch_settings(listen: &Listen, configured: &ServerWatch) -> Result<WatchSettings, Failure> {
    let usual = WatchSettings::default();
    let timeout = listen.watch_debounce_timeout.or(configured.debounce_timeout);
    let settings = WatchSettings {
        polling: listen.watch_polling || configured.native == Some(false),
        poll_interval: listen.watch_poll_interval.or(configured.poll_interval),
        compare_contents: listen.watch_compare_contents
            || configured.compare_contents.unwrap_or(false),
        debounce_timeout: timeout.unwrap_or(usual.debounce_timeout),
        debounce_tick_rate: listen.watch_debounce_tick_rate.or(configured.debounce_tick_rate),
    };
    match settings.debounce_tick_rate {
        Some(rate) if rate > settings.debounce_timeout => {
            let message = format!(
                "the debounce tick rate of {rate:?} is longer than the debounce timeout of {:?}",
                settings.debounce_timeout
            );
            Err(Failure::usage(message))
        }
        _ => Ok(settings),
    }
}

fn key_from_stdin() -> Result<SessionKey, LaunchError> {
    let mut bytes = zeroize::Zeroizing::new([0; SessionKey::LENGTH]);
    io::stdin().lock().read_exact(&mut *bytes).map_err(|error| {
        LaunchError::new(ErrorKind::Other, "cannot read the key from standard input")
            .because(&error)
            .with_hint("it has to be 32 bytes, such as those of `head -c 32 /dev/urandom`")
    })?;
    Ok(SessionKey::new(*bytes))
}
