//! P20: of several decisions one wins, what was approved is what is executed, and nothing that was
//! approved is lost. And no run is ever bricked: however it stops, what the model reads is valid.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::event::{Entry, EventType};
use stepwell::domain::fold::Folded;
use stepwell::domain::model::Catalogue;
use stepwell::domain::plan::Plan;
use stepwell::domain::transcript;

use super::readers::{self, Board};
use super::{create, judge};
use crate::support::client::{Client, Frame};
use crate::support::model_server::{ModelServer, Reply, openai};
use crate::support::on_both_databases;
use crate::support::profile::{Report, pick};
use crate::support::random::Random;
use crate::support::server::{Server, Setup};
use crate::support::transcripts::{assert_valid, assert_valid_openai};

on_both_databases! {
    one_decision_wins_and_what_was_approved_is_executed_through_kills;
    no_way_to_stop_a_run_leaves_its_transcript_invalid;
}

const fn database(url: &str) -> &'static str {
    if matches!(url.as_bytes().first(), Some(b's')) { "SQLite" } else { "Postgres" }
}

/// A request to a server that may be killed meanwhile: its status, if it answered.
async fn try_post(client: &Client, path: &str, body: &Value) -> Option<u16> {
    let answer = client.request(Method::POST, path).json(body).send().await.ok()?;
    Some(answer.status().as_u16())
}

async fn one_decision_wins_and_what_was_approved_is_executed_through_kills(url: String) {
    let report =
        Report::new("P20", "approve, edit and deny at once, kill -9 around", database(&url));
    let mut random = Random::new();
    let setup = Setup::new(url, "").on_a_port_that_stays();
    let mut server = setup.start().await;
    let agent = json!({
        "agent_id": "asks", "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "echo", "requires_approval": true}],
        "script": [{"tool_calls": [{"tool": "echo", "arguments": {"text": "model"}}]}, {"text": "Done."}],
    });
    server.client.post("/v1/agents", &agent).await.expect(201);
    let kills = pick(20, 200);
    let mut won: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut undecided, mut unmade) = (0, 0);
    for _ in 0..kills {
        let run_id = create(&server.client, "asks").await;
        let run = server.client.wait(&run_id).await;
        let call_id = run["required_actions"][0]["call_id"].clone();
        let path = format!("/v1/runs/{run_id}/approvals");
        let answers = [
            ("model", json!({"call_id": call_id, "decision": "approve"})),
            (
                "person",
                json!({"call_id": call_id, "decision": "approve", "arguments": {"text": "person"}}),
            ),
            ("nobody", json!({"call_id": call_id, "decision": "deny"})),
        ];
        // Each twice, in any order, and the kill comes in the middle of it or soon after.
        let mut order: Vec<usize> = (0..6).map(|i| i % 3).collect();
        order.rotate_left(random.below(3) as usize);
        let client = server.client.clone();
        let posts = order.iter().map(|i| try_post(&client, &path, &answers[*i].1));
        let soon = if random.one_in(2) { 2_000 } else { 30_000 };
        let wait = Duration::from_micros(random.below(soon));
        let kill = async {
            tokio::time::sleep(wait).await;
            server.kill();
            readers::now()
        };
        let (statuses, killed_at) = tokio::join!(join_all(posts), kill);
        server = setup.start().await;
        server.ready().await;
        let promised: Vec<usize> = order
            .iter()
            .zip(&statuses)
            .filter(|(_, status)| **status == Some(202))
            .map(|(i, _)| *i)
            .collect();
        report.check(promised.windows(2).all(|pair| pair[0] == pair[1]), || {
            format!("two decisions counted: {order:?} {statuses:?}")
        });
        // Whoever got a 202 asks again and gets it again; the others never will.
        let mut winners = promised.first().copied().into_iter().collect::<Vec<_>>();
        for i in order.iter().rev().take(3) {
            match server.client.post(&path, &answers[*i].1).await.status {
                202 => winners.push(*i),
                status => report.check(status == 409, || format!("{status} for a late decision")),
            }
        }
        winners.dedup();
        report.check(winners.len() == 1, || format!("{winners:?} of {statuses:?}"));
        let expected = answers[winners[0]].0;
        *won.entry(expected).or_default() += 1;
        let run = server.client.wait(&run_id).await;
        report.check(run["status"] == "completed", || format!("{run}"));
        let judged =
            judge::one(&server.client, &run_id, &Board::default().seen(&run_id), &report).await;
        let of = |event: &str| -> Vec<Value> {
            judged.log.iter().filter(|f| f.event == event).map(Frame::json).collect()
        };
        let (decided, made) = (of("approval.decided"), of("tool_call.started"));
        let done = of("tool_call.completed");
        let after_kill = |event: &Value| event["created_at"].as_str() > Some(killed_at.as_str());
        report.fault(judged.log.last().is_some_and(|end| after_kill(&end.json())));
        undecided += usize::from(decided.first().is_some_and(after_kill));
        unmade += usize::from(made.first().is_some_and(after_kill));
        report.check(decided.len() == 1, || format!("{decided:?}"));
        if expected == "nobody" {
            report.check(made.is_empty() && done.is_empty(), || format!("{made:?}"));
        } else {
            report.check(decided[0]["arguments"]["text"] == expected, || format!("{decided:?}"));
            report.check(done.len() == 1 && done[0]["result"] == expected, || format!("{done:?}"));
            let first = made.first().and_then(|event| event["seq"].as_i64());
            report.check(first > decided[0]["seq"].as_i64(), || format!("made before: {made:?}"));
        }
    }
    report
        .note(format!("{undecided} kills before the decision, {unmade} before the call was made"));
    report.note(format!("won: {won:?}"));
    report.finish(kills / 3);
}

