//! What `ssh -v` says on its standard error: how far it is, and in the end why it failed.
//!
//! Its lines are meant for people, so nothing depends on them but the words of an error and where a
//! limit begins; what they are is held by tests against the real program.

use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs};

use distant_plugin_api::{ErrorKind, LaunchError};
use distant_ssh::config::Settings;
use distant_ssh::known_hosts::KnownHosts;

/// Complaints that are kept, and their length.
const COMPLAINTS: usize = 40;
const COMPLAINT_MAX: usize = 400;
/// Lines of them that an error shows.
const SHOWN: usize = 6;
/// What is said of a ticket begins with it.
const KERBEROS: &str = "Kerberos: ";

/// How far a login is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The connection is being made.
    #[default]
    Connecting,
    /// The host has shown its key.
    HostKey,
    /// The host wants to know who we are.
    Authenticating,
    /// The command is being run.
    LoggedIn,
}

/// All that was said so far.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// How far it is.
    pub(crate) step: Step,
    /// Where the connection goes, once that is sure.
    pub(crate) peer: Option<SocketAddr>,
    /// Where it went before the server could say a word, which might have said anything else.
    connected: Option<SocketAddr>,
    is_connected: bool,
    is_proxied: bool,
    /// How many complaints there were when the server could begin to say some, as in a banner.
    own: Option<usize>,
    /// Whether nothing more will come.
    pub(crate) has_ended: bool,
    complaints: Vec<String>,
    /// How many complaints are not kept any more.
    left_out: usize,
    /// The kind of key that the host has shown last.
    host_key: Option<String>,
    key: Option<String>,
    /// What is known of a ticket of Kerberos, while one is tried.
    ticket: Option<Ticket>,
    /// The trace goes on in the next line.
    is_cut: bool,
    tried: Vec<String>,
    takes: Option<String>,
}

/// What is known of a ticket that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ticket {
    /// Nothing yet.
    Tried,
    /// It is of no use, and why was said.
    Useless,
}

/// Who says a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// `ssh` for its trace.
    Trace,
    /// `ssh` for people, or the command.
    Other,
}

impl Words {
    /// Nothing yet. Where there are hosts or programs in between, only the last login counts.
    pub(crate) fn new(is_proxied: bool) -> Self {
        Self { is_proxied, ..Self::default() }
    }

    /// Takes a line in, with its end.
    pub(crate) fn hear(&mut self, line: &str) -> Speaker {
        // `ssh` ends what it says by both characters, so one alone is within a text. After the login
        // the command speaks too, and in its own way.
        let goes_on = self.step < Step::LoggedIn && line.ends_with('\n') && !line.ends_with("\r\n");
        let line = line.trim_end();
        if std::mem::take(&mut self.is_cut) {
            self.is_cut = goes_on;
            self.follow_on(line.trim());
            return Speaker::Trace;
        }
        if let Some(trace) = trace(line) {
            self.is_cut = goes_on;
            self.follow(trace);
            return Speaker::Trace;
        }
        if let Some(rest) = line.strip_prefix("Authenticated to ") {
            self.logged_in(rest);
            return Speaker::Trace;
        }
        let is_trace = ["OpenSSH_", "Transferred: sent ", "Bytes per second: "];
        if is_trace.iter().any(|start| line.starts_with(start)) {
            return Speaker::Trace;
        }
        let shown: String =
            line.trim().chars().filter(|c| !c.is_control()).take(COMPLAINT_MAX).collect();
        // What `ssh` finds grave it puts into a box.
        let is_boxed = shown.starts_with('@') && shown.ends_with('@');
        let shown = if is_boxed { shown.trim_matches(['@', ' ']) } else { &shown };
        if !shown.is_empty() {
            self.complaints.push(shown.to_owned());
            if self.complaints.len() > COMPLAINTS {
                self.complaints.remove(0);
                self.left_out += 1;
            }
        }
        Speaker::Other
    }

