//! P24: a stream on which nothing happens says every 15 s that it is alive.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::{create, sleeper, sqlite};
use crate::support::client::Client;
use crate::support::profile::{Report, pick};
use crate::support::server::{Folder, Setup};

/// The longest silence: what is promised, and what a busy machine may add. The next thing that could go
/// wrong, one that is left out, takes 30 s.
const SILENCE: Duration = Duration::from_secs(15 + 9);

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_says_that_it_is_alive() {
    let report = Report::new("P24", "silent streams, HTTP/1.1 and HTTP/2", "SQLite");
    let folder = Folder::new();
    let server = Setup::new(sqlite(&folder), "").start().await;
    sleeper(&server.client, 600).await;
    let run_id = create(&server.client, "sleeper").await;
    let http2 = server.client.over_http2();
    let (slowest, slowest_2) =
        tokio::join!(follow(&server.client, &run_id, &report), follow(&http2, &run_id, &report));
    report.note(format!("longest silence {} ms", slowest.max(slowest_2).as_millis()));
    report.finish(2);
}

/// Follows a run through some silences; gives the longest.
async fn follow(client: &Client, run_id: &str, report: &Report) -> Duration {
    let path = format!("/v1/runs/{run_id}/events");
    let mut stream = client.stream(client.request(Method::GET, &path)).await;
    stream.until("step.started").await;
    report.fault(true);
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    for n in 0..pick(2, 20) {
        let chunk = tokio::time::timeout(SILENCE * 2, stream.response.chunk()).await;
        let took = last.elapsed();
        last = Instant::now();
        longest = longest.max(took);
        let is_comment = matches!(&chunk, Ok(Ok(Some(bytes))) if bytes.starts_with(b":"));
        report.check(is_comment, || format!("what came was {chunk:?}"));
        report.check(took <= SILENCE, || format!("silence {n} took {took:?}"));
    }
    longest
}
