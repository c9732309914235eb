//! `distant launch`: has a server started somewhere and connects to it.
//!
//! Everything that was given is checked before anything is opened. The manager does the rest; this
//! side relays its questions to the person and shows how far it is. Dropping the connection to the
//! manager is how a launch is called off.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{ErrorKind, LaunchError};
use serde::Serialize;

use super::arguments::{CacheFlag, Format, Launch, NamedPlugins};
use super::cache::Cache;
use super::config;
use super::manager_client::{extension, gone, read, unexpected, ManagerClient, Missing};
use super::person::Person;
use super::timings::Trace;
use super::{Context, Failure};
use crate::plugin::{nearest, Registry};
use crate::wire::client::Replies;
use crate::wire::envelope::Response;
use crate::wire::message::{ManagerExtension, ManagerRequest, ManagerResponse};

/// What a destination without a scheme means.
pub(super) const DEFAULT_SCHEME: &str = "ssh";

/// Runs the command.
///
/// # Errors
///
/// The command line is wrong, or whatever the manager says.
pub(crate) fn run(arguments: &Launch, context: &Context) -> Result<ExitCode, Failure> {
    if let Some(scheme) = &arguments.help_options {
        return super::plugin::help_options(
            scheme,
            &parse_options(&arguments.options, "--options")?,
            context,
        );
    }
    let mut destination = match &arguments.destination {
        Some(destination) => parse_destination(destination)?,
        // Only `--help-options` goes without one.
        None => return Err(Failure::usage("there is no destination")),
    };
    let scheme = destination.scheme.get_or_insert_with(|| DEFAULT_SCHEME.to_owned()).clone();
    let options = effective_options(arguments, &context.config.client.launch, &scheme)?;
    if destination.password.take().is_some() {
        context.terminal.warn(
            "the password in the destination is not used, and everybody on this machine can read \
             the command line; leave it out, it is asked for",
        );
    }
    let network = context.client_network(&arguments.network);
    let mut trace = Trace::new(context.started, arguments.timings);
    let result = context.run(async {
        for warning in mistyped(&context.config.client.launch.options, &scheme, context).await {
            context.terminal.warn(&warning);
        }
        let mut person = Person::new(&context.terminal);
        trace.seek_manager();
        let mut manager =
            ManagerClient::connect(context, &network, Missing::Start, &mut person).await?;
        if arguments.timings {
            manager.want_timings();
        }
        let request = ManagerRequest::Launch {
            destination: destination.expose(),
            options: Secret::new(options.to_string()),
        };
        let ticket = match attend(&manager, &request, &mut person, context, &mut trace).await? {
            ManagerResponse::Launched { destination } => destination,
            _ => return Err(unexpected().into()),
        };
        let request = ManagerRequest::Connect {
            destination: reachable(&ticket, &destination.host)?.expose(),
            options: Secret::default(),
        };
        match attend(&manager, &request, &mut person, context, &mut trace).await? {
            ManagerResponse::Connected { id } => Ok(id),
            _ => Err(unexpected().into()),
        }
    });
    trace.show(&context.terminal)?;
    report(context, &arguments.cache, "launched", result?)?;
    Ok(ExitCode::SUCCESS)
}

/// Parses a destination without ever repeating its password.
///
/// # Errors
///
/// A usage error, with the rule that is broken.
pub(crate) fn parse_destination(text: &Secret) -> Result<Destination, Failure> {
    text.expose().parse().map_err(|error| {
        let wrong = Failure::usage("`<DESTINATION>` is no destination");
        wrong.because(&error).with_hint("a destination is `[scheme://][user@]host[:port]`")
    })
}

/// Parses `--options` without repeating a value.
///
/// # Errors
///
/// A usage error, with the rule that is broken.
pub(crate) fn parse_options(text: &Secret, flag: &str) -> Result<Options, Failure> {
    text.expose().parse().map_err(|error| {
        let wrong = Failure::usage(format!("`{flag}` is no list of options"));
        wrong.because(&error).with_hint("options are `key=value,key2=\"value, with a comma\"`")
    })
}

