//! No bytes from a socket make a reader panic or hold more than its limit, and whatever is taken
//! for an envelope is written in a way that is read back as the same.
#![no_main]

use bytes::{Bytes, BytesMut};
use distant::wire::channel;
use distant::wire::envelope::{Request, Response};
use distant::wire::frame::{Codec, CompressionLevel, CompressionType};
use distant::wire::message::{Authentication, AuthenticationResponse, ManagerRequest};
use libfuzzer_sys::fuzz_target;

/// Most bytes that a frame may hold here.
const LIMIT: usize = 64 * 1024;

fn frame(bytes: &[u8]) {
    let kinds = [CompressionType::Deflate, CompressionType::Gzip, CompressionType::Zlib];
    let compressions = kinds.map(|kind| Some((kind, CompressionLevel::default())));
    for compression in compressions.into_iter().chain([None]) {
        for key in [None, Some(&[7; 32])] {
            let codec = Codec::new(key, compression);
            if let Ok(content) = codec.decode(BytesMut::from(bytes), LIMIT) {
                assert!(content.len() <= LIMIT);
            }
            let mut written = BytesMut::new();
            codec.encode(bytes, &mut written);
            let read = codec.decode(written.split_off(8), bytes.len());
            assert_eq!(read.as_deref().ok(), Some(bytes));
        }
    }
}

fn envelope(content: &Bytes) {
    if let Ok(request) = Request::from_frame(content) {
        let again = Request::from_frame(&request.to_frame()).unwrap();
        assert_eq!((again.id, again.payload), (request.id.clone(), request.payload.clone()));
        let _ = request.parse::<ManagerRequest>();
        let _ = channel::parse_request(&request.payload);
    }
    if let Ok(response) = Response::from_frame(content) {
        let again = Response::from_frame(&response.to_frame()).unwrap();
        assert_eq!(again.origin_id, response.origin_id);
        let _ = response.parse::<Authentication>();
        let _ = response.parse::<AuthenticationResponse>();
        let _ = channel::parse_response(&response.payload);
    }
    let _ = channel::parse_request(content);
    let _ = channel::parse_response(content);
}

fuzz_target!(|bytes: &[u8]| {
    frame(bytes);
    envelope(&Bytes::copy_from_slice(bytes));
});
