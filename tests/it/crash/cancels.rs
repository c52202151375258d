//! P19 on two nodes: a cancel in the moment of completion, four times, through both nodes, leaves
//! exactly one end. And P46: cancels of many runs between two appends of their driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::task::JoinSet;

use super::readers::{Fleet, Seen};
use super::talker::Talker;
use super::{LATE, create, judge, talking};
use crate::support::client::Client;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::Setup;

/// Cases that run at the same time.
const ABREAST: u64 = 8;
/// Mixes the moments, so that no busy moment of the machine meets one end of the sweep only.
const MIXER: u64 = 61;
/// An asked-for cancel on another node than the driver's ends the run within this time.
const CANCELLED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_around_completion_through_two_nodes_leaves_exactly_one_end() {
    let report = Report::new("P19", "4 cancels around completion, 2 nodes", "Postgres");
    let url = postgres::empty_database().await;
    let (a, b) = (Setup::new(&url, "").start().await, Setup::new(&url, "").start().await);
    let script = json!([{"text": "a b c d", "chunk_delay_ms": 15}]);
    let agent = json!({"agent_id": "quick", "model": "builtin/script", "script": script});
    a.client.post("/v1/agents", &agent).await.expect(201);
    let cases = pick(160, 1_600);
    // Cancels come from the beginning of a run to as long after its end.
    let sweep = usual(&a.client).await * 2;
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut ended = Vec::new();
    for first in (0..cases).step_by(ABREAST as usize) {
        let abreast: JoinSet<(String, String)> = (first..first + ABREAST)
            .map(|case| sweep * (case * MIXER % cases) as u32 / cases as u32)
            .map(|moment| cancel_around_completion(a.client.clone(), b.client.clone(), moment))
            .collect();
        ended.extend(abreast.join_all().await);
    }
    for (n, (run_id, status)) in ended.into_iter().enumerate() {
        let node = [&a.client, &b.client][n % 2];
        let run = judge::one(node, &run_id, &Seen::default(), &report).await.run;
        report.check(run["status"] == status, || format!("{run_id} was {status}, is {run}"));
        *outcomes.entry(status).or_default() += 1;
        report.fault(true);
    }
    for outcome in ["completed", "cancelled"] {
        let often = outcomes.get(outcome).is_some_and(|n| n * 20 >= cases);
        report.check(often, || format!("both outcomes really happen: {outcomes:?}"));
    }
    report.check(outcomes.len() == 2, || format!("no other outcome happens: {outcomes:?}"));
    report.note(format!("{outcomes:?} in {} ms", sweep.as_millis()));
    report.finish(cases);
}

/// How long a run takes on this machine, among as many others: the slowest.
async fn usual(client: &Client) -> Duration {
    let runs = (0..ABREAST).map(|_| async {
        let run_id = create(client, "quick").await;
        let created = Instant::now();
        client.wait(&run_id).await;
        created.elapsed()
    });
    join_all(runs).await.into_iter().max().unwrap_or_default()
}

async fn cancel_around_completion(a: Client, b: Client, moment: Duration) -> (String, String) {
    let run_id = create(&a, "quick").await;
    // The moment is the test.
    tokio::time::sleep(moment).await;
    let path = format!("/v1/runs/{run_id}/cancel");
    let nothing = json!({});
    let four = join_all([&a, &b, &b, &a].map(|node| node.post(&path, &nothing)));
    for answer in four.await {
        let cancelling = answer.body["status"] == "cancelling";
        assert_eq!(answer.status, if cancelling { 202 } else { 200 }, "{}", answer.body);
    }
    let (at_a, at_b) = tokio::join!(a.wait(&run_id), b.wait(&run_id));
    assert_eq!(at_a["status"], at_b["status"], "both nodes tell the same");
    (run_id, at_a["status"].as_str().expect("status").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_between_two_appends_of_fifty_runs_all_count() {
    let report = Report::new("P46", "guest events between appends of 50 runs", "Postgres");
    let talker = Talker::start(200, 4, Duration::from_millis(20)).await;
    let url = postgres::empty_database().await;
    let driver = Setup::new(&url, talker.yaml()).start().await;
    let other = Setup::new(&url, talker.yaml()).start().await;
    let nodes = vec![driver.client.clone(), other.client.clone()];
    let mut fleet = Fleet::new(nodes, &mut Random::new());
    let runs = talking(&driver.client, &mut fleet, 50).await;
    let nothing = json!({});
    let cancels = runs.iter().map(|run_id| {
        let path = format!("/v1/runs/{run_id}/cancel");
        let (client, nothing) = (other.client.clone(), &nothing);
        async move { client.post(&path, nothing).await }
    });
    for answer in join_all(cancels).await {
        let status = answer.body["status"].as_str().expect("status").to_owned();
        report.fault(["cancelling", "cancelled"].contains(&status.as_str()));
    }
    let ended = join_all(runs.iter().map(|run_id| fleet.board.until_ended(run_id)));
    let in_time = tokio::time::timeout(CANCELLED + LATE, ended).await.is_ok();
    report.check(in_time, || format!("cancelled runs have not ended within {CANCELLED:?}"));
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&other.client, &told, &report).await {
        report.check(run["status"] == "cancelled", || format!("{run_id} is {run}"));
    }
    report.finish(45);
}
