//! A person's keys: read, and unlocked, here and not by an ssh library.
//!
//! Every form that OpenSSH writes becomes one: the libraries then never see a passphrase or a form
//! that crashes them, and a wrong passphrase is told apart from a key that the server refuses.

use std::path::{Path, PathBuf};

use aes::cipher::{block_padding::Pkcs7, BlockDecryptMut, KeyIvInit};
use base64ct::{Base64, Encoding};
use distant_plugin_api::secret::Secret;
use md5::{Digest, Md5};
use pkcs8::der::{Decode, Tag, Tagged};
use pkcs8::{pkcs5, EncryptedPrivateKeyInfo, PrivateKeyInfo};
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;
use ssh_key::private::{EcdsaKeypair, Ed25519Keypair, KeypairData, RsaKeypair};
use ssh_key::{Cipher, Kdf, LineEnding, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::certificate::{Certificate, Reader};
use crate::files;

/// Longest key file that is read.
const FILE_MAX: u64 = 1024 * 1024;

/// One identity file.
pub struct Identity {
    /// Where it is.
    pub path: PathBuf,
    /// The public key as it travels, where it can be known without the passphrase.
    pub public: Option<Vec<u8>>,
    /// The certificate for it, as a line and as it travels.
    pub certificate: Option<(String, Vec<u8>)>,
    material: Material,
}

enum Material {
    Clear(Box<PrivateKey>),
    Locked(Zeroizing<String>),
    /// The file is open to others by this mode, and `ssh` would leave it out too.
    Exposed(u32),
    /// The file is a public key, and the private one is elsewhere: in an agent.
    Elsewhere,
    /// The private key is in a security key of this kind, and the file is its handle.
    Hardware(String),
}

/// Why a file gives no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no such file; often not even worth a word.
    #[error("there is no such file")]
    Missing,
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It holds something else, or a kind of key that is not understood.
    #[error("it is no private key that is understood: {0}")]
    Unknown(String),
    /// The passphrase is wrong.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
}

impl Identity {
    /// Reads a key and the certificate beside it, if there is one.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; never `WrongPassphrase`.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let (text, exposed) = read(path)?;
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            files::read_text(&PathBuf::from(name), FILE_MAX).ok()
        };
        let public_beside = || {
            PublicKey::from_openssh(beside(".pub")?.trim()).ok().and_then(|key| key.to_bytes().ok())
        };
        let (material, public) = if let Ok(key) = PublicKey::from_openssh(text.trim()) {
            (Material::Elsewhere, key.to_bytes().ok())
        } else if let Some((kind, public)) = hardware(&text) {
            (Material::Hardware(kind), Some(public))
        } else if is_locked(&text) {
            let clear_part = PrivateKey::from_openssh(text.as_str()).ok();
            let public = clear_part.and_then(|key| key.public_key().to_bytes().ok());
            (Material::Locked(text), public.or_else(public_beside))
        } else {
            let key = parse(&text, None)?;
            let public = key.public_key().to_bytes().ok();
            (Material::Clear(Box::new(key)), public)
        };
        let material = match (material, exposed) {
            (Material::Clear(_) | Material::Locked(_), Some(mode)) => Material::Exposed(mode),
            (material, _) => material,
        };
        let mut identity = Self { path: path.to_owned(), public, certificate: None, material };
        if let Some(text) = beside("-cert.pub") {
            identity.certify(&text);
        }
        Ok(identity)
    }

    /// Takes a certificate if it is for this key.
    pub fn certify(&mut self, text: &str) {
        let Some((certificate, bytes)) = Certificate::from_line(text) else { return };
        if Some(&certificate.subject) == self.public.as_ref() {
            self.certificate = Some((text.trim().to_owned(), bytes));
        }
    }

    /// The key, where no passphrase is needed for it.
    pub fn clear(&self) -> Option<&PrivateKey> {
        match &self.material {
            Material::Clear(key) => Some(key),
            _ => None,
        }
    }

    /// Whether a passphrase would open it.
    pub fn is_locked(&self) -> bool {
        matches!(self.material, Material::Locked(_))
    }

    /// Whether it is a public key alone, and the private one is for an agent to have.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.material, Material::Elsewhere)
    }

    /// The file's mode, if others have access to it: only an agent may use this key.
    pub fn exposed(&self) -> Option<u32> {
        match self.material {
            Material::Exposed(mode) => Some(mode),
            _ => None,
        }
    }

    /// The kind of the security key that holds the private key, if one does.
    pub fn hardware(&self) -> Option<&str> {
        match &self.material {
            Material::Hardware(kind) => Some(kind),
            _ => None,
        }
    }

    /// Opens a locked key.
    ///
    /// # Errors
    ///
    /// `WrongPassphrase`, or `Unknown` if it is none that is understood.
    pub fn unlock(&self, passphrase: &Secret) -> Result<PrivateKey, KeyError> {
        match &self.material {
            Material::Clear(key) => Ok((**key).clone()),
            Material::Locked(text) => parse(text, Some(passphrase)),
            Material::Elsewhere => Err(KeyError::Unknown("it is a public one".into())),
            Material::Exposed(_) => Err(KeyError::Unknown("others have access to it".into())),
            Material::Hardware(kind) => Err(KeyError::Unknown(kind.clone())),
        }
    }
}

