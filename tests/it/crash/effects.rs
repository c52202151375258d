//! P27: a server that is killed while its tools are at work. Calls that may be repeated are, under the
//! same key; a `once` call is made once, whoever has to say then what became of it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::readers::Board;
use super::{create, judge};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply, Request};
use crate::support::on_both_databases;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::{Server, Setup};

on_both_databases! {
    a_call_is_repeated_after_a_kill_only_if_its_effect_allows;
}

const OPEN: &str = "egress: { allow: [127.0.0.1] }\n";
/// By then a node that was stopped has found out and handed in what it has, if it ever does.
const HANDED_IN: Duration = Duration::from_secs(60);
/// Runs of a node that is stopped.
const ZOMBIE_RUNS: usize = 10;
const EFFECTS: [&str; 3] = ["read", "idempotent", "once"];

async fn a_call_is_repeated_after_a_kill_only_if_its_effect_allows(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P27", "kill -9 on the request and on the response", database);
    let mut random = Random::new();
    let tools = ModelServer::start().await;
    // A path says how long the answer takes; 0: for ever, the first time.
    let seen = Mutex::new(HashSet::new());
    tools.answer_with(move |request| {
        let is_first = seen.lock().expect("no panic").insert(request.path.clone());
        let millis: u64 = request.path.rsplit('/').next().expect("a word").parse().expect("millis");
        if millis == 0 && is_first {
            return Reply::Hang;
        }
        let wait = Piece::Wait(Duration::from_millis(millis));
        let answer = Piece::Bytes(b"{\"done\": true}".to_vec());
        Reply::Stream { headers: Vec::new(), pieces: vec![wait, answer], end: End::Clean }
    });
    let setup = Setup::new(url, OPEN).on_a_port_that_stays();
    let mut server = setup.start().await;
    let mut counts = BTreeMap::<String, usize>::new();
    let kills = pick(6, 60);
    for kill in 0..kills {
        // On the request: nothing comes back. On the response: somewhere around it.
        let (moment, millis) =
            if kill % 2 == 0 { ("request", 0) } else { ("response", 1 + random.below(6)) };
        let asked = tools.requests().len();
        let mut runs = Vec::new();
        for effect in EFFECTS {
            let agent_id = format!("{effect}-{kill}");
            let path = format!("/{agent_id}/{millis}");
            let agent = agent(&agent_id, effect, &format!("{}{path}", tools.origin()));
            server.client.post("/v1/agents", &agent).await.expect(201);
            runs.push((effect, path, create(&server.client, &agent_id).await));
        }
        tools.wait_requests(asked + EFFECTS.len()).await;
        if millis > 0 {
            // Around the time at which the answers arrive and are written down.
            tokio::time::sleep(Duration::from_millis(random.below(millis + 4))).await;
        }
        server.kill();
        server = setup.start().await;
        for (effect, path, run_id) in runs {
            let ends = judge_one(&server, &run_id, (effect, &path), &tools, &report).await;
            report.fault(ends.contains("again") || ends == "unknown");
            *counts.entry(format!("{effect} {moment}: {ends}")).or_default() += 1;
        }
    }
    for (what, count) in counts {
        report.note(format!("{what} {count}"));
    }
    // All that were killed on the request were in the middle of it.
    report.finish((kills / 2 * EFFECTS.len()) as u64);
}

