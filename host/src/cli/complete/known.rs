//! What may follow, as the plugins of this very moment have it.

use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use distant_plugin_api::options::{OptionType, Options, Schema};
use distant_plugin_api::Manifest;

use super::line::{last_segment, Place};
use super::Candidate;
use crate::cli::arguments::Arguments;
use crate::cli::launch::DEFAULT_SCHEME;
use crate::paths;
use crate::plugin::{options, Listed, Origin, Registry, State};

/// Files that are offered at once; nobody reads more.
const FILES_MAX: usize = 500;

/// What is known of the plugins.
pub(super) struct Known<'a> {
    pub(super) registry: &'a Registry,
}

impl Known<'_> {
    /// What may stand in the place of `partial`, more than what begins like it.
    pub(super) async fn candidates(&self, before: &[String], partial: &str) -> Vec<Candidate> {
        let mut command = Arguments::command();
        command.build();
        let place = Place::find(&command, before);
        if let Some(flag) = place.flag {
            return self.values(&place, flag, before, partial).await;
        }
        let long = partial.strip_prefix("--").filter(|_| !place.is_escaped);
        if let Some((name, value)) = long.and_then(|it| it.split_once('=')) {
            let Some(flag) = place.long(name) else { return Vec::new() };
            let values = self.values(&place, flag, before, value).await;
            let prefix = format!("--{name}=");
            return values.into_iter().map(|it| it.after(&prefix)).collect();
        }
        if partial.starts_with('-') && !place.is_escaped {
            return flags(place.command);
        }
        let mut found = Vec::new();
        if place.positionals == 0 {
            let commands = place.command.get_subcommands().filter(|it| !it.is_hide_set());
            found.extend(commands.map(|it| Candidate::new(it.get_name(), about(it.get_about()))));
        }
        if let Some(argument) = place.command.get_positionals().nth(place.positionals) {
            found.extend(self.values(&place, argument, before, partial).await);
        }
        found
    }

    async fn values(
        &self,
        place: &Place<'_>,
        argument: &Arg,
        before: &[String],
        partial: &str,
    ) -> Vec<Candidate> {
        let possible = argument.get_possible_values();
        if !possible.is_empty() {
            let shown = possible.iter().filter(|it| !it.is_hide_set());
            return shown.map(|it| Candidate::new(it.get_name(), about(it.get_help()))).collect();
        }
        match argument.get_id().as_str() {
            "destination" if place.is(&["launch"]) => self.schemes("://").await,
            "launch" | "unreachable" if place.is(&["plugin", "test"]) => self.schemes("://").await,
            "help_options" => self.schemes("").await,
            "options" if place.is(&["launch"]) || place.is(&["plugin", "test"]) => {
                self.option_map(&scheme_among(before), partial).await
            }
            "name" if place.is(&["plugin", "new"]) => Vec::new(),
            "name" if place.is(&["plugin", "remove"]) => self.names(Some(Origin::User)).await,
            "name" if place.path.first() == Some(&"plugin") => self.names(None).await,
            "choice" => self.choices().await,
            "upload" if place.is(&["launch"]) => programs_to_upload(partial),
            _ if argument.get_value_parser().type_id() == std::any::TypeId::of::<PathBuf>() => {
                files(partial)
            }
            _ => Vec::new(),
        }
    }

    async fn listed(&self) -> Vec<Listed> {
        // Where `plugins.toml` is not valid there is nothing to offer; other commands say so.
        self.registry.list().await.unwrap_or_default()
    }

    async fn schemes(&self, end: &str) -> Vec<Candidate> {
        let all = self.listed().await;
        let served = all.iter().filter(|it| it.state == State::Used).flat_map(|plugin| {
            let about = plugin.manifest.as_ref().map_or("", |it: &Manifest| &it.description);
            let own = plugin.schemes.iter().filter(|it| it.used.as_ref() == Some(&plugin.name));
            own.map(move |it| Candidate::new(format!("{}{end}", it.name), about))
        });
        served.collect()
    }

    /// The names of all plugins, or of those that were found in one place.
    async fn names(&self, origin: Option<Origin>) -> Vec<Candidate> {
        let all = self.listed().await;
        let mut names: Vec<Candidate> = Vec::new();
        for plugin in all.into_iter().filter(|it| origin.is_none_or(|origin| it.origin == origin)) {
            if !names.iter().any(|it| it.value == plugin.name) {
                let about = plugin.manifest.map(|it| it.description).unwrap_or_default();
                names.push(Candidate::new(plugin.name, about));
            }
        }
        names
    }

    async fn choices(&self) -> Vec<Candidate> {
        let all = self.listed().await;
        let pairs = all.iter().flat_map(|plugin| {
            let pair = |scheme: &str| format!("{scheme}={}", plugin.name);
            plugin.schemes.iter().map(move |it| Candidate::new(pair(&it.name), ""))
        });
        pairs.collect()
    }

    /// What may follow in the text of `--options`, all before it included.
    async fn option_map(&self, scheme: &str, text: &str) -> Vec<Candidate> {
        let (given, segment) = text.split_at(last_segment(text));
        let options: Options = given.trim_end_matches(',').parse().unwrap_or_default();
        let backend = options::backend(&options, scheme).map(str::to_owned);
        let Ok(entry) = self.registry.resolve(scheme, backend.as_deref()).await else {
            return Vec::new();
        };
        let schema = options::schema(&entry);
        let blank = segment.len() - segment.trim_start().len();
        let (blank, segment) = segment.split_at(blank);
        let found = match segment.split_once('=') {
            Some((key, value)) => {
                let values = self.option_values(&schema, scheme, key.trim(), value).await;
                values.into_iter().map(|it| it.after(&format!("{key}="))).collect()
            }
            None => keys(&schema, scheme, segment, &options),
        };
        let prefix = format!("{given}{blank}");
        found.into_iter().map(|it| it.after(&prefix)).collect()
    }

    async fn option_values(
        &self,
        schema: &Schema,
        scheme: &str,
        key: &str,
        value: &str,
    ) -> Vec<Candidate> {
        let prefix = format!("{scheme}.");
        let bare = key.strip_prefix(&prefix).unwrap_or(key);
        let is_it = |name: &String| name == key || name == bare;
        let mut all = schema.0.iter();
        let Some(option) = all.find(|it| is_it(&it.name) || it.aliases.iter().any(is_it)) else {
            return Vec::new();
        };
        if option.name == "backend" {
            let all = self.listed().await;
            let serving = all.iter().filter(|it| it.schemes.iter().any(|it| it.name == scheme));
            return serving.map(|it| Candidate::new(it.name.clone(), "")).collect();
        }
        let words = |words: &[&str]| words.iter().map(|it| Candidate::new(*it, "")).collect();
        match &option.kind {
            OptionType::Bool => words(&["true", "false"]),
            OptionType::Enum(choices) => {
                choices.iter().map(|it| Candidate::new(it.clone(), "")).collect()
            }
            OptionType::Path | OptionType::PathList => {
                let (quote, inner) =
                    value.split_at(value.len() - value.trim_start_matches('"').len());
                let start = inner.rfind(',').map_or(0, |at| at + 1);
                let before = format!("{quote}{}", &inner[..start]);
                files(&inner[start..]).into_iter().map(|it| it.after(&before)).collect()
            }
            _ if option.name == "distant.bind_server" => words(&["ssh", "any"]),
            _ if option.name == "distant.upload" => programs_to_upload(value),
            _ if option.secret => Vec::new(),
            _ => {
                option.default.iter().map(|it| Candidate::new(it.clone(), "the default")).collect()
            }
        }
    }
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn flags(command: &Command) -> Vec<Candidate> {
    let shown = command.get_arguments().filter(|it| !it.is_hide_set() && !it.is_positional());
    let flags = shown.filter_map(|it| {
        Some(Candidate::new(format!("--{}", it.get_long()?), about(it.get_help())))
    });
    flags.collect()
}

