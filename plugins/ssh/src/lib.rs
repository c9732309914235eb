//! An ssh launch minus the ssh library: whom to connect to, whom to trust, how to log in, what to
//! ask and what to say when it fails.
//!
//! A plugin brings a [`backend::Backend`] and calls [`launch`]; both built-in ones behave alike,
//! because all that a person notices is decided here.

pub mod agent;
pub mod backend;
pub mod busy;
pub mod certificate;
pub mod child;
pub mod config;
pub mod dial;
mod exposed;
mod files;
pub mod guard;
pub mod hop;
pub mod identity;
pub mod known_hosts;
pub mod login;
pub mod mux;
mod revoked;

use std::net::SocketAddr;

use distant_plugin_api::bootstrap::{self, Reach, Remote, Running, Tunnel};
use distant_plugin_api::options::{OptionSchema, OptionType, Schema};
use distant_plugin_api::{Caller, LaunchError, LaunchRequest, Manifest};

use backend::Backend;
use config::{Person, Settings};
use hop::Hop;

/// Most hosts on the way to another.
const HOPS_MAX: usize = 8;

/// Describes an ssh plugin.
pub fn manifest(name: &str, version: &str, description: &str) -> Manifest {
    let option = |name, kind, help| OptionSchema::new(name, kind, help);
    let ways = ["auto", "never", "always"].map(str::to_owned).to_vec();
    Manifest {
        name: name.to_owned(),
        version: version.to_owned(),
        description: description.to_owned(),
        schemes: vec!["ssh".to_owned()],
        options: Schema(vec![
            option(
                "identity_files",
                OptionType::PathList,
                "private keys to log in with (default: those of the ssh configuration, else \
                 ~/.ssh/id_dsa, ~/.ssh/id_ecdsa, ~/.ssh/id_ed25519 and ~/.ssh/id_rsa)",
            ),
            option(
                "identities_only",
                OptionType::Bool,
                "whether an agent's other keys are left alone",
            ),
            option(
                "proxy_command",
                OptionType::String,
                "command whose input and output are the connection; `none` for none",
            ),
            option(
                "user_known_hosts_files",
                OptionType::PathList,
                "files of known host keys (default: those of the ssh configuration, else \
                 ~/.ssh/known_hosts and ~/.ssh/known_hosts2)",
            ),
            option(
                "tunnel",
                OptionType::Enum(ways),
                "whether to reach the server through the ssh connection, which then stays: `auto` \
                 does so where its port cannot be reached",
            )
            .or("auto"),
            option(
                "verbose",
                OptionType::Bool,
                "whether the ssh library's own trace goes to the log",
            )
            .or("false"),
        ]),
        runs_commands: false,
    }
}

/// Launches a server by ssh.
///
/// # Errors
///
/// Whatever went wrong; no connection and no server is left then.
pub fn launch(
    backend: &dyn Backend,
    request: &LaunchRequest,
    caller: &Caller,
) -> Result<(), LaunchError> {
    let person = Person::of(request);
    let verbose = request.options.bool("verbose")?.unwrap_or(false);
    let destination = &request.destination;
    caller.stage(distant_plugin_api::message::Stage::Resolve)?;
    let user = destination.user.as_deref();
    let mut settings = config::resolve(&destination.host, user, destination.port, &person, caller)?;
    settings.override_by(request, &person)?;
    let mut way = Vec::new();
    resolve_jumps(&settings, &person, caller, &mut way, 0)?;
    let is_proxied = !way.is_empty() || settings.proxy_command.is_some();
    way.push(settings);
    way.iter().try_for_each(|settings| settings.tell_unheeded(caller))?;
    let mut hops: Vec<Hop> = Vec::new();
    let told = exposed::Told::default();
    let last = way.len() - 1;
    for (index, settings) in way.iter().enumerate() {
        let password = destination.password.as_ref().filter(|_| index == last);
        let runs_command = index == last;
        let person = &person;
        let told = &told;
        let links = hop::Opening {
            backend,
            settings,
            person,
            caller,
            verbose,
            password,
            runs_command,
            told,
        };
        hops.push(links.open(hops.last())?);
    }
    let Some(end) = hops.last() else { return Err(LaunchError::cancelled()) };
    let end = End { hop: end, peer: end.peer.filter(|_| !is_proxied) };
    let outcome = bootstrap::launch(&end, request, Tunnel::of(request), caller);
    // From the far end, as each one's socket goes through the one before.
    while let Some(hop) = hops.pop() {
        drop(hop);
    }
    outcome
}

