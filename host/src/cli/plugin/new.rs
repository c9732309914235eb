//! `distant plugin new`: a project for a plugin, which builds, passes its tests and launches.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use distant_plugin_api::{ErrorKind, LaunchError};
use serde_json::json;

use super::Output;
use crate::cli::arguments::Format;
use crate::cli::terminal::sanitise;
use crate::cli::{absolute, Context, Failure};
use crate::paths;

/// Most bytes of a name: it is a scheme and a part of file names.
const NAME_MAX: usize = 40;
/// The crates that a plugin in Rust needs, by their folders in a clone of distant.
const CRATES: [&str; 2] = ["plugin-api", "plugin-test"];

/// `distant plugin new`.
#[derive(Debug, Args)]
pub(super) struct New {
    /// The plugin's name, which is its scheme too: lower-case letters, digits and `-`
    #[arg(value_parser = parse_name)]
    name: String,
    /// What it is written in
    #[arg(long, value_enum)]
    lang: Language,
    /// The folder to make [default: distant-plugin-NAME]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A clone of distant, for the crates that a plugin in Rust needs [default: the one that this
    /// program was built in]
    #[arg(long, value_name = "CLONE")]
    api: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What a plugin can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    /// A library that runs a command there
    Rust,
    /// A library that does all of a launch by itself
    C,
    /// A program that says which command runs another one there
    Python,
    /// The same as a shell script
    Sh,
}

fn parse_name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.len() <= NAME_MAX
        && text.bytes().all(is_allowed);
    if is_name {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "it has to begin with a lower-case letter, and to have only such, digits and `-`, \
                     {NAME_MAX} at most"
        ))
    }
}

/// A file of a project: where it goes, what is in it, whether it is a program.
type File = (&'static str, &'static str, bool);

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../templates/", $path))
    };
}

const RUST: &[File] = &[
    ("Cargo.toml", template!("rust/Cargo.toml.in"), false),
    ("src/lib.rs", template!("rust/lib.rs.in"), false),
    ("tests/conformance.rs", template!("rust/conformance.rs.in"), false),
    ("README.md", template!("rust/README.md.in"), false),
    (".gitignore", template!("rust/gitignore.in"), false),
];
const C: &[File] = &[
    ("plugin.c", template!("c/plugin.c.in"), false),
    ("host.c", template!("c/host.c.in"), false),
    ("Makefile", template!("c/Makefile.in"), false),
    ("README.md", template!("c/README.md.in"), false),
    (".gitignore", template!("c/gitignore.in"), false),
    ("distant_plugin.h", include_str!("../../../../plugin-api/include/distant_plugin.h"), false),
];
const PYTHON: &[File] = &[
    ("distant-plugin-@NAME@", template!("python/plugin.in"), true),
    ("Makefile", template!("python/Makefile.in"), false),
    ("README.md", template!("python/README.md.in"), false),
];
const SH: &[File] = &[
    ("distant-plugin-@NAME@", template!("sh/plugin.in"), true),
    ("Makefile", template!("sh/Makefile.in"), false),
    ("README.md", template!("sh/README.md.in"), false),
];

impl Language {
    fn files(self) -> &'static [File] {
        match self {
            Self::Rust => RUST,
            Self::C => C,
            Self::Python => PYTHON,
            Self::Sh => SH,
        }
    }

    /// What to do next, in the project's folder.
    fn steps(self, name: &str) -> [String; 3] {
        let (test, file) = match self {
            Self::Rust => {
                let library = format!("target/release/libdistant_plugin_{}.so", underlined(name));
                ("cargo test && cargo build --release", library)
            }
            Self::C => {
                ("make && make test", format!("./libdistant_plugin_{}.so", underlined(name)))
            }
            Self::Python | Self::Sh => ("make test", format!("./distant-plugin-{name}")),
        };
        let add = format!("distant plugin add {file}");
        [test.to_owned(), add, format!("distant launch {name}://here")]
    }
}

fn underlined(name: &str) -> String {
    name.replace('-', "_")
}

/// Writes the project.
pub(super) fn run(arguments: &New, context: &Context) -> Result<(), Failure> {
    let New { name, lang, .. } = arguments;
    let folder = arguments.dir.clone().unwrap_or_else(|| format!("distant-plugin-{name}").into());
    let folder = absolute(folder)?;
    let api = match lang {
        Language::Rust => clone_of_distant(arguments.api.as_deref())?.display().to_string(),
        _ => String::new(),
    };
    if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("there is something in `{}` already", folder.display());
        let error = LaunchError::new(ErrorKind::InvalidOption, message);
        return Err(error.with_hint("name another folder with `--dir`").into());
    }
    let filled = |text: &str| {
        let text = text.replace("@NAME@", name).replace("@NAME_@", &underlined(name));
        text.replace("@API@", &api)
    };
    let mut written = Vec::new();
    for (path, text, is_program) in lang.files() {
        let path = folder.join(filled(path));
        write(&path, &filled(text), *is_program).map_err(|error| {
            let message = format!("cannot write `{}`", path.display());
            LaunchError::new(ErrorKind::Other, message).because(&error)
        })?;
        written.push(path);
    }
    let steps = lang.steps(name);
    let terminal = &context.terminal;
    if terminal.format() == Format::Json {
        return Ok(terminal.json(&json!({"folder": folder, "files": written, "next": steps}))?);
    }
    let shown = folder.display();
    let text =
        format!("made {shown}; next, in there:\n  {}\n  {}\n  {}\n", steps[0], steps[1], steps[2]);
    Ok(terminal.bytes(sanitise(&text).as_bytes())?)
}

fn write(path: &Path, text: &str, is_program: bool) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mode = if is_program { 0o755 } else { 0o644 };
    let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// The clone of distant that has the crates of a plugin: they are in no registry.
fn clone_of_distant(given: Option<&Path>) -> Result<PathBuf, LaunchError> {
    let has_crates =
        |folder: &Path| CRATES.iter().all(|name| folder.join(name).join("Cargo.toml").is_file());
    let hint = "clone the repository of distant, and name the clone with `--api`";
    if let Some(given) = given {
        let folder = absolute(paths::expand(given))?;
        if has_crates(&folder) {
            return Ok(folder);
        }
        let message = format!("`{}` is no clone of distant", folder.display());
        let error = LaunchError::new(ErrorKind::InvalidOption, message);
        let missing = format!("it has no `{}`", CRATES.join("` or no `"));
        return Err(error.caused_by(missing).with_hint(hint));
    }
    let own = paths::executable().ok();
    let mut above = own.iter().flat_map(|it| it.ancestors());
    above.find(|it| has_crates(it)).map(Path::to_owned).ok_or_else(|| {
        let message = "a plugin in Rust needs the crates of distant, which are not here";
        LaunchError::new(ErrorKind::InvalidOption, message).with_hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_scheme_and_a_file_name() {
        for name in ["a", "hello", "my-own-2"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in ["", "2x", "-x", "Hello", "a_b", "a/b", "a b", &"x".repeat(41)] {
            assert!(parse_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for language in Language::value_variants() {
            for (path, text, _) in language.files() {
                let text = text.replace("@NAME@", "").replace("@NAME_@", "").replace("@API@", "");
                let is_name = |it: &&str| {
                    !it.is_empty() && it.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                };
                let left = text.split('@').skip(1).find(is_name);
                assert_eq!(left, None, "{path}");
            }
        }
    }
}
