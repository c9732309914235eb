//! One launch, from the request to the end of its worker.
//!
//! A launch is a transaction: until its ticket is redeemed anything that goes wrong, and a client
//! that goes away, cancels the plugin, which still holds all that it started and takes it back.
//! Only the redeemed ticket commits it: the connection gets its entry, its client is told, and then
//! the plugin gets its verdict. So there is no moment in which a killed manager leaves a server
//! that nobody has heard of. After that the worker may stay, as what holds a tunnel or a server's process.

use std::sync::Arc;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{
    Answer, Ask, HostMessage, LogLevel, Notice, Offer, PluginMessage, Progress, Stage, Verdict,
    VerdictKind, Via,
};
use distant_plugin_api::options::Options;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::{ErrorKind, LaunchError};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use futures::FutureExt;
use tokio::sync::{oneshot, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::connections::{for_released, reached, Connection, Resident, Server};
use super::kill;
use super::offers::{Offers, Tried};
use super::plan::Plan;
use super::requester::Requester;
use super::service::Manager;
use super::tickets::{Redeemed, Redemption, Ticket};
use crate::plugin::{Event, Process};
use crate::wire::client::Client;
use crate::wire::message::{ManagerResponse, Step};

/// Runs a launch and tells its client how it went. Returns when its worker is gone.
pub(super) async fn run(
    manager: Arc<Manager>,
    requester: Requester,
    destination: Secret,
    options: Secret,
    pending: OwnedSemaphorePermit,
) {
    if let Err(error) = launch(&manager, &requester, &destination, &options, pending).await {
        tracing::info!(kind = ?error.kind, "a launch failed: {}", error.one_line());
        requester.fail(&error).await;
    }
}

async fn launch(
    manager: &Arc<Manager>,
    requester: &Requester,
    destination: &Secret,
    options: &Secret,
    pending: OwnedSemaphorePermit,
) -> Result<(), LaunchError> {
    requester.step(Step::Plan);
    let extension = requester.extension.as_deref();
    let plan = Plan::make(
        &manager.registry,
        &manager.programs,
        destination.expose(),
        options.expose(),
        extension,
    );
    let plan = unless_unwanted(manager, requester, plan).await??;
    requester.step(Step::Queue);
    let waits = |before: usize| {
        requester.progress(Progress { stage: Stage::Wait, done: 0, total: before as u64 });
    };
    let place = unless_unwanted(manager, requester, manager.places.take(waits)).await?;
    let Plan { entry, request, timeout, verbose, shown } = plan;
    tracing::info!(destination = %request.destination, plugin = entry.name, "launching");
    requester.step(Step::Worker);
    let worker = Process::start(&entry, &request.environment, log_level(verbose));
    let (process, _hello) = unless_unwanted(manager, requester, worker).await??;
    requester.step_at(Step::Load, process.spawned());
    requester.step(Step::Request);
    let mut destination = request.destination.clone();
    destination.password = None;
    // Only the plugin keeps what was given: there may be passwords in it.
    process.send(HostMessage::Launch(Box::new(request)));
    let launch = Launch {
        manager: Arc::clone(manager),
        requester: requester.clone(),
        plugin: entry.name,
        destination,
        shown,
        verbose,
        process,
        clock: Clock::start(manager.limits.plugin + timeout),
        offers: Offers::new(timeout, &manager.limits),
        questions: FuturesUnordered::new(),
        allocation: Clock::start(manager.limits.allocate),
        is_allocating: false,
        uploaded: 0,
        upload_until: None,
        proven: None,
    };
    launch.run((place, pending)).await
}

/// Waits for something, unless the client goes away or the manager ends meanwhile.
async fn unless_unwanted<T>(
    manager: &Manager,
    requester: &Requester,
    future: impl std::future::Future<Output = T>,
) -> Result<T, LaunchError> {
    tokio::select! {
        output = future => Ok(output),
        () = requester.session.gone.cancelled() => Err(LaunchError::cancelled()),
        () = manager.ending.cancelled() => Err(LaunchError::cancelled().caused_by("the manager ends")),
    }
}

/// What a plugin's log is good for: all of it where the client wants it, else what the manager's
/// own log keeps.
fn log_level(verbose: bool) -> LogLevel {
    use tracing::level_filters::LevelFilter;
    if verbose {
        return LogLevel::Trace;
    }
    match LevelFilter::current() {
        LevelFilter::OFF => LogLevel::Off,
        LevelFilter::ERROR => LogLevel::Error,
        LevelFilter::WARN => LogLevel::Warn,
        LevelFilter::INFO => LogLevel::Info,
        LevelFilter::DEBUG => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

/// A launch whose worker runs.
struct Launch {
    manager: Arc<Manager>,
    requester: Requester,
    /// The plugin's name.
    plugin: String,
    /// Where, without a password.
    destination: Destination,
    /// What it was given, without secrets.
    shown: Options,
    /// Whether the plugin's log is for the client too.
    verbose: bool,
    process: Process,
    clock: Clock,
    offers: Offers,
    questions: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Counts while the plugin waits for a place to run, when `clock` does not.
    allocation: Clock,
    is_allocating: bool,
    /// Bytes of an upload so far.
    uploaded: u64,
    /// When an upload that gets on does not count any more.
    upload_until: Option<Instant>,
    proven: Option<Proven>,
}

/// A server that is reached, and the ticket that its connection waits for.
struct Proven {
    offer: Offer,
    client: Client,
    ticket: Ticket,
    until: Instant,
}

impl Launch {
    /// Goes through with it. `permits` are given back once the plugin has its verdict.
    async fn run<P>(mut self, permits: P) -> Result<(), LaunchError> {
        match self.until_redeemed().await {
            Ok((proven, redemption)) => {
                let (winner, until) = (proven.offer.id, proven.until);
                let (connection, resident, told) = self.commit(proven, redemption);
                if !is_told(&self.manager, told, until).await {
                    let _gone = resident.gone.drop_guard();
                    self.manager.connections.remove(connection.id);
                    self.end().await;
                    return Err(LaunchError::cancelled());
                }
                let open: Vec<_> = self.offers.open().map(|offer| offer.id).collect();
                for id in open {
                    self.verdict(id, connected(id, winner));
                }
                drop(permits);
                self.end_with_manager(&connection);
                self.reside(&connection, &resident, winner).await;
                Ok(())
            }
            Err(error) => {
                // The client hears of it when nothing is left, so that it may try again at once.
                self.end().await;
                if let Some(proven) = self.proven.take() {
                    proven.ticket.fail(&error).await;
                }
                Err(error)
            }
        }
    }

    /// Serves the plugin until the connection is proven and its ticket redeemed.
    async fn until_redeemed(&mut self) -> Result<(Proven, Redemption), LaunchError> {
        let gone = self.requester.session.gone.clone();
        let ending = self.manager.ending.clone();
        loop {
            self.clock.pause();
            self.allocation.pause();
            if self.questions.is_empty() && self.proven.is_none() {
                self.running_clock().resume();
            }
            tokio::select! {
                // A ticket that is shown in its last moment counts.
                biased;
                redemption = redemption(&mut self.proven) => {
                    let message = "nobody took the connection of the launch";
                    let redeemed = redemption
                        .ok_or_else(|| LaunchError::new(ErrorKind::TimedOut, message))?;
                    // Whoever showed the ticket has gone meanwhile: nobody knows the connection.
                    let is_wanted = !redeemed.1.redeemed.is_closed();
                    return is_wanted.then_some(redeemed).ok_or_else(LaunchError::cancelled);
                }
                () = gone.cancelled() => return Err(LaunchError::cancelled()),
                () = ending.cancelled() => {
                    return Err(LaunchError::cancelled().caused_by("the manager ends"));
                }
                event = self.process.next() => self.event(event)?,
                Some(answer) = self.questions.next() => {
                    self.process.send(HostMessage::Answer(answer));
                }
                tried = self.offers.next() => match tried {
                    Tried::Verdict(id, result) => self.verdict(id, result),
                    Tried::Proven(id, client) => {
                        self.offers.stop();
                        self.proven = Some(self.proven(id, client).await?);
                    }
                },
                () = self.clock.over() => return Err(self.timed_out(&self.clock, "plugin")),
                () = self.allocation.over() => {
                    return Err(self.timed_out(&self.allocation, "allocate"));
                }
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), LaunchError> {
        let message = match event {
            Event::Message(message) => message,
            Event::Ended(Err(error)) => return Err(error),
            Event::Ended(Ok(())) => return Err(self.broke("ended without a server")),
        };
        match message {
            PluginMessage::Ask(ask) => self.ask(ask),
            PluginMessage::Offer(offer) => return self.offer(offer),
            PluginMessage::Done => return Err(self.broke("ended without a server")),
            // An executable's own words, which may be a megabyte.
            PluginMessage::Error(error) => return Err(error.clipped()),
            other => self.hear(other),
        }
        Ok(())
    }

    /// Takes what a plugin may say at any time.
    fn hear(&mut self, message: PluginMessage) {
        match message {
            PluginMessage::Notice(notice) => self.requester.notice(notice),
            PluginMessage::Progress(progress) => {
                // An upload takes as long as the network makes it; it counts as alive for as long
                // as it gets on. But a byte now and then would hold its place for ever.
                if progress.stage == Stage::Upload && progress.done > self.uploaded {
                    self.uploaded = progress.done;
                    let most = self.manager.limits.upload;
                    let until = *self.upload_until.get_or_insert_with(|| Instant::now() + most);
                    if Instant::now() < until {
                        self.clock.rewind();
                    }
                }
                self.is_allocating = progress.stage == Stage::Allocate;
                self.requester.step(Step::Plugin(progress.stage));
                self.requester.progress(progress);
            }
            PluginMessage::Log(log) => {
                let (plugin, target) = (&self.plugin, &log.target);
                match log.level {
                    LogLevel::Off => {}
                    LogLevel::Error => tracing::error!(plugin, target, "{}", log.text),
                    LogLevel::Warn => tracing::warn!(plugin, target, "{}", log.text),
                    LogLevel::Info => tracing::info!(plugin, target, "{}", log.text),
                    LogLevel::Debug => tracing::debug!(plugin, target, "{}", log.text),
                    LogLevel::Trace => tracing::trace!(plugin, target, "{}", log.text),
                }
                if self.verbose {
                    self.requester.log(log);
                }
            }
            _ => tracing::debug!(plugin = self.plugin, "a message that does not fit"),
        }
    }

    fn ask(&mut self, ask: Ask) {
        let (manager, requester) = (Arc::clone(&self.manager), self.requester.clone());
        if self.questions.len() >= self.manager.limits.questions {
            let cancelled = Answer { id: ask.id, answers: None, valid: None, cancelled: true };
            return self.process.send(HostMessage::Answer(cancelled));
        }
        self.questions.push(async move { requester.ask(&manager, ask).await }.boxed());
    }

    fn offer(&mut self, offer: Offer) -> Result<(), LaunchError> {
        if self.offers.get(offer.id).is_some() {
            // It asks for the next verdict, and is no new one.
            self.offers.add(offer, false);
            return Ok(());
        }
        if self.offers.len() >= self.manager.limits.offers {
            return Err(self.broke("offered too many servers"));
        }
        let (host, port, via) = (&offer.host, offer.port, offer.via);
        tracing::debug!(host, port, ?via, proof = offer.proof, "a server is offered");
        if self.offers.len() == 0 {
            self.requester.step(Step::Tcp);
            self.requester.progress(Progress { stage: Stage::Offer, done: 0, total: 0 });
        }
        let worked = self.manager.ways.get(&self.destination);
        let is_hopeless = offer.via == Via::Direct && worked == Some(Via::Tunnel);
        self.offers.add(offer, is_hopeless);
        Ok(())
    }

    fn verdict(&self, id: u64, result: VerdictKind) {
        tracing::debug!(offer = id, verdict = ?result, "a verdict");
        self.process.send(HostMessage::Verdict(Verdict { id, result }));
    }

    /// Remembers the way, and tells the client where to connect.
    async fn proven(&mut self, id: u64, client: Client) -> Result<Proven, LaunchError> {
        if let Some(reached) = client.reached() {
            self.requester.step_at(Step::Proof, reached);
        }
        self.requester.step(Step::Ticket);
        let offer = self.offers.get(id).cloned().ok_or_else(|| self.broke("lost its offer"))?;
        let to = &self.destination;
        self.manager.ways.remember(to, offer.via);
        if offer.via == Via::Tunnel {
            // Only here is it known which way won, and the client still there to hear it.
            let through = to.scheme.as_deref().unwrap_or("a tunnel");
            let text = format!("connected through {through} to the server on `{}`", to.host);
            self.requester.notice(Notice { level: LogLevel::Info, text });
        }
        let (ticket, text) = self.manager.tickets.issue(self.requester.session.uid);
        let destination = address(&offer, &client, text).expose();
        let launched = ManagerResponse::Launched { destination };
        let until = Instant::now() + self.manager.limits.ticket;
        let reply = self.requester.reply(&launched);
        let reply = unless_unwanted(&self.manager, &self.requester, reply);
        let reply = tokio::time::timeout_at(until, reply).await.map_err(|_| {
            LaunchError::new(ErrorKind::TimedOut, "the client does not take what it is told")
        })?;
        reply?.map_err(|_| LaunchError::cancelled())?;
        Ok(Proven { offer, client, ticket, until })
    }

    /// Makes the connection everybody's and the launch a success, once its client has been told.
    fn commit(
        &mut self,
        proven: Proven,
        redemption: Redemption,
    ) -> (Arc<Connection>, Resident, oneshot::Receiver<()>) {
        let Proven { offer, client, ticket: _, until: _ } = proven;
        let resident = Resident { end: CancellationToken::new(), gone: CancellationToken::new() };
        let server = Server::Launched { resident: resident.clone(), proof: offer.proof };
        let options = std::mem::take(&mut self.shown);
        let connection =
            self.manager.connections.add(client, redemption.destination, options, server);
        tracing::info!(
            connection = connection.id,
            destination = %self.destination,
            via = ?offer.via,
            "launched"
        );
        let (told, is_told) = oneshot::channel();
        // If it has gone since, it cannot be told.
        let _ = redemption.redeemed.send(Ok(Redeemed { id: connection.id, told }));
        (connection, resident, is_told)
    }

    /// Ends a connection that was made while the manager was about to end: it may have looked
    /// through its connections before this one was among them.
    fn end_with_manager(&self, connection: &Connection) {
        let manager = &self.manager;
        if !manager.ending.is_cancelled() {
            return;
        }
        if let Some(connection) = manager.connections.remove(connection.id) {
            let limit = manager.limits.kill;
            // It says in the log how that went.
            manager.launches.spawn(async move { kill::end(&connection, limit).await.is_ok() });
        }
    }

    /// Stays with a worker that holds something, and with one that does not until it is gone.
    async fn reside(mut self, connection: &Connection, resident: &Resident, winner: u64) {
        let _gone = resident.gone.clone().drop_guard();
        self.questions.clear();
        let mut is_cancelled = false;
        let result = loop {
            tokio::select! {
                event = self.process.next() => match event {
                    Event::Ended(result) => break result,
                    Event::Message(PluginMessage::Error(error)) => {
                        tracing::warn!(connection = connection.id, "the plugin: {}", error.one_line());
                    }
                    Event::Message(PluginMessage::Ask(ask)) => {
                        // Its launch is over, so nobody waits at the client.
                        let answer = Answer { id: ask.id, answers: None, valid: None, cancelled: true };
                        self.process.send(HostMessage::Answer(answer));
                    }
                    Event::Message(PluginMessage::Offer(offer)) => {
                        self.verdict(offer.id, connected(offer.id, winner));
                    }
                    Event::Message(PluginMessage::Done) => {}
                    Event::Message(message) => self.hear(message),
                },
                () = resident.end.cancelled(), if !is_cancelled => {
                    is_cancelled = true;
                    self.process.cancel();
                }
            }
        };
        if let Err(error) = &result {
            tracing::warn!(connection = connection.id, "a worker: {}", error.one_line());
        }
        if !is_cancelled {
            self.manager.connections.check(connection).await;
        }
    }

    /// Cancels the plugin and waits until its worker is gone.
    async fn end(&mut self) {
        self.questions.clear();
        self.offers.stop();
        self.process.cancel();
        while let Event::Message(message) = self.process.next().await {
            match message {
                PluginMessage::Notice(_) | PluginMessage::Log(_) => self.hear(message),
                PluginMessage::Error(error) if error.kind != ErrorKind::Cancelled => {
                    tracing::debug!("a cancelled plugin: {}", error.one_line());
                }
                _ => {}
            }
        }
    }

    /// The clock of what the plugin does now.
    fn running_clock(&mut self) -> &mut Clock {
        match self.is_allocating {
            true => &mut self.allocation,
            false => &mut self.clock,
        }
    }

    fn timed_out(&self, clock: &Clock, key: &str) -> LaunchError {
        let (name, limit) = (&self.plugin, clock.limit());
        let message = format!("plugin `{name}` came to no end within {} s", limit.as_secs());
        self.process.is_late(&message);
        LaunchError::new(ErrorKind::TimedOut, message).with_hint(format!(
            "where it is meant to take longer, `{key}` below `[manager.limits]` of the configuration \
             allows it"
        ))
    }

    fn broke(&self, what: &str) -> LaunchError {
        let message = format!("plugin `{}` {what}", self.plugin);
        LaunchError::new(ErrorKind::Plugin, message)
    }
}

/// The verdict on an offer of a launch that one of its offers has won.
fn connected(offer: u64, winner: u64) -> VerdictKind {
    VerdictKind::Connected { by: (offer != winner).then_some(winner) }
}

/// Waits for the ticket, once there is one: until it is shown, or its time is over.
async fn redemption(proven: &mut Option<Proven>) -> Option<(Proven, Redemption)> {
    let Some(waiting) = proven else { return std::future::pending().await };
    let shown = tokio::time::timeout_at(waiting.until, waiting.ticket.shown()).await.ok()?;
    Some((proven.take()?, shown))
}

/// Waits until a client can read that it has its connection. `false`: it never will.
async fn is_told(manager: &Manager, told: oneshot::Receiver<()>, until: Instant) -> bool {
    tokio::select! {
        biased;
        told = told => told.is_ok(),
        () = manager.ending.cancelled() => false,
        () = tokio::time::sleep_until(until) => false,
    }
}

/// Where a client is told to connect. A plugin may know the host by a name that is no destination.
fn address(offer: &Offer, client: &Client, ticket: Secret) -> Destination {
    let mut destination = Destination::new(&offer.host);
    destination.scheme = Some("distant".to_owned());
    destination.port = Some(offer.port);
    destination.password = Some(ticket);
    if destination.expose().expose().parse::<Destination>().is_err() {
        destination.host = reached(client);
    }
    for_released(destination, client)
}
