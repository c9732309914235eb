use distant_plugin_api::secret::Secret;

use super::*;
use crate::backend::{Answer, Reply};
use crate::tests::Host;

/// A session whose server says nothing any more.
struct Mute(UnixStream);

impl Mute {
    fn wait<T>(&mut self) -> Result<T, Failure> {
        let count = self.0.read(&mut [0]).unwrap_or(0);
        Err(Failure(format!("{count} bytes")))
    }
}

impl Session for Mute {
    fn host_key(&mut self) -> Result<Vec<u8>, Failure> {
        self.wait()
    }

    fn banner(&mut self) -> Option<String> {
        None
    }

    fn methods(&mut self, _: &str) -> Result<Option<Vec<String>>, Failure> {
        self.wait()
    }

    fn public_key(&mut self, _: &str, _: &Secret, _: Option<&str>) -> Result<Reply, Failure> {
        self.wait()
    }

    fn agent(&mut self, _: &str) -> Result<Reply, Failure> {
        self.wait()
    }

    fn password(&mut self, _: &str, _: &Secret) -> Result<Reply, Failure> {
        self.wait()
    }

    fn keyboard_interactive(&mut self, _: &str, _: &mut Answer<'_>) -> Result<Reply, Failure> {
        self.wait()
    }

    fn open(&mut self, _: &Target) -> Result<Option<Box<dyn Stream>>, Failure> {
        Ok(None)
    }

    fn set_blocking(&mut self, _: bool) {}

    fn wants_write(&self) -> bool {
        false
    }
}

/// A stream that the other side has closed, but not yet read to its end.
struct Closed;

impl Stream for Closed {
    fn read(&mut self, _: &mut [u8], _: bool) -> Result<Read, Failure> {
        Ok(Read::End)
    }

    fn write(&mut self, _: &[u8]) -> Result<usize, Failure> {
        Err(Failure("the remote channel is closed".into()))
    }

    fn finish(&mut self) -> Result<bool, Failure> {
        Err(Failure("the remote channel is closed".into()))
    }

    fn ending(&mut self) -> Option<String> {
        None
    }
}

#[test]
fn a_stream_that_the_server_closed_does_not_end_the_others() {
    let (near, far) = UnixStream::pair().unwrap();
    let far = OwnedFd::from(far);
    let mut link = Link::new(far.try_clone().unwrap(), far, None).unwrap();
    link.stream = Some(Box::new(Closed));
    (&near).write_all(b"too late").unwrap();
    assert!(link.pump().is_ok());
    assert!(link.is_over());
}

#[test]
fn a_server_that_falls_silent_after_the_login_has_a_limit() {
    let (near, _far) = UnixStream::pair().unwrap();
    let caller = Host::caller();
    let session = Box::new(Mute(near.try_clone().unwrap()));
    let socket = OwnedFd::from(near);
    let guard = Guard::new(&socket, &caller).unwrap();
    let mux = Mux::start(session, socket, guard).unwrap();
    let (input, output) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let link = Link::new(input, output, None).unwrap();
    let target = Target::Command("true".into());
    let Failure(text) = mux.open(target, link, Duration::from_millis(50)).unwrap_err();
    assert_eq!(text, "no answer within 0 s");
    assert_eq!(mux.kind(ErrorKind::ServerNotStarted), ErrorKind::TimedOut);
}

/// A session whose server echoes what streams say, and never answers for one address.
struct Echo;

impl Echo {
    const SLOW: u16 = 9;
}

struct Echoed(VecDeque<u8>);

impl Stream for Echoed {
    fn read(&mut self, buffer: &mut [u8], errors: bool) -> Result<Read, Failure> {
        match self.0.read(buffer) {
            Ok(count @ 1..) if !errors => Ok(Read::Bytes(count)),
            _ => Ok(Read::Later),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        self.0.extend(data);
        Ok(data.len())
    }

    fn finish(&mut self) -> Result<bool, Failure> {
        Ok(true)
    }

    fn ending(&mut self) -> Option<String> {
        None
    }
}

impl Session for Echo {
    fn host_key(&mut self) -> Result<Vec<u8>, Failure> {
        Err(Failure("none".into()))
    }

    fn banner(&mut self) -> Option<String> {
        None
    }

    fn methods(&mut self, _: &str) -> Result<Option<Vec<String>>, Failure> {
        Ok(None)
    }

    fn public_key(&mut self, _: &str, _: &Secret, _: Option<&str>) -> Result<Reply, Failure> {
        Ok(Reply::Refused)
    }

    fn agent(&mut self, _: &str) -> Result<Reply, Failure> {
        Ok(Reply::Refused)
    }

    fn password(&mut self, _: &str, _: &Secret) -> Result<Reply, Failure> {
        Ok(Reply::Refused)
    }

    fn keyboard_interactive(&mut self, _: &str, _: &mut Answer<'_>) -> Result<Reply, Failure> {
        Ok(Reply::Refused)
    }

    fn open(&mut self, target: &Target) -> Result<Option<Box<dyn Stream>>, Failure> {
        match target {
            Target::Address(_, Self::SLOW) => Ok(None),
            _ => Ok(Some(Box::new(Echoed(VecDeque::new())))),
        }
    }

    fn set_blocking(&mut self, _: bool) {}

    fn wants_write(&self) -> bool {
        false
    }
}

#[test]
fn a_server_that_is_slow_to_connect_holds_up_no_other_stream() {
    let (near, _far) = UnixStream::pair().unwrap();
    let caller = Host::caller();
    let socket = OwnedFd::from(near);
    let guard = Guard::new(&socket, &caller).unwrap();
    let mux = Mux::start(Box::new(Echo), socket, guard).unwrap();
    let mut stream = UnixStream::from(mux.connect("here", 1).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let slow = mux.listen((Ipv4Addr::LOCALHOST, Echo::SLOW).into()).unwrap();
    let _waiting = std::net::TcpStream::connect(slow).unwrap();
    for _ in 0..100 {
        stream.write_all(b"hello").unwrap();
        let mut echoed = [0; 5];
        stream.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"hello");
    }
}
