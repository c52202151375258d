//! What may happen in the same moment, on two nodes, swept against each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{PATIENCE, ask, converse, is_free, look, run_of, until, verdict};
use crate::support::client::Client;
use crate::support::on_both_databases;
use crate::support::profile::{Report, pick};
use crate::support::server::{Server, Setup};

/// Cases that run at the same time.
const ABREAST: u64 = 8;
/// Mixes the moments, so that no busy moment of the machine meets one end of the sweep only.
const MIXER: u64 = 61;

on_both_databases! {
    a_turn_that_is_asked_for_as_the_last_one_ends_never_waits_for_ever;
    a_cancel_around_the_end_of_a_turn_lets_exactly_one_other_begin;
    a_turn_that_is_asked_for_as_the_conversation_closes_is_taken_whole_or_not_at_all;
    a_turn_that_is_asked_for_as_the_conversation_is_deleted_is_taken_whole_or_not_at_all;
}

/// The nodes of a database: SQLite has one.
async fn nodes(url: &str) -> Vec<Server> {
    let mut nodes = vec![Setup::new(url, "").start().await];
    if !url.starts_with("sqlite") {
        nodes.push(Setup::new(url, "").start().await);
    }
    let script = json!([{"text": "a b c", "chunk_delay_ms": 10}]);
    let agent = json!({"agent_id": "quick", "model": "builtin/script", "script": script});
    nodes[0].client.post("/v1/agents", &agent).await.expect(201);
    nodes
}

const fn database(nodes: &[Server]) -> &'static str {
    if nodes.len() == 1 { "SQLite" } else { "Postgres, 2 nodes" }
}

/// A case: two users of the same conversation, on different nodes if there are, and how long after the
/// first the second one comes.
struct Case {
    a: Client,
    b: Client,
    id: String,
    after: Duration,
    /// Who comes later where either may, in every other case.
    is_b_late: bool,
}

impl Case {
    /// Plays both at once, but that one of them comes later.
    async fn at_once<A, B>(
        &self,
        a: impl Future<Output = A>,
        b: impl Future<Output = B>,
    ) -> (A, B) {
        let [a_late, b_late] = if self.is_b_late {
            [Duration::ZERO, self.after]
        } else {
            [self.after, Duration::ZERO]
        };
        let late = async |by: Duration| {
            if !by.is_zero() {
                tokio::time::sleep(by).await;
            }
        };
        join(
            async {
                late(a_late).await;
                a.await
            },
            async {
                late(b_late).await;
                b.await
            },
        )
        .await
    }
}

/// How long such a turn takes on this machine, among as many others: the slowest.
async fn usual(nodes: &[Server], turn: &Value) -> Duration {
    let turns = (0..ABREAST as usize).map(|n| async move {
        let client = &nodes[n % nodes.len()].client;
        let id = converse(client, "quick").await;
        let run_id = run_of(client.post(&format!("/v1/conversations/{id}/runs"), turn).await);
        let taken = Instant::now();
        client.wait(&run_id).await;
        taken.elapsed()
    });
    join_all(turns).await.into_iter().max().unwrap_or_default()
}

/// Plays so many cases, a few at a time, each in a conversation of its own, in which the second comes up to
/// this much later; gives what they came to.
async fn play<F, T>(
    nodes: &[Server],
    cases: u64,
    sweep: Duration,
    case: impl Fn(Case) -> F,
) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut outcomes = Vec::new();
    for first in (0..cases).step_by(ABREAST as usize) {
        let mut abreast = JoinSet::new();
        for n in first..cases.min(first + ABREAST) {
            let a = nodes[n as usize % nodes.len()].client.clone();
            let b = nodes[(n as usize + 1) % nodes.len()].client.clone();
            let id = converse(&a, "quick").await;
            let after = sweep * (n * MIXER % cases) as u32 / cases as u32;
            abreast.spawn(case(Case { a, b, id, after, is_b_late: n / 2 % 2 == 0 }));
        }
        outcomes.extend(abreast.join_all().await);
    }
    outcomes
}

async fn a_turn_that_is_asked_for_as_the_last_one_ends_never_waits_for_ever(url: String) {
    let nodes = nodes(&url).await;
    let report = Report::new("C4", "enqueue against the end of a turn", database(&nodes));
    let cases = pick(500, 5_000);
    let sweep = usual(&nodes, &json!({"input": "One"})).await * 2;
    let ended = play(&nodes, cases, sweep, |case| async move {
        run_of(ask(&case.a, &case.id, "One", "reject").await);
        tokio::time::sleep(case.after).await;
        let second = ask(&case.b, &case.id, "Two", "enqueue").await.expect(202);
        let waited = second["instructions"].as_str().is_some() && second["started_at"].is_null();
        let busy = look(&case.b, &case.id).await["queued_runs"] == 1;
        let free = until(&case.b, &case.id, PATIENCE, is_free).await;
        (case.id, waited && busy, free)
    });
    let mut waited = 0;
    for (id, had_to_wait, free) in ended.await {
        report.check(free, || format!("somebody waits for ever in {id}"));
        let verdict = verdict(&nodes[0].client, &id, &report).await;
        report.check(verdict.count("completed") == 2, || format!("{:?}", verdict.runs.values()));
        waited += usize::from(had_to_wait);
        report.fault(true);
    }
    report.note(format!("{waited} had to wait"));
    report.finish(cases);
}

