//! HTTP/2 without TLS, by prior knowledge: it works, and its own ways to be slow or many do not.

mod frames;
mod windows;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use reqwest::{Method, Version};
use serde_json::json;

use self::frames::{
    CONTINUATION, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame,
    get, literal, post,
};
use super::wire::Wire;
use super::{create, is_documented_error, sqlite};
use crate::support::client::{Client, Frame};
use crate::support::peers;
use crate::support::profile::{Report, pick};
use crate::support::server::{Folder, Server, Setup};

const STREAMS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_streams_fit_on_one_connection() {
    let report = Report::new("P32", "100 streams on one HTTP/2 connection", "SQLite");
    let folder = Folder::new();
    let server = Setup::new(sqlite(&folder), "").start().await;
    let client = server.client.over_http2();
    let agent = json!({"agent_id": "a", "model": "builtin/script",
        "script": [{"text": "one two three four five", "delay_ms": 2_000, "chunk_delay_ms": 50}]});
    let answer = client.post("/v1/agents", &agent).await;
    report.check(answer.status == 201, || answer.body.to_string());
    let run_id = create(&client, "a").await;
    let path = format!("/v1/runs/{run_id}/events");
    let open = (0..STREAMS).map(|_| client.stream(client.request(Method::GET, &path)));
    let open = join_all(open).await;
    let is_http2 = open.iter().all(|stream| stream.response.version() == Version::HTTP_2);
    report.check(is_http2, || "a stream came over HTTP/1.1".to_owned());
    let connections = peers::held_at(client.address()).len();
    report.check(connections == 1, || format!("there are {connections} connections"));
    let unknown = client.get("/v1/runs/run_x").await;
    report.check(is_documented_error(&unknown.body, 404), || unknown.body.to_string());
    let told = join_all(open.into_iter().map(crate::support::client::Stream::rest)).await;
    for frames in &told {
        report.fault(true);
        report.check(frames.last().is_some_and(|f| f.event == "stream.end"), || {
            format!("{frames:?}")
        });
        report.check(*frames == told[0], || "two streams differ".to_owned());
    }
    let seqs: Vec<i64> = told[0].iter().filter(|f| f.id.is_some()).map(Frame::seq).collect();
    let expected = 1..=seqs.len() as i64;
    report.check(seqs == expected.collect::<Vec<_>>(), || format!("{seqs:?}"));
    report.finish(STREAMS as u64);
}

/// A head has 10 s here too, whether it is the first of its connection or not, and a body 30 s; a busy
/// machine may be late.
const HEAD: Duration = Duration::from_secs(10);
const HEAD_AND: Duration = Duration::from_secs(15);
const BODY: Duration = Duration::from_secs(30);
const BODY_AND: Duration = Duration::from_secs(35);
/// Without a request a connection may live this long, whatever else it sends.
const IDLE_AND: Duration = Duration::from_secs(85);

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_to_ask_does_not_keep_an_http2_connection() {
    let report = Report::new("P32", "slow clients over HTTP/2", "SQLite");
    let folder = Folder::new();
    let server = Setup::new(sqlite(&folder), "").start().await;
    let address = server.client.address();
    let never_asks = gives_up(address, PREFACE.to_vec(), Vec::new(), HEAD_AND, &report);
    let endless = [PREFACE, &frame(HEADERS, 0, 1, &get("/healthz"))].concat();
    let next = frame(CONTINUATION, 0, 1, &[]);
    let never_ends_its_head = gives_up(address, endless, next.clone(), HEAD_AND, &report);
    let pings = frame(PING, 0, 0, &[0; 8]);
    let only_pings = gives_up(address, PREFACE.to_vec(), pings.clone(), HEAD_AND, &report);
    let http2 = server.client.over_http2();
    let body = drips_its_body(&http2, &report);
    // The same on a connection that has been used; a minute and more, so not in CI.
    let used = async {
        if pick(false, true) {
            let asked =
                [PREFACE, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("/healthz"))].concat();
            let half = [asked.clone(), frame(HEADERS, 0, 3, &get("/healthz"))].concat();
            tokio::join!(
                gives_up(address, asked.clone(), pings, IDLE_AND, &report),
                gives_up(address, asked, Vec::new(), IDLE_AND, &report),
                gives_up(address, half, next, IDLE_AND, &report),
            );
        }
    };
    tokio::join!(never_asks, never_ends_its_head, only_pings, body, used);
    report.finish(4);
}

/// Sends the first bytes, then a byte a second of the rest, and is closed in time.
async fn gives_up(
    address: SocketAddr,
    first: Vec<u8>,
    rest: Vec<u8>,
    within: Duration,
    report: &Report,
) {
    // Our clock starts before the server's can.
    let began = Instant::now();
    let mut wire = Wire::open(address).await;
    wire.send(&first).await;
    let (mut from, mut to) = tokio::io::split(wire.socket);
    let drip = async {
        for byte in rest.iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if tokio::io::AsyncWriteExt::write_all(&mut to, &[*byte]).await.is_err() {
                return;
            }
        }
        std::future::pending().await
    };
    let mut all = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut from, &mut all);
    let closed = tokio::time::timeout(within * 2, async {
        tokio::select! { _ = read => {}, () = drip => {} }
    });
    let is_closed = closed.await.is_ok();
    let took = began.elapsed();
    report.fault(took >= HEAD);
    report.check(is_closed && took <= within, || format!("a connection was kept for {took:?}"));
}

