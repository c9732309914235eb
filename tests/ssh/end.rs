//! Whoever takes part in a launch, how each of them is ended, and how soon everything else is gone.

use std::time::Duration;

use crate::support::{within, Finished, Manager, Running, Signal, Stopwatch};

/// How long after the end of one of them everything else may be there.
const LIMIT: Duration = Duration::from_secs(2);

/// Who is ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Interrupt,
    Client,
    Worker,
    Manager,
}

impl End {
    pub(super) const ALL: [Self; 4] = [Self::Interrupt, Self::Client, Self::Worker, Self::Manager];

    /// Ends it, and waits until there is no `rest` any more; gives how long that took, and what the
    /// launch has said.
    #[track_caller]
    pub(super) fn leaves_nothing(
        self,
        launch: Running,
        manager: Manager,
        rest: impl Fn() -> Option<String>,
    ) -> (Duration, Finished) {
        let since = Stopwatch::start();
        match self {
            Self::Interrupt => launch.signal(Signal::INT),
            Self::Client => launch.signal(Signal::KILL),
            Self::Worker => {
                let workers = manager.offspring().into_iter();
                let workers = workers.filter(|it| it.command.contains("plugin-worker"));
                assert_eq!(workers.map(|it| it.kill()).count(), 1);
            }
            Self::Manager => manager.signal(Signal::KILL),
        }
        let is_clean = || rest().is_none().then(|| since.elapsed());
        let took = within(Duration::from_secs(20), is_clean);
        let took = took.unwrap_or_else(|| panic!("still there: {}", rest().unwrap_or_default()));
        assert!(took < LIMIT, "clean only after {took:?}");
        let finished = launch.finish();
        match self {
            Self::Manager => drop(manager.finish()),
            _ => manager.assert_no_offspring(),
        }
        (took, finished)
    }
}
