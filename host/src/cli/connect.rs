//! `distant connect`: connects to a server that is already running.

use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::LaunchError;
use zeroize::Zeroizing;

use super::arguments::Connect;
use super::launch::{attend, parse_destination, parse_options, report};
use super::manager_client::{unexpected, ManagerClient, Missing};
use super::person::Person;
use super::timings::Trace;
use super::{Context, Failure};
use crate::wire::message::{
    Authentication, AuthenticationQuestion, AuthenticationResponse, ManagerRequest, ManagerResponse,
};

/// The scheme of a running server.
const SCHEME: &str = "distant";
/// The option that a key may be given in.
const KEY_OPTION: &str = "key";
/// Most bytes that are read for a key: it and a line end, with some room.
const KEY_MAX: u64 = 256;

/// Runs the command.
///
/// # Errors
///
/// The command line is wrong, there is no key, or whatever the manager says.
pub(crate) fn run(arguments: &Connect, context: &Context) -> Result<ExitCode, Failure> {
    let mut destination = parse_destination(&arguments.destination)?;
    check_scheme(&mut destination)?;
    let given = parse_options(&arguments.options, "--options")?;
    let shown = destination.password.is_some() || given.get(KEY_OPTION).is_some();
    let (key, options) = gather(&mut destination, given, arguments, context)?;
    if shown {
        context.terminal.warn(
            "the key stands on the command line, which everybody on this machine can read; leave \
             it out to be asked for it, or give it by `--key-from-stdin` or `--key-file`",
        );
    }
    let network = context.client_network(&arguments.network);
    context.run(async {
        let mut person = Person::new(&context.terminal);
        let manager =
            ManagerClient::connect(context, &network, Missing::Start, &mut person).await?;
        let key = match key {
            Some(key) => key,
            None => ask_key(&mut person, &destination).await?,
        };
        destination.password = Some(key.expose_hex());
        let request = ManagerRequest::Connect {
            destination: destination.expose(),
            options: Secret::new(options.to_string()),
        };
        let mut trace = Trace::new(context.started, false);
        let id = match attend(&manager, &request, &mut person, context, &mut trace).await? {
            ManagerResponse::Connected { id } => id,
            _ => return Err(unexpected().into()),
        };
        report(context, &arguments.cache, "connected", id)?;
        Ok(ExitCode::SUCCESS)
    })
}

fn check_scheme(destination: &mut Destination) -> Result<(), Failure> {
    match &destination.scheme {
        None => destination.scheme = Some(SCHEME.to_owned()),
        Some(_) if destination.has_scheme(SCHEME) => {}
        Some(scheme) => {
            let message = format!("`distant connect` does not know the scheme `{scheme}`");
            return Err(Failure::usage(message)
                .caused_by("it connects to a server that is already running, `distant://host:port`")
                .with_hint(format!("to start one, use `distant launch {destination}`")));
        }
    }
    if destination.port.is_none() {
        let message = format!("`{destination}` has no port");
        return Err(Failure::usage(message)
            .with_hint("a server says its port when it starts: `distant://host:port`"));
    }
    Ok(())
}

/// Finds the key among what was given; takes it out of destination and options.
fn gather(
    destination: &mut Destination,
    given: Options,
    arguments: &Connect,
    context: &Context,
) -> Result<(Option<SessionKey>, Options), Failure> {
    let mut options = given;
    let sources = [
        destination.password.take(),
        options.remove(KEY_OPTION).map(Secret::new),
        arguments.key_file.as_deref().map(read_file).transpose()?,
        arguments.key_from_stdin.then(read_stdin).transpose()?,
    ];
    let mut keys = sources.into_iter().flatten();
    let key = keys.next();
    if keys.next().is_some() {
        return Err(Failure::usage("the key is given more than once"));
    }
    options.fill_in(context.config.client.connect.options.clone());
    let configured = options.remove(KEY_OPTION).map(Secret::new);
    Ok((key.or(configured).map(|key| parse_key(&key)).transpose()?, options))
}

fn parse_key(text: &Secret) -> Result<SessionKey, LaunchError> {
    text.expose().trim().parse().map_err(|error| {
        LaunchError::new(ErrorKind::InvalidOption, "what was given as the key is none")
            .because(&error)
    })
}

fn read_file(path: &Path) -> Result<Secret, LaunchError> {
    let read = || std::fs::File::open(path).and_then(read_key);
    read().map_err(|error| {
        let message = format!("cannot read the key from `{}`", path.display());
        LaunchError::new(ErrorKind::InvalidOption, message).because(&error)
    })
}

fn read_stdin() -> Result<Secret, LaunchError> {
    // Byte by byte, because JSON answers may follow the line.
    let mut line = Zeroizing::new(Vec::new());
    let mut byte = [0];
    let mut stdin = UnbufferedStdin;
    while line.len() < KEY_MAX as usize && !line.ends_with(b"\n") {
        match stdin.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let message = "cannot read the key from standard input";
                return Err(LaunchError::new(ErrorKind::Other, message).because(&error));
            }
        }
    }
    Ok(Secret::new(String::from_utf8_lossy(&line)))
}

/// Standard input without the buffer that would take away what others are to read.
struct UnbufferedStdin;

impl Read for UnbufferedStdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(io::stdin(), buffer)?)
    }
}

fn read_key(source: impl Read) -> io::Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    source.take(KEY_MAX).read_to_string(&mut text)?;
    Ok(Secret::new(text.as_str()))
}

async fn ask_key(
    person: &mut Person<'_>,
    destination: &Destination,
) -> Result<SessionKey, LaunchError> {
    // The words by which a released server asks for it.
    let question = AuthenticationQuestion {
        label: "key".to_owned(),
        text: format!("Key of {destination}: "),
        options: [("echo".to_owned(), "false".to_owned())].into(),
    };
    let challenge =
        Authentication::Challenge { questions: vec![question], options: Default::default() };
    let hint = "give the key by `--key-file <FILE>`, or on standard input with `--key-from-stdin`";
    let answer = person.ask(&challenge).await.map_err(|error| match error.kind {
        ErrorKind::Cancelled => error.with_hint(hint),
        _ => error,
    })?;
    match answer {
        Some(AuthenticationResponse::Challenge { answers }) if answers.len() == 1 => {
            parse_key(&answers[0])
        }
        _ => {
            let message = "the key was asked for and not given";
            Err(LaunchError::new(ErrorKind::Cancelled, message).with_hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let mut destination: Destination = text.parse().unwrap();
        let shown = match check_scheme(&mut destination) {
            Ok(()) => destination.to_string(),
            Err(Failure::Usage(error)) => {
                format!("{}; {}", error.message, error.hint.unwrap_or_default())
            }
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn only_a_running_server_is_connected_to() {
        check("box:8080", "distant://box:8080");
        check("DISTANT://box:8080", "DISTANT://box:8080");
        check(
            "ssh://me:pw@box",
            "`distant connect` does not know the scheme `ssh`; \
             to start one, use `distant launch ssh://me@box`",
        );
        check(
            "distant://box",
            "`distant://box` has no port; \
             a server says its port when it starts: `distant://host:port`",
        );
    }

    #[test]
    fn a_bad_key_is_not_repeated() {
        let error = parse_key(&Secret::new("hunter2")).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
        assert!(parse_key(&Secret::new(format!(" {}\n", "0f".repeat(32)))).is_ok());
    }
}