/// Writes a key in the form that both libraries read from memory.
pub fn to_text(key: &PrivateKey) -> Option<Secret> {
    key.to_openssh(LineEnding::LF).ok().map(|text| Secret::new(text.as_str()))
}

fn read(path: &Path) -> Result<(Zeroizing<String>, Option<u32>), KeyError> {
    let (bytes, exposed) =
        files::read_judged(path, FILE_MAX).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => KeyError::Missing,
            _ => KeyError::Unreadable(error.to_string()),
        })?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok((Zeroizing::new(text.to_owned()), exposed)),
        Err(_) => Err(KeyError::Unknown("it is no text".into())),
    }
}

/// The kind and the public half of a security key's handle.
fn hardware(text: &str) -> Option<(String, Vec<u8>)> {
    let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
    let bytes = Base64::decode_vec(body.trim()).map(Zeroizing::new).ok()?;
    let public = Container::read(&bytes)?.public;
    let kind = String::from_utf8_lossy(Reader(public).string()?).into_owned();
    kind.starts_with("sk-").then(|| (kind, public.to_vec()))
}

fn is_locked(text: &str) -> bool {
    match label(text) {
        Some("OPENSSH PRIVATE KEY") => {
            PrivateKey::from_openssh(text).is_ok_and(|key| key.is_encrypted())
        }
        Some("ENCRYPTED PRIVATE KEY") => true,
        _ => text.lines().any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED")),
    }
}

fn label(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix("-----BEGIN ")?.split("-----").next()
}

fn parse(text: &str, passphrase: Option<&Secret>) -> Result<PrivateKey, KeyError> {
    let unknown = |what: &str| KeyError::Unknown(what.to_owned());
    let label = label(text).ok_or_else(|| unknown("it has no `BEGIN` line"))?;
    let mut headers = text.lines().filter_map(|line| line.split_once(": "));
    let cipher = headers.find(|(name, _)| *name == "DEK-Info").map(|(_, value)| value.trim());
    let body: Zeroizing<String> = Zeroizing::new(
        text.lines().filter(|line| !line.contains(':') && !line.starts_with("-----")).collect(),
    );
    let bytes = Base64::decode_vec(body.trim()).map_err(|_| unknown("it is no base64"))?;
    let mut bytes = Zeroizing::new(bytes);
    if label == "OPENSSH PRIVATE KEY" {
        return of_openssh(text, &bytes, passphrase);
    }
    if let (Some(cipher), Some(passphrase)) = (cipher, passphrase) {
        bytes = decrypt(&bytes, cipher, passphrase)?;
    }
    let data = match label {
        "RSA PRIVATE KEY" => rsa::RsaPrivateKey::from_pkcs1_der(&bytes).ok().and_then(of_rsa),
        "EC PRIVATE KEY" => of_ec(&bytes),
        "PRIVATE KEY" => of_pkcs8(&bytes),
        "ENCRYPTED PRIVATE KEY" => {
            let info = EncryptedPrivateKeyInfo::from_der(&bytes)
                .map_err(|error| KeyError::Unknown(error.to_string()))?;
            let passphrase = passphrase.map_or("", Secret::expose);
            let clear = info.decrypt(passphrase).map_err(|error| match error {
                // The second one is nonsense that has passed the padding by chance.
                pkcs8::Error::EncryptedPrivateKey(
                    pkcs5::Error::DecryptFailed | pkcs5::Error::EncryptFailed,
                )
                | pkcs8::Error::Asn1(_) => KeyError::WrongPassphrase,
                other => KeyError::Unknown(other.to_string()),
            })?;
            bytes = Zeroizing::new(clear.as_bytes().to_vec());
            of_pkcs8(&bytes)
        }
        "DSA PRIVATE KEY" => return Err(unknown("DSA keys are not accepted anywhere any more")),
        other => return Err(unknown(other)),
    };
    // A wrong passphrase may also pass the padding and give nonsense.
    let data = data.ok_or(match passphrase {
        Some(_) if !is_der(&bytes) => KeyError::WrongPassphrase,
        _ => unknown(label),
    })?;
    PrivateKey::new(data, "").map_err(|error| KeyError::Unknown(error.to_string()))
}

