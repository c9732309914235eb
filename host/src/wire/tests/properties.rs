//! Properties of the pure parts, on random input.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::wire::channel;
use crate::wire::envelope::Response;
use crate::wire::frame::{cut, Codec, CompressionLevel, CompressionType};
use crate::wire::outbox::Outbox;

fn codec() -> impl Strategy<Value = Codec> {
    let kind = prop_oneof![
        Just(CompressionType::Deflate),
        Just(CompressionType::Gzip),
        Just(CompressionType::Zlib)
    ];
    let level = prop_oneof![
        Just(CompressionLevel::Zero),
        Just(CompressionLevel::One),
        Just(CompressionLevel::Nine)
    ];
    let compression = proptest::option::of((kind, level));
    (proptest::option::of(any::<[u8; 32]>()), compression)
        .prop_map(|(key, compression)| Codec::new(key.as_ref(), compression))
}

fn header() -> impl Strategy<Value = Header> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,5}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    proptest::collection::btree_map(".{0,10}", value, 0..3)
        .prop_map(|map| map.into_iter().collect())
}

fn payload() -> impl Strategy<Value = Bytes> {
    // One complete value: bytes of any kind.
    proptest::collection::vec(any::<u8>(), 0..2000).prop_map(|bytes| {
        let mut payload = Vec::new();
        rmp::encode::write_bin(&mut payload, &bytes).unwrap();
        payload.into()
    })
}

fn request() -> impl Strategy<Value = Request> {
    (header(), ".{0,40}", payload()).prop_map(|(header, id, payload)| Request {
        header,
        id,
        payload,
    })
}

fn response() -> impl Strategy<Value = Response> {
    (request(), ".{0,40}").prop_map(|(Request { header, id, payload }, origin_id)| Response {
        header,
        id,
        origin_id,
        payload,
    })
}

/// Reads bytes as everything that they could be; nothing may panic.
fn read_as_anything(bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    let _ = Request::from_frame(&bytes);
    let _ = Response::from_frame(&bytes);
    let _ = channel::parse_request(&bytes);
    let _ = channel::parse_response(&bytes);
    let mut buffer = BytesMut::from(&bytes[..]);
    let _ = cut(&mut buffer, 1000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn frames_come_out_as_they_went_in(
        codec in codec(),
        contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..4),
        step in 1_usize..500,
    ) {
        let mut wire = BytesMut::new();
        for content in &contents {
            codec.encode(content, &mut wire);
        }
        let mut buffer = BytesMut::new();
        let mut read = Vec::new();
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(body) = cut(&mut buffer, 1_000_000).unwrap() {
                let is_plain_heartbeat = body.is_empty();
                read.push(if is_plain_heartbeat {
                    Vec::new()
                } else {
                    codec.decode(body, 3000).unwrap().to_vec()
                });
            }
        }
        prop_assert_eq!(read, contents);
    }

    #[test]
    fn a_frame_that_was_changed_is_not_taken(
        key in any::<[u8; 32]>(),
        content in proptest::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let codec = Codec::new(Some(&key), None);
        let mut wire = BytesMut::new();
        codec.encode(&content, &mut wire);
        let mut body = cut(&mut wire, 1000).unwrap().unwrap();
        let place = place.index(body.len());
        body[place] ^= 1_u8 << bit;
        prop_assert!(codec.decode(body, 1000).is_err());
    }

    #[test]
    fn envelopes_come_out_as_they_went_in(request in request(), response in response()) {
        prop_assert_eq!(&Request::from_frame(&request.to_frame()).unwrap(), &request);
        prop_assert_eq!(&Response::from_frame(&response.to_frame()).unwrap(), &response);
        let carried = channel::request(9, &request);
        prop_assert_eq!(channel::parse_request(&carried), Some(Ok((9, request))));
        let carried = channel::response(9, &response);
        prop_assert_eq!(channel::parse_response(&carried), Some(Ok((9, response))));
    }

    #[test]
    fn garbage_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read_as_anything(bytes);
    }

    #[test]
    fn almost_right_is_read_without_a_panic(
        request in request(),
        response in response(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for right in [
            request.to_frame(),
            response.to_frame(),
            channel::request(1, &request),
            channel::response(1, &response),
        ] {
            let mut wrong = right.to_vec();
            for (place, byte) in &changes {
                let place = place.index(wrong.len());
                wrong[place] = *byte;
            }
            read_as_anything(wrong);
        }
    }

    #[test]
    fn garbage_is_decoded_without_a_panic(
        codec in codec(),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = codec.decode(BytesMut::from(&body[..]), 100);
    }

    /// Whatever is cut off wherever, with heartbeats in between: each message arrives once.
    #[test]
    fn an_outbox_brings_everything_over_in_its_order(
        steps in proptest::collection::vec((0_usize..4, 0_usize..6, any::<prop::sample::Index>()), 1..40),
    ) {
        let outbox = Outbox::new(6, 1_000_000);
        let mut next = 0_u32;
        let mut arrived = Vec::new();
        let mut counted = 6_u64;
        for (pushes, takes, cut) in steps {
            for _ in 0..pushes {
                outbox.try_push(&Bytes::from(next.to_be_bytes().to_vec())).unwrap();
                next += 1;
            }
            // On their way: messages, and heartbeats as `None`.
            let mut way = Vec::new();
            for take in 0..takes {
                way.extend(outbox.take(1).into_iter().map(Some));
                if take % 2 == 1 {
                    outbox.count_heartbeat();
                    way.push(None);
                }
            }
            let got = cut.index(way.len() + 1);
            counted += got as u64;
            arrived.extend(way.into_iter().take(got).flatten());
            outbox.resume(counted).unwrap();
        }
        arrived.extend(outbox.take(usize::MAX));
        let expected: Vec<_> = (0..next).map(|number| Bytes::from(number.to_be_bytes().to_vec())).collect();
        prop_assert_eq!(arrived, expected);
    }
}
