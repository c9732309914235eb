//! A port of this machine whose connections go through a socket that `ssh` listens on: it cannot be
//! told to pick a free port.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use distant_plugin_api::tunnel::{self, Far};

/// Listens for as long as the process lives.
///
/// # Errors
///
/// There is no port or no thread.
pub(crate) fn listen(socket: PathBuf) -> io::Result<SocketAddr> {
    tunnel::listen(move || open(&socket))
}

fn open(socket: &Path) -> io::Result<Far> {
    let from = UnixStream::connect(socket)?;
    let (to, ended) = (Outward(from.try_clone()?), from.try_clone()?);
    // It fails where `ssh` has ended it.
    let end = move || drop(ended.shutdown(Shutdown::Both));
    Ok(Far { to: Box::new(to), from: Box::new(from), end: Box::new(end) })
}

/// The half of a connection that leads there; the end of it is the end of that half alone.
struct Outward(UnixStream);

impl Write for Outward {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Outward {
    fn drop(&mut self) {
        // It fails where the other side has gone.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}
