//! Options: the `key=value` map of `--options`, and the schema that a plugin gives for its keys.
//!
//! The map's grammar is that of distant 0.20. The schema is checked before any process is started
//! or any host is asked, so a typo costs nothing: see [`Schema::check`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{ErrorKind, LaunchError};

/// Keys with their values, in the order of the keys.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(BTreeMap<String, String>);

/// Why a text is no map. No value is repeated here, as one may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A key has no `=` after it.
    #[error("`=` is missing after the key `{0}`")]
    MissingEquals(String),
    /// A key is empty or starts with something other than a letter.
    #[error("the key `{0}` does not start with a letter")]
    InvalidKey(String),
    /// Something that is no key follows a value. It is not repeated: it may be the rest of that
    /// value, if there is a comma in it.
    #[error("what follows the value of `{0}` is no option; a value with a comma has to be quoted")]
    Leftover(String),
    /// A value opens a quote and the text ends before it is closed.
    #[error("the value of `{0}` has no closing `\"`")]
    MissingQuote(String),
}

impl Options {
    /// Makes an empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks a value up by its exact key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets a value and returns the one that it replaces.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Option<String> {
        self.0.insert(key.into(), value.into())
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    /// Tells whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Goes through all keys and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Adds each key of `weaker` that is not there yet.
    pub fn fill_in(&mut self, weaker: Options) {
        for (key, value) in weaker.0 {
            self.0.entry(key).or_insert(value);
        }
    }

    fn parsed<T>(
        &self,
        key: &str,
        kind: OptionType,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, LaunchError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        parse(value).map(Some).ok_or_else(|| bad_value(key, Some(value), &kind))
    }

    /// Reads a `bool`: `true`/`false`, `yes`/`no` or `1`/`0`.
    ///
    /// # Errors
    ///
    /// `invalid_option` if the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LaunchError> {
        self.parsed(key, OptionType::Bool, parse_bool)
    }

    /// Reads a number of milliseconds.
    ///
    /// # Errors
    ///
    /// `invalid_option` if the value is no whole number, or more than a year.
    pub fn duration_ms(&self, key: &str) -> Result<Option<Duration>, LaunchError> {
        self.parsed(key, OptionType::DurationMs, |it| parse_ms(it).map(Duration::from_millis))
    }

    /// Reads a port.
    ///
    /// # Errors
    ///
    /// `invalid_option` if the value is no number from 0 to 65535.
    pub fn port(&self, key: &str) -> Result<Option<u16>, LaunchError> {
        self.parsed(key, OptionType::Port, |value| value.trim().parse().ok())
    }

    /// Reads paths separated by commas, white space around each cut off and empty ones left out.
    pub fn path_list(&self, key: &str) -> Option<Vec<PathBuf>> {
        let items = self.get(key)?.split(',').map(str::trim).filter(|item| !item.is_empty());
        Some(items.map(PathBuf::from).collect())
    }
}

impl fmt::Debug for Options {
    /// Prints the keys alone, as a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl fmt::Display for Options {
    /// Prints `key="value",…`, which parses back to the same map. It shows every value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "{comma}{key}=\"{value}\"")?;
        }
        Ok(())
    }
}

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let mut map = BTreeMap::new();
        let mut rest = text.trim();
        let mut last: Option<&str> = None;
        while !rest.is_empty() {
            let leftover = |error| last.map_or(error, |key| OptionsError::Leftover(key.to_owned()));
            let (key, after) = match rest.split_once('=') {
                Some((key, after)) => (key.trim(), after.trim_start()),
                None => return Err(leftover(OptionsError::MissingEquals(rest.to_owned()))),
            };
            if !key.starts_with(char::is_alphabetic) {
                return Err(leftover(OptionsError::InvalidKey(key.to_owned())));
            }
            last = Some(key);
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => {
                    let end = closing_quote(quoted)
                        .ok_or_else(|| OptionsError::MissingQuote(key.to_owned()))?;
                    let after = quoted[end + 1..].trim_start();
                    (&quoted[..end], after.strip_prefix(',').unwrap_or(after))
                }
                None => {
                    let (value, after) = after.split_once(',').unwrap_or((after, ""));
                    (value.trim_end(), after)
                }
            };
            map.insert(key.to_owned(), unescape(value));
            rest = after.trim_start();
        }
        Ok(Self(map))
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// Undoes `\\` and `\"`; every other backslash stays, so `"\n"` is two characters.
fn unescape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\\', Some(&next @ ('\\' | '"'))) => {
                text.push(next);
                characters.next();
            }
            _ => text.push(character),
        }
    }
    text
}

fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Some(true),
        "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// What an option's value may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OptionType {
    /// Any text.
    String,
    /// `true`/`false`, `yes`/`no` or `1`/`0`.
    Bool,
    /// A whole number of milliseconds.
    DurationMs,
    /// One path; `~` and relative ones are the client's.
    Path,
    /// Paths separated by commas.
    PathList,
    /// One of these words, in either case.
    Enum(Vec<String>),
    /// A number from 0 to 65535.
    Port,
    /// A type that this build does not know: any text is let through.
    #[serde(other)]
    Other,
}

