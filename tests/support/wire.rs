//! The 0.20 wire as its description has it, written apart from the product's own.
//!
//! It is blocking, plain and trusting, speaks for either end, and says whatever a test wants it to:
//! what is right comes from the test, not from shared code.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use p256::ecdh::EphemeralSecret;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::PublicKey;
use rand::rngs::OsRng;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use sha2::Sha256;

use super::PATIENCE;

/// What a connection runs over.
pub(crate) trait Stream: Read + Write + Send {
    /// Another handle of the same.
    fn twin(&self) -> Box<dyn Stream>;
    /// Lets both directions end.
    fn end(&self);
    /// How long a read may take.
    fn wait_at_most(&self, limit: Duration);
}

macro_rules! stream {
    ($type:ty) => {
        impl Stream for $type {
            fn twin(&self) -> Box<dyn Stream> {
                Box::new(self.try_clone().unwrap())
            }

            fn end(&self) {
                let _ = self.shutdown(std::net::Shutdown::Both);
            }

            fn wait_at_most(&self, limit: Duration) {
                self.set_read_timeout(Some(limit)).unwrap();
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);

#[derive(Serialize, Deserialize)]
struct Half {
    #[serde(with = "serde_bytes")]
    public_key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    salt: Vec<u8>,
}

/// One end of a connection.
pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    cipher: Option<XChaCha20Poly1305>,
    patience: Duration,
}

/// Writes a message in the way of this wire.
pub(crate) fn pack<T: Serialize + ?Sized>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).unwrap()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Wire {
    /// Takes a fresh connection; nothing was said on it yet.
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        stream.wait_at_most(PATIENCE);
        Self { stream: Box::new(stream), cipher: None, patience: PATIENCE }
    }

    /// Connects to a manager and says nothing yet.
    pub(crate) fn open_manager(socket: &Path) -> Self {
        Self::over(UnixStream::connect(socket).unwrap())
    }

    /// Connects to a server and says nothing yet.
    pub(crate) fn open_server(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// A client of a manager, ready for requests.
    pub(crate) fn manager(socket: &Path) -> Self {
        let mut this = Self::open_manager(socket);
        this.be_client().unwrap();
        this.connect(None).unwrap();
        this
    }

    /// A client of a server, ready for requests.
    pub(crate) fn server(address: SocketAddr, key: &str) -> Self {
        let mut this = Self::open_server(address);
        this.be_client().unwrap();
        this.connect(Some(key)).unwrap();
        this
    }

    /// Another handle of the same end, for a thread of its own.
    pub(crate) fn twin(&self) -> Self {
        let (stream, cipher) = (self.stream.twin(), self.cipher.clone());
        Self { stream, cipher, patience: self.patience }
    }

    /// Closes it.
    pub(crate) fn end(&self) {
        self.stream.end();
    }

    /// Limits how long it waits for a message, whatever heartbeats come.
    pub(crate) fn wait_at_most(&mut self, limit: Duration) {
        self.patience = limit;
        self.stream.wait_at_most(limit);
    }

    /// Writes bytes as they are.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads everything that still comes; an error if that does not end in time.
    pub(crate) fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let (end, mut rest, mut buffer) = (Instant::now() + self.patience, Vec::new(), [0; 4096]);
        while Instant::now() < end {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(rest),
                Ok(count) => rest.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(rest),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The body of a frame with this content: encrypted, once the keys are exchanged.
    pub(crate) fn seal(&self, content: &[u8]) -> Vec<u8> {
        let Some(cipher) = &self.cipher else { return content.to_vec() };
        let mut nonce = [0; 24];
        OsRng.fill_bytes(&mut nonce);
        let mut body = nonce.to_vec();
        body.extend(cipher.encrypt(XNonce::from_slice(&nonce), content).unwrap());
        body
    }

    /// Sends one frame.
    pub(crate) fn send(&mut self, content: &[u8]) -> io::Result<()> {
        let body = self.seal(content);
        let mut frame = (body.len() as u64).to_be_bytes().to_vec();
        frame.extend(body);
        self.stream.write_all(&frame)
    }

    /// Receives one frame, heartbeats left out.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<u8>> {
        let end = Instant::now() + self.patience;
        while Instant::now() < end {
            let content = self.receive_any()?;
            if !content.is_empty() {
                return Ok(content);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Receives one frame, which may be a heartbeat.
    pub(crate) fn receive_any(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 8];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; u64::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut body)?;
        match &self.cipher {
            None => Ok(body),
            Some(cipher) => {
                let (nonce, sealed) = body.split_at_checked(24).ok_or_else(|| invalid("nonce"))?;
                let opened = cipher.decrypt(XNonce::from_slice(nonce), sealed);
                opened.map_err(|_| invalid("a frame that was tampered with"))
            }
        }
    }

    /// Receives one message.
    pub(crate) fn message(&mut self) -> io::Result<Value> {
        let content = self.receive()?;
        rmp_serde::from_slice(&content).map_err(|error| invalid(&error.to_string()))
    }

    /// Sends one message.
    pub(crate) fn say<T: Serialize + ?Sized>(&mut self, message: &T) -> io::Result<()> {
        self.send(&pack(message))
    }

    /// Exchanges keys; what both have is the result.
    fn exchange(&mut self) -> io::Result<[u8; 32]> {
        let secret = EphemeralSecret::random(&mut OsRng);
        let mut salt = [0; 32];
        OsRng.fill_bytes(&mut salt);
        let public_key = secret.public_key().to_encoded_point(false).as_bytes().to_vec();
        self.say(&Half { public_key, salt: salt.to_vec() })?;
        let theirs = self.receive()?;
        let theirs: Half = rmp_serde::from_slice(&theirs).map_err(|_| invalid("half"))?;
        let public = PublicKey::from_sec1_bytes(&theirs.public_key);
        let shared = secret.diffie_hellman(&public.map_err(|_| invalid("point"))?);
        salt.iter_mut().zip(&theirs.salt).for_each(|(ours, theirs)| *ours ^= theirs);
        let mut key = [0; 32];
        let secret = shared.raw_secret_bytes();
        Hkdf::<Sha256>::new(Some(&salt), secret).expand(&[], &mut key).unwrap();
        Ok(key)
    }

    /// As the client: version, choice of the encryption, keys.
    pub(crate) fn be_client(&mut self) -> io::Result<()> {
        let mut version = [0; 24];
        self.stream.read_exact(&mut version)?;
        let offer = self.message()?;
        assert_eq!(offer["encryption_types"][0], "XChaCha20Poly1305", "{offer}");
        self.say(&json!({
            "compression_level": null,
            "compression_type": null,
            "encryption_type": "XChaCha20Poly1305",
        }))?;
        let key = self.exchange()?;
        self.cipher = Some(XChaCha20Poly1305::new(&key.into()));
        Ok(())
    }

    /// As the server: version, offer of the encryption, keys.
    pub(crate) fn be_server(&mut self) -> io::Result<()> {
        let version: Vec<u8> = [0u64, 20, 0].into_iter().flat_map(u64::to_be_bytes).collect();
        self.stream.write_all(&version)?;
        self.say(&json!({
            "compression_types": ["Deflate", "Gzip", "Zlib"],
            "encryption_types": ["XChaCha20Poly1305"],
        }))?;
        self.message()?;
        let key = self.exchange()?;
        self.cipher = Some(XChaCha20Poly1305::new(&key.into()));
        Ok(())
    }

    /// As the client: says who it is, with a key or with nothing, and gets a one-time password.
    pub(crate) fn connect(&mut self, key: Option<&str>) -> io::Result<()> {
        self.say("Connect")?;
        self.message()?;
        let offered = self.message()?;
        assert_eq!(offered["type"], "auth_initialization", "{offered}");
        let method = if key.is_some() { "static_key" } else { "none" };
        self.say(&json!({"type": "auth_initialization_response", "methods": [method]}))?;
        loop {
            let said = self.message()?;
            match said["type"].as_str() {
                Some("auth_challenge") => {
                    self.say(&json!({"type": "auth_challenge_response", "answers": [key]}))?;
                }
                Some("auth_finished") => break,
                Some("auth_start_method") => {}
                _ => return Err(invalid(&said.to_string())),
            }
        }
        self.exchange()?;
        Ok(())
    }

    /// Sends a request.
    pub(crate) fn request(&mut self, id: &str, payload: &Value) -> io::Result<()> {
        self.say(&json!({"id": id, "payload": payload}))
    }

    /// Waits for a reply to this request; those to others get lost.
    pub(crate) fn reply(&mut self, id: &str) -> io::Result<Value> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let reply = self.message()?;
            if reply["origin_id"] == id {
                return Ok(reply["payload"].clone());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Sends a request and waits for its first reply.
    pub(crate) fn ask(&mut self, id: &str, payload: &Value) -> io::Result<Value> {
        self.request(id, payload)?;
        self.reply(id)
    }
}
