//! Where to launch or connect: `[scheme://][[user][:password]@]host[:port]`.
//!
//! The grammar is that of distant 0.20, so every destination that works there means the same here;
//! beyond it a name may have `_`, as aliases of ssh and containers do, and an address a zone.
//! Nothing is resolved and no default is filled in: that belongs to whoever handles the scheme.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secret::Secret;

/// A parsed destination.
///
/// `Debug` and `Display` leave the password out; [`Destination::expose`] prints it too.
#[derive(Clone, PartialEq, Eq)]
pub struct Destination {
    /// Text before `://`, as written; compare it with [`Destination::has_scheme`].
    pub scheme: Option<String>,
    /// Text before the first `@`, up to its first `:`.
    pub user: Option<String>,
    /// The rest of the text before the first `@`. For `distant://` it is the server's key.
    pub password: Option<Secret>,
    /// A name, an IPv4 address, or an IPv6 address without brackets, which may have a zone behind `%`.
    pub host: String,
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// Why a text is no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// Nothing was given.
    #[error("the destination is empty")]
    Empty,
    /// The text before `://` has a character that no scheme has.
    #[error("`{0}` is no scheme: letters, digits, `+`, `.` and `-` make one")]
    Scheme(String),
    /// There is no host.
    #[error("there is no host in it")]
    NoHost,
    /// The host is no name and no address.
    #[error("`{host}` is no host name or address: {reason}")]
    Host {
        /// What stands where the host should.
        host: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// What follows the host's `:` is no port.
    #[error("`{0}` is no port: a port is a number from 0 to 65535")]
    Port(String),
}

/// Longest host name, in bytes (RFC 1035, 2.3.4).
const HOST_MAX: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;

impl Destination {
    /// Makes a destination that is only a host.
    pub fn new(host: impl Into<String>) -> Self {
        Self { scheme: None, user: None, password: None, host: host.into(), port: None }
    }

    /// Tells whether the scheme is this one; schemes are the same in either case.
    pub fn has_scheme(&self, scheme: &str) -> bool {
        self.scheme.as_deref().is_some_and(|own| own.to_lowercase() == scheme.to_lowercase())
    }

    /// Prints the destination with its password, for a peer that is meant to have it.
    pub fn expose(&self) -> Secret {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.print(&mut text, self.password.as_ref().map(Secret::expose));
        Secret::new(text)
    }

    fn print(&self, f: &mut impl fmt::Write, password: Option<&str>) -> fmt::Result {
        if let Some(scheme) = &self.scheme {
            write!(f, "{scheme}://")?;
        }
        if let Some(user) = &self.user {
            f.write_str(user)?;
        }
        if let Some(password) = password {
            write!(f, ":{password}")?;
        }
        if self.user.is_some() || password.is_some() {
            f.write_char('@')?;
        }
        // Else a zone that begins like this would be read as another one.
        let host = self.host.replace("%25", "%2525");
        match self.port {
            Some(port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Some(port) => write!(f, "{host}:{port}"),
            None => f.write_str(&host),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(f, None)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "[redacted]");
        write!(f, "Destination(")?;
        self.print(f, password)?;
        write!(f, ")")
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        if text.is_empty() {
            return Err(DestinationError::Empty);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(parse_scheme(scheme)?), rest),
            None => (None, text),
        };
        let (user, password, address) = match rest.split_once('@') {
            Some((login, address)) => {
                let (user, password) = match login.split_once(':') {
                    Some((user, password)) => (user, Some(Secret::new(password))),
                    None => (login, None),
                };
                (Some(user.to_owned()).filter(|user| !user.is_empty()), password, address)
            }
            None => (None, None, rest),
        };
        if let Some((_, host)) = address.rsplit_once('@') {
            // What precedes the last `@` may be a password, so it is not repeated.
            let reason = "a user name or password holds no `@`, and what is before it has one";
            return Err(DestinationError::Host { host: host.to_owned(), reason });
        }
        let (host, port) = parse_address(address)?;
        Ok(Self { scheme, user, password, host, port })
    }
}

fn parse_scheme(scheme: &str) -> Result<String, DestinationError> {
    if scheme.chars().all(|c| c.is_alphanumeric() || matches!(c, '+' | '.' | '-')) {
        Ok(scheme.to_owned())
    } else {
        Err(DestinationError::Scheme(scheme.to_owned()))
    }
}

fn parse_address(address: &str) -> Result<(String, Option<u16>), DestinationError> {
    if let Some(bracketed) = address.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(DestinationError::Host {
            host: address.to_owned(),
            reason: "its `[` is not closed",
        })?;
        let port = match rest {
            "" => None,
            _ => match rest.strip_prefix(':') {
                Some(port) => Some(parse_port(port)?),
                None => return Err(DestinationError::Port(rest.to_owned())),
            },
        };
        return Ok((parse_ipv6(host)?, port));
    }
    match address.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok((parse_ipv6(address)?, None)),
        Some((host, port)) => Ok((parse_name(host)?, Some(parse_port(port)?))),
        None => Ok((parse_name(address)?, None)),
    }
}

fn parse_ipv6(host: &str) -> Result<String, DestinationError> {
    let broken = |reason| DestinationError::Host { host: host.to_owned(), reason };
    let (address, zone) = match host.split_once('%') {
        // Where `%` has a meaning of its own it is written `%25` (RFC 6874).
        Some((address, zone)) => {
            let written = zone.strip_prefix("25").filter(|rest| !rest.is_empty());
            (address, Some(written.unwrap_or(zone)))
        }
        None => (host, None),
    };
    let address = address
        .parse::<Ipv6Addr>()
        .map_err(|_| broken("with more than one `:` it must be an IPv6 address"))?;
    let Some(zone) = zone else { return Ok(address.to_string()) };
    let is_zone = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if zone.is_empty() || zone.len() > LABEL_MAX || !zone.chars().all(is_zone) {
        return Err(broken("what follows its `%` is no network interface"));
    }
    Ok(format!("{address}%{zone}"))
}

