//! A time limit that stands still while somebody else has to act.

use std::time::Duration;

use tokio::time::Instant;

/// Counts down, except while paused.
#[derive(Debug)]
pub(super) struct Clock {
    limit: Duration,
    left: Duration,
    since: Option<Instant>,
}

impl Clock {
    /// Starts to count down.
    pub(super) fn start(limit: Duration) -> Self {
        Self { limit, left: limit, since: Some(Instant::now()) }
    }

    /// Stands still. Nothing happens if it does already.
    pub(super) fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
    }

    /// Counts on. Nothing happens if it does already.
    pub(super) fn resume(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Gives the whole time again.
    pub(super) fn rewind(&mut self) {
        self.left = self.limit;
        self.since = self.since.map(|_| Instant::now());
    }

    /// Waits until the time is over: for ever, while it stands still.
    pub(super) async fn over(&self) {
        match self.since {
            Some(since) => tokio::time::sleep_until(since + self.left).await,
            None => std::future::pending().await,
        }
    }

    /// The whole time.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_counts_only_while_it_runs() {
        let mut clock = Clock::start(Duration::ZERO);
        clock.pause();
        tokio::select! {
            biased;
            () = clock.over() => panic!("it stands still"),
            () = tokio::task::yield_now() => {}
        }
        clock.resume();
        clock.over().await;
    }

    #[test]
    fn what_was_used_up_stays_so_until_it_is_rewound() {
        let hour = Duration::from_secs(3600);
        let mut clock = Clock::start(hour);
        clock.since = Instant::now().checked_sub(hour / 2);
        clock.pause();
        assert!(clock.left <= hour / 2);
        clock.rewind();
        assert_eq!((clock.left, clock.since), (hour, None));
        clock.resume();
        assert!(clock.since.is_some());
    }
}
