//! `plugins.toml`: what a person decided about plugins.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use distant_plugin_api::{ErrorKind, LaunchError};
use serde::Deserialize;
use toml_edit::{DocumentMut, Item, Table, TableLike};

use super::discovery::{plain, Kind};
use super::trust::{self, Complaint, Rule};
use crate::range;

/// Bytes that the file may have.
const SIZE_MAX: u64 = 1024 * 1024;
/// Milliseconds that a plugin may get to load: an hour.
const TIMEOUT_MAX: u64 = 60 * 60 * 1000;

/// The content of `plugins.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// Plugins that are named here, and rules for those that are found.
    #[serde(default)]
    pub(super) plugins: BTreeMap<String, Rules>,
    /// Which plugin serves a scheme.
    #[serde(default, rename = "use")]
    pub(super) chosen: BTreeMap<String, String>,
}

/// What is decided about one plugin. A key that is not known is an error: it may be a mistyped
/// `sha256`, and then a file that should be pinned would not be.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    pub(super) path: Option<PathBuf>,
    pub(super) kind: Option<Kind>,
    /// Of the schemes that it serves, those it may serve.
    pub(super) schemes: Option<Vec<String>>,
    pub(super) enabled: Option<bool>,
    /// The file's SHA-256 in hexadecimal digits; another file is not run.
    pub(super) sha256: Option<Pin>,
    /// Milliseconds from the start of its worker to its hello.
    pub(super) timeout: Option<u64>,
    #[serde(default)]
    pub(super) allow_unsafe_path: bool,
}

/// Which content a file has to have: one, or any of several while it is being replaced.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Pin {
    One(String),
    AnyOf(Vec<String>),
}

impl Pin {
    pub(super) fn digests(&self) -> &[String] {
        match self {
            Self::One(digest) => std::slice::from_ref(digest),
            Self::AnyOf(digests) => digests,
        }
    }

    pub(super) fn allows(&self, digest: &str) -> bool {
        self.digests().iter().any(|it| it.trim().eq_ignore_ascii_case(digest))
    }
}

impl Rules {
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    pub(super) fn hello_limit(&self) -> Option<Duration> {
        self.timeout.map(Duration::from_millis)
    }
}

impl Config {
    /// Reads the file; one that does not exist decides nothing.
    ///
    /// # Errors
    ///
    /// `invalid_option`: it cannot be read, is not valid, or somebody else could have written it.
    /// Then nothing is launched, as it may say which file must not be used.
    pub(super) fn read(path: &Path) -> Result<Self, LaunchError> {
        let Some(text) = read(path)? else { return Ok(Self::default()) };
        let config: Self = toml::from_str(&text).map_err(|error| invalid(path, &error))?;
        for (name, rules) in &config.plugins {
            if let Some(timeout) = rules.timeout {
                let key = format!("plugins.{name}.timeout");
                let checked = range::number(&key, timeout, 1..=TIMEOUT_MAX);
                checked.map_err(|error| invalid(path, &error))?;
            }
        }
        let lower = |(scheme, name): (String, String)| (scheme.to_lowercase(), name);
        Ok(Self { chosen: config.chosen.into_iter().map(lower).collect(), ..config })
    }
}

fn unreadable(path: &Path) -> LaunchError {
    let message = format!("cannot read `{}`", path.display());
    LaunchError::new(ErrorKind::InvalidOption, message)
}

fn invalid(path: &Path, error: &dyn std::error::Error) -> LaunchError {
    let message = format!("`{}` is not valid", path.display());
    LaunchError::new(ErrorKind::InvalidOption, message).caused_by(error.to_string().trim_end())
}

