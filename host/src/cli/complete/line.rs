//! What has been typed: a line as the shell sees it, and where on it the cursor is.

use clap::{Arg, Command};

/// A line as a shell would split it, the last word being what is just typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) words: Vec<String>,
    /// The last word is in a quote that is still open.
    pub(super) is_quoted: bool,
}

impl Line {
    pub(super) fn split(line: &str) -> Self {
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

/// Where on the command line the cursor is.
pub(super) struct Place<'a> {
    pub(super) command: &'a Command,
    /// The names of the commands on the way there.
    pub(super) path: Vec<&'a str>,
    /// The flag whose value is typed.
    pub(super) flag: Option<&'a Arg>,
    pub(super) positionals: usize,
    /// Flags end before here.
    pub(super) is_escaped: bool,
}

impl<'a> Place<'a> {
    pub(super) fn find(command: &'a Command, words: &[String]) -> Self {
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
    pub(super) fn long(&self, name: &str) -> Option<&'a Arg> {
        let mut all = self.command.get_arguments();
        all.find(|it| it.get_long() == Some(name) && needs_value(it))
    }

    pub(super) fn is(&self, path: &[&str]) -> bool {
        self.path == path
    }
}

fn needs_value(argument: &Arg) -> bool {
    argument.get_action().takes_values()
        && argument.get_num_args().is_none_or(|count| count.min_values() > 0)
}

/// Where the last option of a map begins.
pub(super) fn last_segment(text: &str) -> usize {
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Arguments;

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
