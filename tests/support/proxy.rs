//! Somebody in the middle of a TCP connection, who can cut it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A forwarder of TCP connections.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: Mutex<SocketAddr>,
    connections: Mutex<Vec<TcpStream>>,
    accepted: AtomicUsize,
    /// Bytes from the target after which each connection is cut; 0 for never.
    cut_after: AtomicUsize,
}

impl Proxy {
    /// Forwards everything to this address.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target: Mutex::new(target),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            cut_after: AtomicUsize::new(0),
        });
        let of_thread = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                of_thread.clone().forward(client);
            }
        });
        Self { address, state }
    }

    /// From now on forwards to another address.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }

    /// How many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Closes every connection that there is.
    pub(crate) fn cut(&self) {
        for stream in self.state.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on closes each connection once it has brought that much from the target.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.state.cut_after.store(bytes, Ordering::SeqCst);
    }
}

impl State {
    fn forward(self: Arc<Self>, client: TcpStream) {
        let target = *self.target.lock().unwrap();
        let Ok(target) = TcpStream::connect(target) else { return };
        self.accepted.fetch_add(1, Ordering::SeqCst);
        let (to_client, to_target) = (client.try_clone().unwrap(), target.try_clone().unwrap());
        let both = [client.try_clone().unwrap(), target.try_clone().unwrap()];
        self.connections.lock().unwrap().extend(both);
        thread::spawn(move || {
            pump(client, to_target, |_| true);
        });
        thread::spawn(move || {
            let mut brought = 0;
            pump(target, to_client, |count| {
                brought += count;
                let limit = self.cut_after.load(Ordering::SeqCst);
                limit == 0 || brought < limit
            });
        });
    }
}

/// Copies until one side ends or `go_on` says so, and then closes both.
fn pump(mut from: TcpStream, mut to: TcpStream, mut go_on: impl FnMut(usize) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !go_on(count) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
