//! P10: a zombie cannot write. A node that was stopped, or cut off from its database, for longer than
//! the others wait comes back with tool answers and model output of another time in its hands. None of
//! it may be in any log: the words that each model answer is made of say so.

use std::time::Duration;

use serde_json::json;
use sqlx::Executor as _;

use super::readers::{self, Fleet};
use super::talker::Talker;
use super::{create, judge, moved_within, talking};
use crate::support::postgres;
use crate::support::profile::Report;
use crate::support::proxy::{Mode, Proxy};
use crate::support::random::Random;
use crate::support::server::{Server, Setup};

/// Runs whose model talks while their node is away.
const TALKING: usize = 10;
/// Runs whose tool works while their node is away.
const WORKING: usize = 10;
/// How long they work: all of them have begun by then, and none has ended.
const WORK_SECONDS: u64 = 6;
/// The lease, and what an observer may take to see that it is over.
const BURIED: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_past_its_lease_writes_nothing_more() {
    let url = postgres::empty_database().await;
    let stop = async |node: &Server| node.signal("STOP");
    let go_on = async |node: &Server| node.signal("CONT");
    let report = Report::new("P10", "SIGSTOP past the lease", "Postgres");
    zombie(report, [url.clone(), url], stop, go_on).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_cut_off_from_its_database_past_its_lease_writes_nothing_more() {
    let url = postgres::empty_database().await;
    let proxy = Proxy::before(&url).await;
    let stop = async |_: &Server| proxy.set(Mode::Hold);
    let go_on = async |_: &Server| proxy.set(Mode::Pass);
    let report = Report::new("P10", "black hole past the lease", "Postgres");
    zombie(report, [proxy.url.clone(), url], stop, go_on).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_inside_of_a_flush_writes_nothing_more() {
    let url = postgres::empty_database().await;
    let stop = async |node: &Server| {
        // Its flush waits for rows that somebody has locked; then it is stopped; then the flush, which
        // is the database's by now, is carried out, and nobody takes the answer.
        let mut neighbour = postgres::connect(&url).await;
        neighbour.execute("begin; select 1 from runs for update").await.expect("locks");
        postgres::until_somebody_waits(&url).await;
        node.signal("STOP");
        neighbour.execute("commit").await.expect("a commit");
    };
    let go_on = async |node: &Server| node.signal("CONT");
    let report = Report::new("P46", "stopped inside of a flush", "Postgres");
    zombie(report, [url.clone(), url.clone()], stop, go_on).await;
}

async fn zombie(
    report: Report,
    [url, other_url]: [String; 2],
    stop: impl AsyncFn(&Server),
    go_on: impl AsyncFn(&Server),
) {
    let talker = Talker::start(30, 4, Duration::from_millis(50)).await;
    let owner = Setup::new(url, talker.yaml()).start().await;
    let other = Setup::new(other_url, talker.yaml()).start().await;
    // Readers of the other node: what the zombie shows of its own memory is told apart below.
    let mut fleet = Fleet::new(vec![other.client.clone()], &mut Random::new());
    let board = fleet.board.clone();
    let mut runs = talking(&owner.client, &mut fleet, TALKING).await;
    let call = json!([{"tool": "sleep", "arguments": {"seconds": WORK_SECONDS}}]);
    let agent = json!({
        "agent_id": "worker",
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "sleep"}],
        "script": [{"tool_calls": call}, {"text": "Worked."}],
    });
    owner.client.post("/v1/agents", &agent).await.expect(201);
    let mut working = Vec::new();
    for _ in 0..WORKING {
        let run_id = create(&owner.client, "worker").await;
        fleet.follow(&run_id, 1);
        working.push(run_id);
    }
    for run_id in &working {
        board.until_seen(run_id, "tool_call.started").await;
    }
    runs.extend(working);
    stop(&owner).await;
    // What was on its way when it stopped arrives.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped_at = readers::now();
    runs.iter().for_each(|run_id| report.fault(!board.seen(run_id).ended));
    let slowest = moved_within(BURIED, &board, &runs, &stopped_at, &report).await;
    go_on(&owner).await;
    // It bit only if the zombie really was buried: it says so when it finds out.
    let found_out = async {
        while !owner.log().contains("this node was declared dead") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), found_out).await.is_ok();
    report.check(in_time, || format!("the zombie never learnt of it:\n{}", owner.log()));
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&other.client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
        // The zombie, which is a new node now, tells the same of every run.
        judge::one(&owner.client, &run_id, &told.runs[&run_id], &report).await;
    }
    report.note(format!("taken over in {} ms", slowest.as_millis()));
    report.finish((TALKING + WORKING) as u64);
}
