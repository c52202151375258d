//! From an address to a connected socket, with TLS where the address says so.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::{Host, Url};

/// How long an address may take before the next one is tried beside it (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);
/// How often the first address is tried once more beside attempts that hang. A server that gets many
/// connections at once drops some of their first packets, and the operating system repeats those after
/// a second: a thousand runs that begin together would have some that begin a second late.
const ONCE_MORE: usize = 2;
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// After how much silence a connection is probed, how often, and how many probes may be lost: a
/// provider whose machine is gone is noticed in the middle of an answer that may take minutes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;
/// How long what we sent may stay unconfirmed.
#[cfg(target_os = "linux")]
const UNCONFIRMED: Duration = Duration::from_secs(30);

/// How TLS is spoken: the roots of this machine, and HTTP/1.1.
///
/// # Errors
/// No TLS root certificate is found on this machine.
pub(super) fn tls() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(with_http(config))
}

/// The same, saying that HTTP/1.1 will be spoken.
pub(super) fn with_http(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Where connections go.
pub(super) struct Address {
    host: Host<String>,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Address {
    /// The address in a URL; `None` if it has none. TLS is spoken if there is a way how.
    pub fn new(url: &Url, tls: Option<Arc<ClientConfig>>) -> Option<Self> {
        let host = url.host()?.to_owned();
        let name = match &host {
            Host::Domain(name) => ServerName::try_from(name.clone()).ok()?,
            Host::Ipv4(ip) => ServerName::IpAddress((*ip).into()),
            Host::Ipv6(ip) => ServerName::IpAddress((*ip).into()),
        };
        let tls = tls.map(|config| (TlsConnector::from(config), name));
        Some(Self { host, port: url.port_or_known_default()?, tls })
    }

    /// A new connection. It is the caller who limits how long that takes.
    ///
    /// # Errors
    /// The name has no address, none takes a connection, or TLS failed.
    pub async fn dial(&self) -> io::Result<Socket> {
        let tcp = match &self.host {
            Host::Domain(name) => {
                let addresses = lookup_host((name.as_str(), self.port)).await?;
                race(interleaved(addresses.collect())).await?
            }
            Host::Ipv4(ip) => race([(*ip, self.port).into()].into()).await?,
            Host::Ipv6(ip) => race([(*ip, self.port).into()].into()).await?,
        };
        tune(&tcp)?;
        let Some((connector, name)) = &self.tls else { return Ok(Socket::Plain(tcp)) };
        let tls = connector.connect(name.clone(), tcp).await?;
        Ok(Socket::Tls(Box::new(tls)))
    }
}

/// IPv6 and IPv4 in turn, beginning with what the resolver put first.
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut other) = (first.into_iter(), other.into_iter());
    let mut order = VecDeque::new();
    while order.len() < MAX_ADDRESSES {
        let before = order.len();
        order.extend(first.next().into_iter().chain(other.next()));
        if order.len() == before {
            break;
        }
    }
    order.truncate(MAX_ADDRESSES);
    order
}

/// The first connection that one of these addresses takes. Each begins when the one before it has
/// failed, or has taken too long; an attempt that hangs may be made once more.
async fn race(mut addresses: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut once_more: VecDeque<_> =
        addresses.front().into_iter().flat_map(|first| [*first; ONCE_MORE]).collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut attempts = FuturesUnordered::new();
    let mut next = addresses.pop_front();
    loop {
        attempts.extend(next.take().map(TcpStream::connect));
        let is_more = !addresses.is_empty() || !once_more.is_empty();
        tokio::select! {
            connected = attempts.next() => match connected {
                Some(Ok(tcp)) => return Ok(tcp),
                Some(Err(error)) => {
                    last = error;
                    next = addresses.pop_front();
                }
                None => return Err(last),
            },
            () = tokio::time::sleep(STAGGER), if is_more => {
                next = addresses.pop_front().or_else(|| once_more.pop_front());
            }
        }
    }
}

fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNCONFIRMED))?;
    Ok(())
}

/// A connection to a provider.
#[derive(Debug)]
pub(super) enum Socket {
    /// Over TCP alone.
    Plain(TcpStream),
    /// With TLS, whose state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Whether nothing has come that was not read, the end of the connection included. Asks the
    /// operating system, not what the runtime has heard of it until now.
    pub fn is_quiet(&mut self) -> bool {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => {
                let (tcp, session) = tls.get_mut();
                let is_quiet = session.process_new_packets().is_ok_and(|state| {
                    state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
                });
                if !is_quiet {
                    return false;
                }
                tcp
            }
        };
        let peeked = SockRef::from(&*tcp).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Unpin)> {
        Pin::new(match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls,
        })
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        Pin::new(match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls,
        })
    }

    /// As [`AsyncRead::poll_read`].
    pub fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reader().poll_read(context, into)
    }

    /// As [`AsyncWrite::poll_write_vectored`].
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write_vectored(context, parts)
    }

    /// As [`AsyncWrite::poll_flush`].
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_turns_by_family_and_are_bounded() {
        let v4 = |n: u8| SocketAddr::from(([127, 0, 0, n], 1));
        let v6 = |n: u16| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, n], 1));
        let order = interleaved(vec![v6(1), v6(2), v6(3), v4(1)]);
        assert_eq!(order, [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(interleaved(vec![v4(1), v6(1)]), [v4(1), v6(1)]);
        assert_eq!(interleaved((0..100).map(v4).collect()).len(), MAX_ADDRESSES);
        assert!(interleaved(Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn the_first_address_that_takes_a_connection_wins() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        // Nobody listens there, and nobody else is given it.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap();
        let tcp = race([closed, open].into()).await.unwrap();
        assert_eq!(tcp.peer_addr().unwrap(), open);
        let refused = race([closed].into()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        race(VecDeque::new()).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_first_packet_that_was_dropped_costs_no_second() {
        // The kernel sends it again after a second. A busy machine may take as long, but not each time.
        let mut all = Vec::new();
        while all.len() < 5 {
            let took = time_behind_a_dropped_packet().await;
            if took < Duration::from_millis(900) {
                return;
            }
            all.push(took);
        }
        panic!("{all:?}");
    }

    async fn time_behind_a_dropped_packet() -> Duration {
        let listener = tokio::net::TcpSocket::new_v4().unwrap();
        listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        // As many as it takes until one is not taken any more.
        let mut taken = Vec::new();
        let full = Duration::from_millis(50);
        while let Ok(tcp) = tokio::time::timeout(full, TcpStream::connect(address)).await {
            taken.push(tcp.unwrap());
        }
        let began = tokio::time::Instant::now();
        let accept = async {
            tokio::time::sleep(full).await;
            let mut accepted = Vec::new();
            while let Ok((tcp, _)) = listener.accept().await {
                accepted.push(tcp);
            }
        };
        tokio::select! {
            tcp = race([address].into()) => assert_eq!(tcp.unwrap().peer_addr().unwrap(), address),
            () = accept => panic!("the listener is gone"),
        }
        began.elapsed()
    }
}
