//! Completions: what may follow on a command line, told by the program itself.
//!
//! The scripts for the shells are short: they hand over the line and show what `distant complete`
//! answers. So they know the plugins of this very moment, with their schemes and options, and what
//! is typed may have `=`, `:` and `,` in it, whatever the shell thinks of those.

mod known;
mod line;

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::known::Known;
use self::line::Line;
use super::arguments::NamedPlugins;
use super::{Context, Failure};
use crate::plugin::Registry;

/// `distant completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// `distant complete`, which the scripts call.
#[derive(Debug, Args)]
pub(crate) struct Complete {
    #[arg(value_enum)]
    shell: Shell,
    /// In bash the line up to the cursor and the characters that end a word; else the words
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script for a shell.
pub(crate) fn script(arguments: &Completions, context: &Context) -> Result<ExitCode, Failure> {
    let script = match arguments.shell {
        Shell::Bash => include_str!("complete/distant.bash"),
        Shell::Zsh => include_str!("complete/distant.zsh"),
        Shell::Fish => include_str!("complete/distant.fish"),
    };
    context.terminal.bytes(script.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what may follow, one candidate a line; `zsh` and `fish` get a description behind a tab.
pub(crate) fn run(arguments: Complete, context: &Context) -> Result<ExitCode, Failure> {
    let Complete { shell, words } = arguments;
    let (words, breaks) = match shell {
        Shell::Bash => {
            let mut given = words.into_iter();
            let line = Line::split(&given.next().unwrap_or_default());
            // In quotes nothing ends a word.
            let breaks = given.next().filter(|_| !line.is_quoted).unwrap_or_default();
            (line.words, breaks)
        }
        Shell::Zsh | Shell::Fish => (words, String::new()),
    };
    let Some((partial, before)) = words.split_last() else { return Ok(ExitCode::SUCCESS) };
    // The program's own name comes first.
    let before = before.get(1..).unwrap_or_default();
    let registry = Registry::new(context.plugins(&NamedPlugins { named: Vec::new() })?);
    let found = context.run(async {
        let known = Known { registry: &registry };
        let found = known.candidates(before, partial).await;
        registry.workers_gone().await;
        Ok(found)
    })?;
    let is_start = |it: &Candidate| it.value.starts_with(partial.as_str());
    let cut = match partial.rfind(|c| breaks.contains(c)) {
        Some(at) => at + partial[at..].chars().next().map_or(0, char::len_utf8),
        None => 0,
    };
    let mut text = String::new();
    for Candidate { value, about } in found.iter().filter(|it| is_start(it)) {
        if value.chars().chain(about.chars()).any(char::is_control) {
            continue;
        }
        match shell {
            Shell::Bash => text.push_str(&escaped(&value[cut..])),
            Shell::Zsh | Shell::Fish if about.is_empty() => text.push_str(value),
            Shell::Zsh | Shell::Fish => text.push_str(&format!("{value}\t{about}")),
        }
        text.push('\n');
    }
    context.terminal.bytes(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A text that bash takes for one word.
fn escaped(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=,~+@%".contains(c);
    let escape = |c: char| if is_plain(c) { vec![c] } else { vec!['\\', c] };
    text.chars().flat_map(escape).collect()
}

/// Something that may follow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    value: String,
    about: String,
}

impl Candidate {
    fn new(value: impl Into<String>, about: impl Into<String>) -> Self {
        Self { value: value.into(), about: about.into() }
    }

    fn after(self, prefix: &str) -> Self {
        Self { value: format!("{prefix}{}", self.value), ..self }
    }
}
