//! What a server is told, in resolved terms, and the texts that people write it in.
//!
//! The texts are those of distant 0.20; what that version panics at is an error here.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::secret::SessionKey;

/// Longest time that a person means when they write a number of seconds: a hundred years. Adding
/// more to the clock could overflow it.
const SECONDS_MAX: f64 = 100.0 * 365.0 * 24.0 * 60.0 * 60.0;

/// What a server is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub host: BindHost,
    /// On which port.
    pub ports: PortRange,
    /// Whether `any` and names mean IPv6 addresses.
    pub use_ipv6: bool,
    /// When it ends by itself.
    pub shutdown: Shutdown,
    /// The folder it works in.
    pub current_dir: Option<PathBuf>,
    /// Its key; it makes one where there is none.
    pub key: Option<SessionKey>,
    /// How it watches files.
    pub watch: WatchSettings,
    /// What whoever launched it expects.
    pub launch: LaunchSettings,
}

/// What whoever launched a server expects of it; nothing of a server that a person started.
#[derive(Debug, Clone, Default)]
pub struct LaunchSettings {
    /// Whether it says that it takes the proof of the key.
    pub announce_proof: bool,
    /// How long it waits for its first client before it ends.
    pub first_client: Option<Duration>,
    /// Whether it ends when its standard input does.
    pub lifeline: bool,
    /// The address that its ssh session came to.
    pub ssh_address: Option<String>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindHost {
    /// On the address that the ssh connection came to.
    Ssh,
    /// On every address.
    Any,
    /// On this address.
    Address(IpAddr),
    /// On the address of this name.
    Name(String),
}

/// The text is no `ssh`, `any`, address or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has to be `ssh`, `any`, an IP address or the name of a host")]
pub struct InvalidHost;

impl FromStr for BindHost {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("ssh") {
            return Ok(Self::Ssh);
        }
        if text.eq_ignore_ascii_case("any") {
            return Ok(Self::Any);
        }
        let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self::Address(address));
        }
        // A destination that is only a host follows the rules for names.
        match text.parse::<Destination>() {
            Ok(it) if it.host == text => Ok(Self::Name(it.host)),
            _ => Err(InvalidHost),
        }
    }
}

impl fmt::Display for BindHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh => f.write_str("ssh"),
            Self::Any => f.write_str("any"),
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Ports to try, the lowest first; 0 leaves the choice to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// One port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether it is one port.
    pub fn is_single(self) -> bool {
        self.first == self.last
    }

    /// All of them in order.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self::single(0)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// Why a text is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPorts {
    /// It is no number or pair of numbers.
    #[error("it has to be `PORT` or `PORT:PORT2`, from 0 to 65535")]
    Form,
    /// The second port is below the first.
    #[error("the first port of a range cannot be above the second")]
    Order,
}

impl FromStr for PortRange {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let port = |text: &str| text.trim().parse().map_err(|_| InvalidPorts::Form);
        let (first, last) = match text.split_once(':') {
            // distant 0.20 takes `1:` for `1`.
            Some((first, last)) if !last.is_empty() => (port(first)?, port(last)?),
            Some((first, _)) => (port(first)?, port(first)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(InvalidPorts::Order);
        }
        Ok(Self { first, last })
    }
}

/// When a server ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shutdown {
    /// It does not.
    #[default]
    Never,
    /// So long after its start, whoever is connected.
    After(Duration),
    /// When nobody has been connected for so long.
    Lonely(Duration),
}

/// Why a text is no rule for the end of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShutdown {
    /// It is none of the three rules.
    #[error("it has to be `never`, `after=N` or `lonely=N`")]
    Rule,
    /// Its number is no time.
    #[error(transparent)]
    Time(#[from] InvalidSeconds),
}

impl FromStr for Shutdown {
    type Err = InvalidShutdown;

