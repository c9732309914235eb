//! What a plugin may say of itself.
//!
//! A manifest is shown to people and decides which options are taken, so it has to make sense and
//! to have limits, whoever wrote it.

use distant_plugin_api::options::{OptionSchema, OptionType};
use distant_plugin_api::Manifest;

const NAME_MAX: usize = 64;
const TEXT_MAX: usize = 1000;
const DEFAULT_MAX: usize = 4096;
const SCHEMES_MAX: usize = 16;
const OPTIONS_MAX: usize = 256;
const WORDS_MAX: usize = 64;

/// Checks a manifest, and returns what is wrong with it: first what a library's author is told
/// while the library is built, then what only the host has to limit.
pub(super) fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.schemes.len() > SCHEMES_MAX || manifest.options.0.len() > OPTIONS_MAX {
        return Err(format!("it has more than {SCHEMES_MAX} schemes or {OPTIONS_MAX} options"));
    }
    manifest.check().map_err(|reason| format!("its manifest cannot be used: {reason}"))?;
    if !is_name(&manifest.name) {
        return Err(format!("its name {} is none", shown(&manifest.name)));
    }
    if !is_text(&manifest.version, NAME_MAX) || !is_text(&manifest.description, TEXT_MAX) {
        return Err("its version or description is too long or has control characters".into());
    }
    if let Some(scheme) = manifest.schemes.iter().find(|scheme| !is_scheme(scheme)) {
        return Err(format!("its scheme {} is none", shown(scheme)));
    }
    manifest.options.0.iter().try_for_each(check_option)
}

fn check_option(option: &OptionSchema) -> Result<(), String> {
    let name = &option.name;
    let default_length = option.default.as_ref().map_or(0, String::len);
    if !is_text(&option.help, TEXT_MAX) || default_length > DEFAULT_MAX {
        return Err(format!("the help or default of its option `{name}` is too long"));
    }
    if option.aliases.len() > WORDS_MAX {
        return Err(format!("its option `{name}` has too many aliases"));
    }
    match &option.kind {
        OptionType::Enum(words) if words.is_empty() || words.len() > WORDS_MAX => {
            Err(format!("its option `{name}` has no choices, or more than {WORDS_MAX}"))
        }
        OptionType::Enum(words) if !words.iter().all(|word| is_text(word, NAME_MAX)) => {
            Err(format!("a choice of its option `{name}` is too long"))
        }
        _ => Ok(()),
    }
}

/// A name by which a person chooses a plugin.
pub(super) fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// A scheme, in lower case (RFC 3986, 3.1).
pub(super) fn is_scheme(text: &str) -> bool {
    let is_allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.')
    };
    (1..=NAME_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(is_allowed)
}

fn is_text(text: &str, most: usize) -> bool {
    text.len() <= most && !text.chars().any(char::is_control)
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(NAME_MAX).flat_map(char::escape_debug).collect();
    format!("`{start}`")
}

#[cfg(test)]
mod tests {
    use distant_plugin_api::options::Schema;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "x".into(),
            version: "1".into(),
            description: "Tries".into(),
            schemes: vec!["a+b".into()],
            options: Schema(vec![OptionSchema::new("k", OptionType::Bool, "help").or("true")]),
            runs_commands: false,
        }
    }

    fn check_with(change: impl FnOnce(&mut Manifest), expected: &str) {
        let mut manifest = manifest();
        change(&mut manifest);
        assert_eq!(check(&manifest).err().unwrap_or_default(), expected);
    }

    fn with_option(change: impl FnOnce(&mut OptionSchema), expected: &str) {
        check_with(|it| change(&mut it.options.0[0]), expected);
    }

    #[test]
    fn a_manifest_has_to_make_sense_and_to_have_limits() {
        check_with(|_| {}, "");
        check_with(|it| it.name = "a.b".into(), "its name `a.b` is none");
        // The rest of it has its tests where libraries are checked by the same rules.
        check_with(
            |it| it.name = "a\u{1b}[".into(),
            "its manifest cannot be used: the name `a[` is no word of lower-case letters, digits, \
             `-`, `_` and `.`",
        );
        let too_long = "its version or description is too long or has control characters";
        check_with(|it| it.description = "x".repeat(1001), too_long);
        check_with(|it| it.description = "\r".into(), too_long);
        check_with(|it| it.schemes.push("1a".into()), "its scheme `1a` is none");
        let many = "it has more than 16 schemes or 256 options";
        check_with(|it| it.schemes = vec!["a".into(); 17], many);
        check_with(|it| it.options.0 = vec![it.options.0[0].clone(); 257], many);
    }

    #[test]
    fn so_has_each_option() {
        with_option(
            |it| it.name = "timeout".into(),
            "its manifest cannot be used: the option `timeout` belongs to the host",
        );
        let words = "its option `k` has no choices, or more than 64";
        let no_choices = |it: &mut OptionSchema| {
            *it = OptionSchema::new("k", OptionType::Enum(vec![]), "");
        };
        with_option(no_choices, words);
        with_option(
            |it| it.default = Some("maybe".into()),
            "its manifest cannot be used: the default of the option `k` has to be `true` or `false`",
        );
        with_option(
            |it| it.help = "x".repeat(1001),
            "the help or default of its option `k` is too long",
        );
    }
}
