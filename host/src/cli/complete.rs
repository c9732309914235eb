//! Completions: what may follow on a command line, told by the program itself.
//!
//! The scripts for the shells are short: they hand over the line and show what `distant complete`
//! answers. So they know the plugins of this very moment, with their schemes and options, and what
//! is typed may have `=`, `:` and `,` in it, whatever the shell thinks of those.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, Args, Command, CommandFactory, ValueEnum};
use distant_plugin_api::options::{OptionType, Options, Schema};
use distant_plugin_api::Manifest;

use super::arguments::{Arguments, NamedPlugins};
use super::{Context, Failure};
use crate::paths;
use crate::plugin::{options, Listed, Registry, State};

/// The scheme of a destination that names none.
const DEFAULT_SCHEME: &str = "ssh";
/// Files that are offered at once; nobody reads more.
const FILES_MAX: usize = 500;

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

/// A line as a shell would split it, the last word being what is just typed.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    words: Vec<String>,
    /// The last word is in a quote that is still open.
    is_quoted: bool,
}

impl Line {
    fn split(line: &str) -> Self {
        let (mut words, mut word) = (Vec::new(), String::new());
        let (mut quote, mut is_word) = (None, false);
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match (character, quote) {
                (c, Some(open)) if c == open => quote = None,
                ('\\', None | Some('"')) => word.extend(characters.next()),
                (c, Some(_)) => word.push(c),
                ('\'' | '"', None) => {
                    quote = Some(character);
                    is_word = true;
                }
                (c, None) if c.is_whitespace() => {
                    if is_word || !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                    is_word = false;
                }
                (c, None) => word.push(c),
            }
        }
        words.push(word);
        Self { words, is_quoted: quote.is_some() }
    }
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

/// Where on the command line the cursor is.
struct Place<'a> {
    command: &'a Command,
    /// The names of the commands on the way there.
    path: Vec<&'a str>,
    /// The flag whose value is typed.
    flag: Option<&'a Arg>,
    positionals: usize,
    /// Flags end before here.
    is_escaped: bool,
}

impl<'a> Place<'a> {
    fn find(command: &'a Command, words: &[String]) -> Self {
        let (path, flag) = (Vec::new(), None);
        let mut place = Self { command, path, flag, positionals: 0, is_escaped: false };
        for word in words {
            if place.flag.take().is_some() {
                continue;
            }
            if place.is_escaped {
                place.positionals += 1;
            } else if word == "--" {
                place.is_escaped = true;
            } else if let Some(name) = word.strip_prefix("--") {
                place.flag = place.long(name).filter(|_| !name.contains('='));
            } else if let Some(last) = word.strip_prefix('-').and_then(|it| it.chars().last()) {
                let mut all = place.command.get_arguments();
                place.flag = all.find(|it| it.get_short() == Some(last) && needs_value(it));
            } else {
                match place.command.find_subcommand(word).filter(|_| place.positionals == 0) {
                    Some(command) => {
                        place.path.push(command.get_name());
                        place.command = command;
                    }
                    None => place.positionals += 1,
                }
            }
        }
        place
    }

    /// The flag of this name, if it needs a value.
    fn long(&self, name: &str) -> Option<&'a Arg> {
        let mut all = self.command.get_arguments();
        all.find(|it| it.get_long() == Some(name) && needs_value(it))
    }

    fn is(&self, path: &[&str]) -> bool {
        self.path == path
    }
}

fn needs_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
        && argument.get_num_args().is_none_or(|count| count.min_values() > 0)
}

/// What is known of the plugins.
struct Known<'a> {
    registry: &'a Registry,
}

impl Known<'_> {
    /// What may stand in the place of `partial`, more than what begins like it.
    async fn candidates(&self, before: &[String], partial: &str) -> Vec<Candidate> {
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
            "name" if place.path.first() == Some(&"plugin") => self.names().await,
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

    async fn names(&self) -> Vec<Candidate> {
        let all = self.listed().await;
        let mut names: Vec<Candidate> = Vec::new();
        for plugin in all {
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

/// What `distant.upload` takes.
fn programs_to_upload(partial: &str) -> Vec<Candidate> {
    let words = [
        Candidate::new("never", "what is there has to do"),
        Candidate::new("auto", "this program, where none is found there"),
    ];
    words.into_iter().chain(files(partial)).collect()
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

/// Where the last option of a map begins.
fn last_segment(text: &str) -> usize {
    let (mut start, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => start = at + 1,
            _ => {}
        }
    }
    start
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_split_as_the_shell_does() {
        let check = |line: &str, words: &[&str], is_quoted: bool| {
            let words = words.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(Line::split(line), Line { words, is_quoted }, "{line}");
        };
        check("distant ", &["distant", ""], false);
        check("distant la", &["distant", "la"], false);
        check("d x --options a=b,c", &["d", "x", "--options", "a=b,c"], false);
        check("d 'a b' \"c", &["d", "a b", "c"], true);
        check("d a\\ b ''", &["d", "a b", ""], false);
    }

    #[test]
    fn the_last_option_of_a_map_is_found() {
        for (text, expected) in [
            ("", ""),
            ("a", "a"),
            ("a=b,c", "c"),
            ("a=\"x,y", "a=\"x,y"),
            ("a=\"x,\\\"\",b=", "b="),
        ] {
            assert_eq!(&text[last_segment(text)..], expected, "{text}");
        }
    }

    #[test]
    fn every_command_line_up_to_the_cursor_has_a_place() {
        let mut command = Arguments::command();
        command.build();
        let place = |line: &str| {
            let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            let place = Place::find(&command, &words);
            let flag = place.flag.map(|it| it.get_id().to_string());
            (place.path.join(" "), flag.unwrap_or_default(), place.positionals)
        };
        let of = |path: &str, flag: &str, count| (path.to_owned(), flag.to_owned(), count);
        assert_eq!(place(""), of("", "", 0));
        assert_eq!(place("launch ssh://x --options"), of("launch", "options", 1));
        assert_eq!(place("launch -f"), of("launch", "format", 0));
        assert_eq!(place("--log-level info plugin info"), of("plugin info", "", 0));
        assert_eq!(place("launch --format=json ssh://x"), of("launch", "", 1));
        assert_eq!(place("spawn -- launch"), of("spawn", "", 1));
    }
}
