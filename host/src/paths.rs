//! Where files, sockets and folders are: the only file that reads the environment.
//!
//! The places are those of distant 0.20, so that both find each other's manager, config and cache.

#![allow(clippy::disallowed_methods, reason = "this is the file that reads the environment")]

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The variables of a client's environment that a plugin gets to see.
pub const LAUNCH_ENVIRONMENT: [&str; 6] =
    ["HOME", "KRB5CCNAME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "USER"];

/// Name of the program, of its folders and its sockets.
const NAME: &str = "distant";

fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The home folder, `/` where there is none.
pub fn home() -> PathBuf {
    env::home_dir().filter(|path| path.is_absolute()).unwrap_or_else(|| PathBuf::from("/"))
}

/// Expands a leading `~/`, or `~` alone, to the home folder.
pub fn expand(path: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home().join(rest),
        Err(_) => path.to_owned(),
    }
}

/// Whether a terminal can move its cursor and show colours.
pub fn has_capable_terminal() -> bool {
    env::var_os("TERM").is_none_or(|name| name != "dumb")
}

/// Whether the person wants colours where a terminal can show them: <https://no-color.org>.
pub fn wants_colours() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether texts of the locale are in UTF-8; the first variable that is set says so.
pub fn has_utf8_locale() -> bool {
    let set = |name: &&str| env::var_os(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set).unwrap_or_default();
    let locale = locale.to_string_lossy().to_lowercase();
    locale.ends_with("utf-8") || locale.ends_with("utf8")
}

/// The account's name as the system has it; `$USER` may be anything.
pub fn user_name() -> String {
    let id = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_id = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    });
    of_id.or_else(|| env::var("USER").ok()).unwrap_or_else(|| id.to_string())
}

/// Folder of the user's own configuration.
pub fn config_dir() -> PathBuf {
    absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home().join(".config")).join(NAME)
}

/// The configuration of everybody on this machine.
pub fn global_config() -> PathBuf {
    PathBuf::from("/etc/distant/config.toml")
}

/// The user's own configuration.
pub fn user_config() -> PathBuf {
    config_dir().join("config.toml")
}

/// Folder of the cache file and the logs.
pub fn cache_dir() -> PathBuf {
    absolute("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join(NAME)
}

/// The file that remembers the selected connection.
pub fn cache_file() -> PathBuf {
    cache_dir().join("cache.toml")
}

/// Folder of what belongs to the user and is no configuration, such as installed plugins.
pub fn data_dir() -> PathBuf {
    absolute("XDG_DATA_HOME").unwrap_or_else(|| home().join(".local/share")).join(NAME)
}

/// Folder for temporary files.
pub fn temp_dir() -> PathBuf {
    env::temp_dir()
}

/// The socket of the user's own manager.
pub fn user_socket() -> PathBuf {
    let name = format!("{}.distant.sock", user_name());
    match absolute("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join(NAME).join(name),
        None => temp_dir().join(name),
    }
}

/// The socket of a manager for everybody on this machine.
pub fn global_socket() -> PathBuf {
    PathBuf::from("/run/distant.sock")
}

/// The folders of `$DISTANT_PLUGIN_PATH`; relative ones are left out.
pub fn plugin_path() -> Vec<PathBuf> {
    let folders = env::var_os("DISTANT_PLUGIN_PATH").unwrap_or_default();
    env::split_paths(&folders).filter(|folder| folder.is_absolute()).collect()
}

/// The running program's file, for its folder and for messages.
///
/// # Errors
///
/// The system does not tell.
pub fn executable() -> std::io::Result<PathBuf> {
    env::current_exe()
}

/// A path that starts this very program, even after its file was replaced.
pub fn executable_to_spawn() -> PathBuf {
    let this = PathBuf::from("/proc/self/exe");
    if this.exists() {
        this
    } else {
        env::current_exe().unwrap_or(this)
    }
}

/// Looks a program up in `$PATH`; a name with a `/` is looked up as it is.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if name.contains('/') {
        return Some(expand(Path::new(name))).filter(is_program);
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    // Never the current folder: the manager's is nobody's choice.
    let folders = env::split_paths(&folders).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(name)).find(is_program)
}

/// What a launch takes along of this process's environment.
pub fn launch_environment() -> BTreeMap<String, String> {
    let value = |name: &str| Some((name.to_owned(), env::var(name).ok()?));
    LAUNCH_ENVIRONMENT.into_iter().filter_map(value).collect()
}

/// This process's environment without the variables that load code into programs (`LD_*`).
pub fn worker_environment() -> Vec<(OsString, OsString)> {
    env::vars_os().filter(|(name, _)| !name.as_encoded_bytes().starts_with(b"LD_")).collect()
}

/// The third field of `$SSH_CONNECTION`: the address that this ssh session came to.
pub fn ssh_connection_address() -> Option<String> {
    env::var("SSH_CONNECTION").ok()?.split_whitespace().nth(2).map(str::to_owned)
}

/// The variables that are meant for one launched server, and for nothing that it starts.
pub const LAUNCH_VARIABLES: [&str; 3] =
    ["DISTANT_LAUNCH", "DISTANT_LIFELINE", "DISTANT_WATCHDOG_MS"];

/// Whether a launch started this server: then it prints that it takes the proof, and ends if
/// nobody comes (`DISTANT_LAUNCH=1`).
pub fn is_launched() -> bool {
    env::var_os("DISTANT_LAUNCH").is_some_and(|value| value == "1")
}

/// Whether this server ends when its standard input does (`DISTANT_LIFELINE=stdin`).
pub fn has_lifeline() -> bool {
    env::var_os("DISTANT_LIFELINE").is_some_and(|value| value == "stdin")
}

/// How long a launched server waits for its first client: `DISTANT_WATCHDOG_MS`, else 60 s.
pub fn watchdog() -> std::time::Duration {
    let given = env::var("DISTANT_WATCHDOG_MS").ok().and_then(|value| value.parse().ok());
    std::time::Duration::from_millis(given.unwrap_or(60_000))
}