impl OptionType {
    /// Tells whether this is such a value.
    pub(crate) fn allows(&self, value: &str) -> bool {
        match self {
            Self::Bool => parse_bool(value).is_some(),
            Self::DurationMs => parse_ms(value).is_some(),
            Self::Port => value.trim().parse::<u16>().is_ok(),
            Self::Enum(words) => words.iter().any(|word| word.eq_ignore_ascii_case(value.trim())),
            Self::String | Self::Path | Self::PathList | Self::Other => true,
        }
    }
}

fn parse_ms(value: &str) -> Option<u64> {
    value.trim().parse().ok().filter(|given| *given <= MILLISECONDS_MAX)
}

impl fmt::Display for OptionType {
    /// Says what is allowed, as an error and a table of options show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String | Self::Other => f.write_str("text"),
            Self::Bool => f.write_str("`true` or `false`"),
            Self::DurationMs => f.write_str("a whole number of milliseconds, at most a year"),
            Self::Path => f.write_str("a path"),
            Self::PathList => f.write_str("paths separated by commas"),
            Self::Port => f.write_str("a number from 0 to 65535"),
            Self::Enum(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                f.write_str(&words.join(" or "))
            }
        }
    }
}

/// One option that a plugin takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionSchema {
    /// The key without its scheme.
    pub name: String,
    /// What its value may be.
    #[serde(rename = "type")]
    pub kind: OptionType,
    /// The value that the host fills in where none is given; it is passed on like a given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// One line for people.
    #[serde(default)]
    pub help: String,
    /// Whether the value must never be shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
    /// Other keys that mean the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
}

impl OptionSchema {
    /// Describes an option without a default.
    pub fn new(name: impl Into<String>, kind: OptionType, help: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind,
            default: None,
            help: help.into(),
            secret: false,
            aliases: Vec::new(),
        }
    }

    /// Gives it a default.
    #[must_use]
    pub fn or(mut self, default: impl Into<String>) -> Self {
        self.default = Some(default.into());
        self
    }

    fn is_called(&self, key: &str) -> bool {
        self.name == key || self.aliases.iter().any(|alias| alias == key)
    }
}

/// Every option of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schema(pub Vec<OptionSchema>);

/// How many edits a key may be away from a known one to be taken for a typo of it.
const TYPO_DISTANCE: usize = 3;

/// A year. Clocks overflow far beyond it, and nobody waits so long.
const MILLISECONDS_MAX: u64 = 365 * 24 * 60 * 60 * 1000;

impl Schema {
    /// Checks a map against this schema and returns it with plain keys and defaults filled in.
    ///
    /// Every key may carry the `scheme.` prefix, except `timeout`; where both spellings are given
    /// the bare one wins. `plugin` and `scheme` name whom the options are for.
    ///
    /// # Errors
    ///
    /// `invalid_option`, naming the plugin and the nearest key for an unknown key, and key, value
    /// and what is allowed for a bad value (a secret one is not shown).
    pub fn check(
        &self,
        given: &Options,
        plugin: &str,
        scheme: &str,
    ) -> Result<Options, LaunchError> {
        let prefix = format!("{}.", scheme.to_lowercase());
        let mut checked = Options::new();
        // Prefixed keys first, so that a bare one replaces its twin.
        let is_prefixed = |key: &str| {
            // By bytes: a lower-case letter may be longer or shorter than its upper-case one.
            let start = key.get(..prefix.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(&prefix)) && !self.knows(key)
        };
        for prefixed in [true, false] {
            for (key, value) in given.iter().filter(|(key, _)| is_prefixed(key) == prefixed) {
                let bare = if prefixed { &key[prefix.len()..] } else { key };
                let option = self.0.iter().find(|option| option.is_called(bare));
                let option = match option {
                    Some(option) if !(prefixed && bare == "timeout") => option,
                    _ => return Err(self.unknown(key, bare, plugin)),
                };
                if !option.kind.allows(value) {
                    let shown = Some(value).filter(|_| !option.secret);
                    return Err(bad_value(key, shown, &option.kind));
                }
                checked.insert(&option.name, value);
            }
        }
        for option in &self.0 {
            if let Some(default) =
                option.default.as_ref().filter(|_| checked.get(&option.name).is_none())
            {
                checked.insert(&option.name, default);
            }
        }
        Ok(checked)
    }

    fn knows(&self, key: &str) -> bool {
        self.0.iter().any(|option| option.is_called(key))
    }

