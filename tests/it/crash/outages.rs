//! P6: an outage of the database is a pause. Runs wait and go on, the API says 503 and when to come
//! back, nothing fails, nothing is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::readers::{self, Fleet};
use super::talker::Talker;
use super::{LATE, create, judge};
use crate::support::client::Client;
use crate::support::postgres::Cluster;
use crate::support::profile::{Report, pick};
use crate::support::proxy::{Mode, Proxy};
use crate::support::random::Random;
use crate::support::server::Setup;

/// Runs that stream through all of it.
const RUNS: usize = 50;
/// The 99th percentile of the time from the end of an outage to a run's next event.
const RESUME: Duration = Duration::from_secs(5);
/// How long an answer of the API may take while there is no database, and what a busy machine may add.
const ANSWER: Duration = Duration::from_secs(12);
/// In an outage that is long enough for it somebody has been told by then, if ever.
const TOLD: Duration = Duration::from_secs(30);
/// Sockets that may stay open: what the test's client (128) and the server keep alive, the latter one
/// for each run to its model and a few to the database.
const IDLE: usize = 128 + RUNS + 32;
/// Between two requests of a caller who does not mind outages.
const PROBE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
enum Outage {
    /// Nothing arrives and nobody is told.
    BlackHole,
    /// Connections are reset.
    Reset,
    /// The server is stopped, and started again.
    Restart,
}

impl Outage {
    /// Seconds after which callers are told. In a black hole that takes a time-out.
    const fn noticed_after(self) -> u64 {
        match self {
            Self::BlackHole => ANSWER.as_secs(),
            Self::Reset | Self::Restart => 1,
        }
    }
}

/// What happens, for how many seconds. The full profile also outlasts the nodes' trust in themselves.
fn outages() -> Vec<(Outage, u64)> {
    let ci = vec![
        (Outage::BlackHole, 1),
        (Outage::Reset, 3),
        (Outage::Restart, 3),
        (Outage::BlackHole, 14),
        (Outage::Reset, 1),
    ];
    let every = [1, 3, 8, 20, 60].into_iter().flat_map(|seconds| {
        [Outage::BlackHole, Outage::Reset, Outage::Restart].map(|outage| (outage, seconds))
    });
    pick(ci, every.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_is_a_pause() {
    let report = Arc::new(Report::new("P6", "black hole, reset, restart", "Postgres"));
    let mut random = Random::new();
    let cluster = Cluster::start(&[]);
    let proxy = Proxy::before(&cluster.empty_database().await).await;
    let talker = Talker::start(30, 4, Duration::from_millis(100)).await;
    let mut server = Setup::new(&proxy.url, talker.yaml()).start().await;
    let client = server.client.clone();
    client.post("/v1/agents", &Talker::agent()).await.expect(201);
    let open_files = server.open_files();
    let mut fleet = Fleet::new(vec![client.clone()], &mut random);
    let board = fleet.board.clone();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let run_id = create(&client, "talker").await;
        fleet.follow(&run_id, 1);
        runs.push(run_id);
    }
    let (mut waits, mut refused) = (Vec::new(), 0);
    for (outage, seconds) in outages() {
        let streaming = readers::now();
        for run_id in &runs {
            board.until_moved(run_id, &streaming).await;
        }
        let (over, is_over) = watch::channel(false);
        let told = watch::Sender::new(0);
        match outage {
            Outage::BlackHole => proxy.set(Mode::Hold),
            Outage::Reset => proxy.set(Mode::Reset),
            Outage::Restart => cluster.stop(),
        }
        let began_at = readers::now();
        let get = (Method::GET, format!("/v1/runs/{}", runs[0]));
        let post = (Method::POST, "/v1/agents/demo/runs".to_owned());
        let probes: JoinSet<Vec<String>> = [get, post]
            .into_iter()
            .map(|request| {
                probe(client.clone(), request, report.clone(), told.clone(), is_over.clone())
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        if seconds >= outage.noticed_after() {
            // It may take longer than that on a machine that stands still.
            let mut hears = told.subscribe();
            let told = tokio::time::timeout(TOLD, hears.wait_for(|told| *told > 0)).await.is_ok();
            report
                .check(told, || format!("{outage:?} of {seconds} s: nobody was told to come back"));
        }
        // It bit if nobody saw anything that was made since (what was on its way may come): nothing that is
        // shown is not in the database.
        report.fault(board.newest() <= began_at);
        match outage {
            Outage::BlackHole | Outage::Reset => proxy.set(Mode::Pass),
            Outage::Restart => cluster.start_again(),
        }
        let (healed, healed_at) = (Instant::now(), readers::now());
        over.send_replace(true);
        let resumed = runs.iter().map(|run_id| async {
            let moved = board.until_moved(run_id, &healed_at);
            tokio::time::timeout(Duration::from_secs(30), moved).await.ok();
            healed.elapsed()
        });
        waits.extend(futures_util::future::join_all(resumed).await);
        let probed = probes.join_all().await;
        refused += *told.borrow();
        for run_id in probed.iter().flatten() {
            fleet.follow(run_id, 1);
        }
    }
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    // 7: nothing is left behind. A few idle connections to the database and of clients stay.
    let left = server.open_files();
    report.check(left <= open_files + IDLE, || {
        format!("{open_files} open files before, {left} after")
    });
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    let slowest = waits[waits.len() - 1];
    report.check(p99 <= RESUME, || format!("runs went on {p99:?} after the outage"));
    report.check(server.is_running(), || "the server has exited".to_owned());
    report.note(format!("{} runs", told.runs.len()));
    report.note(format!("{refused} answers 503"));
    report.note(format!("resumed p99 {} ms", p99.as_millis()));
    report.note(format!("slowest {} ms", slowest.as_millis()));
    drop(server);
    Arc::into_inner(report).expect("the probes are over").finish(outages().len() as u64);
}

/// Asks again and again, as if nothing were wrong, and counts the answers 503. Gives the runs that were answered
/// 202.
async fn probe(
    client: Client,
    (method, path): (Method, String),
    report: Arc<Report>,
    told: watch::Sender<u64>,
    is_over: watch::Receiver<bool>,
) -> Vec<String> {
    let mut created = Vec::new();
    while !*is_over.borrow() {
        let request = client.request(method.clone(), &path).json(&json!({"input": "Go"}));
        let asked = Instant::now();
        let answer = client.send(request).await;
        let took = asked.elapsed();
        report
            .check(took <= ANSWER + LATE, || format!("{method} {path} took {took:?}: {answer:?}"));
        let says_when = answer.status != 503
            || (answer.header("retry-after").is_some() && answer.body["retry"] == true);
        let fits = says_when && [200, 202, 503].contains(&answer.status);
        report.check(fits, || format!("{} {}", answer.status, answer.body));
        told.send_modify(|told| *told += u64::from(answer.status == 503));
        if answer.status == 202 {
            created.push(answer.body["run_id"].as_str().expect("run_id").to_owned());
        }
        tokio::time::sleep(PROBE).await;
    }
    created
}
