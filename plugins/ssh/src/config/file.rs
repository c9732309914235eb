//! A small reader of ssh_config, for machines without the program `ssh`.
//!
//! `Host` with patterns and negation, `Include`, the first value of a key wins, `IdentityFile` and
//! `CertificateFile` add up. A `Match` block is left out whole, and the caller is told that there
//! was one.

use std::fs;
use std::path::{Path, PathBuf};

use super::{words, Person};
use crate::files;
use crate::known_hosts::matches;

/// How deep files may include each other (OpenSSH's own bound).
const DEPTH_MAX: usize = 16;
/// Longest file that is read.
const FILE_MAX: u64 = 1024 * 1024;

/// What the files say of one host.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) lines: Vec<(String, String)>,
    pub(super) has_match: bool,
}

pub(super) fn read(host: &str, person: &Person) -> Found {
    let mut found = Found::default();
    let own = person.home.join(".ssh");
    read_file(&own.join("config"), host, &own, person, 0, &mut found);
    let system = Path::new("/etc/ssh");
    read_file(&system.join("ssh_config"), host, system, person, 0, &mut found);
    found
}

fn read_file(
    file: &Path,
    host: &str,
    folder: &Path,
    person: &Person,
    depth: usize,
    found: &mut Found,
) {
    let Ok(text) = files::read_text(file, FILE_MAX) else { return };
    if depth > DEPTH_MAX {
        return;
    }
    let mut applies = true;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let split = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
        let key = line[..split].to_lowercase();
        let value = line[split..].trim_start_matches(|c: char| c.is_whitespace() || c == '=');
        match key.as_str() {
            "host" => applies = is_meant(value, host),
            "match" => {
                applies = false;
                found.has_match = true;
            }
            _ if !applies => {}
            "include" => {
                for pattern in words(value) {
                    let path = match pattern.strip_prefix("~/") {
                        Some(rest) => person.home.join(rest),
                        None => folder.join(&pattern),
                    };
                    for file in glob(&path) {
                        read_file(&file, host, folder, person, depth + 1, found);
                    }
                }
            }
            "identityfile" | "certificatefile" => found.lines.push((key, value.to_owned())),
            _ if found.lines.iter().any(|(known, _)| *known == key) => {}
            "hostname" => found.lines.push((key, value.replace("%h", host))),
            "proxycommand" => found.lines.push((key, value.to_owned())),
            _ => found.lines.push((key, value.trim_matches('"').to_owned())),
        }
    }
}

fn is_meant(patterns: &str, host: &str) -> bool {
    let mut meant = false;
    for pattern in words(patterns) {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, host) => return false,
            None if matches(&pattern, host) => meant = true,
            _ => {}
        }
    }
    meant
}

/// Files whose last part matches a pattern, in the order of their names.
fn glob(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains(['*', '?']) {
        return vec![path.to_owned()];
    }
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let mut files: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| matches(&name, &file.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_wins_and_match_is_left_out() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".ssh");
        fs::create_dir_all(folder.join("more")).unwrap();
        fs::write(folder.join("more/a"), "Host box\n  User included\n").unwrap();
        let text = "Include more/*\nHost b?x !bix\n  HostName=%h.example\n  User late\n  \
                    IdentityFile ~/a\nMatch all\n  Port 99\nHost *\n  IdentityFile ~/b\n  Port 22\n";
        fs::write(folder.join("config"), text).unwrap();
        let person = Person {
            home: home.path().into(),
            user: "me".into(),
            cwd: "/".into(),
            environment: Default::default(),
        };
        let found = read("box", &person);
        let shown: Vec<_> =
            found.lines.iter().take(5).map(|(key, value)| format!("{key} {value}")).collect();
        let expected = ["user included", "hostname box.example", "identityfile ~/a"];
        assert_eq!(shown[..3], expected);
        assert_eq!(shown[3..], ["identityfile ~/b", "port 22"]);
        assert!(found.has_match);
        assert!(!read("bix", &person).lines.iter().any(|(key, _)| key == "hostname"));
    }
}
