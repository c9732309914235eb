//! The offers of one launch, raced against each other.
//!
//! Each offer is a try to connect that goes on until it is decided; the first that is proven wins
//! and ends the others. All of them together have the time of the `timeout` option, which starts
//! with the first.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{Offer, VerdictKind, Via};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::FutureExt;
use tokio::time::Instant;

use super::Limits;
use crate::wire::client::{Client, ClientOptions, ConnectError, Credential};
use crate::wire::Told;

/// What a try came to.
#[derive(Debug)]
pub(super) enum Tried {
    /// Tell the plugin so.
    Verdict(u64, VerdictKind),
    /// The server is reached and has the key.
    Proven(u64, Client),
}

/// What is known of an offer.
#[derive(Debug)]
struct Made {
    /// The verdict so far. `slow` is not the last.
    verdict: Option<VerdictKind>,
    offer: Offer,
}

impl Made {
    fn is_open(&self) -> bool {
        matches!(self.verdict, None | Some(VerdictKind::Slow))
    }
}

/// The offers of one launch.
pub(super) struct Offers {
    timeout: Duration,
    slow: Duration,
    reconnect: Duration,
    deadline: Option<Instant>,
    is_decided: bool,
    made: BTreeMap<u64, Made>,
    tries: FuturesUnordered<BoxFuture<'static, Tried>>,
}

impl Offers {
    /// Gives all offers together `timeout`; how long a silent one may be, and a connection is asked
    /// for again, is in the limits.
    pub(super) fn new(timeout: Duration, limits: &Limits) -> Self {
        Self {
            timeout,
            slow: limits.slow,
            reconnect: limits.reconnect,
            deadline: None,
            is_decided: false,
            made: BTreeMap::new(),
            tries: FuturesUnordered::new(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.made.len()
    }

    /// Tries an offer. `is_hopeless`: this way did not work before, so another may be offered now.
    ///
    /// An offer that is repeated gets its last verdict again.
    pub(super) fn add(&mut self, offer: Offer, is_hopeless: bool) {
        if let Some(made) = self.made.get(&offer.id) {
            let last = made.verdict.clone().filter(|_| !made.is_open());
            if let Some(verdict) = last {
                self.tries.push(async move { Tried::Verdict(offer.id, verdict) }.boxed());
            }
            return;
        }
        self.made.insert(offer.id, Made { verdict: None, offer: offer.clone() });
        if self.is_decided {
            return;
        }
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
        let (id, slow) = (offer.id, if is_hopeless { Duration::ZERO } else { self.slow });
        let silence = tokio::time::sleep(slow);
        self.tries.push(silence.map(move |()| Tried::Verdict(id, VerdictKind::Slow)).boxed());
        self.tries.push(attempt(offer, deadline, self.timeout, self.reconnect).boxed());
    }

    /// Waits for the next result; for ever while nothing is tried. Cancel-safe.
    pub(super) async fn next(&mut self) -> Tried {
        while let Some(tried) = self.tries.next().await {
            match &tried {
                Tried::Proven(..) => return tried,
                Tried::Verdict(id, verdict) => {
                    let Some(made) = self.made.get_mut(id) else { continue };
                    let is_late = matches!(verdict, VerdictKind::Slow) && made.verdict.is_some();
                    if !is_late {
                        made.verdict = Some(verdict.clone());
                        return tried;
                    }
                }
            }
        }
        std::future::pending().await
    }

    /// Ends every try, and begins none any more; offers stay open.
    pub(super) fn stop(&mut self) {
        self.is_decided = true;
        self.tries.clear();
    }

    /// The offers that have no last verdict yet.
    pub(super) fn open(&self) -> impl Iterator<Item = &Offer> {
        self.made.values().filter(|made| made.is_open()).map(|made| &made.offer)
    }

    /// An offer by its id.
    pub(super) fn get(&self, id: u64) -> Option<&Offer> {
        self.made.get(&id).map(|made| &made.offer)
    }
}

/// How servers were reached, by the host they were launched on. Kept in memory only.
#[derive(Debug, Default)]
pub(super) struct Ways {
    by_host: Mutex<HashMap<String, Via>>,
}

/// Hosts that are remembered.
const HOSTS_MAX: usize = 1024;

impl Ways {
    /// What worked last time.
    pub(super) fn get(&self, destination: &Destination) -> Option<Via> {
        let by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        by_host.get(&host(destination)).copied()
    }

    /// Notes what worked.
    pub(super) fn remember(&self, destination: &Destination, via: Via) {
        let mut by_host = self.by_host.lock().unwrap_or_else(PoisonError::into_inner);
        if by_host.len() >= HOSTS_MAX {
            by_host.clear();
        }
        by_host.insert(host(destination), via);
    }
}

/// A host name with the port that was launched through: behind one name may be several machines.
fn host(destination: &Destination) -> String {
    format!("{}:{}", destination.host.to_lowercase(), destination.port.unwrap_or_default())
}

async fn attempt(offer: Offer, deadline: Instant, timeout: Duration, patience: Duration) -> Tried {
    let unreachable =
        |reason: String| Tried::Verdict(offer.id, VerdictKind::Unreachable { reason });
    let no_answer = || unreachable(format!("no answer within {} ms", timeout.as_millis()));
    let addresses = match tokio::time::timeout_at(deadline, resolve(&offer.host, offer.port)).await
    {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(reason)) => return unreachable(reason),
        Err(_) => return no_answer(),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return no_answer();
    }
    let key = offer.key.clone();
    let credential = if offer.proof { Credential::Proof(key) } else { Credential::Key(key) };
    let told = offer.hello.as_deref().and_then(Told::parse);
    let options = ClientOptions { patience, told, ..ClientOptions::tcp(credential, left) };
    match Client::connect_tcp(&addresses, options).await {
        Ok(client) => Tried::Proven(offer.id, client),
        Err(error) if is_another_server(&error) => {
            Tried::Verdict(offer.id, VerdictKind::Refused { reason: reason(&error) })
        }
        Err(ConnectError::TimedOut { .. }) => no_answer(),
        Err(error) => unreachable(reason(&error)),
    }
}

/// Looks a name up.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => {
            let mut addresses: Vec<_> = found.collect();
            addresses.dedup();
            Ok(addresses)
        }
        Err(error) => Err(format!("the name `{host}` means nothing here: {error}")),
    }
}

/// Whether something answered that is not the server that was meant.
pub(super) fn is_another_server(error: &ConnectError) -> bool {
    matches!(
        error,
        ConnectError::Rejected { .. }
            | ConnectError::Protocol { .. }
            | ConnectError::Incompatible { .. }
    )
}

/// Says an error and its causes in one line.
pub(super) fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
