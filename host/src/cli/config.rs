//! The configuration files: what a person has written down once instead of giving a flag each time.
//!
//! Every key may be missing. The user's file wins over the one for everybody, key by key; with
//! `--config` only that file counts. Unknown keys are logged and otherwise ignored, so that a file
//! for another version of distant serves as well, but one that looks misspelt is warned of; a value
//! of the wrong type is an error with its line.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distant_plugin_api::message::{BindServer, ErrorKind};
use distant_plugin_api::options::Options;
use distant_plugin_api::LaunchError;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::arguments::{parse_bind_server, Access, Level};
use crate::range::OutOfRange;
use crate::{manager, paths, plugin};

/// All of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// `[client]`: what starts, connects to and uses servers.
    pub(crate) client: Client,
    /// `[manager]`: what keeps the connections.
    pub(crate) manager: Manager,
    /// `[server]`: what serves.
    pub(crate) server: Server,
    /// Keys that nothing reads, with their file.
    #[serde(skip)]
    pub(crate) unknown: Vec<String>,
    /// Those of them that look like one that something reads, with that one.
    #[serde(skip)]
    pub(crate) misspelt: Vec<String>,
}

/// `[client]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Client {
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_level: Option<Level>,
    /// The manager's socket; then it is the only one that is tried.
    pub(crate) unix_socket: Option<PathBuf>,
    pub(crate) windows_pipe: Option<String>,
    /// `[client.api]`
    pub(crate) api: Api,
    /// `[client.connect]`
    pub(crate) connect: Connect,
    /// `[client.launch]`
    pub(crate) launch: Launch,
}

/// `[client.api]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Api {
    /// How long to wait for an answer; 0 means for ever.
    #[serde(deserialize_with = "seconds")]
    pub(crate) timeout: Option<Duration>,
}

/// `[client.connect]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Connect {
    #[serde(deserialize_with = "options")]
    pub(crate) options: Options,
}

/// `[client.launch]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Launch {
    /// The program to start; wins over the key of the same name in `distant`.
    pub(crate) bin: Option<String>,
    /// The address that it listens on; likewise.
    #[serde(deserialize_with = "bind_server")]
    pub(crate) bind_server: Option<BindServer>,
    /// Further arguments for it; likewise.
    pub(crate) args: Option<String>,
    /// The program to bring there; likewise.
    pub(crate) upload: Option<String>,
    #[serde(deserialize_with = "options")]
    pub(crate) options: Options,
    /// `[client.launch.distant]`
    pub(crate) distant: LaunchDistant,
}

/// `[client.launch.distant]`: the same four keys, where some documentation has them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LaunchDistant {
    pub(crate) bin: Option<String>,
    #[serde(deserialize_with = "bind_server")]
    pub(crate) bind_server: Option<BindServer>,
    pub(crate) args: Option<String>,
    pub(crate) upload: Option<String>,
}

/// `[manager]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Manager {
    /// Who may use its socket.
    pub(crate) access: Option<Access>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_level: Option<Level>,
    pub(crate) unix_socket: Option<PathBuf>,
    pub(crate) windows_pipe: Option<String>,
    /// `[manager.limits]`: what a launch and a client may take.
    pub(crate) limits: manager::Limits,
    /// `[manager.worker]`: what a worker may take.
    pub(crate) worker: plugin::Limits,
}

/// `[server]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Server {
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_level: Option<Level>,
    /// `[server.listen]`
    pub(crate) listen: ServerListen,
    /// `[server.watch]`
    pub(crate) watch: ServerWatch,
}

/// `[server.listen]`: what stands for a flag of `distant server listen` that is not given.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServerListen {
    pub(crate) host: Option<String>,
    /// A port or a range of them, as text or as a number.
    #[serde(deserialize_with = "text_or_number")]
    pub(crate) port: Option<String>,
    pub(crate) use_ipv6: Option<bool>,
    pub(crate) shutdown: Option<String>,
    pub(crate) current_dir: Option<PathBuf>,
}

