//! Whether a host is the one it should be: one verdict over every known_hosts file.
//!
//! No ssh library reads these files as OpenSSH does (none knows `@revoked`), so both backends only
//! hand over the key. What is known also decides which kind of key is asked for: a server shows one
//! of its keys, and one that is merely of another kind must not look like a changed one.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use hmac::{Hmac, Mac};
use rustix::fs::OFlags;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::certificate::Certificate;
use crate::files;

/// Longest known_hosts file that is read.
const FILE_MAX: u64 = 16 * 1024 * 1024;

/// What is preferred where nothing is known, and what follows where something is.
const ALGORITHMS: [&str; 6] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// Certificates, asked for only where an authority is known for the host.
const CERTIFICATES: [&str; 6] = [
    "ssh-ed25519-cert-v01@openssh.com",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
];

/// The lines of all files.
pub struct KnownHosts {
    lines: Vec<Line>,
    /// Kinds of signatures that an authority may make.
    allowed: Vec<String>,
}

struct Line {
    place: Place,
    marker: Marker,
    hosts: String,
    kind: String,
    key: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    Plain,
    Revoked,
    Authority,
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
}

/// What the files say of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known,
    /// Nothing of this host, or only keys of other kinds, which are these.
    Unknown(Vec<(Place, String)>),
    /// The host had another key of this kind.
    Changed(Place),
    /// Nobody may use this key any more.
    Revoked(Place),
    /// A certificate that is not good for this host, and why.
    BadCertificate(String),
}

/// The names under which a host is looked for.
pub fn name(host: &str, port: u16, alias: Option<&str>) -> String {
    match alias {
        Some(alias) => alias.to_lowercase(),
        None if port == 22 => host.to_lowercase(),
        None => format!("[{}]:{port}", host.to_lowercase()),
    }
}

impl KnownHosts {
    /// Reads the files; one that cannot be read knows nobody, and a bad line is skipped.
    /// `allowed` are the kinds of signatures that are good for a certificate.
    pub fn read(files: &[PathBuf], allowed: &[String]) -> Self {
        let mut lines = Vec::new();
        for file in files {
            let text = match files::read_text(file, FILE_MAX) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::info!("{} is left out: {error}", file.display());
                    continue;
                }
            };
            lines.extend(text.lines().enumerate().filter_map(|(index, line)| {
                parse(line, Place { file: file.clone(), line: index + 1 })
            }));
        }
        Self { lines, allowed: allowed.to_vec() }
    }

    /// Which kinds of host key to ask for, best first.
    pub fn algorithms(&self, name: &str, certificates: bool) -> Vec<&'static str> {
        let of_host: Vec<_> = self.of(name).collect();
        let is_known = |algorithm: &str| {
            let kind = if algorithm.starts_with("rsa-") { "ssh-rsa" } else { algorithm };
            of_host.iter().any(|line| line.marker == Marker::Plain && line.kind == kind)
        };
        let (mut wanted, rest): (Vec<_>, Vec<_>) =
            ALGORITHMS.into_iter().partition(|algorithm| is_known(algorithm));
        wanted.extend(rest);
        if certificates && of_host.iter().any(|line| line.marker == Marker::Authority) {
            wanted.splice(0..0, CERTIFICATES);
        }
        wanted
    }

    /// Tells whether an authority is known for the host.
    pub fn has_authority(&self, name: &str) -> bool {
        self.of(name).any(|line| line.marker == Marker::Authority)
    }

    /// The first line with a key of this kind for the host.
    pub fn first(&self, name: &str, kind: &str) -> Option<Place> {
        let mut lines = self.of(name).filter(|line| line.marker == Marker::Plain);
        lines.find(|line| line.kind == kind).map(|line| line.place.clone())
    }

    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| is_for(&line.hosts, name))
    }

    /// Judges the key that a server shows.
    pub fn check(&self, name: &str, key: &[u8]) -> Verdict {
        let revoked = |key: &[u8]| {
            self.of(name).find(|line| line.marker == Marker::Revoked && line.key == key)
        };
        if let Some(line) = revoked(key) {
            return Verdict::Revoked(line.place.clone());
        }
        let kind = kind(key);
        if kind.contains("-cert-v01@") {
            return self.check_certificate(name, key);
        }
        let same_kind: Vec<_> = self
            .of(name)
            .filter(|line| line.marker == Marker::Plain && line.kind == kind)
            .collect();
        match self.first(name, &kind) {
            _ if same_kind.iter().any(|line| line.key == key) => Verdict::Known,
            Some(place) => Verdict::Changed(place),
            None => {
                let others = self.of(name).filter(|line| line.marker == Marker::Plain);
                let others = others.map(|line| (line.place.clone(), line.kind.clone()));
                Verdict::Unknown(others.collect())
            }
        }
    }

    fn check_certificate(&self, name: &str, key: &[u8]) -> Verdict {
        let bad = |reason: &str| Verdict::BadCertificate(reason.to_owned());
        let Some(certificate) = Certificate::from_bytes(key) else {
            return bad("it cannot be read");
        };
        let is_revoked = |line: &&Line| {
            let keys = [&certificate.authority, &certificate.subject];
            line.marker == Marker::Revoked && keys.contains(&&line.key)
        };
        if let Some(line) = self.of(name).find(is_revoked) {
            return Verdict::Revoked(line.place.clone());
        }
        let knows =
            |line: &Line| line.marker == Marker::Authority && line.key == certificate.authority;
        if !self.of(name).any(knows) {
            return bad("its authority is not known for this host");
        }
        let host = name.strip_prefix('[').and_then(|name| name.split(']').next()).unwrap_or(name);
        let fault = certificate.fault(|pattern| matches(pattern, host), &self.allowed);
        fault.map_or(Verdict::Known, bad)
    }
}

