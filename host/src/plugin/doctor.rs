//! Why a plugin is not used: every check that a launch makes, one by one, and what mends it.
//!
//! A launch stops at the first thing that is wrong; here everything is looked at, so that a person
//! does not mend one thing only to hear of the next. Nothing remembered is believed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use distant_plugin_api::LaunchError;
use serde::Serialize;

use super::choice::Found;
use super::discovery::{Candidate, Kind};
use super::failures::{Failure, Failures, LATELY};
use super::format;
use super::listing::{Listed, State};
use super::registry::{blocking, open, rule, Registry};
use super::trust::{self, Complaint, Rule};
use crate::paths;

const DAY: u64 = 24 * 60 * 60;
/// Failed launches that are told one by one; they are counted all the same.
const FAILURES_SHOWN: usize = 10;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// A launch works, but somebody should know.
    Note,
    /// A launch does not work because of this.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in one word.
    pub check: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
    /// What would mend it, such as a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// A plugin with everything that was looked at.
#[derive(Debug, Serialize)]
pub struct Examined {
    /// What `plugin list` says of it.
    #[serde(flatten)]
    pub plugin: Listed,
    /// What was looked at, in the order in which a launch does.
    pub checks: Vec<Check>,
    /// Launches that it has ended badly of late, the newest first.
    pub failures: Vec<Failure>,
    /// A command that launches through it, if it can be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch: Option<String>,
}

impl Examined {
    /// Whether a launch through it would fail because of the plugin.
    pub fn is_ill(&self) -> bool {
        self.checks.iter().any(|it| it.verdict == Verdict::Bad)
    }
}

/// The checks of one plugin, as they come.
#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn good(&mut self, check: &'static str, text: impl Into<String>) {
        self.0.push(Check { check, verdict: Verdict::Good, text: text.into(), mend: None });
    }

    fn note(&mut self, check: &'static str, text: impl Into<String>, mend: Option<String>) {
        self.0.push(Check { check, verdict: Verdict::Note, text: text.into(), mend });
    }

    fn bad(&mut self, check: &'static str, complaint: Complaint) {
        let Complaint { reason: text, mend, .. } = complaint;
        self.0.push(Check { check, verdict: Verdict::Bad, text, mend });
    }
}

impl Registry {
    /// Examines every plugin file, or those of one name; none where there is no such plugin.
    ///
    /// # Errors
    ///
    /// `invalid_option`: `plugins.toml` is not valid.
    pub async fn examine(&self, name: Option<&str>) -> Result<Vec<Examined>, LaunchError> {
        let (_, found) = self.survey().await?;
        let mut examined = Vec::new();
        for plugin in self.list().await? {
            let is_wanted = name.is_none_or(|it| plugin.name.eq_ignore_ascii_case(it));
            let of_it = |it: &&Found| it.candidate.path == plugin.path;
            if let Some(it) = found.iter().find(of_it).filter(|_| is_wanted) {
                examined.push(self.examine_one(&it.candidate, plugin).await?);
            }
        }
        Ok(examined)
    }

    async fn examine_one(
        &self,
        candidate: &Candidate,
        plugin: Listed,
    ) -> Result<Examined, LaunchError> {
        let mut report = Report::default();
        let looked_at = candidate.clone();
        let (mut report, is_whole) = blocking(move || {
            let is_whole = file(&looked_at, &mut report);
            (report, is_whole)
        })
        .await?;
        let wanted = candidate.clone();
        let opened = blocking(move || open(&wanted)).await?;
        match opened {
            Err(complaint) if complaint.changed => report.bad("content", complaint),
            // It has been said.
            Err(_) => {}
            Ok(_) if !candidate.rules.is_enabled() => {}
            Ok(opened) if is_whole => {
                if candidate.rules.sha256.is_some() {
                    report.good("content", "its SHA-256 is the one in `plugins.toml`");
                }
                let start = Instant::now();
                match self.hello(candidate, &opened).await {
                    Ok(manifest) => {
                        let took = start.elapsed().as_millis();
                        let name = format!("`{}` {}", manifest.name, manifest.version);
                        let text = format!("it is {}, and said so within {took} ms", name.trim());
                        report.good("hello", text);
                    }
                    Err(complaint) => report.bad("hello", complaint),
                }
            }
            Ok(_) => {}
        }
        self.use_of(&plugin, &mut report);
        let (looked_at, known) = (candidate.clone(), Failures::beside(self.cache()));
        let (failures, is_newer) = blocking(move || lately(&looked_at, &known)).await?;
        if let Some(last) = failures.first() {
            report.note("launches", history(last, failures.len(), is_newer), None);
        }
        let is_usable =
            !matches!(plugin.state, State::Broken { .. } | State::Changed { .. } | State::Disabled);
        let launch = plugin.schemes.first().filter(|_| is_usable).map(|scheme| {
            let line = format!("distant launch {}://HOST", scheme.name);
            match &scheme.used {
                Some(used) if *used == plugin.name => line,
                _ => format!("{line} --options backend={}", plugin.name),
            }
        });
        let failures = failures.into_iter().take(FAILURES_SHOWN).collect();
        Ok(Examined { plugin, checks: report.0, failures, launch })
    }

