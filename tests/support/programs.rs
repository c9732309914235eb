//! The programs that are tested, and the released one that they are tested against.
//!
//! Ours are built once per run by cargo itself, in the profile of the test, and their paths are
//! what cargo says: a path put together by hand might name a file of an earlier build. The peer is
//! the released `distant` 0.20.0, built once per machine in a folder outside the clone.

#![allow(clippy::disallowed_methods, reason = "tests read the environment of their own run")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The version of the peer.
const PEER_VERSION: &str = "0.20.0";

/// What a build of the workspace gave.
#[derive(Debug)]
pub(crate) struct Programs {
    /// The `distant` of this build.
    pub(crate) distant: PathBuf,
    /// The benchmark.
    pub(crate) bench: PathBuf,
    libraries: BTreeMap<String, PathBuf>,
}

impl Programs {
    /// The library of a plugin, by the name in its file name: `manager_local`, `faulty`.
    pub(crate) fn plugin(&self, name: &str) -> &Path {
        let target = format!("distant_plugin_{name}");
        let found = self.libraries.get(&target);
        found.unwrap_or_else(|| panic!("the workspace has no `{target}`: {:?}", self.libraries))
    }

    /// Every plugin's library.
    pub(crate) fn plugins(&self) -> impl Iterator<Item = &Path> {
        self.libraries.values().map(PathBuf::as_path)
    }
}

pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The top folder of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The programs of this workspace, built in the profile that this test was built in.
pub(crate) fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(build)
}

/// Writes a file that can be run at once.
///
/// Nothing is run that somebody could still write to, and as long as a file is open here, so it is in
/// whatever another thread is just starting. A process that starts no other writes it, therefore.
pub(crate) fn executable(path: &Path, content: impl AsRef<[u8]>) {
    let write = "cat > \"$0\" && chmod 755 \"$0\"";
    let mut writer = Command::new("sh");
    writer.args(["-c", write]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(content.as_ref()).unwrap();
    assert!(writer.wait().unwrap().success(), "cannot write {}", path.display());
}

/// Copies a program so that it can be run at once, as [`executable`] has it.
pub(crate) fn copy_executable(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--preserve=mode").args([from, to]).status().unwrap();
    assert!(copied.success(), "cannot copy {} to {}", from.display(), to.display());
}

/// A target folder for what tests build outside of the workspace; it is kept from run to run.
pub(crate) fn other_builds() -> PathBuf {
    let target = programs().distant.ancestors().nth(2);
    target.unwrap().join("other-builds")
}

fn build() -> Programs {
    // <target folder>/<profile>/deps/it-<hash>
    let this = std::env::current_exe().unwrap();
    let folder = this.ancestors().nth(2).unwrap();
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--workspace", "--locked", "--message-format=json", "--profile", profile])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(built.status.success(), "the workspace does not build");
    let lines = String::from_utf8(built.stdout).unwrap();
    let artifacts = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|message| message["reason"] == "compiler-artifact");
    let mut distant = None;
    let mut bench = None;
    let mut libraries = BTreeMap::new();
    for artifact in artifacts {
        let name = artifact["target"]["name"].as_str().unwrap();
        let files = artifact["filenames"].as_array().unwrap();
        let library = files.iter().filter_map(|file| file.as_str()).find(|file| {
            file.ends_with(std::env::consts::DLL_SUFFIX) && name.starts_with("distant_plugin_")
        });
        if let Some(library) = library {
            libraries.insert(name.replace('-', "_"), PathBuf::from(library));
        } else if name == "distant" {
            distant = artifact["executable"].as_str().map(PathBuf::from).or(distant);
        } else if name == "distant-bench" {
            bench = artifact["executable"].as_str().map(PathBuf::from).or(bench);
        }
    }
    let bench = bench.expect("cargo built no `distant-bench`");
    Programs { distant: distant.expect("cargo built no `distant`"), bench, libraries }
}

/// The released `distant` 0.20.0.
pub(crate) fn peer() -> &'static Path {
    static PEER: OnceLock<PathBuf> = OnceLock::new();
    PEER.get_or_init(find_peer)
}

/// Folder of the peer: `$DISTANT_PEER_CACHE`, else a folder of the user's cache.
fn peer_cache() -> PathBuf {
    let given = variable("DISTANT_PEER_CACHE").map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("distant-peer"));
    let home = || std::env::home_dir().unwrap().join(".cache/distant-peer");
    given.or_else(cache).unwrap_or_else(home)
}

fn find_peer() -> PathBuf {
    let root = peer_cache().join(PEER_VERSION);
    let program = root.join("bin/distant");
    fs::create_dir_all(&root).unwrap();
    // Another run may be building it right now.
    let lock = File::create(root.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !program.exists() {
        eprintln!("building the released distant {PEER_VERSION} into {}", root.display());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["install", "distant", "--version", PEER_VERSION, "--locked", "--root"])
            .arg(&root)
            .current_dir(&root)
            .status()
            .unwrap();
        assert!(status.success(), "the released distant {PEER_VERSION} does not build");
    }
    let said = Command::new(&program).arg("--version").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said.trim(), format!("distant {PEER_VERSION}"), "{}", program.display());
    program
}

#[test]
fn the_build_gives_the_program_and_its_plugins_in_one_folder() {
    let programs = programs();
    for library in programs.plugins() {
        assert_eq!(library.parent(), programs.distant.parent());
    }
    assert!(programs.plugin("manager_local").exists() && programs.plugin("faulty").exists());
    assert!(peer().exists());
}
