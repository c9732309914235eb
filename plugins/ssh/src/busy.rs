//! Trying again where a server hung up at once, as one does that has too many logins.

use std::time::{Duration, Instant};

use distant_plugin_api::message::LogLevel;
use distant_plugin_api::{Caller, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::guard::system;

/// The first pause before another try, and the longest one.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_millis(1600);
/// How long it is tried. An sshd draws lots whom it sends away, so what counts for a launch among
/// many is the number of tries: about 12.
const LIMIT: Duration = Duration::from_secs(15);

/// The tries of one connection.
#[derive(Default)]
pub struct Busy {
    until: Option<Instant>,
    tries: u32,
}

impl Busy {
    /// Waits before another try, and says so before the first one; `false` once it was tried for
    /// long enough.
    ///
    /// # Errors
    ///
    /// `cancelled`: nobody wants the launch any more.
    pub fn try_again(&mut self, place: &str, caller: &Caller) -> Result<bool, LaunchError> {
        let now = Instant::now();
        if now >= *self.until.get_or_insert(now + LIMIT) {
            return Ok(false);
        }
        if self.tries == 0 {
            let text =
                format!("`{place}` hung up at once, as if it had too many logins; trying again");
            caller.notice(LogLevel::Warn, text)?;
        }
        let pause = PAUSE.saturating_mul(2_u32.saturating_pow(self.tries)).min(PAUSE_MAX);
        self.tries += 1;
        // Those that were sent away together do not come back together.
        let pause = pause.mul_f64(rand::random::<f64>() + 0.5);
        let cancel = caller.cancel_fd();
        let mut fds = [PollFd::new(&cancel, PollFlags::IN)];
        rustix::event::poll(&mut fds, Timespec::try_from(pause).ok().as_ref()).map_err(system)?;
        caller.check()?;
        Ok(true)
    }
}
