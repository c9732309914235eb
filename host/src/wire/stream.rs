//! One TCP connection or unix socket with frames on it: what both ends do with it.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::frame::{Codec, FrameReader};
use super::handshake::unpack;
use super::outbox::Outbox;
use super::pack;

/// Bytes of frames that are written at once.
const BATCH: usize = 128 * 1024;
/// A write buffer that has grown beyond this is given back.
const KEEP: usize = 16 * 1024;
/// For what is queued to be written when a connection is closed.
pub(super) const FLUSH: Duration = Duration::from_secs(1);

/// What a connection runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Socket for S {}

/// The half that reads, with its count.
pub(super) struct Reading<S> {
    frames: FrameReader<ReadHalf<S>>,
    /// Frames since the `Connect` frame, as the other end wants them counted.
    pub(super) received: u64,
    /// Whether heartbeats count, as released clients do and released servers do not expect.
    pub(super) counts_heartbeats: bool,
}

impl<S: Socket> Reading<S> {
    /// Reads the next frame; empty for a heartbeat, `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let frame = self.frames.next().await?;
        if let Some((content, has_body)) = &frame {
            if !content.is_empty() || (*has_body && self.counts_heartbeats) {
                self.received += 1;
            }
        }
        Ok(frame.map(|(content, _)| content))
    }

    /// Whether nothing has come that was not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Lets contents be this long from now on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.frames.limit = limit;
    }
}

/// The half that writes, with its count.
pub(super) struct Writing<S> {
    stream: WriteHalf<S>,
    codec: Codec,
    buffer: BytesMut,
    /// Frames that were put.
    pub(super) sent: u64,
}

impl<S: Socket> Writing<S> {
    /// Appends a frame to what [`Self::flush`] writes; whether it has a body.
    pub(super) fn put(&mut self, content: &[u8]) -> bool {
        self.sent += 1;
        self.codec.encode(content, &mut self.buffer)
    }

    /// Appends a message in a frame of its own.
    pub(super) fn put_message<T: Serialize + ?Sized>(&mut self, message: &T) {
        self.put(&pack(message));
    }

    /// Appends bytes that are in no frame.
    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes what was put.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let written = self.stream.write_all(&self.buffer).await;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP {
            self.buffer = BytesMut::new();
        }
        written
    }

    /// Tells the other end that nothing more comes.
    pub(super) async fn shut(&mut self) {
        // It may be gone already.
        let _ = self.stream.shutdown().await;
    }

    /// Writes frames of `outbox` as they come, until it is finished and empty.
    pub(super) async fn drain(&mut self, outbox: &Outbox) -> io::Result<()> {
        while outbox.ready().await {
            self.put_queued(outbox);
            self.flush().await?;
        }
        Ok(())
    }

    /// Appends what is queued, up to one batch.
    pub(super) fn put_queued(&mut self, outbox: &Outbox) {
        for frame in outbox.take(BATCH) {
            self.put(&frame);
        }
    }
}

/// Both halves.
pub(super) struct Stream<S> {
    pub(super) reading: Reading<S>,
    pub(super) writing: Writing<S>,
}

impl<S: Socket> Stream<S> {
    pub(super) fn new(socket: S, limit: usize) -> Self {
        let (read, write) = tokio::io::split(socket);
        Self {
            reading: Reading {
                frames: FrameReader::new(read, limit),
                received: 0,
                counts_heartbeats: false,
            },
            writing: Writing {
                stream: write,
                codec: Codec::default(),
                buffer: BytesMut::new(),
                sent: 0,
            },
        }
    }

    /// Uses `codec` from here on, and counts frames from here on.
    pub(super) fn switch(&mut self, codec: Codec) {
        self.say(codec.clone());
        self.hear(codec);
    }

    /// The half of [`Self::switch`] for what is written.
    pub(super) fn say(&mut self, codec: Codec) {
        self.writing.codec = codec;
        self.writing.sent = 0;
    }

    /// The half of [`Self::switch`] for what is read.
    pub(super) fn hear(&mut self, codec: Codec) {
        self.reading.frames.codec = codec;
        self.reading.received = 0;
    }

    /// Reads bytes that are in no frame.
    pub(super) async fn raw<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.reading.frames.raw().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads a frame that has to come now.
    pub(super) async fn expect(&mut self) -> io::Result<Bytes> {
        self.reading.next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads a message that has to come now.
    pub(super) async fn expect_message<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        unpack(&self.expect().await?)
    }
}
