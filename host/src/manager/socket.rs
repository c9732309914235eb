//! The manager's socket: one manager per socket, and nobody else's hands on it.
//!
//! Whoever holds the lock file beside the socket is its manager. Everything about the socket file
//! happens under that lock, so a stale one can be replaced without a race; the new one gets its
//! mode before it gets its name, and accepts nobody before both.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{inotify, FlockOperation};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::{Access, ManagerError};
use crate::wire::server::{Listener, Peer};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// For another manager that has the lock to have its socket too, to give up, or to end.
const STARTING: Duration = Duration::from_secs(15);

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o660,
            Self::Anyone => 0o666,
        }
    }
}

/// A socket that this manager owns: its name, the lock beside it, and whom it lets in.
///
/// Dropping it removes both files, if they are still the ones it made.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    made: (u64, u64),
    lock: Lock,
}

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Socket {
    /// Takes a socket's name, with a stale socket's too, and listens.
    ///
    /// Missing folders are made for this user alone. A manager that is just starting there is
    /// waited for, so that whoever hears [`ManagerError::InUse`] can connect.
    pub(super) async fn bind(path: &Path, access: Access) -> Result<(Self, Guarded), ManagerError> {
        let path = std::path::absolute(path).map_err(|e| ManagerError::io("use", path, e))?;
        if SocketAddrUnix::new(&path).is_err() || SocketAddrUnix::new(beside(&path, "~")).is_err() {
            return Err(ManagerError::TooLong { path });
        }
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|e| ManagerError::io("make the folder", folder, e))?;
        }
        let lock = Lock::take(&path).await?;
        if !is_stale(&path)? {
            return Err(ManagerError::InUse { socket: path });
        }
        let (listener, made) = listen(&path, access)?;
        let socket = Self { path, made, lock };
        let only = (access == Access::Owner).then(|| rustix::process::geteuid().as_raw());
        Ok((socket, Guarded { listener, only }))
    }

    /// Waits until somebody else has removed the socket or taken its name, as whoever ends a session
    /// does who clears `/run/user` away: nobody finds this manager any more then.
    pub(super) async fn gone(&self) {
        // Before the first look, so that nothing is missed between that and the wait. While it is listened
        // on, the file itself lives on without a name, so the loss of that is all there is to see.
        let what = inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MOVE_SELF;
        let changes = Changes::of(&self.path, what);
        loop {
            match (inode(&self.path), &changes) {
                (Ok(inode), _) if inode != self.made => return,
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => return,
                (_, Ok(changes)) if changes.next().await.is_ok() => {}
                // Too many watches on this machine.
                _ => std::future::pending().await,
            }
        }
    }

    /// Removes the socket, so that nobody finds it any more; its name stays locked.
    pub(super) fn remove(&self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.made) {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
        if self.lock.is_there() {
            drop(fs::remove_file(&self.lock.path));
        }
    }
}

impl Lock {
    /// Locks a socket's name, or finds out that a living manager has it.
    async fn take(socket: &Path) -> Result<Self, ManagerError> {
        let path = beside(socket, ".lock");
        if let Some(lock) = Self::locked(&path, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(lock);
        }
        let in_use = || ManagerError::InUse { socket: socket.to_owned() };
        let (taken, waiting) = oneshot::channel();
        // A thread of its own, as nothing else hears that a lock is let go. Nobody waits for it
        // where the other manager gets its socket; it lets go of the lock then if it ever gets it.
        let thread = thread::Builder::new().name("socket-lock".to_owned()).spawn(move || {
            drop(taken.send(Self::locked(&path, FlockOperation::LockExclusive)));
        });
        thread.map_err(|e| ManagerError::io("wait for the lock of", socket, e))?;
        tokio::select! {
            lock = waiting => lock.map_err(|_| in_use())??.ok_or_else(in_use),
            () = answering(socket) => Err(in_use()),
            () = tokio::time::sleep(STARTING) => Err(in_use()),
        }
    }

    /// Opens and locks the file; `None` if another has it and `how` does not wait for that.
    fn locked(path: &Path, how: FlockOperation) -> Result<Option<Self>, ManagerError> {
        loop {
            let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).mode(0o600).custom_flags(no_follow);
            let file = match options.open(path) {
                Ok(file) => file,
                Err(error) => {
                    // Where the folder is everybody's, the system itself refuses another's file.
                    if let Ok(there) = fs::symlink_metadata(path) {
                        refuse_foreign(path, &there)?;
                    }
                    return Err(ManagerError::io("open the lock", path, error));
                }
            };
            let there = file.metadata().map_err(|e| ManagerError::io("read the lock", path, e))?;
            refuse_foreign(path, &there)?;
            match rustix::fs::flock(&file, how) {
                Ok(()) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(ManagerError::io("lock", path, error.into())),
            }
            let lock = Self { path: path.to_owned(), file };
            // The manager before may have removed the file between our opening and locking it;
            // then this lock keeps nobody out.
            if lock.is_there() {
                return Ok(Some(lock));
            }
        }
    }

    fn is_there(&self) -> bool {
        let own = self.file.metadata().map(|it| (it.dev(), it.ino()));
        matches!((own, inode(&self.path)), (Ok(own), Ok(there)) if own == there)
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|it| (it.dev(), it.ino()))
}