/// Whether this is one whole sequence, as every key in DER is.
fn is_der(bytes: &[u8]) -> bool {
    pkcs8::der::asn1::AnyRef::from_der(bytes).is_ok_and(|any| any.tag() == Tag::Sequence)
}

/// Reads OpenSSH's own form.
fn of_openssh(
    text: &str,
    bytes: &[u8],
    passphrase: Option<&Secret>,
) -> Result<PrivateKey, KeyError> {
    let unknown = |error: ssh_key::Error| KeyError::Unknown(error.to_string());
    if let Some(container) = Container::read(bytes).filter(Container::is_ecdsa) {
        return container.open(passphrase);
    }
    let key = PrivateKey::from_openssh(text).map_err(unknown)?;
    match passphrase {
        Some(passphrase) if key.is_encrypted() => {
            key.decrypt(passphrase.expose()).map_err(|error| match error {
                // It says the same of a cipher that it lacks.
                ssh_key::Error::Crypto if key.cipher() != Cipher::TDesCbc => {
                    KeyError::WrongPassphrase
                }
                ssh_key::Error::Crypto => {
                    KeyError::Unknown(format!("it is encrypted with {}", key.cipher()))
                }
                other => unknown(other),
            })
        }
        _ => Ok(key),
    }
}

/// OpenSSH's own form, for ecdsa: `ssh-key` wants the secret number in full length, and OpenSSH
/// leaves zero bytes at its front away.
struct Container<'a> {
    cipher: &'a [u8],
    kdf: &'a [u8],
    kdf_options: &'a [u8],
    public: &'a [u8],
    private: &'a [u8],
    tag: &'a [u8],
}

