//! Which plugins there are, and which one serves a launch.
//!
//! Every question is answered from the files as they are now: folders are read again each time,
//! only what a file says of itself is remembered, for as long as it is the same file. So putting a
//! plugin there, replacing it or taking it away counts from the next launch on.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{ErrorKind, LaunchError, Manifest};
use futures::future::{join_all, TryFutureExt};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::task::TaskTracker;

use super::cache::{self, Identity, Manifests};
use super::choice::{choose, Choice, Found};
use super::config::Config;
use super::discovery::{find, plain, Candidate, Folder, Kind, Origin};
use super::failures::Failures;
use super::listing::{listed, Listed};
use super::process::{Limits, Process, Workers};
use super::refusal::{self, Wanted};
use super::trust::{self, Complaint, Rule};
use super::{format, manifest};
use crate::paths;

/// Plugins that are asked for their manifests at once.
const ASKED_AT_ONCE: usize = 8;
/// Contents of files that are remembered; then all are forgotten and asked again when needed.
const REMEMBERED_MAX: usize = 1024;

/// Where plugins are looked for, and how their workers are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `plugins.toml`; it need not exist.
    pub config: PathBuf,
    /// The cache of manifests; made where it is missing.
    pub cache: PathBuf,
    /// The program that runs workers: this one.
    pub program: PathBuf,
    /// Plugins that the command line names, with their files; they come before all others.
    pub named: Vec<(String, PathBuf)>,
    /// The folders that are searched, in order; not all have to exist.
    pub folders: Vec<Folder>,
    /// What each worker may take.
    pub limits: Limits,
}

impl Default for Settings {
    /// The places of this user and this program.
    fn default() -> Self {
        Self {
            config: paths::config_dir().join("plugins.toml"),
            cache: paths::cache_dir().join("plugins.json"),
            program: paths::executable_to_spawn(),
            named: Vec::new(),
            folders: Folder::usual(),
            limits: Limits::default(),
        }
    }
}

/// A plugin that can be run: its file was checked and is held open. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name by which a person chooses it.
    pub name: String,
    /// Its file, without links.
    pub path: PathBuf,
    /// How it is run.
    pub kind: Kind,
    /// What it says of itself, with the schemes that it may serve here.
    pub manifest: Arc<Manifest>,
    file: Arc<OwnedFd>,
    hello_limit: Duration,
    workers: Workers,
}

impl Entry {
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn hello_limit(&self) -> Duration {
        self.hello_limit
    }

    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Makes an entry of a file that nobody has checked or asked.
    #[cfg(test)]
    pub(super) fn unchecked(registry: &Registry, path: &Path, kind: Kind) -> Self {
        let manifest = serde_json::from_str(r#"{"name":"x","schemes":["x"]}"#).unwrap();
        Self {
            name: "x".into(),
            path: path.to_owned(),
            kind,
            manifest: Arc::new(manifest),
            file: Arc::new(std::fs::File::open(path).unwrap().into()),
            hello_limit: registry.workers.limits.hello,
            workers: registry.workers.clone(),
        }
    }
}

/// A file that was asked what it is.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) manifest: Arc<Manifest>,
    opened: Opened,
}

/// A file that was opened and checked.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    path: PathBuf,
    identity: Identity,
    file: Arc<OwnedFd>,
}

type Answer = Arc<OnceCell<Result<Arc<Manifest>, Failure>>>;

/// A plugin that could not say what it is. That may be mended without a change of its file.
#[derive(Debug, Clone)]
struct Failure {
    complaint: Complaint,
    at: Instant,
}

/// Finds plugins and chooses among them. Share it in an [`Arc`].
#[derive(Debug)]
pub struct Registry {
    config: PathBuf,
    cache: PathBuf,
    named: Vec<(String, PathBuf)>,
    folders: Vec<Folder>,
    workers: Workers,
    /// What files said of themselves, and which are being asked: `None` before the first look.
    answers: Mutex<Option<HashMap<Identity, Answer>>>,
    asking: Semaphore,
}

impl Registry {
    /// Makes a registry; it reads nothing before it is asked something.
    pub fn new(settings: Settings) -> Self {
        let Settings { config, cache, program, named, folders, limits } = settings;
        let failures = Some(Failures::beside(&cache));
        let workers = Workers { program, limits, running: TaskTracker::new(), failures };
        let asking = Semaphore::new(ASKED_AT_ONCE);
        Self { config, cache, named, folders, workers, answers: Mutex::new(None), asking }
    }

