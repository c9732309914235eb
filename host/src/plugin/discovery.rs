//! Where plugin files are looked for, and which files there are plugins.
//!
//! Only names are looked at here. Nothing is opened, so a file that turns out to be broken is still
//! found, and can be listed with the reason.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::{Config, Rules};
use super::manifest::is_name;
use crate::paths;

/// Files taken from one folder; what is beyond has to be named in `plugins.toml`.
const FILES_MAX: usize = 256;

/// How a plugin is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A library (`libdistant_plugin_NAME.so`), which a worker loads.
    Library,
    /// A program (`distant-plugin-NAME`) that speaks the messages itself.
    Executable,
}

impl Kind {
    /// Tells the kind of a file that somebody named, by its name.
    pub(super) fn of(path: &Path) -> Self {
        let is_library = path.extension().is_some_and(|it| it == "so" || it == "dylib");
        if is_library {
            Self::Library
        } else {
            Self::Executable
        }
    }

    /// The file name under which a plugin of this kind is found.
    pub(super) fn file_name(self, name: &str) -> String {
        match self {
            Self::Library => {
                let suffix = std::env::consts::DLL_SUFFIX;
                format!("libdistant_plugin_{}{suffix}", name.replace('-', "_"))
            }
            Self::Executable => format!("distant-plugin-{name}"),
        }
    }
}

/// Where a plugin comes from. The order is that of precedence among plugins of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A path on the command line.
    CommandLine,
    /// A path in `plugins.toml`.
    Config,
    /// The folder of the running program.
    Program,
    /// `lib/distant/plugins` beside the running program's `bin`.
    Prefix,
    /// `$DISTANT_PLUGIN_PATH`.
    PluginPath,
    /// The user's own data folder.
    User,
    /// A folder of the system.
    System,
}

impl Origin {
    /// Whether plugins from there came with the program. A scheme that one of them serves is not
    /// taken over by a file that turns up elsewhere, unless somebody chooses it.
    pub(super) fn is_built_in(self) -> bool {
        matches!(self, Self::Program | Self::Prefix)
    }

    /// Whether somebody wrote down the path and the name.
    pub(super) fn is_explicit(self) -> bool {
        matches!(self, Self::CommandLine | Self::Config)
    }
}

/// A folder that is searched for plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Where it is; an absolute path.
    pub path: PathBuf,
    /// Whose it is.
    pub origin: Origin,
}

impl Folder {
    /// Names a folder.
    pub fn new(path: impl Into<PathBuf>, origin: Origin) -> Self {
        Self { path: path.into(), origin }
    }

    /// The folders of this user and this program, in the order in which they are searched.
    pub fn usual() -> Vec<Self> {
        let listed = paths::plugin_path().into_iter();
        let mut folders: Vec<_> = listed.map(|it| Self::new(it, Origin::PluginPath)).collect();
        folders.push(Self::new(paths::data_dir().join("plugins"), Origin::User));
        if let Some(own) = paths::executable().ok().as_deref().and_then(Path::parent) {
            folders.push(Self::new(own, Origin::Program));
            if let Some(prefix) = own.parent() {
                folders.push(Self::new(prefix.join("lib/distant/plugins"), Origin::Prefix));
            }
        }
        let system = ["/usr/local/lib/distant/plugins", "/usr/lib/distant/plugins"];
        folders.extend(system.map(|it| Self::new(it, Origin::System)));
        folders
    }
}

/// A file that may be a plugin.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    /// By its file name, or in `plugins.toml`.
    pub(super) name: String,
    /// As it was found; there may be links in it.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) origin: Origin,
    pub(super) rules: Rules,
}

/// Finds every file that may be a plugin, best first: of two with one name only the first counts.
pub(super) fn find(
    config: &Config,
    named: &[(String, PathBuf)],
    folders: &[Folder],
) -> Vec<Candidate> {
    let on_command_line = |(name, path): &(String, PathBuf)| {
        let rules = rules(config, &plain(name));
        Candidate::new(name, path.clone(), Origin::CommandLine, rules)
    };
    let mut candidates: Vec<_> = named.iter().map(on_command_line).collect();
    candidates.extend(config.plugins.iter().filter_map(|(name, rules)| {
        let path = paths::expand(rules.path.as_ref()?);
        Some(Candidate::new(name, path, Origin::Config, rules.clone()))
    }));
    for folder in folders {
        candidates.extend(in_folder(config, folder));
    }
    // Stable, so that the order of the folders decides between two of the same origin.
    candidates.sort_by_key(|candidate| candidate.origin);
    let mut seen = HashSet::new();
    candidates.retain(|it| {
        let real = it.path.canonicalize().unwrap_or_else(|_| it.path.clone());
        seen.insert((real, it.name.clone()))
    });
    candidates
}

