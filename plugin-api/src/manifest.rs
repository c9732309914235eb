//! What a plugin says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::options::Schema;

/// Keys that mean the same for every scheme and belong to the host.
pub const HOST_OPTIONS: [&str; 6] =
    ["distant.bin", "distant.bind_server", "distant.args", "distant.upload", "timeout", "backend"];

/// Most bytes of a name, a scheme or an option's key.
const NAME_MAX: usize = 64;

/// What a plugin is and what it can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name, by which a person chooses it: `ssh2`, `manager-local`.
    pub name: String,
    /// Its own version, for people.
    #[serde(default)]
    pub version: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// The schemes it serves, lower-case.
    pub schemes: Vec<String>,
    /// The options it takes beside those that belong to the host (`distant.bin`,
    /// `distant.bind_server`, `distant.args`, `distant.upload`, `timeout`, `backend`).
    #[serde(default)]
    pub options: Schema,
    /// Whether it only runs commands there, and leaves the server to the host: see
    /// [`message`](crate::message). Only of executables.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs_commands: bool,
}

impl Manifest {
    /// Makes a manifest without options; version and description are left empty.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        schemes: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            name: name.into(),
            version: String::new(),
            description: String::new(),
            schemes: schemes.into_iter().map(Into::into).collect(),
            options: Schema::default(),
            runs_commands: false,
        }
    }

    /// Checks that the host can use it: every name is one, none is there twice, every default is
    /// a value of its option, and no option is the host's own.
    ///
    /// # Errors
    ///
    /// What is wrong, in one line that fits behind "its manifest cannot be used: ".
    pub fn check(&self) -> Result<(), String> {
        let word = |text: &str, others: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(c);
            !text.is_empty() && text.len() <= NAME_MAX && text.chars().all(fits)
        };
        if !word(&self.name, "-_.") {
            return Err(format!(
                "the name `{}` is no word of lower-case letters, digits, `-`, `_` and `.`",
                shown(&self.name)
            ));
        }
        if self.schemes.is_empty() {
            return Err("it serves no scheme".to_owned());
        }
        if let Some(scheme) = self.schemes.iter().find(|scheme| !word(scheme, "+-.")) {
            return Err(format!(
                "the scheme `{}` is no word of lower-case letters, digits, `+`, `-` and `.`",
                shown(scheme)
            ));
        }
        let mut keys = BTreeSet::new();
        for option in &self.options.0 {
            for key in std::iter::once(&option.name).chain(&option.aliases) {
                if !key.starts_with(|c: char| c.is_ascii_lowercase()) || !word(key, "-_.") {
                    return Err(format!("the option `{}` can never be given", shown(key)));
                }
                if HOST_OPTIONS.contains(&key.as_str()) {
                    return Err(format!("the option `{key}` belongs to the host"));
                }
                if !keys.insert(key) {
                    return Err(format!("the option `{key}` is there twice"));
                }
            }
            if option.default.as_ref().is_some_and(|default| !option.kind.allows(default)) {
                return Err(format!(
                    "the default of the option `{}` has to be {}",
                    option.name, option.kind
                ));
            }
        }
        Ok(())
    }
}

/// The start of a text that may be anything, on one line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{OptionSchema, OptionType};

    fn check(change: impl FnOnce(&mut Manifest), expected: &str) {
        let mut manifest = Manifest::new("mine", ["mine"]);
        manifest.options.0 = vec![
            OptionSchema::new("one", OptionType::Bool, "").or("yes"),
            OptionSchema::new("two", OptionType::String, ""),
        ];
        change(&mut manifest);
        assert_eq!(manifest.check().err().unwrap_or_default(), expected);
    }

    #[test]
    fn a_manifest_that_the_host_cannot_use_is_refused_with_the_reason() {
        check(|_| {}, "");
        check(|it| it.options.0[0].aliases = vec!["ein.s".into()], "");
        check(
            |it| it.name = "My\nplugin".into(),
            "the name `Myplugin` is no word of lower-case letters, digits, `-`, `_` and `.`",
        );
        check(|it| it.schemes.clear(), "it serves no scheme");
        check(
            |it| it.schemes.push("a/b".into()),
            "the scheme `a/b` is no word of lower-case letters, digits, `+`, `-` and `.`",
        );
        check(|it| it.options.0[1].name = "a=b".into(), "the option `a=b` can never be given");
        check(|it| it.options.0[1].name = "1".into(), "the option `1` can never be given");
        check(
            |it| it.options.0[1].name = "timeout".into(),
            "the option `timeout` belongs to the host",
        );
        check(|it| it.options.0[1].name = "one".into(), "the option `one` is there twice");
        check(|it| it.options.0[1].aliases = vec!["one".into()], "the option `one` is there twice");
        check(
            |it| it.options.0[0].default = Some("perhaps".into()),
            "the default of the option `one` has to be `true` or `false`",
        );
    }
}
