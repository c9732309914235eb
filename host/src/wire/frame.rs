//! Frames: the pieces that both ends cut their bytes into, and what is done to each of them.
//!
//! A frame is its length as big-endian u64 and that many bytes. Its content is encrypted first and
//! compressed then. Every length is checked before anything is allocated for it, and nothing is
//! decompressed beyond what a frame may hold.

use std::fmt;
use std::io::{self, Read};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use flate2::bufread as inflate;
use flate2::{read as deflate, Compression};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a frame's length.
const PREFIX: usize = 8;
/// Bytes of the nonce that precedes what is encrypted.
const NONCE: usize = 24;
/// Bytes of the authentication code that follows it.
const TAG: usize = 16;
/// Room that one read has at least.
const READ: usize = 8 * 1024;
/// Room that one read has at most, when a long frame has begun.
const READ_MOST: usize = 256 * 1024;
/// A read buffer that has grown beyond this is given back when it is empty.
const KEEP: usize = 64 * 1024;

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompressionType {
    /// DEFLATE without a header or a checksum (RFC 1951).
    Deflate,
    /// DEFLATE in a gzip member (RFC 1952).
    Gzip,
    /// DEFLATE in a zlib stream (RFC 1950).
    Zlib,
    /// A kind that this build does not know.
    #[serde(other)]
    Unknown,
}

/// How hard the compressor tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompressionLevel {
    /// Not at all.
    Zero,
    /// Fastest.
    One,
    /// Level 2.
    Two,
    /// Level 3.
    Three,
    /// Level 4.
    Four,
    /// Level 5.
    Five,
    /// Usual.
    #[default]
    Six,
    /// Level 7.
    Seven,
    /// Level 8.
    Eight,
    /// Smallest.
    Nine,
}

/// How frames are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionType {
    /// The only one.
    XChaCha20Poly1305,
    /// A kind that this build does not know.
    #[serde(other)]
    Unknown,
}

/// What is wrong with a frame. The connection cannot be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    /// It claims to be longer than a frame may be.
    #[error("a frame of {length} bytes, where {limit} are allowed")]
    TooLong {
        /// What it claims, or what came out of the decompressor so far.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// It is not encrypted with the key of this connection.
    #[error("a frame that cannot be decrypted")]
    Encryption,
    /// It is not compressed as agreed.
    #[error("a frame that cannot be decompressed")]
    Compression,
}

impl From<InvalidFrame> for io::Error {
    fn from(error: InvalidFrame) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What both ends do to the content of each frame; nothing by default.
#[derive(Clone, Default)]
pub struct Codec {
    cipher: Option<XChaCha20Poly1305>,
    compression: Option<(CompressionType, CompressionLevel)>,
}

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec")
            .field("is_encrypted", &self.cipher.is_some())
            .field("compression", &self.compression)
            .finish()
    }
}

impl Codec {
    /// Encrypts with `key` and compresses as told.
    pub fn new(
        key: Option<&[u8; 32]>,
        compression: Option<(CompressionType, CompressionLevel)>,
    ) -> Self {
        Self { cipher: key.map(|key| XChaCha20Poly1305::new(key.into())), compression }
    }

    /// Appends the frame that has this content to `out`.
    ///
    /// An empty content is a heartbeat. Returns whether the frame has a body, which a heartbeat has
    /// too as soon as there is encryption: released clients count such frames.
    pub fn encode(&self, content: &[u8], out: &mut BytesMut) -> bool {
        let start = out.len();
        out.reserve(PREFIX + NONCE + content.len() + TAG);
        out.put_u64(0);
        match &self.cipher {
            None => out.put_slice(content),
            Some(cipher) => {
                let mut nonce = [0; NONCE];
                rand::thread_rng().fill_bytes(&mut nonce);
                out.put_slice(&nonce);
                out.put_slice(content);
                let text = &mut out[start + PREFIX + NONCE..];
                match cipher.encrypt_in_place_detached(XNonce::from_slice(&nonce), b"", text) {
                    Ok(tag) => out.put_slice(&tag),
                    // Only beyond 256 GiB. The peer refuses a body without its tag.
                    Err(_) => out.truncate(start + PREFIX),
                }
            }
        }
        if let Some((kind, level)) = self.compression {
            let body = compress(kind, level, &out[start + PREFIX..]);
            out.truncate(start + PREFIX);
            out.put_slice(&body);
        }
        let length = out.len() - start - PREFIX;
        out[start..start + PREFIX].copy_from_slice(&(length as u64).to_be_bytes());
        length > 0
    }