/// The scheme of the destination that is on the line already.
fn scheme_among(words: &[String]) -> String {
    let scheme = words.iter().find_map(|word| Some(word.split_once("://")?.0.to_lowercase()));
    scheme.unwrap_or_else(|| DEFAULT_SCHEME.to_owned())
}

/// The keys that are not given yet, with the scheme before them where that was typed.
fn keys(schema: &Schema, scheme: &str, segment: &str, given: &Options) -> Vec<Candidate> {
    let prefix = format!("{scheme}.");
    let is_prefixed = segment.starts_with(&prefix);
    let is_left =
        |name: &str| given.get(name).is_none() && given.get(&format!("{prefix}{name}")).is_none();
    let left = schema.0.iter().filter(|it| is_left(&it.name));
    // `timeout` alone never has the scheme before it.
    let left = left.filter(|it| !(is_prefixed && it.name == "timeout"));
    let key =
        |name: &str| if is_prefixed { format!("{prefix}{name}=") } else { format!("{name}=") };
    left.map(|it| Candidate::new(key(&it.name), it.help.clone())).collect()
}

/// What `distant.upload` takes.
fn programs_to_upload(partial: &str) -> Vec<Candidate> {
    let words = [
        Candidate::new("never", "what is there has to do"),
        Candidate::new("auto", "this program, where none is found there"),
    ];
    words.into_iter().chain(files(partial)).collect()
}

/// The files that begin like this; folders end with `/`.
fn files(partial: &str) -> Vec<Candidate> {
    let (folder, start) = partial.split_at(partial.rfind('/').map_or(0, |at| at + 1));
    let place =
        if folder.is_empty() { PathBuf::from(".") } else { paths::expand(Path::new(folder)) };
    let Ok(entries) = place.read_dir() else { return Vec::new() };
    let named = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Hidden files are for those who ask for them.
        let is_shown =
            name.starts_with(start) && (start.starts_with('.') || !name.starts_with('.'));
        let end = if entry.path().is_dir() { "/" } else { "" };
        is_shown.then(|| Candidate::new(format!("{folder}{name}{end}"), ""))
    });
    let mut found: Vec<_> = named.take(FILES_MAX).collect();
    found.sort_by(|a, b| a.value.cmp(&b.value));
    found
}
