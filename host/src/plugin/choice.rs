//! Which of several plugins serves a scheme.
//!
//! The rule is a function of what is known, and asks for what it still needs to know, so that a
//! launch need not start a worker for every file that happens to lie around, and `plugin list`
//! shows what a launch would do.

use distant_plugin_api::Manifest;

use super::discovery::{plain, Candidate, Origin};
use super::registry::Described;
use super::trust::Complaint;

/// Of several built-in plugins for one scheme, the one that serves it unless somebody chooses.
const DEFAULTS: [(&str, &str); 2] = [("manager", "manager-local"), ("ssh", "ssh2")];

/// A file that may be a plugin, and what is known of it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) candidate: Candidate,
    /// `None` while nobody has asked.
    pub(super) outcome: Option<Result<Described, Complaint>>,
    /// A better plugin of the same name, by its place in the list.
    pub(super) hidden_by: Option<usize>,
}

impl Found {
    pub(super) fn manifest(&self) -> Option<&Manifest> {
        self.outcome.as_ref()?.as_ref().ok().map(|described| &*described.manifest)
    }

    pub(super) fn serves(&self, scheme: &str) -> bool {
        self.manifest().is_some_and(|it| it.schemes.iter().any(|own| own == scheme))
    }

    pub(super) fn is_selectable(&self) -> bool {
        self.hidden_by.is_none() && self.candidate.rules.is_enabled()
    }
}

/// What is to be done for a scheme. Numbers are places in the list.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// These have to be asked first.
    Ask(Vec<usize>),
    /// This one serves it.
    Take(usize),
    /// This one should serve it but is broken. Another one must not step in unasked: it would get
    /// the passwords.
    Broken(usize),
    /// There is none, or none with the wanted name.
    Nothing,
}

/// Chooses among `all`, which is sorted, the plugin for `scheme`; `wanted` is a name that somebody
/// gave.
pub(super) fn choose(all: &[Found], scheme: &str, wanted: Option<&str>) -> Choice {
    let selectable: Vec<_> = (0..all.len()).filter(|&it| all[it].is_selectable()).collect();
    let named = |name: &str, index: usize| all[index].candidate.name == plain(name);
    let settle = |index: usize| match &all[index].outcome {
        None => Some(Choice::Ask(vec![index])),
        Some(Err(_)) => Some(Choice::Broken(index)),
        Some(Ok(_)) => all[index].serves(scheme).then_some(Choice::Take(index)),
    };
    if let Some(name) = wanted {
        let index = selectable.into_iter().find(|&index| named(name, index));
        return index.and_then(settle).unwrap_or(Choice::Nothing);
    }

    let default = DEFAULTS.iter().find(|(its, _)| *its == scheme).map(|(_, name)| *name);
    let default = selectable.iter().copied().find(|&index| {
        all[index].candidate.origin.is_built_in() && default.is_some_and(|name| named(name, index))
    });
    if let Some(choice) = default.and_then(settle) {
        return choice;
    }
    let tiers: [fn(Origin) -> bool; 3] =
        [Origin::is_built_in, Origin::is_explicit, |it| it > Origin::Prefix];
    for is_in_tier in tiers {
        let tier = || selectable.iter().copied().filter(|&it| is_in_tier(all[it].candidate.origin));
        let unknown: Vec<_> = tier().filter(|&it| all[it].outcome.is_none()).collect();
        if !unknown.is_empty() {
            return Choice::Ask(unknown);
        }
        if let Some(index) = tier().find(|&index| all[index].serves(scheme)) {
            return Choice::Take(index);
        }
    }
    Choice::Nothing
}
