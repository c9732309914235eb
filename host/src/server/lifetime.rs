//! How long a server lives: its shutdown rule, its first client, its lifeline, signals.
//!
//! Whoever is connected is counted where connections come and go; one task sleeps until the
//! earliest rule is due. A connection that is not authenticated counts as none.

use std::future::{pending, Future};
use std::io::Read;
use std::time::Duration;

use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch;
use tokio::time::{sleep_until, Instant};
use tokio_util::sync::CancellationToken;

use super::settings::{LaunchSettings, Shutdown};

/// Why a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// `--shutdown after`.
    After,
    /// `--shutdown lonely`.
    Lonely,
    /// It was launched, and whoever launched it never came.
    NobodyCame,
    /// Whoever held its standard input is gone.
    Lifeline,
    /// SIGTERM or SIGINT.
    Signal,
    /// A client asked for it.
    Asked,
}

/// How many clients are connected. Cloning shares the count.
#[derive(Debug, Clone)]
pub(super) struct Presence(watch::Sender<Present>);

#[derive(Debug, Clone, Copy)]
struct Present {
    clients: usize,
    /// Since when there have been none, or when the last one came.
    since: Instant,
    /// Whether there ever was one.
    ever: bool,
}

impl Presence {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(watch::Sender::new(Present { clients: 0, since: now, ever: false }))
    }

    /// A client has authenticated, or is back.
    pub(super) fn came(&self) {
        self.0.send_modify(|it| {
            *it = Present { clients: it.clients + 1, since: Instant::now(), ever: true };
        });
    }

    /// A client's TCP connection has ended.
    pub(super) fn left(&self) {
        self.0.send_modify(|it| {
            it.clients = it.clients.saturating_sub(1);
            it.since = Instant::now();
        });
    }

    /// Waits until nobody has been there for so long.
    async fn lonely(&self, limit: Duration) {
        self.absent(|it| if it.clients == 0 { it.since.checked_add(limit) } else { None }).await;
    }

    /// Waits until nobody has come at all for so long; for ever once somebody has.
    async fn nobody_came(&self, limit: Duration) {
        self.absent(|it| if it.ever { None } else { it.since.checked_add(limit) }).await;
    }

    async fn absent(&self, due: impl Fn(Present) -> Option<Instant>) {
        let mut changes = self.0.subscribe();
        loop {
            let due = due(*changes.borrow_and_update());
            tokio::select! {
                () = at(due) => return,
                changed = changes.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// Waits until the server has to end. `asked` is fired by a client's wish.
pub(super) async fn end(
    shutdown: Shutdown,
    launch: &LaunchSettings,
    presence: &Presence,
    asked: &CancellationToken,
) -> End {
    let rule = async {
        match shutdown {
            Shutdown::Never => pending().await,
            Shutdown::After(limit) => {
                tokio::time::sleep(limit).await;
                End::After
            }
            Shutdown::Lonely(limit) => {
                presence.lonely(limit).await;
                End::Lonely
            }
        }
    };
    let first_client = async {
        match launch.first_client {
            Some(limit) => presence.nobody_came(limit).await,
            None => pending().await,
        }
    };
    tokio::select! {
        end = rule => end,
        () = first_client => End::NobodyCame,
        () = lifeline(launch.lifeline) => End::Lifeline,
        () = signalled(SignalKind::terminate()) => End::Signal,
        () = signalled(SignalKind::interrupt()) => End::Signal,
        () = asked.cancelled() => End::Asked,
    }
}

fn lifeline(armed: bool) -> impl Future<Output = ()> {
    let broken = CancellationToken::new();
    // A thread of its own, which sleeps in one read: what stands on standard input may be a pipe,
    // a terminal or a file, and not all of them can be waited for otherwise.
    let watching = armed.then(|| {
        let broken = broken.clone();
        std::thread::Builder::new().name("lifeline".to_owned()).spawn(move || {
            let mut buffer = [0; 512];
            let mut stdin = std::io::stdin().lock();
            loop {
                match stdin.read(&mut buffer) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => break,
                }
            }
            broken.cancel();
        })
    });
    if let Some(Err(error)) = watching {
        // Without the thread nothing would end the server.
        tracing::error!("the lifeline cannot be watched: {error}");
        broken.cancel();
    }
    async move { broken.cancelled().await }
}

async fn signalled(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signals) => {
            signals.recv().await;
        }
        // The signal keeps its own way to end the process.
        Err(error) => {
            tracing::warn!("a signal cannot be waited for: {error}");
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short for a person, long for a machine.
    const WHILE: Duration = Duration::from_millis(100);

    fn launch(first_client: Option<Duration>) -> LaunchSettings {
        LaunchSettings { first_client, ..Default::default() }
    }

    /// Runs the rules beside a story; tells the end, and whether it came no earlier than it should.
    async fn ends(
        shutdown: Shutdown,
        launch: LaunchSettings,
        no_earlier: Duration,
        story: impl AsyncFnOnce(&Presence, &CancellationToken),
    ) -> End {
        let (presence, asked) = (Presence::new(), CancellationToken::new());
        let start = Instant::now();
        let story = async {
            story(&presence, &asked).await;
            pending().await
        };
        let end = tokio::select! {
            end = end(shutdown, &launch, &presence, &asked) => end,
            () = story => unreachable!("a story never ends"),
        };
        assert!(start.elapsed() >= no_earlier, "{end:?} after {:?}", start.elapsed());
        end
    }

    #[tokio::test]
    async fn after_ends_it_whoever_is_there() {
        let story = async |presence: &Presence, _: &CancellationToken| presence.came();
        let ended = ends(Shutdown::After(WHILE), launch(None), WHILE, story).await;
        assert_eq!(ended, End::After);
    }

    /// Runs the rules beside others that end later; the first must not come.
    async fn outlasts(rules: &mut (impl Future<Output = End> + Unpin), presence: &Presence) {
        let (asked, launch) = (CancellationToken::new(), launch(None));
        tokio::select! {
            biased;
            end = rules => panic!("{end:?} before its time"),
            _ = end(Shutdown::After(3 * WHILE), &launch, presence, &asked) => {}
        }
    }

    #[tokio::test]
    async fn lonely_counts_from_the_start_and_from_the_last_client() {
        let lonely = Shutdown::Lonely(WHILE);
        let ended = ends(lonely, launch(None), WHILE, async |_, _| ()).await;
        assert_eq!(ended, End::Lonely);
        let (presence, asked, launch) = (Presence::new(), CancellationToken::new(), launch(None));
        let mut rules = std::pin::pin!(end(lonely, &launch, &presence, &asked));
        assert!(futures::poll!(&mut rules).is_pending());
        presence.came();
        presence.came();
        outlasts(&mut rules, &presence).await;
        presence.left();
        outlasts(&mut rules, &presence).await;
        let left = Instant::now();
        presence.left();
        assert_eq!(rules.await, End::Lonely);
        assert!(left.elapsed() >= WHILE, "after {:?}", left.elapsed());
    }

    #[tokio::test]
    async fn the_first_client_disarms_the_watchdog_for_good() {
        let story = async |_: &Presence, _: &CancellationToken| ();
        let ended = ends(Shutdown::Never, launch(Some(WHILE)), WHILE, story).await;
        assert_eq!(ended, End::NobodyCame);
        let (presence, asked) = (Presence::new(), CancellationToken::new());
        let launch = launch(Some(WHILE));
        let mut rules = std::pin::pin!(end(Shutdown::Never, &launch, &presence, &asked));
        assert!(futures::poll!(&mut rules).is_pending());
        presence.came();
        presence.left();
        outlasts(&mut rules, &presence).await;
        asked.cancel();
        assert_eq!(rules.await, End::Asked);
    }

    #[tokio::test]
    async fn a_time_beyond_all_clocks_is_never_over() {
        use futures::FutureExt;
        let presence = Presence::new();
        assert!(presence.lonely(Duration::MAX).now_or_never().is_none());
        assert!(presence.nobody_came(Duration::MAX).now_or_never().is_none());
    }
}