    fn from_str(text: &str) -> Result<Self, InvalidShutdown> {
        if text.trim().eq_ignore_ascii_case("never") {
            return Ok(Self::Never);
        }
        let (rule, time) = text.split_once('=').ok_or(InvalidShutdown::Rule)?;
        let rule = match rule.trim().to_ascii_lowercase().as_str() {
            "after" => Self::After,
            "lonely" => Self::Lonely,
            _ => return Err(InvalidShutdown::Rule),
        };
        Ok(rule(parse_seconds(time)?))
    }
}

/// The text is no number of seconds, or a negative or an absurd one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("N has to be a number of seconds, from 0 to 3153600000 (a hundred years)")]
pub struct InvalidSeconds;

/// Reads a number of seconds, fractions allowed.
///
/// # Errors
///
/// It is none, or negative, or absurd.
pub fn parse_seconds(text: &str) -> Result<Duration, InvalidSeconds> {
    let seconds: f64 = text.trim().parse().map_err(|_| InvalidSeconds)?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(InvalidSeconds);
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| InvalidSeconds)
}

/// How files are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchSettings {
    /// Whether to look at the files again and again instead of asking the system.
    pub polling: bool,
    /// How often then.
    pub poll_interval: Option<Duration>,
    /// Whether to compare what is in them then.
    pub compare_contents: bool,
    /// How long changes are collected before they are told.
    pub debounce_timeout: Duration,
    /// How often to look whether that time is over; a quarter of it where nothing is said.
    pub debounce_tick_rate: Option<Duration>,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self {
            polling: false,
            poll_interval: None,
            compare_contents: false,
            debounce_timeout: Duration::from_millis(500),
            debounce_tick_rate: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<T: FromStr>(text: &str, show: impl Fn(T) -> String) -> String
    where
        T::Err: fmt::Display,
    {
        text.parse().map_or_else(|error: T::Err| error.to_string(), show)
    }

    #[test]
    fn every_host_of_0_20_is_understood() {
        let check = |text, expected: &str| {
            assert_eq!(shown(text, |it: BindHost| format!("{it:?}")), expected, "{text}");
        };
        check("ssh", "Ssh");
        check(" ANY ", "Any");
        check("127.0.0.2", "Address(127.0.0.2)");
        check("::1", "Address(::1)");
        check("[::1]", "Address(::1)");
        check("localhost", "Name(\"localhost\")");
        // As in a destination, and more than 0.20.0 takes: what resolves is a name.
        check("my_box", "Name(\"my_box\")");
        let wrong = InvalidHost.to_string();
        for text in ["", "a b", "me@box", "box:22", "ssh://box", "256.1.1.1."] {
            check(text, &wrong);
        }
    }

    #[test]
    fn every_port_range_of_0_20_is_understood() {
        let check = |text, expected: &str| {
            assert_eq!(shown(text, |it: PortRange| it.to_string()), expected, "{text}");
        };
        check("0", "0");
        check("8080", "8080");
        check("8080:", "8080");
        check("8080:8090", "8080:8090");
        check("8080:8080", "8080");
        check("8090:8080", "the first port of a range cannot be above the second");
        for text in ["", "x", "-1", "65536", "1:2:3", ":1"] {
            check(text, "it has to be `PORT` or `PORT:PORT2`, from 0 to 65535");
        }
    }

    #[test]
    fn every_shutdown_rule_of_0_20_is_understood_and_absurd_ones_are_errors() {
        let check = |text, expected: &str| {
            assert_eq!(shown(text, |it: Shutdown| format!("{it:?}")), expected, "{text}");
        };
        check("Never", "Never");
        check("after=1.5", "After(1.5s)");
        check("LONELY = 60 ", "Lonely(60s)");
        check("lonely=0", "Lonely(0ns)");
        for text in ["", "after", "soon=1", "lonely:1"] {
            check(text, "it has to be `never`, `after=N` or `lonely=N`");
        }
        // All of these panic in 0.20.
        for text in ["lonely=-1", "after=1e30", "after=inf", "lonely=NaN", "after=", "after=x"] {
            check(text, &InvalidSeconds.to_string());
        }
    }
}
