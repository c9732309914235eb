//! The line of those who wait until there is a place for their launch.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{watch, OwnedSemaphorePermit, Semaphore};

/// Places for launches, and the line before them. First come, first served.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    /// The numbers of those who wait.
    line: watch::Sender<BTreeSet<u64>>,
}

impl Places {
    /// Makes so many places.
    pub(super) fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), line: watch::channel(BTreeSet::new()).0 }
    }

    /// Waits for a place, and tells how many wait before this one: once, and whenever that changes.
    /// Nothing is told where there is a place at once. `None` if there are no places any more.
    ///
    /// # Cancellation
    ///
    /// Whoever drops the future leaves the line.
    pub(super) async fn take(&self, mut tell: impl FnMut(usize)) -> Option<OwnedSemaphorePermit> {
        let waiting = Waiting::enter(&self.line);
        let mut changes = self.line.subscribe();
        let mut place = pin!(Arc::clone(&self.free).acquire_owned());
        let mut told = None;
        loop {
            let before = changes.borrow_and_update().range(..waiting.number).count();
            tokio::select! {
                biased;
                place = &mut place => return place.ok(),
                () = std::future::ready(()), if told != Some(before) => {
                    told = Some(before);
                    tell(before);
                }
                // The line is there for as long as this is.
                _ = changes.changed(), if told == Some(before) => {}
            }
        }
    }
}

/// A number in the line; it leaves with this.
struct Waiting<'a> {
    line: &'a watch::Sender<BTreeSet<u64>>,
    number: u64,
}

impl<'a> Waiting<'a> {
    fn enter(line: &'a watch::Sender<BTreeSet<u64>>) -> Self {
        let mut number = 0;
        line.send_modify(|line| {
            number = line.last().map_or(0, |last| last + 1);
            line.insert(number);
        });
        Self { line, number }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.line.send_modify(|line| {
            line.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn whoever_waits_hears_how_many_are_before_it_and_gets_its_turn() {
        let places = Places::new(1);
        let never = |before: usize| panic!("{before} before the first one");
        let first = places.take(never).now_or_never().unwrap();
        let (mut second_told, mut third_told) = (Vec::new(), Vec::new());
        let mut second = Box::pin(places.take(|before| second_told.push(before)));
        let mut third = Box::pin(places.take(|before| third_told.push(before)));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());

        // It gives up, and the one behind it moves up.
        drop(second);
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().flatten().is_some());
        drop(third);

        assert_eq!((second_told, third_told), (vec![0], vec![1, 0]));
    }
}
