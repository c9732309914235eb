//! Connecting to a server: by the ticket of a launch, or by hand with its key.

use std::sync::Arc;

use distant_plugin_api::destination::Destination;
use distant_plugin_api::message::{Challenge, Question};
use distant_plugin_api::options::{OptionSchema, OptionType, Options, Schema};
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::{ErrorKind, LaunchError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connections::Server;
use super::offers::{is_another_server, reason, resolve};
use super::plan::{parse_destination, parse_options};
use super::questions::{Expected, Given};
use super::requester::{challenge_message, Requester};
use super::service::Manager;
use super::tickets::{Redeemed, Redemption, Shown};
use crate::wire::client::{Client, ClientOptions, ConnectError, Credential};
use crate::wire::message::ManagerResponse;

/// The one scheme that can be connected to, and that of a destination which names none.
const SCHEME: &str = "distant";

/// Runs a connect request and tells its client how it went.
pub(super) async fn run(
    manager: Arc<Manager>,
    requester: Requester,
    destination: Secret,
    options: Secret,
) {
    let connected = tokio::select! {
        connected = connect(&manager, &requester, &destination, &options) => connected,
        () = requester.session.gone.cancelled() => return,
        () = manager.ending.cancelled() => {
            Err(LaunchError::new(ErrorKind::Cancelled, "the manager ends"))
        }
    };
    match connected {
        Ok(Connected::ByHand(id)) => requester.tell(&ManagerResponse::Connected { id }).await,
        Ok(Connected::Launched(Redeemed { id, told })) => {
            if requester.tell_for_sure(&ManagerResponse::Connected { id }).await.is_ok() {
                // Its launch does not wait any more if it was given up meanwhile.
                let _ = told.send(());
            }
        }
        Err(error) => requester.fail(&error).await,
    }
}

/// A connection that was asked for.
enum Connected {
    ByHand(u32),
    Launched(Redeemed),
}

async fn connect(
    manager: &Manager,
    requester: &Requester,
    destination: &Secret,
    options: &Secret,
) -> Result<Connected, LaunchError> {
    let destination = parse_destination(destination.expose(), SCHEME)?;
    if !destination.has_scheme(SCHEME) {
        return Err(not_distant(&destination));
    }
    if let Some(ticket) = &destination.password {
        match manager.tickets.show(ticket.expose(), requester.session.uid) {
            Shown::Ticket(redeem) => {
                return redeem_ticket(redeem, destination).await.map(Connected::Launched);
            }
            Shown::Failed(error) => return Err(error),
            Shown::Void => return Err(void()),
            Shown::Other => {}
        }
    }
    let options = parse_options(options.expose())?;
    by_hand(manager, requester, destination, options).await.map(Connected::ByHand)
}

async fn redeem_ticket(
    redeem: oneshot::Sender<Redemption>,
    mut destination: Destination,
) -> Result<Redeemed, LaunchError> {
    destination.password = None;
    let (redeemed, connection) = oneshot::channel();
    redeem.send(Redemption { destination, redeemed }).map_err(|_| void())?;
    connection.await.map_err(|_| void())?
}

fn void() -> LaunchError {
    let message = "the ticket of this launch is used up";
    LaunchError::new(ErrorKind::TimedOut, message).with_hint("launch again")
}

fn not_distant(destination: &Destination) -> LaunchError {
    let scheme = destination.scheme.as_deref().unwrap_or_default();
    let mut without = destination.clone();
    without.password = None;
    let message = format!("nothing connects to `{scheme}://` without a launch");
    LaunchError::new(ErrorKind::InvalidOption, message)
        .with_hint(format!("use `distant launch {without}`"))
}

fn schema() -> Schema {
    let help = "";
    Schema(vec![
        OptionSchema { secret: true, ..OptionSchema::new("key", OptionType::String, help) },
        OptionSchema::new("proof", OptionType::Bool, help).or("false"),
        OptionSchema::new("timeout", OptionType::DurationMs, help),
    ])
}

/// Connects to a server whose address and key the client gives.
///
/// A server started by hand may be a released one, which takes only the key itself; so it is sent,
/// unless `proof=true` says that the server can do without.
async fn by_hand(
    manager: &Manager,
    requester: &Requester,
    mut destination: Destination,
    given: Options,
) -> Result<u32, LaunchError> {
    // Not for tickets: those are for launches, which have their places already.
    let _place = requester.session.pending.try_acquire().map_err(|_| {
        let pending = manager.limits.pending;
        let message = format!("this client has {pending} launches and connects under way already");
        LaunchError::new(ErrorKind::Other, message)
    })?;
    let options = schema().check(&given, "connect", SCHEME)?;
    let Some(port) = destination.port.filter(|port| *port != 0) else {
        let message = format!("`{destination}` has no port to connect to");
        return Err(LaunchError::new(ErrorKind::InvalidOption, message));
    };
    let password = destination.password.take();
    let key = match password.or_else(|| options.get("key").map(Secret::new)) {
        Some(key) => key,
        None => ask_for_key(manager, requester).await?,
    };
    let key: SessionKey = key.expose().trim().parse().map_err(|error| {
        LaunchError::new(ErrorKind::InvalidOption, "the key is invalid").because(&error)
    })?;
    let proof = options.bool("proof")? == Some(true);
    let credential = if proof { Credential::Proof(key) } else { Credential::Key(key) };
    let within = options.duration_ms("timeout")?.unwrap_or(manager.limits.connect);

    tracing::info!(%destination, "connecting");
    let deadline = Instant::now() + within;
    let timed_out = || {
        let message = format!("`{destination}` did not answer within {} ms", within.as_millis());
        LaunchError::new(ErrorKind::TimedOut, message)
    };
    let addresses = tokio::time::timeout_at(deadline, resolve(&destination.host, port)).await;
    let addresses = addresses.map_err(|_| timed_out())?.map_err(|reason| {
        let message = format!("cannot connect to `{destination}`");
        LaunchError::new(ErrorKind::Unresolved, message).caused_by(reason)
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    let patience = manager.limits.reconnect;
    let options = ClientOptions { patience, ..ClientOptions::tcp(credential, left) };
    let client = Client::connect_tcp(&addresses, options).await.map_err(|error| match error {
        ConnectError::TimedOut { .. } => timed_out(),
        error => {
            let (kind, hint) = match is_another_server(&error) {
                true => {
                    (ErrorKind::Authentication, "check the port, and the key that belongs to it")
                }
                false => (ErrorKind::Unreachable, "check whether the server still runs there"),
            };
            let message = format!("cannot connect to `{destination}`");
            LaunchError::new(kind, message).caused_by(reason(&error)).with_hint(hint)
        }
    })?;
    let shown = given.iter().filter(|(key, _)| !key.ends_with("key")).collect();
    Ok(manager.connections.add(client, destination, shown, Server::Foreign).id)
}

/// Asks for the key in the words of a server's own challenge, which a 0.20 manager passes on here.
async fn ask_for_key(manager: &Manager, requester: &Requester) -> Result<Secret, LaunchError> {
    let question =
        Question { text: "Provide a key: ".to_owned(), label: "key".to_owned(), echo: false };
    let challenge = Challenge { questions: vec![question], ..Challenge::default() };
    let given = requester.put(manager, Expected::Texts(1), challenge_message(challenge)).await;
    match given {
        Some(Given::Texts(mut answers)) if answers.len() == 1 => Ok(answers.remove(0)),
        _ => Err(LaunchError::new(ErrorKind::Authentication, "nobody gave the server's key")),
    }
}
