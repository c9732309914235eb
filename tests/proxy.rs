//! Somebody in the middle of the connection to a server, who speaks for each end to the other.
//!
//! The key exchange of the wire is not authenticated, so such a machine can always read along. What
//! it must not get is the key, or a connection that somebody trusts.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{mpsc, Arc, Mutex};
use std::thread;
use std::time::Duration;

use distant_plugin_api::connect_line::ConnectLine;

use crate::support::wire::Wire;
use crate::support::{programs, Home, Invocation, Manager, Server};

/// A machine in the middle that terminates both handshakes.
struct Middle {
    address: SocketAddr,
    /// All frames that it read, as clear text.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Middle {
    fn before(server: SocketAddr) -> Self {
        Self::before_whom(move || server)
    }

    /// Stands before a server that is only known once somebody wants to connect to it.
    fn before_whom(server: impl Fn() -> SocketAddr + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seen_there = seen.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (seen, server) = (seen_there.clone(), server());
                thread::spawn(move || relay(client, server, &seen));
            }
        });
        Self { address, seen }
    }

    /// Tells whether this text was in anything that passed, as it is or as the bytes it stands for.
    fn saw(&self, key: &str) -> bool {
        let seen = self.seen.lock().unwrap();
        let holds = |what: &[u8]| seen.windows(what.len()).any(|window| window == what);
        holds(key.as_bytes()) || holds(&hex::decode(key).unwrap())
    }

    fn saw_anything(&self) -> bool {
        !self.seen.lock().unwrap().is_empty()
    }
}

/// Is the server for the client, the client for the server, and reads what it hands on.
fn relay(client: TcpStream, server: SocketAddr, seen: &Arc<Mutex<Vec<u8>>>) {
    let Some((to_client, to_server)) = between(client, server) else { return };
    let directions = [(to_client.twin(), to_server.twin()), (to_server, to_client)];
    for (mut from, mut to) in directions {
        let seen = seen.clone();
        thread::spawn(move || {
            while let Ok(content) = from.receive_any() {
                seen.lock().unwrap().extend(&content);
                if to.send(&content).is_err() {
                    break;
                }
            }
            from.end();
            to.end();
        });
    }
}

/// Goes through both handshakes.
fn between(client: TcpStream, server: SocketAddr) -> Option<(Wire, Wire)> {
    let (mut to_client, mut to_server) = (Wire::over(client), Wire::open_server(server));
    to_client.be_server().and_then(|()| to_server.be_client()).ok()?;
    Some((to_client, to_server))
}

/// Stands before a server, for one connection, and hands on what its programs print only with the
/// answer to the request that follows their end; that only once it is told to.
fn late(server: SocketAddr, go: mpsc::Receiver<()>) -> Middle {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut to_client, mut to_server) = between(listener.accept().unwrap().0, server).unwrap();
        let (mut from_client, mut requests) = (to_client.twin(), to_server.twin());
        thread::spawn(move || {
            while from_client.receive_any().and_then(|it| requests.send(&it)).is_ok() {}
            requests.end();
        });
        let mut kept = Vec::new();
        while let Ok(content) = to_server.receive_any() {
            let holds = |text: &[u8]| content.windows(text.len()).any(|it| it == text);
            if holds(b"proc_stdout") {
                kept.push(content);
                continue;
            }
            if holds(b"_last") {
                go.recv().unwrap();
                kept.drain(..).for_each(|it| to_client.send(&it).unwrap());
            }
            if to_client.send(&content).is_err() {
                break;
            }
        }
        to_client.end();
    });
    Middle { address, seen: Arc::default() }
}

/// A launch whose plugin offers this server by way of the machine in the middle.
fn launch(home: &Home, server: &Server, middle: &Middle, proof: bool) -> Invocation {
    let options = format!("offer=\"{}\",key={},proof={proof}", middle.address, server.key);
    home.ours(["launch", "faulty://x", "--options", &options])
}

#[test]
fn a_machine_in_the_middle_of_our_own_ends_gets_neither_key_nor_connection() {
    let home = Home::new();
    let server = Server::start(&home);
    let middle = Middle::before(server.address);
    let manager = Manager::start(&home);
    let failed = launch(&home, &server, &middle, true).run().code(1);
    assert!(failed.stderr.starts_with("error: "), "{}", failed.told());
    assert!(middle.saw_anything(), "the connection never went by the middle");
    assert!(!middle.saw(&server.key), "the key has passed the middle");
    manager.assert_no_offspring();

    // Without it, the same works.
    let direct = Middle { address: server.address, seen: Arc::default() };
    launch(&home, &server, &direct, true).run().id();
}

#[test]
fn what_the_middle_sees_where_the_key_has_to_be_sent() {
    // A server that knows only the released way gets the key, and so does the middle: this shows
    // that it would be seen above.
    let home = Home::new();
    let server = Server::start_peer(&home);
    let middle = Middle::before(server.address);
    let _manager = Manager::start(&home);
    launch(&home, &server, &middle, false).run().id();
    assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
    assert!(middle.saw(&server.key));
}

#[test]
fn a_launch_by_way_of_a_machine_in_the_middle_fails_and_leaves_nothing() {
    let home = Home::new();
    let manager = Manager::start(&home);
    // Hands on all that the server says, with another port in its connect line.
    let (said, told) = (home.path("said"), said_to(&home));
    let middle = Middle::before_whom(move || ConnectLine::parse(&told()).unwrap().address);
    let script = format!(
        "#!/bin/sh\n{} \"$@\" | while read -r line; do\n\
         case $line in distant://*) echo \"$line\" > {said}; line=${{line%:*}}:{port};; esac\n\
         echo \"$line\"; done\n",
        programs().distant.display(),
        said = said.display(),
        port = middle.address.port(),
    );
    let server = home.script("server", &script);
    let failed = home.ours(["launch", "manager://localhost", "--distant"]).arg(server).run();
    let failed = failed.code(1);
    assert!(failed.stderr.starts_with("error: "), "{}", failed.told());
    assert!(middle.saw_anything(), "the connection never went by the middle");
    let line = ConnectLine::parse(&said_to(&home)()).unwrap();
    assert!(!middle.saw(line.key.expose_hex().expose()), "the key has passed the middle");
    manager.assert_no_offspring();
}

#[test]
fn the_last_output_of_a_command_is_waited_for_over_a_slow_line() {
    let home = Home::new();
    let server = Server::start_peer(&home);
    let (go, told) = mpsc::channel();
    let middle = late(server.address, told);
    let _manager = Manager::start(&home);
    launch(&home, &server, &middle, false).run().id();
    let spawn = home.ours(["spawn", "--", "echo", "hi"]).start();
    assert!(!spawn.ends_within(Duration::from_millis(500)), "{}", spawn.told());
    go.send(()).unwrap();
    assert_eq!(spawn.finish().success().stdout, "hi\n");
}

/// Reads what the launched server has said about itself.
fn said_to(home: &Home) -> impl Fn() -> String {
    let file = home.path("said");
    move || std::fs::read_to_string(&file).unwrap()
}

#[test]
fn a_wrong_key_is_refused_by_proof_and_by_name() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let right = std::mem::replace(&mut server.key, "00".repeat(32));
    let direct = Middle { address: server.address, seen: Arc::default() };
    let _manager = Manager::start(&home);
    for proof in [true, false] {
        launch(&home, &server, &direct, proof).run().code(1);
    }
    server.key = right;
    for proof in [true, false] {
        launch(&home, &server, &direct, proof).run().id();
    }
}
