//! P23: a server that was killed with thousands of readers has them all back in seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{create, sqlite};
use crate::support::client::{Client, Stream};
use crate::support::files::allow_open_files;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::server::{Folder, Setup};

const RUNS: usize = 50;
/// All are back.
const RESUMED: Duration = Duration::from_secs(15);
/// Before the server is killed, everybody has begun to read.
const SETTLED: Duration = Duration::from_secs(60);
/// How often a reader knocks while nobody answers: a refused connection costs the server nothing.
const KNOCK: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_is_back_in_seconds_on_sqlite() {
    let folder = Folder::new();
    a_herd_is_back(sqlite(&folder), "SQLite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_is_back_in_seconds_on_postgres() {
    a_herd_is_back(postgres::empty_database().await, "Postgres").await;
}

async fn a_herd_is_back(url: String, database: &'static str) {
    let readers = pick(1_000, 5_000);
    let report = Report::new("P23", "SIGKILL under a herd, restart", database);
    allow_open_files(16_384);
    let setup = Setup::new(url, "").on_a_port_that_stays();
    let server = setup.start().await;
    let client = setup.client();
    client.post("/v1/agents", &talker()).await.expect(201);
    let herd = Herd::new();
    let mut tasks = JoinSet::new();
    for _ in 0..RUNS {
        let run_id = create(&client, "talker").await;
        for _ in 0..readers / RUNS {
            tasks.spawn(herd.member(&client, &run_id).follow());
        }
    }
    herd.until_reading(readers, SETTLED).await.expect("everybody reads");
    server.kill();
    herd.until_reading(0, SETTLED).await.expect("everybody has noticed");

    let began = Instant::now();
    // What came before is another matter.
    herd.shared.server_errors.store(0, Ordering::Relaxed);
    let server = setup.start().await;
    let up = began.elapsed();
    let back = herd.until_reading(readers, RESUMED * 2).await;
    let took = began.elapsed() - up;
    for _ in 0..back.unwrap_or_else(|reading| reading) {
        report.fault(true);
    }
    report.check(back.is_ok() && took <= RESUMED, || format!("{back:?} are back after {took:?}"));
    let answers = herd.shared.server_errors.load(Ordering::Relaxed);
    report.check(answers == 0, || format!("{answers} answers were 5xx"));
    let gaps = herd.shared.gaps.load(Ordering::Relaxed);
    report.check(gaps == 0, || format!("{gaps} streams had gaps or repeats"));
    tasks.shutdown().await;
    report.note(format!("up in {} ms", up.as_millis()));
    report.note(format!("{readers} back {} ms later", took.as_millis()));
    report.note(format!("{} KiB a stream", server.memory() / 1024 / readers as u64));
    report.finish(readers as u64);
}

/// Talks for as long as the test takes, however often it begins anew.
fn talker() -> serde_json::Value {
    let words: Vec<String> = (0..2_000).map(|n| format!("w{n}")).collect();
    serde_json::json!({
        "agent_id": "talker",
        "model": "builtin/script",
        "script": [{"text": words.join(" "), "chunk_delay_ms": 500}],
    })
}

/// Everybody who reads.
struct Herd {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Readers whose stream is open, and has shown something behind their cursor.
    reading: watch::Sender<usize>,
    /// Answers of 5xx.
    server_errors: AtomicUsize,
    gaps: AtomicUsize,
}

impl Herd {
    fn new() -> Self {
        Self { shared: std::sync::Arc::default() }
    }

    fn member(&self, client: &Client, run_id: &str) -> Member {
        Member {
            shared: self.shared.clone(),
            client: client.clone(),
            run_id: run_id.to_owned(),
            last: 0,
        }
    }

    /// Resolves when exactly so many read; or says how many do when it is too late.
    async fn until_reading(&self, count: usize, within: Duration) -> Result<usize, usize> {
        let mut reading = self.shared.reading.subscribe();
        let all = tokio::time::timeout(within, reading.wait_for(|reading| *reading == count)).await;
        let is_so = all.is_ok();
        drop(all);
        let now = *self.shared.reading.borrow();
        if is_so { Ok(count) } else { Err(now) }
    }
}

/// One who reads.
struct Member {
    shared: Arc<Shared>,
    client: Client,
    run_id: String,
    last: i64,
}

impl Member {
    /// As an `EventSource` does: comes back with its cursor after the time that the server asked for.
    async fn follow(mut self) {
        let mut retry = Duration::ZERO;
        loop {
            tokio::time::sleep(retry).await;
            match self.open().await {
                Some(mut stream) => {
                    self.read(&mut stream).await;
                    retry = stream.retry.map_or(KNOCK, Duration::from_millis);
                }
                None => retry = KNOCK,
            }
        }
    }

    async fn open(&self) -> Option<Stream> {
        let path = format!("/v1/runs/{}/events", self.run_id);
        let request = self.client.request(Method::GET, &path).header("accept", "text/event-stream");
        let response = request.header("last-event-id", self.last).send().await.ok()?;
        if response.status().is_server_error() {
            self.shared.server_errors.fetch_add(1, Ordering::Relaxed);
        }
        (response.status() == 200).then(|| Stream::new(response))
    }

    async fn read(&mut self, stream: &mut Stream) {
        let mut reads = None;
        while let Some(frame) = stream.next().await {
            if frame.id.is_none() {
                break;
            }
            if frame.seq() != self.last + 1 {
                self.shared.gaps.fetch_add(1, Ordering::Relaxed);
            }
            self.last = frame.seq();
            reads.get_or_insert_with(|| Reading::new(self.shared.clone()));
        }
    }
}

/// One more who reads, until this is dropped.
struct Reading(Arc<Shared>);

impl Reading {
    fn new(shared: Arc<Shared>) -> Self {
        shared.reading.send_modify(|reading| *reading += 1);
        Self(shared)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.send_modify(|reading| *reading -= 1);
    }
}
