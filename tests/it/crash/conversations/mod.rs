//! Conversations: one turn at a time, whoever asks, on whatever node, and whoever is killed meanwhile.
//!
//! - [`busy`]: 64 callers at once, for each `on_busy`.
//! - [`kills`]: `kill -9` in the middle of turns, and right behind an interrupt and a close.
//! - [`races`]: what may happen in the same moment, swept against each other.
//! - [`listener`]: somebody who follows the conversation's own stream through all of it.
//!
//! [`verdict`] holds the history that is left against the runs that made it.

mod busy;
mod kills;
mod listener;
mod races;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stepwell::clock::Clock;

use crate::support::client::{Answer, Client};
use crate::support::profile::Report;

/// Nothing that is waited for here takes as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that says nothing by itself.
const LOOK: Duration = Duration::from_millis(20);

/// An agent that says a few words, asks the caller something, and answers when it has been told.
fn asker(word_ms: u64) -> Value {
    let ask = json!([{"tool": "ask", "arguments": {}}]);
    json!({
        "agent_id": "asker",
        "model": "builtin/script",
        "tools": [{"type": "client", "name": "ask", "description": "Asks.",
            "parameters": {"type": "object"}}],
        "script": [
            {"text": "Let me ask", "chunk_delay_ms": word_ms, "tool_calls": ask},
            {"text": "So be it"},
        ],
    })
}

/// A new conversation with an agent; gives its id.
async fn converse(client: &Client, agent_id: &str) -> String {
    let made = client.post("/v1/conversations", &json!({"agent_id": agent_id})).await.expect(201);
    made["conversation_id"].as_str().expect("conversation_id").to_owned()
}

/// Asks for a turn, under a key of its own: where many ask at once, some may be told to ask again.
async fn ask(client: &Client, id: &str, input: &str, on_busy: &str) -> Answer {
    let (path, key) = (format!("/v1/conversations/{id}/runs"), Clock::system().uuid().to_string());
    client.insist(&path, &key, &json!({"input": input, "on_busy": on_busy})).await
}

/// The run of an answer that took a turn.
fn run_of(answer: Answer) -> String {
    answer.expect(202)["run_id"].as_str().expect("run_id").to_owned()
}

/// The conversation as it is.
async fn look(client: &Client, id: &str) -> Value {
    client.get(&format!("/v1/conversations/{id}")).await.expect(200)
}

