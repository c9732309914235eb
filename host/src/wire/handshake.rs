//! What both ends say before the first request: versions, choices, key exchanges, and the proof of
//! the session key.
//!
//! The key exchange of the 0.20 wire protects from listeners only: a machine in the middle can make
//! one with each end. The proof closes that gap. Both ends show that they know the session key by
//! an HMAC over the whole exchange as they saw it, so the proofs fit only if both saw the same one,
//! and a machine in the middle neither can make one nor learns anything from those it sees.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distant_plugin_api::connect_line::HELLO_MAX;
use distant_plugin_api::secret::SessionKey;
use hmac::{Hmac, Mac};
use p256::ecdh::EphemeralSecret;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::PublicKey;
use rand::rngs::OsRng;
use rand::RngCore;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::frame::{CompressionLevel, CompressionType, EncryptionType};
use super::message::PROTOCOL_VERSION;

/// The method in which nothing has to be shown.
pub(super) const METHOD_NONE: &str = "none";
/// The method in which the key is sent.
pub(super) const METHOD_KEY: &str = "static_key";
/// The method in which the key is proved, by both ends.
pub(super) const METHOD_PROOF: &str = "static_key_proof";

/// Bytes of a version as it is sent.
pub(super) const VERSION_LENGTH: usize = 24;

/// Prints this end's version for the wire.
pub(super) fn version() -> [u8; VERSION_LENGTH] {
    let mut bytes = [0; VERSION_LENGTH];
    for (chunk, number) in bytes.chunks_exact_mut(8).zip(PROTOCOL_VERSION) {
        chunk.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// Tells whether a client of this version gets on with the server's; if not, the server's as text.
pub(super) fn check_version(bytes: &[u8; VERSION_LENGTH]) -> Result<(), String> {
    let mut numbers = [0; 3];
    for (number, chunk) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *number = u64::from_be_bytes(*chunk);
    }
    let [major, minor, patch] = numbers;
    if numbers >= PROTOCOL_VERSION && [major, minor] == PROTOCOL_VERSION[..2] {
        Ok(())
    } else {
        Err(format!("{major}.{minor}.{patch}"))
    }
}

/// What a server can do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) compression_types: Vec<CompressionType>,
    pub(super) encryption_types: Vec<EncryptionType>,
}

/// What a server of ours can do, as it says it.
pub(super) fn offer() -> Vec<u8> {
    super::pack(&Offer {
        compression_types: vec![
            CompressionType::Deflate,
            CompressionType::Gzip,
            CompressionType::Zlib,
        ],
        encryption_types: vec![EncryptionType::XChaCha20Poly1305],
    })
}

/// What a client wants of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Choice {
    pub(super) compression_level: Option<CompressionLevel>,
    pub(super) compression_type: Option<CompressionType>,
    pub(super) encryption_type: Option<EncryptionType>,
}

impl Choice {
    /// What frames are compressed with from now on.
    pub(super) fn compression(&self) -> Option<(CompressionType, CompressionLevel)> {
        Some((self.compression_type?, self.compression_level.unwrap_or_default()))
    }
}

/// Whether a connection is a new one.
#[derive(Serialize, Deserialize)]
pub(super) enum Connect {
    /// It is.
    #[serde(rename = "Connect")]
    New,
    /// It takes the place of one that was lost.
    Reconnect {
        /// Which.
        id: u32,
        /// The one-time password, or its proof.
        #[serde(with = "serde_bytes")]
        otp: Vec<u8>,
    },
}

/// Frames `[sent, received, available]` that both ends compare after a reconnection.
pub(super) type Counters = (u64, u64, u64);

/// One end's half of a key exchange.
#[derive(Serialize, Deserialize)]
pub(super) struct ExchangeHalf {
    #[serde(with = "serde_bytes")]
    public_key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    salt: Vec<u8>,
}

/// A key that both ends of a connection have worked out: for the frames, or for a reconnection.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct SharedKey([u8; 32]);

impl SharedKey {
    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    pub(super) fn is(&self, other: &[u8]) -> bool {
        bool::from(subtle::ConstantTimeEq::ct_eq(self.0.as_slice(), other))
    }
}

/// This end's part in a key exchange.
pub(super) struct Exchange {
    secret: EphemeralSecret,
    salt: [u8; 32],
}

impl Exchange {
    pub(super) fn new() -> Self {
        let mut salt = [0; 32];
        OsRng.fill_bytes(&mut salt);
        Self { secret: EphemeralSecret::random(&mut OsRng), salt }
    }

    /// What the other end has to get.
    pub(super) fn half(&self) -> ExchangeHalf {
        ExchangeHalf {
            public_key: self.secret.public_key().to_encoded_point(false).as_bytes().to_vec(),
            salt: self.salt.to_vec(),
        }
    }

