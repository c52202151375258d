//! P3: a commit whose answer is lost is resolved, never guessed and never blindly repeated.
//!
//! The proxy lets a statement be carried out to its end and then drops the connection instead of
//! answering; or it drops the statement, which then never happened. Neither may be told from the
//! other by what readers and callers see: nothing doubled, nothing missing.

use std::collections::BTreeMap;

use serde_json::json;

use super::readers::Fleet;
use super::{judge, walker};
use crate::support::client::Client;
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::proxy::{Loss, Proxy};
use crate::support::random::Random;
use crate::support::server::Setup;

/// Runs that are under way while answers are lost.
const LIVE: usize = 4;
/// Readers of each.
const READERS: usize = 4;
/// What each statement that writes has in its text, and no other has: a flush, which commits by
/// itself; one that creates under a key; and the end of a guest's transaction.
const FLUSH: &str = "with numbered as";
const KEYED_CREATE: &str = "insert into idempotency";
const COMMIT: &str = "commit";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_doubled_or_missing_when_the_answer_to_a_commit_is_lost() {
    let report = Report::new("P3", "the answer to a flush, a commit is cut", "Postgres");
    let mut random = Random::new();
    let proxy = Proxy::before(&postgres::empty_database().await).await;
    let setup = Setup::new(&proxy.url, "");
    let server = setup.start().await;
    let client = &server.client;
    client.post("/v1/agents", &walker(6, 10, 10)).await.expect(201);
    let mut fleet = Fleet::new(vec![client.clone()], &mut random);
    let board = fleet.board.clone();
    let mut live: Vec<String> = Vec::new();
    // The run of each key, as the answer said that at last came.
    let mut promised: BTreeMap<String, String> = BTreeMap::new();
    let cuts = pick(50, 500);
    for cut in 0..cuts {
        live.retain(|run_id| !board.seen(run_id).ended);
        while live.len() < LIVE {
            let run_id = super::create(client, "walker").await;
            fleet.follow(&run_id, READERS);
            live.push(run_id);
        }
        let loss = *random.pick(&[Loss::Answer, Loss::Answer, Loss::Statement]);
        let lost = proxy.lost();
        match cut % 3 {
            // Runs write all the time: the next flush is the one.
            0 => {
                proxy.lose(FLUSH, loss);
                let all_ended = live.iter().map(|run_id| board.until_ended(run_id));
                tokio::select! {
                    () = proxy.until_lost(lost + 1) => {}
                    // Nobody writes any more: this one does not count.
                    _ = futures_util::future::join_all(all_ended) => {}
                }
            }
            1 => {
                proxy.lose(KEYED_CREATE, loss);
                let key = format!("key-{cut}");
                let run_id = create_until_answered(client, &key).await;
                fleet.follow(&run_id, READERS);
                promised.insert(key, run_id);
            }
            _ => {
                let run_id = live[0].clone();
                proxy.lose(COMMIT, loss);
                let status = cancel_until_answered(client, &run_id).await;
                board.until_ended(&run_id).await;
                report.check(
                    ["cancelling", "cancelled", "completed"].contains(&status.as_str()),
                    || format!("a cancel of {run_id} was answered {status}"),
                );
            }
        }
        report.fault(proxy.lost() > lost);
    }
    let told = fleet.finish().await;
    let runs = judge::all(client, &told, &report).await;
    for (run_id, run) in &runs {
        let ended_well = matches!(run["status"].as_str(), Some("completed" | "cancelled"));
        report.check(ended_well, || format!("{run_id} is {run}"));
    }
    // One run a key: whoever asks again gets the same, and the list has no other.
    for (key, run_id) in &promised {
        let again = create_until_answered(client, key).await;
        report.check(again == *run_id, || format!("{key} was {run_id} and is {again}"));
    }
    let listed = super::count_runs(client).await;
    report.check(listed == told.runs.len(), || {
        format!("{listed} runs are listed, {} were created", told.runs.len())
    });
    report.note(format!("{} runs, {} keyed", told.runs.len(), promised.len()));
    report.finish(cuts * 9 / 10);
}

/// Creates a run under this key, again and again until there is an answer: what a client does that
/// wants exactly one run.
async fn create_until_answered(client: &Client, key: &str) -> String {
    loop {
        let body = json!({"input": "Go", "idempotency_key": key});
        let answer = client.post("/v1/agents/walker/runs", &body).await;
        match answer.status {
            200 | 202 => return answer.body["run_id"].as_str().expect("run_id").to_owned(),
            503 => {}
            status => panic!("{status}: {}", answer.body),
        }
    }
}

async fn cancel_until_answered(client: &Client, run_id: &str) -> String {
    loop {
        let answer = client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
        match answer.status {
            200 | 202 => return answer.body["status"].as_str().expect("status").to_owned(),
            503 => {}
            status => panic!("{status}: {}", answer.body),
        }
    }
}