/// What is done to runs, and how often.
#[derive(Debug, Default)]
struct Done(Mutex<BTreeMap<&'static str, usize>>);

impl Done {
    fn add(&self, what: &'static str, times: usize) {
        *self.0.lock().expect("no panic").entry(what).or_default() += times;
    }

    fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.0.lock().expect("no panic").clone()
    }
}

fn tools() -> Value {
    json!([
        {"type": "builtin", "name": "echo", "requires_approval": true, "approval_timeout_seconds": 1},
        {"type": "builtin", "name": "sleep"},
        {"type": "client", "name": "mine", "timeout_seconds": 1},
        {"type": "client", "name": "both", "requires_approval": true,
         "timeout_seconds": 1, "approval_timeout_seconds": 1},
    ])
}

/// A model that asks for anything, and ends after three turns that did.
fn answers(random: &mut Random, messages: &[Value]) -> Reply {
    if messages.iter().filter(|message| message["role"] == "assistant").count() >= 3 {
        return openai::text("That is all.");
    }
    let all = [
        ("echo", "{\"text\":\"x\"}"),
        ("sleep", "{\"seconds\":0.05}"),
        ("mine", "{\"q\":1}"),
        ("both", "{}"),
        ("echo", "no JSON"),
        ("nowhere", "{}"),
    ];
    let calls: Vec<_> = (0..=random.below(3)).map(|_| *random.pick(&all)).collect();
    openai::tool_calls(&calls)
}

/// Does something to a run, again and again, until it has ended; or lets all that it asks for expire.
async fn disturb(
    client: Client,
    run_id: String,
    answers: bool,
    mut random: Random,
    done: Arc<Done>,
) {
    let path = format!("/v1/runs/{run_id}");
    loop {
        tokio::time::sleep(Duration::from_millis(5 + random.below(60))).await;
        // The server may be down.
        let Ok(answer) = client.request(Method::GET, &path).send().await else { continue };
        let Ok(run) = answer.json::<Value>().await else { continue };
        if run["completed_at"].is_string() {
            return;
        }
        let actions = run["required_actions"].as_array().cloned().unwrap_or_default();
        let (what, place, body) = match random.below(16) {
            1 | 2 => ("steered", "messages", json!({"content": "Also this."})),
            _ if !answers => continue,
            0 => ("cancelled", "cancel", json!({})),
            3..6 => continue,
            _ if actions.is_empty() => continue,
            dice => {
                let action = random.pick(&actions);
                let call_id = &action["call_id"];
                match (action["type"].as_str(), dice % 3) {
                    (Some("approval"), 0) => {
                        ("denied", "approvals", json!({"call_id": call_id, "decision": "deny"}))
                    }
                    (Some("approval"), _) => (
                        "approved",
                        "approvals",
                        json!({"call_id": call_id, "decision": "approve"}),
                    ),
                    (_, 0) => {
                        ("failed", "tool-results", json!({"call_id": call_id, "success": false}))
                    }
                    _ => (
                        "answered",
                        "tool-results",
                        json!({"call_id": call_id, "success": true, "result": {"n": dice}}),
                    ),
                }
            }
        };
        if try_post(&client, &format!("{path}/{place}"), &body).await.is_some_and(|s| s < 300) {
            done.add(what, 1);
        }
    }
}

