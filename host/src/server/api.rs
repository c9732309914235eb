//! What a server does with files, by distant-local: the only file that knows that crate.
//!
//! Its methods are called one by one with a reply of ours, so that what they say later waits for
//! the answer, is bounded, and ends with the client.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use distant_core::net::server::Reply;
use distant_core::{DistantApi, DistantCtx};
use distant_local::{Api, Config, WatchConfig};
use distant_protocol::{Error, Msg, Request, Response, SearchId};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::settings::WatchSettings;
use crate::wire::{Closed, FRAME_MAX};

/// Bytes of search results and changes of one request that a client has not taken yet. What comes
/// on top is left out, and the client is told.
const PENDING_MAX: usize = 32 * 1024 * 1024;

/// Requests that keep a thread busy for long, such as walking a tree, at the same time.
const WALKS: usize = 8;

/// How often the watcher that watches nothing looks for changes.
const NEVER: Duration = Duration::from_secs(60 * 60);

/// The shortest time between two looks for changes; less would keep a processor busy.
const TICK_MIN: Duration = Duration::from_millis(10);

/// All that a server does with files.
pub(super) struct Files {
    api: Arc<Api>,
    watchers: Arc<Mutex<Watchers>>,
    walks: Semaphore,
}

impl Files {
    /// Begins; `watch` is for the first client that watches something.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub(super) fn new(watch: WatchSettings) -> io::Result<Self> {
        // It polls nothing once an hour: any other watcher takes one of the few that the system
        // has for each user, and the real debounce wakes up eight times a second.
        let idle = WatchConfig {
            native: false,
            poll_interval: Some(NEVER),
            compare_contents: false,
            debounce_timeout: NEVER,
            debounce_tick_rate: Some(NEVER),
        };
        Ok(Self {
            api: Arc::new(Api::initialize(Config { watch: idle })?),
            watchers: Arc::new(Mutex::new(Watchers { settings: watch, all: Vec::new() })),
            walks: Semaphore::new(WALKS),
        })
    }

    /// Does what a request asks for; processes are none of its business.
    pub(super) async fn answer(&self, caller: &Caller, request: Request) -> Response {
        self.try_answer(caller, request).await.unwrap_or_else(Response::from)
    }

    async fn try_answer(&self, caller: &Caller, request: Request) -> io::Result<Response> {
        let api = &self.api;
        let once = || context(caller, Box::new(Nobody));
        let ok = |()| Response::Ok;
        Ok(match request {
            Request::FileRead { path } => Response::Blob { data: read(&path).await? },
            Request::FileReadText { path } => Response::Text { data: text(read(&path).await?)? },
            Request::FileWrite { path, data } => ok(api.write_file(once(), path, data).await?),
            Request::FileWriteText { path, text } => {
                ok(api.write_file_text(once(), path, text).await?)
            }
            Request::FileAppend { path, data } => ok(api.append_file(once(), path, data).await?),
            Request::FileAppendText { path, text } => {
                ok(api.append_file_text(once(), path, text).await?)
            }
            Request::DirRead { path, depth, absolute, canonicalize, include_root } => {
                let (api, once) = (Arc::clone(api), once());
                let (entries, errors) = self
                    .walk(async move {
                        api.read_dir(once, path, depth, absolute, canonicalize, include_root).await
                    })
                    .await?;
                let errors = errors.into_iter().map(Error::from).collect();
                Response::DirEntries { entries, errors }
            }
            Request::DirCreate { path, all } => ok(api.create_dir(once(), path, all).await?),
            Request::Remove { path, force } => ok(api.remove(once(), path, force).await?),
            Request::Copy { src, dst } => {
                let (api, once) = (Arc::clone(api), once());
                ok(self.walk(async move { api.copy(once, src, dst).await }).await?)
            }
            Request::Rename { src, dst } => ok(api.rename(once(), src, dst).await?),
            Request::Exists { path } => Response::Exists { value: api.exists(once(), path).await? },
            Request::Metadata { path, canonicalize, resolve_file_type } => Response::Metadata(
                api.metadata(once(), path, canonicalize, resolve_file_type).await?,
            ),
            Request::SetPermissions { path, permissions, options } => {
                let (api, once) = (Arc::clone(api), once());
                let set =
                    async move { api.set_permissions(once, path, permissions, options).await };
                ok(self.walk(set).await?)
            }
            Request::Watch { path, recursive, only, except } => {
                let mut watchers = self.watchers.lock().await;
                let real = tokio::fs::canonicalize(&path).await?;
                let watcher = watchers.of(&real)?;
                let (stream, ended) = Stream::to(caller);
                let reply = context(caller, Box::new(stream));
                watcher.api.watch(reply, path, recursive, only, except).await?;
                watcher.paths.push((caller.connection, real.clone()));
                drop(watchers);
                self.unwatch_when_gone(caller, ended, real);
                Response::Ok
            }
            Request::Unwatch { path } => {
                self.watchers.lock().await.unwatch(caller.connection, &path).await?;
                Response::Ok
            }
            Request::Search { query } => {
                let (stream, ended) = Stream::to(caller);
                let id = api.search(context(caller, Box::new(stream)), query).await?;
                self.cancel_search_when_gone(caller, ended, id);
                Response::SearchStarted { id }
            }
            Request::CancelSearch { id } => ok(api.cancel_search(once(), id).await?),
            Request::SystemInfo {} => Response::SystemInfo(api.system_info(once()).await?),
            Request::Version {} => Response::Version(api.version(once()).await?),
            Request::ProcSpawn { .. }
            | Request::ProcKill { .. }
            | Request::ProcStdin { .. }
            | Request::ProcResizePty { .. } => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "no process is run here"))
            }
        })
    }

    /// Runs what blocks its thread for long, on a thread for that.
    async fn walk<T: Send + 'static>(
        &self,
        work: impl std::future::Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        // The semaphore is never closed.
        let _permit = self.walks.acquire().await.map_err(io::Error::other)?;
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(work)).await?
    }

    fn unwatch_when_gone(&self, caller: &Caller, ended: CancellationToken, path: PathBuf) {
        let (caller, watchers) = (caller.clone(), Arc::clone(&self.watchers));
        tokio::spawn(async move {
            if ended.run_until_cancelled(caller.gone()).await.is_some() {
                // It may have unwatched the path itself just now.
                let _ = watchers.lock().await.unwatch(caller.connection, &path).await;
            }
        });
    }

    fn cancel_search_when_gone(&self, caller: &Caller, ended: CancellationToken, id: SearchId) {
        let (caller, api) = (caller.clone(), Arc::clone(&self.api));
        tokio::spawn(async move {
            if ended.run_until_cancelled(caller.gone()).await.is_some() {
                // It may have ended just now.
                let _ = api.cancel_search(context(&caller, Box::new(Nobody)), id).await;
            }
        });
    }
}

