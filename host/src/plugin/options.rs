//! The options of a launch, checked against what the host and the chosen plugin take.
//!
//! Some options mean the same for every scheme; they belong to the host, and no plugin can have
//! one of their names.

use std::time::Duration;

use distant_plugin_api::message::BindServer;
use distant_plugin_api::options::{OptionSchema, OptionType, Options, Schema};
use distant_plugin_api::{ErrorKind, LaunchError, Manifest};

use super::registry::Entry;

const BIN: &str = "distant.bin";
const BIND_SERVER: &str = "distant.bind_server";
const ARGS: &str = "distant.args";
const UPLOAD: &str = "distant.upload";
const TIMEOUT: &str = "timeout";
const BACKEND: &str = "backend";

/// How long the host tries to connect to the spawned server unless told otherwise.
const TIMEOUT_DEFAULT_MS: u64 = 15_000;

/// The options of one launch, checked and taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedOptions {
    /// The plugin's own: plain keys, defaults filled in.
    pub plugin: Options,
    /// `distant.bin`, where one was named.
    pub bin: Option<String>,
    /// `distant.bind_server`.
    pub bind: BindServer,
    /// `distant.args`, one word each.
    pub args: Vec<String>,
    /// `distant.upload`: what may be brought there, if anything.
    pub upload: Option<Uploading>,
    /// `timeout`: how long to try to connect to the spawned server.
    pub timeout: Duration,
}

/// What a launch brings to where its server is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uploading {
    /// This very program, where none is found.
    Own,
    /// The program with this path of the client's, whatever is found.
    Always(String),
}

impl Uploading {
    /// Reads a value of `distant.upload`.
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "" | "never" => None,
            "auto" => Some(Self::Own),
            _ => Some(Self::Always(text.to_owned())),
        }
    }
}

/// Which plugin the options ask for: `backend`, else `SCHEME.backend`, unless it is empty.
pub fn backend<'a>(options: &'a Options, scheme: &str) -> Option<&'a str> {
    let prefixed = format!("{scheme}.{BACKEND}");
    let given = options.get(BACKEND).or_else(|| {
        options.iter().find(|(key, _)| key.eq_ignore_ascii_case(&prefixed)).map(|(_, value)| value)
    });
    given.map(str::trim).filter(|name| !name.is_empty())
}

/// Every option that a launch through a plugin takes, the host's own first.
pub fn schema(entry: &Entry) -> Schema {
    with_host_owned(&entry.manifest)
}

/// The options of a manifest behind those of the host.
pub(crate) fn with_host_owned(manifest: &Manifest) -> Schema {
    let mut all = host_owned();
    all.extend(manifest.options.0.iter().cloned());
    Schema(all)
}

fn host_owned() -> Vec<OptionSchema> {
    vec![
        OptionSchema::new(BIN, OptionType::String, "the distant program to run there (--distant)"),
        OptionSchema::new(
            BIND_SERVER,
            OptionType::String,
            "the address that the server binds to: ssh (the default), any or an IP (--distant-bind-server)",
        ),
        OptionSchema::new(ARGS, OptionType::String, "more arguments for it (--distant-args)"),
        OptionSchema::new(
            UPLOAD,
            OptionType::String,
            "never (the default), auto or a program to bring there (--distant-upload)",
        ),
        OptionSchema::new(
            TIMEOUT,
            OptionType::DurationMs,
            "milliseconds to wait for the connection to the spawned server",
        )
        .or(TIMEOUT_DEFAULT_MS.to_string()),
        OptionSchema::new(
            BACKEND,
            OptionType::String,
            "the plugin to use, of several for a scheme",
        ),
    ]
}

/// Checks the options of a launch by `scheme` through a plugin.
///
/// # Errors
///
/// `invalid_option`: as [`Schema::check`], and for `distant.args` with a quote that does not end.
pub fn check(
    options: &Options,
    entry: &Entry,
    scheme: &str,
) -> Result<CheckedOptions, LaunchError> {
    let mut plugin = schema(entry).check(options, &entry.name, scheme)?;
    let timeout = plugin.duration_ms(TIMEOUT)?;
    let mut take = |key| plugin.remove(key).map(|it| it.trim().to_owned()).unwrap_or_default();
    take(TIMEOUT);
    take(BACKEND);
    Ok(CheckedOptions {
        bin: Some(take(BIN)).filter(|bin| !bin.is_empty()),
        bind: BindServer::from(take(BIND_SERVER)),
        args: words(&take(ARGS))?,
        upload: Uploading::parse(&take(UPLOAD)),
        timeout: timeout.unwrap_or(Duration::from_millis(TIMEOUT_DEFAULT_MS)),
        plugin,
    })
}

