//! `ssh://` with the `ssh` program of this machine: whatever works with `ssh HOST` works here.
//!
//! The program connects and logs in; its questions become those of the launch, and its complaints
//! the causes of an error. Everything after the login is [`bootstrap`]'s, over the one command that
//! it runs.

mod arguments;
mod heard;
mod login;
mod process;
mod questions;
mod tunnel;
mod words;

use std::time::Duration;

use distant_plugin_api::bootstrap::{self, Tunnel};
use distant_plugin_api::message::{LogLevel, Stage};
use distant_plugin_api::{
    export_plugin, Caller, ErrorKind, LaunchError, LaunchRequest, Manifest, Plugin,
};
use distant_ssh::config::{self, Person};
use distant_ssh::guard::system;
use rustix::event::{PollFd, PollFlags, Timespec};

use arguments::Arguments;
use login::{Login, Outcome};

/// The first pause before another try where a server hung up at once, and the last one.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(7);

struct OpenSsh;

impl Plugin for OpenSsh {
    fn manifest(&self) -> Manifest {
        let description = "Launches distant servers with the ssh program of this machine";
        distant_ssh::manifest("openssh", env!("CARGO_PKG_VERSION"), description)
    }

    fn launch(&self, request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
        launch(request, caller)
    }
}

export_plugin!(OpenSsh);

fn launch(request: &LaunchRequest, caller: &Caller) -> Result<(), LaunchError> {
    caller.stage(Stage::Resolve)?;
    let person = Person::of(request);
    let destination = &request.destination;
    let user = destination.user.as_deref();
    let given = config::resolve(&destination.host, user, destination.port, &person, caller)?;
    let mut settings = given.clone();
    settings.override_by(request, &person)?;
    let stand_in = arguments::stand_in(&person, &given)?;
    let mut pause = BUSY_PAUSE;
    loop {
        caller.stage(Stage::Connect)?;
        let arguments =
            Arguments::new(request, &settings, stand_in.as_ref().map(|(_, path)| path.as_path()))?;
        let login = Login::new(&settings, &person, caller, arguments, request)?;
        match bootstrap::launch(&login, request, Tunnel::of(request), caller) {
            Err(_) if login.outcome() == Outcome::HungUp && pause <= BUSY_PAUSE_MAX => {
                drop(login);
                if pause == BUSY_PAUSE {
                    let place = words::place(&settings);
                    let text = format!(
                        "`{place}` hung up at once, as if it had too many logins; trying again"
                    );
                    caller.notice(LogLevel::Warn, text)?;
                }
                // Those that were sent away together do not come back together.
                rest(pause.mul_f64(rand::random::<f64>() + 0.5), caller)?;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
}

/// Does nothing for a while, unless the launch is cancelled.
fn rest(pause: Duration, caller: &Caller) -> Result<(), LaunchError> {
    let cancel = caller.cancel_fd();
    let mut fds = [PollFd::new(&cancel, PollFlags::IN)];
    let pause = Timespec::try_from(pause).ok();
    rustix::event::poll(&mut fds, pause.as_ref()).map_err(system)?;
    caller.check()
}

/// The error where there is no `ssh` to run.
fn no_program(error: &std::io::Error) -> LaunchError {
    LaunchError::new(ErrorKind::Other, "the program `ssh` cannot be run")
        .because(error)
        .with_hint("install OpenSSH's client, or leave `backend=openssh` out")
}
