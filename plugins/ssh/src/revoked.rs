//! The file of `RevokedHostKeys`: keys that no host may show any more.
//!
//! It holds public keys, one in a line, or is a list in OpenSSH's binary form, as `ssh-keygen -k`
//! writes it. One that cannot be read, or says something that is not understood, revokes every
//! key, as it does for `ssh`.

use std::path::Path;

use base64ct::{Base64, Encoding};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::certificate::{Certificate, Reader};
use crate::files;

/// Longest file that is read.
const FILE_MAX: u64 = 64 * 1024 * 1024;

const MAGIC: &[u8] = b"SSHKRL\n\0";

/// What the file says.
#[derive(Default)]
pub(crate) struct Revoked {
    keys: Vec<Vec<u8>>,
    sha1: Vec<Vec<u8>>,
    sha256: Vec<Vec<u8>>,
    certificates: Vec<Certificates>,
}

/// Certificates of one authority, or of any.
struct Certificates {
    authority: Option<Vec<u8>>,
    /// From, to.
    serials: Vec<(u64, u64)>,
    /// The first serial number, and a bit for each, the last byte's lowest first.
    bitmaps: Vec<(u64, Vec<u8>)>,
    ids: Vec<Vec<u8>>,
}

impl Revoked {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// Why it cannot be relied on.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let bytes = files::read(path, FILE_MAX).map_err(|error| error.to_string())?;
        match bytes.strip_prefix(MAGIC) {
            Some(list) => {
                let list = Self::of_list(&mut Reader(list));
                list.ok_or_else(|| "it holds something that is not understood".to_owned())
            }
            None => Self::of_lines(&String::from_utf8_lossy(&bytes)),
        }
    }

    fn of_lines(text: &str) -> Result<Self, String> {
        let key = |line: &str| {
            let mut words = line.split_whitespace();
            let kind = words.next()?;
            let key = Base64::decode_vec(words.next()?).ok()?;
            (Reader(&key).string()? == kind.as_bytes()).then_some(key)
        };
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // Whoever wrote it meant to revoke something.
            let key = key(line).ok_or_else(|| format!("its line {} is no key", index + 1))?;
            keys.push(key);
        }
        Ok(Self { keys, ..Self::default() })
    }

    fn of_list(all: &mut Reader<'_>) -> Option<Self> {
        let mut this = Self::default();
        let is_known = all.take(4)? == [0, 0, 0, 1];
        // Its number, its date, flags; something reserved and a comment.
        all.take(3 * 8)?;
        all.string()?;
        all.string()?;
        while is_known && !all.0.is_empty() {
            let kind = all.take(1)?[0];
            let mut section = Reader(all.string()?);
            match kind {
                1 => this.certificates.push(Certificates::of_section(&mut section)?),
                2 => this.keys.extend(strings(&mut section)?),
                3 => this.sha1.extend(strings(&mut section)?),
                // A signature, which OpenSSH does not look at either.
                4 => {}
                5 => this.sha256.extend(strings(&mut section)?),
                255 => optional(&mut section)?,
                _ => return None,
            }
        }
        is_known.then_some(this)
    }

    /// Whether a host may not show this key or certificate any more.
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        let Some(certificate) = Certificate::from_bytes(key) else { return self.holds_key(key) };
        self.holds_key(&certificate.subject)
            || self.holds_key(&certificate.authority)
            || self.certificates.iter().any(|them| them.hold(&certificate))
    }

    fn holds_key(&self, key: &[u8]) -> bool {
        self.keys.iter().any(|it| it == key)
            || self.sha1.iter().any(|it| *it == *Sha1::digest(key))
            || self.sha256.iter().any(|it| *it == *Sha256::digest(key))
    }
}

impl Certificates {
    fn of_section(section: &mut Reader<'_>) -> Option<Self> {
        let authority = section.string()?;
        section.string()?;
        let authority = Some(authority.to_vec()).filter(|authority| !authority.is_empty());
        let mut this = Self { authority, serials: vec![], bitmaps: vec![], ids: vec![] };
        while !section.0.is_empty() {
            let kind = section.take(1)?[0];
            let mut part = Reader(section.string()?);
            match kind {
                0x20 => {
                    while !part.0.is_empty() {
                        let serial = part.number()?;
                        this.serials.push((serial, serial));
                    }
                }
                0x21 => this.serials.push((part.number()?, part.number()?)),
                0x22 => this.bitmaps.push((part.number()?, part.string()?.to_vec())),
                0x23 => this.ids.extend(strings(&mut part)?),
                0x39 => optional(&mut part)?,
                _ => return None,
            }
        }
        Some(this)
    }