    /// Whether launches get this plugin.
    fn use_of(&self, plugin: &Listed, report: &mut Report) {
        let name = &plugin.name;
        let config = self.config().display();
        match &plugin.state {
            State::Disabled => {
                let text = format!("`enabled = false` in `{config}` turns it off");
                let mend = format!("take `enabled = false` out of `[plugins.{name}]` there");
                return report.note("use", text, Some(mend));
            }
            State::Shadowed { by, mend } if by.contains('(') => {
                let text = format!("another plugin of the same name comes first: {by}");
                return report.note("use", text, Some(mend.clone()));
            }
            _ => {}
        }
        for scheme in &plugin.schemes {
            let served = &scheme.name;
            match &scheme.used {
                Some(used) if used == name => {
                    report.good("use", format!("`{served}://` is served by it"));
                }
                used => {
                    let by = used.as_deref().unwrap_or("another one");
                    let text = format!("`{served}://` is served by `{by}`");
                    let mend = format!("distant plugin use {served}={name}");
                    report.note("use", text, Some(mend));
                }
            }
        }
    }
}

/// Launches that a file has ended badly, and whether it was changed since the last of them.
fn lately(candidate: &Candidate, known: &Failures) -> (Vec<Failure>, bool) {
    let Ok(real) = trust::real_path(&candidate.path) else { return Default::default() };
    let failures = known.of(&real);
    let changed = real.metadata().map(|it| u64::try_from(it.mtime()).unwrap_or_default());
    let is_newer = failures.first().is_some_and(|last| changed.is_ok_and(|it| it > last.at));
    (failures, is_newer)
}

/// How often launches failed because of a plugin, when the last time, and what it said then.
fn history(last: &Failure, count: usize, is_newer: bool) -> String {
    let launches = if count == 1 { "1 launch".to_owned() } else { format!("{count} launches") };
    let (days, ago, message) = (LATELY.as_secs() / DAY, rough(last.age()), &last.message);
    let mut text = format!(
        "{launches} failed because of it within {days} days, the last one {ago} ago: {message}"
    );
    if let Some(words) = &last.last_words {
        text.push_str(&format!("; it last said: `{words}`"));
    }
    if is_newer {
        text.push_str("; the file was changed since");
    }
    text
}

/// A time in its greatest unit.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..DAY => (seconds / 3600, "h"),
        _ => (seconds / DAY, "days"),
    };
    format!("{count} {unit}")
}

/// Everything that can be said of a file without running it; tells whether it is all good.
fn file(candidate: &Candidate, report: &mut Report) -> bool {
    let before = report.0.len();
    let real = match trust::real_path(&candidate.path) {
        Ok(real) => real,
        Err(complaint) => {
            report.bad("file", complaint);
            return false;
        }
    };
    if real != candidate.path {
        report.note("file", format!("it leads to `{}`", real.display()), None);
    }
    let rule = rule(candidate, &real);
    let faults = trust::walk(&real, rule);
    if faults.is_empty() && rule != Rule::Nothing {
        let folders = if rule == Rule::Full { " and every folder above it" } else { "" };
        let text = format!("the file{folders} belongs to root or you, and nobody else may write");
        report.good("permissions", text);
    } else if faults.is_empty() {
        let text = "nobody looks who may write to it, as `allow_unsafe_path` says";
        report.note("permissions", text, None);
    }
    for fault in faults {
        report.bad("permissions", fault);
    }
    // The rule has been looked at; here it is only about what is in the file.
    match trust::open(&real, Rule::Nothing) {
        Err(complaint) => report.bad("file", complaint),
        Ok((file, metadata)) => match format::check(&file, &real, candidate.kind) {
            Err(complaint) => report.bad("format", complaint),
            Ok(()) => {
                let what = match candidate.kind {
                    Kind::Library => "a library for this machine",
                    Kind::Executable => "a program or script that may be executed",
                };
                report.good("format", format!("it is {what}, {} bytes long", metadata.len()));
                if let Some(missing) = missing_libraries(&real, candidate.kind) {
                    report.bad("libraries", missing);
                }
            }
        },
    }
    !report.0[before..].iter().any(|it| it.verdict == Verdict::Bad)
}

/// What a library needs and the dynamic loader does not find, as the loader itself says; a launch
/// would hear only of the first. Nothing of the file is run.
fn missing_libraries(path: &Path, kind: Kind) -> Option<Complaint> {
    if kind != Kind::Library {
        return None;
    }
    let loader = format::loader()?;
    let listed = Command::new(loader)
        .arg(path)
        .env_clear()
        .envs(paths::worker_environment())
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let missing = listed.lines().filter_map(|line| line.trim().strip_suffix(" => not found"));
    let missing: Vec<_> = missing.map(|it| format!("`{it}`")).collect();
    let named = missing.join(", ");
    (!missing.is_empty()).then(|| {
        Complaint::new(format!("it needs {named}, which is not on this machine"))
            .mend("install the packages that have them, or build the plugin on this machine")
    })
}
