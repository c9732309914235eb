//! A port of this machine whose connections go through a socket that `ssh` listens on: it cannot be
//! told to pick a free port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// The pause after a connection that could not be taken.
const REST: Duration = Duration::from_millis(100);
/// Most bytes that are taken at once.
const PIECE: usize = 16 * 1024;

/// Listens for as long as the process lives.
///
/// # Errors
///
/// There is no port or no thread.
pub(crate) fn listen(socket: PathBuf) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let serve = move || {
        let open = Arc::new(AtomicUsize::new(0));
        for near in listener.incoming() {
            // One that cannot be taken, such as for want of descriptors, is not the last one.
            let Ok(near) = near else {
                thread::sleep(REST);
                continue;
            };
            if open.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX {
                let one_less = Less(open.clone());
                // One that cannot be carried is closed, which says it all.
                let _ = UnixStream::connect(&socket).and_then(|far| carry(near, far, one_less));
            } else {
                open.fetch_sub(1, Ordering::AcqRel);
            }
        }
    };
    thread::Builder::new().name("tunnel".into()).spawn(serve)?;
    Ok(address)
}

/// Counts a connection down when it has ended.
struct Less(Arc<AtomicUsize>);

impl Drop for Less {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn carry(near: TcpStream, far: UnixStream, one_less: Less) -> io::Result<()> {
    near.set_nodelay(true)?;
    let (mut from_near, mut to_far) = (near.try_clone()?, far.try_clone()?);
    let outward = move || {
        // An error is the end of one side, which the other hears of.
        let _ = pass(&mut from_near, &mut to_far);
        let _ = to_far.shutdown(Shutdown::Write);
    };
    thread::Builder::new().name("to there".into()).spawn(outward)?;
    let inward = move || {
        let _ = pass(&mut &far, &mut &near);
        let _ = near.shutdown(Shutdown::Both);
        let _ = far.shutdown(Shutdown::Both);
        drop(one_less);
    };
    thread::Builder::new().name("from there".into()).spawn(inward)?;
    Ok(())
}

/// Carries bytes as they come until one side ends.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = [0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(&piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
