//! A port of this machine whose connections are carried to somewhere else.
//!
//! What leads there is the plugin's: a socket, or a program with its input and output. It says what
//! the ends of one [far end](Far) are, and how it is closed; bytes, threads and limits are ours.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use zeroize::Zeroizing;

/// Most connections at a time; those beyond are closed.
const CONNECTIONS_MAX: usize = 64;
/// The pause after a connection that could not be taken, such as for want of descriptors.
const REST: Duration = Duration::from_millis(100);
/// Most bytes that are taken at once.
const PIECE: usize = 16 * 1024;

/// The far end of one connection.
pub struct Far {
    /// Takes what goes there. Dropping it says there that nothing more comes, while what comes from
    /// there goes on.
    pub to: Box<dyn Write + Send>,
    /// What comes from there.
    pub from: Box<dyn Read + Send>,
    /// Ends it, after the last of what comes from there, so that nothing waits for it any more.
    pub end: Box<dyn FnOnce() + Send>,
}

/// Listens on a port of the loopback for as long as the process lives, and asks `open` for the far
/// end of each connection. It is always called on the same thread, which never ends. A connection
/// without a far end is closed, which says it all.
///
/// # Errors
///
/// There is no port or no thread.
pub fn listen(
    mut open: impl FnMut() -> io::Result<Far> + Send + 'static,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let serve = move || {
        let carried = Arc::new(AtomicUsize::new(0));
        for near in listener.incoming() {
            // One that cannot be taken is not the last one.
            let Ok(near) = near else {
                thread::sleep(REST);
                continue;
            };
            let one_more = OneMore::of(&carried);
            if carried.load(Ordering::Acquire) <= CONNECTIONS_MAX {
                let _ = open().and_then(|far| carry(near, far, one_more));
            }
        }
    };
    thread::Builder::new().name("tunnel".into()).spawn(serve)?;
    Ok(address)
}

/// Counts a connection for as long as it is there.
struct OneMore(Arc<AtomicUsize>);

impl OneMore {
    fn of(carried: &Arc<AtomicUsize>) -> Self {
        carried.fetch_add(1, Ordering::AcqRel);
        Self(carried.clone())
    }
}

impl Drop for OneMore {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Carries the bytes of one connection on two threads.
fn carry(near: TcpStream, far: Far, one_more: OneMore) -> io::Result<()> {
    let Far { mut to, mut from, end } = far;
    // Whatever fails below ends it too.
    let end = End(Some(end));
    near.set_nodelay(true)?;
    let mut from_near = near.try_clone()?;
    // An error is the end of one side, which the other hears of.
    let outward = move || drop(pass(&mut from_near, &mut to));
    thread::Builder::new().name("to there".into()).spawn(outward)?;
    let inward = move || {
        let _ = pass(&mut from, &mut &near);
        let _ = near.shutdown(Shutdown::Both);
        drop((end, one_more));
    };
    thread::Builder::new().name("from there".into()).spawn(inward)?;
    Ok(())
}

/// Ends a far end when it is dropped.
struct End(Option<Box<dyn FnOnce() + Send>>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// Carries bytes as they come until one side ends. Not `io::copy`, which may wait in the kernel for
/// more than has come.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = Zeroizing::new([0; PIECE]);
    loop {
        match from.read(&mut *piece) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// What comes from a far end, until nobody holds it any more.
    struct Coming {
        from: UnixStream,
        _held: mpsc::Sender<()>,
    }

    impl Read for Coming {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.from.read(buffer)
        }
    }

    /// A far end as a test sees it.
    struct There {
        sent: UnixStream,
        comes: UnixStream,
        /// Says when it is ended; its own end is that of the whole connection.
        end: mpsc::Receiver<()>,
    }

    /// A tunnel, and the far ends of its connections in their order.
    fn tunnel() -> (SocketAddr, mpsc::Receiver<There>) {
        let (opened, far_ends) = mpsc::channel();
        let open = move || {
            let ((sent, to), (from, comes)) = (UnixStream::pair()?, UnixStream::pair()?);
            sent.set_read_timeout(Some(LIMIT))?;
            let (ended, end) = mpsc::channel();
            opened.send(There { sent, comes, end }).unwrap();
            let from = Box::new(Coming { from, _held: ended.clone() });
            Ok(Far {
                to: Box::new(to),
                from,
                end: Box::new(move || ended.send(()).unwrap_or_default()),
            })
        };
        (listen(open).unwrap(), far_ends)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let near = TcpStream::connect(address).unwrap();
        near.set_read_timeout(Some(LIMIT)).unwrap();
        near
    }

    #[test]
    fn each_side_hears_of_the_others_end_and_the_rest_still_comes() {
        let (address, far_ends) = tunnel();
        let mut near = connect(address);
        let There { mut sent, mut comes, end } = far_ends.recv_timeout(LIMIT).unwrap();
        near.write_all(b"there").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        sent.read_to_string(&mut text).unwrap();
        comes.write_all(b" and back").unwrap();
        assert!(end.try_recv().is_err());
        drop(comes);
        near.read_to_string(&mut text).unwrap();
        assert_eq!(text, "there and back");
        end.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn connections_beyond_the_most_are_closed_until_one_has_ended() {
        let (address, far_ends) = tunnel();
        let mut near: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(address)).collect();
        let mut far: Vec<_> = near.iter().map(|_| far_ends.recv_timeout(LIMIT).unwrap()).collect();
        assert_eq!(connect(address).read(&mut [0]).unwrap(), 0);
        assert!(far_ends.try_recv().is_err());
        let There { sent, comes, end } = far.swap_remove(0);
        drop((sent, comes));
        end.recv_timeout(LIMIT).unwrap();
        assert_eq!(end.recv_timeout(LIMIT), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!(near.swap_remove(0).read(&mut [0]).unwrap(), 0);
        near.push(connect(address));
        far_ends.recv_timeout(LIMIT).unwrap();
    }
}