/// Reads a file that fits into an answer. distant-local reads all that comes, and of a device such
/// as /dev/zero that is more than there is memory.
async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    // All on one thread and into one buffer: tokio's file hands each piece over by a copy.
    let reading = tokio::task::spawn_blocking(move || {
        let mut data = Vec::new();
        let file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        if length <= FRAME_MAX as u64 {
            data.reserve(length as usize + 1);
            // It may say less than it has, as those of /proc do.
            file.take(FRAME_MAX as u64 + 1).read_to_end(&mut data)?;
        }
        Ok::<_, io::Error>((data, length))
    });
    let (data, length) = reading.await??;
    if length.max(data.len() as u64) > FRAME_MAX as u64 {
        let words = format!("the file has more than the {FRAME_MAX} bytes that fit into an answer");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(data)
}

fn text(data: Vec<u8>) -> io::Result<String> {
    String::from_utf8(data).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8")
    })
}

fn context(caller: &Caller, reply: Box<dyn Reply<Data = Response>>) -> DistantCtx {
    DistantCtx { connection_id: caller.connection, reply }
}

/// The watchers that watch something.
///
/// One is enough, except that distant-local hears nothing any more of a path that was unwatched
/// once; that path then needs a new one. One that watches nothing is dropped.
struct Watchers {
    settings: WatchSettings,
    all: Vec<Watcher>,
}

struct Watcher {
    api: Api,
    /// Who watches what.
    paths: Vec<(u32, PathBuf)>,
    /// What it is deaf to.
    spent: Vec<PathBuf>,
}

