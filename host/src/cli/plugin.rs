//! `distant plugin …`: which plugins there are, what they can, and which one serves a scheme.
//!
//! It looks at the files itself and needs no manager, so it also explains why none can start. What it
//! says is true of a manager with the same configuration and the same `--plugin` flags.

mod manage;
mod new;
mod test;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::options::{OptionSchema, Options, Schema};
use distant_plugin_api::{LaunchError, Manifest};
use serde_json::json;

use super::arguments::{Format, NamedPlugins};
use super::terminal::sanitise;
use super::{Context, Failure};
use crate::plugin::{nearest, options, Listed, Registry, State};

/// `distant plugin`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    plugins: NamedPlugins,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List every plugin there is, those that cannot be used too
    List(Output),
    /// Show what a plugin can: its schemes and its options
    Info(Info),
    /// Choose the plugin that serves a scheme, from the next launch on
    Use(Use),
    /// Check a plugin and install it for this user; it works at once
    Add(manage::Add),
    /// Remove a plugin that was added
    Remove(manage::Remove),
    /// Say why a plugin is not used, and what mends that
    Doctor(manage::Doctor),
    /// Try out everything that a host and its users could do to a plugin: for its author
    Test(test::Test),
    /// Write a project for a plugin, which builds, passes its tests and launches
    New(new::New),
}

