//! The manager's `channel` messages, written and read by hand, because everything that a person
//! does with a server goes through them.
//!
//! They carry an envelope for a server, or from one, whose bytes are a list of numbers on the wire.
//! Serde would look at each byte several times and put it into 32 others meanwhile. What is written
//! and read here is the same as with [`ManagerRequest`](super::message::ManagerRequest) and
//! [`ManagerResponse`](super::message::ManagerResponse).

use bytes::Bytes;
use rmp::Marker;

use super::envelope::{read_text, skip, InvalidMessage, Request, Response};
use super::message::Header;

/// Bytes that an id may have.
const ID: usize = 1024;
/// Bytes that a header may have.
const HEADER: usize = 256 * 1024;
/// Bytes that are written and read together.
const BLOCK: usize = 64;

/// Writes the payload of a request to a manager: `request` for the server behind `channel`.
pub fn request(channel: u32, request: &Request) -> Bytes {
    let ids = [("id", request.id.as_str())];
    write("request", channel, &request.header, &ids, &request.payload)
}

/// Writes the payload of a manager's reply: `response` of the server behind `channel`.
pub fn response(channel: u32, response: &Response) -> Bytes {
    let ids = [("id", response.id.as_str()), ("origin_id", response.origin_id.as_str())];
    write("response", channel, &response.header, &ids, &response.payload)
}

/// Reads what [`request`] writes; `None` if the payload is another message.
pub fn parse_request(payload: &[u8]) -> Option<Result<(u32, Request), InvalidMessage>> {
    let read = read("request", payload)?;
    Some(read.and_then(|(channel, members)| {
        let Members { header, id, origin_id: _, payload } = members;
        Ok((channel, Request { header, id: id.ok_or_else(incomplete)?, payload: payload? }))
    }))
}

/// Reads what [`response`] writes; `None` if the payload is another message.
pub fn parse_response(payload: &[u8]) -> Option<Result<(u32, Response), InvalidMessage>> {
    let read = read("response", payload)?;
    Some(read.and_then(|(channel, members)| {
        let Members { header, id, origin_id, payload } = members;
        let (id, origin_id) = id.zip(origin_id).ok_or_else(incomplete)?;
        Ok((channel, Response { header, id, origin_id, payload: payload? }))
    }))
}

fn incomplete() -> InvalidMessage {
    InvalidMessage::new("an incomplete envelope in a channel message")
}

fn write(name: &str, channel: u32, header: &Header, ids: &[(&str, &str)], payload: &[u8]) -> Bytes {
    let long = payload.iter().filter(|byte| **byte >= 0x80).count();
    let mut out = Vec::with_capacity(256 + payload.len() + long);
    let members = ids.len() + 1 + usize::from(!header.is_empty());
    // Writing into memory cannot fail.
    let _ = rmp::encode::write_map_len(&mut out, 3);
    let _ = rmp::encode::write_str(&mut out, "type");
    let _ = rmp::encode::write_str(&mut out, "channel");
    let _ = rmp::encode::write_str(&mut out, "id");
    let _ = rmp::encode::write_uint(&mut out, channel.into());
    let _ = rmp::encode::write_str(&mut out, name);
    let _ = rmp::encode::write_map_len(&mut out, members as u32);
    if !header.is_empty() {
        let _ = rmp::encode::write_str(&mut out, "header");
        write_numbers(&mut out, &super::pack(header));
    }
    for (name, id) in ids {
        let _ = rmp::encode::write_str(&mut out, name);
        let _ = rmp::encode::write_str(&mut out, id);
    }
    let _ = rmp::encode::write_str(&mut out, "payload");
    write_numbers(&mut out, payload);
    out.into()
}

fn write_numbers(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = rmp::encode::write_array_len(out, bytes.len() as u32);
    let mut numbers = [0; 2 * BLOCK];
    for block in bytes.chunks(BLOCK) {
        if is_plain(block) {
            out.extend_from_slice(block);
            continue;
        }
        // No branch: in a file that is no text, each second one would be guessed wrong.
        let mut at = 0;
        for &byte in block {
            // Where it does not belong the byte itself takes its place.
            numbers[at] = Marker::U8.to_u8();
            at += usize::from(byte >> 7);
            numbers[at] = byte;
            at += 1;
        }
        out.extend_from_slice(&numbers[..at]);
    }
}