async fn a_cancel_around_the_end_of_a_turn_lets_exactly_one_other_begin(url: String) {
    let nodes = nodes(&url).await;
    let report = Report::new("C4", "cancel against the end of a turn", database(&nodes));
    let cases = pick(80, 800);
    // Long enough that the others are there before it ends.
    let script = json!([{"text": "a b c d e f", "chunk_delay_ms": 20}]);
    let first = json!({"input": "One", "config": {"script": script}});
    let sweep = usual(&nodes, &first).await * 2;
    let ended = play(&nodes, cases, sweep, |case| {
        let first = first.clone();
        async move {
            let path = format!("/v1/conversations/{}/runs", case.id);
            let first = run_of(case.a.post(&path, &first).await);
            let more = [&case.a, &case.b, &case.a];
            let more = more.map(|node| ask(node, &case.id, "More", "enqueue"));
            join_all(more).await.into_iter().for_each(|answer| drop(run_of(answer)));
            tokio::time::sleep(case.after).await;
            let (path, nothing) = (format!("/v1/runs/{first}/cancel"), json!({}));
            let (one, other) =
                join(case.a.post(&path, &nothing), case.b.post(&path, &nothing)).await;
            let fine = [one, other].iter().all(|answer| matches!(answer.status, 200 | 202));
            (case.id, first, fine)
        }
    });
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for (id, first, fine) in ended.await {
        report.check(fine, || format!("{first} could not be cancelled"));
        // The verdict says that no two ran at once, and that nobody is left.
        let verdict = verdict(&nodes[0].client, &id, &report).await;
        let status = super::text(&verdict.runs[&first], "status").to_owned();
        let completed = 3 + usize::from(status == "completed");
        report.check(verdict.count("completed") == completed, || format!("{id}: {status}"));
        *outcomes.entry(status).or_default() += 1;
        report.fault(true);
    }
    let both = ["completed", "cancelled"].iter().all(|status| outcomes.contains_key(*status));
    report.check(both && outcomes.len() == 2, || format!("both outcomes happen: {outcomes:?}"));
    report.note(format!("{outcomes:?}"));
    report.finish(cases);
}

async fn a_turn_that_is_asked_for_as_the_conversation_closes_is_taken_whole_or_not_at_all(
    url: String,
) {
    let nodes = nodes(&url).await;
    let report = Report::new("C4", "enqueue against close", database(&nodes));
    let cases = pick(80, 800);
    let sweep = usual(&nodes, &json!({"input": "One"})).await / 2;
    let ended = play(&nodes, cases, sweep, |case| async move {
        run_of(ask(&case.a, &case.id, "One", "reject").await);
        let (path, nothing) = (format!("/v1/conversations/{}/close", case.id), json!({}));
        let ask = ask(&case.a, &case.id, "Two", "enqueue");
        let (asked, closed) = case.at_once(ask, case.b.post(&path, &nothing)).await;
        let closed = closed.expect(200);
        assert_eq!(closed["status"], "closed");
        (case.id, asked)
    });
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for (id, asked) in ended.await {
        let verdict = verdict(&nodes[0].client, &id, &report).await;
        let outcome = match asked.status {
            202 => {
                let run_id = super::text(&asked.body, "run_id");
                super::text(&verdict.runs[run_id], "status").to_owned()
            }
            status => {
                report.check(verdict.runs.len() == 1, || format!("{status}, and it is there"));
                super::text(&asked.body, "error").to_owned()
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
        report.fault(true);
    }
    one_of(&["cancelled", "completed", "conversation_closed"], &outcomes, &report);
    report.finish(cases);
}

/// The node on which a run ended may remember it for two seconds after another one has erased it.
async fn gone(client: &Client, run_id: &str) {
    let remembered = Instant::now() + PATIENCE;
    let path = format!("/v1/runs/{run_id}");
    while client.get(&path).await.status != 404 {
        assert!(Instant::now() < remembered, "{run_id} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_turn_that_is_asked_for_as_the_conversation_is_deleted_is_taken_whole_or_not_at_all(
    url: String,
) {
    let nodes = nodes(&url).await;
    let report = Report::new("C4", "create against delete", database(&nodes));
    let cases = pick(80, 800);
    let sweep = usual(&nodes, &json!({"input": "One"})).await / 2;
    let ended = play(&nodes, cases, sweep, |case| async move {
        let path = format!("/v1/conversations/{}", case.id);
        let ask = ask(&case.a, &case.id, "One", "reject");
        let (asked, deleted) = case.at_once(ask, case.b.delete(&path)).await;
        (case.id, asked, deleted)
    });
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let client = &nodes[0].client;
    for (id, asked, deleted) in ended.await {
        let outcome = format!("{} {}", asked.status, deleted.status);
        if deleted.status == 204 {
            client.get(&format!("/v1/conversations/{id}")).await.expect(404);
            if let Some(run_id) = asked.body["run_id"].as_str() {
                gone(client, run_id).await;
            }
        } else {
            let verdict = verdict(client, &id, &report).await;
            report.check(verdict.count("completed") == 1, || format!("{:?}", verdict.runs));
        }
        *outcomes.entry(outcome).or_default() += 1;
        report.fault(true);
    }
    // The last one: the turn was over by then.
    one_of(&["202 409", "404 204", "202 204"], &outcomes, &report);
    let left = super::all(client, "/v1/conversations?").await;
    let kept = outcomes.get("202 409").copied().unwrap_or_default();
    report.check(left.len() as u64 == kept, || format!("{} are left of {kept}", left.len()));
    let free = |conversation: &Value| is_free(conversation);
    report.check(left.iter().all(free), || format!("{left:?}"));
    report.finish(cases);
}

/// Nothing else came out.
fn one_of(may: &[&str], outcomes: &BTreeMap<String, u64>, report: &Report) {
    let fits = outcomes.keys().all(|outcome| may.contains(&outcome.as_str()));
    report.check(fits && outcomes.len() > 1, || format!("{outcomes:?} are not {may:?}"));
    report.note(format!("{outcomes:?}"));
}