/// Takes `distant.args` apart as distant 0.20 does: quotes around all of it are cut off, as often
/// as there are some, and what is left are words in the manner of a POSIX shell.
fn words(mut text: &str) -> Result<Vec<String>, LaunchError> {
    let quoted = |text: &str, quote: char| {
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        Some(inner.len())
    };
    while quoted(text, '"').or_else(|| quoted(text, '\'')).is_some() {
        text = &text[1..text.len() - 1];
    }
    shell_words::split(text).map_err(|_| {
        let message = format!("option `{ARGS}` has a quote that does not end");
        LaunchError::new(ErrorKind::InvalidOption, message)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plugin::discovery::Kind;
    use crate::plugin::support::Place;

    fn checked(text: &str) -> Result<CheckedOptions, LaunchError> {
        let place = Place::new();
        let mut entry = Entry::unchecked(&place.registry(), Path::new("/dev/null"), Kind::Library);
        let mut manifest = (*entry.manifest).clone();
        manifest.options.0.push(OptionSchema::new("verbose", OptionType::Bool, "").or("false"));
        entry.manifest = manifest.into();
        entry.name = "ssh2".into();
        check(&text.parse().unwrap(), &entry, "ssh")
    }

    #[test]
    fn the_hosts_options_are_taken_out_and_the_plugins_are_left() {
        let options = checked(
            "ssh.distant.bin=/opt/distant,distant.bind_server=ANY,distant.args=\"--port 1\",\
             timeout=250,ssh.backend=ssh2,ssh.verbose=yes",
        )
        .unwrap();
        assert_eq!(
            options,
            CheckedOptions {
                plugin: [("verbose", "yes")].into_iter().collect(),
                bin: Some("/opt/distant".into()),
                bind: BindServer::Any,
                args: vec!["--port".into(), "1".into()],
                upload: None,
                timeout: Duration::from_millis(250),
            }
        );
        let options = checked("distant.bin=\"\",distant.args=\"\"").unwrap();
        assert_eq!((options.bin, options.args), (None, vec![]));
        assert_eq!(options.bind, BindServer::Ssh);
        assert_eq!(options.timeout, Duration::from_secs(15));
        assert_eq!(options.plugin.to_string(), "verbose=\"false\"");
        let upload = |text: &str| checked(text).unwrap().upload;
        assert_eq!(upload("ssh.distant.upload=Never"), None);
        assert_eq!(upload("distant.upload=AUTO"), Some(Uploading::Own));
        assert_eq!(upload("distant.upload=./Auto"), Some(Uploading::Always("./Auto".into())));
    }

    #[test]
    fn a_wrong_option_is_told_with_all_there_are() {
        let error = checked("distant.bni=x").unwrap_err();
        assert_eq!(
            error.message,
            "unknown option `distant.bni` for plugin `ssh2`; did you mean `distant.bin`?"
        );
        assert_eq!(
            error.hint.unwrap(),
            "its options are `distant.bin`, `distant.bind_server`, `distant.args`, `distant.upload`, \
             `timeout`, `backend`, `verbose`"
        );
        assert!(checked("ssh.timeout=1").is_err());
        assert!(checked("timeout=soon").is_err());
        let message = checked("distant.args=\"'a\"").unwrap_err().message;
        assert_eq!(message, "option `distant.args` has a quote that does not end");
    }

    #[test]
    fn arguments_are_words_as_in_0_20() {
        let split = |text: &str, expected: &[&str]| {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        };
        split("", &[]);
        split("--a 'b c' d", &["--a", "b c", "d"]);
        split("\"--a b\"", &["--a", "b"]);
        split("'\"--a b\"'", &["--a", "b"]);
        split("\"\"", &[]);
        split("'a b' c", &["a b", "c"]);
    }

    #[test]
    fn the_backend_is_known_before_the_plugin_is() {
        let chosen = |text: &str, expected: Option<&str>| {
            assert_eq!(backend(&text.parse().unwrap(), "ssh"), expected, "{text}");
        };
        chosen("", None);
        chosen("backend=", None);
        chosen("ssh.backend=libssh", Some("libssh"));
        chosen("SSH.backend=libssh,backend=ssh2", Some("ssh2"));
        chosen("other.backend=x", None);
    }
}