/// Whether all of these bytes are numbers below 128, which are themselves on the wire.
fn is_plain(block: &[u8]) -> bool {
    block.iter().fold(0, |all, byte| all | byte) < 0x80
}

struct Members {
    header: Header,
    id: Option<String>,
    origin_id: Option<String>,
    payload: Result<Bytes, InvalidMessage>,
}

fn read(name: &str, payload: &[u8]) -> Option<Result<(u32, Members), InvalidMessage>> {
    let mut rest = payload;
    // What begins otherwise is left to serde, also a `channel` with its members in another order.
    let count = rmp::decode::read_map_len(&mut rest).ok()?;
    let is_channel = read_text(&mut rest, 16).ok()? == "type"
        && read_text(&mut rest, 64).ok()? == "channel"
        && count == 3;
    is_channel.then(|| {
        let mut channel = None;
        let mut members = None;
        for _ in 1..count {
            match read_text(&mut rest, 16)? {
                "id" => channel = rmp::decode::read_int(&mut rest).ok(),
                member if member == name => members = Some(read_members(&mut rest)?),
                _ => return Err(InvalidMessage::new("a channel message with an unknown member")),
            }
        }
        match rest {
            [] => channel.zip(members).ok_or_else(incomplete),
            _ => Err(InvalidMessage::new("something follows the payload")),
        }
    })
}

fn read_members(rest: &mut &[u8]) -> Result<Members, InvalidMessage> {
    let count = rmp::decode::read_map_len(rest).map_err(|_| incomplete())?;
    let mut members = Members {
        header: Header::new(),
        id: None,
        origin_id: None,
        payload: Err(InvalidMessage::new("no `payload`")),
    };
    for _ in 0..count {
        match read_text(rest, 16)? {
            "header" => members.header = read_header(rest)?,
            "id" => members.id = Some(read_text(rest, ID)?.to_owned()),
            "origin_id" => members.origin_id = Some(read_text(rest, ID)?.to_owned()),
            "payload" => members.payload = Ok(read_numbers(rest)?),
            _ => return Err(InvalidMessage::new("an envelope with an unknown member")),
        }
    }
    Ok(members)
}

fn read_header(rest: &mut &[u8]) -> Result<Header, InvalidMessage> {
    let bytes = read_numbers(rest)?;
    match bytes.len() {
        0 => Ok(Header::new()),
        1..=HEADER => super::unpack(&bytes).map_err(InvalidMessage::new),
        _ => Err(InvalidMessage::new("a `header` that is too long")),
    }
}

/// Reads a list of numbers that are bytes, or MessagePack's own bytes.
fn read_numbers(rest: &mut &[u8]) -> Result<Bytes, InvalidMessage> {
    let bad = || InvalidMessage::new("something else where bytes are expected");
    let marker = Marker::from_u8(*rest.first().ok_or_else(bad)?);
    if let Marker::Bin8 | Marker::Bin16 | Marker::Bin32 = marker {
        let mut span = skip(rest)?;
        rmp::decode::read_bin_len(&mut span).map_err(|_| bad())?;
        return Ok(Bytes::copy_from_slice(span));
    }
    let length = rmp::decode::read_array_len(rest).map_err(|_| bad())? as usize;
    // Each number has at least one byte.
    if length > rest.len() {
        return Err(bad());
    }
    let numbers = *rest;
    let mut bytes = Vec::with_capacity(length);
    let mut block = [0; BLOCK];
    let mut at = 0;
    // The byte before is the marker of the next one.
    let mut is_marked = false;
    while bytes.len() < length {
        // As many bytes hold no more numbers than are wanted.
        let most = (length - bytes.len()).min(BLOCK);
        let read = &numbers[at..numbers.len().min(at + most)];
        if read.is_empty() {
            return Err(bad());
        }
        at += read.len();
        if !is_marked && is_plain(read) {
            bytes.extend_from_slice(read);
            continue;
        }
        // No branch here either.
        let mut count = 0;
        let mut is_bad = false;
        for &byte in read {
            block[count] = byte;
            let is_marker = !is_marked & (byte == Marker::U8.to_u8());
            is_bad |= !is_marked & !is_marker & (byte >= 0x80);
            count += usize::from(!is_marker);
            is_marked = is_marker;
        }
        if is_bad {
            return Err(bad());
        }
        bytes.extend_from_slice(&block[..count]);
    }
    *rest = &numbers[at..];
    Ok(bytes.into())
}
