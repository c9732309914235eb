//! What the command line may hold: one type for each command, with the words of its `--help`.
//!
//! Flags, forms and help texts of `launch` are those of distant 0.20. Destinations and option maps
//! stay unparsed here: they may hold a secret, and clap repeats in its errors what it cannot parse.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::BindServer;
use distant_plugin_api::secret::Secret;

use super::{complete, plugin, server};
use crate::paths;

/// Operate on a remote computer through file and process manipulation
#[derive(Debug, Parser)]
#[command(
    name = "distant",
    version = "0.20.0",
    max_term_width = 100,
    after_help = EXIT_CODES
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The README has the same table.
const EXIT_CODES: &str = concat!(
    "\
Exit codes: 0 done, 1 failed, 2 the command line cannot be read, 130 interrupted (Ctrl-C).
`distant spawn` ends with the code of the command that it ran.

This is distant launcher ",
    env!("CARGO_PKG_VERSION"),
    ". `--version` says the version of distant that it is compatible with,
as editors ask for that."
);

/// What every command takes. Behind its own flags, of which `launch` has those of 0.20 among these.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Common {
    /// Log level to use throughout the application
    #[arg(long, value_enum, global = true, display_order = 102)]
    pub(crate) log_level: Option<Level>,
    /// Path to file to use for logging
    #[arg(long, global = true, display_order = 104)]
    pub(crate) log_file: Option<PathBuf>,
    /// Configuration file to load instead of the default paths
    #[arg(long = "config", value_name = "CONFIG_PATH", global = true, display_order = 105)]
    pub(crate) config: Option<PathBuf>,
}

impl Common {
    /// The same flags, for another process of this program.
    pub(crate) fn again(&self) -> Vec<OsString> {
        let mut again = Vec::new();
        let mut flag = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                again.extend([name.into(), value]);
            }
        };
        flag("--log-level", self.log_level.map(|level| word(level).into()));
        flag("--log-file", self.log_file.clone().map(Into::into));
        flag("--config", self.config.clone().map(Into::into));
        again
    }
}

/// The word that stands for a value on the command line.
pub(crate) fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "help texts, where the words alone stand in the released program")]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// One command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Listen over stdin & stdout to communicate with a distant server using the JSON lines API
    Api(Api),
    /// Requests that active manager connects to the server at the specified destination
    Connect(Connect),
    /// Launches the server-portion of the binary on a remote machine
    Launch(Launch),
    /// Spawn a process on the remote machine
    Spawn(Spawn),
    /// Perform manager commands
    #[command(subcommand)]
    Manager(Manager),
    /// Perform server commands
    Server(server::Arguments),
    /// Show and choose the plugins that launch servers
    Plugin(plugin::Arguments),
    /// Print what makes a shell complete the commands of this program
    Completions(complete::Completions),
    /// Print what may follow on a command line
    #[command(hide = true)]
    Complete(complete::Complete),
    /// Runs one plugin for one launch
    #[command(hide = true)]
    PluginWorker(PluginWorker),
    /// Loads one plugin and tells what it does meanwhile
    #[command(hide = true)]
    PluginProbe(PluginProbe),
    /// Subcommands for file system operations
    #[command(hide = true, disable_help_flag = true)]
    Fs(Elsewhere),
    /// Perform generation commands
    #[command(hide = true, disable_help_flag = true)]
    Generate(Elsewhere),
    /// Specialized treatment of running a remote shell process
    #[command(hide = true, disable_help_flag = true)]
    Shell(Elsewhere),
    /// Represents common networking configuration
    #[command(hide = true, disable_help_flag = true)]
    SystemInfo(Elsewhere),
    /// Retrieves version information of the remote server
    #[command(hide = true, disable_help_flag = true)]
    Version(Elsewhere),
}

/// `distant plugin-worker`, which only the manager calls.
#[derive(Debug, Args)]
pub(crate) struct PluginWorker {
    /// The plugin's file, already opened
    #[arg(long)]
    pub(crate) fd: Option<i32>,
    /// The plugin is a program
    #[arg(long)]
    pub(crate) exec: bool,
    /// The age of the host's table: usual, older or newer
    #[arg(long)]
    pub(crate) host_table: Option<String>,
    /// The plugin's file
    pub(crate) path: PathBuf,
}