fn parse_port(port: &str) -> Result<u16, DestinationError> {
    // `u16::from_str` also takes a leading `+`.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let number = port.parse().ok().filter(|_| digits);
    number.ok_or_else(|| DestinationError::Port(port.to_owned()))
}

fn parse_name(host: &str) -> Result<String, DestinationError> {
    let broken = |reason| Err(DestinationError::Host { host: host.to_owned(), reason });
    if host.is_empty() {
        return Err(DestinationError::NoHost);
    }
    if host.len() > HOST_MAX {
        return broken("it is longer than 253 bytes");
    }
    for label in host.split('.') {
        if label.is_empty() {
            return broken("a label of it is empty");
        }
        if label.len() > LABEL_MAX {
            return broken("a label of it is longer than 63 bytes");
        }
        if !label.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_')) {
            return broken("a label has only letters, digits, `-` and `_`");
        }
    }
    if host.starts_with('-') || host.ends_with('-') {
        return broken("it starts or ends with `-`");
    }
    Ok(host.to_owned())
}

impl Serialize for Destination {
    /// Writes the text form with its password: a message has to carry it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose().expose())
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Secret::deserialize(deserializer)?;
        text.expose().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each part of a destination in order, `-` for one that is not there.
    fn check(text: &str, expected: &str) {
        let shown = match text.parse::<Destination>() {
            Ok(it) => format!(
                "{} {} {} {} {}",
                it.scheme.as_deref().unwrap_or("-"),
                it.user.as_deref().unwrap_or("-"),
                it.password.as_ref().map_or("-", Secret::expose),
                it.host,
                it.port.map_or("-".into(), |port| port.to_string()),
            ),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn every_form_of_0_20_is_understood() {
        check("box", "- - - box -");
        check("box:22", "- - - box 22");
        check("ssh://me@box", "ssh me - box -");
        check("SSH://me:p:w@box:2222", "SSH me p:w box 2222");
        check("distant://:00ff@10.0.0.7:8080", "distant - 00ff 10.0.0.7 8080");
        check("://box", " - - box -");
        check("ssh://[::1]", "ssh - - ::1 -");
        check("ssh://::1", "ssh - - ::1 -");
        check("[::1]:22", "- - - ::1 22");
        check("straße.example", "- - - straße.example -");
        check("@box", "- - - box -");
    }

    #[test]
    fn names_with_an_underscore_and_addresses_with_a_zone_are_understood_too() {
        check("ssh://my_box:22", "ssh - - my_box 22");
        check("ssh://fe80::1%eth0", "ssh - - fe80::1%eth0 -");
        check("ssh://me@[FE80::1%eth0.7]:22", "ssh me - fe80::1%eth0.7 22");
        check("ssh://[fe80::1%25eth0]", "ssh - - fe80::1%eth0 -");
        // Interfaces have numbers, too.
        check("ssh://fe80::1%25", "ssh - - fe80::1%25 -");
        check("ssh://[fe80::1%25256]", "ssh - - fe80::1%256 -");
        for text in ["[fe80::1%eth0]:22", "fe80::1%25", "[fe80::1%25256]:22", "fe80::1%2525"] {
            let it: Destination = text.parse().unwrap();
            assert_eq!(it.expose().expose().parse::<Destination>().unwrap(), it, "{text}");
        }
        for zone in ["", "-x y", "a/b", "a$b", &"x".repeat(64)] {
            let text = format!("fe80::1%{zone}");
            let reason = "what follows its `%` is no network interface";
            check(&text, &format!("`{text}` is no host name or address: {reason}"));
        }
        check("127.0.0.1%eth0", &label("127.0.0.1%eth0"));
    }

    fn label(host: &str) -> String {
        let rule = "a label has only letters, digits, `-` and `_`";
        format!("`{host}` is no host name or address: {rule}")
    }

    #[test]
    fn what_is_no_destination_is_refused_with_the_rule_it_breaks() {
        check("", "the destination is empty");
        check("sche_me://h", "`sche_me` is no scheme: letters, digits, `+`, `.` and `-` make one");
        check("ssh://", "there is no host in it");
        check("local host", &label("local host"));
        check("h/path", &label("h/path"));
        check(
            "user@name:pw@host",
            "`host` is no host name or address: \
             a user name or password holds no `@`, and what is before it has one",
        );
        check("h:", "`` is no port: a port is a number from 0 to 65535");
        check("h:99999", "`99999` is no port: a port is a number from 0 to 65535");
        check("h:+1", "`+1` is no port: a port is a number from 0 to 65535");
        check("[::1", "`[::1` is no host name or address: its `[` is not closed");
        check("[::1]x", "`x` is no port: a port is a number from 0 to 65535");
        check("-h", "`-h` is no host name or address: it starts or ends with `-`");
        check(
            &"a".repeat(64),
            &format!(
                "`{}` is no host name or address: a label of it is longer than 63 bytes",
                "a".repeat(64)
            ),
        );
    }

    #[test]
    fn the_password_shows_only_when_exposed() {
        let it: Destination = "ssh://me:hunter2@[::1]:22".parse().unwrap();
        assert_eq!(it.to_string(), "ssh://me@[::1]:22");
        assert_eq!(format!("{it:?}"), "Destination(ssh://me:[redacted]@[::1]:22)");
        assert_eq!(it.expose().expose(), "ssh://me:hunter2@[::1]:22");
        assert_eq!(it.expose().expose().parse::<Destination>().unwrap(), it);
    }
}