impl<'a> Container<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut all = Reader(bytes.strip_prefix(b"openssh-key-v1\0")?);
        let (cipher, kdf, kdf_options) = (all.string()?, all.string()?, all.string()?);
        let is_one_key = all.take(4)? == [0, 0, 0, 1];
        let (public, private) = (all.string()?, all.string()?);
        is_one_key.then_some(Self { cipher, kdf, kdf_options, public, private, tag: all.0 })
    }

    fn is_ecdsa(&self) -> bool {
        Reader(self.public).string().is_some_and(|kind| kind.starts_with(b"ecdsa-sha2-"))
    }

    fn open(&self, passphrase: Option<&Secret>) -> Result<PrivateKey, KeyError> {
        let unknown = |what: &str| KeyError::Unknown(what.to_owned());
        let clear = self.decrypt(passphrase)?;
        let mut all = Reader(&clear);
        // Twice the same: only the right passphrase gives that.
        match (all.take(4), all.take(4)) {
            (Some(one), Some(two)) if one == two => {}
            _ if self.cipher == b"none" => return Err(unknown("it is damaged")),
            _ => return Err(KeyError::WrongPassphrase),
        }
        let data = ecdsa(&mut all).ok_or_else(|| unknown("it is damaged"))?;
        let key =
            PrivateKey::new(data, "").map_err(|error| KeyError::Unknown(error.to_string()))?;
        match key.public_key().to_bytes() {
            Ok(public) if public == self.public => Ok(key),
            _ => Err(unknown("its public half is another key's")),
        }
    }

    fn decrypt(&self, passphrase: Option<&Secret>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let name = String::from_utf8_lossy(self.cipher);
        let unknown = || KeyError::Unknown(format!("it is encrypted with {name}"));
        let mut bytes = Zeroizing::new(self.private.to_vec());
        let cipher = Cipher::new(&name).map_err(|_| unknown())?;
        if cipher.is_none() {
            return Ok(bytes);
        }
        let kdf = self.kdf().ok_or_else(unknown)?;
        let tag = match cipher.has_tag() {
            true => Some(self.tag.try_into().map_err(|_| unknown())?),
            false => None,
        };
        if !bytes.len().is_multiple_of(cipher.block_size()) {
            return Err(unknown());
        }
        let passphrase = passphrase.map_or("", Secret::expose);
        let (key, iv) = kdf.derive_key_and_iv(cipher, passphrase).map_err(|error| {
            // bcrypt takes no empty passphrase, so it is none that locks a key.
            if passphrase.is_empty() {
                KeyError::WrongPassphrase
            } else {
                KeyError::Unknown(error.to_string())
            }
        })?;
        let iv = Zeroizing::new(iv);
        cipher.decrypt(&key, &iv, &mut bytes, tag).map_err(|_| KeyError::WrongPassphrase)?;
        Ok(bytes)
    }

    fn kdf(&self) -> Option<Kdf> {
        let mut options = Reader(self.kdf_options);
        let salt = options.string()?.to_vec();
        let rounds = u32::from_be_bytes(options.take(4)?.try_into().ok()?);
        (self.kdf == b"bcrypt").then_some(Kdf::Bcrypt { salt, rounds })
    }
}

/// Reads a kind, a curve, a point and a number, each a string.
fn ecdsa(from: &mut Reader<'_>) -> Option<KeypairData> {
    let (_kind, curve, _point, number) =
        (from.string()?, from.string()?, from.string()?, from.string()?);
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let number = &number[zeros..];
    let full = |size: usize| {
        let mut bytes = Zeroizing::new(vec![0; size]);
        bytes[size.checked_sub(number.len())?..].copy_from_slice(number);
        Some(bytes)
    };
    match curve {
        b"nistp256" => p256::SecretKey::from_slice(&full(32)?).ok().map(of_p256),
        b"nistp384" => p384::SecretKey::from_slice(&full(48)?).ok().map(of_p384),
        b"nistp521" => p521::SecretKey::from_slice(&full(66)?).ok().map(of_p521),
        _ => None,
    }
}

/// Undoes the encryption of the old PEM form, whose key is OpenSSL's `EVP_BytesToKey` with MD5.
fn decrypt(bytes: &[u8], info: &str, passphrase: &Secret) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let unknown = || KeyError::Unknown(format!("it is encrypted with {info}"));
    let (cipher, iv) = info.split_once(',').ok_or_else(unknown)?;
    let iv: Vec<u8> = (0..iv.len() / 2)
        .filter_map(|at| u8::from_str_radix(iv.get(at * 2..at * 2 + 2)?, 16).ok())
        .collect();
    let salt = iv.get(..8).ok_or_else(unknown)?;
    let mut key = Zeroizing::new(Vec::new());
    let mut last = Vec::new();
    while key.len() < 32 {
        let mut hash = Md5::new();
        hash.update(&last);
        hash.update(passphrase.expose().as_bytes());
        hash.update(salt);
        last = hash.finalize().to_vec();
        key.extend_from_slice(&last);
    }
    fn cbc<C: KeyIvInit + BlockDecryptMut>(
        key: &[u8],
        iv: &[u8],
        bytes: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let unknown = || KeyError::Unknown("its encryption has a strange length".into());
        let cipher = C::new_from_slices(key, iv).map_err(|_| unknown())?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(C::block_size()) {
            return Err(unknown());
        }
        cipher.decrypt_padded_vec_mut::<Pkcs7>(bytes).map_err(|_| KeyError::WrongPassphrase)
    }
    let clear = match cipher {
        "AES-128-CBC" => cbc::<cbc::Decryptor<aes::Aes128>>(&key[..16], &iv, bytes),
        "AES-192-CBC" => cbc::<cbc::Decryptor<aes::Aes192>>(&key[..24], &iv, bytes),
        "AES-256-CBC" => cbc::<cbc::Decryptor<aes::Aes256>>(&key[..32], &iv, bytes),
        "DES-EDE3-CBC" => cbc::<cbc::Decryptor<des::TdesEde3>>(&key[..24], &iv, bytes),
        _ => Err(unknown()),
    };
    clear.map(Zeroizing::new)
}

