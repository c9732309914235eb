//! What plugin files say of themselves, remembered so that a launch need not ask them again.
//!
//! An entry belongs to one content of one file: whatever changes a file changes its key, so a
//! replaced plugin is asked anew at the next launch. The file is a cache and nothing else; without
//! it everything works, only the next launch takes some milliseconds longer.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use distant_plugin_api::message::PROTOCOL;
use distant_plugin_api::Manifest;
use serde::{Deserialize, Serialize};

use super::config;
use super::discovery::Kind;
use super::manifest;

/// Bytes that the cache may have.
const SIZE_MAX: u64 = 4 * 1024 * 1024;
/// Plugins that are remembered.
const ENTRIES_MAX: usize = 256;

/// One content of one file, as it was when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) path: PathBuf,
    kind: Kind,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Changes also when a file's time is set back, and with its owner and mode.
    changed: (i64, i64),
    /// The program that asked: a newer one may understand more.
    host: String,
}

impl Identity {
    pub(super) fn new(path: &Path, kind: Kind, metadata: &Metadata) -> Self {
        let [lowest, highest] = PROTOCOL;
        Self {
            path: path.to_owned(),
            kind,
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            host: format!("{} {lowest}-{highest}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// Held while the cache is changed, so that plugins that are asked at the same time are all kept.
/// Another process may still win; then a plugin is asked once more.
static CHANGING: Mutex<()> = Mutex::new(());

/// The manifests of files.
pub(super) type Manifests = BTreeMap<Identity, Arc<Manifest>>;

#[derive(Serialize, Deserialize)]
struct Entry {
    file: Identity,
    manifest: Manifest,
}

/// Reads the cache. One that is missing, damaged, too big or not ours alone counts as empty.
pub(super) fn read(path: &Path) -> Manifests {
    let entries = read_entries(path).unwrap_or_default();
    let valid = entries.into_iter().filter(|entry| manifest::check(&entry.manifest).is_ok());
    valid.take(ENTRIES_MAX).map(|entry| (entry.file, Arc::new(entry.manifest))).collect()
}

fn read_entries(path: &Path) -> Option<Vec<Entry>> {
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let mut text = Vec::new();
    file.take(SIZE_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Adds manifests to the cache, where another process may have added its own meanwhile. Older
/// contents of the same files are forgotten, and what there is no room for beside the new ones.
pub(super) fn add(path: &Path, new: &Manifests) {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = read(path);
    all.retain(|file, _| !new.keys().any(|it| it.path == file.path) && file.path.exists());
    let new = new.iter().map(|(file, manifest)| (file.clone(), Arc::clone(manifest)));
    let text = text(new.chain(all));
    if let Err(error) = config::write(path, &text) {
        tracing::debug!(%error, path = %path.display(), "cannot write the cache of plugins");
    }
}

/// Writes as many entries as there is room for, the first ones.
fn text(all: impl Iterator<Item = (Identity, Arc<Manifest>)>) -> Vec<u8> {
    let mut text = b"[".to_vec();
    for (file, manifest) in all.take(ENTRIES_MAX) {
        let entry = Entry { file, manifest: Arc::unwrap_or_clone(manifest) };
        // A path that is no UTF-8 has no place in JSON, and is asked again.
        let Ok(entry) = serde_json::to_vec(&entry) else { continue };
        if text.len() + entry.len() + 2 > SIZE_MAX as usize {
            continue;
        }
        if text.len() > 1 {
            text.push(b',');
        }
        text.extend(entry);
    }
    text.push(b']');
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn manifest(name: &str) -> Arc<Manifest> {
        let text = format!(r#"{{"name":"{name}","schemes":["a"]}}"#);
        Arc::new(serde_json::from_str(&text).unwrap())
    }

    fn identity(path: &Path) -> Identity {
        Identity::new(path, Kind::Library, &path.metadata().unwrap())
    }

    struct Place {
        folder: tempfile::TempDir,
        cache: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let cache = folder.path().join("distant/plugins.json");
            Self { folder, cache }
        }

        fn plugin(&self, name: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        }

        fn add(&self, path: &Path, name: &str) -> Identity {
            let identity = identity(path);
            add(&self.cache, &Manifests::from([(identity.clone(), manifest(name))]));
            identity
        }
    }

    #[test]
    fn what_was_learnt_of_two_files_is_kept_by_two_processes() {
        let place = Place::new();
        let (a, b) = (place.plugin("a"), place.plugin("b"));
        let (a, b) = (place.add(&a, "a"), place.add(&b, "b"));
        let read = read(&place.cache);
        assert_eq!((&*read[&a], &*read[&b]), (&*manifest("a"), &*manifest("b")));
        assert_eq!(place.cache.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn every_change_of_a_file_makes_it_another() {
        let place = Place::new();
        let path = place.plugin("a");
        let mut seen = vec![identity(&path)];
        let mut changed = |what: &str| {
            let now = identity(&path);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        fs::rename(place.plugin("b"), &path).unwrap();
        changed("replaced by rename");
        fs::write(&path, "longer than it was").unwrap();
        changed("written in place");
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        changed("set back in time");

        place.add(&path, "old");
        fs::write(&path, "x").unwrap();
        let new = place.add(&path, "new");
        assert_eq!(read(&place.cache).into_keys().collect::<Vec<_>>(), [new]);
    }

    #[test]
    fn what_is_new_has_its_place_in_a_cache_that_is_full() {
        let place = Place::new();
        let (old, last) = (place.plugin("a"), place.plugin("z"));
        let file = identity(&old);
        // So many contents of one file that nobody has replaced, each different in one member.
        let full = (0..ENTRIES_MAX as u64 + 10)
            .map(|inode| (Identity { inode, ..file.clone() }, manifest("a")))
            .collect::<Manifests>();
        add(&place.cache, &full);
        assert_eq!(read(&place.cache).len(), ENTRIES_MAX);
        let last = place.add(&last, "z");
        let kept = read(&place.cache);
        assert_eq!(kept.len(), ENTRIES_MAX);
        assert!(kept.contains_key(&last));
    }

    #[test]
    fn a_cache_never_gets_too_long_to_be_read() {
        let place = Place::new();
        let help = "x".repeat(1000);
        let options: Vec<_> = (0..256)
            .map(|it| serde_json::json!({"name": format!("o{it}"), "type": "string", "help": help}))
            .collect();
        let long = serde_json::json!({"name": "a", "schemes": ["a"], "options": options});
        let long: Arc<Manifest> = Arc::new(serde_json::from_value(long).unwrap());
        for number in 0..20 {
            let file = identity(&place.plugin(&format!("long{number:02}")));
            add(&place.cache, &Manifests::from([(file.clone(), Arc::clone(&long))]));
            assert!(read(&place.cache).contains_key(&file), "{number}");
        }
        assert!(place.cache.metadata().unwrap().len() <= SIZE_MAX);
    }

    #[test]
    fn a_cache_that_is_no_good_counts_as_empty() {
        let place = Place::new();
        let path = place.plugin("a");
        place.add(&path, "a");
        let good = fs::read(&place.cache).unwrap();

        fs::set_permissions(&place.cache, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(read(&place.cache).is_empty());
        fs::set_permissions(&place.cache, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&place.cache).len(), 1);

        let text = String::from_utf8(good.clone()).unwrap();
        let no_scheme = text.replace(r#"["a"]"#, "[]");
        for bad in [&good[..good.len() / 2], b"", b"\0\xff", b"{}", no_scheme.as_bytes()] {
            fs::write(&place.cache, bad).unwrap();
            assert!(read(&place.cache).is_empty());
        }
        place.add(&path, "a");
        assert_eq!(read(&place.cache).len(), 1);
    }
}
