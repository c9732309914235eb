//! All plugin files with what became of them: for `plugin list`, and for nobody's launch.

use std::path::PathBuf;

use distant_plugin_api::Manifest;
use serde::Serialize;

use super::choice::{choose, Choice, Found};
use super::config::Config;
use super::discovery::{Kind, Origin};
use super::registry::{name, Described};
use super::trust::Complaint;

/// What became of a plugin file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// It serves at least one scheme without being asked for by name.
    Used,
    /// Others come first, for its name or for all of its schemes.
    Shadowed {
        /// Which.
        by: String,
        /// What would have it used, such as a command.
        mend: String,
    },
    /// `plugins.toml` says `enabled = false`.
    Disabled,
    /// It is another file than the one that was added, and not run until somebody says that it may.
    Changed {
        /// How that was found out.
        reason: String,
        /// What says that it may be run.
        #[serde(skip_serializing_if = "Option::is_none")]
        mend: Option<String>,
    },
    /// It cannot be run.
    Broken {
        /// Why.
        reason: String,
        /// What would mend it, such as a command.
        #[serde(skip_serializing_if = "Option::is_none")]
        mend: Option<String>,
    },
}

/// A scheme of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServedScheme {
    /// The scheme.
    pub name: String,
    /// The plugin that serves it without being asked for by name.
    pub used: Option<String>,
}

/// A plugin file, whether it can be used or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The name by which a person chooses it.
    pub name: String,
    /// Its file, as it was found.
    pub path: PathBuf,
    /// How it is run.
    pub kind: Kind,
    /// Where it was found.
    pub origin: Origin,
    /// What became of it.
    #[serde(flatten)]
    pub state: State,
    /// Its schemes; empty if it is broken or disabled.
    pub schemes: Vec<ServedScheme>,
    /// What it says of itself; `None` if it is broken, or disabled and so not asked.
    pub manifest: Option<Manifest>,
}

fn is_changed(outcome: &Result<Described, Complaint>) -> bool {
    outcome.as_ref().is_err_and(|complaint| complaint.changed)
}

pub(super) fn listed(config: &Config, found: &[Found], place: usize) -> Listed {
    let it = &found[place];
    let own = |place: usize| name(&found[place].candidate, found[place].manifest());
    let manifest = it.manifest().cloned();
    let schemes: Vec<_> = manifest.iter().flat_map(|it| &it.schemes).collect();
    let winners: Vec<_> = schemes
        .iter()
        .map(|scheme| match choose(found, scheme, config.chosen.get(*scheme).map(String::as_str)) {
            Choice::Take(winner) | Choice::Broken(winner) => Some(winner),
            Choice::Ask(_) | Choice::Nothing => None,
        })
        .collect();
    let state = if !it.candidate.rules.is_enabled() {
        State::Disabled
    } else if let Some(Err(complaint)) = it.outcome.as_ref().filter(|it| is_changed(it)) {
        State::Changed { reason: complaint.reason.clone(), mend: complaint.mend.clone() }
    } else if let Some(Err(complaint)) = &it.outcome {
        State::Broken { reason: complaint.reason.clone(), mend: complaint.mend.clone() }
    } else if let Some(better) = it.hidden_by {
        State::Shadowed {
            by: format!("{} ({})", own(better), found[better].candidate.path.display()),
            mend: "remove one of both, or give it another name".to_owned(),
        }
    } else if winners.contains(&Some(place)) {
        State::Used
    } else {
        let mut by: Vec<_> = winners.iter().flatten().map(|&winner| own(winner)).collect();
        by.dedup();
        let chosen = || schemes.iter().filter_map(|it| config.chosen.get(*it)).cloned().collect();
        let by = if by.is_empty() { chosen() } else { by };
        let taken =
            schemes.iter().map(|scheme| format!("distant plugin use {scheme}={}", own(place)));
        State::Shadowed { by: by.join(", "), mend: taken.collect::<Vec<_>>().join("; ") }
    };
    let schemes = schemes.into_iter().zip(&winners);
    let schemes =
        schemes.map(|(name, winner)| ServedScheme { name: name.clone(), used: winner.map(own) });
    Listed {
        name: own(place),
        path: it.candidate.path.clone(),
        kind: it.candidate.kind,
        origin: it.candidate.origin,
        state,
        schemes: schemes.collect(),
        manifest,
    }
}