/// `distant plugin-probe`, which only `distant plugin test` calls.
#[derive(Debug, Args)]
pub(crate) struct PluginProbe {
    /// The plugin's file
    pub(crate) path: PathBuf,
}

/// A command of the released program that this one does not have, with whatever follows it.
#[derive(Debug, Args)]
pub(crate) struct Elsewhere {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

/// How results are written and questions are asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Sends and receives data in JSON format
    Json,
    /// Commands are traditional shell commands and output responses are inline with what is
    /// expected of a program's output in a shell
    #[default]
    Shell,
}

/// The format of a command that has two.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FormatFlag {
    /// [default: shell]
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        hide_default_value = true,
        display_order = 111
    )]
    pub(crate) format: Format,
}

/// Where the manager is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Network {
    /// Override the path to the Unix socket used by the manager (unix-only)
    #[arg(long, display_order = 109)]
    pub(crate) unix_socket: Option<PathBuf>,
    /// Override the name of the local named Windows pipe used by the manager (windows-only)
    #[arg(long, display_order = 110)]
    pub(crate) windows_pipe: Option<String>,
}

/// Where the selected connection is remembered.
#[derive(Debug, Clone, Args)]
pub(crate) struct CacheFlag {
    /// Location to store cached data
    #[arg(long, default_value_os_t = paths::cache_file(), display_order = 101)]
    pub(crate) cache: PathBuf,
}

/// `distant launch`.
#[derive(Debug, Args)]
#[command(after_long_help = LAUNCH_HELP, after_help = LAUNCH_HELP)]
pub(crate) struct Launch {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    /// Path to distant program on remote machine to execute via ssh; by default, this program needs
    /// to be available within PATH as specified when compiling ssh (not your login shell)
    #[arg(long = "distant", value_name = "distant", display_order = 103)]
    pub(crate) bin: Option<String>,
    /// Control the IP address that the server binds to.
    ///
    /// The default is `ssh', in which case the server will reply from the IP address that the SSH
    /// connection came from (as found in the SSH_CONNECTION environment variable). This is useful
    /// for multihomed servers.
    ///
    /// With --bind-server=any, the server will reply on the default interface and will not bind to
    /// a particular IP address. This can be useful if the connection is made through sslh or
    /// another tool that makes the SSH connection appear to come from localhost.
    ///
    /// With --bind-server=IP, the server will attempt to bind to the specified IP address.
    #[arg(
        long = "distant-bind-server",
        value_name = "ssh|any|IP",
        value_parser = parse_bind_server,
        display_order = 106
    )]
    pub(crate) bind_server: Option<BindServer>,
    /// Additional arguments to provide to the server
    #[arg(
        long = "distant-args",
        value_name = "distant-args",
        allow_hyphen_values = true,
        display_order = 107
    )]
    pub(crate) args: Option<String>,
    /// Additional options to provide, typically forwarded to the handler within the manager
    /// facilitating the launch of a distant server. Options are key-value pairs separated by comma.
    ///
    /// E.g. `key="value",key2="value2"`
    ///
    /// [default: ]
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_parser = parse_secret,
        display_order = 108
    )]
    pub(crate) options: Secret,
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
    /// Which program of this machine to bring to the remote one: `never`; `auto`, this program, where
    /// none is found there; or the path of another, which is then run in any case, unless
    /// `--distant` names one that is there
    ///
    /// It is kept in `~/.cache/distant/bin` there, so that the next launch finds it.
    #[arg(
        long = "distant-upload",
        value_name = "never|auto|PATH",
        help_heading = "Further options",
        display_order = 11
    )]
    pub(crate) upload: Option<String>,
    /// Show how long each step of the launch took: a table on stderr, in JSON format one line of
    /// the type `timings` on stdout before the last one
    #[arg(long, help_heading = "Further options", display_order = 12)]
    pub(crate) timings: bool,
    #[allow(
        missing_docs,
        reason = "explained below the flags, which are those of the launch page"
    )]
    #[arg(value_parser = parse_secret, required = true)]
    pub(crate) destination: Option<Secret>,
    /// Show the options of a scheme instead; with `--options backend=NAME`, those of that plugin
    #[arg(long, value_name = "SCHEME", hide = true, conflicts_with = "destination")]
    pub(crate) help_options: Option<String>,
}

