//! The command that starts a server, as one line for any login shell.
//!
//! The whole script is one argument of `sh -c '…'` and holds no `'`, no `\` and no `!`: then sh,
//! bash, zsh, fish, csh, nu and PowerShell all hand it on as it is. What needs one of those
//! characters, such as an argument with a quote, is written as octal digits behind `$b`, which the
//! script sets to a backslash by a trick with `tr`.
//!
//! The script speaks to its starter in lines that begin with the marker of the launch; lines
//! without it are somebody else's noise. Its parts run side by side: one waits for a word on the
//! standard input, one is the server, and the last reads what both say and kills the server unless
//! the word is `keep`. So the end of the connection, for whatever reason, is the end of the server.

use super::upload;
use crate::message::{BindServer, ErrorKind, LaunchError, ServerCommand};

/// The word on the script's standard input that lets the server live.
pub(super) const KEEP: &str = "keep\n";

/// How long a server waits for its next client unless the person says otherwise: nobody but the
/// host has its key, so it must not stay for ever.
const SHUTDOWN: [&str; 2] = ["--shutdown", "lonely=86400"];

/// Sets `c` to a program if it is one, and tells of a file that is none.
const TRY: &str = r#"t() { [ -f "$1" ] || return 1; if [ -x "$1" ]; then c=$1; else echo "$m noexec $1"; return 1; fi; }"#;

/// Looks through a list of folders.
const SEARCH: &str = r#"s() { o=$IFS; IFS=:; for d in $1; do IFS=$o; t "$d/$n" && return; done; IFS=$o; echo "$m tried $1"; return 1; }"#;

/// Sets `b` to a backslash, and decodes an argument into `v`.
const DECODE: &str = r#"b=$(echo 1 | tr 0-2 "[-]"); e() { v=$(printf %b "$1@"); v=${v%@}; }"#;

/// A backslash in an encoded text.
const BACKSLASH: &str = "${b}";

/// Folders where a program is that no PATH names.
const USUAL: &str = "$HOME/.cargo/bin:$HOME/.local/bin:$HOME/bin:$HOME/.nix-profile/bin:/usr/local/bin:/opt/homebrew/bin:/home/linuxbrew/.linuxbrew/bin:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/opt/distant/bin:/snap/bin:/usr/bin:/bin";

/// Finds the program `n`. The login shell's PATH is between two marker lines of its output, as
/// its start-up files may print anything; `timeout` is for those that hang.
const FIND: &str = r#"case $n in "~/"*) t "$HOME/${n#"~/"}";; */*) t "$n";; *) k=; command -v timeout >/dev/null 2>&1 && k="timeout 5"; s "$PATH" || { l=$($k "${SHELL:-sh}" -l -c "echo; echo $m; env; echo $m" 2>/dev/null | sed -n "/^$m/,/^$m/s/^PATH=//p"); [ "$l" = "$PATH" ] && l=; s "$l" || s "%USUAL%"; };; esac"#;

/// Says that there is no program.
const MISSING: &str = r#"[ -n "$c" ] || { echo "$m missing"; exit 127; }"#;

/// Without a usable `SSH_CONNECTION` a server cannot find out where ssh came to. An address with a
/// zone is none that it can listen on, but says that IPv6 is what it is reached by.
const BIND: &str = r#"h=ssh; set -- $SSH_CONNECTION; case $3 in *%*) h=::;; *[.:]*) ;; *) h=any;; esac; [ $h = ssh ] || echo "$m unbound""#;

/// Says which addresses the machine has.
const ADDRESSES: &str =
    r#"echo "$m addresses" $(hostname -I 2>/dev/null || hostname -i 2>/dev/null)"#;

