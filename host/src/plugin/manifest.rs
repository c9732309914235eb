//! What a plugin may say of itself.
//!
//! A manifest is shown to people and decides which options are taken, so it has to make sense and
//! to have limits, whoever wrote it.

use distant_plugin_api::options::{OptionSchema, OptionType, Options};
use distant_plugin_api::Manifest;

use super::options::is_host_owned;

const NAME_MAX: usize = 64;
const TEXT_MAX: usize = 1000;
const DEFAULT_MAX: usize = 4096;
const SCHEMES_MAX: usize = 16;
const OPTIONS_MAX: usize = 256;
const WORDS_MAX: usize = 64;

/// Checks a manifest, and returns what is wrong with it.
pub(super) fn check(manifest: &Manifest) -> Result<(), String> {
    if !is_name(&manifest.name) {
        return Err(format!("its name {} is none", shown(&manifest.name)));
    }
    if !is_text(&manifest.version, NAME_MAX) || !is_text(&manifest.description, TEXT_MAX) {
        return Err("its version or description is too long or has control characters".into());
    }
    if manifest.schemes.is_empty() {
        return Err("it serves no scheme".into());
    }
    if manifest.schemes.len() > SCHEMES_MAX || manifest.options.0.len() > OPTIONS_MAX {
        return Err(format!("it has more than {SCHEMES_MAX} schemes or {OPTIONS_MAX} options"));
    }
    if let Some(scheme) = manifest.schemes.iter().find(|scheme| !is_scheme(scheme)) {
        return Err(format!("its scheme {} is none", shown(scheme)));
    }
    for (index, option) in manifest.options.0.iter().enumerate() {
        check_option(option)?;
        let earlier = &manifest.options.0[..index];
        if let Some(key) = keys(option).find(|&key| earlier.iter().any(|it| has_key(it, key))) {
            return Err(format!("it has two options `{key}`"));
        }
    }
    // Fills in every default, so it finds one that its own type does not allow.
    let defaults =
        manifest.options.0.iter().filter_map(|it| Some((&it.name, it.default.as_ref()?)));
    let defaults: Options = defaults.collect();
    match manifest.options.check(&defaults, &manifest.name, &manifest.schemes[0]) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("its default does not fit: {}", error.message)),
    }
}

fn check_option(option: &OptionSchema) -> Result<(), String> {
    if let Some(key) = keys(option).find(|key| !is_key(key)) {
        return Err(format!("its option {} is no key", shown(key)));
    }
    let name = &option.name;
    if let Some(key) = keys(option).find(|key| is_host_owned(key)) {
        return Err(format!("its option `{key}` belongs to the host"));
    }
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

fn keys(option: &OptionSchema) -> impl Iterator<Item = &str> {
    std::iter::once(&option.name).chain(&option.aliases).map(String::as_str)
}

fn has_key(option: &OptionSchema, key: &str) -> bool {
    keys(option).any(|it| it == key)
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

fn is_key(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
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
        check_with(|it| it.name = String::new(), "its name `` is none");
        check_with(|it| it.name = "a\u{1b}[".into(), "its name `a\\u{1b}[` is none");
        let too_long = "its version or description is too long or has control characters";
        check_with(|it| it.description = "x".repeat(1001), too_long);
        check_with(|it| it.description = "\r".into(), too_long);
        check_with(|it| it.schemes.clear(), "it serves no scheme");
        check_with(|it| it.schemes.push("SSH".into()), "its scheme `SSH` is none");
        check_with(|it| it.schemes.push("1a".into()), "its scheme `1a` is none");
        let many = "it has more than 16 schemes or 256 options";
        check_with(|it| it.schemes = vec!["a".into(); 17], many);
        check_with(|it| it.options.0 = vec![it.options.0[0].clone(); 257], many);
    }

    #[test]
    fn so_has_each_option() {
        with_option(|it| it.name = "timeout".into(), "its option `timeout` belongs to the host");
        with_option(|it| it.name = "a b".into(), "its option `a b` is no key");
        with_option(|it| it.aliases = vec!["k".into()], "");
        let words = "its option `k` has no choices, or more than 64";
        with_option(|it| it.kind = OptionType::Enum(vec![]), words);
        with_option(
            |it| it.default = Some("maybe".into()),
            "its default does not fit: option `k` is `maybe`, but it has to be `true` or `false`",
        );
        check_with(|it| it.options.0.push(it.options.0[0].clone()), "it has two options `k`");
    }
}