#[derive(Debug, Clone, Copy, Args)]
struct Output {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Info {
    /// The plugin's name
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Use {
    /// The scheme, and the name of the plugin that is to serve it
    #[arg(value_name = "SCHEME=NAME", value_parser = choice)]
    choice: (String, String),
    #[command(flatten)]
    output: Output,
}

fn choice(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((scheme, name)) if !scheme.is_empty() && !name.is_empty() => {
            Ok((scheme.to_lowercase(), name.to_owned()))
        }
        _ => Err("it has to be a scheme, `=` and the name of a plugin, such as ssh=libssh".into()),
    }
}

impl Arguments {
    /// The format in which results and errors are written.
    pub(crate) fn format(&self) -> Format {
        let output = match &self.command {
            Command::List(output) => output,
            Command::Info(it) => &it.output,
            Command::Use(it) => &it.output,
            Command::Add(it) => &it.output,
            Command::Remove(it) => &it.output,
            Command::Doctor(it) => &it.output,
            Command::Test(it) => &it.output,
            Command::New(it) => &it.output,
        };
        if output.json {
            Format::Json
        } else {
            Format::Shell
        }
    }
}

/// Runs the command.
///
/// # Errors
///
/// `plugins.toml` is not valid or cannot be written, or there is no such plugin, or it is none that
/// can be used.
pub(crate) fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Failure> {
    if let Command::Test(it) = &arguments.command {
        let is_good = test::run(it, context)?;
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if let Command::New(it) = &arguments.command {
        return new::run(it, context).map(|()| ExitCode::SUCCESS);
    }
    let registry = Registry::new(context.plugins(&arguments.plugins)?);
    let is_well = context.run(async {
        let result = match &arguments.command {
            Command::List(_) => list(&registry, context).await.map(|()| true),
            Command::Info(it) => info(&registry, &it.name, context).await.map(|()| true),
            Command::Use(it) => choose(&registry, &it.choice, context).await.map(|()| true),
            Command::Add(it) => manage::add(&registry, it, context).await.map(|()| true),
            Command::Remove(it) => manage::remove(&registry, it, context).await.map(|()| true),
            Command::Doctor(it) => manage::doctor(&registry, it, context).await,
            // They have been run above, as they need no registry.
            Command::Test(_) | Command::New(_) => Ok(true),
        };
        // A worker that was asked something may still be ending.
        registry.workers_gone().await;
        result.map_err(Failure::from)
    })?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn list(registry: &Registry, context: &Context) -> Result<(), LaunchError> {
    let mut all = registry.list().await?;
    let terminal = &context.terminal;
    if terminal.format() == Format::Json {
        return terminal.json(&all);
    }
    if all.is_empty() {
        let folders = registry.folders().iter().map(|it| format!("\n  {}", it.path.display()));
        let folders = sanitise(&folders.collect::<String>());
        terminal.say(&format!("there is no plugin in any of these folders:{folders}"));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    terminal.bytes(table(&all).as_bytes())
}

async fn info(registry: &Registry, name: &str, context: &Context) -> Result<(), LaunchError> {
    let mut all = registry.list().await?;
    // The best of a name comes first.
    let Some(place) = all.iter().position(|it| it.name.eq_ignore_ascii_case(name)) else {
        return Err(unknown(&all, name));
    };
    let mut plugin = all.swap_remove(place);
    if let Some(manifest) = &mut plugin.manifest {
        manifest.options = options::with_host_owned(manifest);
    }
    if context.terminal.format() == Format::Json {
        return context.terminal.json(&plugin);
    }
    context.terminal.bytes(description(&plugin).as_bytes())
}

async fn choose(
    registry: &Registry,
    (scheme, name): &(String, String),
    context: &Context,
) -> Result<(), LaunchError> {
    let entry = registry.choose(scheme, name).await?;
    let config = registry.config().display();
    if context.terminal.format() == Format::Json {
        let (plugin, config) = (&entry.name, config.to_string());
        return context
            .terminal
            .json(&json!({ "scheme": scheme, "plugin": plugin, "config": config }));
    }
    let name = &entry.name;
    let line = format!("`{name}` serves `{scheme}` from the next launch on, as `{config}` says");
    context.terminal.line(&sanitise(&line))
}

/// `distant launch --help-options SCHEME`: what `--options` takes for a scheme.
///
/// # Errors
///
/// Nobody serves the scheme, or not the `backend` among the options.
pub(crate) fn help_options(
    scheme: &str,
    given: &Options,
    context: &Context,
) -> Result<ExitCode, Failure> {
    let scheme = scheme.to_lowercase();
    let scheme = scheme.trim_end_matches("://");
    let registry = Registry::new(context.plugins(&NamedPlugins { named: Vec::new() })?);
    context.run(async {
        let entry = registry.resolve(scheme, options::backend(given, scheme)).await;
        registry.workers_gone().await;
        let entry = entry?;
        let schema = options::schema(&entry);
        let terminal = &context.terminal;
        if terminal.format() == Format::Json {
            let shown = json!({"scheme": scheme, "plugin": entry.name, "options": schema});
            return Ok(terminal.json(&shown)?);
        }
        let table = option_table(&schema);
        let columns = table.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        let shown = match terminal.has_room_for(columns) {
            true => table,
            false => schema.0.iter().map(described).collect(),
        };
        Ok(terminal.bytes(shown.as_bytes())?)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each option: its name, what it may be, its default, what it means.
fn option_table(schema: &Schema) -> String {
    let mut rows = vec![["OPTION", "TYPE", "DEFAULT", "MEANING"].map(str::to_owned)];
    rows.extend(schema.0.iter().map(|option| {
        let default = match &option.default {
            Some(_) if option.secret => "(secret)",
            Some(default) => default,
            None => "-",
        };
        [&option.name, &option.kind.to_string(), default, &option.help].map(sanitise)
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [first, second, third] = [0, 1, 2].map(|column| width(column).unwrap_or(0));
    let line = |[name, kind, default, help]: &[String; 4]| {
        format!("{name:first$}  {kind:second$}  {default:third$}  {help}\n")
    };
    rows.iter().map(line).collect()
}

fn unknown(all: &[Listed], name: &str) -> LaunchError {
    let nearest = nearest(name, all.iter().map(|it| it.name.as_str()));
    let question = nearest.map(|it| format!("; did you mean `{it}`?")).unwrap_or_default();
    let message = format!("there is no plugin `{name}`{question}");
    let error = LaunchError::new(ErrorKind::InvalidOption, message);
    error.with_hint("`distant plugin list` shows those there are")
}

/// A line for each plugin, and below it what is wrong with it.
fn table(all: &[Listed]) -> String {
    let mut rows = vec![["NAME", "SCHEMES", "STATE", "PATH"].map(str::to_owned)];
    rows.extend(all.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths = [0, 1, 2].map(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for (index, [name, schemes, state, path]) in rows.iter().enumerate() {
        let [first, second, third] = widths;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:first$}  {schemes:second$}  {state:third$}  {path}");
        let plugin = index.checked_sub(1).map(|index| &all[index]);
        if let Some(State::Broken { reason, mend } | State::Changed { reason, mend }) =
            plugin.map(|it| &it.state)
        {
            text.push_str(&broken(reason, mend.as_deref()));
        }
    }
    text
}

fn row(plugin: &Listed) -> [String; 4] {
    let schemes: Vec<_> = plugin.schemes.iter().map(|it| it.name.as_str()).collect();
    let schemes = if schemes.is_empty() { "-".to_owned() } else { schemes.join(",") };
    let path = sanitise(&plugin.path.display().to_string());
    [plugin.name.clone(), schemes, state(&plugin.state), path]
}

fn state(state: &State) -> String {
    match state {
        State::Used => "used".to_owned(),
        State::Shadowed { by, .. } => sanitise(&format!("shadowed by {by}")),
        State::Disabled => "disabled".to_owned(),
        State::Changed { .. } => "changed".to_owned(),
        State::Broken { .. } => "broken".to_owned(),
    }
}

fn broken(reason: &str, mend: Option<&str>) -> String {
    let mend = mend.map(|it| format!("  mend: {}\n", sanitise(it))).unwrap_or_default();
    format!("  reason: {}\n{mend}", sanitise(reason))
}

/// Everything about one plugin.
fn description(plugin: &Listed) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:12} {}", sanitise(value));
        }
    };
    fact("name", &plugin.name);
    let manifest = plugin.manifest.as_ref();
    fact("version", manifest.map_or("", |it| &it.version));
    fact("description", manifest.map_or("", |it| &it.description));
    fact("path", &plugin.path.display().to_string());
    fact("state", &state(&plugin.state));
    let schemes = plugin.schemes.iter().map(|it| match &it.used {
        Some(used) if *used == plugin.name => it.name.clone(),
        Some(used) => format!("{} (served by {used} unless backend={})", it.name, plugin.name),
        None => format!("{} (only with backend={})", it.name, plugin.name),
    });
    fact("schemes", &schemes.collect::<Vec<_>>().join(", "));
    match &plugin.state {
        State::Broken { reason, mend } | State::Changed { reason, mend } => {
            text.push_str(&broken(reason, mend.as_deref()));
        }
        State::Shadowed { mend, .. } => fact("to use it", mend),
        State::Used | State::Disabled => {}
    }
    if let Some(Manifest { options, .. }) = manifest {
        text.push_str("options\n");
        for option in &options.0 {
            text.push_str(&described(option));
        }
    }
    text
}

fn described(option: &OptionSchema) -> String {
    let default = match &option.default {
        Some(_) if option.secret => "; has a default".to_owned(),
        Some(default) => format!("; default {default}"),
        None => String::new(),
    };
    let aliases: String = option.aliases.iter().map(|it| format!("; also {it}")).collect();
    let line = format!("  {}: {}{default}{aliases}", option.name, option.kind);
    let help = Some(&option.help).filter(|it| !it.is_empty());
    let help = help.map(|it| format!("      {}\n", sanitise(it))).unwrap_or_default();
    format!("{}\n{help}", sanitise(&line))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn listed(json: serde_json::Value) -> Listed {
        let state = match json["state"].as_str() {
            Some("shadowed") => {
                State::Shadowed { by: "ssh2".into(), mend: "distant plugin use x=y".into() }
            }
            Some("broken") => {
                State::Broken { reason: "it is empty".into(), mend: Some("copy it again".into()) }
            }
            _ => State::Used,
        };
        let manifest: Option<Manifest> = serde_json::from_value(json["manifest"].clone()).unwrap();
        let served = |name: &String| crate::plugin::ServedScheme {
            name: name.clone(),
            used: Some(if state == State::Used { "x".into() } else { "ssh2".into() }),
        };
        Listed {
            name: json["name"].as_str().unwrap().into(),
            path: "/p/x".into(),
            kind: crate::plugin::Kind::Library,
            origin: crate::plugin::Origin::User,
            schemes: manifest.iter().flat_map(|it| &it.schemes).map(served).collect(),
            state,
            manifest,
        }
    }

    #[test]
    fn the_table_says_what_became_of_each_plugin_and_why() {
        let all = [
            listed(json!({"name": "x", "manifest": {"name": "x", "schemes": ["a", "b"]}})),
            listed(json!({"name": "libssh", "state": "shadowed",
                          "manifest": {"name": "libssh", "schemes": ["ssh"]}})),
            listed(json!({"name": "half", "state": "broken"})),
        ];
        assert_eq!(
            table(&all),
            "NAME    SCHEMES  STATE             PATH\n\
             x       a,b      used              /p/x\n\
             libssh  ssh      shadowed by ssh2  /p/x\n\
             half    -        broken            /p/x\n  \
             reason: it is empty\n  \
             mend: copy it again\n"
        );
    }

    #[test]
    fn a_plugin_is_described_with_its_options() {
        let plugin = listed(json!({"name": "y", "state": "shadowed", "manifest": {
        "name": "y", "version": "1.2", "schemes": ["ssh"], "options": [
            {"name": "verbose", "type": "bool", "default": "false", "help": "Tells all"},
            {"name": "token", "type": "string", "default": "hunter2", "secret": true,
             "aliases": ["key"]},
        ]}}));
        assert_eq!(
            description(&plugin),
            "name         y\n\
             version      1.2\n\
             path         /p/x\n\
             state        shadowed by ssh2\n\
             schemes      ssh (served by ssh2 unless backend=y)\n\
             to use it    distant plugin use x=y\n\
             options\n  \
             verbose: `true` or `false`; default false\n      \
             Tells all\n  \
             token: text; has a default; also key\n"
        );
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn a_choice_is_a_scheme_and_a_name() {
        let parse = |text: &str| Line::try_parse_from(["plugin", "use", text]);
        let Command::Use(it) =
            parse("SSH=libssh").unwrap_or_else(|e| panic!("{e}")).arguments.command
        else {
            panic!()
        };
        assert_eq!(it.choice, ("ssh".to_owned(), "libssh".to_owned()));
        for wrong in ["ssh", "ssh=", "=x", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_that_is_not_there_is_told_with_the_nearest() {
        let all = [listed(json!({"name": "libssh"}))];
        assert_eq!(
            unknown(&all, "libsh").message,
            "there is no plugin `libsh`; did you mean `libssh`?"
        );
        assert_eq!(unknown(&all, "docker").message, "there is no plugin `docker`");
    }
}