    /// Reads the body of a frame back into its content, which may have `limit` bytes.
    ///
    /// # Errors
    ///
    /// The body was not made by the other end's [`Self::encode`], or holds more than `limit`.
    pub fn decode(&self, mut body: BytesMut, limit: usize) -> Result<Bytes, InvalidFrame> {
        if let Some((kind, _)) = self.compression {
            body = decompress(kind, &body, self.sealed(limit))?;
        }
        if let Some(cipher) = &self.cipher {
            if body.len() < NONCE + TAG {
                return Err(InvalidFrame::Encryption);
            }
            let nonce = body.split_to(NONCE);
            let tag = body.split_off(body.len() - TAG);
            cipher
                .decrypt_in_place_detached(
                    XNonce::from_slice(&nonce),
                    b"",
                    &mut body,
                    Tag::from_slice(&tag),
                )
                .map_err(|_| InvalidFrame::Encryption)?;
        }
        if body.len() > limit {
            return Err(InvalidFrame::TooLong { length: body.len() as u64, limit });
        }
        Ok(body.freeze())
    }

    /// The longest body that a content of `limit` bytes can have.
    fn longest(&self, limit: usize) -> usize {
        let sealed = self.sealed(limit);
        match self.compression {
            // What cannot be compressed grows a little: stored blocks, headers, checksums.
            Some(_) => sealed + sealed / 1000 + 128,
            None => sealed,
        }
    }

    fn sealed(&self, limit: usize) -> usize {
        match self.cipher {
            Some(_) => limit + NONCE + TAG,
            None => limit,
        }
    }
}

fn compress(kind: CompressionType, level: CompressionLevel, text: &[u8]) -> Vec<u8> {
    let level = Compression::new(level as u32);
    let mut out = Vec::new();
    // Reading from memory into memory cannot fail.
    let _ = match kind {
        CompressionType::Deflate => deflate::DeflateEncoder::new(text, level).read_to_end(&mut out),
        CompressionType::Gzip => deflate::GzEncoder::new(text, level).read_to_end(&mut out),
        CompressionType::Zlib => deflate::ZlibEncoder::new(text, level).read_to_end(&mut out),
        CompressionType::Unknown => Ok(0),
    };
    out
}

fn decompress(kind: CompressionType, body: &[u8], limit: usize) -> Result<BytesMut, InvalidFrame> {
    let mut out = Vec::with_capacity(body.len().min(limit));
    // One byte more than allowed is enough to know, however much a bomb still holds.
    let allowed = limit as u64 + 1;
    let read = match kind {
        CompressionType::Deflate => {
            inflate::DeflateDecoder::new(body).take(allowed).read_to_end(&mut out)
        }
        CompressionType::Gzip => inflate::GzDecoder::new(body).take(allowed).read_to_end(&mut out),
        CompressionType::Zlib => {
            inflate::ZlibDecoder::new(body).take(allowed).read_to_end(&mut out)
        }
        CompressionType::Unknown => return Err(InvalidFrame::Compression),
    };
    match read {
        Err(_) => Err(InvalidFrame::Compression),
        Ok(length) if length > limit => Err(InvalidFrame::TooLong { length: length as u64, limit }),
        Ok(_) => Ok(Bytes::from(out).into()),
    }
}

/// Cuts the next frame's body off `buffer`; `None` while it is not complete.
///
/// # Errors
///
/// It claims more than `limit` bytes.
pub fn cut(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, InvalidFrame> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u64::from_be_bytes(*prefix);
    if length > limit as u64 {
        return Err(InvalidFrame::TooLong { length, limit });
    }
    // It fits, as it is not above `limit`.
    let length = length as usize;
    if buffer.len() - PREFIX < length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length)))
}

/// How many bytes of the frame that has begun are still to come.
fn missing(buffer: &[u8]) -> usize {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return 0 };
    let whole = u64::from_be_bytes(*prefix).saturating_add(PREFIX as u64);
    whole.saturating_sub(buffer.len() as u64).try_into().unwrap_or(usize::MAX)
}

/// Reads frames from one half of a connection.
pub(super) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    /// What is done to the frames; changes while a connection is set up.
    pub(super) codec: Codec,
    /// How long a content may be; grows with authentication.
    pub(super) limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R, limit: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), codec: Codec::default(), limit }
    }

    /// Reads the next frame: content, and whether it had a body. `None` at the end of the stream.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Bytes, bool)>> {
        loop {
            if let Some(body) = cut(&mut self.buffer, self.codec.longest(self.limit))? {
                let counts = !body.is_empty();
                if self.codec.cipher.is_none() && !counts {
                    return Ok(Some((Bytes::new(), false)));
                }
                return Ok(Some((self.codec.decode(body, self.limit)?, counts)));
            }
            if self.buffer.is_empty() && self.buffer.capacity() > KEEP {
                self.buffer = BytesMut::new();
            }
            // The length has been checked, but what is announced need not come.
            let missing = missing(&self.buffer).clamp(READ, READ_MOST);
            self.buffer.reserve(missing);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// Whether nothing has come that was not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Reads bytes that are in no frame; `None` at the end of the stream before the first of them.
    pub(super) async fn raw<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        while self.buffer.len() < N {
            self.buffer.reserve(READ);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        let mut bytes = [0; N];
        self.buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
