//! To be written.

use std::process::ExitCode;

use super::{Context, Failure};

/// What may follow.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

/// Runs it.
pub(crate) fn run(_arguments: Arguments, _context: &Context) -> Result<ExitCode, Failure> {
    todo!()
}
