//! The arguments of `ssh`: what the person's configuration does not say by itself.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use distant_plugin_api::{ErrorKind, LaunchError, LaunchRequest};
use distant_ssh::agent;
use distant_ssh::config::{self, Person, Settings};

/// What stands between `ssh` and the command.
#[derive(Debug, Clone)]
pub(crate) struct Arguments {
    /// Those that every `ssh` to this host takes.
    common: Vec<OsString>,
    host: String,
    /// Whether the person's configuration shares connections, so that ours must not.
    pub(crate) is_shared: bool,
}

impl Arguments {
    /// Puts them together; `settings` is the configuration with the launch's options on top.
    ///
    /// # Errors
    ///
    /// `invalid_option`: `ssh` has no way to be told such a file's name.
    pub(crate) fn new(
        request: &LaunchRequest,
        settings: &Settings,
        stand_in: Option<&Path>,
    ) -> Result<Self, LaunchError> {
        let mut common: Vec<OsString> = Vec::new();
        if let Some(file) = stand_in {
            common.extend(["-F".into(), file.into()]);
        }
        let mut set = |name: &str, value: &str| {
            common.extend(["-o".into(), format!("{name}={value}").into()]);
        };
        set("ConnectTimeout", &settings.connect_limit.as_secs().max(1).to_string());
        settings.undone.iter().for_each(|(name, value)| set(name, value));
        let options = &request.options;
        if options.get("user_known_hosts_files").is_some() {
            let files = settings.known_hosts.iter().map(|file| quoted(file));
            set("UserKnownHostsFile", &files.collect::<Result<Vec<_>, _>>()?.join(" "));
        }
        if let Some(only) = options.bool("identities_only")? {
            set("IdentitiesOnly", if only { "yes" } else { "no" });
        }
        if let Some(command) = options.get("proxy_command").map(str::trim) {
            let is_none = command.is_empty() || command.eq_ignore_ascii_case("none");
            set("ProxyJump", "none");
            set("ProxyCommand", if is_none { "none" } else { command });
        }
        // `ssh` waits for ever for an agent that does not answer.
        if settings.agent.as_ref().is_some_and(|path| !agent::answers(path)) {
            tracing::warn!("the agent does not answer, so it is left out");
            set("IdentityAgent", "none");
        }
        if options.get("identity_files").is_some() {
            for file in &settings.identity_files {
                // Its own tokens begin with a percent sign.
                let file = file.display().to_string().replace('%', "%%");
                common.extend(["-i".into(), file.into()]);
            }
        }
        if let Some(user) = &request.destination.user {
            common.extend(["-l".into(), user.into()]);
        }
        if let Some(port) = request.destination.port {
            common.extend(["-p".into(), port.to_string().into()]);
        }
        let host = request.destination.host.clone();
        Ok(Self { common, host, is_shared: settings.is_shared })
    }

    /// The arguments for a command.
    pub(crate) fn run(&self, socket: &Path, command: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["-v", "-T", "-x"].map(OsString::from).to_vec();
        let mut set = |text: &str| arguments.extend(["-o".into(), text.into()]);
        set("RemoteCommand=none");
        // Those of the configuration may be in use, and a server needs none.
        set("ClearAllForwardings=yes");
        // Nothing may be asked any more once the command runs.
        set("UpdateHostKeys=no");
        if !self.is_shared {
            set("ControlMaster=yes");
            set("ControlPersist=no");
            arguments.extend(["-S".into(), socket.into()]);
        }
        arguments.extend(self.common.iter().cloned());
        arguments.extend(["--".into(), self.host.clone().into(), command.into()]);
        arguments
    }

    /// The arguments that let the `ssh` of a command carry connections from a socket here to an
    /// address there (`forward`), and that end this (`cancel`).
    pub(crate) fn forward(
        &self,
        order: &str,
        socket: &Path,
        from: &Path,
        to: &str,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["-O".into(), order.into()];
        let mut way = from.as_os_str().to_owned();
        way.push(":");
        way.push(to);
        arguments.extend(["-L".into(), way]);
        if !self.is_shared {
            arguments.extend(["-S".into(), socket.into()]);
        }
        arguments.extend(self.common.iter().cloned());
        arguments.extend(["--".into(), self.host.clone().into()]);
        arguments
    }
}

/// The configuration for an `ssh` that would take the account's home for the person's: theirs, and
/// then their usual files. `ssh` hands it on to those that it starts for the hosts in between.
///
/// # Errors
///
/// The system is out of something.
pub(crate) fn stand_in(
    person: &Person,
    given: &Settings,
) -> Result<Option<(File, PathBuf)>, LaunchError> {
    let usual = |name: &str| quoted(&person.home.join(".ssh").join(name));
    let mut more =
        format!("UserKnownHostsFile {} {}\n", usual("known_hosts")?, usual("known_hosts2")?);
    // Named ones count in place of the usual ones.
    if !given.identities_chosen {
        for key in given.identity_files.iter().filter(|key| key.exists()) {
            more.push_str(&format!("IdentityFile {}\n", quoted(key)?));
        }
    }
    config::stand_in(person, &more)
}

/// A file's name as the configuration has it.
fn quoted(file: &Path) -> Result<String, LaunchError> {
    let name = file.display().to_string();
    if name.contains(['"', '\n']) {
        let message = format!("`ssh` cannot be told of a file named `{name}`");
        return Err(LaunchError::new(ErrorKind::InvalidOption, message)
            .with_hint("`backend=ssh2` and `backend=libssh` can"));
    }
    Ok(format!("\"{}\"", name.replace('%', "%%")))
}
