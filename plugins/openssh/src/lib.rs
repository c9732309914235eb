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

use distant_plugin_api::bootstrap::{self, Tunnel};
use distant_plugin_api::message::Stage;
use distant_plugin_api::{
    export_plugin, Caller, ErrorKind, LaunchError, LaunchRequest, Manifest, Plugin,
};
use distant_ssh::busy::Busy;
use distant_ssh::config::{self, Person};

use arguments::Arguments;
use login::{Login, Outcome};

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
    let mut busy = Busy::default();
    loop {
        caller.stage(Stage::Connect)?;
        let arguments =
            Arguments::new(request, &settings, stand_in.as_ref().map(|(_, path)| path.as_path()))?;
        let login = Login::new(&settings, &person, caller, arguments, request)?;
        match bootstrap::launch(&login, request, Tunnel::of(request), caller) {
            Err(error) if login.outcome() == Outcome::HungUp => {
                drop(login);
                if !busy.try_again(&settings.place(), caller)? {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

/// The error where there is no `ssh` to run.
fn no_program(error: &std::io::Error) -> LaunchError {
    LaunchError::new(ErrorKind::Other, "the program `ssh` cannot be run")
        .because(error)
        .with_hint("install OpenSSH's client, or leave `backend=openssh` out")
}