async fn drips_its_body(client: &Client, report: &Report) {
    let drip = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
    });
    let began = Instant::now();
    let request = client.request(Method::POST, "/v1/agents");
    let request = request.header("content-type", "application/json");
    let answer = client.send(request.body(reqwest::Body::wrap_stream(drip))).await;
    let took = began.elapsed();
    report.fault(took >= BODY);
    report.check(took <= BODY_AND, || format!("a dripping body was taken for {took:?}"));
    let told = answer.status == 400 && is_documented_error(&answer.body, 400);
    report.check(told, || format!("{} {}", answer.status, answer.body));
}

/// What a flood may cost the server for good.
const MEMORY: u64 = 48 * 1024 * 1024;
/// How soon others are answered meanwhile, but for a few who may meet a machine that stands still.
const SOON: Duration = Duration::from_secs(1);
const OTHERS: usize = 50;
const FEW: usize = 5;
/// By then a connection that is over is closed, if it ever is.
const CLOSED: Duration = Duration::from_secs(30);
/// Bytes that are sent at once: always fewer than sockets hold, so that the first are taken whatever the
/// server does.
const AT_ONCE: usize = 16 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_hurt_nobody_else() {
    let report = Report::new("P32", "HTTP/2 floods: resets, heads, settings, pings", "SQLite");
    let folder = Folder::new();
    let server = Setup::new(sqlite(&folder), "").start().await;
    server.client.get("/healthz").await.expect(200);
    let (memory, sockets) = (server.memory(), server.open_sockets());
    let count = pick(20_000, 500_000);
    let reset = |n: u32| {
        let id = n * 2 + 1;
        let ask = frame(HEADERS, END_HEADERS | END_STREAM, id, &get("/healthz"));
        [ask, frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat()
    };
    flood(&server, "requests that are reset", count, reset, &report).await;
    let head = |n: u32| match n {
        0 => frame(HEADERS, 0, 1, &get("/healthz")),
        _ => frame(CONTINUATION, 0, 1, &literal("x-flood", &"f".repeat(8_000))),
    };
    flood(&server, "a head without end", count / 20, head, &report).await;
    let nothing = |n: u32| match n {
        0 => frame(HEADERS, 0, 1, &get("/healthz")),
        _ => frame(CONTINUATION, 0, 1, &[]),
    };
    flood(&server, "a head without end, of nothing", count, nothing, &report).await;
    let setting = |_: u32| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    flood(&server, "settings", count, setting, &report).await;
    let ping = |_: u32| frame(PING, 0, 0, &[7; 8]);
    flood(&server, "pings", count, ping, &report).await;
    let half = |n: u32| frame(HEADERS, END_HEADERS, n * 2 + 1, &post());
    flood(&server, "requests without a body", count, half, &report).await;
    let grown = server.memory().saturating_sub(memory);
    report.check(grown <= MEMORY, || format!("{grown} bytes of memory were kept"));
    let after = server.open_sockets_fall_to(sockets).await;
    report.check(after <= sockets, || format!("{sockets} open sockets became {after}"));
    report.note(format!("memory +{} KiB", grown / 1024));
    report.finish(6);
}

/// Sends so many of these on one connection, and never reads. Others are answered all the while.
async fn flood(
    server: &Server,
    what: &str,
    count: u32,
    of: impl Fn(u32) -> Vec<u8>,
    report: &Report,
) {
    let wire = Wire::open(server.client.address()).await;
    let ours = wire.socket.local_addr().expect("an address");
    let mut wire = Some(wire);
    let sent = async {
        let wire = wire.as_mut().expect("a wire");
        wire.send(PREFACE).await;
        let (mut some, mut sent) = (Vec::new(), 0);
        for n in 0..count {
            some.extend(of(n));
            if some.len() < AT_ONCE && n + 1 < count {
                continue;
            }
            // It is closed on us, or not read any more: both are fine ways to end this.
            let taken = tokio::time::timeout(SOON, wire.send(&some)).await;
            if !matches!(taken, Ok(true)) {
                break;
            }
            sent = n + 1;
            some.clear();
        }
        sent
    };
    let others = async {
        let client = server.client.keeping_nothing();
        let mut waited = Vec::new();
        for _ in 0..OTHERS {
            let began = Instant::now();
            let answer = client.get("/healthz").await;
            report.check(answer.status == 200, || format!("{what}: {}", answer.body));
            waited.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        waited.sort_unstable();
        waited[OTHERS - 1 - FEW]
    };
    let (sent, waited) = tokio::join!(sent, others);
    report.fault(sent > 0);
    report.check(waited <= SOON, || format!("{what}: others waited {waited:?}"));
    println!("{what}: {sent} of {count} sent, others waited {} ms", waited.as_millis());
    drop(wire);
    until_gone(server, ours, what, report).await;
}

async fn until_gone(server: &Server, client: SocketAddr, what: &str, report: &Report) {
    let patience = Instant::now() + CLOSED;
    let held = || -> HashSet<SocketAddr> { peers::held_at(server.client.address()) };
    while held().contains(&client) && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report.check(!held().contains(&client), || format!("{what}: its connection is still held"));
}
