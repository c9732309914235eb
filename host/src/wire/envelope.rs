//! Requests and responses as they travel: header, ids, and a payload that stays bytes.
//!
//! Released programs want the members in one order and drop everything else without a word, so
//! that order is what is written. Any order is read.

use bytes::Bytes;
use rand::Rng;
use rmp::Marker;
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::message::{Header, UntypedRequest, UntypedResponse};

/// Bytes that a header may have, because what it is read into is many times as large.
const HEADER: usize = 256 * 1024;
/// Bytes that an id may have.
const ID: usize = 1024;

/// A request of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Extensions; mostly empty.
    pub header: Header,
    /// Chosen by the client; names it in every response.
    pub id: String,
    /// MessagePack.
    pub payload: Bytes,
}

/// A response of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Extensions; mostly empty.
    pub header: Header,
    /// Chosen by the server.
    pub id: String,
    /// The request's id.
    pub origin_id: String,
    /// MessagePack.
    pub payload: Bytes,
}

/// What arrived is not what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid message: {reason}")]
pub struct InvalidMessage {
    /// What is wrong with it.
    pub reason: String,
    /// The id of the envelope, where that much could be read.
    pub id: Option<String>,
}

impl InvalidMessage {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), id: None }
    }
}

impl Request {
    /// Makes a request with a random id and no header.
    pub fn new<T: Serialize + ?Sized>(payload: &T) -> Self {
        Self { header: Header::new(), id: random_id(), payload: super::pack(payload).into() }
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// It is no `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidMessage> {
        unpack(&self.payload)
    }

    /// Reads a request from the content of a frame.
    ///
    /// # Errors
    ///
    /// It is none. The error has the id if it could be read, so that somebody can be told.
    pub fn from_frame(content: &Bytes) -> Result<Self, InvalidMessage> {
        let members = Members::read(content)?;
        let id = members.id.clone();
        let request = (|| {
            if members.origin_id.is_some() {
                return Err(InvalidMessage::new("a response where a request is expected"));
            }
            let id = members.id.ok_or_else(|| InvalidMessage::new("no `id`"))?;
            let header = members.header?;
            Ok(Self { header, id, payload: members.payload? })
        })();
        request.map_err(|error| InvalidMessage { id, ..error })
    }

    /// Writes the content of a frame.
    pub fn to_frame(&self) -> Bytes {
        write(&self.header, &[("id", &self.id)], &self.payload)
    }
}

impl Response {
    /// Makes a response with a random id.
    pub fn new(header: Header, origin_id: impl Into<String>, payload: Bytes) -> Self {
        Self { header, id: random_id(), origin_id: origin_id.into(), payload }
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// It is no `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidMessage> {
        unpack(&self.payload)
    }

    /// Reads a response from the content of a frame.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn from_frame(content: &Bytes) -> Result<Self, InvalidMessage> {
        let members = Members::read(content)?;
        let id = members.id.ok_or_else(|| InvalidMessage::new("no `id`"))?;
        let origin_id = members.origin_id.ok_or_else(|| InvalidMessage::new("no `origin_id`"))?;
        Ok(Self { header: members.header?, id, origin_id, payload: members.payload? })
    }

    /// Writes the content of a frame.
    pub fn to_frame(&self) -> Bytes {
        write(&self.header, &[("id", &self.id), ("origin_id", &self.origin_id)], &self.payload)
    }
}

fn unpack<T: DeserializeOwned>(payload: &[u8]) -> Result<T, InvalidMessage> {
    super::unpack(payload).map_err(InvalidMessage::new)
}

fn random_id() -> String {
    rand::thread_rng().gen::<u64>().to_string()
}

fn write(header: &Header, ids: &[(&str, &str)], payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(64 + payload.len());
    let members = ids.len() + 1 + usize::from(!header.is_empty());
    // Writing into memory cannot fail.
    let _ = rmp::encode::write_map_len(&mut out, members as u32);
    if !header.is_empty() {
        let _ = rmp::encode::write_str(&mut out, "header");
        out.extend_from_slice(&super::pack(header));
    }
    for (name, id) in ids {
        let _ = rmp::encode::write_str(&mut out, name);
        let _ = rmp::encode::write_str(&mut out, id);
    }
    let _ = rmp::encode::write_str(&mut out, "payload");
    out.extend_from_slice(payload);
    out.into()
}

/// What an envelope consists of; each member may be wrong for itself.
struct Members {
    header: Result<Header, InvalidMessage>,
    id: Option<String>,
    origin_id: Option<String>,
    payload: Result<Bytes, InvalidMessage>,
}

impl Members {
    fn read(content: &Bytes) -> Result<Self, InvalidMessage> {
        let mut rest: &[u8] = content;
        let count = rmp::decode::read_map_len(&mut rest)
            .map_err(|_| InvalidMessage::new("an envelope that is no map"))?;
        if count > 4 {
            return Err(InvalidMessage::new("an envelope with too many members"));
        }
        let mut members = Self {
            header: Ok(Header::new()),
            id: None,
            origin_id: None,
            payload: Err(InvalidMessage::new("no `payload`")),
        };
        for index in 1..=count {
            // What was read before is kept: the id is needed to answer.
            if let Err(error) = members.read_one(content, &mut rest, index == count) {
                members.payload = Err(error);
                return Ok(members);
            }
        }
        if !rest.is_empty() {
            members.payload = Err(InvalidMessage::new("something follows the envelope"));
        }
        Ok(members)
    }

