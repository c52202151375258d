//! The client against servers on real sockets that play bytes.

mod hostile;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::models::Wire;

/// A server that gives every connection, with its number, to a player.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
    _playing: JoinSet<()>,
}

impl Server {
    async fn start<P, F>(play: P) -> Self
    where
        P: Fn(usize, TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let mut playing = JoinSet::new();
        playing.spawn(async move {
            let mut players = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                players.spawn(play(count.fetch_add(1, Ordering::SeqCst), socket));
            }
        });
        Self { url, connections, _playing: playing }
    }

    /// A server that answers each request with these bytes; then it closes, or waits for more.
    async fn answering(answer: impl Into<Vec<u8>>, closes: bool) -> Self {
        let answer: Arc<[u8]> = answer.into().into();
        Self::start(move |_, mut socket| {
            let answer = answer.clone();
            async move {
                while read_request(&mut socket).await.is_some() {
                    socket.write_all(&answer).await.unwrap();
                    if closes {
                        return;
                    }
                }
            }
        })
        .await
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint_with(Timeouts::default())
    }

    fn endpoint_with(&self, timeouts: Timeouts) -> Endpoint {
        let settings = settings(&self.url, timeouts);
        Endpoint::new(&mut Sockets::default(), &settings, "/chat", &[]).unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn settings(base_url: &str, timeouts: Timeouts) -> ProviderSettings {
    ProviderSettings {
        name: "p".to_owned(),
        wire: Wire::OpenAi,
        base_url: base_url.to_owned(),
        api_key: None,
        timeouts,
    }
}

/// Reads a request to its end; `None` if the client has closed.
async fn read_request(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let head = read_head(socket).await?;
    let length = head.rsplit_once("content-length: ").unwrap().1.trim().parse().unwrap();
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some(head + std::str::from_utf8(&body).unwrap())
}

/// Reads the head of a request, and nothing behind it.
async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// The whole body of an answer, as long as a clean end comes.
async fn fetch(endpoint: &Endpoint) -> Result<String, FailureKind> {
    fetch_for(endpoint, json!({"a": "b"})).await
}

async fn fetch_for(endpoint: &Endpoint, asked: Value) -> Result<String, FailureKind> {
    let mut body = Vec::new();
    let mut incoming = endpoint.post(asked).await.map_err(|fault| fault.kind)?;
    while let Some(bytes) = incoming.chunk().await.map_err(|fault| fault.kind)? {
        assert!(!bytes.is_empty());
        body.extend(bytes);
    }
    assert_eq!(incoming.chunk().await, Ok(None), "a clean end stays one");
    Ok(String::from_utf8(body).unwrap())
}

const OK: &str = "HTTP/1.1 200 OK\r\n";
/// Longer than what sockets take at once.
const LARGE: usize = 4 * 1024 * 1024;

fn large() -> Value {
    json!("x".repeat(LARGE))
}

#[tokio::test]
async fn a_request_is_what_http_says() {
    let asked = Arc::new(std::sync::Mutex::new(String::new()));
    let kept = asked.clone();
    let server = Server::start(move |_, mut socket| {
        let kept = kept.clone();
        async move {
            *kept.lock().unwrap() = read_request(&mut socket).await.unwrap();
            let answer = format!("{OK}content-length: 0\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let settings = settings(&format!("{}/v1/?v=1", server.url), Timeouts::default());
    let header = Header::plain("anthropic-version", "1");
    let endpoint = Endpoint::new(&mut Sockets::default(), &settings, "/chat", &[header]).unwrap();
    fetch(&endpoint).await.unwrap();
    let host = server.url.strip_prefix("http://").unwrap();
    let expected = format!(
        "POST /v1/chat?v=1 HTTP/1.1\r\nhost: {host}\r\nuser-agent: stepwell/{}\r\naccept: */*\r\n\
         content-type: application/json\r\nanthropic-version: 1\r\ncontent-length: 9\r\n\r\n\
         {{\"a\":\"b\"}}",
        env!("CARGO_PKG_VERSION"),
    );
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn answers_end_where_http_says_and_their_sockets_are_used_again_only_when_that_is_safe() {
    use FailureKind::{Broken, Busy, Refused};
    let again = 1;
    let never = 2;
    // What is answered, whether the server closes then, what comes of it, and how many connections
    // two such calls take.
    let table: &[(&str, bool, Result<&str, FailureKind>, usize)] = &[
        ("200 OK\r\ncontent-length: 2\r\n\r\nhi", false, Ok("hi"), again),
        (
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            false,
            Ok("hi"),
            again,
        ),
        ("200 OK\r\ncontent-length: 0\r\n\r\n", false, Ok(""), again),
        ("204 No Content\r\n\r\n", false, Ok(""), again),
        ("103 x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", false, Ok("hi"), again),
        ("429 x\r\ncontent-length: 2\r\n\r\n{}", false, Err(Busy(429)), again),
        ("200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi", false, Ok("hi"), never),
        ("200 OK\r\n\r\nhi", true, Ok("hi"), never),
        ("200 OK\r\n\r\n", true, Ok(""), never),
        // More than it says: the rest is not taken for the next answer.
        ("200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n", false, Ok("hi"), never),
        ("204 No Content\r\ncontent-length: 2\r\n\r\nhi", false, Ok(""), never),
        (
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 500 x\r\n\r\n",
            false,
            Ok("hi"),
            never,
        ),
        // Less than it says.
        ("200 OK\r\ncontent-length: 3\r\n\r\nhi", true, Err(Broken), never),
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", true, Err(Broken), never),
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", true, Err(Broken), never),
        ("200 OK\r\ncontent-le", true, Err(Broken), never),
        ("", true, Err(Broken), never),
        // Two things at once, or nothing that we know.
        (
            "200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            false,
            Err(Broken),
            never,
        ),
        ("200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", false, Err(Broken), never),
        ("200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi!", false, Err(Broken), never),
        ("200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi0\r\n\r\n", false, Err(Broken), never),
        ("101 Switching Protocols\r\nupgrade: x\r\n\r\n", false, Err(Broken), never),
        // A status that is no success is told whatever follows it.
        ("400 x\r\ntransfer-encoding: chunked\r\n\r\nnonsense", false, Err(Refused(400)), never),
        ("500 x\r\ncontent-length: 9\r\n\r\nshort", true, Err(Busy(500)), never),
        ("503 x\r\n\r\nuntil the end", true, Err(Busy(503)), never),
    ];
    for &(answer, closes, outcome, connections) in table {
        let server = Server::answering(format!("HTTP/1.1 {answer}"), closes).await;
        let endpoint = server.endpoint();
        for _ in 0..2 {
            assert_eq!(fetch(&endpoint).await, outcome.map(str::to_owned), "{answer:?}");
        }
        assert_eq!(server.connections(), connections, "{answer:?}");
    }
}

#[tokio::test]
async fn servers_of_http_1_0_are_understood() {
    for (answer, closes, connections) in [
        ("HTTP/1.0 200 OK\r\n\r\nhi", true, 2),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", false, 2),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", false, 1),
    ] {
        let server = Server::answering(answer, closes).await;
        let endpoint = server.endpoint();
        for _ in 0..2 {
            assert_eq!(fetch(&endpoint).await.as_deref(), Ok("hi"), "{answer:?}");
        }
        assert_eq!(server.connections(), connections, "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_is_the_same_in_single_bytes() {
    let server = Server::start(|_, mut socket| async move {
        socket.set_nodelay(true).unwrap();
        read_request(&mut socket).await;
        let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
                      \r\n2\r\nhi\r\n5;x\r\n ther\r\n0\r\nt: u\r\n\r\n";
        for byte in answer.as_bytes() {
            socket.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = socket.read_u8().await;
    })
    .await;
    assert_eq!(fetch(&server.endpoint()).await.as_deref(), Ok("hi ther"));
}

#[tokio::test]
async fn an_early_refusal_of_a_large_request_is_heard() {
    let refusal = "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}";
    for closes in [false, true] {
        let server = Server::start(move |_, mut socket| async move {
            read_head(&mut socket).await.unwrap();
            socket.write_all(refusal.as_bytes()).await.unwrap();
            if closes {
                // Closing with bytes unread resets the connection: what was said must still be heard.
                return;
            }
            // Reads no further, and never closes.
            std::future::pending::<()>().await;
        })
        .await;
        let endpoint = server.endpoint();
        for calls in 1..=2 {
            let refused = fetch_for(&endpoint, large()).await;
            assert_eq!(refused, Err(FailureKind::Refused(413)), "closes: {closes}");
            assert_eq!(server.connections(), calls, "half a request was left on the socket");
        }
    }
}

#[tokio::test]
async fn a_server_may_begin_to_answer_before_it_has_read_the_request() {
    let server = Server::start(|_, mut socket| async move {
        for _ in 0..2 {
            let head = read_head(&mut socket).await.unwrap();
            socket.write_all(format!("{OK}content-length: 7\r\n\r\nI ").as_bytes()).await.unwrap();
            let length: usize =
                head.rsplit_once("content-length: ").unwrap().1.trim().parse().unwrap();
            let mut body = vec![0; length];
            socket.read_exact(&mut body).await.unwrap();
            socket.write_all(b"heard").await.unwrap();
        }
    })
    .await;
    let endpoint = server.endpoint();
    for _ in 0..2 {
        assert_eq!(fetch_for(&endpoint, large()).await.as_deref(), Ok("I heard"));
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_that_reads_nothing_is_given_up_in_time() {
    let server = Server::start(|_, socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    let first_token = Duration::from_millis(200);
    let endpoint = server.endpoint_with(Timeouts { first_token, ..Timeouts::default() });
    assert_eq!(fetch_for(&endpoint, large()).await, Err(FailureKind::Timeout));
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_is_sent_closes_its_socket() {
    let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
    let (came, mut has_come) = tokio::sync::mpsc::channel(1);
    let server = Server::start(move |_, mut socket| {
        let (came, closed) = (came.clone(), closed.clone());
        async move {
            read_head(&mut socket).await.unwrap();
            came.send(()).await.unwrap();
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest).await;
            closed.send(rest.len()).await.unwrap();
        }
    })
    .await;
    let endpoint = server.endpoint();
    tokio::select! {
        biased;
        _ = has_come.recv() => {}
        answered = endpoint.post(large()) => panic!("{answered:?}"),
    }
    assert!(is_closed.recv().await.unwrap() < LARGE);
}

#[tokio::test]
async fn an_idle_socket_that_the_server_closed_is_not_used_again() {
    let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
    for last_word in ["", "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"] {
        let closed = closed.clone();
        let server = Server::start(move |_, mut socket| {
            let closed = closed.clone();
            async move {
                read_request(&mut socket).await.unwrap();
                let answer = format!("{OK}content-length: 2\r\n\r\nhi");
                socket.write_all(answer.as_bytes()).await.unwrap();
                // The client has read it to its end when it is told that this happened.
                socket.write_all(last_word.as_bytes()).await.unwrap();
                drop(socket);
                closed.send(()).await.unwrap();
            }
        })
        .await;
        let endpoint = server.endpoint();
        for calls in 1..=3 {
            assert_eq!(fetch(&endpoint).await.as_deref(), Ok("hi"));
            is_closed.recv().await.unwrap();
            assert_eq!(server.connections(), calls);
        }
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_served_is_not_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let served = requests.clone();
    let server = Server::start(move |_, mut socket| {
        let served = served.clone();
        async move {
            read_request(&mut socket).await.unwrap();
            let answer = format!("{OK}content-length: 2\r\n\r\nhi");
            socket.write_all(answer.as_bytes()).await.unwrap();
            if read_request(&mut socket).await.is_some() {
                served.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let endpoint = server.endpoint();
    assert_eq!(fetch(&endpoint).await.as_deref(), Ok("hi"));
    assert_eq!(fetch(&endpoint).await, Err(FailureKind::Broken));
    assert_eq!((requests.load(Ordering::SeqCst), server.connections()), (1, 1));
}

#[test]
fn providers_at_one_address_share_their_sockets() {
    let mut sockets = Sockets::default();
    let mut pool = |url: &str| sockets.pool(&Url::parse(url).unwrap(), "p").unwrap();
    let first = pool("http://a.example/v1");
    assert!(Arc::ptr_eq(&first, &pool("http://a.example:80/v2?x=y")));
    for other in ["http://a.example:81", "http://b.example", "http://127.0.0.1", "http://[::1]"] {
        assert!(!Arc::ptr_eq(&first, &pool(other)));
    }
}

#[test]
fn an_address_with_a_password_is_refused_without_showing_it() {
    let settings = settings("http://user:hunter2@a.example/", Timeouts::default());
    let refused = Endpoint::new(&mut Sockets::default(), &settings, "", &[]).unwrap_err();
    assert!(!format!("{refused:?} {refused}").contains("hunter2"));
}