    fn unknown(&self, key: &str, bare: &str, plugin: &str) -> LaunchError {
        let names = self.0.iter().map(|option| option.name.as_str());
        // Comparing takes the product of both lengths, and a key may be a megabyte.
        let names = names.filter(|name| bare.len() <= name.len() + 4 * TYPO_DISTANCE);
        let nearest = names
            .map(|name| (strsim::damerau_levenshtein(bare, name), name))
            .filter(|(distance, _)| *distance <= TYPO_DISTANCE)
            .min();
        let question = nearest.map(|(_, name)| format!("; did you mean `{name}`?"));
        let message =
            format!("unknown option `{key}` for plugin `{plugin}`{}", question.unwrap_or_default());
        let known: Vec<_> = self.0.iter().map(|option| format!("`{}`", option.name)).collect();
        LaunchError::new(ErrorKind::InvalidOption, message)
            .with_hint(format!("its options are {}", known.join(", ")))
    }
}

fn bad_value(key: &str, value: Option<&str>, kind: &OptionType) -> LaunchError {
    let value = value.map_or("[redacted]".to_owned(), |value| format!("`{value}`"));
    LaunchError::new(
        ErrorKind::InvalidOption,
        format!("option `{key}` is {value}, but it has to be {kind}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match text.parse::<Options>() {
            Ok(map) => map.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn every_form_of_0_20_is_understood() {
        check("", "");
        check("  ", "");
        check("a=1", r#"a="1""#);
        check(" a = 1 , b = 2 ", r#"a="1",b="2""#);
        check("a=", r#"a="""#);
        check("a=x=y", r#"a="x=y""#);
        check(r#"a=" x, y ",b=2"#, r#"a=" x, y ",b="2""#);
        check(r#"a="x" b=2"#, r#"a="x",b="2""#);
        check(r#"a="x"b=2"#, r#"a="x",b="2""#);
        check("a=1,", r#"a="1""#);
        check("a=1,a=2", r#"a="2""#);
        check("a='1, b=2", r#"a="'1",b="2""#);
        check(r#"a="\\\"\n""#, r#"a="\\\"\\n""#);
        check(r"a=\\server\share", r#"a="\\server\\share""#);
        check("ä@ .x=1", r#"ä@ .x="1""#);
    }

    #[test]
    fn what_is_no_map_is_refused_with_the_key() {
        check("a", "`=` is missing after the key `a`");
        check("1=a", "the key `1` does not start with a letter");
        check("=a", "the key `` does not start with a letter");
        let leftover = "what follows the value of `a` is no option; \
                        a value with a comma has to be quoted";
        check("a=1,,b=2", leftover);
        check("a=hun,ter2", leftover);
        check("a=\"x", "the value of `a` has no closing `\"`");
    }

    fn schema() -> Schema {
        Schema(vec![
            OptionSchema::new("distant.bin", OptionType::String, ""),
            OptionSchema::new(
                "backend",
                OptionType::Enum(vec!["ssh2".into(), "libssh".into()]),
                "",
            )
            .or("ssh2"),
            OptionSchema::new("timeout", OptionType::DurationMs, ""),
            OptionSchema::new("verbose", OptionType::Bool, ""),
        ])
    }

    fn checked(text: &str, expected: &str) {
        let shown = match schema().check(&text.parse().unwrap(), "ssh2", "ssh") {
            Ok(map) => map.to_string(),
            Err(error) => error.message,
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn the_schema_takes_both_spellings_and_fills_in_defaults() {
        checked("", r#"backend="ssh2""#);
        checked("ssh.backend=libssh", r#"backend="libssh""#);
        checked("ssh.backend=libssh,backend=ssh2", r#"backend="ssh2""#);
        checked("backend=LIBSSH,timeout=5", r#"backend="LIBSSH",timeout="5""#);
        checked("verbose=yes", r#"backend="ssh2",verbose="yes""#);
    }

    #[test]
    fn the_schema_refuses_typos_and_bad_values() {
        let unknown = "unknown option `distant.bni` for plugin `ssh2`; did you mean `distant.bin`?";
        checked("distant.bni=x", unknown);
        checked("zzzzzzzz=x", "unknown option `zzzzzzzz` for plugin `ssh2`");
        // The Kelvin sign is three bytes long, its lower-case `k` one.
        checked("ss\u{212a}.x=1", "unknown option `ss\u{212a}.x` for plugin `ssh2`");
        checked(
            "ssh.timeout=5",
            "unknown option `ssh.timeout` for plugin `ssh2`; did you mean `timeout`?",
        );
        checked("verbose=maybe", "option `verbose` is `maybe`, but it has to be `true` or `false`");
        checked("backend=x", "option `backend` is `x`, but it has to be `ssh2` or `libssh`");
        checked(
            "timeout=-1",
            "option `timeout` is `-1`, but it has to be a whole number of milliseconds, \
             at most a year",
        );
        checked(
            "timeout=18446744073709551615",
            "option `timeout` is `18446744073709551615`, but it has to be a whole number of \
             milliseconds, at most a year",
        );
    }
}
