//! Where a server listens: the policy for its address, and the ports in their order.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{lookup_host, TcpListener};

use super::settings::{BindHost, PortRange, Settings};
use super::Error;

/// A server's socket, and what a person should know about how it was chosen.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) remark: Option<String>,
}

/// Binds the first free port of the range on the address that the settings mean.
///
/// The address of an ssh session is the one the client knows to reach; where there is none, or it
/// is none of this machine, the server listens on every address and says so.
pub(super) async fn bind(settings: &Settings) -> Result<Bound, Error> {
    let any = if settings.use_ipv6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    match &settings.host {
        BindHost::Any => bind_address(any, settings.ports, None).await,
        BindHost::Address(address) => bind_address(*address, settings.ports, None).await,
        BindHost::Name(name) => {
            let address = resolve(name, settings.use_ipv6).await?;
            bind_address(address, settings.ports, None).await
        }
        BindHost::Ssh => {
            let reason = match ssh_address(settings.launch.ssh_address.as_deref()) {
                Ok(address) => match bind_address(address, settings.ports, None).await {
                    Err(Error::Bind { source, .. })
                        if source.kind() == io::ErrorKind::AddrNotAvailable =>
                    {
                        format!("`{address}` of SSH_CONNECTION is no address of this machine")
                    }
                    done => return done,
                },
                Err(reason) => reason,
            };
            let remark = format!("{reason}, so the server listens on every address");
            bind_address(any, settings.ports, Some(remark)).await
        }
    }
}

fn ssh_address(given: Option<&str>) -> Result<IpAddr, String> {
    let text = given.ok_or("SSH_CONNECTION is not set, as it would be in an ssh session")?;
    // A link-local address may come with its zone, which an address of ours cannot have.
    text.parse().map_err(|_| format!("`{text}` of SSH_CONNECTION is no IP address"))
}

async fn resolve(name: &str, use_ipv6: bool) -> Result<IpAddr, Error> {
    let addresses = lookup_host((name, 0)).await;
    let mut addresses = addresses
        .map_err(|source| Error::Resolve { name: name.to_owned(), source })?
        .map(|address| address.ip());
    addresses
        .find(|address| address.is_ipv6() == use_ipv6)
        .ok_or_else(|| Error::Family { name: name.to_owned(), use_ipv6 })
}

async fn bind_address(
    address: IpAddr,
    ports: PortRange,
    remark: Option<String>,
) -> Result<Bound, Error> {
    let mut last = None;
    for port in ports.ports() {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => match listener.local_addr() {
                Ok(address) => return Ok(Bound { listener, address, remark }),
                Err(source) => return Err(Error::Bind { address, ports, source }),
            },
            Err(error) => {
                // With another address the next port is no better.
                let hopeless = error.kind() == io::ErrorKind::AddrNotAvailable;
                last = Some(error);
                if hopeless {
                    break;
                }
            }
        }
    }
    let source = last.unwrap_or_else(|| io::ErrorKind::InvalidInput.into());
    Err(Error::Bind { address, ports, source })
}

#[cfg(test)]
mod tests {
    use super::super::settings::LaunchSettings;
    use super::super::tests::settings;
    use super::*;

    async fn bound(host: &str, change: impl FnOnce(&mut Settings)) -> Result<Bound, Error> {
        let mut settings = settings();
        settings.host = host.parse().unwrap();
        change(&mut settings);
        bind(&settings).await
    }

    fn ssh(address: &str) -> LaunchSettings {
        LaunchSettings { ssh_address: Some(address.to_owned()), ..Default::default() }
    }

    #[tokio::test]
    async fn each_way_to_say_where_is_followed() {
        let ip = |bound: Result<Bound, Error>| bound.unwrap().address.ip().to_string();
        assert_eq!(ip(bound("any", |_| ()).await), "0.0.0.0");
        assert_eq!(ip(bound("127.0.0.2", |_| ()).await), "127.0.0.2");
        assert_eq!(ip(bound("localhost", |_| ()).await), "127.0.0.1");
        assert_eq!(ip(bound("ssh", |it| it.launch = ssh("127.0.0.3")).await), "127.0.0.3");
    }

    #[tokio::test]
    async fn without_an_address_of_ssh_it_listens_everywhere_and_says_why() {
        let check = |bound: Result<Bound, Error>, reason: &str| {
            let bound = bound.unwrap();
            assert!(bound.address.ip().is_unspecified());
            let expected = format!("{reason}, so the server listens on every address");
            assert_eq!(bound.remark, Some(expected));
        };
        let unset = "SSH_CONNECTION is not set, as it would be in an ssh session";
        check(bound("ssh", |_| ()).await, unset);
        let foreign = "`203.0.113.1` of SSH_CONNECTION is no address of this machine";
        check(bound("ssh", |it| it.launch = ssh("203.0.113.1")).await, foreign);
        let zone = "`fe80::1%eth0` of SSH_CONNECTION is no IP address";
        check(bound("ssh", |it| it.launch = ssh("fe80::1%eth0")).await, zone);
    }

    #[tokio::test]
    async fn ports_are_tried_in_order() {
        // Two neighbouring ports, the first of them taken.
        let (taken, next) = loop {
            let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = taken.local_addr().unwrap().port();
            match port.checked_add(1) {
                Some(next) if TcpListener::bind(("127.0.0.1", next)).await.is_ok() => {
                    break (taken, next)
                }
                _ => {}
            }
        };
        let first = next - 1;
        let range = format!("{first}:{next}").parse().unwrap();
        let second = bound("127.0.0.1", |it| it.ports = range).await.unwrap();
        assert_eq!(second.address.port(), next);
        let error = bound("127.0.0.1", |it| it.ports = range).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1, ports {first}:{next}"));
        drop(taken);
    }

    #[tokio::test]
    async fn an_unknown_name_is_an_error() {
        let error = bound("no-such-host.invalid", |_| ()).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot find the address of `no-such-host.invalid`");
    }
}