/// Adds a key to a file, and changes nothing else in it.
///
/// # Errors
///
/// The file or its folder cannot be written.
pub fn append(file: &Path, name: &str, key: &[u8], hashed: bool) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // A pipe would wait for somebody at its other end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
    let mut opened = options.open(file)?;
    let opened_kind = opened.metadata()?.file_type();
    if opened_kind.is_char_device() {
        // Somebody wants nothing to be remembered: `/dev/null`.
        return Ok(());
    }
    if !opened_kind.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut line = String::new();
    let length = opened.metadata()?.len();
    if length > 0 {
        let mut last = [0];
        opened.seek(SeekFrom::Start(length - 1))?;
        opened.read_exact(&mut last)?;
        if last != *b"\n" {
            line.push('\n');
        }
    }
    let name = if hashed { hash(name, &rand::random::<[u8; 20]>()) } else { name.to_owned() };
    line.push_str(&format!("{name} {} {}\n", kind(key), Base64::encode_string(key)));
    opened.write_all(line.as_bytes())
}

/// The kind of a key: the first string of its blob.
pub fn kind(key: &[u8]) -> String {
    let length = key.get(..4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let text = length.and_then(|length| key.get(4..4 + usize::try_from(length).ok()?));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

/// The fingerprint as OpenSSH shows it.
pub fn fingerprint(key: &[u8]) -> String {
    let base64 = Base64::encode_string(&Sha256::digest(key));
    format!("SHA256:{}", base64.trim_end_matches('='))
}

fn parse(line: &str, place: Place) -> Option<Line> {
    let mut words = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
    let mut hosts = words.next().filter(|word| !word.starts_with('#'))?;
    let marker = match hosts {
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::Authority,
        _ => Marker::Plain,
    };
    if marker != Marker::Plain {
        hosts = words.next()?;
    }
    let kind = words.next()?.to_owned();
    let key = Base64::decode_vec(words.next()?).ok()?;
    (self::kind(&key) == kind).then(|| Line { place, marker, hosts: hosts.to_owned(), kind, key })
}

/// Whether a line's hosts (a hash, or patterns with `*`, `?` and a leading `!`) hold this name.
fn is_for(hosts: &str, name: &str) -> bool {
    if let Some(rest) = hosts.strip_prefix("|1|") {
        let salt = rest.split('|').next().and_then(|salt| Base64::decode_vec(salt).ok());
        return salt.is_some_and(|salt| hash(name, &salt) == hosts);
    }
    let mut found = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, name) => return false,
            None if matches(pattern, name) => found = true,
            _ => {}
        }
    }
    found
}