    /// Chooses the plugin for a scheme: the one named `backend`, else the one that `plugins.toml`
    /// names, else one that came with the program, else any other.
    ///
    /// # Errors
    ///
    /// * `invalid_option`: nobody serves the scheme, nobody of that name does, or `plugins.toml` is
    ///   not valid.
    /// * `plugin`: the one that should serve it cannot be used, or there is no plugin at all.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the workers that it waits for.
    pub async fn resolve(&self, scheme: &str, backend: Option<&str>) -> Result<Entry, LaunchError> {
        let scheme = scheme.to_lowercase();
        let (config, mut found) = self.survey().await?;
        let chosen = config.chosen.get(&scheme).map(String::as_str);
        let wanted = Wanted { scheme: &scheme, backend, chosen };
        let (started, mut looked_again) = (Instant::now(), false);
        loop {
            match choose(&found, &scheme, wanted.name()) {
                Choice::Ask(places) => self.ask(&mut found, &places, None).await,
                Choice::Take(place) => {
                    let Found { candidate, outcome: Some(Ok(it)), .. } = &found[place] else {
                        return Err(refusal::unusable(&found[place]));
                    };
                    let manifest = Arc::clone(&it.manifest);
                    return Ok(self.entry(candidate, &it.opened, manifest));
                }
                // What made a file fail may have been mended elsewhere, as a missing library.
                Choice::Broken(place) if !looked_again => {
                    looked_again = true;
                    self.ask(&mut found, &[place], Some(started)).await;
                }
                Choice::Nothing if !looked_again => {
                    looked_again = true;
                    self.ask_all(&mut found, started).await;
                }
                Choice::Broken(place) => return Err(refusal::unusable(&found[place])),
                Choice::Nothing if found.is_empty() => {
                    return Err(refusal::no_plugin(&self.folders))
                }
                Choice::Nothing => {
                    return Err(refusal::nobody(&found, wanted, &self.config, &self.folders));
                }
            }
        }
    }

    /// Lists every plugin file there is, those that cannot be used too.
    ///
    /// # Errors
    ///
    /// `invalid_option`: `plugins.toml` is not valid.
    pub async fn list(&self) -> Result<Vec<Listed>, LaunchError> {
        let (config, mut found) = self.survey().await?;
        self.ask_all(&mut found, Instant::now()).await;
        let list = found.iter().enumerate().map(|(place, _)| listed(&config, &found, place));
        Ok(list.collect())
    }

    /// Writes into `plugins.toml` that `name` serves `scheme` from now on.
    ///
    /// # Errors
    ///
    /// * `invalid_option`: there is no such plugin, it does not serve the scheme, or the file is
    ///   not valid.
    /// * `plugin`: it cannot be used.
    /// * `other`: the file cannot be written.
    pub async fn choose(&self, scheme: &str, name: &str) -> Result<Entry, LaunchError> {
        let entry = self.resolve(scheme, Some(name)).await?;
        super::config::choose(&self.config, &scheme.to_lowercase(), &entry.name)?;
        Ok(entry)
    }

    /// The file that [`Registry::choose`] writes.
    pub fn config(&self) -> &Path {
        &self.config
    }

    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folders that are searched.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// Waits until every worker that was started for a plugin of this registry is reaped. Those
    /// that nobody cancelled or dropped are waited for as well.
    pub async fn workers_gone(&self) {
        self.workers.running.close();
        self.workers.running.wait().await;
    }

    /// How many workers were started and not reaped yet.
    pub fn workers_running(&self) -> usize {
        self.workers.running.len()
    }

    /// Looks which files there are, without opening any.
    pub(super) async fn survey(&self) -> Result<(Config, Vec<Found>), LaunchError> {
        let (path, named) = (self.config.clone(), self.named.clone());
        let folders = self.folders.clone();
        let look = move || {
            let config = Config::read(&path)?;
            let candidates = find(&config, &named, &folders);
            let mut found: Vec<Found> = Vec::with_capacity(candidates.len());
            for candidate in candidates {
                let hides = |it: &Found| it.is_selectable() && it.candidate.name == candidate.name;
                let hidden_by = found.iter().position(hides);
                found.push(Found { candidate, outcome: None, hidden_by });
            }
            Ok((config, found))
        };
        blocking(look).await?
    }

