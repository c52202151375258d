//! P7: a full disk is a pause. Runs wait, the API says 503, the server stays; when there is room again,
//! everything goes on, and nothing is lost.

use std::time::Duration;

use serde_json::json;

use super::readers::{self, Board, Fleet};
use super::talker::Talker;
use super::{judge, moved_within, talking};
use crate::support::client::Client;
use crate::support::disk::Disk;
use crate::support::postgres::Cluster;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::Setup;

const RUNS: usize = 20;
/// How long it may take until there is not one block left to write to: both databases have room
/// inside of files that they have already.
const BITES: Duration = Duration::from_secs(120);
/// Twenty runs that talk are never silent for so long.
const STILL: Duration = Duration::from_secs(2);
/// How long an answer may take while nothing can be written.
const ANSWER: Duration = Duration::from_secs(20);
const RESUMES: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_pause_on_sqlite() {
    let disk = Disk::of_megabytes(pick(64, 300));
    let url = format!("sqlite://{}", disk.path().join("stepwell.db").display());
    fill_again_and_again(&disk, None, url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_a_pause_on_postgres() {
    let disk = Disk::of_megabytes(300);
    let cluster = Cluster::start_in(disk.path(), &[]);
    let url = cluster.empty_database().await;
    fill_again_and_again(&disk, Some(&cluster), url).await;
}

async fn fill_again_and_again(disk: &Disk, cluster: Option<&Cluster>, url: String) {
    let database = if cluster.is_some() { "Postgres" } else { "SQLite" };
    let report = Report::new("P7", "a full disk, then freed", database);
    // 2 KB a word: a megabyte a second.
    let talker = Talker::start(100, 2_000, Duration::from_millis(40)).await;
    let mut server = Setup::new(url, talker.yaml()).start().await;
    let client = server.client.clone();
    let mut fleet = Fleet::new(vec![client.clone()], &mut Random::new());
    let board = fleet.board.clone();
    let runs = talking(&client, &mut fleet, RUNS).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..pick(1, 5) {
        disk.fill();
        let answer = tokio::time::timeout(BITES, until_full(&client, &board)).await;
        report.fault(answer.is_ok());
        report.check(answer == Ok(Some(503)), || {
            format!("a creation on a full disk was answered {answer:?} within {ANSWER:?}")
        });
        disk.free();
        if let Some(cluster) = cluster {
            // A Postgres that cannot write its log gives up; whoever operates it starts it again.
            cluster.start_if_it_is_down();
        }
        let freed_at = readers::now();
        slowest = slowest.max(moved_within(RESUMES, &board, &runs, &freed_at, &report).await);
    }
    report.check(server.is_running(), || "the server has exited".to_owned());
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    report.note(format!("resumed in {} ms", slowest.as_millis()));
    // Before the disk goes.
    server.kill();
    report.finish(1);
}

/// Resolves when nothing is shown and no run is taken any more: a silence alone may be the machine's, and some
/// room may be left for a run. Says how a creation is answered then.
async fn until_full(client: &Client, board: &Board) -> Option<u16> {
    let body = json!({"input": "Go"});
    loop {
        until_still(board).await;
        let before = board.fresh();
        let post = client.post("/v1/agents/demo/runs", &body);
        let answer = tokio::time::timeout(ANSWER, post).await.ok().map(|answer| answer.status);
        if answer != Some(202) && board.fresh() == before {
            return answer;
        }
    }
}

/// Resolves when nothing new has been seen for a while: nothing is shown that cannot be written.
async fn until_still(board: &Board) {
    let mut seen = board.fresh();
    while tokio::time::timeout(STILL, board.until_fresh(seen + 1)).await.is_ok() {
        seen = board.fresh();
    }
}
