//! What is measured, one file for each part.

pub(crate) mod channel;
pub(crate) mod crowd;
pub(crate) mod idle;
pub(crate) mod launch;
pub(crate) mod local;
pub(crate) mod program;
pub(crate) mod verdict;

use serde::Deserialize;

/// The line in which a launch of ours says where its time went.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Timings {
    pub(crate) steps: Vec<Step>,
    /// All of it, by the clock of the command.
    pub(crate) total_ms: f64,
}

/// One step of it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: String,
    pub(crate) took_ms: f64,
}

impl Timings {
    /// Finds it in what a launch said.
    pub(crate) fn find(stdout: &str) -> Option<Self> {
        stdout
            .lines()
            .find(|line| line.contains("\"timings\""))
            .and_then(|line| serde_json::from_str(line).ok())
    }

    /// Milliseconds of a step.
    pub(crate) fn took(&self, name: &str) -> Option<f64> {
        self.steps.iter().find(|step| step.step == name).map(|step| step.took_ms)
    }
}
