//! What must hold of a conversation in which nothing goes on any more, whatever was done to it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{at, get, id};
use crate::support::client::Client;

/// Every page of a list.
async fn all(client: &Client, path: &str, id: &str) -> Vec<Value> {
    let mut list: Vec<Value> = Vec::new();
    loop {
        let place = |last: &Value| last[id].as_str().map_or(last[id].to_string(), str::to_owned);
        let after = list.last().map_or(String::new(), |last| format!("&after={}", place(last)));
        let page = client.get(&format!("{path}limit=100&order=asc{after}")).await.expect(200);
        list.extend(page["data"].as_array().expect("data").clone());
        if page["has_more"] == false {
            return list;
        }
    }
}

/// A conversation that is free, its runs one after another, every message once and in its place, every
/// call with its answer right behind it. Returns the runs, oldest first, and the messages.
pub async fn assert_whole(client: &Client, talk: &str) -> (Vec<Value>, Vec<Value>) {
    let runs = all(client, &format!("/v1/runs?conversation_id={talk}&"), "run_id").await;
    for run in &runs {
        client.wait(&id(run)).await;
    }
    let runs = all(client, &format!("/v1/runs?conversation_id={talk}&"), "run_id").await;
    let now = get(client, talk).await;
    assert_eq!((&now["active_run_id"], &now["queued_runs"]), (&Value::Null, &Value::from(0)));
    let messages = all(client, &format!("{}?", at(talk, "messages")), "message_id").await;
    assert_eq!(now["message_count"], messages.len());
    let ids: BTreeSet<&str> = messages.iter().filter_map(|m| m["message_id"].as_str()).collect();
    assert_eq!(ids.len(), messages.len(), "a message is there twice");
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(message["message_index"], index, "indexes have no gaps");
    }
    assert_answered(&messages);

    let mut said: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    let mut last = None;
    for message in messages.iter().filter(|message| !message["run_id"].is_null()) {
        let run_id = message["run_id"].as_str().expect("an id");
        let is_new = !said.contains_key(run_id);
        assert!(is_new || last == Some(run_id), "two runs spoke at once: {message}");
        said.entry(run_id).or_default().push(message);
        last = Some(run_id);
    }
    for run in &runs {
        let log = all(client, &format!("/v1/runs/{}/log?", id(run)), "seq").await;
        let said = said.remove(id(run).as_str()).unwrap_or_default();
        assert_said(run, &log, &said);
    }
    (runs, messages)
}

/// Every call of a model is answered by the messages right behind it, in their order.
fn assert_answered(messages: &[Value]) {
    let mut open: Vec<&Value> = Vec::new();
    for message in messages {
        if message["role"] == "tool" {
            assert_eq!(open.first().copied(), Some(&message["call_id"]), "{message}");
            open.remove(0);
        } else {
            assert!(open.is_empty(), "no answer to {open:?} in front of {message}");
            let calls = message["tool_calls"].as_array().into_iter().flatten();
            open = calls.map(|call| &call["call_id"]).collect();
        }
    }
    assert!(open.is_empty(), "no answer to {open:?}");
}

/// A run has said in its conversation what its log says, no more and no less.
fn assert_said(run: &Value, log: &[Value], said: &[&Value]) {
    let of = |event_type: &'static str| log.iter().filter(move |e| e["type"] == event_type);
    let ends = log.last().expect("an event")["type"].as_str().expect("a type");
    assert!(ends.starts_with("run.") && run["completed_at"].is_string(), "{run}");
    let role = |role: &'static str| said.iter().filter(move |message| message["role"] == role);
    let steered = of("input.received").count();
    let asked = role("user").count();
    // One that was cancelled before it ran was heard if its turn had begun, and else not.
    let is_whole = asked == steered + 1 || (asked == steered && of("run.running").count() == 0);
    assert!(is_whole, "{run}: {said:?}");
    let told: Vec<&Value> =
        of("message.completed").filter(|e| e["content"] != "" || has_calls(log, e)).collect();
    let kept: Vec<&&Value> = role("assistant").collect();
    assert_eq!(kept.len(), told.len(), "{run}: {said:?}");
    for (kept, told) in kept.iter().zip(&told) {
        assert_eq!(kept["message_id"], told["message_id"]);
        assert_eq!(kept["content"], told["content"]);
    }
    let answers: Vec<&Value> = role("tool").map(|message| &message["call_id"]).collect();
    let calls: Vec<&Value> = of("tool_call.created").map(|event| &event["call_id"]).collect();
    assert_eq!(answers, calls, "{run}");
}

fn has_calls(log: &[Value], message: &Value) -> bool {
    log.iter().any(|e| e["type"] == "tool_call.created" && e["step"] == message["step"])
}
