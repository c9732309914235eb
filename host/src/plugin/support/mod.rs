//! What the tests of this folder share: a place of their own with plugins that are shell scripts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::discovery::{Folder, Origin};
use super::process::Limits;
use super::registry::{Registry, Settings};

/// Introduces itself as plugin `$1` for scheme `$2`, waits for the host's hello and the launch.
const PREAMBLE: &str = r#"#!/bin/sh
say() { printf '%s\n' "$1"; }
hello() { say '{"type":"hello","protocol":[1,1],"manifest":{"name":"'$1'","schemes":["'$2'"]}}'; }
notice() { say '{"type":"notice","text":"'"$1"'"}'; }
"#;

/// A private folder with the files of a registry.
pub(super) struct Place {
    folder: tempfile::TempDir,
    pub(super) settings: Settings,
}

impl Place {
    /// Makes a place with a folder each for the program and for the user.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let folders = [("user", Origin::User), ("own", Origin::Program)];
        let folders = folders.map(|(name, origin)| Folder::new(root.join(name), origin));
        for folder in &folders {
            fs::create_dir(&folder.path).unwrap();
            set_mode(&folder.path, 0o755);
        }
        let settings = Settings {
            named: Vec::new(),
            config: root.join("config/plugins.toml"),
            cache: root.join("cache/plugins.json"),
            program: Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plugin/support/worker.sh"),
            folders: folders.to_vec(),
            limits: Limits {
                hello: Duration::from_secs(20),
                grace: Duration::from_millis(300),
                terminate: Duration::from_millis(200),
                ..Limits::default()
            },
        };
        Self { folder, settings }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    pub(super) fn registry(&self) -> Registry {
        Registry::new(self.settings.clone())
    }

    /// Writes a plugin: the body of a shell script in which `say`, `hello` and `notice` are known.
    /// It comes into being all at once, as an installed plugin does.
    pub(super) fn script(&self, path: &str, body: &str) -> PathBuf {
        let path = self.path(path);
        let new = path.with_extension("new");
        fs::write(&new, format!("{PREAMBLE}{body}\n")).unwrap();
        set_mode(&new, 0o755);
        fs::rename(&new, &path).unwrap();
        path
    }

    /// Writes a plugin that says hello and waits for the end of its input.
    pub(super) fn plugin(&self, folder: &str, name: &str, scheme: &str) -> PathBuf {
        let body = format!("hello {name} {scheme}; while read -r line; do :; done");
        self.script(&format!("{folder}/distant-plugin-{name}"), &body)
    }

    pub(super) fn configure(&self, text: &str) {
        fs::create_dir_all(self.path("config")).unwrap();
        set_mode(&self.path("config"), 0o755);
        fs::write(&self.settings.config, text).unwrap();
        set_mode(&self.settings.config, 0o600);
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
