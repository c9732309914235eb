//! One-time tickets: what a launched server's address carries in the place of its key.
//!
//! A ticket is a random number and this manager's mark on it. The mark tells one of its own
//! tickets, also a used one, from a key; so a ticket is never shown to a server as if it were one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use distant_plugin_api::destination::Destination;
use distant_plugin_api::secret::Secret;
use distant_plugin_api::LaunchError;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// Bytes of the random number, and of the mark: together those of a key.
const HALF: usize = 16;

/// Failed launches whose tickets were not shown yet; of older ones the reason is forgotten.
const FAILED_MAX: usize = 64;

/// Somebody wants the connection that a ticket is for.
#[derive(Debug)]
pub(super) struct Redemption {
    /// Where it leads, as its client says; without a password.
    pub(super) destination: Destination,
    /// Takes the connection, or why there is none after all.
    pub(super) redeemed: oneshot::Sender<Result<Redeemed, LaunchError>>,
}

/// The connection that a ticket was good for.
#[derive(Debug)]
pub(super) struct Redeemed {
    pub(super) id: u32,
    /// Used once the client has been told, and dropped if it cannot be.
    pub(super) told: oneshot::Sender<()>,
}

/// What a text is, shown in a ticket's place.
#[derive(Debug)]
pub(super) enum Shown {
    /// A valid ticket, which is used up now.
    Ticket(oneshot::Sender<Redemption>),
    /// A ticket whose launch failed before it was shown.
    Failed(LaunchError),
    /// A ticket that was used already, or is another user's.
    Void,
    /// No ticket of this manager.
    Other,
}

#[derive(Debug)]
struct Waiting {
    uid: u32,
    redeem: oneshot::Sender<Redemption>,
}

#[derive(Debug, Default)]
struct Issued {
    waiting: HashMap<[u8; HALF], Waiting>,
    failed: VecDeque<([u8; HALF], u32, LaunchError)>,
}

/// All tickets of a manager.
pub(super) struct Tickets {
    mark: Zeroizing<[u8; 32]>,
    issued: Mutex<Issued>,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// A ticket that waits for whoever shows it. Dropping it makes it void.
#[derive(Debug)]
pub(super) struct Ticket {
    tickets: Arc<Tickets>,
    number: [u8; HALF],
    uid: u32,
    redemption: oneshot::Receiver<Redemption>,
}

impl Tickets {
    /// Makes tickets that only this manager knows.
    pub(super) fn new() -> Self {
        Self { mark: Zeroizing::new(rand::random()), issued: Mutex::default() }
    }

    fn issued(&self) -> MutexGuard<'_, Issued> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a ticket for a user, and its text of 64 hexadecimal digits.
    pub(super) fn issue(self: &Arc<Self>, uid: u32) -> (Ticket, Secret) {
        let number: [u8; HALF] = rand::random();
        let (redeem, redemption) = oneshot::channel();
        self.issued().waiting.insert(number, Waiting { uid, redeem });
        let mut bytes = Zeroizing::new([0; 2 * HALF]);
        bytes[..HALF].copy_from_slice(&number);
        bytes[HALF..].copy_from_slice(&self.marked(&number).finalize().into_bytes()[..HALF]);
        let text = Secret::new(hex::encode(*bytes));
        (Ticket { tickets: Arc::clone(self), number, uid, redemption }, text)
    }

    /// Uses up the ticket that a user shows, if it is one.
    pub(super) fn show(&self, text: &str, uid: u32) -> Shown {
        let mut bytes = Zeroizing::new([0; 2 * HALF]);
        if hex::decode_to_slice(text, &mut *bytes).is_err() {
            return Shown::Other;
        }
        let (number, mark) = bytes.split_at(HALF);
        // Takes the same time wherever the difference is; so nobody finds a mark by guessing it
        // piece by piece, and without the mark the number is of no use.
        if self.marked(number).verify_truncated_left(mark).is_err() {
            return Shown::Other;
        }
        let mut issued = self.issued();
        if issued.waiting.get(number).is_some_and(|ticket| ticket.uid == uid) {
            let ticket = issued.waiting.remove(number);
            return ticket.map_or(Shown::Void, |ticket| Shown::Ticket(ticket.redeem));
        }
        let is_this = |it: &([u8; HALF], u32, LaunchError)| it.0 == number && it.1 == uid;
        let index = issued.failed.iter().position(is_this);
        let failed = index.and_then(|index| issued.failed.remove(index));
        failed.map_or(Shown::Void, |(_, _, error)| Shown::Failed(error))
    }