/// Puts together what was given, the strongest first: the flags, `--options`, then the
/// configuration: its keys for the three flags, and last its `options`.
///
/// Nothing that nobody gave is in the map: what is left out is the plugin's to decide. The
/// configuration is there for launches of every scheme, so what it says of another one is left out.
fn effective_options(
    arguments: &Launch,
    config: &config::Launch,
    scheme: &str,
) -> Result<Options, Failure> {
    let mut flags = Options::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            flags.insert(key, value);
        }
    };
    set("distant.bin", arguments.bin.clone());
    set("distant.bind_server", arguments.bind_server.as_ref().map(ToString::to_string));
    set("distant.args", arguments.args.clone());
    set("distant.upload", arguments.upload.clone());

    let mut written = Options::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            written.insert(key, value);
        }
    };
    // Directly under the table is where 0.20 has them, so there they win over the nested ones.
    let nested = &config.distant;
    let bind_server = config.bind_server.as_ref().or(nested.bind_server.as_ref());
    set("distant.bin", config.bin.clone().or_else(|| nested.bin.clone()));
    set("distant.bind_server", bind_server.map(ToString::to_string));
    set("distant.args", config.args.clone().or_else(|| nested.args.clone()));
    set("distant.upload", config.upload.clone().or_else(|| nested.upload.clone()));

    let mut options = flags;
    options.fill_in(parse_options(&arguments.options, "--options")?);
    options.fill_in(written);
    let mut rest = Options::new();
    for (key, value) in config.options.iter().filter(|(key, _)| other(key, scheme).is_none()) {
        rest.insert(key, value);
    }
    options.fill_in(rest);
    Ok(options)
}

/// The scheme, in lower case, for which alone an option is by its prefix, and the rest of its key;
/// `None` if it is for this one too.
fn other<'a>(key: &'a str, scheme: &str) -> Option<(String, &'a str)> {
    let (prefix, rest) = key.split_once('.')?;
    let is_for_this = [scheme, "distant"].iter().any(|it| prefix.eq_ignore_ascii_case(it));
    (!is_for_this).then(|| (prefix.to_lowercase(), rest))
}

/// What to say of the configuration's options that are left out, but look as if they were meant: no
/// error, as the plugin that they are for may be on another machine of the same person.
async fn mistyped(options: &Options, scheme: &str, context: &Context) -> Vec<String> {
    let like =
        |key| other(key, scheme).filter(|(it, _)| nearest(it, [scheme].into_iter()).is_some());
    let mut left: Vec<_> = options.iter().filter_map(|(key, _)| Some((key, like(key)?))).collect();
    if left.is_empty() {
        return Vec::new();
    }
    // Where plugins cannot be listed, the launch says why.
    let settings = context.plugins(&NamedPlugins::default());
    let Ok(registry) = settings.map(Registry::new) else { return Vec::new() };
    let all = registry.list().await.unwrap_or_default();
    let is_served =
        |scheme: &str| all.iter().flat_map(|it| &it.schemes).any(|it| it.name == scheme);
    left.retain(|(_, (other, _))| !is_served(other));
    let warning = |(key, (other, rest)): (&str, (String, &str))| {
        format!(
            "`{key}` in the configuration is for `{other}://`, which no plugin serves; did you mean \
             `{scheme}.{rest}`?"
        )
    };
    left.into_iter().map(warning).collect()
}

