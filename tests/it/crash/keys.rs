//! P17: one key, one run. Whoever asks under one key, at the same time, on several nodes, in whatever
//! way, and however often a node is killed meanwhile, gets the same run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::readers::Fleet;
use super::{count_runs, judge, walker};
use crate::support::client::{Client, Stream};
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::Setup;

/// Callers who use one key at the same time.
const CALLERS: usize = 64;
/// Before a caller asks again whose connection broke, or who got a 503.
const RETRY: Duration = Duration::from_millis(50);

/// How a caller wants the answer.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Poll,
    Stream,
    Wait,
}

const MODES: [Mode; 3] = [Mode::Poll, Mode::Stream, Mode::Wait];

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_one_run_whoever_asks_and_whoever_is_killed() {
    let report = Report::new("P17", "64 callers a key over 2 nodes, with kills", "Postgres");
    let mut random = Random::new();
    let url = postgres::empty_database().await;
    let setups = [0, 1].map(|_| Setup::new(&url, "").on_a_port_that_stays());
    let mut servers = [Some(setups[0].start().await), Some(setups[1].start().await)];
    let clients: Vec<Client> = setups.iter().map(Setup::client).collect();
    clients[0].post("/v1/agents", &walker(2, 5, 5)).await.expect(201);
    let mut fleet = Fleet::new(clients.clone(), &mut random);
    let rounds = pick(8, 60);
    for round in 0..rounds {
        let key = format!("key-{round}");
        let answered = Arc::new(watch::Sender::new(0));
        let mut callers = JoinSet::new();
        for n in 0..CALLERS {
            let (key, answered) = (key.clone(), answered.clone());
            let mut nodes = clients.clone();
            nodes.rotate_left(n % 2);
            callers.spawn(async move {
                let run_id = create(&nodes, &key, MODES[n / 2 % 3]).await;
                answered.send_modify(|count| *count += 1);
                run_id
            });
        }
        if round % 2 == 0 {
            // One of the nodes is killed when somebody has an answer, and started again.
            let victim = random.below(2) as usize;
            let k = 1 + random.below(CALLERS as u64 / 2) as usize;
            answered.subscribe().wait_for(|count| *count >= k).await.expect("callers");
            servers[victim].take().expect("a server").kill();
            report.fault(*answered.borrow() < CALLERS);
            servers[victim] = Some(setups[victim].start().await);
        }
        let runs: BTreeSet<String> = callers.join_all().await.into_iter().collect();
        report.check(runs.len() == 1, || format!("{key} made {runs:?}"));
        runs.iter().for_each(|run_id| fleet.follow(run_id, 2));
    }
    let told = fleet.finish().await;
    for (run_id, run) in judge::all(&clients[0], &told, &report).await {
        report.check(run["status"] == "completed", || format!("{run_id} is {run}"));
    }
    let listed = count_runs(&clients[1]).await;
    report.check(listed == rounds, || format!("{listed} runs for {rounds} keys"));
    report.note(format!("{rounds} keys"));
    drop(servers);
    report.finish(rounds as u64 / 4);
}

/// Asks, again and again, one node and then the other, until there is an answer; gives the run's id.
async fn create(nodes: &[Client], key: &str, mode: Mode) -> String {
    for node in nodes.iter().cycle() {
        let body = json!({"input": "Go"});
        let request = match mode {
            Mode::Poll => node.request(Method::POST, "/v1/agents/walker/runs"),
            Mode::Stream => node
                .request(Method::POST, "/v1/agents/walker/runs")
                .header("accept", "text/event-stream"),
            Mode::Wait => node.request(Method::POST, "/v1/agents/walker/runs?wait=1"),
        };
        let sent = request.header("idempotency-key", key).json(&body).send().await;
        if let Ok(answer) = sent
            && let Some(run_id) = run_id_of(answer).await
        {
            return run_id;
        }
        tokio::time::sleep(RETRY).await;
    }
    unreachable!("it asks for ever")
}

/// The run that the answer is about; `None` for a 503 or an answer that breaks off.
async fn run_id_of(answer: Response) -> Option<String> {
    let status = answer.status().as_u16();
    if status == 503 {
        return None;
    }
    assert!([200, 202].contains(&status), "{status}: {:?}", answer.text().await);
    let run: Value = if answer.headers()["content-type"] == "text/event-stream" {
        Stream::new(answer).next().await?.json()
    } else {
        answer.json().await.ok()?
    };
    Some(run["run_id"].as_str().expect("run_id").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_shared_by_four_nodes_lock_nobody_out() {
    let report = Report::new("P46", "4 nodes, shared keys, 0 deadlocks", "Postgres");
    let url = postgres::empty_database().await;
    let setups = [0; 4].map(|_| Setup::new(&url, "").on_a_port_that_stays());
    let mut servers = Vec::new();
    for setup in &setups {
        servers.push(setup.start().await);
    }
    let clients: Vec<Client> = setups.iter().map(Setup::client).collect();
    clients[0].post("/v1/agents", &walker(1, 1, 0)).await.expect(201);
    // A prime, so that each node goes through all of them.
    let (rounds, keys) = (pick(20, 400), 41);
    for round in 0..rounds {
        let mut callers = JoinSet::new();
        for n in 0..keys * 4 {
            let mut nodes = clients.clone();
            nodes.rotate_left(n % 4);
            // Each node gets the same keys in an order of its own.
            let key = format!("{round}-{}", (n / 4 * (2 * (n % 4) + 1)) % keys);
            callers.spawn(async move { (key.clone(), create(&nodes, &key, Mode::Poll).await) });
        }
        let answers: BTreeSet<(String, String)> = callers.join_all().await.into_iter().collect();
        let asked: BTreeSet<&String> = answers.iter().map(|(key, _)| key).collect();
        report.check(answers.len() == asked.len(), || format!("a key made two runs: {answers:?}"));
        report.fault(true);
    }
    let mut admin = postgres::connect(&url).await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let row = sqlx::query(deadlocks).fetch_one(&mut admin).await.expect("a count");
    let deadlocks: i64 = row.get(0);
    report.check(deadlocks == 0, || format!("{deadlocks} deadlocks"));
    report.finish(rounds);
}
