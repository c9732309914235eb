//! Putting plugins into the user's own folder and taking them out again.
//!
//! A file is copied under a name that nobody looks for, checked there as a launch would check it,
//! and renamed: so what was checked is what is installed, a launch never sees half of it, and one
//! that is running keeps the file that it has loaded. Its SHA-256 is written into `plugins.toml`;
//! whoever changes the file by other means has to say so by adding it again.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use distant_plugin_api::{ErrorKind, LaunchError, Manifest};
use rustix::fs::{FlockOperation, OFlags};
use serde::Serialize;
use tempfile::{NamedTempFile, TempPath};

use super::choice::Found;
use super::config::{self, Config, Rules};
use super::discovery::{plain, Candidate, Kind, Origin};
use super::listing::Listed;
use super::registry::{blocking, digest, open, Registry};
use super::trust::{self, Complaint, Rule};

/// What the name of a copy begins with that is no plugin yet.
const ADDING: &str = ".adding-";

/// A plugin that was added.
#[derive(Debug, Serialize)]
pub struct Added {
    /// What it is now.
    #[serde(flatten)]
    pub plugin: Listed,
    /// The SHA-256 that is written down for it.
    pub sha256: String,
    /// The files that it took the place of.
    pub replaced: Vec<PathBuf>,
    /// This very file was added before, so nothing was done.
    pub unchanged: bool,
    /// Who else could have written the file that was added.
    pub warnings: Vec<Warning>,
}

/// What a launch would not put up with about a file that was added; its copy is safe from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What it is.
    pub reason: String,
    /// What would mend it, such as a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What [`Registry::add`] may do to plugins that are there already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Hide one of the same name that the system has.
    pub shadow: bool,
    /// Replace one of the same name in the user's folder that was not added, or that serves schemes
    /// which the new one does not.
    pub force: bool,
}

/// A plugin that was removed.
#[derive(Debug, Serialize)]
pub struct Removed {
    /// Its name.
    pub name: String,
    /// The files that are gone.
    pub files: Vec<PathBuf>,
    /// Schemes that it was chosen for, and that go back to whoever serves them by default.
    pub schemes: Vec<String>,
}

impl Registry {
    /// Installs a plugin for this user: it serves launches from now on, by managers that run
    /// already too. One of the same name that was added before is replaced, unless more would be
    /// lost by that than a version.
    ///
    /// # Errors
    ///
    /// * `plugin`: the file is no plugin that this program can run; the cause says why.
    /// * `invalid_option`: its name belongs to a plugin that comes first, or that would be hidden or
    ///   lost.
    /// * `other`: it cannot be copied, or was changed meanwhile.
    pub async fn add(&self, source: &Path, allowed: Allowed) -> Result<Added, LaunchError> {
        let (config, found) = self.survey().await?;
        let folder = self.own_folder()?;
        let wanted = source.to_owned();
        let copied = blocking(move || copy(&wanted, &folder)).await??;
        let Copied { copy, sha256, warnings, lock: _locked } = copied;

        let refused = |complaint: Complaint| {
            // The copy is nobody's business.
            let [copy, source] = [&*copy, source].map(|it| it.display().to_string());
            let text = |text: String| text.replace(&copy, &source);
            let message = format!("`{source}` cannot be added");
            let error = LaunchError::new(ErrorKind::Plugin, message);
            let error = error.caused_by(text(complaint.reason));
            complaint.mend.into_iter().map(text).fold(error, LaunchError::with_hint)
        };
        let guess = source.file_stem().unwrap_or_default().to_string_lossy();
        let rules = Rules { kind: Some(Kind::of(source)), ..Rules::default() };
        let candidate = Candidate::new(&guess, copy.to_path_buf(), Origin::CommandLine, rules);
        let opened = open(&candidate).map_err(refused)?;
        let manifest = self.hello(&candidate, &opened).await.map_err(refused)?;
        drop(opened);

        let name = plain(&manifest.name);
        let (own, others): (Vec<_>, Vec<_>) = found
            .iter()
            .filter(|it| it.candidate.name == name)
            .partition(|it| it.candidate.origin == Origin::User);
        if let Some(other) = others.first() {
            self.may_stand_beside(&name, other, allowed.shadow)?;
        }
        let own: Vec<_> = own.into_iter().map(|it| it.candidate.path.clone()).collect();
        let place = self.own_folder()?.join(candidate.kind.file_name(&name));
        let before = pinned(&config, &name);
        if !allowed.force {
            let wanted = source.to_owned();
            let source = blocking(move || wanted.canonicalize().unwrap_or(wanted)).await?;
            let lost: Vec<_> = own.iter().filter(|path| **path != source).cloned().collect();
            self.may_replace(&name, &lost, &manifest, before.is_some()).await?;
        }
        let (added, digests) = (place.clone(), before.map(<[_]>::to_vec));
        let pin = sha256.clone();
        let is_there = move || digests.is_some_and(|it| it == [pin.clone()]) && is(&added, &pin);
        let unchanged = own == [place.clone()] && blocking(is_there).await?;
        let replaced = if unchanged { Vec::new() } else { own.clone() };
        if !unchanged {
            let (target, list, pin) = (place.clone(), self.config().to_owned(), sha256.clone());
            blocking(move || install(copy, &target, &list, &config, &name, &pin, &own)).await??;
        }

        let plugin = self.list().await?.into_iter().find(|it| it.path == place);
        let plugin = plugin.ok_or_else(|| {
            LaunchError::new(ErrorKind::Other, format!("`{}` is gone again", place.display()))
        })?;
        Ok(Added { plugin, sha256, replaced, unchanged, warnings })
    }

