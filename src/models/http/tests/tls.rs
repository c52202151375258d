//! Over TLS, with a certificate of our own (`localhost.crt`, made by openssl, good until 2126).

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;

const CERTIFICATE: &[u8] = include_bytes!("localhost.crt");
const KEY: &[u8] = include_bytes!("localhost.key");

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificate() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(CERTIFICATE).unwrap()
}

fn acceptor() -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate()], PrivateKeyDer::from_pem_slice(KEY).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A client that trusts these roots.
fn trusting(roots: RootCertStore) -> Sockets {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Sockets { tls: Some(dial::with_http(config)), ..Sockets::default() }
}

fn endpoint_at(server: &Server, host: &str, sockets: &mut Sockets) -> Endpoint {
    let port = server.url.rsplit_once(':').unwrap().1;
    let settings = settings(&format!("https://{host}:{port}"), Timeouts::default());
    Endpoint::new(sockets, &settings, "/chat", &[]).unwrap()
}

fn ours() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    roots
}

/// A server that speaks TLS, and an endpoint at it that trusts it.
async fn server<P, F>(play: P) -> (Server, Endpoint)
where
    P: Fn(TlsStream<TcpStream>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = acceptor();
    let server = Server::start(move |_, socket| {
        let (acceptor, play) = (acceptor.clone(), play.clone());
        async move {
            // A client that does not trust us goes away.
            if let Ok(tls) = acceptor.accept(socket).await {
                play(tls).await;
            }
        }
    })
    .await;
    let endpoint = endpoint_at(&server, "localhost", &mut trusting(ours()));
    (server, endpoint)
}

#[tokio::test]
async fn a_large_request_and_a_large_answer_go_over_tls_and_the_socket_is_used_again() {
    let (server, endpoint) = server(|mut tls| async move {
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
        while let Some(asked) = read_request(&mut tls).await {
            let head = format!("{OK}content-length: {}\r\n\r\n", asked.len());
            tls.write_all(head.as_bytes()).await.unwrap();
            tls.write_all(asked.as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
        }
    })
    .await;
    for _ in 0..2 {
        let echoed = fetch_for(&endpoint, large()).await.unwrap();
        assert!(echoed.ends_with(&large().to_string()));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_body_until_the_end_is_whole_only_if_tls_says_that_it_ended() {
    for (says_so, outcome) in [(true, Ok("hi".to_owned())), (false, Err(FailureKind::Broken))] {
        let (_server, endpoint) = server(move |mut tls| async move {
            read_request(&mut tls).await.unwrap();
            tls.write_all(format!("{OK}\r\nhi").as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            if says_so {
                tls.shutdown().await.unwrap();
            }
        })
        .await;
        assert_eq!(fetch(&endpoint).await, outcome);
    }
}

#[tokio::test]
async fn a_tls_socket_on_which_more_was_said_or_that_was_closed_is_not_used_again() {
    for surplus in ["", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"] {
        let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
        let (server, endpoint) = server(move |mut tls| {
            let closed = closed.clone();
            async move {
                read_request(&mut tls).await.unwrap();
                let answer = format!("{OK}content-length: 2\r\n\r\nhi{surplus}");
                tls.write_all(answer.as_bytes()).await.unwrap();
                tls.flush().await.unwrap();
                if surplus.is_empty() {
                    tls.shutdown().await.unwrap();
                }
                closed.send(()).await.unwrap();
                let _ = tls.read_u8().await;
            }
        })
        .await;
        for calls in 1..=2 {
            assert_eq!(fetch(&endpoint).await.as_deref(), Ok("hi"));
            is_closed.recv().await.unwrap();
            assert_eq!(server.connections(), calls);
        }
    }
}

#[tokio::test]
async fn nobody_without_a_certificate_for_the_name_is_talked_to() {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    let (server, endpoint) = server(move |mut tls| {
        let count = count.clone();
        async move {
            while read_request(&mut tls).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                tls.write_all(format!("{OK}content-length: 0\r\n\r\n").as_bytes()).await.unwrap();
                tls.flush().await.unwrap();
            }
        }
    })
    .await;
    let unreachable = Err(FailureKind::Connect);
    let other_name = endpoint_at(&server, "127.0.0.1", &mut trusting(ours()));
    assert_eq!(fetch(&other_name).await, unreachable);
    let unknown = endpoint_at(&server, "localhost", &mut trusting(RootCertStore::empty()));
    assert_eq!(fetch(&unknown).await, unreachable);
    assert_eq!(heard.load(Ordering::SeqCst), 0);
    assert_eq!(fetch(&endpoint).await.as_deref(), Ok(""));
    assert_eq!(heard.load(Ordering::SeqCst), 1);
}