async fn no_way_to_stop_a_run_leaves_its_transcript_invalid(url: String) {
    let report =
        Report::new("P20", "stop runs in every way, read their transcripts", database(&url));
    let mut random = Random::new();
    let models = ModelServer::start().await;
    let invalid: Arc<Mutex<Vec<String>>> = Arc::default();
    let (dice, told) = (Mutex::new(random.fork()), invalid.clone());
    models.answer_with(move |request| {
        if std::panic::catch_unwind(|| assert_valid_openai(&request.body)).is_err() {
            told.lock().expect("no panic").push(request.body.to_string());
        }
        let messages = request.body["messages"].as_array().cloned().unwrap_or_default();
        answers(&mut dice.lock().expect("no panic"), &messages)
    });
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n");
    let setup = Setup::new(url, yaml).on_a_port_that_stays();
    let mut server = setup.start().await;
    let agent = json!({"agent_id": "any", "model": "p/m", "tools": tools()});
    server.client.post("/v1/agents", &agent).await.expect(201);
    let done = Arc::new(Done::default());
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..pick(6, 40) {
        let mut runs = Vec::new();
        for _ in 0..50 {
            runs.push(create(&server.client, "any").await);
        }
        // Whether something expires must not hang on how quick the machine is: one of ten is never answered.
        let disturbers = runs.iter().enumerate().map(|(n, run_id)| {
            let (client, random) = (server.client.clone(), random.fork());
            disturb(client, run_id.clone(), n % 10 > 0, random, done.clone())
        });
        let disturbers = join_all(disturbers);
        let wait = Duration::from_millis(100 + random.below(500));
        let crash = async {
            tokio::time::sleep(wait).await;
            let before = ended(&server, &runs).await;
            server.kill();
            done.add("crashed", runs.len() - before);
            report.fault(before < runs.len());
            setup.start().await
        };
        let (_, again) = tokio::join!(disturbers, crash);
        server = again;
        for run_id in &runs {
            let board = Board::default();
            let judged = judge::one(&server.client, run_id, &board.seen(run_id), &report).await;
            let status = judged.run["status"].as_str().expect("a status").to_owned();
            *ends.entry(status).or_default() += 1;
            let expired = judged.log.iter().filter(|frame| is_expiry(frame)).count();
            done.add("expired", expired);
            report.check(transcript_is_valid(&judged.log), || format!("{run_id} is bricked"));
        }
    }
    let invalid = std::mem::take(&mut *invalid.lock().expect("no panic"));
    report.add(models.requests().len() as u64, invalid);
    let counts = done.counts();
    report.note(format!("{counts:?}"));
    report.note(format!("{ends:?}"));
    let points: usize = counts.values().sum();
    report.check(points >= 1_000, || format!("only {points} points: {counts:?}"));
    for what in
        ["approved", "denied", "answered", "failed", "steered", "cancelled", "expired", "crashed"]
    {
        // Dice and the speed of the machine decide how many: none would mean that it was not tried.
        report.check(counts.get(what).is_some_and(|n| *n >= 3), || format!("too few {what}"));
    }
    for end in ["completed", "cancelled"] {
        report.check(ends.contains_key(end), || format!("no run ended {end}: {ends:?}"));
    }
    report.finish(pick(6, 40) * 3 / 4);
}

async fn ended(server: &Server, runs: &[String]) -> usize {
    let paths: Vec<String> = runs.iter().map(|run_id| format!("/v1/runs/{run_id}")).collect();
    let answers = join_all(paths.iter().map(|path| server.client.get(path))).await;
    answers.iter().filter(|answer| answer.body["completed_at"].is_string()).count()
}

fn is_expiry(frame: &Frame) -> bool {
    frame.event == "approval.expired"
        || frame.event == "tool_call.failed"
            && frame.json()["error"] == "No result was posted in time."
}

/// What the model would be sent if somebody went on from the end of this run.
fn transcript_is_valid(log: &[Frame]) -> bool {
    let entries: Vec<Entry> = log
        .iter()
        .map(|frame| Entry {
            seq: i32::try_from(frame.seq()).expect("a seq"),
            event_type: EventType::from_word(&frame.event).expect("a type"),
            data: frame.data.clone().into(),
        })
        .collect();
    let folded = Folded::read(&entries).expect("a log that folds");
    let settings: AgentSettings =
        serde_json::from_value(json!({"model": "p/m", "tools": tools()})).expect("settings");
    let plan = Plan::new(settings, &Catalogue::default());
    let next = i32::try_from(folded.steps.len()).expect("few") + 1;
    let request = transcript::request(&folded, &plan, next, 1);
    std::panic::catch_unwind(|| assert_valid(&request)).is_ok()
}
