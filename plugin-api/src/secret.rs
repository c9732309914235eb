//! Values that must never be seen: they print as `[redacted]` and are wiped when dropped.
//!
//! Serialising one writes the real value, because the messages of a launch have to carry it. So a
//! secret may be serialised only into a pipe or socket whose other end is meant to have it, never
//! into a log, an error, an argument or a file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

const REDACTED: &str = "[redacted]";

/// A password, a passphrase, a one-time code: text that only its addressee may see.
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text; every copy made before this call is the caller's to wipe.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows the text. Grep for this name to find every place that handles a clear secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// The 32 bytes that let whoever knows them use a server.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; Self::LENGTH]);

impl SessionKey {
    /// Bytes in a key.
    pub const LENGTH: usize = 32;

    /// Wraps the bytes of a key.
    pub fn new(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes.
    pub fn expose(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// Shows the key as 64 lower-case hexadecimal digits, as a connect line has it.
    pub fn expose_hex(&self) -> Secret {
        Secret(hex::encode(self.0))
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// The text is not 64 hexadecimal digits. It is not repeated here, as it may be a key with a typo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session key has 64 hexadecimal digits")]
pub struct InvalidKey;

impl FromStr for SessionKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut bytes = [0; Self::LENGTH];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidKey)?;
        Ok(Self(bytes))
    }
}

impl Serialize for SessionKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose_hex().expose())
    }
}

impl<'de> Deserialize<'de> for SessionKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Secret::deserialize(deserializer)?;
        text.expose().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_nothing_of_itself_and_travels_whole() {
        let key: SessionKey = "0f".repeat(32).parse().unwrap();
        assert_eq!(format!("{:?} {:?}", Secret::new("hunter2"), key), "[redacted] [redacted]");
        assert_eq!(serde_json::to_string(&Secret::new("hunter2")).unwrap(), "\"hunter2\"");
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<SessionKey>(&json).unwrap(), key);
    }

    #[test]
    fn a_bad_key_is_refused_without_being_repeated() {
        for bad in ["", "0f", &"0g".repeat(32), &"0f".repeat(33)] {
            let error = bad.parse::<SessionKey>().unwrap_err().to_string();
            assert_eq!(error, "a session key has 64 hexadecimal digits");
        }
    }
}