/// `[server.watch]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServerWatch {
    pub(crate) native: Option<bool>,
    pub(crate) compare_contents: Option<bool>,
    #[serde(deserialize_with = "seconds")]
    pub(crate) poll_interval: Option<Duration>,
    #[serde(deserialize_with = "seconds")]
    pub(crate) debounce_timeout: Option<Duration>,
    #[serde(deserialize_with = "seconds")]
    pub(crate) debounce_tick_rate: Option<Duration>,
}

/// Every key that something reads. `*` stands for any name.
const KNOWN: [&str; 52] = [
    "client.api.timeout",
    "client.connect.options",
    "client.launch.args",
    "client.launch.bin",
    "client.launch.bind_server",
    "client.launch.distant.args",
    "client.launch.distant.bin",
    "client.launch.distant.bind_server",
    "client.launch.distant.upload",
    "client.launch.options",
    "client.launch.upload",
    "client.log_file",
    "client.log_level",
    "client.unix_socket",
    "client.windows_pipe",
    "manager.access",
    "manager.limits.allocate",
    "manager.limits.backlog",
    "manager.limits.channels",
    "manager.limits.clients",
    "manager.limits.connect",
    "manager.limits.kill",
    "manager.limits.launches",
    "manager.limits.offers",
    "manager.limits.patience",
    "manager.limits.pending",
    "manager.limits.plugin",
    "manager.limits.question",
    "manager.limits.questions",
    "manager.limits.reconnect",
    "manager.limits.slow",
    "manager.limits.ticket",
    "manager.limits.upload",
    "manager.log_file",
    "manager.log_level",
    "manager.unix_socket",
    "manager.windows_pipe",
    "manager.worker.grace",
    "manager.worker.hello",
    "manager.worker.output",
    "manager.worker.output_rate",
    "manager.worker.terminate",
    "server.listen.current_dir",
    "server.listen.host",
    "server.listen.port",
    "server.listen.shutdown",
    "server.listen.use_ipv6",
    "server.log_file",
    "server.log_level",
    "server.watch.*",
    "generate.log_file",
    "generate.log_level",
];

impl Config {
    /// Reads `--config`'s file, or else the one for everybody and the user's over it.
    ///
    /// A configuration names programs that are run. So those that nobody has to name are trusted as
    /// `plugins.toml` is, and `ssh` trusts its own; one that is named is the choice of whoever does.
    ///
    /// # Errors
    ///
    /// `invalid_option`: the file that was named is missing, one cannot be read or understood, or
    /// somebody else could have written it.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, LaunchError> {
        let found = |path: PathBuf| {
            Ok::<_, LaunchError>(plugin::read_trusted(&path)?.map(|text| (path, text)))
        };
        match named {
            Some(path) => Self::merge([Some(read(path)?)]),
            None => Self::merge([found(paths::global_config())?, found(paths::user_config())?]),
        }
    }

    /// Puts the texts of files together, the later ones over the earlier.
    fn merge<const N: usize>(files: [Option<(PathBuf, String)>; N]) -> Result<Self, LaunchError> {
        let mut merged = Table::new();
        let (mut unknown, mut misspelt) = (Vec::new(), Vec::new());
        for (path, text) in files.into_iter().flatten() {
            let broken = |error: toml::de::Error| broken(&path, &text, &error);
            // The types are checked file by file, because only here the lines are known.
            let own = toml::from_str::<Self>(&text).map_err(broken)?;
            own.check().map_err(|error| wrong(&path).caused_by(error.to_string()))?;
            let table = text.parse::<Table>().map_err(broken)?;
            for key in unknown_keys(&table, "") {
                let place = format!("`{key}` in `{}`", path.display());
                if let Some(meant) = plugin::nearest(&key, KNOWN.into_iter()) {
                    misspelt.push(format!("nothing reads {place}; did you mean `{meant}`?"));
                }
                unknown.push(place);
            }
            lay_over(&mut merged, table);
        }
        let config = Value::Table(merged).try_into::<Self>().map_err(|error| {
            LaunchError::new(
                ErrorKind::InvalidOption,
                "the configuration files do not fit together",
            )
            .caused_by(error.message())
        })?;
        Ok(Self { unknown, misspelt, ..config })
    }
}