/// Runs the server and waits for the word. The server is in the foreground: a background one would
/// leave SIGINT ignored in all that it ever starts. `cut` ends a line that the server has not, so
/// that half a line is never taken for a whole one.
const RUN: &str = r#"{ ( IFS= read -r a <&3; echo "$m cut"; echo "$m verdict $a"; z; echo "$m cut"; echo "$m late" ) & { ( echo "$m pid $(exec sh -c "echo ${q}PPID")"; exec 3<&-; DISTANT_LAUNCH=1; DISTANT_LAUNCH_MARK=$m; export DISTANT_LAUNCH DISTANT_LAUNCH_MARK; exec "$c" "$@" ) 2>&1; x=$?; echo "$m cut"; echo "$m exit $x"; } | cat; echo "$m cut"; echo "$m closed"; }"#;

/// Reads what the server and the word say, and kills the server unless the word is `keep`. A
/// server that is just going to the background gets a moment to say its new pid first, also where what
/// was started has ended already. One that has no time to, or never says it, is found by its
/// environment where `/proc` shows that; it is looked for again, as it may have started the next one
/// while it was looked for.
const WATCH: &str = r#"{ trap "" PIPE TERM; f=; d=; x=; v=; while [ -z "$v" ] || [ -z "$x" ]; do IFS= read -r l || break; case $l in "$m verdict keep") echo "$m kept"; exit 0;; "$m verdict"*) v=1;; "$m late") x=1;; "$m pid "*) f=${l#"$m pid "}; echo "$l";; "$m exit "*) f=; [ -z "$d" ] || x=1; echo "$l";; "$m closed") x=1; echo "$l";; *"$m cut") l=${l%"$m cut"}; [ -z "$l" ] || { printf %s "$m half $l"; echo; };; "[distant server detached, pid = "*) d=${l#*= }; d=${d%]*}; [ "$d" -gt 1 ] 2>/dev/null || d=; [ -n "$f" ] || x=1; echo "$m server $d";; *) printf %s "$m say $l"; echo;; esac; done; for p in $d $f; do kill $p; done 2>/dev/null; kill 0; for p in $d $f; do kill -0 $p && z && kill -9 $p; done 2>/dev/null; k=; while [ ${#k} -lt 3 ]; do k=1$k; for p in $(grep -l "DISTANT_LAUNCH_MARK=$m" /proc/[0-9]*/environ); do p=${p#/proc/}; kill -9 "${p%/environ}"; done; done 2>/dev/null; echo "$m killed"; exit 1; }"#;

/// Writes the command for a login shell; with `addresses` it says which ones the machine has.
///
/// # Errors
///
/// `invalid_option` if an argument holds a NUL, which no argument can.
pub(super) fn command(
    server: &ServerCommand,
    marker: &str,
    addresses: bool,
) -> Result<String, LaunchError> {
    let program = server.program.as_deref().unwrap_or("distant");
    let mut script = vec![
        format!("m={marker}"),
        "q=$; c=; exec 3<&0 </dev/null; set -f".into(),
        "echo; echo \"$m begin\"".into(),
        TRY.into(),
        SEARCH.into(),
        assign("n", &encode(program, "distant.bin")?),
    ];
    let find = FIND.replace("%USUAL%", USUAL);
    match &server.upload {
        None => script.push(find),
        // One that was named is looked for first; otherwise what was brought there is known at once,
        // and asks no start-up file of a login shell.
        Some(it) => script.extend([
            upload::look(it)?,
            match (&server.program, it.always) {
                (Some(_), _) => format!("{find}; [ -n \"$c\" ] || u"),
                (None, true) => "u".into(),
                (None, false) => format!("u; [ -n \"$c\" ] || {find}"),
            },
            upload::BRING.into(),
        ]),
    }
    script.push(MISSING.into());
    script.extend(addresses.then(|| ADDRESSES.into()));
    let given = |flag: &str| {
        let with_value = format!("{flag}=");
        server.args.iter().any(|arg| arg == flag || arg.starts_with(&with_value))
    };
    let mut arguments = vec!["server".to_owned(), "listen".to_owned()];
    if !given("--daemon") {
        arguments.push("--daemon".to_owned());
    }
    if !given("--shutdown") {
        arguments.extend(SHUTDOWN.map(str::to_owned));
    }
    let mut host = None;
    if !given("--host") {
        match &server.bind {
            BindServer::Ssh => host = Some("set -- \"$@\" --host $h"),
            bind => arguments.extend(["--host".to_owned(), bind.to_string()]),
        }
    }
    if host.is_some() {
        script.push(BIND.into());
    }
    script.push("set --".into());
    for argument in arguments.iter().chain(&server.args) {
        script.push(assign("v", &encode(argument, "distant.args")?) + "; set -- \"$@\" \"$v\"");
    }
    script.extend(host.map(str::to_owned));
    script.push("set +f".into());
    script.push("z() { sleep 0.4 2>/dev/null || sleep 1; }".into());
    script.push(format!("{RUN} | {WATCH}"));
    // Each process costs about a millisecond, and most launches have nothing to decode.
    if script.iter().any(|part| part.contains(BACKSLASH)) {
        script.insert(1, DECODE.into());
    }
    Ok(format!("sh -c '{}'", script.join("; ")))
}