impl Watchers {
    /// The watcher that can watch this path.
    fn of(&mut self, path: &Path) -> io::Result<&mut Watcher> {
        let able = self.all.iter().position(|it| !it.spent.iter().any(|spent| spent == path));
        let index = match able {
            Some(index) => index,
            None => {
                let api = Api::initialize(Config { watch: watch_config(&self.settings) })?;
                self.all.push(Watcher { api, paths: Vec::new(), spent: Vec::new() });
                self.all.len() - 1
            }
        };
        Ok(&mut self.all[index])
    }

    async fn unwatch(&mut self, connection: u32, path: &Path) -> io::Result<()> {
        // What is not there any more cannot be looked up, but may be written as it was.
        let real = tokio::fs::canonicalize(path).await.unwrap_or_else(|_| path.to_owned());
        let mut result = Err(io::Error::other(format!("`{}` is not watched", path.display())));
        for watcher in &mut self.all {
            let before = watcher.paths.len();
            watcher.paths.retain(|(owner, watched)| *owner != connection || *watched != real);
            if watcher.paths.len() < before {
                let nobody = DistantCtx { connection_id: connection, reply: Box::new(Nobody) };
                result = watcher.api.unwatch(nobody, real.clone()).await;
                watcher.spent.push(real.clone());
            }
        }
        self.all.retain(|watcher| !watcher.paths.is_empty());
        result
    }
}

fn watch_config(settings: &WatchSettings) -> WatchConfig {
    let timeout = settings.debounce_timeout.max(4 * TICK_MIN);
    WatchConfig {
        native: !settings.polling,
        poll_interval: settings.poll_interval.map(|interval| interval.max(TICK_MIN)),
        compare_contents: settings.compare_contents,
        debounce_timeout: timeout,
        debounce_tick_rate: settings.debounce_tick_rate.map(|rate| rate.clamp(TICK_MIN, timeout)),
    }
}

/// The reply of a request that has one answer, which is no business of it.
struct Nobody;

impl Reply for Nobody {
    type Data = Response;

    fn send(&self, _: Response) -> io::Result<()> {
        Ok(())
    }

    fn clone_reply(&self) -> Box<dyn Reply<Data = Response>> {
        Box::new(Nobody)
    }
}

/// The reply of a request that is told more and more: search results and changes of files.
#[derive(Clone)]
struct Stream {
    queue: mpsc::UnboundedSender<Bytes>,
    pending: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
}

impl Stream {
    /// Begins to send to the caller, after its request is answered. The token fires when nothing
    /// more can come, so also when the client is gone.
    fn to(caller: &Caller) -> (Self, CancellationToken) {
        let (queue, queued) = mpsc::unbounded_channel::<Bytes>();
        let stream = Self { queue, pending: Arc::default(), lost: Arc::default() };
        let ended = CancellationToken::new();
        let (pending, lost) = (Arc::clone(&stream.pending), Arc::clone(&stream.lost));
        let (caller, ending) = (caller.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            // A client that is gone is told nothing; whoever waits for `ended` sees it gone first.
            if send_all(&caller, queued, &pending, &lost).await.is_err() {
                caller.gone().await;
            }
            drop(ending);
        });
        (stream, ended)
    }
}

async fn send_all(
    caller: &Caller,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
    pending: &AtomicUsize,
    lost: &AtomicUsize,
) -> Result<(), Closed> {
    caller.answered().await;
    while let Some(message) = queued.recv().await {
        let length = message.len();
        caller.send_bytes(message).await?;
        pending.fetch_sub(length, Ordering::Relaxed);
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let words = format!("{lost} messages were left out: the client reads too slowly");
            caller.send(&Msg::Single(Response::Error(words.into()))).await?;
        }
    }
    Ok(())
}

impl Reply for Stream {
    type Data = Response;

    fn send(&self, message: Response) -> io::Result<()> {
        let is_last = matches!(message, Response::SearchDone { .. });
        let message = encode(&Msg::Single(message))?;
        let pending = self.pending.fetch_add(message.len(), Ordering::Relaxed);
        if pending > PENDING_MAX && !is_last {
            self.pending.fetch_sub(message.len(), Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the client reads too slowly"));
        }
        self.queue.send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn clone_reply(&self) -> Box<dyn Reply<Data = Response>> {
        Box::new(self.clone())
    }
}

/// A message as it travels.
///
/// # Errors
///
/// It cannot be encoded, such as a path that is no UTF-8.
pub(super) fn encode(message: &Msg<Response>) -> io::Result<Bytes> {
    let bytes = rmp_serde::to_vec_named(message);
    bytes.map(Bytes::from).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