/// What a buried node's tool answered is handed in, and the run goes on: nobody has to look after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_once_call_of_a_node_that_was_stopped_is_made_once_and_its_answer_is_not_lost() {
    let url = postgres::empty_database().await;
    let report = Report::new("P10", "SIGSTOP during once calls", "Postgres");
    let tools = ModelServer::start().await;
    let gate = Gate::new();
    let held = gate.clone();
    tools.answer_with(move |_| {
        let pieces = vec![Piece::Gate(held.clone()), Piece::Bytes(b"{\"paid\": true}".to_vec())];
        Reply::Stream { headers: Vec::new(), pieces, end: End::Clean }
    });
    // They are kept: a run that goes on in a process of its own reads its server's configuration.
    let (setup, another) = (Setup::new(url.clone(), OPEN), Setup::new(url, OPEN));
    let (owner, other) = (setup.start().await, another.start().await);
    let mut agent = agent("pays", "once", &format!("{}/pay", tools.origin()));
    agent["tools"][0]["timeout_seconds"] = json!(600);
    owner.client.post("/v1/agents", &agent).await.expect(201);
    let mut runs = Vec::new();
    for _ in 0..ZOMBIE_RUNS {
        runs.push(create(&owner.client, "pays").await);
    }
    tools.wait_requests(ZOMBIE_RUNS).await;
    owner.signal("STOP");
    for run_id in &runs {
        let run = other.client.wait(run_id).await;
        let asks = run["required_actions"][0]["type"] == "tool_outcome";
        report.fault(asks);
        report.check(run["status"] == "requires_action" && asks, || format!("{run}"));
    }
    gate.open();
    owner.signal("CONT");
    for run_id in &runs {
        // It waits until somebody says what happened, and the answer says it.
        let ended = async {
            while other.client.wait(run_id).await["completed_at"].is_null() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(HANDED_IN, ended).await.is_err() {
            report.check(false, || format!("{run_id} has lost what its tool answered"));
            continue;
        }
        let log = other.client.events(run_id, 0).await.rest().await;
        let paid = log.iter().any(|f| f.event == "tool_call.completed" && f.data.contains("paid"));
        report.check(paid, || format!("{run_id} shows another answer"));
        let run =
            judge::one(&other.client, run_id, &Board::default().seen(run_id), &report).await.run;
        report.check(run["status"] == "completed", || format!("{run}"));
    }
    let requests = tools.requests().len();
    report
        .check(requests == ZOMBIE_RUNS, || format!("{requests} requests for {ZOMBIE_RUNS} calls"));
    report.note(format!("{requests} requests for {ZOMBIE_RUNS} calls"));
    report.finish(ZOMBIE_RUNS as u64);
}

/// One call, one tool, and the end.
fn agent(agent_id: &str, effect: &str, url: &str) -> Value {
    json!({
        "agent_id": agent_id,
        "model": "builtin/script",
        "tools": [{"type": "http", "name": "tool", "effect": effect, "url": url}],
        "script": [{"tool_calls": [{"tool": "tool"}]}, {"text": "Done."}],
    })
}

/// Waits for the run to end or to park, and judges it. Says how its call ended.
async fn judge_one(
    server: &Server,
    run_id: &str,
    (effect, path): (&str, &str),
    tools: &ModelServer,
    report: &Report,
) -> String {
    let client = &server.client;
    let run = client.wait(run_id).await;
    let requests: Vec<Request> =
        tools.requests().into_iter().filter(|request| request.path == path).collect();
    let keys: Vec<&str> = requests.iter().map(|r| r.headers["idempotency-key"].as_str()).collect();
    report.check(keys.iter().all(|key| *key == keys[0] && key.starts_with(run_id)), || {
        format!("{path} was called under the keys {keys:?}")
    });
    let ends = match (run["status"].as_str(), requests.len()) {
        (Some("completed"), 1) => "completed",
        (Some("completed"), 2) => "completed again",
        (Some("requires_action"), 1) => "unknown",
        _ => "wrong",
    };
    let is_allowed = match ends {
        "completed" => true,
        "completed again" => effect != "once",
        "unknown" => effect == "once" && run["required_actions"][0]["type"] == "tool_outcome",
        _ => false,
    };
    report.check(is_allowed, || format!("{effect}: {} requests, and {run}", requests.len()));
    if ends == "unknown" {
        let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
        let why = &steps["data"][0]["tool_calls"][0]["error"];
        let says = why.as_str().is_some_and(|why| why.starts_with("The server that made the call"));
        report.check(says, || format!("{run_id} does not say why nobody knows: {steps}"));
        client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    }
    judge::one(client, run_id, &Board::default().seen(run_id), report).await;
    ends.to_owned()
}