/// Reads a file that names code to run, and so is as good as the code; `None` if there is none.
///
/// # Errors
///
/// `invalid_option`: it cannot be read, is no text or too long, or somebody else could have written
/// it.
pub(crate) fn read(path: &Path) -> Result<Option<String>, LaunchError> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(unreadable(path).because(&error)),
    };
    // Where it is a link, whoever can write to the link's folder can turn it to another file.
    let (file, _) = trust::open(&real, Rule::Full).map_err(|it| untrusted(path, it))?;
    trust_folders(path)?;
    let mut text = String::new();
    file.take(SIZE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(path).because(&error))?;
    if text.len() as u64 > SIZE_MAX {
        return Err(unreadable(path).caused_by("it has more than 1 MiB"));
    }
    Ok(Some(text))
}

/// Whether a file is not there, be it that a home is none, as `/dev/null`.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Checks the folders above a file that need not be there itself.
fn trust_folders(path: &Path) -> Result<(), LaunchError> {
    let folder = path.parent().unwrap_or(path);
    let folder = folder.canonicalize().map_err(|error| unreadable(path).because(&error))?;
    let us = rustix::process::geteuid().as_raw();
    trust::folders(&folder.join("file"), us).map_err(|it| untrusted(path, it))
}

fn untrusted(path: &Path, complaint: Complaint) -> LaunchError {
    let message = format!("`{}` is not used, as others could have written it", path.display());
    let error = LaunchError::new(ErrorKind::InvalidOption, message).caused_by(complaint.reason);
    complaint.mend.into_iter().fold(error, LaunchError::with_hint)
}

/// Writes down that `name` serves `scheme`, and leaves the rest of the file as it is.
///
/// # Errors
///
/// `invalid_option` if the file is not valid, `other` if it cannot be written.
pub(super) fn choose(path: &Path, scheme: &str, name: &str) -> Result<(), LaunchError> {
    edit(path, |document| {
        let table = document.entry("use").or_insert(Item::Table(Table::new()));
        let table = table.as_table_like_mut().ok_or("`use` is no table")?;
        set(table, scheme, name.into());
        Ok(())
    })
}

/// Writes down which contents the file of a plugin may have.
///
/// # Errors
///
/// As [`choose`].
pub(super) fn pin(path: &Path, name: &str, digests: &[String]) -> Result<(), LaunchError> {
    edit(path, |document| {
        let mut table = Table::new();
        // Without it there would be a line `[plugins]` with nothing below it.
        table.set_implicit(true);
        let table = document.entry("plugins").or_insert(Item::Table(table));
        let plugins = table.as_table_like_mut().ok_or("`plugins` is no table")?;
        let key = rules_of(plugins, name).unwrap_or_else(|| name.to_owned());
        let rules = plugins.entry(&key).or_insert(Item::Table(Table::new()));
        let rules = rules.as_table_like_mut().ok_or("a plugin is no table")?;
        let value = match digests {
            [digest] => toml_edit::Value::from(digest),
            _ => toml_edit::Value::Array(digests.iter().collect()),
        };
        set(rules, "sha256", value);
        Ok(())
    })
}

/// Takes out what is only true while a plugin is there: its content, and that it serves schemes.
/// Returns those schemes.
///
/// # Errors
///
/// As [`choose`].
pub(super) fn forget(path: &Path, name: &str) -> Result<Vec<String>, LaunchError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut schemes = Vec::new();
    edit(path, |document| {
        if let Some(plugins) = document.get_mut("plugins").and_then(Item::as_table_like_mut) {
            if let Some(key) = rules_of(plugins, name) {
                let rules = plugins.get_mut(&key).and_then(Item::as_table_like_mut);
                let is_empty = rules.is_some_and(|rules| {
                    rules.remove("sha256");
                    rules.is_empty()
                });
                if is_empty {
                    plugins.remove(&key);
                }
            }
        }
        if let Some(chosen) = document.get_mut("use").and_then(Item::as_table_like_mut) {
            let is_it = |item: &Item| item.as_str().is_some_and(|it| plain(it) == plain(name));
            let own = chosen.iter().filter(|(_, item)| is_it(item));
            schemes = own.map(|(scheme, _)| scheme.to_owned()).collect();
            for scheme in &schemes {
                chosen.remove(scheme);
            }
        }
        Ok(())
    })?;
    Ok(schemes)
}

