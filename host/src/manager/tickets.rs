//! One-time tickets: what a launched server's address carries in the place of its key.
//!
//! A ticket is a random number and this manager's mark on it. The mark tells one of its own
//! tickets, also a used one, from a key; so a ticket is never shown to a server as if it were one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use distant_plugin_api::destination::Destination;
use distant_plugin_api::secret::Secret;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// Bytes of the random number, and of the mark: together those of a key.
const HALF: usize = 16;

/// Somebody wants the connection that a ticket is for.
#[derive(Debug)]
pub(super) struct Redemption {
    /// Where it leads, as its client says; without a password.
    pub(super) destination: Destination,
    /// Takes the connection's id.
    pub(super) redeemed: oneshot::Sender<u32>,
}

/// What a text is, shown in a ticket's place.
#[derive(Debug)]
pub(super) enum Shown {
    /// A valid ticket, which is used up now.
    Ticket(oneshot::Sender<Redemption>),
    /// A ticket that was used already, is over, or is another user's.
    Void,
    /// No ticket of this manager.
    Other,
}

#[derive(Debug)]
struct Waiting {
    uid: u32,
    redeem: oneshot::Sender<Redemption>,
}

/// All tickets of a manager.
pub(super) struct Tickets {
    mark: Zeroizing<[u8; 32]>,
    waiting: Mutex<HashMap<[u8; HALF], Waiting>>,
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
    redemption: oneshot::Receiver<Redemption>,
}

impl Tickets {
    /// Makes tickets that only this manager knows.
    pub(super) fn new() -> Self {
        Self { mark: Zeroizing::new(rand::random()), waiting: Mutex::default() }
    }

    /// Makes a ticket for a user, and its text of 64 hexadecimal digits.
    pub(super) fn issue(self: &Arc<Self>, uid: u32) -> (Ticket, Secret) {
        let number: [u8; HALF] = rand::random();
        let (redeem, redemption) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(number, Waiting { uid, redeem });
        let mut bytes = Zeroizing::new([0; 2 * HALF]);
        bytes[..HALF].copy_from_slice(&number);
        bytes[HALF..].copy_from_slice(&self.marked(&number).finalize().into_bytes()[..HALF]);
        let text = Secret::new(hex::encode(*bytes));
        (Ticket { tickets: Arc::clone(self), number, redemption }, text)
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
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.get(number) {
            Some(ticket) if ticket.uid == uid => {
                waiting.remove(number).map_or(Shown::Void, |ticket| Shown::Ticket(ticket.redeem))
            }
            _ => Shown::Void,
        }
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

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.tickets.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(&self.number);
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
        assert!(tickets.waiting.lock().unwrap().is_empty());
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
