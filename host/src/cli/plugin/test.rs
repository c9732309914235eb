//! `distant plugin test`: everything that is wrong with a plugin, before a user meets it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use distant_plugin_api::destination::Destination;
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{ErrorKind, LaunchError};
use distant_plugin_test::{Kit, Launch};

use super::Output;
use crate::cli::arguments::{parse_secret, Format};
use crate::cli::terminal::sanitise;
use crate::cli::{absolute, Context, Failure};
use crate::paths;

/// `distant plugin test`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Test {
    /// The plugin's file: a library (.so) or a program
    #[arg(required_unless_present = "list")]
    path: Option<PathBuf>,
    /// A destination that it launches to, many times; without it, it is only loaded
    #[arg(long, value_name = "DESTINATION", value_parser = parse_secret)]
    launch: Option<Secret>,
    /// Options of these launches, as those of `distant launch`
    #[arg(long, default_value = "", hide_default_value = true, value_parser = parse_secret)]
    options: Secret,
    /// What to answer to a question that has this in its text. May be repeated; yes-or-no questions
    /// are answered by yes
    #[arg(long = "answer", value_name = "QUESTION=ANSWER", value_parser = parse_secret)]
    answers: Vec<Secret>,
    /// The distant program that they start there
    #[arg(long, value_name = "BIN")]
    distant: Option<String>,
    /// A destination where nothing answers
    #[arg(long, value_name = "DESTINATION", value_parser = parse_secret)]
    unreachable: Option<Secret>,
    /// Run only the cases whose names have this in them. May be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// The nonsense that is tried: the same for the same number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long one launch may take, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Load the plugin in this process, for a debugger; takes one case, by `--only`
    #[arg(long, requires = "only")]
    in_process: bool,
    /// List the cases with what each shows
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

const HELP: &str = "\
Each case runs the plugin in a process of its own and plays the manager. Exit code 0: nothing is wrong.

Examples:
  distant plugin test ./libdistant_plugin_hello.so
  distant plugin test ./distant-plugin-hello --launch hello://here --distant /usr/bin/distant
  distant plugin test ./libdistant_plugin_x.so --launch x://me@box --answer password=hunter2";

/// Runs the cases; tells whether nothing is wrong.
pub(super) fn run(arguments: &Test, context: &Context) -> Result<bool, Failure> {
    let terminal = &context.terminal;
    let is_json = terminal.format() == Format::Json;
    let Some(path) = &arguments.path else {
        let cases: Vec<_> = Kit::cases().collect();
        if is_json {
            let named = |(case, about): &(_, _)| serde_json::json!({"case": case, "about": about});
            terminal.json(&cases.iter().map(named).collect::<Vec<_>>())?;
        } else {
            let lines = cases.iter().map(|(case, about)| format!("{case:26} {about}\n"));
            terminal.bytes(lines.collect::<String>().as_bytes())?;
        }
        return Ok(true);
    };
    let path = absolute(path.clone())?;
    if !path.is_file() {
        let message = format!("there is no plugin `{}`", path.display());
        return Err(LaunchError::new(ErrorKind::InvalidOption, message).into());
    }
    let mut kit = Kit::new(path)
        .seed(arguments.seed)
        .timeout(Duration::from_secs(arguments.timeout))
        .in_process(arguments.in_process);
    if let Some(destination) = &arguments.launch {
        kit = kit.launch(launch(arguments, destination)?);
    }
    if let Some(destination) = &arguments.unreachable {
        kit = kit.unreachable(destination.expose());
    }
    kit = arguments.only.iter().fold(kit, Kit::only);
    let report = kit.run(|outcome| {
        if !is_json {
            // A failure to print shows up when the summary is printed.
            let _ = terminal.line(&sanitise(&outcome.to_string()));
        }
    });
    if report.outcomes.is_empty() {
        let error = Failure::usage("no case has that in its name");
        return Err(error.with_hint("`distant plugin test --list` shows their names"));
    }
    if is_json {
        terminal.json(&serde_json::json!({
            "plugin": report.plugin,
            "seed": report.seed,
            "good": report.is_good(),
            "cases": report.outcomes,
        }))?;
    } else {
        terminal.line(&format!("\n{}", report.summary()))?;
    }
    Ok(report.is_good())
}

/// The launch that the cases vary.
fn launch(arguments: &Test, destination: &Secret) -> Result<Launch, Failure> {
    let options: Options = arguments.options.expose().parse().map_err(|error| {
        Failure::usage("`--options` is no list of options")
            .because(&error as &distant_plugin_api::options::OptionsError)
    })?;
    let mut launch = Launch::to(destination.expose()).options(options);
    for pair in &arguments.answers {
        let Some((question, answer)) = pair.expose().split_once('=') else {
            return Err(Failure::usage(
                "`--answer` has to be a part of a question, `=` and an answer",
            ));
        };
        launch = launch.answer(question, answer);
    }
    // As a manager does: a server on this very machine is this very program.
    let is_local = destination
        .expose()
        .parse::<Destination>()
        .is_ok_and(|destination| destination.has_scheme("manager"));
    let own = || paths::executable().ok().filter(|_| is_local).map(|it| it.display().to_string());
    Ok(match arguments.distant.clone().or_else(own) {
        Some(program) => launch.server(program),
        None => launch,
    })
}