/// Answers what the active run asks for, once it does.
async fn tell(client: &Client, id: &str) {
    let asked = Instant::now();
    loop {
        let active = look(client, id).await["active_run_id"].clone();
        let run = match active.as_str() {
            Some(run_id) => client.wait(run_id).await,
            None => Value::Null,
        };
        if run["status"] == "requires_action" {
            let call_id = &run["required_actions"][0]["call_id"];
            let path = format!("/v1/conversations/{id}/tool-results");
            let said = json!({"call_id": call_id, "success": true, "result": "yes"});
            client.post(&path, &said).await.expect(202);
            return;
        }
        assert!(asked.elapsed() < PATIENCE, "nobody asks: {run}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the conversation is like this; `false` if that takes too long.
async fn until(
    client: &Client,
    id: &str,
    patience: Duration,
    is_so: impl Fn(&Value) -> bool,
) -> bool {
    let asked = Instant::now();
    while asked.elapsed() < patience {
        if is_so(&look(client, id).await) {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

/// Nobody's turn, and nobody waits.
fn is_free(conversation: &Value) -> bool {
    conversation["active_run_id"].is_null() && conversation["queued_runs"] == 0
}

/// All rows of a list, page by page.
async fn all(client: &Client, path: &str) -> Vec<Value> {
    let (mut rows, mut after) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{path}limit=100&order=asc{after}")).await.expect(200);
        rows.extend(page["data"].as_array().expect("data").clone());
        if page["has_more"] != true {
            return rows;
        }
        after = format!("&after={}", page["last_id"].as_str().expect("an id"));
    }
}

/// What a conversation came to.
struct Verdict {
    /// Its runs, as the list shows them, by id.
    runs: BTreeMap<String, Value>,
}

impl Verdict {
    /// How many runs ended like this.
    fn count(&self, status: &str) -> usize {
        self.runs.values().filter(|run| run["status"] == status).count()
    }

    /// The runs whose turn began, in the order in which it did.
    fn in_turn(&self) -> Vec<&str> {
        let began = self.runs.values().filter(|run| run["started_at"].is_string());
        let mut began: Vec<&Value> = began.collect();
        began.sort_by_key(|run| (text(run, "started_at"), text(run, "completed_at")));
        began.iter().map(|run| text(run, "run_id")).collect()
    }
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// Judges a conversation once nothing goes on in it: no run is left, no two ran at once, and what was
/// said is what its runs said, once, in their turns, with every call answered.
async fn verdict(client: &Client, id: &str, report: &Report) -> Verdict {
    let free = until(client, id, PATIENCE, is_free).await;
    let conversation = look(client, id).await;
    report.check(free, || format!("somebody waits for ever in {conversation}"));
    let runs = all(client, &format!("/v1/runs?conversation_id={id}&")).await;
    let said = all(client, &format!("/v1/conversations/{id}/messages?")).await;
    let is = |holds: bool, wrong: &str| {
        report.check(holds, || format!("{id}: {wrong}"));
    };

    let indexes: Vec<i64> = said.iter().filter_map(|m| m["message_index"].as_i64()).collect();
    is(indexes == (0..said.len() as i64).collect::<Vec<_>>(), "the indexes are not 0..N");
    is(conversation["message_count"] == said.len(), "message_count does not count them");
    let ids: BTreeSet<&str> = said.iter().map(|message| text(message, "message_id")).collect();
    is(ids.len() == said.len(), "a message is there twice");
    is(unanswered(&said).is_none(), &format!("a call without its answer: {:?}", unanswered(&said)));

    // What a run has said stands together.
    let mut speakers: Vec<&str> = said.iter().map(|message| text(message, "run_id")).collect();
    speakers.dedup();
    let distinct: BTreeSet<&str> = speakers.iter().copied().collect();
    is(speakers.len() == distinct.len(), &format!("runs talk over each other: {speakers:?}"));

    let verdict =
        Verdict { runs: runs.into_iter().map(|r| (text(&r, "run_id").to_owned(), r)).collect() };
    let mut before = "";
    for run_id in verdict.in_turn() {
        let run = &verdict.runs[run_id];
        is(text(run, "started_at") >= before, &format!("{run_id} began before its turn"));
        before = text(run, "completed_at");
    }
    for (run_id, run) in &verdict.runs {
        let own: Vec<&Value> = said.iter().filter(|m| text(m, "run_id") == run_id).collect();
        let roles: Vec<&str> = own.iter().map(|message| text(message, "role")).collect();
        let status = text(run, "status");
        is(!run["completed_at"].is_null(), &format!("{run_id} has not ended: {run}"));
        let asked = roles.iter().filter(|role| **role == "user").count();
        let fits = match status {
            "completed" => roles.first() == Some(&"user") && roles.last() == Some(&"assistant"),
            _ => roles.first().is_none_or(|first| *first == "user"),
        };
        is(fits && asked <= 1, &format!("{run_id} is {status} and said {roles:?}"));
        // One step says one thing; it is there once or, if the run was cut short, not at all.
        let answers = roles.iter().filter(|role| **role == "assistant").count();
        is(run["steps_completed"].as_u64() <= Some(answers as u64), "a step left nothing behind");
    }
    verdict
}

/// The first message out of its place: an answer that nobody asked for, or anything else before all
/// calls are answered.
fn unanswered(said: &[Value]) -> Option<&Value> {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for message in said {
        if message["role"] == "tool" {
            if !open.remove(text(message, "call_id")) {
                return Some(message);
            }
        } else if !open.is_empty() {
            return Some(message);
        }
        let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        open.extend(calls.iter().map(|call| text(call, "call_id")));
    }
    if open.is_empty() { None } else { said.last() }
}

#[test]
fn a_call_that_nobody_answers_is_found() {
    let call = json!({"role": "assistant", "tool_calls": [{"call_id": "c"}]});
    let answer = json!({"role": "tool", "call_id": "c"});
    let user = json!({"role": "user"});
    assert_eq!(unanswered(&[user.clone(), call.clone(), answer.clone(), user.clone()]), None);
    for bad in [vec![call.clone()], vec![call.clone(), user], vec![answer.clone()]] {
        assert!(unanswered(&bad).is_some(), "{bad:?}");
    }
    assert!(unanswered(&[call, answer.clone(), answer]).is_some());
}
