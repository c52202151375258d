use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::domain::tool::HttpMethod;

/// Whoever connects to it got through.
struct Canary {
    port: u16,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Canary {
    async fn on(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, requests) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (connected, requested) = (connections.clone(), requests.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                connected.fetch_add(1, Ordering::SeqCst);
                let mut head = [0; 4096];
                if socket.read(&mut head).await.is_ok_and(|read| read > 0) {
                    requested.fetch_add(1, Ordering::SeqCst);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
                    let _ = socket.write_all(answer).await;
                }
            }
        });
        Self { port, connections, requests }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Says something else each time, and the last thing for ever.
struct Flipping {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: AtomicUsize,
}

impl Flipping {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |texts: &&[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let answers = Mutex::new(answers.iter().map(parse).collect());
        Arc::new(Self { answers, asked: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Lookup for Flipping {
    async fn lookup(&self, _host: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answer = answers.front().cloned().unwrap_or_default();
        if answers.len() > 1 {
            answers.pop_front();
        }
        Ok(answer)
    }
}

/// Knows nobody.
struct Unknown;

#[async_trait]
impl Lookup for Unknown {
    async fn lookup(&self, _host: &str) -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("no such name"))
    }
}

fn opening(entries: &[&str]) -> Destinations {
    let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
    Destinations::opening(&entries).unwrap()
}

fn get(url: &str) -> Request {
    Request {
        method: HttpMethod::Get,
        url: Url::parse(url).unwrap(),
        headers: HeaderMap::new(),
        body: None,
        most_bytes: 1024,
    }
}

async fn try_get(gate: &Gate, url: &str) -> (Result<Answer, Failure>, Left) {
    let departure = Departure::new(Arc::new(|| true));
    let answer = gate.send(get(url), departure.clone()).await;
    (answer, departure.left())
}

#[tokio::test]
async fn no_name_leads_to_an_address_that_is_not_public() {
    let canaries = [Canary::on("127.0.0.1").await, Canary::on("::1").await];
    let mut refused = 0;
    for addresses in [
        &["127.0.0.1"][..],
        &["::1"],
        &["::ffff:127.0.0.1"],
        &["0.0.0.0"],
        &["::"],
        &["8.8.8.8", "127.0.0.1"],
        &["127.0.0.1", "8.8.8.8"],
        &["2606:4700::1", "8.8.8.8", "::1"],
        &["64:ff9b::7f00:1"],
        &["169.254.169.254"],
    ] {
        for canary in &canaries {
            for scheme in ["http", "https"] {
                // A network is open, so that names are looked up for http as well.
                let gate =
                    Gate::with_lookup(opening(&["10.9.8.0/24"]), Flipping::new(&[addresses]));
                let url = format!("{scheme}://innocent.example:{}/", canary.port);
                let (answer, left) = try_get(&gate, &url).await;
                let why = answer.expect_err("a refusal");
                assert!(matches!(why, Failure::Refused(_)), "{addresses:?} {url}: {why:?}");
                assert_eq!(left, Left::NotYet);
                refused += 1;
            }
        }
    }
    let connections: usize = canaries.iter().map(Canary::connections).sum();
    println!("P30: {refused} requests by name refused, {connections} connections to the canaries");
    assert_eq!(connections, 0);
}

#[tokio::test]
async fn a_name_that_flips_between_two_requests_is_checked_at_each() {
    let (tools, canary) = (Canary::on("127.0.0.2").await, Canary::on("127.0.0.1").await);
    // What the first answer allows is no reason to believe the second. The operator opened 127.0.0.2
    // only, and both canaries would take the connection.
    let lookup = Flipping::new(&[&["127.0.0.2"], &["127.0.0.1"], &["127.0.0.2", "127.0.0.1"]]);
    let gate = Gate::with_lookup(opening(&["127.0.0.2"]), lookup.clone());
    let url = format!("http://flips.example:{}/", tools.port);
    let (answer, left) = try_get(&gate, &url).await;
    assert_eq!((answer.unwrap().status, left), (200, Left::Yes));
    for _ in 0..2 {
        let (answer, left) =
            try_get(&gate, &format!("http://flips.example:{}/", canary.port)).await;
        assert_eq!(answer.unwrap_err(), Failure::Refused(Refused::NotPublic));
        assert_eq!(left, Left::NotYet);
    }
    // The client asked once for each connection: what was checked is what it connected to.
    assert_eq!(lookup.asked.load(Ordering::SeqCst), 3);
    assert_eq!((tools.connections(), canary.connections()), (1, 0));
}

#[tokio::test]
async fn a_permit_that_is_gone_when_the_connection_stands_stops_the_request() {
    let server = Canary::on("127.0.0.1").await;
    let gate = Gate::new(opening(&["127.0.0.1"]));
    let url = format!("http://127.0.0.1:{}/", server.port);
    let departure = Departure::new(Arc::new(|| false));
    let answer = gate.send(get(&url), departure.clone()).await;
    assert_eq!(answer.unwrap_err(), Failure::Withheld(departure::Withheld));
    assert_eq!(departure.left(), Left::NotYet);
    // With it, the same request passes: nothing else stood in its way.
    let (answer, left) = try_get(&gate, &url).await;
    assert_eq!((answer.unwrap().body, left), (b"hi".to_vec(), Left::Yes));
    // The server takes one after another, so it has seen the end of the first by now.
    assert_eq!((server.connections(), server.requests.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_host_that_takes_no_connection_got_no_request() {
    // Nobody listens there, and nobody else is given the port.
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    let gate = Gate::new(opening(&["127.0.0.1"]));
    let (answer, left) = try_get(&gate, &format!("http://127.0.0.1:{port}/")).await;
    assert_eq!((answer.unwrap_err(), left), (Failure::NoConnection(Unreached::Host), Left::NotYet));
    // Nobody has such a name. (The system's resolver may ask the network even for one that cannot be.)
    let gate = Gate::with_lookup(opening(&["nobody.invalid"]), Arc::new(Unknown));
    let (answer, left) = try_get(&gate, "http://nobody.invalid/").await;
    assert_eq!((answer.unwrap_err(), left), (Failure::NoConnection(Unreached::Name), Left::NotYet));
}

#[tokio::test]
async fn an_answer_is_read_up_to_its_bound() {
    let server = Canary::on("127.0.0.1").await;
    let gate = Gate::new(opening(&["127.0.0.1"]));
    for (most_bytes, body, is_whole) in [(1, "h", false), (2, "hi", true), (3, "hi", true)] {
        let request = Request { most_bytes, ..get(&format!("http://127.0.0.1:{}/", server.port)) };
        let departure = Departure::new(Arc::new(|| true));
        let answer = gate.send(request, departure).await.unwrap();
        assert_eq!((answer.body.as_slice(), answer.is_whole), (body.as_bytes(), is_whole));
    }
}

#[test]
fn the_client_is_given_out_for_urls_that_may_be_called_only() {
    let gate = Gate::new(Destinations::default());
    for (url, why) in [
        ("https://127.0.0.1/", Refused::NotPublic),
        ("https://[::1]/", Refused::NotPublic),
        ("http://example.com/", Refused::Plain),
        ("ftp://example.com/", Refused::NoHttp),
    ] {
        let client = gate.client(&Url::parse(url).unwrap());
        assert_eq!(client.err(), Some(Failure::Refused(why)), "{url}");
    }
}
