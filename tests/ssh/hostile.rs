//! Servers that mean harm, or are broken: never a hang, never believed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::each_backend;
use crate::support::{report, Finished, Home, Manager, Sshd};

/// The limit of the key exchange, and some time for a busy machine.
const HANDSHAKE: Duration = Duration::from_secs(15 + 10);

/// Listens, and gives each connection to `serve` on a thread of its own.
fn stub(serve: impl Fn(TcpStream) + Send + Clone + 'static) -> SocketAddr {
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

/// Waits until the other side has closed the connection.
fn until_end(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

fn launch(home: &Home, address: SocketAddr, backend: &str) -> (Finished, Duration) {
    let since = Instant::now();
    let (to, options) = (format!("ssh://root@{address}"), format!("backend={backend}"));
    let finished = home.ours(["launch", &to, "--options", &options]).run();
    (finished.code(1), since.elapsed())
}

/// A proxy that lets everything from the server through `change`, with the count of bytes so far.
fn changing(
    target: SocketAddr,
    change: impl Fn(usize, &mut [u8]) + Send + Clone + 'static,
) -> SocketAddr {
    stub(move |near| {
        let far = TcpStream::connect(target).unwrap();
        let (mut from_near, mut to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_near, &mut to_far);
            let _ = to_far.shutdown(std::net::Shutdown::Write);
        });
        let (mut from_far, mut to_near) = (far, near);
        let (mut count, mut buffer) = (0, [0; 4096]);
        while let Ok(length @ 1..) = from_far.read(&mut buffer) {
            change(count, &mut buffer[..length]);
            count += length;
            if to_near.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to_near.shutdown(std::net::Shutdown::Both);
    })
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
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (error, took) = launch(&home, address, backend);
        assert!(error.stderr.contains("cannot reach"), "{}", error.told());
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    fn a_changed_byte_ends_the_connection(backend: &str) {
        let home = Home::new();
        let _manager = Manager::start(&home);
        for cipher in ["chacha20-poly1305@openssh.com", "aes256-ctr", "aes256-gcm@openssh.com"] {
            let sshd = Sshd::with(&home, &format!("Ciphers {cipher}"));
            // The key exchange is over by then; its own bytes are signed anyway.
            let address = changing(sshd.address, |count, bytes| {
                if count > 2500 {
                    if let Some(last) = bytes.last_mut() {
                        *last ^= 1;
                    }
                }
            });
            let known = sshd.known(&["ed25519"]).replace(&sshd.name(), &format!("[127.0.0.1]:{}", address.port()));
            home.write(".ssh/known_hosts", known);
            let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
            let to = format!("ssh://root@{address}");
            let distant = crate::support::programs().distant.display().to_string();
            let args = ["launch", &to, "--distant", &distant, "--options", &options];
            let error = home.ours(args).run().code(1);
            assert!(error.stdout.is_empty(), "{cipher}: {}", error.told());
            if backend == "libssh" && cipher.contains("gcm") {
                assert!(error.stderr.contains("`backend=ssh2` does"), "{}", error.told());
            }
        }
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
        let finished = sshd.launch(&home, backend, "").run_within(Duration::from_secs(40));
        report(format!("4 MiB of complaints first, {backend}: {}", finished.status));
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
        let args = ["launch", &to, "--distant", &server, "--options", &options];
        let error = home.ours(args).run().code(1);
        assert!(since.elapsed() < Duration::from_secs(25), "{}", error.told());
        home.ours(["manager", "list"]).run().success();
    }
}
