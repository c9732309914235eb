//! Somebody in the middle who changes one byte of what the server says, after the key exchange.
//!
//! Which byte that is has to be known: one that comes after the launch is over harms nobody and
//! shows nothing. So a first launch goes through untouched, and tells where its encrypted packets
//! end; the others are changed there, and each has to prove that its byte really was changed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::each_backend;
use crate::support::{programs, report, Home, Manager, Sshd};

/// The message after which all of a direction is encrypted.
const NEWKEYS: u8 = 21;

/// How long the server may take for what it says unasked after that message.
const UNASKED: Duration = Duration::from_secs(5);

/// What went by, counted from the server's first encrypted byte.
#[derive(Default)]
struct Seen {
    /// Bytes of the server so far.
    count: usize,
    /// How many there were each time that the client said something: there a packet ends.
    ends: Vec<usize>,
    /// The byte that is to be changed, and whether it was.
    target: Option<usize>,
    changed: bool,
}

/// A forwarder that can change one byte of each connection.
struct Meddler {
    address: SocketAddr,
    /// That of the connections from now on: what comes late of one before must not count here.
    seen: Arc<Mutex<Arc<Mutex<Seen>>>>,
}

impl Meddler {
    fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let current = this.seen.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect(server).unwrap();
                let (from_near, to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let up = current.lock().unwrap().clone();
                let down = up.clone();
                thread::spawn(move || client(from_near, to_far, &up));
                thread::spawn(move || self::server(far, near, &down));
            }
        });
        this
    }

    /// Starts anew, for a connection in which this byte is to be changed.
    fn aim_at(&self, target: Option<usize>) {
        let seen = Seen { target, ..Seen::default() };
        *self.seen.lock().unwrap() = Arc::new(Mutex::new(seen));
    }

    /// What went by since then.
    fn seen(&self) -> Arc<Mutex<Seen>> {
        self.seen.lock().unwrap().clone()
    }
}

fn client(mut from: TcpStream, mut to: TcpStream, seen: &Mutex<Seen>) {
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut seen = seen.lock().unwrap();
        let count = seen.count;
        if count > 0 && seen.ends.last() != Some(&count) {
            seen.ends.push(count);
        }
        drop(seen);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn server(mut from: TcpStream, mut to: TcpStream, seen: &Mutex<Seen>) {
    let mut clear = Vec::new();
    let mut is_encrypted = false;
    let mut buffer = [0; 65536];
    while let Ok(mut length @ 1..) = from.read(&mut buffer) {
        let mut start = 0;
        if !is_encrypted {
            let before = clear.len();
            clear.extend_from_slice(&buffer[..length]);
            if let Some(end) = end_of_clear(&clear) {
                is_encrypted = true;
                start = end - before;
                // What the server then says unasked goes on together with it: else it would depend on
                // the moment whether the client says its next word before or after that.
                if start == length {
                    from.set_read_timeout(Some(UNASKED)).unwrap();
                    length += from.read(&mut buffer[length..]).unwrap_or(0);
                    from.set_read_timeout(None).unwrap();
                }
            }
        }
        if is_encrypted {
            let mut seen = seen.lock().unwrap();
            let bytes = &mut buffer[start..length];
            let at = seen.target.and_then(|target| target.checked_sub(seen.count));
            if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1;
                seen.changed = true;
            }
            seen.count += bytes.len();
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// Where the last packet that is not encrypted ends, if all of it is there.
fn end_of_clear(bytes: &[u8]) -> Option<usize> {
    let mut at = bytes.iter().position(|byte| *byte == b'\n')? + 1;
    loop {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().unwrap());
        let end = at + 4 + length as usize;
        let packet = bytes.get(at..end)?;
        if packet[5] == NEWKEYS {
            return Some(end);
        }
        at = end;
    }
}

/// The end of a connection whose bytes were changed, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A cipher with its code for messages, and how long what that adds to a packet is.
const SUITES: [(&str, &str, usize); 7] = [
    ("chacha20-poly1305@openssh.com", "hmac-sha2-256", 16),
    ("aes256-gcm@openssh.com", "hmac-sha2-256", 16),
    ("aes128-gcm@openssh.com", "hmac-sha2-256", 16),
    ("aes256-ctr", "hmac-sha2-256-etm@openssh.com", 32),
    ("aes192-ctr", "hmac-sha2-512-etm@openssh.com", 64),
    ("aes128-ctr", "hmac-sha2-256", 32),
    ("aes256-ctr", "hmac-sha2-512", 64),
];

each_backend! {
    fn a_changed_byte_ends_the_connection(backend: &str) {
        let home = Home::new();
        let manager = Manager::start(&home);
        let distant = programs().distant.display().to_string();
        let mut tampered = 0;
        for (cipher, code, tag) in SUITES {
            let sshd = Sshd::with(&home, &format!("Ciphers {cipher}\nMACs {code}"));
            let meddler = Meddler::before(sshd.address);
            let name = format!("[127.0.0.1]:{}", meddler.address.port());
            home.write(".ssh/known_hosts", sshd.known(&["ed25519"]).replace(&sshd.name(), &name));
            let options = format!("backend={backend},identity_files=\"{}\"", sshd.identity());
            let to = format!("ssh://root@{}", meddler.address);
            let args = ["launch", &to, "--distant", &distant, "--options", &options];
            let launch = |target| {
                meddler.aim_at(target);
                home.ours(args).run()
            };
            let untouched = launch(None);
            if backend == "libssh" && cipher.contains("gcm") {
                // Its version does not look at the tag, so it never agrees on that. It sends the
                // next packet at once, and on a busy machine it finds the connection closed before
                // it has read what the server wants; what helps is said all the same.
                let refused = untouched.code(1);
                assert!(refused.stderr.contains("backend=ssh2"), "{}", refused.told());
                continue;
            }
            let id = untouched.id().to_string();
            home.ours(["manager", "kill", &id]).run().success();
            let ends = meddler.seen().lock().unwrap().ends.clone();
            // The client asks for a login, shows its key, signs, and runs the command after these;
            // that it is in is what the server says first after the third.
            let [asks, shows, signs, runs] = ends[..4] else { panic!("{ends:?}") };
            let targets = [
                asks - 1,
                asks - tag,
                shows - tag - 1,
                signs - 1,
                signs + 8,
                runs - 1,
                runs - tag,
            ];
            for target in targets {
                let since = Instant::now();
                let ended = launch(Some(target));
                let took = since.elapsed();
                // Not only when a limit has passed.
                assert!(took < AT_ONCE, "{cipher}, {code}, byte {target}: {took:?}");
                let seen = meddler.seen();
                let seen = seen.lock().unwrap();
                let what = format!("{cipher}, {code}, byte {target} of {ends:?}");
                assert!(seen.changed, "{what} was not changed: {}", ended.told());
                let now = (&seen.ends, seen.count);
                assert_eq!(ended.status.code(), Some(1), "{what}, now {now:?}: {}", ended.told());
                assert!(ended.stdout.is_empty(), "{what}: {}", ended.told());
                tampered += 1;
            }
            manager.assert_no_offspring();
        }
        report(format!("a changed byte, {backend}: {tampered} launches, none succeeded"));
    }
}
