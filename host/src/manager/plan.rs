//! What a launch request comes to: which plugin, with what, before anything is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{LaunchRequest, ServerCommand};
use distant_plugin_api::options::Options;
use distant_plugin_api::{ErrorKind, LaunchError};

use super::upload::Programs;
use crate::paths;
use crate::plugin::options::Uploading;
use crate::plugin::{options, Entry, Registry};
use crate::wire::message::ClientExtension;

/// The scheme of a destination that names none.
const DEFAULT_SCHEME: &str = "ssh";

/// The scheme whose servers run on the manager's own machine.
const LOCAL_SCHEME: &str = "manager";

/// What a 0.20 client sends where nobody named a program.
const DEFAULT_PROGRAM: &str = "distant";

/// Most bytes of a destination, and of the options of a launch.
const TEXT_MAX: usize = 64 * 1024;

/// A launch that can be started.
#[derive(Debug)]
pub(super) struct Plan {
    /// The plugin that runs it.
    pub(super) entry: Entry,
    /// What the plugin gets.
    pub(super) request: LaunchRequest,
    /// The wait for the connection to the server.
    pub(super) timeout: Duration,
    /// Whether the plugin's log is for the client too.
    pub(super) verbose: bool,
    /// What was given, without secrets.
    pub(super) shown: Options,
}

impl Plan {
    /// Checks all that was given, and finds the plugin. Nothing is started and no host is asked.
    ///
    /// # Errors
    ///
    /// * `invalid_option`: a destination, an option or a scheme that nobody knows, or a program to
    ///   upload that is none.
    /// * `server_not_found`: this machine does not have the program that it should run.
    /// * `plugin`: the plugin cannot be used.
    pub(super) async fn make(
        registry: &Registry,
        programs: &Programs,
        destination: &str,
        given: &str,
        client: Option<&ClientExtension>,
    ) -> Result<Self, LaunchError> {
        let destination = parse_destination(destination, DEFAULT_SCHEME)?;
        let given = parse_options(given)?;
        let scheme = destination.scheme.as_deref().unwrap_or(DEFAULT_SCHEME).to_lowercase();
        let entry = registry.resolve(&scheme, options::backend(&given, &scheme)).await?;
        let checked = options::check(&given, &entry, &scheme)?;
        let verbose = checked.plugin.bool("verbose").is_ok_and(|it| it == Some(true));
        let program = match checked.bin.as_deref() {
            program if scheme == LOCAL_SCHEME => Some(local_program(program, client)?),
            None | Some(DEFAULT_PROGRAM) => None,
            Some(program) => Some(program.to_owned()),
        };
        let upload = match checked.upload {
            // What it would be brought to is where it is.
            _ if scheme == LOCAL_SCHEME => None,
            None => None,
            Some(Uploading::Own) => Some(programs.look(own_program_file()?, false).await?),
            Some(Uploading::Always(path)) => {
                Some(programs.look(absolute(Path::new(&path), client), true).await?)
            }
        };
        let server = ServerCommand { program, args: checked.args, bind: checked.bind, upload };
        let shown = without_secrets(&given, &entry, &scheme);
        let request = LaunchRequest {
            destination,
            options: checked.plugin,
            server,
            interactive: client.is_none_or(|it| it.interactive),
            // A 0.20.0 client says nothing of its environment: the manager's is the best guess.
            environment: client.map_or_else(paths::launch_environment, environment),
            cwd: client.and_then(|it| it.cwd.clone()).filter(|cwd| cwd.is_absolute()),
        };
        Ok(Self { entry, request, timeout: checked.timeout, verbose, shown })
    }
}

/// Reads a destination; one without a scheme gets the default.
pub(super) fn parse_destination(text: &str, default: &str) -> Result<Destination, LaunchError> {
    check_length("the destination", text)?;
    let mut destination: Destination = text.parse().map_err(|error| {
        LaunchError::new(ErrorKind::InvalidOption, "the destination is invalid").because(&error)
    })?;
    destination.scheme.get_or_insert_with(|| default.to_owned());
    Ok(destination)
}

/// Reads options.
pub(super) fn parse_options(text: &str) -> Result<Options, LaunchError> {
    check_length("the text of the options", text)?;
    text.parse().map_err(|error: distant_plugin_api::options::OptionsError| {
        LaunchError::new(ErrorKind::InvalidOption, "the options are invalid").because(&error)
    })
}

fn check_length(what: &str, text: &str) -> Result<(), LaunchError> {
    if text.len() <= TEXT_MAX {
        return Ok(());
    }
    let message = format!("{what} is longer than {TEXT_MAX} bytes");
    Err(LaunchError::new(ErrorKind::InvalidOption, message))
}

/// Of a client's environment the variables that a plugin may see, whatever the client sent.
fn environment(client: &ClientExtension) -> std::collections::BTreeMap<String, String> {
    let is_known = |name: &String| paths::LAUNCH_ENVIRONMENT.contains(&name.as_str());
    let pairs = client.environment.iter().filter(|(name, _)| is_known(name));
    pairs.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The options as they may be listed.
fn without_secrets(given: &Options, entry: &Entry, scheme: &str) -> Options {
    let schema = options::schema(entry);
    let prefix = format!("{scheme}.");
    let is_secret = |key: &str| {
        // As `Schema::check` takes it: in capitals too.
        let is_prefixed =
            key.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(&prefix));
        let bare = if is_prefixed { &key[prefix.len()..] } else { key };
        let mut named = schema.0.iter().filter(|option| {
            let names = std::iter::once(&option.name).chain(&option.aliases);
            names.into_iter().any(|name| name == key || name == bare)
        });
        named.any(|option| option.secret)
    };
    given.iter().filter(|(key, _)| !is_secret(key)).collect()
}

