//! The command line of a remote program, as one text.
//!
//! The protocol has no list of arguments: the server splits the text by the words of a POSIX
//! shell, or runs a shell that is named in it.

use distant_plugin_api::message::ErrorKind;
use distant_plugin_api::LaunchError;
use distant_protocol::SystemInfo;

/// The text for a server that splits it. A single word counts as written, as in 0.20, so
/// `'echo hi'` has two; of several words each stays one.
pub(crate) fn command(given: Option<&str>, words: &[String]) -> String {
    match (given, words) {
        (Some(text), _) => text.to_owned(),
        (None, [word]) => word.clone(),
        (None, words) => shell_words::join(words),
    }
}

/// The text for a shell, which is what was written: its operators mean something there.
pub(crate) fn text(given: Option<&str>, words: &[String]) -> String {
    given.map_or_else(|| words.join(" "), str::to_owned)
}

/// The shell of a system where the person names none.
pub(crate) fn default_of(system: &SystemInfo) -> String {
    match system.shell.as_str() {
        "" if system.family.eq_ignore_ascii_case("windows") => "cmd.exe".to_owned(),
        "" => "/bin/sh".to_owned(),
        shell => shell.to_owned(),
    }
}

/// The command line that has a shell run a text.
///
/// # Errors
///
/// `invalid_option`: there is no way to quote the text for this shell.
pub(crate) fn wrap(shell: &str, text: &str) -> Result<String, LaunchError> {
    let name = shell.rsplit(['/', '\\']).next().unwrap_or(shell).to_ascii_lowercase();
    match name.strip_suffix(".exe").unwrap_or(&name) {
        "cmd" => Ok(format!("{shell} /S /C \"{text}\"")),
        "powershell" | "pwsh" => {
            Ok(format!("cmd.exe /S /C \"{shell} -Command {}\"", text.replace('"', "\"\"")))
        }
        // The server splits by POSIX words before any shell sees the text, whatever its own
        // quoting is.
        _ if text.contains('\0') => {
            Err(LaunchError::new(ErrorKind::InvalidOption, "a command has no NUL characters"))
        }
        _ => Ok(format!("{} -c {}", shell_words::quote(shell), shell_words::quote(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_stay_words() {
        let line = words(&["sh", "-c", "echo 'a  b' | wc"]);
        assert_eq!(shell_words::split(&command(None, &line)).unwrap(), line);
        assert_eq!(command(None, &words(&["echo hi"])), "echo hi");
        assert_eq!(command(Some("a  b"), &[]), "a  b");
    }

    #[test]
    fn a_shell_gets_the_text_as_written() {
        assert_eq!(text(None, &words(&["ls", "|", "wc"])), "ls | wc");
        let line = wrap("/bin/bash", "echo \"it's\" | wc").unwrap();
        assert_eq!(shell_words::split(&line).unwrap(), ["/bin/bash", "-c", "echo \"it's\" | wc"]);
        assert_eq!(wrap("C:\\w\\cmd.exe", "dir").unwrap(), "C:\\w\\cmd.exe /S /C \"dir\"");
    }
}