    fn read_one(
        &mut self,
        content: &Bytes,
        rest: &mut &[u8],
        is_last: bool,
    ) -> Result<(), InvalidMessage> {
        let name = read_text(rest, 16)?;
        match name {
            "id" => self.id = Some(read_text(rest, ID)?.to_owned()),
            "origin_id" => self.origin_id = Some(read_text(rest, ID)?.to_owned()),
            "header" => {
                let span = skip(rest)?;
                self.header = match span.len() {
                    0..=HEADER => unpack(span),
                    _ => Err(InvalidMessage::new("a `header` that is too long")),
                };
            }
            // The last member ends where the frame does: no need to walk through it.
            "payload" if is_last => {
                let span = std::mem::take(rest);
                self.payload = match span.is_empty() {
                    true => Err(InvalidMessage::new("no `payload`")),
                    false => Ok(content.slice_ref(span)),
                };
            }
            "payload" => self.payload = Ok(content.slice_ref(skip(rest)?)),
            _ => return Err(InvalidMessage::new("an envelope with an unknown member")),
        }
        Ok(())
    }
}

fn truncated() -> InvalidMessage {
    InvalidMessage::new("it ends too early")
}

pub(super) fn read_text<'a>(
    rest: &mut &'a [u8],
    longest: usize,
) -> Result<&'a str, InvalidMessage> {
    let bad = || InvalidMessage::new("something else where a text is expected");
    let length = rmp::decode::read_str_len(rest).map_err(|_| bad())? as usize;
    if length > longest {
        return Err(InvalidMessage::new("a text that is too long"));
    }
    let (text, after) = rest.split_at_checked(length).ok_or_else(truncated)?;
    *rest = after;
    std::str::from_utf8(text).map_err(|_| bad())
}

/// Skips one value, however deep it nests, and returns its bytes.
pub(super) fn skip<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], InvalidMessage> {
    let start = *rest;
    // Values that are still to come; each of them has at least one byte.
    let mut pending = 1_u64;
    while pending > 0 {
        if pending > rest.len() as u64 {
            return Err(truncated());
        }
        let (children, length) = read_marker(rest)?;
        *rest = rest.get(length..).ok_or_else(truncated)?;
        pending = pending - 1 + children;
    }
    Ok(&start[..start.len() - rest.len()])
}

/// Reads a marker with its length: how many values follow in it, and how many bytes.
fn read_marker(rest: &mut &[u8]) -> Result<(u64, usize), InvalidMessage> {
    let mut number = |bytes: usize| -> Result<usize, InvalidMessage> {
        let (digits, after) = rest.split_at_checked(bytes).ok_or_else(truncated)?;
        *rest = after;
        Ok(digits.iter().fold(0, |number, digit| (number << 8) | usize::from(*digit)))
    };
    Ok(match Marker::from_u8(number(1)? as u8) {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
            (0, 0)
        }
        Marker::U8 | Marker::I8 => (0, 1),
        Marker::U16 | Marker::I16 => (0, 2),
        Marker::U32 | Marker::I32 | Marker::F32 => (0, 4),
        Marker::U64 | Marker::I64 | Marker::F64 => (0, 8),
        Marker::FixStr(length) => (0, usize::from(length)),
        Marker::Str8 | Marker::Bin8 => (0, number(1)?),
        Marker::Str16 | Marker::Bin16 => (0, number(2)?),
        Marker::Str32 | Marker::Bin32 => (0, number(4)?),
        Marker::FixArray(count) => (u64::from(count), 0),
        Marker::Array16 => (number(2)? as u64, 0),
        Marker::Array32 => (number(4)? as u64, 0),
        Marker::FixMap(count) => (u64::from(count) * 2, 0),
        Marker::Map16 => (number(2)? as u64 * 2, 0),
        Marker::Map32 => (number(4)? as u64 * 2, 0),
        Marker::FixExt1 => (0, 2),
        Marker::FixExt2 => (0, 3),
        Marker::FixExt4 => (0, 5),
        Marker::FixExt8 => (0, 9),
        Marker::FixExt16 => (0, 17),
        Marker::Ext8 => (0, number(1)? + 1),
        Marker::Ext16 => (0, number(2)? + 1),
        Marker::Ext32 => (0, number(4)? + 1),
        Marker::Reserved => {
            return Err(InvalidMessage::new("a byte that MessagePack does not use"))
        }
    })
}

impl From<Request> for UntypedRequest {
    fn from(request: Request) -> Self {
        Self { header: request.header, id: request.id, payload: request.payload }
    }
}

impl From<UntypedRequest> for Request {
    fn from(request: UntypedRequest) -> Self {
        Self { header: request.header, id: request.id, payload: request.payload }
    }
}

impl From<Response> for UntypedResponse {
    fn from(response: Response) -> Self {
        let Response { header, id, origin_id, payload } = response;
        Self { header, id, origin_id, payload }
    }
}

impl From<UntypedResponse> for Response {
    fn from(response: UntypedResponse) -> Self {
        let UntypedResponse { header, id, origin_id, payload } = response;
        Self { header, id, origin_id, payload }
    }
}
