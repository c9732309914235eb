//! `distant server listen`: how it starts and ends, and what it answers.

mod listen;
mod processes;
mod requests;

use std::collections::VecDeque;

use distant_protocol::{Msg, Response};
use serde_json::{json, Value};

use crate::support::wire::Wire;
use crate::support::Server;

/// A reply, read by the released types.
#[derive(serde::Deserialize)]
struct Reply {
    origin_id: String,
    payload: Msg<Response>,
}

/// A client of a server, which keeps what it was told until somebody asks for it.
struct Client {
    wire: Wire,
    requests: usize,
    told: VecDeque<(String, Value)>,
}

impl Client {
    fn of(server: &Server) -> Self {
        let wire = Wire::server(server.address, &server.key);
        Self { wire, requests: 0, told: VecDeque::new() }
    }

    /// Sends a request; the id by which its replies are found.
    fn send(&mut self, payload: Value) -> String {
        self.requests += 1;
        let id = self.requests.to_string();
        self.wire.request(&id, &payload).unwrap();
        id
    }

    /// The next reply to a request.
    #[track_caller]
    fn next(&mut self, id: &str) -> Value {
        if let Some(at) = self.told.iter().position(|(origin, _)| origin == id) {
            return self.told.remove(at).unwrap().1;
        }
        loop {
            let frame = self.wire.receive().unwrap();
            let reply: Reply = rmp_serde::from_slice(&frame).unwrap();
            let payload = serde_json::to_value(reply.payload).unwrap();
            if reply.origin_id == id {
                return payload;
            }
            self.told.push_back((reply.origin_id, payload));
        }
    }

    /// Sends a request and waits for its answer.
    #[track_caller]
    fn ask(&mut self, payload: Value) -> Value {
        let id = self.send(payload);
        self.next(&id)
    }

    /// The next reply of a kind to a request; others to it are left out.
    #[track_caller]
    fn next_of(&mut self, id: &str, kind: &str) -> Value {
        loop {
            let reply = self.next(id);
            if reply["type"] == kind {
                return reply;
            }
        }
    }

    /// Starts a process: the request's id and the process's.
    #[track_caller]
    fn spawn(&mut self, command: &str, more: Value) -> (String, Value) {
        let mut payload = json!({"type": "proc_spawn", "cmd": command});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = self.send(payload);
        let reply = self.next(&request);
        assert_eq!(reply["type"], "proc_spawned", "{reply}");
        (request, reply["id"].clone())
    }

    /// Waits for the end of a process; what it said on stdout and stderr, and its end.
    #[track_caller]
    fn finish(&mut self, request: &str) -> (Vec<u8>, Vec<u8>, Value) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let reply = self.next(request);
            match reply["type"].as_str().unwrap() {
                "proc_stdout" => stdout.extend(bytes(&reply["data"])),
                "proc_stderr" => stderr.extend(bytes(&reply["data"])),
                "proc_done" => return (stdout, stderr, reply),
                _ => panic!("{reply}"),
            }
        }
    }
}

fn bytes(value: &Value) -> impl Iterator<Item = u8> + '_ {
    value.as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8)
}
