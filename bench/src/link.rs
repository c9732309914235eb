//! A line that takes time: packets between two network namespaces, or bytes through a proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Lab, PATIENCE};
use crate::{process, Failure};

/// The far end, where sshd listens.
pub(crate) const FAR: &str = "10.99.0.1:4022";

/// The same relay that the tests count round trips with.
const RELAY: &str = include_str!("../../tests/support/netdelay.py");

/// Two network namespaces whose packets to each other are delayed, SYN, ACK and FIN included.
pub(crate) struct Link {
    name: String,
    relay: Child,
}

impl Link {
    /// Makes them; each packet takes so many milliseconds.
    pub(crate) fn new(lab: &Lab, delay: u32) -> Result<Self, Failure> {
        let script = lab.path("netdelay.py");
        std::fs::write(&script, RELAY)?;
        let name = format!("db{}", std::process::id() % 100_000);
        let mut relay = Command::new("python3");
        relay.arg(script).arg(delay.to_string()).arg(&name);
        // It ends with its input, and takes the namespaces along.
        let mut relay = relay.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut ready = [0; 6];
        if let Some(stdout) = &mut relay.stdout {
            stdout.read_exact(&mut ready)?;
        }
        Ok(Self { name, relay })
    }

    /// The client's namespace.
    pub(crate) fn near(&self) -> String {
        format!("{}-near", self.name)
    }

    /// The server's namespace.
    pub(crate) fn far(&self) -> String {
        format!("{}-far", self.name)
    }

    /// Whether somebody listens on the far side.
    pub(crate) fn answers(&self, lab: &Lab, address: SocketAddr) -> bool {
        let probe = format!("exec 3<>/dev/tcp/{}/{}", address.ip(), address.port());
        let mut command = lab.command(&lab.path("remote"), "ip");
        command.args(["netns", "exec", &self.near(), "bash", "-c", &probe]);
        process::run(&mut command, PATIENCE).is_ok_and(|it| it.status.success())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.relay.stdin.take());
        // It removes the namespaces before it ends.
        let _ = self.relay.wait();
    }
}

/// A TCP proxy that holds every piece back for a while. It delays what a program says, but not the
/// opening of connections, and acknowledgements not at all.
pub(crate) struct Proxy;

impl Proxy {
    /// Begins to accept, for as long as this program runs.
    pub(crate) fn start(to: SocketAddr, delay: u32) -> Result<SocketAddr, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let delay = Duration::from_millis(delay.into());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(to) else { continue };
                for stream in [&near, &far] {
                    // Without it the proxy would add delays of its own.
                    let _ = stream.set_nodelay(true);
                }
                if let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) {
                    pass(near, far_too, delay);
                    pass(far, near_too, delay);
                }
            }
        });
        Ok(address)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        // An empty piece is the end.
        while let Ok(count) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err()
                || count == 0
            {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in pieces {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if piece.is_empty() || to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}