/// Assigns an encoded text to a variable of the script.
fn assign(variable: &str, encoded: &str) -> String {
    match encoded.contains(BACKSLASH) {
        true => format!("e {encoded}; {variable}=$v"),
        false => format!("{variable}={encoded}"),
    }
}

/// Writes a text in double quotes, everything that any shell might touch as `${b}0` and three
/// octal digits.
fn encode(text: &str, option: &str) -> Result<String, LaunchError> {
    if text.contains('\0') {
        let message = format!("option `{option}` holds a NUL character, which no argument can");
        return Err(LaunchError::new(ErrorKind::InvalidOption, message));
    }
    let mut encoded = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b' ' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(byte.into()),
            b'-' | b'_' | b'.' | b'/' | b':' | b'=' | b',' | b'+' | b'~' => {
                encoded.push(byte.into());
            }
            other => encoded.push_str(&format!("{BACKSLASH}0{other:03o}")),
        }
    }
    encoded.push('"');
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_login_shell_finds_anything_to_change() {
        let server = ServerCommand {
            program: Some("/opt/it's/a \"bin\"".into()),
            args: vec!["$HOME;\\!`x`".into(), "naïve\nline\n".into(), String::new()],
            bind: BindServer::Ssh,
            upload: None,
        };
        let command = command(&server, "0123", true).unwrap();
        let script = command.strip_prefix("sh -c '").unwrap().strip_suffix('\'').unwrap();
        assert!(!script.contains(['\'', '\\', '!', '\n']), "{script}");
        assert!(script.is_ascii());
    }

    #[test]
    fn what_needs_no_decoding_costs_no_process() {
        let plain = command(&ServerCommand::default(), "0123", false).unwrap();
        assert!(!plain.contains("printf %b") && !plain.contains("tr 0-2"), "{plain}");
        let args = vec!["a;b".to_owned()];
        let odd = command(&ServerCommand { args, ..ServerCommand::default() }, "0123", false);
        assert_eq!(odd.unwrap().matches("e \"").count(), 1);
    }

    #[test]
    fn what_the_person_says_is_not_said_twice() {
        let args = ["--shutdown=never", "--host", "::1", "--daemon"].map(str::to_owned).to_vec();
        let server = ServerCommand { args, ..ServerCommand::default() };
        let command = command(&server, "0123", true).unwrap();
        assert!(!command.contains("lonely") && !command.contains("--host $h"));
        assert_eq!(command.matches("--daemon").count(), 1);
    }

    #[test]
    fn an_argument_with_nul_is_refused() {
        let server = ServerCommand { args: vec!["a\0b".into()], ..ServerCommand::default() };
        assert_eq!(command(&server, "0123", true).unwrap_err().kind, ErrorKind::InvalidOption);
    }
}
