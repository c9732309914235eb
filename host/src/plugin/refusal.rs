//! Why a launch gets no plugin, in words that say what to do.

use std::path::Path;

use distant_plugin_api::{ErrorKind, LaunchError};

use super::choice::Found;
use super::discovery::{plain, Candidate, Folder};
use super::registry::name;

/// How many edits a name may be away from a known one to be taken for a typo of it.
const TYPO_DISTANCE: usize = 2;
/// What puts the plugins that belong to the program beside it, as in README.md.
const BUILD_COMMAND: &str = "cargo build --release";

/// What a launch asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) scheme: &'a str,
    /// The plugin that the launch names.
    pub(super) backend: Option<&'a str>,
    /// The plugin that `plugins.toml` names.
    pub(super) chosen: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    pub(super) fn name(&self) -> Option<&'a str> {
        self.backend.or(self.chosen)
    }
}

/// There is not one file that could be a plugin.
pub(super) fn no_plugin(folders: &[Folder]) -> LaunchError {
    LaunchError::new(ErrorKind::Plugin, "there is no plugin")
        .caused_by(format!("searched {}", searched(folders)))
        .with_hint(format!("`{BUILD_COMMAND}` puts those that belong to `distant` beside it"))
}

/// The plugin that should serve the launch is broken.
pub(super) fn unusable(found: &Found) -> LaunchError {
    let Candidate { name, path, .. } = &found.candidate;
    let message = format!("plugin `{name}` cannot be used");
    let error = LaunchError::new(ErrorKind::Plugin, message);
    let Some(Err(complaint)) = &found.outcome else { return error };
    let error = error.caused_by(format!("`{}`: {}", path.display(), complaint.reason));
    complaint.mend.iter().fold(error, LaunchError::with_hint)
}

/// No plugin serves the scheme, or none of the wanted name.
pub(super) fn nobody(
    found: &[Found],
    wanted: Wanted<'_>,
    config: &Path,
    folders: &[Folder],
) -> LaunchError {
    let is_disabled = |it: &&Found| !it.candidate.rules.is_enabled();
    if let Some(name) = wanted.name() {
        let named = |it: &&Found| it.candidate.name == plain(name);
        if let Some(found) = found.iter().filter(is_disabled).find(named) {
            return disabled(&found.candidate.name, config)
                .with_hint(format!("remove `enabled = false` from `{}`", config.display()));
        }
    }
    let serving = found.iter().filter(|it| it.is_selectable() && it.serves(wanted.scheme));
    let serving: Vec<_> = serving.map(|it| name(&it.candidate, it.manifest())).collect();
    match wanted.name().filter(|_| !serving.is_empty()) {
        Some(name) => wrong_name(name, &serving, wanted, config),
        None => unknown_scheme(found, wanted.scheme, config, folders),
    }
}

fn wrong_name(name: &str, serving: &[String], wanted: Wanted<'_>, config: &Path) -> LaunchError {
    let message = format!("no plugin `{name}` serves the scheme `{}`", wanted.scheme);
    let error = LaunchError::new(ErrorKind::InvalidOption, message)
        .with_hint(format!("those that do are {}", quoted(serving)));
    match wanted.backend {
        Some(_) => error,
        None => error.caused_by(format!("it was chosen in `{}`", config.display())),
    }
}

/// The name that a mistyped one is most like, if one is like it.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing takes the product of both lengths, and what is typed may be long.
    let like = names.filter(|name| typed.len() <= name.len() + 4 * TYPO_DISTANCE);
    let like = like.map(|name| (strsim::damerau_levenshtein(typed, name), name));
    like.filter(|(distance, _)| *distance <= TYPO_DISTANCE).min().map(|(_, name)| name)
}

/// Somebody has decided that it is not to be used.
fn disabled(name: &str, config: &Path) -> LaunchError {
    let message = format!("plugin `{name}` is disabled");
    LaunchError::new(ErrorKind::InvalidOption, message)
        .caused_by(format!("`{}` has `enabled = false` for it", config.display()))
}

fn unknown_scheme(found: &[Found], scheme: &str, config: &Path, folders: &[Folder]) -> LaunchError {
    let selectable = || found.iter().filter(|it| it.is_selectable());
    let mut schemes: Vec<_> =
        selectable().filter_map(Found::manifest).flat_map(|it| &it.schemes).collect();
    schemes.sort_unstable();
    schemes.dedup();
    let nearest = nearest(scheme, schemes.iter().map(|it| it.as_str()));
    let question = nearest.map(|it| format!("; did you mean `{it}`?")).unwrap_or_default();
    let message = format!("no plugin serves the scheme `{scheme}`{question}");
    // One of these might have served it.
    let broken = || {
        selectable()
            .filter_map(|it| Some((&it.candidate.name, it.outcome.as_ref()?.as_ref().err()?)))
    };
    let doctor = match (broken().next(), broken().nth(1)) {
        (Some((name, _)), None) => format!("`distant plugin doctor {name}` says what mends it; "),
        (Some(_), Some(_)) => "`distant plugin doctor` says what mends them; ".to_owned(),
        (None, _) => String::new(),
    };
    let broken = broken()
        .map(|(name, complaint)| format!("plugin `{name}` cannot be used: {}", complaint.reason));
    // Nobody has asked them.
    let disabled = found.iter().filter(|it| !it.candidate.rules.is_enabled());
    let disabled = disabled.map(|it| disabled_line(&it.candidate.name, config));
    let served = if schemes.is_empty() { "none".to_owned() } else { quoted(&schemes) };
    broken
        .chain(disabled)
        .fold(LaunchError::new(ErrorKind::InvalidOption, message), LaunchError::caused_by)
        .with_hint(format!(
            "{doctor}the schemes there are: {served}; searched {}",
            searched(folders)
        ))
}

fn disabled_line(name: &str, config: &Path) -> String {
    disabled(name, config).one_line().into_owned()
}

fn searched(folders: &[Folder]) -> String {
    quoted(&folders.iter().map(|folder| folder.path.display()).collect::<Vec<_>>())
}

fn quoted(items: &[impl std::fmt::Display]) -> String {
    items.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ")
}
