//! The log file of this process: for whoever looks for what happened, readable by its owner alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
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
use super::{Context, Failure};
use crate::paths;

/// A log that is longer is put aside when the next process starts to write.
const LOG_MAX: u64 = 10 * 1024 * 1024;

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
    let log = match open(&path) {
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
    // What the libraries below say is of use only where something is wrong.
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_targets([("distant", level), ("plugin", level)]);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::sync::Arc::new(log))
        .with_filter(targets);
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

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if path.metadata().is_ok_and(|found| found.is_file() && found.len() > LOG_MAX) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".old");
        std::fs::rename(path, aside)?;
    }
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let found = log.metadata()?;
    if found.is_file() && found.permissions().mode() & 0o077 != 0 {
        // A released distant leaves its logs readable for everybody.
        log.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_its_owners_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/client.log");
        open(&path).unwrap().write_all(b"one\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        open(&path).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.log");
        open(&path).unwrap().set_len(LOG_MAX + 1).unwrap();
        assert_eq!(open(&path).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(folder.path().join("client.log.old").metadata().unwrap().len(), LOG_MAX + 1);
    }
}