    fn follow(&mut self, trace: &str) {
        if !self.is_connected {
            self.is_connected = trace == "Connection established.";
            if let Some(place) = trace.strip_prefix("Connecting to ") {
                self.connected = peer(place);
            }
        }
        // Until then all is about the way there and the host's key. Of hosts in between it is not
        // known which one is meant.
        if trace == "SSH2_MSG_NEWKEYS received" && !self.is_proxied {
            self.own.get_or_insert(self.left_out + self.complaints.len());
        }
        if let Some(key) = trace.strip_prefix("Server host key: ") {
            self.host_key = key.split(' ').next().map(str::to_owned);
            self.reach(Step::HostKey);
        } else if let Some(methods) = trace.strip_prefix("Authentications that can continue: ") {
            self.reach(Step::Authenticating);
            if let Some(key) = self.key.take() {
                self.note(format!("key `{key}`: not accepted"));
            }
            if self.ticket == Some(Ticket::Tried) {
                self.ticket = Some(Ticket::Useless);
                self.note(format!("{KERBEROS}not accepted"));
            }
            self.takes = Some(methods.replace(',', ", "));
        } else if let Some(key) = trace.strip_prefix("Offering public key: ") {
            self.key = Some(key_name(key));
        } else if let Some(key) = trace.strip_prefix("Trying private key: ") {
            self.key = Some(key.to_owned());
        } else if trace.starts_with("mux_client_request_session: master session id") {
            self.step = Step::LoggedIn;
        }
        if let Some(method) = trace.strip_prefix("Next authentication method: ") {
            // A usual file that is not there was passed over.
            self.key = None;
            self.ticket = method.starts_with("gssapi").then_some(Ticket::Tried);
        }
    }

    /// Takes a further line of a trace in: the reason why there is no ticket is one.
    fn follow_on(&mut self, line: &str) {
        if self.ticket.is_none() || line.is_empty() {
            return;
        }
        self.ticket = Some(Ticket::Useless);
        let reason: String = line.chars().filter(|c| !c.is_control()).take(COMPLAINT_MAX).collect();
        let reason = format!("{KERBEROS}{reason}");
        // Each mechanism says it again.
        if !self.tried.contains(&reason) {
            self.note(reason);
        }
    }

    fn logged_in(&mut self, rest: &str) {
        if self.step == Step::LoggedIn {
            // The command there says so, and it is not the one to ask.
            return;
        }
        let by_proxy = rest.contains(" (via proxy) ");
        if by_proxy || !self.is_proxied {
            self.step = Step::LoggedIn;
        }
        if !by_proxy && !self.is_proxied {
            self.peer = self.connected;
        }
    }

    fn reach(&mut self, step: Step) {
        self.step = self.step.max(step);
    }

    /// The complaints that `ssh` itself has made.
    fn own(&self) -> impl Iterator<Item = &String> {
        let most = self.own.map_or(usize::MAX, |own| own.saturating_sub(self.left_out));
        self.complaints.iter().take(most)
    }

    fn says(&self, text: &str) -> bool {
        self.own().any(|line| line.contains(text))
    }

    /// What was said for people since the last time.
    pub(crate) fn since(&self, shown: &mut usize) -> String {
        let new = self.complaints.iter().skip(shown.saturating_sub(self.left_out));
        let text = new.cloned().collect::<Vec<_>>().join("\n");
        *shown = self.left_out + self.complaints.len();
        text
    }

    /// Remembers what was tried, for the error: as much as there is of complaints. A server's banner
    /// may look like any trace.
    pub(crate) fn note(&mut self, line: String) {
        if self.tried.len() < COMPLAINTS {
            self.tried.push(line.chars().take(COMPLAINT_MAX).collect());
        }
    }

    /// Whether the server hung up before it said that it speaks ssh, as a busy one does.
    pub(crate) fn hung_up(&self) -> bool {
        let early = |line: &String| {
            line.starts_with("kex_exchange_identification: ")
                && (line.ends_with("Connection closed by remote host")
                    || line.ends_with("Connection reset by peer"))
        };
        // Later on it may be a banner that says so, and a password must not be refused again.
        !self.is_proxied && self.step == Step::Connecting && self.complaints.iter().any(early)
    }