    /// Takes a plugin out of the user's folder, with what `plugins.toml` says because of it.
    ///
    /// # Errors
    ///
    /// * `invalid_option`: there is none, or it is not one that was added.
    /// * `other`: it cannot be removed.
    pub async fn remove(&self, name: &str) -> Result<Removed, LaunchError> {
        let (_, found) = self.survey().await?;
        let name = plain(name);
        let named = || found.iter().filter(|it| it.candidate.name == name);
        let own = named().filter(|it| it.candidate.origin == Origin::User);
        let files: Vec<_> = own.map(|it| it.candidate.path.clone()).collect();
        if files.is_empty() {
            return Err(match named().next() {
                Some(other) => self.not_added(&name, other),
                None => unknown(&name, &found),
            });
        }
        let (config, gone) = (self.config().to_owned(), files.clone());
        let forgotten = name.clone();
        let schemes = blocking(move || {
            for file in &gone {
                fs::remove_file(file).map_err(|error| cannot("remove", file, &error))?;
            }
            // What cannot be tidied up is in nobody's way.
            gone.first().and_then(|file| tidy(file.parent()?).ok());
            config::forget(&config, &forgotten)
        });
        Ok(Removed { name, files, schemes: schemes.await?? })
    }

    fn own_folder(&self) -> Result<PathBuf, LaunchError> {
        let own = self.folders().iter().find(|it| it.origin == Origin::User);
        own.map(|it| it.path.clone()).ok_or_else(|| {
            LaunchError::new(ErrorKind::Other, "there is no folder for plugins of one's own")
        })
    }

    /// Whether a plugin may be added although there is another one of its name elsewhere.
    fn may_stand_beside(&self, name: &str, other: &Found, shadow: bool) -> Result<(), LaunchError> {
        let Candidate { path, origin, .. } = &other.candidate;
        let shown = path.display();
        if *origin > Origin::User {
            let message = format!("it would hide the plugin `{name}` in `{shown}`");
            let error = LaunchError::new(ErrorKind::InvalidOption, message);
            let hint = "`--shadow` says that it may, or give it another name";
            return if shadow { Ok(()) } else { Err(error.with_hint(hint)) };
        }
        let message = format!("there is a plugin `{name}` already, and that one comes first");
        let error = LaunchError::new(ErrorKind::InvalidOption, message);
        let error = error.caused_by(format!("it is in `{shown}`"));
        let config = self.config().display();
        Err(error.with_hint(match origin {
            Origin::PluginPath => {
                "take that folder out of `$DISTANT_PLUGIN_PATH`, or give yours another name"
                    .to_owned()
            }
            Origin::Config => {
                format!("take `[plugins.{name}]` out of `{config}`, or give yours another name")
            }
            _ => "give yours another name; `distant plugin use SCHEME=NAME` then chooses it"
                .to_owned(),
        }))
    }