    /// Works the key out of the other end's half.
    pub(super) fn finish(&self, theirs: &ExchangeHalf) -> io::Result<SharedKey> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a key exchange that is none");
        let public = PublicKey::from_sec1_bytes(&theirs.public_key).map_err(|_| bad())?;
        let their_salt: &[u8; 32] = theirs.salt.as_slice().try_into().map_err(|_| bad())?;
        let mut salt = self.salt;
        salt.iter_mut().zip(their_salt).for_each(|(ours, theirs)| *ours ^= theirs);
        let mut key = [0; 32];
        self.secret
            .diffie_hellman(&public)
            .extract::<Sha256>(Some(&salt))
            .expand(&[], &mut key)
            .map_err(|_| bad())?;
        Ok(SharedKey(key))
    }
}

/// All that a server says before its client has said anything, its half of the key exchange
/// included: whoever was told of it beforehand, by a way on which nobody reads or changes it, need
/// not wait for it.
///
/// It is a half as any other and the exchange one of two fresh keys, so nothing that is kept, such
/// as the session key, is of use to whoever has recorded the connection. It is used until the first
/// client has shown the key, and forgotten then.
pub struct Hello {
    exchange: Mutex<Option<Arc<Exchange>>>,
    /// What came of it with the clients that have shown the session key after it. None is taken
    /// twice, so that who recorded what a client sent gets nowhere by sending it again, in whatever
    /// words its half of the exchange is put. Only connections that were open when the first one
    /// showed the key can add to it, and their number is limited.
    shown: Mutex<Vec<SharedKey>>,
}

impl fmt::Debug for Hello {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Hello").finish_non_exhaustive()
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self { exchange: Mutex::new(Some(Arc::new(Exchange::new()))), shown: Mutex::default() }
    }
}

impl Hello {
    fn exchange(&self) -> MutexGuard<'_, Option<Arc<Exchange>>> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text for whoever starts the server; nothing once it is of no use any more.
    pub fn text(&self) -> Option<String> {
        let half = super::pack(&self.told()?.half());
        Some(hex::encode(super::pack(&(&version()[..], offer(), half))))
    }

    /// The key exchange that was told of, for a new connection, unless it is of no use any more.
    pub(super) fn told(&self) -> Option<Arc<Exchange>> {
        self.exchange().clone()
    }

    /// A client of the exchange that was told of, which came to this key, has shown the session key.
    /// Tells whether none did that before that came to the same.
    pub(super) fn take(&self, key: SharedKey) -> bool {
        *self.exchange() = None;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !shown.iter().any(|known| known.is(key.expose()));
        if is_new {
            shown.push(key);
        }
        is_new
    }
}

/// What a client was told of a [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub(super) version: [u8; VERSION_LENGTH],
    pub(super) offer: Vec<u8>,
    pub(super) half: Vec<u8>,
}

impl Told {
    /// Reads the text; nothing if it is none, or of a server that this client does not know.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = hex::decode(Some(text).filter(|text| text.len() <= HELLO_MAX)?).ok()?;
        let (version, offer, half): (Vec<u8>, Vec<u8>, Vec<u8>) = super::unpack(&bytes).ok()?;
        let version = version.try_into().ok()?;
        check_version(&version).ok()?;
        Some(Self { version, offer, half })
    }
}

/// Who proves.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Client,
    Server,
}

/// All that was said so far, in both directions.
#[derive(Clone, Default)]
pub(super) struct Transcript(Sha256);

impl Transcript {
    /// Adds one piece; the pieces stay apart, whatever they contain.
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.0.update((piece.len() as u64).to_be_bytes());
        self.0.update(piece);
    }

    /// Proves that `key` is known to the end that saw this.
    pub(super) fn prove(&self, purpose: Purpose<'_>, role: Role) -> [u8; 32] {
        self.mac(purpose, role).finalize().into_bytes().into()
    }

    /// Checks the other end's proof, in constant time.
    pub(super) fn verify(&self, purpose: Purpose<'_>, role: Role, proof: &[u8]) -> bool {
        self.mac(purpose, role).verify_slice(proof).is_ok()
    }

    fn mac(&self, purpose: Purpose<'_>, role: Role) -> Hmac<Sha256> {
        let (key, purpose) = match purpose {
            Purpose::Connect(key) => (key.expose(), "connect"),
            Purpose::Reconnect(otp) => (otp.expose(), "reconnect"),
        };
        let role = match role {
            Role::Client => "client",
            Role::Server => "server",
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(format!("{METHOD_PROOF} {purpose} {role}").as_bytes());
        mac.update(&self.0.clone().finalize());
        mac
    }
}

/// What is proved: the session key, or the one-time password that replaces it.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    Connect(&'a SessionKey),
    Reconnect(&'a SharedKey),
}

/// Reads a message of the set-up.
pub(super) fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    super::unpack(bytes).map_err(|reason| {
        io::Error::new(io::ErrorKind::InvalidData, format!("an unexpected message: {reason}"))
    })
}
