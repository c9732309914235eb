//! What a signal does: it ends all that was started, writes what was measured, and ends this program.
//!
//! It is at work beside the measuring, which may be anywhere: nothing more can be started, nothing more
//! counts, and then everything is killed that runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::signal::unix::{signal, SignalKind};

use crate::lab::Lab;
use crate::report::Report;
use crate::{link, process, Failure};

/// What is to be done at a signal. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<Mutex<Duties>>);

#[derive(Default)]
struct Duties {
    folder: Option<PathBuf>,
    report: Option<Report>,
    has_begun: bool,
}

impl Interrupt {
    /// Watches for signals from now on.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let this = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let [mut interrupt, mut terminate, mut hang_up] = {
            let _entered = runtime.enter();
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [interrupt, terminate, hang_up] = kinds.map(signal);
            [interrupt?, terminate?, hang_up?]
        };
        let duties = this.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            });
            duties.act();
            #[allow(clippy::exit, reason = "a signal ends it, whatever it is doing")]
            std::process::exit(130);
        });
        Ok(this)
    }

    fn duties(&self) -> MutexGuard<'_, Duties> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has this folder removed.
    pub(crate) fn remove(&self, folder: &Path) {
        self.duties().folder = Some(folder.to_owned());
    }

    /// Has this report written.
    pub(crate) fn write(&self, report: &Report) {
        self.duties().report = Some(report.clone());
    }

    /// Leaves the end of this program to a signal that has come.
    pub(crate) fn give_way(&self) {
        while self.duties().has_begun {
            thread::park();
        }
    }

    fn act(&self) {
        let (folder, report) = {
            let mut duties = self.duties();
            duties.has_begun = true;
            (duties.folder.take(), duties.report.take())
        };
        eprintln!("interrupted; ending what was started");
        // First, so that nothing counts that fails because of what follows.
        if let Some(report) = report {
            report.interrupt();
        }
        process::close();
        process::kill_all(|| {
            let relays = link::relays();
            let mut all = process::descendants(std::process::id());
            all.extend(process::marked(&Lab::mark()));
            all.retain(|pid| !relays.contains(pid));
            all
        });
        link::end_relays();
        if let Some(folder) = folder {
            // Whoever measures may be writing there at this moment.
            let removed = || std::fs::remove_dir_all(&folder).is_ok() || !folder.exists();
            if crate::lab::until("the end of all writing", removed).is_err() {
                eprintln!("error: `{}` could not be removed", folder.display());
            }
        }
    }
}