impl Candidate {
    /// Takes a file that somebody named; its kind is told by its name.
    pub(super) fn new(name: &str, path: PathBuf, origin: Origin, rules: Rules) -> Self {
        let kind = rules.kind.unwrap_or_else(|| Kind::of(&path));
        Self { name: plain(name), path, kind, origin, rules }
    }
}

/// What `plugins.toml` says of a plugin whose path is not from there.
fn rules(config: &Config, name: &str) -> Rules {
    let rules = config.plugins.iter().find(|(key, it)| plain(key) == name && it.path.is_none());
    rules.map(|(_, rules)| rules.clone()).unwrap_or_default()
}

fn in_folder(config: &Config, folder: &Folder) -> Vec<Candidate> {
    let Ok(files) = folder.path.read_dir() else { return Vec::new() };
    let named = |file: std::fs::DirEntry| {
        let file_name = file.file_name();
        let (kind, name) = classify(file_name.to_str()?)?;
        let rules = rules(config, &name);
        Some(Candidate { name, path: file.path(), kind, origin: folder.origin, rules })
    };
    let mut found: Vec<_> = files.filter_map(Result::ok).filter_map(named).collect();
    // The order of a folder's files is not the same everywhere. A library comes before a program.
    found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    found.sort_by_key(|it| it.kind == Kind::Executable);
    found.truncate(FILES_MAX);
    found
}

/// Tells what a file is by its name, and which plugin it is.
fn classify(file_name: &str) -> Option<(Kind, String)> {
    let library = file_name
        .strip_prefix("libdistant_plugin_")
        .and_then(|rest| rest.strip_suffix(std::env::consts::DLL_SUFFIX));
    let (kind, name) = match library {
        Some(name) => (Kind::Library, name),
        None => (Kind::Executable, file_name.strip_prefix("distant-plugin-")?),
    };
    is_name(name).then(|| (kind, plain(name)))
}

/// A name as it is compared: cargo writes `_` in file names where a package has `-`.
pub(super) fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_plugin_is_known_by_its_file_name() {
        let check = |file: &str, expected: Option<(Kind, &str)>| {
            let found = classify(file);
            let found = found.as_ref().map(|(kind, name)| (*kind, name.as_str()));
            assert_eq!(found, expected, "{file}");
        };
        check("libdistant_plugin_manager_local.so", Some((Kind::Library, "manager-local")));
        check("libdistant_plugin_ssh2.so", Some((Kind::Library, "ssh2")));
        check("distant-plugin-cloud", Some((Kind::Executable, "cloud")));
        check("libdistant_plugin_ssh2.d", None);
        check("libdistant_plugin_ssh2.so.old", None);
        check("libdistant_plugin_.so", None);
        check("distant-plugin-cloud.d", None);
        check("distant-plugin-", None);
        check("libdistant_plugin_ä.so", None);
        check("distant", None);
    }

    #[test]
    fn folders_are_searched_in_order_without_those_below_them() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = place.path().join(name);
            fs::create_dir_all(path.join("below")).unwrap();
            fs::write(path.join("libdistant_plugin_a.so"), "").unwrap();
            fs::write(path.join("below/libdistant_plugin_b.so"), "").unwrap();
            path
        };
        let (user, own) = (folder("user"), folder("own"));
        fs::write(user.join("distant-plugin-a"), "").unwrap();
        symlink(&own, place.path().join("link")).unwrap();
        let folders = [
            Folder::new(&user, Origin::User),
            Folder::new(&own, Origin::Program),
            Folder::new(place.path().join("link"), Origin::System),
            Folder::new(place.path().join("none"), Origin::System),
        ];
        let text = "[plugins.mine]\npath = \"/opt/x.so\"\n[plugins.a]\nenabled = false\n";
        let config: Config = toml::from_str(text).unwrap();

        let named = [("given".to_owned(), PathBuf::from("/opt/given"))];
        let found = find(&config, &named, &folders);

        let shown: Vec<_> = found.iter().map(|it| (it.name.as_str(), it.path.clone())).collect();
        let expected = [
            ("given", PathBuf::from("/opt/given")),
            ("mine", PathBuf::from("/opt/x.so")),
            ("a", own.join("libdistant_plugin_a.so")),
            ("a", user.join("libdistant_plugin_a.so")),
            ("a", user.join("distant-plugin-a")),
        ];
        assert_eq!(shown, expected);
        assert_eq!((found[0].kind, found[1].kind), (Kind::Executable, Kind::Library));
        assert!(found[1].rules.is_enabled() && !found[2].rules.is_enabled());
    }
}