    pub(super) async fn ask_all(&self, found: &mut [Found], since: Instant) {
        let places: Vec<_> = (0..found.len()).collect();
        self.ask(found, &places, Some(since)).await;
    }

    /// Asks files what they are, all at once, but for disabled ones. A remembered failure counts only
    /// if it is not older than `since`.
    async fn ask(&self, found: &mut [Found], places: &[usize], since: Option<Instant>) {
        // Asking is running, so a disabled one is not asked either.
        let is_asked =
            |it: &Found| it.candidate.rules.is_enabled() && !matches!(it.outcome, Some(Ok(_)));
        let asked: Vec<_> =
            places.iter().copied().filter(|&place| is_asked(&found[place])).collect();
        let answers = asked.iter().map(|&place| self.describe(&found[place].candidate, since));
        let answers = join_all(answers).await;
        for (place, answer) in asked.into_iter().zip(answers) {
            found[place].outcome = Some(answer);
        }
    }

    async fn describe(
        &self,
        candidate: &Candidate,
        since: Option<Instant>,
    ) -> Result<Described, Complaint> {
        let wanted = candidate.clone();
        let opened = blocking(move || open(&wanted)).await;
        let opened = opened.map_err(|error| Complaint::new(error.message))??;
        let cell = self.answer(&opened.identity, since).await;
        let mut is_new = false;
        let answer = cell
            .get_or_init(|| {
                is_new = true;
                let answer = self.hello(candidate, &opened);
                answer.map_err(|complaint| Failure { complaint, at: Instant::now() })
            })
            .await;
        let manifest = answer.clone().map_err(|failure| failure.complaint)?;
        if is_new {
            let (path, manifest) = (self.cache.clone(), Arc::clone(&manifest));
            let learnt = Manifests::from([(opened.identity.clone(), manifest)]);
            // Not waited for by the launch's worker, but by us, so that a short-lived program
            // has written it when it ends. It fails without harm.
            let _ = blocking(move || cache::add(&path, &learnt)).await;
        }
        Ok(Described { manifest: allowed(candidate, manifest), opened })
    }

    /// The place of the answer of one file; whoever fills it asks for all who wait.
    async fn answer(&self, identity: &Identity, since: Option<Instant>) -> Answer {
        if self.remembered().is_none() {
            let path = self.cache.clone();
            let read = blocking(move || cache::read(&path)).await.unwrap_or_default();
            let known =
                |(identity, manifest)| (identity, Arc::new(OnceCell::new_with(Some(Ok(manifest)))));
            self.remembered().get_or_insert_with(|| read.into_iter().map(known).collect());
        }
        let mut answers = self.remembered();
        let answers = answers.get_or_insert_default();
        if answers.len() > REMEMBERED_MAX {
            answers.clear();
        }
        let answer = answers.entry(identity.clone()).or_default();
        let failed = answer.get().and_then(|it| it.as_ref().err());
        if failed.is_some_and(|failure| since.is_some_and(|since| failure.at < since)) {
            *answer = Answer::default();
        }
        Arc::clone(answer)
    }

    fn remembered(&self) -> MutexGuard<'_, Option<HashMap<Identity, Answer>>> {
        // A panic elsewhere leaves the map whole: every change of it is one call.
        self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts a worker to hear what a plugin is.
    pub(super) async fn hello(
        &self,
        candidate: &Candidate,
        opened: &Opened,
    ) -> Result<Arc<Manifest>, Complaint> {
        // The semaphore is never closed.
        let _turn = self.asking.acquire().await;
        let unknown = Manifest::new::<String>(candidate.name.clone(), []);
        let mut entry = self.entry(candidate, opened, Arc::new(unknown));
        // Who asks hears what is wrong, and may ask again and again.
        entry.workers.failures = None;
        let started = Process::start(&entry, &Default::default(), LogLevel::Off).await;
        let (_process, hello) = started.map_err(|error| {
            let file = opened.file.try_clone().map(std::fs::File::from).ok();
            if let Some(foreign) = file.and_then(|it| format::for_another_machine(&it)) {
                return foreign;
            }
            // The reader knows by now which plugin is meant.
            let words = error.one_line();
            let own = format!("plugin `{}` ", candidate.name);
            let words = words.strip_prefix(&own).map(|it| format!("it {it}"));
            let complaint = Complaint::new(words.unwrap_or_else(|| error.one_line().into()));
            error.hint.into_iter().fold(complaint, Complaint::mend)
        })?;
        let manifest = hello.manifest;
        manifest::check(&manifest).map_err(Complaint::new)?;
        if !candidate.origin.is_explicit() && plain(&manifest.name) != candidate.name {
            let (its, file) = (&manifest.name, &candidate.name);
            let reason = format!("it calls itself `{its}`, but its file is named for `{file}`");
            return Err(Complaint::new(reason).mend("give the file its name"));
        }
        Ok(Arc::new(manifest))
    }

