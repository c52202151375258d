//! P1: durable before visible, and P2: gapless and immutable, through `kill -9` of the server and, on
//! Postgres, of the database in the same instant.

use super::readers::{self, Fleet};
use super::{ALONE, create, judge, moved_within, walker};
use crate::support::postgres::Cluster;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::{Folder, Setup};

/// Runs that are under way at every kill.
const LIVE: usize = 3;
/// Readers of each.
const READERS: usize = 20;
/// A kill waits for at most so many new events.
const K: u64 = 100;

/// Kills come quickly here: a run that met two of them within one step goes on in a process of its own,
/// which must start first, beside three others.
const CHILD: std::time::Duration = std::time::Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_anybody_saw_is_lost_when_the_server_is_killed_on_sqlite() {
    let folder = Folder::new();
    let url = format!("sqlite://{}", folder.path().join("stepwell.db").display());
    kill_again_and_again(url, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_anybody_saw_is_lost_when_the_server_is_killed_on_postgres() {
    let cluster = Cluster::start(&[]);
    kill_again_and_again(cluster.empty_database().await, Some(cluster)).await;
}

async fn kill_again_and_again(url: String, cluster: Option<Cluster>) {
    let database = if cluster.is_some() { "Postgres" } else { "SQLite" };
    let what = "kill -9 at the k-th event and on the 202";
    let report = Report::new("P1 P2", what, database);
    let mut random = Random::new();
    let setup = Setup::new(url, "").on_a_port_that_stays();
    let mut server = setup.start().await;
    server.client.post("/v1/agents", &walker(8, 10, 20)).await.expect(201);
    let mut fleet = Fleet::new(vec![server.client.clone()], &mut random);
    let board = fleet.board.clone();
    let mut live: Vec<String> = Vec::new();
    let mut database_kills = 0;
    let kills = pick(20, 350);
    for _ in 0..kills {
        live.retain(|run_id| !board.seen(run_id).ended);
        while live.len() < LIVE {
            let run_id = create(&server.client, "walker").await;
            fleet.follow(&run_id, READERS);
            live.push(run_id);
        }
        // Nobody has read of it yet: all that there is of it is the 202.
        let mut promised = None;
        if random.one_in(4) {
            promised = Some(create(&server.client, "walker").await);
        } else {
            let all_ended = live.iter().map(|run_id| board.until_ended(run_id));
            tokio::select! {
                () = board.until_fresh(board.fresh() + 1 + random.below(K)) => {}
                // The k-th event never comes: the kill hits what is left, at its end.
                _ = futures_util::future::join_all(all_ended) => {}
            }
        }
        server.kill();
        let with_database = cluster.as_ref().filter(|_| random.one_in(2));
        if let Some(cluster) = with_database {
            cluster.kill();
            database_kills += 1;
        }
        let killed_at = readers::now();
        report.fault(live.iter().any(|run_id| !board.seen(run_id).ended));
        if let Some(run_id) = promised {
            fleet.follow(&run_id, READERS);
            live.push(run_id);
        }
        if let Some(cluster) = with_database {
            cluster.start_again();
        }
        server = setup.start().await;
        server.ready().await;
        moved_within(ALONE + CHILD, &board, &live, &killed_at, &report).await;
    }
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&server.client, &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    report.note(format!("{} runs", told.runs.len()));
    report.note(format!("{} resumes", told.resumes));
    if cluster.is_some() {
        report.note(format!("{database_kills} kills of Postgres too"));
    }
    let resumes = pick(250, 5_000);
    report.check(told.resumes >= resumes, || format!("only {} resumes", told.resumes));
    report.check(server.terminate().await.success(), || "it did not stop well".to_owned());
    // A kill may come when all runs under way have just ended.
    report.finish(kills * 3 / 4);
}
