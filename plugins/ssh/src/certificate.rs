//! OpenSSH's certificates: a key, whom it is for, and an authority's signature.
//!
//! Read here and not by `ssh-key`, which takes one that never expires for a broken one.

use std::time::{SystemTime, UNIX_EPOCH};

use base64ct::{Base64, Encoding};
use rsa::signature::Verifier;
use ssh_key::public::KeyData;
use ssh_key::{PublicKey, Signature};

/// Ends the names of their kinds.
const ENDING: &str = "-cert-v01@openssh.com";

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The key that it is for, as it travels.
    pub subject: Vec<u8>,
    /// The authority's key, as it travels.
    pub authority: Vec<u8>,
    /// The number that the authority gave it; 0 if it gave none.
    pub serial: u64,
    /// The name that the authority gave it.
    pub id: Vec<u8>,
    is_host: bool,
    principals: Vec<String>,
    valid: (u64, u64),
    /// Whether it asks for something that only who understands it may leave out of account.
    has_critical: bool,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

/// Takes apart what ssh writes; nothing is read past the end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        self.take(usize::try_from(length).ok()?)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}

impl Certificate {
    /// Reads a line as a `-cert.pub` file has it; also gives the bytes that travel.
    pub fn from_line(line: &str) -> Option<(Self, Vec<u8>)> {
        let bytes = Base64::decode_vec(line.split_whitespace().nth(1)?).ok()?;
        Some((Self::from_bytes(&bytes)?, bytes))
    }

    /// Reads what travels.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut all = Reader(bytes);
        let kind = std::str::from_utf8(all.string()?).ok()?;
        let plain = match kind.strip_suffix(ENDING)? {
            security if security.starts_with("sk-") => format!("{security}@openssh.com"),
            plain => plain.to_owned(),
        };
        all.string()?;
        let before = all.0;
        let fields = match plain.as_str() {
            "ssh-ed25519" => 1,
            "ssh-rsa" | "sk-ssh-ed25519@openssh.com" => 2,
            "sk-ecdsa-sha2-nistp256@openssh.com" => 3,
            name if name.starts_with("ecdsa-sha2-") => 2,
            _ => return None,
        };
        for _ in 0..fields {
            all.string()?;
        }
        let key = &before[..before.len() - all.0.len()];
        let name = u32::try_from(plain.len()).ok()?.to_be_bytes();
        let subject = [&name[..], plain.as_bytes(), key].concat();
        let serial = all.number()?;
        let is_host = all.take(4)? == [0, 0, 0, 2];
        let id = all.string()?.to_vec();
        let mut names = Reader(all.string()?);
        let mut principals = Vec::new();
        while !names.0.is_empty() {
            principals.push(String::from_utf8_lossy(names.string()?).into_owned());
        }
        let valid = (all.number()?, all.number()?);
        let has_critical = !all.string()?.is_empty();
        // Extensions and what is reserved.
        for _ in 0..2 {
            all.string()?;
        }
        let authority = all.string()?.to_vec();
        let signed = bytes[..bytes.len() - all.0.len()].to_vec();
        let signature = all.string()?.to_vec();
        Some(Self {
            subject,
            authority,
            serial,
            id,
            is_host,
            principals,
            valid,
            has_critical,
            signed,
            signature,
        })
    }

    /// Says why it is not good for a host, if it is not: `allowed` are kinds of signatures. Whether
    /// the authority is one, is the caller's to know.
    pub fn fault(
        &self,
        is_this_host: impl Fn(&str) -> bool,
        allowed: &[String],
    ) -> Option<&'static str> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        if !self.is_host {
            Some("it is a user's, not a host's")
        } else if !self.principals.iter().any(|name| is_this_host(name)) {
            Some("it is for other hosts")
        } else if now < self.valid.0 || now >= self.valid.1 {
            Some("it is expired, or not yet good")
        } else if self.has_critical {
            Some("it has a critical option, and none is known for hosts")
        } else if !self.is_signed() {
            Some("its signature is wrong")
        } else if !self.signed_with().is_some_and(|kind| allowed.contains(&kind)) {
            Some("`CASignatureAlgorithms` does not allow the kind of its signature")
        } else {
            None
        }
    }

    /// The kind of the signature.
    fn signed_with(&self) -> Option<String> {
        let kind = Reader(&self.signature).string()?;
        Some(String::from_utf8_lossy(kind).into_owned())
    }

    fn is_signed(&self) -> bool {
        let authority = PublicKey::from_bytes(&self.authority).ok();
        let signature = Signature::try_from(self.signature.as_slice()).ok();
        let (Some(authority), Some(signature)) = (authority, signature) else { return false };
        // SHA-1 is not a signature any more.
        let is_sha1 = signature.algorithm().to_string() == "ssh-rsa";
        let key: &KeyData = authority.key_data();
        !is_sha1 && key.verify(&self.signed, &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn run(args: &[&str], folder: &std::path::Path) {
        let mut keygen = Command::new("ssh-keygen");
        assert!(keygen.arg("-q").args(args).current_dir(folder).status().unwrap().success());
    }

    #[test]
    fn what_ssh_keygen_signs_is_good_for_its_host_only() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let all = crate::config::CA_ALGORITHMS.map(str::to_owned);
        for kind in ["ed25519", "ecdsa", "rsa"] {
            run(&["-t", kind, "-N", "", "-f", &format!("{kind}ca")], folder);
            run(&["-t", kind, "-N", "", "-f", kind], folder);
            let authority = format!("{kind}ca");
            let public = format!("{kind}.pub");
            let sign = ["-h", "-I", "x", "-n", "box", "-s", &authority];
            run(&[&sign[..], &[&public]].concat(), folder);
            let line = fs::read_to_string(folder.join(format!("{kind}-cert.pub"))).unwrap();
            let (good, bytes) = Certificate::from_line(&line).unwrap();
            assert_eq!(good.fault(|name| name == "box", &all), None, "{kind}");
            assert_eq!(good.fault(|name| name == "other", &all), Some("it is for other hosts"));
            let fault = good.fault(|_| true, &["another".to_owned()]).unwrap();
            assert!(fault.contains("CASignatureAlgorithms"), "{fault}");
            let key = fs::read_to_string(folder.join(&public)).unwrap();
            let key = Base64::decode_vec(key.split(' ').nth(1).unwrap()).unwrap();
            assert_eq!(good.subject, key, "{kind}");
            let mut bad = bytes.clone();
            bad[60] ^= 1;
            let bad = Certificate::from_bytes(&bad).unwrap();
            assert_eq!(bad.fault(|_| true, &all), Some("its signature is wrong"));
            run(&[&sign[..], &["-V", "20200101:20200102", &public]].concat(), folder);
            let line = fs::read_to_string(folder.join(format!("{kind}-cert.pub"))).unwrap();
            let (old, _) = Certificate::from_line(&line).unwrap();
            assert_eq!(old.fault(|_| true, &all), Some("it is expired, or not yet good"));
            let critical = Certificate { has_critical: true, ..good };
            assert!(critical.fault(|_| true, &all).unwrap().contains("critical"));
            for cut in 0..bytes.len() {
                assert_eq!(Certificate::from_bytes(&bytes[..cut]), None, "{kind} {cut}");
            }
        }
    }
}