    /// Whether these files of the user's folder may go for a new plugin of their name.
    async fn may_replace(
        &self,
        name: &str,
        files: &[PathBuf],
        new: &Manifest,
        was_added: bool,
    ) -> Result<(), LaunchError> {
        if files.is_empty() {
            return Ok(());
        }
        let hint = "`--force` replaces it all the same; or give yours another name";
        if !was_added {
            let message = format!("there is a plugin `{name}` already that nobody has added");
            return Err(LaunchError::new(ErrorKind::InvalidOption, message)
                .caused_by(format!("it is in `{}`", files[0].display()))
                .with_hint(hint));
        }
        for old in self.list().await?.iter().filter(|it| files.contains(&it.path)) {
            let serves = |scheme: &&String| !new.schemes.contains(scheme);
            let schemes = old.manifest.iter().flat_map(|it| &it.schemes);
            if let Some(scheme) = schemes.into_iter().find(serves) {
                let message = format!("plugin `{name}` would not serve `{scheme}` any more");
                return Err(LaunchError::new(ErrorKind::InvalidOption, message)
                    .caused_by(format!(
                        "the one that was added before does: `{}`",
                        old.path.display()
                    ))
                    .with_hint(hint));
            }
        }
        Ok(())
    }

    fn not_added(&self, name: &str, other: &Found) -> LaunchError {
        let Candidate { path, .. } = &other.candidate;
        let message = format!("plugin `{name}` is not one that was added");
        let config = self.config().display();
        LaunchError::new(ErrorKind::InvalidOption, message)
            .caused_by(format!("it is in `{}`", path.display()))
            .with_hint(format!(
                "`[plugins.{name}]` with `enabled = false` in `{config}` turns it off"
            ))
    }
}

fn unknown(name: &str, found: &[Found]) -> LaunchError {
    let message = format!("there is no plugin `{name}`");
    let own = found.iter().filter(|it| it.candidate.origin == Origin::User);
    let own: Vec<_> = own.map(|it| format!("`{}`", it.candidate.name)).collect();
    let hint = if own.is_empty() {
        "none was added by `distant plugin add`".to_owned()
    } else {
        format!("those that were added are {}", own.join(", "))
    };
    LaunchError::new(ErrorKind::InvalidOption, message).with_hint(hint)
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> LaunchError {
    let message = format!("cannot {what} `{}`", path.display());
    LaunchError::new(ErrorKind::Other, message).because(error)
}

/// The digests that are written down for a plugin that was added.
fn pinned<'a>(config: &'a Config, name: &str) -> Option<&'a [String]> {
    let rules = config.plugins.iter().find(|(key, it)| plain(key) == name && it.path.is_none());
    rules.and_then(|(_, rules)| Some(rules.sha256.as_ref()?.digests()))
}

/// Whether a file has this content.
fn is(path: &Path, sha256: &str) -> bool {
    File::open(path).and_then(|mut file| digest(&mut file)).is_ok_and(|it| it == sha256)
}

/// A file that was copied under a name that is no plugin's.
struct Copied {
    copy: TempPath,
    /// Held as long as the copy is somebody's.
    lock: File,
    sha256: String,
    warnings: Vec<Warning>,
}

/// Makes the file for a copy, and a lock that says that somebody is at it; and removes the copies of
/// those who were killed.
fn begin(folder: &Path) -> io::Result<(NamedTempFile, File)> {
    let _alone = tidy(folder)?;
    let copy = tempfile::Builder::new().prefix(ADDING).tempfile_in(folder)?;
    // By a descriptor of its own: the one that writes has to be closed before a copy can be run.
    let lock = File::open(copy.path())?;
    rustix::fs::flock(&lock, FlockOperation::LockShared)?;
    Ok((copy, lock))
}

