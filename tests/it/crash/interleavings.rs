//! P46: the nasty interleavings, as far as they are not with the promise that they try: a node stopped
//! inside of a flush is with the zombies, cancels between two appends with the cancels, shared keys
//! with the keys.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use super::readers::{self, Fleet};
use super::talker::Talker;
use super::{ALONE, count_runs, create, judge, moved_within, talking, walker};
use crate::support::on_both_databases;
use crate::support::postgres;
use crate::support::profile::{Report, is_full, pick};
use crate::support::proxy::{Loss, Proxy};
use crate::support::random::Random;
use crate::support::server::{Folder, Setup};

on_both_databases! {
    a_nul_in_metadata_fails_no_neighbour;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_or_a_creation_whose_answer_is_lost_is_neither_lost_nor_doubled() {
    let report = Report::new("P46", "the answers to claims and creations are cut", "Postgres");
    let proxy = Proxy::before(&postgres::empty_database().await).await;
    // Few slots, so that runs wait in the queue and are claimed as others end.
    let yaml = "engine: { max_concurrent_runs: 3 }\n";
    let server = Setup::new(&proxy.url, yaml).start().await;
    let client = &server.client;
    client.post("/v1/agents", &walker(2, 5, 10)).await.expect(201);
    let mut fleet = Fleet::new(vec![client.clone()], &mut Random::new());
    let cuts = pick(10, 100);
    let mut created = 0;
    for n in 0..cuts {
        for _ in 0..6 {
            fleet.follow(&create(client, "walker").await, 1);
            created += 1;
        }
        let lost = proxy.lost();
        proxy.lose("with due as", if n % 3 == 0 { Loss::Statement } else { Loss::Answer });
        proxy.until_lost(lost + 1).await;
        report.fault(true);
        proxy.lose("insert into run_bodies", Loss::Answer);
        fleet.follow(&create(client, "walker").await, 1);
        created += 1;
        report.fault(proxy.lost() == lost + 2);
    }
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    let listed = count_runs(client).await;
    report.check(listed == created, || format!("{listed} runs, {created} were created"));
    report.note(format!("{created} runs"));
    report.finish(cuts * 2);
}

async fn a_nul_in_metadata_fails_no_neighbour(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P46", "NUL in metadata beside 50 runs", database);
    let talker = Talker::start(30, 4, Duration::from_millis(50)).await;
    let server = Setup::new(url, talker.yaml()).start().await;
    let client = &server.client;
    let mut fleet = Fleet::new(vec![client.clone()], &mut Random::new());
    talking(client, &mut fleet, 50).await;
    for n in 0..20 {
        let body = json!({
            "input": "Go \u{0}",
            "metadata": {"k": "\u{0}", format!("\u{0}{n}"): "v"},
            "end_user_id": "\u{0}",
        });
        let answer = client.post("/v1/agents/demo/runs", &body).await;
        report.fault(true);
        report.check(answer.status < 500, || format!("{} {}", answer.status, answer.body));
        if let Some(run_id) = answer.body["run_id"].as_str() {
            fleet.follow(run_id, 1);
        }
    }
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    report.finish(20);
}

/// Megabytes of write-ahead log, far beyond what is left of it when nobody is in the way, and how long a slow
/// machine may take to write them.
const GROWN: u64 = 8;
const GROWS: Duration = Duration::from_secs(120);

/// How long somebody else's snapshot or read transaction stays open.
fn held_open() -> Duration {
    Duration::from_secs(pick(30, 600))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_stays_open_slows_nothing_down() {
    let report = Report::new("P46", "a long open snapshot under load", "Postgres");
    let url = postgres::empty_database().await;
    let talker = Talker::start(40, 4, Duration::from_millis(20)).await;
    let server = Setup::new(&url, talker.yaml()).start().await;
    let mut fleet = Fleet::new(vec![server.client.clone()], &mut Random::new());
    let board = fleet.board.clone();
    let runs = talking(&server.client, &mut fleet, 20).await;
    let mut forgetful = postgres::connect(&url).await;
    let open = "begin isolation level repeatable read; select count(*) from runs";
    forgetful.execute(open).await.expect("a snapshot");
    // The steps of each third of the time. A table that nobody may clean up gets slower and slower, and each
    // step waits for several commits; how many words go into one commit is the machine's affair.
    let mut thirds = Vec::new();
    for _ in 0..3 {
        let before = board.count("step.completed");
        tokio::time::sleep(held_open() / 3).await;
        thirds.push(board.count("step.completed") - before);
        report.fault(true);
    }
    // A moment in which the machine stands still is a large part of CI's short thirds.
    let slow = if is_full() { thirds[2] * 4 < thirds[0] * 3 } else { thirds[2] * 2 < thirds[0] };
    report.check(!slow, || format!("steps in each third: {thirds:?}"));
    let last = readers::now();
    moved_within(ALONE, &board, &runs, &last, &report).await;
    forgetful.execute("rollback").await.expect("its snapshot was open all the time");
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&server.client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    report.note(format!("steps in each third: {thirds:?}"));
    report.finish(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_reader_of_the_file_stops_nobody() {
    let report = Report::new("P46", "a forgotten reader", "SQLite");
    let folder = Folder::new();
    let file = folder.path().join("stepwell.db");
    // 2 KB a word: a megabyte a second.
    let talker = Talker::start(100, 2_000, Duration::from_millis(40)).await;
    let url = format!("sqlite://{}", file.display());
    let server = Setup::new(url, talker.yaml()).start().await;
    let mut fleet = Fleet::new(vec![server.client.clone()], &mut Random::new());
    let board = fleet.board.clone();
    let runs = talking(&server.client, &mut fleet, 20).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).read_only(true);
    let mut forgetful = options.connect().await.expect("a connection");
    forgetful.execute("begin; select count(*) from runs").await.expect("a read");
    tokio::time::sleep(held_open() / 3).await;
    // Its snapshot keeps the log from being cut back: it bit if the log has grown far beyond that.
    let grows = async {
        while wal_megabytes(&file) < GROWN {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    report.fault(tokio::time::timeout(GROWS, grows).await.is_ok());
    let grown = wal_megabytes(&file);
    let last = readers::now();
    let slowest = moved_within(ALONE, &board, &runs, &last, &report).await;
    forgetful.execute("rollback").await.expect("its read was open all the time");
    forgetful.close().await.expect("a clean end");
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&server.client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    report.note(format!("log of {grown} MB, slowest event {} ms", slowest.as_millis()));
    report.finish(1);
}

fn wal_megabytes(file: &Path) -> u64 {
    let wal = format!("{}-wal", file.display());
    std::fs::metadata(wal).map_or(0, |wal| wal.len() / 1_000_000)
}
