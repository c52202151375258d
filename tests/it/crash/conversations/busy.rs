//! 64 callers at once on one conversation, through two nodes.

use futures_util::future::join_all;
use serde_json::json;

use super::super::judge;
use super::listener::{Heard, Listener};
use super::{Verdict, ask, asker, converse, is_free, look, run_of, tell, until, verdict};
use crate::crash::walker;
use crate::support::client::{Answer, Client};
use crate::support::postgres;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::{Server, Setup};

/// Callers who ask at the same time.
const CALLERS: usize = 64;

async fn two_nodes() -> [Server; 2] {
    let url = postgres::empty_database().await;
    let first = Setup::new(&url, "").start().await;
    [first, Setup::new(&url, "").start().await]
}

/// All ask at once, every other one another node.
async fn at_once(nodes: &[Server; 2], id: &str, on_busy: &str) -> Vec<Answer> {
    let asked = (0..CALLERS).map(|n| {
        let client = nodes[n % 2].client.clone();
        async move { ask(&client, id, &format!("question {n}"), on_busy).await }
    });
    join_all(asked).await
}

/// Closes the conversation, and holds what its stream told against what is there.
async fn close(client: &Client, id: &str, listener: Listener, report: &Report) -> (Verdict, Heard) {
    let verdict = verdict(client, id, report).await;
    let nothing = json!({});
    client.post(&format!("/v1/conversations/{id}/close"), &nothing).await.expect(200);
    let heard = listener.finish(report).await;
    for run_id in verdict.runs.keys() {
        let seen = heard.runs.get(run_id);
        report.check(seen.is_some(), || format!("the stream of {id} never told of {run_id}"));
        judge::one(client, run_id, &seen.cloned().unwrap_or_default(), report).await;
    }
    (verdict, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_turns_at_once_one_is_taken_and_63_are_refused() {
    let report = Report::new("C1", "64 turns at once, reject, 2 nodes", "Postgres");
    let nodes = two_nodes().await;
    let client = &nodes[0].client;
    client.post("/v1/agents", &asker(0)).await.expect(201);
    let id = converse(client, "asker").await;
    let listener = Listener::begin(vec![client.clone()], &id, &mut Random::new()).await;
    let (mut taken, mut refused) = (0, 0);
    let rounds = pick(8, 100);
    for _ in 0..rounds {
        let answers = at_once(&nodes, &id, "reject").await;
        let won: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 202).collect();
        report.check(won.len() == 1, || format!("{} of 64 were taken", won.len()));
        for lost in answers.iter().filter(|answer| answer.status != 202) {
            let says = lost.body["error"] == "conversation_busy"
                && lost.body["details"]["active_run_id"] == won[0].body["run_id"];
            report.check(lost.status == 409 && says, || format!("{} {}", lost.status, lost.body));
        }
        taken += won.len();
        refused += answers.len() - won.len();
        tell(client, &id).await;
        report.fault(until(client, &id, super::PATIENCE, is_free).await);
    }
    let (verdict, _) = close(client, &id, listener, &report).await;
    report.check(verdict.count("completed") == rounds, || format!("{:?}", verdict.runs.values()));
    report.note(format!("{taken} taken, {refused} refused"));
    report.finish(rounds as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_turns_at_once_that_may_wait_all_are_taken_one_after_the_other() {
    let report = Report::new("C1", "64 turns at once, enqueue, 2 nodes", "Postgres");
    let nodes = two_nodes().await;
    let client = &nodes[0].client;
    client.post("/v1/agents", &walker(2, 2, 1)).await.expect(201);
    client.post("/v1/agents", &asker(0)).await.expect(201);
    let mut random = Random::new();
    for _ in 0..pick(2, 20) {
        let id = converse(client, "walker").await;
        let listener = Listener::begin(vec![client.clone()], &id, &mut random).await;
        let taken: Vec<String> =
            at_once(&nodes, &id, "enqueue").await.into_iter().map(run_of).collect();
        let (verdict, heard) = close(client, &id, listener, &report).await;
        let all = verdict.runs.len() == taken.len() && verdict.count("completed") == CALLERS;
        report.check(all, || format!("{:?}", verdict.runs.values()));
        let ran = verdict.in_turn();
        report.check(heard.order == ran, || format!("ran {ran:?}, told {:?}", heard.order));
        report.fault(all);
    }

    // Whoever has its 202 before the next asks comes before the next, whichever node took them.
    let id = converse(client, "asker").await;
    let listener = Listener::begin(vec![client.clone()], &id, &mut random).await;
    let mut order = Vec::new();
    for n in 0..CALLERS / 4 {
        order.push(run_of(ask(&nodes[n % 2].client, &id, "Next", "enqueue").await));
    }
    report
        .check(look(client, &id).await["queued_runs"] == order.len() - 1, || "a count".to_owned());
    for _ in &order {
        tell(client, &id).await;
    }
    let (verdict, heard) = close(client, &id, listener, &report).await;
    report.check(verdict.in_turn() == order, || format!("{:?} are {order:?}", verdict.in_turn()));
    report.check(heard.order == order, || format!("{:?} are {order:?}", heard.order));
    report.finish(pick(2, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_turns_at_once_that_interrupt_each_other_the_last_one_is_left() {
    let report = Report::new("C1", "64 turns at once, interrupt, 2 nodes", "Postgres");
    let nodes = two_nodes().await;
    let client = &nodes[0].client;
    client.post("/v1/agents", &asker(30)).await.expect(201);
    let mut random = Random::new();
    let (mut began, mut cancelled) = (0, 0);
    let rounds = pick(3, 30);
    for _ in 0..rounds {
        let id = converse(client, "asker").await;
        let listener = Listener::begin(vec![client.clone()], &id, &mut random).await;
        let taken: Vec<String> =
            at_once(&nodes, &id, "interrupt").await.into_iter().map(run_of).collect();
        let one_is_left = |conversation: &serde_json::Value| {
            conversation["queued_runs"] == 0 && conversation["active_run_id"].is_string()
        };
        let left = until(client, &id, super::PATIENCE, one_is_left).await;
        report.check(left, || "the others still wait".to_owned());
        tell(client, &id).await;
        let (verdict, _) = close(client, &id, listener, &report).await;
        let all = verdict.runs.len() == taken.len();
        report.check(all, || format!("{} of {} are there", verdict.runs.len(), taken.len()));
        let ends = (verdict.count("completed"), verdict.count("cancelled"));
        report.check(ends == (1, CALLERS - 1), || format!("{ends:?} completed and cancelled"));
        let last = verdict.in_turn().last().map(|run_id| &verdict.runs[*run_id]["status"]);
        report.check(last.is_some_and(|status| status == "completed"), || format!("{last:?}"));
        began += verdict.in_turn().len();
        cancelled += ends.1;
        report.fault(verdict.in_turn().len() > 1);
    }
    report.note(format!("{began} began, {cancelled} cancelled"));
    report.finish(rounds);
}
