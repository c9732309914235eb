//! `distant plugin add|remove|doctor`: the plugins of this user, and what ails them.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use distant_plugin_api::LaunchError;
use serde_json::json;

use super::{unknown, Output};
use crate::cli::arguments::Format;
use crate::cli::terminal::sanitise;
use crate::cli::{absolute, Context};
use crate::plugin::{Added, Allowed, Check, Examined, Registry, Removed, Verdict, Warning};

/// `distant plugin add`.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// The plugin's file: a library (.so) or a program
    path: PathBuf,
    /// Let it hide a plugin of the same name that the system has
    #[arg(long)]
    shadow: bool,
    /// Replace a plugin of the same name that was not added, or that serves more schemes
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `distant plugin remove`.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The plugin's name
    name: String,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `distant plugin doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The plugin's name; without it, every plugin
    name: Option<String>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Installs a plugin.
pub(super) async fn add(
    registry: &Registry,
    arguments: &Add,
    context: &Context,
) -> Result<(), LaunchError> {
    let allowed = Allowed { shadow: arguments.shadow, force: arguments.force };
    let added = registry.add(&absolute(arguments.path.clone())?, allowed).await?;
    for Warning { reason, mend } in &added.warnings {
        let mend = mend.as_ref().map(|it| format!("\n  mend: {it}")).unwrap_or_default();
        let text = format!("warning: somebody else may have written it: {reason}{mend}");
        context.terminal.say(&sanitise(&text));
    }
    match context.terminal.format() {
        Format::Json => context.terminal.json(&added),
        Format::Shell => context.terminal.bytes(installed(&added).as_bytes()),
    }
}

fn installed(added: &Added) -> String {
    let plugin = &added.plugin;
    let name = &plugin.name;
    let version = plugin.manifest.as_ref().map(|it| it.version.as_str()).unwrap_or_default();
    let version = if version.is_empty() { String::new() } else { format!(" {version}") };
    let done = match added {
        Added { unchanged: true, .. } => "already added",
        Added { replaced, .. } if replaced.is_empty() => "added",
        _ => "replaced",
    };
    let mut text = format!("{done} `{name}`{version}: {}\n", plugin.path.display());
    for scheme in &plugin.schemes {
        let served = &scheme.name;
        // Writing to a String cannot fail.
        let _ = match &scheme.used {
            Some(used) if used == name => {
                writeln!(text, "it serves {served}://, try: distant launch {served}://HOST")
            }
            used => writeln!(
                text,
                "{served}:// stays with `{}`; to change that: distant plugin use {served}={name}\n\
                 or for one launch: distant launch {served}://HOST --options backend={name}",
                used.as_deref().unwrap_or("another one"),
            ),
        };
    }
    sanitise(&text)
}

/// Takes a plugin out.
pub(super) async fn remove(
    registry: &Registry,
    arguments: &Remove,
    context: &Context,
) -> Result<(), LaunchError> {
    let removed = registry.remove(&arguments.name).await?;
    if context.terminal.format() == Format::Json {
        return context.terminal.json(&removed);
    }
    let Removed { name, files, schemes } = removed;
    let files: Vec<_> = files.iter().map(|it| it.display().to_string()).collect();
    let mut text = format!("removed `{name}`: {}\n", files.join(", "));
    for scheme in schemes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{scheme}:// goes back to the plugin that serves it by default");
    }
    context.terminal.bytes(sanitise(&text).as_bytes())
}

/// Examines plugins; tells whether all of them are well.
pub(super) async fn doctor(
    registry: &Registry,
    arguments: &Doctor,
    context: &Context,
) -> Result<bool, LaunchError> {
    let examined = registry.examine(arguments.name.as_deref()).await?;
    if let Some(name) = arguments.name.as_deref().filter(|_| examined.is_empty()) {
        return Err(unknown(&registry.list().await?, name));
    }
    let folders = registry.folders();
    let are_well = !examined.iter().any(Examined::is_ill);
    if context.terminal.format() == Format::Json {
        let folders: Vec<_> = folders
            .iter()
            .map(|it| json!({"path": it.path, "origin": it.origin, "exists": it.path.is_dir()}))
            .collect();
        let all = json!({"well": are_well, "folders": folders, "plugins": examined});
        context.terminal.json(&all)?;
        return Ok(are_well);
    }
    let mut text = String::new();
    if arguments.name.is_none() {
        text.push_str("folders\n");
        for folder in folders {
            let missing = if folder.path.is_dir() { "" } else { " (not there)" };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}{missing}", folder.path.display());
        }
    }
    for one in &examined {
        text.push_str(&shown(one));
    }
    context.terminal.bytes(sanitise(&text).as_bytes())?;
    Ok(are_well)
}

fn shown(examined: &Examined) -> String {
    let plugin = &examined.plugin;
    let state = super::state(&plugin.state);
    let mut text = format!("{} ({state}): {}\n", plugin.name, plugin.path.display());
    for Check { check, verdict, text: found, mend } in &examined.checks {
        let mark = match verdict {
            Verdict::Good => "good",
            Verdict::Note => "note",
            Verdict::Bad => "BAD ",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {mark}  {check}: {found}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "        mend: {mend}");
        }
    }
    if let Some(launch) = &examined.launch {
        let _ = writeln!(text, "  try   {launch}");
    }
    text
}