const LAUNCH_HELP: &str = "\
A destination is [scheme://][user@]host[:port]; without a scheme it is ssh.
`distant plugin list` shows the schemes, `distant launch --help-options <SCHEME>` the options of one.
Without --distant the program is looked for in the PATH there, in that of the login shell, and in
the usual places.

Examples:
  distant launch manager://localhost
  distant launch ssh://me@example.com --distant-upload auto
  distant launch ssh://me@example.com --options 'backend=libssh,timeout=30000'
  distant launch ssh://example.com --distant-args '--log-level trace --log-file /tmp/server.log'";

/// `distant connect`.
#[derive(Debug, Args)]
#[command(after_help = CONNECT_HELP)]
pub(crate) struct Connect {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    /// Read the server's key from the first line of stdin: 64 hexadecimal digits
    #[arg(long, display_order = 6, conflicts_with = "key_file")]
    pub(crate) key_from_stdin: bool,
    /// Read the server's key from a file: 64 hexadecimal digits
    #[arg(long, display_order = 7, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Additional options to provide, typically forwarded to the handler within the manager
    /// facilitating the connection. Options are key-value pairs separated by comma.
    ///
    /// E.g. `key="value",key2="value2"`
    ///
    /// [default: ]
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_parser = parse_secret,
        display_order = 8
    )]
    pub(crate) options: Secret,
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
    /// The server: distant://host:port
    #[arg(value_parser = parse_secret)]
    pub(crate) destination: Secret,
}

const CONNECT_HELP: &str = "\
The server's key is asked for unless one is given. It may also stand in the destination, as in
distant://:KEY@host:port, where everybody on this machine can see it while the command runs.";

/// `distant api`.
#[derive(Debug, Args)]
#[command(after_help = API_HELP)]
pub(crate) struct Api {
    #[command(flatten)]
    pub(crate) connection: ConnectionFlag,
    /// Represents the maximum time (in seconds) to wait for a network request before timing out
    #[arg(long, value_parser = parse_seconds, display_order = 6)]
    pub(crate) timeout: Option<f64>,
    #[command(flatten)]
    pub(crate) network: Network,
}

const API_HELP: &str = "\
Each line of stdin is a request, each line of stdout a reply to the one with the id `origin_id`.
What comes first, and wants an answer, is in the README under `JSON mode`.

Example:
  {\"id\":\"1\",\"payload\":{\"type\":\"system_info\"}}";

/// Which connection a command is for.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectionFlag {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    /// Specify a connection being managed, by its id; the selected one if left out
    #[arg(long, display_order = 3)]
    pub(crate) connection: Option<u32>,
}

/// `distant spawn`.
#[derive(Debug, Args)]
#[command(after_help = SPAWN_HELP)]
pub(crate) struct Spawn {
    #[command(flatten)]
    pub(crate) connection: ConnectionFlag,
    #[command(flatten)]
    pub(crate) network: Network,
    /// If specified, will assume the remote process is a LSP server and will translate paths that
    /// are local into `distant` and vice versa.
    ///
    /// If a scheme is provided, will translate local paths into that scheme!
    #[arg(long, value_name = "SCHEME", display_order = 12)]
    pub(crate) lsp: Option<Option<String>>,
    /// If specified, will spawn process using a pseudo tty
    #[arg(long, display_order = 13)]
    pub(crate) pty: bool,
    /// If specified, will spawn the process in the specified shell, defaulting to the
    /// user-configured shell
    #[arg(long, value_name = "SHELL", display_order = 14)]
    pub(crate) shell: Option<Option<String>>,
    /// Alternative current directory for the remote process
    #[arg(long, display_order = 15)]
    pub(crate) current_dir: Option<PathBuf>,
    /// Environment variables to provide to the process: `NAME=value,NAME2="value, with a comma"`
    #[arg(long, default_value = "", value_parser = parse_secret, display_order = 16)]
    pub(crate) environment: Secret,
    /// If present, commands are read from the provided string
    #[arg(short = 'c', long = "cmd", value_name = "CMD_STR", display_order = 17)]
    pub(crate) cmd_str: Option<String>,
    /// Command to run
    #[arg(name = "CMD", num_args = 1.., last = true)]
    pub(crate) cmd: Vec<String>,
}

