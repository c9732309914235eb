//! How the launch of a case is to go, and what was seen of it.

use distant_plugin_api::message::{LogLevel, Offer};
use distant_plugin_api::{LaunchError, Manifest};

/// How questions are answered.
#[derive(Debug, Clone, Default)]
pub(crate) enum Answers {
    /// As the author says.
    #[default]
    Given,
    /// Nobody is there.
    Nobody,
    /// Yes-or-no questions by no, others as the author says.
    No,
    /// Every question by this text.
    Text(String),
}

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Decide {
    #[default]
    Connected,
    /// First `slow`, then `connected`.
    Slow,
    Unreachable,
    Refused,
}

/// How a launch is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By `cancel`.
    Cancel,
    /// By the end of the plugin's input, as when the manager is killed.
    HangUp,
}

/// Which version of a host the plugin meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Host {
    #[default]
    Usual,
    /// One that has only what the first version had.
    Older,
    /// One that has more than this build knows.
    Newer,
    /// One that speaks a protocol which the plugin does not.
    Foreign,
}

impl Host {
    /// The worker's `--host-table`.
    pub(crate) fn table(self) -> Option<&'static str> {
        match self {
            Self::Older => Some("older"),
            Self::Newer => Some("newer"),
            Self::Usual | Self::Foreign => None,
        }
    }
}

/// How a launch goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) answers: Answers,
    pub(crate) decide: Decide,
    /// At which message of the plugin the launch is given up; 0 is before the first.
    pub(crate) stop: Option<(usize, Stop)>,
    /// Lines that mean nothing, before each that does, picked by this number.
    pub(crate) noise: Option<u64>,
    /// Options that are added without being checked.
    pub(crate) unchecked: Vec<(String, String)>,
    /// Where it leads, in place of the author's destination.
    pub(crate) destination: Option<String>,
    pub(crate) host: Host,
}

/// How a launch ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    Error(LaunchError),
    /// Its process ended without a result; the signal or status in words, and whether it was one
    /// that a plugin that is told to go may have.
    Nothing(String, bool),
    /// It had to be killed; what it should have done.
    Timeout(String),
    /// It said something that is no message, or that makes no sense.
    Protocol(String),
    /// The launch could not even be asked for.
    Unusable(String),
}

/// What was seen of one launch.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) manifest: Option<Manifest>,
    /// The protocol that the host said it speaks.
    pub(crate) protocol: u32,
    /// Every message as it came, hello and offers left out.
    pub(crate) said: Vec<String>,
    pub(crate) log_levels: Vec<LogLevel>,
    /// Messages up to the result, the log left out.
    pub(crate) callbacks: usize,
    pub(crate) questions: usize,
    pub(crate) verifications: usize,
    /// Those of them that were about a host key.
    pub(crate) host_keys: usize,
    /// What it asked although it had heard that the host key is not the right one.
    pub(crate) asked_on: Option<String>,
    pub(crate) unanswered: Option<String>,
    pub(crate) offers: Vec<Offer>,
    pub(crate) ending: Ending,
    /// It stayed in the launch until it was cancelled.
    pub(crate) stayed: bool,
    /// Whether its server could be reached when it was offered, and after the launch.
    pub(crate) reached: Option<String>,
    pub(crate) lived: bool,
    /// What it went on saying after its result.
    pub(crate) afterwards: Option<String>,
    /// What it left running on this machine.
    pub(crate) left: Vec<String>,
    pub(crate) stderr: String,
}