impl Config {
    /// Checks the limits among it.
    fn check(&self) -> Result<(), OutOfRange> {
        self.manager.limits.check("manager.limits")?;
        self.manager.worker.check("manager.worker")
    }
}

fn wrong(path: &Path) -> LaunchError {
    let message = format!("the configuration file `{}` is wrong", path.display());
    LaunchError::new(ErrorKind::InvalidOption, message)
}

fn read(path: &Path) -> Result<(PathBuf, String), LaunchError> {
    let text = fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read the configuration file `{}`", path.display());
        LaunchError::new(ErrorKind::InvalidOption, message).because(&error)
    })?;
    Ok((path.to_owned(), text))
}

fn broken(path: &Path, text: &str, error: &toml::de::Error) -> LaunchError {
    let line = error.span().and_then(|span| text.get(..span.start)).map(|before| {
        let line = before.matches('\n').count() + 1;
        format!(" in line {line}")
    });
    let what =
        format!("the configuration file `{}` is wrong{}", path.display(), line.unwrap_or_default());
    // Not the error's own text: it repeats the line, and a line may hold a secret.
    LaunchError::new(ErrorKind::InvalidOption, what).caused_by(error.message())
}

fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn unknown_keys(table: &Table, prefix: &str) -> Vec<String> {
    let mut unknown = Vec::new();
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(table) => unknown.extend(unknown_keys(table, &format!("{key}."))),
            _ if KNOWN.iter().any(|known| is_key(known, &key)) => {}
            _ => unknown.push(key),
        }
    }
    unknown
}

fn is_key(known: &str, key: &str) -> bool {
    match known.strip_suffix('*') {
        Some(prefix) => key.starts_with(prefix),
        None => known == key,
    }
}

