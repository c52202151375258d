//! P30: nothing reaches an address that the gate is closed for. Canaries listen on every loopback
//! address that a spelling can mean, and count who comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{OPEN, caller, log, only};
use crate::support::client::Client;
use crate::support::model_server::{ModelServer, Reply};
use crate::support::on_both_databases;
use crate::support::postgres::port_that_stays;
use crate::support::profile::Report;
use crate::support::server::Setup;

on_both_databases! {
    no_spelling_of_a_closed_address_is_stored;
    no_redirect_leads_through_the_gate;
    no_name_leads_to_a_closed_address;
}

/// Hosts that must not be reached, in every spelling that parsers of URLs know.
#[rustfmt::skip]
const CLOSED: &[&str] = &[
    // Loopback: dotted, short, decimal, hexadecimal, octal, mixed, escaped, in other digits.
    "127.0.0.1", "127.0.0.2", "127.255.255.254", "127.1", "127.0.1", "2130706433", "2130706434",
    "0x7f000001", "0x7f.1", "0X7F.0x0.0x0.0x1", "017700000001", "0177.0.0.1", "0177.0x0.00.01",
    "127.0.0.1.", "127.000.000.001", "%31%32%37.0.0.1", "１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1",
    // This machine, by other names.
    "0", "0.0.0.0", "0x0", "00000.0", "[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000::0001]",
    // IPv4 inside of IPv6.
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]",
    "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "[2002:808:808::1]",
    // Private, carrier-grade NAT, link-local, unique local, site-local.
    "10.0.0.1", "10.1", "167772161", "0xa000001", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.1", "0300.0250.0.1", "100.64.0.1", "169.254.1.1", "[fc00::1]", "[fd12:3456::1]",
    "[fe80::1]", "[fec0::1]", "[::ffff:10.0.0.1]", "[::ffff:192.168.0.1]",
    // Metadata services.
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
    "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[fd20:ce::254]",
    "100.100.100.200", "192.0.0.192", "168.63.129.16", "169.254.170.2",
    // Multicast, broadcast, reserved, documentation, benchmarks, relays.
    "224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.51.100.1",
    "203.0.113.1", "198.18.0.1", "192.88.99.1", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]",
];

