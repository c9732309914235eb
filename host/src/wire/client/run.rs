//! The task that owns a client's connection.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, sleep_until, timeout, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::connect::{self, Established, Identity, ReconnectError};
use super::{not_reached, ClientOptions, ConnectError, Status, REPLIES_BYTES};
use crate::wire::envelope::Response;
use crate::wire::frame::InvalidFrame;
use crate::wire::outbox::Outbox;
use crate::wire::stream::{Reading, Socket, Stream, FLUSH};

/// The most that a pause between two attempts gets doubled to.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// After so many connections in a row that did not last, the next one waits as well.
const FLAPS: u32 = 5;
/// So many refusals in a row are the server's last word. Not the first one: what lies between may
/// have closed the connection.
const REFUSALS: u32 = 3;
/// When nobody listens there so many times in a row, the server has ended: after about half a
/// minute. Not earlier: what lies between may refuse as well, such as a network that is just coming
/// back.
const CLOSED: u32 = 6;

/// A reply that waits to be taken, and its share of the room for those.
pub(super) type Queued = (Response, OwnedSemaphorePermit);

/// Who waits for replies.
#[derive(Debug, Clone)]
pub(super) struct Subscriber {
    pub(super) sender: mpsc::Sender<Queued>,
    /// Bytes that may still wait.
    pub(super) room: Arc<Semaphore>,
}

/// What the task shares with the handles.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outbox: Outbox,
    pub(super) subscribers: Mutex<HashMap<String, Subscriber>>,
    pub(super) status: watch::Sender<Status>,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn subscribers(&self) -> MutexGuard<'_, HashMap<String, Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who waits for the replies to a request: whoever sent it, else whoever has its route.
    fn subscriber(&self, origin_id: &str) -> Option<Subscriber> {
        let subscribers = self.subscribers();
        let route = || subscribers.get(origin_id.split_once('_')?.0);
        subscribers.get(origin_id).or_else(route).cloned()
    }
}

/// Why a connection cannot be used any more.
enum End {
    /// It may be made again.
    Lost(String),
    /// It must not.
    Final(String),
}