fn of_rsa(key: rsa::RsaPrivateKey) -> Option<KeypairData> {
    RsaKeypair::try_from(key).ok().map(KeypairData::Rsa)
}

fn of_p256(key: p256::SecretKey) -> KeypairData {
    let public = key.public_key().into();
    KeypairData::Ecdsa(EcdsaKeypair::NistP256 { public, private: key.into() })
}

fn of_p384(key: p384::SecretKey) -> KeypairData {
    let public = key.public_key().into();
    KeypairData::Ecdsa(EcdsaKeypair::NistP384 { public, private: key.into() })
}

fn of_p521(key: p521::SecretKey) -> KeypairData {
    let public = key.public_key().into();
    KeypairData::Ecdsa(EcdsaKeypair::NistP521 { public, private: key.into() })
}

fn of_ec(der: &[u8]) -> Option<KeypairData> {
    p256::SecretKey::from_sec1_der(der)
        .map(of_p256)
        .or_else(|_| p384::SecretKey::from_sec1_der(der).map(of_p384))
        .or_else(|_| p521::SecretKey::from_sec1_der(der).map(of_p521))
        .ok()
}

fn of_pkcs8(der: &[u8]) -> Option<KeypairData> {
    // RFC 8410: the private key is an octet string in an octet string.
    let ed25519 = || {
        let info = PrivateKeyInfo::from_der(der).ok()?;
        let seed = info.private_key.strip_prefix(&[0x04, 0x20])?.try_into().ok()?;
        let is_ed25519 = info.algorithm.oid.to_string() == "1.3.101.112";
        is_ed25519.then(|| KeypairData::Ed25519(Ed25519Keypair::from_seed(seed)))
    };
    rsa::RsaPrivateKey::from_pkcs8_der(der)
        .ok()
        .and_then(of_rsa)
        .or_else(|| p256::SecretKey::from_pkcs8_der(der).ok().map(of_p256))
        .or_else(|| p384::SecretKey::from_pkcs8_der(der).ok().map(of_p384))
        .or_else(|| p521::SecretKey::from_pkcs8_der(der).ok().map(of_p521))
        .or_else(ed25519)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// Writes a key with the real `ssh-keygen`, and expects it to be read as it says.
    fn check(kind: &str, form: &str, passphrase: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-N", passphrase, "-C", "", "-f"]).arg(&path);
        keygen.args(kind.split(' ')).args(form.split(' ').filter(|word| !word.is_empty()));
        assert!(keygen.status().unwrap().success(), "{kind} {form}");
        let public = fs::read_to_string(path.with_extension("pub")).unwrap();
        let public = PublicKey::from_openssh(public.trim()).unwrap().to_bytes().unwrap();

        let identity = Identity::load(&path).unwrap();
        assert_eq!(identity.public.as_ref(), Some(&public), "{kind} {form}");
        assert_eq!(identity.is_locked(), !passphrase.is_empty(), "{kind} {form}");
        let key = identity.unlock(&Secret::new(passphrase)).unwrap();
        assert_eq!(key.public_key().to_bytes().unwrap(), public, "{kind} {form}");
        if identity.is_locked() {
            let error = identity.unlock(&Secret::new("wrong")).unwrap_err();
            assert_eq!(error, KeyError::WrongPassphrase, "{kind} {form}");
        }
        let text = to_text(&key).unwrap();
        assert!(!PrivateKey::from_openssh(text.expose()).unwrap().is_encrypted());
    }

    #[test]
    fn every_kind_and_form_that_openssh_writes_is_read() {
        let kinds =
            ["-t ed25519", "-t ecdsa -b 256", "-t ecdsa -b 384", "-t ecdsa -b 521", "-t rsa"];
        for kind in kinds {
            check(kind, "", "");
            check(kind, "", "a passphrase");
            check(kind, "-m PEM", "");
            check(kind, "-m PEM", "a passphrase");
            check(kind, "-m PKCS8", "");
            check(kind, "-m PKCS8", "a passphrase");
        }
        check("-t ed25519", "-Z aes256-gcm@openssh.com", "a passphrase");
        check("-t ed25519", "-Z chacha20-poly1305@openssh.com", "a passphrase");
    }

    /// Writes an ecdsa key as `ssh-keygen` does, which leaves zero bytes at the front of the secret
    /// number away.
    fn short_key(data: KeypairData) -> String {
        let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        let KeypairData::Ecdsa(pair) = &data else { panic!("{data:?}") };
        let number = pair.private_key_bytes();
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        assert!(zeros > 0 && number[zeros] < 0x80);
        let secret = string(&number[zeros..]);
        let public = PrivateKey::new(data, "").unwrap().public_key().to_bytes().unwrap();
        let mut private = [&[7; 8], &public[..], &secret, &string(b"a comment")].concat();
        private.extend((1..).take(private.len().next_multiple_of(8) - private.len()));
        let all = [
            &b"openssh-key-v1\0"[..],
            &string(b"none"),
            &string(b"none"),
            &string(b""),
            &[0, 0, 0, 1],
            &string(&public),
            &string(&private),
        ];
        let body = Base64::encode_string(&all.concat());
        let lines: Vec<_> = body.as_bytes().chunks(70).map(String::from_utf8_lossy).collect();
        let name = "OPENSSH PRIVATE KEY";
        format!("-----BEGIN {name}-----\n{}\n-----END {name}-----\n", lines.join("\n"))
    }

    #[test]
    fn an_ecdsa_key_whose_number_is_short_is_read() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let keygen = |path: &Path, args: &[&str]| {
            let output = Command::new("ssh-keygen").args(args).arg("-f").arg(path).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        for zeros in [1, 2, 12] {
            let number = |size: usize| [&vec![0; zeros][..], &vec![0x11; size - zeros]].concat();
            let keys = [
                of_p256(p256::SecretKey::from_bytes(number(32)[..].into()).unwrap()),
                of_p384(p384::SecretKey::from_bytes(number(48)[..].into()).unwrap()),
                of_p521(p521::SecretKey::from_bytes(number(66)[..].into()).unwrap()),
            ];
            for (index, data) in keys.into_iter().enumerate() {
                let path = folder.path().join(format!("{zeros}-{index}"));
                fs::write(&path, short_key(data.clone())).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                let public = PublicKey::from_openssh(&keygen(&path, &["-y"])).unwrap();
                let public = public.to_bytes().unwrap();

                let identity = Identity::load(&path).unwrap();
                assert_eq!(identity.public.as_ref(), Some(&public));
                assert_eq!(identity.clear().unwrap().key_data(), &data);
                // The form that the libraries get is whole.
                fs::write(&path, to_text(identity.clear().unwrap()).unwrap().expose()).unwrap();
                keygen(&path, &["-y"]);

                let mut before = "";
                for cipher in ["aes256-ctr", "aes128-cbc", "aes256-gcm", "chacha20-poly1305"] {
                    let aead = cipher.contains("gcm") || cipher.contains("poly");
                    let full = format!("{cipher}{}", if aead { "@openssh.com" } else { "" });
                    let lock = ["-q", "-p", "-a", "1", "-Z", &full, "-P", before, "-N", "sesame"];
                    keygen(&path, &lock);
                    before = "sesame";
                    let identity = Identity::load(&path).unwrap();
                    assert!(identity.is_locked());
                    assert_eq!(identity.public.as_ref(), Some(&public), "{cipher}");
                    let key = identity.unlock(&Secret::new("sesame")).unwrap();
                    assert_eq!(key.key_data(), &data, "{cipher}");
                    let error = identity.unlock(&Secret::new("wrong")).unwrap_err();
                    assert_eq!(error, KeyError::WrongPassphrase, "{cipher}");
                }
            }
        }
    }

    #[test]
    fn a_key_open_to_others_gives_its_public_half_alone() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        for (name, passphrase) in [("clear", ""), ("locked", "sesame")] {
            let path = folder.path().join(name);
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", passphrase, "-f"]).arg(&path);
            assert!(keygen.status().unwrap().success());
            let load = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
                Identity::load(path).unwrap()
            };
            let whole = load(&path, 0o700);
            assert_eq!(whole.exposed(), None);
            assert!(whole.clear().is_some() != whole.is_locked());
            for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601] {
                let identity = load(&path, mode);
                assert_eq!((identity.exposed(), &identity.public), (Some(mode), &whole.public));
                assert!(identity.clear().is_none() && !identity.is_locked());
                assert!(identity.unlock(&Secret::new(passphrase)).is_err());
            }
            let public = load(&path.with_extension("pub"), 0o666);
            assert!(public.exposed().is_none() && public.is_elsewhere());
        }
    }

    #[test]
    fn what_is_no_key_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(Identity::load(&path).err(), Some(KeyError::Missing));
        fs::write(&path, "hello").unwrap();
        assert!(matches!(Identity::load(&path), Err(KeyError::Unknown(_))));
        for path in [Path::new("/dev/zero"), folder.path()] {
            assert!(matches!(Identity::load(path), Err(KeyError::Unreadable(_))));
        }
    }

    #[test]
    fn only_a_wrong_passphrase_is_called_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let openssl = |args: &str| {
            let mut openssl = Command::new("openssl");
            let output = openssl.args(args.split(' ')).current_dir(folder.path()).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        // A kind of key that ssh has not, well encrypted.
        openssl("genpkey -algorithm ed448 -aes-256-cbc -pass pass:right -out key");
        let identity = Identity::load(&path).unwrap();
        let opened = |passphrase: &str| identity.unlock(&Secret::new(passphrase)).unwrap_err();
        assert!(matches!(opened("right"), KeyError::Unknown(_)), "{:?}", opened("right"));
        assert_eq!(opened("wrong"), KeyError::WrongPassphrase);
        // A cipher that we have not.
        openssl("genrsa -traditional -camellia128 -passout pass:right -out key 2048");
        let identity = Identity::load(&path).unwrap();
        let error = identity.unlock(&Secret::new("right")).unwrap_err();
        assert_eq!(error, KeyError::Unknown(error_of("CAMELLIA-128-CBC", &path)));
    }

    /// What is said of a file that is encrypted in some other way.
    fn error_of(cipher: &str, path: &Path) -> String {
        let text = fs::read_to_string(path).unwrap();
        let info = text.lines().find_map(|line| line.strip_prefix("DEK-Info: ")).unwrap();
        assert!(info.starts_with(cipher), "{info}");
        format!("it is encrypted with {info}")
    }

    #[test]
    fn the_handle_of_a_security_key_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
        let kind = "sk-ssh-ed25519@openssh.com";
        let public = [string(kind.as_bytes()), string(&[7; 32]), string(b"ssh:")].concat();
        let all = [
            &b"openssh-key-v1\0"[..],
            &string(b"none"),
            &string(b"none"),
            &string(b""),
            &[0, 0, 0, 1],
            &string(&public),
            &string(&[1; 64]),
        ];
        let body = Base64::encode_string(&all.concat());
        let name = "OPENSSH PRIVATE KEY";
        fs::write(&path, format!("-----BEGIN {name}-----\n{body}\n-----END {name}-----\n"))
            .unwrap();
        let identity = Identity::load(&path).unwrap();
        assert_eq!((identity.hardware(), identity.public.as_ref()), (Some(kind), Some(&public)));
        assert!(identity.clear().is_none() && !identity.is_locked());
    }
}
