//! The log of this process: for whoever looks for what happened, readable by its owner alone.

use std::path::{Path, PathBuf};

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::Layer;

use super::arguments::Level;
use super::config::Config;
use super::log_file::LogFile;
use super::{Context, Failure};
use crate::paths;

/// What kind of process it is; each kind has a log of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A command that ends.
    Client,
    /// `distant manager listen`.
    Manager,
    /// `distant server listen`.
    Server,
}

impl Role {
    fn default_file(self) -> PathBuf {
        let name = match self {
            Self::Client => "client.log",
            Self::Manager => "manager.log",
            Self::Server => "server.log",
        };
        paths::cache_dir().join(name)
    }

    fn configured(self, config: &Config) -> (Option<&Path>, Option<Level>) {
        let (file, level) = match self {
            Self::Client => (&config.client.log_file, config.client.log_level),
            Self::Manager => (&config.manager.log_file, config.manager.log_level),
            Self::Server => (&config.server.log_file, config.server.log_level),
        };
        (file.as_deref(), level)
    }
}

/// Where a manager logs that is started without flags.
pub(crate) fn manager_file(config: &Config) -> PathBuf {
    let (file, _) = Role::Manager.configured(config);
    file.map_or_else(|| Role::Manager.default_file(), paths::expand)
}

/// Begins to log.
///
/// # Errors
///
/// A file that was asked for cannot be written. Without the default one the process goes on.
pub(crate) fn start(context: &Context, role: Role) -> Result<(), Failure> {
    let common = &context.common;
    let (file, level) = role.configured(&context.config);
    let level = filter(common.log_level.or(level).unwrap_or_default());
    if level == LevelFilter::OFF {
        return Ok(());
    }
    let named = common.log_file.as_deref().or(file);
    let path = named.map_or_else(|| role.default_file(), paths::expand);
    let log = match LogFile::open(&path) {
        Ok(log) => log,
        Err(error) => {
            let message = format!("cannot write the log file `{}`", path.display());
            if named.is_some() {
                return Err(LaunchError::new(ErrorKind::Other, message).because(&error).into());
            }
            context.terminal.warn(&format!("{message}: {error}"));
            return Ok(());
        }
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(log)
        .with_filter(targets(level));
    // Only a second call could fail, and there is none.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    for key in &context.config.unknown {
        tracing::debug!("nothing reads the key {key}");
    }
    Ok(())
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}

/// What of the program's own is wanted, and of all others what tells that something is wrong.
fn targets(level: LevelFilter) -> Targets {
    let others = level.min(LevelFilter::WARN);
    // A name stands for all that begin with it: `distant` for `distant_local` as well, whose traces
    // have all that a client sends.
    Targets::new().with_default(others).with_targets([("distant", level), ("distant_", others)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn only_the_programs_own_words_are_kept_below_warnings() {
        let trace = targets(LevelFilter::TRACE);
        for own in ["distant", "distant::manager::launch"] {
            assert!(trace.would_enable(own, &Level::TRACE), "{own}");
        }
        for other in ["distant_local::api", "distant_core", "distant_net::common", "russh", "tokio"]
        {
            assert!(!trace.would_enable(other, &Level::INFO), "{other}");
            assert!(trace.would_enable(other, &Level::WARN), "{other}");
        }
        let error = targets(LevelFilter::ERROR);
        assert!(!error.would_enable("distant_local", &Level::WARN));
        assert!(!error.would_enable("distant::cli", &Level::WARN));
    }
}