/// The program of a server that runs on this machine, as an absolute path.
///
/// Where nobody named one it is this program. A bare `distant` is what every 0.20 client sends
/// then; it means the one in the manager's `PATH`, as there, but none has to be.
fn local_program(
    given: Option<&str>,
    client: Option<&ClientExtension>,
) -> Result<String, LaunchError> {
    let found = match given {
        None => own_program(),
        Some(DEFAULT_PROGRAM) => paths::find_program(DEFAULT_PROGRAM).or_else(own_program),
        Some(name) => {
            let tried = tried(name, client);
            let found = paths::find_program(&tried.to_string_lossy());
            return found.map(text).unwrap_or_else(|| Err(not_found(name, &tried)));
        }
    };
    found.map(text).unwrap_or_else(|| {
        let message = "no server program was found";
        Err(LaunchError::new(ErrorKind::ServerNotFound, message)
            .caused_by("this program's own file is gone")
            .with_hint("name one with `--distant <PATH>`"))
    })
}

/// Where a program of that name is looked for: `~` and relative paths are the client's, and a name
/// without `/` stays as it is.
fn tried(name: &str, client: Option<&ClientExtension>) -> PathBuf {
    if !name.contains('/') {
        return PathBuf::from(name);
    }
    absolute(Path::new(name), client)
}

/// A path of the client's as one of this process.
fn absolute(path: &Path, client: Option<&ClientExtension>) -> PathBuf {
    let home = client.and_then(|it| it.environment.get("HOME")).map(PathBuf::from);
    let path = match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => paths::expand(path),
    };
    match client.and_then(|it| it.cwd.as_ref()) {
        Some(cwd) => cwd.join(path),
        None => std::path::absolute(&path).unwrap_or(path),
    }
}

fn not_found(name: &str, tried: &Path) -> LaunchError {
    let cause = if name.contains('/') {
        format!("`{}` is not there, or is no program", tried.display())
    } else {
        format!("no folder of the manager's `PATH` has a program `{name}`")
    };
    let message = format!("the server program `{name}` was not found");
    LaunchError::new(ErrorKind::ServerNotFound, message)
        .caused_by(cause)
        .with_hint("name it with `--distant <PATH>`, or leave it out for the manager's own")
}

fn text(path: PathBuf) -> Result<String, LaunchError> {
    path.into_os_string().into_string().map_err(|path| {
        let path = PathBuf::from(path);
        let message = format!("the path of `{}` is no UTF-8 text", path.display());
        LaunchError::new(ErrorKind::ServerNotFound, message)
    })
}

/// This very program's file, to be read.
fn own_program_file() -> Result<PathBuf, LaunchError> {
    own_program().ok_or_else(|| {
        let message = "there is no program to bring elsewhere";
        LaunchError::new(ErrorKind::InvalidOption, message)
            .caused_by("this program's own file is gone")
            .with_hint("name one with `--distant-upload <PATH>`")
    })
}

/// A path that starts this very program from any process: its file, unless that was replaced or
/// removed; then the copy that runs.
fn own_program() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let running = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    let inode = |path: &Path| path.metadata().map(|it| (it.dev(), it.ino())).ok();
    let file = paths::executable().ok();
    match (inode(&running), file) {
        (Some(own), Some(file)) if inode(&file) == Some(own) => Some(file),
        (Some(_), _) => Some(running),
        (None, file) => file.filter(|file| file.exists()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(cwd: &str, home: &str) -> ClientExtension {
        let environment = [("HOME".to_owned(), home.to_owned())].into();
        ClientExtension { cwd: Some(cwd.into()), environment, ..ClientExtension::default() }
    }

    #[test]
    fn paths_are_the_clients() {
        let client = client("/home/me/project", "/home/me");
        let check = |name: &str, expected: &str| {
            assert_eq!(tried(name, Some(&client)), Path::new(expected));
        };
        check("~/bin/distant", "/home/me/bin/distant");
        check("./distant", "/home/me/project/./distant");
        check("/usr/bin/distant", "/usr/bin/distant");
        check("distant-next", "distant-next");
    }

    #[test]
    fn without_a_name_the_manager_runs_itself() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(local_program(None, None).unwrap(), own.to_str().unwrap());
    }

    #[test]
    fn a_program_that_is_not_there_is_named_at_once() {
        let error = local_program(Some("/nonexistent/distant"), None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ServerNotFound);
        assert_eq!(
            error.one_line(),
            "the server program `/nonexistent/distant` was not found: \
             `/nonexistent/distant` is not there, or is no program"
        );
        let error = local_program(Some("no-such-distant"), None).unwrap_err();
        assert!(error.one_line().contains("`PATH`"), "{error:?}");
    }

    #[test]
    fn only_known_variables_are_passed_on() {
        let mut client = client("/", "/home/me");
        client.environment.insert("LD_PRELOAD".into(), "evil.so".into());
        let names: Vec<_> = environment(&client).into_keys().collect();
        assert_eq!(names, ["HOME"]);
    }
}