    fn marked(&self, number: &[u8]) -> Hmac<Sha256> {
        #[allow(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mac = Hmac::<Sha256>::new_from_slice(&*self.mark).expect("a key of 32 bytes");
        mac.chain_update(number)
    }
}

impl Ticket {
    /// Waits until somebody shows the ticket; for ever, if it was shown by then.
    pub(super) async fn shown(&mut self) -> Redemption {
        match (&mut self.redemption).await {
            Ok(redemption) => redemption,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Ticket {
    /// Ends the ticket of a launch that failed: whoever shows it, or has just shown it, hears why.
    pub(super) async fn fail(mut self, error: &LaunchError) {
        let was_shown = {
            let mut issued = self.tickets.issued();
            let is_waiting = issued.waiting.remove(&self.number).is_some();
            if is_waiting {
                if issued.failed.len() >= FAILED_MAX {
                    issued.failed.pop_front();
                }
                issued.failed.push_back((self.number, self.uid, error.clone()));
            }
            !is_waiting
        };
        if was_shown {
            if let Ok(redemption) = (&mut self.redemption).await {
                let _ = redemption.redeemed.send(Err(error.clone()));
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tickets.issued().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once_and_for_its_user() {
        let tickets = Arc::new(Tickets::new());
        let (_ticket, text) = tickets.issue(7);
        assert!(matches!(tickets.show(text.expose(), 8), Shown::Void));
        assert!(matches!(tickets.show(text.expose(), 7), Shown::Ticket(_)));
        assert!(matches!(tickets.show(text.expose(), 7), Shown::Void));
    }

    #[test]
    fn a_ticket_that_is_over_is_void_and_leaves_nothing() {
        let tickets = Arc::new(Tickets::new());
        let (ticket, text) = tickets.issue(7);
        drop(ticket);
        assert!(matches!(tickets.show(text.expose(), 7), Shown::Void));
        assert!(tickets.issued().waiting.is_empty());
    }

    #[tokio::test]
    async fn the_ticket_of_a_launch_that_failed_says_why() {
        let tickets = Arc::new(Tickets::new());
        let error = LaunchError::cancelled();
        let (ticket, text) = tickets.issue(7);
        ticket.fail(&error).await;
        assert!(matches!(tickets.show(text.expose(), 8), Shown::Void));
        assert!(matches!(tickets.show(text.expose(), 7), Shown::Failed(it) if it == error));
        assert!(matches!(tickets.show(text.expose(), 7), Shown::Void));

        let (ticket, text) = tickets.issue(7);
        let Shown::Ticket(redeem) = tickets.show(text.expose(), 7) else { panic!() };
        let (redeemed, id) = oneshot::channel();
        let destination = Destination::new("there");
        redeem.send(Redemption { destination, redeemed }).unwrap();
        ticket.fail(&error).await;
        assert_eq!(id.await.unwrap().unwrap_err(), error);
    }

    #[test]
    fn no_more_reasons_are_kept_than_somebody_may_ask_for() {
        let tickets = Arc::new(Tickets::new());
        for _ in 0..FAILED_MAX + 1 {
            let (ticket, _text) = tickets.issue(7);
            futures::executor::block_on(ticket.fail(&LaunchError::cancelled()));
        }
        assert_eq!(tickets.issued().failed.len(), FAILED_MAX);
    }

    #[test]
    fn a_key_is_no_ticket() {
        let tickets = Arc::new(Tickets::new());
        let (_ticket, text) = Arc::new(Tickets::new()).issue(7);
        for other in [text.expose(), &"0f".repeat(32), "0f", "", "hunter2"] {
            assert!(matches!(tickets.show(other, 7), Shown::Other));
        }
    }

    #[test]
    fn the_mark_and_the_tickets_print_nothing() {
        let tickets = Tickets::new();
        assert_eq!(format!("{tickets:?}"), "Tickets { .. }");
    }
}