fn hash(name: &str, salt: &[u8]) -> String {
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(salt) else { return String::new() };
    mac.update(name.as_bytes());
    let digest = Base64::encode_string(&mac.finalize().into_bytes());
    format!("|1|{}|{digest}", Base64::encode_string(salt))
}

/// Whether a pattern with `*` and `?` matches a whole name, in either case.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn blob(text: &str) -> Vec<u8> {
        Base64::decode_vec(text.split(' ').nth(1).unwrap()).unwrap()
    }

    fn check(text: &str, name: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        fs::write(&file, text).unwrap();
        let verdict =
            KnownHosts::read(&[folder.path().join("none"), file], &[]).check(name, &blob(ED25519));
        let shown = match verdict {
            Verdict::Known => "known".to_owned(),
            Verdict::Unknown(others) => {
                let others = others.iter().map(|(place, kind)| format!(", {} {kind}", place.line));
                format!("unknown{}", others.collect::<String>())
            }
            Verdict::Changed(place) => format!("changed {}", place.line),
            Verdict::Revoked(place) => format!("revoked {}", place.line),
            Verdict::BadCertificate(reason) => reason,
        };
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn the_files_are_read_as_openssh_does() {
        check("", "box", "unknown");
        check(&format!("box {ED25519}\n"), "box", "known");
        check(&format!("# x\n\nother\nbox\t{ED25519} me@x\r\n"), "box", "known");
        check(&format!("box {OTHER}\n"), "box", "changed 1");
        check(&format!("box {OTHER}\nbox {ED25519}\n"), "box", "known");
        check(&format!("box {OTHER}\n"), "[box]:2222", "unknown");
        check(&format!("[box]:2222 {ED25519}\n"), "[box]:2222", "known");
        check(&format!("*.example,!bad.example {ED25519}\n"), "good.example", "known");
        check(&format!("*.example,!bad.example {ED25519}\n"), "bad.example", "unknown");
        check(&format!("box {ED25519}\n@revoked * {ED25519}\n"), "box", "revoked 2");
        let hashed = hash("box", &[7; 20]);
        check(&format!("{hashed} {ED25519}\n"), "box", "known");
        check(&format!("{hashed} {ED25519}\n"), "bix", "unknown");
        let other = "box ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQA=\n";
        check(other, "box", "unknown, 1 ssh-rsa");
    }

    #[test]
    fn what_is_known_is_asked_for_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        fs::write(&file, "box ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQA=\n").unwrap();
        let known = KnownHosts::read(&[file], &[]);
        assert_eq!(known.algorithms("box", true)[..2], ["rsa-sha2-512", "rsa-sha2-256"]);
        assert_eq!(known.algorithms("other", true)[0], "ssh-ed25519");
    }

    #[test]
    fn what_is_no_file_is_neither_read_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let files = [pipe.clone(), "/dev/zero".into(), folder.path().to_owned()];
        let verdict = KnownHosts::read(&files, &[]).check("box", &blob(ED25519));
        assert_eq!(verdict, Verdict::Unknown(Vec::new()));
        assert!(append(&pipe, "box", &blob(ED25519), false).is_err());
        append(Path::new("/dev/null"), "box", &blob(ED25519), false).unwrap();
    }

    #[test]
    fn an_accepted_key_is_added_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/known_hosts");
        append(&file, "box", &blob(ED25519), false).unwrap();
        fs::write(&file, "# mine\nno newline").unwrap();
        append(&file, "box", &blob(ED25519), true).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# mine\nno newline\n|1|"), "{text}");
        assert_eq!(KnownHosts::read(&[file], &[]).check("box", &blob(ED25519)), Verdict::Known);
    }
}