    /// Why there is no login; `status` is how `ssh` ended.
    pub(crate) fn error(&self, settings: &Settings, status: &str) -> LaunchError {
        let place = settings.place();
        let error = LaunchError::new;
        let made = if self.says("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            return self.changed(&place, settings);
        } else if ["is marked as revoked", "REVOKED HOST KEY", " revoked by file "]
            .iter()
            .any(|text| self.says(text))
        {
            return self.revoked(&place);
        } else if self.says(" in revoked keys file ") {
            let message = format!("nobody can tell whether the host key of `{place}` is revoked");
            error(ErrorKind::HostKey, message).with_hint(
                "mend the file of `RevokedHostKeys`, or take it out of the configuration",
            )
        } else if self.says("Could not resolve hostname") {
            error(ErrorKind::Unresolved, format!("there is no host `{}`", settings.host))
        } else if self.says("banner exchange") && self.says("timed out") {
            error(ErrorKind::TimedOut, format!("`{place}` does not speak ssh, or is too slow"))
        } else if self.says("timed out") && self.step == Step::Connecting {
            error(ErrorKind::TimedOut, format!("`{place}` does not answer"))
                .with_hint("is the host up, and the port right? A firewall may drop the packets")
        } else if self.says("onfiguration option") || self.says("terminating, ") {
            let message = format!("`ssh` cannot read its configuration for `{}`", settings.given);
            error(ErrorKind::InvalidOption, message)
        } else if self.says("Host key verification failed") || self.says("host key is known for") {
            error(ErrorKind::HostKey, format!("the host key of `{place}` is not known")).with_hint(
                "compare the fingerprint, and launch once at a terminal, where you can accept it",
            )
        } else if self.step >= Step::Authenticating {
            return self.refused(settings);
        } else if self.is_proxied || self.step > Step::Connecting || !self.says("connect to ") {
            error(ErrorKind::Unreachable, format!("no ssh connection to `{place}`"))
                .with_hint("see what `ssh -v HOST true` says there")
        } else {
            error(ErrorKind::Unreachable, format!("cannot reach `{place}`"))
        };
        if self.complaints.is_empty() {
            return made.caused_by(format!("the program `ssh` ended with {status}"));
        }
        self.last_words().fold(made, LaunchError::caused_by)
    }

    /// What `ssh` said last, for people.
    fn last_words(&self) -> impl Iterator<Item = String> + '_ {
        self.complaints.iter().skip(self.complaints.len().saturating_sub(SHOWN)).cloned()
    }

    /// The error where nothing is left to try, or somebody would not say.
    pub(crate) fn refused(&self, settings: &Settings) -> LaunchError {
        let message = format!("`{}@{}` does not let us in", settings.user, settings.given);
        let mut error = LaunchError::new(ErrorKind::Authentication, message);
        error.causes.extend(self.tried.iter().cloned());
        if let Some(takes) = self.takes.as_ref().filter(|it| !it.is_empty()) {
            error.causes.push(format!("the server takes {takes}"));
        }
        error.causes.extend(self.last_words());
        let more = match self.tried.iter().any(|it| it.starts_with(KERBEROS)) {
            true => "; a ticket of Kerberos comes from `kinit`, and `klist` shows it",
            false => "",
        };
        let usual = "check the user's name, and `identity_files` or the agent's keys";
        error.with_hint(format!("{usual}{more}"))
    }

    fn changed(&self, place: &str, settings: &Settings) -> LaunchError {
        let message = format!("the host key of `{place}` is not the one that is known");
        let mut error = LaunchError::new(ErrorKind::HostKey, message);
        // `Host key for NAME has changed and you have requested strict checking.`
        let name = self.own().find_map(|line| {
            let rest = line.strip_prefix("Host key for ")?;
            rest.split_once(" has changed").map(|(name, _)| name)
        });
        // `ssh` names the last line of the host, even one with a key of another kind.
        let files = [&settings.known_hosts[..], &settings.global_known_hosts].concat();
        let known = KnownHosts::read(&files, &[]);
        let same_kind = name.zip(self.host_key.as_deref()).and_then(|(name, kind)| {
            known.first(name, kind).map(|at| (at.file.display().to_string(), at.line.to_string()))
        });
        let offending = same_kind.or_else(|| {
            self.own().find_map(|line| {
                let (_, at) = line.strip_prefix("Offending ")?.split_once(" in ")?;
                at.rsplit_once(':').map(|(file, line)| (file.to_owned(), line.to_owned()))
            })
        });
        if let Some((file, line)) = &offending {
            error = error.caused_by(format!("{file}, line {line}, has another one"));
        }
        let fingerprint = self.own().find(|line| line.starts_with("SHA256:"));
        if let Some(fingerprint) = fingerprint {
            error =
                error.caused_by(format!("the host shows {}", fingerprint.trim_end_matches('.')));
        }
        match (name, &offending) {
            (Some(name), Some((file, _))) => error.with_hint(format!(
                "somebody may be in between. If the host was set up anew: `ssh-keygen -R {} -f {}`",
                shell_words::quote(name),
                shell_words::quote(file)
            )),
            _ => error.with_hint("somebody may be in between"),
        }
    }

    fn revoked(&self, place: &str) -> LaunchError {
        let message = format!("the host key of `{place}` is revoked");
        let error = LaunchError::new(ErrorKind::HostKey, message)
            .with_hint("somebody else may have this key: ask whoever runs the host");
        let said = self.own().filter(|line| line.contains("revoked")).cloned();
        said.fold(error, LaunchError::caused_by)
    }
}

