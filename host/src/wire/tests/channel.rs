//! Our messages against those of the released crates, byte for byte.

use bytes::Bytes;
use distant_core::net::auth::msg as released_auth;
use distant_core::net::common::{
    Request as ReleasedRequest, Response as ReleasedResponse,
    UntypedRequest as ReleasedUntypedRequest, UntypedResponse as ReleasedUntypedResponse,
};
use distant_core::net::manager as released;
use distant_plugin_api::secret::Secret;
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::json;

use super::*;
use crate::wire::channel;
use crate::wire::envelope::Response;
use crate::wire::message::{
    Authentication, AuthenticationQuestion, AuthenticationResponse, ConnectionInfo, ConnectionList,
    ManagerRequest, ManagerResponse, UntypedRequest, UntypedResponse,
};

/// Ours is written as the released one writes the same, and each is read back from the other.
fn check<O, R>(ours: &O)
where
    O: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let bytes = rmp_serde::to_vec_named(ours).unwrap();
    let theirs: R = rmp_serde::from_slice(&bytes).unwrap();
    let rewritten = rmp_serde::to_vec_named(&theirs).unwrap();
    assert_eq!(rewritten, bytes, "{}", serde_json::to_string(ours).unwrap());
    let back: O = rmp_serde::from_slice(&rewritten).unwrap();
    assert_eq!(rmp_serde::to_vec_named(&back).unwrap(), bytes);
}

fn options() -> BTreeMap<String, String> {
    [("username".to_owned(), "me".to_owned())].into()
}

fn header() -> Header {
    let header = json!({"launcher": {"version": 1, "nested": [1, [2.5, {"deep": null}], "text"]}});
    header.as_object().unwrap().clone()
}

fn untyped_request() -> UntypedRequest {
    let payload = Bytes::from_iter(0..=255_u8);
    UntypedRequest { header: header(), id: "7".to_owned(), payload }
}

fn untyped_response() -> UntypedResponse {
    let UntypedRequest { header, id, payload } = untyped_request();
    UntypedResponse { header, id, origin_id: "3_7".to_owned(), payload }
}

