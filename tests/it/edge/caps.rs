//! There are only so many places for connections and streams. Who finds none is told so in the
//! documented shape, and whoever leaves gives his place back.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::wire::{Said, Wire};
use super::{create, is_documented_error, sleeper, sqlite};
use crate::support::client::{Client, Stream};
use crate::support::profile::Report;
use crate::support::server::{Folder, Setup};

const CONNECTIONS: usize = 8;
const OF_ONE_ADDRESS: usize = 5;
const STREAMS: usize = 2;
/// A place that was given back is free again by then, if it ever is.
const FREE: Duration = Duration::from_secs(30);
/// Who is refused is let go long before a silent client is, which has 10 s.
const LET_GO: Duration = Duration::from_secs(8);

const ASK: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_places_in_all_and_by_address() {
    let report = Report::new("P32", "more connections than places", "SQLite");
    let folder = Folder::new();
    let yaml = format!(
        "edge: {{ max_connections: {CONNECTIONS}, max_connections_per_address: {OF_ONE_ADDRESS} }}\n"
    );
    let server = Setup::new(sqlite(&folder), yaml).start().await;
    let address = server.client.address();
    for _ in 0..3 {
        let mut taken = Vec::new();
        for n in 0..CONNECTIONS {
            let host = if n < OF_ONE_ADDRESS { 2 } else { 3 };
            let (wire, said) = served(address, host).await;
            report.check(said.status == 200, || format!("place {n} was refused: {said:?}"));
            taken.push(wire);
        }
        // First nobody has a place left, then this address has none.
        refused(address, 2, &report).await;
        taken.truncate(CONNECTIONS - 1);
        until_served(address, 3, &report).await;
        refused(address, 2, &report).await;
        taken.clear();
    }
    until_served(address, 2, &report).await;
    report.finish(6);
}

async fn ask(address: SocketAddr, host: u8) -> (Wire, Option<Said>) {
    let mut wire = Wire::open_as(address, host).await;
    wire.send(ASK).await;
    let said = wire.answer().await;
    (wire, said)
}

/// Asks until there is a place: the one that went is free when the server has seen it go.
async fn served(address: SocketAddr, host: u8) -> (Wire, Said) {
    let patience = tokio::time::Instant::now() + FREE;
    loop {
        let (wire, said) = ask(address, host).await;
        match said {
            Some(said) if said.status == 200 || tokio::time::Instant::now() > patience => {
                return (wire, said);
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn until_served(address: SocketAddr, host: u8, report: &Report) {
    let (_, said) = served(address, host).await;
    report.check(said.status == 200, || format!("the place was not given back: {said:?}"));
}

async fn refused(address: SocketAddr, host: u8, report: &Report) {
    let (mut wire, said) = ask(address, host).await;
    let Some(said) = said else {
        report.check(false, || "a connection without a place was cut off untold".to_owned());
        return;
    };
    report.fault(said.status == 503);
    let body = said.json().unwrap_or_default();
    is_refusal(&body, said.status, said.header("retry-after"), report);
    let same = said.header("x-request-id") == body["request_id"].as_str();
    report.check(same, || format!("the refusal has another id than its head: {said:?}"));
    let took = wire.closes().await;
    report.check(took <= LET_GO, || format!("the refused was kept for {took:?}"));
}

fn is_refusal(body: &Value, status: u16, retry_after: Option<&str>, report: &Report) {
    let told = is_documented_error(body, status) && body["error"] == "overloaded";
    report.check(told, || format!("{status} {body}"));
    report.check(body["retry"] == true && body["retry_after_seconds"] == 1, || body.to_string());
    report.check(retry_after == Some("1"), || format!("Retry-After: {retry_after:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_places_on_the_node() {
    streams_have_places("max_streams", "more streams than places on the node").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_places_in_the_workspace() {
    streams_have_places("max_streams_per_workspace", "more streams than places of a workspace")
        .await;
}

async fn streams_have_places(setting: &str, what: &'static str) {
    let report = Report::new("P32", what, "SQLite");
    let folder = Folder::new();
    let yaml = format!("edge: {{ {setting}: {STREAMS} }}\n");
    let server = Setup::new(sqlite(&folder), yaml).start().await;
    let client = &server.client;
    sleeper(client, 600).await;
    let run_id = create(client, "sleeper").await;
    for _ in 0..3 {
        let mut open = Vec::new();
        while open.len() < STREAMS {
            open.push(until_open(client, &run_id, &report).await);
        }
        let path = format!("/v1/runs/{run_id}/events");
        let told = client.get(&path).await;
        report.fault(told.status == 503);
        is_refusal(&told.body, told.status, told.header("retry-after"), &report);

        // What an EventSource sends. It gives up for good on an error, so it gets none.
        let asked = client.request(Method::GET, &path).header("accept", "text/event-stream");
        let mut stream = client.stream(asked.header("last-event-id", "1")).await;
        let end = stream.next().await.map(|frame| frame.json()).unwrap_or_default();
        report.check(end["type"] == "stream.end" && end["reason"] == "unavailable", || {
            format!("an EventSource was told {end}")
        });
        report.check(end["last_seq"] == 1, || format!("its cursor is lost: {end}"));
        report.check(stream.retry.is_some_and(|ms| (1_000..=3_000).contains(&ms)), || {
            format!("it is to come back in {:?}", stream.retry)
        });
        report.check(stream.next().await.is_none(), || "the stream goes on".to_owned());

        // Everything else goes on.
        let run = client.get(&format!("/v1/runs/{run_id}")).await;
        report.check(run.status == 200, || run.body.to_string());
    }
    report.finish(3);
}

async fn until_open(client: &Client, run_id: &str, report: &Report) -> Stream {
    let patience = tokio::time::Instant::now() + FREE;
    loop {
        let path = format!("/v1/runs/{run_id}/events");
        let response = client.request(Method::GET, &path).send().await.expect("an answer");
        let is_open = response.status() == 200;
        if is_open || tokio::time::Instant::now() > patience {
            report.check(is_open, || format!("a place was not given back: {response:?}"));
            return Stream::new(response);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
