//! Servers that mean harm, or are broken: never a hang, never believed.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::each_backend;
use crate::support::{bound, refusing, report, Finished, Home, Manager, Sshd, HELLO};

/// The limit of the key exchange, and some time for a busy machine.
const HANDSHAKE: Duration = Duration::from_secs(15 + 10);

/// Listens, and gives each connection to `serve` on a thread of its own.
pub(super) fn stub(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A port of this address that takes nobody in, as one is waiting already; both have to live for
/// that.
pub(crate) fn silent(ip: IpAddr) -> (TcpListener, TcpStream) {
    let socket = bound(ip);
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener, waiting)
}

/// Waits until the other side has closed the connection.
pub(super) fn until_end(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

fn launch(home: &Home, address: SocketAddr, backend: &str) -> (Finished, Duration) {
    let since = Instant::now();
    let (to, options) = (format!("ssh://root@{address}"), format!("backend={backend}"));
    let finished = home.ours(["launch", &to, "--options", &options]).run();
    (finished.code(1), since.elapsed())
}

each_backend! {
    fn a_mute_server_is_given_up(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let (error, took) = launch(&home, stub(until_end), backend);
        assert!(error.stderr.contains("does not speak ssh, or is too slow"), "{}", error.told());
        assert!(took < HANDSHAKE, "{took:?}");
        report(format!("mute server, {backend}: given up after {took:.1?}"));
    }

    fn a_dripping_banner_is_given_up(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let address = stub(|mut stream| {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
            let mut buffer = [0; 16];
            while stream.write_all(b"x").is_ok() {
                // The pause between two drops; the end of the connection ends it.
                if matches!(stream.read(&mut buffer), Ok(0)) {
                    break;
                }
            }
        });
        let (_, took) = launch(&home, address, backend);
        assert!(took < HANDSHAKE, "{took:?}");
    }

    fn garbage_is_refused_at_once(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let address = stub(|mut stream| {
            let _ = stream.write_all(b"SSH-2.0-x\r\n");
            let _ = stream.write_all(&[0xff; 100_000]);
            until_end(stream);
        });
        let (error, took) = launch(&home, address, backend);
        assert!(error.stderr.contains("no ssh connection"), "{}", error.told());
        assert!(took < HANDSHAKE, "{took:?}");
    }

    fn a_closed_port_is_said_at_once(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let refusing = refusing();
        let (error, took) = launch(&home, refusing.local_addr().unwrap(), backend);
        assert!(error.stderr.contains("cannot reach"), "{}", error.told());
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    fn endless_output_and_complaints_end(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::with(&home, "ForceCommand yes");
        let error = sshd.launch(&home, backend, "").run().code(1);
        assert!(error.stderr.contains("prints without an end"), "{}", error.told());
        let command = "head -c 4194304 /dev/zero >&2; exec sh -c \"$SSH_ORIGINAL_COMMAND\"";
        let sshd = Sshd::with(&home, &format!("ForceCommand {command}"));
        sshd.make_known(&home);
        // They are just what is read of a command, so it depends on what else comes first.
        let finished = sshd.launch(&home, backend, "").run_within(Duration::from_secs(40));
        if finished.status.success() {
            assert_eq!(home.ours(["spawn", "--", "echo", "hi"]).run().success().stdout, "hi\n");
        } else {
            assert!(finished.stderr.contains("prints without an end"), "{}", finished.told());
        }
        let fewer = command.replace("4194304", "2097152");
        let sshd = Sshd::with(&home, &format!("ForceCommand {fewer}"));
        sshd.make_known(&home);
        sshd.launch(&home, backend, "").run().id();
    }

    fn a_server_end_that_goes_mute_is_tunnelled_or_given_up(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = mute.local_addr().unwrap().port();
        let line = format!("distant://:{}@127.0.0.1:{port}", "ab".repeat(32));
        let server = home.script("mute", &format!("#!/bin/sh\necho; echo {line}\nexec sleep 1000\n"));
        let to = format!("ssh://root@{}", sshd.address);
        let options = format!("backend={backend},timeout=4000,identity_files=\"{}\"", sshd.identity());
        let server = server.display().to_string();
        let since = Instant::now();
        let args = ["launch", &to, "--distant", &server, "--options", &options, "--format=json"];
        let error = home.ours(args).input(format!("{HELLO}\n")).run().code(1);
        assert!(since.elapsed() < Duration::from_secs(25), "{}", error.told());
        let last: serde_json::Value =
            serde_json::from_str(error.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(last["kind"], "port_unreachable", "{}", error.told());
        assert!(error.stderr.contains("no answer within 4000 ms"), "{}", error.told());
    }

    fn a_server_end_that_closes_before_its_first_byte_is_unreachable(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        let sshd = Sshd::start(&home);
        sshd.make_known(&home);
        let line = format!("distant://:{}@{}", "ab".repeat(32), stub(drop));
        let server = home.script("closes", &format!("#!/bin/sh\necho; echo {line}\nexec sleep 1000\n"));
        let server = server.display().to_string();
        let to = format!("ssh://root@{}", sshd.address);
        for tunnel in ["auto", "always", "never"] {
            let identity = sshd.identity();
            let options = format!("backend={backend},tunnel={tunnel},identity_files=\"{identity}\"");
            let args = ["launch", &to, "--distant", &server, "--format=json", "--options", &options];
            let error = home.ours(args).input(format!("{HELLO}\n")).run().code(1);
            let last: serde_json::Value =
                serde_json::from_str(error.stdout.lines().last().unwrap()).unwrap();
            assert_eq!(last["kind"], "port_unreachable", "{tunnel}: {}", error.told());
            let said = "the connection was closed before the server had said anything";
            assert!(error.stderr.contains(said), "{tunnel}: {}", error.told());
            assert!(last["hint"].is_string(), "{tunnel}: {}", error.told());
        }
    }
}