/// Removes the copies in a folder that nobody is at. Until the lock that it returns is dropped nobody
/// else begins one, which has no lock of its own at first.
fn tidy(folder: &Path) -> io::Result<File> {
    let alone = File::open(folder)?;
    rustix::fs::flock(&alone, FlockOperation::LockExclusive)?;
    for entry in folder.read_dir()?.flatten() {
        if !entry.file_name().as_bytes().starts_with(ADDING.as_bytes()) {
            continue;
        }
        // It may be anything that somebody has put there.
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(entry.path());
        let is_left = |file: &File| {
            let lock = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
            lock.is_ok() && file.metadata().is_ok_and(|it| it.is_file())
        };
        if file.is_ok_and(|it| is_left(&it)) {
            // Else it is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(alone)
}

/// Copies a file into the folder. It has to be the same file from the beginning to the end.
fn copy(source: &Path, folder: &Path) -> Result<Copied, LaunchError> {
    let refused = |complaint: Complaint| {
        let message = format!("`{}` cannot be added", source.display());
        let error = LaunchError::new(ErrorKind::Plugin, message).caused_by(complaint.reason);
        complaint.mend.into_iter().fold(error, LaunchError::with_hint)
    };
    let real = trust::real_path(source).map_err(refused)?;
    // The copy is what will be loaded, so who else can write to the folders above it stops nobody.
    // But that may have been done already, which only the person can judge.
    let (mut file, before) = trust::open(&real, Rule::OwnFolder).map_err(refused)?;
    let warnings = trust::walk(&real, Rule::Full).into_iter();
    let warnings = warnings.map(|Complaint { reason, mend, .. }| Warning { reason, mend });
    let warnings = warnings.collect();
    super::format::check(&file, &real, Kind::of(source)).map_err(refused)?;

    let failed = |error: io::Error| cannot("write to", folder, &error);
    // Whatever the umask, nobody else may write there.
    DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
    let here = trust::real_path(folder).map_err(refused)?;
    let us = rustix::process::geteuid().as_raw();
    trust::folders(&here.join("file"), us).map_err(refused)?;

    let (mut copy, lock) = begin(&here).map_err(failed)?;
    let copied = file.rewind().and_then(|()| io::copy(&mut file, copy.as_file_mut()));
    let copied = copied.map_err(failed)?;
    let facts = |it: &Metadata| {
        let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
        (it.dev(), it.ino(), it.len(), times)
    };
    let is_same = |it: &Metadata| facts(it) == facts(&before) && it.len() == copied;
    if !real.symlink_metadata().is_ok_and(|it| is_same(&it)) {
        let changed = Complaint::new("it was changed or replaced while it was copied");
        return Err(refused(changed.mend("add it again when it is complete")));
    }
    let mode = if Kind::of(source) == Kind::Library { 0o644 } else { 0o755 };
    copy.as_file().set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    copy.as_file().sync_all().map_err(failed)?;
    // A program that somebody holds open for writing cannot be run.
    let copy = copy.into_temp_path();
    let sha256 = File::open(&copy).and_then(|mut file| digest(&mut file)).map_err(failed)?;
    Ok(Copied { copy, lock, sha256, warnings })
}

/// Renames the checked copy to its name, and writes its SHA-256 down. A launch at any moment finds
/// a file and a digest that belong together.
fn install(
    copy: TempPath,
    target: &Path,
    list: &Path,
    config: &Config,
    name: &str,
    sha256: &str,
    own: &[PathBuf],
) -> Result<(), LaunchError> {
    let before = pinned(config, name);
    // A file without a digest may be one that was never added; it is used until it is replaced.
    if own.is_empty() || before.is_some() {
        let before = before.map(<[_]>::to_vec).unwrap_or_default();
        let mut both: Vec<String> = before.into_iter().filter(|it| it != sha256).collect();
        both.push(sha256.to_owned());
        config::pin(list, name, &both)?;
    }
    copy.persist(target).map_err(|error| cannot("write", target, &error.error))?;
    let others = own.iter().filter(|path| *path != target);
    for other in others {
        // A library would go on hiding a program of the same name.
        fs::remove_file(other).map_err(|error| cannot("remove", other, &error))?;
    }
    if let Some(folder) = target.parent() {
        let folder_file = File::open(folder).and_then(|it| it.sync_all());
        folder_file.map_err(|error| cannot("write to", folder, &error))?;
    }
    config::pin(list, name, &[sha256.to_owned()])
}