const SPAWN_HELP: &str = "\
Examples:
  distant spawn -- uname -a
  distant spawn --pty -- bash -l
  distant spawn --shell -c 'ls | wc -l'
  distant spawn --environment 'A=1,B=2' --current-dir /tmp -- env";

/// `distant manager`.
#[derive(Debug, Subcommand)]
pub(crate) enum Manager {
    /// Select the active connection
    Select(Select),
    /// Listen for incoming requests as a manager
    Listen(Listen),
    /// Retrieve the version of the manager
    Version(ManagerQuery),
    /// Retrieve information about a specific connection
    Info(ConnectionQuery),
    /// List information about all connections
    List(List),
    /// Kill a specific connection, and its server if a launch started it
    Kill(ConnectionQuery),
    /// Stop the manager, and every server that it launched
    Stop(ManagerQuery),
    /// Interact with a manager being run by a service management platform
    #[command(hide = true, disable_help_flag = true)]
    Service(Elsewhere),
}

/// `distant manager select`.
#[derive(Debug, Args)]
pub(crate) struct Select {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
    /// Connection to use, otherwise will prompt to select
    pub(crate) connection: Option<u32>,
}

/// `distant manager listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Type of access to apply to created unix socket or windows pipe
    #[arg(long, value_enum, display_order = 1)]
    pub(crate) access: Option<Access>,
    /// If specified, will fork the process to run as a standalone daemon
    #[arg(long, display_order = 3)]
    pub(crate) daemon: bool,
    /// If specified, will listen on a user-local unix socket or local windows named pipe, instead of
    /// on that of the machine
    #[arg(long, display_order = 6)]
    pub(crate) user: bool,
    #[arg(long, hide = true)]
    pub(crate) detached: bool,
    #[command(flatten)]
    pub(crate) plugins: NamedPlugins,
    #[command(flatten)]
    pub(crate) network: Network,
}

/// Plugins that a command line names.
#[derive(Debug, Default, Args)]
pub(crate) struct NamedPlugins {
    /// Use the plugin in this file, under this name, before every other one. May be repeated
    #[arg(
        long = "plugin",
        value_name = "NAME=PATH",
        value_parser = parse_plugin,
        display_order = 107,
        global = true
    )]
    pub(crate) named: Vec<(String, PathBuf)>,
}

/// Who may use the manager's socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Access {
    /// Equates to `0o600` on Unix (read & write for owner)
    #[default]
    Owner,
    /// Equates to `0o660` on Unix (read & write for owner and group)
    Group,
    /// Equates to `0o666` on Unix (read & write for owner, group, and other)
    Anyone,
}

/// A command that only needs the manager.
#[derive(Debug, Args)]
pub(crate) struct ManagerQuery {
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
}

/// A command about one connection.
#[derive(Debug, Args)]
pub(crate) struct ConnectionQuery {
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
    /// The connection's id, as `distant manager list` shows it
    pub(crate) id: u32,
}

/// `distant manager list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
    #[command(flatten)]
    pub(crate) network: Network,
    #[command(flatten)]
    pub(crate) format: FormatFlag,
}

/// Reads a text that clap must not repeat in its errors.
pub(crate) fn parse_secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Reads `ssh`, `any`, an address or a host name.
pub(crate) fn parse_bind_server(text: &str) -> Result<BindServer, String> {
    let bind = BindServer::from(text.to_owned());
    let BindServer::Host(host) = &bind else { return Ok(bind) };
    let parsed: Destination = host.parse().map_err(|error| format!("{error}"))?;
    if parsed == Destination::new(&parsed.host) {
        Ok(BindServer::Host(parsed.host))
    } else {
        Err("it has to be `ssh`, `any`, an address or a host name, and nothing else".to_owned())
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.trim().parse().ok();
    seconds
        .filter(|seconds| std::time::Duration::try_from_secs_f64(*seconds).is_ok())
        .ok_or_else(|| "it has to be a number of seconds, 0 or more".to_owned())
}

fn parse_plugin(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("it has to be a name, `=` and a path".to_owned()),
    }
}