fn refuse_foreign(path: &Path, there: &Metadata) -> Result<(), ManagerError> {
    if there.uid() == rustix::process::geteuid().as_raw() {
        Ok(())
    } else {
        Err(ManagerError::Foreign { path: path.to_owned(), uid: there.uid() })
    }
}

/// Whether the name is free, or has a socket of ours that nobody listens on.
fn is_stale(path: &Path) -> Result<bool, ManagerError> {
    match fs::symlink_metadata(path) {
        Ok(there) => {
            refuse_foreign(path, &there)?;
            if !there.file_type().is_socket() {
                return Err(ManagerError::NotASocket { path: path.to_owned() });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(ManagerError::io("look at", path, error)),
    }
    answers(path).map(|answers| !answers).map_err(|e| ManagerError::io("try", path, e.into()))
}

/// Whether somebody listens on a socket. Never waits, whatever state they are in.
fn answers(path: &Path) -> Result<bool, Errno> {
    let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // A full queue: somebody listens, but is busy or stopped.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until somebody listens on a socket.
async fn answering(path: &Path) {
    // Before the first look, so that nothing is missed between that and the wait.
    let changes = Changes::of(path.parent().unwrap_or(path), inotify::WatchFlags::MOVED_TO);
    while !answers(path).unwrap_or(false) {
        match &changes {
            Ok(changes) if changes.next().await.is_ok() => {}
            // Too many watches on this machine; the caller's limit is how long it is waited for.
            _ => std::future::pending().await,
        }
    }
}

/// What happens to a file or in a folder.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(path: &Path, what: inotify::WatchFlags) -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, path, what)?;
        #[allow(
            deprecated,
            reason = "unsound only with what may close its descriptor, unlike `OwnedFd`"
        )]
        AsyncFd::with_interest(watch, Interest::READABLE).map(Self)
    }

    /// Waits until it has happened.
    async fn next(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|watch| Ok(rustix::io::read(watch.get_ref(), &mut events)?)) {
                Ok(read) => return read.map(drop),
                // Somebody else has read it, or nothing was there.
                Err(_would_block) => {}
            }
        }
    }
}

fn stream(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Makes the socket under another name, sets its mode, listens, and only then gives it its name.
fn listen(path: &Path, access: Access) -> Result<(UnixListener, (u64, u64)), ManagerError> {
    let temporary = beside(path, "~");
    let failed = |error: io::Error| ManagerError::io("listen on", path, error);
    if let Ok(there) = fs::symlink_metadata(&temporary) {
        refuse_foreign(&temporary, &there)?;
        fs::remove_file(&temporary).map_err(failed)?;
    }
    let bound = || -> io::Result<(UnixListener, (u64, u64))> {
        let socket = stream(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&temporary)?)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(access.mode()))?;
        let made = inode(&temporary)?;
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = UnixListener::from_std(socket.into())?;
        fs::rename(&temporary, path)?;
        Ok((listener, made))
    };
    bound().map_err(|error| {
        drop(fs::remove_file(&temporary));
        failed(error)
    })
}

/// Lets in whom the socket is for.
#[derive(Debug)]
pub(super) struct Guarded {
    listener: UnixListener,
    /// The one user who may come, beside root; `None`: whom the file's mode lets in.
    only: Option<u32>,
}

#[async_trait]
impl Listener for Guarded {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = stream.peer_cred()?;
            if self.only.is_none_or(|uid| peer.uid() == uid || peer.uid() == 0) {
                return Ok((stream, Peer::Unix { uid: peer.uid(), pid: peer.pid() }));
            }
            tracing::warn!(uid = peer.uid(), "a client of another user is turned away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    async fn bind(path: &Path) -> Result<(Socket, Guarded), ManagerError> {
        Socket::bind(path, Access::Owner).await
    }