/// Sends a request and attends to it until its last reply: shows what the manager tells, and has
/// its questions answered. What the manager times goes into `trace`.
///
/// # Errors
///
/// What the manager says, that it is gone, or that a question was not answered.
pub(crate) async fn attend(
    manager: &ManagerClient,
    request: &ManagerRequest,
    person: &mut Person<'_>,
    context: &Context,
    trace: &mut Trace,
) -> Result<ManagerResponse, LaunchError> {
    let terminal = &context.terminal;
    trace.asked();
    let mut replies = manager.send(request).await?;
    let mut waiting = VecDeque::new();
    // Why nobody answered a question, of those the first.
    let mut unanswered: Option<LaunchError> = None;
    loop {
        let response = match waiting.pop_front() {
            Some(response) => response,
            None => replies.next().await.ok_or_else(gone)?,
        };
        let (id, message) = match read(&response) {
            Ok(ManagerResponse::Authenticate { id, msg }) => (id, msg),
            last => {
                terminal.finish_progress();
                return last.map_err(|error| with_reason(error, unanswered));
            }
        };
        match extension(&response) {
            Some(ManagerExtension::Progress(progress)) => terminal.progress(&progress),
            Some(ManagerExtension::Notice(notice)) => terminal.notice(&notice),
            Some(ManagerExtension::Log(log)) => terminal.log(&log),
            Some(ManagerExtension::Timing(timing)) => trace.told(timing),
            extension => {
                let may_stay_open = matches!(extension, Some(ManagerExtension::Question));
                let answer = unless_over(person.ask(&message), &mut replies, &mut waiting).await?;
                match answer {
                    Ok(None) => {}
                    // It is replied to only where it comes too late, and then the launch itself
                    // says why.
                    Ok(Some(msg)) => {
                        manager.send(&ManagerRequest::Authenticate { id, msg }).await?;
                    }
                    // Whoever has asked knows best what that means.
                    Err(error) if may_stay_open && error.kind == ErrorKind::Cancelled => {
                        manager.send_unanswered(id).await?;
                        unanswered.get_or_insert(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

/// Adds why nobody answered to what came of that.
fn with_reason(error: LaunchError, unanswered: Option<LaunchError>) -> LaunchError {
    let Some(unanswered) = unanswered else { return error };
    let hint = error.hint.clone().or(unanswered.hint.clone());
    let error = error.caused_by(unanswered.one_line());
    hint.into_iter().fold(error, LaunchError::with_hint)
}

/// Waits for an answer, but not longer than the launch lasts. What the manager says meanwhile is
/// kept for afterwards, so that it does not run into the prompt.
///
/// # Errors
///
/// The launch is over, or the manager gone.
async fn unless_over<T>(
    answer: impl std::future::Future<Output = Result<T, LaunchError>>,
    replies: &mut Replies,
    waiting: &mut VecDeque<Response>,
) -> Result<Result<T, LaunchError>, LaunchError> {
    let mut answer = std::pin::pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return Ok(answer),
            reply = replies.next() => {
                let reply = reply.ok_or_else(gone)?;
                // Only an error ends a launch that still has a question open.
                read(&reply)?;
                waiting.push_back(reply);
            }
        }
    }
}

/// The address of a launched server as this side may use it: a server that says where it listens,
/// as 0.20 managers pass it on, means an address that only its own machine knows.
fn reachable(launched: &Secret, host: &str) -> Result<Destination, LaunchError> {
    let mut server: Destination = launched.expose().parse().map_err(|_| unexpected())?;
    // A released client could not list a name that it takes for none.
    if !is_global(&server.host) && !host.contains(['_', '%']) {
        server.host = host.to_owned();
    }
    Ok(server)
}

/// Whether 0.20 takes a host for one that everybody can reach: names never are.
fn is_global(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(ip)) => {
            !(ip.is_broadcast()
                || ip.is_documentation()
                || ip.is_link_local()
                || ip.is_loopback()
                || ip.is_private()
                || ip == Ipv4Addr::UNSPECIFIED)
        }
        Ok(IpAddr::V6(ip)) => is_global_multicast(ip),
        Err(_) => false,
    }
}

/// Multicast of scope 14 (RFC 4291, 2.7).
fn is_global_multicast(ip: Ipv6Addr) -> bool {
    ip.is_multicast() && ip.segments()[0] & 0x000f == 0x000e
}

/// Remembers a new connection as the selected one, and prints its id.
///
/// The connection exists by then, so its id is printed also if it cannot be remembered.
///
/// # Errors
///
/// Standard output is gone.
pub(crate) fn report(
    context: &Context,
    cache: &CacheFlag,
    what: &'static str,
    id: u32,
) -> Result<(), LaunchError> {
    #[derive(Serialize)]
    struct Line {
        id: u32,
        r#type: &'static str,
    }
    if let Err(error) = Cache::read(&cache.cache).select(id) {
        context
            .terminal
            .warn(&format!("{}; name the connection with `--connection {id}`", error.one_line()));
    }
    let printed = match context.terminal.format() {
        Format::Shell => context.terminal.line(&id.to_string()),
        Format::Json => context.terminal.json(&Line { id, r#type: what }),
    };
    printed.map_err(|error| {
        error.with_hint(format!("the connection is there: `distant manager kill {id}` ends it"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments::{Arguments, Command};
    use clap::Parser;

    fn check(flags: &[&str], config: &str, expected: &str) {
        let line = [&["distant", "launch"], flags, &["ssh://box"]].concat();
        let Command::Launch(arguments) = Arguments::try_parse_from(line).unwrap().command else {
            panic!("no launch")
        };
        let config = toml::from_str(config).unwrap();
        let shown = match effective_options(&arguments, &config, DEFAULT_SCHEME) {
            Ok(options) => options.to_string(),
            Err(Failure::Usage(error)) => error.one_line().into_owned(),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(shown, expected, "{flags:?} {config:?}");
    }

    #[test]
    fn only_what_was_told_is_sent() {
        check(&[], "", "");
        check(&["--distant", "d"], "", "distant.bin=\"d\"");
        check(&["--distant-args", "-6 --daemon"], "", "distant.args=\"-6 --daemon\"");
        check(&["--distant-bind-server", "ANY"], "", "distant.bind_server=\"any\"");
        check(&["--distant-upload", "auto"], "upload = 'never'", "distant.upload=\"auto\"");
        check(&[], "distant.upload = '~/d'", "distant.upload=\"~/d\"");
    }

    #[test]
    fn a_flag_wins_over_options_and_these_over_the_configuration() {
        let written = "bin = 'config'\noptions = 'distant.bin=last,timeout=1,backend=libssh'";
        check(
            &["--distant", "flag", "--options", "distant.bin=options,timeout=2"],
            written,
            r#"backend="libssh",distant.bin="flag",timeout="2""#,
        );
        check(
            &["--options", "distant.bin=options"],
            written,
            r#"backend="libssh",distant.bin="options",timeout="1""#,
        );
        check(&[], written, r#"backend="libssh",distant.bin="config",timeout="1""#);
        check(&[], "options = 'distant.bin=last'", "distant.bin=\"last\"");
    }

    #[test]
    fn what_the_configuration_says_of_another_scheme_is_left_out() {
        let written = "options = 'ssh.backend=libssh,mine.size=3,timeout=1'";
        check(&[], written, r#"ssh.backend="libssh",timeout="1""#);
        check(&["--options", "mine.size=2"], "", r#"mine.size="2""#);
    }

    #[test]
    fn the_nested_table_counts_where_the_direct_keys_are_missing() {
        let nested = "[distant]\nbin = 'nested'\nargs = 'a'";
        check(&[], nested, r#"distant.args="a",distant.bin="nested""#);
        check(
            &[],
            &format!("bin = 'direct'\n{nested}"),
            r#"distant.args="a",distant.bin="direct""#,
        );
    }

    #[test]
    fn a_bad_map_is_refused_without_its_values() {
        check(
            &["--options", "password=hunter2,x"],
            "",
            "`--options` is no list of options: what follows the value of `password` is no option; \
             a value with a comma has to be quoted",
        );
    }

    #[test]
    fn only_a_global_address_of_a_server_is_kept() {
        let host = |launched: &str| {
            let launched = Secret::new(format!("distant://:{}@{launched}:1", "00".repeat(32)));
            reachable(&launched, "box").unwrap().host
        };
        for local in ["0.0.0.0", "127.0.0.1", "10.1.2.3", "169.254.0.1", "[2a00::1]", "name"] {
            assert_eq!(host(local), "box", "{local}");
        }
        assert_eq!(host("8.8.8.8"), "8.8.8.8");
    }
}
