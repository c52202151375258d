//! P32: who is slow to ask does not keep a connection.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::wire::{Said, Wire};
use super::{is_documented_error, sqlite};
use crate::support::profile::{Report, is_full, pick};
use crate::support::server::{Folder, Setup};

/// How long a head may take, and how late the server may be to say so on a busy machine.
const HEAD: Duration = Duration::from_secs(10);
const HEAD_AND: Duration = Duration::from_secs(15);
/// How long a body may take.
const BODY: Duration = Duration::from_secs(30);
const BODY_AND: Duration = Duration::from_secs(35);
/// The server reads on for a second after it has refused somebody, and no more.
const LINGERS: Duration = Duration::from_secs(6);
/// A minute of silence between two requests is what proxies are used to.
const SILENCE: Duration = Duration::from_secs(62);

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_to_ask_does_not_keep_a_connection() {
    let report = Report::new("P32", "connect-only, a byte a second", "SQLite");
    let folder = Folder::new();
    let server = Setup::new(sqlite(&folder), "").start().await;
    let address = server.client.address();
    let before = server.open_sockets();
    let of_each = 0..pick(10, 100);
    let silent = join_all(of_each.clone().map(|_| connects_only(address, &report)));
    let heads = join_all(of_each.clone().map(|_| drips_its_head(address, &report)));
    let second = join_all(of_each.clone().map(|_| drips_its_second_head(address, &report)));
    let bodies = join_all(of_each.map(|_| drips_its_body(address, &report)));
    let idle = async {
        // A minute is too long for CI, which has the unit test of the same (`server::patience`).
        if is_full() {
            is_silent_between_two_requests(address, &report).await;
        }
    };
    tokio::join!(silent, heads, second, bodies, idle);
    let after = server.open_sockets_fall_to(before).await;
    report.check(after <= before, || format!("{before} open sockets became {after}"));
    report.finish(pick(40, 400));
}

async fn connects_only(address: SocketAddr, report: &Report) {
    // Our clocks start before the server's can.
    let began = Instant::now();
    let mut wire = Wire::open(address).await;
    wire.closes().await;
    let took = began.elapsed();
    report.fault(took >= HEAD);
    report.check(took <= HEAD_AND, || format!("a silent connection was kept for {took:?}"));
}

async fn drips_its_head(address: SocketAddr, report: &Report) {
    let began = Instant::now();
    let mut wire = Wire::open(address).await;
    wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    wire.drip(b"z").await;
    let took = began.elapsed();
    report.fault(took >= HEAD);
    report.check(took <= HEAD_AND, || format!("a dripping head was taken for {took:?}"));
}

/// A connection that was used is no better.
async fn drips_its_second_head(address: SocketAddr, report: &Report) {
    let mut wire = Wire::open(address).await;
    wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let said = wire.answer().await;
    report.check(said.is_some_and(|said| said.status == 200), || "no answer".to_owned());
    let began = Instant::now();
    wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    wire.drip(b"z").await;
    let took = began.elapsed();
    // On a connection that is used the server's clock may have started before ours.
    report.fault(took >= HEAD / 2);
    report.check(took <= HEAD_AND, || format!("a dripping second head was taken for {took:?}"));
}

async fn drips_its_body(address: SocketAddr, report: &Report) {
    let mut wire = Wire::open(address).await;
    let began = Instant::now();
    wire.send(
        b"POST /v1/agents HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
          content-length: 1000\r\n\r\n{",
    )
    .await;
    wire.drip(b" ").await;
    let said = wire.answer().await;
    let took = began.elapsed();
    report.fault(took >= BODY);
    report.check(took <= BODY_AND, || format!("a dripping body was taken for {took:?}"));
    let told = said.as_ref().is_some_and(|said| {
        is_documented_error(&said.json().unwrap_or_default(), said.status) && said.status == 400
    });
    report.check(told, || format!("a dripping body was answered {said:?}"));
    let took = wire.closes().await;
    report.check(took <= LINGERS, || format!("it was closed {took:?} later"));
}

async fn is_silent_between_two_requests(address: SocketAddr, report: &Report) {
    let mut wire = Wire::open(address).await;
    let is_fine = |said: Option<Said>| said.is_some_and(|said| said.status == 200);
    for _ in 0..2 {
        wire.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let said = wire.answer().await;
        report.check(is_fine(said), || "an idle connection was not kept".to_owned());
        tokio::time::sleep(SILENCE).await;
    }
}