    fn hold(&self, certificate: &Certificate) -> bool {
        let serial = certificate.serial;
        let is_set = |(first, bits): &(u64, Vec<u8>)| {
            let at = serial.checked_sub(*first).and_then(|at| usize::try_from(at).ok());
            let byte = at.and_then(|at| bits.iter().rev().nth(at / 8));
            at.zip(byte).is_some_and(|(at, byte)| byte >> (at % 8) & 1 == 1)
        };
        let is_theirs = self.authority.as_ref().is_none_or(|it| *it == certificate.authority);
        // A certificate without a number has 0, and many have that.
        let is_numbered = serial != 0
            && (self.serials.iter().any(|(from, to)| (from..=to).contains(&&serial))
                || self.bitmaps.iter().any(is_set));
        is_theirs && (is_numbered || self.ids.contains(&certificate.id))
    }
}

fn strings(from: &mut Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while !from.0.is_empty() {
        all.push(from.string()?.to_vec());
    }
    Some(all)
}

/// Passes over an extension, unless only who understands it may go on.
fn optional(section: &mut Reader<'_>) -> Option<()> {
    section.string()?;
    (section.take(1)? == [0]).then_some(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn keygen(folder: &Path, args: &[&str]) {
        let output = Command::new("ssh-keygen").arg("-q").args(args).current_dir(folder).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn blob(folder: &Path, name: &str) -> Vec<u8> {
        let line = fs::read_to_string(folder.join(name)).unwrap();
        Base64::decode_vec(line.split(' ').nth(1).unwrap()).unwrap()
    }

    #[test]
    fn what_ssh_keygen_revokes_is_revoked_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for name in ["a", "b", "ca"] {
            keygen(folder, &["-t", "ed25519", "-N", "", "-f", name]);
        }
        for (name, serial) in [("a", "7"), ("b", "300")] {
            let sign = ["-h", "-I", name, "-n", "box", "-s", "ca", "-z", serial];
            keygen(folder, &[&sign[..], &[&format!("{name}.pub")]].concat());
        }
        let shown = ["a.pub", "b.pub", "a-cert.pub", "b-cert.pub"];
        let check = |list: &str, expected: [bool; 4]| {
            fs::write(folder.join("spec"), list).unwrap();
            keygen(folder, &["-k", "-f", "krl", "-s", "ca.pub", "spec"]);
            let revoked = Revoked::read(&folder.join("krl")).unwrap();
            let held = shown.map(|name| revoked.holds(&blob(folder, name)));
            assert_eq!(held, expected, "{list}");
            // And the real program is of the same opinion.
            for (name, held) in shown.iter().zip(held) {
                let mut asked = Command::new("ssh-keygen");
                asked.args(["-Q", "-f", "krl", name]).current_dir(folder);
                assert_eq!(asked.output().unwrap().status.success(), !held, "{list}: {name}");
            }
        };
        let public = fs::read_to_string(folder.join("a.pub")).unwrap();
        let authority = fs::read_to_string(folder.join("ca.pub")).unwrap();
        check("", [false; 4]);
        check(&public, [true, false, true, false]);
        check(&format!("sha1: {public}"), [true, false, true, false]);
        check(&format!("sha256: {public}"), [true, false, true, false]);
        check(&authority, [false, false, true, true]);
        check("serial: 7\n", [false, false, true, false]);
        check("serial: 8-400\n", [false, false, false, true]);
        check(
            "serial: 1\nserial: 3\nserial: 5\nserial: 7\nserial: 9\nserial: 11\n",
            [false, false, true, false],
        );
        check("id: b\n", [false, false, false, true]);
        fs::write(folder.join("lines"), format!("# gone\n\n{public}")).unwrap();
        let revoked = Revoked::read(&folder.join("lines")).unwrap();
        let held = shown.map(|name| revoked.holds(&blob(folder, name)));
        assert_eq!(held, [true, false, true, false]);
        assert!(Revoked::read(&folder.join("none")).is_err());
        // What was meant to be revoked, and is not understood, may be the very key.
        let known_hosts = format!("@revoked * {public}");
        for (line, bad) in [(1, known_hosts), (3, format!("# gone\n\n  gone\n{public}"))] {
            fs::write(folder.join("lines"), bad).unwrap();
            let reason = Revoked::read(&folder.join("lines")).err();
            assert_eq!(reason, Some(format!("its line {line} is no key")));
        }
        let whole = fs::read(folder.join("krl")).unwrap();
        fs::write(folder.join("cut"), &whole[..whole.len() - 1]).unwrap();
        assert!(Revoked::read(&folder.join("cut")).is_err());
    }
}
