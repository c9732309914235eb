//! `distant manager listen`: runs the manager, here or in the background.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;

use super::arguments::{word, Access, Listen, Network};
use super::{absolute, terminal, Context, Failure};
use crate::daemon::{self, Readiness};
use crate::manager::{self, ManagerError, Settings};
use crate::paths;

/// How long a manager in the background may take to be ready.
const START: Duration = Duration::from_secs(20);

/// What is left of workers and lookups gets so long when the manager has ended.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// Runs the command.
///
/// # Errors
///
/// There is a manager already, or the socket cannot be made.
pub(crate) fn run(arguments: &Listen, context: &Context) -> Result<ExitCode, Failure> {
    let network = context.manager_network(&arguments.network);
    if arguments.daemon && !arguments.detached {
        let started = start(arguments_again(arguments, context))?;
        context.terminal.line(&format!("[distant manager detached, pid = {}]", started.pid))?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = settings(arguments, &network, context)?;
    if !arguments.detached {
        return serve(settings, || ()).map(|()| ExitCode::SUCCESS).map_err(Failure::from);
    }
    let readiness = Readiness::begin()
        .map_err(|error| terminal::from_error("the background process cannot begin", &error))?;
    // It stays for long, and may not keep a folder from being removed or unmounted.
    let _ = std::env::set_current_dir("/");
    let mut readiness = Some(readiness);
    let result = serve(settings, || {
        if let Some(readiness) = readiness.take() {
            // Whoever has started it may have given up; the next one finds it.
            let _ = readiness.ready(Secret::default());
        }
    });
    match (result, readiness) {
        (Err(error), Some(readiness)) => readiness.failed(error),
        (Err(error), None) => return Err(error.into()),
        (Ok(()), _) => return Ok(ExitCode::SUCCESS),
    }
    Ok(ExitCode::FAILURE)
}

/// Starts the user's own manager in the background, for a command that needs one.
///
/// # Errors
///
/// Why it did not get ready.
pub(crate) fn start_own(socket: PathBuf, config: Option<PathBuf>) -> Result<(), LaunchError> {
    let mut arguments: Vec<OsString> =
        ["manager", "listen", "--unix-socket"].map(Into::into).into();
    arguments.push(socket.into());
    if let Some(config) = config {
        arguments.extend(["--config".into(), config.into()]);
    }
    start(arguments).map(drop)
}

fn start(arguments: Vec<OsString>) -> Result<daemon::Detached, LaunchError> {
    daemon::detach(arguments, Some(START))
}

/// The same command line, for the process in the background.
fn arguments_again(arguments: &Listen, context: &Context) -> Vec<OsString> {
    let mut again: Vec<OsString> = context.common.again();
    again.extend(["manager", "listen"].map(OsString::from));
    let mut flag = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            again.extend([name.into(), value]);
        }
    };
    let network = &arguments.network;
    flag("--unix-socket", network.unix_socket.clone().map(Into::into));
    flag("--windows-pipe", network.windows_pipe.clone().map(Into::into));
    flag("--access", arguments.access.map(|access| word(access).into()));
    for (name, path) in &arguments.plugins.named {
        let mut value = OsString::from(name);
        value.push("=");
        value.push(path);
        flag("--plugin", Some(value));
    }
    if arguments.user {
        again.push("--user".into());
    }
    again
}

fn settings(
    arguments: &Listen,
    network: &Network,
    context: &Context,
) -> Result<Settings, LaunchError> {
    let socket = match (&arguments.network.unix_socket, arguments.user, &network.unix_socket) {
        (Some(named), _, _) => paths::expand(named),
        (None, true, _) => paths::user_socket(),
        (None, false, Some(configured)) => paths::expand(configured),
        (None, false, None) => paths::global_socket(),
    };
    let access = arguments.access.or(context.config.manager.access).unwrap_or_default();
    let mut settings = Settings::new(absolute(socket)?);
    settings.access = match access {
        Access::Owner => manager::Access::Owner,
        Access::Group => manager::Access::Group,
        Access::Anyone => manager::Access::Anyone,
    };
    settings.limits = context.config.manager.limits.clone();
    settings.plugins = context.plugins(&arguments.plugins)?;
    Ok(settings)
}

fn serve(settings: Settings, ready: impl FnOnce()) -> Result<(), LaunchError> {
    let socket = settings.socket.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| terminal::from_error("cannot start", &error))?;
    let run = runtime.block_on(manager::run(settings, ready));
    // The lookup of a name may still keep a thread busy for as long as the resolver likes.
    runtime.shutdown_timeout(LEFTOVERS);
    run.map_err(|error| {
        tracing::error!(%error, "no manager is running");
        let said = terminal::from_error("the manager cannot be started", &error);
        match error {
            ManagerError::InUse { .. } => said.with_hint(format!(
                "use the one that is running, or end it with `distant manager stop --unix-socket {}`",
                socket.display()
            )),
            ManagerError::Io { ref source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                said.with_hint("`--user` listens on a socket of your own")
            }
            _ => said,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments::{Arguments, Command, Manager};
    use clap::Parser;

    #[test]
    fn the_process_in_the_background_is_told_the_same() {
        let line = [
            "distant",
            "manager",
            "listen",
            "--daemon",
            "--user",
            "--access",
            "group",
            "--plugin",
            "a=/b",
            "--unix-socket",
            "/s",
            "--log-level",
            "trace",
            "--config",
            "/c",
            "--log-file",
            "/l",
        ];
        let parsed = Arguments::try_parse_from(line).unwrap();
        let Command::Manager(Manager::Listen(arguments)) = parsed.command else { panic!() };
        let context = Context::for_test(parsed.common);
        let mut again = vec![OsString::from("distant")];
        again.extend(arguments_again(&arguments, &context));
        again.push(daemon::DETACHED_FLAG.into());
        let parsed = Arguments::try_parse_from(again).unwrap();
        let Command::Manager(Manager::Listen(again)) = parsed.command else { panic!() };
        assert!(again.detached && !again.daemon && again.user);
        assert_eq!(again.access, arguments.access);
        assert_eq!(again.plugins.named, arguments.plugins.named);
        assert_eq!(again.network.unix_socket, arguments.network.unix_socket);
        assert_eq!(parsed.common.log_file, Some("/l".into()));
        assert_eq!(parsed.common.config, Some("/c".into()));
        assert_eq!(parsed.common.log_level, context.common.log_level);
    }
}
