//! What became of the cases, for people and for programs.

use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::Kit;

/// What became of one case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The plugin does what it should.
    Pass,
    /// It does not.
    Fail,
    /// Its process ended by itself before it should have.
    Crash,
    /// It did not come to an end in time.
    Timeout,
    /// The case means nothing for this plugin, or needs something that was not given.
    Skip,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Crash => "CRASH",
            Self::Timeout => "TIMEOUT",
            Self::Skip => "skip",
        })
    }
}

/// One case with what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The case's name.
    pub case: &'static str,
    /// What became of it.
    pub status: Status,
    /// Why; for a pass, something that is worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the case shows.
    pub about: &'static str,
    /// How long it took.
    pub milliseconds: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7} {}", self.status, self.case)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// What became of all cases.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The plugin's file.
    pub plugin: PathBuf,
    /// The seed that gives the same again.
    pub seed: u64,
    /// Every case that was run.
    pub outcomes: Vec<Outcome>,
}

impl Report {
    /// Whether nothing is wrong. Skipped cases are nothing wrong; no case at all is.
    pub fn is_good(&self) -> bool {
        let is_good = |it: &Outcome| matches!(it.status, Status::Pass | Status::Skip);
        !self.outcomes.is_empty() && self.outcomes.iter().all(is_good)
    }

    /// How many of which, in one line.
    pub fn summary(&self) -> String {
        let count = |status| self.outcomes.iter().filter(|it| it.status == status).count();
        let (passed, skipped) = (count(Status::Pass), count(Status::Skip));
        let failed = self.outcomes.len() - passed - skipped;
        format!("{passed} passed, {failed} failed, {skipped} skipped (seed {})", self.seed)
    }
}

/// What a case found: nothing to say, or a status with the reason.
pub(crate) type Found = Result<Option<String>, (Status, String)>;

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Kit) -> Found,
}

/// Says that the plugin does not do what it should.
pub(crate) fn fail<T>(reason: impl Into<String>) -> Result<T, (Status, String)> {
    Err((Status::Fail, reason.into()))
}

/// Says that a case means nothing here.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T, (Status, String)> {
    Err((Status::Skip, reason.into()))
}

/// Runs a case to its end.
pub(crate) fn run(case: &Case, kit: &Kit) -> Outcome {
    let start = Instant::now();
    let found = catch_unwind(AssertUnwindSafe(|| (case.run)(kit)));
    let found = found.unwrap_or_else(|_| fail("the case itself broke down"));
    let (status, reason) = match found {
        Ok(note) => (Status::Pass, note),
        Err((status, reason)) => (status, Some(reason)),
    };
    let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    Outcome { case: case.name, status, reason, about: case.about, milliseconds }
}