/// The key of the rules for a plugin that is found by its name.
fn rules_of(plugins: &dyn TableLike, name: &str) -> Option<String> {
    let is_it = |(key, item): &(&str, &Item)| {
        let has_path = item.as_table_like().is_some_and(|it| it.contains_key("path"));
        plain(key) == plain(name) && !has_path
    };
    plugins.iter().find(is_it).map(|(key, _)| key.to_owned())
}

/// Sets a value, and only that, so that a comment behind it stays.
fn set(table: &mut dyn TableLike, key: &str, mut value: toml_edit::Value) {
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *value.decor_mut() = old.decor().clone();
    }
    match table.get_mut(key) {
        Some(item) => *item = Item::Value(value),
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// Changes the file, alone.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut DocumentMut) -> Result<(), &'static str>,
) -> Result<(), LaunchError> {
    let unwritable = |error: io::Error| {
        let message = format!("cannot write `{}`", path.display());
        LaunchError::new(ErrorKind::Other, message).because(&error)
    };
    let folder = make_folder(path).map_err(unwritable)?;
    // Else no launch would work with what is written.
    trust_folders(path)?;
    // The folder's lock, as the file itself is replaced; it goes with the descriptor.
    let alone = File::open(folder).map_err(unwritable)?;
    rustix::fs::flock(&alone, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| unwritable(error.into()))?;
    let text = read(path)?.unwrap_or_default();
    let mut document: DocumentMut = text.parse().map_err(|error| invalid(path, &error))?;
    change(&mut document).map_err(|reason| invalid(path, &io::Error::other(reason)))?;
    write(path, document.to_string().as_bytes()).map_err(unwritable)
}

/// Makes the folder of a file, for us alone.
pub(super) fn make_folder(path: &Path) -> io::Result<&Path> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    Ok(folder)
}