/// The address in `box [192.0.2.1] port 22.`, with its zone if it has one.
fn peer(place: &str) -> Option<SocketAddr> {
    let (_, rest) = place.split_once(" [")?;
    let (ip, port) = rest.split_once("] port ")?;
    let port = port.strip_suffix('.')?.parse().ok()?;
    match ip.split_once('%') {
        // The system knows the number of an interface.
        Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => {
            (ip, port).to_socket_addrs().ok()?.next()
        }
        _ => Some(SocketAddr::new(ip.parse().ok()?, port)),
    }
}

/// The line of a trace without its mark.
fn trace(line: &str) -> Option<&str> {
    let (mark, rest) = line.split_once(": ")?;
    matches!(mark, "debug1" | "debug2" | "debug3").then_some(rest)
}

/// The file or comment in `/a b/id ED25519 SHA256:… explicit`.
fn key_name(offered: &str) -> String {
    let before = offered.split_once(" SHA256:").map_or(offered, |(before, _)| before);
    before.rsplit_once(' ').map_or(before, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddrV6;

    use super::*;

    #[test]
    fn a_banner_that_looks_like_a_trace_takes_up_little() {
        let mut words = Words::new(false);
        let key = "x".repeat(8000);
        for _ in 0..1000 {
            words.hear(&format!("debug1: Offering public key: {key}\r\n"));
            words.hear("debug1: Authentications that can continue: none\r\n");
            words.hear(&format!("{key}\n"));
        }
        assert_eq!((words.tried.len(), words.complaints.len()), (COMPLAINTS, COMPLAINTS));
        let texts = words.tried.iter().chain(&words.complaints);
        assert!(texts.map(String::len).all(|length| length <= COMPLAINT_MAX));
    }

    #[test]
    fn neither_server_nor_command_says_where_the_connection_goes() {
        let mut words = Words::new(false);
        // The last one of several addresses.
        for ip in ["2001:db8::1", "192.0.2.1"] {
            words.hear(&format!("debug1: Connecting to box [{ip}] port 22.\r\n"));
        }
        words.hear("debug1: Connection established.\r\n");
        // A banner, and what the command prints.
        for _ in 0..2 {
            words.hear("debug1: Connecting to box [10.0.0.7] port 6379.\r\n");
            words.hear("debug1: Connection established.\r\n");
            words.hear("Authenticated to box ([10.0.0.7]:6379) using \"publickey\".\r\n");
            assert_eq!(words.peer, Some("192.0.2.1:22".parse().unwrap()));
        }
    }

    #[test]
    fn only_who_has_not_said_a_word_is_busy() {
        let closed = "kex_exchange_identification: Connection closed by remote host\r\n";
        let mut words = Words::new(false);
        words.hear(closed);
        assert!(words.hung_up());
        let mut words = Words::new(false);
        words.hear("debug1: Server host key: ssh-ed25519 SHA256:x\r\n");
        words.hear(closed);
        words.hear("debug1: Authentications that can continue: password\r\n");
        assert!(!words.hung_up());
    }

    #[test]
    fn a_zone_is_part_of_where_the_connection_goes() {
        let lo = fs::read_to_string("/sys/class/net/lo/ifindex").unwrap().trim().parse().unwrap();
        let zoned = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 22, 0, lo));
        assert_eq!(peer("box [fe80::1%lo] port 22."), Some(zoned));
        assert_eq!(peer("box [::1] port 2222."), Some("[::1]:2222".parse().unwrap()));
        for none in ["box [fe80::1%none] port 22.", "box [x%lo] port 22.", "box port 22.", ""] {
            assert_eq!(peer(none), None);
        }
    }
}