    fn entry(&self, candidate: &Candidate, opened: &Opened, manifest: Arc<Manifest>) -> Entry {
        Entry {
            name: name(candidate, Some(&manifest)),
            path: opened.path.clone(),
            kind: candidate.kind,
            manifest,
            file: Arc::clone(&opened.file),
            hello_limit: candidate.rules.hello_limit().unwrap_or(self.workers.limits.hello),
            workers: self.workers.clone(),
        }
    }
}

/// Runs what waits for a disk where it keeps nobody waiting.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LaunchError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        LaunchError::new(ErrorKind::Other, "cannot look for plugins").because(&error)
    })
}

/// How much is asked of a file whose real place is `path`.
pub(super) fn rule(candidate: &Candidate, path: &Path) -> Rule {
    if candidate.rules.allow_unsafe_path {
        return Rule::Nothing;
    }
    let found_in = candidate.path.parent().unwrap_or(&candidate.path);
    Rule::of(candidate.origin, found_in, path)
}

/// The SHA-256 of what is left to read, in hexadecimal digits.
pub(super) fn digest(source: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    std::io::copy(source, &mut digest)?;
    Ok(hex::encode(digest.finalize()))
}

/// Opens a file and makes every check that needs no worker.
pub(super) fn open(candidate: &Candidate) -> Result<Opened, Complaint> {
    if !candidate.path.is_absolute() {
        return Err(Complaint::new("its path is not absolute"));
    }
    let path = trust::real_path(&candidate.path)?;
    let found_in = candidate.path.parent().unwrap_or(&candidate.path);
    let rule = rule(candidate, &path);
    let (mut file, metadata) = trust::open(&path, rule)?;
    let is_searched = !candidate.origin.is_explicit() && candidate.origin != Origin::Program;
    if rule == Rule::Full && is_searched {
        // If it is a link, whoever can write to its folder can turn it to another file.
        let here = trust::real_path(found_in)?;
        trust::folders(&here.join("file"), rustix::process::geteuid().as_raw())?;
    }
    format::check(&file, &path, candidate.kind)?;
    if let Some(pinned) = &candidate.rules.sha256 {
        let digest = digest(&mut file)
            .map_err(|error| Complaint::new(format!("it cannot be read: {error}")))?;
        if !pinned.allows(&digest) {
            let reason = "its SHA-256 is not the one in `plugins.toml`: the file was changed";
            let mend = match candidate.origin {
                Origin::User => format!("distant plugin add {}", trust::quoted(&candidate.path)),
                _ => format!("if you trust the file, set `sha256 = \"{digest}\"`"),
            };
            return Err(Complaint { changed: true, ..Complaint::new(reason).mend(mend) });
        }
    }
    let identity = Identity::new(&path, candidate.kind, &metadata);
    Ok(Opened { path, identity, file: Arc::new(file.into()) })
}

/// Leaves a plugin those of its schemes that `plugins.toml` allows.
fn allowed(candidate: &Candidate, manifest: Arc<Manifest>) -> Arc<Manifest> {
    let Some(schemes) = &candidate.rules.schemes else { return manifest };
    let mut manifest = Arc::unwrap_or_clone(manifest);
    manifest.schemes.retain(|own| schemes.iter().any(|it| it.eq_ignore_ascii_case(own)));
    Arc::new(manifest)
}

/// The name of a plugin: its own, unless a person gave it another together with its path.
pub(super) fn name(candidate: &Candidate, manifest: Option<&Manifest>) -> String {
    let own = manifest.filter(|_| !candidate.origin.is_explicit());
    own.map_or_else(|| candidate.name.clone(), |it| it.name.clone())
}

#[cfg(test)]
mod tests;