    #[tokio::test]
    async fn it_is_for_whom_it_should_be_and_its_folder_for_the_user_alone() {
        let folder = folder();
        let modes = [(Access::Owner, 0o600), (Access::Group, 0o660), (Access::Anyone, 0o666)];
        for (access, expected) in modes {
            let path = folder.path().join("made/for/it.sock");
            let (_socket, _listener) = Socket::bind(&path, access).await.unwrap();
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), expected);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
        }
    }

    #[tokio::test]
    async fn a_second_one_is_refused_while_the_first_lives() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        let first = bind(&path).await.unwrap();
        let error = bind(&path).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("address in use: a manager listens on `{}` already", path.display())
        );
        drop(first);
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_holds_no_lock_is_respected_too() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        let _released = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path).await, Err(ManagerError::InUse { .. })));
    }

    #[tokio::test]
    async fn one_that_is_just_starting_is_waited_for() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        let take = |path: PathBuf| async move { Lock::take(&path).await };
        let first = take(path.clone()).await.unwrap();
        // It gives up, and its lock is free.
        let mut second = std::pin::pin!(take(path.clone()));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        let second = tokio::time::timeout(STARTING, second).await.unwrap().unwrap();
        // It gets its socket: whoever waits is told that it can connect.
        let mut third = std::pin::pin!(take(path.clone()));
        assert!(futures::poll!(&mut third).is_pending());
        let begun = std::time::Instant::now();
        let (_listener, _) = listen(&path, Access::Owner).unwrap();
        assert!(matches!(third.await, Err(ManagerError::InUse { .. })));
        assert!(begun.elapsed() < STARTING / 2, "{:?}", begun.elapsed());
        drop(second);
    }

    #[tokio::test]
    async fn of_many_that_start_together_one_wins() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        let all = futures::future::join_all((0..8).map(|_| bind(&path))).await;
        let won = all.iter().filter(|it| it.is_ok()).count();
        let lost = all.iter().filter(|it| matches!(it, Err(ManagerError::InUse { .. }))).count();
        assert_eq!((won, lost), (1, 7));
    }

    #[tokio::test]
    async fn a_stale_one_is_replaced() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        // What a crash between making and naming it leaves.
        drop(std::os::unix::net::UnixListener::bind(beside(&path, "~")).unwrap());
        let (_socket, mut listener) = bind(&path).await.unwrap();
        let (client, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        client.unwrap();
        let own = rustix::process::getuid().as_raw();
        assert!(matches!(accepted.unwrap().1, Peer::Unix { uid, .. } if uid == own));
    }

    #[tokio::test]
    async fn another_file_is_never_replaced() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path).await, Err(ManagerError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn what_belongs_to_another_user_is_refused() {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root can make another user's file: run this as root"
        );
        let nobody = Some(65534);
        let folder = folder();
        let path = folder.path().join("it.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        std::os::unix::fs::lchown(&path, nobody, nobody).unwrap();
        assert!(matches!(bind(&path).await, Err(ManagerError::Foreign { uid: 65534, .. })));
        fs::remove_file(&path).unwrap();
        let lock = beside(&path, ".lock");
        fs::write(&lock, "").unwrap();
        std::os::unix::fs::lchown(&lock, nobody, nobody).unwrap();
        assert!(matches!(bind(&path).await, Err(ManagerError::Foreign { uid: 65534, .. })));
    }

    #[tokio::test]
    async fn another_user_is_turned_away_even_where_the_mode_would_let_them_in() {
        assert!(
            rustix::process::geteuid().is_root(),
            "only root can come as another user: run this as root"
        );
        let folder = folder();
        let path = folder.path().join("it.sock");
        let (_socket, mut listener) = bind(&path).await.unwrap();
        for (path, mode) in [(folder.path(), 0o711), (&path, 0o666)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let connect = |uid: u32| {
            let path = path.clone();
            // Only this thread becomes somebody else, and it ends as such.
            let connect = move || {
                let uid = rustix::process::Uid::from_raw(uid);
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                std::os::unix::net::UnixStream::connect(path).unwrap()
            };
            std::thread::spawn(connect).join().unwrap()
        };
        let mut stranger = connect(65534);
        let own = connect(0);
        // The stranger came first, and it is not the one that is let in.
        let (_stream, peer) = listener.accept().await.unwrap();
        assert!(matches!(peer, Peer::Unix { uid: 0, .. }), "{peer:?}");
        let mut said = Vec::new();
        let read = std::io::Read::read_to_end(&mut stranger, &mut said);
        assert_eq!((read.unwrap(), said), (0, Vec::new()));
        drop(own);

        // Somebody else's manager lets in whom its mode lets in.
        let path = folder.path().join("open.sock");
        let (_socket, mut listener) = Socket::bind(&path, Access::Anyone).await.unwrap();
        let nobody = std::thread::spawn(move || {
            let uid = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            std::os::unix::net::UnixStream::connect(path).unwrap()
        });
        let (_stream, peer) = listener.accept().await.unwrap();
        assert!(matches!(peer, Peer::Unix { uid: 65534, .. }), "{peer:?}");
        nobody.join().unwrap();
    }

    #[tokio::test]
    async fn nothing_is_left_of_it_and_nothing_else_is_taken() {
        let folder = folder();
        let path = folder.path().join("it.sock");
        drop(bind(&path).await.unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

        let bound = bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _another = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_name_that_is_too_long_is_said_to_be() {
        let path = folder().path().join("x".repeat(120));
        assert!(matches!(bind(&path).await, Err(ManagerError::TooLong { .. })));
    }
}