/// Replaces a file by a whole new one that only we may read, and makes the folder it is in.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link stays one: people keep their configuration elsewhere.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = make_folder(&path)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_data()?;
    file.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};

    use super::*;

    fn in_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        (folder, path)
    }

    #[test]
    fn every_key_is_understood() {
        let (_folder, path) = in_file(
            "[plugins.fast]\npath = \"/opt/fast.so\"\nkind = \"executable\"\nschemes = [\"ssh\"]\n\
             enabled = false\nsha256 = \"00\"\ntimeout = 250\nallow_unsafe_path = true\n\
             [plugins.slow]\n[use]\nSSH = \"fast\"\n",
        );
        let config = Config::read(&path).unwrap();
        let rules = &config.plugins["fast"];
        assert_eq!(rules.path.as_deref(), Some(Path::new("/opt/fast.so")));
        assert_eq!(rules.kind, Some(Kind::Executable));
        assert_eq!(rules.hello_limit(), Some(Duration::from_millis(250)));
        assert!(!rules.is_enabled() && rules.allow_unsafe_path);
        assert!(config.plugins["slow"].is_enabled());
        assert_eq!(config.chosen["ssh"], "fast");
    }

    #[test]
    fn a_file_that_does_not_exist_decides_nothing() {
        let config = Config::read(Path::new("/nowhere/plugins.toml")).unwrap();
        assert!(config.plugins.is_empty() && config.chosen.is_empty());
    }

    #[test]
    fn a_mistyped_key_is_an_error_and_not_a_missing_pin() {
        let (_folder, path) = in_file("[plugins.ssh2]\nsha265 = \"00\"\n");
        let error = Config::read(&path).unwrap_err();
        assert_eq!(error.message, format!("`{}` is not valid", path.display()));
        assert!(error.causes[0].contains("unknown field `sha265`"), "{error:?}");
    }

    #[test]
    fn a_file_that_others_could_have_written_is_refused_as_a_plugin_is() {
        let (folder, path) = in_file("");
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let refused = |path: &Path, what: &str| {
            let error = Config::read(path).unwrap_err();
            let words = format!("bad ownership or modes for {what} `");
            assert!(error.causes[0].starts_with(&words), "{error:?}");
            error.hint.unwrap()
        };
        for open in [0o666, 0o664] {
            mode(&path, open);
            assert!(refused(&path, "file").starts_with("chmod g"));
        }
        mode(&path, 0o644);
        mode(folder.path(), 0o770);
        assert!(refused(&path, "directory").starts_with("chmod g-w"));
        mode(folder.path(), 0o700);
        assert!(Config::read(&path).is_ok());

        // What a link leads to is fine, but not who could turn it.
        let open = tempfile::tempdir().unwrap();
        let link = open.path().join("plugins.toml");
        symlink(&path, &link).unwrap();
        assert!(Config::read(&link).is_ok());
        mode(open.path(), 0o777);
        refused(&link, "directory");
        choose(&open.path().join("new.toml"), "ssh", "libssh").unwrap_err();
        assert!(!open.path().join("new.toml").exists());
    }

    #[test]
    fn a_time_that_makes_no_sense_is_refused() {
        for time in ["0", "99999999999"] {
            let (_folder, path) = in_file(&format!("[plugins.x]\ntimeout = {time}\n"));
            let error = Config::read(&path).unwrap_err();
            let expected =
                format!("`plugins.x.timeout` is {time}, and has to be from 1 to 3600000");
            assert_eq!(error.causes, [expected]);
        }
    }

    fn chosen(before: &str, after: &str) {
        let (_folder, path) = in_file(before);
        choose(&path, "ssh", "libssh").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Config::read(&path).unwrap().chosen["ssh"], "libssh");
    }

    #[test]
    fn a_choice_leaves_everything_else_as_it_was() {
        chosen("", "[use]\nssh = \"libssh\"\n");
        chosen(
            "# mine\n[use] # here\nssh = \"ssh2\"   # old\nx = \"y\"\n\n[plugins.z]\nenabled = true\n",
            "# mine\n[use] # here\nssh = \"libssh\"   # old\nx = \"y\"\n\n[plugins.z]\nenabled = true\n",
        );
        chosen("use = { ssh = \"ssh2\" }\n", "use = { ssh = \"libssh\" }\n");
    }

    #[test]
    fn a_pin_is_written_beside_what_is_there_and_goes_with_its_plugin() {
        let (_folder, path) = in_file("# mine\n[plugins.my_own]\nenabled = true # yes\n");
        let digests = ["aa".to_owned(), "bb".to_owned()];
        pin(&path, "my-own", &digests).unwrap();
        assert!(Config::read(&path).unwrap().plugins["my_own"]
            .sha256
            .as_ref()
            .unwrap()
            .allows("BB"));
        pin(&path, "my-own", &digests[1..]).unwrap();
        pin(&path, "other", &digests[..1]).unwrap();
        choose(&path, "x", "other").unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "# mine\n[plugins.my_own]\nenabled = true # yes\nsha256 = \"bb\"\n\n\
             [plugins.other]\nsha256 = \"aa\"\n\n[use]\nx = \"other\"\n"
        );
        assert_eq!(forget(&path, "other").unwrap(), ["x"]);
        assert_eq!(forget(&path, "my-own").unwrap(), [""; 0]);
        let rest = fs::read_to_string(&path).unwrap();
        assert_eq!(rest, "# mine\n[plugins.my_own]\nenabled = true # yes\n\n[use]\n");
    }

    #[test]
    fn a_choice_makes_the_file_and_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distant/plugins.toml");
        choose(&path, "ssh", "libssh").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[use]\nssh = \"libssh\"\n");
    }
}