/// Listeners on the loopback addresses, on one port, that count who comes.
struct Canaries {
    port: u16,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Canaries {
    async fn start() -> Self {
        // Somebody else may have a port on one of the addresses: then another one.
        let mut tries = 0;
        let (port, listeners) = loop {
            let port = port_that_stays();
            match Self::listen(port).await {
                Ok(listeners) => break (port, listeners),
                Err(error) => assert!(tries < 20, "no port is free everywhere: {error}"),
            }
            tries += 1;
        };
        let connections = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let connections = connections.clone();
            tasks.spawn(async move {
                while listener.accept().await.is_ok() {
                    connections.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { port, connections, _tasks: tasks }
    }

    async fn listen(port: u16) -> std::io::Result<Vec<TcpListener>> {
        let mut listeners = Vec::new();
        for address in ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"] {
            listeners.push(TcpListener::bind((address, port)).await?);
        }
        Ok(listeners)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// They hear whoever comes: otherwise their silence means nothing.
    async fn are_awake(&self) {
        let before = self.connections();
        tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.expect("a connection");
        while self.connections() == before {
            tokio::task::yield_now().await;
        }
    }
}

async fn no_spelling_of_a_closed_address_is_stored(url: String) {
    let report = Report::new("P30", "spellings, when an agent is stored", database(&url));
    let canaries = Canaries::start().await;
    let server = Setup::new(url, "").start().await;
    for (n, host) in CLOSED.iter().enumerate() {
        for scheme in ["http", "https"] {
            let tool = json!({"url": format!("{scheme}://{host}:{}/x", canaries.port)});
            let agent = caller(&format!("{scheme}-{n}"), tool, &json!({}));
            let answer = server.client.post("/v1/agents", &agent).await;
            report.fault(answer.status == 422);
            report.check(answer.body["error"] == "destination_not_allowed", || {
                format!("{scheme}://{host} was answered {}", answer.body)
            });
            report.check(answer.body["details"]["errors"][0]["pointer"] == "/tools/0/url", || {
                format!("{}", answer.body)
            });
        }
    }
    let connections = canaries.connections();
    report.check(connections == 0, || format!("{connections} connections"));
    canaries.are_awake().await;
    report.note(format!("{connections} connections to the canaries"));
    report.finish(2 * CLOSED.len() as u64);
}

async fn no_redirect_leads_through_the_gate(url: String) {
    let report = Report::new("P30", "redirects to each", database(&url));
    let canaries = Canaries::start().await;
    let port = canaries.port;
    let tools = ModelServer::start().await;
    tools.answer_with(move |request| {
        // /{status}/{which}
        let mut words = request.path.split('/').skip(1).map(|word| word.parse::<usize>());
        let (Some(Ok(status)), Some(Ok(n))) = (words.next(), words.next()) else {
            return Reply::status(418);
        };
        let location = format!("http://{}:{port}/x", CLOSED[n]);
        Reply::Whole {
            status: u16::try_from(status).expect("a status"),
            headers: vec![
                ("location".to_owned(), location.clone()),
                ("refresh".to_owned(), format!("0; url={location}")),
            ],
            body: Vec::new(),
        }
    });
    let server = Setup::new(url, OPEN).start().await;
    let client = &server.client;
    for (n, host) in CLOSED.iter().enumerate() {
        let status = [301, 302, 303, 307, 308][n % 5];
        let effect = ["read", "idempotent", "once"][n % 3];
        let target = format!("{}/{status}/{n}", tools.origin());
        let events = call(client, &format!("r{n}"), &target, effect).await;
        let error =
            only(&events, "tool_call.failed")["error"].as_str().expect("an error").to_owned();
        report.fault(error.contains(&status.to_string()));
        report.check(error.contains("redirect"), || format!("{host}: {error}"));
    }
    let connections = canaries.connections();
    report.check(connections == 0, || format!("{connections} connections"));
    canaries.are_awake().await;
    report.note(format!("{connections} connections to the canaries"));
    report.finish(CLOSED.len() as u64);
    assert_eq!(tools.requests().len(), CLOSED.len(), "each was asked once");
}

async fn no_name_leads_to_a_closed_address(url: String) {
    let report = Report::new("P30", "names of this machine", database(&url));
    let canaries = Canaries::start().await;
    let server = Setup::new(url, "").start().await;
    let client = &server.client;
    // Names that the system's resolver knows without asking anybody.
    for (n, host) in ["localhost", "LOCALHOST", "localhost."].into_iter().enumerate() {
        let target = format!("https://{host}:{}/", canaries.port);
        let events = call(client, &format!("n{n}"), &target, "read").await;
        let error =
            only(&events, "tool_call.failed")["error"].as_str().expect("an error").to_owned();
        // With a dot at its end some resolvers ask the network, whatever that says and however late.
        report.fault(error.contains("not public") || host.ends_with('.'));
        report.check(error.contains("not public") || host.ends_with('.'), || {
            format!("{host}: {error}")
        });
    }
    let connections = canaries.connections();
    report.check(connections == 0, || format!("{connections} connections"));
    canaries.are_awake().await;
    report.note(format!("{connections} connections to the canaries"));
    report.finish(3);
}

fn database(url: &str) -> &'static str {
    if url.starts_with("sqlite") { "SQLite" } else { "Postgres" }
}

/// Has an agent call this URL.
async fn call(client: &Client, agent_id: &str, url: &str, effect: &str) -> Vec<serde_json::Value> {
    let tool = json!({"url": url, "effect": effect});
    client.post("/v1/agents", &caller(agent_id, tool, &json!({}))).await.expect(201);
    let run = client.run_to_end(agent_id, &json!({"input": "Go"})).await;
    log(client, run["run_id"].as_str().expect("run_id")).await
}