/// Puts the hosts on the way to a host, nearest first, before it; they may have others before them,
/// and `known` are those that are sure to follow it.
fn resolve_jumps(
    settings: &Settings,
    person: &Person,
    caller: &Caller,
    way: &mut Vec<Settings>,
    known: usize,
) -> Result<(), LaunchError> {
    for (index, jump) in settings.proxy_jump.iter().enumerate() {
        let text = jump.strip_prefix("ssh://").unwrap_or(jump);
        let target: distant_plugin_api::destination::Destination =
            text.parse().map_err(|error: distant_plugin_api::destination::DestinationError| {
                let kind = distant_plugin_api::ErrorKind::InvalidOption;
                let message = format!("`{jump}` of `ProxyJump` is no host");
                LaunchError::new(kind, message).because(&error)
            })?;
        let jump =
            config::resolve(&target.host, target.user.as_deref(), target.port, person, caller)?;
        if way.len() + known + 1 >= HOPS_MAX {
            let kind = distant_plugin_api::ErrorKind::InvalidOption;
            let message = format!("there are more than {HOPS_MAX} hosts on the way");
            return Err(LaunchError::new(kind, message)
                .with_hint("does a `ProxyJump` of the ssh configuration lead back to itself?"));
        }
        // Only the first one is reached from here, so only its own way counts.
        if index == 0 {
            resolve_jumps(&jump, person, caller, way, known + 1)?;
        }
        way.push(jump);
    }
    Ok(())
}

/// The far end of all hops, where the server is started.
struct End<'a> {
    hop: &'a Hop,
    peer: Option<SocketAddr>,
}

impl Remote for End<'_> {
    fn exec(&self, command: &str) -> Result<Running, LaunchError> {
        self.hop.mux.exec(command)
    }

    fn reach(&self) -> Reach {
        self.peer.map_or(Reach::Tunnel, Reach::Peer)
    }

    fn carrier(&self) -> &'static str {
        "ssh"
    }

    fn forward(&self, to: SocketAddr) -> Result<SocketAddr, LaunchError> {
        self.hop.mux.listen(to)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::io::{PipeReader, PipeWriter};
    use std::os::fd::{AsFd, BorrowedFd};

    use distant_plugin_api::message::{HostMessage, PluginMessage, ServerCommand};
    use distant_plugin_api::options::Options;
    use distant_plugin_api::{Channel, ErrorKind};

    use super::*;

    /// A host that never cancels.
    pub(crate) struct Host(PipeReader, #[allow(dead_code, reason = "keeps it open")] PipeWriter);

    impl Host {
        pub(crate) fn caller() -> Caller {
            let (cancel, never) = std::io::pipe().unwrap();
            Caller::new(Self(cancel, never))
        }
    }

    impl Channel for Host {
        fn send(&self, _: &PluginMessage) -> Result<Option<HostMessage>, LaunchError> {
            Ok(None)
        }

        fn is_cancelled(&self) -> bool {
            false
        }

        fn cancel_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    #[test]
    fn hosts_that_lead_to_each_other_are_an_error() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        let text = "Host a\n ProxyJump b\nHost b\n ProxyJump a\n";
        fs::write(home.path().join(".ssh/config"), text).unwrap();
        let home = home.path().display().to_string();
        let request = LaunchRequest {
            destination: "ssh://a".parse().unwrap(),
            options: Options::new(),
            server: ServerCommand::default(),
            interactive: false,
            environment: [("HOME".to_owned(), home)].into(),
            cwd: None,
        };
        let caller = Host::caller();
        let person = Person::of(&request);
        let settings = config::resolve("a", None, None, &person, &caller).unwrap();
        assert_eq!(settings.proxy_jump, ["b"]);
        let error = resolve_jumps(&settings, &person, &caller, &mut Vec::new(), 0).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption);
        assert!(error.hint.unwrap().contains("lead back to itself"));
    }
}