impl End {
    fn lost(error: Option<io::Error>) -> Self {
        let Some(error) = error else {
            return Self::Lost("the server closed the connection".to_owned());
        };
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            // It would come again; everything else is what may happen to bytes on their way.
            Some(InvalidFrame::TooLong { .. }) => Self::Final(error.to_string()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// Runs a connection until it is over.
pub(super) async fn run<S: Socket>(
    shared: Arc<Shared>,
    established: Established<S>,
    reconnect: Option<SocketAddr>,
    options: ClientOptions,
) {
    let Established { stream, mut identity } = established;
    let mut received = stream.reading.received;
    let mut undelivered = None;
    let mut since = Instant::now();
    let mut flaps = 0;
    let mut end =
        attend(&shared, stream, &options, &mut received, &mut identity, &mut undelivered).await;
    let reason = loop {
        match (end, reconnect) {
            (End::Lost(reason), Some(address)) => {
                info!(%address, reason, "connection lost");
                flaps = if since.elapsed() < options.back_off { flaps + 1 } else { 0 };
                shared.status.send_replace(Status::Reconnecting { reason });
                let again = async {
                    if flaps > FLAPS {
                        sleep(options.back_off).await;
                    }
                    again(&shared, address, &options, &mut identity, received).await
                };
                let stream = tokio::select! {
                    stream = again => stream,
                    () = shared.stop.cancelled() => break "closed while it was lost".to_owned(),
                };
                match stream {
                    Ok(stream) => {
                        info!(%address, "connection made again");
                        shared.status.send_replace(Status::Connected);
                        since = Instant::now();
                        end = attend(
                            &shared,
                            stream,
                            &options,
                            &mut received,
                            &mut identity,
                            &mut undelivered,
                        )
                        .await;
                    }
                    Err(reason) => break reason,
                }
            }
            (End::Lost(reason), None) | (End::Final(reason), _) => break reason,
        }
    };
    debug!(reason, "connection closed");
    shared.outbox.close();
    shared.subscribers().clear();
    shared.status.send_replace(Status::Closed { reason });
}

/// Reads and writes until the connection is lost or nobody wants it any more.
async fn attend<S: Socket>(
    shared: &Shared,
    stream: Stream<S>,
    options: &ClientOptions,
    received: &mut u64,
    identity: &mut Identity,
    undelivered: &mut Option<Response>,
) -> End {
    let Stream { mut reading, mut writing } = stream;
    let watch = Watch(Mutex::new(Some(Instant::now())));
    let end = {
        let write = writing.drain(&shared.outbox);
        tokio::pin!(write);
        tokio::select! {
            end = read(shared, &mut reading, identity, undelivered, &watch) => end,
            error = &mut write => End::lost(error.err()),
            () = watch.silence(options.silence) => {
                End::Lost(format!("no sign of life for {:?}", options.silence))
            }
            () = shared.stop.cancelled() => {
                shared.outbox.finish();
                // Whatever comes of it, it is over.
                let _ = timeout(FLUSH, write).await;
                End::Final("closed".to_owned())
            }
        }
    };
    if matches!(end, End::Final(_)) {
        let _ = timeout(FLUSH, writing.shut()).await;
    }
    *received = reading.received;
    end
}

async fn read<S: Socket>(
    shared: &Shared,
    reading: &mut Reading<S>,
    identity: &mut Identity,
    undelivered: &mut Option<Response>,
    watch: &Watch,
) -> End {
    loop {
        // What was read counts as received, so it is kept while it waits for its subscriber.
        deliver(shared, undelivered, watch).await;
        let content = match reading.next().await {
            Ok(Some(content)) => content,
            Ok(None) => return End::lost(None),
            Err(error) => return End::lost(Some(error)),
        };
        watch.set(Some(Instant::now()));
        // It goes on, so it has got the new password. One that is not ours sends again what was
        // lost before it takes that, and may go back to the old one.
        if identity.is_ours {
            identity.passwords.truncate(1);
        }
        if content.is_empty() {
            continue;
        }
        match Response::from_frame(&content) {
            Ok(response) => *undelivered = Some(response),
            Err(error) => return End::Final(error.to_string()),
        }
    }
}

async fn deliver(shared: &Shared, undelivered: &mut Option<Response>, watch: &Watch) {
    let Some(response) = undelivered else { return };
    match shared.subscriber(&response.origin_id) {
        Some(subscriber) => {
            watch.set(None);
            let length = u32::try_from(response.payload.len().min(REPLIES_BYTES));
            let room = Arc::clone(&subscriber.room).acquire_many_owned(length.unwrap_or(0)).await;
            // Nobody waits for it any more if there is no place.
            let place = subscriber.sender.reserve().await;
            if let (Ok(room), Ok(place), Some(response)) = (room, place, undelivered.take()) {
                place.send((response, room));
            }
            watch.set(Some(Instant::now()));
        }
        None => debug!(origin_id = response.origin_id, "nobody waits for this response"),
    }
    *undelivered = None;
}

/// When the server was last seen; `None` while this end does not read, because somebody does not
/// take replies.
struct Watch(Mutex<Option<Instant>>);

impl Watch {
    fn set(&self, seen: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seen;
    }

    /// Waits until the server has been silent for too long. Wakes up once per `longest` only.
    async fn silence(&self, longest: Duration) {
        loop {
            let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let deadline = seen.unwrap_or(now) + longest;
            if deadline <= now {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// Makes a lost connection again, however often it takes; an error is final.
async fn again(
    shared: &Shared,
    address: SocketAddr,
    options: &ClientOptions,
    identity: &mut Identity,
    received: u64,
) -> Result<Stream<tokio::net::TcpStream>, String> {
    let mut pause = options.back_off;
    let (mut refusals, mut closed) = (0, 0);
    // From the first time that a released server was asked and did not answer.
    let mut patient_until: Option<Instant> = None;
    loop {
        let mut is_asked = false;
        let attempt = async {
            let socket = connect::reach(address)
                .await
                .map_err(|error| ReconnectError::Failed(not_reached(error, options.attempt)))?;
            // The newest password first, then by turns with the one before.
            let (password, outbox) = (refusals as usize % 2, &shared.outbox);
            connect::resume(
                socket,
                options.compression,
                identity,
                password,
                received,
                outbox,
                &mut is_asked,
            )
            .await
        };
        let failure = match timeout(options.attempt, attempt).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(failure)) => failure,
            Err(_) => {
                if is_asked && !identity.is_ours {
                    patient_until.get_or_insert_with(|| Instant::now() + options.patience);
                }
                ReconnectError::Failed(ConnectError::TimedOut { within: options.attempt })
            }
        };
        let is_patient = patient_until.is_some_and(|until| Instant::now() < until);
        match failure {
            ReconnectError::Final(reason) => return Err(reason),
            ReconnectError::Failed(error) => {
                warn!(%address, %error, "cannot connect again yet");
                refusals = 0;
                let is_mute = is_asked && matches!(error, ConnectError::TimedOut { .. });
                if is_mute && patient_until.is_some() && !is_patient {
                    return Err("the server does not take the connection up again".to_owned());
                }
                closed = if matches!(error, ConnectError::Refused { .. }) { closed + 1 } else { 0 };
                if closed >= CLOSED {
                    return Err("nobody listens there any more".to_owned());
                }
            }
            ReconnectError::Refused => {
                closed = 0;
                refusals += 1;
                if refusals >= REFUSALS && !is_patient {
                    return Err("the server refuses to take the connection up again".to_owned());
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_BACK_OFF);
    }
}