fn options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Options, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn bind_server<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BindServer>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_bind_server(&text).map(Some).map_err(D::Error::custom)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    crate::seconds::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(u16),
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = TextOrNumber::deserialize(deserializer)
        .map_err(|_| D::Error::custom("it has to be a port or a range of ports"))?;
    Ok(Some(match value {
        TextOrNumber::Text(text) => text,
        TextOrNumber::Number(number) => number.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load<const N: usize>(texts: [&str; N]) -> Result<Config, LaunchError> {
        let mut number = 0;
        Config::merge(texts.map(|text| {
            number += 1;
            Some((PathBuf::from(format!("{number}.toml")), text.to_owned()))
        }))
    }

    fn check_error(text: &str, expected: &str) {
        assert_eq!(load([text]).unwrap_err().one_line(), expected, "{text}");
    }

    #[test]
    fn the_later_file_wins_key_by_key() {
        let config = load([
            "[client.launch]\nbin = 'everybody'\nargs = '--port 1'\n[manager]\naccess = 'group'",
            "[client.launch]\nbin = 'mine'\noptions = 'backend=libssh'",
        ])
        .unwrap();
        assert_eq!(config.client.launch.bin.as_deref(), Some("mine"));
        assert_eq!(config.client.launch.args.as_deref(), Some("--port 1"));
        assert_eq!(config.client.launch.options.get("backend"), Some("libssh"));
        assert_eq!(config.manager.access, Some(Access::Group));
    }

    #[test]
    fn every_key_of_0_20_is_known() {
        let config = load([r#"
            [client]
            log_file = "c.log"
            log_level = "info"
            unix_socket = "/s"
            [client.api]
            timeout = 0
            [client.connect]
            options = ""
            [client.launch]
            bin = "distant"
            bind_server = "ssh"
            args = ""
            options = ""
            [generate]
            log_level = "info"
            [manager]
            log_level = "trace"
            access = "owner"
            [server]
            log_level = "off"
            [server.listen]
            host = "any"
            port = "0"
            use_ipv6 = false
            shutdown = "never"
            [server.watch]
            native = true
            compare_contents = false
            poll_interval = 30
            debounce_timeout = 0.5
        "#])
        .unwrap();
        assert_eq!(config.unknown, Vec::<String>::new());
        assert_eq!(config.client.api.timeout, Some(Duration::ZERO));
        assert_eq!(config.client.launch.bind_server, Some(BindServer::Ssh));
        assert_eq!(config.manager.log_level, Some(Level::Trace));
        assert_eq!(config.server.watch.debounce_timeout, Some(Duration::from_millis(500)));
    }

    #[test]
    fn limits_are_numbers_and_seconds() {
        let text = "[manager.limits]\nlaunches = 2\nplugin = 1.5\n[manager.worker]\ngrace = 3";
        let config = load([text, ""]).unwrap();
        assert_eq!(config.unknown, Vec::<String>::new());
        let limits = manager::Limits {
            launches: 2,
            plugin: Duration::from_millis(1500),
            ..manager::Limits::default()
        };
        assert_eq!(config.manager.limits, limits);
        assert_eq!(config.manager.worker.grace, Duration::from_secs(3));
        assert!(load(["[manager.limits]\nslow = -1", ""]).is_err());
    }

    #[test]
    fn a_limit_with_which_nothing_would_work_is_an_error_that_says_what_is_allowed() {
        for (table, line, allowed) in [
            ("manager.limits", "launches = 0", "from 1 to 1024"),
            ("manager.limits", "pending = 1000000", "from 1 to 1024"),
            ("manager.limits", "clients = 0", "from 1 to 65536"),
            ("manager.limits", "backlog = 9999999999", "from 65536 to 1073741824"),
            ("manager.limits", "plugin = 0", "from 0.1 to 86400"),
            ("manager.limits", "kill = 86401", "from 0.1 to 86400"),
            ("manager.worker", "hello = 0.01", "from 0.1 to 3600"),
            ("manager.worker", "grace = 1e7", "from 0 to 3600"),
            ("manager.worker", "output_rate = 0", "from 4096 to 1073741824"),
        ] {
            let error = load([format!("[{table}]\n{line}").as_str(), ""])
                .unwrap_err()
                .one_line()
                .into_owned();
            let (key, value) = line.split_once(" = ").unwrap();
            let value: f64 = value.parse().unwrap();
            let expected = format!(
                "the configuration file `1.toml` is wrong: \
                 `{table}.{key}` is {value}, and has to be {allowed}"
            );
            assert_eq!(error, expected);
        }
        check_error(
            "[client.api]\ntimeout = 1e18",
            "the configuration file `1.toml` is wrong in line 2: \
             it has to be a number of seconds from 0 to 31536000, a year",
        );
    }

    #[test]
    fn an_unknown_key_is_named_and_ignored() {
        let config = load(["[client.lunch]\nbin = 'x'\n[new]\n", "colour = true"]).unwrap();
        assert_eq!(config.unknown, ["`client.lunch.bin` in `1.toml`", "`colour` in `2.toml`"]);
        let meant =
            "nothing reads `client.lunch.bin` in `1.toml`; did you mean `client.launch.bin`?";
        assert_eq!(config.misspelt, [meant]);
    }

    #[test]
    fn a_wrong_value_is_an_error_with_its_file_and_line() {
        check_error(
            "\n[client.launch]\nbin = 5",
            "the configuration file `1.toml` is wrong in line 3: \
             invalid type: integer `5`, expected a string",
        );
        check_error(
            "[client.launch]\noptions = 'a=1,secret'",
            "the configuration file `1.toml` is wrong in line 2: \
             what follows the value of `a` is no option; a value with a comma has to be quoted",
        );
        check_error(
            "[client.launch]\nbind_server = 'a b'",
            "the configuration file `1.toml` is wrong in line 2: \
             `a b` is no host name or address: a label has only letters, digits, `-` and `_`",
        );
        check_error(
            "[server.listen]\nport = true",
            "the configuration file `1.toml` is wrong in line 2: \
             it has to be a port or a range of ports",
        );
    }

    #[test]
    fn a_file_that_is_missing_matters_only_if_it_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        assert!(plugin::read_trusted(&path).unwrap().is_none());
        assert!(plugin::read_trusted(Path::new("/dev/null/distant")).unwrap().is_none());
        let error = Config::load(Some(&path)).unwrap_err().one_line().into_owned();
        assert!(error.starts_with("cannot read the configuration file `/"), "{error}");
    }
}
