//! The verdict: what readers saw, against what the log says in the end, read in every way there is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::readers::{Seen, Told};
use super::talker;
use crate::support::client::{Client, Frame, log_of};
use crate::support::profile::Report;

/// Events of a bad log that are told.
const TOLD: usize = 20;

/// Judges every run of a fleet; returns them as `GET` shows them.
pub async fn all(client: &Client, told: &Told, report: &Report) -> BTreeMap<String, Value> {
    report.add(told.checks, told.violations.clone());
    let mut runs = BTreeMap::new();
    for (run_id, seen) in &told.runs {
        runs.insert(run_id.clone(), one(client, run_id, seen, report).await.run);
    }
    runs
}

/// A run as it is in the end.
pub struct Judged {
    pub run: Value,
    pub log: Vec<Frame>,
}

/// Judges a run that has ended: invariants 1 to 4 and 6 of `promises.md`.
pub async fn one(client: &Client, run_id: &str, seen: &Seen, report: &Report) -> Judged {
    let log = log_of(&client.events(run_id, 0).await.rest().await);
    let run = client.get(&format!("/v1/runs/{run_id}")).await.expect(200);
    let is = |holds: bool, wrong: &str| {
        report.check(holds, || {
            let last = log.len().saturating_sub(TOLD);
            let told =
                log.iter().skip(last).map(|frame| format!("{} {}", frame.seq(), frame.event));
            let told: Vec<String> = told.collect();
            format!("{run_id} ({}): {wrong}; its log ends with {told:?}", run["status"])
        });
    };

    // 1 and 2: gap-free, and whatever anybody saw is there, to the byte.
    let seqs: Vec<i64> = log.iter().map(Frame::seq).collect();
    is(seqs == (1..=log.len() as i64).collect::<Vec<_>>(), "the log is not 1..N");
    for (seq, data) in &seen.events {
        let kept = usize::try_from(seq - 1).ok().and_then(|at| log.get(at));
        is(kept.is_some_and(|kept| kept.data == *data), "what a reader saw is lost or changed");
    }
    for frame in &log {
        let event = frame.json();
        let fits = event["seq"] == frame.seq()
            && event["type"] == frame.event
            && event["run_id"] == run_id;
        is(fits, "an event does not say what its frame says");
    }

    // 3: exactly one end, the last; GET, stream and pages agree.
    let finals = log.iter().filter(|frame| frame.is_final()).count();
    is(finals == 1, "there is not exactly one final event");
    let end = log.last().map_or(Value::Null, Frame::json);
    is(log.last().is_some_and(Frame::is_final), "the last event is not the final one");
    for field in ["status", "result", "error", "usage", "cost_usd", "steps_completed"] {
        is(end[field] == run[field], "the run and its final event disagree");
    }
    is(run["last_seq"] == json!(log.len()), "last_seq is not the last seq");
    let pages = pages(client, run_id).await;
    is(pages == log.iter().map(Frame::json).collect::<Vec<_>>(), "the stream and the log disagree");

    // 4: no call is answered twice, and none is left without an answer.
    let calls = |types: &[&str]| -> Vec<String> {
        let of = log.iter().filter(|frame| types.contains(&frame.event.as_str()));
        of.map(|frame| frame.json()["call_id"].as_str().expect("call_id").to_owned()).collect()
    };
    let created = calls(&["tool_call.created"]);
    let answered = calls(&["tool_call.completed", "tool_call.failed"]);
    let distinct = |calls: &[String]| calls.iter().cloned().collect::<BTreeSet<_>>();
    is(answered.len() == distinct(&answered).len(), "a call is answered twice");
    is(distinct(&created) == distinct(&answered), "calls and answers do not match");

    let mut over = BTreeSet::new();
    for frame in log.iter().filter(|frame| frame.event.starts_with("tool_call.")) {
        let call_id = frame.json()["call_id"].as_str().expect("call_id").to_owned();
        is(!over.contains(&call_id), "a call goes on after its answer");
        if matches!(&*frame.event, "tool_call.completed" | "tool_call.failed") {
            over.insert(call_id);
        }
    }
    let said: String = log
        .iter()
        .filter(|frame| frame.event == "message.delta")
        .map(|frame| frame.json()["content"].as_str().expect("content").to_owned())
        .collect();
    let disorder = talker::disorder(&said);
    is(disorder.is_none(), &format!("{disorder:?}"));

    // 6: the run's usage is the sum of its steps'.
    let mut total = 0;
    for frame in log.iter().filter(|f| matches!(&*f.event, "step.completed" | "step.failed")) {
        total += frame.json()["usage"]["total_tokens"].as_i64().expect("tokens");
    }
    if run["status"] == "completed" {
        is(run["usage"]["total_tokens"] == total, "the usage is not the sum of the steps'");
    }
    let steps: Vec<i64> = log
        .iter()
        .filter(|frame| frame.event == "step.completed")
        .map(|frame| frame.json()["step"].as_i64().expect("a step"))
        .collect();
    is(steps == (1..=steps.len() as i64).collect::<Vec<_>>(), "a step is completed twice");
    Judged { run, log }
}

/// The log as JSON, page by page.
async fn pages(client: &Client, run_id: &str) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let path = format!("/v1/runs/{run_id}/log?limit=100&after={}", events.len());
        let page = client.get(&path).await.expect(200);
        events.extend(page["data"].as_array().expect("data").clone());
        if page["has_more"] != true {
            return events;
        }
    }
}
