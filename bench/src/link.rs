//! A line that takes time: packets between two network namespaces, or bytes through a proxy.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{kill_process, Pid, Signal};

use crate::lab::{Lab, PATIENCE};
use crate::{process, Failure};

/// The far end, where sshd listens.
pub(crate) const FAR: &str = "10.99.0.1:4022";

/// The same relay that the tests count round trips with.
const RELAY: &str = include_str!("../../tests/support/netdelay.py");

/// The variable that marks the relay, which has to clean up before it ends.
const MARK: &str = "DISTANT_BENCH_LINK";

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
        let complaints = lab.path("netdelay.log");
        let name = format!("db{}", std::process::id() % 100_000);
        let mut relay = Command::new("python3");
        relay.arg(script).arg(delay.to_string()).arg(&name);
        relay.env(MARK, std::process::id().to_string());
        // It ends with its input, and takes the namespaces along.
        relay.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&complaints)?);
        let mut link = Self { name, relay: process::spawn(&mut relay)? };
        if !link.is_ready() {
            drop(link);
            let said = std::fs::read_to_string(complaints).unwrap_or_default();
            let reason = said.trim().lines().last().unwrap_or("it takes too long").to_owned();
            return Err(format!("there are no network namespaces with a line: {reason}").into());
        }
        Ok(link)
    }

    fn is_ready(&mut self) -> bool {
        let Some(stdout) = &mut self.relay.stdout else { return false };
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let said = poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&patience));
        matches!(said, Ok(1..)) && stdout.read_exact(&mut [0; 6]).is_ok()
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

/// The relays that run, with what they have started themselves.
pub(crate) fn relays() -> Vec<u32> {
    process::marked(&format!("{MARK}={}", std::process::id()))
}

/// Ends the relays, wherever they are, and waits until their namespaces are gone.
pub(crate) fn end_relays() {
    let own = process::children(std::process::id());
    let relays_themselves = relays().into_iter().filter(|pid| own.contains(pid));
    for pid in relays_themselves.filter_map(|pid| Pid::from_raw(pid as i32)) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
    // Nothing more can be done than to wait.
    let _ = crate::lab::until("the end of the line", || relays().is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_holds_both_directions_back_and_passes_all_and_the_end() {
        let delay = Duration::from_millis(60);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Proxy::start(listener.local_addr().unwrap(), 60).unwrap();
        let far = thread::spawn(move || {
            let (mut far, _) = listener.accept().unwrap();
            let mut text = Vec::new();
            far.read_to_end(&mut text).unwrap();
            far.write_all(&text).unwrap();
        });
        let begun = Instant::now();
        let mut near = TcpStream::connect(address).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|it| it as u8).collect();
        near.write_all(&sent).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        near.read_to_end(&mut back).unwrap();
        assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
        assert!(begun.elapsed() >= 2 * delay, "{:?}", begun.elapsed());
        far.join().unwrap();
    }
}
