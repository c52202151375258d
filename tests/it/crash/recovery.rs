//! P9: a node that dies is no end. With another node there, its runs go on within 20 s; alone and
//! started again, within 3 s of being ready.

use std::time::Duration;

use super::readers::{self, Fleet};
use super::talker::Talker;
use super::{ALONE, TAKEN_OVER, judge, moved_within, talking};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::Setup;

/// Runs that are under way at every kill.
const RUNS: usize = 50;

on_both_databases! {
    every_run_goes_on_within_3_s_when_the_only_node_is_started_again;
}

async fn every_run_goes_on_within_3_s_when_the_only_node_is_started_again(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P9", "one node, kill -9 and restart", database);
    let rounds = pick(1, 10);
    let mut slowest = Duration::ZERO;
    // New runs each time: one that dies twice within a step gets a process of its own, four at a time.
    for _ in 0..rounds {
        let talker = Talker::start(30, 4, Duration::from_millis(50)).await;
        let setup = Setup::new(&url, talker.yaml()).on_a_port_that_stays();
        let server = setup.start().await;
        let mut fleet = Fleet::new(vec![server.client.clone()], &mut Random::new());
        let runs = talking(&server.client, &mut fleet, RUNS).await;
        server.kill();
        let killed_at = readers::now();
        runs.iter().for_each(|run_id| report.fault(!fleet.board.seen(run_id).ended));
        let server = setup.start().await;
        server.ready().await;
        let took = moved_within(ALONE, &fleet.board, &runs, &killed_at, &report).await;
        slowest = slowest.max(took);
        over(&server.client, fleet, talker, &report).await;
        assert!(server.terminate().await.success());
    }
    report.note(format!("slowest {} ms", slowest.as_millis()));
    report.finish((RUNS * rounds) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_run_goes_on_within_20_s_on_another_node_when_its_owner_is_killed() {
    let report = Report::new("P9", "two nodes, kill -9 of the owner", "Postgres");
    let rounds = pick(1, 6);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let talker = Talker::start(30, 4, Duration::from_millis(50)).await;
        let url = postgres::empty_database().await;
        let setups = [0, 1].map(|_| Setup::new(&url, talker.yaml()).on_a_port_that_stays());
        let (owner, other) = (setups[0].start().await, setups[1].start().await);
        let nodes = setups.iter().map(Setup::client).collect();
        let mut fleet = Fleet::new(nodes, &mut Random::new());
        // Born claimed: the node that creates a run while it has a free slot drives it.
        let runs = talking(&owner.client, &mut fleet, RUNS).await;
        owner.kill();
        let killed_at = readers::now();
        runs.iter().for_each(|run_id| report.fault(!fleet.board.seen(run_id).ended));
        let took = moved_within(TAKEN_OVER, &fleet.board, &runs, &killed_at, &report).await;
        slowest = slowest.max(took);
        over(&other.client, fleet, talker, &report).await;
    }
    report.note(format!("slowest {} ms", slowest.as_millis()));
    report.finish((RUNS * rounds) as u64);
}

async fn over(client: &Client, fleet: Fleet, talker: Talker, report: &Report) {
    talker.enough();
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(client, &told, report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
}