#[test]
fn requests_to_a_manager_are_the_released_ones() {
    let destination = || Secret::new("ssh://me@box:22");
    let connect_options = || Secret::new(r#"key="value""#);
    let answers = vec![Secret::new("hunter2")];
    for request in [
        ManagerRequest::Version,
        ManagerRequest::Launch { destination: destination(), options: connect_options() },
        ManagerRequest::Connect { destination: destination(), options: Secret::new("") },
        ManagerRequest::Authenticate {
            id: 1,
            msg: AuthenticationResponse::Initialization { methods: vec!["none".to_owned()] },
        },
        ManagerRequest::Authenticate {
            id: 70_000,
            msg: AuthenticationResponse::Challenge { answers },
        },
        ManagerRequest::Authenticate {
            id: 1,
            msg: AuthenticationResponse::Verification { valid: true },
        },
        ManagerRequest::OpenChannel { id: 300 },
        ManagerRequest::Channel { id: 3, request: untyped_request() },
        ManagerRequest::Channel {
            id: 3,
            request: UntypedRequest { header: Header::new(), ..untyped_request() },
        },
        ManagerRequest::CloseChannel { id: 3 },
        ManagerRequest::Info { id: 3 },
        ManagerRequest::Kill { id: 3 },
        ManagerRequest::List,
    ] {
        check::<_, released::ManagerRequest>(&request);
    }
}

#[test]
fn replies_of_a_manager_are_the_released_ones() {
    let destination = "ssh://me@box:22".to_owned();
    for response in [
        ManagerResponse::Version { version: "0.20.0".to_owned() },
        ManagerResponse::Launched { destination: Secret::new("distant://:abc@box:8080") },
        ManagerResponse::Connected { id: u32::MAX },
        ManagerResponse::Authenticate { id: 3, msg: Authentication::Finished },
        ManagerResponse::ChannelOpened { id: 3 },
        ManagerResponse::Channel { id: 3, response: untyped_response() },
        ManagerResponse::ChannelClosed { id: 3 },
        ManagerResponse::Info(ConnectionInfo {
            id: 3,
            destination: destination.clone(),
            options: r#"key="value""#.to_owned(),
        }),
        ManagerResponse::List(ConnectionList::default()),
        // Of one, because the released list has no order.
        ManagerResponse::List(ConnectionList([(70_000, destination)].into())),
        ManagerResponse::Killed,
        ManagerResponse::Error { description: "a reason".to_owned() },
    ] {
        check::<_, released::ManagerResponse>(&response);
    }
}

#[test]
fn frames_of_the_authentication_are_the_released_ones() {
    let text = || "a text".to_owned();
    let question = AuthenticationQuestion { label: text(), text: text(), options: options() };
    for message in [
        Authentication::Initialization { methods: vec!["static_key".to_owned()] },
        Authentication::StartMethod { method: "static_key".to_owned() },
        Authentication::Challenge { questions: vec![question], options: options() },
        Authentication::Verification { kind: "host".to_owned(), text: text() },
        Authentication::Info { text: text() },
        Authentication::Error { kind: "fatal".to_owned(), text: text() },
        Authentication::Error { kind: "error".to_owned(), text: text() },
        Authentication::Finished,
    ] {
        check::<_, released_auth::Authentication>(&message);
    }
}

#[test]
fn envelopes_are_the_released_ones() {
    let text = BTreeMap::from([("type".to_owned(), "version".to_owned())]);
    for header in [Header::new(), header()] {
        let request = Request { header: header.clone(), ..Request::new(&text) };
        let frame = request.to_frame();
        let theirs = ReleasedUntypedRequest::from_slice(&frame).unwrap();
        assert_eq!(theirs.to_bytes(), frame);
        let typed: ReleasedRequest<Message> = theirs.to_typed_request().unwrap();
        assert_eq!(typed.payload, text);
        assert_eq!(Request::from_frame(&typed.to_vec().unwrap().into()).unwrap(), request);

        let response = Response::new(header, "7", request.payload.clone());
        let frame = response.to_frame();
        let theirs = ReleasedUntypedResponse::from_slice(&frame).unwrap();
        assert_eq!(theirs.to_bytes(), frame);
        let typed: ReleasedResponse<Message> = theirs.to_typed_response().unwrap();
        assert_eq!(typed.payload, text);
        assert_eq!(Response::from_frame(&typed.to_vec().unwrap().into()).unwrap(), response);
    }
}

#[test]
fn channel_messages_by_hand_are_those_by_serde() {
    for header in [Header::new(), header()] {
        let untyped = UntypedRequest { header: header.clone(), ..untyped_request() };
        let by_serde = pack(&ManagerRequest::Channel { id: 70_000, request: untyped.clone() });
        let request = Request::from(untyped);
        assert_eq!(channel::request(70_000, &request), by_serde);
        assert_eq!(channel::parse_request(&by_serde), Some(Ok((70_000, request))));

        let untyped = UntypedResponse { header, ..untyped_response() };
        let by_serde = pack(&ManagerResponse::Channel { id: 3, response: untyped.clone() });
        let response = Response::from(untyped);
        assert_eq!(channel::response(3, &response), by_serde);
        assert_eq!(channel::parse_response(&by_serde), Some(Ok((3, response))));
    }
}

#[test]
fn what_is_no_channel_message_is_left_to_serde() {
    for request in [ManagerRequest::List, ManagerRequest::OpenChannel { id: 1 }] {
        assert_eq!(channel::parse_request(&pack(&request)), None);
    }
    for garbage in [&b""[..], b"\x83", b"\xc1\xc1", b"\x93\x01\x02\x03"] {
        assert_eq!(channel::parse_request(garbage), None);
    }
}

#[test]
fn a_broken_channel_message_is_an_error_wherever_it_breaks() {
    let whole = channel::request(3, &Request::from(untyped_request()));
    let kind = b"\x83\xa4type\xa7channel".len();
    for length in kind..whole.len() {
        assert!(matches!(channel::parse_request(&whole[..length]), Some(Err(_))), "{length}");
    }
    let mut too_long = whole.to_vec();
    too_long.push(0xc0);
    assert!(matches!(channel::parse_request(&too_long), Some(Err(_))));
}

#[test]
fn payloads_in_bytes_of_messagepack_are_read_too() {
    let mut message =
        b"\x83\xa4type\xa7channel\xa2id\x03\xa7request\x82\xa2id\xa17\xa7payload".to_vec();
    rmp::encode::write_bin(&mut message, &[1, 200, 3]).unwrap();
    let (id, request) = channel::parse_request(&message).unwrap().unwrap();
    assert_eq!((id, &request.id[..], &request.payload[..]), (3, "7", &[1, 200, 3][..]));
    let by_serde: ManagerRequest = rmp_serde::from_slice(&message).unwrap();
    let ManagerRequest::Channel { request, .. } = by_serde else { panic!() };
    assert_eq!(&request.payload[..], &[1, 200, 3]);
}

#[test]
fn numbers_of_every_length_are_those_of_serde() {
    // Lengths around the blocks that are handled together, and markers across their edges.
    for length in (0..200).chain([4095, 4096, 4097]) {
        for (step, from) in [(1, 0), (7, 0xc0), (0, 0xcc), (0, 0x7f), (0, 0x80)] {
            let payload = Bytes::from_iter((0..length).map(|at: usize| (at * step + from) as u8));
            let request = UntypedRequest { header: Header::new(), id: "7".to_owned(), payload };
            let by_serde = pack(&ManagerRequest::Channel { id: 3, request: request.clone() });
            let by_hand = channel::request(3, &request.clone().into());
            assert_eq!(by_hand, by_serde, "{length} {step} {from}");
            let read = channel::parse_request(&by_hand).unwrap().unwrap();
            assert_eq!(read, (3, request.into()), "{length} {step} {from}");
            let cut = &by_hand[..by_hand.len() - 1];
            assert!(matches!(channel::parse_request(cut), Some(Err(_))), "{length} {step} {from}");
        }
    }
}
