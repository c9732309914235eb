//! `distant server listen`: serves files and processes of this machine to whoever has its key.
//!
//! It is what a launch starts. Started by one ([`LaunchSettings`]) it waits only so long for its
//! first client and may end with whoever started it; started by hand it does neither. It prints
//! nothing itself: what it has to say goes to the caller of [`run`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use distant_plugin_api::connect_line::{ConnectLine, HELLO_LINE, PROOF_LINE};
use distant_plugin_api::secret::{Secret, SessionKey};
use distant_plugin_api::{ErrorKind, LaunchError};
use rand::RngCore;
use tokio_util::sync::CancellationToken;

mod api;
mod caller;
mod child;
mod lifetime;
mod listen;
mod process;
mod service;
mod settings;

pub use settings::{
    parse_seconds, BindHost, InvalidHost, InvalidPorts, InvalidSeconds, InvalidShutdown,
    LaunchSettings, PortRange, Settings, Shutdown, WatchSettings,
};

use crate::wire::server::{serve, ServerOptions};
use crate::wire::Hello;
use api::Files;
use lifetime::Presence;
use listen::Bound;
use process::Processes;
use service::Answers;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name to listen on means nothing here.
    #[error("cannot find the address of `{name}`")]
    Resolve {
        /// The name.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name to listen on has only addresses of the other family.
    #[error("`{name}` has no IPv{} address", if *use_ipv6 { 6 } else { 4 })]
    Family {
        /// The name.
        name: String,
        /// Which family was wanted.
        use_ipv6: bool,
    },
    /// The address is none of this machine, or no port of the range is free.
    #[error("cannot listen on {address}, port{} {ports}", if ports.is_single() { "" } else { "s" })]
    Bind {
        /// The address.
        address: IpAddr,
        /// The ports that were tried.
        ports: PortRange,
        /// What the system said of the last one.
        source: io::Error,
    },
    /// The folder to work in cannot be entered.
    #[error("cannot enter the folder `{}`", path.display())]
    CurrentDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses what every server needs, such as threads.
    #[error("cannot start to serve")]
    Start(#[source] io::Error),
    /// Whoever should read the connect line is gone.
    #[error("cannot say how the server is reached")]
    Announce(#[source] io::Error),
}

impl Error {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Family { use_ipv6: true, .. } => "leave out `--use-ipv6`".to_owned(),
            Self::Family { use_ipv6: false, .. } => "add `--use-ipv6`".to_owned(),
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                "`--host any` listens on every address of this machine; of a launch that is \
                 `--distant-bind-server any`"
                    .to_owned()
            }
            Self::Bind { source, ports, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                if ports.is_single() {
                    "`--port 0` takes any port that is free, `--port A:B` the first of a range"
                } else {
                    "`--port 0` takes any port that is free"
                }
                .to_owned()
            }
            Self::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "ports below 1024 are mostly kept for root".to_owned()
            }
            _ => return None,
        })
    }
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> Self {
        let shown = LaunchError::new(ErrorKind::ServerNotStarted, error.to_string());
        let shown = match std::error::Error::source(&error) {
            Some(source) => shown.because(source),
            None => shown,
        };
        match error.hint() {
            Some(hint) => shown.with_hint(hint),
            None => shown,
        }
    }
}

/// What a server has to say when it is ready.
#[derive(Debug)]
pub struct Announcement {
    /// For standard output, byte for byte: the connect line with what belongs around it.
    pub said: Secret,
    /// For people: what is not as they may expect.
    pub remark: Option<String>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Serves until the settings, a signal or a client say that it is enough.
///
/// `announce` is called once, when clients can connect.
///
/// # Errors
///
/// It does not start; see [`Error`]. Once it serves, nothing fails it.
///
/// # Cancellation
///
/// Dropping the future accepts no more clients; those there are stay until the runtime ends.
pub async fn run(
    settings: Settings,
    announce: impl FnOnce(Announcement) -> io::Result<()>,
) -> Result<(), Error> {
    if let Some(path) = settings.current_dir.clone() {
        let entered = std::env::set_current_dir(&path);
        entered.map_err(|source| Error::CurrentDir { path, source })?;
    }
    let Bound { listener, address, remark } = listen::bind(&settings).await?;
    let key = settings.key.clone().unwrap_or_else(new_key);
    let (presence, stop) = (Presence::new(), CancellationToken::new());
    let files = Files::new(settings.watch.clone()).map_err(Error::Start)?;
    let processes = Processes::new().map_err(Error::Start)?;
    let answers = Arc::new(Answers::new(files, processes, presence.clone(), stop.clone()));
    let hello = settings.launch.announce_proof.then(|| Arc::new(Hello::default()));
    let said = connect_text(key.clone(), address, hello.as_deref());
    let options = ServerOptions { hello, ..ServerOptions::tcp(key) };

    let shutdown = CancellationToken::new();
    let serving = serve(listener, options, Arc::clone(&answers), shutdown.clone());
    tracing::info!(%address, "listening");
    if let Some(remark) = &remark {
        tracing::warn!("{remark}");
    }
    announce(Announcement { said, remark, address }).map_err(Error::Announce)?;

    let ending = async {
        let end = lifetime::end(settings.shutdown, &settings.launch, &presence, &stop).await;
        tracing::info!(reason = ?end, "ending");
        shutdown.cancel();
        answers.processes.end().await;
    };
    tokio::join!(serving, ending);
    // Those that a last request may have started meanwhile.
    answers.processes.end().await;
    Ok(())
}

fn new_key() -> SessionKey {
    let mut bytes = zeroize::Zeroizing::new([0; SessionKey::LENGTH]);
    rand::rngs::OsRng.fill_bytes(&mut *bytes);
    SessionKey::new(*bytes)
}

/// The bytes of distant 0.20, and the lines for launchers that understand them.
fn connect_text(key: SessionKey, address: SocketAddr, hello: Option<&Hello>) -> Secret {
    let line = ConnectLine { key, address }.expose();
    let (before, after) = match hello {
        Some(hello) => {
            let hello = hello.text().map(|text| format!("{HELLO_LINE}{text}\n"));
            (hello.unwrap_or_default(), format!("{PROOF_LINE}\n"))
        }
        None => Default::default(),
    };
    Secret::new(format!("\r\n{before}{}\n{after}\r\n", line.expose()))
}

#[cfg(test)]
mod tests;
